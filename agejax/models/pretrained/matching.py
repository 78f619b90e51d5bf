"""Finds the backbone in a file, and the model that a file looks like."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from flax import nnx

from agejax.errors import UserError
from agejax.models import registry
from agejax.models.pretrained.layout import Layout, Misfit, Tensors, fit

SHARE = 0.2  # the smallest share of a file's keys that begin with a backbone's prefix
DEPTH = 4  # how many modules may enclose a backbone
ENOUGH = 0.6  # the share of keys that a layout must know for a file to look like its model
TWINS = 20  # keys of a backbone: fewer may be known in two places by chance


@dataclasses.dataclass(frozen=True)
class Match:
    """The backbone in a file.

    Attributes:
      layout: the one that knows most keys.
      tensors: the backbone's, without the prefix.
      prefix: of all the backbone's keys, such as "model.".
      beside: keys without this prefix.
      known: how many keys the layout knows.
      twins: other prefixes under which it knows as many.
    """

    layout: Layout
    tensors: Tensors
    prefix: str = ""
    beside: tuple[str, ...] = ()
    known: int = 0
    twins: tuple[str, ...] = ()


def find(tensors: Tensors, layouts: Sequence[Layout]) -> Match:
    """The layout and the (shortest) prefix that together know most keys of a file."""
    counter = sum(key.endswith("num_batches_tracked") for key in tensors)
    best: Match | None = None
    for prefix in _prefixes(tensors):
        inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if best is not None and len(inside) < best.known:
            continue
        for layout in layouts:
            known = layout.covered(inside)
            if best is None or known > best.known:
                beside = tuple(key for key in tensors if not key.startswith(prefix))
                best = Match(layout, inside, prefix, beside, known)
            elif known == best.known >= TWINS and not prefix.startswith(best.prefix):
                best = dataclasses.replace(best, twins=(*best.twins, prefix))
        assert best is not None
        if best.known >= len(tensors) - counter:
            break
    assert best is not None
    return best


def _prefixes(tensors: Tensors) -> Iterator[str]:
    """Yields "", then prefixes of many keys, the shortest first."""
    yield ""
    counts: Counter[str] = Counter()
    for key in tensors:
        ends = [match.end() for match in re.finditer(r"[./]", key[:200])][:DEPTH]
        counts.update(key[:end] for end in ends)
    yield from sorted((p for p, n in counts.items() if n >= SHARE * len(tensors)), key=len)


def looks_like(tensors: Tensors, layouts: Mapping[str, Sequence[Layout]]) -> list[str]:
    """The model or models that a file resembles most; empty if it resembles none.

    Args:
      layouts: of each model.
    """
    matches = {model: find(tensors, each) for model, each in layouts.items()}
    most = max(match.known for match in matches.values())
    if most < ENOUGH * len(tensors):
        return []
    alike = [model for model, match in matches.items() if match.known >= 0.9 * most]
    if len(alike) > 1:
        problems = {model: _problems(model, matches[model]) for model in alike}
        alike = [model for model in alike if problems[model] == min(problems.values())]
    return alike


def _problems(model: str, match: Match) -> int:
    """How many keys and shapes of the match do not fit the model."""
    network = nnx.eval_shape(lambda: registry.create(model, image_size=224, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat)))
    shapes = {"/".join(map(str, path)): v.get_value().shape for path, v in flat}
    try:
        fit(match.tensors, match.layout, shapes, "")
    except Misfit as error:
        return error.problems
    except UserError:
        return len(shapes)
    return 0
