"""A competitive small model on UTKFace: one-cycle; rare ages over-sampled and augmented more.

    python -m agejax.main --config=configs/small_model_utk.py --config.data.source=UTKFace.tar.gz \
        --config.model.pretrained=mobilenet_v3_small_imagenet_features.safetensors

80/20 split, 20 % of train for tuning; 0.9 cross-entropy + 0.1 L1 + 1e-4 |heads|. Published for such
a model: age MAE 4.73, gender 0.939. Not measured at this size here; two cores can run
`python -m experiments.run small_model --scale=cpu`.
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 20.0}
    config.data.split.fractions = {"train": 0.8, "test": 0.2}
    config.data.split.val_of_train = 0.2
    config.data.batch_size = 256
    config.data.image_size = config.model.image_size = 224
    config.model.name = "mobilenet_v3_small"
    config.model.dropout = 0.2

    config.heads.age = {
        "kind": "regression", "transform": "identity", "loss": "l1", "weight": 0.1,
    }  # fmt: skip
    config.heads.gender = {"kind": "categorical", "weight": 0.9}

    config.sampling.kind = "oversample"
    config.augment.flip = 0.5
    config.augment.rotate = 10.0
    config.augment.crop = (0.8, 1.0)
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.copies = {
        "flip": 0.5, "rotate": 20.0, "crop": (0.7, 1.0), "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.3, "erase": 0.3, "sharpness": 0.5,
    }  # fmt: skip

    config.optim.weight_decay = 0.01
    config.optim.l1 = (("heads/.*/kernel", 1e-4),)
    config.schedule.lr = 0.0123
    config.schedule.div = 24.0
    config.schedule.warmup = {"percent": 36.7}
    return config
