"""python -m agejax.sweep --config=FILE --space=FILE --study=DIR [--trials=25] [--config.x.y=v ...]

Searches the settings of a config (a file, or the name of one that comes with agejax) for the best
validation metric. A space is a Python file whose get_space() returns
{"optim.weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
"heads.age.loss": {"choices": ["l1", "huber"]}, ...}. The same command continues a stopped study,
and any number of workers, on any number of machines, may run it at once.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import json
import sys
import warnings
from collections.abc import Sequence

from agejax import command_line, files
from agejax.config import replaced
from agejax.errors import UserError
from agejax.paths import expand
from agejax.process import usage
from agejax.process.command import run_command
from agejax.sweeps import space, study
from agejax.sweeps.search import search
from agejax.training import sharding


def main(argv: Sequence[str]) -> None:
    parser = usage.parser(__doc__, command_line.SETTINGS_HELP)
    parser.add_argument("--space", required=True, help="the Python file of the settings to search")
    parser.add_argument("--study", required=True, help="the folder of the study")
    parser.add_argument(
        "--trials", type=usage.at_least(1), default=25,
        help="trials to complete, with those of earlier calls; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--sampler", choices=study.SAMPLERS, default="tpe",
        help="how settings are drawn; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--start", type=usage.at_least(0), default=5,
        help="random trials to start with, for tpe; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--pruner", choices=study.PRUNERS, default="none",
        help="which trials to stop early; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--storage", default="", help="a database's URL; default: SQLite in the study's folder"
    )
    parser.add_argument(
        "--seed", type=usage.at_least(0), default=0,
        help="seed of the sampler; default: %(default)s",
    )  # fmt: skip
    args, config = command_line.parse_with(parser, argv)
    folder = expand(args.study)
    files.check_folder(folder, "--study")
    _quiet()
    settings = space.read_space(args.space)
    firsts = {k: v["choices"][0] if "choices" in v else v["low"] for k, v in settings.items()}
    replaced(config, firsts)  # raises where a setting does not exist
    if not config.data.split.val_of_train:
        raise UserError(
            "config.data.split.val_of_train: 0 leaves no val split to compare trials on; set it "
            "above 0"
        )
    sharding.start()
    folder.mkdir(parents=True, exist_ok=True)
    created = study.create_study(
        folder,
        args.storage,
        study.create_sampler(args.sampler, args.start, args.seed),
        study.create_pruner(args.pruner),
        config.eval.best_mode,
    )
    search(config, settings, folder, created, args.trials)
    if (folder / "best.json").exists():  # else all trials were pruned
        best = json.loads((folder / "best.json").read_text())
        print(
            f"best of {args.trials}: trial {best['number']}, {best['flags']}: "
            f"{config.eval.best} {best['value']:.4f}"
        )
    print(f"written to {folder}/: index.html, trials.csv, best.json")


def _quiet() -> None:
    """Makes Optuna print errors only. Raises `UserError` where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("the package optuna is missing; pip install -e '.[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
