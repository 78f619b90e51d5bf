"""All that is worth measuring on a GPU, in the order of its worth:

    python -m experiments.benchmarks.gpu [--minutes=10] [--only=REGEX] [--smoke]

    first step     seconds from a process's start, without and with a compile cache; memory
    train step     on a batch on the device, beside compiled PyTorch where it is installed: MFU, the
                   share of the roofline, memory
    loop           the step with augmentation, and training: batches, the log
    data           training on data on the device, and on batches from the host
    steps a call   training with 1, 8 and 32 steps per call of the device
    A/B            other forms of an operation, other flags of XLA, beside what is in use
    two starts     whether two trainings end with the same bits

Every contestant has its own process; the processes of a few rows compile at the same time, and
then take turns while nothing else runs. Each row is written to OUTPUT.json and .md when it is
done. When the time is over, no more rows are begun; the same command goes on with those that are
missing or failed. An arm more is a line in `table`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from agejax import files
from agejax.errors import UserError
from agejax.process.command import run_command
from experiments.arms import commit
from experiments.benchmarks import peers, peers_report
from experiments.benchmarks.contestants.case import CLASSES, CORES, Case, Data, Turn
from experiments.benchmarks.peers import Children, Entry, Failed, Peer, Row, attempt, sort_out
from experiments.benchmarks.peers_report import FIRST
from experiments.benchmarks.roofline import PEAKS, utilisation
from experiments.benchmarks.turns import alternate

TURN = 0.4  # seconds, at least two steps
REPEATS = 7  # turns of each contestant
TOGETHER = 8  # processes that compile at the same time
PATIENCE = 240.0  # seconds for one answer, such as compiling and the first step
STEPS = 20  # of two starts that are compared
ONE_CACHE = "as it is, with one compile cache"
LOOP = {"kind": "loop"}


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of the benchmark.

    Attributes:
      small, transformer, deep: the three networks; their batch is replaced by one of `batches`.
      edge: of the images that are augmented, pixels.
    """

    small: Case
    transformer: Case
    deep: Case
    batches: tuple[int, int, int]
    edge: int


ON_GPU = Scale(
    small=Case("mobilenet_v3_small", 128, dtype="bfloat16"),
    transformer=Case("vit_s16", 224, dtype="bfloat16"),
    deep=Case("resnet50", 224, dtype="bfloat16"),
    batches=(64, 256, 1024),
    edge=200,
)
SMOKE = Scale(
    small=Case("cnn", 32, dtype="bfloat16"),
    transformer=Case("mlp", 16, dtype="bfloat16"),
    deep=Case("cnn", 16, dtype="bfloat16"),
    batches=(2, 4, 8),
    edge=40,
)


# ---- what is measured ----------------------------------------------------------------------------


def table(scale: Scale) -> list[list[Row]]:
    """The rows in the order of their worth, in groups that are compiled at the same time.

    A row's first contestant is agejax as it is, which the others are compared with.
    """
    few, some, many = scale.batches
    small, transformer, deep = scale.small, scale.transformer, scale.deep
    torch = contestant("torch compiled", "torch", compiled=True)

    def steps(case: Case, batch: int) -> Row:
        return row("train step", case, batch, torch)

    return [
        [row("first step", small, few)],
        [steps(small, batch) for batch in scale.batches],
        [steps(transformer, few), steps(transformer, some)],
        [steps(deep, few), steps(deep, some)],
        [
            row(
                "loop", small, some,
                contestant("with augmentation", task={"kind": "train", "light": True}),
                contestant("training", task=LOOP),
            ),
            row(
                "data", small, few,
                contestant("streamed", task=LOOP, settings={"data.resident": "off"}),
                contestant("resident", task=LOOP, settings={"data.resident": "on"}),
                task=LOOP,
            ),
            row(
                "steps a call", small, few,
                *(
                    contestant(
                        f"{steps}", task=LOOP,
                        settings={"data.resident": "on", "steps_per_call": steps},
                    )
                    for steps in (1, 8, 32)
                ),
                task=LOOP,
            ),
            row(
                "depthwise convolutions", small, some,
                contestant("tap by tap", forms=["depthwise by taps"]),
            ),
            row(
                "compiler flags", small, few,
                contestant(
                    "command buffers with convolutions",
                    flags="--xla_gpu_enable_command_buffer=+CONVOLUTION",
                ),
                contestant("no command buffers", flags="--xla_gpu_enable_command_buffer="),
                contestant(
                    "latency-hiding scheduler",
                    flags="--xla_gpu_enable_latency_hiding_scheduler=true",
                ),
                contestant("config.deterministic", settings={"deterministic": True}),
            ),
        ],
        [
            row(
                "attention", transformer, some,
                contestant("cuDNN", forms=["attention by cuDNN"]),
                contestant("as on a CPU", forms=["attention by heads"]),
            )
        ],
        [two_starts(small, few)],
        [steps(transformer, many)],
        [steps(deep, many)],
    ]  # fmt: skip


