"""Every setting of a run, with its default and a sentence of help; a config file changes some.

`default()` makes a `ConfigDict` of them. docs/config.md and `python -m agejax.main --help=config`
show the same, with the options of heads, backbones and data sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from agejax.errors import REMEDIES, UserError, line_in, nearest, reason
from agejax.settings import Duration, Group, Setting
from agejax.training import augment
from agejax.training.durations import UNITS

MOST = 2**31 - 1
REMEDY = "return agejax.config.default() with your changes"

SETTINGS = Group(
    "All settings of a run.",
    seed=Setting(0, "Seed of every random draw in the run.", limits=(0, MOST)),
    total=Duration({"epochs": 15.0}, "Length of the training."),
    data=Group(
        "The data set, how it is read, and how it is split.",
        name=Setting("utkface", "Data set: one of agejax/data/builders."),
        source=Setting(None, "Archive or folder that you downloaded.", kind=str),
        options=Setting({}, "The data set's own options; --help=config.data.options lists them."),
        mixture=Setting(
            {},
            "Several data sets as one, in place of name, source and options: part -> its settings; "
            "--help=config.data.mixture lists them.",
        ),
        edits=Group(
            "Changes to the data before it is split.",
            labels=Setting(
                None,
                "CSV of labels in place of the data set's own, such as corrected labels or "
                "those that pseudo_label writes.",
                kind=str,
            ),
            drop=Setting({}, 'Classes to remove, such as {"ethnicity": ("Other",)}.'),
            keep=Setting(
                {},
                'Shares of classes to keep, such as {"ethnicity": {"Asian": 0.25}}; the class '
                '"majority" is the largest.',
            ),
            only=Setting({}, 'The only classes to keep, such as {"gender": "female"}.'),
            min_age=Setting(None, "Lowest age to keep.", kind=float, unit="years"),
            max_age=Setting(None, "Highest age to keep.", kind=float, unit="years"),
            seed=Setting(0, "Seed of which images `keep` keeps.", limits=(0, MOST)),
        ),
        cache_dir=Setting(
            None, "Folder of the cache; default: $AGEJAX_CACHE or ~/.cache/agejax.", kind=str
        ),
        image_size=Setting(
            200,
            "Edge of the decoded cache; about 1.5 times the model's, so that moving an image does "
            "not blur it.",
            limits=(1, 4096),
            unit="pixels",
        ),
        batch_size=Setting(
            64, "Images per step, over all devices and processes.", limits=(1, 2**16)
        ),
        workers=Setting(0, "Grain worker processes; 0 reads in threads.", limits=(0, 1024)),
        resident=Setting(
            "auto",
            "Whether the training images and labels lie in the memory of every device, so that the "
            "host only sends the numbers of rows. auto: on an accelerator, where they take at most "
            "a quarter of its memory.",
            choices=("auto", "on", "off"),
        ),
        split=Group(
            "How the images are split. Set at most one of official, files, folds and balanced.n; "
            "without them the images are split by fractions.",
            seed=Setting(0, "Seed of the splits.", limits=(0, MOST)),
            fractions=Setting(
                {"train": 0.8, "val": 0.1, "test": 0.1}, "Share of the images in each split."
            ),
            official=Setting(False, "Uses the data set's own splits."),
            files=Setting({}, "Split -> file with the names of its images."),
            folds=Setting(
                0, "Number of cross-validation folds: fold number `fold` is test, the rest train."
            ),
            fold=Setting(0, "Which fold is test, from 0."),
            balanced=Group(
                "A split with equally many images of each group; the rest goes by fractions.",
                n=Setting(0, "Images per group; 0: no such split.", limits=(0, MOST)),
                split=Setting("test", "Name of the balanced split."),
                over=Setting(
                    ("gender", "ethnicity", "decade"), "Labels whose crossings are the groups."
                ),
                short=Setting(
                    "error",
                    "What to do with a group that has too few images: stop, or take half of it.",
                    choices=("error", "take"),
                ),
            ),
            val_of_train=Setting(
                0.1,
                "Share of train that becomes val where there is no val. 0: there is no val, and "
                "its images are trained on; for trainings whose length needs no val.",
                limits=(0, 0.99),
            ),
            calibration_of_val=Setting(
                0.0,
                'Share of val that becomes the split "calibration", which calibrates the run. 0: '
                "val calibrates it, although it has also chosen the checkpoint.",
                limits=(0, 0.99),
            ),
            train_share=Setting(
                1.0, "Share of train that is trained on; the other splits stay.", limits=(0, 1)
            ),
            drop_copies_from_train=Setting(
                False,
                "With official or files: removes images from train that have a copy, or their "
                "group (a person, say), in another split.",
            ),
        ),
    ),
    sampling=Group(
        "How often each training image is drawn.",
        kind=Setting(
            "uniform",
            "uniform: equally often. density: by DenseWeight of the age. lds: by the smoothed "
            "counts of the age. inverse: by the counts of the classes `over`. oversample: copies "
            "for decades with few images.",
            choices=("uniform", "density", "lds", "inverse", "oversample"),
        ),
        alpha=Setting(
            0.5, "density: 0 is uniform, 1 inverts the density of the age.", limits=(0, 1000)
        ),
        reweight=Setting("sqrt", "lds: how counts become weights.", choices=("sqrt", "inverse")),
        lds_sigma=Setting(
            2.0, "lds: width of the smoothing kernel.", limits=(1e-3, 100), unit="years"
        ),
        lds_size=Setting(5, "lds: size of the smoothing window.", limits=(1, 100), unit="years"),
        over=Setting(
            ("age",), "inverse: any of age, decade, gender and ethnicity; several are crossed."
        ),
        power=Setting(1.0, "inverse: 1, or 0.5 for the square root.", choices=(0.5, 1)),
        keep=Setting(
            {},
            "Under-sampling: shares of classes of the training images to keep, such as "
            '{"ethnicity": {"White": 0.5}}; the class "majority" is the largest.',
        ),
        keep_seed=Setting(0, "Seed of which images `keep` keeps.", limits=(0, MOST)),
        copy_strength=Setting(
            1.0,
            "Augmentation strength of an image's second and later draws in an epoch.",
            limits=(0, 100),
        ),
    ),
    augment=augment.SETTINGS,
    model=Group(
        "The network.",
        name=Setting("mobilenet_v3_small", "Backbone; --help=config.model.options lists all."),
        options=Setting({}, "The backbone's own options; --help=config.model.options lists them."),
        image_size=Setting(
            128, "Edge of the images that the network sees.", limits=(1, 4096), unit="pixels"
        ),
        dtype=Setting(
            "float32",
            "Type of the computation; parameters and logits stay float32.",
            choices=("float32", "bfloat16"),
        ),
        remat=Setting(
            False,
            "Recomputes the activations of each block in the backward pass: less memory, more "
            "time.",
        ),
        hidden=Setting(
            0,
            "Width of a dense layer between backbone and heads; 0: no such layer.",
            limits=(0, 2**16),
        ),
        dropout=Setting(0.2, "Dropout rate before the heads.", limits=(0, 0.99)),
        cached_views=Setting(
            0,
            "With a frozen backbone: how many views of each training image have their features "
            "computed once and cached, for the heads to train on. 1: the image as evaluation sees "
            "it; more: augmented views too. 0: the backbone runs in every step.",
            limits=(0, 1000),
        ),
        mean=Setting(
            None,
            "Mean of RGB in 0..1 that images are normalised with; default: what the pretrained "
            "weights expect, or ImageNet's.",
            kind=tuple,
            item=float,
            length=3,
        ),
        std=Setting(
            None,
            "Standard deviation of RGB in 0..1, as mean.",
            kind=tuple,
            item=float,
            length=3,
            above=0,
        ),
        pretrained=Setting(
            None,
            "What to start from: a weights file of torchvision, timm, Keras, AugReg and others, or "
            "the folder of a run (docs/models.md).",
            kind=str,
        ),
    ),
    heads=Setting(
        {}, "Targets of the network: name -> its settings; --help=config.heads lists them."
    ),
    distill=Group(
        "Teachers that the run learns from beside its labels: trained networks, or files of their "
        "predictions (docs/training.md).",
        runs=Setting((), "Folders of runs or ensembles; they see each image as it is augmented."),
        files=Setting((), "Files (.npz) that python -m agejax.distill writes."),
        onnx=Setting(
            {}, "ONNX models: name -> its settings; --help=config.distill.onnx lists them."
        ),
        share=Setting(
            0.5, "The teachers' share of the loss; the labels have the rest.", limits=(0, 1)
        ),
        missing=Setting(
            "error",
            "Training images that no file has a row for: an error, or they learn from their "
            "labels only.",
            choices=("error", "labels"),
        ),
        allow_seen=Setting(
            False,
            "Allows teachers that may have trained on images that this run is evaluated on.",
        ),
        probabilities=Group(
            "Learning the teachers' probabilities.",
            weight=Setting(
                1.0,
                "Weight of every head's teachers, beside the head's own weight.",
                limits=(0, 1e6),
            ),
            temperature=Setting(
                1.0, "Above 1 softens both sides (Hinton et al. 2015).", limits=(0.01, 100)
            ),
        ),
        features=Group(
            "Learning the teacher's pooled features, through a linear map from the student's.",
            weight=Setting(0.0, "Weight, as of one more head; 0: off.", limits=(0, 1e6)),
            loss=Setting(
                "cosine",
                "Distance: cosine, or the mean of squared differences (l2).",
                choices=("cosine", "l2"),
            ),
            teacher=Setting(
                "",
                "The teacher whose features are learned, where several have features: a path of "
                "runs or files, or a name of onnx.",
            ),
        ),
    ),
    optim=Group(
        "The optimizer.",
        name=Setting("adamw", "Optimizer.", choices=("adamw", "adam", "sgd")),
        b1=Setting(
            0.9, "Decay of adam's first moment, and the momentum of sgd.", limits=(0, 0.9999)
        ),
        b2=Setting(0.999, "Decay of adam's second moment.", limits=(0, 0.999999)),
        eps=Setting(1e-8, "Added to the denominator of adam.", limits=(0, 1)),
        clip_norm=Setting(
            1.0, "Largest global norm of the gradient; 0: no clipping.", limits=(0, 1e9)
        ),
        accumulate=Setting(1, "Micro-batches per step.", limits=(1, 2**16)),
        weight_decay=Setting(0.0, "Decoupled weight decay, of adamw and sgd.", limits=(0, 1e3)),
        lr_multipliers=Setting(
            ((".*", 1.0),),
            "Ordered (regex, multiplier) of the learning rate: the first match of a parameter's "
            "path wins, and every path must match. None freezes, batch-norm statistics included.",
        ),
        layer_decay=Setting(
            1.0,
            "The learning rate of the backbone's last layer is multiplied by this, that of the "
            "layer below by its square, and so on down to the stem; heads keep 1. 1: off; 0.65 to "
            "0.9 to fine-tune.",
            limits=(1e-3, 1),
        ),
        decay_multipliers=Setting(
            ((".*/(bias|scale|noise|cls_token|pos_embed)$", 0.0), (".*", 1.0)),
            "Ordered (regex, multiplier) of the weight decay, as lr_multipliers.",
        ),
        l1=Setting(
            (), "Ordered (regex, l1): adds l1 |p| to the loss; 0 for paths that nothing matches."
        ),
        l2=Setting(
            (), "Ordered (regex, l2): adds l2 / 2 p² to the loss; 0 for paths that nothing matches."
        ),
        ema=Setting(
            0.0,
            "Decay of the average of the parameters that evaluation uses; 0: off.",
            limits=(0, 0.999999),
        ),
    ),
    schedule=Group(
        "The learning rate and the image size over the run.",
        kind=Setting(
            "one_cycle",
            "Course of the learning rate.",
            choices=("one_cycle", "warmup_cosine", "exponential", "constant"),
        ),
        lr=Setting(1e-3, "Peak of the learning rate.", limits=(1e-30, 1e30)),
        lr_batch_size=Setting(
            0,
            "Batch size that lr was found for: with another data.batch_size, lr is scaled, for sgd "
            "in proportion, for adam by the square root. 0: lr stays as it is.",
            limits=(0, MOST),
        ),
        warmup=Duration(
            {"percent": 30.0}, "one_cycle and warmup_cosine: the duration of the rise."
        ),
        div=Setting(25.0, "one_cycle: peak / start.", limits=(1e-3, 1e12)),
        final_div=Setting(
            1e4,
            "one_cycle: start / end; warmup_cosine: peak / end.",
            limits=(1e-3, 1e12),
        ),
        decay_every=Duration({"epochs": 1.0}, "exponential: how often it decays."),
        decay_rate=Setting(0.95, "exponential: factor of each decay.", limits=(1e-12, 1e12)),
        image_size=Setting(
            (),
            "Smaller images at first: ((duration from the start, pixels), ...), durations "
            'increasing, such as (({"percent": 60.0}, 128),); after the last one images have '
            "model.image_size.",
        ),
    ),
    eval=Group(
        "Evaluation on val while the run trains, and of the best checkpoint at the end.",
        every=Duration({"epochs": 1.0}, "How often val is evaluated."),
        batch_size=Setting(256, "Images per batch.", limits=(1, 2**16)),
        image_size=Setting(
            0,
            "Edge of the images to score and predict; 0: model.image_size.",
            limits=(0, 4096),
            unit="pixels",
        ),
        best=Setting(
            "age/mae",
            "Metric that chooses the best checkpoint and stops early: a path into metrics.json, or "
            "loss.",
        ),
        best_mode=Setting(
            "min", "Whether the lowest or the highest value is the best.", choices=("min", "max")
        ),
        patience=Setting(
            0,
            "Evaluations without a better value before the run stops early; 0: it does not.",
            limits=(0, MOST),
        ),
        final_split=Setting(
            "test", 'Split that the best checkpoint is scored on at the end; "": none.'
        ),
    ),
    checkpoint=Group(
        "Checkpoints.",
        every=Duration({"epochs": 1.0}, "How often a checkpoint is saved."),
        keep=Setting(
            2,
            "How many of the newest checkpoints are kept, beside the best one: more to average "
            "their weights.",
            limits=(2, 1000),
        ),
    ),
    steps_per_call=Setting(
        1,
        "Train steps that the device takes at a time without the host. A call ends where a log "
        "row, an evaluation or a checkpoint is due; what is left before them goes step by step.",
        limits=(1, 1000),
    ),
    log_every=Duration({"steps": 50}, "How often training metrics are logged."),
    loggers=Setting(
        ("tensorboard",),
        "Where the numbers of the run go beside metrics.jsonl: any of tensorboard, wandb and "
        "mlflow (docs/run_folder.md).",
        item=str,
    ),
    log_images=Setting(
        0,
        "How many images the loggers get: augmented training images at the first step, and at each "
        "evaluation the val images with the largest age errors. 0: none, since loggers write to "
        "shared disks and servers, and these are faces of people.",
        limits=(0, 256),
    ),
    profile=Setting(
        0, "Steps to trace soon after the start, into WORKDIR/profile/summary.md; 0: none."
    ),
    nonfinite=Setting(
        "stop",
        "What to do about a loss or gradient that is not finite: stop there, skip that step's "
        "update, or roll back to the last checkpoint and leave that step out.",
        choices=("stop", "skip", "rollback"),
    ),
    watchdog=Setting(
        1800.0,
        "Seconds without a step or an evaluation before all stacks go to stderr; 0: never.",
        limits=(0, 1e9),
        unit="seconds",
    ),
    deterministic=Setting(
        False,
        "On a GPU, compiles the steps from algorithms only that add in the same order every time; "
        "they may be slower. On a CPU every step is already so.",
    ),
    native=Setting(
        True,
        "On one CPU device, computes attention and depthwise convolutions in float32 by kernels "
        "that the machine's C++ compiler builds at their first use; without a compiler, by XLA. "
        "The two round differently.",
    ),
    sharding=Group(
        "The devices.",
        devices=Setting(0, "How many devices to use; 0: all.", limits=(0, 2**20)),
        fsdp=Setting(1, "How many of the devices share each large parameter.", limits=(1, 2**20)),
        batch_norm=Setting(
            "global",
            "Whose statistics normalise in training: those of the whole batch, or of each device's "
            "own images, for which no layer waits for the other devices; results then depend on "
            "how many devices there are.",
            choices=("global", "device"),
        ),
    ),
)


def default() -> ml_collections.ConfigDict:
    """A config with the default of every setting.

    Durations are dicts of exactly one of steps, epochs, examples and percent.
    """
    return SETTINGS.config()


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a setting that is unknown, missing, or set to what it must not be."""
    SETTINGS.check(config, "config", complete=True)


