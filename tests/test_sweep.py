"""sweep: settings drawn from a space; trials pruned, stopped and continued."""

import contextlib
import csv
import json
import math
import os
import pathlib
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time

import optuna
import pytest

import tiny
from agejax import command_line, sweep
from agejax.config import replaced
from agejax.configs import imbalance_utk, mobilenet_v3_utk_alone, scratch_utk, small_model_utk
from agejax.errors import NotFiniteError, UserError
from agejax.process.command import run_command
from agejax.reporting import sweep_page
from agejax.sweeps import study as studies
from agejax.sweeps import workers
from agejax.sweeps.search import search
from agejax.sweeps.space import read_space, suggest

pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage"
)
ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'tests' / 'tiny.py'}"
SPACE = {
    "schedule.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "heads.age.loss": {"choices": ["l1", "l2"]},
    "optim.ema": {"choices": [0.0, 0.9]},
}


@pytest.fixture
def config(faces, cache):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = {"steps": 4}
    config.eval.every = {"steps": 2}
    return config


def study_in(folder, pruner="none", sampler="random", mode="min"):
    folder.mkdir(exist_ok=True)
    made = studies.create_sampler(sampler, 2, seed=0)
    return studies.create_study(folder, "", made, studies.create_pruner(pruner), mode)


def rows_of(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_trials_are_drawn_trained_and_ranked(config, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    search(config, SPACE, folder, study_in(folder, sampler="tpe"), trials=2)
    said = capsys.readouterr().out
    assert said.startswith("trial 0 begins, --config.schedule.lr=")
    assert said.count(" begins, ") == 2
    assert "parameters" not in said  # what a training opens with
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["complete"] * 2
    for row in rows:
        assert 1e-4 <= float(row["schedule.lr"]) <= 1e-2
        stored = json.loads((folder / f"trials/{int(row['number']):04d}/config.json").read_text())
        assert stored["schedule"]["lr"] == float(row["schedule.lr"])
        assert stored["heads"]["age"]["loss"] == row["heads.age.loss"]
    best = json.loads((folder / "best.json").read_text())
    assert best["value"] == min(float(row["value"]) for row in rows)
    summary = json.loads((tmp_path / best["workdir"] / "summary.json").read_text())
    assert summary["best"]["value"] == best["value"]
    assert f"--config.schedule.lr={best['settings']['schedule.lr']}" in best["flags"]
    page = (folder / "index.html").read_text()
    assert f"<b>{best['value']:.4f}</b>" in page
    assert page.count("<img") == 2
    # The same command has nothing left to do; more trials are more.
    monkeypatch.setattr("agejax.sweeps.search.train", lambda *_: {"best": {"value": 1.0}})
    search(config, SPACE, folder, study_in(folder), trials=2)
    assert len(rows_of(folder)) == 2
    search(config, SPACE, folder, study_in(folder), trials=3)
    search(config, SPACE, folder, study_in(folder), trials=4)
    # A worker that continues a study draws other points than the first, with the same seed.
    assert len({row["schedule.lr"] for row in rows_of(folder)}) == 4


def test_the_flags_of_a_trial_can_be_typed():
    head = {"kind": "distribution", "loss": "sord", "weight": 0.5}
    settings = {"schedule.lr": 1e-05, "heads.age": head, "augment.crop": [0.5, 1.0]}
    settings |= {"sampling.kind": "density", "model.remat": True}
    config = command_line.parse(["main", CONFIG, *shlex.split(studies._flags(settings))])
    assert config.schedule.lr == 1e-05
    assert config.heads.age.to_dict() == head
    assert config.augment.crop == (0.5, 1.0)
    assert (config.sampling.kind, config.model.remat) == ("density", True)


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 0)])
def test_the_best_of_three_trials(mode, best, config, tmp_path, monkeypatch):
    values = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("agejax.sweeps.search.train", lambda *_: {"best": {"value": next(values)}})
    search(config, SPACE, tmp_path / "study", study_in(tmp_path / "study", mode=mode), 3)
    assert json.loads((tmp_path / "study" / "best.json").read_text())["number"] == best


