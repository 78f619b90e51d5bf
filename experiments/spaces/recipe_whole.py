"""Search for the best recipe against over-fitting at full size and length; needs a GPU.

    python -m agejax.sweep --config=configs/mobilenet_v3_utk_alone.py \\
        --space=experiments/spaces/recipe_whole.py --study=runs/sweep_whole \\
        --sampler=tpe --start=8 --trials=24 --config.data.source=UTKFace.tar.gz \\
        --config.model.pretrained=mobilenet_v3_small_imagenet_features.safetensors \\
        --config.eval.final_split=

Trials of recipe.py train for six epochs, too few to show the effects of twenty-six.
"""

from typing import Any

DISTRIBUTION = {"kind": "distribution", "weight": 0.25}


def get_space() -> dict[str, dict[str, Any]]:
    return {
        "total": {"choices": [{"examples": 360_000.0}]},
        "eval.every": {"choices": [{"percent": 10.0}]},
        "checkpoint.every": {"choices": [{"percent": 10.0}]},
        "schedule.lr": {"low": 1.5e-3, "high": 7e-3, "log": True},
        "optim.weight_decay": {"low": 0.01, "high": 0.3, "log": True},
        "optim.lr_multipliers": {"choices": [((".*", 1.0),), (("backbone/.*", 0.3), (".*", 1.0))]},
        "model.dropout": {"low": 0.1, "high": 0.6},
        "model.image_size": {"choices": [128, 160, 192]},
        "heads.age": {
            "choices": [
                DISTRIBUTION | {"loss": "ce"},
                DISTRIBUTION | {"loss": "sord"},
                DISTRIBUTION | {"loss": "dldl", "sigma": 2.0},
            ]
        },
        "sampling.kind": {"choices": ["uniform", "density"]},
        "augment.crop": {"choices": [(0.5, 1.0), (0.65, 1.0), (0.8, 1.0)]},
        "augment.erase": {"choices": [0.0, 0.4]},
        "augment.mixup": {"choices": [0.0, 0.2, 0.4]},
        "augment.brightness": {"choices": [0.2, 0.4]},
    }
