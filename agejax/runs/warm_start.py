"""Starting from the weights of a run or a released model, which config.model.pretrained names.

The data, the recipe and the length are the new run's. From the other run come the backbone, the
layers between backbone and heads, and the heads that fit, converted to predict the same.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from agejax import heads as heads_lib
from agejax.data.sources import Source
from agejax.errors import UserError
from agejax.heads import KINDS, Head
from agejax.logging import console
from agejax.models import pretrained
from agejax.models.necks import NeckOptions
from agejax.models.pretrained import positions
from agejax.runs import batch_statistics, box, lineage
from agejax.runs.run import Run
from agejax.runs.run_folder import opened_config, read_config
from agejax.training import state as state_lib
from agejax.training.optim import Flat

Arrays = Mapping[str, np.ndarray]
CALIBRATION = 16  # batches of training images


def settle(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stored: ml_collections.ConfigDict | None,
) -> ml_collections.ConfigDict:
    """Like `pretrained.settle`, for a run in `workdir` that may start from another run.

    The options that heads leave out are written down, as they were when a run there began.

    Args:
      stored: the config of the run to resume there.

    Raises:
      UserError: as `pretrained.settle`; or config.model.pretrained is a folder that is no run, a
        run without a checkpoint, an ensemble, a name that is not in the box, or `workdir` itself.
    """
    resumes, given = stored is not None, config.model.pretrained
    # A run that resumes needs no pretrained weights, and they may be gone.
    path = _locate(given) if given and not (resumes and box.is_name(given)) else None
    if path is not None and path.resolve() == workdir.resolve():
        raise UserError(
            f"config.model.pretrained: {path} is the folder of this run itself; set --workdir to "
            "a new folder to start from its weights, or leave config.model.pretrained out to resume"
        )
    of_run = None if resumes or path is None else _config_of(path)
    config = pretrained.settle(config, stored, of_run)
    with config.unlocked():
        heads_lib.write_out(config.heads, stored.heads if stored else None)
    return config


def of(
    config: ml_collections.ConfigDict,
    heads: Mapping[str, Head],
    source: Source,
    rows: np.ndarray | None = None,
) -> state_lib.Start | None:
    """Returns what `state.create` starts from; None where a weights file, or nothing, is enough.

    That is a run that config.model.pretrained names, or a weights file and images, where a
    network's batch norms were folded into its convolutions and are restored.

    Args:
      heads, source: the new run's.
      rows: int64 [N] of `source` that it trains on; None where it will not train, so that batch
        norms need no statistics.
    """
    path = config.model.pretrained
    if not path:
        return None
    if is_run(_locate(path)):
        return functools.partial(_start, config, heads, source)
    if rows is not None and pretrained.gives_norms_back(config.model):
        return functools.partial(_give_norms_back, config, heads, source, rows)
    return None


def _give_norms_back(
    config: ml_collections.ConfigDict,
    heads: Mapping[str, Head],
    source: Source,
    rows: np.ndarray,
    params: Flat,
    batch_stats: Flat,
) -> tuple[state_lib.Arrays, state_lib.Arrays]:
    """Loads folded weights, and restores batch norms with the statistics of augmented images."""
    loaded = state_lib.from_file(config.model, params, batch_stats)
    model, _ = state_lib.create_model(config, heads)
    batches = batch_statistics.training_batches(config, source, rows, CALIBRATION)
    calibrated = batch_statistics.calibrated(model, *loaded, batches)
    console.result(
        f"gave the network batch norms with the statistics of {CALIBRATION} batches of training "
        "images; it predicts as before"
    )
    return calibrated


def _start(
    config: ml_collections.ConfigDict,
    heads: Mapping[str, Head],
    source: Source,
    params: Flat,
    batch_stats: Flat,
) -> tuple[Arrays, Arrays]:
    """Replaces initial arrays by those of the run's best step, and reports which."""
    run = Run.open(config.model.pretrained, config.sharding.devices)
    theirs = {k: np.asarray(v) for k, v in (run.params | run.batch_stats).items()}
    fresh = {k: np.asarray(v) for k, v in (params | batch_stats).items()}
    arrays, taken, left = adapt(run.config, run.heads, theirs, config, heads, fresh)
    if jax.process_index() == 0:
        done = "" if (run.workdir / "summary.json").exists() else ", which is not finished"
        name = box.name_of(run.workdir)
        console.result(
            f"starting from step {run.step:,} of {name}{done}: loaded {', '.join(taken)}"
            + (f"; new, at random: {', '.join(left)}" if left else "")
        )
        how = lineage.may_have_seen(lineage.of(run), config, source)
        if how is not None:
            console.warning(
                f"{name} was trained on {how}; it may have seen images that this "
                "run is scored on, and then its scores are too good"
            )
    return {k: arrays[k] for k in params}, {k: arrays[k] for k in batch_stats}


