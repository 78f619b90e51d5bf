"""One train step and one eval step: pure functions of (state, batch), jitted over the mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from agejax.heads import weights
from agejax.labels import LABELS
from agejax.logging.sums import Sums
from agejax.models import inputs, lowerings
from agejax.models.backbone import Features
from agejax.training import augment as augment_lib
from agejax.training import image_sizes, optim, resident
from agejax.training.optim import Flat
from agejax.training.state import Model, TrainState
from agejax.training.teaching import Target, Teaching
from agejax.training.vectors import Vectors

# name -> array: "image", or a frozen backbone's "features", labels, and inputs of teachers; or
# what `resident.gathered` completes
Batch = Mapping[str, Any]
SHARED = ("teachers", resident.TABLE)  # its entries that are the same in every step
Pairs = dict[str, jax.Array]  # name -> float32 [2]: a sum and its count


def keys(seed: int, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of the step from `step` to `step + 1`: of its augmentation, and of its dropout."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    of_augmentation, of_dropout = jax.random.split(key)
    return of_augmentation, of_dropout


def make_train_step(
    config: Any,
    model: Model,
    optimizer: optim.Optimizer,
    like: TrainState,
    *,
    image_size: int | None = None,
    steps: int = 1,
    steps_per_epoch: float = math.inf,
    switches: Mapping[str, int] | None = None,
    teachers: Teaching | None = None,
) -> jax.stages.Wrapped:
    """The jitted `train_step(state, batch) -> (state, sums)`; the given state is donated.

    Augmentation and dropout draw from keys folded from (config.seed, state.step), so a step is the
    same after a restart and on any number of devices.

    Args:
      like: the abstract state; the new state has its shardings.
      image_size: edge of the network's input images, in pixels; None: config.model.image_size.
      steps: how many a call takes. With several, all of a batch but what is `SHARED` has a first
        axis of steps, and so have the sums.
      steps_per_epoch: the length of an epoch for feature smoothing.
      switches: head -> the step from which its example weights count.
      teachers: what teaches besides the labels. Batches hold what its `targets` read.
    """
    size = image_size or config.model.image_size
    # The same draws for every size: a teacher sees the same view as the student.
    sizes = {size} if teachers is None else {size, *teachers.sizes}
    views = {s: augment_lib.build(config.augment, s) for s in sizes}
    labels_share = 1.0 if teachers is None else 1 - teachers.share
    seed, ema, micro = config.seed, config.optim.ema, config.optim.accumulate
    penalty = optim.create_penalty(config.optim, model.parameters)
    after = dict(switches or {})
    devices: Any = like.step.sharding.device_set
    (platform,) = {device.platform for device in devices}

    def loss_and_sums(
        trainable: Flat, rest: Flat, stats: Flat, part: Any, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Flat, Pairs]]:
        labels = part["targets"][0][0]
        outputs, stats = model.apply(
            rest | trainable,
            stats,
            part["images"],
            train=True,
            key=key,
            ages={name: labels[head.label] for name, head in model.heads.items()},
            epoch=jnp.floor(step / steps_per_epoch).astype(jnp.int32),
            pooled=teachers is not None and teachers.width > 0,
        )
        total = jnp.float32(0)
        sums: Pairs = {}
        for name, head in model.heads.items():
            loss = jnp.zeros_like(part["weight"])
            for labels, share in part["targets"]:
                # A mixed example has a term from each of its two labels, if that is known.
                term = share * head.known(labels) * head.loss(outputs[name], labels)
                if weights.PREFIX + name in labels:
                    counts_now = step >= after.get(name, 0)
                    term *= jnp.where(counts_now, labels[weights.PREFIX + name], 1.0)
                loss += term
            # Divided by the whole batch's count, so that micro-batches add up to the same loss.
            mean = jnp.sum(part["weight"] * loss) / part["counts"]["labels"][name]
            total += head.weight * labels_share * mean
            known = part["weight"] * head.known(part["targets"][0][0])
            sums[f"{name}/loss"] = jnp.stack([mean, 1.0 / micro])
            for metric, value in head.metrics(outputs[name], part["targets"][0][0]).items():
                sums[f"{name}/{metric}"] = jnp.stack([jnp.sum(known * value), jnp.sum(known)])
        taught, terms = part["taught"], {}
        if teachers is not None:
            terms = teachers.terms(model.heads, outputs, rest | trainable, taught)
        for name, (weight, loss) in terms.items():
            mean = jnp.sum(part["weight"] * taught[name].known * loss)
            mean /= part["counts"]["taught"][name]
            total += weight * mean
            sums[f"{name}/distill"] = jnp.stack([mean, 1.0 / micro])
        if penalty is not None:
            term = penalty(rest | trainable) / micro
            total += term
            sums["penalty"] = jnp.stack([term, 1.0 / micro])
        sums["loss"] = jnp.stack([total, 1.0 / micro])
        return total, (stats, sums)

    @lowerings.native_kernels(_uses_native(config, devices))
    @lowerings.platform(platform)
    @lowerings.batch_split(like.step.sharding.num_devices)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        batch = resident.gathered(batch)
        key_augment, key_dropout = keys(seed, state.step)
        images: jax.Array | Features
        if "features" in batch:  # of a frozen backbone; teachers then see no images
            images, mix, seen = Features.of_pooled(batch["features"]), None, {}
        else:
            arguments = (key_augment, batch["image"], batch["strength"])
            seen = {s: view(*arguments) for s, view in views.items()}
            images, mix = seen[size]
        taught: Mapping[str, Target] = {}
        if teachers is not None:
            taught = teachers.targets(batch, lambda s: seen[s][0], mix)
        whole = _targets(model, batch, mix, taught) | {"images": images}

        trainable, rest = optimizer.split(state.params)
        arrays = dict(trainable), dict(rest)

        def gradient(
            stats: Vectors, part: Any, key: jax.Array
        ) -> tuple[Vectors, tuple[Vectors, Pairs]]:
            # By the arrays, joined once: by the vectors, it would be a sum of padded arrays.
            grads, (new, sums) = jax.grad(loss_and_sums, has_aux=True)(
                *arrays, dict(stats), part, key, state.step
            )
            return trainable.pack(grads), (stats.pack(new), sums)

        if micro == 1:
            grads, (stats, sums) = gradient(state.batch_stats, whole, key_dropout)
        else:
            counts = {"counts": whole.pop("counts")}

            def add(carry: Any, part: Any) -> tuple[Any, Pairs]:
                grads, stats = carry
                i, rows = part
                part_key = jax.random.fold_in(key_dropout, i)
                more, (stats, sums) = gradient(stats, rows | counts, part_key)
                return (jax.tree.map(jnp.add, grads, more), stats), sums

            # A micro-batch takes every n-th row, so that no row changes its device.
            parts = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]).swapaxes(0, 1), whole)
            start = (jax.tree.map(jnp.zeros_like, trainable), state.batch_stats)
            (grads, stats), sums = jax.lax.scan(add, start, (jnp.arange(micro), parts))
            sums = jax.tree.map(lambda each: each.sum(axis=0), sums)

        updates, opt_state = optimizer.transform.update(
            grads, state.opt_state, trainable, step=state.step
        )
        params = rest | optax.apply_updates(trainable, updates)
        average = state.ema
        if average is not None:
            decay = optim.ema_decay(ema, state.step)
            new = {"params": params, "batch_stats": stats}
            mean = jax.tree.map(lambda a, n: decay * a + (1 - decay) * n, average, new)
            # A frozen array is its own average: a sum would only round it.
            average = mean | {"params": mean["params"] | optimizer.split(average["params"])[1]}
        sums["gradient_norm"] = jnp.stack([optax.global_norm(grads), 1.0])
        sums["learning_rate"] = jnp.stack([jnp.float32(optimizer.schedule(state.step)), 1.0])
        taken = TrainState(state.step + 1, params, stats, opt_state, average)
        if config.nonfinite != "skip":
            return taken, Sums.of(sums)
        finite = jnp.isfinite(sums["loss"][0]) & jnp.isfinite(sums["gradient_norm"][0])
        left = dataclasses.replace(state, step=state.step + 1)
        taken = jax.tree.map(lambda x, y: jnp.where(finite, x, y), taken, left)
        sums = {name: jnp.where(finite, value, 0) for name, value in sums.items()}
        return taken, Sums.of(sums | {"skipped": jnp.stack([1.0 - finite, 1.0])})

    def train_steps(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        shared = {name: batch[name] for name in SHARED if name in batch}
        each = {name: value for name, value in batch.items() if name not in shared}
        return jax.lax.scan(lambda state, one: train_step(state, shared | one), state, each)

    call = train_step if steps == 1 else train_steps
    # A profile distinguishes programs by name.
    call.__name__ += f"_{steps}" if steps > 1 else ""
    call.__name__ += f"_{size}px" if size != config.model.image_size else ""
    shardings = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(
        call,
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=_compiler_options(config, devices),
    )


def make_eval_step(config: Any, model: Model, *, losses: bool = False) -> jax.stages.Wrapped:
    """The jitted `eval_step(params, batch_stats, batch) -> {label: predictions}`.

    The arrays are dicts, or `Vectors` as in a train state.

    Years [B] for an age, probabilities [B, K] for classes; a head's extras as LABEL_EXTRA. If two
    heads share a label, predictions use the first. The images are resized to
    `image_sizes.of_evaluation(config)`.

    Args:
      losses: whether each head's loss comes too, as HEAD/loss [B], NaN where the batch's label is
        unknown.
    """
    size = image_sizes.of_evaluation(config)

    @lowerings.native_kernels(_uses_native(config, jax.devices()))
    def eval_step(
        params: Mapping[str, jax.Array], batch_stats: Mapping[str, jax.Array], batch: Batch
    ) -> dict[str, jax.Array]:
        images: jax.Array | Features
        if "features" in batch:
            images = Features.of_pooled(batch["features"])
        else:
            images = inputs.eval_images(batch["image"], size)
        outputs, _ = model.apply(params, batch_stats, images)
        predictions: dict[str, jax.Array] = {}
        for name, head in model.heads.items():
            predictions.setdefault(head.label, head.decode(outputs[name]))
            for extra, value in head.extras(outputs[name]).items():
                predictions.setdefault(f"{head.label}_{extra}", value)
            if losses:
                loss = head.loss(outputs[name], batch)
                predictions[f"{name}/loss"] = jnp.where(head.known(batch), loss, jnp.nan)
        return predictions

    return jax.jit(eval_step, compiler_options=_compiler_options(config, jax.devices()))


def _uses_native(config: Any, devices: Collection[Any]) -> bool:
    """Whether a step on these devices may use kernels built for this machine's CPU."""
    on_one_cpu = [device.platform for device in devices] == ["cpu"]
    return on_one_cpu and config.get("native", True)  # the config of an old run lacks the setting


