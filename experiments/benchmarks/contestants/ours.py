"""agejax as it is, or with XLA's plain convolutions and batch norm, like any Flax model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agejax import heads as heads_lib
from agejax.config import default, replaced
from agejax.data import pipeline, sampling
from agejax.data.sources import Source
from agejax.logging.loggers import Loggers
from agejax.logging.stopwatch import Stopwatch
from agejax.logging.tensorboard import TensorBoard
from agejax.logging.train_log import TrainLog
from agejax.models import lowerings, pretrained, vit
from agejax.models.lowerings import attention, depthwise
from agejax.models.lowerings import conv as conv_lib
from agejax.training import optim, resident, sharding, vectors
from agejax.training import state as state_lib
from agejax.training import step as step_lib
from agejax.training.calls import Calls, Feed
from experiments.benchmarks.contestants import case as case_lib
from experiments.benchmarks.contestants.case import Case, Data, Turn, timed

LIGHT = {
    "flip": case_lib.FLIP, "crop": case_lib.CROP, "rotate": case_lib.DEGREES,
    "brightness": case_lib.JITTER, "contrast": case_lib.JITTER, "saturation": case_lib.JITTER,
}  # fmt: skip
ENDLESS = 10**6  # steps of a run that never finishes


def cudnn_attention(qkv: jax.Array) -> jax.Array:
    """`attention.attention` by cuDNN's fused kernels, which only a GPU has."""
    return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), implementation="cudnn")


# Forms of operations to compare with the one in use: name -> where it is called, as what, the form.
FORMS = {
    "attention by cuDNN": (vit, "attention", cudnn_attention),
    "attention by heads": (vit, "attention", attention.by_heads),
    "depthwise by taps": (conv_lib, "depthwise_conv", depthwise.by_taps),
}


@contextlib.contextmanager
def using(forms: Sequence[str]) -> Iterator[None]:
    """While active, tracing uses these of `FORMS`."""
    with contextlib.ExitStack() as stack:
        for module, name, form in (FORMS[each] for each in forms):
            stack.enter_context(mock.patch.object(module, name, form))
        yield


def make_config(case: Case, **augment: Any) -> Any:
    """A config of the network with the three heads of configs/mobilenet_v3_utk.py."""
    config = default()
    config.model.name, config.model.dtype = case.network, case.dtype
    config.model.image_size, config.data.batch_size = case.image_size, case.batch
    config.model.dropout, config.optim.clip_norm = case_lib.DROPOUT, case_lib.CLIP_NORM
    config.heads.age = {"kind": "regression"}
    config.heads.gender = {"kind": "binary", "weight": case_lib.SHARE}
    config.heads.ethnicity = {"kind": "categorical", "weight": case_lib.SHARE}
    config.augment.update(augment)
    return pretrained.settle(config)


def as_source(images: np.ndarray, labels: dict[str, np.ndarray]) -> Source:
    """A source of images uint8 [N, S, S, 3] and their age, gender and ethnicity."""
    n = len(images)
    unknown = np.full(n, np.nan, np.float32)
    labels = labels | {"apparent_age": unknown, "apparent_age_std": unknown}
    names = {"gender": ("male", "female"), "ethnicity": tuple("abcde"[: case_lib.CLASSES])}
    ids = np.array([f"{i:06d}" for i in range(n)])
    return Source("benchmark", images, labels, ids, np.arange(n), names, "benchmark", ())


def read_ahead(source: Source, batch: int) -> pipeline.TrainBatches:
    """Batches drawn uniformly from the whole source."""
    rows = np.arange(len(source.ids))
    return pipeline.TrainBatches(source, rows, sampling.Sampler(None, len(rows), 0), batch)


