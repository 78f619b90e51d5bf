"""Keras 3 on JAX: its own layers, networks and optimizer, and `fit` for a whole training.

It has no ViT, so this module builds one from its layers.
"""

from __future__ import annotations

import functools
import os
from importlib import metadata
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

import jax
import keras
import numpy as np
from keras import layers, ops

from experiments.benchmarks.contestants import case as case_lib
from experiments.benchmarks.contestants.case import Case, Turn, timed

WIDTH, DEPTH, HEADS, PATCH = 384, 12, 6, 16  # of ViT-S/16
APPLICATIONS = {
    "mobilenet_v3_small": functools.partial(
        keras.applications.MobileNetV3Small, include_preprocessing=False
    ),
    "resnet50": keras.applications.ResNet50,
}


class Positions(layers.Layer):
    """Puts the class token first and adds the positions: [B, N, C] -> [B, N + 1, C]."""

    def build(self, shape: tuple[int, ...]) -> None:
        init = keras.initializers.TruncatedNormal(stddev=0.02)
        _, tokens, width = shape
        self.first = self.add_weight(shape=(1, 1, width), initializer=init)
        self.places = self.add_weight(shape=(1, tokens + 1, width), initializer=init)

    def call(self, x: Any) -> Any:
        first = ops.broadcast_to(self.first, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([ops.cast(first, x.dtype), x], axis=1) + self.places


def vit_s16(size: int) -> keras.Model:
    """Images [B, S, S, 3] -> the normalised class token [B, 384]."""
    norm = functools.partial(layers.LayerNormalization, epsilon=1e-6)
    x = images = keras.Input((size, size, 3))
    x = layers.Conv2D(WIDTH, PATCH, strides=PATCH)(x)
    x = Positions()(layers.Reshape((-1, WIDTH))(x))
    for _ in range(DEPTH):
        y = norm()(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
        y = layers.Dense(4 * WIDTH, activation="gelu")(norm()(x))
        x = x + layers.Dense(WIDTH)(y)
    return keras.Model(images, norm()(x[:, 0]))


def network(case: Case) -> keras.Model:
    """Images uint8 [B, S, S, 3] -> {"age" [B, 1], standardised, "gender" [B, 1], "ethnicity"}."""
    low = case.dtype == "bfloat16"
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16" if low else "float32")
    size = case.image_size
    if case.network == "vit_s16":
        backbone = vit_s16(size)
    else:
        make = APPLICATIONS[case.network]
        shape = (size, size, 3)
        backbone = make(include_top=False, weights=None, pooling="avg", input_shape=shape)
    images = keras.Input((size, size, 3))
    mean, std = np.array(case_lib.MEAN), np.array(case_lib.STD)
    x = layers.Rescaling((1 / (255 * std)).tolist(), (-mean / std).tolist())(images)
    features = layers.Dropout(case_lib.DROPOUT)(backbone(x))
    widths = {"age": 1, "gender": 1, "ethnicity": case_lib.CLASSES}
    heads = {k: layers.Dense(n, dtype="float32", name=k)(features) for k, n in widths.items()}
    return keras.Model(images, heads)


def losses() -> dict[str, Any]:
    """The loss of each head."""
    return {
        "age": keras.losses.MeanAbsoluteError(),
        "gender": keras.losses.BinaryCrossentropy(from_logits=True),
        "ethnicity": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }


WEIGHTS = {"age": 1.0, "gender": case_lib.SHARE, "ethnicity": case_lib.SHARE}


def adamw() -> keras.optimizers.AdamW:
    """The optimizer of all contestants."""
    return keras.optimizers.AdamW(
        case_lib.LEARNING_RATE, weight_decay=0.0, global_clipnorm=case_lib.CLIP_NORM
    )


def augmentation(size: int) -> keras.Model:
    """The light recipe in Keras' layers; a random zoom replaces the random resized crop."""
    jitter, smallest = case_lib.JITTER, case_lib.CROP[0] ** 0.5
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(case_lib.DEGREES / 360),
            layers.RandomZoom((smallest - 1, 0.0)),
            layers.RandomColorJitter(
                value_range=(0, 255),
                brightness_factor=jitter,
                contrast_factor=jitter,
                saturation_factor=(0.5 - jitter / 2, 0.5 + jitter / 2),
            ),
            layers.Resizing(size, size),
        ]
    )