def adapt(
    their_config: Any,
    their_heads: Mapping[str, Head],
    theirs: Arrays,
    config: Any,
    heads: Mapping[str, Head],
    fresh: Arrays,
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Makes the arrays of a new run from those of a trained one.

    A head is taken only if all layers that it reads are taken. Statistics of feature smoothing stay
    fresh, since they count the epochs of their own run.

    Args:
      theirs: trained parameters and batch statistics by flat name.
      fresh: the new run's, as initialised.

    Returns:
      (all arrays of the new run, the parts taken, the parts that stay fresh and why).

    Raises:
      UserError: a backbone that does not fit.
    """
    where = f"config.model.pretrained: {config.model.pretrained}"
    arrays = dict(fresh)
    arrays.update(_backbone(_part(theirs, "backbone/"), _part(fresh, "backbone/"), where))
    taken, left = ["the backbone"], []

    same_features = _fits(hidden := _part(theirs, "hidden/"), _part(fresh, "hidden/"))
    if same_features:
        arrays.update(hidden)
        taken += ["the hidden layer"] if hidden else []
    elif config.model.hidden:
        left.append(f"the hidden layer ({their_config.model.hidden or 'none'} wide there)")
    for name, head in heads.items():
        part = f"heads/{name}/"
        other = their_heads.get(name)
        if other is None:
            left.append(f"head {name} (not there)")
            continue
        neck = _part(theirs, f"necks/{name}/")
        if not (
            _neck(their_config, name) == _neck(config, name)
            and _fits(neck, _part(fresh, f"necks/{name}/"))
            and (same_features or _neck(config, name))
        ):
            left.append(f"head {name} (it reads other features)")
            continue
        arrays.update(neck)
        taken += [f"the neck of {name}"] if neck else []
        if type(other) is not type(head):
            kinds = {cls: kind for kind, cls in KINDS.items()}
            left.append(f"head {name} (of kind {kinds.get(type(other))} there)")
            continue
        adapted = head.adapt(
            other,
            {k.removeprefix(part): v for k, v in _part(theirs, part).items()},
            {k.removeprefix(part): v for k, v in _part(fresh, part).items()},
        )
        if adapted is None:
            left.append(f"head {name} (its outputs mean something else there)")
            continue
        arrays.update(
            {part + k: np.asarray(v, fresh[part + k].dtype) for k, v in adapted.arrays.items()}
        )
        taken.append(f"head {name}" + (f" ({adapted.note})" if adapted.note else ""))
    return arrays, taken, left


def _backbone(theirs: Arrays, fresh: Arrays, where: str) -> dict[str, np.ndarray]:
    """The backbone's arrays, with a transformer's positions for this run's image size.

    Raises:
      UserError: arrays or shapes differ.
    """
    taken, wrong = {}, []
    for name, ours in fresh.items():
        array = theirs.get(name)
        if array is not None and name == "backbone/pos_embed":
            array = positions.resize(array, ours.shape[1])
        if array is None or array.shape != ours.shape:
            wrong.append(f"{name} {ours.shape}: {'none' if array is None else array.shape} there")
        else:
            taken[name] = array
    if wrong or theirs.keys() - fresh.keys():
        raise UserError(
            f"{where}: its backbone does not fit ({'; '.join(wrong[:3]) or 'it has more layers'}); "
            "set config.model.options and config.model.image_size as that run has them"
        )
    return taken


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name.startswith(prefix)}


def _fits(theirs: Arrays, ours: Arrays) -> bool:
    shapes = ({name: array.shape for name, array in part.items()} for part in (theirs, ours))
    return next(shapes) == next(shapes)


def _neck(config: Any, name: str) -> dict[str, Any] | None:
    """A head's own neck without the options for training only; None for the shared one."""
    given = config.heads[name].get("neck")
    if given is None:
        return None
    options = vars(NeckOptions.of(given, f"config.heads.{name}.neck"))
    return {k: v for k, v in options.items() if k not in ("dropout", "input_dropout")}


# ---- which folder --------------------------------------------------------------------------------


def _locate(given: str) -> pathlib.Path:
    return box.locate(given, "config.model.pretrained")


def is_run(path: pathlib.Path) -> bool:
    """Whether it is the folder of a run with a checkpoint, or of a released model."""
    return path.is_dir() and _is_of_run(opened_config(path))


def _is_of_run(config: ml_collections.ConfigDict | None) -> bool:
    """Whether it is a run's config. Model hubs write a config.json of another kind."""
    return config is not None and "model" in config and "heads" in config


def _config_of(path: pathlib.Path) -> ml_collections.ConfigDict | None:
    """The config of the run in a folder to start from; None where it is not a run's folder.

    Raises:
      UserError: an ensemble, a folder inside a run's, or a run without a checkpoint.
    """
    where = f"config.model.pretrained: {path}"
    if box.is_ensemble(path):
        raise UserError(f"{where} is an ensemble; name the folder of one of its runs")
    if not is_run(path):
        if path.is_dir() and _is_of_run(read_config(path)):
            raise UserError(f"{where} has no checkpoint yet; wait until that run has saved one")
        around = next((p for p in path.absolute().parents if is_run(p)), None)
        if around is not None and path.is_dir():
            raise UserError(f"{where} is a part of the run in {around}; name that folder")
        return None
    return opened_config(path)