def contestant(
    label: str,
    library: str = "agejax",
    flags: str = "",
    task: Mapping[str, Any] | None = None,
    **options: Any,
) -> Entry:
    """A line of a row.

    Args:
      flags: of XLA, beside those of $XLA_FLAGS.
      task: what is prepared; default: the train step.
      options: of the library's class in `contestants/`.
    """
    environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"} if flags else {}
    peer = Peer(library, "bfloat16", options, environment)
    return Entry(label, peer, task or {"kind": "train"})


def row(
    kind: str, case: Case, batch: int, *beside: Entry, task: Mapping[str, Any] | None = None
) -> Row:
    """A row of agejax as it is, and others beside it.

    Args:
      task: of agejax as it is; default: the train step.
    """
    lines = {entry.name: entry for entry in (contestant(FIRST, task=task), *beside)}
    return Row(kind, dataclasses.replace(case, batch=batch), lines)


def two_starts(case: Case, batch: int) -> Row:
    """A row of pairs of trainings: with a compile cache each, or one for both."""
    lines = (
        contestant("as it is"),
        contestant(ONE_CACHE),
        contestant("config.deterministic", settings={"deterministic": True}),
    )
    return Row("two starts", dataclasses.replace(case, batch=batch), {e.name: e for e in lines})


# ---- measuring -----------------------------------------------------------------------------------


def measure(group: Sequence[Row], data: Data, device: str) -> Iterator[dict[str, Any]]:
    """Measures the rows of one group; yields their rows of JSON data, each as it is done."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(TOGETHER))
        prepared = {}
        for each in (each for each in group if each.kind not in ("first step", "two starts")):
            children = stack.enter_context(Children(each.case, data, PATIENCE))
            turns = {
                label: pool.submit(
                    attempt(functools.partial(children.of(entry).prepare, entry.task))
                )
                for label, entry in each.entries.items()
            }
            prepared[each.title] = children, turns
        ready = {
            title: {label: future.result() for label, future in turns.items()}
            for title, (_, turns) in prepared.items()
        }
        for each in group:
            begin = time.perf_counter()
            try:
                if each.kind == "first step":
                    found = peers.starts(each, data, 1, STEPS, PATIENCE)
                elif each.kind == "two starts":
                    found = [compare_starts(each, data)]
                else:
                    found = [in_turns(each, prepared[each.title][0], ready[each.title], device)]
            except (RuntimeError, Failed) as error:
                found = [peers.summarise(each.kind, each.what, "seconds", {}, {FIRST: str(error)})]
            seconds = time.perf_counter() - begin
            yield from ({"row": each.title, "took": seconds} | one for one in found)


def in_turns(
    row: Row, children: Children, ready: Mapping[str, Turn | Failed], device: str
) -> dict[str, Any]:
    """A row of JSON data of contestants that take turns.

    Args:
      ready: label -> its turn, or why it has none.
    """

    def sized(turn: Turn) -> functools.partial[float]:
        return functools.partial(turn, max(2, round(TURN / turn(peers.WARM_UP))))

    able, skipped = sort_out({label: [turn] for label, turn in ready.items()})
    turns, cold = sort_out(
        {label: [attempt(functools.partial(sized, turn))()] for label, (turn,) in able.items()}
    )
    seconds, failed = sort_out(
        alternate({label: attempt(turn) for label, (turn,) in turns.items()}, REPEATS)
    )
    result = peers.summarise(
        row.kind, row.what, "seconds", seconds, skipped | cold | failed, row.case.batch
    )
    ours = children.of(row.entries[FIRST])
    cost = told(ours, "cost") if row.kind == "train step" else {}
    for label, figures in result["contestants"].items():
        child, task = children.of(row.entries[label]), row.entries[label].task
        figures |= told(child, "facts")
        memory = told(child, "memory").get("device_bytes")
        figures |= {"device_bytes": memory} if memory is not None else {}
        if task["kind"] == "loop":
            figures |= told(child, "host")
        if cost:
            moved = cost["bytes"] if label == FIRST else None
            figures |= utilisation(
                cost["flops"], moved, figures["median"], row.case.dtype, PEAKS.get(device)
            )
    return result | cost


def told(child: peers.Child, what: str) -> dict[str, Any]:
    """A contestant's answer; nothing where it fails, since what was measured still counts."""
    try:
        return child.ask(ask=what)
    except Failed as failure:
        print(f"no {what}: {failure}", file=sys.stderr)
        return {}


