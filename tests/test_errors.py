"""Users' mistakes: one line, exit code 2, no traceback, and no damage to written files."""

import errno
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import pytest
from absl import logging as absl_logging

import tiny
from agejax import command_line, heads, predict
from agejax.errors import UserError
from agejax.files import full_disk
from agejax.process.command import run_command
from agejax.reporting import results
from agejax.runs import run_folder
from agejax.train import train

ROOT = pathlib.Path(__file__).parents[1]


def config_with(faces, cache, **changes):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def trained(faces, cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(config_with(faces, cache, total={"steps": 2}), workdir)
    return workdir


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nowhere.py"], r"nowhere\.py"),
        ([], "--config is missing"),
        (["--config="], "--config is missing"),
        (["--config=tests/tiny.py", "--config.model.nam=x"], "nam"),
        (["--config=tests/tiny.py", "--config.total=soon"], "soon|total"),
        (["--config=tests/tiny.py", "extra"], "extra"),
        (["--config=tests/tiny.py", "--config.data.source=/no/such.tar.gz"], r"/no/such\.tar\.gz"),
        (["--config=tests/tiny.py", "--config.sharding.devices=99"], "99 devices requested"),
    ],
)
def test_the_command_line_fails_with_one_line_and_code_2(arguments, message, tmp_path):
    result = subprocess.run(
        [
            sys.executable, "-X", "importtime", "-m", "agejax.main",
            f"--workdir={tmp_path / 'run'}", *arguments,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    imported = {line.split()[-1] for line in lines if line.startswith("import time:")}
    assert "agejax.command_line" in imported
    # A training does not wait for what only its report needs, and that is as much again.
    assert not imported & {"agejax.reporting", "matplotlib", "pandas", "sklearn"}
    last = next(line for line in reversed(lines) if not line.startswith("import time:"))
    assert last.startswith("agejax: error: ")
    assert re.search(message, last)
    assert not (tmp_path / "run").exists()


def test_a_user_error_is_exit_code_2_and_a_bug_keeps_its_traceback(capsys):
    def fails(error):
        raise error

    assert run_command(fails, UserError("x: wrong; do y")) == 2
    assert capsys.readouterr().err == "agejax: error: x: wrong; do y\n"
    with pytest.raises(ZeroDivisionError):
        run_command(fails, ZeroDivisionError())
    assert run_command(lambda: None) == 0


def in_a_thread(error):
    def fail():
        raise error

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def in_a_finalizer(error):
    class Fails:
        def __del__(self):
            raise error

    Fails()


def in_a_log(error):
    try:
        raise error
    except Exception:
        logging.getLogger("absl").exception("a thread of orbax's")


@pytest.mark.parametrize("fails", [in_a_thread, in_a_finalizer, in_a_log])
def test_a_full_disk_is_said_once_by_the_main_thread(fails, capsys, caplog, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # put back afterwards
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    assert run_command(fails, OSError(errno.ENOSPC, "No space left on device")) == 0
    assert capsys.readouterr().err + caplog.text == ""
    assert run_command(fails, ZeroDivisionError("of a bug")) == 0
    assert "ZeroDivisionError: of a bug" in capsys.readouterr().err + caplog.text


def test_the_warning_of_a_checkpoint_without_an_evaluation_is_not_printed(caplog):
    def saves():
        absl_logging.warning("Requested `tracked_metric`; did not provide metrics.")
        absl_logging.warning("another one")

    with caplog.at_level(logging.WARNING, logger="absl"):
        assert run_command(saves) == 0
    assert [record.getMessage() for record in caplog.records] == ["another one"]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "disk full: cannot write x; free some space and start again or y"),
        (
            errno.EDQUOT,
            "disk full: cannot write x (Disk quota exceeded); free some space and start again or y",
        ),
        (
            errno.EFBIG,
            "the limit on file sizes is reached: cannot write x; raise the limit on file sizes "
            "(ulimit -f) and start again or y",
        ),
    ],
)
def test_a_disk_that_takes_no_more_is_told_with_its_own_remedy(number, line):
    with pytest.raises(UserError) as error, full_disk("cannot write x", " or y"):
        raise ValueError(f"of a library: {os.strerror(number)}")
    assert str(error.value) == line


