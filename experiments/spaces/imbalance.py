"""System B's search: Bayesian, 5 random points and 20 more.

    python -m agejax.sweep --config=configs/imbalance_utk.py \\
        --space=experiments/spaces/imbalance.py --study=runs/sweep_imbalance \\
        --sampler=gp --start=5 --trials=25 --config.data.source=UTKFace.tar.gz
"""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    return {
        "schedule.lr": {"low": 1e-5, "high": 3e-3, "log": True},
        "model.dropout": {"low": 0.0, "high": 0.6},
        "heads.age.example_weights.alpha": {"low": 0.0, "high": 1.0},
        "heads.ethnicity.alpha": {"low": 0.5, "high": 4.0},
        "heads.ethnicity.beta": {"low": 0.01, "high": 0.5, "log": True},
        "heads.ethnicity.gamma": {"low": 0.0, "high": 5.0},
    }
