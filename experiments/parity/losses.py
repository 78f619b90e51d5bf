"""Compares every loss and weight with the library or the paper's formula that it comes from:

    .venv-parity/bin/python -m experiments.parity.losses

Where no library has it, the paper's formula is written independently in torch ("formula"). Recorded
in experiments/results/losses_parity.json: for a loss, in float32 against torch's float64, the
largest difference of values or gradients over the largest value; for weights, the largest relative
difference of any weight. Fails above 1e-5.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from absl import app
from balanced_loss import Loss as BalancedLoss
from coral_pytorch.dataset import levels_from_labelbatch
from coral_pytorch.losses import coral_loss, corn_loss
from denseweight import DenseWeight
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from agejax.heads import losses
from agejax.labels import density
from experiments.parity.case import relative_error

OUTPUT = pathlib.Path("experiments/results/losses_parity.json")
LIBRARIES = ("balanced-loss", "coral-pytorch", "denseweight", "scikit-learn", "torch")
UTKFACE = pathlib.Path(__file__).parents[3] / "shared/data/utkface/UTKFace.tar.gz"
LIMIT = 1e-5


def single(x: np.ndarray) -> np.ndarray:
    """Rounds to float32, as float64, so that both sides get the same numbers."""
    return x.astype(np.float32).astype(np.float64)


RNG = np.random.default_rng(0)
B, K = 64, 101
LOGITS = single(RNG.normal(0, 3, (B, K)))
CLASSES = RNG.integers(0, K, B)
AGES = single(np.clip(RNG.gamma(3, 12, B), 0, K - 1).round(1))
SPREAD = single(RNG.uniform(1, 6, B))  # standard deviation of an image's votes, years
COUNTS = [10078, 4525, 3434, 3975, 1692]  # formulas: UTKFace's ethnicities

Function = Callable[..., Any]
Case = tuple[str, Function, Function, list[np.ndarray]]  # name, ours, theirs, inputs of both


# ---- weights ------------------------------------------------------------------------------------


def weights() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, ours, theirs)."""
    for name, ages in samples().items():
        for alpha in (0.25, 1.0, 1.5):
            ours, theirs = density.dense_weight(ages, alpha), DenseWeight(alpha=alpha).fit(ages)
            yield f"denseweight: {name}, alpha {alpha}", ours, theirs
        if (ages == ages.round()).all():
            for reweight in ("sqrt", "inverse"):
                ours, theirs = density.lds_weight(ages, reweight=reweight), lds(ages, reweight)
                yield f"formula: LDS, {name}, {reweight}", ours, theirs

    labels, classes = np.repeat(np.arange(len(COUNTS)), COUNTS), np.arange(len(COUNTS))
    theirs = compute_class_weight("balanced", classes=classes, y=labels)
    yield "scikit-learn: INS, classes", density.inverse_class_weights(COUNTS), theirs
    theirs = compute_sample_weight("balanced", labels)
    yield "scikit-learn: INS, examples", density.inverse_count(labels), theirs
    for counts, beta in ((COUNTS, 0.0), (COUNTS, 0.9), (COUNTS, 0.9999), ([90, 0, 7], 0.99)):
        ours, theirs = density.effective_class_weights(counts, beta, "classes"), cb(counts, beta)
        some = np.array(counts) > 0
        yield f"balanced-loss: counts {counts}, beta {beta}", ours[some], theirs[some]
    theirs = 0.5 * np.array(COUNTS) ** -0.25 / min(COUNTS) ** -0.25
    yield "formula: margins of LDAM", losses.ldam_margins(COUNTS, 0.5), theirs


def samples() -> dict[str, np.ndarray]:
    """Name -> ages [N], years; UTKFace's too where its archive is available."""
    made = {"gamma, continuous": RNG.gamma(2, 15, 1500), "gamma, whole years": AGES.round()}
    if not UTKFACE.exists():
        return made
    with tarfile.open(UTKFACE) as tar:
        names = [pathlib.Path(name).name for name in tar.getnames()]
    matches = [re.fullmatch(r"(\d+)_\d_\d_\d+\.jpg\.chip\.jpg", name) for name in names]
    ages = np.array([int(m[1]) for m in matches if m], np.float64)
    return made | {f"UTKFace, {len(ages)} ages": ages}