def from_json(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Makes a config from the JSON data that a run has stored.

    Settings that were added since it was stored stay missing.

    Raises:
      UserError: it is damaged, or of a later version.
    """
    try:
        config = ml_collections.ConfigDict(values)
        check(completed(config))
    except (ValueError, TypeError, UserError) as error:
        raise UserError(f"{error}; it is damaged, or of another version of agejax") from error
    return config


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with defaults for missing settings, which are newer than the run."""
    copy: ml_collections.ConfigDict = _completed(
        config.copy_and_resolve_references(), default(), SETTINGS
    )
    return copy


def _completed(config: Any, defaults: ml_collections.ConfigDict, group: Group) -> Any:
    for key, setting in group.items():
        if key not in config:
            config[key] = defaults[key]
        elif isinstance(setting, Group) and hasattr(config[key], "items"):
            _completed(config[key], defaults[key], setting)
    return config


def open_dict(path: str) -> tuple[Setting, tuple[str, ...], tuple[str, ...]] | None:
    """The open dict at or above a path, its own path, and the rest of the path; None without one.

    Args:
      path: such as "heads.age.loss", whose open dict is "heads".
    """
    parts = tuple(path.split("."))
    found: Setting | Group | None = SETTINGS
    for i, part in enumerate(parts, 1):
        found = found.get(part) if isinstance(found, Group) else None
        if isinstance(found, Setting) and isinstance(found.default, Mapping):
            return found, parts[:i], parts[i:]
    return None


def replaced(
    config: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A copy with the settings at dotted paths replaced.

    Raises:
      UserError: as `put`.
    """
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        for path, value in values.items():
            put(copy, path, value, f"config.{path}")
    return copy


def put(
    config: ml_collections.ConfigDict, path: str, value: Any, where: str, *, new: bool = False
) -> None:
    """Sets the setting at a dotted path in an unlocked config; a dict becomes a part of it.

    A value in an open dict has any type. A path such as "total.steps" replaces the unit of a
    duration.

    Args:
      where: the place that messages name.
      new: makes the dicts that are missing on the path, inside an open dict.

    Raises:
      UserError: a path that does not exist, an unknown unit, a part of a value that has none, or a
        value of another type.
    """
    setting, at, below = open_dict(path) or (None, tuple(path.split(".")), ())
    if isinstance(setting, Duration) and below:
        if (unit := ".".join(below)) not in UNITS:
            raise UserError(f"{where}: no unit {unit!r}; {nearest(unit, UNITS)}")
        value, below = {unit: value}, ()
    *groups, key = at + below
    group = config
    try:
        for depth, name in enumerate(groups):
            if new and depth >= len(at) and group.get(name) is None:
                group[name] = ml_collections.ConfigDict()
            if name not in group:
                raise UserError(f"{where}: there is no setting {name!r}; {nearest(name, group)}")
            if not isinstance(group[name], ml_collections.ConfigDict):
                raise UserError(f"{where}: {name} is {group[name]!r}, which has no parts")
            group = group[name]
        if setting is None and key not in group:
            places = places_of(key)
            hint = f"did you mean {' or '.join(places)}?" if places else nearest(key, group)
            raise UserError(f"{where}: there is no setting {key!r}; {hint}")
        if setting is not None and key in group:
            del group[key]  # with its type
        group[key] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    except (TypeError, ValueError) as error:  # ConfigDict's own
        known = dict(SETTINGS.walk("config")).get(f"config.{path}")
        if isinstance(known, Setting):
            raise UserError(f"{where}: {value!r}; set it to {known.wanted}") from error
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def places_of(name: str) -> list[str]:
    """The paths of all settings called `name`; of a duration's unit, that of the run's length."""
    if name in UNITS:
        return [f"config.total.{name}"]
    return [path for path, _ in SETTINGS.walk("config") if path.endswith(f".{name}")]


def file_error(path: str, error: BaseException, where: str) -> UserError | None:
    """The one line for an error that loading a config file raised; None for one of another origin.

    Args:
      where: the file as the user named it.
    """
    if place := line_in(path, error):
        return UserError(f"{where}, {place}")
    if isinstance(error, (AttributeError, KeyError)) and "'get_config'" in str(error):
        return UserError(f"{where} has no get_config(); let one {REMEDY}")
    if call := re.search(r"get_config\(\) (?:takes|missing) .*", str(error)):
        return UserError(
            f"{where}: {call[0]}; its argument is what stands after a colon, as in {where}:ARGUMENT"
        )
    if isinstance(error, OSError):
        # ml_collections' own error has no number, and quotes the first one at its end.
        quoted = (str(error).strip() or repr(error)).splitlines()[-1].strip()
        why = reason(error) if error.errno in REMEDIES else quoted
        return UserError(f"{where} cannot be read: {why}")
    return None


def check_returned(value: Any, where: str) -> None:
    """Raises `UserError` where a file's get_config() has returned something else than a config."""
    if not isinstance(value, ml_collections.ConfigDict):
        raise UserError(f"{where}: get_config() returns {type(value).__name__}; let it {REMEDY}")
