import pytest

from agejax.errors import UserError
from agejax.training.durations import ToSteps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 2}, 20),
        ({"epochs": 0.25}, 2),
        ({"examples": 320}, 5),
        ({"examples": 344}, 5),  # 5.375: to the nearest
        ({"epochs": 0.57}, 6),  # 5.7
        ({"percent": 0.8}, 2),  # 1.6
        ({"percent": 50}, 100),
        ({"epochs": 0.001}, 1),
        ({"steps": 0}, 0),
        ({"steps": None, "epochs": 1}, 10),
    ],
)
def test_every_unit_becomes_steps(duration, steps):
    assert ToSteps(64, examples=640, total_steps=200)(duration, "x") == steps


@pytest.mark.parametrize(
    ("duration", "message"),
    [
        ({}, "exactly one"),
        ({"steps": 1, "epochs": 1}, "exactly one"),
        ({"hours": 1}, "exactly one"),
        ({"steps": -1}, "negative"),
        ({"percent": 5}, "percent needs a total"),
    ],
)
def test_anything_else_names_the_key(duration, message):
    with pytest.raises(UserError, match=rf"config\.total: .*{message}|config\.total: {message}"):
        ToSteps(64, examples=640)(duration, "total")
