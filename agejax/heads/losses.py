"""Per-example losses: pure functions [B, ...] -> [B]. Weights and masks are applied outside.

Logits of any float type are converted to float32. Values and gradients are finite for logits of 1e4
and more. Sums over classes are written out: a matmul may round its float32 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

MAX_LOG_VARIANCE = 30.0  # exp(30) times the square of an error of 1e4 is far from overflow
MIXTURE_VALUES = 100_000  # more add nothing to a fit of eight components


def _f32(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


# ---- a number -----------------------------------------------------------------------------------


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """|prediction - target|, [B]."""
    return jnp.abs(_f32(prediction) - target)


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error, [B]: its slope is the error, as Huber's near zero."""
    return 0.5 * jnp.square(_f32(prediction) - target)


def huber(prediction: jax.Array, target: jax.Array, delta: float) -> jax.Array:
    """Huber (1964): half the squared error up to `delta`, linear beyond, [B]."""
    loss: jax.Array = optax.losses.huber_loss(_f32(prediction), target, delta=delta)
    return loss


def gaussian_nll(
    mean: jax.Array, log_variance: jax.Array, target: jax.Array, beta: float
) -> jax.Array:
    """beta-NLL, ½ ((y - mean)² / v + log v) · stop_gradient(v)^beta, all [B].

    beta 0 is the likelihood; the more, the less a large variance excuses a bad mean. Seitzer et
    al. 2022, "On the Pitfalls of Heteroscedastic Uncertainty Estimation". The log variance is held
    within +-30.
    """
    mean = _f32(mean)
    log_variance = jnp.clip(_f32(log_variance), -MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
    nll = 0.5 * (jnp.square(target - mean) * jnp.exp(-log_variance) + log_variance)
    return nll * jax.lax.stop_gradient(jnp.exp(beta * log_variance))


def balanced_mse_bmc(
    prediction: jax.Array, target: jax.Array, known: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Balanced MSE against the labels of the batch (Ren et al. 2022, eq. 8), [B] -> [B].

    The cross-entropy of -½ (prediction_i - target_j)² / sigma² over j, whose right answer is j = i,
    times 2 sigma² (detached).

    Args:
      known: bool [B]; unknown targets are no candidates j. Their own loss is finite but
        meaningless.
      sigma: [], of the noise, learned.
    """
    prediction, noise = _f32(prediction), jnp.square(_f32(sigma))
    # NaN for an unknown target would reach all gradients, through the branch that `where` drops.
    error = prediction[:, None] - jnp.where(known, target, prediction)
    # An example's own term always stays: without it the loss of an unknown one would be infinite.
    candidate = known | jnp.eye(len(target), dtype=bool)
    logits = jnp.where(candidate, -0.5 * jnp.square(error) / noise, -jnp.inf)
    return cross_entropy(logits, jnp.arange(len(target))) * jax.lax.stop_gradient(2 * noise)


def balanced_mse_gai(
    prediction: jax.Array,
    target: jax.Array,
    sigma: jax.Array,
    means: jax.Array,
    variances: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Balanced MSE against a Gaussian mixture of the training labels (Ren et al. 2022, eq. 7), [B].

    -log N(target; prediction, sigma²) + log Σ_m w_m N(prediction; mean_m, v_m + sigma²), times
    2 sigma² (detached). It may be negative.

    Args:
      sigma: [], of the noise, learned.
      means, variances, weights: [M], of the mixture.
    """
    prediction, noise = _f32(prediction), jnp.square(_f32(sigma))
    nll = -_log_normal(prediction - target, noise)
    parts = jnp.log(weights) + _log_normal(prediction[:, None] - means, variances + noise)
    return (nll + jax.nn.logsumexp(parts, axis=1)) * jax.lax.stop_gradient(2 * noise)


def _log_normal(error: jax.Array, variance: jax.Array) -> jax.Array:
    return -0.5 * (jnp.square(error) / variance + jnp.log(2 * jnp.pi * variance))


def fit_mixture(
    values: np.ndarray, components: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(means, variances, weights), [M] each, of a Gaussian mixture fitted to values [N], all known.

    M is `components`, or the number of distinct values if that is smaller.
    """
    from sklearn.mixture import GaussianMixture  # slow to import, and rarely needed

    values = np.sort(np.asarray(values, np.float64))
    values = values[:: -(-len(values) // MIXTURE_VALUES)]  # every n-th has the same distribution
    components = min(components, len(np.unique(values)))
    values = np.repeat(values, 2) if len(values) == 1 else values  # scikit-learn asks for two
    mixture = GaussianMixture(components, random_state=seed).fit(values[:, None])
    return mixture.means_[:, 0], mixture.covariances_[:, 0, 0], mixture.weights_


# ---- classes ------------------------------------------------------------------------------------


def binary_cross_entropy(logits: jax.Array, target: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-log p of the true class from one logit of class 1, [B]; `target` is 0 or 1.

    Args:
      smoothing: mass of the target that is spread over both classes.
    """
    target = _f32(target) * (1 - smoothing) + 0.5 * smoothing
    loss: jax.Array = optax.losses.sigmoid_binary_cross_entropy(_f32(logits), target)
    return loss


def cross_entropy(logits: jax.Array, target: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-log p of the true class, logits [B, K], integer `target` [B] -> [B].

    Args:
      smoothing: mass of the target that is spread over all classes (Szegedy et al. 2016).
    """
    log_p = jax.nn.log_softmax(_f32(logits))
    loss = -_at(log_p, target)
    # Without smoothing no sum over all classes: 0 times an infinite -log p would be NaN.
    return loss if not smoothing else (1 - smoothing) * loss - smoothing * log_p.mean(axis=-1)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-Σ q log p, logits and distributions q [B, K] -> [B]."""
    return -jnp.sum(targets * jax.nn.log_softmax(_f32(logits)), axis=-1)


def cosine_distance(x: jax.Array, target: jax.Array) -> jax.Array:
    """1 - cos(x, target), features [B, D] -> [B], in 0..2."""
    x, target = _f32(x), _f32(target)
    product = jnp.sum(x * target, axis=-1)
    # The square root's slope is infinite at 0.
    squares = jnp.sum(jnp.square(x), axis=-1) * jnp.sum(jnp.square(target), axis=-1)
    return 1 - product * jax.lax.rsqrt(squares + 1e-12)


def mean_squared(x: jax.Array, target: jax.Array) -> jax.Array:
    """The mean over the features of (x - target)², [B, D] -> [B]."""
    return jnp.mean(jnp.square(_f32(x) - _f32(target)), axis=-1)


def focal(logits: jax.Array, target: jax.Array, gamma: float) -> jax.Array:
    """(1 - p)^gamma · -log p, p of the true class, [B, K], int [B] -> [B]. Lin et al. 2017."""
    return _focal(_at(jax.nn.log_softmax(_f32(logits)), target), gamma)


def binary_focal(logits: jax.Array, target: jax.Array, gamma: float) -> jax.Array:
    """`focal` from one logit of class 1, [B]; `target` is 0 or 1."""
    return _focal(jax.nn.log_sigmoid(jnp.where(target > 0, 1, -1) * _f32(logits)), gamma)


def _focal(log_p: jax.Array, gamma: float) -> jax.Array:
    # If p rounds to 1, 1 - p is 0, and 0^gamma has no finite slope for a gamma below 1.
    other = jnp.maximum(-jnp.expm1(log_p), 1e-7)
    return jnp.power(other, gamma) * -log_p


def ldam_margins(counts: Sequence[int] | np.ndarray, max_margin: float) -> np.ndarray:
    """Margins [K] of classes with `counts` examples: the rarest has `max_margin`.

    max_margin · n_c^(-1/4) / max_j n_j^(-1/4); a class without examples counts as having one.
    """
    root = np.maximum(np.asarray(counts, np.float64), 1) ** -0.25
    margins: np.ndarray = max_margin * root / root.max()
    return margins


def ldam(logits: jax.Array, target: jax.Array, margins: jax.Array, scale: float) -> jax.Array:
    """Label-distribution-aware margin loss (Cao et al. 2019): CE(scale · (z - m_y onehot(y)), y).

    Args:
      logits: [B, K]; in the paper cosines of features and weights, with a scale of 30.
      margins: [K], of `ldam_margins`.
    """
    own = jax.nn.one_hot(target, logits.shape[-1])
    return cross_entropy(scale * (_f32(logits) - margins * own), target)


def lmf(
    logits: jax.Array,
    target: jax.Array,
    margins: jax.Array,
    scale: float,
    gamma: float,
    alpha: float,
    beta: float,
) -> jax.Array:
    """alpha · LDAM + beta · focal, [B] (Sadi et al. 2022). Focal gets the logits times the scale.

    The paper's own code swaps alpha and beta, and applies focal to the mean of the batch; not here.
    """
    return alpha * ldam(logits, target, margins, scale) + beta * focal(
        scale * _f32(logits), target, gamma
    )


# ---- distributions over ages --------------------------------------------------------------------


def gaussian_targets(age: jax.Array, ages: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """q_j ~ exp(-(j - y)² / 2 sigma²) over ages [K], [B] -> [B, K]; sigma [] or [B], years."""
    spread = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), age.shape)
    return jax.nn.softmax(-0.5 * jnp.square((ages - _f32(age)[:, None]) / spread[:, None]))


def sord_targets(age: jax.Array, ages: jax.Array, power: int, scale: float = 1.0) -> jax.Array:
    """q_j ~ exp(-scale · |j - y|^power) over ages [K], [B] -> [B, K]. Díaz & Marathe 2019.

    Power 2 with scale 1 / (2 sigma²) is `gaussian_targets`.
    """
    return jax.nn.softmax(-scale * jnp.abs(ages - _f32(age)[:, None]) ** power)


def dldl(
    logits: jax.Array,
    age: jax.Array,
    ages: jax.Array,
    sigma: jax.typing.ArrayLike,
    expectation_weight: float = 1.0,
) -> jax.Array:
    """DLDL-v2 (Gao et al. 2018): KL(q || p) + weight · |E_p[j] - y|, [B, K] -> [B].

    Args:
      age: [B], years.
      ages: [K], what each logit stands for, years.
      sigma: of q, [] or [B], years.
    """
    q = gaussian_targets(age, ages, sigma)
    negative_entropy = jnp.sum(jax.scipy.special.xlogy(q, q), axis=-1)
    expectation = jnp.sum(jax.nn.softmax(_f32(logits)) * ages, axis=-1)
    divergence = soft_cross_entropy(logits, q) + negative_entropy
    return divergence + expectation_weight * jnp.abs(expectation - age)


def mean_variance(
    logits: jax.Array,
    age: jax.Array,
    ages: jax.Array,
    mean_weight: float = 0.2,
    variance_weight: float = 0.05,
) -> jax.Array:
    """CE + weight · ½ (m - y)² + weight · v, m and v of p (Pan et al. 2018), [B, K] -> [B].

    Args:
      age: [B], years; the class of CE is the nearest of `ages`.
      ages: [K], what each logit stands for, years.
    """
    p = jax.nn.softmax(_f32(logits))
    mean = jnp.sum(p * ages, axis=-1)
    variance = jnp.sum(p * jnp.square(ages - mean[:, None]), axis=-1)
    nearest = jnp.argmin(jnp.abs(ages - age[:, None]), axis=-1)
    loss = cross_entropy(logits, nearest)
    return loss + mean_weight * 0.5 * jnp.square(mean - age) + variance_weight * variance


# ---- ranks --------------------------------------------------------------------------------------


def coral(logits: jax.Array, rank: jax.Array) -> jax.Array:
    """Σ_k BCE of "above rank k", logits [B, K - 1], int [B] in 0..K-1 -> [B].

    Cao, Mirjalili & Raschka 2020; its mean is coral-pytorch's `coral_loss`.
    """
    return jnp.sum(_above(logits, rank), axis=-1)


def or_cnn(logits: jax.Array, rank: jax.Array) -> jax.Array:
    """Σ_k CE of the two classes of "above rank k", from the logit between them, [B, K - 1] -> [B].

    Niu et al. 2016, with importance 1 for every task. The sum is that of `coral`, whose tasks share
    their weights, while each of these has its own.
    """
    return coral(logits, rank)


def corn(logits: jax.Array, rank: jax.Array) -> jax.Array:
    """Σ_k BCE of "above k, given above k - 1", over the k whose condition the example meets, [B].

    Shi, Cao & Raschka 2021. coral-pytorch's `corn_loss` divides the batch's sum by the number of
    its (example, task) pairs, Σ_i min(rank_i + 1, K - 1); ours divides by the number of examples.
    """
    tasks = jnp.arange(logits.shape[-1])
    return jnp.sum(jnp.where(tasks <= rank[:, None], _above(logits, rank), 0.0), axis=-1)


def _above(logits: jax.Array, rank: jax.Array) -> jax.Array:
    """BCE of each task "above rank k", [B, K - 1]."""
    above = (rank[:, None] > jnp.arange(logits.shape[-1])).astype(jnp.float32)
    loss: jax.Array = optax.losses.sigmoid_binary_cross_entropy(_f32(logits), above)
    return loss


def _at(x: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, target[:, None], axis=-1)[:, 0]
