"""The output of a training run: progress, metrics.jsonl and JSON files."""

from __future__ import annotations

import ast
import contextlib
import errno
import functools
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agejax import files
from agejax.errors import NotFiniteError, UserError
from agejax.logging import console, metrics_file, progress
from agejax.logging import watchdog as watchdog_lib
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.sums import Sums
from agejax.logging.train_log import TrainLog, ratios
from agejax.logging.watchdog import Watchdog
from agejax.runs.run_folder import Claim
from agejax.training.first_call import FirstCall

ROOT = pathlib.Path(__file__).parents[1]
FULL = pathlib.Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")


def fill_up(descriptor: int) -> None:
    """Makes every further write to an open file fail as on a full disk."""
    with FULL.open("w") as full:
        os.dup2(full.fileno(), descriptor)


# ---- progress -----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


VALUES = {
    "loss": 1.234, "age/mae": 6.1, "age/loss": 0.5, "learning_rate": 0.0012,
    "images_per_second": 1412.3,
}  # fmt: skip


EVALUATED = {
    "age/mae": 5.5, "age/rmse": 7.25, "age/cs5": 0.62, "age/macro_mae": 8.0, "gender/accuracy": 0.9,
    "gender/balanced_accuracy": 0.8, "loss": 1.25,
}  # fmt: skip


