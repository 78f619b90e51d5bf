"""A frozen backbone computes each image's features once; the heads then train on them.

config.model.cached_views sets the number of views. View 0 is the image as in evaluation, the others
are augmented: view v of image i is a function of (seed, v, i).
"""

from __future__ import annotations

import hashlib
import types
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from agejax import files
from agejax.data import features, sources
from agejax.errors import UserError, few
from agejax.models import inputs
from agejax.models.necks import NeckOptions
from agejax.settings import to_json
from agejax.training import augment, vectors
from agejax.training.optim import Flat
from agejax.training.state import Model
from agejax.version import __version__

FORMAT = 1  # raise it when the same weights would give other features for the same images
# The settings of config.model that affect a backbone's features of an image.
MODEL = ("name", "options", "image_size", "dtype", "mean", "std")
FREEZE = """config.optim.lr_multipliers=(("backbone/.*", None), (".*", 1.0))"""
Arrays = Mapping[str, np.ndarray]


def check(config: Any, model: Model, frozen: Collection[str]) -> None:
    """Raises `UserError` if the heads cannot train on cached features alone.

    Args:
      frozen: the paths of the parameters that never change.
    """
    views = config.model.cached_views
    if not views:
        return
    where = f"config.model.cached_views: {views}"
    off = "or set it to 0, to run the backbone in every step"
    moving = [k for k in model.parameters if k.startswith("backbone/") and k not in frozen]
    if moving:
        raise UserError(
            f"{where}, but the backbone is trained ({few(moving, 1)}); freeze it with {FREEZE}, "
            f"{off}"
        )
    for name, given in config.heads.items():
        if "neck" not in given:
            continue
        neck = NeckOptions.of(given.neck, f"config.heads.{name}.neck")
        needs = {"greyscale": neck.greyscale, "convs": neck.convs, "pool": neck.pool == "flatten"}
        if wrong := [key for key, value in needs.items() if value]:
            raise UserError(
                f"{where}, but config.heads.{name}.neck.{wrong[0]} needs more than the pooled "
                f"features that are kept; leave it out, {off}"
            )
    for kind in ("runs", "onnx"):
        if config.distill[kind]:
            raise UserError(
                f"{where}, but the teachers of config.distill.{kind} need the images; write their "
                f"predictions to a file with python -m agejax.distill, {off}"
            )
    given, default = (to_json(each) for each in (config.augment, augment.SETTINGS.config()))
    changed = [key for key, value in given.items() if value != default.get(key)]
    if mixing := [key for key in changed if key in ("mixup", "cutmix", "copies")]:
        raise UserError(
            f"{where}, but config.augment.{mixing[0]} needs the images of a step; leave it out, "
            f"{off}"
        )
    if config.sampling.copy_strength != 1:
        raise UserError(
            f"{where}, but config.sampling.copy_strength needs the images of a step; leave it at "
            f"1, {off}"
        )
    if config.schedule.image_size or config.eval.image_size not in (0, config.model.image_size):
        name = "schedule" if config.schedule.image_size else "eval"
        raise UserError(
            f"{where} are of one image size; set config.model.image_size in place of "
            f"config.{name}.image_size, {off}"
        )
    if views == 1 and changed:
        raise UserError(
            f"{where} keeps images as evaluation sees them, and config.augment.{changed[0]} would "
            "do nothing; leave the augmentation out, or set cached_views to 2 or more, for "
            "augmented views too, or to 0, to run the backbone in every step"
        )
    if views > 1 and not changed:
        raise UserError(
            f"{where}, but config.augment changes nothing, so all views would be alike; set it to "
            "1, or set augmentations"
        )
    if _draws(config, model):
        raise UserError(
            f"{where}, but the backbone drops a part of its features at random in every step; set "
            f"its dropout in config.model.options to 0, {off}"
        )


