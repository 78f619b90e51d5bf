"""How a command ends: exit codes, one line where users can fix it, a traceback for a bug."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

import tiny
from agejax import (
    baselines,
    command_line,
    ensemble,
    explain,
    export,
    files,
    predict,
    pseudo_label,
    release,
    sweep,
)
from agejax.config import from_json
from agejax.data import align, audit, opening, sources
from agejax.errors import UserError
from agejax.evaluate import main as evaluate_main
from agejax.evaluation import fitting
from agejax.evaluation.calibration import Calibration
from agejax.exporting import card
from agejax.logging import metrics_file
from agejax.process.command import run_command
from agejax.reporting import plots, results
from agejax.runs import ensembles
from agejax.runs.run import Run
from agejax.runs.run_folder import skipped_steps
from agejax.sweeps import space
from agejax.sweeps.space import read_space
from agejax.train import train

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "", "/x/run"), "/x/run: Permission denied; change its"),
        (OSError(errno.EROFS, "", "/x/run"), "/x/run: Read-only file system; use a path on"),
        (IsADirectoryError(errno.EISDIR, "", b"/x/run"), "/x/run: Is a directory; name a file"),
        (OSError(errno.ENAMETOOLONG, "", "x" * 5000), "xxx ... .*xxx: File name too long; use a"),
        (OSError(errno.ENOSPC, ""), "No space left on device; free some space"),
        (OSError(errno.EMFILE, "", "/x/a"), r"/x/a: Too many open files; raise .*\(ulimit -n\)"),
        (OSError(errno.EFBIG, ""), r"File too large; raise the limit on file sizes \(ulimit -f\)"),
        (MemoryError(), "out of memory: an allocation failed; use smaller batches"),
        (MemoryError("Unable to allocate 7 GiB"), "out of memory: Unable to allocate 7 GiB; use"),
        (RuntimeError("RESOURCE_EXHAUSTED: 7 GiB\nmore"), "out of memory: RESOURCE_.* 7 GiB; use"),
    ],
)
def test_an_error_of_the_machine_is_one_short_line_that_says_what_to_do(error, line, capsys):
    def fails():
        raise error

    assert run_command(fails) == 2
    said = capsys.readouterr().err
    assert re.match(f"agejax: error: .*{line}", said)
    assert said.count("\n") == 1
    assert len(said) < 800


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EINVAL, "", "/x/run"),
        BrokenPipeError(errno.EPIPE, "a worker's, not stdout's"),
        FileNotFoundError(errno.ENOENT, "", str(ROOT / "agejax" / "data" / "gone.txt")),
        RuntimeError("of a library"),
    ],
)
def test_an_error_that_no_user_can_mend_keeps_its_traceback(error):
    def fails():
        raise error

    with pytest.raises(type(error)):
        run_command(fails)


def test_ctrl_c_is_one_line_and_a_second_one_does_not_wait(capsys):
    def interrupted():
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)

    previous = signal.getsignal(signal.SIGINT)
    try:
        assert run_command(interrupted) == 130
    finally:
        signal.signal(signal.SIGINT, previous)
    assert capsys.readouterr().err == "agejax: interrupted\n"
    assert run_command(lambda: None) == 0
    assert signal.getsignal(signal.SIGINT) is previous


def start(code, **options):
    """Starts a Python process with few imports."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONUNBUFFERED": ""}, **options,
    )  # fmt: skip


PRINTS = """
import sys
from agejax.errors import UserError
from agejax.process.command import run_command
def main(n):
    for _ in range(n):
        print("a face")
    {then}
sys.exit(run_command(main, {n}))
"""


@pytest.mark.parametrize(
    ("n", "then", "code"),
    [
        (10**5, "pass", 141),  # print() fails
        (1, "pass", 141),  # only the flush at the end fails
        (1, "sys.exit(3)", 3),
        (1, "raise UserError('wrong')", 2),
    ],
)
def test_a_closed_pipe_ends_the_command_without_a_word(n, then, code):
    process = start(PRINTS.format(n=n, then=then))
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == code
    assert error == ("agejax: error: wrong\n" if "UserError" in then else "")


SLOW = """
import os, signal, sys, threading
from agejax.process.command import run_command
def main():
    {body}
sys.exit(run_command(main))
"""


