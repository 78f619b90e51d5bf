"""python -m agejax.export --workdir=RUN --output=DIR [--format=jax|onnx|both|web] [--quantize=int8]

A run's best model as one file that needs no agejax: uint8 images in, years and probabilities out.
--format=web makes a page that opens offline and predicts in the browser. --quantize=int8 makes the
ONNX file, or the one in the page, about a quarter as large, and reports what that costs.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import ml_collections
import numpy as np

import agejax
from agejax import heads
from agejax.errors import UserError, run_command
from agejax.exporting import card, onnx_export, quantize
from agejax.exporting.web import page, runtime
from agejax.logging import records
from agejax.paths import expand
from agejax.runs.run import Run
from agejax.training import image_sizes, sharding
from agejax.training import state as state_lib
from agejax.training.step import make_eval_step

FORMATS = ("jax", "onnx", "web")
FILES = {"jax": "model.jaxexport", "onnx": "model.onnx", "web": page.FILE}
INT8 = "model.int8.onnx"
NEEDS = {  # packages, and what to install for them
    "jax": (("flatbuffers",), "flatbuffers"),
    "onnx": (("onnx", "onnxruntime"), "-e '.[onnx]'"),
    "web": (("onnx", "onnxruntime"), "-e '.[onnx]'"),
}
PLATFORMS = ("cpu", "cuda")  # that a JAX file runs on
TOLERANCE = 1e-4  # of an output's largest value, between a file and the run

Predict = Callable[[Any], dict[str, Any]]  # uint8 [B, S, S, 3] -> {label: [B] or [B, K]}


def export(
    workdir: str | pathlib.Path,
    output: str | pathlib.Path,
    formats: Sequence[str] = ("jax",),
    *,
    int8: bool = False,
    max_mae_change: float = quantize.MAX_MAE_CHANGE,
    source_path: str | None = None,
    onnxruntime_web: str | None = None,
) -> dict[str, Any]:
    """Writes a run's best model to `output`, once it has been shown to say what the run says.

    Args:
      formats: of `FORMATS`.
      int8: whether an ONNX file, or that of a page, is in int8.
      max_mae_change, source_path: as in `quantize.quantized`.
      onnxruntime_web: where a page's runtime is, as `runtime.find` takes it.

    Returns:
      The contents of model.json, which lies beside the models, as does model_card.md.

    Raises:
      UserError: no run or checkpoint, a package is missing, an operation that ONNX export does not
        know, a model that differs from the run's by more than `TOLERANCE`, or as
        `quantize.quantized` and `runtime.find`.
    """
    output = expand(output)
    records.check_folder(output, "--output")
    for name in formats:
        require(name)
    engine = runtime.find(onnxruntime_web) if "web" in formats else None
    run = Run.open(workdir, devices=1)
    output.mkdir(parents=True, exist_ok=True)
    images = random_images(run.config.data.image_size)
    info = describe(run, jax.eval_shape(prediction(run), images))
    files: dict[str, bytes] = {}  # written when all are right
    for name in formats:
        # ONNX Runtime has no bfloat16 convolution on a CPU: its models compute in float32.
        predict = prediction(run, dtype=None if name == "jax" else "float32")
        with jax.default_device(jax.devices("cpu")[0]):
            expected = jax.device_get(predict(images))
            if name == "jax":
                data = to_jax(predict, images.shape[1])
                loaded = load_jax(data)
            else:
                data = onnx_export.to_onnx(predict, any_batch(images.shape[1]), info)
                loaded = onnx_export.load(data)
            error = difference(loaded(images), expected)
        if not error <= TOLERANCE:
            raise UserError(
                f"--format={name}: the exported model differs from the run by {error:.1e} of the "
                f"largest value (allowed: {TOLERANCE:.0e}); nothing was written for it"
            )
        file = FILES[name]
        if int8 and name != "jax":
            data, info["quantization"] = quantize.quantized(run, data, source_path, max_mae_change)
            file = INT8 if name == "onnx" else file
        if engine is not None and name == "web":
            data = page.render(run, info, data, engine)
            files["licences.txt"] = page.licences().encode()
        files[file] = data
        info["files"][name] = {"name": file, "bytes": len(data), "parity": error}
    for file, data in files.items():
        records.write_bytes(output / file, data)
    for one in info["files"].values():
        before = " before int8" if int8 and one["name"] != FILES["jax"] else ""
        print(f"{output / one['name']}: {one['bytes'] / 1e6:,.1f} MB, differs from the run by "
              f"{one['parity']:.1e} of the largest value{before}")  # fmt: skip
    records.write_json(output / "model.json", info)
    records.write_text(output / "model_card.md", card.of_export(run, info))
    print("written beside it: model.json, model_card.md")
    return info


def require(name: str) -> None:
    """Raises `UserError` where a package is missing that a format is written or run with."""
    packages, remedy = NEEDS[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format={name}: the package {package} is missing; pip install {remedy}"
            )


def prediction(run: Run, dtype: str | None = None) -> Predict:
    """What the run says of uint8 images [B, S, S, 3], preprocessing, weights and decoding inside.

    Args:
      dtype: to compute in, if not as the run does.
    """
    config = ml_collections.ConfigDict(run.config)
    if dtype is not None:
        config.model.dtype = dtype
    # Built anew, since what has been traced keeps its lowering.
    eval_step = make_eval_step(config, state_lib.create_model(config, run.heads)[0])
    params, batch_stats = jax.device_get((run.params, run.batch_stats))
    return lambda images: eval_step(params, batch_stats, {"image": images})


def any_batch(size: int) -> jax.ShapeDtypeStruct:
    """Images whose number is open."""
    return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), size, size, 3), np.uint8)


def random_images(size: int, n: int = 4) -> np.ndarray:
    """Noise of different brightness, uint8 [n, size, size, 3]."""
    rng = np.random.default_rng(0)
    return (rng.uniform(0, 256, (n, size, size, 3)) * rng.uniform(0.2, 1, (n, 1, 1, 3))).astype(
        np.uint8
    )


def difference(given: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest difference, of every output in units of its largest value."""
    assert given.keys() == expected.keys()
    tiny = np.finfo(np.float32).tiny
    return float(
        np.max([
            np.abs(given[k] - v).max() / max(np.abs(v).max(), tiny) for k, v in expected.items()
        ])
    )  # fmt: skip


# ---- what lies beside the model ------------------------------------------------------------------


def describe(run: Run, outputs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """model.json: what goes in, what is done to it, what comes out, and where it is from."""
    config = run.config
    size, inside = config.data.image_size, image_sizes.of_evaluation(config)
    nothing = {head.label: np.zeros(0) for head in run.heads.values()}
    classes = heads.derive(run.heads, nothing, run.facts.label_names)[1]
    steps = ["uint8 0..255 to float 0..1"]
    if inside != size:
        steps.append(f"resize to {inside} x {inside}, bilinear")
    steps.append(f"(x - mean) / std of RGB, mean {list(config.model.mean)}, "
                 f"std {list(config.model.std)}")  # fmt: skip
    return {
        "run": run.workdir.resolve().name,
        "step": run.step,
        "backbone": config.model.name,
        "dtype": config.model.dtype,
        "agejax": agejax.__version__,
        "jax": jax.__version__,
        "data": {"name": config.data.name, "fingerprint": run.fingerprint},
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", size, size, 3],
            "layout": "NHWC, RGB, a face that fills the square as in the training data",
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
        "files": {},
    }


# ---- JAX -----------------------------------------------------------------------------------------


def to_jax(predict: Predict, size: int) -> bytes:
    """`predict` for any batch on every one of `PLATFORMS`, each with the lowering that suits it."""
    return bytes(
        jax.export.export(jax.jit(predict), platforms=PLATFORMS)(any_batch(size)).serialize()
    )


def load_jax(data: bytes) -> Predict:
    call = jax.jit(jax.export.deserialize(bytearray(data)).call)
    return lambda images: jax.device_get(call(images))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agejax.export", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument("--output", required=True, help="the folder to write to")
    parser.add_argument("--format", choices=(*FORMATS, "both"), default="jax")
    parser.add_argument("--quantize", choices=("int8",), help="of an ONNX file, or the page's")
    parser.add_argument(
        "--max_mae_change", type=float, default=quantize.MAX_MAE_CHANGE, metavar="YEARS",
        help="by which int8 may raise the error on val; default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--source", help="the run's archive or folder, for int8; default: where its config says"
    )
    parser.add_argument(
        "--onnxruntime_web", metavar="PATH",
        help=f"for a page: the folder or archive of {runtime.PACKAGE}; default: from npm",
    )  # fmt: skip
    args = parser.parse_args(argv[1:])
    if args.quantize and args.format == "jax":
        raise UserError("--quantize=int8: of ONNX files only; use --format=onnx or web")
    sharding.start()
    export(
        args.workdir,
        args.output,
        ("jax", "onnx") if args.format == "both" else (args.format,),
        int8=args.quantize is not None,
        max_mae_change=args.max_mae_change,
        source_path=args.source,
        onnxruntime_web=args.onnxruntime_web,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
