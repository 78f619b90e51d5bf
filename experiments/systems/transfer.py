"""C. The transfer ladder: what each step gains, from a frozen backbone to all tools together.

Published: APPA-REAL, ImageNet's NASNetMobile and MobileNetV3-Small, ages in 0..1, squared error.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import ml_collections

from agejax.configs import transfer_appa
from agejax.evaluation import ensembling
from agejax.reporting import results
from experiments.arms import Arm
from experiments.systems import faces
from experiments.systems.setting import Setting, changed

TITLE = "C. Transfer ladder"
REFERENCE = "frozen"
COLUMNS = ("age/mae", "age/bucket_accuracy")
LAST = {  # backbone -> the paths of its last layer, and of its last three
    "mobilenet_v3_small": ("features/12", "features/(10|11|12)"),
    "nasnet_mobile": ("cells/15", "cells/(13|14|15)"),
}
THEIRS = {"mobilenet_v3_small": 7.0, "nasnet_mobile": 9.0}  # after the last step
BUCKETS = {"mobilenet_v3_small": 0.55, "nasnet_mobile": 0.45}
FROZEN = (("backbone/.*", None), (".*", 1.0))
EDGES = (3, 10, 21, 28, 46, 66)  # years at which the buckets begin, except the first


def base(setting: Setting, backbone: str) -> ml_collections.ConfigDict:
    config = transfer_appa.get_config()
    config.model.name, config.model.pretrained = backbone, setting.pretrained(backbone)
    if setting.scale == "cpu":
        config.total = {"epochs": 4.0}
        config.data.image_size, config.model.image_size = 100, 64
        config.schedule.kind, config.schedule.lr = "one_cycle", 1e-3
    return setting.place(config)


def arms(setting: Setting) -> dict[str, Arm]:
    chosen = {}
    for backbone in ("mobilenet_v3_small",) if setting.scale != "full" else tuple(LAST):
        short = "" if backbone == "mobilenet_v3_small" else f"-{backbone}"
        chosen |= {f"{name}{short}": arm for name, arm in ladder(setting, backbone).items()}
    # Two cores can train only one backbone: there its number and its buckets are combined.
    other = "more-data-nasnet_mobile" if setting.scale == "full" else "buckets"
    return chosen | {
        "ensemble": Arm(
            None,
            f"0.6 of more-data and 0.4 of {other}",
            make=joined({"more-data": 0.6, other: 0.4}),
        ),
        # On all training images, like the later steps.
        **faces.arms(setting, base(setting, "mobilenet_v3_small"), data__split__train_share=1.0),
    }


def joined(shares: Mapping[str, float]) -> Callable[[pathlib.Path, int, pathlib.Path], None]:
    """Makes an arm of the weighted mean of arms' predictions."""

    def make(folder: pathlib.Path, seed: int, scores: pathlib.Path) -> None:
        members = [folder / arm / f"seed-{seed}" for arm in shares]
        ensembling.create(scores.parent, members, weights=",".join(map(str, shares.values())))
        results.evaluate(scores.parent, split="test", output=scores, write_report=False)

    return make


def ladder(setting: Setting, backbone: str) -> dict[str, Arm]:
    """The steps of the ladder; each adds one thing to the one before."""
    one, three = LAST[backbone]
    frozen = base(setting, backbone)
    head = changed(frozen, model__hidden=1024, model__dropout=0.7)
    last = changed(head, optim__lr_multipliers=_unfrozen(one, setting))
    last3 = changed(head, optim__lr_multipliers=_unfrozen(three, setting))
    augmented = changed(
        last3, augment__rotate=10.0, augment__flip=0.5, augment__shift=0.1, augment__zoom=0.1,
        augment__brightness=0.1, augment__contrast=0.1, optim__l2=((".*/kernel", 1e-4),),
    )  # fmt: skip
    more = changed(augmented, data__split__train_share=1.0)
    whole = changed(more, optim__lr_multipliers=((".*", 1.0),), model__dropout=0.2)
    ours = changed(
        whole,
        heads__age={"kind": "distribution", "loss": "sord", "decode": "median"},
        optim__ema=0.99,
        optim__name="adamw",
        optim__weight_decay=0.05,
    )
    buckets = {"kind": "buckets", "edges": EDGES, "decode": "mode"}
    return {
        "frozen": Arm(frozen, "the backbone frozen, one output"),
        "head": Arm(head, "a dense layer of 1,024 and dropout 0.7"),
        "last-layer": Arm(last, "and the last layer of the backbone trained"),
        "last-three": Arm(last3, "and the last three"),
        "augmentation": Arm(augmented, "and augmentation and L2"),
        "more-data": Arm(more, "and four times the data", {"age/mae": THEIRS[backbone]}),
        "buckets": Arm(
            changed(more, heads__age=buckets),
            "the same with seven age buckets",
            {"age/bucket_accuracy": BUCKETS[backbone]},
        ),
        "all-layers": Arm(whole, "ours: all layers trained, less dropout"),
        "distribution": Arm(ours, "ours: and a distribution over ages, AdamW, averaged weights"),
    }


def _unfrozen(layers: str, setting: Setting) -> tuple[tuple[str, float | None], ...]:
    if setting.scale == "smoke":  # a small network has other names
        return FROZEN
    return ((f"backbone/{layers}/.*", 1.0), *FROZEN)