def test_a_trial_ends_where_the_pruner_says(config, tmp_path, monkeypatch, capsys):
    steps = []

    def pretend(config, workdir, stop_after):
        """Gives trial number n a constant loss of n."""
        value = float(workdir.name)
        for step in range(1, 10):
            steps.append((int(workdir.name), step))
            if stop_after(step, value):
                break
        return {"best": {"value": value}}

    monkeypatch.setattr("agejax.sweeps.search.train", pretend)
    folder = tmp_path / "study"
    study = study_in(folder)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    search(config, SPACE, folder, study, trials=5)
    states = [row["state"] for row in rows_of(folder)]
    assert states == ["complete", "complete", "pruned", "pruned", "pruned"]
    assert max(step for number, step in steps if number == 3) == 1
    lines = capsys.readouterr().out.splitlines()
    settings = r"--config\.schedule\.lr=0\.00\d+ --config\.heads\.age\.loss=l[12] --config.*"
    results = ["", "", *["pruned at step 1, "] * 3]
    for number, (first, line, result) in enumerate(
        zip(lines[::2], lines[1::2], results, strict=True)
    ):
        place = re.escape(str(folder / "trials" / f"000{number}"))
        assert re.fullmatch(f"trial {number} begins, {settings}: {place}", first)
        assert re.fullmatch(f"trial {number}, {settings}: {result}age/mae {number}.0000", line)
    assert json.loads((folder / "best.json").read_text())["number"] == 0


def test_a_signal_stops_and_the_same_command_goes_on_in_the_same_folder(
    config, tmp_path, monkeypatch
):
    folder, seen = tmp_path / "study", []

    def interrupted(config, workdir, stop_after):
        seen.append((workdir.name, config.schedule.lr))
        return None if len(seen) == 2 else {"best": {"value": 1.0}}

    monkeypatch.setattr("agejax.sweeps.search.train", interrupted)
    with pytest.raises(SystemExit):
        search(config, SPACE, folder, study_in(folder), trials=2)
    assert [row["state"] for row in rows_of(folder)] == ["complete", "fail"]
    search(config, SPACE, folder, study_in(folder), trials=2)
    assert seen[2] == seen[1]
    assert [row["state"] for row in rows_of(folder)] == ["complete", "fail", "complete"]


def test_the_trial_of_a_worker_that_died_goes_on_in_its_folder(config, tmp_path, monkeypatch):
    folder, seen = tmp_path / "study", []

    def pretend(config, workdir, stop_after):
        seen.append((workdir.name, config.schedule.lr))
        return {"best": {"value": 1.0}}

    monkeypatch.setattr("agejax.sweeps.search.train", pretend)
    study = study_in(folder)
    dead = study.ask()
    value = suggest(dead, "schedule.lr", SPACE["schedule.lr"])
    workers.go_on_with(study, dead)
    search(config, {"schedule.lr": SPACE["schedule.lr"]}, folder, study, trials=1)
    assert seen == [("0000", value)]


KILLED = """
import os, signal, sys
from agejax import sweep
from agejax.process.command import run_command
from agejax.sweeps import search

def pretend(config, workdir, stop_after):
    if workdir.name == "0001":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"best": {"value": config.schedule.lr}}

search.train = pretend
sys.exit(run_command(sweep.main, ["sweep", *sys.argv[1:]]))
"""


def test_a_killed_trial_is_tried_again_at_once_and_n_trials_are_n_completed(
    config, tmp_path, monkeypatch
):
    folder, seen = tmp_path / "study", []
    (tmp_path / "space.py").write_text(f"def get_space(): return {SPACE}")
    flags = [
        CONFIG,
        f"--space={tmp_path / 'space.py'}",
        f"--study={folder}",
    ]
    died = subprocess.run(
        [sys.executable, "-c", KILLED, *flags, "--trials=3"], cwd=ROOT, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL
    study = study_in(folder)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    cut_off = study.trials[1].user_attrs["settings"]

    def pretend(config, workdir, stop_after):
        seen.append((workdir.name, config.schedule.lr))
        return {"best": {"value": 1.0}}

    monkeypatch.setattr("agejax.sweeps.search.train", pretend)
    search(config, SPACE, folder, study, trials=3)
    assert seen[0] == ("0001", cut_off["schedule.lr"])
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE", "FAIL", "COMPLETE", "COMPLETE",
    ]  # fmt: skip
    assert not list((folder / "workers").iterdir())


