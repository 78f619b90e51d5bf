"""Weights files: every format gives its arrays; none can run code, hang or fill memory."""

import contextlib
import io
import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agejax.errors import UserError
from agejax.models.pretrained import files

# ---- torch.save without torch: pickles written opcode by opcode ----------------------------------

MAGIC = 0x1950A86A20F9469CFC6C


class Global(str):
    """ "module name", pushed by GLOBAL."""


class Storage(tuple):
    """A persistent id."""


class Call:
    """A function, its arguments, and what BUILD gets."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state


class Raw(bytes):
    """Raw opcodes."""


def code(value):
    match value:
        case Raw():
            return bytes(value)
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case Global():
            return b"c" + value.replace(" ", "\n").encode() + b"\n"
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case Storage():
            return code(tuple(value)) + b"Q"
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case dict():
            return b"}(" + b"".join(code(k) + code(v) for k, v in value.items()) + b"u"
        case Call():
            state = code(value.state) + b"b" if value.state is not None else b""
            return code(value.function) + code(value.arguments) + b"R" + state


def dump(value):
    return b"\x80\x02" + code(value) + b"."


def storage(key, length, kind="Float"):
    return Storage(("storage", Global(f"torch {kind}Storage"), key, "cpu", length))


def tensor(held, size, stride=None, offset=0):
    if stride is None:
        stride = tuple(int(np.prod(size[i + 1 :])) for i in range(len(size)))
    hooks = Call(Global("collections OrderedDict"))
    arguments = (held, offset, size, stride, False, hooks)
    return Call(Global("torch._utils _rebuild_tensor_v2"), *arguments)


def write_zip(path, root, storages, *, byteorder=b"little", folder="archive", **more):
    members = {"data.pkl": root if isinstance(root, bytes) else dump(root), "byteorder": byteorder}
    members |= {f"data/{key}": np.asarray(value).tobytes() for key, value in storages.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | more).items():
            archive.writestr(f"{folder}/{name}", data)


def write_legacy(path, root, storages, *, little_endian=True):
    with open(path, "wb") as file:
        for part in (MAGIC, 1001, {"little_endian": little_endian}):
            file.write(dump(part))
        file.write(root if isinstance(root, bytes) else dump(root))
        file.write(dump(list(storages)))
        for value in storages.values():
            file.write(struct.pack("<q", len(value)) + np.asarray(value).tobytes())


WRITERS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def read(path):
    return files.read(str(path), f"config.model.pretrained: {path}")


def refused(path):
    """The message of the one-line error that reading must raise."""
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


VALUES = np.arange(12, dtype=np.float32) / 7


# ---- what they hold ------------------------------------------------------------------------------


def test_views_of_storages_come_as_torch_means_them(write, tmp_path):
    held = storage("0", 12)
    root = Call(
        Global("collections OrderedDict"),
        state={"_metadata": Call(Global("collections OrderedDict"))},
    )
    entries = {
        "a.weight": tensor(held, (3, 4)),
        "a.transposed": tensor(held, (4, 3), (1, 4)),
        "a.part": tensor(held, (2, 2), (4, 2), 5),
        "a.scalar": tensor(held, (), (), 11),
        "a.empty": tensor(held, (0, 3)),
        "a.parameter": Call(
            Global("torch._utils _rebuild_parameter"),
            tensor(held, (12,)),
            True,
            Call(Global("collections OrderedDict")),
        ),
        "a.counter": tensor(storage("1", 1, "Long"), ()),
    }
    items = b"(" + b"".join(code(k) + code(v) for k, v in entries.items()) + b"u"
    write(
        tmp_path / "w", b"\x80\x02" + code(root) + items + b".", {"0": VALUES, "1": np.array([7])}
    )
    got = read(tmp_path / "w")
    assert list(got) == list(entries)
    np.testing.assert_array_equal(got["a.weight"], VALUES.reshape(3, 4))
    np.testing.assert_array_equal(got["a.transposed"], VALUES.reshape(3, 4).T)
    np.testing.assert_array_equal(got["a.part"], VALUES[[[5, 7], [9, 11]]])
    np.testing.assert_array_equal(got["a.scalar"], VALUES[11])
    np.testing.assert_array_equal(got["a.parameter"], VALUES)
    assert got["a.empty"].shape == (0, 3)
    assert got["a.counter"] == 7


def test_every_width_is_read_and_floats_become_float32(write, tmp_path):
    kinds = {
        "Float": np.float32, "Double": np.float64, "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16, "Char": np.int8, "Byte": np.uint8, "Short": np.int16,
        "Int": np.int32, "Long": np.int64, "Bool": np.bool_,
    }  # fmt: skip
    storages = {kind: np.array([1, 0, 3, 1]).astype(dtype) for kind, dtype in kinds.items()}
    root = {kind: tensor(storage(kind, 4, kind), (2, 2)) for kind in kinds}
    write(tmp_path / "w", root, storages)
    for kind, array in read(tmp_path / "w").items():
        floating = kind in ("Float", "Double", "Half", "BFloat16")
        assert array.dtype == (np.float32 if floating else kinds[kind])
        np.testing.assert_array_equal(array.ravel(), storages[kind].astype(array.dtype))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "ema"])
def test_a_training_checkpoint_gives_its_state_dict(write, wrapper, tmp_path):
    weights = {"module.fc.bias": tensor(storage("0", 12), (12,))}
    root = {
        "epoch": 3,
        "loss": tensor(storage("1", 1), ()),
        wrapper: weights | {"note": "not a tensor"},
        "optimizer": {"state": {0: {"step": 3, "lr": (0.5, None, True)}}, "groups": [{"lr": 0.1}]},
    }
    write(tmp_path / "w", root, {"0": VALUES, "1": VALUES[:1]})
    got = read(tmp_path / "w")
    assert list(got) == ["fc.bias"]
    np.testing.assert_array_equal(got["fc.bias"], VALUES)


def test_the_moving_average_of_the_weights_goes_before_the_weights(write, tmp_path):
    root = {
        "state_dict": {"w": tensor(storage("0", 12), (12,))},
        "state_dict_ema": {"w": tensor(storage("1", 12), (12,))},
    }
    write(tmp_path / "w", root, {"0": VALUES, "1": 2 * VALUES})
    np.testing.assert_array_equal(read(tmp_path / "w")["w"], 2 * VALUES)


def test_state_dicts_of_2017_are_read(tmp_path):
    """From Python 2 and torch 0.1: text as bytes, a list of pairs, parameters with a state."""
    old = (storage("0", 12), 0, (3, 4), (4, 1))
    hooks = Call(Global("collections OrderedDict"))
    a = Call(
        Global("torch.nn.parameter Parameter"),
        Call(Global("torch._utils _rebuild_tensor"), *old),
        state=(True, False, hooks),
    )
    b = Call(Global("torch FloatTensor"), state=old)
    text = Raw(b"U\x01a")  # SHORT_BINSTRING
    root = Call(Global("collections OrderedDict"), [[text, a], ["b", b]])
    write_legacy(tmp_path / "w", root, {"0": VALUES})
    got = read(tmp_path / "w")
    assert list(got) == ["a", "b"]
    for array in got.values():
        np.testing.assert_array_equal(array, VALUES.reshape(3, 4))


def test_npz_and_safetensors_come_with_halves_as_float32(tmp_path):
    arrays = {"a/kernel": VALUES.reshape(3, 4), "b": VALUES.astype(np.float16), "i": np.arange(3)}
    half = {"c": VALUES.astype(ml_dtypes.bfloat16)}
    np.savez(tmp_path / "w", **arrays, **{"c": half["c"].view("V2")})
    np.savez_compressed(tmp_path / "z", **arrays, f=np.asfortranarray(VALUES.reshape(3, 4)))
    with open(tmp_path / "s", "wb") as file:
        file.write(safetensors.numpy.save(arrays | half))
    for name in ("w.npz", "z.npz", "s"):
        got = read(tmp_path / name)
        np.testing.assert_array_equal(got["a/kernel"], arrays["a/kernel"])
        np.testing.assert_array_equal(got["i"], np.arange(3))
        for key in {"b", "c"} & got.keys():
            assert got[key].dtype == np.float32
            np.testing.assert_allclose(got[key], VALUES, rtol=1e-2)
    np.testing.assert_array_equal(read(tmp_path / "z.npz")["f"], VALUES.reshape(3, 4))


def test_the_format_is_told_by_the_content(tmp_path):
    write_zip(tmp_path / "w.safetensors", {"a": tensor(storage("0", 12), (12,))}, {"0": VALUES})
    assert list(read(tmp_path / "w.safetensors")) == ["a"]
    (tmp_path / "w.pth").write_bytes(safetensors.numpy.save({"b": VALUES}))
    assert list(read(tmp_path / "w.pth")) == ["b"]
    (tmp_path / "w.npz").write_text("<html>not found</html>")
    assert "is a web page" in refused(tmp_path / "w.npz")
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "is empty" in refused(tmp_path / "empty.pth")


def test_a_safetensors_file_is_none_of_torch_whatever_the_length_of_its_header(tmp_path):
    for length in range(60):
        name = "w" * (length + 1)
        (tmp_path / "w").write_bytes(safetensors.numpy.save({name: VALUES}))
        assert list(read(tmp_path / "w")) == [name]


# ---- what they may not do ------------------------------------------------------------------------


class Malice:
    """An object that pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CANARY = "a_weights_file_was_run"
