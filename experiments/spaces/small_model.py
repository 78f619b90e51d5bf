"""System D's search: the one-cycle schedule, regularisation and the weight of the age.

    python -m agejax.sweep --config=configs/small_model_utk.py \\
        --space=experiments/spaces/small_model.py --study=runs/sweep_small_model \\
        --sampler=tpe --pruner=asha --trials=25 --config.data.source=UTKFace.tar.gz
"""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    return {
        "schedule.lr": {"low": 5e-4, "high": 3e-2, "log": True},
        "schedule.div": {"low": 5.0, "high": 100.0, "log": True},
        "schedule.warmup.percent": {"low": 10.0, "high": 50.0},
        "model.dropout": {"low": 0.0, "high": 0.6},
        "optim.weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
        "optim.l1": {"choices": [(), (("heads/.*/kernel", 1e-5),), (("heads/.*/kernel", 1e-4),)]},
        "heads.age.weight": {"low": 0.03, "high": 0.5, "log": True},
    }