def _draws(config: Any, model: Model) -> bool:
    """Whether the backbone draws random numbers in training, for example for dropout."""

    class Asked(Exception):
        pass

    def refuse() -> None:
        raise Asked

    def embed(params: Flat, batch_stats: Flat, images: jax.Array) -> jax.Array:
        rngs: Any = types.SimpleNamespace(dropout=refuse)
        backbone = model.network(params, batch_stats).backbone
        backbone.remat = False  # remat would need real random streams
        return backbone.embed(images, train=True, rngs=rngs).pooled

    shapes = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in model.shapes.items()}
    params = {k: shapes.pop(k) for k in model.parameters}
    size = config.model.image_size
    try:
        jax.eval_shape(embed, params, shapes, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    except Asked:
        return True
    return False


def compute(
    config: Any,
    model: Model,
    params: Any,
    batch_stats: Any,
    source: sources.Source,
    rows: Mapping[str, np.ndarray],
    mesh: Mesh,
) -> features.CachedFeatures | None:
    """The features that config.model.cached_views asks for; None if it is 0.

    They come from the cache; each process computes missing ones on its own devices.

    Args:
      params, batch_stats: of the backbone that computes them, by flat name.
      rows: of the splits: "train" is needed in every view, "val" only in view 0.
      mesh: of the run.

    Raises:
      UserError: as `features.load`.
    """
    views = config.model.cached_views
    if not views:
        return None
    arrays: tuple[Arrays, Arrays] = vectors.unpacked(
        multihost_utils.process_allgather((params, batch_stats), tiled=True)
    )
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    here = Mesh(np.array(devices), ("data",))
    on_devices = jax.device_put(arrays, NamedSharding(here, P()))
    split = NamedSharding(here, P("data"))
    size = config.model.image_size
    augmented = augment.build(config.augment, size)

    @jax.jit
    def embed(arrays: tuple[Flat, Flat], images: jax.Array) -> jax.Array:
        return model.network(*arrays).features(inputs.eval_images(images, size))

    @jax.jit
    def embed_augmented(
        arrays: tuple[Flat, Flat],
        images: jax.Array,
        rows: jax.Array,
        view: jax.Array,
        strength: jax.Array,
    ) -> jax.Array:
        of_view = jax.random.fold_in(jax.random.key(config.seed), view)

        def one(image: jax.Array, row: jax.Array) -> jax.Array:
            # Each image alone: in a batch, its draws would depend on its position.
            return augmented(jax.random.fold_in(of_view, row), image[None], strength)[0][0]

        return model.network(*arrays).features(jax.vmap(one)(images, rows))

    batch = config.eval.batch_size // jax.process_count()

    def in_batches(view: int, rows: np.ndarray) -> Iterator[np.ndarray]:
        running: deque[jax.Array] = deque()
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            padded = np.pad(part, (0, batch - len(part)), mode="edge")
            images = jax.device_put(source.take(padded), split)
            if view:
                numbers = jax.device_put(padded.astype(np.int32), split)
                out = embed_augmented(
                    on_devices, images, numbers, jnp.int32(view), jnp.ones(1, jnp.float32)
                )
            else:
                out = embed(on_devices, images)
            running.append(out[: len(part)])
            if len(running) > 1:  # one batch is computed while the next is read
                yield np.asarray(running.popleft())
        yield from map(np.asarray, running)

    needed = [np.concatenate([rows[name] for name in ("train", "val") if name in rows])]
    needed += [rows["train"]] * (views - 1)
    return features.load(
        _keys(config, arrays, source),
        needed,
        total=len(source.ids),
        width=model.feature_dim,
        compute=in_batches,
        name=f"features of {config.model.name}",
        cache_dir=config.data.cache_dir,
    )


def digest(arrays: Arrays) -> str:
    """A text that changes with any name, shape or value of a network's arrays."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.shape}".encode())
        found.update(np.ascontiguousarray(array, np.float32).data)
    return found.hexdigest()


def _keys(config: Any, arrays: tuple[Arrays, Arrays], source: sources.Source) -> list[str]:
    """For each view, a digest of everything that its features depend on."""
    every = {**arrays[0], **arrays[1]}
    backbone = {name: array for name, array in every.items() if name.startswith("backbone/")}
    settings = to_json(config)
    facts = {
        "format": [FORMAT, sources.FORMAT, __version__],
        "data": [source.fingerprint, *source.images.shape],
        "weights": digest(backbone),
        "model": {key: settings["model"][key] for key in MODEL},
    }
    augmented = {"augment": settings["augment"], "seed": config.seed}
    views = [facts] + [facts | augmented | {"view": v} for v in range(1, config.model.cached_views)]
    return [files.digest(each)[:16] for each in views]
