"""Augmentation: every operation is right, and depends only on the key, the row and the strength."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from agejax.errors import UserError
from agejax.models import inputs
from agejax.training import augment

SIZE = 32
KEY = jax.random.key(3)
LIGHT = {
    "flip": 0.5, "crop": (0.6, 0.9), "rotate": 15.0, "shift": 0.05, "zoom": 0.1,
    "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
}  # fmt: skip
TONE = {"autocontrast": 0.5, "sharpness": 0.8, "sharpness_prob": 0.7, "hue": 0.1}
STRONG = LIGHT | TONE | {
    "rotate": 30.0, "brightness": 0.35, "greyscale": 0.3, "erase": 0.5,
    "perspective": 0.4, "perspective_prob": 0.6,
}  # fmt: skip
ALL = STRONG | LIGHT | {
    "mixup": 0.4, "mixup_prob": 0.7, "cutmix": 1.0, "cutmix_switch": 0.4,
    "rand_ops": 2, "rand_magnitude": 12.0,
}  # fmt: skip


def faces(n: int = 8, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Smooth coloured images with no symmetry, uint8 [n, height, width, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(40, 200, (n, 5, 5, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (n, height, width, 3), "cubic")).astype(np.uint8)


def run(
    config: dict[str, Any],
    images: np.ndarray,
    strength: float = 1.0,
    key: jax.Array = KEY,
    size: int = SIZE,
) -> tuple[np.ndarray, augment.Mix | None]:
    out, mix = jax.jit(augment.build(config, size))(key, images, jnp.full(len(images), strength))
    assert out.shape == (len(images), size, size, 3)
    assert out.dtype == jnp.float32
    assert -1e-6 <= out.min() <= out.max() <= 1 + 1e-6
    return np.asarray(out), mix


def plain(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


def same(out: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Which images are equal up to the last bit of a float, bool [B]."""
    return (np.abs(out - plain(images)) < 1e-6).all(axis=(1, 2, 3))


def test_the_default_config_changes_nothing() -> None:
    images = faces()
    out, mix = run(dict(augment.SETTINGS.config()), images)
    assert same(out, images).all()
    assert mix is None
    assert isinstance(augment.SETTINGS.config(), ml_collections.ConfigDict)


@pytest.mark.parametrize("shape", [(32, 32), (24, 20), (50, 32), (70, 41)])
def test_strength_zero_is_the_evaluation_path(shape: tuple[int, int]) -> None:
    images = faces(4, *shape)
    out, mix = run(ALL, images, strength=0.0)
    np.testing.assert_allclose(out, inputs.eval_images(images, SIZE), atol=1e-5)
    np.testing.assert_array_equal(mix.lam, 1.0)


def test_a_certain_flip_mirrors_exactly() -> None:
    images = faces()
    assert same(run({"flip": 1.0}, images)[0], images[:, :, ::-1]).all()


