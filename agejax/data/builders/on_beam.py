"""The examples of a builder on Apache Beam: any number of workers, each reading a part."""

from __future__ import annotations

import copy
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import apache_beam as beam

if TYPE_CHECKING:
    from agejax.data.builders.base import FaceBuilder


class Examples(beam.PTransform):
    """A pipeline's beginning -> (id, features) of every example.

    Args:
      builder: the class.
      state: of a builder, all that its `faces` needs.
      parts: of the images.
      unread: a file for what only a worker finds out, JSON lists of "name: reason", one a line.
    """

    def __init__(
        self, builder: type[FaceBuilder], state: Mapping[str, Any], parts: int, unread: pathlib.Path
    ) -> None:
        super().__init__()
        self._read = (builder, state, parts)
        self._unread = unread

    def expand(self, pipeline: Any) -> Any:
        builder, state, parts = self._read
        found = (
            pipeline
            | beam.Create(range(parts))
            | beam.Reshuffle()
            | beam.FlatMap(read, builder, state).with_outputs("skipped", main="examples")
        )
        lists = found.skipped | beam.Map(json.dumps)
        _ = lists | beam.io.WriteToText(str(self._unread), shard_name_template="")
        return found.examples


def read(part: int, builder: type[FaceBuilder], state: Mapping[str, Any]) -> Iterator[Any]:
    """The examples of one part, and what it could not read."""
    reader: Any = builder.__new__(builder)
    vars(reader).update(copy.deepcopy(dict(state)), part=part)
    yield from reader.examples()
    yield beam.pvalue.TaggedOutput("skipped", reader.skipped)
