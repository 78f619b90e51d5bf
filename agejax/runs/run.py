"""A run's folder opened for use: its config, facts and network with the best weights."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from agejax import files
from agejax import heads as heads_lib
from agejax.config import default, from_json
from agejax.errors import NotFiniteError, UserError, is_number
from agejax.runs import box
from agejax.settings import to_json
from agejax.training import feature_map, image_sizes, optim, sharding
from agejax.training import state as state_lib
from agejax.training.checkpoint import Checkpoints, again_if_vanished
from agejax.training.prediction import predict_batches
from agejax.training.step import make_eval_step

if TYPE_CHECKING:
    from agejax.data.pipeline import HostBatch

# What a restart may change: where the data lies, how the work is spread, when the run looks at
# itself and saves itself, and what it does about a loss that is not finite. None of these changes
# what a step computes.
FREE_KEYS = re.compile(
    r"data\.(source|cache_dir|workers|mixture\.[^.]+\.source)|log_every\..*|checkpoint\.every\..*|"
    r"eval\.(every\..*|batch_size|image_size|patience|final_split)|nonfinite|"
    r"model\.(pretrained|remat)|watchdog|profile|sharding\.(devices|fsdp)"
)

SKIPPED = "skipped_steps.json"
WRITTEN = ("config.json", "metrics.jsonl", "summary.json", SKIPPED)  # by a run, in its folder
MAX_IN_A_ROW = 3


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
        config = opened_config(workdir)
        if config is None:
            if (workdir / "config.json").exists():
                raise UserError(
                    f"--workdir: {workdir} holds no checkpoint yet; let the run train on"
                )
            ensemble = "; this takes one run, not an ensemble"
            which = ensemble if (workdir / "ensemble.json").exists() else "; train one first"
            raise UserError(f"--workdir: {workdir} holds no run (no config.json){which}")
        mesh = sharding.create_mesh(devices, 1)
        if box.is_release(workdir):
            return cls._released(workdir, config, mesh, step)
        checkpoints = Checkpoints(workdir / "checkpoints", config.eval.best_mode)

        def chosen() -> int:
            there = checkpoints.steps
            which = checkpoints.best if step is None else step
            if which is None or which not in there:
                raise UserError(
                    f"--workdir: {workdir} has no checkpoint of step {which}; "
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
        like = state_lib.abstract(config, initialise, optimizer, mesh)
        state, meta = again_if_vanished(lambda: checkpoints.restore(like, chosen()))
        params, batch_stats = state.averaged()
        params = {name: params[name] for name in model.parameters}  # without the feature map
        return cls(
            workdir, config, facts, heads, meta["fingerprint"], int(state.step), mesh, model,
            params, batch_stats, make_eval_step(config, model),
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
            raise UserError(f"--image_size: {self.workdir} is no single network; name one run")
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


def check_workdir(workdir: pathlib.Path) -> None:
    """Raises `UserError` where a run cannot write its files to `workdir`. Makes nothing."""
    files.check_folder(workdir, "--workdir")
    if box.is_release(workdir):
        raise UserError(
            f"--workdir: {workdir} holds a released model, which is only read; use another path, "
            "and --config.model.pretrained to start from it"
        )
    for name in WRITTEN:
        if (workdir / name).is_dir():
            raise UserError(
                f"--workdir: {workdir / name} is a folder, where a run writes a file; remove it, "
                "or use another path"
            )


def read_config(
    workdir: pathlib.Path, remedy: str = "use another --workdir"
) -> ml_collections.ConfigDict | None:
    """The config a run was started with, None where there is none.

    Args:
      remedy: what to do where it is damaged.

    Raises:
      UserError: it is damaged, or of a later version.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    stored = files.read_json(path, dict, remedy)
    try:
        return _as_written(from_json(stored))
    except UserError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error


def _as_written(stored: Any) -> ml_collections.ConfigDict:
    """A stored config, with the defaults of its time where its heads leave options out."""
    config = ml_collections.ConfigDict(stored)
    heads_lib.write_out(config.get("heads") or {}, former=True)
    return config


