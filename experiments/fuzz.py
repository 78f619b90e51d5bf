"""python -m experiments.fuzz [--inputs=10000] [--seed=0] [--only=REGEX] [--output=FOLDER]

Feeds random and mutated inputs to the code that users reach: settings, file names, tables,
archives, images, weights files. Each must be accepted, refused with a `UserError` of one line, or
skipped and counted; within 10 seconds of CPU time and a limit of memory, and without writing files
elsewhere. Writes a table and fuzz.json, and fails if one does not.

Input N of a kind depends only on the seed, the kind and N. Failures are named KIND/N, and --only
matches these names: --only='^images/123$' is one input.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from agejax.errors import UserError
from agejax.process.command import run_command
from experiments import memory
from experiments.arms import commit
from experiments.fuzzing import Prepare, archives, configs, images, names, tables, weights

KINDS: dict[str, Prepare] = {
    "configs": configs.prepare,
    "names": names.prepare,
    "tables": tables.prepare,
    "archives": archives.prepare,
    "images": images.prepare,
    "weights": weights.prepare,
}
OUTPUT = pathlib.Path("experiments/results/fuzz")
CPU_SECONDS = 10.0  # for one input
WALL_SECONDS = 120.0  # for one input that waits, on a busy machine
START_SECONDS = 600.0  # for a worker to import what it needs
MEMORY = 2 * 2**30  # bytes that an input may add to the worker's memory
LONGEST = 100_000  # characters of a message, which may list many errors
LISTED = 10  # failures of a kind that are printed


@dataclasses.dataclass
class Tally:
    """Counts the outcomes of one kind's inputs; the four from tracebacks on are failures."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    skipped: int = 0
    tracebacks: int = 0
    crashes: int = 0
    hangs: int = 0
    outside: int = 0
    cpu_seconds: float = 0.0
    slowest: float = 0.0  # seconds of CPU time
    peak_mib: float = 0.0  # that the worker added to its memory at the start
    failures: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def count(self, name: str, seed: int, outcome: str, detail: str) -> None:
        self.inputs += 1
        setattr(self, outcome, getattr(self, outcome) + 1)
        if detail:
            again = f"python -m experiments.fuzz --seed={seed} --only='^{name}$'"
            self.failures.append({"outcome": outcome, "again": again, "detail": detail})

    @property
    def failed(self) -> int:
        return self.tracebacks + self.crashes + self.hangs + self.outside


# ---------------------------------------------------------------------------------------- one input


def attempt(prepared: Any, rng: random.Random, sandbox: Sandbox) -> tuple[str, str]:
    """Runs one input: (outcome, what is wrong with it)."""
    try:
        with sandbox.input() as folder:
            outcome = "accepted" if prepared(rng, folder) else "skipped"
    except UserError as error:
        message = str(error)
        if not message.isprintable() or len(message) > LONGEST:
            return "tracebacks", f"no single line of up to {LONGEST} characters: {message!r}"
        outcome = "refused"
    except BaseException:  # SystemExit too
        return "tracebacks", traceback.format_exc()
    if changes := sandbox.changes():
        return "outside", f"{outcome}, and {', '.join(changes)}"
    return outcome, ""


class Sandbox:
    """A folder that is the worker's home, temporary folder and working directory.

    Inputs lie in a subfolder, which is removed after each; canaries lie beside it.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root, self._inputs = root, root / "inputs"
        for name in ("home", "here", "outside", "shared"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("canary", "home/canary", "outside/canary"):
            (root / name).write_text("untouched")
        os.environ |= {"HOME": str(root / "home"), "TMPDIR": str(self._inputs)}
        tempfile.tempdir = None  # so that it is looked up again
        os.chdir(root / "here")
        self._before = self._state()

    @contextlib.contextmanager
    def input(self) -> Iterator[pathlib.Path]:
        self._inputs.mkdir()
        try:
            yield self._inputs
        finally:
            shutil.rmtree(self._inputs)

    def changes(self) -> list[str]:
        """The paths that were written since the last call."""
        before, self._before = self._before, self._state()
        paths = sorted(before.keys() | self._before.keys())
        return [f"{p} has changed" for p in paths if before.get(p) != self._before.get(p)]

    def ready(self) -> None:
        """Records the current files, which no input has written."""
        self._before = self._state()

    def _state(self) -> dict[str, Any]:
        found: dict[str, tuple[int, ...]] = {}
        for folder, subfolders, files in os.walk(self.root):
            if pathlib.Path(folder) == self.root:
                subfolders.remove("shared")  # may hold a cache
            for name in (*subfolders, *files):
                path = os.path.join(folder, name)
                state = os.lstat(path)
                is_file = name in files  # a folder's contents are compared themselves
                found[path] = (state.st_mode, is_file * state.st_size, is_file * state.st_mtime_ns)
        return found


# ----------------------------------------------------------------------------------------- a worker


def work(
    prepare: Prepare, names: Sequence[str], seed: int, root: pathlib.Path, results: Connection
) -> None:
    """Sends (outcome, detail, CPU seconds, peak MiB) for every name, from a separate process."""
    with open(f"{root}.log", "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sandbox = Sandbox(root)
        prepared = prepare(root / "shared")
        sandbox.ready()
        have = memory.status("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (have + MEMORY, resource.RLIM_INFINITY))
        first = memory.status("VmHWM")
        results.send("ready")
        for name in names:
            log.truncate(0)
            start = time.process_time()
            outcome, detail = attempt(prepared, random.Random(f"{seed}/{name}"), sandbox)
            seconds = time.process_time() - start
            results.send((outcome, detail, seconds, (memory.status("VmHWM") - first) / 2**20))


def run(
    kind: str, prepare: Prepare, names: Sequence[str], seed: int, folder: pathlib.Path
) -> Tally:
    """Runs every name's input; a worker that an input ends or hangs is replaced."""
    tally, done = Tally(), 0
    context = multiprocessing.get_context("spawn")
    while done < len(names):
        root = pathlib.Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=folder))
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(prepare, names[done:], seed, root, theirs))
        worker.start()
        theirs.close()
        try:
            if _next(ours, worker.pid, START_SECONDS, START_SECONDS) != "ready":
                raise RuntimeError(f"{kind} cannot be prepared:\n{_log(root)}")
            while done < len(names):
                answer = _next(ours, worker.pid, CPU_SECONDS, WALL_SECONDS)
                if isinstance(answer, str):
                    tally.count(names[done], seed, answer, f"{answer}\n{_log(root)}")
                else:
                    outcome, detail, seconds, peak = answer
                    tally.count(names[done], seed, outcome, detail)
                    tally.cpu_seconds += seconds
                    tally.slowest = max(tally.slowest, seconds)
                    tally.peak_mib = max(tally.peak_mib, peak)
                done += 1
                if isinstance(answer, str):
                    break
        finally:
            worker.join(1)  # ends by itself unless it hangs
            worker.kill()
            worker.join()
            shutil.rmtree(root, ignore_errors=True)
    return tally


def _next(results: Connection, pid: int | None, cpu: float, wall: float) -> Any:
    """What a worker sends next; "hangs" where it takes too long, "crashes" where it has ended."""
    start, first = time.monotonic(), _cpu_seconds(pid)
    while not results.poll(0.2):
        if time.monotonic() - start > wall or _cpu_seconds(pid) - first > cpu:
            return "hangs"
    try:
        return results.recv()
    except EOFError:
        return "crashes"


def _cpu_seconds(pid: int | None) -> float:
    """CPU time of a process and the children that it has waited for; 0 where there is none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _log(root: pathlib.Path) -> str:
    return pathlib.Path(f"{root}.log").read_bytes()[-3000:].decode(errors="replace")


# -------------------------------------------------------------------------------------- the command


def table(tallies: Mapping[str, Tally]) -> str:
    """The table in Markdown, a row per kind."""
    columns = ("inputs", "accepted", "refused", "skipped", "tracebacks", "crashes", "hangs",
               "outside", "slowest", "peak_mib")  # fmt: skip
    titles = ("inputs", "accepted", "refused with a line", "skipped", "tracebacks", "crashes",
              "hangs", "files outside", "slowest, CPU s", "peak, MiB")  # fmt: skip
    lines = [f"| kind | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for kind, tally in tallies.items():
        cells = (getattr(tally, column) for column in columns)
        shown = (f"{cell:.1f}" if isinstance(cell, float) else f"{cell:,}" for cell in cells)
        lines.append(f"| {kind} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def fuzz(
    kinds: Mapping[str, Prepare], inputs: int, seed: int, only: str, folder: pathlib.Path
) -> dict[str, Tally]:
    """Fuzzes the kinds, which share the inputs evenly, and returns their tallies.

    Args:
      folder: for sandboxes.
    """
    tallies = {}
    for kind, prepare in kinds.items():
        names = [f"{kind}/{i}" for i in range(-(-inputs // len(kinds)))]
        names = [name for name in names if re.search(only, name)]
        if not names:
            continue
        tally = tallies[kind] = run(kind, prepare, names, seed, folder)
        print(f"{kind}: {tally.inputs:,} inputs, {tally.failed} failures, "
              f"{tally.cpu_seconds:.0f} s of CPU", flush=True)  # fmt: skip
        for failure in tally.failures[:LISTED]:
            print(f"\n{failure['outcome']}: {failure['again']}\n{failure['detail']}", flush=True)
    return tallies


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, metavar="FOLDER")
    args = parser.parse_args(argv[1:])
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agejax-fuzz-") as folder:
        tallies = fuzz(KINDS, args.inputs, args.seed, args.only, pathlib.Path(folder))
    if not tallies:
        raise UserError(f"--only={args.only}: no input is named so; there are {', '.join(KINDS)}")
    facts = {
        "kinds": {kind: dataclasses.asdict(tally) for kind, tally in tallies.items()},
        "seed": args.seed,
        "seconds": time.monotonic() - start,
        "commit": commit(),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "fuzz.json").write_text(json.dumps(facts, indent=1) + "\n")
    (args.output / "fuzz.md").write_text(text := table(tallies))
    print(f"\n{text}")
    if failed := sum(tally.failed for tally in tallies.values()):
        raise UserError(f"{failed} inputs failed; they are in {args.output}/fuzz.json")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
