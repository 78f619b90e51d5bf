"""python -m agejax.main --config=configs/vit_utk.py [--workdir=DIR] [--config.x.y=value ...]"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from agejax.errors import UserError, run_command
from agejax.paths import expand

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The config file to train.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where several processes train one run."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this one is, from 0.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default: runs/<config name>.")


def parse(argv: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of a command line; what absl or the config objects to is a `UserError`."""
    argv = [f"--config={expand(a[9:])}" if a.startswith("--config=~") else a for a in argv]
    try:
        extra = FLAGS(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            _unknown_setting(str(error), argv) or " ".join(str(error).split())
        ) from error
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; flags look like --name=value")
    if CONFIG.value is None:
        raise UserError("--config is missing: name a file, such as --config=configs/quickstart.py")
    try:
        CONFIG.value.keys()  # a file that failed to load says so at its first use
    except OSError as error:
        path = config_flags.get_config_filename(FLAGS["config"])
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"--config={path} cannot be loaded: {reason}") from error
    return CONFIG.value


def _unknown_setting(message: str, argv: Sequence[str]) -> str | None:
    """Names the argument of an unknown key, of which the config's message gives the key only."""
    key = re.match(r"[\\'\"]+(\w+)", message)
    for flag in (argument.partition("=")[0] for argument in argv):
        if key and flag.startswith("--config.") and key[1] in flag.split("."):
            near = re.search(r'Did you mean "(\w+)"', message)
            hint = f"did you mean {near[1]!r}?" if near else "agejax/config.py lists all there are"
            return f"{flag}: there is no setting {key[1]!r}; {hint}"
    return None


def main(argv: Sequence[str]) -> None:
    """Trains, then scores the best checkpoint on the final split."""
    config = parse(argv)
    import jax

    from agejax import evaluate, sharding, train

    sharding.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    sharding.start()
    name = pathlib.Path(config_flags.get_config_filename(FLAGS["config"])).stem
    workdir = expand(WORKDIR.value or pathlib.Path("runs") / name)
    summary = train.train(config, workdir)
    if summary is None or not config.eval.final_split:
        return
    if jax.process_count() == 1:
        evaluate.evaluate(workdir, split=config.eval.final_split)
        return
    # Scoring takes one process, and a fresh one: this one is bound to all the others.
    first = jax.process_index() == 0
    jax.distributed.shutdown()
    if first:
        arguments = [f"--workdir={workdir}", f"--split={config.eval.final_split}"]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "agejax.evaluate", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
