"""What a training opens with, and a dry run."""

import jax
import jax.numpy as jnp
import pytest

import tiny
from agejax.errors import UserError
from agejax.logging.cost import Cost
from agejax.train import train
from agejax.training import augment


@pytest.fixture
def config(faces, cache):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    return config


def test_the_cost_of_a_product_is_what_one_counts_by_hand():
    left, right = jnp.ones((8, 16)), jnp.ones((16, 4))
    cost = Cost.of(jax.jit(jnp.matmul).lower(left, right).compile())
    assert cost.flops == pytest.approx(2 * 8 * 16 * 4, rel=0.05)
    assert cost.argument_bytes == 4 * (8 * 16 + 16 * 4)


def test_a_dry_run_says_what_a_run_then_does_and_writes_nothing(config, faces, tmp_path, capsys):
    workdir = tmp_path / "run"
    config.total = {"epochs": 1.25}
    found = train(config, workdir, dry_run=True)
    said = capsys.readouterr().out
    assert not workdir.exists()
    summary = train(config, workdir)
    begun = capsys.readouterr().out
    assert found["images"] == summary["examples"]
    assert (found["parameters"], found["steps"]) == (summary["parameters"], summary["steps"])
    assert found["epochs"] == 1.25
    assert found["flops"] > 16 * 32 * 32 * 3 * 8 * 9  # one pass of the first convolution
    # At least the parameters, their average and Adam's two moments.
    assert found["argument_bytes"] > 4 * 4 * found["parameters"]
    settings = found["settings"]
    assert (settings["optim.ema"], settings["total.epochs"]) == (0.9, 1.25)
    assert "seed" not in settings
    assert "  config.augment.crop = [0.8, 1.0]\n" in said
    assert said.splitlines()[0] == begun.splitlines()[0]
    assert said.endswith(f"dry run: no step was taken, nothing was written to {workdir}\n")
    # Where a run is to go on, that is what would be done.
    before = sorted(workdir.rglob("*"))
    train(config, workdir, dry_run=True)
    said = capsys.readouterr().out
    assert f"those of step {summary['steps']} in the workdir" in said
    # What the run itself would be refused for, so is the dry run.
    others = tmp_path / "UTKFace"
    others.mkdir()
    for chip in sorted(faces.iterdir())[1:]:
        (others / chip.name).symlink_to(chip)
    config.data.source = str(others)
    with pytest.raises(UserError, match="was trained on other data than"):
        train(config, workdir, dry_run=True)
    assert sorted(workdir.rglob("*")) == before


def test_a_dry_run_counts_data_that_lies_on_the_devices(config, tmp_path, capsys):
    held = {}
    for choice in ("off", "on"):
        config.data.resident = choice
        found = train(config, tmp_path / "run", dry_run=True)
        held[choice] = found["argument_bytes"]
    assert "MiB of state, batch and resident data, " in capsys.readouterr().out
    # A row of 32 px has three labels of 4 bytes. A batch of 16 has such rows, each with a weight,
    # or their numbers.
    row = 32 * 32 * 3 + 3 * 4
    assert held["on"] - held["off"] == found["images"]["train"] * row - 16 * (row + 4 - 4)


def test_a_dry_run_computes_no_features_of_a_frozen_backbone(config, cache, tmp_path, capsys):
    config.optim.lr_multipliers = (("backbone/.*", None), (".*", 1.0))
    config.model.cached_views = 1
    config.augment = augment.SETTINGS.config()
    config.sampling.copy_strength = 1.0
    kept = sorted(cache.glob("features/*"))
    found = train(config, tmp_path / "run", dry_run=True)
    assert sorted(cache.glob("features/*")) == kept
    # Three heads on 16 features: an age with its bias, a sex, and five ethnicities.
    assert f"{found['parameters']:,}, {17 * 7} of them trained" in capsys.readouterr().out
    config.data.resident = "on"
    on_devices = train(config, tmp_path / "run", dry_run=True)
    assert sorted(cache.glob("features/*")) == kept
    # 16 features and three labels per image; in place of a weight, numbers of a row and of a view.
    row = 4 * (16 + 3)
    more = found["images"]["train"] * row - 16 * (row + 4 - 2 * 4)
    assert on_devices["argument_bytes"] - found["argument_bytes"] == more
