"""Predictions of a run of `tiny`'s network, computed from orbax's arrays with layers in numpy.

Uses nothing of agejax, so that agejax's predictions can be compared with it.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np


def saved(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """Every array of a checkpoint, as saved, on any devices."""
    import orbax.checkpoint as ocp

    path, reader = workdir / "checkpoints" / str(step) / "state", ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    return reader.restore(path, restore_args=as_numpy)


def predict(
    workdir: pathlib.Path, step: int, images: np.ndarray, *, averages: bool = True
) -> dict[str, np.ndarray]:
    """Predicts years and probabilities of images uint8 [B, S, S, 3] of the network's size.

    Args:
      averages: use the averaged parameters and statistics, not the last step's.
    """
    config = json.loads((workdir / "config.json").read_text())
    facts = json.loads((workdir / "summary.json").read_text())["facts"]
    state = saved(workdir, step)
    arrays = state["ema"] if averages else state
    p = {k: np.float64(v) for k, v in (arrays["params"] | arrays["batch_stats"]).items()}

    x = (images / 255 - config["model"]["mean"]) / config["model"]["std"]
    for i in range(len(config["model"]["options"]["widths"])):
        x = _convolve(x, p[f"backbone/convs/{i}/kernel"]) + p[f"backbone/convs/{i}/bias"]
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4)).clip(0)
        of = {k: p[f"backbone/norms/{i}/{k}"] for k in ("scale", "bias", "mean", "var")}
        x = (x - of["mean"]) / np.sqrt(of["var"] + 1e-5) * of["scale"] + of["bias"]
    features = x.mean(axis=(1, 2))
    out = {
        head: features @ p[f"heads/{head}/kernel"] + p[f"heads/{head}/bias"]
        for head in ("age", "gender", "ethnicity")
    }
    female = 1 / (1 + np.exp(-out["gender"]))
    powers = np.exp(out["ethnicity"] - out["ethnicity"].max(axis=1, keepdims=True))
    return {
        "age": (facts["means"]["age"] + facts["stds"]["age"] * out["age"][:, 0]).clip(0, 116),
        "gender": np.concatenate([1 - female, female], axis=1),
        "ethnicity": powers / powers.sum(axis=1, keepdims=True),
    }


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A 3x3 convolution with zero padding: [B, H, W, C] and [3, 3, C, D] -> [B, H, W, D]."""
    height, width = x.shape[1:3]
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        around[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )
