"""The recipe of frozen_utk on UTKFace's public CORAL split: ages 21 to 60.

    python -m agejax.main --config=configs/coral_frozen_utk.py \
        --config.data.source=UTKFace.tar.gz \
        --config.data.split.files.train=coral_train.txt \
        --config.data.split.files.test=coral_test.txt \
        --config.model.pretrained=faceres-deep.json

Training images that have a copy in the public test list are left out. A tenth of train is val.
"""

import ml_collections

from configs import coral_utk, frozen_utk


def get_config() -> ml_collections.ConfigDict:
    return coral_utk.on_public_lists(frozen_utk.get_config())