class WithKeras(case_lib.Contestant):
    """Keras 3 on JAX."""

    def train(self) -> Turn:
        """Keras' recipe for a custom train step on JAX, since `fit` takes no resident batch."""
        model, optimizer = self.network(), adamw()
        optimizer.build(model.trainable_variables)
        of_head = losses()

        def loss(trainable: Any, others: Any, images: Any, labels: Any) -> Any:
            outputs, others = model.stateless_call(trainable, others, images, training=True)
            total = sum(WEIGHTS[k] * of_head[k](labels[k], outputs[k]) for k in WEIGHTS)
            return total, others

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: Any, images: Any, labels: Any) -> Any:
            trainable, others, optimizing = state
            grads, others = jax.grad(loss, has_aux=True)(trainable, others, images, labels)
            trainable, optimizing = optimizer.stateless_apply(optimizing, grads, trainable)
            return trainable, others, optimizing

        batch = self.resident()
        variables = (
            model.trainable_variables, model.non_trainable_variables, optimizer.variables
        )  # fmt: skip
        self.state = jax.tree.map(jax.numpy.copy, _values(variables))

        def run() -> None:
            self.state = step(self.state, *batch)

        return _ready(run, lambda: jax.block_until_ready(self.state))

    def evaluation(self) -> Turn:
        model = self.network()
        state = _values((model.trainable_variables, model.non_trainable_variables))
        images, _ = self.resident()

        @jax.jit
        def answer(state: Any, images: Any) -> Any:
            outputs, _ = model.stateless_call(*state, images, training=False)
            years = outputs["age"] * case_lib.AGE_STD + case_lib.AGE_MEAN
            return years, ops.sigmoid(outputs["gender"]), ops.softmax(outputs["ethnicity"])

        said: list[Any] = [None]

        def run() -> None:
            said[0] = answer(state, images)

        return _ready(run, lambda: jax.block_until_ready(said))

    def loop(self) -> Turn:
        """`fit` on an array of decoded images; the model's first layers augment them."""
        edge, batch = self.data.edge, self.case.batch
        images = keras.Input((edge, edge, 3), dtype="uint8")
        changed = augmentation(self.case.image_size)(images)
        model = keras.Model(images, self.network()(changed))
        model.compile(adamw(), loss=losses(), loss_weights=WEIGHTS)
        faces, labels = self.data.images(edge), self.labels()

        def turn(steps: int) -> float:
            rows = np.arange(steps * batch) % len(faces)
            some = {k: v[rows] for k, v in labels.items()}
            fit = functools.partial(
                model.fit, faces[rows], some, batch_size=batch, epochs=1, verbose=0
            )
            return timed(fit)(1) / steps

        turn(1)
        return turn

    # ---- parts ----------------------------------------------------------------------------------

    def network(self) -> keras.Model:
        """A fresh network, kept for `facts`."""
        self.made = network(self.case)
        return self.made

    def labels(self) -> dict[str, np.ndarray]:
        """Labels as the losses need them, [N]."""
        labels = self.data.labels()
        age = (labels["age"] - case_lib.AGE_MEAN) / case_lib.AGE_STD
        return labels | {"age": age.astype(np.float32)}

    def resident(self) -> tuple[Any, Any]:
        """The first images of the data and their labels, on the device."""
        images = np.array(self.data.images(self.case.image_size)[: self.case.batch])
        labels = {k: v[: self.case.batch] for k, v in self.labels().items()}
        return jax.device_put((images, labels))

    def facts(self) -> dict[str, Any]:
        return {
            "parameters": sum(int(np.prod(v.shape)) for v in self.made.trainable_variables),
            "versions": {name: metadata.version(name) for name in ("keras", "jax")},
        }

    def device_bytes(self) -> int | None:
        statistics = jax.devices()[0].memory_stats()
        return statistics and statistics["peak_bytes_in_use"]


def _values(variables: Any) -> Any:
    return jax.tree.map(lambda v: v.value, variables, is_leaf=lambda v: hasattr(v, "assign"))


def _ready(run: Any, wait: Any) -> Turn:
    turn = timed(run, wait)
    turn(1)  # compiles
    return turn


create = WithKeras
