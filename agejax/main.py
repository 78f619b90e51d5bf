"""python -m agejax.main --config=FILE [--workdir=DIR] [--config.x.y=VALUE ...]

Trains what a config describes, and scores the best checkpoint on the final split. The same command
resumes a run that was stopped. For example:

    python -m agejax.main --config=configs/quickstart.py --config.total.steps=200
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from agejax.command_line import FLAGS, parse
from agejax.errors import UserError
from agejax.paths import expand
from agejax.process import interrupts, usage
from agejax.process.command import run_command

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if several processes train one run."
)
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.")
PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", 300.0, "Seconds to wait for the other processes; default: 300.", lower_bound=1.0
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Only reports what would be trained and what a step costs; trains nothing."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default: runs/<config name>.")


def main(argv: Sequence[str]) -> None:
    """Trains, then scores the best checkpoint on the final split."""
    config = parse(argv, usage.text(__doc__))
    with interrupts.handled_by(interrupts.leave):
        import jax

        from agejax.runs import box
        from agejax.train import train
        from agejax.training import peers, sharding

    if box.is_name(WORKDIR.value or ""):
        raise UserError(
            f"--workdir={WORKDIR.value} names a model that agejax comes with; write "
            f"./{WORKDIR.value} for a folder of that name"
        )
    with peers.together():
        sharding.join(COORDINATOR.value, PROCESSES.value, PROCESS.value, JOIN_TIMEOUT.value)
        sharding.start()
        name = pathlib.Path(config_flags.get_config_filename(FLAGS["config"])).stem
        workdir = expand(WORKDIR.value or pathlib.Path("runs") / name)
        summary = train(config, workdir, dry_run=DRY_RUN.value)
    if DRY_RUN.value or summary is None or not config.eval.final_split:
        return
    if jax.process_count() == 1:
        # What a report needs takes as long to import as all of a training: not before it.
        with interrupts.handled_by(interrupts.leave):
            from agejax.reporting import results

        results.evaluate(workdir, split=config.eval.final_split)
        return
    # One new process does the scoring: this one is bound to all the others.
    first = jax.process_index() == 0
    peers.leave()
    jax.distributed.shutdown()
    if first:
        arguments = [f"--workdir={workdir}", f"--split={config.eval.final_split}"]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "agejax.evaluate", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
