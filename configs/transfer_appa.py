"""The first step of a transfer ladder on APPA-REAL: a frozen backbone and one output.

    python -m agejax.main --config=configs/transfer_appa.py \
        --config.data.source=appa-real-release.zip \
        --config.model.pretrained=mobilenet_v3_small_imagenet_features.safetensors

Ages in 0..1, squared error. `python -m experiments.run transfer` runs the other steps. Published
for the last step: val MAE of about 7. Not measured here, for lack of APPA-REAL.
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 30.0}
    config.data.name = "appa_real"
    # A quarter of the training images; the step "more-data" has all.
    config.data.split.train_share = 0.25
    config.data.image_size = config.model.image_size = 224
    config.model.name = "mobilenet_v3_small"
    config.model.dropout = 0.0
    config.heads.age = {"kind": "regression", "transform": "unit", "loss": "l2"}
    config.optim.name = "adam"
    config.optim.lr_multipliers = (("backbone/.*", None), (".*", 1.0))
    config.schedule.kind = "constant"
    config.schedule.lr = 1e-5
    return config
