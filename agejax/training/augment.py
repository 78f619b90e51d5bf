"""Augmentation on the device, inside the step: uint8 batches in, float batches in 0..1 out.

Crop, flip, affine and perspective together are one map from output to input pixels, sampled once.
An example's random draws depend on the key and its row in the global batch, never on the devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from agejax.errors import UserError
from agejax.models import lowerings
from agejax.models.inputs import eval_images, luminance, shrink
from agejax.settings import Group, Setting

ERASE_RATIO = 3.0  # the largest ratio of an erased box's sides

# RandAugment's operations (Cubuk et al. 2020) as in torchvision, and what magnitude 30 means.
RAND_OPS = {
    "identity": 0.0,
    "shear_x": 0.3, "shear_y": 0.3,  # slope
    "translate_x": 150 / 331, "translate_y": 150 / 331,  # share of the edge
    "rotate": 30.0,  # degrees
    "brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "sharpness": 0.9,  # factor 1 ± x
    "posterize": 4.0,  # bits that are removed
    "solarize": 255.0,  # inverts values from 255 minus this upwards
    "autocontrast": 0.0, "equalize": 0.0,  # the same at every magnitude
}  # fmt: skip
RAND_SIGNED = tuple(RAND_OPS)[1:10]  # their magnitude has a random sign
RAND_MAGNITUDE = 30.0
# Histograms count about this many pixels along each edge: XLA:CPU counts slowly.
EQUALIZED_EDGE = 64

# One uniform number per image in [0, 1) for each of these, whichever operations are on. Add new
# names at the end, so that the draws of the others stay as they are.
DRAWS = (
    "flip", "crop_area", "crop_ratio", "crop_x", "crop_y", "rotate", "shift_x", "shift_y", "zoom",
    "brightness", "contrast", "saturation", "greyscale",
    "erase", "erase_area", "erase_ratio", "erase_x", "erase_y", "mixup",
    "autocontrast", "sharpness", "sharpness_on", "hue", "perspective_on",
    *(f"perspective_{axis}{corner}" for corner in range(4) for axis in "xy"),
    "cutmix", "cutmix_x", "cutmix_y", "cutmix_switch",
    *(f"rand_order_{name}" for name in RAND_OPS), *(f"rand_sign_{name}" for name in RAND_SIGNED),
    "rand_on",
)  # fmt: skip


class Mix(NamedTuple):
    """The result of mixup and CutMix: row i is lam[i] of itself, the rest is of row partner[i].

    This holds for its loss and its image: for each pixel with mixup, for the area with CutMix.
    """

    partner: jax.Array  # int32 [B]
    lam: jax.Array  # f32 [B], 0..1; mixup's are 0.5 or more


Levels = Mapping[str, jax.Array]  # of RandAugment's operations; empty if it is off
Draws = Mapping[str, jax.Array]  # name of DRAWS -> f32 [B]
Recipes = Sequence[ml_collections.ConfigDict]  # of the originals, and of the copies if they differ
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Mix | None]]


# A magnitude is the largest change; the change is drawn uniformly around none.
RECIPE = Group(
    "How images are changed; everything is off by default.",
    flip=Setting(0.0, "Probability of a horizontal flip.", limits=(0, 1)),
    crop=Setting(
        (1.0, 1.0),
        "Random resized crop: range of the share of the area that stays.",
        limits=(0.01, 1),
        length=2,
        rising=True,
    ),
    crop_ratio=Setting(
        (3 / 4, 4 / 3),
        "Range of the crop's width to its height.",
        limits=(0.1, 10),
        length=2,
        rising=True,
    ),
    rotate=Setting(0.0, "Largest rotation, either way.", limits=(0, 180), unit="degrees"),
    shift=Setting(0.0, "Largest shift, as a share of the image's edge.", limits=(0, 1)),
    zoom=Setting(0.0, "Zoom; 0.1: between 1/1.1 and 1.1.", limits=(0, 3)),
    brightness=Setting(0.0, "Brightness; 0.2: a factor between 0.8 and 1.2.", limits=(0, 3)),
    contrast=Setting(0.0, "Contrast, as brightness.", limits=(0, 3)),
    saturation=Setting(0.0, "Saturation, as brightness.", limits=(0, 3)),
    greyscale=Setting(0.0, "Probability of an image without colours.", limits=(0, 1)),
    erase=Setting(
        0.0, "Probability that a box is filled with the image's mean luminance.", limits=(0, 1)
    ),
    erase_area=Setting(
        (0.02, 0.2),
        "Range of the box's share of the area.",
        limits=(0, 1),
        length=2,
        rising=True,
    ),
    autocontrast=Setting(
        0.0, "Probability that each channel is stretched to 0..255.", limits=(0, 1)
    ),
    sharpness=Setting(
        0.0, "Sharpness; 1: a factor between 0 (smoothed) and 2 (sharpened).", limits=(0, 5)
    ),
    sharpness_prob=Setting(1.0, "Probability of a change in sharpness.", limits=(0, 1)),
    hue=Setting(0.0, "Largest change of hue, either way.", limits=(0, 0.5), unit="turns"),
    perspective=Setting(
        0.0, "Corners move inwards by up to half of this share of the edge.", limits=(0, 0.6)
    ),
    perspective_prob=Setting(1.0, "Probability of a perspective.", limits=(0, 1)),
    rand_ops=Setting(
        0,
        "RandAugment: operations per image, all different.",
        limits=(0, len(RAND_OPS)),
    ),
    rand_magnitude=Setting(
        9.0, "RandAugment: magnitude of all operations.", limits=(0, RAND_MAGNITUDE)
    ),
)
SETTINGS = Group(
    "Augmentation of training images, on the device. Everything is off by default.",
    **RECIPE,
    mixup=Setting(
        0.0, "mixup: alpha of Beta(alpha, alpha), which the share is drawn from.", limits=(0, 100)
    ),
    mixup_prob=Setting(1.0, "Probability that an image takes mixup.", limits=(0, 1)),
    cutmix=Setting(
        0.0,
        "CutMix: a box with the share 1 - lambda of the area comes from another image, with lambda "
        "drawn from Beta(alpha, alpha); this is alpha.",
        limits=(0, 100),
    ),
    cutmix_prob=Setting(1.0, "Probability that an image takes CutMix.", limits=(0, 1)),
    cutmix_switch=Setting(
        0.5,
        "With mixup too: probability that an image takes CutMix and not mixup.",
        limits=(0, 1),
    ),
    copies=Setting(
        {},
        "The recipe of an image's second and later draws in an epoch, with the settings above "
        "except mixup's and CutMix's; a setting it lacks is off. Empty: they take the same recipe.",
    ),
)


def build(config: Mapping[str, Any], size: int) -> Augment:
    """Builds the augmentation of a config; an operation that is off costs nothing.

    Args:
      config: keys of `SETTINGS`; any may be absent.
      size: edge of the output images, pixels.

    Returns:
      augment(key, images uint8 [B, H, W, 3], strength f32 [B] or [B, 2]) -> (f32 [B, size, size, 3]
      in 0..1, Mix, or None without mixup and CutMix), to be jitted. Strength 0 is `eval_images`, 1
      as configured, 2 twice as strong: it multiplies magnitudes (for crops, ratios and zooms their
      logarithms) and probabilities; a flip, which has no stronger version, is at most as likely as
      configured, and RandAugment's magnitude is at most 30. Two strengths are for the originals'
      recipe and the copies': magnitudes and probabilities add up, so that a row gets one, the
      other or a blend, and is warped once.
      Much larger images are first shrunk as in `eval_images`, then warped.

    Raises:
      UserError: an unknown key or a value outside its limits.
    """
    c = _checked(config, "config.augment", SETTINGS)
    recipes = [c]
    if config.get("copies"):
        recipes.append(_checked(config["copies"], "config.augment.copies", RECIPE))
    tones = _uses(recipes, "autocontrast", "sharpness")
    moves = _uses(recipes, "flip", "rotate", "shift", "zoom", "perspective") or any(
        recipe.crop != (1, 1) for recipe in recipes
    )
    colours = _uses(recipes, "brightness", "contrast", "saturation", "greyscale", "hue")
    mixes = c.mixup * c.mixup_prob > 0 or c.cutmix * c.cutmix_prob > 0
    rands = _uses(recipes, "rand_ops")

    def one(images: jax.Array, u: Draws, strength: jax.Array) -> jax.Array:
        rand = _drawn_levels(recipes, u, strength) if rands else {}
        if rands:
            images = _equalize(images, rand["equalize"])
        if tones or rands:
            images = _tone(recipes, u, strength, images, rand)
        mean = _mean(images)
        if colours or rands:
            images = _colour(recipes, u, strength, images, mean, rand)
        if rands:
            images = _posterize(_solarize(images, rand["solarize"]), rand["posterize"])
        if moves or rands:
            small = shrink(images, size)
            out = warp(small, _matrix(recipes, u, strength, small.shape, size, rand), size)
        else:
            out = eval_images(images, size)
        if _uses(recipes, "erase"):
            out = _erase(out, _box(recipes, u, strength), luminance(mean) / 255)
        return out

    def compute(
        once: Callable[..., Any], key: jax.Array, images: jax.Array, strength: jax.Array
    ) -> tuple[jax.Array, Mix | None]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
        keys, mix_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        draws = jax.vmap(lambda k: jax.random.uniform(k, (len(DRAWS),)), out_axes=1)(keys)
        u = dict(zip(DRAWS, draws, strict=True))
        strength = strength.reshape(len(images), -1)
        strength = jnp.pad(strength, ((0, 0), (0, len(recipes) - strength.shape[1])))
        out = once(one, images, u, strength)
        if not mixes:
            return out, None
        mix, kept = _mix(c, u, strength, mix_keys, size)
        return kept * out + (1 - kept) * jnp.roll(out, 1, axis=0), mix

    def augment(
        key: jax.Array, images: jax.Array, strength: jax.Array
    ) -> tuple[jax.Array, Mix | None]:
        on_cpu = functools.partial(compute, _once)
        # On several devices mixing takes collectives. XLA:CPU (jaxlib 0.10.2) does not order those
        # in a branch with those outside, so processes would wait for each other forever.
        if lowerings.batch_parts() == 1:
            on_cpu = functools.partial(_once, on_cpu)
        elsewhere = functools.partial(compute, lambda function, *arguments: function(*arguments))
        augmented: tuple[jax.Array, Mix | None] = lowerings.choose(
            key, images, strength, cpu=on_cpu, default=elsewhere
        )
        return augmented

    return augment


def _once(compute: Callable[..., Any], *arguments: Any) -> Any:
    """`compute(*arguments)` as the branch of a condition that is always true.

    XLA:CPU would fuse it into its users, and so sample every pixel again for each tap of the first
    convolution, a quarter of a MobileNetV3 step, and for each use in mixup. Optimization barriers
    do not prevent that; a branch does. A GPU does not need it, and would wait for the condition.
    """
    always = jnp.max(arguments[-1]) >= 0  # strengths are never negative

    def never(*arguments: Any) -> Any:
        shapes = jax.eval_shape(compute, *arguments)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(always, compute, never, *arguments)


def warp(images: jax.Array, matrix: jax.Array, size: int) -> jax.Array:
    """Samples images along an affine or perspective map, bilinearly.

    Args:
      images: uint8 0..255 or f32 0..1 [B, H, W, 3].
      matrix: f32 [B, 2, 3], from the output's (x, y, 1), in pixels from its centre, to the
        input's (x, y), in pixels from its top left corner. Or [B, 3, 3], to (x w, y w, w).
      size: edge of the output.

    Returns:
      f32 [B, size, size, 3] in 0..1. Outside, the image is mirrored once at its edges.
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
        place = [m[i, 0] * grid + m[i, 1] * grid[:, None] + m[i, 2] for i in range(len(m))]
        if len(m) == 3:
            # A place with w of 0 or below is behind the horizon, where nothing is visible.
            w = jnp.maximum(place[2], 1e-3)
            place = [place[0] / w, place[1] / w]
        x, fx = split(place[0], width)
        y, fy = split(place[1], height)
        pixels, at = image.reshape(-1, 3), y * width + x
        right, down = min(width - 1, 1), width * min(height - 1, 1)

        def tap(offset: int) -> jax.Array:
            # Whole uint8 pixels: packed or separate channels take 8 times as long.
            return pixels.at[at + offset].get(mode="promise_in_bounds").astype(jnp.float32)

        top = tap(0) * (1 - fx) + tap(right) * fx
        bottom = tap(down) * (1 - fx) + tap(down + right) * fx
        return (top * (1 - fy) + bottom * fy) / scale

    return jax.vmap(one)(images, matrix)