def _compiler_options(config: Any, devices: Iterable[Any]) -> dict[str, bool]:
    """XLA's options for a step on these devices."""
    on_gpu = any(device.platform == "gpu" for device in devices)
    # The config of an old run lacks the setting.
    repeatable = on_gpu and config.get("deterministic", False)
    return {"xla_gpu_exclude_nondeterministic_ops": True} if repeatable else {}


def _targets(
    model: Model, batch: Batch, mix: augment_lib.Mix | None, taught: Mapping[str, Target]
) -> dict[str, Any]:
    """What the losses need from a batch: [(labels, share [B])], the teachers' targets, weights, and
    counts to divide by."""
    labels = {k: v for k, v in batch.items() if k in LABELS or k.startswith(weights.PREFIX)}
    weight = batch["weight"]
    if mix is None:
        targets = [(labels, jnp.ones_like(weight))]
    else:
        partner = {k: v[mix.partner] for k, v in labels.items()}
        targets = [(labels, mix.lam), (partner, 1 - mix.lam)]
    counts = {
        name: jnp.maximum(sum(jnp.sum(weight * s * head.known(y)) for y, s in targets), 1.0)
        for name, head in model.heads.items()
    }
    counted = {
        "labels": counts,
        "taught": {k: jnp.maximum(jnp.sum(weight * t.known), 1.0) for k, t in taught.items()},
    }
    return {"targets": targets, "taught": taught, "weight": weight, "counts": counted}
