"""What XLA says that a compiled program computes, moves and holds, where the platform tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one call of a compiled program, on each of its devices; None: not told.

    Attributes:
      flops, bytes_accessed: as XLA counts them; the body of a loop counts once, and a kernel of our
        own (`models.lowerings.native`) not at all.
      argument_bytes: memory of the arguments.
      temporary_bytes: memory of what comes and goes during the call.
    """

    flops: float | None
    bytes_accessed: float | None
    argument_bytes: int | None
    temporary_bytes: int | None

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> Cost:
        counts: Mapping[str, float] = program.cost_analysis() or {}
        flops, accessed = (counts.get(key, 0) for key in ("flops", "bytes accessed"))
        memory = program.memory_analysis()
        return cls(
            flops=flops if flops > 0 else None,
            bytes_accessed=accessed if accessed > 0 else None,
            argument_bytes=memory.argument_size_in_bytes if memory else None,
            temporary_bytes=memory.temp_size_in_bytes if memory else None,
        )
