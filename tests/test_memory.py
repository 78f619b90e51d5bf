"""When the C library is told to keep freed memory."""

import os
import pathlib
import sys
import types

import pytest

from agejax.process import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")


@pytest.fixture
def told(monkeypatch):
    """The calls of mallopt, on a machine without a GPU and without MALLOC_... variables."""
    calls = []
    library = types.SimpleNamespace(mallopt=lambda *args: calls.append(args))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(pathlib.Path, "glob", lambda path, pattern: iter(()))
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    return calls


def test_freed_memory_is_kept_in_one_heap_that_is_never_trimmed(told):
    memory.keep_freed()
    assert told == [(memory.M_ARENA_MAX, 1), (memory.M_MMAP_MAX, 0), (memory.M_TRIM_THRESHOLD, -1)]


def test_a_variable_says_otherwise(told, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "0")
    memory.keep_freed()
    assert told == []


def test_beside_a_gpu_many_threads_compile_each_with_a_heap_of_its_own(told, monkeypatch):
    monkeypatch.setattr(
        pathlib.Path, "glob", lambda path, pattern: iter([path / pattern.replace("[0-9]*", "0")])
    )
    memory.keep_freed()
    assert told == []