def test_the_trial_of_a_worker_that_lives_is_left_alone(tmp_path):
    study = study_in(tmp_path / "study")
    one, other = (workers.Worker(tmp_path / "study") for _ in range(2))
    trial = study.ask()
    value = suggest(trial, "schedule.lr", SPACE["schedule.lr"])
    trial.set_user_attr("worker", one.name)
    workers.revive(study, other)
    assert [each.state.name for each in study.trials] == ["RUNNING"]
    one.close()
    workers.revive(study, other)
    workers.revive(study, other)
    assert [each.state.name for each in study.trials] == ["FAIL", "WAITING"]
    queued = study.ask()
    assert queued.user_attrs["goes_on"] == 0
    assert suggest(queued, "schedule.lr", SPACE["schedule.lr"]) == value


def test_of_a_worker_on_another_machine_nothing_is_known(tmp_path, monkeypatch):
    """Also where its name begins like this one's; its lock may not be seen from here."""
    monkeypatch.setattr(workers.socket, "gethostname", lambda: "node")
    with contextlib.closing(workers.Worker(tmp_path)) as worker:
        for host, dead in {"node": True, "node-2": False, "nod": False}.items():
            (tmp_path / "workers" / f"{host}-7-8").touch()
            assert worker.has_died(f"{host}-7-8") is dead


def test_a_worker_waits_for_the_last_trial_of_another_and_begins_none_beyond(
    config, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "study"
    study = study_in(folder)
    other = workers.Worker(folder)
    trial = study.ask()
    trial.set_user_attr("worker", other.name)
    trial.set_user_attr("workdir", str(folder))
    trial.set_user_attr("settings", {})
    monkeypatch.setattr(time, "sleep", lambda seconds: study.tell(trial, 2.0))
    monkeypatch.setattr("agejax.sweeps.search.train", lambda *_: pytest.fail("began another trial"))
    search(config, SPACE, folder, study, trials=1)
    assert "waiting for the trials of other workers: 1" in capsys.readouterr().out
    assert [row["value"] for row in rows_of(folder)] == ["2.0"]


def other_database(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("create table photos (name text)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no database" * 100), "file is not a database"),
        (other_database, "is a database of something else"),
        (lambda path: path.mkdir(), "unable to open database file"),
    ],
)
def test_a_study_db_of_another_kind_is_one_line_and_stays_as_it_is(tmp_path, capsys, make, message):
    folder = tmp_path / "study"
    folder.mkdir()
    make(folder / "study.db")
    before = folder.joinpath("study.db").read_bytes() if (folder / "study.db").is_file() else None
    (tmp_path / "space.py").write_text(f"def get_space(): return {SPACE}")
    flags = [
        f"--space={tmp_path / 'space.py'}",
        f"--study={folder}",
        CONFIG,
    ]
    assert run_command(sweep.main, ["sweep", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / 'study.db'}" in line
    assert message in line
    assert "use another --study" in line
    if before is not None:
        assert folder.joinpath("study.db").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("optim.ema", {"choices": [0.0, 0.9, 0.99]}),
        ("optim.ema", {"choices": [0.5, 0.99]}),  # as many, but others
        ("optim.ema", {"low": 0.0, "high": 0.9}),
        ("schedule.lr", {"low": 1e-4, "high": 1e-2}),
    ],
)
def test_a_study_goes_on_with_the_space_of_its_trials(config, tmp_path, monkeypatch, name, given):
    monkeypatch.setattr(
        "agejax.sweeps.search.train", lambda *_: {"best": {"value": 1.0}, "steps": 1}
    )
    folder = tmp_path / "study"
    search(config, SPACE, folder, study_in(folder), trials=1)
    with pytest.raises(UserError, match=f"--space: {name}: the trials of this study were drawn"):
        search(config, SPACE | {name: given}, folder, study_in(folder), trials=2)
    assert len(rows_of(folder)) == 1
    wider = {"schedule.lr": {"low": 1e-5, "high": 1e-2, "log": True}}
    search(config, SPACE | wider, folder, study_in(folder), trials=2)
    assert len(rows_of(folder)) == 2


