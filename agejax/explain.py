"""python -m agejax.explain --workdir=RUN IMAGE_OR_FOLDER... [--method=NAME] [--target=LABEL]

Which parts of a face made the network say what it says: what they add to or take from the predicted
age, in years, or the probability of the predicted class. A figure and arrays (.npz) an image.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import ndimage
from sklearn.linear_model import Ridge

from agejax.data import augment, sources
from agejax.errors import UserError, one_line, run_command
from agejax.heads import Head
from agejax.logging import records
from agejax.models.backbone import Backbone, Features
from agejax.models.layers import global_mean
from agejax.models.vit import ViT
from agejax.paths import expand
from agejax.predicting.images import find_images
from agejax.reporting.plots import TEXT
from agejax.runs.run import Run
from agejax.training import image_sizes, sharding

Method = Literal["lime", "integrated_gradients", "grad_cam"]
Fill = Literal["blur", "mean"]
# Images [B, S, S, 3], uint8 or f32 of 0..255 -> what is explained, [B].
Value = Callable[[Any], Any]
# The same images and what is added to the maps, [] or [B, h, w, C] -> values [B] and those maps.
Tapped = Callable[[Any, Any], tuple[Any, Any]]

BATCH = 32  # every call of the network sees as many images, so that it is compiled once
GRID = 8  # segments along an edge
SAMPLES = 1000  # of LIME, as its authors take for images
KERNEL_WIDTH = 0.25  # of LIME, as its authors take for images
RIDGE = 0.01  # only keeps LIME's regression solvable: the authors' 1 takes percents off the years
STEPS = 128  # of integrated gradients
COLOURS = "RdBu_r"  # red raises, blue lowers
# How figures call methods and checks.
TITLES = {"lime": "LIME", "integrated_gradients": "integrated gradients", "grad_cam": "Grad-CAM"}
CHECKS = {
    "r2": "local R² {:.2f}",
    "baseline": "from {:.3g} of the blurred face",
    "gap": "gap {:.1g}",
}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What each part of an image adds to the prediction, in the prediction's unit.

    Attributes:
      heat: f32 [S, S]. LIME: of each pixel, its segment's weight. Else: each pixel's own share.
      segments: int32 [S, S], 0..K-1.
      weights: f32 [K], of the segments. Not LIME: the sums of their pixels' shares.
      prediction: what is explained: years or a probability.
      checks: how far to trust it. LIME: `r2` of the local fit. Integrated gradients: `baseline`,
        the prediction they start from, and `gap`, by how much the shares miss the difference to it.
    """

    heat: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    prediction: float
    checks: dict[str, float] = dataclasses.field(default_factory=dict)


def lime(
    predict: Value,
    image: np.ndarray,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    segments: np.ndarray | None = None,
    fill: Fill = "blur",
    batch: int = BATCH,
) -> Explanation:
    """LIME (Ribeiro et al. 2016): a linear model of which segments are there, around the image.

    Each sample hides every segment with probability 1/2. Its weight in a ridge regression is
    sqrt(exp(-d² / width²)) of its cosine distance d to the whole image, as in the authors' code.

    Args:
      predict: called with `batch` images at a time.
      image: uint8 [S, S, 3].
      segments: int [S, S], 0..K-1; default: `superpixels`.
      fill: what is seen of a hidden segment: `backdrop`.
    """
    segments = superpixels(image) if segments is None else segments
    count = int(segments.max()) + 1
    present = np.random.default_rng(seed).random((samples, count)) < 0.5
    present[0] = True  # the image itself
    hidden = backdrop(image, fill)

    def perturbed(rows: np.ndarray) -> np.ndarray:
        return np.where(present[rows][:, segments, None], image, hidden)

    parts = [(np.asarray(predict(perturbed(rows))), n) for rows, n in _full(samples, batch)]
    values = np.concatenate([part[:n] for part, n in parts]).astype(np.float64)
    distance = 1 - np.sqrt(present.mean(axis=1))  # the cosine of 0s and 1s with 1s alone
    nearness = np.sqrt(np.exp(-np.square(distance / KERNEL_WIDTH)))
    fit = Ridge(alpha=RIDGE, solver="cholesky").fit(present, values, nearness)
    weights = fit.coef_.astype(np.float32)
    r2 = float(fit.score(present, values, nearness))
    return Explanation(weights[segments], segments, weights, float(values[0]), {"r2": r2})


