"""Explains image files, and writes a figure and arrays for each."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import BinaryIO

import cv2
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from agejax import files
from agejax.data import sources
from agejax.errors import UserError, one_line
from agejax.evaluation.calibration import Calibration
from agejax.explanations.explanation import Explanation
from agejax.explanations.subject import Method, explainer
from agejax.faces import detection
from agejax.logging import console
from agejax.paths import expand
from agejax.reporting.plots import TEXT, save
from agejax.runs.run import Run

COLOURS = "RdBu_r"  # red raises, blue lowers
# Names of methods and checks in figures.
TITLES = {"lime": "LIME", "integrated_gradients": "integrated gradients", "grad_cam": "Grad-CAM"}
CHECKS = {
    "r2": "local R² {:.2f}",
    "baseline": "from {:.3g} of the blurred face",
    "gap": "gap {:.1g}",
}


def explain(
    workdir: str | pathlib.Path,
    paths: Sequence[pathlib.Path],
    *,
    method: Method = "lime",
    target: str = "age",
    seed: int = 0,
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes NAME.png and NAME.npz for every readable image; names the others on stderr.

    Each image is one face. Warns where many are framed differently from the training images.

    The arrays are those of `Explanation`, each check as a number, and `image`.

    Args:
      output: None: WORKDIR/explanations/TARGET-METHOD.

    Returns:
      The folder written to.

    Raises:
      UserError: no run, no such target, or no image that can be read.
    """
    if output is not None:
        files.check_folder(expand(output), "--output")
    run = Run.open(workdir, devices=1)
    output = expand(output or run.results / "explanations" / f"{target}-{method}")
    files.check_folder(output, "--output")
    explain_one = explainer(run, target, method, seed)
    output.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    first: list[np.ndarray] = []
    for path in paths:
        try:
            image = sources.decode(sources.read_image(path), run.config.data.image_size)
        except (OSError, ValueError) as error:
            console.note(one_line(f"skipped {path}: {error}"))
            continue
        first += [image] if len(first) < detection.CHECKED else []
        explanation, k = explain_one(image)
        checks = [CHECKS[name].format(value) for name, value in explanation.checks.items()]
        said = f"{target} {explanation.prediction:.1f} years"
        if k is not None:
            said = f"{target} {run.facts.label_names[target][k]} {explanation.prediction:.1%}"
        text = ", ".join([said, TITLES[method], *checks])
        name = _unused(path.stem, names)
        with files.replacing(output / f"{name}.npz") as file:
            np.savez(
                file,
                image=image,
                heat=explanation.heat,
                segments=explanation.segments,
                weights=explanation.weights,
                prediction=explanation.prediction,
                **explanation.checks,  # type: ignore[arg-type]
            )
        with files.replacing(output / f"{name}.png") as file:
            save_figure(
                image, explanation, file, title=f"{one_line(path.name)}\n{text}",
                method=method, unit="years" if k is None else "probability",
            )  # fmt: skip
        console.result(one_line(f"{path}: {text}"))
    if not names:
        raise UserError(f"none of the {len(paths)} file(s) is a readable image")
    calibration = Calibration.read(run.workdir, run.step)
    geometry = calibration.geometry if calibration else None
    if warning := detection.frame_warning(first, geometry):
        console.warning(f"{warning}; python -m agejax.data.align makes crops of photos framed so")
    return output


def save_figure(
    image: np.ndarray,
    explanation: Explanation,
    file: BinaryIO,
    *,
    title: str,
    method: Method,
    unit: str,
) -> None:
    """Saves the face beside itself in grey under its heat map, as one PNG.

    Shares of pixels are shown as a density. Those of integrated gradients are noisy, so they are
    shown smoothed; `heat` has the raw ones.
    """
    heat, per = explanation.heat, "segment"
    if method != "lime":
        heat, per = heat * (heat.size / 100), "1 % of the image"
    if method == "integrated_gradients":
        heat = cv2.GaussianBlur(heat, (0, 0), len(heat) / 50)
    limit = float(np.abs(heat).max()) or 1.0
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    figure.suptitle(title, color=TEXT, fontsize=10)
    left, right = figure.subplots(1, 2)
    left.imshow(image)
    right.imshow(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cmap="gray", vmin=0, vmax=255)
    # Transparent where the heat is 0, so that the face is visible.
    shown = right.imshow(
        heat, cmap=COLOURS, norm=Normalize(-limit, limit), alpha=0.8 * np.sqrt(np.abs(heat) / limit)
    )
    bar = figure.colorbar(shown, ax=right, label=f"{unit} added per {per}", shrink=0.85)
    bar.outline.set_visible(False)
    for axes in (left, right):
        axes.set_axis_off()
    save(figure, file, dpi=130)


def _unused(stem: str, names: set[str]) -> str:
    """`stem`, numbered where an image of another folder has the name; records it."""
    name, i = stem, 1
    while name in names:
        i += 1
        name = f"{stem}-{i}"
    names.add(name)
    return name