def test_the_page_has_trials_of_other_settings_and_one_killed_before_it_had_any():
    begin, end = {"state": "complete", "value": 1.0, "steps": 2}, {"error": ""}
    rows = [
        {"number": 0, "state": "fail", "value": None, "steps": 0} | end,
        {"number": 1} | begin | {"model.remat": True} | end,
        {"number": 2} | begin | {"schedule.lr": 0.01} | end,
        {"number": 3} | begin | {"schedule.lr": 0.03, "model.remat": False} | end,
    ]
    page = sweep_page.sweep("study", rows, None, {}).split("Trials, the best first</h2>")[1]
    lines = [re.findall(r"<t[hd][^>]*>([^<]*)<", line) for line in page.split("<tr>")[1:]]
    assert lines == [
        ["number", "state", "value", "steps", "model.remat", "schedule.lr", "error"],
        ["1", "complete", "1", "2", "True", "", ""],
        ["2", "complete", "1", "2", "", "0.01", ""],
        ["3", "complete", "1", "2", "False", "0.03", ""],
        ["0", "fail", "", "0", "", "", ""],
    ]


def test_the_table_keeps_the_settings_of_an_earlier_space(tmp_path):
    study = optuna.create_study()
    for value, settings in enumerate(({"schedule.lr": 0.1}, {"optim.ema": 0.5})):
        attributes = {"settings": settings, "workdir": "x"}
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs=attributes))
    studies.write(study, tmp_path, {"optim.ema": {"low": 0.0, "high": 0.9}})
    assert [(row["schedule.lr"], row["optim.ema"]) for row in rows_of(tmp_path)] == [
        ("0.1", ""), ("", "0.5"),
    ]  # fmt: skip


def test_a_study_of_the_other_direction_is_one_line_as_is_a_folder_that_is_a_file(tmp_path, capsys):
    study_in(tmp_path / "study")
    with pytest.raises(UserError, match="searches to minimize"):
        studies.create_study(tmp_path / "study", "", None, None, "max")
    (tmp_path / "file").touch()
    (tmp_path / "space.py").write_text(f"def get_space(): return {SPACE}")
    flags = [f"--space={tmp_path / 'space.py'}", f"--study={tmp_path / 'file'}"]
    assert run_command(sweep.main, ["sweep", *flags, CONFIG]) == 2
    assert "is not a folder; use another path" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"--storage=nonsense cannot be opened.*; use another --storage"
    ):
        studies.create_study(tmp_path / "study", "nonsense", None, None, "min")


def test_a_setting_that_fails_is_a_failed_trial_and_a_config_that_fails_an_error(
    config, tmp_path, monkeypatch, capsys
):
    def fails(config, workdir, stop_after):
        if workdir.name == "0001":
            raise UserError("the loss is not finite")
        return {"best": {"value": 1.0}}

    monkeypatch.setattr("agejax.sweeps.search.train", fails)
    folder = tmp_path / "study"
    search(config, SPACE, folder, study_in(folder), trials=2)
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["complete", "fail", "complete"]
    assert rows[1]["error"] == "the loss is not finite"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[-1] for line in lines[1::2]] == [
        "age/mae 1.0000",
        "the loss is not finite",
        "age/mae 1.0000",
    ]

    def wrong(config, workdir, stop_after):
        raise UserError("no such data")

    monkeypatch.setattr("agejax.sweeps.search.train", wrong)
    other = tmp_path / "other"
    with pytest.raises(UserError, match="no such data"):
        search(config, SPACE, other, study_in(other), trials=2)


def failing(monkeypatch, errors):
    """Makes trials fail with these errors in turn; None: it trains. Returns the trials."""
    begun, errors = [], list(errors)

    def pretend(config, workdir, stop_after):
        begun.append(workdir.name)
        assert errors, "another trial began"
        if error := errors.pop(0):
            raise error
        return {"best": {"value": 1.0}}

    monkeypatch.setattr("agejax.sweeps.search.train", pretend)
    return begun