def test_progress_in_a_file_is_one_plain_line_a_log(capsys):
    bar = progress.Progress(15_000, 15)
    bar.log(100, VALUES)  # nobody knows yet how long a step takes
    bar.at(3200, pace=0.1)
    bar.log(3200, VALUES)
    bar.evaluation(3200, EVALUATED, "age/mae", best=True)
    bar.evaluation(3200, EVALUATED, "age/macro_mae", best=False)
    bar.close()
    place = "epoch   3.2/15  step  3,200/15,000  "
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "epoch   0.1/15  step    100/15,000  loss 1.2340  age/mae 6.100  1,412 images/s  "
        "lr 1.20e-03",
        f"{place}loss 1.2340  age/mae 6.100  1,412 images/s  lr 1.20e-03  left 19m40s",
        f"{place}val  loss 1.2500  age/mae 5.500  age/cs5 0.620  gender/accuracy 0.900  "
        "best so far",
        f"{place}val  loss 1.2500  age/mae 5.500  age/cs5 0.620  age/macro_mae 8.000  "
        "gender/accuracy 0.900",
    ]
    assert out.endswith("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out)


class Terminal:
    """Takes the place of stdout and stderr; what was written on it is text."""

    def __init__(self, monkeypatch):
        self._reader, writer = os.openpty()
        self._out = os.fdopen(writer, "w")
        monkeypatch.setattr(sys, "stdout", self._out)
        monkeypatch.setattr(sys, "stderr", self._out)
        monkeypatch.setenv("COLUMNS", "90")

    def read(self):
        print("end", file=self._out, flush=True)
        text = ""
        while not text.endswith("end\r\n"):  # a terminal returns its output so far
            text += os.read(self._reader, 10_000).decode()
        self._out.close()
        os.close(self._reader)
        return text.removesuffix("end\r\n")


ERASE = "\r\x1b[K"


def test_progress_on_a_terminal_draws_one_line_again_and_lines_that_stay_above_it(monkeypatch):
    terminal, clock = Terminal(monkeypatch), Clock()
    bar = progress.Progress(1000, 10, clock=clock)
    bar.at(250, pace=0.5)
    bar.log(250, VALUES)
    assert not bar.due()
    clock.now = 0.3
    assert bar.due()
    bar.at(500, pace=0.5)
    console.note("a line beside it")
    bar.evaluation(500, {"age/mae": 5.5}, "age/mae", best=False)
    bar.at(750, pace=0.5)
    bar.close()
    bar.close()
    first, second, third, later, end = terminal.read().split(ERASE)
    assert first == "[#####...............]  25%  epoch   2.5/10  step   250/1,000  left 6m15s"
    assert second.startswith(f"{first}  loss 1.2340  ")
    assert len(second) == 89  # a line that wraps could not be drawn again
    assert third.startswith(
        "[##########..........]  50%  epoch   5.0/10  step   500/1,000  left 4m10s  "
    )
    beside, val, fourth = later.split("\r\n")
    assert (beside, val) == (
        "a line beside it", "epoch   5.0/10  step   500/1,000  val  age/mae 5.500"
    )  # fmt: skip
    assert fourth.startswith("[###############.....]  75%")
    assert end == ""


def test_a_count_in_a_file_is_a_plain_line_every_ten_seconds(capsys):
    clock = Clock()
    with progress.Count("decoded", 2_000, clock=clock) as count:
        for clock.now in (4.0, 9.0, 10.0, 19.0, 25.0):
            count.add(100)
        count.leave_out(1_000)
    assert capsys.readouterr().err.splitlines() == [
        "decoded 300 of 2,000, 30 images/s, left 57s",
        "decoded 500 of 2,000, 20 images/s, left 1m15s",
    ]


def test_a_count_on_a_terminal_is_a_bar_that_goes_when_it_ends(monkeypatch):
    terminal, clock = Terminal(monkeypatch), Clock()
    with progress.Count("decoded", 200, "files", clock=clock) as count:
        for clock.now in (1.0, 1.1, 2.0):
            count.add(50)
    with progress.Count("aligned", None, "files", clock=clock) as count:
        clock.now = 4.0
        count.add(50)
    assert terminal.read().split(ERASE) == [
        "[#####...............]  25%  decoded 50 of 200, 50 files/s, left 3s",
        "[###############.....]  75%  decoded 150 of 200, 75 files/s, left 1s",
        "aligned 50, 25 files/s",
        "",
    ]


@pytest.mark.parametrize("how", ["quiet", "a handler of the program's own"])
def test_nothing_is_drawn_where_the_logger_does_not_print(how, monkeypatch, request):
    terminal = Terminal(monkeypatch)
    if how == "quiet":
        request.addfinalizer(functools.partial(console.logger.setLevel, console.logger.level))
        console.logger.setLevel("WARNING")
    else:
        monkeypatch.setattr(console.logger, "handlers", [logging.NullHandler()])
    bar = progress.Progress(1000, 10)
    bar.at(250, pace=0.5)
    bar.log(250, VALUES)
    bar.evaluation(250, EVALUATED, "age/mae", best=True)
    with progress.Count("decoded", 200) as count:
        count.add(200)
    bar.close()
    assert terminal.read() == ""


class Phases:
    """A stopwatch whose seconds the test sets."""

    def __init__(self, **seconds):
        self.seconds = seconds


def test_the_time_left_leaves_compiling_out_and_takes_evaluations_in(tmp_path, capsys):
    """Steps 11 and 12 take 10 s, 13 and 14 with an evaluation 30 s; 60 s were spent compiling."""
    clock = Phases(data=500.0, compile=1.0)  # before the loop
    log = TrainLog(
        tmp_path, start_step=10, total_steps=100, batch_size=8, steps_per_epoch=7.03, epochs=14,
        clock=clock,
    )  # fmt: skip
    sums = Sums.of({"loss": jnp.ones(2), "gradient_norm": jnp.ones(2)})
    for seconds, steps in (
        ({"step": 9.0, "input": 1.0, "compile": 61.0}, (11, 12)),
        ({"step": 19.0, "input": 1.0, "compile": 61.0, "eval": 20.0}, (13, 14)),
    ):
        for step in steps:
            log.add(step, sums)
        clock.seconds = {"data": 500.0, **seconds}
        log.report()
    log.flush()
    lines = capsys.readouterr().out.splitlines()
    # 5 s a step for 88 steps, then 10 s for 86.
    assert [line.rpartition("  ")[2] for line in lines] == ["left 7m20s", "left 14m20s"]
    log.evaluation(100, {"age/mae": 5.5}, "age/mae", best=True)
    # 14 epochs were asked for; 100 steps are 14.2.
    assert capsys.readouterr().out.startswith("epoch  14.0/14  step 100/100  val ")


def test_a_first_call_is_announced_and_counts_as_compiling(capsys):
    phases = []

    @contextlib.contextmanager
    def clock(phase):
        phases.append(f"{phase} begins")
        yield
        phases.append(f"{phase} ends")

    step = FirstCall(jax.jit(lambda x: x + len(phases)), "the train step", clock)
    assert step(1) == 2  # traced while it counts as compiling
    assert step(2) == 3
    assert phases == ["compile begins", "compile ends"]
    assert capsys.readouterr().err == "compiling the train step\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (187, "3m07s"), (3599.9, "1h00m"), (90_061, "25h01m")],
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


# ---- files --------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@given(cut=st.integers(0, 400), resume=st.integers(0, 12))
def test_a_killed_and_resumed_run_has_each_step_once(tmp_path_factory, cut, resume):
    """The file is cut anywhere, as by a kill; the run resumes from a checkpoint before the cut."""
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    file = metrics_file.MetricsFile(path)
    for step in range(1, 13):
        file.append({"step": step, "loss": step / 3})
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    survived = whole[:cut].count(b"\n")
    resume = min(resume, survived)
    file = metrics_file.MetricsFile(path, resume_step=resume)
    assert [entry["step"] for entry in read(path)] == list(range(1, resume + 1))
    for step in range(resume + 1, 13):
        file.append({"step": step, "loss": step / 3})
    file.close()
    assert path.read_bytes() == whole


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 5}\nnot json\n\xff\xfe\n{"st')
    metrics_file.MetricsFile(path).close()
    assert path.read_bytes() == b""


def test_a_line_without_its_end_is_cut_also_where_it_reads_well(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    file = metrics_file.MetricsFile(path, resume_step=2)
    file.append({"step": 3})
    file.close()
    assert [entry["step"] for entry in read(path)] == [1, 3]


def test_an_entry_outlives_a_kill(tmp_path):
    code = (
        "import os, pathlib; from agejax.logging import metrics_file\n"
        "f = metrics_file.MetricsFile(pathlib.Path('metrics.jsonl'))\n"
        "f.append({'step': 1, 'loss': float('nan')}); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -9
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}]


@needs_full
def test_metrics_file_on_a_full_disk(tmp_path):
    file = metrics_file.MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1})
    fill_up(file._file.fileno())
    with pytest.raises(UserError, match=r"^disk full: cannot write .*metrics\.jsonl"):
        file.append({"step": 2})
    file.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_json_takes_what_a_run_has(tmp_path):
    path = tmp_path / "x.json"
    value = {
        "f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "nan": np.nan,
        "array": np.array([[1.0, np.inf]]), "jax": jnp.arange(2), "tuple": (1, -np.inf), 7: None,
    }  # fmt: skip
    files.write_json(path, value)
    assert json.loads(path.read_text()) == {
        "f": 0.5, "i": 3, "b": True, "nan": None, "array": [[1.0, None]], "jax": [0, 1],
        "tuple": [1, None], "7": None,
    }  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_json_on_a_full_disk_leaves_the_old_file(number, tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"^disk full: .*summary\.json"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_what_cannot_be_written_is_named_and_what_is_no_error_of_a_disk_keeps_its_kind(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write .*/missing/x.json: No such file or direct"):
        files.write_json(tmp_path / "missing" / "x.json", {})
    with pytest.raises(ZeroDivisionError), files.disk(tmp_path):
        raise ZeroDivisionError


def test_a_file_that_is_not_written_to_its_end_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    files.write_bytes(path, b"old")

    def interrupted():
        with files.replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == ["x"]
    assert path.read_bytes() == b"old"
    with files.replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_folder_that_cannot_be_written_is_named_and_none_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for name, message in {
        "file": "/file is not a folder; use another path",
        "file/a/b": "/file is not a folder; use another path",
        "pipe": "/pipe is not a folder",
        "link": "/link is a link to nowhere; remove it",
        "link/a": "/link is a link to nowhere; remove it",
        "x" * 256: "File name too long; use a shorter path",
        f"new/{'é' * 128}": "File name too long; use a shorter path",
        "x/" * 2500: r"( \.\.\. |File name too long)",
    }.items():
        with pytest.raises(UserError, match=f"^--output: .*{message}"):
            files.check_folder(tmp_path / name, "--output")
    files.check_folder(tmp_path / "new" / ("é" * 127), "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"^--output: .*/new cannot be written: Permission denied"):
        files.check_folder(tmp_path / "new", "--output")
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "pipe"]


def test_a_folder_on_a_read_only_disk_is_named():
    read_only = next(
        (
            pathlib.Path(line.split()[1])
            for line in pathlib.Path("/proc/mounts").read_text().splitlines()
            if line.split()[3].split(",")[0] == "ro" and pathlib.Path(line.split()[1]).is_dir()
        ),
        None,
    )
    if read_only is None:
        pytest.skip("no file system is mounted read-only here")
    with pytest.raises(UserError, match=r"cannot be written: Read-only file system; use a path"):
        files.check_folder(read_only / "run", "--workdir")


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    files.check_file(tmp_path / "new" / "x.csv", "--output")
    files.check_file(pathlib.Path("/dev/null"), "--output")
    with pytest.raises(UserError, match=r"^--output: .* is a folder; name a file"):
        files.check_file(tmp_path, "--output")
    (tmp_path / "x.csv").write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"x\.csv cannot be written; use another path"):
        files.check_file(tmp_path / "x.csv", "--output")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON .*; remove it"),
        (b"\xff\xfe\0", "is not JSON .*; remove it"),
        (b"[" * 100_000, "is not JSON .*; remove it"),
        (b"[1]", "holds a list instead of an object; remove it"),
        (b"null", "holds null instead of an object; remove it"),
        (b"true", "holds true instead of an object; remove it"),
    ],
)
def test_json_that_is_damaged_or_of_another_kind_is_named(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=f"/x.json {message}"):
        files.read_json(tmp_path / "x.json", dict, "remove it")


