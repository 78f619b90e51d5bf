"""FG-NET: [subject]A[age][a|b|...].JPG."""

from __future__ import annotations

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from agejax.data.builders.base import Face, FaceBuilder

NAME = re.compile(r"(\d{3})A(\d{2})[a-z]?", re.IGNORECASE)


class FGNet(FaceBuilder):
    """1,002 photos of 82 people of 0 to 69 years (Lanitis et al. 2002), for research only.

    A person is a group, so no split separates a person's photos.
    """

    name = "fg_net"
    VERSION = tfds.core.Version("1.1.0")
    USUAL_NAMES = ("FGNET.zip", "FGNET.tar.gz", "FGNET")
    DOWNLOAD = "FGNET.zip from https://yanweifu.github.io/FG_NET_data/"

    def faces(self) -> Iterator[Face]:
        for path, match, data in self.images(NAME, "[subject]A[age].JPG"):
            name = path.rsplit("/", 1)[-1]
            yield Face(id=name, image=data, age=int(match[2]), group=match[1])
