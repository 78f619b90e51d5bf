"""int8 ONNX models, and what they cost on the validation images.

Weights are int8 with one scale per output channel. Activations are uint8 with one scale per tensor,
whose range comes from calibration images; where that costs too much accuracy, some or all stay
float32. Static quantisation is ONNX Runtime's. The model keeps its inputs and outputs.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from agejax import heads
from agejax.data import opening, splits
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.evaluation import metrics
from agejax.evaluation.scored import check_labelled
from agejax.exporting import onnx_export
from agejax.logging import console
from agejax.runs.run import Run

MAX_MAE_CHANGE = 0.1  # years; a larger change is refused unless allowed
MAX_ACCURACY_LOSS = 0.02  # share of the images; the same
CALIBRATION = 256  # val images for the ranges, at most half of val; the others judge
FIRST = 5  # first convolutions, float32 where int8 activations cost too much
ADVICE = (  # for models of `weights_only`
    "Set ONNX Runtime's session option `session.disable_quant_qdq` to `1`: weights then become "
    "float32 once, when the model is loaded, and it is as fast as the float32 model."
)
BATCH = 32  # calibration images in memory at once, with their activations
# What becomes int8. Activation functions are included: the convolution before one then uses its 256
# values for the function's outputs only.
LAYERS = {"Conv": 0, "Gemm": 1, "MatMul": 1}  # -> the output axis of their weights
FUNCTIONS = ("Relu", "Clip")


def quantized(
    run: Run,
    model: bytes,
    source_path: str | None = None,
    max_mae_change: float = MAX_MAE_CHANGE,
    max_accuracy_loss: float = MAX_ACCURACY_LOSS,
) -> tuple[bytes, dict[str, Any]]:
    """Quantises the run's ONNX model to int8, and compares it with the float model on val.

    Takes the first of `WAYS` that costs no target more than allowed.

    Args:
      model: from `onnx_export.to_onnx`, in float32.
      source_path: where the run's data lies now; None: where its config says.
      max_mae_change: by how many years the mean absolute error of an age may grow.
      max_accuracy_loss: by how much the accuracy of classes may fall, a share of the images.

    Returns:
      The model, and {"kind": "int8", "activations": a key of `WAYS`, "calibration_images",
      "judged_on", "n", "bytes": {"float32", "int8"}, "targets": {label: {"n", "metric": "mae" in
      years or "accuracy", "float32", "int8", "change", "change_ci95"}}}.

    Raises:
      UserError: the run's val images are missing, or a target loses more than allowed.
    """
    source, rows = held_out(run, source_path)
    rows = np.random.default_rng(0).permutation(rows)
    few = min(CALIBRATION, len(rows) // 2)
    calibrating, rows = source.take(rows[:few]), rows[few:]
    before = _predictions(model, source, rows)
    allowed = {  # metric -> (the lowest and the highest change, in words)
        "mae": (-np.inf, max_mae_change, f"the limit is {max_mae_change:+g} years"),
        "accuracy": (-max_accuracy_loss, np.inf, f"the limit is {-max_accuracy_loss:+g}"),
    }
    refused: list[str] = []
    for activations, make in WAYS.items():
        data = make(model, calibrating)
        targets = _compare(run, source, rows, before, _predictions(data, source, rows))
        lines = {name: describe(name, one) for name, one in targets.items()}
        refused = []
        for name, one in targets.items():
            low, high, words = allowed[one["metric"]]
            if not low <= one["change"] <= high:
                refused.append(f"{lines[name]}, {words}")
        console.note(
            f"int8 with {activations} activations: {'; '.join(lines.values())}; on {len(rows):,} "
            f"images of val{'; refused' if refused else ''}"
        )
        if not refused:
            return data, {
                "kind": "int8",
                "activations": activations,
                "calibration_images": few,
                "judged_on": "val",
                "n": len(rows),
                "bytes": {"float32": len(model), "int8": len(data)},
                "targets": targets,
            }
    raise UserError(
        f"--quantize=int8: {'; '.join(refused)}; nothing was written. Allow more with "
        "--max_mae_change or --max_accuracy_loss, or export in float32"
    )


def _compare(
    run: Run,
    source: Source,
    rows: np.ndarray,
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """The entry "targets" of `quantized`'s record, from predictions of rows int [N]."""
    known, names = heads.derive(
        run.heads, {k: v[rows] for k, v in source.labels.items()}, source.label_names
    )
    groups = source.groups[rows]
    old, new = (
        metrics.evaluate(each, known, names, duplicates=groups, resamples=1)
        for each in (before, after)
    )
    paired = metrics.paired([after], [before], known, names, groups)
    return {name: _change(one, old[name], new[name]) for name, one in paired.items()}


def held_out(run: Run, source_path: str | None) -> tuple[Source, np.ndarray]:
    """The run's data and the rows of its split val.

    Raises:
      UserError: the data is not the run's, or its val has fewer than two images or no label.
    """
    source = opening.open_source(run.config.data, source_path)
    if source.fingerprint != run.fingerprint:
        raise UserError(
            f"--quantize=int8: {source.name} is other data than {run.workdir} was trained on; name "
            "the run's own by --source"
        )
    rows = splits.make(source, run.config.data.split).get("val")
    if rows is None or len(rows) < 2:
        raise UserError(
            f"--quantize=int8: {run.workdir} was trained without a val split, which int8 needs; "
            "export in float32"
        )
    check_labelled(run, source, rows)
    return source, rows


