"""TensorBoard, wandb and MLflow: what they get, what a resumed run continues, what does no harm."""

import fcntl
import importlib.util
import io
import json
import logging
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image
from test_logging import fill_up, needs_full

import tiny
from agejax.errors import UserError
from agejax.logging import loggers
from agejax.logging.loggers import Loggers
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.sums import Sums
from agejax.logging.tensorboard import TensorBoard
from agejax.logging.train_log import TrainLog
from agejax.runs import run_folder
from agejax.settings import to_json
from agejax.train import train

ROOT = pathlib.Path(__file__).parents[1]
PIXELS = np.arange(4 * 6 * 3).reshape(4, 6, 3).astype(np.uint8)


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is in the extra `test`"
    )


def config_of(*names):
    config = tiny.get_config()
    config.loggers = names
    return config


# ---- TensorBoard --------------------------------------------------------------------------------


def events(logdir):
    """The events as TensorBoard itself reads them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is in the extra `test`",
    )
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return accumulator.EventAccumulator(str(logdir), size_guidance=sizes).Reload()


def hparams(read, name):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    content = read.SummaryMetadata(f"_hparams_/{name}").plugin_data.content
    return HParamsPluginData.FromString(content)


def test_tensorboard_reads_what_was_written(tmp_path):
    log = loggers.open_all(config_of("tensorboard"), tmp_path / "run", 0)
    log.scalars(1, {"train/loss": 0.5, "val/age/mae": 4.0})
    log.scalars(2, {"train/loss": 1.0})
    log.image(2, "train/augmented", PIXELS)
    log.close(finished=True)
    read = events(tmp_path / "run")
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]
    assert [(e.step, e.value) for e in read.Scalars("val/age/mae")] == [(1, 4.0)]
    image = read.Images("train/augmented")[0].encoded_image_string
    np.testing.assert_array_equal(Image.open(io.BytesIO(image)), PIXELS)
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("```json\n")
    assert text.endswith("\n```")
    config = to_json(config_of("tensorboard"))
    assert json.loads(text.removeprefix("```json").removesuffix("```")) == config
    settings = hparams(read, "session_start_info").session_start_info.hparams
    assert settings["schedule.lr"].number_value == 3e-3
    assert settings["heads.age.kind"].string_value == "regression"
    assert settings["data.split.official"].bool_value is False
    assert settings["augment.crop"].string_value == "[0.8, 1.0]"
    assert "data.source" not in settings  # not set
    assert hparams(read, "session_end_info").session_end_info.status == 1  # success


def test_a_run_that_is_not_finished_has_no_end_in_tensorboard(tmp_path):
    log = loggers.open_all(config_of("tensorboard"), tmp_path, 0)
    log.close(finished=False)
    tags = events(tmp_path).summary_metadata
    assert "_hparams_/session_start_info" in tags
    assert "_hparams_/session_end_info" not in tags


def test_tensorboard_forgets_what_a_resumed_run_repeats(tmp_path):
    for start, steps, value in ((0, range(1, 9), 1.0), (5, range(6, 11), 2.0)):
        log = TensorBoard(tmp_path, start)
        for step in steps:
            log.scalars(step, {"train/loss": value})
        log.close(finished=False)
    assert len(list(tmp_path.iterdir())) == 2  # also when started twice in one second
    read = [(e.step, e.value) for e in events(tmp_path).Scalars("train/loss")]
    assert read == [(s, 1.0) for s in range(1, 6)] + [(s, 2.0) for s in range(6, 11)]


@needs_full
def test_tensorboard_on_a_full_disk_says_so(tmp_path):
    log = TensorBoard(tmp_path, 0)
    fill_up(log._file._file._py_recordio_writer._writer.fileno())
    with pytest.raises(UserError, match=r"^disk full"):
        log.scalars(1, {"train/loss": 1.0})
    with pytest.raises(UserError, match=r"^disk full"):
        log.close(finished=False)


def test_nothing_else_is_imported_also_where_it_is_installed(tmp_path):
    """Mock packages that fail on import replace installed ones."""
    for name in ("tensorflow", "torch", "wandb", "mlflow"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    code = (
        "import pathlib, agejax.train\n"
        "from agejax.config import default\n"
        "from agejax.logging import loggers\n"
        "log = loggers.open_all(default(), pathlib.Path('run'), 0)\n"
        "log.scalars(1, {'a': 1.0}); log.close(finished=True)\n"
        "from agejax.logging import tensorboard\n"
        "from clu.metric_writers import SummaryWriter\n"
        "assert SummaryWriter is tensorboard.SummaryWriter\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


# ---- several loggers ----------------------------------------------------------------------------


class Recorder:
    """A logger that remembers what it gets, and fails on the scalars of step `bad`."""

    run_id = None

    def __init__(self, bad=None):
        self.got, self.bad = [], bad

    def config(self, config):
        self.got.append("config")

    def scalars(self, step, values):
        if step == self.bad:
            raise ConnectionError("the network\nis gone")
        self.got.append((step, dict(values)))

    def image(self, step, name, image):
        self.got.append((step, name))

    def close(self, *, finished):
        self.got.append(finished)


def test_a_logger_that_fails_is_left_out_with_one_warning(capsys):
    good, bad = Recorder(), Recorder(bad=2)
    log = Loggers({"mlflow": bad, "tensorboard": good})
    for step in (1, 2, 3):
        log.scalars(step, {"a": 1.0})
    log.close(finished=True)
    assert good.got == [(1, {"a": 1.0}), (2, {"a": 1.0}), (3, {"a": 1.0}), True]
    assert bad.got == [(1, {"a": 1.0}), False]  # closed, as not finished
    assert capsys.readouterr().err == (
        "warning: mlflow: the network is gone; the training goes on without this logger\n"
    )


@needs_full
def test_a_full_disk_for_tensorboard_alone_ends_no_training(tmp_path, capsys):
    tensorboard = TensorBoard(tmp_path, 0)
    fill_up(tensorboard._file._file._py_recordio_writer._writer.fileno())
    log = Loggers({"tensorboard": tensorboard})
    log.scalars(1, {"train/loss": 1.0})
    log.scalars(2, {"train/loss": 1.0})
    log.close(finished=True)
    assert capsys.readouterr().err.count("warning: tensorboard: disk full") == 1


def test_ctrl_c_in_a_logger_is_no_failure_of_it():
    class Interrupted(Recorder):
        def scalars(self, step, values):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Loggers({"wandb": Interrupted()}).scalars(1, {})


@pytest.mark.parametrize("finished", [True, False])
def test_loggers_get_the_numbers_of_training_and_val_by_prefix(tmp_path, finished):
    recorder = Recorder()
    log = TrainLog(
        tmp_path, start_step=0, total_steps=4, batch_size=8, steps_per_epoch=2.0,
        clock=Stopwatch(), loggers=Loggers({"recorder": recorder}),
    )  # fmt: skip
    with log:
        for step, loss in ((1, 2), (2, 4)):
            log.add(step, Sums.of({"loss": np.float32([loss, 1]), "gradient_norm": np.ones(2)}))
        log.flush()
        log.evaluation(2, {"age/mae": 4.5, "loss": 1.5}, "age/mae", best=True)
        log.finished = finished
    training, val, end = recorder.got
    assert training[0] == 2
    assert training[1].keys() == {
        "train/loss", "train/gradient_norm", "train/images_per_second", "train/input_wait"
    }  # fmt: skip
    assert training[1]["train/loss"] == 3
    assert val == (2, {"val/age/mae": 4.5, "val/loss": 1.5})
    assert end is finished
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row.keys() & {"loss", "val/loss"} for row in rows] == [{"loss"}, {"val/loss"}]


def test_a_training_that_fails_is_not_finished(tmp_path):
    recorder = Recorder()
    log = TrainLog(
        tmp_path, start_step=0, total_steps=4, batch_size=8, steps_per_epoch=2.0,
        clock=Stopwatch(), loggers=Loggers({"recorder": recorder}),
    )  # fmt: skip
    with pytest.raises(RuntimeError), log:
        raise RuntimeError
    assert recorder.got == [False]


def test_other_processes_log_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = loggers.open_all(config_of("tensorboard"), tmp_path / "run", 0)
    log.scalars(1, {"train/loss": 1.0})
    log.close(finished=True)
    assert not (tmp_path / "run").exists()


def test_a_logger_that_does_not_exist_is_refused():
    loggers.check(("tensorboard",))
    loggers.check(())
    with pytest.raises(UserError, match=r"config.loggers: there is no logger 'wanbd'; list any of "
                       r"tensorboard, wandb, mlflow, such as --config.loggers="):  # fmt: skip
        loggers.check(("tensorboard", "wanbd"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    loggers.check(("tensorboard",))
    with pytest.raises(UserError, match=rf"the package {name} is missing; pip install -e "
                       rf"'\.\[{name}\]', or leave {name} out"):  # fmt: skip
        loggers.check(("tensorboard", name))


# ---- wandb and MLflow, offline -------------------------------------------------------------------


def wandb_records(path):
    """The records of wandb's file of a finished offline run, as {kind: records}.

    wandb's own process may write the last of them after the run has been closed.
    """
    for _ in range(600):  # a minute at most
        if "exit" in (found := read_wandb(path)):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has only {found}")


def read_wandb(path):
    """The records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header crosses a block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = Record.FromString(whole), b""
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


