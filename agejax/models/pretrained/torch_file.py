"""Reads state dicts written by torch.save, without torch and without running any code.

A pickle is a program. Here it runs on our own stack machine, which can build containers, numbers,
text and descriptions of tensors, and looks up no name: the table in `_call` lists what it may call.
All other names, and the results of calling them, become placeholders that do nothing: a training
checkpoint has such objects beside its tensors (arguments, optimizers, numpy's numbers).

Two formats: since torch 1.6 a zip archive (`NAME/data.pkl`, `NAME/data/KEY`, all uncompressed);
before, five pickles (magic number, version, machine, object, storage keys) and the raw storages.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from agejax.errors import UserError, few
from agejax.models.pretrained.layout import Tensors

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}
DTYPES = {
    f"{module}.{name}": np.dtype(dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in STORAGES.items()
}
EMPTY_TENSORS = {name.replace("Storage", "Tensor") for name in DTYPES} | {"torch.Tensor"}
CALLABLE = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    *EMPTY_TENSORS,
}
LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
# Names of the state dict in larger checkpoints. A moving average of the weights comes first, since
# it is what was evaluated and published.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "module"),
)
DEPTH = 3  # of nested dicts that hold tensors
LONGEST = 500  # characters of the joined keys of the dicts around a tensor
ROOM = 4  # tensors may need this many times the file's size, since tied ones share a storage


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name in the pickle, which is never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Unknown:
    """The placeholder for the result of calling an unknown name. Takes anything, does nothing.

    Attributes:
      name: what would be called.
    """

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[Any]
    key: str
    length: int


@dataclasses.dataclass
class _Tensor:
    """A view of a storage; all but the dtype in elements. Not frozen: BUILD fills an empty one."""

    storage: _Storage | None = None
    offset: int = 0
    size: tuple[int, ...] = (0,)
    stride: tuple[int, ...] = (1,)


def read_zip(path: str) -> Tensors:
    """Reads the tensors of a state dict in torch's zip format.

    Raises:
      UserError: a file that is damaged, holds more than tensors, or needs too much memory. As in
        all readers, the message continues the file's name.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        folders = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(folders) != 1 or not folders[0] or "/" in folders[0]:
            raise UserError(f"is a zip archive ({few(names)}), but not one of torch.save")
        (folder,) = folders
        if f"{folder}/constants.pkl" in names:
            raise UserError("is a TorchScript archive; save the model's state_dict() instead")
        total = 0
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"has a compressed member, {member.filename}; torch writes none")
            # zipfile allocates as much memory as a member claims to need.
            total += max(member.file_size, member.compress_size)
        if total > os.path.getsize(path):
            raise UserError("has members that are larger than itself")
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise UserError("is of a big-endian machine; save it again on another")
        machine = _Machine()
        described = _state_dict(machine.run(io.BytesIO(archive.read(f"{folder}/data.pkl"))))
        return _tensors(described, lambda key: archive.read(f"{folder}/data/{key}"), path)


