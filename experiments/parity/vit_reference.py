"""timm's vision transformers with weights of another image size, and with Flax's .npz files."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.parity import torch_reference


class Resized(torch_reference.TorchReference):
    """Weights of timm's usual image size, in its network for images of another size."""

    def __init__(self, source: Any, module: Any) -> None:
        super().__init__(module)
        self.source = torch_reference.TorchReference(source)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.source.shapes()

    def fill(self, values: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
        from timm.models import vision_transformer

        self.source.fill(values, path)
        state = self.source.module.state_dict()
        self.module.load_state_dict(vision_transformer.checkpoint_filter_fn(state, self.module))


class Flax(torch_reference.TorchReference):
    """An .npz as vision_transformer (AugReg) or big_vision writes it, read by timm itself."""

    def __init__(self, module: Any, big_vision: bool) -> None:
        super().__init__(module)
        self.big_vision = big_vision

    def shapes(self) -> dict[str, tuple[int, ...]]:
        blocks, dim = self.module.blocks, self.module.embed_dim
        heads = blocks[0].attn.num_heads
        attention, norm, mlp = (0, 1, 0) if self.big_vision else (1, 2, 3)
        block: dict[str, tuple[int, ...]] = {}
        for name in ("LayerNorm_0", f"LayerNorm_{norm}"):
            block |= {f"{name}/scale": (dim,), f"{name}/bias": (dim,)}
        for name in ("query", "key", "value"):
            key = f"MultiHeadDotProductAttention_{attention}/{name}"
            block |= {f"{key}/kernel": (dim, heads, dim // heads)}
            block |= {f"{key}/bias": (heads, dim // heads)}
        key = f"MultiHeadDotProductAttention_{attention}/out"
        block |= {f"{key}/kernel": (heads, dim // heads, dim), f"{key}/bias": (dim,)}
        block |= {
            f"MlpBlock_{mlp}/Dense_0/kernel": (dim, 4 * dim),
            f"MlpBlock_{mlp}/Dense_0/bias": (4 * dim,),
            f"MlpBlock_{mlp}/Dense_1/kernel": (4 * dim, dim),
            f"MlpBlock_{mlp}/Dense_1/bias": (dim,),
        }
        positions = (
            "pos_embedding" if self.big_vision else "Transformer/posembed_input/pos_embedding"
        )
        shapes: dict[str, tuple[int, ...]] = {
            "cls": (1, 1, dim),
            "embedding/kernel": (16, 16, 3, dim),
            "embedding/bias": (dim,),
            positions: tuple(self.module.pos_embed.shape),
            "Transformer/encoder_norm/scale": (dim,),
            "Transformer/encoder_norm/bias": (dim,),
            "head/kernel": (dim, 1000),
            "head/bias": (1000,),
        }
        if not self.big_vision:
            return shapes | {
                f"Transformer/encoderblock_{i}/{name}": shape
                for i in range(len(blocks))
                for name, shape in block.items()
            }
        shapes |= {f"Transformer/encoderblock/{k}": (len(blocks), *v) for k, v in block.items()}
        return {f"params/{key}": shape for key, shape in shapes.items()}

    def fill(self, values: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
        np.savez(path, **values)
        self.module.load_pretrained(str(path))


def resized(name: str, size: int) -> Callable[[], Resized]:
    """A model of timm for images of `size`, to be filled with weights of its usual size."""

    def build() -> Resized:
        source, target = torch_reference.timm(name), torch_reference.timm(name, img_size=size)
        return Resized(source().module, target().module)

    return build


def flax(name: str, size: int, big_vision: bool = False) -> Callable[[], Flax]:
    """A model of timm with the numerics of the JAX projects, whose GELU uses tanh."""

    def build() -> Flax:
        options = {"no_embed_class": True} if big_vision else {}
        make = torch_reference.timm(name, img_size=size, act_layer="gelu_tanh", **options)
        return Flax(make().module, big_vision)

    return build