def integrated_gradients(
    value: Value,
    image: np.ndarray,
    *,
    steps: int = STEPS,
    fill: Fill = "blur",
    batch: int = BATCH,
) -> Explanation:
    """Integrated gradients (Sundararajan et al. 2017), from a backdrop to the image.

    A pixel's share is (image - backdrop) · the mean slope along the straight line between them, by
    the midpoint rule. The shares sum to the difference of the two predictions, but for `gap`.

    Args:
      value: what JAX can differentiate. A `jax.tree_util.Partial` is compiled once for all images
        whatever it binds, and keeps parameters out of the program.
      image: uint8 [S, S, 3].
      fill: the backdrop.
    """
    value = _partial(value)
    end, start = image.astype(np.float32), backdrop(image, fill).astype(np.float32)
    slope = np.zeros(image.shape, np.float64)
    for rows, kept in _full(steps, batch):
        along = ((rows + 0.5) / steps).astype(np.float32)
        share = (np.arange(batch) < kept).astype(np.float32) / steps
        slope += np.asarray(_slope(value, start, end, along, share), np.float64)
    shares = ((end - start) * slope).sum(axis=2)
    ends = np.repeat(np.stack([end, start]), [1, batch - 1], axis=0)
    prediction, baseline = np.asarray(_values(value, ends), np.float64)[:2].tolist()
    gap = float(shares.sum() - (prediction - baseline))
    return _of_pixels(image, shares, prediction, {"baseline": baseline, "gap": gap})


def grad_cam(tapped: Tapped, image: np.ndarray) -> Explanation:
    """Grad-CAM (Selvaraju et al. 2017): maps, each times the mean slope of the prediction by it.

    Without the authors' last step, a ReLU: a place that takes years off is as much of an answer. A
    pixel's share is its cell's, spread evenly; under a linear head over pooled maps the cells sum
    to the prediction but for the head's bias.

    Args:
      tapped: what JAX can differentiate; bound as in `integrated_gradients`.
      image: uint8 [S, S, 3].

    Raises:
      UserError: maps of one cell.
    """
    value, cells = jax.tree.map(np.asarray, _cam(_partial(tapped), image[None]))
    if cells[0].size == 1:
        raise UserError(
            "--method=grad_cam: the network's last maps are 1 x 1; use --method=lime, "
            "or a config.model.image_size that leaves larger ones"
        )
    size = len(image)
    shares = cv2.resize(cells[0], (size, size), interpolation=cv2.INTER_LINEAR)
    return _of_pixels(image, shares * (cells[0].size / size**2), float(value[0]), {})


