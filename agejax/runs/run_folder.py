"""The folder of a run to train: who holds it, what it was started with, and what may change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shlex
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
from jax.experimental import multihost_utils

from agejax import files
from agejax import heads as heads_lib
from agejax.config import default, from_json
from agejax.errors import NotFiniteError, UserError, is_number
from agejax.logging import console
from agejax.logging.loggers import IDS
from agejax.runs import box
from agejax.settings import leaves, to_json
from agejax.training.checkpoint import Checkpoints

if TYPE_CHECKING:
    from agejax.data.sources import Source

# Settings that name what a run starts from and learns from.
LEARNED_FROM = r"model\.pretrained|distill\.(runs|files|onnx\.[^.]+\.path|features\.teacher)"
# What a restart may change: where the data and the teachers lie, how the work is spread, when the
# run looks at itself and saves itself, and what it does about a loss that is not finite. None of
# these changes what a step computes: `check_same_data`, `check_same_devices` and
# `distillation.setup.check_same` look at the data, the devices and the teachers themselves. What
# the teachers may have seen is not known any more where those that taught them are gone.
MAY_CHANGE_ON_RESUME = re.compile(
    r"data\.(source|cache_dir|workers|resident|mixture\.[^.]+\.source)|log_every\..*|"
    r"checkpoint\.(every\..*|keep)|steps_per_call|"
    r"eval\.(every\..*|batch_size|image_size|patience|final_split)|loggers|"
    r"log_images|model\.remat|watchdog|profile|nonfinite|deterministic|native|"
    rf"sharding\.(devices|fsdp)|distill\.allow_seen|{LEARNED_FROM}"
)

SKIPPED = "skipped_steps.json"
WRITTEN = ("config.json", "metrics.jsonl", "summary.json", SKIPPED, IDS)  # by a run, in its folder
MAX_IN_A_ROW = 3


def check(workdir: pathlib.Path) -> None:
    """Raises `UserError` where a run cannot write its files to `workdir`. Makes nothing."""
    files.check_folder(workdir, "--workdir")
    if box.is_release(workdir):
        raise UserError(
            f"--workdir: {workdir} holds a released model, which is only read; use another path, "
            "and --config.model.pretrained to start from it"
        )
    if box.is_ensemble(workdir):
        raise UserError(
            f"--workdir: {workdir} holds an ensemble, which would hide the run; use another path"
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


def write_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes config.json; of several processes the first one does."""
    if jax.process_index() == 0:
        files.write_json(workdir / "config.json", to_json(config))


def _as_written(stored: Any) -> ml_collections.ConfigDict:
    """A stored config, with the defaults of its time where its heads leave options out."""
    config = ml_collections.ConfigDict(stored)
    heads_lib.write_out(config.get("heads") or {}, former=True)
    return config


def stored_meta(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What the newest checkpoint keeps besides its arrays; None where none can be read."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    for step in reversed(checkpoints.steps):
        # A step may be damaged, or be deleted just now: the one before it is of the same run.
        with contextlib.suppress(UserError):
            return checkpoints.meta(step)
    return None


def stored_config(workdir: pathlib.Path) -> ml_collections.ConfigDict | None:
    """The config of the newest checkpoint: what a run there goes on with.

    None where nothing is saved yet: a run that was refused, or stopped, before its first checkpoint
    binds nobody. Not config.json, which may be lost, or of such a run.
    """
    meta = stored_meta(workdir)
    if meta is not None:
        return _as_written(meta["config"])
    return read_config(workdir) if Checkpoints(workdir / "checkpoints").steps else None


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
            f"{workdir / 'config.json'} differs from the config of its checkpoint: "
            f"{', '.join(changed)}; undo these changes, or remove the file: the checkpoint has the "
            "config"
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
            f"{workdir} was trained with another config: {', '.join(changed)}; undo these changes "
            f"to resume it, or {_start_anew(workdir)}"
        )


def check_same_data(
    workdir: pathlib.Path,
    meta: Mapping[str, Any],
    source: Source,
    path: str | None,
    facts: heads_lib.Facts,
) -> None:
    """Raises `UserError` where the run there was trained on other data than it is given now.

    Args:
      meta: of its checkpoint.
      source: the data.
      path: where it lies, if the user names that.
      facts: of its training split.
    """
    if meta["fingerprint"] != source.fingerprint:
        raise UserError(
            f"{workdir} was trained on other data than {path or source.name}; "
            "give it that data again, or use another --workdir"
        )
    # Empty in runs from before there were counts.
    if meta["facts"].get("counts") and meta["facts"]["counts"] != facts.counts:
        raise UserError(
            f"{workdir} was trained on other images than config.data.split gives now; resume it "
            "with the version of agejax that started it, or use another --workdir"
        )


def check_same_devices(
    workdir: pathlib.Path, meta: Mapping[str, Any], config: ml_collections.ConfigDict, devices: int
) -> None:
    """Raises `UserError` where each device normalises its own images, and their number changed.

    Args:
      meta: of the run's checkpoint.
      devices: that the run would go on with.
    """
    before = meta.get("devices", devices)  # runs of earlier versions lack it
    if config.sharding.batch_norm == "device" and devices != before:
        raise UserError(
            f"{workdir} was trained on {before} devices with config.sharding.batch_norm=device; on "
            f"{devices} each would normalise other images. Resume it with "
            f"--config.sharding.devices={before}, or {_start_anew(workdir)}"
        )


def _start_anew(workdir: pathlib.Path) -> str:
    """What to do with a run that cannot go on as it is asked to."""
    return (
        "start a new one from its weights: "
        f"--config.model.pretrained={shlex.quote(str(workdir))} --workdir=ANOTHER"
    )


def same_recipe(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> bool:
    """Whether two configs train the same, but for the seed; either may be of an older version."""
    alike = other.copy_and_resolve_references()
    alike.seed = one.seed
    first, second = (learned_from(config) for config in (one, other))
    return first == second and not (_changed(one, alike) and _changed(alike, one))


def learned_from(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Setting -> where a config's first weights and its teachers lie; without those not set."""
    settings = leaves(to_json(config)).items()
    return {path: value for path, value in settings if value and re.fullmatch(LEARNED_FROM, path)}


def _changed(old_config: Any, new_config: Any) -> list[str]:
    """The settings ("key (old -> new)") that differ and decide what is computed."""
    old, new = leaves(to_json(old_config)), leaves(to_json(new_config))
    # A setting that came to be since then did what its default does.
    since = {k: v for k, v in leaves(to_json(default())).items() if k in new and k not in old}
    old |= since
    return [
        f"{key} ({json.dumps(old.get(key))} -> {json.dumps(new.get(key))})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not MAY_CHANGE_ON_RESUME.fullmatch(key)
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


def forget_skipped_steps(workdir: pathlib.Path) -> None:
    """Removes the steps to skip where a run begins, so that it skips none of another one's.

    A run that ended before its first checkpoint binds nobody: the steps at which it failed, for
    example with another learning rate, are none of those of the run that begins there now. Of
    several processes the first one removes them, when all have read them.
    """
    if jax.process_index() == 0:
        (workdir / SKIPPED).unlink(missing_ok=True)


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
        console.result(f"{str(error).partition(':')[0]}: rolling back, to leave it out")
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
