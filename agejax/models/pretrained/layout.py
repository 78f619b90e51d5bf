"""How a library lays out the weights of one of our models, and how they become ours."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agejax.errors import DAMAGE, UserError, few

Tensors = dict[str, np.ndarray]
# (regex of their module's full name, our module's name): the first that matches wins.
Rules = tuple[tuple[str, str], ...]
Transform = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # mean and std of networks that expect -1..1


def torch_array(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """torch's [out, in, h, w] -> [h, w, in, out], or [h w in, out] for a dense layer of ours."""
    if tensor.ndim == 4:
        kernel = tensor.transpose(2, 3, 1, 0)
        return kernel if len(shape) == 4 else kernel.reshape(-1, kernel.shape[-1])
    return tensor.T if tensor.ndim == 2 else tensor


TORCH_LEAVES = {"running_mean": "mean", "running_var": "var"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One library's names and numbers for one of our models.

    A key of theirs is a module's name, "." or "/", and a leaf, as in `features.0.0.weight`. The
    module is translated by `rules`, the leaf by `leaves`; a leaf that is not there keeps its name,
    and torch's `weight` becomes `scale` (one axis) or `kernel`.

    Attributes:
      library: "torchvision", "timm", "keras", ...: what messages call it.
      rules: module -> our module, "" for the model itself.
      leaves: leaf -> our leaf.
      prepare: whole-file changes before the rules: parts to merge, constants to fold away.
      transform: (our name, their array, our shape) -> an array that should have our shape.
      classifier: regex of whole keys of theirs that belong to the published classifier.
      ignored: regex of whole keys that hold nothing for us, such as counters.
      mean, std: of RGB in 0..1, which the weights expect images to be normalised with. Weights of
        BGR networks are turned to RGB by `prepare`.
      options: of our model, for the numerics of these weights, such as {"padding": "same"}.
      may_differ: those of them that the config may set otherwise.
      doubt: where weights that expect another mean and std look the same in a file, what to tell
        the user: those above are then a default that the config may overrule.
    """

    library: str
    rules: Rules
    leaves: Mapping[str, str] = dataclasses.field(default_factory=lambda: TORCH_LEAVES)
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors
    transform: Transform = torch_array
    classifier: str = r"(classifier|fc|heads?|last_linear)\b.*"
    ignored: str = r".*num_batches_tracked"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    may_differ: tuple[str, ...] = ()
    doubt: str = ""

    def our_name(self, key: str, tensor: np.ndarray) -> str | None:
        """Our flat name of one of their keys, None if no rule covers it."""
        match = re.fullmatch(r"(?:(.*)[./])?([^./]+)", key)
        module, leaf = (match[1] or "", match[2]) if match else ("", key)
        for pattern, ours in self._compiled:
            if found := pattern.fullmatch(module):
                leaf = self.leaves.get(leaf, leaf)
                if not module and leaf not in OUTSIDE:
                    return None
                if leaf == "weight":
                    leaf = "scale" if tensor.ndim == 1 else "kernel"
                return f"{found.expand(ours)}/{leaf}".lstrip("/")
        return None

    def example(self) -> str:
        """The name of a module outside the classifier, with which keys of this layout begin."""
        for pattern, _ in self.rules:
            name = pattern.replace(r"\.", ".").replace(r"\d+", "0").replace(r"\d", "1")
            name = re.sub(r"\[(.)[^]]*\]", r"\1", name).replace("?:", "").replace("?", "")
            name = re.sub(r"\(([^()|]*)[^()]*\)", r"\1", name)  # the first of (a|b)
            if name and re.fullmatch(pattern, name) and not re.fullmatch(self.classifier, name):
                return name
        raise AssertionError(f"no rule of {self.library} gives a name")

    @functools.cached_property
    def _compiled(self) -> list[tuple[re.Pattern[str], str]]:
        """The rules, compiled here since all layouts have more of them than re's cache holds."""
        return [(re.compile(pattern), ours) for pattern, ours in self.rules]

    def prepared(self, tensors: Tensors) -> Tensors:
        """Calls `prepare`, which assumes the keys and shapes that this library writes.

        Raises:
          UserError: the file has others.
        """
        try:
            return self.prepare(tensors)
        except DAMAGE as error:
            raise UserError(f"has arrays that {self.library} does not write: {error}") from error

    def covered(self, tensors: Tensors) -> int:
        """How many keys of a file this layout knows; the layout that knows most is chosen."""
        try:
            prepared = self.prepared(tensors)
        except UserError:
            prepared = tensors
        return sum(
            re.fullmatch(self.ignored, key) is None and self.our_name(key, tensor) is not None
            for key, tensor in prepared.items()
        )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The content of a weights file.

    Attributes:
      library: that wrote it.
      arrays: float32, by our names.
      fresh: our names without a value in the file: those of our own classifier.
      left_out: keys that a backbone does not use: of its classifier, and of heads beside it.
      doubt: as in the layout.
      prefix: of all the backbone's keys.
    """

    library: str
    arrays: dict[str, np.ndarray]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    doubt: str = ""
    prefix: str = ""

    def __str__(self) -> str:
        values = sum(array.size for array in self.arrays.values())
        parts = [f"loaded {len(self.arrays)} arrays ({values:,} values) of {self.library}"]
        if self.prefix:
            parts.append(f"its keys begin with {self.prefix!r}")
        if self.fresh:
            parts.append(f"new, at random: {few(self.fresh, 8)}")
        if self.left_out:
            parts.append(f"not used: {few(self.left_out, 8)}")
        if self.doubt:
            parts.append(self.doubt)
        return "; ".join(parts)


def fit(
    tensors: Tensors, layout: Layout, shapes: Mapping[str, tuple[int, ...]], where: str
) -> Loaded:
    """Turns a library's tensors into our arrays.

    Keys of modules that no rule knows are left out as heads beside the backbone, if the backbone is
    complete and they are not part of its own modules.

    Args:
      shapes: of the backbone's arrays by our names, without a prefix.
      where: how a message begins.

    Raises:
      Misfit: keys or shapes that do not match on either side; names the first of each kind.
    """
    found: dict[str, np.ndarray | None] = {}  # None: in the file, but unusable
    left_out: list[str] = []
    beside: list[str] = []  # keys of modules that no rule knows
    strange: list[str] = []  # keys that a rule knows, but this model lacks
    wrong: list[str] = []
    modules: set[str] = set()
    try:
        prepared = layout.prepared(tensors)
    except UserError as error:
        raise UserError(f"{where} {error}") from error
    for key, tensor in prepared.items():
        if re.fullmatch(layout.ignored, key):
            continue
        name = layout.our_name(key, tensor)
        if name is None or name not in shapes:
            if re.fullmatch(layout.classifier, key):
                left_out.append(key)
            else:
                (beside if name is None else strange).append(key)
            continue
        modules.add(_top(key))
        short = key if len(key) <= 60 else f"{key[:57]}..."
        if name in found:
            wrong.append(f"{short} is the second tensor for {name}")
        found[name] = None
        try:
            value = layout.transform(name, tensor, shapes[name])
        except UserError as error:
            wrong.append(f"{short} {error}")
            continue
        except DAMAGE:  # the transform does not expect this number of axes
            wrong.append(f"{short} is {tensor.shape}, {name} needs {shapes[name]}")
            continue
        if value.shape != shapes[name]:
            wrong.append(f"{short} is {value.shape}, {name} needs {shapes[name]}")
        elif not np.isfinite(value).all():
            wrong.append(f"{short} has values that are not finite")
        else:
            found[name] = np.ascontiguousarray(value, np.float32)
    # Our classifier's arrays may lack values if the file has no classifier at all.
    missing = sorted(shapes.keys() - found)
    lacking = [name for name in missing if not OUR_CLASSIFIER.fullmatch(name)]
    heads = [key for key in beside if _top(key) not in modules and not BACKBONE.search(_top(key))]
    if wrong or lacking or strange or len(heads) < len(beside):
        known = {*heads, *strange}
        strange += [key for key in beside if wrong or lacking or key not in known]
        raise Misfit(where, layout.library, wrong, lacking, strange)
    arrays = {name: value for name, value in found.items() if value is not None}
    return Loaded(layout.library, arrays, tuple(missing), (*left_out, *heads), layout.doubt)


class Misfit(UserError):
    """A file whose keys or shapes do not match the model's.

    Attributes:
      problems: how many.
    """

    def __init__(
        self,
        where: str,
        library: str,
        wrong: Sequence[str],
        missing: Sequence[str],
        strange: Sequence[str],
    ) -> None:
        parts = [
            "; ".join(wrong[:2]) + (f" and {len(wrong) - 2:,} more" if len(wrong) > 2 else ""),
            f"{few(missing, 2)} {'is' if len(missing) == 1 else 'are'} missing" if missing else "",
            f"{few(strange, 2)} {'has' if len(strange) == 1 else 'have'} no place"
            if strange
            else "",
        ]
        super().__init__(f"{where} ({library}) does not fit: {'; '.join(filter(None, parts))}")
        self.problems = len(wrong) + len(missing) + len(strange)


def _top(key: str) -> str:
    """The outermost module of a key, "" for keys outside all modules."""
    module, separator, _ = re.sub("/", ".", key).partition(".")
    return module if separator else ""


OUTSIDE = ("cls_token", "pos_embed")  # our arrays outside all modules: a ViT's
OUR_CLASSIFIER = re.compile(r"(classifier|fc|head)\b.*")  # of every backbone, by our names
# Names of modules that change what a backbone computes, so they are not heads beside it.
BACKBONE = re.compile(r"norm|embed|token|stem", re.IGNORECASE)
