"""Resuming and the number of devices, compiled as in users' runs.

All other tests compile with less effort (tests/conftest.py), which may hide effects of XLA's
fusions.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_resume import last_checkpoint

import tiny
from agejax.train import train
from agejax.training import sharding

HERE = pathlib.Path(__file__).parent
FLAGS = "--xla_force_host_platform_device_count=2"


def trained(folder: pathlib.Path, source: str, cache: str, name: str, devices: int) -> bool:
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = source, cache
    config.total = {"steps": 8}
    config.eval.every = {"steps": 4}
    config.sharding.devices = devices
    return train(config, folder / name) is not None


def main() -> None:
    """Runs in its own process: three runs in `folder`, one of them stopped and resumed."""
    from interrupted_run import signal_before

    folder, source, cache = sys.argv[1:]
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "users_xla"))
    run = functools.partial(trained, pathlib.Path(folder), source, cache)
    assert run("whole", 1)
    assert run("two_devices", 2)
    put_batch = sharding.put_batch
    signal_before(5, "SIGTERM")
    assert not run("resumed", 1)
    sharding.put_batch = put_batch
    assert run("resumed", 1)


@pytest.fixture(scope="module")
def runs(faces, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    env = os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE}", "XLA_FLAGS": FLAGS}
    done = subprocess.run(
        [sys.executable, __file__, folder, faces, cache],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("resuming ") == 1
    return folder


def test_a_resumed_run_ends_bit_equal(runs):
    step, whole = last_checkpoint(runs / "whole")
    resumed_step, resumed = last_checkpoint(runs / "resumed")
    assert resumed_step == step == 8
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_two_devices_lose_what_one_loses(runs):
    one, two = (
        [
            row["loss"]
            for line in (runs / name / "metrics.jsonl").read_text().splitlines()
            if "loss" in (row := json.loads(line))
        ]
        for name in ("whole", "two_devices")
    )
    assert len(one) == 4
    np.testing.assert_allclose(one, two, rtol=1e-5)


if __name__ == "__main__":
    main()