def _matrix(
    recipes: Recipes,
    u: Draws,
    strength: jax.Array,
    shape: tuple[int, ...],
    size: int,
    rand: Levels,
) -> jax.Array:
    """All geometric changes of an image as one map for `warp`, f32 [B, 2, 3] or [B, 3, 3]."""
    _, height, width, _ = shape
    amount = functools.partial(_amount, recipes, strength)
    area = jnp.exp(amount(lambda c: jnp.log(_between(c.crop, u["crop_area"]))))
    ratio = jnp.exp(
        amount(
            lambda c: (
                (c.crop != (1, 1)) * _between(jnp.log(jnp.array(c.crop_ratio)), u["crop_ratio"])
            )
        )
    )
    across = jnp.minimum(jnp.sqrt(area * ratio), 1)
    along = jnp.minimum(jnp.sqrt(area / ratio), 1)
    shift = amount("shift")
    x = 0.5 + (u["crop_x"] - 0.5) * (1 - across) + shift * _signed(u["shift_x"])
    y = 0.5 + (u["crop_y"] - 0.5) * (1 - along) + shift * _signed(u["shift_y"])

    zoom = jnp.exp(amount(lambda c: jnp.log1p(c.zoom)) * _signed(u["zoom"]))
    angle = jnp.radians(amount("rotate")) * _signed(u["rotate"])
    step_x = across * zoom * width / size
    step_y = along * zoom * height / size
    flip = u["flip"] < _amount(recipes, jnp.minimum(strength, 1), "flip")
    step_x = jnp.where(flip, -step_x, step_x)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = ((cos * step_x, -sin * step_y, x * width), (sin * step_x, cos * step_y, y * height))
    affine = _stacked(rows)
    if rand:
        moved = _rand_moves(rand, size)
        affine = jnp.einsum("bij,bjk->bik", affine, moved, precision="highest")
    if not _uses(recipes, "perspective"):
        return affine
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (len(affine), 1, 3))
    edges = jnp.array([width, height, 1.0])
    perspective = _perspective(recipes, u, strength) * edges[:, None] / edges
    affine = jnp.concatenate([affine, last], axis=1)
    return jnp.einsum("bij,bjk->bik", perspective, affine, precision="highest")