def log_in_two_parts(config, workdir):
    """A run of 2 steps, stopped, and resumed from step 1 until it is finished at step 3."""
    workdir.mkdir()
    for start, steps, finished in ((0, (1, 2), False), (1, (2, 3), True)):
        log = loggers.open_all(config, workdir, start)
        for step in steps:
            log.scalars(step, {"train/loss": step / 2, "val/age/mae": 1.0 + step})
        log.image(steps[0], "train/augmented", PIXELS)
        log.close(finished=finished)
    return json.loads((workdir / "loggers.json").read_text())


@needs("wandb")
def test_wandb_offline_has_one_run_of_both_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    ids = log_in_two_parts(config_of("wandb"), tmp_path / "run")
    # Of two runs in one second the later one has "-1" at the end of its name.
    folders = sorted((tmp_path / "run/wandb").glob(f"offline-run-*-{ids['wandb']}*"))
    written = [folder / f"run-{ids['wandb']}.wandb" for folder in folders]
    assert len(written) == 2
    assert "warning" not in capsys.readouterr().err
    rows = []
    for path, code in zip(written, (1, 0), strict=True):
        records = wandb_records(path)
        (run,), (end,) = records["run"], records["exit"]
        assert (run.run_id, run.project, run.display_name) == (ids["wandb"], "agejax", "run")
        assert end.exit_code == code
        config = {item.key: json.loads(item.value_json) for item in records["config"][0].update}
        assert config["schedule"]["lr"] == 3e-3
        for history in records["history"]:
            items = {"/".join(item.nested_key) or item.key: item for item in history.item}
            rows.append({k: json.loads(items[k].value_json) for k in items})
    numbers = [(row["step"], row["train/loss"], row["val/age/mae"])
               for row in rows if "train/loss" in row]  # fmt: skip
    assert numbers == [(1, 0.5, 2.0), (2, 1.0, 3.0), (2, 1.0, 3.0), (3, 1.5, 4.0)]
    assert [row["step"] for row in rows if "train/augmented/path" in row] == [1, 2]
    images = list(written[0].parent.glob("files/media/images/train/*.png"))
    np.testing.assert_array_equal(Image.open(images[0]), PIXELS)


