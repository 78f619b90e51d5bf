"""How one library lays out the weights of one of our models, and how they become ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agejax.errors import DAMAGE, UserError

Tensors = dict[str, np.ndarray]
# (regex of their module's full name, our module's name): the first that matches wins.
Rules = tuple[tuple[str, str], ...]
Transform = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # mean and std of networks that want -1..1


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
    doubt: str = ""

    def our_name(self, key: str, tensor: np.ndarray) -> str | None:
        """Our flat name of one of their keys, None where no rule covers it."""
        match = re.fullmatch(r"(?:(.*)[./])?([^./]+)", key)
        module, leaf = (match[1] or "", match[2]) if match else ("", key)
        for pattern, ours in self.rules:
            if found := re.fullmatch(pattern, module):
                leaf = self.leaves.get(leaf, leaf)
                if leaf == "weight":
                    leaf = "scale" if tensor.ndim == 1 else "kernel"
                return f"{found.expand(ours)}/{leaf}".lstrip("/")
        return None

    def prepared(self, tensors: Tensors) -> Tensors:
        """`prepare`, which takes the keys and shapes that this library writes for granted.

        Raises:
          UserError: others.
        """
        try:
            return self.prepare(tensors)
        except DAMAGE as error:
            raise UserError(f"has arrays that {self.library} does not write: {error}") from error

    def covered(self, tensors: Tensors) -> int:
        """How many keys of a file this layout knows: the one that knows most is the file's."""
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
    """What a weights file gave.

    Attributes:
      library: that wrote it.
      arrays: what it filled, float32, by our names.
      fresh: our names that it has no values for: our own classifier's.
      left_out: its classifier's keys, which a backbone has no use for.
      doubt: as in the layout.
    """

    library: str
    arrays: dict[str, np.ndarray]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    doubt: str = ""

    def __str__(self) -> str:
        values = sum(array.size for array in self.arrays.values())
        parts = [f"loaded {len(self.arrays)} arrays ({values:,} values) of {self.library}"]
        if self.fresh:
            parts.append(f"left fresh: {', '.join(self.fresh)}")
        if self.left_out:
            parts.append(f"left out: {', '.join(self.left_out)}")
        if self.doubt:
            parts.append(self.doubt)
        return "; ".join(parts)


def fit(
    tensors: Tensors, layout: Layout, shapes: Mapping[str, tuple[int, ...]], where: str
) -> Loaded:
    """Their tensors as our arrays.

    Args:
      shapes: of the backbone's arrays by our names, without a prefix.
      where: how a message begins.

    Raises:
      UserError: keys and shapes that do not match on either side, all of them listed.
    """
    found: dict[str, np.ndarray | None] = {}  # None: there, but of another shape
    left_out, problems = [], []
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
                problems.append(f"{key} has no place")
            continue
        if name in found:
            problems.append(f"{key} is the second tensor for {name}")
        found[name] = None
        try:
            value = layout.transform(name, tensor, shapes[name])
        except UserError as error:
            problems.append(f"{key} {error}")
            continue
        except DAMAGE:  # of a rank that it does not know
            problems.append(f"{key} is {tensor.shape}, {name} needs {shapes[name]}")
            continue
        if value.shape == shapes[name]:
            found[name] = np.ascontiguousarray(value, np.float32)
        else:
            problems.append(f"{key} is {value.shape}, {name} needs {shapes[name]}")
    # Ours without a value are fine where the whole of that classifier is missing from the file.
    missing = sorted(shapes.keys() - found)
    problems += [f"{name} is missing" for name in missing if not OUR_CLASSIFIER.fullmatch(name)]
    if problems:
        raise UserError(f"{where} ({layout.library}) does not fit: {'; '.join(problems)}")
    arrays = {name: value for name, value in found.items() if value is not None}
    return Loaded(layout.library, arrays, tuple(missing), tuple(left_out), layout.doubt)


OUR_CLASSIFIER = re.compile(r"(classifier|fc|head)\b.*")  # of every backbone, by our names
