"""Applies single changes to agejax, one at a time: does a test fail?

    python -m experiments.mutations [--only=REGEX] [--jobs=2] [--output=FILE]

The changes are in experiments/mutations/table.py. Each is applied to a copy of the checkout, where
the tests that should catch it then run. First these tests run on the unchanged copy, where they
must pass. Writes experiments/results/mutations.json and .md: whether each change was caught, by
which test, and in how many seconds.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from agejax import files
from agejax.errors import UserError
from agejax.process.command import run_command
from experiments.arms import commit
from experiments.mutations.table import MUTATIONS, Mutation

ROOT = pathlib.Path(__file__).parents[2]
OUTPUT = ROOT / "experiments" / "results" / "mutations"
COPIED = ("agejax", "configs", "docs", "experiments", "tests")
FILES = ("Makefile", "pyproject.toml", "setup.py", "constraints.txt", "README.md")
TIMEOUT = 300  # seconds per change; a test that hangs has caught it
PASSED, FAILED = 0, 1  # exit codes of pytest


def check(mutations: Sequence[Mutation], root: pathlib.Path = ROOT) -> None:
    """Raises `UserError`, which names all such lines, where the table no longer fits the code."""
    stale = []
    for each in mutations:
        path = root / each.file
        times = path.read_text().count(each.old) if path.exists() else 0
        if times != 1:
            stale.append(f"{each.name}: found {times} times in {each.file}: {each.old!r}")
        for test in each.tests:
            file, *names = test.split("::")
            text = (root / "tests" / file).read_text() if (root / "tests" / file).exists() else ""
            for name in names:
                if f"def {name.partition('[')[0]}(" not in text:
                    stale.append(f"{each.name}: tests/{file} has no {name}")
            if not text:
                stale.append(f"{each.name}: there is no tests/{file}")
    if stale:
        raise UserError("the table of mutations does not fit the code:\n" + "\n".join(stale))


def copy_checkout(folder: pathlib.Path) -> pathlib.Path:
    """Copies what the tests need. Data and compiled programs are shared through links."""
    copy = folder / "agejax"
    copy.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    for link, target in (
        (copy / ".cache", ROOT / ".cache"),
        (folder / "shared", ROOT / "../shared"),
    ):
        target.resolve().mkdir(exist_ok=True)
        link.symlink_to(target.resolve())
    return copy


def run_tests(copy: pathlib.Path, tests: Sequence[str]) -> tuple[int | None, str, str]:
    """(pytest's exit code, None after `TIMEOUT`; the test that failed; what pytest printed)."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=line", "-p",
               "no:cacheprovider", *(f"tests/{test}" for test in tests)]  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": f"{copy}:{copy / 'tests'}",
        "PYTHONDONTWRITEBYTECODE": "1",  # two changes within a second would share a .pyc
    }
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            code = process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return None, "a test that hangs", f"no end within {TIMEOUT} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what its tests have started
        out.seek(0)
        printed = out.read()
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", printed, re.MULTILINE)
    return code, found[1] if found else "", printed


def judge(mutation: Mutation, copy: pathlib.Path) -> dict[str, Any]:
    """Applies one change, runs its tests, and takes the change back."""
    path, start = copy / mutation.file, time.monotonic()
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        code, by, printed = run_tests(copy, mutation.tests)
    finally:
        path.write_text(text)
    # Other exit codes: the changed code cannot be imported, or there is no such test.
    judged = code in (PASSED, None) or (code == FAILED and by)
    if not judged:
        print(f"{mutation.name}: pytest ended with {code}:\n{printed[-2000:]}", file=sys.stderr)
    return {
        "name": mutation.name,
        "file": mutation.file,
        "old": mutation.old,
        "new": mutation.new,
        "survived": mutation.survived,
        "caught": bool(by) and bool(judged),
        "by": by if judged else "",
        "seconds": round(time.monotonic() - start, 1),
    }


def campaign(mutations: Sequence[Mutation], jobs: int) -> list[dict[str, Any]]:
    """A row per change, in the order of the table."""
    check(mutations)
    with tempfile.TemporaryDirectory() as folder:
        copies = [copy_checkout(pathlib.Path(folder) / str(i)) for i in range(jobs)]
        tests = sorted({test for each in mutations for test in each.tests})
        groups = [tests[i::jobs] for i in range(min(jobs, len(tests)))]
        free: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
        for copy in copies:
            free.put(copy)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            print(f"{len(tests)} tests on the unchanged code", flush=True)
            for code, by, printed in pool.map(run_tests, copies, groups):
                if code != PASSED:
                    raise UserError(f"fails without any change: {by}\n{printed[-3000:]}")

            def one(mutation: Mutation) -> dict[str, Any]:
                copy = free.get()
                try:
                    row = judge(mutation, copy)
                finally:
                    free.put(copy)
                said = f"caught by {row['by']}" if row["caught"] else "NOT CAUGHT"
                print(f"{mutation.name}: {said} ({row['seconds']:.0f} s)", flush=True)
                return row

            return list(pool.map(one, mutations))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown: a row per change; those that once survived come first."""
    caught = sum(row["caught"] for row in rows)
    lines = [
        f"{caught} of {len(rows)} single changes are caught. The first "
        f"{sum(row['survived'] for row in rows)} are the kinds that all tests once let through.",
        "",
        "| what is changed | file | caught by | seconds |",
        "|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: not row["survived"]):
        by = f"`{row['by']}`" if row["caught"] else "**nothing**"
        lines.append(f"| {row['name']} | `{row['file']}` | {by} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="regex on names and files of the changes")
    parser.add_argument("--jobs", type=int, default=2, help="copies that are worked on at a time")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args(argv[1:])
    chosen = [m for m in MUTATIONS if re.search(args.only, f"{m.name} {m.file}")]
    if not chosen:
        raise UserError(f"--only={args.only}: no mutation has such a name or file")
    start = time.monotonic()
    rows = campaign(chosen, args.jobs)
    result = {
        "commit": commit(),
        "caught": sum(row["caught"] for row in rows),
        "mutations": len(rows),
        "seconds": round(time.monotonic() - start),
        "rows": rows,
    }
    files.write_json(args.output.with_suffix(".json"), result)
    files.write_text(args.output.with_suffix(".md"), table(rows))
    print(f"{result['caught']} of {len(rows)} caught in {result['seconds']} s; "
          f"written: {args.output.with_suffix('.md')}")  # fmt: skip
    if missed := [row["name"] for row in rows if not row["caught"]]:
        raise UserError(f"not caught: {'; '.join(missed)}")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
