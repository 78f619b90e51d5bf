"""A run that is killed again and again ends bit-equal to the run that was not."""

import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import tiny
from agejax import train
from agejax.checkpoint import Checkpoints

HERE = pathlib.Path(__file__).parent


def last_checkpoint(workdir):
    """Every array of the newest checkpoint, as saved."""
    import orbax.checkpoint as ocp

    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.last
    checkpoints.close()
    tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
    return step, tree


@pytest.fixture(scope="module")
def uninterrupted(faces, cache, tmp_path_factory):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    summary = train.train(config, workdir)
    return workdir, summary


def start(faces, cache, workdir, workers, name="SIGCONT", at=0):
    env = os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE}"}
    return subprocess.run(
        [sys.executable, HERE / "interrupted_run.py", faces, cache, workdir, str(workers),
         name, str(at)],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_run_stopped_five_times_at_random_steps_ends_bit_equal(
    name, faces, cache, uninterrupted, tmp_path
):
    rng = random.Random(name)
    for i in range(5):
        # A killed run goes back to its last checkpoint, at most 4 steps before.
        at = rng.randint(2, 4) if name == "SIGTERM" else rng.randint(5, 7)
        result = start(faces, cache, tmp_path / "run", workers=i % 3, name=name, at=at)
        if name == "SIGKILL":
            assert result.returncode == -signal.SIGKILL, result.stderr
        else:
            assert result.returncode == 0, result.stderr
            assert "stopped" in result.stdout, result.stdout
    result = start(faces, cache, tmp_path / "run", workers=1)
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout

    whole_step, whole = last_checkpoint(uninterrupted[0])
    step, stopped = last_checkpoint(tmp_path / "run")
    assert step == whole_step == 24
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)

    import json

    lines = lambda folder: [  # noqa: E731
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    keep = lambda rows: {r["step"]: r["val/age/mae"] for r in rows if "val/age/mae" in r}  # noqa: E731
    assert keep(lines(tmp_path / "run")) == keep(lines(uninterrupted[0]))