def read_legacy(path: str) -> Tensors:
    """Reads the tensors of a state dict in torch's format before 1.6; errors as in `read_zip`."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (first := _Machine().run(data)) != MAGIC:
            raise UserError(f"is a pickle of {_describe(first)}, but not one of torch.save")
        _Machine().run(data)  # the format's version: there was only one
        system = _Machine().run(data)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise UserError("is of a big-endian machine, or damaged; save it again on another")
        machine = _Machine()
        described = _state_dict(machine.run(data))
        places = {}
        for key in _Machine().run(data):
            key = _text(key)
            if key not in machine.storages:
                raise UserError(
                    f"is damaged, or its storage {key[:80]} holds numbers of a kind that numpy "
                    "does not have; save it in float32"
                )
            (length,) = struct.unpack("<q", data.read(8))
            size = length * machine.storages[key].dtype.itemsize
            if not 0 <= size <= len(data) - data.tell():
                raise UserError(f"is cut off in the storage {key}; get it again")
            places[key] = slice(data.tell(), data.tell() + size)
            data.seek(size, os.SEEK_CUR)
        return _tensors(described, lambda key: data[places[key]], path)


# ---- from a pickle to descriptions ---------------------------------------------------------------


class _Machine:
    """A pickle's stack machine, with the opcodes that torch.save produces.

    Dicts keep only text keys: a state dict has no others, and hashing nested tuples is a known way
    to hang a reader.

    Attributes:
      storages: those that the pickle refers to, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes] | mmap.mmap) -> Any:
        """The object of one pickle; the file is left at the pickle's end."""
        operations = pickletools.genops(file)  # type: ignore[arg-type]
        for i, (opcode, argument, _) in enumerate(operations):
            if opcode.name == "STOP":
                break
            if i and opcode.name == "PROTO":
                raise UserError("is damaged: a pickle begins before another ends; get it again")
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case _ if opcode in LITERALS:
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(opcode[-1]))))
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "TUPLE":
                items = self._pop_mark()
                self._stack.append(tuple(items))
            case "EMPTY_SET":
                stack.append(_Unknown("set"))
            case "FROZENSET":
                self._pop_mark()
                self._stack.append(_Unknown("frozenset"))
            case "LIST":
                items = self._pop_mark()
                self._stack.append(items)
            case "DICT":
                items = self._pop_mark()
                self._stack.append(_update({}, items))
            case "POP":
                self._pop(1)
            case "POP_MARK":
                self._pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "APPEND":
                _extend(stack[-2], self._pop(1))
            case "APPENDS" | "ADDITEMS":
                items = self._pop_mark()
                _extend(self._stack[-1], items)
            case "SETITEM":
                _update(stack[-3], self._pop(2))
            case "SETITEMS":
                items = self._pop_mark()
                _update(self._stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(_Global(".".join(map(_text, self._pop(2)))))
            case "REDUCE" | "NEWOBJ":
                stack.append(_call(*self._pop(2)))
            case "NEWOBJ_EX":
                stack.append(_call(*self._pop(3)[:2]))
            case "BUILD":
                (state,) = self._pop(1)
                _build(stack[-1], state)
            case "BINPERSID":
                stack.append(self._storage(*self._pop(1)))
            case _:
                raise UserError(f"has the pickle opcode {opcode}, which no state dict needs")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise UserError("is damaged: its pickle takes more than it has; get it again")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _storage(self, identity: Any) -> _Storage | _Unknown:
        match identity:
            # The last form, of the older format, is a part of another storage.
            case (kind, _Global(name), key, _, int(length)) | (
                kind, _Global(name), key, _, int(length), None
            ) if _text(kind) == "storage" and name in DTYPES:  # fmt: skip
                storage = _Storage(DTYPES[name], _text(key), length)
                if self.storages.setdefault(storage.key, storage) == storage:
                    return storage
            case (kind, _Global(name), *_) if _text(kind) == "storage" and name not in DTYPES:
                return _Unknown(name)
        raise UserError("refers to something that is not a plain storage; save its state_dict()")


def _text(value: Any) -> str:
    if isinstance(value, bytes):  # of Python 2
        return value.decode()
    if not isinstance(value, str):
        raise UserError(f"is damaged: {_kind(value)} where a name should be; get it again")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, (_Global, _Unknown)):
        return value.name[:80]
    return type(value).__name__.strip("_").lower()


def _describe(root: Any) -> str:
    """What a pickle holds, in a few words."""
    if isinstance(root, (list, tuple)) and root:
        return f"a {_kind(root)} of {few(list(map(_kind, root)))}"
    if isinstance(root, dict) and root:
        entries = [
            f"{key}: {_kind(value)}" if isinstance(value, _Unknown) else key
            for key, value in root.items()
        ]
        return f"a dict of {few(entries)}"
    return f"a {_kind(root)}"


def _call(function: Any, arguments: Any) -> Any:
    """The result of calling an allowed name; the only place where names have a meaning."""
    name = function.name if isinstance(function, (_Global, _Unknown)) else ""
    if isinstance(function, _Unknown) or (name and name not in CALLABLE and name not in DTYPES):
        return _Unknown(name)
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list() as pairs,):  # of Python 2
            items = [part for key, value in pairs for part in (key, value)]
            pairs.clear()  # so that a short pickle cannot copy one long list again and again
            return _update({}, items)
        case "torch.Size", (tuple() as size,):
            return size
        case "torch._utils._rebuild_tensor", (_Storage(), _, _, _):
            return _Tensor(*arguments)
        case "torch._utils._rebuild_tensor_v2", (_Storage(), _, _, _, _, _):
            return _Tensor(*arguments[:4])
        # The seventh is {"conj": True} or {"neg": True} if values must be conjugated or negated.
        case "torch._utils._rebuild_tensor_v2", (_Storage(), _, _, _, _, _, {**flags}) if not flags:
            return _Tensor(*arguments[:4])
        case (
            ("torch._utils._rebuild_parameter" | "torch.nn.parameter.Parameter"),
            (_Tensor(), *_),
        ):
            return arguments[0]
        # A tensor in a storage of a type that numpy does not have.
        case _, (_Unknown() as unknown, *_):
            return unknown
        case _, () if name in EMPTY_TENSORS:
            return _Tensor()
    raise UserError(f"calls {_kind(function)} in a way that torch never does; get it again")


