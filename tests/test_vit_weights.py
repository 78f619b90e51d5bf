"""ViT's weights: positions of another image size, their normalisation, Flax's two namings."""

import json

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from flax import nnx

from agejax.config import default
from agejax.errors import UserError
from agejax.models import pretrained, registry
from agejax.models.pretrained import augreg, positions
from agejax.models.pretrained.layout import HALF, IMAGENET_MEAN, IMAGENET_STD

# What timm 1.0.31 makes of GRID, a class token and then three rows of three (torch 2.13).
GRID = np.array([i * i % 7 for i in range(10)], np.float32).reshape(1, 10, 1)
TO_TWO = [0.0, 2.475494, 2.544182, 1.163765, 2.661618]
TO_FOUR = [
    0.0, 0.788316, 2.997417, 3.487148, 1.950490, 1.639431, 3.512310, 3.244359, 1.003560,
    1.242352, 2.357549, 2.679422, 2.006185, -0.153988, 0.257068, 2.146503, 4.329806,
]  # fmt: skip


@pytest.mark.parametrize("expected", [TO_TWO, TO_FOUR])
def test_positions_are_resized_as_timm_does(expected):
    actual = positions.resize(GRID, len(expected))
    np.testing.assert_allclose(actual.ravel(), expected, atol=2e-6)


def test_positions_of_the_same_size_are_untouched():
    assert positions.resize(GRID, 10) is GRID


@pytest.fixture(scope="module")
def state():
    """timm's keys of vit_tiny_patch16_224 at 64 pixels, all zero."""
    keys = json.loads((ROOT / "tests" / "goldens" / "vit_ti16_timm.json").read_text())["keys"]
    return {key: np.zeros(shape, np.float32) for key, shape in keys.items()}


def load(state, folder, size=64):
    model = nnx.eval_shape(lambda: registry.create("vit_ti16", image_size=size, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(model))
    shapes = {"/".join(map(str, path)): v.get_value().shape for path, v in flat}
    safetensors.numpy.save_file(state, folder / "w")
    return pretrained.load(str(folder / "w"), "vit_ti16", shapes, prefix="")


def test_weights_of_another_image_size_fit(state, tmp_path):
    loaded = load(state, tmp_path, size=96)
    assert loaded.arrays["pos_embed"].shape == (1, 37, 192)
    assert set(loaded.left_out) == {"head.weight", "head.bias"}


def test_positions_that_are_no_square_are_one_clear_line(state, tmp_path):
    distilled = state | {"pos_embed": np.zeros((1, 198, 192), np.float32)}
    with pytest.raises(UserError, match=r"pos_embed is \(1, 198, 192\): no class token") as error:
        load(distilled, tmp_path)
    assert "\n" not in str(error.value)


def settled(state, folder, **model):
    safetensors.numpy.save_file(state, folder / "w")
    config = default()
    config.model.update({"name": "vit_ti16", "pretrained": str(folder / "w")} | model)
    return pretrained.settle(config).model


def test_timms_weights_take_images_in_minus_one_to_one_unless_the_config_says_deit(state, tmp_path):
    assert settled(state, tmp_path).mean == HALF
    assert settled(state, tmp_path).options.gelu == "exact"
    deit = settled(state, tmp_path, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert (deit.mean, deit.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "DeiT" in str(load(state, tmp_path))
    with pytest.raises(UserError, match=r"mean and \.std: set both or none"):
        settled(state, tmp_path, mean=IMAGENET_MEAN)
    with pytest.raises(UserError, match=r"options\.gelu: .* expects exact, not tanh"):
        settled(state, tmp_path, options={"gelu": "tanh"})


def flax_block(rng, dim, heads, attention, norm, mlp):
    """One block's arrays, as Flax names them."""
    shapes = {f"LayerNorm_{i}/{leaf}": (dim,) for i in (0, norm) for leaf in ("scale", "bias")}
    for name in ("query", "key", "value"):
        shapes[f"MultiHeadDotProductAttention_{attention}/{name}/kernel"] = (
            dim,
            heads,
            dim // heads,
        )
        shapes[f"MultiHeadDotProductAttention_{attention}/{name}/bias"] = (heads, dim // heads)
    shapes[f"MultiHeadDotProductAttention_{attention}/out/kernel"] = (heads, dim // heads, dim)
    shapes[f"MultiHeadDotProductAttention_{attention}/out/bias"] = (dim,)
    for i, (inputs, outputs) in enumerate([(dim, 4 * dim), (4 * dim, dim)]):
        shapes[f"MlpBlock_{mlp}/Dense_{i}/kernel"] = (inputs, outputs)
        shapes[f"MlpBlock_{mlp}/Dense_{i}/bias"] = (outputs,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def flax_state(big_vision, depth=2, dim=6, heads=2):
    """The same weights in either naming."""
    rng = np.random.default_rng(0)
    numbers = (0, 1, 0) if big_vision else (1, 2, 3)
    blocks = [flax_block(rng, dim, heads, *numbers) for _ in range(depth)]
    rest = {
        "embedding/kernel": (16, 16, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
        "cls": (1, 1, dim),
    }
    state = {name: rng.normal(size=shape).astype(np.float32) for name, shape in rest.items()}
    grid = rng.normal(size=(1, 4, dim)).astype(np.float32)
    if big_vision:
        state["pos_embedding"] = grid
        for name in blocks[0]:
            state[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
        return {f"params/{name}": value for name, value in state.items()}
    first = np.zeros((1, 1, dim), np.float32)
    state["Transformer/posembed_input/pos_embedding"] = np.concatenate([first, grid], 1)
    for i, block in enumerate(blocks):
        state |= {f"Transformer/encoderblock_{i}/{name}": value for name, value in block.items()}
    return state


def ours(state):
    layout = augreg.LAYOUT
    return {layout.our_name(k, v): v for k, v in layout.prepare(state).items()}


def test_both_of_flaxs_namings_give_the_same_weights():
    one, other = ours(flax_state(big_vision=False)), ours(flax_state(big_vision=True))
    assert None not in one
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_queries_keys_and_values_lie_head_by_head():
    state = flax_state(big_vision=False)
    attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    kernel = ours(state)["blocks/1/qkv/kernel"].reshape(6, 3, 2, 3)  # [D, part, head, width]
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(kernel[:, i], state[f"{attention}/{part}/kernel"])


def test_a_block_with_a_part_missing_is_reported_and_other_libraries_files_are_untouched(state):
    broken = flax_state(big_vision=False)
    gone = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel"
    del broken[gone]
    assert gone.replace("key", "query") in augreg.prepare(broken)
    assert augreg.prepare(state) is state


def test_an_unknown_gelu_is_one_clear_line():
    with pytest.raises(UserError, match=r"config\.model\.options\.gelu: 'tan' is not one of exact"):
        registry.create("vit_ti16", image_size=32, rngs=nnx.Rngs(0), gelu="tan")
