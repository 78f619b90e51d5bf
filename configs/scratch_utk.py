"""A CNN from scratch with one branch for age and one for gender, on 4,000 images of UTKFace.

    python -m agejax.main --config=configs/scratch_utk.py --config.data.source=UTKFace.tar.gz

Squared error and cross-entropy weighted 1:100. Published for such a model, on val: age MAE 6.84,
gender 0.882. Not measured at this size here; two cores can run
`python -m experiments.run scratch_vs_pretrained --scale=cpu`.
"""

import ml_collections

from agejax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.total = {"epochs": 50.0}
    config.data.split.fractions = {"train": 0.21, "val": 0.053, "test": 0.1}
    config.model.name = "cnn"
    config.model.options = {"widths": (32, 64), "dropout": 0.0}
    config.model.dropout = 0.0

    branch = {"convs": (64, 64, 64), "pool": "flatten", "hidden": (128, 64, 32), "dropout": 0.3}
    config.heads.age = {
        "kind": "regression", "transform": "identity", "loss": "l2", "weight": 0.01, "neck": branch,
    }  # fmt: skip
    config.heads.gender = {"kind": "binary", "weight": 1.0, "neck": dict(branch)}

    config.optim.name = "adam"
    config.optim.l2 = ((".*/kernel", 1e-4),)
    config.schedule.kind = "exponential"
    config.schedule.lr = 1e-3
    config.eval.patience = 5
    config.augment.rotate = 15.0
    config.augment.zoom = 0.1
    config.augment.flip = 0.5
    return config
