"""E. From scratch against pre-trained: a CNN and a ResNet-50, each with two branches.

Published: 5,000 images at 128 px, 20 % val, squared error and cross-entropy weighted 1:100.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from agejax.configs import scratch_utk
from experiments.arms import Arm
from experiments.systems import faces
from experiments.systems.setting import Setting, changed

TITLE = "E. From scratch against pre-trained"
REFERENCE = "cnn"
COLUMNS = ("age/mae", "gender/accuracy")
A = {"age/mae": 6.835, "gender/accuracy": 0.882}  # the best of their CNNs, on val
B = {"age/mae": 6.458, "gender/accuracy": 0.887}  # the best of their ResNet-50s


def base(setting: Setting) -> ml_collections.ConfigDict:
    config = scratch_utk.get_config()
    for head in config.heads.values():
        del head.neck  # each arm has its own
    if setting.scale == "cpu":
        config.total = {"epochs": 12.0}
        config.data.image_size, config.model.image_size = 100, 64
    return setting.place(config)


def branched(config: ml_collections.ConfigDict, **necks: Any) -> ml_collections.ConfigDict:
    """The config with a separate branch for each named head."""
    copy = config.copy_and_resolve_references()
    for name, neck in necks.items():
        copy.heads[name].neck = ml_collections.ConfigDict(neck)
    return copy


def arms(setting: Setting) -> dict[str, Arm]:
    branch = scratch_utk.get_config().heads.age.neck.to_dict()
    if setting.scale == "smoke":
        branch |= {"convs": (8,), "hidden": (8,)}
    grey = branch | {"greyscale": True}
    cnn = base(setting)
    # Two cores cannot train a ResNet-50 in reasonable time, and its weights are not available here.
    backbone = "resnet50" if setting.scale == "full" else "mobilenet_v3_small"
    deep = changed(cnn, model__pretrained=setting.pretrained(backbone), schedule__lr=3e-4)
    if setting.scale != "smoke":
        deep = changed(deep, model__name=backbone, model__options={})
    pair = {"convs": (128,) if setting.scale != "smoke" else (8,), "hidden": (128, 64)}
    flat, pooled = pair | {"pool": "flatten"}, pair | {"pool": "mean"}
    return {
        "cnn": Arm(branched(cnn, age=branch, gender=branch), "A: a CNN from scratch", A),
        "cnn-grey-gender": Arm(
            branched(cnn, age=branch, gender=grey), "A: the gender branch sees greyscale", A
        ),
        "cnn-grey-both": Arm(
            branched(cnn, age=grey, gender=grey), "A: both branches see greyscale", A
        ),
        "deep-flatten": Arm(
            branched(deep, age=flat, gender=flat), f"B: {backbone} of ImageNet, maps flattened", B
        ),
        "deep-pooled": Arm(
            branched(deep, age=pooled, gender=pooled), f"B: {backbone} of ImageNet, maps pooled", B
        ),
        "deep-scratch": Arm(
            branched(changed(deep, model__pretrained=None), age=pooled, gender=pooled),
            f"{backbone} from random weights, maps pooled",
        ),
        **faces.arms(setting, cnn),
    }
