"""The data sets that agejax can read. To add one, write a module here and a line in `TABLE`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agejax.errors import check_keys

if TYPE_CHECKING:
    from agejax.data.builders.base import FaceBuilder

# name -> (module, class); imported when asked for, since tfds is slow to import.
TABLE = {
    "utkface": ("utkface", "UTKFace"),
    "appa_real": ("appa_real", "AppaReal"),
    "aaf": ("aaf", "AAF"),
    "image_folder": ("image_folder", "ImageFolder"),
    "imdb_wiki": ("imdb_wiki", "IMDBWIKI"),
    "fairface": ("fairface", "FairFace"),
    "agedb": ("agedb", "AgeDB"),
    "fg_net": ("fg_net", "FGNet"),
    "adience": ("adience", "Adience"),
    "cacd": ("cacd", "CACD"),
    "morph": ("morph", "Morph"),
    "procedural_faces": ("procedural_faces", "ProceduralFaces"),
}


def find(name: str) -> type[FaceBuilder]:
    """The builder class of that name.

    Raises:
      UserError: an unknown name; the message gives the nearest one.
    """
    check_keys([name], TABLE, "config.data.name")
    module, builder = TABLE[name]
    found: type[FaceBuilder] = getattr(importlib.import_module(f"{__name__}.{module}"), builder)
    return found