def test_a_sweep_ends_where_its_trials_fail_one_after_the_other(config, tmp_path, monkeypatch):
    full = [UserError(f"disk full {i}") for i in range(3)]
    begun = failing(monkeypatch, [None, full[0], None, *full])
    with pytest.raises(UserError, match=r"^disk full 2$"):
        search(config, SPACE, tmp_path / "study", study_in(tmp_path / "study"), trials=9)
    assert len(begun) == 6
    assert [row["state"] for row in rows_of(tmp_path / "study")][-3:] == ["fail"] * 3


def test_a_sweep_ends_where_more_trials_fail_than_were_asked_for(config, tmp_path, monkeypatch):
    diverged = [NotFiniteError(f"the loss is nan, {i}", step=1) for i in range(5)]
    begun = failing(monkeypatch, [None, *diverged])
    with pytest.raises(UserError, match=r"^the loss is nan, 4$"):
        search(config, SPACE, tmp_path / "study", study_in(tmp_path / "study"), trials=4)
    assert len(begun) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"has no get_space\(\)"),
        ("def get_space(): return {}", "names no setting"),
        ("def get_space(): return {'a': {'lo': 1}}", "unknown key 'lo'; did you mean 'low'"),
        ("def get_space(): return {'a': {'low': 2, 'high': 1}}", "set low and high, low first"),
        ("def get_space(): return {'a': {'choices': []}}", "no choices"),
        ("def get_space(): return {'a': {'choices': 5}}", "no choices; list them"),
        ("def get_space(): return {'a': 3}", "a: 3; set low and high, or choices"),
        ("def get_space(): return {'a': {'low': '1', 'high': 2}}", "set low and high, low first"),
        ("def get_space(): return {'a': {'low': 1, 'high': 2, 'step': 0}}", "a step above 0"),
        ("def get_space(): return {'a': {'low': 0, 'high': 1, 'log': True}}", "log needs low abo"),
        ("def get_space(): return {'optim.wd': {'low': 0.0, 'high': 1.0}}", "no setting 'wd'"),
        (
            "def get_space(): return {'optm.x': {'low': 0.0, 'high': 1.0}}",
            "no setting 'optm'; did you mean 'optim'",
        ),
    ],
)
def test_a_bad_space_is_named(config, tmp_path, text, message):
    (tmp_path / "space.py").write_text(text)

    def read_and_set():
        space = read_space(str(tmp_path / "space.py"))
        replaced(config, dict.fromkeys(space, 0.0))

    with pytest.raises(UserError, match=message):
        read_and_set()


def test_a_missing_space_is_one_line(tmp_path, capsys):
    flags = ["sweep", f"--space={tmp_path / 'none.py'}", f"--study={tmp_path / 'study'}", CONFIG]
    assert run_command(sweep.main, flags) == 2
    assert "none.py: no such file" in capsys.readouterr().err


def test_values_lie_in_their_ranges():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {
        "a": {"low": 1, "high": 9, "step": 4}, "b": {"low": 1e-6, "high": 1.0, "log": True},
        "c": {"low": 1, "high": 2, "step": 0.5},
    }  # fmt: skip
    for _ in range(30):
        trial = study.ask()
        values = {name: suggest(trial, name, given) for name, given in space.items()}
        assert values["a"] in (1, 5, 9)
        assert 1e-6 <= values["b"] <= 1
        assert values["c"] in (1, 1.5, 2)
        assert math.isfinite(values["b"])


@pytest.mark.parametrize(
    ("space", "config"),
    [
        ("imbalance", imbalance_utk),
        ("imbalance_ours", imbalance_utk),
        ("small_model", small_model_utk),
        ("scratch", scratch_utk),
        ("recipe", mobilenet_v3_utk_alone),
    ],
)
def test_the_spaces_fit_their_configs(space, config):
    """Every setting exists, and a trial drawn from the space differs only in them."""
    drawn = read_space(str(ROOT / f"experiments/spaces/{space}.py"))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    values = {name: suggest(trial, name, given) for name, given in drawn.items()}
    base = config.get_config()
    made = replaced(base, values)
    for name, value in values.items():
        group = made
        for part in name.split("."):
            group = group[part]
        assert (group.to_dict() if isinstance(value, dict) else group) == value
    undone = replaced(made, {name: lookup(base, name) for name in values})
    assert undone.to_dict() == base.to_dict()


def lookup(config, path):
    for part in path.split("."):
        config = config[part]
    return config