class Step:
    """A jitted step with its own state, on a batch on the device."""

    def __init__(self, config: Any, source: Source, plain: bool = False) -> None:
        self.config = config
        facts = heads_lib.Facts.of(source.labels, source.label_names)
        self.mesh = sharding.create_mesh(config.sharding.devices or 1, 1)
        with lowerings.plain() if plain else lowerings.by_platform():
            self.model, initialise = state_lib.create_model(
                config, heads_lib.create(config.heads, facts)
            )
            self.optimizer = optim.create_optimizer(
                config.optim,
                optax.constant_schedule(case_lib.LEARNING_RATE),
                self.model.parameters,
            )
            self.like = state_lib.abstract(config, initialise, self.optimizer, self.mesh)
            self.state = state_lib.create(config, initialise, self.optimizer, self.mesh)
            rows = np.arange(config.data.batch_size)
            self.batch = sharding.put_batch(pipeline.gather(source, rows), self.mesh)
            self.step = self.make_step()
            self.turn(1)  # compiles

    def make_step(self) -> Any:
        """The jitted step."""
        raise NotImplementedError

    def turn(self, steps: int) -> float:
        """Seconds per step, over `steps` steps."""
        raise NotImplementedError


class TrainStep(Step):
    """The train step."""

    def make_step(self) -> Any:
        return step_lib.make_train_step(
            self.config, self.model, self.optimizer, self.like, steps=self.config.steps_per_call
        )

    def turn(self, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / steps

    def cost(self) -> dict[str, float]:
        """{"flops": of a step of this model, "bytes": read and written by the compiled step}.

        Floating-point operations are those of the plain network before XLA optimises it: our
        lowerings on CPUs, and cuDNN's calls on GPUs, hide or add some. The bytes leave out those
        moved by such calls and by later iterations of loops.
        """
        compiled = self.step.lower(self.state, self.batch).compile().cost_analysis()
        # XLA reports costs before compilation only for a CPU.
        on_cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
        state, batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_cpu),
            (self.like, self.batch),
        )
        with lowerings.plain():
            step = step_lib.make_train_step(self.config, self.model, self.optimizer, state)
            traced = step.lower(state, batch).cost_analysis()
        return {"flops": traced["flops"], "bytes": compiled["bytes accessed"]}


class EvalStep(Step):
    """The forward pass in inference mode, including the decoding of years and probabilities."""

    def make_step(self) -> Any:
        return step_lib.make_eval_step(self.config, self.model)

    def turn(self, steps: int) -> float:
        said: Any = None
        start = time.perf_counter()
        for _ in range(steps):
            said = self.step(*self.state.averaged(), self.batch)
        jax.block_until_ready(said)
        return (time.perf_counter() - start) / steps


class Loop(TrainStep):
    """The train step as `train` runs it: batches from the cache or on the device, logging,
    TensorBoard."""

    def __init__(self, config: Any, source: Source, folder: pathlib.Path) -> None:
        self.batches = read_ahead(source, config.data.batch_size)
        self.shared: dict[str, Any] = {}
        self.folder, self.turns = folder, 0
        super().__init__(config, source)

    def make_step(self) -> Any:
        if resident.wanted(self.config.data.resident, self.batches, self.mesh):
            self.shared[resident.TABLE] = resident.put(self.batches, self.mesh)
            self.batches = dataclasses.replace(self.batches, resident=True)
        return super().make_step()

    def feed(self, clock: Stopwatch) -> Feed:
        """Batches of calls without an end."""
        calls = Calls(self.config.steps_per_call, (), (ENDLESS,))
        feed = Feed(self.batches, calls, 0, ENDLESS, 0, self.mesh, self.shared, clock)
        feed.take()  # starts the readers
        return feed

    def turn(self, steps: int) -> float:
        """Seconds per step, over at least `steps` steps in whole calls."""
        clock, done = Stopwatch(), 0
        feed = self.feed(clock)
        self.turns += 1
        folder = self.folder / f"turn{self.turns}"
        folder.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            log = TrainLog(
                folder,
                start_step=0,
                total_steps=ENDLESS,
                batch_size=self.batches.batch_size,
                steps_per_epoch=1e3,
                clock=clock,
                loggers=Loggers({"tensorboard": TensorBoard(folder, 0)}),
            )
        with log, clock("step"):
            start = time.perf_counter()
            while done < steps:
                count, batch = feed.take()
                self.state, sums = self.step(self.state, batch)
                done += count
                log.add(done, sums)
                feed.ahead(sums.pairs)
                if done // 5 > (done - count) // 5:
                    log.report()
            log.flush()
            jax.block_until_ready(self.state)
            seconds = (time.perf_counter() - start) / done
        feed.close()
        return seconds

    def host_milliseconds(self, calls: int = 20) -> float:
        """Median milliseconds per step until the host is free again after it has sent off a call.

        The device is idle before each call. The host takes its batch, dispatches its steps, stores
        their sums and puts the next batch on the device.
        """
        feed = self.feed(Stopwatch())
        milliseconds, window = [], []
        for _ in range(calls):
            jax.block_until_ready(self.state)
            start = time.perf_counter()
            count, batch = feed.take()
            self.state, sums = self.step(self.state, batch)
            window.append(sums)
            feed.ahead(sums.pairs)
            milliseconds.append(1e3 * (time.perf_counter() - start) / count)
        feed.close()
        return statistics.median(milliseconds)


