"""agejax beside PyTorch, Keras and plain Flax: make bench, or

    .venv-bench/bin/python -m experiments.benchmarks.peers [--only=REGEX] [--beside=REGEX] [--smoke]

The same network, heads, loss, optimizer and batch for all, on all cores. Each contestant has its
own process, which sleeps while the others have their turn: A B C, C B A, ..., so that a noisy
machine affects all alike. The figures are the ratios of each turn to agejax's in the same round:
their median, minimum and maximum. A slower contestant takes fewer steps per turn.

    train step   on a batch on the device
    evaluation   the forward pass in inference mode, on such a batch
    end to end   training with augmentation: agejax's loop from its decoded cache, with its log;
                 Keras' `fit` on the decoded images; torch's DataLoader and step
    input        batches only
    first step   seconds from a process's start, without and with a compile cache
    memory       the peak of such a process, without the compiler's

"plain Flax" is agejax's network with XLA's own convolutions and batch norm, and the C library's
default treatment of memory. The tables name contestants that are not installed, or fail. On a GPU
there are also bfloat16 rows and shares of the device's peaks (pip install '.[bench,cuda12]').
Writes OUTPUT.json, .md and .png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from agejax import files
from agejax.data import sources
from agejax.data.procedural import drawing
from agejax.errors import UserError
from agejax.process.command import run_command
from experiments.arms import commit
from experiments.benchmarks import peers_report
from experiments.benchmarks.contestants.case import CORES, Case, Data, Turn
from experiments.benchmarks.peers_report import FIRST
from experiments.benchmarks.roofline import PEAKS, utilisation
from experiments.benchmarks.turns import alternate, ratio

T = TypeVar("T")
QUALITY = 95  # of the JPEG files, as in UTKFace
WARM_UP = 2  # steps
PATIENCE = 3600.0  # seconds
ALONE = 3  # turns, since a process's start and memory vary little
STARTS = (
    ("first step, nothing compiled before", "seconds", "cold"),
    ("first step, compiled before", "seconds", "warm"),
    ("memory", "bytes", "bytes"),
    ("memory of the device", "bytes", "device_bytes"),
)
# Contestants share a GPU, so none may take all of its memory at the start.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# The compile caches of agejax, Keras' JAX and torch.compile; JAX with agejax's own limit.
CACHES = ("AGEJAX_CACHE", "JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
LIMIT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}


class Failed(Exception):
    """The reason, in one line, why a contestant cannot do this."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A contestant: a library, how it is used, and its dtype."""

    library: str
    dtype: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a row: a peer's name, and the task that it prepares."""

    name: str
    peer: Peer
    task: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement of all contestants: a kind and a case; label -> entry."""

    kind: str
    case: Case
    entries: Mapping[str, Entry]

    @property
    def what(self) -> str:
        c = self.case
        network = "" if self.kind == "input" else f"{c.network}, {c.dtype}, "
        return f"{network}{c.image_size} px, batch {c.batch}"

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of the benchmark: images drawn, their edge in pixels, and the cases."""

    faces: int
    edge: int
    cases: tuple[Case, ...]
    input: Case


ON_CPU = Scale(
    faces=2000,
    edge=200,
    cases=(
        Case("mobilenet_v3_small", 128, 64),
        Case("resnet50", 128, 16),
        Case("vit_s16", 224, 16),
    ),
    input=Case(image_size=128, batch=256),
)
# All contestants hold their memory at once, so batches are smaller than one alone could take.
ON_GPU = Scale(
    faces=2000,
    edge=200,
    cases=(
        Case("mobilenet_v3_small", 128, 256),
        Case("resnet50", 224, 64),
        Case("vit_s16", 224, 64),
    ),
    input=Case(image_size=128, batch=256),
)
SMOKE = Scale(64, 48, (Case("mobilenet_v3_small", 32, 4),), Case(image_size=32, batch=16))


def peers_of(dtype: str, on_gpu: bool) -> dict[str, Peer]:
    """Name -> contestant, agejax first. On a CPU all use float32, PyTorch also bfloat16."""
    plain = Peer("agejax", dtype, {"plain": True}, {"MALLOC_ARENA_MAX": "0"})
    peers = {
        FIRST: Peer("agejax", dtype, {"plain": False}),
        "plain Flax": plain,
        "Keras": Peer("keras", dtype),
        "torch": Peer("torch", dtype),
        "torch compiled": Peer("torch", dtype, {"compiled": True}),
    }
    if not on_gpu:
        peers["torch bf16"] = Peer("torch", "bfloat16")
        peers["torch compiled bf16"] = Peer("torch", "bfloat16", {"compiled": True})
    return peers