@pytest.mark.parametrize(
    "body",
    [
        # A library that loses the first one.
        """
    for _ in range(2):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            pass
        """,
        # A thread that takes long to end.
        """
    threading.Thread(target=threading.Event().wait).start()
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    signal.raise_signal(signal.SIGINT)
        """,
    ],
)
def test_a_second_ctrl_c_ends_the_command_at_once(body):
    process = start(SLOW.format(body=body))
    assert process.communicate(timeout=60) == ("", "agejax: interrupted\n")
    assert process.returncode == 130


ENDS = """
from agejax.process import start
start.as_command()
import atexit, signal, sys
from agejax.process.command import run_command
as_it_was = signal.signal
def interrupted(*given):
    signal.signal = as_it_was
    signal.raise_signal(signal.SIGINT)
    return signal.signal(*given)
def main():
    {then}
sys.exit(run_command(main))
"""


@pytest.mark.parametrize(
    "then",
    ["signal.signal = interrupted", "atexit.register(signal.raise_signal, signal.SIGINT)"],
    ids=["as its handler is taken back", "as Python exits"],
)
def test_ctrl_c_when_a_command_has_done_its_work_is_one_line(then):
    process = start(ENDS.format(then=then))
    assert process.communicate(timeout=60) == ("", "agejax: interrupted\n")
    assert process.returncode == 130


LOST = """
import gc, signal, sys, time
from agejax.process.command import run_command
class Callback:
    def __call__(self, phase, info):
        if phase == "start":
            gc.callbacks.remove(self)
            signal.raise_signal(signal.SIGINT)  # as a Ctrl-C that comes right now
def main():
    gc.callbacks.append(Callback())
    gc.collect()
    time.sleep(60)
sys.exit(run_command(main))
"""


def test_a_ctrl_c_that_a_librarys_callback_loses_comes_again():
    process = start(LOST)
    assert process.communicate(timeout=30) == ("", "agejax: interrupted\n")
    assert process.returncode == 130


