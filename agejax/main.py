"""python -m agejax.main --config=configs/vit_utk.py [--workdir=DIR] [--config.x.y=value ...]"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from agejax.errors import UserError, run_command

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The config file to train.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default: runs/<config name>.")


def parse(argv: Sequence[str]) -> None:
    """Parses the command line; what absl or the config objects to becomes a `UserError`."""
    try:
        extra = FLAGS(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; flags look like --name=value")
    if CONFIG.value is None:
        raise UserError("--config is missing: name a file, such as --config=configs/quickstart.py")


def main(argv: Sequence[str]) -> None:
    """Trains, then scores the best checkpoint on the final split."""
    parse(argv)
    from agejax import evaluate, sharding, train

    sharding.start()
    config = CONFIG.value
    name = pathlib.Path(config_flags.get_config_filename(FLAGS["config"])).stem
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs") / name)
    summary = train.train(config, workdir)
    if summary is not None and config.eval.final_split:
        evaluate.evaluate(workdir, split=config.eval.final_split)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