def test_json_in_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    (tmp_path / "y.json").mkdir()
    for name in ("x.json", "y.json"):
        with pytest.raises(UserError, match="is not a file; remove it"):
            files.read_json(tmp_path / name, dict, "remove it")


# ---- the log of a training ----------------------------------------------------------------------


def test_a_line_has_the_means_over_the_rows_of_its_steps(tmp_path):
    log = TrainLog(
        tmp_path, start_step=4, total_steps=9, batch_size=8, steps_per_epoch=2.0, clock=Stopwatch()
    )

    def add(step, **sums):  # a sum and its count
        log.add(step, Sums.of({k.replace("__", "/"): jnp.float32(v) for k, v in sums.items()}))

    with log:  # two ages were known at step 5, six at step 6
        add(5, loss=[2, 1], gradient_norm=[1, 1], age__mae=[10, 2])
        add(6, loss=[4, 1], gradient_norm=[3, 1], age__mae=[30, 6])
        log.report()
        add(7, loss=[8, 1], gradient_norm=[3, 1], age__mae=[0, 0])
    first, last = map(json.loads, (tmp_path / "metrics.jsonl").open())
    assert (first["step"], first["epoch"]) == (6, 3)
    assert (first["loss"], first["gradient_norm"], first["age/mae"]) == (3, 2, 5)
    assert (last["step"], last["epoch"], last["loss"]) == (7, 3.5, 8)
    assert "age/mae" not in last  # no age was known


