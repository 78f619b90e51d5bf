"""An array in a file that is mapped to memory, and what happens if the file is cut short.

The kernel answers a read behind the end of a mapped file with SIGBUS, which ends the process
without a word. Reads by system calls do not have that danger, but random batches came from them at
0.6 to 0.7 of the speed (32 and 128 px). So the map stays: at SIGBUS the lost file's map is replaced
by zeros, the copy comes to its end, and who asked for it gets an error, for every copy is followed
by a look at the file's size.
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

MAP_FIXED = 0x10  # which Python's mmap does not name; the same on Linux and macOS


class MappedArray:
    """An array in a file of nothing else, such as images uint8 [N, S, S, 3], read row by row.

    A pickle holds the path alone: worker processes map the file again.

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
            raise ValueError(f"{self.path.name}: {self._size:,} bytes are not {self.nbytes:,}")
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
          UserError: the file was cut short.
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
        """Whether the file has lost a part of what is mapped."""
        return os.fstat(self._file.fileno()).st_size < self._size

    def blank(self) -> None:
        """Puts zeros in place of the map, so that reads of it end."""
        place = ctypes.c_void_p(self._map.ctypes.data)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        _libc.mmap(place, ctypes.c_size_t(self.nbytes), mmap.PROT_READ, flags, -1, ctypes.c_long(0))


def _map_again(path: str, shape: tuple[int, ...], dtype: np.dtype) -> MappedArray:
    """In a worker process; the file was whole when the data set was opened."""
    try:
        return MappedArray(path, shape, dtype)
    except (OSError, ValueError) as error:
        raise UserError(_cut(path)) from error


def _cut(path: str | pathlib.Path) -> str:
    return f"{path} was cut short while it was read; start again, and it is made anew"


# ------------------------------------------------------------------------------------------ SIGBUS

_libc = ctypes.CDLL(None)
_libc.signal.restype = ctypes.c_void_p
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.mmap.restype = ctypes.c_void_p
_open: weakref.WeakSet[MappedArray] = weakref.WeakSet()
_lock = threading.Lock()
_previous: int | None = None  # the handler before ours, once ours is there


@ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
def _at_bus_error(number: int) -> None:
    """Runs in the thread that read: inside of numpy's copy, where nothing is locked.

    Python's own `signal` would not do: its handlers wait for the next line of Python, and the
    copy would fault again and again. Where no file of ours was cut, the handler before this one
    gets the signal, as the same read faults once more.
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