TOUCH = f"touch {CANARY}"
OPEN = f"open({CANARY!r}, 'w').close()"
SYSTEM = Global("os system")
V2 = Global("torch._utils _rebuild_tensor_v2")
HELD = storage("0", 12)
VIEW = (HELD, 0, (12,), (1,), False, Call(Global("collections OrderedDict")))
MALICE = {
    "os.system": ("posix.system", pickle.dumps(Malice(os.system, TOUCH), 2)),
    "stack global": ("posix.system", pickle.dumps({"w": Malice(os.system, TOUCH)}, 4)),
    "eval": ("builtins.eval", pickle.dumps([Malice(eval, OPEN)], 4)),
    "exec in Python 2": ("__builtin__.exec", dump(Call(Global("__builtin__ exec"), OPEN))),
    "getattr": ("builtins.getattr", dump(Call(Global("builtins getattr"), V2, "__globals__"))),
    "from the memo": (
        "os.system",
        dump(Raw(code(SYSTEM) + b"q\x000h\x00" + code((TOUCH,)) + b"R")),
    ),
    "a deep name": (
        "_rebuild_tensor_v2.__globals__",
        dump(Raw(code("torch._utils") + code("_rebuild_tensor_v2.__globals__") + b"\x93")),
    ),
    "a text is called": ("calls str", dump(Call("os.system", TOUCH))),
    "torch.load": ("torch.load", dump(Call(Global("torch load"), "http://x"))),
    "obj": ("opcode", dump(Raw(b"(" + code(TOUCH) + b"ios\nsystem\n"))),
    "extension": ("opcode", dump(Raw(b"\x82\x01"))),
    "state of a name": ("sets the state", dump(Raw(code(V2) + code({"__code__": 1}) + b"b"))),
    "state of a tensor": ("sets the state", dump(Call(V2, *VIEW, state={"__class__": "x"}))),
    "wrong arguments": ("never does", dump(Call(V2, "x", 0, (1,), (1,), False, {}))),
    "too few arguments": ("never does", dump(Call(V2, HELD))),
    "arguments that are no tuple": ("never does", dump(Raw(code(V2) + code("ab") + b"R"))),
    "a dict of a number": ("never does", dump(Call(Global("collections OrderedDict"), 5))),
    "a negated view": ("never does", dump(Call(V2, HELD, 0, (1,), (1,), False, {}, {"neg": True}))),
    "a module": (
        "plain storage",
        dump(Storage(("module", Global("torch FloatStorage"), "file", "source"))),
    ),
    "appends to a name": ("appends", dump(Raw(code(V2) + b"(K\x01e"))),
    "items of a tensor": ("sets items", dump(Raw(code(tensor(HELD, (12,))) + b"(K\x01K\x02u"))),
    "an empty stack": ("is damaged", dump(Raw(b"R"))),
    "no mark": ("is damaged", dump(Raw(b"t"))),
    "no memo": ("is damaged", dump(Raw(b"h\x07"))),
    "no end": ("is damaged", b"\x80\x02}"),
}