@needs("mlflow")
def test_mlflow_beside_the_run_has_one_run_of_both_parts(tmp_path, monkeypatch, capsys, request):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    levels = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    request.addfinalizer(
        lambda: [logging.getLogger(name).setLevel(level) for name, level in levels.items()]
    )
    ids = log_in_two_parts(config_of("mlflow"), tmp_path / "run")
    assert "warning" not in capsys.readouterr().err
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("agejax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == ids["mlflow"]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["schedule.lr"] == "0.003"
    assert run.data.params["heads.age.kind"] == '"regression"'
    for name, values in {"train/loss": [0.5, 1.0, 1.5], "val/age/mae": [2.0, 3.0, 4.0]}.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted({(each.step, each.value) for each in history}) == [*enumerate(values, 1)]
    folder = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
    assert json.loads((folder / "config.json").read_text()) == to_json(config_of("mlflow"))
    images = sorted((folder / "images").glob("train~augmented+step+*.png"))
    assert [each.name.split("+")[2] for each in images] == ["1", "2"]
    np.testing.assert_array_equal(Image.open(images[0]), PIXELS)

    (tmp_path / "run/loggers.json").write_text('{"mlflow": "gone"}')
    with pytest.raises(UserError, match=r"config.loggers: mlflow does not open: .*gone.*; see"):
        loggers.open_all(config_of("mlflow"), tmp_path / "run", 1)


@needs("mlflow")
def test_of_two_runs_that_begin_at_once_the_second_waits_for_the_first(tmp_path, monkeypatch):
    from agejax.logging import mlflow as ours

    found = iter([None, types.SimpleNamespace(experiment_id="7")])  # another run makes it meanwhile
    held = []

    class Client:
        def __init__(self, uri):
            held.append(uri)
            with (tmp_path / ".mlflow.lock").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

        def get_experiment_by_name(self, name):
            return next(found)

        def create_experiment(self, name, artifacts):
            raise ours.MlflowException("Experiment(name=agejax) already exists")

        def create_run(self, experiment_id, run_name):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{experiment_id}/1"))

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(ours.mlflow, "MlflowClient", Client)
    assert ours.MLflow(tmp_path / "run", None).run_id == "7/1"
    assert held == [f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with (tmp_path / ".mlflow.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_a_training_that_fails_before_its_first_step_lets_go_of_all_it_holds(
    trained, monkeypatch, tmp_path
):
    recorder, workdir = Recorder(), tmp_path / "run"
    shutil.copytree(trained, workdir)
    monkeypatch.setattr(loggers, "open_all", lambda *_: Loggers({"recorder": recorder}))

    class Broken:
        def __init__(self, *args):
            raise RuntimeError("no profile")

    monkeypatch.setattr(sys.modules["agejax.train"], "Profile", Broken)
    config = run_folder.stored_config(workdir)
    with pytest.raises(RuntimeError, match="no profile") as error:
        train(config, workdir)
    assert recorder.got == [False]
    assert error.tb is not None  # as a notebook keeps it, with all that its frames name
    run_folder.Claim(workdir).close()


def test_a_training_that_starts_anew_is_a_new_run_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        loggers, "_open", lambda name, workdir, step, run_id: asked.append(run_id) or Recorder()
    )
    (tmp_path / "loggers.json").write_text(json.dumps({"mlflow": "old"}))
    for start_step in (0, 5):
        loggers.open_all(config_of("mlflow"), tmp_path, start_step)
    assert asked == [None, "old"]
