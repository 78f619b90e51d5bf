"""Exports a run's best model to files that work without agejax."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export

from agejax import files
from agejax.errors import DAMAGE, UserError
from agejax.exporting import card, description, jax_export, onnx_export, quantize
from agejax.exporting.prediction import any_batch, difference, prediction, random_images
from agejax.exporting.web import page, runtime
from agejax.logging import console
from agejax.paths import expand
from agejax.runs import box
from agejax.runs.run import Run

FORMATS = ("jax", "onnx", "web")
FILES = {
    "jax": "model.jaxexport",
    "onnx": "model.onnx",
    "onnx_int8": "model.int8.onnx",
    "web": page.FILE,
}
OF_MODEL = ("run", "step", "data", "weights")  # what of model.json tells models apart
OF_EXPORT = ("agejax", "jax", "files")  # what may differ between exports of one model
NEEDS = {  # format -> (its packages, what to pip install)
    "jax": (("flatbuffers",), "flatbuffers"),
    "onnx": (("onnx", "onnxruntime"), "-e '.[onnx]'"),
    "web": (("onnx", "onnxruntime"), "-e '.[onnx]'"),
}
TOLERANCE = 1e-4  # largest difference between a file and the run, of an output's largest value


def export(
    workdir: str | pathlib.Path,
    output: str | pathlib.Path,
    formats: Sequence[str] = ("jax",),
    *,
    int8: bool = False,
    max_mae_change: float = quantize.MAX_MAE_CHANGE,
    max_accuracy_loss: float = quantize.MAX_ACCURACY_LOSS,
    source_path: str | None = None,
    onnxruntime_web: str | None = None,
) -> dict[str, Any]:
    """Writes a run's best model to `output`, if its predictions equal those of the run.

    Args:
      formats: of `FORMATS`.
      int8: quantise the ONNX file, or the one in the page, to int8.
      max_mae_change, max_accuracy_loss, source_path: as in `quantize.quantized`.
      onnxruntime_web: where the page's runtime lies, as for `runtime.find`.

    Returns:
      The contents of model.json, which is written beside the models, with model_card.md.

    Raises:
      UserError: no run or checkpoint; a missing package; an operation that ONNX export does not
        support; predictions that differ from the run's by more than `TOLERANCE`; or as
        `check_beside`, `quantize.quantized` and `runtime.find` raise it.
    """
    output = expand(output)
    files.check_folder(output, "--output")
    for name in formats:
        require(name)
    engine = runtime.find(onnxruntime_web) if "web" in formats else None
    run = Run.open(workdir, devices=1)
    images = random_images(run.config.data.image_size)
    info = description.describe(run, jax.eval_shape(prediction(run), images))
    if "jax" not in formats:
        check_beside(output, info)
    output.mkdir(parents=True, exist_ok=True)
    contents: dict[str, bytes] = {}  # written once all are right
    made: dict[str, dict[str, Any]] = {}
    for name in formats:
        # ONNX Runtime has no bfloat16 convolution on CPUs: its models compute in float32.
        predict = prediction(run, dtype=None if name == "jax" else "float32")
        with jax.default_device(jax.devices("cpu")[0]):
            expected = jax.device_get(predict(images))
            if name == "jax":
                data = jax_export.to_jax(predict, images.shape[1])
                loaded = jax_export.load(data)
            else:
                data = onnx_export.to_onnx(predict, any_batch(images.shape[1]), info)
                loaded = onnx_export.load(data)
            error = difference(loaded(images), expected)
        if not error <= TOLERANCE:
            raise UserError(
                f"--format={name}: the exported model differs from the run by {error:.1e} of the "
                f"largest value (allowed: {TOLERANCE:.0e}); nothing was written for it"
            )
        kind, record = name, dict[str, Any]()
        if int8 and name != "jax":
            kind = "onnx_int8" if name == "onnx" else name
            data, record = quantize.quantized(
                run, data, source_path, max_mae_change, max_accuracy_loss
            )
        if engine is not None and name == "web":
            weights_only = record.get("activations") == "float32"
            data = page.render(run, info, data, engine, weights_only=weights_only)
            contents["licences.txt"] = page.licences().encode()
        contents[FILES[kind]] = data
        made[kind] = {
            "name": FILES[kind], "bytes": len(data), "sha256": box.sha256(data), "parity": error,
        }  # fmt: skip
        if record:
            made[kind]["quantization"] = record
    for file, data in contents.items():
        files.write_bytes(output / file, data)
    for one in made.values():
        before = " before int8" if "quantization" in one else ""
        console.result(
            f"{output / one['name']}: {one['bytes'] / 1e6:,.1f} MB, differs from the run by "
            f"{one['parity']:.1e} of the largest value{before}"
        )
    info["files"] = beside(output, info) | made
    files.write_json(output / description.FILE, info)
    files.write_text(output / "model_card.md", card.of_export(run, info))
    console.result("written beside it: model.json, model_card.md")
    return info


def check_beside(output: pathlib.Path, info: Mapping[str, Any]) -> None:
    """Raises `UserError` where a JAX file of another model would lose its description.

    A JAX file has its classes and calibration in model.json alone.

    Args:
      info: the contents that model.json would have.
    """
    there, stored = output / FILES["jax"], output / description.FILE
    if not (there.exists() and stored.exists()):
        return
    # Older files do not tell the weights.
    of = {"weights": info["weights"]} | files.read_json(stored, dict, "remove it")
    if any(of.get(key) != info[key] for key in OF_MODEL):
        raise UserError(
            f"--output: {there} is another model, which {description.FILE} describes; name another "
            "folder, or remove that file"
        )


def beside(output: pathlib.Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of model.json for what earlier exports of the same model left in a folder.

    ONNX files and pages hold what they were exported with: those with another calibration than
    `info`, which model.json would describe wrongly, are left out.

    Args:
      info: the contents that model.json would have; `check_beside` has seen it.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(UserError, *DAMAGE, AttributeError):  # none there, or damaged
        of = files.read_json(output / description.FILE, dict, "")
        ours, theirs = (
            {k: v for k, v in files.clean(one).items() if k not in OF_EXPORT} for one in (info, of)
        )
        for kind, entry in of["files"].items():
            path = output / FILES[kind]
            is_there = path.is_file() and box.sha256(path.read_bytes()) == entry["sha256"]
            if is_there and path.name == entry["name"] and (kind == "jax" or ours == theirs):
                card.of_files({kind: entry})  # raises where the entry is damaged
                found[kind] = entry
    return found


def require(name: str) -> None:
    """Raises `UserError` where a package that a format needs is missing."""
    packages, remedy = NEEDS[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format={name}: the package {package} is missing; pip install {remedy}"
            )
