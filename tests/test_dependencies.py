"""What is installed has no publicly known issue."""

import json
import pathlib
import subprocess
import sys

import pytest

CONSTRAINTS = pathlib.Path(__file__).parents[1] / "constraints.txt"


def test_no_dependency_has_a_known_issue():
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner=off", "--format=json"]
    pinned = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    done = subprocess.run([*command, *pinned], capture_output=True, text=True, check=False)
    if not done.stdout:
        pytest.skip(f"nobody to ask: {done.stderr.splitlines()[-1]}")
    found = json.loads(done.stdout)["dependencies"]
    assert len(found) == len(CONSTRAINTS.read_text().split())
    known = [each for each in found if "vulns" in each]
    if not known:
        pytest.skip(f"nobody to ask: {found[0]['skip_reason']}")
    issues = {each["name"]: [issue["id"] for issue in each["vulns"]] for each in known}
    assert not {name: ids for name, ids in issues.items() if ids}
