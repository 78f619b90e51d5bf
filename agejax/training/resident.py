"""Training images and labels that lie on the devices: a batch then comes as the numbers of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from agejax.errors import UserError
from agejax.logging import console
from agejax.training import sharding

if TYPE_CHECKING:  # grain is imported where batches are made: predicting needs none
    from agejax.data.pipeline import TrainBatches

WHERE = "config.data.resident"
TABLE = "resident"  # the entry of a batch that has all rows
SHARE = 4  # auto: at most this part of a device's memory
CHUNK = 2**26  # bytes that the host reads at a time
Rows = np.ndarray
# A column: its shape [N, ...], its type, and how to read some of its rows.
Column = tuple[tuple[int, ...], np.typing.DTypeLike, Callable[[Rows], np.ndarray]]


def wanted(choice: str, batches: TrainBatches, mesh: Mesh) -> bool:
    """Whether a run's data shall lie on its devices, whole on each of them.

    Args:
      choice: config.data.resident. "auto" says no on a CPU, where nothing is gained, and where the
        data takes more than a quarter of a device's memory, which is reported.

    Raises:
      UserError: "on", and a device has less memory.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if choice == "off" or (choice == "auto" and on_cpu):
        return False
    size, memory = size_of(batches), _memory(mesh)
    what = f"the training data takes {size / 2**20:,.0f} MiB, and a device has "
    what += "memory of unknown size" if memory is None else f"{memory / 2**20:,.0f} MiB"
    if choice == "on":
        if memory is not None and size >= memory:
            raise UserError(f"{WHERE}: {what}; set it to auto or off, which stream the batches")
        return True
    fits = memory is not None and SHARE * size <= memory
    # Every process must run the same program.
    if jax.process_count() > 1:
        fits = bool(multihost_utils.process_allgather(np.array(fits)).all())
    if jax.process_index() == 0:
        console.note(
            f"{WHERE}: {what}; " + ("it is kept there" if fits else "batches are streamed")
        )
    return fits


def size_of(batches: TrainBatches) -> int:
    """The bytes of `put`'s arrays on each device."""
    return sum(
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for shape, dtype, _ in _columns(batches).values()
    )


def put(batches: TrainBatches, mesh: Mesh) -> dict[str, jax.Array]:
    """The columns of the training rows, whole on each device: name -> [N, ...].

    Each process reads all of them and puts them on its own devices, so that a step takes its rows
    without asking another device. With a frozen backbone's features, these are [N, V, C].
    """
    return {name: _filled(column, mesh) for name, column in _columns(batches).items()}


def abstract(batches: TrainBatches, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of `put`'s arrays; nothing is read."""
    everywhere = sharding.replicated(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype), sharding=everywhere)
        for name, (shape, dtype, _) in _columns(batches).items()
    }


def gathered(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch whose `draws` are given beside the `TABLE`; one without a table as it is."""
    if TABLE not in batch:
        return batch
    draws = {name: value for name, value in batch.items() if name not in (TABLE, "row", "view")}
    row = batch["row"]
    taken = {
        name: _at(column, (row, batch["view"]) if name == "features" else row)
        for name, column in batch[TABLE].items()
    }
    return {"weight": jnp.ones(row.shape, jnp.float32)} | taken | draws


def _at(column: jax.Array, where: Any) -> jax.Array:
    """Rows of a column; the sampler draws no number that is out of bounds."""
    values: jax.Array = column.at[where].get(mode="promise_in_bounds")
    return values


def _columns(batches: TrainBatches) -> dict[str, Column]:
    source, rows, features = batches.source, batches.rows, batches.features
    columns: dict[str, Column] = {
        name: ((len(rows), *values.shape[1:]), values.dtype, _reader(values, rows))
        for name, values in source.labels.items()
    }
    columns["index"] = (rows.shape, np.int32, lambda i: rows[i].astype(np.int32))
    if features is None:
        shape = (len(rows), *source.images.shape[1:])
        columns["image"] = (shape, np.uint8, lambda i: source.take(rows[i]))
    else:
        views = range(len(features.views))
        columns["features"] = (
            (len(rows), len(views), features.width), np.float32,
            lambda i: np.stack([features.take(rows[i], view) for view in views], axis=1),
        )  # fmt: skip
    return columns


def _reader(values: np.ndarray, rows: Rows) -> Callable[[Rows], np.ndarray]:
    return lambda i: values[rows[i]]


def _filled(column: Column, mesh: Mesh) -> jax.Array:
    """A column on every device, read part by part: the host never holds all of it."""
    shape, dtype, read = column
    dtype = jax.dtypes.canonicalize_dtype(dtype)  # of a float64 it is float32
    everywhere = sharding.replicated(mesh)
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    count = max(1, min(shape[0], CHUNK // row))

    def part(start: int) -> jax.Array:
        values = read(np.arange(start, start + count)).astype(dtype, copy=False)
        return jax.make_array_from_callback(values.shape, everywhere, lambda i: values[i])

    if count == shape[0]:
        return part(0)
    values: jax.Array = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=everywhere)()
    fill = jax.jit(
        lambda values, part, start: jax.lax.dynamic_update_slice_in_dim(values, part, start, 0),
        donate_argnums=0,
        out_shardings=everywhere,
    )
    for start in _starts(shape[0], count):
        values = fill(values, part(start), np.int32(start))
        jax.block_until_ready(values)
    return values


def _starts(total: int, count: int) -> Iterator[int]:
    """Where parts of `count` rows begin that cover `total`; the last may overlap the one before."""
    yield from range(0, total - count, count)
    yield total - count


def _memory(mesh: Mesh) -> int | None:
    """The bytes that the smallest of this process's devices offers; None where it does not tell."""
    found = [
        (device.memory_stats() or {}).get("bytes_limit")
        for device in mesh.devices.flat
        if device.process_index == jax.process_index()
    ]
    known = [each for each in found if each is not None]
    return min(known) if len(known) == len(found) else None
