"""Every config loads, builds its model and optimizer abstractly, and documents its command."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from agejax import heads
from agejax.models import pretrained
from agejax.training import augment, optim, sharding, state

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("[!_]*.py"))
LABELS = {
    "age": np.array([1.0, 30.0, 80.0], np.float32),
    "gender": np.array([0, 1, 1]),
    "ethnicity": np.array([0, 3, 2]),
}
NAMES = {"gender": ("male", "female"), "ethnicity": ("a", "b", "c", "d")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = pretrained.settle(module.get_config().lock())
    assert f"python -m agejax.main --config=configs/{path.name}" in module.__doc__
    assert json.loads(config.to_json_best_effort())["model"]["name"] == config.model.name

    facts = heads.Facts.of(LABELS, NAMES)
    model, initialise = state.create_model(config, heads.create(config.heads, facts))
    schedule = optim.create_schedule(config.schedule, 1000, lambda d, name: 100)
    optimizer = optim.create_optimizer(config.optim, schedule, model.parameters)
    mesh = sharding.create_mesh(1, 1)
    started = state.abstract(config, initialise, optimizer, mesh)
    assert set(started.params) == set(model.parameters)
    assert jax.tree.leaves(started.opt_state)
    augment.build(config.augment, config.model.image_size)


def test_there_are_the_configs_that_the_readme_names():
    assert {"quickstart", "mobilenet_v3_utk", "vit_utk", "resnet50_utk", "vgg16_utk"} <= {
        path.stem for path in CONFIGS
    }
