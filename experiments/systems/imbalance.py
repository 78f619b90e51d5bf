"""B. Imbalance on UTKFace: sample weights, under-sampling, DenseWeight with LMF, balanced test.

"Other" is dropped, Asian is cut by 75 %, ages of 80 or more are dropped; age on a logarithmic
scale; a test set of 10 images of every gender x ethnicity x decade.
"""

from __future__ import annotations

import dataclasses
import pathlib

import ml_collections

from agejax.configs import imbalance_utk, mobilenet_v3_utk_best
from agejax.distillation.targets import write_targets
from experiments.arms import Arm
from experiments.systems import faces
from experiments.systems.setting import Setting, changed

TITLE = "B. Imbalance"
REFERENCE = "baseline"
COLUMNS = ("age/mae", "gender/accuracy", "ethnicity/macro_f1")
# Best of 25 trials at 64 px on val: experiments/results/sweep_imbalance. All arms share the
# settings that do not concern imbalance.
SEARCHED = {"lr": 3.3e-3, "dropout": 0.1, "age weight": 6.5, "alpha": 0.69}
# Drawn as the test set is, chosen on a val made like it: python -m experiments.levers.
FLAT = {
    "sampling__kind": "inverse", "sampling__over": ("gender", "ethnicity", "decade"),
    "sampling__power": 1.0, "heads__age__decode_prior": "sampled", "eval__best": "age/macro_mae",
}  # fmt: skip
TEACHERS = ("faces", "faces-frozen-flat")  # of the small network


def base(setting: Setting) -> ml_collections.ConfigDict:
    config = imbalance_utk.get_config()
    config.model.pretrained = setting.pretrained(config.model.name)
    if setting.scale == "cpu":
        config.total = {"steps": 1100}  # about 6 epochs; the same for each arm
        config.data.image_size, config.model.image_size = 100, 64
        config.schedule.kind, config.schedule.lr = "one_cycle", SEARCHED["lr"]
        config.model.dropout = SEARCHED["dropout"]
        config.heads.age.weight = SEARCHED["age weight"]
    return setting.place(config)


def arms(setting: Setting) -> dict[str, Arm]:
    dense_lmf = base(setting)
    age, ethnicity = (dense_lmf.heads[name].to_dict() for name in ("age", "ethnicity"))
    del age["example_weights"]
    plain_ethnicity = {"kind": "categorical", "weight": ethnicity["weight"]}
    config = changed(dense_lmf, heads__age=age, heads__ethnicity=plain_ethnicity)
    searched = age | {"example_weights": {"kind": "dense", "alpha": SEARCHED["alpha"]}}
    inverse = plain_ethnicity | {"example_weights": {"kind": "inverse"}}
    # The best on val by experiments/spaces/imbalance_ours.py. decode_prior is "sampled": the test
    # set is balanced too, so the data's own ages would be the wrong prior.
    sord = {"kind": "distribution", "loss": "sord", "weight": 2.0, "decode_prior": "sampled"}
    ours = changed(
        config,
        heads__age=sord,
        heads__ethnicity=inverse,
        sampling__kind="inverse",
        sampling__over=("decade", "ethnicity"),
        sampling__power=0.5,
        augment__flip=0.5,
    )
    # For the face network too: its draws are balanced, as the test set is.
    even = {
        "sampling__kind": "inverse", "sampling__over": ("decade", "ethnicity"),
        "sampling__power": 0.5, "heads__age__decode_prior": "sampled",
        "heads__ethnicity__example_weights": {"kind": "inverse"},
    }  # fmt: skip
    with_faces = faces.arms(setting, config, **even)
    if frozen := with_faces.get("faces-frozen"):
        assert frozen.config is not None
        flat = changed(frozen.config, **FLAT, heads__ethnicity__example_weights={})
        if setting.scale != "smoke":
            flat.total = {"epochs": 12.0}
        what = "the same, genders x ethnicities x decades drawn equally often, 12 epochs"
        with_faces["faces-frozen-flat"] = dataclasses.replace(frozen, config=flat, what=what)
        with_faces["small"] = taught(setting, config)
    return {
        "baseline": Arm(
            config, "as it is",
            {"age/mae": 10.2, "gender/accuracy": 0.911, "ethnicity/macro_f1": 0.780},
        ),
        "ins": Arm(
            changed(
                config,
                heads__age=age | {"example_weights": {"kind": "inverse"}},
                heads__ethnicity=inverse,
            ),
            "weights of one over the number of images of the age and of the ethnicity (INS)",
        ),
        "undersample": Arm(
            changed(config, sampling__keep={"ethnicity": {"majority": 0.5}}),
            "half of the largest ethnicity left out of training",
        ),
        "dense-lmf": Arm(
            dense_lmf, "DenseWeight (alpha 0.25) and LMF (alpha 2.5, beta 0.05, gamma 4)",
            {"age/mae": 8.9, "gender/accuracy": 0.920, "ethnicity/macro_f1": 0.821},
        ),
        "dense-lmf-searched": Arm(
            changed(dense_lmf, heads__age=searched), "the same, DenseWeight's alpha searched: 0.69"
        ),
        "ours": Arm(
            ours, "SORD, INS for ethnicity, decades x ethnicities drawn by the root of INS"
        ),
        **with_faces,
    }  # fmt: skip


def taught(setting: Setting, like: ml_collections.ConfigDict) -> Arm:
    """The recipe of mobilenet_v3_utk_best; every seed learns from the teachers' seed 0.

    Args:
      like: a config of the system.
    """
    answers = {name: setting.folder.absolute() / f"{name}.npz" for name in TEACHERS}

    def teach(folder: pathlib.Path) -> None:
        for name, path in answers.items():
            if not path.exists():
                write_targets(
                    folder / name / "seed-0", path, split=("train", "val"), views=("plain", "flip")
                )

    small = faces.on_data_of(like, setting, mobilenet_v3_utk_best.get_config())
    small = changed(
        small,
        **FLAT | {"sampling__power": 0.5},
        distill__files=tuple(str(path) for path in answers.values()),
        distill__features__teacher=str(answers[TEACHERS[0]]),
    )
    what = f"ours: MobileNetV3-Small, 160 px, taught by {' and '.join(TEACHERS)} of seed 0"
    return Arm(small, what, prepare=teach)