@pytest.mark.parametrize("name", MALICE)
def test_nothing_in_a_pickle_is_run(write, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected, root = MALICE[name]
    write(tmp_path / "w", root, {"0": VALUES})
    assert expected in refused(tmp_path / "w")
    assert not (tmp_path / CANARY).exists()


def test_a_pickle_of_anything_else_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        (tmp_path / "w").write_bytes(pickle.dumps(Malice(os.system, TOUCH), protocol))
        refused(tmp_path / "w")
    (tmp_path / "w").write_bytes(pickle.dumps({"w": 1}, 4))
    assert "not one of torch.save" in refused(tmp_path / "w")
    assert not (tmp_path / CANARY).exists()


@contextlib.contextmanager
def at_most(memory):
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < memory


def held(length=12, **view):
    return {"w": tensor(storage("0", length), **view)}


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (held(size=(13,)), "out of its storage"),
        (held(size=(3, 4), stride=(4, 2)), "out of its storage"),
        (held(size=(4,), offset=9), "out of its storage"),
        (held(size=(4,), stride=(-1,), offset=9), "no shape"),
        (held(size=(4,), offset=-1), "no shape"),
        (held(size=(2**40, 2**40), stride=(0, 0)), "out of its storage"),
        (held(size=(2**62, 0), stride=(1, 1)), "no shape"),
        (held(size=("a",), stride=(1,)), "no shape"),
        (held(size=(12,), stride=()), "no shape"),
        (held(size=(1,) * 99, stride=(0,) * 99), "no shape"),
        (held(2**50, size=(12,)), "damaged|cut off"),
        (held(-1, size=(12,)), "damaged|cut off"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(write, root, message, tmp_path):
    write(tmp_path / "w", root, {"0": VALUES})
    with at_most(10e6):
        assert re.search(message, refused(tmp_path / "w"))


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ({"w": "text", 3: 4}, "no tensors where a state dict has them (it is a dict of w)"),
        ([1], "no tensors where a state dict has them (it is a list of int)"),
    ],
)
def test_a_file_without_tensors_says_what_it_has(write, root, message, tmp_path):
    write(tmp_path / "w", root, {})
    assert message in refused(tmp_path / "w")


