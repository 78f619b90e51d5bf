"""System E's search by Hyperband: depth, dropout, regularisation, learning rate.

    python -m agejax.sweep --config=configs/scratch_utk.py --space=experiments/spaces/scratch.py \\
        --study=runs/sweep_scratch --sampler=random --pruner=hyperband --trials=40 \\
        --config.data.source=UTKFace.tar.gz
"""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    return {
        "model.options.widths": {"choices": [(32, 64), (32, 64, 128), (32, 64, 128, 256)]},
        "model.options.dropout": {"low": 0.0, "high": 0.4},
        "heads.age.neck.dropout": {"low": 0.0, "high": 0.6},
        "heads.gender.neck.dropout": {"low": 0.0, "high": 0.6},
        "optim.l2": {"choices": [(), ((".*/kernel", 1e-5),), ((".*/kernel", 1e-4),)]},
        "schedule.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    }
