"""One HTML file with a model, the runtime and the face detector; it needs nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import importlib.resources
import json
import re
import string
from collections.abc import Mapping
from typing import Any

from agejax import files
from agejax.errors import UserError
from agejax.evaluation import uncertainty
from agejax.evaluation.calibration import SMALLEST_SIGMA, Calibration
from agejax.exporting.web.runtime import Runtime
from agejax.faces import detection
from agejax.faces.geometry import Geometry
from agejax.labels import DECADES
from agejax.runs.run import Run

FILE = "index.html"
# The browser refuses everything else: other scripts and styles than the page's own, and every
# connection. The runtime's second script comes from the page as a blob.
POLICY = (
    "default-src 'none'; connect-src 'none'; form-action 'none'; base-uri 'none'; img-src data:; "
    "style-src {style}; script-src {api} {script} blob: 'wasm-unsafe-eval'"
)


def render(
    run: Run,
    info: Mapping[str, Any],
    model: bytes,
    runtime: Runtime,
    *,
    weights_only: bool = False,
) -> bytes:
    """Renders the page of a run's model.

    Args:
      info: as `description.describe` gives it.
      model: an ONNX file with the inputs and outputs of `onnx_export.to_onnx`.
      weights_only: whether it was made by `quantize.weights_only`.
    """
    calibration = Calibration.read(run.workdir, run.step, run.config.eval.get("image_size", 0))
    framed = Calibration.read(run.workdir, run.step)  # of any image size
    geometry = framed.geometry if framed else None
    detector = installed_detector() if geometry else None
    data = {"loader": runtime.loader, "wasm": runtime.wasm, "model": model}
    if detector is not None:
        data["detector"] = detector
    facts = files.clean(
        _facts(run, info, calibration, geometry if detector else None)
        | {"weights_only": weights_only}
    )
    inline = {
        "style": _text("page.css"),
        "api": _inline(runtime.api.decode()),
        "script": _text("page.js"),
    }
    blocks = [_block("info", _json(facts)), *(_packed(*one) for one in data.items())]
    interval = "This page shows no interval: the run was not calibrated when it was exported."
    if calibration is not None:
        interval = (
            f"The interval contains the true age for {1 - calibration.alpha:.0%} of pictures like "
            f"the {calibration.n:,} it was fitted to."
        )
    text = string.Template(_text("page.html")).substitute(
        policy=POLICY.format(**{name: f"'{_digest(text)}'" for name, text in inline.items()}),
        interval=html.escape(interval),
        data=html.escape(str(info["data"]["name"])),
        model=html.escape(f"{info['run']}, {info['backbone']}, step {info['step']:,}"),
        blocks="\n".join(blocks),
        **inline,
    )
    return text.encode()


def licences() -> str:
    """The text of licences.txt."""
    return _text("licences.txt")


def installed_detector() -> bytes | None:
    """CenterFace for images of any size; None where its weights are not installed."""
    import onnx

    try:
        path = detection.weights()
    except UserError:
        return None
    return flexible(onnx.load(str(path)))


def flexible(model: Any) -> bytes:
    """Makes an ONNX model with one image input, float32 [1, 3, H, W], take any H and W."""
    graph = model.graph
    weights = {array.name for array in graph.initializer}
    (image,) = [one for one in graph.input if one.name not in weights]
    sizes = image.type.tensor_type.shape.dim
    sizes[0].dim_value = 1
    for size, name in zip(sizes[2:], ("height", "width"), strict=True):
        size.dim_param = name
    del graph.value_info[:]  # they hold the old sizes
    for output in graph.output:
        for axis, size in enumerate(output.type.tensor_type.shape.dim):
            size.dim_param = f"{output.name}_{axis}"
    return bytes(model.SerializeToString())


def _facts(
    run: Run,
    info: Mapping[str, Any],
    calibration: Calibration | None,
    geometry: Geometry | None,
) -> dict[str, Any]:
    """What the page's script must know about the run; without a geometry it finds no faces."""
    labels = dict.fromkeys(head.label for head in run.heads.values())
    outputs = {label: info["outputs"][label] for label in labels}
    detector = None
    if geometry is not None:
        detector = {
            "landmarks": geometry.landmarks,
            "outputs": detection.OUTPUTS,
            "coarse": detection.COARSE,
            "fine": detection.FINE,
            "multiple": detection.MULTIPLE,
            "stride": detection.STRIDE,
            "least": detection.SCORE,
            "overlap": detection.OVERLAP,
            "same": detection.SAME,
        }
    widths = calibration.widths if calibration else {}
    return {
        "size": info["input"]["shape"][1],
        "ages": [label for label, out in outputs.items() if "classes" not in out],
        "classes": {label: out["classes"] for label, out in outputs.items() if "classes" in out},
        "temperatures": calibration.temperatures if calibration else {},
        # An infinite width becomes null.
        "widths": {
            label: {
                "all": fitted.everybody.q,
                "decades": [fitted.groups[name].q for name in DECADES],
            }
            for label, fitted in widths.items()
        },
        "smallest_sigma": SMALLEST_SIGMA,
        "range": uncertainty.AGES,
        "detector": detector,
    }


def _text(name: str) -> str:
    return (importlib.resources.files("agejax.exporting.web") / name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """Escapes a library's script for use inside a page."""
    return re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE)


def _digest(text: str) -> str:
    """The hash by which a Content-Security-Policy names a script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(value: Any) -> str:
    return json.dumps(value).replace("<", "\\u003c")  # no text can end its block


def _packed(name: str, data: bytes) -> str:
    return _block(name, base64.b64encode(gzip.compress(data, 6, mtime=0)).decode())


def _block(name: str, text: str) -> str:
    """A block of data that the page's script finds by id; the browser does not run it."""
    return f'<script type="text/plain" id="{name}">{text}</script>'
