"""System B's search: Bayesian, 5 random points and 20 more.

    python -m agejax.sweep --config=configs/imbalance_utk.py \\
        --space=experiments/spaces/imbalance.py --study=runs/sweep_imbalance \\
        --sampler=tpe --start=5 --trials=25 --config.data.source=UTKFace.tar.gz

Minimises the age error, with equal weight per decade; LMF stays as published.
"""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    return {
        "schedule.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.dropout": {"low": 0.0, "high": 0.6},
        "heads.age.weight": {"low": 0.5, "high": 8.0, "log": True},
        "heads.age.example_weights.alpha": {"low": 0.0, "high": 1.0},
    }