def test_a_full_disk_behind_stdout_is_one_line():
    result = subprocess.run(
        [sys.executable, "-c", PRINTS.format(n=1, then="pass")], cwd=ROOT, text=True, check=False,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=open("/dev/full", "w"), stderr=subprocess.PIPE,  # noqa: SIM115
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == (
        "agejax: error: No space left on device; free some space and start again\n"
    )


@pytest.mark.parametrize("first", ["argparse", "difflib"])
def test_ctrl_c_while_a_command_imports_its_modules_is_one_line(first):
    """The command imports the first one before NumPy and JAX, and agejax.errors the second."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "agejax.evaluate", "--help"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == first:
            process.send_signal(signal.SIGINT)
            break
    rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.wait() == 130
    assert rest == ["agejax: interrupted\n"]


def test_importing_the_package_leaves_another_programs_ctrl_c_alone():
    process = start("import agejax, signal; print(signal.getsignal(signal.SIGINT).__name__)")
    assert process.communicate()[0] == "default_int_handler\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n  x = = 1\n", "my.py, line 2: SyntaxError: invalid syntax"),
        ("\nimport no_such_module\n", "my.py, line 2: ModuleNotFoundError: No module named"),
        ("def get_config():\n\n  return 1 / 0\n", "my.py, line 3: ZeroDivisionError: division"),
        ("def get_config():\n  return int('x')\n", "my.py, line 2: ValueError: invalid literal"),
        ("def get_config():\n  return open('/no')\n", "my.py, line 2: FileNotFoundError: .*/no"),
        ("import sys\nsys.exit(0)\n", "my.py, line 2: SystemExit: 0"),
        ("import helper\n", r"my.py, line 1: SyntaxError: .*\(helper.py, line 1\)"),
        ("x = 1\n", r"my.py has no get_config\(\); let one return"),
        ("def get_config(x):\n  pass\n", r"my.py: .* missing .* 'x'; .*my.py:ARGUMENT"),
        ("def get_config():\n  pass\n", r"my.py: get_config\(\) returns NoneType; let it return"),
        ("def get_config():\n  return {}\n", r"my.py: get_config\(\) returns dict; let it return"),
        ("\0", "my.py"),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(text, message, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(text)
    (tmp_path / "helper.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # of the last file
    with pytest.raises(UserError, match=f"^--config=.*{message}"):
        command_line.parse(["main", f"--config={tmp_path / 'my.py'}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_space():\n  x = = 1\n", "my.txt, line 2: SyntaxError: invalid syntax"),
        ("def get_space():\n  return {'a': b}\n", "my.txt, line 2: NameError: name 'b' is not"),
    ],
)
def test_a_broken_space_file_is_named_with_its_line(text, message, tmp_path):
    (tmp_path / "my.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_space(str(tmp_path / "my.txt"))


# ---- what commands are given to read and to write ------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(trained, tmp_path_factory):
    """A copy of a run, evaluated; tests may damage its files and restore them."""
    workdir = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(trained, workdir)
    results.evaluate(workdir, write_report=False)
    return workdir


@contextlib.contextmanager
def content(path, data):
    """Replaces a file's bytes, or removes it for None, inside the context."""
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    yield
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_bytes(before)


def said_by(command, *arguments, capsys):
    """Runs a command that must end with exit code 2; returns its one line."""
    capsys.readouterr()
    assert run_command(command, ["command", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("agejax: error: ")]) == 1
    assert lines[-1].startswith("agejax: error: ")
    return lines[-1].removeprefix("agejax: error: ")


def places(folder):
    """Paths where no folder can be made: name -> (path, part of the message)."""
    (folder / "file").write_text("")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("nowhere")
    return {
        "file": "is not a folder",
        "file/below": "is not a folder",
        "pipe": "is not a folder",
        "link": "is a link to nowhere",
        "x" * 300: "File name too long",
    }


WRITERS = {
    "evaluate": (evaluate_main, "--output"),
    "export": (export.main, "--output"),
    "explain": (explain.main, "--output"),
    "baselines": (baselines.main, "--output"),
    "pseudo_label": (pseudo_label.main, "--output"),
    "ensemble": (ensemble.main, "--output"),
    "audit": (audit.main, "--output"),
    "align": (align.main, "--output"),
    "release": (release.main, "--output"),
    "sweep": (sweep.main, "--study"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_cannot_be_written_is_one_line_before_any_work(
    name, faces, tmp_path, capsys, monkeypatch
):
    command, flag = WRITERS[name]

    def work(*args, **kwargs):
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(Run, "open", work)
    monkeypatch.setattr(sources, "load", work)
    monkeypatch.setattr(space, "read_space", work)
    image = next(faces.iterdir())
    others = {
        "explain": ["--workdir=run", image],
        "ensemble": ["run"],
        "audit": [f"--source={faces}"],
        "align": [f"--source={faces}", "--like=run"],
        "pseudo_label": ["--workdir=run", f"--source={faces}"],
        "sweep": ["--space=space.py", f"--config={ROOT}/tests/tiny.py"],
    }.get(name, ["--workdir=run"])
    if name == "baselines":  # its run opens first: the default folder is in it
        run = types.SimpleNamespace(workdir=tmp_path)
        monkeypatch.setattr(Run, "open", lambda workdir: run)
        monkeypatch.setattr(opening, "open_source", work)
    for place, message in places(tmp_path).items():
        if name == "align" and place in ("file", "pipe"):
            message = "it exists already"
        given = f"{flag}={tmp_path / place}"
        assert message in said_by(command, given, *others, capsys=capsys)
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "pipe"]


def test_a_workdir_that_cannot_be_written_is_one_line_before_the_data(
    faces, cache, tmp_path, monkeypatch
):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    monkeypatch.setattr(opening, "open_source", None)
    for place, message in places(tmp_path).items():
        with pytest.raises(UserError, match=f"^--workdir: .*{message}"):
            train(config, tmp_path / place)


@pytest.mark.parametrize("command", [evaluate_main, predict.main, explain.main, export.main])
def test_a_workdir_that_holds_no_run_is_one_line(command, faces, tmp_path, capsys):
    others = {
        predict.main: [next(faces.iterdir())],
        explain.main: [next(faces.iterdir())],
        export.main: [f"--output={tmp_path / 'out'}"],
    }.get(command, [])
    for place, message in places(tmp_path).items():
        if "long" not in message:
            message = "holds no run"
        line = said_by(command, f"--workdir={tmp_path / place}", *others, capsys=capsys)
        assert message in line


def test_predict_makes_the_folder_of_its_output_and_names_what_cannot_be_written(
    run_folder, faces, tmp_path, capsys
):
    image = next(faces.iterdir())
    output = tmp_path / "new" / "folder" / "ages.csv"
    arguments = [f"--workdir={run_folder}", "--format=csv", f"--output={output}"]
    assert run_command(predict.main, ["predict", *arguments, str(image)]) == 0
    written = output.read_text()
    assert len(written.splitlines()) == 2
    # A later failure leaves the former file, and nothing else.
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    said_by(predict.main, *arguments, tmp_path / "bad.jpg", capsys=capsys)
    assert output.read_text() == written
    assert os.listdir(output.parent) == ["ages.csv"]
    for path, message in {
        tmp_path: "is a folder; name a file",
        image / "x": "is not a folder",
    }.items():
        line = said_by(predict.main, "--workdir=run", f"--output={path}", image, capsys=capsys)
        assert message in line
    to_device = [f"--workdir={run_folder}", "--output=/dev/null", str(image)]
    assert run_command(predict.main, ["predict", *to_device]) == 0


@pytest.fixture
def read_only(run_folder, tmp_path):
    """The run on a file system that is mounted read-only."""
    place = tmp_path / "read-only"
    place.mkdir()
    bind = ["mount", "--bind", str(run_folder), str(place)]
    if not shutil.which("mount") or subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("a folder can be mounted read-only by root alone")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_run_can_be_read(read_only, faces, tmp_path, capsys):
    (read_only.parent / "note").write_text("elsewhere can be written")
    image = str(next(faces.iterdir()))
    commands = {
        evaluate_main: [],
        predict.main: [image],
        explain.main: ["--method=grad_cam", image],
        export.main: [],
    }
    for i, (command, others) in enumerate(commands.items()):
        arguments = [f"--workdir={read_only}", f"--output={tmp_path / f'output-{i}'}", *others]
        assert run_command(command, ["command", *arguments]) == 0, command
    said = capsys.readouterr().err
    assert said.count("Read-only") == said.count("the calibration is used here but not kept") == 1
    line = said_by(evaluate_main, f"--workdir={read_only}", capsys=capsys)
    assert "/evaluation cannot be written: Read-only file system; use a path" in line
    line = said_by(explain.main, f"--workdir={read_only}", image, capsys=capsys)
    assert line.startswith("--output: ")


def test_evaluate_goes_on_where_the_calibration_cannot_be_kept(
    run_folder, tmp_path, capsys, monkeypatch
):
    write = files.write_json

    def fails(path, value):
        if path.name == "calibration.json":
            with files.disk(path):
                raise OSError(errno.EROFS, "")
        write(path, value)

    monkeypatch.setattr(files, "write_json", fails)
    with content(run_folder / "calibration.json", None):
        run = Run.open(run_folder)
        assert fitting.calibrate(run) is not None
    assert re.search(
        "^the calibration is used here but not kept: cannot write .*/calibration.json: Read-only",
        capsys.readouterr().err, re.MULTILINE,
    )  # fmt: skip


CONFIG = json.loads(tiny.get_config().to_json_best_effort())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\0", "is not JSON"),
        (7, "holds a number instead of an object"),
        ([CONFIG], "holds a list instead of an object"),
        (CONFIG | {"model": [1]}, "config.model: .*set it to a dict"),
        (CONFIG | {"seed": "x"}, "config.seed: 'x'; set it to a whole number"),
        (CONFIG | {"a.b": 1}, "a.b"),
        (CONFIG | {"eval": CONFIG["eval"] | {"batch_size": float("nan")}}, "batch_size: nan"),
        (CONFIG | {"telepathy": 1}, "unknown key 'telepathy'; .* of another version of agejax"),
    ],
)
def test_a_config_json_that_is_none_is_one_line(data, message, run_folder, capsys):
    with content(run_folder / "config.json", data):
        line = said_by(evaluate_main, f"--workdir={run_folder}", capsys=capsys)
    assert re.search(f"/config.json:? .*{message}", line)
    assert line.endswith("remove it: the checkpoint has the config")