def _rand_moves(rand: Levels, size: int) -> jax.Array:
    """RandAugment's shear, rotation and shift in pixels from the output's centre, f32 [B, 3, 3]."""
    x, y, angle, right, down = (
        RAND_OPS[name] * rand[name]
        for name in ("shear_x", "shear_y", "rotate", "translate_x", "translate_y")
    )
    cos, sin, zero = jnp.cos(jnp.radians(angle)), jnp.sin(jnp.radians(angle)), jnp.zeros_like(x)
    return _stacked(
        (
            (cos + x * sin, x * cos - sin, size * right),
            (sin + y * cos, cos - y * sin, size * down),
            (zero, zero, zero + 1),
        )
    )


def _perspective(recipes: Recipes, u: Draws, strength: jax.Array) -> jax.Array:
    """The map from an output place to its source, on a square of edge 1, f32 [B, 3, 3].

    The corners are drawn into the square, each by up to half the distortion along each axis.
    """
    on = u["perspective_on"] < _amount(recipes, strength, "perspective_prob")
    # Above 2/3 a corner may cross the line between its neighbours, and the image folds.
    far = jnp.where(on, jnp.minimum(_amount(recipes, strength, "perspective"), 0.6), 0) / 2
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (
        tuple(start + far * (1 - 2 * start) * u[f"perspective_{axis}{corner}"]
              for axis, start in zip("xy", starts, strict=True))
        for corner, starts in enumerate(((0, 0), (1, 0), (1, 1), (0, 1)))
    )  # fmt: skip
    # From the square to the four corners (Heckbert 1989), then inverted as its adjugate.
    dx1, dx2, dy1, dy2 = x1 - x2, x3 - x2, y1 - y2, y3 - y2
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    determinant = dx1 * dy2 - dx2 * dy1
    g = (sx * dy2 - dx2 * sy) / determinant
    h = (dx1 * sy - sx * dy1) / determinant
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    inverse = _stacked(
        (
            (e - f * h, c * h - b, b * f - c * e),
            (f * g - d, a - c * g, c * d - a * f),
            (d * h - e * g, b * g - a * h, a * e - b * d),
        )
    )
    # w is 1 in the middle, which is always inside the four corners: so w is positive inside them.
    middle = inverse[:, 2] @ jnp.array([0.5, 0.5, 1.0])
    return inverse / middle[:, None, None]


