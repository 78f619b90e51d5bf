"""`agejax COMMAND`: lists the commands, and runs each as `python -m` runs its module."""

import pathlib
import re
import runpy
import signal
import subprocess
import sys

import pytest

from agejax import __main__ as front

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
    monkeypatch.setattr(sys, "argv", ["agejax", name, "--a=b", "c"])
    monkeypatch.setattr(sys, "path", ["bin"])
    monkeypatch.chdir(tmp_path)
    front.main()
    assert run == [(front.COMMANDS[name][0], "__main__", True, ["--a=b", "c"])]
    assert sys.path == [str(tmp_path), "bin"]


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
