"""Disturbs a small training with faults of many kinds, one at a time:

    python -m experiments.faults [--faults=216] [--seed=0] [--only=REGEX] [--jobs=1] [--mode=MODE]

A training of 40 steps is disturbed once, at a step that the seed draws, and then restarted until it
is complete. Its parameters must be bit-identical to those of an undisturbed training; metrics.jsonl
must have the same rows, and no temporary file may remain. Each process must have ended by itself
with one clear line (exit code 2), or been killed by the fault, and never with a traceback. Writes
experiments/results/faults.json and .md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_collections
import numpy as np

from agejax import files
from agejax.configs import quickstart
from agejax.errors import UserError
from agejax.process.command import run_command
from experiments.arms import commit

OUTPUT = pathlib.Path(__file__).parent / "results" / "faults"
STEPS, SAVED_EVERY, STARTS = 40, 4, 6
STREAMED = "streamed"
# Ways to feed a training. Of the 4 steps between two checkpoints, calls of 3 leave 1 over.
MODES: dict[str, dict[str, Any]] = {
    STREAMED: {},
    "resident": {"data.resident": "on"},
    "streamed calls": {"steps_per_call": 3, "log_every.steps": 4},
    "resident calls": {"steps_per_call": 3, "log_every.steps": 4, "data.resident": "on"},
}


def get_config(cache: pathlib.Path, mode: str = STREAMED) -> ml_collections.ConfigDict:
    config = quickstart.get_config()
    config.total = {"steps": STEPS}
    config.data.cache_dir = str(cache)
    config.data.image_size, config.model.image_size = 48, 32
    config.data.batch_size = config.eval.batch_size = 16
    config.data.options = {"count": 240}
    config.model.name, config.model.options = "cnn", {"widths": (8, 16)}
    config.optim.ema = 0.9
    config.checkpoint.every = {"steps": SAVED_EVERY}
    config.eval.every = {"steps": 2 * SAVED_EVERY}
    config.log_every = {"steps": 2}
    config.eval.final_split = ""
    config.update_from_flattened_dict(MODES[mode])
    return config


# ---- the disturbed process -----------------------------------------------------------------------


def child(mode: str, workdir: pathlib.Path, cache: pathlib.Path, fault: str, at: int) -> None:
    """Trains, causes `fault` when the batch of step number `at` of this process is read, while the
    step before runs; prints a digest."""
    import jax

    from agejax.data import pipeline
    from agejax.data.pipeline import TrainBatches
    from agejax.train import train
    from agejax.training import sharding
    from agejax.training.checkpoint import CheckpointWriter

    sharding.start()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = get_config(cache, mode)
    config.data.workers = 1 if fault == "a worker dies" else 0
    config.watchdog = 1.0 if fault == "a process hangs" else 0.0
    iterate, save, saves, now = TrainBatches.iterate, CheckpointWriter.save, [0], time.time

    def disturbed(*args: Any) -> Iterator[Any]:
        _, start, _, _, calls = args
        done = 0
        with contextlib.closing(iterate(*args)) as batches:
            for batch in batches:
                count = calls(start + done) if calls else 1
                yield meet(batch, at - 1 - done, count) if done < at <= done + count else batch
                done += count

    def meet(batch: Any, place: int, count: int) -> Any:
        match fault:
            case "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            case "SIGTERM" | "SIGINT":
                os.kill(os.getpid(), getattr(signal, fault))
            case "a worker dies":
                for worker in _workers():
                    os.kill(worker, signal.SIGKILL)
            case "a process hangs":
                time.sleep(3600)
            case "the disk is full":
                _fill(workdir / "ballast")
            case "the clock jumps":
                jump = random.Random(at).choice([-1e6, 1e6])
                time.time = lambda: now() + jump
            case "a loss is not finite":
                weight = np.ones_like(batch["strength"])
                weight.reshape(count, -1)[place] = np.nan
                return batch | {"weight": weight}
        return batch

    def die_while_saving(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)  # returns while orbax still writes
        saves[0] += 1
        if saves[0] == 1 + at // SAVED_EVERY:
            time.sleep(random.Random(at).uniform(0, 0.05))
            os.kill(os.getpid(), signal.SIGKILL)

    evaluation_batches, evaluations = pipeline.evaluation_batches, [0]

    def stop_while_evaluating(*args: Any) -> Iterator[Any]:
        evaluations[0] += 1
        for batch in evaluation_batches(*args):
            if evaluations[0] == at // (2 * SAVED_EVERY):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    TrainBatches.iterate = disturbed  # type: ignore[assignment,method-assign]
    if fault == "SIGKILL while saving":
        CheckpointWriter.save = die_while_saving  # type: ignore[method-assign]
    if fault == "SIGTERM while evaluating":
        pipeline.evaluation_batches = stop_while_evaluating  # type: ignore[assignment]
    if train(config, workdir) is None:
        return
    print(f"digest {digest(workdir)}")


def digest(workdir: pathlib.Path) -> str:
    """The newest checkpoint's step, and the SHA-256 of its arrays."""
    import jax
    import orbax.checkpoint as ocp

    from agejax.training.checkpoint import Checkpoints

    last = Checkpoints(workdir / "checkpoints").last
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(last) / "state")
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        total.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return f"{last} {total.hexdigest()}"


