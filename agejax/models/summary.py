"""python -m agejax.models.summary [--model=NAME] [--measure=forward|memory|train] [--remat] ...

The cost of each backbone: parameters, multiply-accumulates, memory, and its speed on this machine.

    parameters  trainable ones, without the classifier unless --num_classes is given
    MACs        forward pass of one image: convolutions and matrix products, as traced
    kept        bytes per image that autodiff keeps for the backward pass; XLA, which recomputes
                cheap operations, took 0.6 to 1.2 times that on a CPU
    forward     images/s of inference
    step        images/s of forward pass, backward pass and plain gradient descent
    XLA         memory of that step besides its arguments, as planned by the compiler

`--measure=memory` compiles the step but does not run it. `--remat` recomputes the activations of
blocks in the backward pass, as config.model.remat does.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from agejax.errors import UserError, nearest
from agejax.models import lowerings, registry
from agejax.process import usage
from agejax.process.command import run_command

# Edge in pixels of the images that published weights were trained on, if not 224.
IMAGE_SIZES = {
    "efficientnet_lite1": 240, "tf_efficientnet_lite1": 240,
    "efficientnet_lite2": 260, "tf_efficientnet_lite2": 260,
    "nasnet_large": 331, "pnasnet5_large": 331,
}  # fmt: skip
SMALLEST = 32  # every network halves its maps five times
SECONDS = 2.0  # how long a speed is measured


@dataclasses.dataclass(frozen=True)
class Row:
    """One backbone; None where nothing was measured or XLA gives no value."""

    model: str
    image_size: int
    parameters: int
    macs: int
    kept_bytes_per_image: int
    forward_images_per_second: float | None = None
    step_images_per_second: float | None = None
    step_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone as functions of its arrays, which may be abstract.

    Attributes:
      graphdef: merges with `params` and `rest` to the module.
      params: the trainable arrays.
      rest: batch-norm statistics.
    """

    graphdef: nnx.GraphDef[Any]
    params: Any
    rest: Any

    @classmethod
    def of(cls, model: Any) -> Network:
        graphdef, *states = nnx.split(model, nnx.Param, ...)
        params, rest = (nnx.to_pure_dict(state) for state in states)
        return cls(graphdef, params, rest)

    def forward(self, params: Any, rest: Any, x: jax.Array) -> jax.Array:
        """Features or logits [B, C] at inference."""
        y: jax.Array = nnx.merge(self.graphdef, params, rest)(x)
        return y

    def loss(self, params: Any, rest: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        """A scalar that depends on every output, and the statistics after a training step."""
        model = nnx.merge(self.graphdef, params, rest)
        value = jnp.sum(model(x, train=True) ** 2)
        return value, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    def step(self, params: Any, rest: Any, x: jax.Array) -> tuple[Any, Any]:
        """Parameters and statistics after one step of gradient descent."""
        grads, rest = jax.grad(self.loss, has_aux=True)(params, rest, x)
        return jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads), rest