def test_a_config_json_from_before_a_setting_came_to_be_is_read_as_it_is():
    stored = json.loads(json.dumps(CONFIG))
    del stored["eval"]["final_split"], stored["profile"], stored["data"]["edits"]
    stored["model"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = from_json(stored)
    assert "final_split" not in config.eval
    assert "profile" not in config
    assert config.to_json_best_effort() == json.dumps(stored)


@pytest.mark.parametrize("data", [b"", b"[", {}, 5, ["a"], [1.5], [0], [True], [[1]]])
def test_skipped_steps_that_are_none_are_one_line(data, tmp_path):
    message = r"skipped_steps\.json .*; remove it to try these steps again"
    with (
        content(tmp_path / "skipped_steps.json", data),
        pytest.raises(UserError, match=message),
    ):
        skipped_steps(tmp_path)
    with content(tmp_path / "skipped_steps.json", [3, 5]):
        assert skipped_steps(tmp_path) == {3, 5}


def test_a_calibration_that_is_damaged_counts_as_none(run_folder):
    path = run_folder / "calibration.json"
    step = Run.open(run_folder).step
    fitting.calibrate(Run.open(run_folder))
    right = json.loads(path.read_text())
    assert Calibration.read(run_folder, step) is not None
    widths = {"age": {"everybody": {"n": 9, "q": float("nan"), "own": True}, "groups": {}}}
    damaged = (
        b"", b"\xff", [], 5, None, {}, {"step": step}, right | {"n": "many"},
        right | {"temperatures": [1]}, right | {"temperatures": {"gender": float("nan")}},
        right | {"temperatures": {"gender": -1.0}}, right | {"widths": []},
        right | {"widths": widths}, right | {"alpha": 2}, right | {"telepathy": 1},
        right | {"geometry": {"landmarks": 5}}, b"[" * 100_000,
    )  # fmt: skip
    for data in damaged:
        with content(path, b"null" if data is None else data):
            assert Calibration.read(run_folder, step) is None, data
    assert Calibration.read(run_folder, step) is not None


@pytest.mark.parametrize("data", [b"", b"\xff", [], 5, {"examples": 5}, {"examples": {"a": "b"}}])
def test_a_model_card_goes_without_a_summary_or_evaluation_that_is_damaged(
    data, run_folder, capsys
):
    run = Run.open(run_folder)
    with content(run_folder / "summary.json", data):
        assert "Images in each split" not in card.training(run)
    assert "Images in each split" in card.training(run)
    metrics = next(run_folder.glob("evaluation/*/metrics.json"))
    with content(metrics, data):
        assert not card.scores(run)
    assert re.search("left out of the model card: .*metrics.json.*; evaluate again\n$",
                     capsys.readouterr().err)  # fmt: skip
    assert "gender accuracy" in card.scores(run)


ENSEMBLE = {
    "members": ["RUN"], "combine": "predictions", "weights": {"age": [1]}, "views": ["plain"]
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        ([ENSEMBLE], "holds a list instead of an object"),
        ({}, "its members are missing or damaged"),
        (ENSEMBLE | {"members": [5]}, "its members are missing or damaged"),
        (ENSEMBLE | {"combine": "sum"}, "its combine are missing or damaged"),
        (ENSEMBLE | {"views": []}, "its views are missing or damaged"),
        (ENSEMBLE | {"views": "plain"}, "its views are missing or damaged"),
        (ENSEMBLE | {"weights": {"age": [1, 1]}}, "its weights are missing or damaged"),
        (ENSEMBLE | {"weights": {"age": [float("nan")]}}, "its weights are missing or damaged"),
        (ENSEMBLE | {"weights": {"age": [0]}}, "its weights are missing or damaged"),
        (ENSEMBLE | {"weights": {"age": [-1]}}, "its weights are missing or damaged"),
        (ENSEMBLE | {"weights": [1]}, "its weights are missing or damaged"),
        (ENSEMBLE | {"telepathy": 1}, "unknown key 'telepathy'"),
    ],
)
def test_an_ensemble_json_that_is_none_is_one_line(data, message, tmp_path):
    with (
        content(tmp_path / "ensemble.json", data),
        pytest.raises(UserError, match=rf"ensemble\.json:? {message}"),
    ):
        ensembles.open_run(tmp_path)


def test_the_curves_of_a_damaged_metrics_file_show_what_is_left(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"step": 1, "loss": 2.0}', "5", "[1]", "null", '"x"', "{}", '{"step": "2", "loss": 1}',
        '{"step": 3, "loss": "low"}', '{"step": 4, "loss": [1]}', '{"step": NaN, "loss": 1}',
        "[" * 100_000, "\udcff", '{"step": 6, "loss": 1.0}', '{"step": 7, "lo',
    ]  # fmt: skip
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    charts = plots.training_curves(path)
    assert {name: chart.alt for name, chart in charts.items()} == {
        "loss": "Line chart over 6 steps: loss from 2 to 1."
    }
    history = metrics_file.MetricsFile(path, resume_step=5)
    history.append({"step": 6, "loss": 0.5})
    history.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()][-1] == 6
    path.write_bytes(b"")
    assert plots.training_curves(path) == {}
