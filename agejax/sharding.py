"""Where arrays live: one mesh over all devices, axes (data, fsdp), for any number of processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from agejax.errors import UserError

# Smaller parameters are cheaper to keep everywhere than to gather.
MIN_SHARDED_SIZE = 2**14


def start() -> None:
    """Joins the other processes where the environment names a coordinator; sets the compile cache.

    In this order: the cache asks for the backend, and processes must join before there is one.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize()
    cache = os.environ.get("AGEJAX_CACHE", os.path.expanduser("~/.cache/agejax"))
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def create_mesh(devices: int, fsdp: int) -> Mesh:
    """A mesh (data, fsdp) over the first `devices` devices; 0 means all.

    Raises:
      UserError: more devices asked for than there are, or an fsdp that does not divide them.
    """
    available = jax.devices()
    count = devices or len(available)
    if count > len(available):
        kind = available[0].platform
        raise UserError(
            f"config.sharding.devices: {count} devices asked for, {len(available)} {kind} "
            "device(s) found; lower it, or set 0 to use what is there"
        )
    if fsdp < 1 or count % fsdp:
        raise UserError(f"config.sharding.fsdp: {fsdp} does not divide the {count} devices")
    # Auto axes: with the default, Explicit, convolutions and batch norm refuse sharded input.
    return jax.make_mesh(
        (count // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=available[:count],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a train state: large arrays split over fsdp on their longest axis."""
    fsdp = mesh.shape["fsdp"]

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or not axes or np.prod(leaf.shape) < MIN_SHARDED_SIZE:
            return replicated(mesh)
        longest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*("fsdp" if i == longest else None for i in range(leaf.ndim))))

    return jax.tree.map(place, state)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's slice of a batch -> the global batch on the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises `UserError` where devices and micro-batches do not divide a global batch."""
    if parts < 1:
        raise UserError(f"config.optim.accumulate: need at least one micro-batch, got {parts}")
    if batch_size < 1 or batch_size % (mesh.size * parts):
        split = f"{mesh.size} devices" + (f" x {parts} micro-batches" if parts > 1 else "")
        raise UserError(f"config.{name}: {batch_size} is not a multiple of {split}")
