"""The backbones by name. To add one, write a module and enter it in `MODELS`."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.errors import UserError, check_keys, nearest
from agejax.models import mobilenet_v3, resnet, vgg, vit

# Called with num_classes, dtype, rngs, the config's options, and image_size where it is wanted.
MODELS: dict[str, functools.partial[Any]] = {
    "mobilenet_v3_small": mobilenet_v3.small,
    "mobilenet_v3_small_minimalistic": functools.partial(mobilenet_v3.small, minimalistic=True),
    "mobilenet_v3_large": mobilenet_v3.large,
    "mobilenet_v3_large_minimalistic": functools.partial(mobilenet_v3.large, minimalistic=True),
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19": vgg.vgg19,
    "vgg19_bn": vgg.vgg19_bn,
    "vit_ti16": vit.ti16,
    "vit_s16": vit.s16,
    "vit_b16": vit.b16,
    "vit_l16": vit.l16,
}
OURS = ("num_classes", "dtype", "rngs", "image_size")  # given by `create`, not by options


def create(
    name: str,
    *,
    image_size: int,
    rngs: nnx.Rngs,
    dtype: jax.typing.DTypeLike = jnp.float32,
    num_classes: int | None = None,
    **options: Any,
) -> nnx.Module:
    """A backbone.

    Args:
      image_size: edge of the images it will see, pixels.
      dtype: of the computation; parameters, batch-norm statistics and what it returns are float32.
      num_classes: None for features [B, feature_dim], else logits of the published classifier.
      options: the model's own, as in config.model.options.

    Returns:
      module(x [B, H, W, 3], *, train=False, rngs=None) -> [B, feature_dim or num_classes].

    Raises:
      UserError: an unknown name or option.
    """
    if name not in MODELS:
        raise UserError(f"config.model.name: no model {name!r}; {nearest(name, MODELS)}")
    make = MODELS[name]
    accepted = [
        key
        for key, parameter in inspect.signature(make.func.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    check_keys(options, [k for k in accepted if k not in OURS], "config.model.options")
    size = {"image_size": image_size} if "image_size" in accepted else {}
    return make(num_classes=num_classes, dtype=dtype, rngs=rngs, **size, **options)
