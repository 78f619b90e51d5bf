"""ResNet-50 on APPA-REAL's official splits: real age as one number. Needs a GPU.

    python -m agejax.main --config=configs/appa_resnet50.py \
        --config.data.source=appa-real-release.zip --config.model.pretrained=resnet50.safetensors

Published for such a model: test MAE 8.6, val 6.72. Not measured here, for lack of APPA-REAL.
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 40.0}
    config.data.name = "appa_real"
    config.data.split.official = True
    config.data.image_size = config.model.image_size = 224
    config.model.name = "resnet50"
    config.model.dropout = 0.2
    config.heads.age = {"kind": "regression", "transform": "standard", "loss": "l1"}
    config.optim.weight_decay = 0.05
    config.optim.ema = 0.99
    config.schedule.lr = 5e-4
    config.augment.flip = 0.5
    config.augment.crop = (0.8, 1.0)
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    return config
