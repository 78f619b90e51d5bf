"""The command line: settings in the form that a user tries first, and help."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import tiny
from agejax import command_line, reference
from agejax.config import SETTINGS
from agejax.errors import UserError
from agejax.settings import Setting

ROOT = pathlib.Path(__file__).parents[1]


def parsed(*arguments):
    return command_line.parse(["main", f"--config={tiny.__file__}", *arguments])


@pytest.mark.parametrize(
    ("argument", "path", "value"),
    [
        ("--config.total.epochs=2", "total", {"epochs": 2.0}),  # tiny has steps
        ("--config.eval.every.steps=10", "eval.every", {"steps": 10.0}),
        ("--config.schedule.warmup.percent=.5", "schedule.warmup", {"percent": 0.5}),
        ("--config.data.options.labels=x.csv", "data.options", {"labels": "x.csv"}),
        ("--config.data.edits.only.gender=female", "data.edits.only", {"gender": "female"}),
        (
            "--config.data.edits.keep.ethnicity.Asian=0.25",
            "data.edits.keep",
            {"ethnicity": {"Asian": 0.25}},
        ),
        ("--config.heads.gender.smoothing=.1", "heads.gender.smoothing", 0.1),
        ("--config.heads.gender.weight=1", "heads.gender.weight", 1.0),
        ("--config.heads.age.neck.hidden=(64,)", "heads.age.neck", {"hidden": (64,)}),
        ("--config.heads.age.range=0,90", "heads.age.range", (0, 90)),
        ("--config.heads.bmi={'kind': 'binary'}", "heads.bmi", {"kind": "binary"}),
        ("--config.model.options.dropout=0.1", "model.options.dropout", 0.1),
        ("--config.model.options.widths=(4,)", "model.options.widths", (4,)),
        ("--config.data.split.fractions.train=.5", "data.split.fractions.train", 0.5),
        ("--config.augment.copies.rotate=5", "augment.copies", {"rotate": 5}),
        ("--config.data.mixture.a.name=aaf", "data.mixture", {"a": {"name": "aaf"}}),
    ],
)
def test_what_no_config_writes_down_is_set_by_its_path(argument, path, value):
    flag, text = argument.split("=", 1)
    for arguments in ([argument], [flag, text]):
        config = parsed(*arguments)
        found = config
        for key in path.split("."):
            found = found[key]
        assert (found.to_dict() if hasattr(found, "to_dict") else found) == value
        assert type(found) is type(value) or hasattr(found, "to_dict")
        with pytest.raises((AttributeError, KeyError)):
            config.heads.age.lose = "l1"  # it is locked as before


@pytest.mark.parametrize("config", [[f"--config={tiny.__file__}"], ["--config", tiny.__file__]])
def test_settings_may_come_before_the_config_file(config):
    settings = ["--config.seed=7", "--config.total.epochs=2"]
    for at in range(len(settings) + 1):
        found = command_line.parse(["main", *settings[:at], *config, *settings[at:]])
        assert (found.seed, found.total.to_dict()) == (7, {"epochs": 2.0})


def test_a_text_stays_one_where_a_text_was_and_a_later_argument_wins():
    kinds = [f"--config.heads.age.kind={kind}" for kind in ("gaussian", "ordinal")]
    assert parsed(*kinds).heads.age.kind == "ordinal"
    assert parsed("--config.heads.age.loss=7").heads.age.loss == 7  # tiny has none there
    assert parsed("--config.heads.age.kind=7").heads.age.kind == "7"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.total=200"], "--config.total=200: write --config.total.steps=200, or .epochs"),
        (["--config.heads=age"], "write --config.heads.NAME=VALUE"),
        (["--config.total.step=9"], "--config.total.step: no unit 'step'; did you mean 'steps'?"),
        (
            ["--config.total.steps=9", "--config.total.epochs=9"],
            "--config.total.steps and --config.total.epochs: set one of them",
        ),
        (
            ["--config.total.steps=9", "--config.total={'epochs': 1.0}"],
            "--config.total would replace what --config.total.steps sets; give it first",
        ),
        (
            ["--config.heads.gendr.smoothing=0.1"],
            "there is no head 'gendr'; did you mean 'gender'? (a new head needs",
        ),
        (["--config.heads.bmi=5"], "gender (a new head needs --config.heads.bmi.kind too)"),
        (["--config.heads.age.kind.x=1"], "kind is 'regression', which has no parts"),
        (["--config.model.options.width"], "--config.model.options.width has no value; write"),
        (["--config.heads.age={'a.b': 2}"], "--config.heads.age: ConfigDict does not accept dots"),
        (["--config.heads.age={None: 2}"], "--config.heads.age: "),
    ],
)
def test_what_cannot_be_set_so_is_refused_with_what_works(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parsed(*arguments)


def test_a_config_file_that_lacks_settings_is_named_before_any_is_set(tmp_path):
    (tmp_path / "bare.py").write_text(
        "import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'seed': 1})"
    )
    arguments = [f"--config={tmp_path / 'bare.py'}", "--config.heads.age.kind=binary"]
    with pytest.raises(UserError, match=r"config\.total is missing"):
        command_line.parse(["main", *arguments])


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "agejax.main", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.dropout=much", "model.dropout=much: set it to a number in 0..0.99"),
        ("--config.optim.clip_nrom=1", "'clip_nrom'; did you mean 'clip_norm'?"),
        ("--config.optim.drop_path=1", "'drop_path'; --help=config lists all there are"),
        ("--config.model.dropout=2", "config.model.dropout: 2.0; set it to a number in 0..0.99"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_it_may_be(argument, message):
    done = command("--config=tests/tiny.py", argument)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_a_command_without_arguments_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(command_line.FLAGS["config"], "value", None)  # of an earlier command line
    with pytest.raises(UserError, match="--config is missing: name a file, such as --config="):
        command_line.parse(["main"])


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--config.lr=1", "did you mean --config.schedule.lr?"),
        ("--config.optim.lr=1", "did you mean --config.schedule.lr?"),
        ("--config.epochs=3", "did you mean --config.total.epochs?"),
        ("--config.batch_size=3", "--config.data.batch_size or --config.eval.batch_size?"),
    ],
)
def test_a_setting_without_its_path_is_refused_with_the_flag_that_works(flag, hint):
    with pytest.raises(UserError) as caught:
        command_line.parse(["main", "--config=tests/tiny.py", flag])
    assert str(caught.value).endswith(hint)


def test_help_shows_usage_flags_and_an_example():
    done = command("--help")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("usage: python -m agejax.main --config=FILE")
    for words in ("--workdir=", "The run's folder", "--help=config.schedule", "--config.total.st"):
        assert words in done.stdout


@pytest.mark.parametrize("ask", [["--help=config.schedule"], ["-h", "config.schedule"]])
def test_help_of_a_group_shows_its_settings_alone(ask, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.parse(["main", *ask])
    assert end.value.code is None
    shown = capsys.readouterr().out
    assert (
        "  config.schedule.lr = 0.001\n      Peak of the learning rate. A number in 1e-30.."
        in shown
    )
    assert "One of one_cycle, warmup_cosine, exponential, constant." in shown
    assert "config.optim" not in shown
    assert shown.startswith("config.schedule: The learning rate and the image size over the run.\n")


def test_help_of_a_head_shows_the_options_of_every_kind():
    shown = reference.text("config.heads.age")
    for kind in ("regression", "distribution", "ordinal", "gaussian", "buckets", "binary"):
        assert f"config.heads.NAME, kind {kind}: " in shown
    assert "config.heads.NAME.neck.pool = 'mean'" in shown
    assert "config.heads.NAME.weight = 1.0" in shown
    alone = reference.text("config.heads.age.sigma")
    assert alone.count("\n  config.") == 1
    assert "A number above 0 (years)." in alone


def test_help_of_what_is_not_there_names_what_is():
    with pytest.raises(UserError, match=r"help=config\.shedule: .*did you mean 'config\.schedule'"):
        reference.text("config.shedule")


def test_help_of_the_config_names_every_setting():
    shown = reference.text("config")
    for path, setting in SETTINGS.walk("config"):
        assert (f"  {path} = " in shown) == isinstance(setting, Setting)


def test_every_row_of_the_page_of_settings_has_four_cells_on_github():
    rows = [line for line in reference.markdown().splitlines() if line.startswith("| ")]
    assert len(rows) > 200
    # A | ends a cell unless a backslash is before it.
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {2 + 4}


def test_the_page_of_settings_is_up_to_date():
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == reference.markdown(), "python -m agejax.reference > docs/config.md writes it"