def cb(counts: list[int], beta: float) -> np.ndarray:
    """balanced-loss' weights [K]: its loss for each class at equal logits, over log K."""
    safe = 0 in counts
    loss = BalancedLoss(beta=beta, samples_per_class=counts, class_balanced=True, safe=safe)
    logits = torch.zeros(1, len(counts))
    each = [loss(logits, torch.tensor([k])).item() for k in range(len(counts))]
    return np.array(each) / math.log(len(counts))


def lds(ages: np.ndarray, reweight: str) -> np.ndarray:
    """The weights of Yang et al. 2021, in plain loops, for whole years up to 120.

    The window is that of the authors' code: an impulse through scipy's Gaussian filter, with a
    radius of 4 sigma and mirrored borders (.. c b a | a b c | c b a ..).
    """
    sigma, size = 2.0, 5
    radius, half = int(4 * sigma + 0.5), size // 2
    window = np.zeros(size)
    for i in range(size):
        for d in range(-radius, radius + 1):
            at = (i + d) % (2 * size)
            window[i] += math.exp(-0.5 * (d / sigma) ** 2) * (min(at, 2 * size - 1 - at) == half)
    window /= window.max()
    counts = [int((ages == age).sum()) for age in range(121)]
    level = [math.sqrt(n) if reweight == "sqrt" else min(max(n, 5), 1000) for n in counts]
    near = [
        sum(window[i] * level[age + i - half] for i in range(size) if 0 <= age + i - half <= 120)
        for age in range(121)
    ]
    inverse = np.array([1 / near[int(age)] for age in ages])
    return inverse / inverse.mean()


# ---- losses -------------------------------------------------------------------------------------


