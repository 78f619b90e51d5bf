"""Augmentation on the device, inside the step: uint8 batches in, float batches in 0..1 out.

Crop, flip and affine are one map from output to input pixels, sampled once; colour is one linear
map. An example's draws depend on the key and its row in the global batch, never on the devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from agejax.errors import UserError, check_keys

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
ERASE_RATIO = 3.0  # an erased box is up to this many times as high as wide, or as wide as high

# One uniform number in [0, 1) an example for each of these, whichever operations are on.
DRAWS = (
    "flip", "crop_area", "crop_ratio", "crop_x", "crop_y", "rotate", "shift_x", "shift_y", "zoom",
    "brightness", "contrast", "saturation", "greyscale",
    "erase", "erase_area", "erase_ratio", "erase_x", "erase_y", "mixup",
)  # fmt: skip

# Allowed values; two of them make a range.
LIMITS = {
    "flip": (0, 1), "crop": (0.01, 1), "crop_ratio": (0.1, 10), "rotate": (0, 180),
    "shift": (0, 1), "zoom": (0, 3), "brightness": (0, 3), "contrast": (0, 3), "saturation": (0, 3),
    "greyscale": (0, 1), "erase": (0, 1), "erase_area": (0, 1), "mixup": (0, 100),
    "mixup_prob": (0, 1),
}  # fmt: skip


class Mix(NamedTuple):
    """Mixup's shares: image and loss of row i are lam[i] of itself, the rest of row partner[i]."""

    partner: jax.Array  # int32 [B]
    lam: jax.Array  # f32 [B], .5..1


Draws = Mapping[str, jax.Array]  # name of DRAWS -> f32 [B]
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Mix | None]]


def default() -> ml_collections.ConfigDict:
    """Everything off. Magnitudes are maxima of a uniform draw around no change."""
    c = ml_collections.ConfigDict()
    c.flip = 0.0  # probability of a horizontal flip
    c.crop = (1.0, 1.0)  # random resized crop: range of the share of the area that stays
    c.crop_ratio = (3 / 4, 4 / 3)  # range of width to height of the crop
    c.rotate = 0.0  # degrees
    c.shift = 0.0  # share of the image's edge
    c.zoom = 0.0  # .1: between 1/1.1 and 1.1
    c.brightness = 0.0  # .2: factor between .8 and 1.2; the same for the next two
    c.contrast = 0.0
    c.saturation = 0.0
    c.greyscale = 0.0  # probability
    c.erase = 0.0  # probability that a box is filled with the image's mean luminance
    c.erase_area = (0.02, 0.2)  # range of the box's share of the area
    c.mixup = 0.0  # alpha: the share is drawn from Beta(alpha, alpha)
    c.mixup_prob = 1.0
    return c


def build(config: Mapping[str, Any], size: int) -> Augment:
    """The augmentation of a config; an operation that is off costs nothing.

    Args:
      config: keys of `default()`, any of them absent.
      size: edge of the output images, pixels.

    Returns:
      augment(key, images uint8 [B, H, W, 3], strength f32 [B]) -> (f32 [B, size, size, 3] in 0..1,
      Mix, or None without mixup), to be jitted. Strength 0 is `eval_images`, 1 as configured, 2
      twice as hard: magnitudes (of crops, ratios and zooms their logarithms) and probabilities
      are multiplied by it; a flip, which has no harder version, is at most as likely as configured.
      Larger images are first made smaller as in `eval_images`, then moved.

    Raises:
      UserError: an unknown key or a value outside its limits.
    """
    c = _checked(config)
    moves = any((c.flip, c.crop != (1, 1), c.rotate, c.shift, c.zoom))
    colours = any((c.brightness, c.contrast, c.saturation, c.greyscale))
    mixes = c.mixup > 0 and c.mixup_prob > 0

    def one(images: jax.Array, u: Draws, strength: jax.Array) -> jax.Array:
        mean = _mean(images)
        if colours:
            images = _colour(c, u, strength, images, mean)
        if moves:
            small = _shrink(images, size)
            out = warp(small, _matrix(c, u, strength, small.shape, size), size)
        else:
            out = eval_images(images, size)
        if c.erase:
            out = _erase(out, _box(c, u, strength), _luminance(mean) / 255)
        return out

    def compute(
        key: jax.Array, images: jax.Array, strength: jax.Array
    ) -> tuple[jax.Array, Mix | None]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
        keys, mix_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        draws = jax.vmap(lambda k: jax.random.uniform(k, (len(DRAWS),)), out_axes=1)(keys)
        u = dict(zip(DRAWS, draws, strict=True))
        out = one(images, u, strength)
        if not mixes:
            return out, None
        mix = _mix(c, u, strength, mix_keys)
        lam = mix.lam[:, None, None, None]
        # The partner is augmented a second time: rolling the result instead would make XLA:CPU
        # sample anew for each use of a pixel, and takes longer.
        u, strength = jax.tree.map(lambda x: x[mix.partner], (u, strength))
        return lam * out + (1 - lam) * one(jnp.roll(images, 1, axis=0), u, strength), mix

    def augment(
        key: jax.Array, images: jax.Array, strength: jax.Array
    ) -> tuple[jax.Array, Mix | None]:
        on_cpu = functools.partial(_computed_once, compute)
        return jax.lax.platform_dependent(key, images, strength, cpu=on_cpu, default=compute)

    return augment


