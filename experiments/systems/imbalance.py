"""B. Imbalance on UTKFace: sample weights, under-sampling, DenseWeight with LMF, balanced test.

"Other" dropped, Asian cut by 75 %, ages of 80 and more dropped, age on a logarithmic scale; a test
set of 10 images of every gender x ethnicity x decade.
"""

from __future__ import annotations

import ml_collections

from configs import imbalance_utk
from experiments.arms import Arm
from experiments.systems.setting import Setting, changed

TITLE = "B. Imbalance"
REFERENCE = "baseline"
COLUMNS = ("age/mae", "gender/accuracy", "ethnicity/macro_f1")
AGE = {"kind": "regression", "transform": "log", "loss": "l1", "weight": 2.0}
ETHNICITY = {"kind": "categorical", "weight": 2.0}


def base(setting: Setting) -> ml_collections.ConfigDict:
    config = imbalance_utk.get_config()
    config.model.pretrained = setting.pretrained(config.model.name)
    if setting.scale == "cpu":
        config.total = {"epochs": 6.0}
        config.data.image_size = config.model.image_size = 96
        config.schedule.kind, config.schedule.lr = "one_cycle", 1.5e-3
    return setting.place(config)


def arms(setting: Setting) -> dict[str, Arm]:
    best = base(setting)
    config = changed(best, heads__age=AGE, heads__ethnicity=ETHNICITY)
    return {
        "baseline": Arm(
            config, "as it is",
            {"age/mae": 10.2, "gender/accuracy": 0.911, "ethnicity/macro_f1": 0.780},
        ),
        "ins": Arm(
            changed(
                config,
                heads__age=AGE | {"example_weights": {"kind": "inverse"}},
                heads__ethnicity=ETHNICITY | {"example_weights": {"kind": "inverse"}},
            ),
            "weights of one over the number of images of the age and of the ethnicity (INS)",
        ),
        "undersample": Arm(
            changed(config, sampling__keep={"ethnicity": {"majority": 0.5}}),
            "half of the largest ethnicity left out of training",
        ),
        "dense-lmf": Arm(
            best, "DenseWeight (alpha .25) and LMF (alpha 2.5, beta .05, gamma 4)",
            {"age/mae": 8.9, "gender/accuracy": 0.920, "ethnicity/macro_f1": 0.821},
        ),
    }  # fmt: skip
