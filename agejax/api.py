"""What `import agejax` offers: read a config, train, evaluate, load a model and predict.

The same code as the commands, with values in and out in place of flags and files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import ml_collections
import numpy as np

from agejax.config import check, check_returned, file_error, replaced
from agejax.errors import UserError, one_line
from agejax.evaluation.calibration import Calibration
from agejax.logging import console
from agejax.paths import config_file
from agejax.predicting import images, output, predictions
from agejax.predicting.model import Model, open_model
from agejax.reporting import results
from agejax.runs import box
from agejax.runs.run import Run
from agejax.train import train as loop
from agejax.training import sharding

if TYPE_CHECKING:
    import pandas

Folder = str | os.PathLike[str]
# Flags that messages name, but not those of a command that they advise.
_FLAG = re.compile(
    r"(python -m \S+(?: --\S+)*)"
    r"|--(compare|config|dataset|faces|image_size|option|output|source|split|workdir)\b"
)


@contextlib.contextmanager
def _messages_name_arguments(**other_names: str) -> Iterator[None]:
    """Lets errors name a function's arguments where the command's code names its flags.

    Args:
      other_names: of a flag -> the argument; others are called as their flags.
    """
    try:
        yield
    except UserError as error:
        text = _FLAG.sub(lambda m: m[1] or other_names.get(m[2], m[2]), str(error))
        error.args = (text, *error.args[1:])
        raise


@_messages_name_arguments()
def config(name_or_path: str, /, **overrides: Any) -> ml_collections.ConfigDict:
    """Reads a config, with other values for some settings.

    Args:
      name_or_path: a config file, or the name of one that agejax comes with, such as "quickstart".
      overrides: settings and their values. As in scikit-learn, two underscores stand for a dot:
        `data__batch_size=32`. A dict replaces a whole group: `total={"steps": 100}`.

    Raises:
      UserError: no such file, an error in it, an unknown setting, or a value of the wrong type or
        out of bounds.
    """
    path, _, argument = config_file(name_or_path).partition(":")
    try:
        get_config = runpy.run_path(path)["get_config"]
        found = get_config(argument) if argument else get_config()
    except (Exception, SystemExit) as error:
        if line := file_error(path, error, path):
            raise line from error
        raise
    check_returned(found, path)
    changed = replaced(found, {key.replace("__", "."): v for key, v in overrides.items()})
    check(changed)
    return changed


@_messages_name_arguments()
def train(
    config: ml_collections.ConfigDict, workdir: Folder, *, dry_run: bool = False
) -> dict[str, Any] | None:
    """Trains what a config describes, from the start or from the last checkpoint in `workdir`.

    Args:
      config: of `agejax.config`, or made by a config file.
      workdir: the run's folder.
      dry_run: takes no step and writes nothing there; prints, and returns, what would be trained:
        images of each split, parameters, steps, and the memory and FLOPs of a step.

    Returns:
      The contents of summary.json; None where SIGTERM or Ctrl-C stopped the run early. The same
      call resumes it.

    Raises:
      UserError: bad input, or a loss that is not finite.
    """
    _keep_compiled_programs()
    return loop(config, pathlib.Path(workdir), dry_run=dry_run)


@_messages_name_arguments(workdir="run", option="options")
def evaluate(
    run: Folder | Predictor,
    *,
    split: str | None = None,
    dataset: str | None = None,
    source: str | None = None,
    options: Mapping[str, Any] | None = None,
    output: Folder | None = None,
    compare: Folder | Sequence[Folder] = (),
    image_size: int | None = None,
    robustness: bool = False,
) -> results.Evaluation:
    """Scores a run, and writes metrics.json, predictions.csv and report.html.

    Args:
      run: the folder of a run, an ensemble or a released model, "box:NAME", or what `load` returns.
      split: train, val, test, another of the run's splits, or all. Default: test; all on other
        data.
      dataset: the name of a data set; default: the one that the run was trained on.
      source: where its files lie; default: where the run's config says.
      options: of the data set, as config.data.options.
      output: the folder to write to; default: evaluation/DATASET-SPLIT in the run's folder.
      compare: another run or several, which are scored on the same images; those of one config
        count as its seeds.
      image_size: pixels, to try another size than config.eval.image_size on the val split.
      robustness: also score degraded images and several views of each face; takes minutes.

    Returns:
      The metrics, and where they and the report are.

    Raises:
      UserError: no run, no such data or split, or data without any label that the run predicts.
    """
    _keep_compiled_programs()
    if not isinstance(run, Predictor):
        workdir = _as_given(run)
    elif run.run is None:
        raise UserError(f"{run.model.name} is an exported file; name the run that it was made from")
    else:
        workdir = run.run.workdir
    others = [compare] if isinstance(compare, (str, os.PathLike)) else compare
    return results.evaluate(
        workdir,
        dataset=dataset,
        source_path=source,
        split=split,
        output=None if output is None else pathlib.Path(output),
        compare_with=[_as_given(other) for other in others],
        options=options,
        image_size=image_size,
        degrade=robustness,
    )


@_messages_name_arguments(workdir="run")
def load(run: Folder = box.BOX) -> Predictor:
    """Opens a trained model.

    Args:
      run: the folder of a run, an ensemble or a released model, or "box:NAME" for a model that
        agejax comes with; default: the first of these. Or a file that `agejax export` wrote,
        model.onnx (onnxruntime must be installed) or model.jaxexport with model.json beside it.

    Raises:
      UserError: nothing of the kind is there, or it is damaged.
    """
    _keep_compiled_programs()
    return Predictor(open_model(run))


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained model, ready to predict."""

    model: Model

    def __repr__(self) -> str:  # a notebook shows it, and the model holds millions of numbers
        return f"Predictor({self.model.name!r})"

    @property
    def run(self) -> Run | None:
        """The config, network and weights; None for an exported file."""
        return self.model.run

    @property
    def calibration(self) -> Calibration | None:
        """What intervals and probabilities come from; None before `evaluate` made one."""
        return self.model.calibration

    @_messages_name_arguments()
    def predict(
        self,
        given: Folder | np.ndarray | Iterable[Folder] | Iterable[np.ndarray],
        faces: Literal["auto", "crops", "detect"] = "auto",
    ) -> Predictions:
        """Predicts faces.

        Args:
          given: image files, folders of images or glob patterns, one or several; or RGB images,
            uint8 [H, W, 3] or Pillow's, one or several, or an array [N, H, W, 3].
          faces: "crops": each image is one face, framed as the training images are. "detect": each
            is a photo, in which faces are found. "auto": the images decide.

        Returns:
          One record per face, in the order of the images. Files that cannot be read are logged as
          warnings and left out.

        Raises:
          UserError: no such file, no readable one, arrays of another kind, or "detect" without a
            face detector.
        """
        if faces not in ("auto", "crops", "detect"):
            raise UserError(f"faces: {faces!r} is not one of auto, crops, detect")
        pictures = _pictures(given)
        if not pictures:
            return Predictions()
        read = images.choose_reader(faces, self.model, pictures)
        counts = images.Counts()

        def report(picture: images.Picture, found: int | Exception) -> None:
            counts.add(picture, found)
            if isinstance(found, Exception):
                console.warning(one_line(f"skipped {picture}: {found}"))

        found = images.crops(pictures, read, report)
        batch_size = predictions.batch_size_of(len(pictures), self.model)
        made = Predictions(predictions.of_faces(self.model, found, batch_size))
        if counts.skipped == counts.files:
            raise UserError(f"none of the {counts.files} file(s) is a readable image")
        if counts.faceless:
            console.warning(f"no face in {counts.faceless} of {counts.files} images")
        return made