def test_tied_tensors_may_share_a_storage(write, tmp_path):
    write(tmp_path / "w", {f"w{i}": tensor(HELD, (12,)) for i in range(20)}, {"0": VALUES})
    assert len(read(tmp_path / "w")) == 20


def test_views_of_one_storage_may_not_be_far_larger_than_the_file(write, tmp_path):
    root = {f"w{i}": tensor(storage("0", 100_000, "Half"), (100_000,)) for i in range(50)}
    write(tmp_path / "w", root, {"0": np.zeros(100_000, np.float16)})
    assert "overlap" in refused(tmp_path / "w")


def test_a_cut_file_says_so(write, tmp_path):
    write(tmp_path / "w", held(size=(12,)), {"0": VALUES})
    whole = (tmp_path / "w").read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 40, 10):
        (tmp_path / "w").write_bytes(whole[:size])
        assert "damaged" in refused(tmp_path / "w") or "cut off" in refused(tmp_path / "w")


def test_a_storage_that_is_missing_or_damaged_is_an_error(tmp_path):
    write_zip(tmp_path / "w", held(size=(12,)), {})
    assert "is damaged" in refused(tmp_path / "w")
    write_zip(tmp_path / "w", held(size=(12,)), {"0": VALUES})
    data = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(data.replace(VALUES.tobytes(), VALUES[::-1].tobytes()))
    assert "CRC" in refused(tmp_path / "w")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"byteorder": b"big"}, "big-endian"),
        ({"folder": ""}, "not one of torch.save"),
        ({"folder": "/etc"}, "not one of torch.save"),
        ({"folder": "a/b"}, "not one of torch.save"),
        ({"inner/data.pkl": b""}, "not one of torch.save"),
        ({"constants.pkl": b""}, "TorchScript"),
    ],
)
def test_a_zip_that_is_no_state_dict_is_an_error(more, message, tmp_path):
    write_zip(tmp_path / "w", held(size=(12,)), {"0": VALUES}, **more)
    assert message in refused(tmp_path / "w")


def test_a_big_endian_legacy_file_is_an_error(tmp_path):
    write_legacy(tmp_path / "w", held(size=(12,)), {"0": VALUES}, little_endian=False)
    assert "big-endian" in refused(tmp_path / "w")