def _box(recipes: Recipes, u: Draws, strength: jax.Array) -> jax.Array:
    """Left, right, top and bottom of the erased box as shares of the edges, f32 [B, 4]."""
    area = _amount(recipes, strength, lambda c: _between(c.erase_area, u["erase_area"]))
    area = jnp.minimum(area, 1)
    ratio = ERASE_RATIO ** _signed(u["erase_ratio"])
    on = u["erase"] < _amount(recipes, strength, "erase")
    width = jnp.where(on, jnp.minimum(jnp.sqrt(area * ratio), 1), 0)
    height = jnp.minimum(jnp.sqrt(area / ratio), 1)
    left, top = u["erase_x"] * (1 - width), u["erase_y"] * (1 - height)
    return jnp.stack([left, left + width, top, top + height], axis=1)


def _erase(images: jax.Array, box: jax.Array, fill: jax.Array) -> jax.Array:
    """Fills boxes [B, 4] of f32 images [B, S, S, 3] with a grey [B, 1, 1, 1]."""
    size = images.shape[1]
    centres = (jnp.arange(size) + 0.5) / size
    left, right, top, bottom = (box[:, i : i + 1] for i in range(4))
    across = ((centres >= left) & (centres < right)).astype(jnp.float32)
    along = ((centres >= top) & (centres < bottom)).astype(jnp.float32)
    # Not jnp.where: XLA:CPU does not vectorise it.
    return images + along[:, :, None, None] * across[:, None, :, None] * (fill - images)


