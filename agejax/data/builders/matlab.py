"""Reads MATLAB's .mat files of version 5 to 7 that hold a table: one struct of numbers and texts.

scipy's reader trusts type codes in the file, so a damaged file can crash the process.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np

from agejax.data.builders import archives

HEADER = 128  # bytes; the last two give the byte order
ORDERS = {b"IM": "<", b"MI": ">"}
COMPRESSED = 15
CELLS, STRUCT, TEXT, NUMBERS = 1, 2, 4, range(6, 16)  # classes of arrays
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CODES = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}

Value = np.ndarray | str | list["Value"]  # numbers (float64, flat); text; cells


def read(data: bytes, name: str, fields: Collection[str]) -> dict[str, Value]:
    """Some fields of the struct that a file stores by this name.

    Raises:
      errors.DAMAGE: no such struct or field, or bytes that MATLAB would not write.
    """
    order = ORDERS[data[HEADER - 2 : HEADER]]
    for kind, found in _elements(memoryview(data)[HEADER:], order):
        array = found
        if kind == COMPRESSED:
            ((_, array),) = _elements(_unpacked(found), order)
        kind, called, parts = _array(array, order)
        if kind == STRUCT and called == name:
            (_, width), (_, names), *values = parts
            step = struct.unpack(f"{order}i", width)[0]
            keys = [_name(names[i : i + step]) for i in range(0, len(names), step)]
            stored = dict(zip(keys, (part for _, part in values), strict=True))
            return {field: _value(stored[field], order) for field in fields}
    raise LookupError(f"no struct {name}")


Element = tuple[int, memoryview]  # its type and data


def _elements(data: memoryview, order: str) -> Iterator[Element]:
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, end = at + 8, at + 8 + size
        if kind >> 16:  # a small element, which holds its data in place of the size
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 4 + size
        if end > len(data):
            raise ValueError("it ends too early")
        yield kind, data[start:end]
        at = end if kind == COMPRESSED else end + (at - end) % 8


def _unpacked(data: memoryview) -> memoryview:
    unpacker = zlib.decompressobj()
    most = max(archives.ALWAYS, archives.INFLATION * len(data))
    unpacked = unpacker.decompress(data, most)
    if not unpacker.eof:
        raise ValueError("it is cut, or unpacks to far more than its size")
    return memoryview(unpacked)


def _array(data: memoryview, order: str) -> tuple[int, str, list[Element]]:
    """(class, name, contents)"""
    (_, flags), _, (_, name), *parts = _elements(data, order)
    return struct.unpack_from(f"{order}I", flags)[0] & 0xFF, _name(name), parts


def _name(data: memoryview) -> str:
    return bytes(data).split(b"\0")[0].decode("latin-1")


def _value(data: memoryview, order: str) -> Value:
    if not data:  # an empty cell
        return np.zeros(0)
    kind, _, parts = _array(data, order)
    if kind == CELLS:
        return [_value(part, order) for _, part in parts]
    code, stored = parts[0]
    if kind == TEXT:
        code_name = CODES[code]
        if code_name in ("utf-16", "utf-32"):
            code_name += "-le" if order == "<" else "-be"
        return bytes(stored).decode(code_name)
    if kind in NUMBERS:
        return np.frombuffer(stored, f"{order}{TYPES[code]}").astype(np.float64)
    raise ValueError(f"an array of class {kind}")
