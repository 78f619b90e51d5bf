"""Arms with a face-pretrained network: frozen, and with its later layers trained.

Every system's table has them, on its images and split. Their recipes are those of
configs/frozen_utk.py and configs/mobilenet_v1_utk.py, whatever the system's own recipe and image
size are.
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
    frozen, tuned = (
        changed(on_data_of(like, setting, config.get_config()), **changes)
        for config in (frozen_utk, mobilenet_v1_utk)
    )
    if setting.scale == "smoke":  # a small network has other layers
        tuned.optim.lr_multipliers = ((".*", 1.0),)
    return {
        "faces-frozen": Arm(
            frozen, "ours: MobileNetV1 trained on faces, frozen", make=scored("test")
        ),
        "faces": Arm(tuned, "ours: the same, its later layers trained, 192 px, 10 epochs"),
    }


def on_data_of(
    like: ml_collections.ConfigDict, setting: Setting, recipe: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """A recipe on a system's images and split, with its heads alone, from --weights.

    Args:
      like: a config of the system.
      recipe: a config of configs/, which is changed.
    """
    sizes = {key: recipe.data[key] for key in ("image_size", "batch_size")}
    recipe.data = like.data.copy_and_resolve_references()
    recipe.data.update(sizes)
    for name in set(recipe.heads) - set(like.heads):
        del recipe.heads[name]
    recipe.model.pretrained = setting.pretrained(recipe.model.name)
    return setting.place(recipe)