def describe(name: str, target: Mapping[str, Any]) -> str:
    """Describes a target's figures, for the terminal and the model card."""
    low, high = target["change_ci95"]
    what = "MAE" if target["metric"] == "mae" else "accuracy"
    return (
        f"{name} {what} {target['float32']:.3f} -> {target['int8']:.3f} "
        f"({target['change']:+.3f}, 95 % {low:+.3f} to {high:+.3f})"
    )


def _change(
    paired: Mapping[str, Any], before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Any]:
    """A target's entry in `quantized`'s record; `paired` counts errors, so accuracy flips sign."""
    metric = "mae" if "mae" in before else "accuracy"
    sign = 1 if metric == "mae" else -1
    return {
        "n": paired["n"],
        "metric": metric,
        "float32": before[metric],
        "int8": after[metric],
        "change": sign * paired["difference"] + 0.0,  # + 0.0: no -0.000
        "change_ci95": sorted(sign * bound + 0.0 for bound in paired["difference_ci95"]),
    }


def _predictions(model: bytes, source: Source, rows: np.ndarray) -> dict[str, np.ndarray]:
    predict = onnx_export.load(model)
    parts = [
        predict(source.take(rows[start : start + BATCH])) for start in range(0, len(rows), BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def static(model: bytes, images: np.ndarray, skip: int = 0) -> bytes:
    """Makes the layers of an ONNX model compute in int8 (QDQ format).

    Args:
      model: from `onnx_export.to_onnx`.
      images: uint8 [N, S, S, 3], as the model will see them; they give the activations' ranges.
      skip: how many of the first convolutions stay in float32.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = (
                images[start : start + BATCH] for start in range(0, len(images), BATCH)
            )

        def get_next(self) -> Any:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "int8.onnx"
        whole = folded(model)
        for i, node in enumerate(whole.graph.node):
            node.name = f"{node.op_type}_{i}"
        convolutions = [i for i, node in enumerate(whole.graph.node) if node.op_type == "Conv"]
        first = convolutions[min(skip, len(convolutions) - 1)] if convolutions else 0
        quantization.quantize_static(
            whole,
            str(output),
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *FUNCTIONS],
            nodes_to_exclude=[node.name for node in whole.graph.node[:first]],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return _described(onnx.load(str(output)), model)


def weights_only(model: bytes, images: np.ndarray) -> bytes:
    """Stores an ONNX model's weights in int8; its layers still compute in float32.

    It is as small as `static`, and close to the float model whatever its activations are. With the
    session option session.disable_quant_qdq = "1" it is as fast as the float model, else slower.

    Args:
      images: not used.
    """
    import onnx

    result = folded(model)
    graph = result.graph
    arrays = {array.name: array for array in graph.initializer}
    first = []
    for node in graph.node:
        if node.op_type not in LAYERS or node.input[1] not in arrays:
            continue
        name, axis = node.input[1], LAYERS[node.op_type]
        node.input[1] = f"{name}_float32"
        if f"{name}_scale" in arrays:  # layers share it
            continue
        values = onnx.numpy_helper.to_array(arrays[name])
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=others), np.finfo(np.float32).tiny) / 127
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        whole = np.round(values / scale.reshape(shape)).astype(np.int8)
        arrays[name].CopyFrom(onnx.numpy_helper.from_array(whole, name))
        arrays[f"{name}_scale"] = onnx.numpy_helper.from_array(
            scale.astype(np.float32), f"{name}_scale"
        )
        graph.initializer.append(arrays[f"{name}_scale"])
        inputs = [name, f"{name}_scale"]
        first.append(
            onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}_float32"], axis=axis)
        )
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return _described(result, model)


# Description of the activations -> the function that makes the model. The first is the fastest.
WAYS: dict[str, Callable[[bytes, np.ndarray], bytes]] = {
    "uint8": static,
    # A channel of MobileNetV3's first convolution reaches fifty times the deviation of the others:
    # one scale for all would wipe these out. The first layers have hardly any weights.
    f"uint8 (but for {FIRST} convolutions)": functools.partial(static, skip=FIRST),
    "float32": weights_only,
}


def _described(quantized: Any, model: bytes) -> bytes:
    """A quantised model as a file, with the metadata of the original model."""
    import onnx

    del quantized.metadata_props[:]
    quantized.metadata_props.extend(onnx.load_from_string(model).metadata_props)
    onnx.checker.check_model(quantized)
    return bytes(quantized.SerializeToString())


def folded(model: bytes) -> Any:
    """Merges each batch norm into its convolution, and removes repeated layout changes.

    Uses ONNX Runtime's optimisations that keep to standard operations.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quant_utils

    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "folded.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = path
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        result = onnx.load(path)
    biases = {node.input[2] for node in result.graph.node if node.op_type == "Gemm"}
    for array in result.graph.initializer:
        if array.name in biases:  # the quantiser needs [K], not [1, K]
            size = int(np.prod(array.dims))
            del array.dims[:]
            array.dims.append(size)
    quant_utils.add_pre_process_metadata(result)  # else it advises to do what is done here
    return result
