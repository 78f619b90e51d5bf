"""agejax COMMAND ...: the commands by name; `agejax train` is `python -m agejax.main`."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from agejax.errors import UserError, nearest
from agejax.process import usage
from agejax.process.command import run_command
from agejax.version import __version__

# Command -> (its module, what it does).
COMMANDS = {
    "train": ("agejax.main", "train what a config describes, then score it"),
    "evaluate": ("agejax.evaluate", "score a run: metrics, predictions and a report"),
    "predict": ("agejax.predict", "predict the faces of images"),
    "explain": ("agejax.explain", "show which parts of a face drive a prediction"),
    "export": ("agejax.export", "write a model that needs no agejax: JAX, ONNX or a web page"),
    "release": ("agejax.release", "pack a run as a small folder to share"),
    "papers": ("agejax.papers", "write a model card, a datasheet and a practice statement"),
    "ensemble": ("agejax.ensemble", "combine several runs into one"),
    "distill": ("agejax.distill", "write a run's predictions, to teach another run"),
    "pseudo-label": ("agejax.pseudo_label", "label new faces with a run, to train on them"),
    "baselines": ("agejax.baselines", "fit classical estimators on a backbone's features"),
    "sweep": ("agejax.sweep", "search the settings of a config"),
    "cross-validate": ("agejax.cross_validate", "train every fold of a config, one after another"),
    "settings": ("agejax.reference", "list every setting: its default, limits and meaning"),
    "prepare": ("agejax.data.prepare", "prepare a data set before a training does"),
    "audit": ("agejax.data.audit", "report what is wrong with a data set"),
    "protocol": ("agejax.data.protocol", "write a public benchmark's splits as lists of names"),
    "distribution": ("agejax.data.distribution", "show which groups a config's sampling draws"),
    "align": ("agejax.data.align", "copy a data set, framed as a run's training images"),
}
OF_DATA = "prepare"  # the first command about data


def overview() -> str:
    """Lists the commands, one line each."""
    lines = ["usage: agejax COMMAND [ARGUMENT ...]", "", "Models:"]
    for name, (_, what) in COMMANDS.items():
        if name == OF_DATA:
            lines += ["", "Data:"]
        lines.append(f"  {name:15} {what}")
    lines += [
        "",
        "agejax COMMAND --help lists the arguments of a command.",
        f"Version {__version__}.",
    ]
    return "\n".join(lines)


def show(arguments: Sequence[str]) -> None:
    """Prints the overview, or the version.

    Raises:
      UserError: a command that does not exist.
    """
    given = arguments[0] if arguments else "--help"
    if given == "--version":
        print(f"agejax {__version__}")
    elif given in ("-h", "--help", "help"):
        print(overview())
    else:
        hint = nearest(given, COMMANDS)
        raise UserError(f"no command {given!r}: {hint} (agejax --help lists them)")


def main() -> None:
    """Runs the command that sys.argv names, exactly as `python -m` runs its module."""
    name, *arguments = sys.argv[1:] or [""]
    if name not in COMMANDS:
        sys.exit(run_command(show, sys.argv[1:]))
    usage.typed(f"agejax {name}")
    sys.argv[1:] = arguments
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())  # a config may import a module next to it
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
