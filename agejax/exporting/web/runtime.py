"""Fetches onnxruntime-web, which runs a model in a browser, from npm, and checks it."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import zlib

from agejax import files
from agejax.errors import UserError
from agejax.paths import cache_folder, expand

PACKAGE = "onnxruntime-web@1.30.0"
# The package's files that a page needs, and their SHA-256.
FILES = {
    "ort.wasm.min.js":
        "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs":
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm":
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}  # fmt: skip
SECONDS = 300  # for npm to fetch 33 MB
FLAG = "--onnxruntime_web"


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Attributes:
    api: the script that defines `ort`.
    loader: the module that starts `wasm`.
    """

    api: bytes
    loader: bytes
    wasm: bytes


def find(given: str | None = None) -> Runtime:
    """Finds the files of `PACKAGE`.

    Args:
      given: the archive that `npm pack` makes, or the folder of an installed or unpacked package;
        default: agejax's cache, else npm's registry.

    Raises:
      UserError: npm or its registry cannot be reached, there is nothing at `given`, or the files
        are of another version.
    """
    path = expand(given) if given else _from_npm()
    read = [_checked(name, _contents(path, name), path) for name in FILES]
    return Runtime(*read)


def _from_npm() -> pathlib.Path:
    """The archive in the cache; npm fetches it first where it is missing."""
    name, _, version = PACKAGE.partition("@")
    kept = cache_folder() / "npm" / f"{name}-{version}.tgz"
    if kept.exists():
        return kept
    remedy = f"run `npm pack {PACKAGE}` where npm is installed, and give its file with {FLAG}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"--format=web needs {PACKAGE}, and there is no npm; {remedy}")
    with files.disk(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        command = [npm, "pack", PACKAGE, "--ignore-scripts", f"--pack-destination={folder}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"npm did not get {PACKAGE} within {SECONDS} s; {remedy}") from error
        packed = pathlib.Path(folder) / kept.name
        if done.returncode or not packed.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise UserError(
                f"npm cannot get {PACKAGE}: {lines[0] if lines else 'no reason given'}; {remedy}"
            )
        for file in FILES:
            _checked(file, _contents(packed, file), packed)
        with files.disk(kept):
            packed.replace(kept)
    return kept


def _contents(path: pathlib.Path, name: str) -> bytes:
    """Reads a file of the package from its archive or folder."""
    try:
        if path.is_dir():
            places = [path / "dist" / name, path / "package" / "dist" / name, path / name]
            return next((place for place in places if place.is_file()), places[0]).read_bytes()
        with tarfile.open(path) as archive:
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise KeyError(name)
            return member.read()
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"{FLAG}: {path} holds no {name} of {PACKAGE}; give the file that `npm pack {PACKAGE}` "
            "makes, or leave the flag out"
        ) from error


def _checked(name: str, data: bytes, path: pathlib.Path) -> bytes:
    if hashlib.sha256(data).hexdigest() != FILES[name]:
        raise UserError(
            f"{FLAG}: {name} in {path} is not that of {PACKAGE}; give the file that "
            f"`npm pack {PACKAGE}` makes, or leave the flag out"
        )
    return data
