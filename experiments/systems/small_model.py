"""D. A small model made competitive on UTKFace: one-cycle, over-sampling with augmentation.

80/20 split, 20 % of train for tuning; MobileNetV3-Small; 0.9 cross-entropy + 0.1 L1 + 1e-4 |heads|.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import ml_collections

from agejax.config import default
from agejax.configs import small_model_utk
from agejax.reporting.baselines import evaluate_baseline
from experiments.arms import Arm
from experiments.systems import faces
from experiments.systems.setting import Setting, changed

TITLE = "D. Small model"
REFERENCE = "basic"
COLUMNS = ("age/mae", "gender/accuracy")


def base(setting: Setting) -> ml_collections.ConfigDict:
    config = small_model_utk.get_config()
    config.model.pretrained = setting.pretrained(config.model.name)
    if setting.scale == "cpu":
        config.total = {"examples": 240_000}  # about 20 epochs, as published; the same for each arm
        config.data.batch_size = 128
        config.data.image_size, config.model.image_size = 100, 64
        config.schedule.lr = 0.003
    return setting.place(config)


def arms(setting: Setting) -> dict[str, Arm]:
    oversampled, still = base(setting), default().augment
    basic = changed(oversampled, sampling__kind="uniform", augment__copies={})
    # Published arms count their own epochs; those of over-sampling are longer.
    longer = {"oversample-epochs": Arm(
        changed(oversampled, total={"epochs": 20.0}), "the same, for 20 of its longer epochs",
        {"age/mae": 4.731, "gender/accuracy": 0.939},
    )}  # fmt: skip
    return {
        "no-augmentation": Arm(
            changed(basic, augment=still.to_dict()), "no augmentation",
            {"age/mae": 5.335, "gender/accuracy": 0.921},
        ),
        "basic": Arm(
            basic, "flip, rotation, crop, brightness, contrast",
            {"age/mae": 5.105, "gender/accuracy": 0.925},
        ),
        "oversample": Arm(
            oversampled, "rare ages drawn more often, their copies augmented harder",
            {"age/mae": 4.731, "gender/accuracy": 0.939},
        ),
        **(longer if setting.scale == "cpu" else {}),
        "scratch": Arm(
            changed(oversampled, model__pretrained=None), "the same from random weights",
            {"age/mae": 5.148, "gender/accuracy": 0.926},
        ),
        "xgboost": Arm(
            None, "XGBoost on the features of basic",
            {"age/mae": 5.89, "gender/accuracy": 0.938},
            make=baseline("xgboost" if setting.scale != "smoke" else "boosting"),
        ),
        "svm": Arm(
            None, "support vector machines on these",
            {"age/mae": 5.49, "gender/accuracy": 0.946}, make=baseline("svm"),
        ),
        **faces.arms(setting, oversampled),
    }  # fmt: skip


def baseline(estimator: str) -> Callable[[pathlib.Path, int, pathlib.Path], None]:
    """Makes an arm of a classical estimator on the features of the reference's run."""

    def make(folder: pathlib.Path, seed: int, scores: pathlib.Path) -> None:
        reference = folder / REFERENCE / f"seed-{seed}"
        evaluate_baseline(reference, estimator, output=scores, write_report=False)

    return make
