"""An array in a memory-mapped file, with an error instead of a crash if the file is truncated.

A read past the end of a mapped file raises SIGBUS, which ends the process without a message. Reads
by system calls are safe, but give random batches at 0.6 to 0.7 of the speed (32 and 128 px). So the
file stays mapped: at SIGBUS its map is replaced by zeros and the copy completes; after every copy
the file's size is checked, so the caller gets an error.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import signal
import threading
import weakref
from typing import Any

import numpy as np

from agejax.errors import UserError

MAP_FIXED = 0x10  # missing in Python's mmap; the same on Linux and macOS


class MappedArray:
    """An array stored raw in a file, such as images uint8 [N, S, S, 3], read row by row.

    A pickle holds only the path: worker processes map the file again.

    Attributes:
      shape: (N, ...).

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is not of this size.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, ...],
        dtype: np.typing.DTypeLike = np.uint8,
    ) -> None:
        self.path, self.shape, self.dtype = pathlib.Path(path), tuple(shape), np.dtype(dtype)
        self._file = self.path.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size
        if self._size != self.nbytes:
            raise ValueError(f"{self.path.name}: {self._size:,} bytes instead of {self.nbytes:,}")
        self._map = np.memmap(self._file, self.dtype, "r", shape=self.shape)
        _guard(self)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """A copy of these rows: int, slice or int [B].

        Raises:
          UserError: the file was truncated.
        """
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        values: np.ndarray = np.take(self._map, rows, axis=0)
        if self.cut_short():
            raise UserError(_cut(self.path))
        return values.view(np.ndarray)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_again, (str(self.path), self.shape, self.dtype)

    def cut_short(self) -> bool:
        """Whether the file is now shorter than the map."""
        return os.fstat(self._file.fileno()).st_size < self._size

    def blank(self) -> None:
        """Replaces the map by zeros, so that reads of it complete."""
        place = ctypes.c_void_p(self._map.ctypes.data)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        _libc.mmap(place, ctypes.c_size_t(self.nbytes), mmap.PROT_READ, flags, -1, ctypes.c_long(0))


def _map_again(path: str, shape: tuple[int, ...], dtype: np.dtype) -> MappedArray:
    """Maps the file in a worker process; it was complete when the data set was opened."""
    try:
        return MappedArray(path, shape, dtype)
    except (OSError, ValueError) as error:
        raise UserError(_cut(path)) from error


def _cut(path: str | pathlib.Path) -> str:
    return f"{path} was cut short while it was read; start again, and it is rebuilt"


# ------------------------------------------------------------------------------------------ SIGBUS

_libc = ctypes.CDLL(None)
_libc.signal.restype = ctypes.c_void_p
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.mmap.restype = ctypes.c_void_p
_open: weakref.WeakSet[MappedArray] = weakref.WeakSet()
_lock = threading.Lock()
_previous: int | None = None  # the handler before ours, once ours is installed


@ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
def _at_bus_error(number: int) -> None:
    """Runs in the reading thread, inside numpy's copy, where no lock is held.

    Python's own `signal` would not work: its handlers wait for the next line of Python, and the
    copy would fault again and again. If none of our files was truncated, the previous handler is
    restored and gets the signal when the same read faults again.
    """
    lost = [images for images in list(_open) if images.cut_short()]
    for images in lost:
        images.blank()
    if not lost:
        _libc.signal(number, _previous)


def _guard(images: MappedArray) -> None:
    global _previous
    with _lock:
        _open.add(images)
        if _previous is None:
            handler = ctypes.cast(_at_bus_error, ctypes.c_void_p)
            _previous = _libc.signal(signal.SIGBUS, handler) or int(signal.SIG_DFL)
