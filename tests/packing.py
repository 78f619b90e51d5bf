"""Files of a data set as a folder or an archive."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
from PIL import Image


def jpeg(seed: int = 0) -> bytes:
    """A noise image as JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(out := io.BytesIO(), "JPEG")
    return out.getvalue()


def pack(files: dict[str, bytes], path: pathlib.Path) -> pathlib.Path:
    """Writes a folder, a .zip or a compressed tar, by the path's suffix."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif path.suffix:
        mode = {".tar": "w", ".tgz": "w:gz", ".gz": "w:gz", ".xz": "w:xz"}[path.suffix]
        with tarfile.open(path, mode) as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path