def _build(instance: Any, state: Any) -> None:
    """Sets attributes of a new object; only the storage view of an empty tensor matters."""
    match instance, state:
        # For example a state dict's _metadata, the versions of its modules.
        case ((dict() | _Unknown()), _):
            pass
        case _Tensor(storage=None), (_Storage() as storage, offset, size, stride):
            instance.storage, instance.offset = storage, offset
            instance.size, instance.stride = size, stride
        case _Tensor(), (_, _, _):  # a Variable's requires_grad, volatile, hooks
            pass
        case _:
            raise UserError(f"sets the state of a {_kind(instance)}, which no state dict needs")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, _Unknown):
        return
    if not isinstance(target, list):
        raise UserError(f"is damaged: it appends to a {_kind(target)}; get it again")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> dict[str, Any]:
    if isinstance(target, _Unknown):
        return {}
    if not isinstance(target, dict) or len(items) % 2:
        raise UserError(f"is damaged: it sets items of a {_kind(target)}; get it again")
    target.update(
        (key, value)
        for key, value in zip(items[::2], items[1::2], strict=True)
        if isinstance(key, str)
    )
    return target


# ---- from descriptions to arrays -----------------------------------------------------------------


def _tensors(described: Mapping[str, _Tensor], data: Callable[[str], bytes], path: str) -> Tensors:
    values: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in described.items():
        storage = tensor.storage
        if storage is not None and storage.key not in values:
            raw = data(storage.key)
            if storage.length * storage.dtype.itemsize != len(raw):
                raise UserError(f"is damaged: the storage of {name} has another size; get it again")
            values[storage.key] = np.frombuffer(raw, storage.dtype)
        arrays[name] = _view(tensor, values, name)
    if sum(array.nbytes for array in arrays.values()) > ROOM * os.path.getsize(path):
        raise UserError("has tensors that overlap and together are far larger than itself")
    return arrays


def _state_dict(root: Any) -> dict[str, _Tensor]:
    """The named tensors: of the first wrapper that has any, otherwise of the dict itself.

    Tensors of nested dicts, such as one for a backbone and one for a head, get the dict's key
    before theirs.

    Raises:
      UserError: there are no tensors.
    """
    seen: set[int] = set()  # dicts without tensors: in a pickle one may contain itself

    def named(root: Any, prefix: str, depth: int) -> dict[str, _Tensor]:
        if not isinstance(root, dict) or id(root) in seen:
            return {}
        if depth > DEPTH or len(prefix) > LONGEST:
            return {}
        seen.add(id(root))
        found = {prefix + key: value for key, value in root.items() if isinstance(value, _Tensor)}
        for key, value in root.items():
            found |= named(value, f"{prefix}{key}.", depth + 1)
        return found

    def unwrapped(root: Any, depth: int) -> dict[str, _Tensor]:
        if not isinstance(root, dict) or depth > DEPTH:
            return {}
        for name in WRAPPERS:
            inner = root.get(name)
            if id(inner) not in seen and (found := unwrapped(inner, depth + 1)):
                return found
        return named(root, "", depth)

    if found := unwrapped(root, 0):
        return found
    raise UserError(
        f"has no tensors where a state dict has them (it is {_describe(root)}); no code of a "
        "weights file is run: save the model's state_dict()"
    )


def _view(tensor: _Tensor, values: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A view of the tensor's part of its storage, not a copy."""
    if tensor.storage is None:
        return np.zeros(0, np.float32)
    flat, offset, size, stride = (
        values[tensor.storage.key],
        tensor.offset,
        tensor.size,
        tensor.stride,
    )
    plain = isinstance(size, tuple) and isinstance(stride, tuple)
    if (
        not plain
        or not len(size) == len(stride) <= 32
        or not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride))
    ):
        raise UserError(f"is damaged: no shape and strides of {name}; get it again")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > flat.size or (count and last >= flat.size):
        raise UserError(f"is damaged: {name} reaches out of its storage; get it again")
    if not count:
        return np.zeros(size, flat.dtype)
    steps = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)