def _computed_once(compute: Augment, *arguments: jax.Array) -> tuple[jax.Array, Mix | None]:
    """`compute(*arguments)` as the branch of a condition that always holds.

    XLA:CPU would fuse it into what uses it, and so sample every pixel again for each tap of the
    first convolution: a quarter of a MobileNetV3 step. Optimization barriers do not stop it, a
    branch does. A GPU has no such need, and would wait for the condition.
    """
    always = jnp.max(arguments[-1]) >= 0  # strengths are never negative

    def never(*arguments: jax.Array) -> tuple[jax.Array, Mix | None]:
        shapes = jax.eval_shape(compute, *arguments)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(always, compute, never, *arguments)


def eval_images(images: jax.Array, size: int) -> jax.Array:
    """uint8 [B, H, W, 3] -> f32 [B, size, size, 3] in 0..1, resized with antialiasing if needed."""
    out = images.astype(jnp.float32) / 255
    if images.shape[1:3] == (size, size):
        return out
    return jax.image.resize(out, (len(images), size, size, 3), "linear")


def warp(images: jax.Array, matrix: jax.Array, size: int) -> jax.Array:
    """Samples images along an affine map, bilinearly.

    Args:
      images: uint8 0..255 or f32 0..1 [B, H, W, 3].
      matrix: f32 [B, 2, 3], from the output's (x, y, 1), in pixels from its centre, to the
        input's (x, y), in pixels from its top left corner.
      size: edge of the output.

    Returns:
      f32 [B, size, size, 3] in 0..1. Outside, the image is mirrored at its edges, once.
    """
    height, width = images.shape[1:3]
    scale = 255 if images.dtype == jnp.uint8 else 1
    grid = jnp.arange(size) + 0.5 - size / 2

    def split(z: jax.Array, edge: int) -> tuple[jax.Array, jax.Array]:
        z = edge - jnp.abs(edge - jnp.abs(z))
        z = jnp.clip(z - 0.5, 0, edge - 1)
        low = jnp.minimum(jnp.floor(z).astype(jnp.int32), max(edge - 2, 0))
        return low, (z - low)[..., None]

    def one(image: jax.Array, m: jax.Array) -> jax.Array:
        x, fx = split(m[0, 0] * grid + m[0, 1] * grid[:, None] + m[0, 2], width)
        y, fy = split(m[1, 0] * grid + m[1, 1] * grid[:, None] + m[1, 2], height)
        pixels, at = image.reshape(-1, 3), y * width + x
        right, down = min(width - 1, 1), width * min(height - 1, 1)

        def tap(offset: int) -> jax.Array:
            # Whole pixels of uint8: packing or separate channels take 8 times as long.
            return pixels.at[at + offset].get(mode="promise_in_bounds").astype(jnp.float32)

        top = tap(0) * (1 - fx) + tap(right) * fx
        bottom = tap(down) * (1 - fx) + tap(down + right) * fx
        return (top * (1 - fy) + bottom * fy) / scale

    return jax.vmap(one)(images, matrix)


def _shrink(images: jax.Array, size: int) -> jax.Array:
    """Images larger than size, made smaller: a bilinear sampling of them would alias."""
    n, height, width, _ = images.shape
    if max(height, width) <= size:
        return images
    shape = (n, min(height, size), min(width, size), 3)
    return jax.image.resize(images.astype(jnp.float32) / 255, shape, "linear")


def _matrix(
    c: ml_collections.ConfigDict,
    u: Draws,
    strength: jax.Array,
    shape: tuple[int, ...],
    size: int,
) -> jax.Array:
    """Crop, flip and affine as one map of `warp`, f32 [B, 2, 3]."""
    _, height, width, _ = shape
    area = _between(c.crop, u["crop_area"]) ** strength
    ratio = jnp.ones_like(area)
    if c.crop != (1, 1):
        ratio = jnp.exp(strength * _between(jnp.log(jnp.asarray(c.crop_ratio)), u["crop_ratio"]))
    across = jnp.minimum(jnp.sqrt(area * ratio), 1)
    along = jnp.minimum(jnp.sqrt(area / ratio), 1)
    x = 0.5 + (u["crop_x"] - 0.5) * (1 - across) + strength * c.shift * _signed(u["shift_x"])
    y = 0.5 + (u["crop_y"] - 0.5) * (1 - along) + strength * c.shift * _signed(u["shift_y"])

    zoom = (1 + c.zoom) ** (strength * _signed(u["zoom"]))
    angle = jnp.radians(c.rotate) * strength * _signed(u["rotate"])
    step_x = across * zoom * width / size
    step_y = along * zoom * height / size
    step_x = jnp.where(u["flip"] < c.flip * jnp.minimum(strength, 1), -step_x, step_x)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = ((cos * step_x, -sin * step_y, x * width), (sin * step_x, cos * step_y, y * height))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=1)


