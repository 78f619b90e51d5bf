"""The cases: every family of backbones with every library whose weights it reads."""

from __future__ import annotations

from experiments.parity.case import Case
from experiments.parity.keras_reference import keras_application as keras
from experiments.parity.torch_reference import efficientnet_lite, timm, torchvision
from experiments.parity.vit_reference import flax, resized

CASES: list[Case] = [
    Case(
        "mobilenet_v1",
        "keras",
        keras("MobileNet", "weights.h5", input_shape=(64, 64, 3)),
        file="weights.h5",
        golden=True,
    ),
    Case(
        "mobilenet_v1",
        "keras narrow",
        keras("MobileNet", "model.weights.h5", alpha=0.25, input_shape=(96, 96, 3)),
        file="model.weights.h5",
        size=96,
        options={"width": 0.25},
    ),
    Case(
        "mobilenet_v1",
        "timm",
        timm("mobilenetv1_100"),
        file="weights.safetensors",
        size=75,
        train=True,
        golden=True,
    ),
    Case(
        "mobilenet_v3_small",
        "torchvision",
        torchvision("mobilenet_v3_small"),
        options={"norm_momentum": 0.01},
        train=True,
        golden=True,
    ),
    Case(
        "mobilenet_v3_large",
        "torchvision",
        torchvision("mobilenet_v3_large"),
        options={"norm_momentum": 0.01},
        train=True,
    ),
    *(
        Case(
            f"mobilenet_v3_{size}",
            "timm",
            timm(f"mobilenetv3_{size}_100"),
            file="weights.safetensors",
            size=75,
            train=True,
            golden=size == "small",
        )
        for size in ("small", "large")
    ),
    *(
        Case(
            f"mobilenet_v3_{size}_minimalistic",
            "timm",
            timm(f"tf_mobilenetv3_{size}_minimal_100"),
            file="weights.safetensors",
            size=75,
        )
        for size in ("small", "large")
    ),
    *(
        Case(
            f"mobilenet_v3_{size}{suffix}",
            "keras",
            keras(
                f"MobileNetV3{size.capitalize()}",
                file,
                minimalistic=bool(suffix),
                include_preprocessing=False,
                input_shape=(pixels, pixels, 3),
            ),
            file=file,
            size=pixels,
            golden=size == "small" and bool(suffix),
        )
        for size, suffix, file, pixels in (
            ("small", "", "weights.h5", 75),
            ("small", "_minimalistic", "model.weights.h5", 64),
            ("large", "", "model.weights.h5", 64),
            ("large", "_minimalistic", "weights.h5", 75),
        )
    ),
    Case("resnet18", "torchvision", torchvision("resnet18"), golden=True),
    Case("resnet34", "torchvision", torchvision("resnet34")),
    Case("resnet50", "torchvision", torchvision("resnet50"), train=True, golden=True),
    Case("resnet101", "torchvision", torchvision("resnet101")),
    Case("resnet152", "torchvision", torchvision("resnet152")),
    Case("resnext50_32x4d", "torchvision", torchvision("resnext50_32x4d")),
    # A size that no stride divides.
    *(
        Case(name, "timm", timm(name), file="weights.safetensors", size=75)
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    ),
    Case("resnext50_32x4d", "timm", timm("resnext50_32x4d"), file="weights.safetensors"),
    Case("seresnet50", "timm", timm("seresnet50"), file="weights.safetensors", size=96),
    Case(
        "seresnext50_32x4d",
        "timm",
        timm("seresnext50_32x4d"),
        file="weights.safetensors",
        train=True,
        golden=True,
    ),
    Case("senet50", "timm", timm("legacy_seresnet50"), file="weights.safetensors", golden=True),
    Case(
        "legacy_seresnext50_32x4d",
        "timm",
        timm("legacy_seresnext50_32x4d"),
        file="weights.safetensors",
        size=77,  # the pooled map is odd at 77, even at 64
    ),
    Case(
        "resnet50",
        "keras",
        keras("ResNet50", bgr=True, input_shape=(64, 64, 3)),
        file="weights.h5",
    ),
    Case("vgg16", "torchvision", torchvision("vgg16")),
    Case("vgg16_bn", "torchvision", torchvision("vgg16_bn")),
    *(
        Case(name, "timm", timm(name), file="weights.safetensors")
        for name in ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
    ),
    # Without the dense layers, nine tenths of the network, a golden takes a second.
    Case(
        "vgg16",
        "keras",
        keras("VGG16", bgr=True, include_top=False, pooling="avg", input_shape=(64, 64, 3)),
        file="weights.h5",
        num_classes=None,
        golden=True,
    ),
    # With the dense layers, Keras' classifier takes only images of this size.
    Case("vgg19", "keras", keras("VGG19", bgr=True), file="weights.h5", size=224),
    Case("efficientnet_b0", "torchvision", torchvision("efficientnet_b0"), golden=True),
    # Even and odd sizes, which TensorFlow pads differently.
    *(
        Case(name, "timm", timm(name), file="weights.safetensors", size=size, train=True)
        for name, size in (
            ("efficientnet_b0", 75),
            ("tf_efficientnet_b0", 64),
            ("efficientnet_lite0", 64),
            ("tf_efficientnet_lite0", 75),
            ("efficientnet_lite1", 75),
            ("tf_efficientnet_lite1", 64),
            ("efficientnet_lite2", 64),
            ("tf_efficientnet_lite2", 75),
        )
    ),
    *(
        Case(
            "efficientnet_lite0",
            f"efficientnet_lite_pytorch{suffix}",
            efficientnet_lite("efficientnet-lite0"),
            size=size,
            golden=size == 64,
        )
        for suffix, size in (("", 64), (" 75", 75))
    ),
    *(
        Case(name, "efficientnet_lite_pytorch", efficientnet_lite(name.replace("_", "-")), size=75)
        for name in ("efficientnet_lite1", "efficientnet_lite2")
    ),
    Case(
        "nasnet_mobile",
        "keras",
        keras("NASNetMobile", "weights.h5", input_shape=(64, 64, 3)),
        file="weights.h5",
        golden=True,
    ),
    Case(
        "nasnet_large",
        "keras",
        keras("NASNetLarge", "model.weights.h5", input_shape=(75, 75, 3)),
        file="model.weights.h5",
        size=75,
    ),
    *(
        Case(name, "timm", timm(theirs), file="weights.safetensors", size=size, train=True)
        for name, theirs, size in (
            ("nasnet_large", "nasnetalarge", 96),
            ("pnasnet5_large", "pnasnet5large", 75),
        )
    ),
    Case("vit_b16", "torchvision", torchvision("vit_b_16", image_size=64)),
    *(
        Case(name, "timm", timm(theirs, img_size=size), size=size, golden=name == "vit_ti16")
        for name, theirs, size in (
            ("vit_ti16", "vit_tiny_patch16_224", 64),
            ("vit_s16", "vit_small_patch16_224", 96),
            ("vit_b16", "vit_base_patch16_224", 64),
            ("vit_l16", "vit_large_patch16_224", 64),
        )
    ),
    *(
        Case(name, "timm deit", timm(theirs, img_size=64), file="weights.safetensors")
        for name, theirs in (
            ("vit_ti16", "deit_tiny_patch16_224"),
            ("vit_s16", "deit_small_patch16_224"),
            ("vit_b16", "deit_base_patch16_224"),
        )
    ),
    # Positions learned at 224, resized to fewer and to more.
    *(
        Case("vit_ti16", f"timm 224 to {size}", resized("vit_tiny_patch16_224", size), size=size)
        for size in (64, 112, 288)
    ),
    Case(
        "vit_ti16",
        "AugReg",
        flax("vit_tiny_patch16_224", 64),
        file="weights.npz",
        golden=True,
    ),
    Case("vit_b16", "AugReg", flax("vit_base_patch16_224", 64), file="weights.npz"),
    Case(
        "vit_s16",
        "big_vision",
        flax("vit_small_patch16_224", 64, big_vision=True),
        file="weights.npz",
    ),
]
