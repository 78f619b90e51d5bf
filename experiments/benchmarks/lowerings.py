"""Our lowerings beside XLA's own operations: python -m experiments.benchmarks.lowerings

Values and gradients of one operation at a time, on shapes of the networks trained here and on both
sides of every threshold of `agejax.models.lowerings`. Three contestants take turns: our form,
XLA's, and the one that agejax chooses for this shape on this platform. Each turn is measured in
time and in CPU time of all threads, which work beside it disturbs less. Where agejax's choice is
slower in every turn, by both clocks, the table calls it wrong: the threshold should move. Recorded
in experiments/results/lowerings.json and lowerings.md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from agejax import files
from agejax.errors import UserError
from agejax.models import lowerings
from agejax.models.lowerings import conv, depthwise
from agejax.models.lowerings.activation import gelu
from agejax.models.lowerings.attention import attention
from agejax.models.lowerings.norm import batch_norm, layer_norm
from agejax.models.lowerings.pool import max_pool, mean_pool
from agejax.models.lowerings.windows import pad, plain_conv
from agejax.process.command import run_command
from experiments.arms import commit
from experiments.benchmarks import turns

Function = Callable[..., Any]
Shape = tuple[int, ...]
OUTPUT = pathlib.Path(__file__).parents[1] / "results" / "lowerings.json"
LOSS = 1.05  # a wrong choice: agejax's time over the faster form's, in every turn
CLOCKS = ("ms", "cpu_ms")  # of a row: time, and CPU time of all threads
TOLERANCE = 1e-3  # difference of contestants' results, as a share of the largest value


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation on one shape.

    Attributes:
      threshold: the constant that the shape is close to, and on which side; "": none.
      arguments: shapes of the arrays, float32.
      contestants: name -> function of such arrays: "ours" and "XLA", or the values of a constant.
        "agejax", or else "ours", is what agejax chooses.
    """

    operation: str
    shape: str
    threshold: str
    arguments: tuple[Shape, ...]
    contestants: Mapping[str, Function]

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.operation, self.shape, self.threshold)))


def with_gradients(function: Function) -> Function:
    """(*arrays) -> the function's value y, and the gradients of half the sum of max(y, 0)²."""

    def both(*arrays: jax.Array) -> Any:
        y, pull = jax.vjp(function, *arrays)
        return y, pull(jnp.maximum(y, 0))  # with y², a norm's input would have a gradient near 0

    return both


def operation(
    name: str, shape: str, function: Function, *arguments: Shape, native: bool = False
) -> Case:
    """A case of a function with one form in XLA on this platform, whatever the shape.

    With `native` agejax chooses a third form on one CPU device: one that its compiler has built.
    """

    def plain(*arrays: jax.Array) -> Any:
        with lowerings.plain():
            return function(*arrays)

    @lowerings.native_kernels(True)
    def built(*arrays: jax.Array) -> Any:
        return with_gradients(function)(*arrays)

    contestants = {"ours": with_gradients(function), "XLA": with_gradients(plain)}
    contestants |= {"agejax": built} if native else {}
    return Case(name, shape, "", arguments, contestants)


def convolution(name: str, x: Shape, kernel: Shape, stride: int = 1) -> Case:
    """A case of a convolution of images x, with one form on this platform; shapes give groups."""
    padding, groups = kernel[0] // 2, x[-1] // kernel[2]

    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv.conv(x, kernel, stride, padding, groups)

    shape, native = f"{text(x)}, {text(kernel)} / {stride}", groups == x[-1] or x[-1] == 3
    return operation(name, shape, function, x, kernel, native=native)


def im2col(x: Shape, outputs: int, stride: int, threshold: str) -> Case:
    """A case of a dense 3x3 convolution, as one product of its taps or as XLA's."""
    forms: dict[str, Function] = {"ours": conv.im2col, "XLA": plain_conv, "agejax": conv.conv}
    contestants = {
        name: with_gradients(functools.partial(form, stride=stride, padding=1))
        for name, form in forms.items()
    }
    kernel = (3, 3, x[-1], outputs)
    shape = f"{text(x)}, {text(kernel)} / {stride}"
    return Case("im2col", shape, threshold, (x, kernel), contestants)


