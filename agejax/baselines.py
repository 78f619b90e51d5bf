"""python -m agejax.baselines --workdir=RUN [--estimator=svm] [--features=pretrained]

Classical estimators on a frozen backbone's features: what the network itself is worth beside them.
Trained on the run's own training images, chosen on its val, reported as evaluate reports a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from scipy import special
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from agejax.data import augment, opening, pipeline, splits
from agejax.errors import UserError, run_command
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.scored import Scored
from agejax.logging import records
from agejax.paths import expand
from agejax.reporting import results
from agejax.runs.run import Run, predict_batches
from agejax.training import image_sizes, optim, sharding, warm_start
from agejax.training import state as state_lib

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


def _scaled(estimator: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **options: make_pipeline(StandardScaler(), estimator(**options))


# name -> (of ages, of classes, options to choose from on val)
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
        _xgboost("XGBClassifier"),
        [{"learning_rate": rate, "n_estimators": 300, "random_state": 0} for rate in (0.05, 0.1)],
    ),
}  # fmt: skip


def features(run: Run, source: Any, rows: np.ndarray, which: str) -> np.ndarray:
    """The backbone's pooled features of rows int [N], float32 [N, C].

    Args:
      which: of `FEATURES`: as the run trained them, or as its training found them.

    Raises:
      UserError: pretrained features of a run that started from none.
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
        images = augment.eval_images(batch["image"], size)
        return {"features": model.network(params, batch_stats).features(images)}

    batches = pipeline.evaluation_batches(source, rows, config.eval.batch_size)
    seen = predict_batches(embed, params, batch_stats, batches, mesh)
    assert seen is not None
    return seen["features"]


def fit(estimator: str, x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The estimator of a label that does best on val.

    Args:
      x: split -> float [N, C] of train and val.
      y: split -> years float [N], or classes int [N]; NaN and -1 are left out.

    Returns:
      (estimator, the options it has).
    """
    years = np.issubdtype(y["train"].dtype, np.floating)
    known = {split: np.isfinite(v) if years else v >= 0 for split, v in y.items()}
    of_ages, of_classes, grid = ESTIMATORS[estimator]
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


def say(fitted: Any, x: np.ndarray, classes: int | None) -> np.ndarray:
    """Years [N], or probabilities [N, classes]."""
    if classes is None:
        return np.asarray(fitted.predict(x), np.float32)
    if hasattr(fitted, "predict_proba"):
        p = fitted.predict_proba(x)
    else:  # a machine's margins are no probabilities, but they rank
        margin = fitted.decision_function(x)
        if margin.ndim == 1:
            margin = np.stack([-margin, margin], axis=1) / 2
        p = special.softmax(margin, axis=1)
    whole = np.zeros((len(x), classes), np.float32)
    whole[:, fitted.classes_.astype(int)] = p  # a class may have no training image
    return whole


def evaluate_baseline(
    workdir: str | pathlib.Path,
    estimator: str = "svm",
    which: str = "run",
    split: str = "test",
    output: str | pathlib.Path | None = None,
    *,
    write_report: bool = True,
) -> dict[str, Any]:
    """Fits, scores and reports.

    Args:
      write_report: as in `results.evaluate`.

    Returns:
      The contents of metrics.json, as `results.evaluate` returns them.
    """
    run = Run.open(workdir)
    output = expand(output or run.results / "baselines" / f"{estimator}-{which}-{split}")
    records.check_folder(output, "--output")
    source = opening.open_source(run.config.data)
    if source.fingerprint != run.fingerprint:
        raise UserError(f"--workdir={workdir}: not the data this run was trained on")
    rows = splits.make(source, run.config.data.split)
    if split not in rows:
        raise UserError(f"--split={split}: the run has {', '.join(rows)}")
    if "val" not in rows:
        raise UserError(
            f"--workdir={workdir}: the run has no val split, which chooses an estimator's options"
        )
    rows = {name: rows[name] for name in dict.fromkeys(("train", "val", split))}
    x = {name: features(run, source, some, which) for name, some in rows.items()}
    start = time.perf_counter()
    predictions: dict[str, dict[str, np.ndarray]] = {name: {} for name in rows}
    for label in dict.fromkeys(head.label for head in run.heads.values()):
        y = {name: source.labels[label][rows[name]] for name in ("train", "val")}
        fitted, options = fit(estimator, x, y)
        print(f"{label}: {estimator} {options}", flush=True)
        names = source.label_names.get(label)
        for name in rows:
            predictions[name][label] = say(fitted, x[name], len(names) if names else None)
    seconds = time.perf_counter() - start
    print(f"fitted in {seconds:.0f} s")

    def scored(name: str) -> Scored:
        return Scored(
            run=dataclasses.replace(run, workdir=output, model=None),
            source=source,
            rows=rows[name],
            split=name,
            predictions=predictions[name],
            labels={k: v[rows[name]] for k, v in source.labels.items()},
            label_names=dict(source.label_names),
            images_per_second=float("nan"),
        )

    val = scored("val")
    calibration = Calibration.fit(val.predictions, val.labels, val.duplicates, run.step)
    return results.publish(scored(split), output, calibration, write_report=write_report)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m agejax.baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument("--estimator", choices=tuple(ESTIMATORS), default="svm")
    parser.add_argument(
        "--features", choices=FEATURES, default="run", help="as trained, or as training found them"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", help="default: WORKDIR/baselines/ESTIMATOR-FEATURES-SPLIT")
    args = parser.parse_args(argv[1:])
    sharding.start()
    evaluate_baseline(args.workdir, args.estimator, args.features, args.split, args.output)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