def test_sums_lie_in_one_array():
    pairs = {"loss": np.float32([4, 1]), "age/mae": np.float32([10, 2])}
    sums = Sums.of(pairs)
    assert len(jax.tree.leaves(sums)) == 1
    assert {name: list(pair) for name, pair in sums.items()} == {
        "age/mae": [10, 2], "loss": [4, 1]
    }  # fmt: skip
    assert "gender/loss" not in sums
    several = Sums.of({name: np.stack([pair, 2 * pair, pair]) for name, pair in pairs.items()})
    assert several.pairs.shape == (3, 2, 2)
    np.testing.assert_array_equal(several["age/mae"], [[10, 2], [20, 4], [10, 2]])


def test_a_call_of_several_steps_is_logged_as_each_of_them(tmp_path):
    log = TrainLog(
        tmp_path, start_step=4, total_steps=9, batch_size=8, steps_per_epoch=2.0, clock=Stopwatch()
    )
    with log:
        sums = {"loss": [[2, 1], [4, 1]], "gradient_norm": [[1, 1], [3, 1]],
                "age/mae": [[10, 2], [30, 6]]}  # fmt: skip
        log.add(6, Sums.of({name: jnp.float32(pairs) for name, pairs in sums.items()}))
        log.report()
        log.add(7, Sums.of({"loss": jnp.float32([8, 1]), "gradient_norm": jnp.float32([3, 1])}))
        pending = log.take_pending()
        assert pending == {"7": {"loss": [8, 1], "gradient_norm": [3, 1]}}
        pairs = jnp.float32([[1, 1], [2, 1]])
        log.add(9, Sums.of({"loss": pairs, "gradient_norm": pairs}))
        assert log.take_pending().keys() == {"8", "9"}
        norms = jnp.float32([[1, 1], [np.nan, 1], [1, 1]])
        log.add(12, Sums.of({"loss": jnp.ones((3, 2)), "gradient_norm": norms}))
        with pytest.raises(NotFiniteError, match="gradient_norm is nan at step 11"):
            log.take_pending()
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").open())
    assert (row["step"], row["epoch"]) == (6, 3)
    assert (row["loss"], row["gradient_norm"], row["age/mae"]) == (3, 2, 5)