def stored_config(workdir: pathlib.Path) -> ml_collections.ConfigDict | None:
    """The config of the newest checkpoint: what a run there goes on with.

    None where nothing is saved yet: a run that was refused, or stopped, before its first checkpoint
    binds nobody. Not config.json, which may be lost, or of such a run.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    steps = checkpoints.steps
    for step in reversed(steps):
        # A step may be damaged, or be deleted just now: the one before it has the same config.
        with contextlib.suppress(UserError):
            return _as_written(checkpoints.meta(step)["config"])
    return read_config(workdir) if steps else None


def opened_config(workdir: pathlib.Path) -> ml_collections.ConfigDict | None:
    """The config to open a run with; None where there is neither a checkpoint nor a release.

    config.json names the place of the data, and what else may change; for the rest it must agree
    with the checkpoints, which keep theirs under a digest. Where it is lost, theirs serves.

    Raises:
      UserError: config.json is damaged, or differs from the checkpoints' or the released one.
    """
    if box.is_release(workdir):
        box.read(workdir)
        return read_config(workdir, box.REMEDY)
    kept = stored_config(workdir)
    if kept is None:
        return None
    written = read_config(workdir, "remove it: the checkpoint has the config")
    if written is None:
        return kept
    if changed := _changed(kept, written):
        raise UserError(
            f"{workdir / 'config.json'} is not as its checkpoint was trained: "
            f"{', '.join(changed)}; undo these, or remove the file: the checkpoint has the config"
        )
    return written


def check_same_config(
    workdir: pathlib.Path,
    stored: ml_collections.ConfigDict | None,
    config: ml_collections.ConfigDict,
) -> None:
    """Raises `UserError` where `config` computes something else than `stored`, of the run there."""
    if stored is None:
        return
    if changed := _changed(stored, config):
        raise UserError(
            f"{workdir} was trained by another config: {', '.join(changed)}; undo these to go on "
            "with this run, or start a new one from its weights: "
            f"--config.model.pretrained={workdir} --workdir=ANOTHER"
        )


def _changed(old_config: Any, new_config: Any) -> list[str]:
    """The settings ("key (old -> new)") that differ and decide what is computed."""
    old, new = _leaves(to_json(old_config)), _leaves(to_json(new_config))
    # A setting that came to be since then did what its default does.
    since = {k: v for k, v in _leaves(to_json(default())).items() if k in new and k not in old}
    old |= since
    return [
        f"{key} ({json.dumps(old.get(key))} -> {json.dumps(new.get(key))})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not FREE_KEYS.fullmatch(key)
    ]


def skipped_steps(workdir: pathlib.Path) -> set[int]:
    """The steps, 1-based, that a run has rolled back from and passes over.

    Raises:
      UserError: the file is damaged.
    """
    path, remedy = workdir / SKIPPED, "remove it to try these steps again"
    if not path.exists():
        return set()
    steps = files.read_json(path, list, remedy)
    if not all(is_number(step) and isinstance(step, int) and step > 0 for step in steps):
        raise UserError(f"{path} is not a list of steps; {remedy}")
    return set(steps)


def roll_back(workdir: pathlib.Path, error: NotFiniteError) -> None:
    """Has the run pass over the step of `error` when it goes on from its last checkpoint.

    Raises:
      NotFiniteError: it would be one of too many in a row: then it is not the steps that are bad.
    """
    skipped = skipped_steps(workdir) | {error.step}
    if skipped.issuperset(range(error.step - MAX_IN_A_ROW, error.step)):
        raise error
    if jax.process_index() == 0:
        files.write_json(workdir / SKIPPED, sorted(skipped))
        print(f"{str(error).partition(':')[0]}: rolling back, to pass over it", flush=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("rolled back")


class Claim:
    """A run's folder, held by this process as long as it lives: two runs in one would mix.

    Of several processes of one run the first one holds it. It removes what killed writes left.

    Raises:
      UserError: another process trains there.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self._file = (workdir / ".lock").open("a+")
        if jax.process_index() > 0:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            raise UserError(
                f"--workdir: {workdir} is being trained by {self._file.read().strip()}; stop that "
                "one first, or use another --workdir"
            ) from error
        except OSError:
            return  # a file system without locks
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        files.remove_temporaries(workdir)

    def close(self) -> None:
        self._file.close()


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, (dict, ml_collections.ConfigDict)) and len(tree):
        return {
            path: leaf
            for key, value in tree.items()
            for path, leaf in _leaves(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: dict(tree) if isinstance(tree, ml_collections.ConfigDict) else tree}
