"""How a command ends: exit codes, one line where the user can mend it, a traceback for a bug."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from agejax import main, sweep
from agejax.errors import UserError, run_command

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
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, previous)
    assert capsys.readouterr().err == "agejax: interrupted\n"


def start(code, **options):
    """A Python process of few imports."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONUNBUFFERED": ""}, **options,
    )  # fmt: skip


PRINTS = """
import sys
from agejax.errors import UserError, run_command
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
        (1, "pass", 141),  # only what is left at the end fails
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


def test_ctrl_c_while_a_command_imports_its_modules_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "agejax.evaluate", "--help"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.endswith("| agejax\n"):  # numpy and JAX come next
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
        ("x = 1\n", r"my.py has no get_config\(\); write one that returns"),
        ("def get_config():\n  pass\n", r"my.py: get_config\(\) returns NoneType; let it return"),
        ("def get_config():\n  return {}\n", r"my.py: get_config\(\) returns dict; let it return"),
        ("\0", "my.py"),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(text, message, tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(text)
    (tmp_path / "helper.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # of the file before
    with pytest.raises(UserError, match=f"^--config=.*{message}"):
        main.parse(["main", f"--config={tmp_path / 'my.py'}"])


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
        sweep.read_space(str(tmp_path / "my.txt"))
