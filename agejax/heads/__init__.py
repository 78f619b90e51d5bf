"""A head holds everything for one target: last layer, loss, decoding and training metrics.

To add one, subclass `Head`, decorate it with `@register("kind")`, and name the kind in a config:
the loop, the checkpoint, the evaluation and the report do not change.
"""

from agejax.heads import ages, classes
from agejax.heads.head import KINDS, Facts, Head, Labels, create, derive, register, write_out

__all__ = [
    "KINDS", "Facts", "Head", "Labels", "ages", "classes", "create", "derive", "register",
    "write_out",
]  # fmt: skip
