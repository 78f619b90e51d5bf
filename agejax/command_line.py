"""The config of a command line: `--config=FILE` and settings such as `--config.optim.lr=0.1`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from agejax.errors import UserError, line_in
from agejax.paths import config_file

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The config file to train.")


def parse(argv: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of a command line.

    Raises:
      UserError: absl or the config objects to it, or its file raises an error or has no config.
    """
    argv = _with_config_file(argv)
    path = _config_path(argv)
    try:
        extra = FLAGS(argv)[1:]
        if CONFIG.value is not None:
            getattr(CONFIG.value, "keys", None)  # a file that cannot be read says so now
    except (Exception, SystemExit) as error:
        if path and (where := line_in(path, error)):
            raise UserError(f"--config={path}, {where}") from error
        if isinstance(error, AttributeError) and "'get_config'" in str(error):
            raise UserError(
                f"--config={path} has no get_config(); write one that returns "
                "agejax.config.default() with your changes"
            ) from error
        if isinstance(error, OSError):  # the config's own, which quotes the first error
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"--config={path} cannot be loaded: {reason}") from error
        if not isinstance(error, _OF_ABSL):
            raise
        raise UserError(
            _unknown_setting(str(error), argv) or " ".join(str(error).split())
        ) from error
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; flags look like --name=value")
    if path is None and CONFIG.value is None:
        raise UserError("--config is missing: name a file, such as --config=configs/quickstart.py")
    if not isinstance(CONFIG.value, ml_collections.ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returns {type(CONFIG.value).__name__}; let it return "
            "agejax.config.default() with your changes"
        )
    return CONFIG.value


_OF_ABSL = (flags.Error, AttributeError, KeyError, TypeError, ValueError)


def _with_config_file(argv: Sequence[str]) -> list[str]:
    """The command line with the path of the config file in place of its name."""
    found = list(argv)
    for i, argument in enumerate(argv):
        if argument.startswith("--config="):
            found[i] = f"--config={config_file(argument.removeprefix('--config='))}"
        elif argument == "--config" and i + 1 < len(argv):
            found[i + 1] = config_file(argv[i + 1])
    return found


def _config_path(argv: Sequence[str]) -> str | None:
    """The config file that is named last; a part after a colon goes to its get_config()."""
    found = None
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            found = value if equals else following
    return found and found.partition(":")[0]


# Groups that take more settings than the config file has written down.
_OPEN = re.compile(r"--(config\.(?:(?:model|data)\.options|heads\.\w+))\.\w+")


def _unknown_setting(message: str, argv: Sequence[str]) -> str | None:
    """Names the argument of an unknown key, of which the config's message gives the key only."""
    key = re.match(r"[\\'\"]+(\w+)", message)
    for flag in (argument.partition("=")[0] for argument in argv):
        if key and flag.startswith("--config.") and key[1] in flag.split("."):
            near = re.search(r'Did you mean "(\w+)"', message)
            hint = f"did you mean {near[1]!r}?" if near else "agejax/config.py lists all there are"
            if group := _OPEN.fullmatch(flag):
                hint = f"write it in the config file, or give all of {group[1]} as one dict"
            return f"{flag}: there is no setting {key[1]!r}; {hint}"
    return None