def test_a_run_that_hangs_says_where(tmp_path):
    with (tmp_path / "stderr").open("w+") as out:
        with Watchdog(0.05, out) as watchdog:
            hang_until(lambda: "hang_until" in (tmp_path / "stderr").read_text())
            watchdog.feed()
        assert "nothing has happened for" in (tmp_path / "stderr").read_text()


def test_the_watchdog_waits_as_long_as_it_says_since_it_was_fed(tmp_path, monkeypatch):
    """With a mock clock and a limit of 100 s: fed at 0 and 60 s, it reports at 160, not at 100."""
    now, waits, ended = [0.0], [], threading.Event()

    class Done:
        def wait(self, seconds):
            waits.append(seconds)
            if len(waits) == 1:
                now[0] = 60
                watchdog.feed()
                now[0] = 0
            now[0] += seconds
            if len(waits) == 3:
                ended.set()
            return len(waits) == 3

        def set(self):
            pass

    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    threads = types.SimpleNamespace(Event=Done, Thread=threading.Thread)
    monkeypatch.setattr(watchdog_lib, "time", clock)
    monkeypatch.setattr(watchdog_lib, "threading", threads)
    with (tmp_path / "stderr").open("w+") as out:
        watchdog = Watchdog(100, out)
        with watchdog:
            assert ended.wait(10)
    assert waits == [100, 60, 100]
    text = (tmp_path / "stderr").read_text()
    assert text.count("nothing has happened for") == 1
    assert "nothing has happened for 100 s" in text


def hang_until(seen):
    for _ in range(1000):  # ten seconds at most
        if seen():
            return
        time.sleep(0.01)
    raise AssertionError("the watchdog said nothing")


def test_a_run_that_goes_on_hears_nothing_of_the_watchdog(tmp_path):
    with (tmp_path / "stderr").open("w+") as out:
        for seconds in (0, 60):
            with Watchdog(seconds, out) as watchdog:
                watchdog.feed()
    assert not (tmp_path / "stderr").read_text()


