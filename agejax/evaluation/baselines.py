"""Classical estimators on a frozen backbone's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from scipy import special
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from agejax.data import pipeline
from agejax.errors import UserError
from agejax.labels import is_known
from agejax.models import inputs
from agejax.runs import warm_start
from agejax.runs.run import Run
from agejax.training import image_sizes, optim
from agejax.training import state as state_lib
from agejax.training.prediction import predict_batches

FEATURES = ("run", "pretrained")


def _xgboost(kind: str) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        try:
            import xgboost
        except ImportError as error:
            raise UserError(
                "--estimator=xgboost: the package xgboost is missing; pip install -e '.[baselines]'"
            ) from error
        return getattr(xgboost, kind)(n_jobs=-1, tree_method="hist", **options)

    return make


class _Renumbered:
    """A classifier that asks for the classes 0, 1, 2, ..., where one of ours may have no image."""

    def __init__(self, classifier: Any) -> None:
        self._classifier = classifier
        self.classes_ = np.empty(0, np.int64)

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        self.classes_, numbers = np.unique(y, return_inverse=True)
        self._classifier.fit(x, numbers)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.classes_[self._classifier.predict(x)])

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._classifier.predict_proba(x))


def _scaled(estimator: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **options: make_pipeline(StandardScaler(), estimator(**options))


# name -> (regressor, classifier, the options that are tried on val)
ESTIMATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Sequence[dict[str, Any]]]] = {
    "linear": (
        _scaled(lambda strength: Ridge(alpha=1 / strength)),
        _scaled(lambda strength: LogisticRegression(C=strength, max_iter=500)),
        [{"strength": c} for c in (1e-3, 1e-2, 1e-1)],
    ),
    "svm": (
        _scaled(lambda strength: SVR(C=strength, cache_size=1000)),
        _scaled(lambda strength: SVC(C=strength, cache_size=1000)),
        [{"strength": c} for c in (1.0, 10.0)],
    ),
    "boosting": (
        lambda **options: HistGradientBoostingRegressor(loss="absolute_error", **options),
        HistGradientBoostingClassifier,
        [{"learning_rate": rate, "max_iter": 300, "random_state": 0} for rate in (0.05, 0.1)],
    ),
    "xgboost": (
        lambda **options: _xgboost("XGBRegressor")(objective="reg:absoluteerror", **options),
        lambda **options: _Renumbered(_xgboost("XGBClassifier")(**options)),
        [{"learning_rate": rate, "n_estimators": 300, "random_state": 0} for rate in (0.05, 0.1)],
    ),
}  # fmt: skip


def features(run: Run, source: Any, rows: np.ndarray, which: str) -> np.ndarray:
    """The backbone's pooled features of rows int [N], float32 [N, C].

    Args:
      which: one of `FEATURES`: with the trained weights, or with those that training started from.

    Raises:
      UserError: pretrained features of a run that started from random weights.
    """
    config, model, mesh = run.config, run.model, run.mesh
    assert model is not None
    params, batch_stats = run.params, run.batch_stats
    if which == "pretrained":
        if not config.model.pretrained:
            raise UserError(f"--features=pretrained: {run.workdir} started from random weights")
        _, initialise = state_lib.create_model(config, run.heads)
        frozen = optim.create_optimizer(
            config.optim, optax.constant_schedule(0.0), model.parameters
        )
        trained = warm_start.of(config, run.heads, source)
        state = state_lib.create(config, initialise, frozen, mesh, trained)
        params, batch_stats = state.params, state.batch_stats
    size = image_sizes.of_evaluation(config)

    @jax.jit
    def embed(params: Any, batch_stats: Any, batch: Any) -> dict[str, jax.Array]:
        images = inputs.eval_images(batch["image"], size)
        return {"features": model.network(params, batch_stats).features(images)}

    batches = pipeline.evaluation_batches(source, rows, run.batch_size)
    batches = pipeline.counted(batches, "features computed", len(rows))
    seen = predict_batches(embed, params, batch_stats, batches, mesh)
    assert seen is not None
    return seen["features"]


def fit(estimator: str, x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Fits an estimator of a label, with the options that do best on val.

    Args:
      x: split -> float [N, C] of train and val.
      y: split -> years float [N], or classes int [N]; rows with NaN or -1 are left out, and each
        split has others.

    Returns:
      (the fitted estimator, its options); for a single class an estimator that always names it.
    """
    years = np.issubdtype(y["train"].dtype, np.floating)
    known = {split: is_known(v) for split, v in y.items()}
    of_ages, of_classes, grid = ESTIMATORS[estimator]
    if not years and len(np.unique(y["train"][known["train"]])) == 1:
        # The others refuse it, or give it two probabilities.
        of_classes, grid = DummyClassifier, [{}]
    best: tuple[float, Any, Any] | None = None
    for options in grid:
        made = (of_ages if years else of_classes)(**options)
        made.fit(x["train"][known["train"]], y["train"][known["train"]])
        said = made.predict(x["val"][known["val"]])
        truth = y["val"][known["val"]]
        loss = float(np.abs(said - truth).mean() if years else (said != truth).mean())
        if best is None or loss < best[0]:
            best = loss, made, options
    assert best is not None
    return best[1], best[2]


def predict(fitted: Any, x: np.ndarray, classes: int | None) -> np.ndarray:
    """Predicts years [N], or probabilities [N, classes] where there are classes."""
    if classes is None:
        return np.asarray(fitted.predict(x), np.float32)
    if hasattr(fitted, "predict_proba"):
        p = fitted.predict_proba(x)
    else:  # SVM margins are not probabilities, but they rank
        margin = fitted.decision_function(x)
        if margin.ndim == 1:
            margin = np.stack([-margin, margin], axis=1) / 2
        p = special.softmax(margin, axis=1)
    whole = np.zeros((len(x), classes), np.float32)
    whole[:, fitted.classes_.astype(int)] = p  # a class may have no training image
    return whole
