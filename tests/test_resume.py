"""A run that is killed repeatedly ends bit-identical to an undisturbed run."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import tiny
from agejax import files
from agejax.errors import UserError
from agejax.runs import run_folder
from agejax.runs.run import Run
from agejax.train import train
from agejax.training.checkpoint import Checkpoints

HERE = pathlib.Path(__file__).parent


def last_checkpoint(workdir):
    """Every array of the newest checkpoint, as saved, on any devices."""
    import orbax.checkpoint as ocp

    step = Checkpoints(workdir / "checkpoints").last
    path, reader = workdir / "checkpoints" / str(step) / "state", ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    return step, reader.restore(path, restore_args=as_numpy)


@pytest.fixture(scope="module")
def uninterrupted(faces, cache, tmp_path_factory):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    summary = train(config, workdir)
    return workdir, summary


def start(faces, cache, workdir, workers, name="SIGCONT", at=0):
    """Runs the script to its end: (exit code, output).

    The pipe closes with the last process that holds it, so no input worker outlives the run.
    """
    env = os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE}"}
    arguments = [faces, cache, workdir, str(workers), name, str(at)]
    process = subprocess.Popen(
        [sys.executable, HERE / "interrupted_run.py", *arguments],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        printed = process.communicate(timeout=300)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed


def test_a_run_stopped_and_killed_six_times_at_random_steps_ends_bit_equal(
    faces, cache, uninterrupted, tmp_path
):
    rng = random.Random(0)
    for i, name in enumerate(("SIGKILL", "SIGTERM") * 3):
        # A killed run goes back to its last checkpoint, at most 4 steps before.
        at = rng.randint(2, 4) if name == "SIGTERM" else rng.randint(6, 7)
        code, printed = start(faces, cache, tmp_path / "run", workers=i // 2, name=name, at=at)
        assert code == (-signal.SIGKILL if name == "SIGKILL" else 0), printed
        assert ("stopped by a signal" in printed) == (name == "SIGTERM"), printed
    code, printed = start(faces, cache, tmp_path / "run", workers=1)
    assert code == 0, printed
    assert "finished" in printed

    whole_step, whole = last_checkpoint(uninterrupted[0])
    step, stopped = last_checkpoint(tmp_path / "run")
    assert step == whole_step == 24
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)

    lines = lambda folder: [  # noqa: E731
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    for row in (mine := lines(tmp_path / "run")) + (whole := lines(uninterrupted[0])):
        for time in ("images_per_second", "input_wait"):
            row.pop(time, None)
    assert mine == whole


def flip_bits(checkpoint):
    arrays = max((checkpoint / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(arrays.read_bytes())
    for place in (1, 2, 3):  # one may be in unused bytes
        data[place * len(data) // 4] ^= 1
    arrays.write_bytes(data)


def cut_its_value_short(checkpoint):
    os.truncate(checkpoint / "metrics" / "metrics", 0)


@pytest.mark.parametrize("damage", [flip_bits, cut_its_value_short])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    faces, cache, uninterrupted, tmp_path, capsys, damage
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], workdir)
    folder = workdir / "checkpoints"
    before, newest = sorted(int(p.name) for p in folder.iterdir())[-2:]
    damage(folder / str(newest))

    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    train(config, workdir)
    said = capsys.readouterr()
    assert re.search(rf"checkpoints/{newest}\b.*: set aside", said.err)
    assert f"resuming {workdir} at step {before}" in said.out
    assert [p.name for p in (workdir / "damaged").iterdir()] == [f"{newest}-0"]
    jax.tree.map(
        np.testing.assert_array_equal,
        last_checkpoint(uninterrupted[0])[1],
        last_checkpoint(workdir)[1],
    )


def test_the_summary_and_what_is_opened_agree_on_the_best_where_the_best_was_damaged(
    faces, cache, uninterrupted, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], workdir)
    folder = workdir / "checkpoints"
    checkpoints = Checkpoints(folder)
    before, last = checkpoints.steps[-2:]
    value = checkpoints.value(last)
    say(folder / str(before), value=0.5)
    told = {"value": 0.5, "step": before, "stale": 1}
    say(folder / str(last), best=told)
    summary = json.loads((workdir / "summary.json").read_text()) | {"best": told}
    (workdir / "summary.json").write_text(json.dumps(summary))
    assert Run.open(workdir, devices=1).step == before
    flip_bits(folder / str(before))
    with pytest.raises(UserError, match=rf"checkpoints/{before} cannot be restored: its numbers"):
        Run.open(workdir, devices=1)

    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    summary = train(config, workdir)
    said = capsys.readouterr()
    assert re.search(rf"checkpoints/{before}\b.*: set aside", said.err)
    assert f"the best checkpoint is lost; from now on it is step {last} with" in said.out
    assert summary["best"] == {"value": value, "step": last, "stale": 0}
    assert json.loads((workdir / "summary.json").read_text())["best"] == summary["best"]
    assert train(config, workdir)["best"] == summary["best"]
    assert "is lost" not in capsys.readouterr().out
    assert Run.open(workdir, devices=1).step == last


def say(checkpoint, **changes):
    """Changes a checkpoint's facts, as if they had been saved so."""
    path = checkpoint / "meta" / "metadata"
    meta = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(meta | {"digest": files.digest(meta)}))
    if "value" in changes:
        (checkpoint / "metrics").mkdir(exist_ok=True)
        (checkpoint / "metrics" / "metrics").write_text(json.dumps({"value": changes["value"]}))


def test_two_runs_in_one_folder_refuse_and_the_second_removes_nothing(faces, cache, tmp_path):
    claim = run_folder.Claim(tmp_path / "run")
    saving = tmp_path / "run" / "checkpoints" / "5.orbax-checkpoint-tmp"
    saving.mkdir(parents=True)
    temporary = tmp_path / "run" / ".config.json.0a1b2c3d"
    temporary.touch()
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    with pytest.raises(UserError, match=rf"is being trained by process {os.getpid()} on "):
        train(config, tmp_path / "run")
    assert saving.exists()
    assert temporary.exists()
    claim.close()
    run_folder.Claim(tmp_path / "run").close()