def _drawn_levels(recipes: Recipes, u: Draws, strength: jax.Array) -> Levels:
    """RandAugment's operations for each image.

    Returns:
      operation -> f32 [B]: 0 where it is not drawn, otherwise the signed magnitude as a share of
      the largest one; or bool [B], for operations without a magnitude.
    """
    amount = functools.partial(_amount, recipes, strength)
    order = jnp.stack([u[f"rand_order_{name}"] for name in RAND_OPS])

    def level(name: str) -> jax.Array:
        rank = jnp.sum(order < u[f"rand_order_{name}"], axis=0)  # the lowest ranks are applied
        if name in ("autocontrast", "equalize"):
            return u["rand_on"] < amount(lambda c: rank < c.rand_ops)
        share = amount(lambda c: (rank < c.rand_ops) * c.rand_magnitude / RAND_MAGNITUDE)
        share = jnp.minimum(share, 1)
        return share * jnp.sign(u[f"rand_sign_{name}"] - 0.5) if name in RAND_SIGNED else share

    return {name: level(name) for name in RAND_OPS}


def _equalize(images: jax.Array, on: jax.Array) -> jax.Array:
    """Spreads the values of each channel evenly over 0..255, where `on` [B], as in PIL.

    uint8 [B, H, W, 3] -> uint8. In large images every n-th row and column is counted.
    """
    n, height, width, _ = images.shape
    down, across = max(height // EQUALIZED_EDGE, 1), max(width // EQUALIZED_EDGE, 1)
    some = images[:, ::down, ::across]
    values = some.reshape(n, -1, 3).astype(jnp.int32) + 256 * jnp.arange(3)
    counts = jax.vmap(lambda v: jnp.zeros(768, jnp.int32).at[v].add(1))(values.reshape(n, -1))
    counts = counts.reshape(n, 3, 256) * (down * across)  # as if all pixels were counted
    below = jnp.cumsum(counts, axis=-1) - counts
    # A step is 1/255 of the pixels, of which PIL leaves out those of the largest value.
    step = jnp.max(jnp.where(counts > 0, below, 0), axis=-1, keepdims=True) // 255
    table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    table = jnp.where(on[:, None, None] & (step > 0), table, jnp.arange(256))
    places = images.astype(jnp.int32) + 256 * jnp.arange(3)
    equalized: jax.Array = jax.vmap(lambda t, at: t.at[at].get(mode="promise_in_bounds"))(
        table.reshape(n, 768).astype(jnp.uint8), places
    )
    return equalized


def _solarize(images: jax.Array, level: jax.Array) -> jax.Array:
    """Inverts values of uint8 [B, H, W, 3] from 255 * (1 - level) upwards; level f32 [B]."""
    threshold = jnp.where(level > 0, RAND_OPS["solarize"] * (1 - level), 256)
    return images ^ (255 * (images >= _shaped(threshold)).astype(jnp.uint8))


def _posterize(images: jax.Array, level: jax.Array) -> jax.Array:
    """Sets the last 4 * level bits, rounded, of uint8 [B, H, W, 3] to 0; level f32 [B]."""
    bits = jnp.round(RAND_OPS["posterize"] * level).astype(jnp.uint8)
    return images & _shaped(jnp.left_shift(jnp.uint8(255), bits))


def _tone(
    recipes: Recipes, u: Draws, strength: jax.Array, images: jax.Array, rand: Levels
) -> jax.Array:
    """Autocontrast, then sharpness: uint8 [B, H, W, 3] -> uint8, both as in PIL."""
    out = images.astype(jnp.float32)
    if _uses(recipes, "autocontrast") or rand:
        low, high = (f(images, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
        low, high = low.astype(jnp.float32), high.astype(jnp.float32)
        on = _shaped(u["autocontrast"] < _amount(recipes, strength, "autocontrast"))
        if rand:
            on |= _shaped(rand["autocontrast"])
        stretch = (out - low) * (255 / jnp.maximum(high - low, 1))
        out = jnp.where(on & (high > low), stretch, out)
    if _uses(recipes, "sharpness") or rand:
        on = u["sharpness_on"] < _amount(recipes, strength, "sharpness_prob")
        by = _amount(recipes, strength, "sharpness") * _signed(u["sharpness"])
        factor = _shaped(jnp.where(on, jnp.maximum(1 + by, 0), 1))
        if rand:
            factor *= _shaped(1 + RAND_OPS["sharpness"] * rand["sharpness"])
        # 3 x 3 ones with a 5 in the middle; the outermost pixels stay. On flat rows and as a
        # window: otherwise XLA:CPU would recompute the contrast for each of the nine pixels.
        lines = out.reshape(*out.shape[:2], -1)
        down = jax.lax.reduce_window(lines, 0.0, jax.lax.add, (1, 3, 1), (1, 1, 1), "VALID")
        around = down[:, :, :-6] + down[:, :, 3:-3] + down[:, :, 6:]
        change = (around - 9 * lines[:, 1:-1, 3:-3]) / 13
        change = jnp.pad(change, ((0, 0), (1, 1), (3, 3))).reshape(out.shape)
        out += (1 - factor) * change
    return jnp.clip(jnp.round(out), 0, 255).astype(jnp.uint8)


def _colour(
    recipes: Recipes,
    u: Draws,
    strength: jax.Array,
    images: jax.Array,
    mean: jax.Array,
    rand: Levels,
) -> jax.Array:
    """Brightness, contrast about the mean luminance, saturation or greyscale, hue.

    Comes before the warp, with which it commutes except for rounding: after it, XLA:CPU would
    sample again for each use of a pixel (10 times as long; an optimization barrier does not help).
    Images uint8 [B, H, W, 3] and their mean colour f32 [B, 1, 1, 3] in 0..255 -> uint8.
    """

    def factor(name: str) -> jax.Array:
        by = _amount(recipes, strength, name) * _signed(u[name])
        value = _shaped(jnp.maximum(1 + by, 0))
        return value * _shaped(1 + RAND_OPS[name] * rand[name]) if rand else value

    out = images.astype(jnp.float32)
    if _uses(recipes, "brightness", "contrast") or rand:
        contrast = factor("contrast")
        out = factor("brightness") * (contrast * out + (1 - contrast) * luminance(mean))
    if _uses(recipes, "saturation", "greyscale") or rand:
        grey = _shaped(u["greyscale"] < _amount(recipes, strength, "greyscale"))
        saturation = jnp.where(grey, 0, factor("saturation"))
        out = saturation * out + (1 - saturation) * luminance(out)
    if _uses(recipes, "hue"):
        turn = _amount(recipes, strength, "hue") * _signed(u["hue"])
        out = _turn_hue(jnp.clip(out, 0, 255), turn[:, None, None])
    return jnp.clip(jnp.round(out), 0, 255).astype(jnp.uint8)


def _turn_hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Adds [B, 1, 1] turns to the hue of HSV; images f32 [B, H, W, 3] of any range."""
    red, green, blue = (images[..., i] for i in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    by = 1 / jnp.where(chroma > 0, chroma, 1)
    # The largest channel is not found by comparing with `value`: a compiler may recompute red for
    # each use, with another rounding. If two channels are equal, both give the same hue.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * by,
        jnp.where(green >= blue, (blue - red) * by + 2, (red - green) * by + 4),
    )  # sixths of a turn from red
    hue = hue + 6 * turn

    def channel(offset: int) -> jax.Array:
        k = offset + hue
        k -= 6 * jnp.floor(k / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def _mean(images: jax.Array) -> jax.Array:
    """The mean colour of uint8 [B, H, W, 3], f32 [B, 1, 1, 3] in 0..255."""
    n, height, width, _ = images.shape
    # In two sums: XLA:CPU vectorises over a row's numbers, but not over three channels.
    columns = jnp.sum(images.reshape(n, height, -1).astype(jnp.int32), axis=1)
    return jnp.sum(columns.reshape(n, 1, width, 3), axis=2, keepdims=True) / (height * width)


def _mix(
    c: ml_collections.ConfigDict,
    u: Draws,
    strength: jax.Array,
    keys: jax.Array,
    size: int,
) -> tuple[Mix, jax.Array]:
    """Mixup, CutMix, or one of the two for each image.

    Every row's partner is the row before it: batches are already in random order.

    Args:
      keys: of the rows.
      size: edge of the images.

    Returns:
      The shares, and the image's own share of each pixel, f32 [B, 1 or size, 1 or size, 1].
    """
    strength = strength.sum(axis=1)
    lam, kept = jnp.ones_like(strength), jnp.ones((len(strength), 1, 1, 1))
    if c.mixup > 0:
        lam = jax.vmap(lambda key: jax.random.beta(key, c.mixup, c.mixup))(keys)
        # The partner gets the smaller share, so that an example stays mostly itself.
        share = jnp.minimum(strength * jnp.minimum(lam, 1 - lam), 0.5)
        lam = 1 - jnp.where(u["mixup"] < c.mixup_prob * strength, share, 0)
        kept = _shaped(lam)
    if c.cutmix * c.cutmix_prob > 0:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        of_cutmix, outside = _cut(c, u, strength, keys, size)
        cuts = u["cutmix_switch"] < (c.cutmix_switch if c.mixup * c.mixup_prob > 0 else 1)
        lam = jnp.where(cuts, of_cutmix, lam)
        kept = jnp.where(_shaped(cuts), outside, kept)
    return Mix(jnp.roll(jnp.arange(len(lam), dtype=jnp.int32), 1), lam), kept


def _cut(
    c: ml_collections.ConfigDict, u: Draws, strength: jax.Array, keys: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """CutMix (Yun et al. 2019): the box's centre may be anywhere; the image's edges clip the box.

    Returns:
      The share of pixels that stay, f32 [B]; and a mask of these pixels, 0 or 1, f32 [B, size,
      size, 1].
    """
    lam = jax.vmap(lambda key: jax.random.beta(key, c.cutmix, c.cutmix))(keys)
    area = jnp.where(u["cutmix"] < c.cutmix_prob * strength, strength * (1 - lam), 0)
    half = jnp.floor(size * jnp.sqrt(jnp.minimum(area, 1))) // 2
    pixels = jnp.arange(size)

    def within(draw: str) -> jax.Array:
        middle = jnp.floor(u[draw] * size)
        low, high = (middle - half)[:, None], (middle + half)[:, None]
        return ((pixels >= low) & (pixels < high)).astype(jnp.float32)

    across, along = within("cutmix_x"), within("cutmix_y")
    pasted = across.sum(axis=1) * along.sum(axis=1) / size**2
    return 1 - pasted, 1 - along[:, :, None, None] * across[:, None, :, None]


def _uses(recipes: Recipes, *names: str) -> bool:
    """Whether any recipe has any of these operations on."""
    return any(c[name] for c in recipes for name in names)


def _amount(
    recipes: Recipes,
    strength: jax.Array,
    of: str | Callable[[ml_collections.ConfigDict], jax.Array],
) -> jax.Array:
    """Each row's magnitude or probability [B]: the recipes' sum, weighted by strength [B, R]."""
    value = (lambda c: c[of]) if isinstance(of, str) else of
    return functools.reduce(jnp.add, (strength[:, i] * value(c) for i, c in enumerate(recipes)))


def _stacked(rows: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """A matrix of [B] entries as one array, f32 [B, rows, columns]."""
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=1)


def _shaped(values: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]


def _between(limits: Sequence[float] | jax.Array, u: jax.Array) -> jax.Array:
    return limits[0] + (limits[1] - limits[0]) * u


def _signed(u: jax.Array) -> jax.Array:
    return 2 * u - 1


def _checked(config: Mapping[str, Any], where: str, group: Group) -> ml_collections.ConfigDict:
    """The config with defaults filled in; raises `UserError` for what `build` cannot use."""
    mixed = [key for key in config if key.startswith(("mixup", "cutmix"))]
    if group is RECIPE and mixed:
        raise UserError(f"{where}.{mixed[0]}: it applies to all images; set it in config.augment")
    group.check(config, where)
    c = group.config()
    for key, default in group.defaults().items():
        if key in config and not isinstance(default, Mapping):
            pair = isinstance(default, tuple)
            c[key] = tuple(map(float, config[key])) if pair else type(default)(config[key])
    return c
