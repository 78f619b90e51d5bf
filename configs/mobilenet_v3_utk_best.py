"""MobileNetV3-Small on UTKFace as well as two cores can train it in two and a half hours.

    python -m agejax.main --config=configs/mobilenet_v3_utk_best.py \
        --config.data.source=UTKFace.tar.gz \
        --config.model.pretrained=mobilenet_v3_small_imagenet_features.safetensors

80/20 split that keeps copies together, a tenth of train held out as val. Not measured yet: this is
where the search in experiments/spaces/recipe.py starts, which chooses on val.
"""

import ml_collections

from configs import mobilenet_v3_utk


def get_config() -> ml_collections.ConfigDict:
    config = mobilenet_v3_utk.get_config()
    config.total = {"epochs": 40.0}
    config.data.split.fractions = ml_collections.ConfigDict({"train": 0.8, "test": 0.2})
    config.model.options = ml_collections.ConfigDict()
    config.model.hidden = 0
    config.heads.age = {"kind": "distribution", "loss": "sord", "weight": 0.25}
    return config
