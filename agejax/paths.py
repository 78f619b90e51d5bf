"""Paths as users write them: `expand` is called wherever a command or a setting names one."""

from __future__ import annotations

import os
import pathlib

from agejax.errors import UserError, nearest

CONFIGS = pathlib.Path(__file__).parent / "configs"  # the configs that come with agejax


def expand(path: str | os.PathLike[str]) -> pathlib.Path:
    """Replaces a leading ~ or ~USER by the home folder, as a shell does.

    A shell does so only at the start of a word, not in `--output=~/x` or in a config file. A name
    that begins with ~ but names no user is not changed.

    Raises:
      UserError: the home folder is unknown (no HOME, and a user without an account).
    """
    path = pathlib.Path(path)
    try:
        return path.expanduser()
    except RuntimeError as error:
        if path.parts[0] != "~":
            return path
        raise UserError(
            f"{path}: the home folder is not known; set HOME, or write the path without ~"
        ) from error


def cache_folder(given: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The absolute cache folder: `given`, else $AGEJAX_CACHE, else ~/.cache/agejax.

    Raises:
      UserError: as `expand`.
    """
    given = given or os.environ.get("AGEJAX_CACHE")
    if given:
        return expand(given).absolute()
    try:
        return expand("~/.cache/agejax")
    except UserError as error:
        raise UserError(
            "there is no home folder to keep the cache in; set AGEJAX_CACHE to a folder"
        ) from error


def config_file(given: str) -> str:
    """Finds the config file that a user names, by path or by the name of one in agejax.

    "quickstart" is configs/quickstart.py, wherever agejax is installed. A file of that name in the
    current folder comes first. The part after a colon goes to the file's get_config().

    Raises:
      UserError: a name without folder and suffix that matches no file; or as `expand`.
    """
    name, colon, argument = given.partition(":")
    path = expand(name)
    if not name or path.suffix or len(path.parts) > 1 or path.is_file():
        return f"{path}{colon}{argument}" if name else given
    names = sorted(file.stem for file in CONFIGS.glob("[!_]*.py"))
    if name not in names:
        raise UserError(
            f"--config={given}: no file of that name, nor a config that agejax comes with; "
            f"{nearest(name, names)}"
        )
    return f"{CONFIGS / name}.py{colon}{argument}"