def compare_starts(row: Row, data: Data) -> dict[str, Any]:
    """A row of JSON data: how many arrays of the state differ between two starts of each line."""

    def state(entry: Entry, cache: str) -> dict[str, np.ndarray]:
        environment = dict.fromkeys(peers.CACHES, cache) | peers.LIMIT
        child = peers.Child(entry.peer, row.case, data, PATIENCE, **environment)
        with contextlib.closing(child):
            child.prepare(entry.task)(STEPS)
            with np.load(child.ask(ask="save")["file"]) as arrays:
                return dict(arrays)

    def pair(entry: Entry) -> list[dict[str, np.ndarray]]:
        with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as another:
            if entry.name == ONE_CACHE:  # the second finds what the first compiled
                return [state(entry, cache), state(entry, cache)]
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(functools.partial(state, entry), (cache, another)))

    with ThreadPoolExecutor(TOGETHER) as pool:
        tried = {
            label: pool.submit(attempt(functools.partial(pair, entry)))
            for label, entry in row.entries.items()
        }
        pairs = {label: future.result() for label, future in tried.items()}
    return {
        "kind": row.kind, "what": row.what, "unit": "arrays", "images": None,
        "contestants": {k: difference(*v) for k, v in pairs.items() if not isinstance(v, Failed)},
        "skipped": {k: str(v) for k, v in pairs.items() if isinstance(v, Failed)},
    }  # fmt: skip