def test_flip_comes_as_often_as_configured_and_not_more_at_double_strength() -> None:
    images = faces(512, 8, 8)
    for strength, expected in ((0.5, 0.25), (1.0, 0.5), (2.0, 0.5)):
        out, _ = run({"flip": 0.5}, images, strength, size=8)
        flipped = same(out, images[:, :, ::-1])
        assert (flipped | same(out, images)).all()
        assert abs(flipped.mean() - expected) < 0.1


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[0, 1, 16], [-1, 0, 16]], lambda x: np.rot90(x, -1, axes=(1, 2))),
        ([[0, -1, 16], [1, 0, 16]], lambda x: np.rot90(x, 1, axes=(1, 2))),
        ([[1, 0, 16], [0, -1, 16]], lambda x: x[:, ::-1]),
        ([[1, 0, 19], [0, 1, 14]], lambda x: np.pad(x, MIRROR, "symmetric")[:, :SIZE, 3:]),
        ([[1, 0, 16.5], [0, 1, 16]], lambda x: (x + np.pad(x, RIGHT, "edge")[:, :, 1:]) / 2),
    ],
    ids=["right", "left", "upside down", "shift, mirrored at the edges", "half a pixel"],
)
def test_warp_follows_its_matrix(
    matrix: list[list[float]], expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    images = faces(2)
    out = augment.warp(images, jnp.asarray([matrix] * 2, jnp.float32), SIZE)
    np.testing.assert_allclose(out, expected(plain(images)), atol=1e-6)


MIRROR = ((0, 0), (2, 0), (0, 3), (0, 0))
RIGHT = ((0, 0), (0, 0), (0, 1), (0, 0))


def moments(out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (x, y), in pixels from the middle, and area in pixels of the bright part of images."""
    mass = out[..., 0]
    grid = np.arange(out.shape[1]) + 0.5 - out.shape[1] / 2
    x, y = (mass * grid).sum((1, 2)), (mass * grid[:, None]).sum((1, 2))
    return np.stack([x, y], 1) / mass.sum((1, 2))[:, None], mass.sum((1, 2))


def spot(n: int, x: int, y: int, size: int = 64) -> np.ndarray:
    """A white 6x6 square with its centre (x, y) pixels off the middle of black images."""
    images = np.zeros((n, size, size, 3), np.uint8)
    mid = size // 2
    images[:, mid + y - 3 : mid + y + 3, mid + x - 3 : mid + x + 3] = 255
    return images


def test_rotation_turns_about_the_centre_up_to_its_limit(
    monkeypatch: pytest.MonkeyPatch, users_jit: Callable[..., Any]
) -> None:
    monkeypatch.setattr(jax, "jit", users_jit)
    centre, area = moments(run({"rotate": 40.0}, spot(64, 16, 0), size=64)[0])
    angle = np.degrees(np.arctan2(centre[:, 1], centre[:, 0]))
    np.testing.assert_allclose(np.hypot(*centre.T), 16, atol=0.1)
    np.testing.assert_allclose(area, 36, rtol=0.03)
    assert 30 < np.abs(angle).max() < 40.5
    assert angle.min() < -10 < 10 < angle.max()


def test_shift_moves_up_to_its_limit_on_both_axes() -> None:
    centre, _ = moments(run({"shift": 0.25}, spot(64, 0, 0), size=64)[0])
    assert (np.abs(centre).max(axis=0) < 16.1).all()
    assert (centre.min(axis=0) < -10).all()
    assert (centre.max(axis=0) > 10).all()


def test_zoom_scales_up_to_its_limit_both_ways() -> None:
    _, area = moments(run({"zoom": 0.5}, spot(64, 0, 0), size=64)[0])
    factor = np.sqrt(area / 36)
    assert 1 / 1.55 < factor.min() < 0.8
    assert 1.25 < factor.max() < 1.55


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_crop_has_the_width_and_height_of_its_area_and_ratio(strength: float) -> None:
    # 0.8 x 0.6 of the edges: an area of 0.48, 4 : 3. Half as strong: the square roots of these.
    across, along = 0.8**strength, 0.6**strength
    x = np.arange(64, dtype=np.uint8) * 3
    ramps = np.broadcast_to(np.stack([*np.meshgrid(x, x), 0 * np.add.outer(x, x)], axis=-1),
                            (32, 64, 64, 3))  # fmt: skip
    out, _ = run({"crop": (0.48, 0.48), "crop_ratio": (4 / 3, 4 / 3)}, ramps, strength, size=64)
    out = out * 255 / 3  # where each pixel comes from, in pixels
    inner = slice(4, -4)  # edges have no neighbours to sample between
    np.testing.assert_allclose(np.diff(out[:, inner, inner, 0], axis=2), across, atol=2e-3)
    np.testing.assert_allclose(np.diff(out[:, inner, inner, 1], axis=1), along, atol=2e-3)
    # It lies anywhere within the image.
    middles = out[:, 31:33, 31:33, :2].mean(axis=(1, 2)) + 0.5
    for place, share in zip(middles.T, (across, along), strict=True):
        assert share * 32 - 0.1 <= place.min() < place.max() <= 64 - share * 32 + 0.1
        assert np.ptp(place) > 0.7 * (1 - share) * 64


def test_crop_keeps_a_part_of_the_image_of_the_configured_area() -> None:
    ramp = np.zeros((64, 64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64) * 3, np.arange(64)[:, None] * 3
    out, _ = run({"crop": (0.3, 0.6), "crop_ratio": (0.5, 2.0)}, ramp, size=64)
    pixels = out * 255 / 3
    width = (pixels[:, 0, -1, 0] - pixels[:, 0, 0, 0] + 1) / 64
    height = (pixels[:, -1, 0, 1] - pixels[:, 0, 0, 1] + 1) / 64
    assert 0.28 < (width * height).min() < 0.36
    assert 0.54 < (width * height).max() < 0.63
    assert 0.48 < (width / height).min() < 0.7
    assert 1.4 < (width / height).max() < 2.1
    assert pixels.min() >= -1e-3
    left = pixels[:, 0, 0, 0] / 64
    assert left.min() < 0.1
    assert left.max() > 0.25


def test_strength_multiplies_magnitudes() -> None:
    images = faces(64)
    for config in (
        {"rotate": 5.0}, {"shift": 0.03}, {"zoom": 0.05}, {"crop": (0.8, 0.9)},
        {"brightness": 0.1}, {"contrast": 0.1}, {"saturation": 0.1},
    ):  # fmt: skip
        step = jax.jit(augment.build(config, SIZE))
        outs = [step(KEY, images, jnp.full(64, t))[0] for t in (0.5, 1.0, 2.0)]
        change = [np.abs(out - plain(images)).mean() for out in outs]
        assert 1.5 < change[1] / change[0] < 2.5, config
        assert 1.5 < change[2] / change[1] < 2.5, config


def test_strength_is_per_example() -> None:
    images = faces(4)
    one = jax.jit(augment.build(LIGHT, SIZE))
    strengths = jnp.array([0.0, 1.0, 2.0, 0.5])
    mixed = one(KEY, images, strengths)[0]
    for row, strength in enumerate(strengths):
        alone = one(KEY, images, jnp.full(4, strength))[0]
        np.testing.assert_array_equal(mixed[row], alone[row])


def test_brightness_scales_the_mean() -> None:
    images = np.full((256, 8, 8, 3), 100, np.uint8)
    factor = run({"brightness": 0.4}, images, size=8)[0].mean(axis=(1, 2, 3)) / (100 / 255)
    assert 0.6 - 1e-2 < factor.min() < 0.65
    assert 1.35 < factor.max() < 1.4 + 1e-2
    assert abs(factor.mean() - 1) < 0.05


def test_contrast_scales_the_spread_and_keeps_the_mean_luminance() -> None:
    images = faces(64)
    out = run({"contrast": 0.3}, images)[0]
    spread = out.std(axis=(1, 2, 3)) / plain(images).std(axis=(1, 2, 3))
    assert spread.min() < 0.85
    assert spread.max() > 1.15
    luma = np.array([0.299, 0.587, 0.114])
    before, after = ((x @ luma).mean(axis=(1, 2)) for x in (plain(images), out))
    np.testing.assert_allclose(after, before, atol=0.01)


def test_saturation_scales_colour_and_keeps_luminance() -> None:
    images = faces(64)
    out = run({"saturation": 0.5}, images)[0]
    luma = np.array([0.299, 0.587, 0.114])
    before, after = plain(images), out
    inside = (out > 0) & (out < 1)
    kept = np.abs(after @ luma - before @ luma)[inside.all(axis=-1)]
    assert kept.max() < 3 / 255
    colour = (np.ptp(x, axis=-1).mean(axis=(1, 2)) for x in (after, before))
    ratio = np.divide(*colour)
    assert 0.45 < ratio.min() < 0.7
    assert 1.3 < ratio.max() < 1.55


def test_greyscale_makes_channels_equal_as_often_as_configured() -> None:
    images = faces(512, 8, 8)
    for strength, expected in ((1.0, 0.25), (2.0, 0.5), (4.0, 1.0)):
        out = run({"greyscale": 0.25}, images, strength, size=8)[0]
        grey = np.ptp(out, axis=-1).max(axis=(1, 2)) < 1e-6
        assert (grey | same(out, images)).all()
        assert abs(grey.mean() - expected) < 0.08


def test_erasing_fills_one_box_of_the_configured_area_with_the_mean_luminance() -> None:
    images = np.zeros((256, 64, 64, 3), np.uint8)
    images[:, ::2] = (255, 0, 255)
    mean = (0.299 + 0.114) / 2
    out = run({"erase": 1.0, "erase_area": (0.1, 0.2)}, images, size=64)[0]
    erased = np.abs(out - mean).max(axis=-1) < 1e-5
    np.testing.assert_allclose(np.where(erased[..., None], plain(images), out), plain(images))
    area = erased.mean(axis=(1, 2))
    box = erased.any(axis=1).sum(axis=1) * erased.any(axis=2).sum(axis=1) / 64**2
    np.testing.assert_allclose(area, box)
    assert 0.085 < area.min() < 0.12
    assert 0.17 < area.max() < 0.22
    some = np.abs(run({"erase": 0.3}, images, size=64)[0] - plain(images)).any(axis=(1, 2, 3))
    assert abs(some.mean() - 0.3) < 0.1


def test_mixup_blends_each_image_with_its_partner() -> None:
    images = faces(64)
    out, mix = run({"mixup": 1.0, "mixup_prob": 0.5}, images)
    lam, partner = np.asarray(mix.lam), np.asarray(mix.partner)
    assert partner.dtype == np.int32
    np.testing.assert_array_equal(np.sort(partner), np.arange(64))
    assert (partner != np.arange(64)).all()
    share = lam[:, None, None, None]
    expected = share * plain(images) + (1 - share) * plain(images)[partner]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert 0.5 <= lam.min() < 0.6
    assert lam.max() == 1
    assert abs((lam < 1).mean() - 0.5) < 0.2


def test_mixup_blends_the_augmented_images() -> None:
    images = faces()
    alone, _ = run({k: v for k, v in ALL.items() if k not in ("mixup", "cutmix")}, images)
    out, mix = run(ALL | {"cutmix": 0.0}, images)
    share = np.asarray(mix.lam)[:, None, None, None]
    expected = share * alone + (1 - share) * alone[np.asarray(mix.partner)]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def pasted_boxes(images: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Which pixels [B, S, S] come from the row before; the images share no pixel values."""
    before = np.roll(plain(images), 1, axis=0)
    pasted = (np.abs(out - before) < 1e-6).all(axis=-1)
    np.testing.assert_allclose(np.where(pasted[..., None], before, plain(images)), out, atol=1e-6)
    return pasted


def greys(n: int, size: int) -> np.ndarray:
    """Uniform images [n, size, size, 3]; neighbours have different greys."""
    grey = (np.arange(n) * 37 % 251).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (n, size, size, 3))


def test_cutmix_pastes_a_box_of_the_partner_and_shares_the_labels_by_its_pixels() -> None:
    images = greys(200, 16)
    out, mix = run({"cutmix": 1.0, "cutmix_prob": 0.5}, images, size=16)
    pasted = pasted_boxes(images, out)
    np.testing.assert_array_equal(mix.partner, np.roll(np.arange(200), 1))
    np.testing.assert_allclose(mix.lam, 1 - pasted.mean(axis=(1, 2)), atol=1e-6)
    across, along = pasted.any(axis=1), pasted.any(axis=2)
    np.testing.assert_array_equal(pasted, along[:, :, None] & across[:, None, :])
    edges = np.diff(np.pad(across, ((0, 0), (1, 1))).astype(int), axis=1)
    assert (np.abs(edges).sum(axis=1) <= 2).all()  # one piece
    # A box less wide than high was cut off at an edge of the image.
    narrow = across.sum(axis=1) < along.sum(axis=1)
    assert (across[narrow, 0] | across[narrow, -1]).all()
    assert narrow.sum() > 10


def test_cutmix_draws_boxes_as_its_authors_do() -> None:
    """Compares the distribution of the pasted area with their rand_bbox in numpy."""
    rng, size, n = np.random.default_rng(0), 16, 2000

    def areas(alpha: float) -> np.ndarray:
        found = []
        for lam in rng.beta(alpha, alpha, n):
            cut = int(size * np.sqrt(1 - lam))
            middle = rng.integers(size, size=2)
            low = np.clip(middle - cut // 2, 0, size)
            found.append(np.prod(np.clip(middle + cut // 2, 0, size) - low) / size**2)
        return np.array(found)

    images = greys(n, size)
    for alpha in (1.0, 0.3):
        lam = np.asarray(run({"cutmix": alpha}, images, size=size)[1].lam)
        for quantile in (0.25, 0.5, 0.75):
            limit = np.quantile(areas(alpha), quantile)
            assert abs((1 - lam <= limit).mean() - (areas(alpha) <= limit).mean()) < 0.05


def test_strength_makes_cutmix_rarer_and_its_boxes_smaller() -> None:
    images = greys(512, 16)
    config = {"cutmix": 1.0, "cutmix_prob": 0.8}
    whole, half = (
        1 - np.asarray(run(config, images, strength, size=16)[1].lam) for strength in (1.0, 0.5)
    )
    assert abs((whole > 0).mean() - 0.8) < 0.1
    assert abs((half > 0).mean() - 0.4) < 0.1
    assert (half <= whole).all()
    assert half.max() <= 0.5 < whole.max()


def test_with_mixup_and_cutmix_each_image_takes_one_of_them() -> None:
    images = faces(64)
    both = {"mixup": 1.0, "cutmix": 1.0, "cutmix_switch": 0.25}
    out, mix = run(both, images)
    blended, of_mixup = run({"mixup": 1.0}, images)
    cut, of_cutmix = run({"cutmix": 1.0}, images)
    cuts = uniforms(64)["cutmix_switch"] < 0.25
    assert 5 < cuts.sum() < 30
    np.testing.assert_array_equal(mix.lam, np.where(cuts, of_cutmix.lam, of_mixup.lam))
    np.testing.assert_allclose(out, np.where(cuts[:, None, None, None], cut, blended), atol=1e-6)


def rand_order(n: int) -> list[list[str]]:
    """RandAugment's operations of each row, in drawing order."""
    u = uniforms(n)
    names = list(augment.RAND_OPS)
    order = np.argsort([u[f"rand_order_{name}"] for name in names], axis=0)
    return [[names[i] for i in row] for row in order.T]


def by_pil(image: np.ndarray, name: str, share: float, sign: float) -> tuple[np.ndarray, float]:
    """An operation at a share of torchvision's largest magnitude, and ours' tolerance."""
    pil, x, middle = Image.fromarray(image), share * sign, (SIZE - 1) / 2
    moved = np.eye(2, 3)
    enhance = {
        "brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    match name:
        case "identity":
            return image, 0.01
        case "autocontrast":
            return np.asarray(ImageOps.autocontrast(pil)), 1.01  # PIL rounds down
        case "equalize":
            return np.asarray(ImageOps.equalize(pil)), 0.01
        case "posterize":
            return np.asarray(ImageOps.posterize(pil, 8 - round(4 * share))), 0.01
        case "solarize":
            return np.asarray(ImageOps.solarize(pil, 255 * (1 - share))), 0.01
        case "shear_x" | "shear_y":
            moved[int(name == "shear_y"), int(name == "shear_x")] = 0.3 * x
        case "translate_x" | "translate_y":
            moved[int(name == "translate_y"), 2] = 150 / 331 * SIZE * x
        case "rotate":
            cos, sin = np.cos(np.radians(30 * x)), np.sin(np.radians(30 * x))
            moved[:, :2] = [[cos, -sin], [sin, cos]]
        case _:
            # PIL rounds the grey or smoothed image that it blends with.
            return np.asarray(enhance[name](pil).enhance(1 + 0.9 * x)), 2.01
    moved[:, 2] += middle - moved[:, :2] @ [middle, middle]  # about the centre
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, moved, (SIZE, SIZE), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return warped, 3.0  # cv2 knows places to a 32nd of a pixel


def test_each_operation_of_randaugment_is_that_of_pil() -> None:
    n = 160
    images = np.concatenate([faces(n // 2), faces(n // 2) // 2 + 100])
    out = run({"rand_ops": 1, "rand_magnitude": 22.5}, images)[0] * 255
    u, seen = uniforms(n), set()
    for row, (name, *_) in enumerate(rand_order(n)):
        sign = np.sign(u[f"rand_sign_{name}"][row] - 0.5) if name in augment.RAND_SIGNED else 1
        expected, off = by_pil(images[row], name, 0.75, sign)
        assert np.abs(out[row] - expected).max() < off, (row, name)
        seen.add((name, sign))
    assert len(seen) == 14 + 9


def test_randaugment_draws_n_different_operations_per_image() -> None:
    """Pairs of operations on values commute here: a pair equals one after the other."""
    images = faces(256)
    two = run({"rand_ops": 2, "rand_magnitude": 15.0}, images)[0] * 255
    checked = 0
    for row, (first, second, *_) in enumerate(rand_order(256)):
        if {first, second} <= {"identity", "equalize", "posterize"}:
            image = images[row]
            for name in sorted({first, second}):  # equalize comes before posterize
                image, _ = by_pil(image, name, 0.5, 1)
            np.testing.assert_allclose(two[row], image, atol=0.01)
            checked += 1
    assert checked >= 3
    none = run({"rand_ops": 0, "rand_magnitude": 30.0}, images[:8])[0]
    assert same(none, images[:8]).all()


def test_strength_scales_the_magnitudes_of_randaugment_and_how_often_the_rest_comes() -> None:
    images = faces(128)
    config = {"rand_ops": 1, "rand_magnitude": 7.5}
    order, u = rand_order(128), uniforms(128)
    double, weak = run(config, images, 2.0)[0], run(config, images, 0.5)[0]
    more = run({"rand_ops": 1, "rand_magnitude": 15.0}, images)[0]
    np.testing.assert_allclose(double, more, atol=1e-6)
    for row, (name, *_) in enumerate(order):
        if name in ("equalize", "autocontrast"):
            stays = same(weak, images)[row]
            assert stays == (u["rand_on"][row] >= 0.5)
    assert {name for name, *_ in order} >= {"equalize", "autocontrast"}


def test_copies_have_a_randaugment_of_their_own() -> None:
    images = faces(32)
    copies = np.arange(32) % 2 == 1
    strength = jnp.stack([1.0 - copies, 1.0 * copies], axis=1)
    config = LIGHT | {"copies": {"rand_ops": 2, "rand_magnitude": 10.0}}
    out = jax.jit(augment.build(config, SIZE))(KEY, images, strength)[0]
    np.testing.assert_allclose(out[~copies], run(LIGHT, images)[0][~copies], atol=2e-3)
    np.testing.assert_allclose(out[copies], run(config["copies"], images)[0][copies], atol=2e-3)


def test_equalizing_a_large_image_counts_some_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(110, 20, (4, 200, 200, 3)).clip(0, 255).astype(np.uint8)
    ours = np.asarray(augment._equalize(jnp.asarray(images), jnp.array([True, True, True, False])))
    np.testing.assert_array_equal(ours[3], images[3])
    for image, out in zip(images[:3], ours[:3], strict=True):
        pil = np.asarray(ImageOps.equalize(Image.fromarray(image)), np.float64)
        assert np.abs(out - pil).mean() < 3
        assert np.abs(out - pil).max() < 16


def test_the_key_decides() -> None:
    images = faces()
    first = run(ALL, images)[0]
    np.testing.assert_array_equal(run(ALL, images)[0], first)
    assert np.abs(run(ALL, images, key=jax.random.key(4))[0] - first).mean() > 0.01


def test_rows_draw_for_themselves() -> None:
    config = LIGHT | {"greyscale": 0.3, "erase": 0.5}
    images = faces(8)
    whole = run(config, images)[0]
    np.testing.assert_array_equal(run(config, images[:4])[0], whole[:4])
    other = images.copy()
    other[1:] = other[1:][::-1]
    np.testing.assert_array_equal(run(config, other)[0][0], whole[0])
    copies = run(config, np.repeat(images[:1], 8, axis=0))[0]
    assert all(np.abs(copies[i] - copies[0]).mean() > 0.01 for i in range(1, 8))


def test_turning_an_operation_on_leaves_the_draws_of_the_others() -> None:
    images = faces(64)
    flipped = run({"flip": 0.5}, images)[0]
    both = run({"flip": 0.5, "brightness": 0.1}, images)[0]
    assert np.abs(flipped - both).max() < 0.11


def test_an_augmentation_made_for_a_much_larger_image_does_not_alias() -> None:
    stripes = np.zeros((4, 4 * SIZE, 4 * SIZE, 3), np.uint8)
    stripes[:, :, ::2] = 255
    out, _ = run({"rotate": 1e-3}, stripes)
    np.testing.assert_allclose(out[:, 2:-2, 2:-2], 0.5, atol=0.05)
    np.testing.assert_allclose(inputs.eval_images(stripes, SIZE)[:, 2:-2, 2:-2], 0.5, atol=0.05)


@pytest.mark.parametrize(("larger", "alike"), [(1.0, False), (1.5625, True), (3.0, True)])
def test_training_sees_images_as_sharp_as_evaluation_does(larger: float, alike: bool) -> None:
    size = 64
    noise = np.random.default_rng(0).integers(0, 256, (8, *2 * [round(larger * size)], 3), np.uint8)
    moved = run({"rotate": 5.0}, noise, size=size)[0][:, 8:-8, 8:-8]
    still = np.asarray(inputs.eval_images(noise, size))[:, 8:-8, 8:-8]
    ratio = np.diff(moved, axis=2).std() / np.diff(still, axis=2).std()
    assert alike == (abs(ratio - 1) < 0.1), ratio


def uniforms(n: int, key: jax.Array = KEY) -> dict[str, np.ndarray]:
    """The random draws of a batch's rows by name, [n] each."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
    keys = jax.vmap(jax.random.split, out_axes=1)(keys)[0]
    draws = jax.vmap(lambda k: jax.random.uniform(k, (len(augment.DRAWS),)), out_axes=1)(keys)
    return dict(zip(augment.DRAWS, np.asarray(draws, np.float64), strict=True))


def test_a_new_operation_leaves_the_draws_of_the_older_ones() -> None:
    first = (
        "flip", "crop_area", "crop_ratio", "crop_x", "crop_y", "rotate", "shift_x", "shift_y",
        "zoom", "brightness", "contrast", "saturation", "greyscale", "erase", "erase_area",
        "erase_ratio", "erase_x", "erase_y", "mixup", "autocontrast", "sharpness", "sharpness_on",
        "hue", "perspective_on", "perspective_x0", "perspective_y0", "perspective_x1",
        "perspective_y1", "perspective_x2", "perspective_y2", "perspective_x3", "perspective_y3",
        "cutmix",
    )  # fmt: skip
    assert augment.DRAWS[: len(first)] == first
    fewer = jax.random.uniform(KEY, (len(first),))
    more = jax.random.uniform(KEY, (len(augment.DRAWS) + 5,))
    np.testing.assert_array_equal(more[: len(first)], fewer)


def test_autocontrast_is_that_of_pil_as_often_as_configured() -> None:
    images = faces(64)
    images[3] = 77  # uniform: nothing to stretch
    images[4, ..., 1] = 90
    out = run({"autocontrast": 1.0}, images)[0] * 255
    expected = np.stack([ImageOps.autocontrast(Image.fromarray(image)) for image in images])
    assert np.abs(out - expected).max() < 1.01  # PIL rounds down
    np.testing.assert_array_equal(out[3], 77)
    some = run({"autocontrast": 0.4}, images, strength=0.5)[0]
    same_as_before = same(some, images)
    assert (same_as_before | (np.abs(some * 255 - expected).max(axis=(1, 2, 3)) < 1.01)).all()
    drawn = uniforms(64)["autocontrast"] < 0.2
    np.testing.assert_array_equal(same_as_before[5:], ~drawn[5:])


def test_sharpness_is_that_of_pil_as_often_as_configured() -> None:
    images = faces(32) // 8 * 8  # with edges
    out = run({"sharpness": 1.5, "sharpness_prob": 0.5}, images)[0] * 255
    u = uniforms(32)
    on = u["sharpness_on"] < 0.5
    assert 5 < on.sum() < 27
    factors = np.where(on, np.maximum(1 + 1.5 * (2 * u["sharpness"] - 1), 0), 1)
    assert factors.min() == 0
    assert factors.max() > 2
    for image, factor, ours in zip(images, factors, out, strict=True):
        pil = ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor)
        # PIL rounds the smoothed image before it blends.
        assert np.abs(ours - np.asarray(pil)).max() < 1.51 + abs(factor - 1) / 2


def test_hue_turns_the_colour_circle_and_keeps_value_and_saturation() -> None:
    images = faces(48)
    images[0] = 128  # grey has no hue
    out = run({"hue": 0.5}, images)[0]
    turn = 0.5 * (2 * uniforms(48)["hue"] - 1)
    hsv = cv2.cvtColor(plain(images).reshape(-1, SIZE, 3), cv2.COLOR_RGB2HSV)  # degrees
    hsv = hsv.reshape(*images.shape)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn[:, None, None]) % 360
    expected = cv2.cvtColor(hsv.reshape(-1, SIZE, 3), cv2.COLOR_HSV2RGB).reshape(images.shape)
    np.testing.assert_allclose(out, expected, atol=0.51 / 255 + 1e-4)
    assert same(out, images)[0]
    half = run({"hue": 0.25}, images, strength=2.0)[0]
    np.testing.assert_array_equal(half, out)


@pytest.mark.parametrize("shape", [(32, 32), (32, 24)])
def test_perspective_is_that_of_four_corners_drawn_inwards(shape: tuple[int, int]) -> None:
    height, width = shape
    images = faces(24, *shape)
    out = run({"perspective": 0.5, "perspective_prob": 0.7}, images, size=32)[0]
    u = uniforms(24)
    on = u["perspective_on"] < 0.7
    assert 8 < on.sum() < 24
    for row in range(24):
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
        inwards = np.array([[u[f"perspective_{a}{c}"][row] for a in "xy"] for c in range(4)])
        drawn = corners + on[row] * 0.25 * inwards * (1 - 2 * corners)
        edges = np.array([width, height])
        # Corners of the image, not middles of its corner pixels, hence the halves.
        there = cv2.getPerspectiveTransform(
            np.float32(corners * edges - 0.5), np.float32(drawn * 32 - 0.5)
        )
        expected = cv2.warpPerspective(
            images[row], there, (32, 32), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        # cv2 knows places to a 32nd of a pixel.
        assert np.abs(out[row] * 255 - expected).max() < 3
    if shape == (32, 32):
        assert same(out, images)[~on].all()


def test_the_hardest_perspective_does_not_fold() -> None:
    ramp = np.zeros((256, 64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64) * 4, np.arange(64)[:, None] * 4
    out, _ = run({"perspective": 0.6}, ramp, strength=3.0, size=64)
    inside = out[:, 24:40, 24:40]
    assert (np.diff(inside[..., 0], axis=2) > 0).all()
    assert (np.diff(inside[..., 1], axis=1) > 0).all()


def test_operations_on_the_image_come_before_its_moves() -> None:
    images = faces(16)
    config = {"autocontrast": 1.0, "hue": 0.2, "perspective": 0.4, "flip": 1.0}
    toned = run({"autocontrast": 1.0, "hue": 0.2}, images)[0]
    moved = run({"perspective": 0.4, "flip": 1.0}, np.round(toned * 255).astype(np.uint8))[0]
    np.testing.assert_allclose(run(config, images)[0], moved, atol=1e-6)


def test_copies_take_their_recipe_and_originals_the_other() -> None:
    images = faces(16)
    copies = np.arange(16) % 3 == 0
    two = jax.jit(augment.build(LIGHT | {"copies": STRONG}, SIZE))
    strong = jax.jit(augment.build(STRONG, SIZE))
    light = run(LIGHT, images)[0]

    def close(out: Any, expected: Any, rows: Any = slice(None)) -> None:
        np.testing.assert_allclose(out[rows], expected[rows], atol=2e-3)

    strength = jnp.stack([1.0 - copies, 1.0 * copies], axis=1)
    out = two(KEY, images, strength)[0]
    close(out, light, ~copies)
    close(out, strong(KEY, images, jnp.ones(16))[0], copies)
    close(two(KEY, images, strength * 1.5)[0], strong(KEY, images, jnp.full(16, 1.5))[0], copies)
    close(two(KEY, images, 0 * strength)[0], plain(images))
    one_strength = jax.jit(augment.build(LIGHT | {"copies": {"flip": 1.0}}, SIZE))
    close(one_strength(KEY, images, jnp.ones(16))[0], light)


def test_two_recipes_warp_once() -> None:
    def gathers(config: dict[str, Any]) -> int:
        args = (KEY, faces(2), jnp.ones((2, 2 if "copies" in config else 1)))
        return str(jax.make_jaxpr(augment.build(config, SIZE))(*args)).count("gather[")

    assert 0 < gathers(LIGHT) == gathers(LIGHT | {"copies": STRONG})


def test_mixup_mixes_originals_and_copies() -> None:
    images = faces(16)
    recipes = LIGHT | {"mixup": 0.4, "copies": STRONG}
    strength = jnp.tile(jnp.array([[1.0, 0.0], [0.0, 1.0]]), (8, 1))
    out, mix = jax.jit(augment.build(recipes, SIZE))(KEY, images, strength)
    alone = jax.jit(augment.build(LIGHT | {"copies": STRONG}, SIZE))(KEY, images, strength)[0]
    share = mix.lam[:, None, None, None]
    np.testing.assert_allclose(out, share * alone + (1 - share) * alone[mix.partner], atol=1e-5)
    _, single = run(LIGHT | {"mixup": 0.4}, images)
    np.testing.assert_array_equal(mix.lam, single.lam)


DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
sys.path.insert(0, "tests")
from test_augment import ALL, KEY, SIZE, faces
from agejax.training import augment
images, strength = faces(16), jnp.linspace(0, 2, 16)
results = []
for n in (1, 2, 8):
    mesh = jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])
    args = jax.device_put((images, strength), NamedSharding(mesh, P("data")))
    key = jax.device_put(KEY, NamedSharding(mesh, P()))
    step = jax.jit(augment.build(ALL, SIZE)).lower(key, *args).compile()
    gathered = [line for line in step.as_text().splitlines() if " all-gather" in line]
    assert not any(f",{SIZE},{SIZE},3]" in line for line in gathered), gathered
    results.append(jax.tree.map(np.asarray, step(key, *args)))
for other in results[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), results[0], other)
print("equal on", jax.device_count(), "devices")
"""


def test_results_do_not_depend_on_the_number_of_devices() -> None:
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(root)}  # with conftest's eight devices
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on 8 devices" in done.stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rotat": 10.0}, "unknown key 'rotat'; did you mean 'rotate'"),
        ({"flip": 1.5}, r"augment.flip: 1.5; set it to a number in 0..1"),
        ({"flip": float("nan")}, "augment.flip: nan"),
        ({"rotate": -1.0}, "augment.rotate: -1.0"),
        ({"crop": (0.9, 0.5)}, r"augment.crop: \(0.9, 0.5\); set it to \(low, high\)"),
        ({"crop": (0.0, 1.0)}, "augment.crop"),
        ({"crop": 0.5}, r"augment.crop: 0.5; set it to \(low, high\)"),
        ({"mixup": (0.1, 0.2)}, "augment.mixup"),
        ({"erase_area": (0.1, "x")}, "augment.erase_area"),
        ({"hue": 0.6}, r"augment.hue: 0.6; set it to a number in 0..0.5"),
        ({"perspective": 0.9}, r"augment.perspective: 0.9; set it to a number in 0..0.6"),
        ({"copies": {"rotate": -1.0}}, r"augment.copies.rotate: -1.0; set it to"),
        ({"copies": {"rotat": 1.0}}, r"augment.copies: unknown key 'rotat'"),
        ({"copies": {"mixup": 0.2}}, "augment.copies.mixup: it applies to all images"),
        ({"copies": {"cutmix_prob": 0.2}}, "augment.copies.cutmix_prob: it applies to all images"),
        ({"cutmix": -1.0}, "augment.cutmix: -1.0; set it to a number in 0..100"),
        ({"rand_ops": 15}, "augment.rand_ops: 15; set it to a whole number in 0..14"),
        ({"rand_magnitude": 31.0}, "augment.rand_magnitude: 31.0; set it to a number in 0..30"),
        ({"copies": {"copies": {}}}, r"augment.copies: unknown key 'copies'"),
    ],
)
def test_a_bad_config_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augment.build(config, SIZE)
