"""The table of models agrees with the literature and with counting by hand."""

import json

import jax.numpy as jnp
import pytest
from flax import nnx

from agejax.models import registry, summary
from agejax.process.command import run_command


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        # MobileNetV3, table 3: 56 million.
        ("mobilenet_v3_small", 56.5e6),
        # torchvision's `_ops` of its weights, in 1e9.
        ("resnet18", 1.814e9),
        ("resnext50_32x4d", 4.230e9),
        ("efficientnet_b0", 0.386e9),
        ("vit_b16", 17.564e9),
    ],
)
def test_multiply_accumulates_are_the_published_ones(name, macs):
    network = summary.Network.of(
        nnx.eval_shape(
            lambda: registry.create(name, image_size=224, num_classes=1000, rngs=nnx.Rngs(0))
        )
    )
    assert summary.count_macs(network, 224) == pytest.approx(macs, rel=2e-3)


def test_a_perceptron_costs_what_counting_by_hand_says():
    row = summary.describe("mlp", image_size=32)
    inputs = 32 * 32 * 3
    dense = inputs * 512 + 512 * 256
    assert row.macs == dense
    assert row.parameters == dense + 3 * (512 + 256)  # biases, scales and shifts
    # The image, and of each layer at least what goes into batch norm and into ReLU.
    least = 4 * (inputs + 2 * (512 + 256))
    assert least <= row.kept_bytes_per_image <= 1.5 * least


def test_memory_grows_with_the_area_and_halves_with_the_bits():
    small, large = (summary.describe("cnn", image_size=size) for size in (32, 64))
    half = summary.describe("cnn", image_size=64, dtype=jnp.bfloat16)
    assert large.parameters == small.parameters == half.parameters
    assert large.macs == 4 * small.macs == half.macs
    assert large.kept_bytes_per_image == pytest.approx(4 * small.kept_bytes_per_image, rel=0.01)
    assert 0.4 < half.kept_bytes_per_image / large.kept_bytes_per_image < 0.7


def test_recomputing_keeps_what_goes_into_each_block_and_no_more():
    kept, recomputed = (summary.describe("vit_ti16", remat=remat) for remat in (False, True))
    tokens = (224 // 16) ** 2 + 1
    # What goes into 12 blocks, and the patches: float32 of 192 and 768 channels.
    least = 4 * (12 * tokens * 192 + (tokens - 1) * 768)
    assert least <= recomputed.kept_bytes_per_image < 1.01 * least < 0.1 * kept.kept_bytes_per_image


def test_memory_is_measured_without_running_a_step(capsys, monkeypatch):
    monkeypatch.setattr(summary, "_seconds", None)
    arguments = ["--model=mlp", "--image_size=32", "--batch_size=2", "--measure=memory"]
    summary.main(["summary", *arguments, "--format=json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["step_bytes"] > 0
    assert row["step_images_per_second"] is None


def test_only_models_of_the_registry_have_an_image_size_of_their_own():
    assert set(summary.IMAGE_SIZES) <= set(registry.MODELS)
    row = summary.describe("cnn")
    assert row.image_size == 224


def test_the_command_measures_one_model_and_prints_every_format(capsys, monkeypatch):
    monkeypatch.setattr(summary, "SECONDS", 0.0)
    arguments = ["summary", "--model=mlp", "--image_size=32", "--batch_size=2", "--measure=train"]

    summary.main([*arguments, "--format=json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["model"] == "mlp"
    assert row["forward_images_per_second"] > 0
    assert row["step_images_per_second"] > 0
    assert row["step_bytes"] > 0

    summary.main(arguments)
    title, line = capsys.readouterr().out.splitlines()
    assert len(title) == len(line)
    assert line.split()[:2] == ["mlp", "32"]

    summary.main([*arguments[:3], "--measure=none", "--format=md"])
    title, border, line = capsys.readouterr().out.splitlines()
    assert title.count("|") == border.count("|") == line.count("|") == 6


def test_a_model_that_does_not_take_the_images_is_left_out_of_the_table(capsys, monkeypatch):
    models = {name: registry.MODELS[name] for name in ("mlp", "vit_ti16")}
    monkeypatch.setattr(registry, "MODELS", models)
    summary.main(["summary", "--image_size=40"])
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["model", "mlp"]
    assert "left out vit_ti16: " in printed.err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model=resnet5", "did you mean 'resnet50'"),
        ("--image_size=8", "--image_size=8: too small"),
        ("--batch_size=0", "--batch_size=0: give 1 or more"),
        ("--num_classes=-1", "--num_classes=-1: give 1 or more"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(argument, message, capsys):
    arguments = ["summary", *([] if "model" in argument else ["--model=mlp"]), argument]
    assert run_command(summary.main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