def difference(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """{"median": arrays that differ, "of": all, "largest": difference over an array's largest}."""
    differ, largest = 0, 0.0
    for name, ours in first.items():
        theirs = second[name]
        if not np.array_equal(ours, theirs, equal_nan=True):
            differ += 1
            gap = np.abs(np.float64(ours) - np.float64(theirs)).max()
            largest = max(largest, float(gap / np.abs(np.float64(ours)).max()))
    return {"median": differ, "of": len(first), "largest": largest}


def noise(folder: pathlib.Path, scale: Scale) -> Data:
    """Images of noise at every size, with labels: a step is as fast on them as on faces."""
    data, rng, count = Data(folder, scale.edge), np.random.default_rng(0), max(scale.batches)
    cases = (scale.small, scale.transformer, scale.deep)
    for size in {scale.edge, *(case.image_size for case in cases)}:
        data.path(size).write_bytes(rng.bytes(count * size * size * 3))
    np.savez(
        folder / "labels.npz",
        age=rng.uniform(1, 90, count).astype(np.float32),
        gender=rng.integers(0, 2, count).astype(np.int32),
        ethnicity=rng.integers(0, CLASSES, count).astype(np.int32),
    )
    return data


# ---- the command ---------------------------------------------------------------------------------


def page(result: Mapping[str, Any]) -> str:
    """The measurements in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    left = "; ".join(result["left"])
    return (
        "## agejax on a GPU\n\n"
        f"`{result['command']}`, commit {result['commit']}: {result['device']}; {versions}.\n"
        f"Medians of {REPEATS} alternating turns of {TURN} s, and of the ratios of each turn to "
        "that of agejax as it is, with the least and the most: above 1, agejax needs less.\n\n"
        f"{peers_report.tables(result['rows'])}"
        + (f"\nNot measured yet: {left}. The same command goes on with them.\n" if left else "")
    )


def write(output: pathlib.Path, result: Mapping[str, Any]) -> str:
    """Writes OUTPUT.json and .md; returns the page."""
    for one in result["rows"]:
        for figures in one["contestants"].values():
            result["versions"].update(figures.get("versions", {}))
    text = page(result)
    files.write_json(output.with_name(f"{output.name}.json"), result)
    files.write_text(output.with_name(f"{output.name}.md"), text)
    return text


def begun(output: pathlib.Path, fresh: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that OUTPUT.json already has; those of a row that failed are left out.

    Raises:
      UserError: they are of another commit or device.
    """
    path = output.with_name(f"{output.name}.json")
    if not path.exists():
        return []
    old = files.read_json(path, dict, "remove it")
    for name in ("commit", "device"):
        if old.get(name) != fresh[name]:
            raise UserError(
                f"{path} has rows of {name} {old.get(name)}, not {fresh[name]}; move it away, or "
                "give another --output"
            )
    return [one for one in old["rows"] if one["contestants"]]


def chosen(scale: Scale, only: str) -> list[list[Row]]:
    """The groups of rows whose title matches a regex.

    Raises:
      UserError: it is not a regex, or leaves no row.
    """
    try:
        matches = re.compile(only).search
    except re.error as error:
        raise UserError(f"--only={only}: not a regex: {error}") from error
    groups = table(scale)
    some = [[each for each in group if matches(each.title)] for group in groups]
    if not any(some):
        titles = "; ".join(each.title for group in groups for each in group)
        raise UserError(f"--only={only}: no such row; there are {titles}")
    return [group for group in some if group]


def main(argv: Sequence[str]) -> None:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="no row begins after them")
    parser.add_argument("--only", default="", help="regex of the rows, such as 'attention|loop'")
    parser.add_argument("--smoke", action="store_true", help="tiny, on any device: does it work?")
    parser.add_argument(
        "--output", type=pathlib.Path, help="default: experiments/results/gpu; runs/ with --smoke"
    )
    args = parser.parse_args(argv[1:])
    scale = SMOKE if args.smoke else ON_GPU
    groups = chosen(scale, args.only)
    output = args.output or pathlib.Path("runs" if args.smoke else "experiments/results") / "gpu"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: {error.strerror}") from error
    platform, kind = peers.find_device()
    if platform != "gpu" and not args.smoke:
        raise UserError(f"JAX finds no GPU but {kind}; install jax[cuda12], or give --smoke")
    result: dict[str, Any] = {
        "command": " ".join(["python -m experiments.benchmarks.gpu", *argv[1:]]),
        "commit": commit(),
        "device": f"{kind}, {CORES} cores",
        "peaks": dataclasses.asdict(PEAKS[kind]) if kind in PEAKS else None,
        "versions": {},
    }
    result["rows"] = begun(output, result)
    done = {one["row"] for one in result["rows"]}
    groups = [[each for each in group if each.title not in done] for group in groups]
    result["left"] = [each.title for group in groups for each in group]
    with tempfile.TemporaryDirectory() as folder:
        data = noise(pathlib.Path(folder), scale)
        for group in groups:
            if not group or time.monotonic() - begin > 60 * args.minutes:
                continue
            titles = " | ".join(each.title for each in group)
            print(f"{time.monotonic() - begin:.0f} s: {titles} ...", file=sys.stderr, flush=True)
            for one in measure(group, data, kind):
                result["rows"].append(one)
                if one["contestants"] and one["row"] in result["left"]:
                    result["left"].remove(one["row"])
                write(output, result)
    print(write(output, result))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
