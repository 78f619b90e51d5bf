"""A run opened to be used: its config, facts and network with the best weights. It is only read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from agejax import heads as heads_lib
from agejax.config import default
from agejax.errors import UserError
from agejax.runs import box, run_folder
from agejax.settings import to_json
from agejax.training import feature_map, image_sizes, optim, sharding, vectors
from agejax.training import state as state_lib
from agejax.training.checkpoint import Checkpoints, again_if_vanished
from agejax.training.prediction import predict_batches
from agejax.training.step import make_eval_step

if TYPE_CHECKING:
    from agejax.data.pipeline import HostBatch


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, ready to predict."""

    workdir: pathlib.Path
    config: ml_collections.ConfigDict
    facts: heads_lib.Facts
    heads: Mapping[str, heads_lib.Head]
    fingerprint: str  # of the data it was trained on
    step: int
    mesh: Mesh
    model: state_lib.Model | None  # None where several networks, or none, say what it predicts
    params: Any  # of an ensemble: of each member
    batch_stats: Any
    eval_step: Callable[..., dict[str, jax.Array]]

    @classmethod
    def open(cls, workdir: str | pathlib.Path, devices: int = 0, step: int | None = None) -> Run:
        """Opens a checkpoint of a run, or a released model. The folder is only read.

        So the run may be training there.

        Args:
          workdir: as `box.locate` takes it.
          devices: how many to use; 0: all.
          step: which checkpoint; None: the best.

        Raises:
          UserError: no run there, no checkpoint yet, none of that step, or a damaged one.
        """
        workdir = box.locate(workdir)
        config = run_folder.opened_config(workdir)
        if config is None:
            if (workdir / "config.json").exists():
                raise UserError(
                    f"--workdir: {workdir} holds no checkpoint yet; wait until the run has saved "
                    "one"
                )
            which = "train one first"
            if box.is_ensemble(workdir):
                which = "this takes one run, not an ensemble"
            elif exported := sorted(workdir.glob("model.*export")) + sorted(workdir.glob("*.onnx")):
                which = f"predict takes an exported model by its file: --workdir={exported[0]}"
            raise UserError(f"--workdir: {workdir} holds no run (no config.json); {which}")
        mesh = sharding.create_mesh(devices, 1)
        if box.is_release(workdir):
            return cls._released(workdir, config, mesh, step)
        checkpoints = Checkpoints(workdir / "checkpoints", config.eval.best_mode)

        def chosen() -> int:
            there = checkpoints.steps
            which = checkpoints.best if step is None else step
            if which is None or which not in there:
                raise UserError(
                    f"--workdir: {workdir} has no checkpoint of step {which}; it has "
                    f"{', '.join(map(str, there))}"
                )
            return which

        # All checkpoints of a run have the same facts, so what follows from them is built once.
        meta = again_if_vanished(lambda: checkpoints.meta(chosen()))
        facts = heads_lib.Facts(**meta["facts"])
        heads = heads_lib.create(config.heads, facts)
        model, initialise = state_lib.create_model(config, heads)
        taught = meta.get("distill", {}).get("features", 0)
        initialise = feature_map.added(initialise, model.feature_dim, taught)
        optimizer = optim.create_optimizer(
            config.optim,
            optax.constant_schedule(0.0),
            model.parameters,
            feature_map.names(taught),
        )
        like = vectors.unpacked(state_lib.abstract(config, initialise, optimizer, mesh))
        state, meta = again_if_vanished(lambda: checkpoints.restore(like, chosen()))
        params, batch_stats = state.averaged()
        own = {name: params[name] for name in model.parameters}  # without the feature map
        return cls(
            workdir, config, facts, heads, meta["fingerprint"], int(state.step), mesh, model,
            own, batch_stats, make_eval_step(config, model),
        )  # fmt: skip

    @classmethod
    def _released(
        cls,
        workdir: pathlib.Path,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        step: int | None,
    ) -> Run:
        """Opens a released model."""
        release = box.read(workdir)
        if step not in (None, release["step"]):
            raise UserError(f"--workdir: {workdir} has step {release['step']} only, not {step}")
        facts = heads_lib.Facts(**release["facts"])
        heads = heads_lib.create(config.heads, facts)
        model, _ = state_lib.create_model(config, heads)
        arrays = jax.device_put(box.arrays(workdir, model.shapes), sharding.replicated(mesh))
        params = {name: arrays.pop(name) for name in model.parameters}
        return cls(
            workdir, config, facts, heads, release["fingerprint"], release["step"], mesh, model,
            params, arrays, make_eval_step(config, model),
        )  # fmt: skip

    @property
    def results(self) -> pathlib.Path:
        """The folder under which commands write what they find out about the run, by default.

        Its own; for a released model, which is only read, one in the current folder.
        """
        released = box.is_release(self.workdir)
        return pathlib.Path("runs") / f"released-{self.workdir.name}" if released else self.workdir

    @property
    def classes(self) -> dict[str, Sequence[str]]:
        """Target -> the names of its classes, also of those that heads derive, such as buckets."""
        nothing = {head.label: np.zeros(0) for head in self.heads.values()}
        return heads_lib.derive(self.heads, nothing, self.facts.label_names)[1]

    @property
    def batch_size(self) -> int:
        """Images that it predicts at once: config.eval.batch_size, or just above.

        It was a multiple of the devices that trained the run; there may be another number here.
        """
        devices = self.mesh.size
        return -(-int(self.config.eval.batch_size) // devices) * devices

    def has_splits(self, fingerprint: str, config: ml_collections.ConfigDict) -> bool:
        """Whether it was trained on this data, split as this config does."""
        same = same_splits(self.config.data.split, config.data.split)
        return same and self.fingerprint == fingerprint

    def scored_at(self, image_size: int) -> Run:
        """The run with images of another size, in pixels, than its config says.

        Raises:
          UserError: it is no single network, or its network cannot take that size.
        """
        if self.model is None:
            raise UserError(f"--image_size: {self.workdir} is not a single network; name one run")
        where, built_for = f"--image_size={image_size}", self.config.model.image_size
        image_sizes.check_fits(self.model, image_size, where, built_for)
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.eval.image_size = image_size
        return dataclasses.replace(
            self, config=config, eval_step=make_eval_step(config, self.model)
        )

    def predict(self, batches: Iterable[HostBatch]) -> dict[str, np.ndarray]:
        """{label: years [N] or probabilities [N, K]} of every row with weight > 0."""
        return predict_batches(
            self.eval_step, self.params, self.batch_stats, batches, self.mesh
        ) or {}  # fmt: skip


def same_splits(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two config.data.split make the same splits of the same data."""
    # A run older than a setting was split as its default does.
    written = [
        to_json(default().data.split) | to_json(ml_collections.ConfigDict(s)) for s in (one, other)
    ]
    return written[0] == written[1]
