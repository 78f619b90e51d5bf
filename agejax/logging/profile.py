"""A trace of a few steps, and one page that shows where their time goes: `--config.profile=10`."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import jax

from agejax import files
from agejax.logging import console
from agejax.logging.cost import Cost

WARM_UP = 3  # steps before the trace: the first compiles, the next wait for the readers
ROWS = 20
CONTROL = ("while", "conditional", "call")  # what they run has entries of its own
# Name, opcode and metadata of an instruction in the text of a compiled program.
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = .*? (?P<opcode>[a-z][a-z0-9\-]*)\(")
OP_NAME, FRAME = re.compile(r'op_name="([^"]*)"'), re.compile(r"stack_frame_id=(\d+)")
SECTIONS = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclasses.dataclass(frozen=True)
class Op:
    """An instruction of a compiled program: what it does, and for which line of the code."""

    opcode: str
    phase: str  # augmentation | forward | backward | update
    place: str  # file and function


class Profile:
    """Traces `steps` training steps soon after the start; 0: none.

    Writes WORKDIR/profile/: the trace, for TensorBoard's profile plug-in or (*.trace.json.gz) for
    Perfetto, and summary.md.

    Args:
      programs: the compiled train steps, asked for once the trace is there.
      batch_size: images a step.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        steps: int,
        start_step: int,
        programs: Callable[[], Sequence[jax.stages.Compiled]],
        batch_size: int,
    ) -> None:
        self._folder, self._programs, self._batch_size = workdir / "profile", programs, batch_size
        self._steps, self._first = steps, start_step + WARM_UP
        self._since: float | None = None

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._since is not None:  # the run ended before its trace did
            jax.profiler.stop_trace()
        if self._steps > 0 and kind is None and jax.process_index() == 0:
            console.note(
                f"no profile: the run ended before {self._steps} steps after its first {WARM_UP}; "
                "lower config.profile"
            )

    def at(self, step: int, state: Any) -> None:
        """Begins and ends the trace; to be called before every call of the device.

        Where a call takes several steps, the trace is of whole calls, and may be longer.
        """
        if self._since is None and self._steps > 0 and step >= self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._first, self._since = step, time.perf_counter()
        elif self._since is not None and step >= self._first + self._steps:
            jax.block_until_ready(state)
            seconds = time.perf_counter() - self._since
            steps, self._steps, self._since = step - self._first, 0, None
            jax.profiler.stop_trace()
            programs = self._programs()
            if jax.process_index() == 0:
                newest = max(self._folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
                text = summary(programs, read_trace(newest), steps, seconds, self._batch_size)
                files.write_text(self._folder / "summary.md", text)
                console.result(f"profile of {steps} steps: {self._folder / 'summary.md'}")


def read_trace(path: pathlib.Path) -> list[tuple[str, str, float, float]]:
    """What a device ran: [(program, instruction, start, end)], seconds."""
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    found = []
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        stats = dict(event.stats)
        if "hlo_op" in stats:
            start = event.start_ns / 1e9
            where = str(stats.get("hlo_module", "")), str(stats["hlo_op"])
            found.append((*where, start, start + event.duration_ns / 1e9))
    return found


def summary(
    programs: Sequence[jax.stages.Compiled],
    events: Iterable[tuple[str, str, float, float]],
    steps: int,
    seconds: float,
    batch_size: int,
) -> str:
    """One page in Markdown.

    Args:
      programs: the train steps.
      events: of `read_trace`; those of other programs do not count.
      steps, seconds: how many steps were traced, and how long they took.
    """
    texts = [program.as_text() or "" for program in programs]
    ops = {text.partition("HloModule ")[2].partition(",")[0]: parse(text) for text in texts}
    if len(ops) == 1:
        ops[""] = next(iter(ops.values()))  # a trace may leave the program's name out
    totals: dict[tuple[str, Op], float] = collections.defaultdict(float)
    times: dict[tuple[str, Op], int] = collections.Counter()
    spans = []
    for module, instruction, start, end in events:
        op = ops.get(module, {}).get(instruction)
        if op is not None and op.opcode not in CONTROL:
            totals[instruction, op] += end - start
            times[instruction, op] += 1
            spans.append((start, end))
    whole = sum(totals.values()) or 1.0

    def table(title: str, key: Callable[[str, Op], str]) -> str:
        sums: dict[str, float] = collections.defaultdict(float)
        counts: dict[str, int] = collections.Counter()
        for instruction, value in totals.items():
            sums[key(*instruction)] += value
            counts[key(*instruction)] += times[instruction]
        rows = sorted(sums.items(), key=lambda item: -item[1])
        return (
            f"\n| {title} | times per step | ms per step | share |\n|---|---|---|---|\n"
            + "".join(
                f"| {each} | {counts[each] / steps:.0f} | {1e3 * value / steps:.2f} | "
                f"{value / whole:.1%} |\n"
                for each, value in rows[:ROWS]
            )
        )

    step = seconds / steps
    facts = {
        "a step": f"{1e3 * step:.1f} ms, {batch_size / step:,.0f} images/s",
        "of this, the device was busy": f"{covered(spans) / seconds:.0%}",
        **_costs(Cost.of(programs[-1]), step),
    }
    return (
        f"# Where a step's time goes\n\n{steps} steps of {batch_size} images on "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}. Operations that run at the same "
        "time each count in full.\n\n| | |\n|---|---|\n"
        + "".join(f"| {key} | {value} |\n" for key, value in facts.items())
        + table("phase", lambda _, op: op.phase)
        + table("place in the code", lambda _, op: f"{op.place}, {op.phase}")
        + table("operation", lambda name, op: f"{name}: {op.place}, {op.phase}")
    )


