"""The recipe of frozen_utk on UTKFace's public CORAL split: ages 21 to 60.

    python -m agejax.main --config=configs/coral_frozen_utk.py \
        --config.data.source=UTKFace.tar.gz \
        --config.data.split.files.train=coral_train.txt \
        --config.data.split.files.test=coral_test.txt \
        --config.model.pretrained=faceres-deep.json

Training images with a copy in the public test list are left out. A tenth of train is val.
Measured in one run at 167600d, whose frozen_utk left the expectation out of the loss, on the 2,638
test images available here (the list is incomplete here): age MAE 4.32 years (95 % interval over
these images 4.16 to 4.48), gender accuracy 0.980, ethnicity 0.859. The weights are those of
frozen_utk, trained on research data: models made from them are for research only.
"""

import ml_collections

from agejax.configs import coral_utk, frozen_utk


def get_config() -> ml_collections.ConfigDict:
    return coral_utk.on_public_lists(frozen_utk.get_config())