def test_a_message_is_one_line_that_no_terminal_obeys_whatever_it_quotes(capsys):
    def fails():
        raise UserError("a\nb\r\x1b[2J\u202e\udcff é.jpg: wrong")

    assert run_command(fails) == 2
    expected = r"a\nb\r\x1b[2J\u202e\udcff é.jpg: wrong"
    assert capsys.readouterr().err == f"agejax: error: {expected}\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "utkfaces"}, "utkface"),
        ({"data__batch_size": 0}, "config.data.batch_size"),
        ({"data__batch_size": 9, "sharding__devices": 2}, "not a multiple of 2 devices"),
        ({"optim__accumulate": 3}, "16 is not a multiple of 1 devices x 3 micro-batches"),
        ({"optim__accumulate": 0}, "config.optim.accumulate"),
        ({"sharding__fsdp": 3, "sharding__devices": 4}, "config.sharding.fsdp"),
        ({"data__split__fractions": {"train": 0.9, "val": 0.9}}, "fraction"),
        ({"data__split__fractions": {"val": 0.9, "test": 0.1}}, "train"),
        ({"sampling__kind": "densty"}, "config.sampling.kind"),
        ({"model__name": "mobilenet_v3_smal"}, "mobilenet_v3_small"),
        ({"model__dtype": "float16"}, "config.model.dtype"),
        ({"heads__iq": {"kind": "regression"}}, "no 'iq' label"),
        ({"eval__best": "age/mea"}, "age/mea"),
        ({"eval__best_mode": "least"}, "config.eval.best_mode"),
        ({"model__pretrained": "/no/weights.safetensors"}, "/no/weights.safetensors"),
        ({"schedule__lr": float("nan")}, "config.schedule.lr: nan; set it to a number"),
        ({"model__dropout": 1.5}, "config.model.dropout: 1.5; set it to a number in 0..0.99"),
        ({"model__mean": (0.5,)}, "set it to 3 numbers"),
        ({"model__std": (0.5, 0.5, 0.0)}, "set it to 3 numbers above 0"),
        ({"seed": -1}, "config.seed"),
        ({"total": {"steps": 0}}, "config.total: steps must be above 0"),
        ({"total": {"steps": "soon"}}, "config.total: steps must be a number, got 'soon'"),
        ({"total": {"epochs": 1e30}}, "more than 2,147,483,647 steps"),
        ({"log_every": {"steps": 0}}, "config.log_every"),
        ({"data__split__folds": 2**40}, "config.data.split.folds"),
        ({"data__split__fractions": {"train": "half"}}, "'half'; set it to a share"),
        ({"data__edits__drop": {"gender": 1}}, "set it to the name of a class"),
        ({"optim__lr_multipliers": ((".*", "slow"),)}, "'slow' of '.*' is not a number"),
        ({"optim__lr_multipliers": (("(", 1.0),)}, "not a list of"),
        ({"optim": {"b1": 0.9}}, "config.optim.name is missing"),
    ],
)
def test_a_wrong_setting_is_named(changes, message, faces, cache, tmp_path):
    with pytest.raises(UserError, match=message):
        train(config_with(faces, cache, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (5, "config.heads.age: 5; set it to"),
        ({"kind": "regression", "range": 5}, r"age\.range: 5; set it to \(low, high\)"),
        (
            {"kind": "regression", "range": (0.0,)},
            r"range: \(0\.0,\); set it to \(low, high\)",
        ),
        ({"kind": "distribution", "sigma": "wide"}, r"age\.sigma: 'wide'; set it to a number"),
        (
            {"kind": "buckets", "edges": ("a",)},
            r"edges: .* set it to a list of rising numbers",
        ),
        ({"kind": "regression", "weight": float("inf")}, r"age\.weight: inf; set it to a number"),
        ({"kind": "regression", "neck": "wide"}, r"age\.neck: 'wide'; set it to a dict"),
    ],
)
def test_a_wrong_head_is_named(head, message):
    facts = heads.Facts(["age"], {"age": 30.0}, {"age": 9.0}, {"age": 30.0}, {}, {"age": [1] * 90})
    with pytest.raises(UserError, match=message):
        heads.create({"age": head}, facts)


