"""Explains what a path without a readable weights file looks like, and what to do about it."""

from __future__ import annotations

import pathlib
import re

from agejax.errors import few

KNOWN = "agejax reads .safetensors, torch.save's files, .npz, .h5, .keras and TensorFlow.js' .json"
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".h5", ".keras")
KERAS = "save the weights with Keras: model.save_weights('x.weights.h5')"
TENSORFLOW = re.compile(r".*\.(data-\d+-of-\d+|index|meta)")  # parts of a checkpoint, by name

# How a file begins -> what it is, and the remedy. The first match counts.
BEGINNINGS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), text)
    for pattern, text in (
        (rb"\s*<(!doctype|html|\?xml|head|body)",
         "is a web page, such as a failed download leaves; get the file again"),
        (rb"version https://git-lfs",
         "is a pointer of Git LFS in place of the file; run git lfs pull, or download the file"),
        (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0", "is an image"),
        (rb"....TFL3", f"is a model of TensorFlow Lite; {KERAS}"),
        (rb"\x08\x01\x12", f"looks like a SavedModel of TensorFlow; {KERAS}"),
        (rb"\x08[\x03-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]",
         "looks like ONNX; take the weights that it was made from"),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar",
         "is a packed archive; unpack it and name the file in it"),
        (rb"\x93NUMPY", "is a single array of numpy; save all by their names with numpy.savez"),
        (rb"[\x81-\x8f\xde\xdf]", "looks like msgpack, as Flax writes it; save it as .safetensors"),
        (rb"%PDF", "is a PDF"),
    )
)  # fmt: skip


def format_of(path: pathlib.Path) -> str:
    """What a file of an unsupported format looks like: the rest of a message."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty; get it again"
    if TENSORFLOW.fullmatch(path.name):
        return f"is a part of a checkpoint of TensorFlow; {KERAS}"
    if manifest := next(filter(pathlib.Path.is_file, _manifests(path)), None):
        return f"may be a part of a TensorFlow.js model; name {manifest.name}, which is beside it"
    for pattern, text in BEGINNINGS:
        if pattern.match(start):
            return f"{text}; {KNOWN}" if ";" not in text else text
    text = " ".join(start[:40].decode("utf-8", "ignore").split())
    if text and text.isprintable():
        return f"is a text that begins {text!r}; {KNOWN}"
    return f"has an unknown format; {KNOWN}"


def _manifests(path: pathlib.Path) -> list[pathlib.Path]:
    """The JSON files that may name a .bin file as their part."""
    if path.suffix != ".bin":
        return []
    return [path.with_suffix(".json"), path.with_name("model.json")]


def not_a_file(path: pathlib.Path) -> str:
    """Why a path cannot be read as a file: the rest of a message."""
    if not path.is_dir():
        if path.with_name(f"{path.name}.index").is_file():
            return f"is a checkpoint of TensorFlow; {KERAS}"
        return (
            "is not a file; name a weights file"
            if path.exists()
            else "does not exist; name a weights file, or the folder of a run"
        )
    names = sorted(child.name for child in path.iterdir())
    weights = [name for name in names if name.endswith(ENDINGS)]
    # Instead of the parts of a TensorFlow.js model, propose the file that names them.
    beside = {name: {m.name for m in _manifests(path / name)} & set(names) for name in weights}
    if weights := sorted(set().union(*(beside[name] or {name} for name in weights))):
        return f"is a folder; name the weights file in it ({few(weights)})"
    if "saved_model.pb" in names or any(map(TENSORFLOW.fullmatch, names)):
        return f"is a folder of TensorFlow; {KERAS}"
    return (
        "is a folder without a run of agejax and without a weights file; name a folder that has "
        "one of them, or a weights file"
    )
