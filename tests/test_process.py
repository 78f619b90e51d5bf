"""agejax changes nothing in the process when it is imported, only when a command starts."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = [
    path
    for package in ("agejax", "experiments")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "sys.exit(run_command(main" in path.read_text()
]

LOOK = """
import ctypes, os, re, signal, sys
import agejax, agejax.errors
from agejax.process import start
{then}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc(ctypes.c_size_t(2**26))
(heap,) = re.findall(r"(\\w+)-(\\w+) .*\\[heap\\]", open("/proc/self/maps").read())
low, high = (int(end, 16) for end in heap)
levels = [os.environ.get(k, "unset") for k in ("TF_CPP_MIN_LOG_LEVEL", "OPENCV_LOG_LEVEL")]
print(signal.getsignal(signal.SIGINT).__name__, high - low > 2**26, *levels, sys.stdout.errors)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.skipif(any(pathlib.Path("/dev").glob("nvidia[0-9]*")), reason="malloc stays as it is")
@pytest.mark.parametrize(
    ("then", "found"),
    [
        ("", "default_int_handler False unset unset strict"),
        ("start.as_command()", "leave True 3 ERROR backslashreplace"),
    ],
    ids=["imported", "as a command"],
)
def test_importing_agejax_changes_no_ctrl_c_malloc_or_log_level_and_a_command_does(then, found):
    """Where malloc does not map a block from the kernel, 64 MiB come from the heap."""
    ours = ("MALLOC_", "TF_CPP_", "OPENCV_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(then=then)],
        cwd=ROOT, env=environment | {"PYTHONIOENCODING": "utf-8:strict"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == found.split()


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_starts_as_one_before_it_imports_anything_else(path):
    first = next(
        node
        for node in ast.parse(path.read_text()).body
        if not isinstance(node, ast.Expr)  # the docstring
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    )
    assert ast.unparse(first) == (
        "if __name__ == '__main__':\n    from agejax.process import start\n    start.as_command()"
    )


def test_there_are_commands():
    assert ROOT / "agejax" / "main.py" in COMMANDS
