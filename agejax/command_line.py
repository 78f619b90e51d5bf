"""The config of a command line: `--config=FILE` and settings such as `--config.optim.lr=0.1`."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from agejax import overrides, reference
from agejax.config import SETTINGS, check, check_returned, file_error, places_of
from agejax.errors import UserError
from agejax.paths import config_file
from agejax.settings import Setting

FLAGS = flags.FLAGS
_ARGV: list[str] = []  # where ml_collections reads settings while `parse` runs
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The config: a file, or the name of one that comes with agejax, such as quickstart.",
    sys_argv=_ARGV,
)


def help_of_settings(argv: Sequence[str]) -> None:
    """Where help on settings is requested, as in --help=config.schedule, prints it and exits.

    Raises:
      UserError: there is no such setting.
    """
    if topic := _help_topic(argv[1:]):
        print(reference.text(topic), end="")
        sys.exit()


def parse_with(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """Reads a command's own arguments, and from the others the config.

    Args:
      parser: of the command's own arguments.

    Raises:
      UserError: as `parse`.
    """
    help_of_settings(argv)
    args, rest = parser.parse_known_args(argv[1:])
    return args, parse([argv[0], *rest])


def parse(argv: Sequence[str], usage: str = "") -> ml_collections.ConfigDict:
    """Reads the config from a command line. Where help is requested, prints it and exits.

    Args:
      usage: what the help begins with: how to call the command, and what it does.

    Raises:
      UserError: absl or the config rejects it, its file raises an error or has no config, or a
        setting is not what `agejax.config.check` allows.
    """
    help_of_settings(argv)
    if _help_topic(argv[1:]) is not None:
        print(f"usage: {usage}\n\n{_flags_help()}", end="")
        sys.exit()
    argv, parts = overrides.split(_config_first(argv))
    path = _config_path(argv)
    if path == "":
        raise UserError(_NO_CONFIG)
    for flag in [name for name in FLAGS if name.startswith("config.")]:
        delattr(FLAGS, flag)  # a setting of an earlier command line of this process
    try:
        _ARGV[:] = argv
        extra = FLAGS(argv)[1:]
        if CONFIG.value is not None:
            getattr(CONFIG.value, "keys", None)  # raises now if the file cannot be read
    except (Exception, SystemExit) as error:
        if path and (line := file_error(path, error, f"--config={path}")):
            raise line from error
        if not isinstance(error, _OF_ABSL):
            raise
        raise UserError(
            _unknown_setting(str(error), argv)
            or _wrong_value(str(error))
            or " ".join(str(error).split())
        ) from error
    finally:
        _ARGV.clear()
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; flags look like --name=value")
    if path is None and CONFIG.value is None:
        raise UserError(_NO_CONFIG)
    check_returned(CONFIG.value, f"--config={path}")
    check(CONFIG.value)
    overrides.apply(CONFIG.value, parts)
    return CONFIG.value


_NO_CONFIG = "--config is missing: name a file, such as --config=configs/quickstart.py"
_OF_ABSL = (flags.Error, AttributeError, KeyError, TypeError, ValueError)


def _config_first(argv: Sequence[str]) -> list[str]:
    """The command line with the config file first, and its path in place of its name.

    ml_collections takes settings only after the file; here they may come in any order.
    """
    configs, others = [], []
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument == "--config" and (following := next(arguments, None)) is not None:
            argument = f"--config={following}"
        if argument.startswith("--config="):
            configs.append(f"--config={config_file(argument.removeprefix('--config='))}")
        else:
            others.append(argument)
    return [argv[0], *configs, *others]


def _config_path(argv: Sequence[str]) -> str | None:
    """The config file named last; the part after a colon goes to its get_config()."""
    found = None
    for argument, following in itertools.pairwise([*argv, ""]):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            found = value if equals else following
    return found and found.partition(":")[0]


def _help_topic(arguments: Sequence[str]) -> str | None:
    """Which help is requested: "" for the command's, a path such as "config.schedule", or None."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument in ("-h", "-help", "--help"):
            return following if following.partition(".")[0] == "config" else ""
        if argument.startswith("--help="):
            return argument.removeprefix("--help=")
    return None


def _flags_help() -> str:
    """The flags of the running command, and how to give settings."""
    lines = ["flags:"]
    for module, found in FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.startswith("agejax."):
            for flag in found:
                value = "" if flag.boolean else f"={flag.name.upper()}"
                lines += [f"  --{flag.name}{value}", f"      {flag.help}"]
    return "\n".join([*lines, "", SETTINGS_HELP])


SETTINGS_HELP = """\
settings:
  Any setting of the config is set by its path, such as
      --config.schedule.lr=3e-3 --config.total.steps=200 --config.eval.every.epochs=0.5
      --config.heads.gender.smoothing=0.1 --config.data.options.labels=labels.csv
      --config.augment.crop="(0.8, 1.0)" --config.data.edits.only.gender=female
  --help=config lists the settings with their defaults, allowed values, and one sentence each;
  --help=config.schedule lists those of the schedule, --help=config.heads those of heads, and so on.
"""


def _wrong_value(message: str) -> str | None:
    """Names a setting's allowed values, for absl's message about a value that it cannot read."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    setting = dict(SETTINGS.walk("config")).get(f"config.{found[1]}") if found else None
    if found is None or not isinstance(setting, Setting):
        return None
    return f"--config.{found[1]}={found[2]}: set it to {setting.wanted}"


def _unknown_setting(message: str, argv: Sequence[str]) -> str | None:
    """Names the argument with an unknown key, where the config's message gives only the key."""
    key = re.match(r"[\\'\"]+(\w+)", message)
    for flag in (argument.partition("=")[0] for argument in argv):
        if key and flag.startswith("--config.") and key[1] in flag.split("."):
            near = re.search(r'Did you mean "(\w+)"', message)
            hint = f"did you mean {near[1]!r}?" if near else "--help=config lists all there are"
            if places := places_of(key[1]):
                hint = f"did you mean {' or '.join(f'--{place}' for place in places)}?"
            return f"{flag}: there is no setting {key[1]!r}; {hint}"
    return None
