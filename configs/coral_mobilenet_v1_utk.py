"""The recipe of mobilenet_v1_utk on UTKFace's public CORAL split: ages 21 to 60.

    python -m agejax.main --config=configs/coral_mobilenet_v1_utk.py \
        --config.data.source=UTKFace.tar.gz \
        --config.data.split.files.train=coral_train.txt \
        --config.data.split.files.test=coral_test.txt \
        --config.model.pretrained=faceres-deep.json

Training images with a copy in the public test list are left out. A tenth of train is val. The
weights are those of mobilenet_v1_utk, trained on research data: models made from them are for
research only. Not measured yet.
"""

import ml_collections

from agejax.configs import coral_utk, mobilenet_v1_utk


def get_config() -> ml_collections.ConfigDict:
    return coral_utk.on_public_lists(mobilenet_v1_utk.get_config())