def zeros(size):
    return io.BytesIO(bytes(size)).getbuffer()


@pytest.mark.parametrize("name", ["archive/data/0", "w.npy"])
def test_a_zip_bomb_is_refused_unopened(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "w", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dump(held(25_000_000, size=(25_000_000,))))
        archive.writestr(name, zeros(100_000_000))
    with at_most(10e6):
        message = refused(tmp_path / "w")
    assert "compressed" in message or "more than its own size" in message


def npy(header, data=b""):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}"), "size of w.npy"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"1234"), "size of w.npy"),
        (
            npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}", b"N."),
            "not a type of weights",
        ),
        (
            npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}"),
            "not a type of weights",
        ),
        (npy("{'descr': '<U4', 'fortran_order': False, 'shape': (0,)}"), "not a type of weights"),
        (npy("__import__('os').system('false')"), "is damaged"),
        (b"junk", "is damaged"),
        (b"\x93NUMPY\x07\x00", "version"),
    ],
)
def test_an_npz_of_anything_but_weights_is_an_error(data, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("w.npy", data)
    assert message in refused(tmp_path / "w")


def test_a_pickle_that_asks_for_work_without_end_is_read_in_no_time(tmp_path):
    nested = b"K\x01" + b"q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(200))
    itself = b"}q\x01(" + code("model") + b"h\x01" + code("ema") + b"h\x01u"
    pairs = Raw(b"](" + code(["k", 1]) * 2000 + b"eq\x020")
    again = Raw(code(Global("collections OrderedDict")) + b"h\x02\x85R0")
    start = time.monotonic()
    for root in (
        Raw(b"}(" + nested + b"K\x01u"),  # a key whose hash takes 2^200 steps
        Raw(itself),
        Raw(pairs + again * 2000 + b"N"),
        Raw(b"Nr\xff\xff\xff\xff"),  # a memo of four billion
        Raw(b"\x8d" + struct.pack("<Q", 2**40) + b"x"),  # a text of a terabyte
        Raw(b"\x8b" + struct.pack("<i", 2**30) + b"1"),
    ):
        for name, write in WRITERS.items():
            write(tmp_path / name, dump(root), {"0": VALUES})
            refused(tmp_path / name)
    assert time.monotonic() - start < 5


# ---- mutated files -------------------------------------------------------------------------------


def whole(kind, path):
    root = {"state_dict": held(size=(3, 4)) | {"b": tensor(HELD, (2,), (3,), 1)}, "epoch": 3}
    match kind:
        case "zip" | "legacy":
            WRITERS[kind](path, root, {"0": VALUES})
        case "pickle":
            path.write_bytes(dump(root))
        case "npz":
            np.savez(path.with_suffix(".npz"), a=VALUES, b=VALUES.astype(np.float16))
            path.with_suffix(".npz").rename(path)
        case "safetensors":
            path.write_bytes(safetensors.numpy.save({"a": VALUES, "b": VALUES[:3]}))
    return path.read_bytes()


edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(min_size=1, max_size=9)), max_size=6
)


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy", "npz", "safetensors"])
@settings(
    max_examples=150, deadline=30_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=edits)
@example(edits=[(0.5, 0, bytes(9))])
def test_a_mutated_file_is_read_or_refused_and_nothing_else(kind, edits, tmp_path):
    path = tmp_path / "w"
    data = bytearray(whole(kind, path))
    for place, cut, new in edits:
        at = int(place * len(data))
        data[at : at + cut] = new
    if kind == "pickle":  # behind the archive's checksums
        write_zip(path, bytes(data), {"0": VALUES})
    else:
        path.write_bytes(data)
    with at_most(20e6), contextlib.suppress(UserError):
        assert all(isinstance(array, np.ndarray) for array in read(path).values())


def test_a_zip_member_that_claims_a_gigabyte_takes_no_memory(tmp_path):
    for kind in ("zip", "npz"):
        data = whole(kind, tmp_path / "w")
        at = data.index(b"PK\x01\x02") + 20  # the first member's packed size
        (tmp_path / "w").write_bytes(data[:at] + struct.pack("<I", 2**30) + data[at + 4 :])
        with at_most(20e6):
            assert "larger than itself" in refused(tmp_path / "w")


