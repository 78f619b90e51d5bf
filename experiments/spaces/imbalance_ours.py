"""Our own arm of system B: how to treat rare ages and ethnicities, chosen on val.

    python -m agejax.sweep --config=configs/imbalance_utk.py \\
        --space=experiments/spaces/imbalance_ours.py --study=runs/sweep_imbalance_ours \\
        --sampler=tpe --start=6 --trials=18 --config.data.source=UTKFace.tar.gz \\
        --config.data.image_size=64 --config.model.image_size=64 --config.schedule.kind=one_cycle \\
        --config.schedule.lr=3.3e-3 --config.model.dropout=0.1 --config.eval.patience=0 \\
        --config.eval.final_split=

The other settings are the result of `imbalance.py`.
"""

from typing import Any

L1 = {"kind": "regression", "transform": "log", "loss": "l1", "weight": 6.5}
SORD = {"kind": "distribution", "loss": "sord", "weight": 2.0}
PLAIN = {"kind": "categorical", "weight": 2.0}
INVERSE = {"example_weights": {"kind": "inverse"}}
ROOT = {"example_weights": {"kind": "inverse", "power": 0.5}}
DENSE = {"example_weights": {"kind": "dense", "alpha": 1.0}}


def get_space() -> dict[str, dict[str, Any]]:
    return {
        "total": {"choices": [{"steps": 1100.0}]},
        "eval.every": {"choices": [{"percent": 25.0}]},
        "heads.age": {
            "choices": [L1 | INVERSE, SORD, SORD | INVERSE, SORD | ROOT, SORD | DENSE],
        },
        "heads.ethnicity": {
            "choices": [
                PLAIN | INVERSE,
                PLAIN | {"loss": "lmf", "alpha": 2.5, "beta": 0.05, "gamma": 4.0},
            ]
        },
        "sampling.kind": {"choices": ["uniform", "inverse"]},
        "sampling.over": {"choices": [("decade",), ("decade", "ethnicity")]},
        "sampling.power": {"choices": [0.5]},
        "augment.flip": {"choices": [0.0, 0.5]},
    }
