"""Programs for other machines: the train steps of all configs, lowered for eight GPUs."""

import importlib
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from test_configs import CONFIGS, LABELS, NAMES

from agejax import heads
from agejax.configs import quickstart
from agejax.models import lowerings, pretrained
from agejax.training import optim, sharding, state, step


def traced(config, mesh):
    """(the train step of a config traced for arrays on a mesh, its abstract state)."""
    config = pretrained.settle(config)
    facts = heads.Facts.of(LABELS, NAMES)
    model, initialise = state.create_model(config, heads.create(config.heads, facts))
    optimizer = optim.create_optimizer(
        config.optim, optax.constant_schedule(1e-3), model.parameters
    )
    like = state.abstract(config, initialise, optimizer, mesh)
    size, edge = config.data.batch_size, config.data.image_size
    split = sharding.batch_sharding(mesh)

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=split)

    batch = {name: array() for name in ("age", "apparent_age", "apparent_age_std", "weight")}
    batch |= {name: array(dtype=jnp.int32) for name in ("gender", "ethnicity", "index")}
    strengths = array(2) if config.augment.copies else array()
    batch |= {"image": array(edge, edge, 3, dtype=jnp.uint8), "strength": strengths}
    return step.make_train_step(config, model, optimizer, like).trace(like, batch), like


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_train_step_of_every_config_lowers_for_eight_gpus(path, monkeypatch):
    platform = lowerings.platform
    monkeypatch.setattr(lowerings, "platform", lambda _: platform("gpu"))  # as traced there
    config = importlib.import_module(f"agejax.configs.{path.stem}").get_config()
    program, _ = traced(config, sharding.create_mesh(8, 2))
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    assert "mhlo.num_partitions = 8" in text
    # On a GPU convolutions are its library's, not our forms for CPUs.
    patches = config.model.name.startswith("vit") and "stem" not in config.model.options
    assert ("stablehlo.convolution" in text) != patches


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_each_device_holds_its_share_of_the_state(fsdp, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 2**12)
    config = quickstart.get_config()
    config.model.name, config.model.options = "mlp", {"widths": (256, 512)}
    config.model.image_size = config.data.image_size = 16
    step, like = traced(config, sharding.create_mesh(8, fsdp))
    held = step.lower().compile().memory_analysis().argument_size_in_bytes

    leaves = jax.tree.leaves(like)
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    large = sum(x.size * x.dtype.itemsize for x in leaves if x.size >= 2**12)
    assert large > 0.95 * whole
    images = config.data.batch_size // 8 * (16 * 16 * 3 + 10 * 4)
    expected = whole - large + large / fsdp + images
    assert held == pytest.approx(expected, rel=0.02)


def test_no_branch_of_a_step_on_several_cpu_devices_holds_a_collective():
    """XLA:CPU does not order them with those outside: two processes waited for each other."""
    config = quickstart.get_config()
    config.model.name, config.model.options = "mlp", {"widths": (16,)}
    config.model.image_size = config.data.image_size = 16
    config.augment.crop, config.augment.mixup, config.augment.cutmix = (0.8, 1.0), 0.2, 0.2
    step, _ = traced(config, sharding.create_mesh(8, 1))
    bodies: dict[str, str] = {}
    for body in step.lower().compile().as_text().split("\n\n"):
        name = re.match(r"(?:ENTRY )?%([\w.\-]+) ", body)
        bodies |= {name[1]: body} if name else {}
    assert any("collective-permute" in body for body in bodies.values())  # mixup's
    branches = re.findall(r" conditional\(.*_computations?={?(.*)", "\n".join(bodies.values()))
    reached, found = set(), re.findall(r"%([\w.\-]+)", " ".join(branches))
    assert found
    while found:
        name = found.pop()
        if name in bodies and name not in reached:
            reached.add(name)
            found += re.findall(r"%([\w.\-]+)", bodies[name])
    collectives = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    assert not [name for name in reached if any(kind in bodies[name] for kind in collectives)]