def test_a_workdir_of_another_config_is_refused_and_left_alone(trained, faces, cache):
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    config = config_with(faces, cache, total={"steps": 2}, schedule__lr=1.0)
    with pytest.raises(UserError, match=r"another config: schedule\.lr \(0\.003 -> 1\.0\)"):
        train(config, trained)
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_a_run_from_before_a_setting_came_to_be_goes_on_with_its_default(trained):
    config = run_folder.read_config(trained)
    older = config.copy_and_resolve_references()
    with older.unlocked():
        del older.schedule["lr_batch_size"]
    run_folder.check_same_config(trained, older, config)
    with config.unlocked():
        config.schedule.lr_batch_size = 8
    with pytest.raises(UserError, match=r"schedule\.lr_batch_size \(0 -> 8\)"):
        run_folder.check_same_config(trained, older, config)


def test_a_workdir_trained_on_other_data_is_refused(trained, faces, cache, tmp_path):
    other = tmp_path / "UTKFace"
    shutil.copytree(faces, other)
    next(other.iterdir()).unlink()
    with pytest.raises(UserError, match="trained on other data"):
        train(config_with(other, cache, total={"steps": 2}), trained)


def test_a_head_whose_label_the_data_lacks_is_named(cache, faces, tmp_path):
    config = config_with(faces, cache)
    config.heads.apparent = {"kind": "regression", "label": "apparent_age"}
    with pytest.raises(UserError, match="the training data has no 'apparent_age' label"):
        train(config, tmp_path / "run")


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(
    trained, faces, cache, tmp_path, monkeypatch
):
    from agejax.training.checkpoint import Checkpoints

    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    saved = Checkpoints(workdir / "checkpoints").last

    import orbax.checkpoint as ocp

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    config = config_with(faces, cache, total={"steps": 2})
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    fresh = tmp_path / "fresh"
    with pytest.raises(UserError, match="disk full"):
        train(config, fresh)
    assert Checkpoints(workdir / "checkpoints").last == saved


def test_a_checkpoint_that_has_no_room_is_not_begun(faces, cache, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    monkeypatch.setattr(ocp.CheckpointManager, "save", None)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"disk full: cannot save a checkpoint in .*/checkpoints"):
        train(config_with(faces, cache, total={"steps": 2}), tmp_path / "run")


def test_evaluate_and_predict_name_what_is_wrong(trained, faces, tmp_path, capsys):
    with pytest.raises(UserError, match="holds no run"):
        results.evaluate(tmp_path / "none")
    with pytest.raises(UserError, match="--split=tset"):
        results.evaluate(trained, split="tset")
    for arguments, message in (
        ([str(tmp_path / "none.jpg")], "no such file"),
        ([str(tmp_path)], "no image"),
    ):
        code = run_command(predict.main, ["predict", f"--workdir={trained}", *arguments])
        assert code == 2
        assert message in capsys.readouterr().err
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8not a jpeg")
    good = next(faces.iterdir())
    run_ok = run_command(predict.main, ["predict", f"--workdir={trained}", str(broken), str(good)])
    out, err = capsys.readouterr()
    assert run_ok == 0
    assert "skipped" in err
    assert "broken.jpg" in err
    assert len(out.splitlines()) == 1
    assert run_command(predict.main, ["predict", f"--workdir={trained}", str(broken)]) == 2


def test_parse_leaves_absl_usable():
    assert command_line.CONFIG.name == "config"
