"""ViT-S/16 on UTKFace, from random weights: age, gender and ethnicity. Needs a GPU.

    python -m agejax.main --config=configs/vit_utk.py --config.data.source=UTKFace.tar.gz

Not measured. Expected: from random weights on 15,000 images, a ViT is worse than the convolutional
configs; pretrained weights (config.model.pretrained) do better.
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 100.0}
    config.data.image_size = 224
    config.data.batch_size = 256
    config.model.name = "vit_s16"
    config.model.image_size = 224
    config.model.dtype = "bfloat16"
    config.model.mean = (0.5, 0.5, 0.5)
    config.model.std = (0.5, 0.5, 0.5)

    config.heads.age = {"kind": "regression", "transform": "standard", "loss": "l1"}
    config.heads.gender = {"kind": "binary", "weight": 0.25}
    config.heads.ethnicity = {"kind": "categorical", "weight": 0.25}

    config.optim.weight_decay = 0.05
    config.optim.ema = 0.9998
    config.schedule.kind = "warmup_cosine"
    config.schedule.lr = 5e-4
    config.schedule.warmup = {"epochs": 5.0}

    config.augment.flip = 0.5
    config.augment.crop = (0.5, 1.0)
    config.augment.rotate = 10.0
    config.augment.brightness = 0.3
    config.augment.contrast = 0.3
    config.augment.saturation = 0.3
    config.augment.erase = 0.25
    config.augment.mixup = 0.2
    return config
