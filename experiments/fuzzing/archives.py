"""Archives and folders that are damaged, or whose names lead outside."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pathlib
import random
import tarfile
import zipfile
from collections.abc import Callable

from agejax.data import align, sources
from agejax.faces import detection
from experiments.fuzzing import Target
from experiments.fuzzing.images import GEOMETRY, jpeg
from experiments.fuzzing.mutations import encodable, mutated, text

GOOD = "26_1_2_2017011618475{}.jpg"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": lambda data: gzip.compress(data, 1),
    "tar.bz2": lambda data: bz2.compress(data, 1),
    "tar.xz": lambda data: lzma.compress(data, preset=0),
}
TYPES = (
    *(tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"Z"),
)
ALIGNED = 0.1  # share of the inputs that are aligned
ZEROS = 45 * 2**20  # bytes of a member of a bomb


def prepare(folder: pathlib.Path) -> Target:
    pictures = [jpeg(i) for i in range(4)]
    outside = folder.parent / "outside"
    escapes = (
        *("../../outside/x.jpg", f"{outside}/x.jpg", "../../../../../../etc/x.jpg", "..\\x.jpg"),
        *("/x.jpg", "C:/x.jpg", "a/../../x.jpg", "./x.jpg"),
    )
    targets = (str(outside / "canary"), "../../outside", "/etc/hostname", "/dev/zero", ".", "x.jpg")
    bomb = list(bombs().values())

    def name(rng: random.Random) -> str:
        match rng.randrange(4):
            case 0:
                return rng.choice(escapes)
            case 1:
                return text(rng).replace("\x00", "") + rng.choice((".jpg", "/x.jpg", ""))
        return "UTKFace/" + GOOD.format(rng.randrange(5))

    def tarred(rng: random.Random) -> bytes:
        form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
            for _ in range(rng.randint(0, 6)):
                data = rng.choice(pictures)
                member = tarfile.TarInfo(name(rng))
                member.type = rng.choice(TYPES) if rng.random() < 0.4 else tarfile.REGTYPE
                member.linkname = rng.choice(targets)
                member.size = len(data) if member.isreg() else 0
                try:
                    archive.addfile(member, io.BytesIO(data))
                except ValueError:  # a name too long for this format
                    continue
        return out.getvalue()

    def zipped(rng: random.Random) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for _ in range(rng.randint(0, 6)):
                info = zipfile.ZipInfo(encodable(name(rng)) or "x")
                info.compress_type = rng.choice(
                    (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
                )
                link = rng.random() < 0.2
                info.external_attr = (0o120777 if link else 0o100644) << 16
                archive.writestr(info, rng.choice(targets) if link else rng.choice(pictures))
        return out.getvalue()

    def unpacked(rng: random.Random, path: pathlib.Path) -> None:
        """Makes a folder that also holds links and things that are not files."""
        for _ in range(rng.randint(1, 6)):
            place = path / rng.choice(("", "a", "a/b"))
            place.mkdir(parents=True, exist_ok=True)
            file = place / GOOD.format(rng.randrange(10))
            if file.is_symlink() or file.exists():
                continue
            match rng.randrange(6):
                case 0:
                    file.symlink_to(rng.choice(targets))
                case 1:
                    os.mkfifo(file)
                case 2:
                    for link in ("l", "m"):
                        if not (place / link).is_symlink():
                            (place / link).symlink_to(path, target_is_directory=True)
                case _:
                    file.write_bytes(rng.choice(pictures))

    def write(rng: random.Random, folder: pathlib.Path) -> pathlib.Path:
        kind = rng.choice(("folder", "zip", "zip", "zip", *PACKERS))
        path = folder / f"x.{kind}"
        if kind == "folder":
            unpacked(rng, path)
            return path
        if rng.random() < 0.03:
            path.write_bytes(rng.choice(bomb))
            return path
        data = zipped(rng) if kind == "zip" else tarred(rng)
        inner = rng.random()  # damage behind a checksum, or before it
        if inner < 0.4:
            data = mutated(rng, data, 3)
        data = PACKERS.get(kind, bytes)(data)
        path.write_bytes(mutated(rng, data) if inner > 0.7 else data)
        return path

    def target(rng: random.Random, folder: pathlib.Path) -> bool:
        path = write(rng, folder)
        if rng.random() < ALIGNED and detection.Detector.if_installed():
            # The only command that writes files with the names of an archive.
            done = align.align(path, GEOMETRY, 16, folder / "aligned")
            return not done["unreadable"]
        data_set = rng.choice(("utkface", "image_folder", "aaf", "fairface", "imdb_wiki"))
        cache = str(folder / "cache")
        return not sources.load(data_set, str(path), image_size=8, cache_dir=cache).skipped

    return target


def bombs() -> dict[str, bytes]:
    """Small archives that would need endless memory or time."""
    zeros = gzip.compress(bytes(ZEROS), 6)
    entries = io.BytesIO()
    with zipfile.ZipFile(entries, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1_0_0_1.jpg", bytes(ZEROS))
        archive.filelist *= 2000  # in the directory; once in the file

    def header(kind: bytes, size: int) -> bytes:
        info = tarfile.TarInfo("1_0_0_1.jpg")
        info.type, info.size = kind, size
        return info.tobuf(tarfile.GNU_FORMAT)

    def packed(kind: bytes, copies: int) -> bytes:
        return gzip.compress(header(kind, copies * ZEROS)) + copies * zeros

    holes = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    holes[483:495] = b"%011o\0" % ZEROS
    holes[148:156] = b"%06o\0 " % (sum(holes[:148]) + 8 * 32 + sum(holes[156:]))
    return {
        "one entry many times": entries.getvalue(),
        "many members": 100 * packed(tarfile.REGTYPE, 1),
        "an enormous member": packed(tarfile.REGTYPE, 100),
        "an enormous name": packed(tarfile.GNUTYPE_LONGNAME, 100),
        "an enormous header": packed(tarfile.XHDTYPE, 100),
        "holes": gzip.compress(5000 * bytes(holes) + bytes(1024)),
        "a negative size": 2 * header(tarfile.REGTYPE, 0) + header(tarfile.REGTYPE, -1024),
        "a negative header": header(tarfile.REGTYPE, 0) + header(tarfile.XHDTYPE, -1024),
    }
