"""MobileNetV3-Small on UTKFace as well as two cores can train it in two and a half hours.

    python -m agejax.main --config=configs/mobilenet_v3_utk_best.py \
        --config.data.source=UTKFace.tar.gz \
        --config.model.pretrained=mobilenet_v3_small_imagenet_features.safetensors

80/20 split that keeps copies together, a tenth of train held out as val, on which all was chosen:
experiments/spaces/recipe.py.
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 40.0}
    config.data.split.fractions = {"train": 0.8, "test": 0.2}
    config.model.name = "mobilenet_v3_small"
    config.model.dropout = 0.2

    config.heads.age = {"kind": "distribution", "loss": "sord", "weight": 0.25}
    config.heads.gender = {"kind": "binary", "weight": 0.25}
    config.heads.ethnicity = {"kind": "categorical", "weight": 0.25}

    config.optim.weight_decay = 0.05
    config.optim.ema = 0.999
    config.schedule.lr = 1.5e-3
    config.schedule.warmup = {"percent": 20.0}

    config.augment.flip = 0.5
    config.augment.crop = (0.75, 1.0)
    config.augment.rotate = 10.0
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.augment.erase = 0.25
    return config