class Predictions(list[dict[str, Any]]):
    """Records of faces, one dict each.

    A record has `path`, or for an array `image`, its number; of a face found in a photo `face`, its
    number, `box` [left, top, right, bottom] in pixels and `score`; then what the model predicts:
    `age` in years, with a calibration `age_low` and `age_high`, which contain the label 9 times in
    10, and for each target of classes {class: probability}.
    """

    def to_pandas(self) -> pandas.DataFrame:
        """A table with one row per face; `gender_male` and the like hold the probabilities.

        Raises:
          UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("the package pandas is missing; pip install pandas") from error
        return pandas.DataFrame([output.flat(record) for record in self])


def _pictures(given: Any) -> list[images.Picture]:
    """Paths or arrays, one or several, as `images` takes them."""
    several = isinstance(given, Iterable) and not isinstance(given, (str, os.PathLike))
    if not several or (isinstance(given, np.ndarray) and given.ndim == 3):
        given = [given]  # also an image of Pillow's, and what is no image at all
    items = list(given)
    if items and all(isinstance(item, (str, os.PathLike)) for item in items):
        return list(images.find_images([os.fspath(item) for item in items]))
    arrays = [np.asarray(item) for item in items]
    for i, array in enumerate(arrays):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise UserError(
                f"image {i}: {array.dtype} {list(array.shape)}; give paths, or RGB images as uint8 "
                "[H, W, 3]"
            )
    return [images.InMemory(i, array) for i, array in enumerate(arrays)]


def _as_given(run: Folder) -> str | pathlib.Path:
    """The text, which may name a model of the box, or the path."""
    return run if isinstance(run, str) else pathlib.Path(run)


def _keep_compiled_programs() -> None:
    """Sets the compile cache as commands do, unless the program has one of its own."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        sharding.start()
