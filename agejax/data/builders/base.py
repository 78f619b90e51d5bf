"""What every face data set is to tfds: the features of one face, and the builder they share."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from agejax.errors import UserError

SPLIT = "train"  # tfds' name for the one split of a data set that has no official ones


@dataclasses.dataclass(frozen=True)
class Face:
    """One example. `image` is an encoded file's bytes (JPEG, PNG, ...), ages are in years.

    `group` names what must stay on one side of a split (a person, say); "" is a group of its own.
    Duplicates need none here: sources.py finds them by their pixels.
    """

    id: str
    image: bytes
    age: float = math.nan
    gender: int = -1
    ethnicity: int = -1
    apparent_age: float = math.nan
    apparent_age_std: float = math.nan
    group: str = ""


class FaceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A tfds builder of faces that needs no TensorFlow. A data set is a subclass with:

    - `name`, `VERSION`: raise the version when the same files would give other examples;
    - `LABEL_NAMES`: {"gender": (...), "ethnicity": (...)}, the names of the classes;
    - `faces()`, which yields each `Face`;
    - `locate()`, where it reads files of the user's;
    - options of its own as keyword-only arguments of `__init__`, the rest passed on.
    """

    VERSION = tfds.core.Version("1.0.0")
    LABEL_NAMES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    FIND_DUPLICATES: ClassVar[bool] = True  # by their pixels, when the source is loaded

    def __init__(self, *, source: str | pathlib.Path | None = None, **kwargs: Any) -> None:
        """`source` is the archive or folder to read, as `locate` gives it."""
        self.source = None if source is None else pathlib.Path(source)
        self.skipped: list[str] = []  # "name: reason" of what `faces` could not use
        super().__init__(**{"file_format": "array_record"} | kwargs)

    @classmethod
    def option_names(cls) -> list[str]:
        """The keys of config.data.options that this data set knows."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "source"]

    @classmethod
    def locate(cls, path: str | None) -> pathlib.Path | None:
        """The files to read: `path`, or what the manual folder holds; None: none are needed.

        Raises:
          UserError: a path that does not exist, or nothing found: what to get and where to put it.
        """
        if path is not None:
            raise UserError(f"{path}: the data set {cls.name} reads no files; leave the source out")
        return None

    def faces(self) -> Iterator[Face]:
        """Every usable face once, in any order; appends to `skipped` what is not usable."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),  # any encoding, kept as it is
            "age": np.float32,
            "gender": np.int32,
            "ethnicity": np.int32,
            "apparent_age": np.float32,
            "apparent_age_std": np.float32,
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(
                label_names={k: list(v) for k, v in self.LABEL_NAMES.items()}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        empty = True
        for face in self.faces():
            empty = False
            yield face.id, vars(face)
        if empty:
            raise UserError(no_image(self.name, self.source, self.skipped))
        self.info.metadata["skipped"] = self.skipped


def no_image(name: str, source: pathlib.Path | None, skipped: Sequence[str]) -> str:
    """What to tell a user whose files hold no usable image."""
    first = f", the first: {skipped[0]}" if skipped else ""
    return (
        f"{source or name}: no usable image for the data set {name!r} in it "
        f"({len(skipped)} skipped{first}); is it the right archive or folder?"
    )
