"""model.json, which lies beside an exported model and describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.export

from agejax.evaluation.calibration import Calibration
from agejax.runs import lineage
from agejax.runs.run import Run
from agejax.training import frozen, image_sizes
from agejax.version import __version__

FILE = "model.json"


def describe(run: Run, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The contents of model.json except the files.

    Input, preprocessing, outputs, origin, and the run's calibration, as calibration.json has it;
    without one, None.
    """
    config = run.config
    size, inside = config.data.image_size, image_sizes.of_evaluation(config)
    classes = run.classes
    steps = ["uint8 0..255 to float 0..1"]
    if inside != size:
        steps.append(f"resize to {inside} x {inside}, bilinear")
    steps.append(f"(x - mean) / std of RGB, mean {list(config.model.mean)}, "
                 f"std {list(config.model.std)}")  # fmt: skip
    calibration = Calibration.read(run.workdir, run.step, config.eval.get("image_size", 0))
    return {
        "run": run.workdir.resolve().name,
        "step": run.step,
        "weights": frozen.digest({**run.params, **run.batch_stats})[:16],
        "backbone": config.model.name,
        "dtype": config.model.dtype,
        "agejax": __version__,
        "jax": jax.__version__,
        "data": {"name": lineage.data_name(config.data), "fingerprint": run.fingerprint},
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", size, size, 3],
            "layout": "NHWC, RGB, a face that fills the square as in the training data",
            "resize": f"Images of another size: their centre square, resized to {size} x {size}; "
            "an area mean where that shrinks it (cv2.INTER_AREA), bicubic where it grows "
            "(cv2.INTER_CUBIC). An ONNX file does this itself.",
        },
        "preprocessing_inside": steps,
        "outputs": {
            name: {"shape": ["batch", *out.shape[1:]], "dtype": "float32"}
            | (
                {"meaning": "probabilities", "classes": list(classes[name])}
                if len(out.shape) > 1
                else {"meaning": "years"}
            )
            for name, out in outputs.items()
        },
        "calibration": None if calibration is None else calibration.as_json(),
        "files": {},
    }
