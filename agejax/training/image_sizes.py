"""Image sizes, in pixels: in training, and in evaluation.

Smaller images at the start of a run take less time (progressive learning: Tan and Le 2021). Test
images somewhat larger than the training images compensate for the zoom of random crops (FixRes:
Touvron et al. 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from agejax.errors import UserError, is_number
from agejax.training.first_call import FirstCall

if TYPE_CHECKING:
    from agejax.logging.stopwatch import Stopwatch
    from agejax.logging.train_log import TrainLog
    from agejax.training.state import Model

KEY = "schedule.image_size"
MOST = 4096  # pixels


def of_evaluation(config: Any) -> int:
    """The edge of a run's images in evaluation and prediction, in pixels."""
    # The config of an old run may lack this setting.
    return int(config.eval.get("image_size", 0) or config.model.image_size)


def stages(config: Any) -> list[tuple[Mapping[str, float], int]]:
    """The image sizes at the start of a run: [(duration from the start, pixels)].

    Raises:
      UserError: config.schedule.image_size is not a list of such pairs.
    """
    found = []
    for pair in config.schedule.image_size:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise UserError(
                f"config.{KEY}: {pair!r}; list pairs of a duration and a size, such as "
                "(({'percent': 60}, 128),)"
            )
        duration, size = pair
        if not (is_number(size) and isinstance(size, int) and 1 <= size <= MOST):
            raise UserError(f"config.{KEY}: {size!r}; set a size to 1..{MOST} whole pixels")
        found.append((duration, size))
    return found


def check(config: Any, model: Model) -> None:
    """Raises `UserError` for a size in the config that the network cannot take."""
    sizes = [(f"config.{KEY}", size) for _, size in stages(config)]
    for where, size in [*sizes, ("config.eval.image_size", of_evaluation(config))]:
        if size != config.model.image_size:
            check_fits(model, size, f"{where}: {size} px", config.model.image_size)


def check_fits(model: Model, size: int, where: str, built_for: int) -> None:
    """Raises `UserError` if a network built for one image size cannot take another one."""
    arrays = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in model.shapes.items()}
    params = {name: arrays.pop(name) for name in model.parameters}
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    try:
        jax.eval_shape(model.apply, params, arrays, images)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:  # shapes that do not fit
        raise UserError(
            f"{where}: the network has dense layers over all pixels of its {built_for} px and "
            "takes no other size; leave this setting out, or choose a network that pools its maps"
        ) from error


class TrainSteps:
    """The train steps of a run, chosen by the image size of a step and by the steps of a call.

    Args:
      config: the run's.
      to_steps: (duration, key) -> its number of steps.
      make: image_size=pixels, steps=number -> the jitted call of so many train steps.
      clock: takes the time of each one's first call as "compile".

    Attributes:
      ends: the steps at which the image size changes.

    Raises:
      UserError: durations that do not increase.
    """

    def __init__(
        self,
        config: Any,
        to_steps: Callable[[Mapping[str, float], str], int],
        make: Callable[..., jax.stages.Wrapped],
        clock: Stopwatch,
    ) -> None:
        self._stages = [(to_steps(duration, KEY), size) for duration, size in stages(config)]
        self.ends = tuple(end for end, _ in self._stages)
        if any(end <= before for before, end in itertools.pairwise((0, *self.ends))):
            raise UserError(
                f"config.{KEY}: the durations come to {', '.join(map(str, self.ends))} steps from "
                "the start of the run; each must be longer than the one before"
            )
        self._final = config.model.image_size
        # All sizes now, so that errors in the config are found before anything is written.
        sizes = {self._final, *(size for _, size in self._stages)}
        self._made = {
            (size, steps): FirstCall(
                make(image_size=size, steps=steps),
                ("the train step" if steps == 1 else f"{steps} train steps") + f" at {size} px",
                clock,
            )
            for size in sorted(sizes)
            for steps in sorted({1, config.steps_per_call}, reverse=True)
        }
        self._size: int | None = None

    def size(self, step: int) -> int:
        """The image size of the step from `step` to `step + 1`."""
        return next((size for end, size in self._stages if step < end), self._final)

    @property
    def compiled(self) -> list[jax.stages.Compiled]:
        """The programs that were called so far."""
        return [each.compiled() for each in self._made.values() if each.called]

    @property
    def largest(self) -> FirstCall:
        """The function of one step on the largest images."""
        return self._made[max(size for size, _ in self._made), 1]

    def at(self, step: int, count: int, log: TrainLog) -> FirstCall:
        """The function of `count` steps from `step` on; a new size is reported in the log."""
        size = self.size(step)
        if size != self._size and self._stages:
            log.note(step, f"images of {size} px from here on")
        self._size = size
        return self._made[size, count]
