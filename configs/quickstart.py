"""A small MobileNetV3 on drawn faces, sampled by density: tries everything in a few minutes.

python -m agejax.main --config=configs/quickstart.py
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 12.0}
    config.data.name = "procedural_faces"
    config.data.image_size = 96
    config.model.name = "mobilenet_v3_small"
    config.model.image_size = 96

    config.heads.age = {"kind": "regression", "transform": "standard", "loss": "l1"}
    config.heads.gender = {"kind": "binary", "weight": 0.25}
    config.heads.ethnicity = {"kind": "categorical", "weight": 0.25}

    config.sampling.kind = "density"
    config.sampling.alpha = 0.5
    config.sampling.copy_strength = 1.5

    config.optim.weight_decay = 0.02
    config.schedule.lr = 3e-3

    config.augment.flip = 0.5
    config.augment.crop = (0.8, 1.0)
    config.augment.brightness = 0.15
    config.augment.contrast = 0.15
    config.log_every = {"steps": 25}
    return config
