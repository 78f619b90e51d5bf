"""The package: its metadata agrees with the code, and it installs the configs."""

import pathlib
import re
import subprocess
import sys

import pytest

import agejax
from agejax import command_line, paths
from agejax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
EXTRA = re.compile(r"pip install[^\n`]*'\.\[(\w+)\]'")


def test_the_papers_are_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {agejax.__version__}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation
    assert f"\n## {agejax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_every_extra_that_docs_and_messages_name_exists():
    extras = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.M))
    assert {"onnx", "sweep", "test"} <= extras
    texts = [
        path.read_text()
        for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.rglob("agejax/**/*.py")]
    ]  # fmt: skip
    named = {extra for text in texts for extra in EXTRA.findall(text)}
    assert {"beam", "sweep"} <= named <= extras
    # The name is on no index: there it may become somebody else's.
    assert not [text for text in texts if re.search(r"pip install '?agejax", text)]


def test_a_config_that_comes_with_agejax_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "agejax" / "configs"
    assert paths.config_file("quickstart") == f"{shipped}/quickstart.py"
    assert paths.config_file("quickstart:small") == f"{shipped}/quickstart.py:small"
    assert paths.config_file("my.py") == "my.py"
    assert paths.config_file("some/quickstart") == "some/quickstart"
    (tmp_path / "quickstart").write_text("")
    assert paths.config_file("quickstart") == "quickstart"
    for name, near in {"quickstrat": "did you mean 'quickstart'", "__init__": "there are"}.items():
        with pytest.raises(UserError, match=f"^--config={name}: no file of that name.*{near}"):
            paths.config_file(name)


@pytest.mark.parametrize("flags", [["--config=vit_utk"], ["--config", "vit_utk"]])
def test_the_command_line_takes_the_name_of_a_config(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line.parse(["main", *flags]).model.name.startswith("vit")


def test_the_configs_the_type_marker_and_the_page_are_installed(tmp_path):
    subprocess.run(
        [
            sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}",
            "build", f"--build-base={tmp_path / 'build'}",
        ],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    installed = tmp_path / "build" / "lib"
    assert [path.name for path in installed.iterdir()] == ["agejax"]
    for name in (
        "py.typed", "configs/quickstart.py", "configs/coral_frozen_utk.py",
        "exporting/web/page.html", "exporting/web/licences.txt",
    ):  # fmt: skip
        assert (installed / "agejax" / name).is_file(), name
