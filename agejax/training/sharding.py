"""The placement of arrays: one mesh (data, fsdp) over all devices of any number of processes."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from agejax.errors import UserError
from agejax.logging import console
from agejax.paths import cache_folder
from agejax.training import peers

# Smaller parameters are cheaper to replicate than to gather.
MIN_SHARDED_SIZE = 2**14
MAX_SHOWN = 4
FEW_IMAGES = 8  # on a device at a time; below, it mostly waits


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: float = 300,
) -> None:
    """Joins the other processes of a run, before anything asks JAX for its devices.

    They are given, or read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    from SLURM, if `srun` started several tasks. With one process it does nothing.

    Args:
      coordinator: HOST:PORT of process 0.
      processes: their number.
      process: the number of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: only some of the three are given, or the others do not arrive in time or were
        started differently.
    """
    environment = os.environ
    given: dict[str, Any] = {
        "--coordinator (JAX_COORDINATOR_ADDRESS)": coordinator
        or environment.get("JAX_COORDINATOR_ADDRESS"),
        "--processes (JAX_NUM_PROCESSES)": _number(processes, "JAX_NUM_PROCESSES"),
        "--process (JAX_PROCESS_ID)": _number(process, "JAX_PROCESS_ID"),
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(f"{missing[0]} is missing; give all of {', '.join(given)}, or none")
    place = slurm_step(environment) if missing else tuple(given.values())
    if place is None or place[1:] == (1, 0):
        return
    address, count, number = place
    try:
        with peers.meet(address, count, number, timeout) as others:
            jax.distributed.initialize(
                coordinator_address=others.coordinator,
                num_processes=count,
                process_id=number,
                local_device_ids=local_gpus(environment),
                coordinator_bind_address=others.bind,
            )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot join the other processes: {reason}") from error


def slurm_step(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(HOST:PORT of task 0, number of tasks, this task) of a SLURM step; None: not several tasks.

    The host is the first of the step's nodes. The port is chosen as in JAX for SLURM: from the
    job's number, so that two jobs on one node rarely have the same.
    """
    count = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    # For example "node-a", "node-a,node-b" or "node[001-004,007],other".
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", environment.get("SLURM_STEP_NODELIST", ""))
    if count < 2 or first is None:
        return None
    port = int(environment["SLURM_JOB_ID"]) % 2**12 + 2**16 - 2**12
    return f"{first[1]}{first[2] or ''}:{port}", count, int(environment["SLURM_PROCID"])


def _number(given: int | None, name: str) -> int | None:
    value = os.environ.get(name) if given is None else given
    try:
        return None if value is None else int(value)
    except ValueError as error:
        raise UserError(f"{name}: {value!r} is not a whole number") from error


def local_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """This task's share of the GPUs that SLURM makes visible; None: as JAX finds them.

    Each task may see only its own GPUs (--gpus-per-task), take one of the node's GPUs, or have all
    of them (one task per node), where JAX by default would take one.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not visible or "SLURM_LOCALID" not in environment:
        return None
    count = len(visible.split(","))
    # For example "4(x2),3": four tasks on each of two nodes, three on the next.
    tasks = [
        int(number)
        for number, times in re.findall(
            r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
        )
        for _ in range(int(times or 1))
    ]
    here = tasks[min(int(environment.get("SLURM_NODEID", "0")), len(tasks) - 1)]
    if count < here:
        return list(range(count))
    share, first = count // here, int(environment["SLURM_LOCALID"])
    return list(range(first * share, (first + 1) * share))


def start() -> None:
    """Sets the compile cache. After `join`: it asks for the backend."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def create_mesh(devices: int, fsdp: int) -> Mesh:
    """A mesh (data, fsdp) over the first `devices` devices; 0 means all.

    Raises:
      UserError: more devices asked for than there are, or an fsdp that does not divide them.
    """
    available = jax.devices()
    each = collections.Counter(device.process_index for device in available)
    if len(set(each.values())) > 1:
        counts = ", ".join(f"{n} in process {i}" for i, n in sorted(each.items())[:MAX_SHOWN])
        raise UserError(
            f"the processes have different numbers of devices: {counts}; give all the same number, "
            "such as with CUDA_VISIBLE_DEVICES"
        )
    count = devices or len(available)
    if count > len(available):
        kind = available[0].platform
        raise UserError(
            f"config.sharding.devices: {count} devices requested, {len(available)} {kind} "
            "device(s) found; lower it, or set 0 to use what is there"
        )
    if jax.process_count() > 1 and count < len(available):
        raise UserError(
            f"config.sharding.devices: {count} devices requested, and {jax.process_count()} "
            f"processes have {len(available)}; start fewer, or set 0 to use what is there"
        )
    if fsdp < 1 or count % fsdp:
        raise UserError(f"config.sharding.fsdp: {fsdp} does not divide the {count} devices")
    # Auto axes: with the default, Explicit, convolutions and batch norm reject sharded input.
    return jax.make_mesh(
        (count // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=available[:count],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis split over all devices."""
    return NamedSharding(mesh, P(*[None] * axis, ("data", "fsdp")))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings for a train state, as a tree: fsdp splits large arrays along their longest axis."""
    fsdp = mesh.shape["fsdp"]

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, n in enumerate(leaf.shape) if n % fsdp == 0]
        if fsdp == 1 or not axes or np.prod(leaf.shape) < MIN_SHARDED_SIZE:
            return replicated(mesh)
        longest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, P(*("fsdp" if i == longest else None for i in range(leaf.ndim))))

    return jax.tree.map(place, state)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, axis: int = 0) -> dict[str, jax.Array]:
    """This process's slice of a batch -> the global batch on the mesh.

    Args:
      axis: that of the images; 1 in a batch of several steps.
    """
    sharding = batch_sharding(mesh, axis)
    if jax.process_count() == 1:
        placed: dict[str, jax.Array] = jax.device_put(dict(batch), sharding)
        return placed
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def _check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises `UserError` if devices and micro-batches do not divide a global batch."""
    if parts < 1:
        raise UserError(f"config.optim.accumulate: need at least one micro-batch, got {parts}")
    if batch_size < 1 or batch_size % (mesh.size * parts):
        split = f"{mesh.size} devices" + (f" x {parts} micro-batches" if parts > 1 else "")
        raise UserError(f"config.{name}: {batch_size} is not a multiple of {split}")


def of_run(config: Any) -> Mesh:
    """The mesh of a run.

    Raises:
      UserError: as `create_mesh`, or batches that its devices and micro-batches do not divide.
    """
    mesh = create_mesh(config.sharding.devices, config.sharding.fsdp)
    _check_batch_size("data.batch_size", config.data.batch_size, mesh, config.optim.accumulate)
    _check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    _warn_of_few_images(config, mesh)
    return mesh


def _warn_of_few_images(config: Any, mesh: Mesh) -> None:
    """Warns where each of several devices has few images at a time."""
    batch, parts = config.data.batch_size, config.optim.accumulate
    each = batch // (mesh.size * parts)
    if mesh.size == 1 or each >= FEW_IMAGES:
        return
    split = f"{mesh.size} devices" + (f" x {parts} micro-batches" if parts > 1 else "")
    norms = ", for batch norm too" if config.sharding.batch_norm == "device" else ""
    console.warning(
        f"config.data.batch_size: {batch} over {split} leaves each device {each} at a time{norms}, "
        f"too few to keep it busy; raise it to {FEW_IMAGES * mesh.size * parts} or more, or lower "
        "config.sharding.devices"
    )
