"""Several processes train one run: as one would, and to the same end when some of them die."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_resume import last_checkpoint

import tiny
from agejax import sharding, train
from agejax.errors import UserError

HERE = pathlib.Path(__file__).parent


def start(faces, cache, workdir, name="SIGCONT", at=0):
    """Two processes of one device each, the second of which signals itself right before its batch
    number `at`: [(exit code, what it printed)]."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {
        "PYTHONPATH": f"{HERE.parent}:{HERE}", "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "interrupted_run.py", faces, cache, workdir, "0",
             *((name, str(at)) if i == 1 else ("SIGCONT", "0"))],
            env=env | {"JAX_PROCESS_ID": str(i)}, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return list(zip([process.returncode for process in processes], printed, strict=True))


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


@pytest.fixture(scope="module")
def together(faces, cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    for code, printed in start(faces, cache, workdir):
        assert code == 0, printed
    return workdir


def test_two_processes_lose_what_one_loses(faces, cache, together, tmp_path):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.sharding.devices = 2
    train.train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(together), losses(tmp_path / "run"), rtol=1e-5)
    shutil.copytree(together, tmp_path / "copy")
    config.sharding.devices = 1
    assert train.train(config, tmp_path / "copy")["steps"] == 24  # what two saved, one restores


def test_a_run_of_which_one_process_is_stopped_or_killed_ends_bit_equal(
    faces, cache, together, tmp_path
):
    workdir = tmp_path / "run"
    for code, printed in start(faces, cache, workdir, "SIGTERM", 6):
        assert code == 0, printed
        assert "stopped" in printed
    (survivor, printed), (killed, _) = start(faces, cache, workdir, "SIGKILL", 8)
    assert killed == -signal.SIGKILL
    assert survivor != 0, printed
    for code, printed in start(faces, cache, workdir):
        assert code == 0, printed
        assert "finished" in printed
    step, arrays = last_checkpoint(workdir)
    expected_step, expected = last_checkpoint(together)
    assert step == expected_step
    jax.tree.map(np.testing.assert_array_equal, expected, arrays)


def test_half_an_address_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node-0:1234")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match=r"--processes \(JAX_NUM_PROCESSES\) is missing"):
        sharding.join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES: 'two' is not a whole number"):
        sharding.join()


@pytest.mark.parametrize(
    ("visible", "tasks", "node", "local", "gpus"),
    [
        ("0,1,2,3", "4(x2)", 1, 2, [2]),  # shared out among the tasks of a node
        ("0,1,2,3", "1(x2)", 1, 0, [0, 1, 2, 3]),  # all for the node's one task
        ("0,1,2,3", "4,2", 1, 1, [2, 3]),
        ("0", "4(x2)", 0, 3, [0]),  # each task sees its own alone
    ],
)
def test_a_slurm_task_takes_its_share_of_the_gpus(visible, tasks, node, local, gpus):
    environment = {
        "CUDA_VISIBLE_DEVICES": visible,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
    }
    assert sharding.local_gpus(environment) == gpus
    assert sharding.local_gpus({"CUDA_VISIBLE_DEVICES": visible}) is None
