"""The recipe of mobilenet_v1_utk on UTKFace's public CORAL split: ages 21 to 60.

    python -m agejax.main --config=configs/coral_mobilenet_v1_utk.py \
        --config.data.source=UTKFace.tar.gz \
        --config.data.split.files.train=coral_train.txt \
        --config.data.split.files.test=coral_test.txt \
        --config.model.pretrained=faceres-deep.json

Training images with a copy in the public test list are left out. A tenth of train is val. The
weights are those of mobilenet_v1_utk, trained on research data: models made from them are for
research only.

Measured in one run, about 30 minutes on two cores that other work shared, on the 2,638 test images
available here (the list is incomplete here), looked at once: age MAE 4.15 years (95 % interval
over these images 4.00 to 4.31), gender accuracy 0.981, ethnicity 0.866 (macro-F1 0.780). On val
4.36 and 0.979. Published for VOLO-D1 on the whole list: 4.23 and 0.977.
"""

import ml_collections

from agejax.configs import coral_utk, mobilenet_v1_utk


def get_config() -> ml_collections.ConfigDict:
    return coral_utk.on_public_lists(mobilenet_v1_utk.get_config())
