"""Trains `tiny` in a process that sends itself a signal right before a given step.

python interrupted_run.py SOURCE CACHE WORKDIR WORKERS SIGNAL STEP [JSON of more settings]
"""

import json
import os
import pathlib
import signal
import sys

import jax
import numpy as np

import tiny
from agejax.train import train
from agejax.training import sharding


def signal_before(at: int, name: str) -> None:
    """Makes this process signal itself right before its training batch number `at`, from 1."""
    put_batch, calls = sharding.put_batch, [0]

    def counting(batch, *rest):  # type: ignore[no-untyped-def]
        if "strength" in batch and np.all(batch.get("weight", 1) == 1):
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), getattr(signal, name))
        return put_batch(batch, *rest)

    sharding.put_batch = counting


def main() -> None:
    source, cache, workdir, workers, name, at, *settings = sys.argv[1:]
    sharding.join()
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # as in conftest.py
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = source, cache
    config.data.workers = int(workers)
    config.sharding.devices = jax.process_count()
    config.update_from_flattened_dict(json.loads(settings[0]) if settings else {})

    signal_before(int(at), name)
    done = train(config, pathlib.Path(workdir)) is not None
    assert "tensorflow" not in sys.modules
    assert "torch" not in sys.modules
    print("finished" if done else "stopped")


if __name__ == "__main__":
    main()
