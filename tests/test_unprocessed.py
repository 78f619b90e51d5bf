"""Images that could not be processed, counted by group."""

import numpy as np
import pytest

from agejax.evaluation import uncertainty, unprocessed

NAMES = {"gender": ("male", "female"), "ethnicity": ("A", "B")}
LABELS = {
    "age": np.array([5.0, 6, 25, np.nan], np.float32),
    "gender": np.array([0, 1, 1, -1], np.int32),
    "ethnicity": np.array([0, 0, 1, 1], np.int32),
}


def test_losses_by_group_by_hand():
    lost = [
        {"age": 7.0, "gender": "female", "ethnicity": "B"},
        {"age": 3.0, "gender": "female"},
        {"gender": "other", "ethnicity": "A"},  # a class that the run does not have
        {},
    ]
    found = unprocessed.measure(LABELS, NAMES, lost)
    counts = {by: {row["name"]: (row["lost"], row["n"]) for row in of} for by, of in found.items()}
    assert counts == {
        "decade": {"0-9": (2, 4), "20-29": (0, 1)},
        "gender": {"male": (0, 1), "female": (2, 4)},
        "ethnicity": {"A": (1, 3), "B": (1, 3)},
        "gender x ethnicity": {"male A": (0, 1), "female A": (0, 1), "female B": (1, 2)},
    }
    row = found["gender"][1]
    assert row["rate"] == pytest.approx(0.5)
    assert row["ci95"] == uncertainty.wilson(2, 4)


def test_without_losses_there_is_nothing_to_count():
    assert unprocessed.measure(LABELS, NAMES, []) == {}
