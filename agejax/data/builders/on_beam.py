"""A builder's examples by Apache Beam: any number of workers, each of which reads a part."""

from __future__ import annotations

import copy
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import apache_beam as beam


class Reader(Protocol):
    """The part of a builder that a worker uses.

    Attributes:
      skipped: "name: reason" of what `examples` could not use.
    """

    skipped: list[str]

    def examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (id, features) of every example in the builder's part of the images."""
        ...


class Examples(beam.PTransform[Any, Any]):
    """The start of a pipeline -> (id, features) of every example.

    Args:
      builder: the class.
      state: the attributes of a builder that its `examples` needs, except `part`.
      parts: into how many parts the images are divided.
      unread: a file for what the workers could not read: JSON lists of "name: reason", one per
        line.
    """

    def __init__(
        self, builder: type[Reader], state: Mapping[str, Any], parts: int, unread: pathlib.Path
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


def read(part: int, builder: type[Reader], state: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the examples of one part, and what it could not read."""
    reader = builder.__new__(builder)
    vars(reader).update(copy.deepcopy(dict(state)), part=part)
    yield from reader.examples()
    yield beam.pvalue.TaggedOutput("skipped", reader.skipped)