def entries(kind: str, peers: Mapping[str, Peer]) -> dict[str, Entry]:
    """Label -> entry, for a row of this kind."""
    if kind == "input":
        return _inputs(peers)
    if kind != "end to end":
        task = {"kind": "evaluation" if kind == "evaluation" else "train"}
        return {name: Entry(name, peer, task) for name, peer in peers.items()}
    lines = {}
    for name, peer in peers.items():
        if peer.library == "torch":
            lines[f"{name}, decoded images"] = Entry(name, peer, {"kind": "loop", "files": False})
            lines[f"{name}, JPEG files"] = Entry(name, peer, {"kind": "loop", "files": True})
        elif name != "plain Flax":
            lines[name] = Entry(name, peer, {"kind": "loop"})
    return lines


def _inputs(peers: Mapping[str, Peer]) -> dict[str, Entry]:
    lines = {FIRST: Entry(FIRST, peers[FIRST], {"kind": "input", "workers": 0})}
    for workers in (0, CORES):
        task: dict[str, Any] = {"kind": "input", "workers": workers}
        if workers:
            lines[f"{FIRST}, {workers} workers"] = Entry(FIRST, peers[FIRST], task)
        for encoded, what in ((False, "decoded images"), (True, "JPEG files")):
            label = f"torch, {what}, {workers} workers"
            lines[label] = Entry("torch", peers["torch"], task | {"files": encoded})
    return lines


def rows_of(scale: Scale, on_gpu: bool) -> list[Row]:
    """All rows to measure; rows that share processes are adjacent."""
    rows = []
    for case in scale.cases:
        for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
            peers = peers_of(dtype, on_gpu)
            for kind in ("train step", "evaluation", "end to end", "first step"):
                typed = dataclasses.replace(case, dtype=dtype)
                rows.append(Row(kind, typed, entries(kind, peers)))
    peers = peers_of("float32", on_gpu)
    return [*rows, Row("input", scale.input, entries("input", peers))]


