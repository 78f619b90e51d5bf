"""`agejax COMMAND`: lists the commands, and runs each as `python -m` runs its module."""

import ast
import importlib.util
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import pytest

from agejax import __main__ as front
from agejax.process import usage

ROOT = pathlib.Path(__file__).parents[1]
AGEJAX = [sys.executable, "-m", "agejax"]


def called(*arguments, cwd=ROOT):
    return subprocess.run(
        [*AGEJAX, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_every_command_has_a_line():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in [*ROOT.glob("agejax/*.py"), *ROOT.glob("agejax/data/*.py")]
        if path.stem != "__main__" and 'if __name__ == "__main__":' in path.read_text()
    }
    assert modules == {module for module, _ in front.COMMANDS.values()}
    lines = front.overview().splitlines()
    for name, (_, what) in front.COMMANDS.items():
        assert [line for line in lines if line.split() == [name, *what.split()]], name


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_list_comes_without_jax(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "agejax", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == front.overview() + "\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "agejax.errors" in imported
    assert not imported & {"jax", "numpy", "absl", "ml_collections"}


def test_an_unknown_command_is_one_line_with_the_nearest_name():
    done = called("trian", "--config=quickstart")
    assert (done.returncode, done.stdout) == (2, "")
    line = "agejax: error: no command 'trian': did you mean 'train'? (agejax --help lists them)\n"
    assert done.stderr == line
    assert "did you mean 'pseudo-label'" in called("pseudo_label").stderr


def test_the_version_is_printed():
    assert re.fullmatch(r"agejax \d+\.\d+\.\d+\n", called("--version").stdout)


@pytest.mark.parametrize("name", front.COMMANDS)
def test_a_command_runs_its_module_with_the_rest_of_the_line(name, tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(
        runpy, "run_module",
        lambda module, run_name, alter_sys: run.append((module, run_name, alter_sys, sys.argv[1:])),
    )  # fmt: skip
    monkeypatch.setattr(usage, "_typed", [])
    monkeypatch.setattr(sys, "argv", ["agejax", name, "--a=b", "c"])
    monkeypatch.setattr(sys, "path", ["bin"])
    monkeypatch.chdir(tmp_path)
    front.main()
    assert run == [(front.COMMANDS[name][0], "__main__", True, ["--a=b", "c"])]
    assert sys.path == [str(tmp_path), "bin"]
    module = ast.parse(pathlib.Path(importlib.util.find_spec(run[0][0]).origin).read_text())
    text = usage.text(ast.get_docstring(module, clean=False))
    assert text.startswith(f"agejax {name} ")
    assert f"python -m {run[0][0]} " not in text


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ([sys.executable, "-m", "agejax.sweep"], "python -m agejax.sweep"),
        ([*AGEJAX, "sweep"], "agejax sweep"),
    ],
)
def test_help_and_errors_show_the_command_as_it_was_typed(call, name):
    def said(*arguments):
        return subprocess.run(
            [*call, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    shown = said("--help").stdout
    assert shown.startswith(f"usage: {name} --config=FILE --space=FILE --study=DIR [")
    assert "--config.schedule.lr=3e-3" in shown  # how to give settings
    assert "--pruner" in shown
    wrong = said("--trials=many")
    assert wrong.returncode == 2
    assert f"\n{name}: error: argument --trials: invalid whole number value" in wrong.stderr
    assert said("--help=config.schedule").stdout.startswith("config.schedule: The learning rate")


def test_train_ends_as_its_module_does(tmp_path):
    (tmp_path / "my.py").write_text("import neighbour\n")
    (tmp_path / "neighbour.py").write_text("1 / 0\n")
    for arguments, line in {
        ("--config=quickstrat",): "did you mean 'quickstart'?",
        ("--config=my.py",): "--config=my.py, line 1: ZeroDivisionError: division by zero",
    }.items():
        done = called("train", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("agejax: error: ")
        assert line in done.stderr


def test_ctrl_c_while_a_command_imports_its_modules_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *AGEJAX[1:], "evaluate", "--help"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.rpartition("|")[2].strip().startswith("numpy."):
            process.send_signal(signal.SIGINT)
            break
    rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.wait() == 130
    assert rest == ["agejax: interrupted\n"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--seed=-1", "argument --seed: -1; set it to 0 or more"),
        ("--seed=x", "argument --seed: invalid whole number value: 'x'"),
    ],
)
def test_a_whole_number_has_a_least_value(given, words, capsys):
    parser = usage.parser("python -m agejax.x --seed=N\n\nDoes something.")
    parser.add_argument("--seed", type=usage.at_least(0))
    assert parser.parse_args(["--seed=0"]).seed == 0
    with pytest.raises(SystemExit) as end:
        parser.parse_args([given])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
