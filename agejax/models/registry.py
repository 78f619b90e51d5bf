"""The backbones by name. To add one, write a module and enter it in `MODELS`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.errors import UserError, check_values, nearest
from agejax.models import (
    cnn,
    efficientnet,
    mlp,
    mobilenet_v1,
    mobilenet_v3,
    nasnet,
    resnet,
    vgg,
    vit,
)
from agejax.models.backbone import Backbone

# Called with num_classes, dtype, rngs, the config's options, and image_size where it is wanted.
MODELS: dict[str, functools.partial[Any]] = {
    "mlp": functools.partial(mlp.MLP),
    "cnn": functools.partial(cnn.CNN),
    "mobilenet_v1": functools.partial(mobilenet_v1.MobileNetV1),
    "mobilenet_v3_small": mobilenet_v3.small,
    "mobilenet_v3_small_minimalistic": functools.partial(mobilenet_v3.small, minimalistic=True),
    "mobilenet_v3_large": mobilenet_v3.large,
    "mobilenet_v3_large_minimalistic": functools.partial(mobilenet_v3.large, minimalistic=True),
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "seresnet50": resnet.seresnet50,
    "seresnext50_32x4d": resnet.seresnext50_32x4d,
    "senet50": resnet.senet50,
    "legacy_seresnext50_32x4d": resnet.legacy_seresnext50_32x4d,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19": vgg.vgg19,
    "vgg19_bn": vgg.vgg19_bn,
    "efficientnet_b0": efficientnet.b0,
    "tf_efficientnet_b0": efficientnet.tf_b0,
    "efficientnet_lite0": efficientnet.lite0,
    "tf_efficientnet_lite0": efficientnet.tf_lite0,
    "efficientnet_lite1": efficientnet.lite1,
    "tf_efficientnet_lite1": efficientnet.tf_lite1,
    "efficientnet_lite2": efficientnet.lite2,
    "tf_efficientnet_lite2": efficientnet.tf_lite2,
    "nasnet_mobile": nasnet.nasnet_mobile,
    "nasnet_large": nasnet.nasnet_large,
    "pnasnet5_large": nasnet.pnasnet5_large,
    "vit_ti16": vit.ti16,
    "vit_s16": vit.s16,
    "vit_b16": vit.b16,
    "vit_l16": vit.l16,
}
LIMITS = {  # of options that are numbers; both ends are allowed
    "widths": (1, 2**16), "width": (0.1, 10), "dropout": (0, 0.99), "drop_path": (0, 0.99),
    "epsilon": (0, 1), "norm_momentum": (0, 1),
}  # fmt: skip
# Options that change how a network trains, and neither its arrays nor what it predicts.
OF_TRAINING = ("dropout", "drop_path", "norm_momentum")
OURS = ("num_classes", "dtype", "rngs", "image_size")  # given by `create`, not by options


def create(
    name: str,
    *,
    image_size: int,
    rngs: nnx.Rngs,
    dtype: jax.typing.DTypeLike = jnp.float32,
    num_classes: int | None = None,
    **options: Any,
) -> Backbone:
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
    check_options(name, options)
    make = MODELS[name]
    size = {"image_size": image_size} if "image_size" in _parameters(name) else {}
    backbone: Backbone = make(num_classes=num_classes, dtype=dtype, rngs=rngs, **size, **options)
    return backbone


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises `UserError` for an unknown model, or options that are not its own or cannot be."""
    check_values(options, default_options(name), "config.model.options", LIMITS)


def default_options(name: str) -> dict[str, Any]:
    """Returns a model's own options with their defaults.

    Raises:
      UserError: an unknown model.
    """
    if name not in MODELS:
        raise UserError(f"config.model.name: no model {name!r}; {nearest(name, MODELS)}")
    return {k: p.default for k, p in _parameters(name).items() if k not in OURS}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    every = inspect.signature(MODELS[name].func.__init__).parameters.items()
    return {key: parameter for key, parameter in every if parameter.kind is parameter.KEYWORD_ONLY}
