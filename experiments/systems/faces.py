"""Arms with a face-pretrained network: frozen, and with its later layers trained.

Every system's table has them, on its images and split. Their recipe is that of
configs/frozen_utk.py, whatever the system's own recipe and image size are.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from agejax.configs import frozen_utk, mobilenet_v1_utk
from experiments.arms import Arm
from experiments.frozen import scored
from experiments.systems.setting import Setting, changed

BACKBONE = "mobilenet_v1"


def arms(setting: Setting, like: ml_collections.ConfigDict, **changes: Any) -> dict[str, Arm]:
    """Returns no arms where --weights has no file of the backbone.

    Args:
      like: a config of the system, for its data and the names of its heads.
      changes: further settings, as for `changed`.
    """
    if not setting.has(BACKBONE):
        return {}
    frozen = frozen_utk.get_config()
    sizes = {key: frozen.data[key] for key in ("image_size", "batch_size")}
    frozen.data = like.data.copy_and_resolve_references()
    frozen.data.update(sizes)
    for name in set(frozen.heads) - set(like.heads):
        del frozen.heads[name]
    frozen.model.pretrained = setting.pretrained(BACKBONE)
    frozen = changed(setting.place(frozen), **changes)
    tuned = changed(
        frozen,
        model__cached_views=0, optim__lr_multipliers=mobilenet_v1_utk.LR_MULTIPLIERS,
        optim__ema=0.998, data__batch_size=64, augment__flip=0.5, augment__crop=(0.75, 1.0),
        augment__rotate=10.0, augment__brightness=0.2, augment__contrast=0.2, augment__erase=0.25,
    )  # fmt: skip
    match setting.scale:
        case "smoke":  # a small network has other layers
            tuned.optim.lr_multipliers, tuned.data.batch_size = ((".*", 1.0),), 8
        case "cpu":
            tuned.total, tuned.model.image_size = {"epochs": 5.0}, 128
        case "full":
            tuned.total = {"epochs": 10.0}
    return {
        "faces-frozen": Arm(
            frozen, "ours: MobileNetV1 trained on faces, frozen", make=scored("test")
        ),
        "faces": Arm(tuned, "ours: the same, its later layers trained"),
    }
