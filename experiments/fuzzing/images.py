"""Malformed images, as files for predict and as files of a data set."""

from __future__ import annotations

import io
import os
import pathlib
import random
import struct
import zlib

import numpy as np
from PIL import Image

from agejax.data import sources
from agejax.faces import detection
from agejax.faces.geometry import NOISE, Geometry
from agejax.predicting import images as readers
from agejax.predicting import output
from experiments.fuzzing import Target
from experiments.fuzzing.mutations import mutated, text

SIZE = 32
PHOTOS, DATA_SETS = 0.03, 0.1  # shares of inputs searched for faces, or prepared as a data set
LANDMARKS = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]])
GEOMETRY = Geometry(LANDMARKS, LANDMARKS, NOISE, 10, 10)
HUGE = (0, 1, 65_535, 100_000, 2**31 - 1, 2**32 - 1)


def jpeg(
    seed: int, size: tuple[int, int] = (20, 20), mode: str = "RGB", form: str = "JPEG"
) -> bytes:
    """An image of noise, of any mode and format that fit together."""
    channels = {"L": (), "P": (), "1": (), "CMYK": (4,), "RGBA": (4,), "LA": (2,)}.get(mode, (3,))
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], *channels), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8)
    elif mode in ("P", "1"):
        image = Image.fromarray(pixels).convert(mode)
    else:
        image = Image.fromarray(pixels, mode)
    image.save(out := io.BytesIO(), form)
    return out.getvalue()


def corpus() -> list[bytes]:
    """Small images of every format and colour mode, and files that look like images."""
    modes = {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("P", "L"),
        "BMP": ("RGB", "L", "P"),
        "TIFF": ("RGB", "CMYK", "I;16", "1"),
        "PPM": ("RGB", "L"),
    }
    every = [(form, mode) for form, many in modes.items() for mode in many]
    made = [jpeg(i, (24, 18), mode, form) for i, (form, mode) in enumerate(every)]
    made += [jpeg(0, size) for size in ((1, 1), (1, 3000), (3000, 1), (200, 200))]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (24, 18)).save(out := io.BytesIO(), "JPEG", exif=turned)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP"):
        frames[0].save(moving := io.BytesIO(), form, save_all=True, append_images=frames[1:])
        made.append(moving.getvalue())
    return [*made, out.getvalue(), b"", b"\xff\xd8", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"<svg/>"]


def claims(rng: random.Random) -> bytes:
    """A small file that claims an enormous image, two sizes at once, or pixels that hardly pack."""
    width, height = rng.choice(HUGE), rng.choice(HUGE)
    match rng.randrange(7):
        case 0:
            return _png((width, height))
        case 1:
            return _png((width, height), (8, 8))
        case 2:
            return _png((8, 8), (width, height))
        case 3:
            return b"P6 %d %d 255\n" % (width, height) + bytes(60)
        case 4:
            return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, width % 2**31,
                -(height % 2**31), 1, 24, 0, 0, 0, 0, 0, 0) + bytes(36)  # fmt: skip
        case 5:
            return b"GIF89a" + struct.pack("<HHBBB", width % 2**16, height % 2**16, 0x80, 0, 0) + (
                bytes(6) + b"," + struct.pack("<HHHHB", 0, 0, width % 2**16, height % 2**16, 0)
                + b"\x02\x02\x4c\x01\x00;")  # fmt: skip
    edge = rng.choice((7000, 12_000))
    return _png((edge, edge), pixels=bytes(edge * (edge + 1)), colour=0)


def _png(*sizes: tuple[int, int], pixels: bytes = bytes(200), colour: int = 2) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0)) for size in sizes]
    chunks += [(b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def prepare(folder: pathlib.Path) -> Target:
    whole = corpus()
    found = detection.Detector.if_installed() is not None
    crops, photos = (
        readers.crop_reader(SIZE),
        readers.photo_reader(GEOMETRY, SIZE) if found else None,
    )

    def image(rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.1:
            return claims(rng)
        data = rng.choice(whole)
        return data if kind < 0.2 else mutated(rng, data)

    def target(rng: random.Random, folder: pathlib.Path) -> bool:
        faces = folder / "faces"
        faces.mkdir()
        for _ in range(rng.randint(1, 3)):
            (faces / f"{_file_name(rng)}.jpg").write_bytes(image(rng))
        if rng.random() < 0.05:
            _no_file(rng, faces / "odd.jpg")
        if rng.random() < DATA_SETS:
            cache = str(folder / "cache")
            made = sources.load("image_folder", str(faces), image_size=SIZE, cache_dir=cache)
            return not made.skipped
        counts = readers.Counts()
        read = photos if photos and rng.random() < PHOTOS else crops
        paths = readers.find_images([str(faces)])
        lines = ({"path": str(crop.path)} for crop in readers.crops(paths, read, counts.add))
        with output.destination(str(folder / "out")) as out:
            output.write(lines, rng.choice(("csv", "jsonl")), out)
        assert counts.files == len(paths)
        return not counts.skipped

    return target


def _file_name(rng: random.Random) -> str:
    if rng.random() < 0.8:
        return str(rng.randrange(100))
    name = os.fsencode(text(rng).replace("/", "").replace("\x00", ""))[:200]
    return os.fsdecode(name + rng.choice((b"", b"\xff", b"\n")))


def _no_file(rng: random.Random, path: pathlib.Path) -> None:
    """Makes something at that path that is not a file."""
    match rng.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.symlink_to(path.parent, target_is_directory=True)