class Child:
    """A contestant's process, which is ended where an answer takes `patience` seconds."""

    def __init__(
        self, peer: Peer, case: Case, data: Data, patience: float = PATIENCE, **environment: str
    ) -> None:
        self._patience = patience
        spec = {
            "library": peer.library,
            "options": peer.options,
            "case": dataclasses.asdict(case) | {"dtype": peer.dtype},
            "folder": str(data.folder.absolute()),
            "edge": data.edge,
        }
        module = "experiments.benchmarks.contestants"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(spec)],
            env={**os.environ, **ENVIRONMENT, **peer.environment, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request to `contestants/__main__.py`; raises `Failed` with the reason."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        begin, patience = time.perf_counter(), threading.Timer(self._patience, self._process.kill)
        patience.start()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        patience.cancel()
        if not line and time.perf_counter() - begin >= self._patience:
            raise Failed(f"no answer within {self._patience:g} s")
        if not line:
            raise Failed(f"its process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def prepare(self, task: Mapping[str, Any]) -> Turn:
        """Prepares a task and runs it once; returns its turn."""
        number = self.ask(prepare=task)["turn"]
        return lambda steps: self.ask(turn=number, steps=steps)["seconds"]

    def close(self) -> None:
        """Ends the process by closing its stdin."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]


class Children(contextlib.ExitStack):
    """The processes of one case, each started at its first use."""

    def __init__(self, case: Case, data: Data, patience: float = PATIENCE) -> None:
        super().__init__()
        self._case, self._data, self._patience = case, data, patience
        self._by_name: dict[str, Child] = {}

    def of(self, entry: Entry) -> Child:
        if entry.name not in self._by_name:
            child = Child(entry.peer, self._case, self._data, self._patience)
            self._by_name[entry.name] = self.enter_context(contextlib.closing(child))
        return self._by_name[entry.name]


# ---- measuring -----------------------------------------------------------------------------------


def sort_out(
    given: Mapping[str, Sequence[T | Failed]],
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """(label -> results of those that never failed, label -> why the others failed).

    Raises:
      RuntimeError: agejax failed, so there is nothing to compare with.
    """
    whole: dict[str, list[T]] = {}
    failed: dict[str, str] = {}
    for label, results in given.items():
        reasons = [str(result) for result in results if isinstance(result, Failed)]
        if reasons:
            failed[label] = reasons[0]
        else:
            whole[label] = [result for result in results if not isinstance(result, Failed)]
    if FIRST in failed:
        raise RuntimeError(f"{FIRST} itself failed: {failed[FIRST]}")
    return whole, failed


def attempt(turn: Callable[[], T]) -> Callable[[], T | Failed]:
    """Wraps `turn`, so that it returns a failure instead of raising it."""

    def tried() -> T | Failed:
        try:
            return turn()
        except Failed as failure:
            return failure

    return tried


def in_turns(
    row: Row, children: Children, repeats: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(label -> seconds per step of each turn, label -> why it has none)."""

    def prepare(entry: Entry) -> tuple[Turn, float]:
        turn = children.of(entry).prepare(entry.task)
        # Steps that do not count: caches and readers settle, and show how long a turn will be.
        return turn, turn(WARM_UP)

    ready, skipped = sort_out(
        {k: [attempt(functools.partial(prepare, entry))()] for k, entry in row.entries.items()}
    )
    ((_, ours),) = ready[FIRST]
    turns = {
        label: attempt(functools.partial(turn, min(steps, max(2, round(steps * ours / seconds)))))
        for label, ((turn, seconds),) in ready.items()
    }
    measured, failed = sort_out(alternate(turns, repeats))
    return measured, skipped | failed


def alone(
    row: Row, data: Data, repeats: int, steps: int, patience: float = PATIENCE
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """(label -> per turn {"cold", "warm": seconds, "bytes", "device_bytes"}, label -> why not).

    A turn is two processes; the second finds what the first has compiled.
    """

    def start(entry: Entry, cache: str) -> dict[str, Any]:
        begin = time.perf_counter()
        environment = dict.fromkeys(CACHES, cache) | LIMIT
        with contextlib.closing(
            Child(entry.peer, row.case, data, patience, **environment)
        ) as child:
            turn = child.prepare(entry.task)
            seconds = time.perf_counter() - begin
            turn(steps)
            return child.ask(ask="memory") | {"seconds": seconds}

    def turn(entry: Entry) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = start(entry, cache), start(entry, cache)
        return warm | {"cold": cold["seconds"], "warm": warm["seconds"]}

    turns = {k: attempt(functools.partial(turn, entry)) for k, entry in row.entries.items()}
    # A first round on its own: whoever fails is not tried again.
    once, skipped = sort_out({label: [tried()] for label, tried in turns.items()})
    again, failed = sort_out(alternate({label: turns[label] for label in once}, repeats - 1))
    return {k: once[k] + more for k, more in again.items()}, skipped | failed


def starts(
    row: Row, data: Data, repeats: int, steps: int, patience: float = PATIENCE
) -> list[dict[str, Any]]:
    """Measures a row of first steps: a row of JSON data for each of `STARTS`."""
    given, skipped = alone(row, data, repeats, steps, patience)
    return [
        summarise(kind, row.what, unit, {k: [t[key] for t in v] for k, v in given.items()},
                  skipped)
        for kind, unit, key in STARTS
        if all(turn[key] is not None for turn in given[FIRST])
    ]  # fmt: skip


def summarise(
    kind: str,
    what: str,
    unit: str,
    turns: Mapping[str, list[float]],
    skipped: Mapping[str, str],
    images: int | None = None,
) -> dict[str, Any]:
    """A row as JSON data.

    Args:
      unit: of the turns, "seconds" or "bytes".
      turns: label -> a figure per turn; ratios are to agejax's figures.
      images: how many images a step sees; None: the turn is not a step.
    """
    contestants: dict[str, dict[str, Any]] = {}
    for label, values in turns.items():
        figures: dict[str, Any] = {"median": statistics.median(values), "turns": values}
        if images is not None:
            figures["images_per_second"] = images / figures["median"]
        if label != FIRST:
            figures["ratio"] = ratio(values, turns[FIRST])
        contestants[label] = figures
    return {
        "kind": kind, "what": what, "unit": unit, "images": images,
        "contestants": contestants, "skipped": dict(skipped),
    }  # fmt: skip


def measure(
    row: Row, children: Children, data: Data, repeats: int, steps: int, device: str
) -> list[dict[str, Any]]:
    """Measures one row: its rows of JSON data."""
    if row.kind == "first step":
        return starts(row, data, min(ALONE, repeats), steps)
    seconds, skipped = in_turns(row, children, repeats, steps)
    result = summarise(row.kind, row.what, "seconds", seconds, skipped, row.case.batch)
    if row.kind == "train step":
        result |= children.of(row.entries[FIRST]).ask(ask="cost")
        for label, figures in result["contestants"].items():
            entry = row.entries[label]
            moved = result["bytes"] if label == FIRST else None
            figures |= children.of(entry).ask(ask="facts") | utilisation(
                result["flops"], moved, figures["median"], entry.peer.dtype, PEAKS.get(device)
            )
    return [result]


def draw(folder: pathlib.Path, scale: Scale) -> Data:
    """Draws faces for all: JPEG files, and the same images decoded by agejax at every edge."""
    data = Data(folder, scale.edge)
    sizes = {scale.edge, scale.input.image_size, *(case.image_size for case in scale.cases)}
    known = []
    with contextlib.ExitStack() as stack:
        decoded = {size: stack.enter_context(data.path(size).open("wb")) for size in sizes}
        for i in range(scale.faces):
            image, labels = drawing.draw(0, i, scale.edge)
            path = folder / f"{i:06d}.jpg"
            Image.fromarray(image).save(path, quality=QUALITY)
            for size, file in decoded.items():
                file.write(sources.decode(path.read_bytes(), size).tobytes())
            known.append((labels.age, labels.gender, labels.colouring))
    age, gender, ethnicity = np.array(known).T
    np.savez(
        folder / "labels.npz",
        age=age.astype(np.float32),
        gender=gender.astype(np.int32),
        ethnicity=ethnicity.astype(np.int32),
    )
    return data


def find_device() -> tuple[str, str]:
    """(platform, kind) of JAX's first device, found by a process that then frees its memory."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    platform, kind = done.stdout.strip().splitlines()[-2:]
    return platform, kind


# ---- the command ---------------------------------------------------------------------------------


def page(result: Mapping[str, Any], chart: peers_report.Chart, figure: str) -> str:
    """The comparison in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        "## agejax beside PyTorch, Keras and plain Flax\n\n"
        f"`{result['command']}`, commit {result['commit']}: {result['device']}; {versions}.\n"
        f"Medians of {result['repeats']} alternating turns (first steps and memory: of "
        f"{min(ALONE, result['repeats'])}), and of the ratios of each turn to agejax's, with the "
        "least and the most: above 1, agejax needs less. "
        f"{peers_report.differences(result['rows'])}\n\n"
        f"{peers_report.tables(result['rows'])}\n"
        f"{chart.caption}:\n\n![{chart.alt}]({figure})\n"
    )


def write(output: pathlib.Path, result: Mapping[str, Any]) -> str:
    """Writes OUTPUT.json, .md and .png; returns the page."""
    chart = peers_report.chart(result["rows"])
    figure = output.with_name(f"{output.name}.png")
    figure.write_bytes(chart.png)
    text = page(result, chart, figure.name)
    files.write_json(output.with_name(f"{output.name}.json"), result)
    files.write_text(output.with_name(f"{output.name}.md"), text)
    return text


def chosen(scale: Scale, on_gpu: bool, only: str, beside: str) -> list[Row]:
    """The rows whose title matches one regex, with contestants whose label matches the other.

    Raises:
      UserError: one is not a regex, leaves no row, or leaves a row with agejax alone.
    """
    for option, regex in (("only", only), ("beside", beside)):
        try:
            re.compile(regex)
        except re.error as error:
            raise UserError(f"--{option}={regex}: not a regex: {error}") from error
    rows = rows_of(scale, on_gpu)
    some = []
    for row in rows:
        if re.search(only, row.title):
            lines = {k: e for k, e in row.entries.items() if k == FIRST or re.search(beside, k)}
            if len(lines) == 1:
                there = "; ".join(row.entries)
                raise UserError(
                    f"--beside={beside}: no such contestant in {row.title}; there are {there}"
                )
            some.append(dataclasses.replace(row, entries=lines))
    if not some:
        raise UserError(f"--only={only}: no such row; there are {'; '.join(r.title for r in rows)}")
    return some


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="regex of the rows, such as 'train.*vit'")
    parser.add_argument(
        "--beside", default="", help="regex of the contestants beside agejax, such as '^torch$'"
    )
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn, at most")
    parser.add_argument(
        "--smoke", action="store_true", help="one turn at a tiny size, to see that it works"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="default: experiments/results/peers; runs/ with --smoke"
    )
    args = parser.parse_args(argv[1:])
    for name in ("repeats", "steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: give 1 or more")
    repeats, steps = (1, 2) if args.smoke else (args.repeats, args.steps)
    output = args.output or pathlib.Path("runs" if args.smoke else "experiments/results") / "peers"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: {error.strerror}") from error
    platform, kind = find_device()
    on_gpu = platform == "gpu"
    scale = SMOKE if args.smoke else ON_GPU if on_gpu else ON_CPU
    rows = chosen(scale, on_gpu, args.only, args.beside)
    result: dict[str, Any] = {
        "command": " ".join(["python -m experiments.benchmarks.peers", *argv[1:]]),
        "commit": commit(),
        "device": f"{kind}, {CORES} cores",
        "peaks": dataclasses.asdict(PEAKS[kind]) if kind in PEAKS else None,
        "repeats": repeats,
        "steps_a_turn": steps,
        "versions": {},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        data = draw(pathlib.Path(folder), scale)
        # First steps run apart: they need the memory to themselves.
        groups = itertools.groupby(rows, lambda row: (row.case, row.kind == "first step"))
        for (case, _), some in groups:
            with Children(case, data) as children:
                for row in some:
                    print(f"{row.title} ...", file=sys.stderr, flush=True)
                    result["rows"] += measure(row, children, data, repeats, steps, kind)
            for row in result["rows"]:
                for figures in row["contestants"].values():
                    result["versions"] |= figures.get("versions", {})
            text = write(output, result)  # after every group, since such a run may be stopped
    print(text)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