def kernel_gradient(x: Shape) -> Case:
    """A case of only the kernel's gradient of a dense 3x3 convolution."""

    def by_taps(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return conv.kernel_gradient(pad(x, 1), dy, 3, 1, conv.TILE_BYTES)

    def of(form: Function) -> Function:
        def gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
            return jax.vjp(lambda k: form(x, k, 1, 1), kernel)[1](dy)[0]

        return gradient

    contestants = {"ours": by_taps, "XLA": of(plain_conv), "agejax": of(conv.dense)}
    threshold = f"TAP_GRADIENT_MIN_PIXELS: {math.prod(x[:3]):,}"
    kernel = (3, 3, x[-1], x[-1])
    return Case("dense kernel's gradient", text(x), threshold, (x, kernel, x), contestants)


def constant(name: str, gradient: Function, size: int, x: Shape, values: Sequence[int]) -> Case:
    """A case of a kernel's gradient with several values of a constant."""

    def of(value: int) -> Function:
        return lambda x, dy: gradient(pad(x, size // 2), dy, size, 1, value)

    contestants = {f"{value:,}": of(value) for value in values}
    return Case(name, f"{text(x)}, {size} x {size}", "", (x, x), contestants)


def text(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def cases(batch: int) -> list[Case]:
    """All cases, with `batch` images where no threshold sets the number."""
    few, many = conv.FEW_CHANNELS, conv.MANY_CHANNELS
    few_edge, many_edge = math.isqrt(conv.FEW_PIXELS), math.isqrt(conv.THEIR_PIXELS)
    least = conv.TAP_GRADIENT_MIN_PIXELS // 16**2  # images of 16 x 16 pixels
    x, tokens = (batch, 32, 32, 64), (batch, 65)
    return [
        *(
            im2col((batch, 64, 64, n), 32, 2, f"FEW_CHANNELS: {n}")
            for n in (1, few - 1, few, few + 1, 2 * few)
        ),
        *(
            im2col((batch, n, n, 256), 256, 1, f"FEW_PIXELS: {n * n}")
            for n in range(few_edge - 1, few_edge + 2)
        ),
        *(
            im2col((batch, many_edge, many_edge, n), n, 1, f"MANY_CHANNELS: {n}")
            for n in (many - 128, many, many + 128)
        ),
        *(
            im2col((batch, n, n, many), many, 1, f"THEIR_PIXELS: {n * n}")
            for n in range(many_edge - 1, many_edge + 2)
        ),
        *(kernel_gradient((n, 16, 16, 64)) for n in (least // 4, least, 2 * least, 8 * least)),
        *(
            constant("TILE_BYTES", conv.kernel_gradient, 3, x, [2**n for n in range(14, 24, 2)])
            for x in ((batch, 16, 16, 64), (batch, 56, 56, 64))
        ),
        *(
            constant("ROWS_PER_SUM", depthwise.kernel_gradient, size, x, [4, 8, 16, 32, 64])
            for x, size in (((batch, 32, 32, 72), 3), ((batch, 7, 7, 240), 5))
        ),
        convolution("1x1 convolution", (batch, 32, 32, 16), (1, 1, 16, 72)),
        convolution("1x1 convolution", (batch, 7, 7, 96), (1, 1, 96, 576)),
        convolution("convolution in groups", (batch, 14, 14, 256), (3, 3, 8, 256)),
        convolution("convolution of RGB", (batch, 128, 128, 3), (3, 3, 3, 16), 2),
        convolution("depthwise convolution", (batch, 32, 32, 72), (3, 3, 1, 72)),
        convolution("depthwise convolution", (batch, 32, 32, 72), (3, 3, 1, 72), 2),
        convolution("depthwise convolution", (batch, 14, 14, 240), (5, 5, 1, 240)),
        operation("matmul", f"{text(x)}, 64 x 64", conv.matmul, x, (64, 64)),
        operation("batch norm", text(x), lambda *a: batch_norm(*a, 1e-3)[0], x, (64,), (64,)),
        operation(
            "layer norm",
            text((*tokens, 192)),
            lambda *a: layer_norm(*a, 1e-6),
            *((*tokens, 192), (192,), (192,)),
        ),
        operation("GELU", text((*tokens, 768)), gelu, (*tokens, 768)),
        operation(
            "attention", text((*tokens, 3, 3, 64)), attention, (*tokens, 3, 3, 64), native=True
        ),
        operation("max pool", f"{text(x)}, 3 x 3 / 2", lambda x: max_pool(x, 3, 2, 1), x),
        operation(
            "mean pool",
            f"{text(x)}, 3 x 3 / 2",
            lambda x: mean_pool(x, 3, 2, count_padding=False),
            x,
        ),
    ]


def measure(case: Case, repeats: int, seconds: float) -> dict[str, Any]:
    """Measures a case, as JSON data: `repeats` turns per contestant, of about `seconds` each."""
    keys = jax.random.split(jax.random.key(0), len(case.arguments))
    arrays = [jax.random.normal(k, shape) for k, shape in zip(keys, case.arguments, strict=True)]

    def turn(function: Function, calls: int) -> tuple[float, float]:
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(calls):
            result = function(*arrays)
        jax.block_until_ready(result)
        return (
            (time.perf_counter() - start) / calls,
            (time.process_time() - cpu_start) / calls,
        )

    entered: dict[str, Callable[[], tuple[float, float]]] = {}
    expected: Any = None
    for name, contestant in case.contestants.items():
        function = jax.jit(contestant)
        result = function(*arrays)  # compiles
        expected = result if expected is None else expected
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            if not jnp.abs(a - b).max() <= TOLERANCE * jnp.abs(b).max():
                raise UserError(f"{case.name}: {name} computes other values; mend it first")
        calls = max(1, round(seconds / turn(function, 1)[0]))
        entered[name] = functools.partial(turn, function, calls)
    given = turns.alternate(entered, repeats)
    row: dict[str, Any] = {
        "operation": case.operation,
        "shape": case.shape,
        "threshold": case.threshold,
    }
    for i, clock in enumerate(CLOCKS):
        times = {name: [each[i] for each in some] for name, some in given.items()}
        row[clock] = {name: 1e3 * statistics.median(each) for name, each in times.items()}
        if "XLA" in times:
            faster = [min(each) for each in zip(*times.values(), strict=True)]
            row[f"XLA / ours, {clock}"] = turns.ratio(times["XLA"], times["ours"])
            chosen = times.get("agejax", times["ours"])
            row[f"agejax / faster, {clock}"] = turns.ratio(chosen, faster)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of our form beside XLA's, and one of the constants' values."""
    lines = [
        "| operation | shape | beside the threshold | ours, ms | XLA, ms | XLA / ours "
        "| in CPU time | chosen, ms | choice |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "XLA" in row["ms"]:
            ratios = [row[f"XLA / ours, {clock}"] for clock in CLOCKS]
            losses = [row[f"agejax / faster, {clock}"] for clock in CLOCKS]
            wrong = all(loss["min"] > LOSS for loss in losses)
            cells = (
                *(row["operation"], row["shape"], row["threshold"]),
                *(f"{row['ms'][name]:.3g}" for name in ("ours", "XLA")),
                *(f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in ratios),
                f"{row['ms'].get('agejax', row['ms']['ours']):.3g}",
                f"wrong: {losses[-1]['median']:.2f} x" if wrong else "right",
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| constant | shape | CPU ms with each value |", "|---|---|---|"]
    for row in rows:
        if "XLA" not in row["ms"]:
            values = "; ".join(f"{value}: {ms:.3g}" for value, ms in row[CLOCKS[-1]].items())
            lines.append(f"| {row['operation']} | {row['shape']} | {values} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.lowerings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--turns", type=int, default=8, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds per turn, about")
    parser.add_argument("--only", default="", help="regex of the cases")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    args = parser.parse_args(argv[1:])
    every = cases(args.batch)
    chosen = [case for case in every if re.search(args.only, case.name)]
    if not chosen:
        names = "; ".join(case.name for case in every)
        raise UserError(f"--only={args.only}: no such case; there are {names}")
    rows = []
    for case in chosen:
        rows.append(measure(case, args.turns, args.seconds))
        print(f"{case.name}: {rows[-1]['ms']} ms", flush=True)
    result = {
        "command": "python -m experiments.benchmarks.lowerings",
        "commit": commit(),
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, JAX {jax.__version__}",
        "batch": args.batch,
        "turns": args.turns,
        "rows": rows,
    }
    files.write_json(args.output.with_suffix(".json"), result)
    files.write_text(args.output.with_suffix(".md"), table(rows))
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