def classes() -> Iterator[Case]:
    target = torch.as_tensor(CLASSES)
    few, few_classes, few_target = LOGITS[:, :5], CLASSES % 5, target % 5
    margins = losses.ldam_margins(COUNTS, 0.5)
    jax_margins = jnp.asarray(margins)

    def focal(z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        p = torch.softmax(z, dim=1)[torch.arange(B), y]
        return -((1 - p) ** gamma) * torch.log(p)

    def ldam(z: torch.Tensor, scale: float) -> torch.Tensor:
        """Cao et al. 2019, eq. 13."""
        own = z[torch.arange(B), few_target] - torch.as_tensor(margins)[few_target]
        others = F.one_hot(few_target, 5) == 0
        rest = (torch.exp(scale * z) * others).sum(dim=1)
        return -torch.log(torch.exp(scale * own) / (torch.exp(scale * own) + rest))

    for s in (0.0, 0.1):
        yield (
            f"torch: cross-entropy, smoothing {s}",
            lambda z, s=s: losses.cross_entropy(z, CLASSES, s),
            lambda z, s=s: F.cross_entropy(z, target, reduction="none", label_smoothing=s),
            [LOGITS],
        )
    yield (
        "torch: binary cross-entropy, smoothing 0.2",
        lambda z: losses.binary_cross_entropy(z, CLASSES % 2, 0.2),
        lambda z: F.binary_cross_entropy_with_logits(z, 0.8 * (target % 2) + 0.1, reduction="none"),
        [LOGITS[:, 0]],
    )
    # Theirs has K questions per example, and takes the mean over examples.
    yield (
        "balanced-loss: binary focal",
        lambda z: sum(losses.binary_focal(z[:, k], few_classes == k, 2.0) for k in range(5)).mean(),
        lambda z: BalancedLoss("focal_loss", fl_gamma=2)(z, few_target),
        [few],
    )
    for g in (0.5, 2.0, 4.0):
        yield (
            f"formula: focal, gamma {g}",
            lambda z, g=g: losses.focal(z, CLASSES, g),
            lambda z, g=g: focal(z, target, g),
            [LOGITS],
        )
    cosines = single(few / np.linalg.norm(few, axis=1, keepdims=True))
    for name, z, s in (("cosines, scale 30", cosines, 30.0), ("plain logits", few, 1.0)):
        yield (
            f"formula: LDAM, {name}",
            lambda z, s=s: losses.ldam(z, few_classes, jax_margins, s),
            lambda z, s=s: ldam(z, s),
            [z],
        )
        yield (
            f"formula: LMF, {name}",
            lambda z, s=s: losses.lmf(z, few_classes, jax_margins, s, 4.0, 2.5, 0.05),
            lambda z, s=s: 2.5 * ldam(z, s) + 0.05 * focal(s * z, few_target, 4.0),
            [z],
        )


def distributions() -> Iterator[Case]:
    ages, grid = jnp.asarray(AGES, jnp.float32), jnp.arange(K, dtype=jnp.float32)
    y, j = torch.as_tensor(AGES), torch.arange(K, dtype=torch.float64)
    distance = (j - y[:, None]).abs()

    def expectation(z: torch.Tensor) -> torch.Tensor:
        return (torch.softmax(z, dim=1) * j).sum(dim=1)

    def dldl(z: torch.Tensor, sigma: Any) -> torch.Tensor:
        q = torch.exp(-(distance**2) / (2 * sigma**2))
        q /= q.sum(dim=1, keepdim=True)
        divergence = F.kl_div(torch.log_softmax(z, dim=1), q, reduction="none").sum(dim=1)
        return divergence + (expectation(z) - y).abs()

    def mean_variance(z: torch.Tensor) -> torch.Tensor:
        mean = expectation(z)
        variance = (torch.softmax(z, dim=1) * (j - mean[:, None]) ** 2).sum(dim=1)
        entropy = F.cross_entropy(z, distance.argmin(dim=1), reduction="none")
        return entropy + 0.2 * (mean - y) ** 2 / 2 + 0.05 * variance

    def sord(z: torch.Tensor, power: int) -> torch.Tensor:
        return F.cross_entropy(z, torch.softmax(-(distance**power), dim=1), reduction="none")

    yield (
        "torch: DLDL-v2, sigma 2",
        lambda z: losses.dldl(z, ages, grid, 2.0),
        lambda z: dldl(z, 2.0),
        [LOGITS],
    )
    yield (
        "torch: DLDL-v2, sigma of votes",
        lambda z: losses.dldl(z, ages, grid, SPREAD),
        lambda z: dldl(z, torch.as_tensor(SPREAD)[:, None]),
        [LOGITS],
    )
    yield (
        "formula: mean-variance",
        lambda z: losses.mean_variance(z, ages, grid),
        mean_variance,
        [LOGITS],
    )
    for p in (1, 2):
        yield (
            f"torch: SORD, power {p}",
            lambda z, p=p: losses.soft_cross_entropy(z, losses.sord_targets(ages, grid, p)),
            lambda z, p=p: sord(z, p),
            [LOGITS],
        )


def ranks() -> Iterator[Case]:
    z, rank = LOGITS[:, 1:], torch.as_tensor(CLASSES)
    levels = levels_from_labelbatch(rank, num_classes=K)
    # Theirs divides by the number of (example, task) pairs, ours by that of examples.
    pairs = np.minimum(CLASSES + 1, K - 1).sum()

    def or_cnn(z: torch.Tensor) -> torch.Tensor:
        """Niu et al. 2016, eq. 3: two output neurons per task, one of them fixed at 0."""
        two = torch.stack([torch.zeros_like(z), z], dim=1)  # [B, 2, K - 1]
        return F.cross_entropy(two, levels.long(), reduction="none").sum(dim=1)

    yield (
        "coral-pytorch: CORAL",
        lambda z: losses.coral(z, CLASSES),
        lambda z: coral_loss(z, levels, reduction=None),
        [z],
    )
    yield (
        "coral-pytorch: CORN",
        lambda z: losses.corn(z, CLASSES).sum() / pairs,
        lambda z: corn_loss(z, rank, K),
        [z],
    )
    yield "formula: OR-CNN", lambda z: losses.or_cnn(z, CLASSES), or_cnn, [z]


def numbers() -> Iterator[Case]:
    target = single(RNG.normal(0, 1, B))
    prediction, log_variance = target + RNG.normal(0, 0.7, B), RNG.normal(0, 1, B)
    years, y = jnp.asarray(target, jnp.float32), torch.as_tensor(target)
    sigma, known = np.array(0.6), RNG.random(B) < 0.8
    mixture = [jnp.array(v) for v in ([-1.0, 0.2, 1.5], [0.3, 0.1, 0.6], [0.5, 0.2, 0.3])]
    means, variances, shares = (torch.tensor(v.tolist(), dtype=torch.float64) for v in mixture)
    normal = torch.distributions.Normal

    def beta_nll(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        variance = log_variance.exp()
        return ((y - mean) ** 2 / variance + log_variance) / 2 * variance.detach() ** 0.5

    def bmc(p: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Ren et al. 2022, eq. 8, over known labels only."""
        some = torch.as_tensor(known)
        likelihood = normal(p[some][:, None], sigma).log_prob(y[some]).exp()
        own = likelihood.diagonal() / likelihood.sum(dim=1)
        return -own.log() * (2 * sigma**2).detach()

    def gai(p: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Ren et al. 2022, eq. 7, and its integral in closed form for a Gaussian mixture."""
        spread = torch.sqrt(variances + sigma**2)
        integral = (shares * normal(means, spread).log_prob(p[:, None]).exp()).sum(dim=1)
        return (integral.log() - normal(p, sigma).log_prob(y)) * (2 * sigma**2).detach()

    yield (
        "torch: Huber",
        lambda p: losses.huber(p, years, 0.5),
        lambda p: F.huber_loss(p, y, delta=0.5, reduction="none"),
        [prediction],
    )
    yield (
        "torch: beta-NLL, beta 0",
        lambda p, v: losses.gaussian_nll(p, v, years, 0.0),
        lambda p, v: F.gaussian_nll_loss(p, y, v.exp(), reduction="none"),
        [prediction, log_variance],
    )
    yield (
        "formula: beta-NLL, beta 0.5",
        lambda p, v: losses.gaussian_nll(p, v, years, 0.5),
        beta_nll,
        [prediction, log_variance],
    )
    yield (
        "formula: balanced MSE, BMC",
        lambda p, s: losses.balanced_mse_bmc(p, years, jnp.asarray(known), s)[known],
        bmc,
        [prediction, sigma],
    )
    yield (
        "formula: balanced MSE, GAI",
        lambda p, s: losses.balanced_mse_gai(p, years, s, *mixture),
        gai,
        [prediction, sigma],
    )


def difference(ours: Function, theirs: Function, inputs: list[np.ndarray]) -> float:
    """The largest difference of the values, and of their mean's gradients by every input."""
    x = [jnp.asarray(value, jnp.float32) for value in inputs]
    y = [torch.tensor(single(value), requires_grad=True) for value in inputs]
    wanted = theirs(*y)
    wanted.mean().backward()
    gradients = jax.grad(lambda x: ours(*x).mean())(x)
    errors = [relative_error(np.asarray(ours(*x)), wanted.detach().numpy())]
    for a, b in zip(gradients, y, strict=True):
        errors.append(relative_error(np.asarray(a), b.grad.numpy()))
    return max(errors)


def main(_: Any) -> None:
    rows = {name: float(np.max(np.abs(a / b - 1))) for name, a, b in weights()}
    for group in (classes, distributions, ranks, numbers):
        rows |= {name: difference(*case) for name, *case in group()}
    for name, value in rows.items():
        print(f"{value:8.1e}  {name}")
    versions = {name: metadata.version(name) for name in LIBRARIES}
    OUTPUT.write_text(json.dumps({"versions": versions, "differences": rows}, indent=1) + "\n")
    if far := [name for name, value in rows.items() if not value <= LIMIT]:
        raise SystemExit(f"more than {LIMIT} apart: {', '.join(far)}")


if __name__ == "__main__":
    app.run(main)
