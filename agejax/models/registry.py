"""The backbones by name. To add one, write a module and enter it in `MODELS`; add its new options
to `OPTIONS`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from agejax.errors import UserError, nearest
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
from agejax.settings import Group, Setting

# Called with num_classes, dtype, rngs, the config's options, and image_size where the model has it.
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
# The options of all backbones; each has some of them. A backbone's default replaces the one here.
OPTIONS: dict[str, Setting] = {
    "widths": Setting((32, 64, 128), "Width of each layer.", limits=(1, 2**16)),
    "width": Setting(1.0, "Multiplier of all widths.", limits=(0.1, 10)),
    "minimalistic": Setting(False, "Without squeeze-excitation, hard swish and 5x5 convolutions."),
    "folded": Setting(False, "Convolutions have biases in place of batch norms."),
    "batch_norm": Setting(False, "Batch norm after each convolution."),
    "padding": Setting(
        "torch",
        "Half of the kernel on every side (torch), or as TensorFlow does (same).",
        choices=tuple(mobilenet_v3.PADDINGS),
    ),
    "stride_first": Setting(
        False, "The first 1x1 convolution of a bottleneck strides, not its 3x3."
    ),
    "zero_padded_max": Setting(False, "Max pools pad with zeros, as in Keras."),
    "stem": Setting(
        "patches",
        "What makes tokens of an image: a linear map of each patch, or convolutions, which learn "
        "in far fewer steps from random weights and for which there are no published weights.",
        choices=get_args(vit.Stem),
    ),
    "gelu": Setting(
        "exact", "GELU itself, or its approximation by tanh.", choices=get_args(vit.Gelu)
    ),
    "epsilon": Setting(1e-5, "Added to the variance in batch norm.", limits=(0, 1)),
    "norm_momentum": Setting(0.1, "Share of each batch in running statistics.", limits=(0, 1)),
    "dropout": Setting(
        0.0,
        "Dropout rate; of MobileNets, EfficientNets and VGGs in the published classifier only, "
        "which a run does not use.",
        limits=(0, 0.99),
    ),
    "drop_path": Setting(
        0.0, "Largest rate of dropped blocks (stochastic depth).", limits=(0, 0.99)
    ),
}
# Options that change how a network trains, but neither its arrays nor its predictions.
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
    """Creates a backbone.

    Args:
      image_size: edge of its input images, pixels.
      dtype: of the computation; parameters, batch-norm statistics and results are float32.
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
    """Raises `UserError` for an unknown model, options of other models, or invalid values."""
    options_of(name).check(options, "config.model.options")


def options_of(name: str) -> Group:
    """A model's own options, with the defaults of its constructor.

    Raises:
      UserError: an unknown model.
    """
    if name not in MODELS:
        raise UserError(f"config.model.name: no model {name!r}; {nearest(name, MODELS)}")
    own = {k: p.default for k, p in _parameters(name).items() if k not in OURS}
    own |= {k: value for k, value in MODELS[name].keywords.items() if k in own}
    return Group(
        f"Options of {name}.",
        **{k: dataclasses.replace(OPTIONS[k], default=default) for k, default in own.items()},
    )


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    every = inspect.signature(MODELS[name].func.__init__).parameters.items()
    return {key: parameter for key, parameter in every if parameter.kind is parameter.KEYWORD_ONLY}
