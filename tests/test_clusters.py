"""The cluster files, tested with mocks of SLURM and Kubernetes."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest
import yaml

from experiments import run as experiments_run

FOLDER = pathlib.Path(experiments_run.__file__).parent


@pytest.fixture
def cluster(tmp_path):
    """A mock srun, which reports what it starts and obeys $FAKE, and a mock scontrol."""
    for name, script in {
        "srun": 'echo "srun $*"; exec bash -c "$FAKE"',
        "scontrol": 'echo "scontrol $*"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def submit(script, *arguments, fake, **variables):
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE": fake,
                            "SLURM_JOB_ID": "7", "BATCH": "yes"} | variables  # fmt: skip
        done = subprocess.run(
            ["bash", FOLDER / "slurm" / script, *arguments],
            env=env, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    return submit


# A step that is told to stop saves, reports it, and ends.
STOPPED = 'trap "echo saved; exit 0" TERM; kill -TERM $PPID; while true; do sleep 0.1; done'


@pytest.mark.parametrize("script", ["train.sbatch", "arms.sbatch"])
def test_a_job_that_is_told_to_stop_saves_first_and_is_queued_again(cluster, script):
    _, said = cluster(script, "--x=y", fake=STOPPED)
    assert said[0].endswith("--x=y")
    assert said[1:] == ["saved", "scontrol requeue 7"]


@pytest.mark.parametrize("code", [0, 2])
def test_a_job_that_ends_by_itself_is_not(cluster, code):
    assert cluster("train.sbatch", fake=f"exit {code}") == (
        code, ["srun --kill-on-bad-exit=1 python -m agejax.main"],
    )  # fmt: skip


def test_an_element_of_an_array_trains_its_arm(cluster, monkeypatch, tmp_path, capsys):
    _, said = cluster("arms.sbatch", "imbalance", fake="exit 0", SLURM_ARRAY_TASK_ID="13")
    assert said == ["srun python -m experiments.run imbalance --task=13"]
    assert cluster("arms.sbatch", "imbalance", fake="exit 0")[1] == [
        "srun python -m experiments.run imbalance"
    ]

    trained = []
    monkeypatch.setattr(
        experiments_run.arms, "run",
        lambda arms, seeds, folder, split: trained.extend((*arms, seed) for seed in seeds),
    )  # fmt: skip
    for task in range(12):  # the two arms made of others' runs wait for the job after the array
        experiments_run.main(["run", "small_model", "--scale=smoke", "--seeds=2", f"--task={task}"])
    names = ("no-augmentation", "basic", "oversample", "scratch", "faces-frozen", "faces")
    assert trained == [(name, seed) for seed in range(2) for name in names]
    with pytest.raises(experiments_run.UserError, match="6 arms by 2 seeds are 0 to 11"):
        experiments_run.main(["run", "small_model", "--scale=smoke", "--seeds=2", "--task=12"])


def test_the_jobset_starts_as_many_processes_as_it_says():
    manifest = yaml.safe_load((FOLDER / "kubernetes" / "jobset.yaml").read_text())
    job = manifest["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert env["JAX_NUM_PROCESSES"] == str(spec["completions"]) == str(spec["parallelism"])
    name = manifest["metadata"]["name"]
    assert env["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-{job['name']}-0-0.{name}:")
    gpus = spec["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--config.sharding.devices={gpus}" in container["command"]