def superpixels(image: np.ndarray, grid: int = GRID, compactness: float = 10.0) -> np.ndarray:
    """SLIC (Achanta et al. 2012): about grid² connected segments of like colour.

    Args:
      image: uint8 [S, S, 3].
      compactness: what a grid cell's width counts in CIELAB; higher is squarer.

    Returns:
      int32 [S, S], 0..K-1.
    """
    size = len(image)
    grid = min(grid, size)
    step = size / grid
    y, x = np.mgrid[:size, :size].astype(np.float32)
    places = np.stack([y, x], axis=-1) * (compactness / step)
    # Of colours and places in one space, k-means that looks only at the 3 x 3 nearest cells.
    points = np.dstack([cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), places])
    points = points.astype(np.float64)
    row, column = (((z + 0.5) / step).astype(int).clip(0, grid - 1) for z in (y, x))
    labels = row * grid + column
    candidates = [
        (row + dy).clip(0, grid - 1) * grid + (column + dx).clip(0, grid - 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    centres = np.zeros((grid * grid, points.shape[-1]))
    for _ in range(5):
        counts = np.bincount(labels.ravel(), minlength=grid * grid)
        for i in range(points.shape[-1]):
            sums = np.bincount(labels.ravel(), points[..., i].ravel(), minlength=grid * grid)
            centres[:, i] = np.where(counts > 0, sums / np.maximum(counts, 1), centres[:, i])
        far = [np.square(points - centres[c]).sum(axis=-1) for c in candidates]
        nearest = np.argmin(far, axis=0)
        labels = np.choose(nearest, candidates)
    return _connected(labels)


def backdrop(image: np.ndarray, fill: Fill = "blur") -> np.ndarray:
    """An image that says little: very blurred, or of its mean colour; uint8 [S, S, 3]."""
    if fill == "mean":
        colour = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
        return np.broadcast_to(colour, image.shape).copy()
    return cv2.GaussianBlur(image, (0, 0), len(image) / GRID)


def _connected(labels: np.ndarray) -> np.ndarray:
    """Keeps the largest piece of each segment, and gives what is left to the nearest of them."""
    kept = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        pieces, _ = ndimage.label(labels == label)
        kept |= pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    y, x = ndimage.distance_transform_edt(~kept, return_distances=False, return_indices=True)
    return np.unique(labels[y, x], return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def _of_pixels(
    image: np.ndarray, shares: np.ndarray, prediction: float, checks: dict[str, float]
) -> Explanation:
    segments = superpixels(image)
    weights = np.bincount(segments.ravel(), shares.ravel()).astype(np.float32)
    return Explanation(shares.astype(np.float32), segments, weights, prediction, checks)


def _full(count: int, batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows 0..count-1 in batches that are all full, and how many of each count."""
    for start in range(0, count, batch):
        yield np.minimum(np.arange(start, start + batch), count - 1), min(batch, count - start)


def _partial(function: Callable[..., Any]) -> jax.tree_util.Partial:
    if isinstance(function, jax.tree_util.Partial):
        return function
    return jax.tree_util.Partial(function)


@jax.jit
def _values(value: jax.tree_util.Partial, images: jax.Array) -> jax.Array:
    return value(images)


@jax.jit
def _slope(
    value: jax.tree_util.Partial,
    start: jax.Array,
    end: jax.Array,
    along: jax.Array,
    share: jax.Array,
) -> jax.Array:
    """Σ share_i · d value / d image, at `along_i` of the way; [B] and [S, S, 3] -> [S, S, 3]."""
    images = start + along[:, None, None, None] * (end - start)
    # Weighted before the derivative: the sum over steps is then the backward pass's own.
    return jax.grad(lambda x: jnp.sum(share * value(images + x)))(jnp.zeros_like(start))


@jax.jit
def _cam(tapped: jax.tree_util.Partial, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images [B, S, S, 3] -> values [B] and Grad-CAM's cells [B, h, w]."""

    def total(delta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        values, maps = tapped(images, delta)
        return jnp.sum(values), (values, maps)

    shape = jax.eval_shape(tapped, images, jnp.float32(0))[1]
    slopes, (values, maps) = jax.grad(total, has_aux=True)(jnp.zeros(shape.shape, jnp.float32))
    return values, jnp.sum(slopes.mean(axis=(1, 2), keepdims=True) * maps, axis=-1)


class Subject(NamedTuple):
    """What a run says of one label, as functions of images [B, S, S, 3], uint8 or f32 of 0..255.

    decoded: -> years [B] or probabilities [B, K].
    value: k -> the probability of class k [B]; None -> years [B].
    tapped: k -> the same, as a `Tapped`.
    """

    decoded: jax.tree_util.Partial
    value: Callable[[int | None], jax.tree_util.Partial]
    tapped: Callable[[int | None], jax.tree_util.Partial]

    @classmethod
    def of(cls, run: Run, label: str, *, smooth: bool) -> Subject:
        """
        Args:
          smooth: decode counts and modes, which have no slope, as expectations.

        Raises:
          UserError: the run has no head for the label, or is no single network.
        """
        name, head = find_head(run, label)
        head = smoothed(head) if smooth else head
        model = run.model
        if model is None:
            raise UserError(
                f"{run.workdir}: no single network says this; explain one of its members"
            )
        size = image_sizes.of_evaluation(run.config)

        def decoded(params: Any, stats: Any, images: jax.Array) -> jax.Array:
            outputs, _ = model.apply(params, stats, augment.eval_images(images, size))
            return head.decode(outputs[name])

        def value(params: Any, stats: Any, k: jax.Array, images: jax.Array) -> jax.Array:
            return decoded(params, stats, images)[:, k]

        def tapped(
            params: Any, stats: Any, k: jax.Array, images: jax.Array, delta: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            network = model.network(params, stats)
            maps = _tap(network, name, delta)
            outputs = network(augment.eval_images(images, size))
            said = head.decode(outputs[name])
            return said if said.ndim == 1 else said[:, k], maps[0]

        # Bound, but not closed over: k may change, and parameters are no constants of a program.
        bound = run.params, run.batch_stats
        partial = jax.tree_util.Partial
        whole = partial(decoded, *bound)
        return cls(
            whole,
            lambda k: whole if k is None else partial(value, *bound, np.int32(k)),
            lambda k: partial(tapped, *bound, np.int32(k or 0)),
        )


def find_head(run: Run, label: str) -> tuple[str, Head]:
    """The head that speaks for a label: the first. Raises `UserError` where there is none."""
    for name, head in run.heads.items():
        if head.label == label:
            return name, head
    labels = dict.fromkeys(head.label for head in run.heads.values())
    raise UserError(f"--target={label}: this run predicts {', '.join(labels)}")


def smoothed(head: Head) -> Head:
    """The head with an expectation in place of a count of ranks or a mode, which have no slope."""
    options: dict[str, Any] = {"count": False, "expectation": True}
    names = {field.name for field in dataclasses.fields(head)}
    return dataclasses.replace(head, **{k: v for k, v in options.items() if k in names})


def _tap(network: Any, name: str, delta: jax.Array) -> list[jax.Array]:
    """Leaves a `FaceModel` head `name` alone, and its last maps plus `delta`.

    These are what the backbone pools; where that is a class token, the patches that it reads last,
    in front of the last block's attention, unless the head's neck reads the maps themselves.

    Returns:
      A list, to which a call of the network adds the maps.
    """
    seen: list[jax.Array] = []
    backbone, neck = network.backbone, network.necks.get(name)
    # The others may want other features: greyscale ones.
    network.heads = nnx.Dict({name: network.heads[name]})
    reads_maps = neck is not None and (neck.options.convs or neck.options.pool == "flatten")
    if isinstance(backbone, ViT) and not reads_maps:
        block: Any = backbone.blocks[-1]
        norm = block.norm1

        def tapped_norm(tokens: jax.Array) -> jax.Array:
            tokens = norm(tokens)
            edge = round((tokens.shape[1] - 1) ** 0.5)
            maps = tokens[:, 1:].reshape(len(tokens), edge, edge, -1) + delta.astype(tokens.dtype)
            seen.append(maps)
            return jnp.concatenate([tokens[:, :1], maps.reshape(tokens[:, 1:].shape)], axis=1)

        block.norm1 = tapped_norm
    else:
        network.backbone = _TappedBackbone(backbone, delta, seen)
    return seen


class _TappedBackbone:
    """A backbone whose maps are moved by `delta` before they are pooled, and remembered."""

    def __init__(self, backbone: Backbone, delta: jax.Array, seen: list[jax.Array]) -> None:
        self.backbone, self.delta, self.seen = backbone, delta, seen

    def embed(self, x: jax.Array, **how: Any) -> Features:
        features = self.backbone.embed(x, **how)
        maps = features.maps + self.delta.astype(features.maps.dtype)
        self.seen.append(maps)
        return Features(maps, global_mean(maps))


def explainer(
    run: Run, target: str, method: Method, seed: int = 0
) -> Callable[[np.ndarray], tuple[Explanation, int | None]]:
    """Explains uint8 [S, S, 3]: an `Explanation`, and the class whose probability it is of.

    The network is compiled at the first image only.

    Raises:
      UserError: the run has no head for the target.
    """
    subject = Subject.of(run, target, smooth=method != "lime")

    def explain_one(image: np.ndarray) -> tuple[Explanation, int | None]:
        # In a full batch, as the methods' own calls: of years they then share this program.
        decoded = np.asarray(_values(subject.decoded, np.repeat(image[None], BATCH, axis=0)))[0]
        k = int(decoded.argmax()) if decoded.ndim else None
        value = subject.value(k)
        match method:
            case "integrated_gradients":
                return integrated_gradients(value, image), k
            case "grad_cam":
                return grad_cam(subject.tapped(k), image), k
        return lime(lambda images: _values(value, images), image, seed=seed), k

    return explain_one


def explain(
    workdir: str | pathlib.Path,
    paths: Sequence[pathlib.Path],
    *,
    method: Method = "lime",
    target: str = "age",
    seed: int = 0,
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes NAME.png and NAME.npz of every image that can be read; names the others on stderr.

    The arrays are those of `Explanation`, its checks each as a number, and `image`.

    Args:
      output: default: WORKDIR/explanations/TARGET-METHOD.

    Returns:
      The folder written to.

    Raises:
      UserError: no run, no such target, or no image that can be read.
    """
    if output is not None:
        records.check_folder(expand(output), "--output")
    run = Run.open(workdir, devices=1)
    output = expand(output or run.results / "explanations" / f"{target}-{method}")
    records.check_folder(output, "--output")
    explain_one = explainer(run, target, method, seed)
    output.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for path in paths:
        try:
            image = sources.decode(sources.read_image(path), run.config.data.image_size)
        except (OSError, ValueError) as error:
            print(one_line(f"skipped {path}: {error}"), file=sys.stderr)
            continue
        explanation, k = explain_one(image)
        checks = [CHECKS[name].format(value) for name, value in explanation.checks.items()]
        said = f"{target} {explanation.prediction:.1f} years"
        if k is not None:
            said = f"{target} {run.facts.label_names[target][k]} {explanation.prediction:.1%}"
        text = ", ".join([said, TITLES[method], *checks])
        name = _unused(path.stem, names)
        with records.replacing(output / f"{name}.npz") as file:
            np.savez(
                file,
                image=image,
                heat=explanation.heat,
                segments=explanation.segments,
                weights=explanation.weights,
                prediction=explanation.prediction,
                **explanation.checks,  # type: ignore[arg-type]
            )
        with records.replacing(output / f"{name}.png") as file:
            save_figure(
                image, explanation, file, title=f"{path.name}\n{text}",
                method=method, unit="years" if k is None else "probability",
            )  # fmt: skip
        print(f"{path}: {text}", flush=True)
    if not names:
        raise UserError(f"none of the {len(paths)} file(s) is a readable image")
    return output


def save_figure(
    image: np.ndarray,
    explanation: Explanation,
    file: BinaryIO,
    *,
    title: str,
    method: Method,
    unit: str,
) -> None:
    """The face, and the face in grey under its heat map, as one PNG.

    Shares of pixels are shown as a density, those of integrated gradients, which are noisy,
    smoothed; `heat` has them as they are.
    """
    heat, per = explanation.heat, "segment"
    if method != "lime":
        heat, per = heat * (heat.size / 100), "1 % of the image"
    if method == "integrated_gradients":
        heat = cv2.GaussianBlur(heat, (0, 0), len(heat) / 50)
    limit = float(np.abs(heat).max()) or 1.0
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    figure.suptitle(title, color=TEXT, fontsize=10)
    left, right = figure.subplots(1, 2)
    left.imshow(image)
    right.imshow(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cmap="gray", vmin=0, vmax=255)
    # Clear where the heat is nothing, so that the face is seen.
    shown = right.imshow(
        heat, cmap=COLOURS, norm=Normalize(-limit, limit), alpha=0.8 * np.sqrt(np.abs(heat) / limit)
    )
    bar = figure.colorbar(shown, ax=right, label=f"{unit} added per {per}", shrink=0.85)
    bar.outline.set_visible(False)
    for axes in (left, right):
        axes.set_axis_off()
    figure.savefig(file, format="png", dpi=130)


def _unused(stem: str, names: set[str]) -> str:
    """`stem`, numbered where another folder's image has taken it; remembers it."""
    name, i = stem, 1
    while name in names:
        i += 1
        name = f"{stem}-{i}"
    names.add(name)
    return name


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agejax.explain", description=__doc__)
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument("--method", choices=get_args(Method), default="lime")
    parser.add_argument("--target", default="age", help="age, gender, ethnicity: a head's label")
    parser.add_argument("--output", help="default: WORKDIR/explanations/TARGET-METHOD")
    parser.add_argument("--seed", type=int, default=0, help="of LIME's samples")
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER")
    args = parser.parse_args(argv[1:])
    paths = find_images(args.paths)
    sharding.start()
    output = explain(
        args.workdir,
        paths,
        method=args.method,
        target=args.target,
        seed=args.seed,
        output=args.output,
    )
    print(f"written to {output}/: a .png and an .npz an image")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