def rows_of(workdir, steps, cut=None):
    """Logs `steps` in windows of two; cut: a signal stops the run after that step; it resumes."""
    options = {"total_steps": 8, "batch_size": 4, "steps_per_epoch": 4.0}
    pending, start = {}, 0
    for part in ([*steps][:cut], [*steps][cut:]) if cut else ([*steps],):
        log = TrainLog(workdir, start_step=start, clock=Stopwatch(), pending=pending, **options)
        with log:
            for step in part:
                pair = jnp.float32([step**0.5, 4])
                log.add(step, Sums.of({"loss": pair, "gradient_norm": pair}))
                if step % 2 == 0:
                    log.report()
            pending, start = log.take_pending() if part[-1] == cut else {}, part[-1]
            pending = json.loads(json.dumps(pending))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k in ("step", "loss", "epoch")} for row in rows]


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_signal_between_two_rows_leaves_the_rows_of_an_undisturbed_run(tmp_path, cut):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = rows_of(tmp_path / "whole", range(1, 7))
    assert [row["step"] for row in whole] == [2, 4, 6]
    assert whole[1]["loss"] == pytest.approx((3**0.5 + 4**0.5) / 8)
    assert rows_of(tmp_path / "cut", range(1, 7), cut) == whole


def test_a_signal_saves_no_state_whose_loss_was_not_finite(tmp_path):
    log = TrainLog(tmp_path, start_step=0, total_steps=8, batch_size=4, steps_per_epoch=4.0,
                   clock=Stopwatch())  # fmt: skip
    log.add(1, Sums.of({"loss": np.float32([np.nan, 4]), "gradient_norm": np.ones(2)}))
    with pytest.raises(NotFiniteError, match="loss is nan at step 1"):
        log.take_pending()


def test_the_holder_removes_what_killed_writes_left_but_not_what_is_being_written(tmp_path):
    left = [".summary.json.0a1b2c3d", "evaluation/photos-test/.report.html.00000000"]
    kept = [".lock", ".hidden", "config.json", "notes.0a1b2c3d", ".x.0A1B2C3D",
            "checkpoints/4/.meta.0a1b2c3d"]  # fmt: skip
    for name in left + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{")
    with files.replacing(tmp_path / "calibration.json") as file:
        file.write(b"{}")
        Claim(tmp_path).close()
        assert [name for name in left if (tmp_path / name).exists()] == []
        assert [name for name in kept if not (tmp_path / name).exists()] == []
    assert (tmp_path / "calibration.json").read_bytes() == b"{}"


def test_ratios_divide_sums_by_counts():
    sums = {"loss": np.array([6.0, 4.0]), "age/mae": (9.0, 3), "ethnicity/accuracy": (0.0, 0)}
    assert ratios(sums) == {"loss": 1.5, "age/mae": 3.0}


# ---- lines about what is going on ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "out", "err"),
    [
        (
            "INFO",
            "resuming\nepoch   1.0/2  step  5/10  val  age/mae 4.000\n",
            "preparing\nwarning: set aside\n",
        ),
        ("WARNING", "", "warning: set aside\n"),
        ("ERROR", "", ""),
    ],
)
def test_the_level_of_a_logger_decides_what_a_run_prints(level, out, err, capsys, request):
    request.addfinalizer(functools.partial(console.logger.setLevel, console.logger.level))
    console.logger.setLevel(level)
    console.result("resuming")
    console.note("preparing")
    console.warning("set aside")
    bar = progress.Progress(total_steps=10, epochs=2)
    bar.evaluation(5, {"age/mae": 4.0}, "age/mae", best=False)
    said = capsys.readouterr()
    assert (said.out, said.err) == (out, err)


def test_rooms_print_by_the_logger_alone():
    """Only commands print: their results, and messages that must appear at any level."""
    package = pathlib.Path(__file__).parents[1] / "agejax"
    free = ("process", "logging", "configs")
    rooms = [p for p in package.glob("*/**/*.py") if p.relative_to(package).parts[0] not in free]
    bare = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in (*rooms, package / "train.py", package / "checks.py")
        if "run_command(main" not in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert bare == []
