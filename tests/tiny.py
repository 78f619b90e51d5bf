"""A config small enough for tests: the whole system on 96 synthetic chips of 32 px."""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"steps": 24}
    config.data.image_size = 32
    config.data.batch_size = 16
    config.data.split.fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    config.sampling.kind = "density"
    config.sampling.copy_strength = 1.5
    config.model.name = "cnn"  # compiles in a fifth of the time of any other
    config.model.options = {"widths": (8, 16)}
    config.model.image_size = 32
    config.heads.age = {"kind": "regression"}
    config.heads.gender = {"kind": "binary", "weight": 0.2}
    config.heads.ethnicity = {"kind": "categorical", "weight": 0.2}
    config.optim.ema = 0.9
    config.schedule.lr = 3e-3
    config.augment.flip = 0.5
    config.augment.crop = (0.8, 1.0)
    config.augment.brightness = 0.2
    config.augment.mixup = 0.2
    config.eval.batch_size = 16
    config.eval.every = {"steps": 6}
    config.checkpoint.every = {"steps": 4}
    config.log_every = {"steps": 2}
    config.sharding.devices = 1
    return config
