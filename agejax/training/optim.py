"""Schedules, optimizers, and ordered (regex, value) groups over parameter paths."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax

from agejax.errors import UserError, is_number
from agejax.training.vectors import Vectors

Steps = Callable[[Mapping[str, float], str], int]
Flat = dict[str, jax.Array]  # "backbone/features/0/0/kernel" -> array


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters are updated.

    Attributes:
      transform: of optax, for the trainable parameters only; its update needs step=, int32 [].
      schedule: step -> learning rate.
      rates: path of every parameter -> its (learning rate's multiplier, decay); those with equal
        ones are updated alike. None: it never changes.
    """

    transform: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    rates: Mapping[str, tuple[float, float] | None]

    @property
    def frozen(self) -> frozenset[str]:
        """Paths of the parameters that never change."""
        return frozenset(name for name, rates in self.rates.items() if rates is None)

    def split(self, params: Vectors) -> tuple[Vectors, Vectors]:
        """(trainable, frozen) parameters."""
        return params.split(self.frozen)


def lr_scale(config: Any) -> float:
    """The factor on config.schedule.lr for another batch size than the one it was tuned for.

    Linear for sgd (Goyal et al. 2017), a square root for adam, whose steps do not grow with the
    gradient (Malladi et al. 2022). The batch is the global one, on any number of devices.
    """
    found_for = config.schedule.lr_batch_size
    times = config.data.batch_size / found_for if found_for else 1.0
    return float(times if config.optim.name == "sgd" else times**0.5)


def create_schedule(
    config: Any, total_steps: int, to_steps: Steps, scale: float = 1.0
) -> optax.Schedule:
    """config.schedule -> learning rate of a step.

    one_cycle (Smith & Topin 2018): a cosine from lr / div up to lr, reached exactly at the step
    where the warm-up ends, then a cosine down to lr / div / final_div. It changes only the learning
    rate; torch's OneCycleLR also changes the momentum the other way by default.

    Args:
      total_steps: of the whole run.
      to_steps: (duration, config key) -> steps.
      scale: factor on config.lr, from `lr_scale`.
    """
    lr = scale * config.lr

    def warmup() -> int:
        steps = to_steps(config.warmup, "schedule.warmup")
        if not 0 <= steps < max(total_steps, 2):
            raise UserError(
                f"config.schedule.warmup: {steps} steps do not fit a run of {total_steps}"
            )
        return steps

    match config.kind:
        case "constant":
            return optax.constant_schedule(lr)
        case "exponential":
            every = to_steps(config.decay_every, "schedule.decay_every")
            if not every:
                raise UserError("config.schedule.decay_every: it is 0; set it above 0")
            return optax.exponential_decay(lr, every, config.decay_rate)
        case "warmup_cosine":
            rise = warmup()
            # A run of one step rises only; optax needs a step of the fall too.
            end = max(total_steps, rise + 1)
            return optax.warmup_cosine_decay_schedule(0.0, lr, rise, end, lr / config.final_div)
        case "one_cycle":
            # optax.cosine_onecycle_schedule takes the warm-up as a share, and int(share * total)
            # is sometimes one step early, for example for 29 of 100.
            end = 1 / (config.div * config.final_div)
            return optax.piecewise_interpolate_schedule(
                "cosine", lr / config.div, {warmup(): config.div, total_steps: end}
            )
    raise ValueError(config.kind)


