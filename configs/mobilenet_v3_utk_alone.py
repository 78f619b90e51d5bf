"""MobileNetV3-Small on UTKFace without a teacher, as well as a search found it.

    python -m agejax.main --config=configs/mobilenet_v3_utk_alone.py \
        --config.data.source=UTKFace.tar.gz \
        --config.model.pretrained=mobilenet_v3_small_imagenet_features.safetensors

With teachers that know faces, configs/mobilenet_v3_utk_best.py has 4.58 years, on a test split that
shares 2,669 of its 3,802 images with the one of this run.

80/20 split that keeps copies together, a tenth of train held out as val. The recipe is what the
search of experiments/spaces/recipe.py found on val, but for crops and erasing, which are those of
mobilenet_v3_utk, and the weight of the gender: at 64 px and 6 epochs 0.6 in place of 0.2 is worth
0.015 of gender accuracy on val and costs 0.2 years.

Measured in one run on 3,801 test images, 104 minutes on one busy core: age MAE 4.96 years (95 %
interval over these images 4.77 to 5.13), gender accuracy 0.940, ethnicity 0.848. Its ages were
decoded with heads.age.decode_prior=sampled, which is not the default any more. It over-fits: on val
it was best after 18 of the 26 epochs, 4.81, and ended at 4.88. The search's trials were too short
to show that. The mean of this run and of a more regularised one, over flipped views, has 4.84 (4.67
to 5.01) and 0.941: the commands are in experiments/results/README.md.
"""

import ml_collections

from agejax.configs import mobilenet_v3_utk


def get_config() -> ml_collections.ConfigDict:
    config = mobilenet_v3_utk.get_config()
    config.total = {"epochs": 26.0}
    config.data.image_size = 200
    config.model.image_size = 160
    config.data.split.fractions = ml_collections.ConfigDict({"train": 0.8, "test": 0.2})
    config.model.options = ml_collections.ConfigDict()
    config.model.hidden = 0
    config.model.dropout = 0.3
    config.heads.age = {"kind": "distribution", "loss": "ce", "weight": 0.25}
    config.heads.gender.weight = 0.4
    config.heads.ethnicity.weight = 0.1
    config.optim.weight_decay = 0.02
    config.schedule.lr = 5.5e-3
    config.sampling.kind = "density"
    config.augment.mixup = 0.2
    # A rare face that comes twice in an epoch looks another way the second time.
    config.augment.copies = {
        "flip": 0.5, "rotate": 20.0, "crop": (0.6, 1.0), "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.3, "erase": 0.4, "sharpness": 0.5,
    }  # fmt: skip
    return config
