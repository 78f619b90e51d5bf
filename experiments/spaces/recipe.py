"""Search for the best recipe of MobileNetV3-Small, at a small image size and few epochs.

    python -m agejax.sweep --config=configs/mobilenet_v3_utk_alone.py \\
        --space=experiments/spaces/recipe.py --study=runs/sweep_recipe \\
        --sampler=tpe --start=8 --pruner=median --trials=30 \\
        --config.data.source=UTKFace.tar.gz \\
        --config.data.image_size=64 --config.model.image_size=64 --config.optim.ema=0.99 \\
        --config.eval.final_split=

Every trial sees equally many images, whatever its sampler counts as an epoch.
"""

from typing import Any

STRONG = {
    "flip": 0.5, "rotate": 20.0, "crop": (0.6, 1.0), "brightness": 0.4, "contrast": 0.4,
    "saturation": 0.3, "erase": 0.4, "sharpness": 0.5,
}  # fmt: skip
DISTRIBUTION = {"kind": "distribution", "weight": 0.25}


def get_space() -> dict[str, dict[str, Any]]:
    return {
        "total": {"choices": [{"examples": 85_000.0}]},
        "eval.every": {"choices": [{"percent": 20.0}]},
        "schedule.lr": {"low": 7e-4, "high": 8e-3, "log": True},
        "optim.weight_decay": {"low": 0.01, "high": 0.3, "log": True},
        "optim.lr_multipliers": {"choices": [((".*", 1.0),), (("backbone/.*", 0.3), (".*", 1.0))]},
        "model.dropout": {"low": 0.0, "high": 0.4},
        "model.hidden": {"choices": [0, 512]},
        "heads.age": {
            "choices": [
                DISTRIBUTION | {"loss": "sord"},
                DISTRIBUTION | {"loss": "ce"},
                {"kind": "ordinal", "method": "or_cnn", "weight": 0.03},
            ]
        },
        "heads.gender.weight": {"low": 0.1, "high": 1.0, "log": True},
        "heads.ethnicity.weight": {"low": 0.05, "high": 0.5, "log": True},
        "sampling.kind": {"choices": ["uniform", "density", "oversample"]},
        "augment.crop": {"choices": [(0.6, 1.0), (0.75, 1.0), (0.9, 1.0)]},
        "augment.erase": {"choices": [0.0, 0.25]},
        "augment.mixup": {"choices": [0.0, 0.2]},
        "augment.copies": {"choices": [{}, STRONG]},
    }