class Ours(case_lib.Contestant):
    """agejax in `experiments.benchmarks.peers` and `experiments.benchmarks.gpu`.

    Args:
      plain: use XLA's own operations.
      settings: of the config, by their dotted paths, in place of those of `make_config`.
      forms: of `FORMS`, in place of those in use.
    """

    def __init__(
        self,
        case: Case,
        data: Data,
        plain: bool = False,
        settings: Mapping[str, Any] | None = None,
        forms: Sequence[str] = (),
    ) -> None:
        super().__init__(case, data)
        self.plain, self.settings, self.forms = plain, settings or {}, forms
        self.trained: TrainStep | None = None
        sharding.start()

    def config(self, **augment: Any) -> Any:
        """The config of the case with this contestant's settings."""
        return replaced(make_config(self.case, **augment), self.settings)

    def source(self, size: int) -> Source:
        """The source of faces at this edge, pixels."""
        return as_source(self.data.images(size), self.data.labels())

    def train(self, light: bool = False) -> Turn:
        """The train step on a batch on the device; `light`: with augmentation."""
        source = self.source(self.data.edge if light else self.case.image_size)
        with using(self.forms):
            trained = TrainStep(self.config(**(LIGHT if light else {})), source, self.plain)
        self.trained = trained
        return trained.turn

    def evaluation(self) -> Turn:
        source = self.source(self.case.image_size)
        with using(self.forms):
            return EvalStep(self.config(), source, self.plain).turn

    def loop(self) -> Turn:
        folder = tempfile.mkdtemp(dir=self.data.folder)
        source = self.source(self.data.edge)
        with using(self.forms):
            self.trained = Loop(self.config(**LIGHT), source, pathlib.Path(folder))
        return self.trained.turn

    def input(self, workers: int) -> Turn:
        """Batches from the decoded cache; without workers, two threads read."""
        batches = read_ahead(self.source(self.case.image_size), self.case.batch)
        read = batches.iterate(0, ENDLESS, workers)
        next(read)
        # Each worker reads ahead in threads, with one more batch in its queue and one in hand.
        ahead = (pipeline.READ_AHEAD + 2) * workers or pipeline.READ_AHEAD
        return timed(functools.partial(next, read), ahead=ahead)

    def cost(self) -> dict[str, float]:
        """`TrainStep.cost` of the network trained last."""
        assert self.trained is not None
        return self.trained.cost()

    def host(self) -> dict[str, float]:
        """{"host_milliseconds": of a step of the loop prepared last}."""
        assert isinstance(self.trained, Loop)
        return {"host_milliseconds": self.trained.host_milliseconds()}

    def save(self) -> dict[str, str]:
        """{"file": the state of the network trained last, every array of it (.npz)}."""
        assert self.trained is not None
        named = vectors.unpacked(jax.device_get(self.trained.state))
        leaves, _ = jax.tree_util.tree_flatten_with_path(named)
        file = pathlib.Path(tempfile.mkdtemp(dir=self.data.folder)) / "state.npz"
        np.savez(file, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
        return {"file": str(file)}

    def facts(self) -> dict[str, Any]:
        assert self.trained is not None
        return {
            "parameters": sum(x.size for x in jax.tree.leaves(self.trained.state.params)),
            "versions": {name: metadata.version(name) for name in ("jax", "flax", "optax")},
        }

    def device_bytes(self) -> int | None:
        statistics = jax.devices()[0].memory_stats()
        return statistics and statistics["peak_bytes_in_use"]


create = Ours