def _box(c: ml_collections.ConfigDict, u: Draws, strength: jax.Array) -> jax.Array:
    """Left, right, top and bottom of the erased box as shares of the edges, f32 [B, 4]."""
    area = jnp.minimum(strength * _between(c.erase_area, u["erase_area"]), 1)
    ratio = ERASE_RATIO ** _signed(u["erase_ratio"])
    on = u["erase"] < c.erase * strength
    width = jnp.where(on, jnp.minimum(jnp.sqrt(area * ratio), 1), 0)
    height = jnp.minimum(jnp.sqrt(area / ratio), 1)
    left, top = u["erase_x"] * (1 - width), u["erase_y"] * (1 - height)
    return jnp.stack([left, left + width, top, top + height], axis=1)


def _erase(images: jax.Array, box: jax.Array, fill: jax.Array) -> jax.Array:
    """Fills boxes [B, 4] of f32 images [B, S, S, 3] with a grey [B, 1, 1, 1]."""
    size = images.shape[1]
    centres = (jnp.arange(size) + 0.5) / size
    left, right, top, bottom = (box[:, i : i + 1] for i in range(4))
    across = jnp.float32((centres >= left) & (centres < right))
    along = jnp.float32((centres >= top) & (centres < bottom))
    # Not a selection: XLA:CPU does not vectorise those.
    return images + along[:, :, None, None] * across[:, None, :, None] * (fill - images)


def _colour(
    c: ml_collections.ConfigDict,
    u: Draws,
    strength: jax.Array,
    images: jax.Array,
    mean: jax.Array,
) -> jax.Array:
    """Brightness, contrast about the mean luminance, saturation or greyscale.

    Before the warp, with which it commutes but for rounding: behind it, XLA:CPU would sample anew
    for each use of a pixel (10 times as long; an optimization barrier does not help).
    Images uint8 [B, H, W, 3] and their mean colour f32 [B, 1, 1, 3] in 0..255 -> uint8.
    """

    def factor(name: str) -> jax.Array:
        return jnp.maximum(1 + c[name] * strength * _signed(u[name]), 0)[:, None, None, None]

    out = images.astype(jnp.float32)
    if c.brightness or c.contrast:
        contrast = factor("contrast")
        out = factor("brightness") * (contrast * out + (1 - contrast) * _luminance(mean))
    if c.saturation or c.greyscale:
        grey = (u["greyscale"] < c.greyscale * strength)[:, None, None, None]
        saturation = jnp.where(grey, 0, factor("saturation"))
        out = saturation * out + (1 - saturation) * _luminance(out)
    return jnp.clip(jnp.round(out), 0, 255).astype(jnp.uint8)


def _mean(images: jax.Array) -> jax.Array:
    """The mean colour of uint8 [B, H, W, 3], f32 [B, 1, 1, 3] in 0..255."""
    n, height, width, _ = images.shape
    # In two sums: XLA:CPU does not vectorise over three channels, but over a row's numbers.
    columns = jnp.sum(images.reshape(n, height, -1).astype(jnp.int32), axis=1)
    return jnp.sum(columns.reshape(n, 1, width, 3), axis=2, keepdims=True) / (height * width)


def _luminance(images: jax.Array) -> jax.Array:
    """[..., 3] -> [..., 1]; spelled out, as XLA:CPU is slow in sums over a short last axis."""
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _mix(
    c: ml_collections.ConfigDict,
    u: Draws,
    strength: jax.Array,
    keys: jax.Array,
) -> Mix:
    """Every row's partner is the row before it: batches are in random order already."""
    lam = jax.vmap(lambda key: jax.random.beta(key, c.mixup, c.mixup))(keys)
    # The smaller share goes to the partner, so that an example stays mostly itself.
    share = jnp.minimum(strength * jnp.minimum(lam, 1 - lam), 0.5)
    share = jnp.where(u["mixup"] < c.mixup_prob * strength, share, 0)
    return Mix(jnp.roll(jnp.arange(len(lam), dtype=jnp.int32), 1), 1 - share)


def _between(limits: Any, u: jax.Array) -> jax.Array:
    return limits[0] + (limits[1] - limits[0]) * u


def _signed(u: jax.Array) -> jax.Array:
    return 2 * u - 1


def _checked(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config with its defaults filled in; raises `UserError` for what `build` cannot use."""
    c = default()
    check_keys(config, c, "config.augment")
    for key, (low, high) in LIMITS.items():
        value = config.get(key, c[key])
        pair = isinstance(c[key], tuple)
        numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        fits = len(numbers) == 1 + pair and all(
            isinstance(n, (int, float)) and low <= n <= high for n in numbers
        )
        if not fits or list(numbers) != sorted(numbers):
            want = f"(low, high) within {low}..{high}" if pair else f"a number in {low}..{high}"
            raise UserError(f"config.augment.{key}: {value!r}; set it to {want}")
        c[key] = tuple(map(float, numbers)) if pair else float(value)
    return c