def match_groups(
    names: Iterable[str], groups: Sequence[tuple[str, Any]], where: str
) -> dict[str, Any]:
    """For each name, the value of the first group whose regex matches the whole name.

    Raises:
      UserError: an invalid regex, or names that no group covers (lists all).
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in groups]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"config.{where}: not a list of (regex, value): {error}") from error
    for regex, value in groups:
        if not (is_number(value) or (value is None and where.endswith("lr_multipliers"))):
            raise UserError(f"config.{where}: {value!r} of {regex!r} is not a number")
    values, uncovered = {}, []
    for name in names:
        for pattern, value in compiled:
            if pattern.fullmatch(name):
                values[name] = value
                break
        else:
            uncovered.append(name)
    if uncovered:
        raise UserError(
            f"config.{where}: no group covers {', '.join(uncovered)}; end the list with ('.*', …)"
        )
    return values


def create_optimizer(
    config: Any,
    schedule: optax.Schedule,
    parameters: Mapping[str, int],
    beside: Sequence[str] = (),
) -> Optimizer:
    """config.optim -> the optimizer.

    Decay is decoupled (Loshchilov & Hutter 2019): each step subtracts lr · multiplier · decay · p.
    A layer's learning rate is also multiplied by layer_decay^height (Clark et al. 2020, ELECTRA;
    Bao et al. 2022, BEiT).

    Args:
      parameters: flat name of every parameter of the network -> `backbone.heights`.
      beside: flat names of other parameters, which have the full rate and decay, such as the map to
        a teacher's features.
    """
    lr = match_groups(parameters, config.lr_multipliers, "optim.lr_multipliers")
    layer_decay = config.get("layer_decay", 1.0)  # older runs lack it
    lr = {k: v if v is None else v * layer_decay ** parameters[k] for k, v in lr.items()}
    if all(value is None for value in lr.values()):
        raise UserError("config.optim.lr_multipliers freezes every parameter: nothing to train")
    decay = match_groups(parameters, config.decay_multipliers, "optim.decay_multipliers")
    lr, decay = ({**each, **dict.fromkeys(beside, 1.0)} for each in (lr, decay))
    decay = {name: config.weight_decay * value for name, value in decay.items()}

    match config.name:
        case "adamw" | "adam":
            direction = optax.scale_by_adam(config.b1, config.b2, config.eps)
        case "sgd":
            direction = optax.trace(config.b1) if config.b1 else optax.identity()
        case _:
            raise ValueError(config.name)
    if config.weight_decay and config.name == "adam":
        raise UserError("config.optim.weight_decay: adam has none here; use adamw")

    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    chain.append(direction)
    if config.weight_decay:
        chain.append(_add_decay(decay))
    if any(value not in (None, 1.0) for value in lr.values()):
        chain.append(_scale(lr))
    chain.append(_scale_by_schedule(schedule))
    rates = {name: None if m is None else (m, decay[name]) for name, m in lr.items()}
    return Optimizer(optax.chain(*chain), schedule, rates)


def create_penalty(config: Any, names: Iterable[str]) -> Callable[[Flat], jax.Array] | None:
    """config.optim.l1 and .l2 -> (parameters -> penalty added to the loss, []); None for none.

    The sum of l1 · |p| + l2 / 2 · p² over parameters, with rates of the first group that matches, 0
    if none does. Unlike decay, a penalty goes through the optimizer's moments.
    """
    groups = {key: [*config[key], (".*", 0.0)] for key in ("l1", "l2")}
    rates = {key: match_groups(names, value, f"optim.{key}") for key, value in groups.items()}
    l1, l2 = ({k: v for k, v in rate.items() if v} for rate in rates.values())
    if not l1 and not l2:
        return None

    def penalty(params: Flat) -> jax.Array:
        total = sum(rate * jax.numpy.abs(params[k]).sum() for k, rate in l1.items())
        squares = sum(rate * jax.numpy.square(params[k]).sum() for k, rate in l2.items())
        return jax.numpy.asarray(total + 0.5 * squares, jax.numpy.float32)

    return penalty


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """The decay of the parameter average at a step; early on (1+t)/(10+t), as a warm-up."""
    return jax.numpy.minimum(decay, (1.0 + step) / (10.0 + step))


def _add_decay(rates: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: Vectors, params: Vectors) -> Vectors:
        decayed: Vectors = jax.tree.map(
            lambda u, rate, p: u + rate * p, updates, updates.spread(rates), params
        )
        return decayed

    return optax.stateless(update)


def _scale(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(operator.mul, updates, updates.spread(multipliers))
    )


def _scale_by_schedule(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the learning rate of the run's step.

    optax.scale_by_schedule counts its updates itself, and so falls behind where a run skips a step.
    The state is the same, so that runs of older versions go on.
    """

    def init(params: Vectors) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jax.numpy.zeros([], jax.numpy.int32))

    def update(
        updates: Vectors, state: optax.OptState, params: Vectors | None = None, *,
        step: jax.Array, **_: Any,
    ) -> tuple[Vectors, optax.OptState]:  # fmt: skip
        scaled: Vectors = jax.tree.map(lambda u: u * -schedule(step), updates)
        return scaled, optax.ScaleByScheduleState(jax.numpy.asarray(step + 1, jax.numpy.int32))

    return optax.GradientTransformationExtraArgs(init, update)