def count_macs(network: Network, image_size: int) -> int:
    """Multiply-accumulates at inference, per image."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    # The lowerings for a CPU are other operations, and leave out multiplications by zero.
    with lowerings.plain():
        traced = jax.make_jaxpr(network.forward)(network.params, network.rest, image)
    return _macs(traced.jaxpr)


def _macs(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "conv_general_dilated":
            kernel = _shape(equation.invars[1])  # smaller with groups
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // outputs
        elif name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            left = _shape(equation.invars[0])
            total += math.prod(_shape(equation.outvars[0])) * math.prod(left[i] for i in summed)
        inner = [_macs(sub) for sub in _jaxprs(equation.params.values())]
        if name == "cond":
            total += max(inner)  # its branches
        else:
            total += sum(inner) * (equation.params["length"] if name == "scan" else 1)
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = variable.aval.shape
    return shape


def _jaxprs(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def kept_bytes_per_image(network: Network, image_size: int) -> int:
    """The bytes that autodiff keeps for the backward pass, per image."""
    one, two = (_kept_bytes(network, image_size, batch) for batch in (1, 2))
    return two - one


def _kept_bytes(network: Network, image_size: int, batch: int) -> int:
    def kept(params: Any, rest: Any, x: jax.Array) -> list[jax.Array]:
        _, backward = jax.vjp(lambda params: network.loss(params, rest, x)[0], params)
        arrays = {id(array): array for array in jax.tree.leaves(backward)}
        return list(arrays.values())

    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    arrays = jax.eval_shape(kept, network.params, network.rest, images)
    return sum(array.size * array.dtype.itemsize for array in arrays)


def describe(
    name: str,
    *,
    image_size: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    num_classes: int | None = None,
    measure: Sequence[str] = (),
    batch_size: int = 8,
    remat: bool = False,
) -> Row:
    """The cost of one backbone.

    Args:
      image_size: edge of the images, pixels; default: what its published weights expect.
      num_classes: of the published classifier; None for features only.
      measure: any of "forward" and "train" for speed, and "memory" for XLA's memory.
      batch_size: of the measurements; all other values are per image.
      remat: whether a training step recomputes the activations of blocks.

    Raises:
      UserError: an unknown model, or images of a size that it does not take.
    """
    if name not in registry.MODELS:
        raise UserError(f"--model={name}: no such model; {nearest(name, registry.MODELS)}")
    size = IMAGE_SIZES.get(name, 224) if image_size is None else image_size
    if size < SMALLEST:
        raise UserError(f"--image_size={size}: too small; give {SMALLEST} or more")

    def create() -> nnx.Module:
        backbone = registry.create(
            name, image_size=size, rngs=nnx.Rngs(0), dtype=dtype, num_classes=num_classes
        )
        backbone.remat = remat
        return backbone

    network = Network.of(nnx.eval_shape(create))
    row = Row(
        name,
        size,
        parameters=sum(array.size for array in jax.tree.leaves(network.params)),
        macs=count_macs(network, size),
        kept_bytes_per_image=kept_bytes_per_image(network, size),
    )
    arguments: tuple[Any, ...] = (
        network.params,
        network.rest,
        jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32),
    )
    if "memory" in measure:
        memory = jax.jit(network.step).lower(*arguments).compile().memory_analysis()
        taken = memory.temp_size_in_bytes if memory else None
        row = dataclasses.replace(row, step_bytes=taken)
    if not {"forward", "train"} & set(measure):
        return row
    network = Network.of(create())
    x = jax.random.normal(jax.random.key(0), (batch_size, size, size, 3))
    arguments = (network.params, network.rest, x)
    if "forward" in measure:
        run = jax.jit(network.forward).lower(*arguments).compile()
        speed = batch_size / _seconds(lambda: run(*arguments))
        row = dataclasses.replace(row, forward_images_per_second=speed)
    if "train" in measure:
        run = jax.jit(network.step).lower(*arguments).compile()
        speed = batch_size / _seconds(lambda: run(*arguments))
        row = dataclasses.replace(row, step_images_per_second=speed)
    return row


def _seconds(run: Callable[[], Any]) -> float:
    """The median of as many runs as fit into the time, at least three, after a warm-up run."""
    jax.block_until_ready(run())
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


Columns = dict[str, Callable[[Row], str]]
COLUMNS: Columns = {
    f"{'model':{max(map(len, registry.MODELS))}}": lambda row: row.model,
    "image px": lambda row: f"{row.image_size}",
    "parameters M": lambda row: f"{row.parameters / 1e6:.2f}",
    "MACs G": lambda row: f"{row.macs / 1e9:.3f}",
    "kept MiB/image": lambda row: f"{row.kept_bytes_per_image / 2**20:.1f}",
}
MEASURED: dict[str, Columns] = {
    "forward": {"forward images/s": lambda row: f"{row.forward_images_per_second:.1f}"},
    "train": {
        "step images/s": lambda row: f"{row.step_images_per_second:.1f}",
    },
    "memory": {
        "XLA MiB": lambda row: "-" if row.step_bytes is None else f"{row.step_bytes / 2**20:.1f}",
    },
}
MEASURES = {
    "none": (), "forward": ("forward",), "memory": ("memory",),
    "train": ("forward", "train", "memory"),
}  # fmt: skip
# What comes before, between and after the cells of a line.
BORDERS = {"text": ("", "  ", ""), "md": ("| ", " | ", " |")}


def table(rows: Iterable[Row], measure: Sequence[str], form: str) -> Iterator[str]:
    """Yields the lines of a table, each as soon as its row is known.

    Args:
      measure: as in `describe`.
      form: text or md.
    """
    columns = dict(COLUMNS)
    for name in measure:
        columns |= MEASURED[name]
    before, between, after = BORDERS[form]
    widths = [len(title) for title in columns]
    yield before + between.join(columns) + after
    if form == "md":
        yield (
            "|"
            + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths))
            + "|"
        )
    for row in rows:
        cells = [cell(row) for cell in columns.values()]
        aligned = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        yield before + between.join(aligned) + after


def describe_all(**options: Any) -> Iterator[Row]:
    """Yields a row per model; reports models that do not take such images on stderr."""
    for name in registry.MODELS:
        try:
            yield describe(name, **options)
        except UserError as error:
            print(f"left out {name}: {error}", file=sys.stderr)


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__)
    parser.add_argument("--model", help="the backbone to report; default: all")
    parser.add_argument(
        "--image_size", type=int, help="edge of the images; default: what published weights expect"
    )
    parser.add_argument(
        "--num_classes",
        type=int,
        help="classes of a classifier, such as the 1000 of published weights; default: without",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--measure", choices=MEASURES, help="what to measure; default: forward with --model"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images per measured call")
    parser.add_argument("--remat", action="store_true", help="as config.model.remat")
    parser.add_argument("--format", choices=("text", "md", "json"), default="text")
    args = parser.parse_args(argv[1:])
    if args.batch_size < 1:
        raise UserError(f"--batch_size={args.batch_size}: give 1 or more")
    if args.num_classes is not None and args.num_classes < 1:
        raise UserError(f"--num_classes={args.num_classes}: give 1 or more")
    measure = MEASURES[args.measure or ("forward" if args.model else "none")]
    options = {
        "image_size": args.image_size,
        "dtype": jnp.dtype(args.dtype),
        "num_classes": args.num_classes,
        "measure": measure,
        "batch_size": args.batch_size,
        "remat": args.remat,
    }
    rows = [describe(args.model, **options)] if args.model else describe_all(**options)
    if args.format == "json":
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    for line in table(rows, measure, args.format):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
