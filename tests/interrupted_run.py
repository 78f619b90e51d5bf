"""Trains `tiny` in a process that sends itself a signal right before a given step.

python interrupted_run.py SOURCE CACHE WORKDIR WORKERS SIGNAL STEP
"""

import os
import pathlib
import signal
import sys

import jax

import tiny
from agejax.train import train
from agejax.training import sharding


def signal_before(at: int, name: str) -> None:
    """Makes this process signal itself right before its training batch number `at`, from 1."""
    put_batch, calls = sharding.put_batch, [0]

    def counting(batch, mesh):  # type: ignore[no-untyped-def]
        if "strength" in batch and (batch["weight"] == 1).all():
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), getattr(signal, name))
        return put_batch(batch, mesh)

    sharding.put_batch = counting


def main() -> None:
    source, cache, workdir, workers, name, at = sys.argv[1:]
    sharding.join()
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # as in conftest.py
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = source, cache
    config.data.workers = int(workers)
    config.sharding.devices = jax.process_count()

    signal_before(int(at), name)
    done = train(config, pathlib.Path(workdir)) is not None
    assert "tensorflow" not in sys.modules
    assert "torch" not in sys.modules
    print("finished" if done else "stopped")


if __name__ == "__main__":
    main()
