"""A. Architectures and data on APPA-REAL: backbones, regression or classes, synthetic faces.

Synthetic faces are any folder of generated images (--synthetic), pseudo-labelled by the first arm's
first run. Only training uses pseudo-labels: val and test are real.
"""

from __future__ import annotations

import pathlib

import ml_collections

from agejax.configs import appa_resnet50
from agejax.distillation.pseudo_labels import pseudo_label
from experiments.arms import Arm
from experiments.systems import faces
from experiments.systems.setting import Setting, changed

TITLE = "A. Architectures"
REFERENCE = "real"
COLUMNS = ("age/mae", "age/mae/male", "age/mae/female")
# Replaces a backbone on two cores: the same kind of network, but small enough.
SMALL = {
    "resnet50": "mobilenet_v3_small", "seresnext50_32x4d": "resnet18", "vit_b16": "vit_ti16",
    "vgg16": "cnn", "pnasnet5_large": "nasnet_mobile", "mlp": "mlp",
}  # fmt: skip
UNSEEN = 1e-6  # a weight so small that a part of a mixture is never drawn


def base(setting: Setting) -> ml_collections.ConfigDict:
    config = appa_resnet50.get_config()
    if setting.dataset != "appa_real":  # as many images of UTKFace as APPA-REAL has
        config.data.split.official = False
        config.data.split.fractions = {"train": 0.216, "val": 0.079, "test": 0.104}
    if setting.scale == "cpu":
        config.total = {"epochs": 8.0}
        config.data.image_size, config.model.image_size = 100, 64
        config.model.name = SMALL[config.model.name]
        config.schedule.lr = 1.5e-3
    config.model.pretrained = setting.pretrained(config.model.name)
    return setting.place(config)


def arms(setting: Setting) -> dict[str, Arm]:
    real = base(setting)
    classes = {"kind": "distribution", "loss": "ce"}
    chosen = {
        "real": Arm(real, f"{real.model.name} on real faces, regression", {"age/mae": 8.6}),
        "classes": Arm(changed(real, heads__age=classes), "the same, a class for each year"),
        "uniform-ages": Arm(
            changed(real, sampling__kind="inverse", sampling__over=("age",), sampling__power=0.5),
            "the same, ages drawn more evenly",
        ),
    }
    if setting.synthetic is not None:
        chosen |= synthetic_arms(setting, real)
    if setting.dataset != "appa_real" or setting.genders is not None:  # it has no genders
        chosen |= gender_arms(setting, real)
    for backbone in list(SMALL)[1:]:
        config = changed(real, model__pretrained=None)
        if setting.scale != "smoke":
            name = SMALL[backbone] if setting.scale == "cpu" else backbone
            config = changed(config, model__name=name, model__options={})
        chosen[backbone] = Arm(config, f"{config.model.name} from random weights")
    return chosen | faces.arms(setting, real)


def gender_arms(setting: Setting, real: ml_collections.ConfigDict) -> dict[str, Arm]:
    """Arms trained on one gender only, by a classifier's labels or else the data's own."""
    prepare = None
    if setting.genders is not None:
        real = changed(
            real, data__edits__labels=str((setting.folder / "genders/labels.csv").absolute())
        )

        def prepare(folder: pathlib.Path) -> None:
            if not (folder / "genders" / "labels.csv").exists():
                pseudo_label(
                    str(setting.genders), setting.source, folder / "genders",
                    dataset=setting.dataset, labels=("gender",), keep=1.0, probability=0.0,
                )  # fmt: skip

    return {
        f"{gender}-only": Arm(
            changed(real, sampling__keep={"gender": {other: 0.0}}),
            f"trained on {gender} faces alone", theirs, prepare,
        )
        for gender, other, theirs in (
            ("male", "female", {"age/mae": 8.04, "age/mae/male": 7.30, "age/mae/female": 9.56}),
            ("female", "male", {"age/mae": 9.28, "age/mae/male": 11.99, "age/mae/female": 7.26}),
        )
    }  # fmt: skip


def synthetic_arms(setting: Setting, real: ml_collections.ConfigDict) -> dict[str, Arm]:
    """Arms trained on real and pseudo-labelled faces, and on pseudo-labelled ones only."""
    labels = setting.folder / "pseudo"

    def label(folder: pathlib.Path) -> None:
        if not (labels / "labels.csv").exists():
            assert setting.synthetic is not None
            pseudo_label(folder / REFERENCE / "seed-0", setting.synthetic, labels)

    def mixed(weight: float | None) -> ml_collections.ConfigDict:
        config = real.copy_and_resolve_references()
        config.data.mixture = {
            "pseudo": {
                "name": "image_folder",
                "source": setting.synthetic,
                "train_only": True,
                "options": {"labels": str((labels / "labels.csv").absolute())},
            },
            "real": {"name": setting.dataset, "source": setting.source},
        }
        if weight is not None:
            config.data.mixture.real.weight = weight
        return config

    return {
        "mixed": Arm(
            mixed(None), "real and pseudo-labelled faces", {"age/mae": 8.21}, prepare=label
        ),
        "synthetic": Arm(
            mixed(UNSEEN), "pseudo-labelled faces alone", {"age/mae": 10.13}, prepare=label
        ),
    }