def _costs(cost: Cost, step: float) -> dict[str, str]:
    facts = {}
    counts = {"flops": (cost.flops, "FLOP"), "bytes accessed": (cost.bytes_accessed, "B")}
    for what, (count, unit) in counts.items():
        if count is not None:
            rate = f"{count / 1e9:.2f} G{unit}, {count / step / 1e9:.1f} G{unit}/s"
            facts[f"{what}, as XLA counts them"] = rate
    if cost.argument_bytes is not None and cost.temporary_bytes is not None:
        facts["memory of arguments, and of temporaries"] = " and ".join(
            f"{size / 2**20:,.0f} MiB" for size in (cost.argument_bytes, cost.temporary_bytes)
        )
    return facts


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def parse(text: str) -> dict[str, Op]:
    """The instructions of a compiled program by name."""
    stacks = _stacks(text)
    ops = {}
    for line in text.splitlines():
        found = INSTRUCTION.match(line)
        if found:
            name, frame = OP_NAME.search(line), FRAME.search(line)
            op_name = name[1] if name else ""
            stack = stacks.get(frame[1], []) if frame else []
            ops[found["name"]] = Op(found["opcode"], _phase(op_name, stack), _place(op_name, stack))
    return ops


def _phase(op_name: str, stack: list[tuple[str, str]]) -> str:
    if any(path.endswith("agejax/training/augment.py") for path, _ in stack):
        return "augmentation"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "update"


def _place(op_name: str, stack: list[tuple[str, str]]) -> str:
    """The innermost function of this project, else of another, else what JAX calls it."""
    ours = [frame for frame in stack if "/agejax/" in frame[0]] or stack
    if not ours:
        return op_name.rpartition("/")[2] or "unnamed"
    path, function = ours[0]
    return f"{pathlib.PurePath(path).name} {function.replace('.<locals>', '')}"


def _stacks(text: str) -> dict[str, list[tuple[str, str]]]:
    """Frame number -> [(file, function)], the innermost first."""
    tables: dict[str, dict[str, str]] = {name: {} for name in SECTIONS}
    current = None
    for line in text.splitlines():
        if line in tables:
            current = tables[line]
        elif current is not None and (row := re.fullmatch(r"(\d+) (.*)", line)):
            current[row[1]] = row[2]
        elif line:
            current = None  # the program itself
    names, functions, locations, frames = (tables[name] for name in SECTIONS)

    def field(row: str, key: str) -> str:
        found = re.search(rf"{key}=(\d+)", row)
        return found[1] if found else ""

    def stack(number: str) -> Iterator[tuple[str, str]]:
        seen = set()
        while number in frames and number not in seen:
            seen.add(number)
            location = locations.get(field(frames[number], "file_location_id"), "")
            path = names.get(field(location, "file_name_id"), "")
            function = functions.get(field(location, "function_name_id"), "")
            yield path.strip('"'), function.strip('"')
            number = field(frames[number], "parent_frame_id")

    return {number: list(stack(number)) for number in frames}