def _workers() -> Iterator[int]:
    """This process's children except Python's resource tracker."""
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            for pid in map(int, (task / "children").read_text().split()):
                if b"resource_tracker" not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                    yield pid


def _fill(ballast: pathlib.Path) -> None:
    """Fills the disk that the run writes to."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass


# ---- faults from outside -------------------------------------------------------------------------


def _newest(workdir: pathlib.Path) -> pathlib.Path:
    steps = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    return max(steps, key=lambda p: int(p.name))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def _flip_bit(path: pathlib.Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _flip_arrays(checkpoint: pathlib.Path, rng: random.Random) -> None:
    _flip_bit(rng.choice([p for p in _files(checkpoint / "state") if "d" in p.parent.name]), rng)


def flip(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Flips a bit in the newest checkpoint's arrays."""
    _flip_arrays(_newest(workdir), rng)


def flip_best(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Flips a bit in the best checkpoint's arrays."""
    from agejax.training.checkpoint import Checkpoints

    folder = workdir / "checkpoints"
    _flip_arrays(folder / str(Checkpoints(folder).best), rng)


def flip_facts(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Flips a bit in the newest checkpoint's means, deviations, config, ..."""
    _flip_bit(_newest(workdir) / "meta" / "metadata", rng)


def half_remove(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Leaves an older checkpoint half removed, as older versions would when killed, or renamed but
    not removed, as this version would."""
    folder = workdir / "checkpoints"
    shutil.copytree(_newest(workdir), folder / "2")
    shutil.copytree(_newest(workdir), folder / "deleted" / "1")
    for path in _files(folder / "2"):
        if path.name == "_METADATA" or rng.random() < 0.5:
            path.unlink()


def leave_temporaries(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Leaves the temporary files of killed writes."""
    for name in ("config.json", "summary.json", "calibration.json"):
        (workdir / f".{name}.{rng.getrandbits(32):08x}").write_text("{")
    shutil.copytree(_newest(workdir), workdir / "checkpoints" / f"{STEPS}.orbax-checkpoint-tmp")


def lose_config(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Removes config.json."""
    (workdir / "config.json").unlink()


def flip_config(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Flips a bit in config.json."""
    _flip_bit(workdir / "config.json", rng)


def damage_skipped(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Writes something else than a list of steps to skipped_steps.json."""
    (workdir / "skipped_steps.json").write_text(rng.choice(STATES))


def _cached(cache: pathlib.Path) -> list[pathlib.Path]:
    return _files(cache / "procedural_faces")


def flip_cache(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Flips a bit in a file of the decoded images' cache."""
    _flip_bit(rng.choice(_cached(cache)), rng)


def change_cache(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Changes a JSON file of the decoded images' cache at random."""
    path = rng.choice([p for p in _cached(cache) if p.suffix == ".json"])
    path.write_text(rng.choice(STATES))


def cut(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Cuts off the end of a file of the newest checkpoint."""
    path = rng.choice(_files(_newest(workdir)))
    os.truncate(path, rng.randrange(path.stat().st_size))


def lose(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Removes a file of the newest checkpoint."""
    rng.choice(_files(_newest(workdir))).unlink()


def cut_cache(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Cuts off the end of a file of the decoded images' cache."""
    path = rng.choice(_cached(cache))
    os.truncate(path, rng.randrange(path.stat().st_size))


def cut_log(workdir: pathlib.Path, cache: pathlib.Path, rng: random.Random) -> None:
    """Cuts off the end of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    os.truncate(path, rng.randrange(path.stat().st_size))


STATES = ("", "{", "null", "3", '"text"', "{}", '{"a": 1}', '[{"a": []}]', "\x00\xff")
Outside = Callable[[pathlib.Path, pathlib.Path, random.Random], None]
# Each happens after a SIGKILL.
BETWEEN: dict[str, Outside] = {
    "a bit of the newest checkpoint flips": flip,
    "the newest checkpoint is cut short": cut,
    "the newest checkpoint loses a file": lose,
    "the cache is cut short": cut_cache,
    "the log is cut short": cut_log,
    "a bit of the newest checkpoint's facts flips": flip_facts,
    "a bit of the best checkpoint flips": flip_best,
    "a removal is killed half way": half_remove,
    "killed writes leave their files": leave_temporaries,
    "a bit of the cache flips": flip_cache,
    "JSON of the cache is in any state": change_cache,
    "config.json is lost": lose_config,
    "a bit of config.json flips": flip_config,
    "skipped_steps.json is damaged": damage_skipped,
}
INSIDE = (
    "SIGKILL", "SIGTERM", "SIGINT", "SIGKILL while saving", "a worker dies", "a process hangs",
    "the disk is full", "the clock jumps", "a loss is not finite", "SIGTERM while evaluating",
)  # fmt: skip
STORM, TWICE = "killed five times", "a second run in its folder"
READERS = "two readers look on"
KINDS = (*INSIDE, *BETWEEN, STORM, TWICE, READERS)


# ---- one fault -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Process:
    """An ended child: its exit code and output."""

    code: int
    text: str

    @property
    def digest(self) -> str | None:
        found = re.search(r"^digest (.*)$", self.text, re.MULTILINE)
        return found[1] if found else None

    @property
    def said(self) -> str:
        """The output line that names the fault."""
        named = re.compile("^agejax: |^an input worker|: set aside$|is rebuilt$")
        return next((line for line in self.text.splitlines() if named.search(line)), "")

    @property
    def clear(self) -> bool:
        """Whether it ended by itself as it should, or was killed."""
        by_itself = self.code in (0, 2) and "Traceback" not in self.text
        return (by_itself and (self.code == 0 or bool(self.said))) or self.code == -signal.SIGKILL


def begin(
    mode: str, workdir: pathlib.Path, cache: pathlib.Path, fault: str = "none", at: int = 0
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.faults", "--child", mode, fault, str(at)]
    return subprocess.Popen(
        [*command, str(workdir), str(cache)], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], hangs: bool = False) -> Process:
    """Waits for a process; kills one that hangs once the watchdog has reported it."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if hangs and "nothing has happened" in line:
            os.kill(process.pid, signal.SIGKILL)
            hangs = False
    code = process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # grain's workers outlive a killed parent
    return Process(code, "".join(lines))


def disturb(
    kind: str, mode: str, at: int, rng: random.Random, workdir: pathlib.Path, cache: pathlib.Path
) -> list[Process]:
    """Runs the training with one fault of `kind`, from its first start to its end."""
    start = functools.partial(begin, mode, workdir, cache)
    done: list[Process] = []
    if kind == STORM:
        for _ in range(5):
            done.append(finish(start("SIGKILL", rng.randint(1, 2 * SAVED_EVERY))))
    elif kind == TWICE:
        first = start("a process hangs", at)
        while first.poll() is None and not (workdir / "metrics.jsonl").exists():
            time.sleep(0.1)
        done.append(finish(start()))
        if "is being trained by process" not in done[0].said:
            done[0].code = 1  # it should have refused
        done.append(finish(first, hangs=True))
    elif kind == READERS:
        from experiments import storm

        first = start()
        while first.poll() is None and not list(workdir.glob("checkpoints/[0-9]*")):
            time.sleep(0.05)
        readers = [
            storm.Child(workdir.parent / f"read-{i}.txt", "read", workdir, cache, i, 1000)
            for i in (0, 1)
        ]
        trained = finish(first)
        (workdir.parent / storm.STOP).touch()
        done += [*(reader.finish() for reader in readers), trained]
    elif kind in BETWEEN:
        done.append(finish(start("SIGKILL", at)))
        BETWEEN[kind](workdir, cache, rng)
        if (workdir / "skipped_steps.json").exists():
            done.append(finish(start()))
            if "skipped_steps.json" not in done[-1].said:
                done[-1].code = 1  # it should have refused
            (workdir / "skipped_steps.json").unlink()
    else:
        done.append(finish(start(kind, at), hangs=kind == "a process hangs"))
        (workdir / "ballast").unlink(missing_ok=True)
    while not done[-1].digest and len(done) < STARTS + 5 * (kind == STORM):
        done.append(finish(start()))
    return done


def rows_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times."""
    path = workdir / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    times = ("images_per_second", "input_wait")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def leftovers(workdir: pathlib.Path) -> list[str]:
    """Files and folders that a killed process left behind."""
    named = re.compile(rf"{files.TEMPORARY.pattern}|.*\.orbax-checkpoint-tmp.*|deleted")
    return sorted(p.name for p in workdir.rglob("*") if named.fullmatch(p.name))


def place(kind: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder for a run of this kind; a full disk is a small one of its own."""
    workdir = folder / "run"
    workdir.mkdir()
    if kind == "the disk is full":
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(workdir)], check=True
        )
    return workdir


# ---- the campaign --------------------------------------------------------------------------------


def campaign(
    count: int, seed: int, only: str, jobs: int = 1, mode: str = STREAMED
) -> dict[str, Any]:
    """Runs `count` faults, equally many of each kind, `jobs` of them at once.

    Raises:
      UserError: `only` matches no kind.
    """
    kinds = [kind for kind in KINDS if re.search(only, kind)]
    if os.geteuid() and "the disk is full" in kinds:
        print("no full disk: that takes root, to mount a small one", file=sys.stderr)
        kinds.remove("the disk is full")
    if not kinds:
        raise UserError(f"--only={only}: there are {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory() as name:
        base = pathlib.Path(name)
        os.environ["AGEJAX_CACHE"] = str(base / "compiled")  # shared by all processes
        expected = finish(begin(mode, base / "undisturbed", base / "cache"))
        if not expected.digest:
            raise UserError(f"the undisturbed training failed: {expected.text[-2000:]}")

        def one(i: int) -> dict[str, Any]:
            row = _one(kinds[i % len(kinds)], mode, random.Random(f"{seed} {i}"), base, expected)
            good = all(row[key] for key in GOOD)
            print(f"{i + 1}/{count} {row['kind']}: {'good' if good else row}", flush=True)
            return row

        with ThreadPoolExecutor(jobs) as pool:
            rows = list(pool.map(one, range(count)))
    return {"faults": count, "seed": seed, "mode": mode, "commit": commit(), "rows": rows}


GOOD = {
    "bit_equal": "ended bit-equal", "clear": "every end clear", "rows_equal": "the same log",
    "clean": "no leftovers",
}  # fmt: skip


def _one(
    kind: str, mode: str, rng: random.Random, base: pathlib.Path, expected: Process
) -> dict[str, Any]:
    """The result of one training; `base` holds the undisturbed one and its cache."""
    # Before the second checkpoint there is nothing to fall back to, and a batch is read early.
    at = rng.randint(3 * SAVED_EVERY + 1, STEPS - 1)
    folder = pathlib.Path(tempfile.mkdtemp(dir=base))
    shutil.copytree(base / "cache", folder / "cache")
    workdir = place(kind, folder)
    try:
        done = disturb(kind, mode, at, rng, workdir, folder / "cache")
        # Rows lost from a cut log are not written again.
        same = kind == "the log is cut short" or rows_of(workdir) == rows_of(base / "undisturbed")
        left = leftovers(workdir)
    finally:
        if kind == "the disk is full":
            subprocess.run(["umount", "--lazy", str(workdir)], check=True)
    row = {
        "kind": kind,
        "step": at,
        "starts": len(done),
        "bit_equal": done[-1].digest == expected.digest,
        "clear": all(process.clear for process in done),
        "rows_equal": same,
        "clean": not left,
        "codes": [process.code for process in done],
        "said": next((p.said for p in done if p.said), "").replace(str(folder), ""),
    }
    if not all(row[key] for key in GOOD):
        starts = "".join(f"---- start {i}\n{p.text}\n" for i, p in enumerate(done, 1))
        print(f"==== {row} {left}\n{starts}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return row


def table(result: dict[str, Any]) -> str:
    """One row per kind."""
    by_kind = collections.defaultdict(list)
    for row in result["rows"]:
        by_kind[row["kind"]].append(row)
    lines = [
        f"| fault | n | {' | '.join(GOOD.values())} | starts, mean | message |",
        "|---" * (len(GOOD) + 4) + "|",
    ]
    for kind, rows in by_kind.items():
        good = " | ".join(str(sum(row[key] for row in rows)) for key in GOOD)
        starts = sum(row["starts"] for row in rows) / len(rows)
        said = next((row["said"] for row in rows if row["said"]), "")
        said = said.removeprefix("agejax: error: ")[:160].replace("|", "\\|")
        lines.append(f"| {kind} | {len(rows)} | {good} | {starts:.1f} | {said} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    if argv[1:2] == ["--child"]:
        mode, fault, at, workdir, cache = argv[2:]
        child(mode, pathlib.Path(workdir), pathlib.Path(cache), fault, int(at))
        return
    parser = argparse.ArgumentParser(
        prog="python -m experiments.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=216)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="how many faults run at once")
    parser.add_argument("--only", default="", help="regex of the kinds")
    parser.add_argument("--mode", choices=MODES, default=STREAMED, help="how batches come")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args(argv[1:])
    result = campaign(args.faults, args.seed, args.only, args.jobs, args.mode)
    files.write_json(args.output.with_suffix(".json"), result)
    files.write_text(args.output.with_suffix(".md"), table(result))
    print(table(result) + json.dumps({"written": str(args.output.with_suffix(".json"))}))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
