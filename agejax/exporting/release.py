"""Released models: the best checkpoint of a run, with all that is needed to use it."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import calibration
from agejax.exporting import card, description
from agejax.exporting.prediction import difference, prediction, random_images
from agejax.logging import console
from agejax.paths import expand
from agejax.runs import box, ensembles, lineage
from agejax.runs.run import Run

STORAGE = ("float32", "float16")
# Largest difference between the released model and the run, of an output's largest value. float16
# (11 bits) moves an age by some hundredths of a year; a network that it moves more needs float32.
TOLERANCES = {"float32": 0.0, "float16": 1e-2}
CARD = "card.md"
KEPT_OF_SUMMARY = ("name", "steps", "epochs", "examples", "parameters", "skipped", "versions")


def release(
    workdir: str | pathlib.Path, output: str | pathlib.Path, storage: str = "float32"
) -> dict[str, Any]:
    """Writes the best checkpoint of a run, with all that is needed to use it, to `output`.

    Replaces a released model that is there. Leaves out evaluations of other checkpoints and of
    other image sizes.

    Args:
      storage: one of `STORAGE`, for kernels; biases, scales and statistics stay float32.

    Returns:
      The contents of release.json.

    Raises:
      UserError: no run or checkpoint, an ensemble of several networks, another folder at `output`,
        or predictions that differ from the run's by more than `TOLERANCES`.
    """
    output = expand(output)
    files.check_folder(output, "--output")
    if output.exists() and not box.is_release(output) and any(output.iterdir()):
        raise UserError(
            f"--output: {output} is not empty and holds no released model; name another"
        )
    if output.resolve() == pathlib.Path.cwd():
        raise UserError(
            f"--output: {output} is the current folder, which cannot be replaced; name another"
        )
    run = _network(workdir)
    if box.is_release(run.workdir):
        raise UserError(f"--workdir: {run.workdir} is a released model already; name a run")
    size = run.config.eval.get("image_size", 0)
    fitted = calibration.Calibration.read(run.workdir, run.step, size)
    if fitted is None:
        console.warning(
            f"{run.workdir} is not calibrated, so the released model gives no intervals; "
            "python -m agejax.evaluate calibrates a run that has a val split"
        )
    averaged = box.is_ensemble(run.workdir)
    if not averaged and not (run.workdir / "summary.json").exists():
        console.warning(f"{run.workdir} is not finished; its best step so far is released")
    with files.new_folder(output) as folder:
        _write(run, fitted, folder, storage)
        again = Run.open(folder, devices=1)
        written = box.read(folder) | {"parity": _difference(again, run)}
        if not written["parity"] <= TOLERANCES[storage]:
            raise UserError(
                f"--storage={storage}: the released model differs from the run by "
                f"{written['parity']:.1e} of the largest value (allowed: {TOLERANCES[storage]:.0e})"
                "; nothing was written"
            )
        _seal(folder, written)
        _write_card(again, written, output)
        shutil.rmtree(output, ignore_errors=True)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    console.result(
        f"{output}: {size / 1e6:,.2f} MB, step {run.step:,} of {run.workdir}, differs from it by "
        f"{written['parity']:.1e} of the largest value; use it as "
        f"--workdir={shlex.quote(str(output))}"
    )
    return written


def rewrite_card(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes card.md of a released model again, from the other files of its folder.

    Use it after a change to the card's words: the figures are read, not measured again.

    Returns:
      The card's path.

    Raises:
      UserError: no released model, or a file of it has changed.
    """
    folder = box.locate(workdir)
    if not box.is_release(folder):
        raise UserError(
            f"--workdir: {folder} is no released model; name one, such as box, or make one with "
            "--output=FOLDER"
        )
    _write_card(Run.open(workdir, devices=1), box.read(folder), folder)
    return folder / CARD


def _write_card(run: Run, written: Mapping[str, Any], place: pathlib.Path) -> None:
    """Writes card.md into the folder of a released model.

    Args:
      run: the released model, opened.
      written: the contents of its release.json.
      place: the folder in which users find it.
    """
    info = description.describe(run, jax.eval_shape(prediction(run), _images(run)))
    text = card.of_model(
        run, info, place.name,
        use=box.name_of(place) if place.parent == box.FOLDER else place.name,
        storage=card.storage(written),
        made_by="python -m agejax.release --workdir=RUN --output=FOLDER",
    )  # fmt: skip
    files.write_text(run.workdir / CARD, text)


def _network(workdir: str | pathlib.Path) -> Run:
    """Opens a run, or the averaged network of an ensemble.

    Raises:
      UserError: no such folder, or an ensemble of several networks or views.
    """
    if not box.is_ensemble(box.locate(workdir)):
        return Run.open(workdir, devices=1)
    run = ensembles.open_run(workdir)
    spec = files.read_json(run.workdir / ensembles.FILE, dict, "make the ensemble again")
    if spec["combine"] != "weights" or spec["views"] != ["plain"]:
        raise UserError(
            f"--workdir: {run.workdir} is an ensemble of several networks or views, and a released "
            "model is one network; train one from them (config.distill), or average their weights"
        )
    (params,), (batch_stats,) = run.params, run.batch_stats
    return dataclasses.replace(
        ensembles.open_member(spec["members"][0]),
        workdir=run.workdir, step=run.step, fingerprint=run.fingerprint,
        params=params, batch_stats=batch_stats,
    )  # fmt: skip


def _write(
    run: Run, fitted: calibration.Calibration | None, folder: pathlib.Path, storage: str
) -> None:
    """Writes all but the card."""
    arrays = {k: np.asarray(v) for k, v in (run.params | run.batch_stats).items()}
    kernels = {name for name in run.params if storage == "float16" and arrays[name].ndim > 1}
    halves = {name: arrays[name].astype(np.float16) for name in kernels}
    files.write_bytes(folder / box.WEIGHTS, safetensors.numpy.save(arrays | halves))
    files.write_json(folder / "config.json", lineage.portable(run.config))
    if (run.workdir / "summary.json").exists():
        summary = files.read_json(run.workdir / "summary.json", dict, "let the run finish")
        kept = {key: summary[key] for key in KEPT_OF_SUMMARY if key in summary}
        files.write_json(folder / "summary.json", kept)
    if fitted is not None:
        fitted.save(folder)
    for name, result in card.evaluations(run):
        if result["step"] != run.step:
            continue
        place = folder / "evaluation" / name
        with files.disk(place):
            place.mkdir(parents=True)
        result.pop("compared", None)  # it names a folder of this machine
        files.write_json(place / "metrics.json", result)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    _seal(
        folder,
        {
            "format": box.FORMAT,
            "run": run.workdir.resolve().name,
            "step": run.step,
            "fingerprint": run.fingerprint,
            "facts": dataclasses.asdict(run.facts),
            "lineage": lineage.of(run),
            "storage": storage,
            "parity": None,
            "files": {
                str(path.relative_to(folder)): box.sha256(path.read_bytes()) for path in paths
            },
        },
    )


def _seal(folder: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes release.json with its digest."""
    values = files.clean(values)
    files.write_json(folder / box.RELEASE, values | {"digest": files.digest(values)})


def _difference(one: Run, other: Run) -> float:
    """The largest `difference` of the two runs' predictions of random images."""
    images = _images(one)
    given, expected = (jax.device_get(prediction(run)(images)) for run in (one, other))
    return difference(given, expected)


def _images(run: Run) -> np.ndarray:
    return random_images(run.config.data.image_size)