# ---- training checkpoints ------------------------------------------------------------------------


def beside():
    """Other contents of training checkpoints, each as Python pickles it."""
    namespace = Raw(
        code(Global("argparse Namespace")) + b")\x81" + code({"lr": 0.1, "out": "runs"}) + b"b"
    )
    counter = Raw(
        code(Call(Global("collections Counter"), {"a": 1})) + b"(" + code("b") + b"K\x02u"
    )
    scalar = Call(
        Global("numpy.core.multiarray scalar"),
        Call(Global("numpy dtype"), "f8", False, True, state=(3, "<", None, None, None, -1, -1, 0)),
        Call(Global("_codecs encode"), "x" * 8, "latin1"),
    )
    a_set = Call(Global("__builtin__ set"), [1, 2])
    return {
        "epoch": 90,
        "arch": "mobilenet_v3_small",
        "best_acc1": scalar,
        "args": namespace,
        "seen": a_set,
        "counter": counter,
        "dtype": Global("torch float32"),
        "device": Call(Global("torch device"), "cuda", 0),
        "path": Call(Global("pathlib PosixPath"), "runs", "a"),
        "lr_scheduler": {"_last_lr": [0.1], "base": Call(Global("builtins complex"), 1.0, 0.0)},
        "rng": tensor(storage("9", 12, "Byte"), (12,)),
        "optimizer": {"state": {0: {"exp_avg": tensor(storage("9", 12, "Byte"), (12,))}}},
    }


BYTES = np.arange(12, dtype=np.uint8)


def test_a_whole_training_checkpoint_gives_its_tensors(write, tmp_path):
    root = beside() | {"state_dict": {"w": tensor(HELD, (12,))}}
    write(tmp_path / "w", root, {"9": BYTES, "0": VALUES})
    got = read(tmp_path / "w")
    assert list(got) == ["w"]
    np.testing.assert_array_equal(got["w"], VALUES)


def test_protocol_4_as_python_writes_it_is_read_too(tmp_path):
    """Placeholders, sets and memos of Python's own pickler, with a tensor in the middle."""
    others = {"a": {1, 2}, "b": frozenset("c"), "d": bytearray(b"e"), "f": range(3), "g": 2j}
    head, _, tail = pickle.dumps(others | {"PLACE": "HOLDER"}, 4).rpartition(b"\x8c\x06HOLDER")
    data = head + code(tensor(HELD, (12,))) + tail
    data = data[:3] + struct.pack("<Q", len(data) - 11) + data[11:]  # the frame's length
    write_zip(tmp_path / "w", data, {"0": VALUES})
    np.testing.assert_array_equal(read(tmp_path / "w")["PLACE"], VALUES)


def test_dicts_of_several_modules_are_one_with_their_keys_in_front(write, tmp_path):
    root = {
        "epoch": 3,
        "encoder": {"conv": tensor(HELD, (3, 4))},
        "head": {"deep": {"w": tensor(HELD, (12,))}},
    }
    write(tmp_path / "w", root, {"0": VALUES})
    assert list(read(tmp_path / "w")) == ["encoder.conv", "head.deep.w"]


def test_a_call_that_would_harm_is_inert_beside_the_tensors(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [
        Call(SYSTEM, TOUCH),
        Call(Global("builtins eval"), OPEN),
        Call(Global("builtins exec"), OPEN),
        Call(Call(Global("builtins getattr"), SYSTEM, "__call__"), TOUCH),
        Call(Global("builtins __import__"), "antigravity", state={"x": 1}),
    ]
    root = {f"call {i}": call for i, call in enumerate(calls)} | {"state_dict": held(size=(12,))}
    write(tmp_path / "w", root, {"0": VALUES})
    assert list(read(tmp_path / "w")) == ["w"]
    assert not (tmp_path / CANARY).exists()


def test_a_pickled_module_is_named_and_not_rebuilt(write, tmp_path):
    module = Raw(
        code(Global("torchvision.models.resnet ResNet")) + b")\x81" + code(held(size=(12,))) + b"b"
    )
    for root in (module, {"model": module, "epoch": 3}):
        write(tmp_path / "w", dump(root), {"0": VALUES})
        message = refused(tmp_path / "w")
        assert "torchvision.models.resnet.ResNet" in message
        assert "save the model's state_dict()" in message


def test_a_tensor_of_a_kind_that_numpy_lacks_is_left_out(tmp_path):
    root = {"a": tensor(HELD, (12,)), "b": tensor(storage("1", 12, "ComplexFloat"), (12,))}
    write_zip(tmp_path / "w", root, {"0": VALUES, "1": VALUES})
    assert list(read(tmp_path / "w")) == ["a"]


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod."],
)
def test_prefixes_of_wrappers_are_taken_off_in_any_order(prefix, tmp_path):
    arrays = {f"{prefix}{name}": VALUES for name in ("a.weight", "b")}
    (tmp_path / "w").write_bytes(safetensors.numpy.save(arrays))
    assert sorted(read(tmp_path / "w")) == ["a.weight", "b"]


def test_a_prefix_that_not_all_keys_have_stays(tmp_path):
    (tmp_path / "w").write_bytes(safetensors.numpy.save({"module.a": VALUES, "b": VALUES}))
    assert sorted(read(tmp_path / "w")) == ["b", "module.a"]


def test_parts_that_were_compiled_alone_have_their_plain_names(tmp_path):
    keys = {"features._orig_mod.0.weight": VALUES, "my_orig_mod.x": VALUES}
    (tmp_path / "w").write_bytes(safetensors.numpy.save(keys))
    assert sorted(read(tmp_path / "w")) == ["features.0.weight", "my_orig_mod.x"]


# ---- files that are something else ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.pth", b"<!DOCTYPE html><html>404</html>", "is a web page, such as a failed download"),
        ("w.pth", b"\n <HTML>", "is a web page"),
        ("w", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "git lfs pull"),
        ("w.png", b"\x89PNG\r\n\x1a\n" + bytes(20), "is an image; agejax reads .safetensors"),
        ("w.jpg", b"\xff\xd8\xff\xe0" + bytes(20), "is an image; agejax reads"),
        ("w.onnx", b"\x08\x08\x12\x07pytorch\x1a\x03", "looks like ONNX"),
        ("saved_model.pb", b"\x08\x01\x12\xa0\x11", "looks like a SavedModel of TensorFlow; save"),
        ("w.tflite", b"\x20\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
        ("w.ckpt.data-00000-of-00001", VALUES.tobytes(), "a part of a checkpoint of TensorFlow"),
        ("w.tar.gz", b"\x1f\x8b\x08" + bytes(20), "is a packed archive; unpack it"),
        ("w.tar", bytes(257) + b"ustar\x0000", "is a packed archive; unpack it"),
        ("w.npy", b"\x93NUMPY\x01\0", "is a single array of numpy"),
        ("w.msgpack", b"\x82\xa6params", "looks like msgpack, as Flax writes it"),
        ("w.txt", b"sorry, no such model", "is a text that begins 'sorry, no such model'"),
        ("w.txt", b"sorry,\nno such\tmodel\n", "is a text that begins 'sorry, no such model'"),
        ("w", b"", "is empty; get it again"),
        ("w", b"\x01\x02\x03", "has an unknown format; agejax reads .safetensors"),
    ],
)
def test_a_file_of_another_kind_is_named_by_what_it_looks_like(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert message in refused(tmp_path / name)


def test_a_zip_of_other_things_names_the_first_of_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        for i in range(50):
            archive.writestr(f"photo {i}.jpg", b"")
    assert "a zip archive (photo 0.jpg, photo 1.jpg, photo 2.jpg and 47 more)" in refused(
        tmp_path / "w"
    )


def test_a_folder_is_told_from_a_file(tmp_path):
    assert "is a folder without a run of agejax" in refused(tmp_path)
    (tmp_path / "variables.index").touch()
    assert "is a folder of TensorFlow; save the weights with Keras" in refused(tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    assert "is a folder; name the weights file in it (model.safetensors)" in refused(tmp_path)
    (tmp_path / "faces.bin").touch()
    (tmp_path / "faces.json").touch()
    assert "name the weights file in it (faces.json, model.safetensors)" in refused(tmp_path)
    (tmp_path / "model.ckpt-100.index").touch()
    assert "is a checkpoint of TensorFlow" in refused(tmp_path / "model.ckpt-100")
    assert "does not exist; name a weights file" in refused(tmp_path / "nothing")
