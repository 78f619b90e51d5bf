"""Classical estimators on a frozen backbone's features."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression

from agejax import baselines
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.evaluation import baselines as estimators
from agejax.process.command import run_command
from agejax.reporting import baselines as baselines_report
from agejax.runs.run import Run


def splits_of(x, y, n):
    return {"train": x[:n], "val": x[n:]}, {"train": y[:n], "val": y[n:]}


@pytest.mark.parametrize("estimator", ["linear", "svm", "boosting"])
def test_years_are_learned_and_unknown_ones_left_out(estimator):
    x, y = make_regression(600, 8, noise=1.0, random_state=0)
    y = 40 + 15 * y / y.std()
    y[::7] = np.nan
    parts, labels = splits_of(x, y, 400)
    fitted, options = estimators.fit(estimator, parts, labels)
    assert options in estimators.ESTIMATORS[estimator][2]
    known = np.isfinite(labels["val"])
    said = estimators.predict(fitted, parts["val"][known], None)
    error = np.abs(said - labels["val"][known]).mean()
    assert error < 0.5 * np.abs(labels["val"][known] - np.nanmedian(labels["train"])).mean()


@pytest.mark.parametrize("estimator", ["linear", "svm", "boosting"])
@pytest.mark.parametrize("classes", [2, 4])
def test_classes_are_learned_and_have_probabilities(estimator, classes):
    x, y = make_classification(
        600, 8, n_informative=6, n_classes=classes, class_sep=2.0, random_state=0
    )
    y[::9] = -1
    parts, labels = splits_of(x, y, 400)
    fitted, _ = estimators.fit(estimator, parts, labels)
    p = estimators.predict(fitted, parts["val"], classes + 1)  # one class has no image
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert not p[:, -1].any()
    known = labels["val"] >= 0
    assert (p.argmax(axis=1) == labels["val"])[known].mean() > 0.7


class Strict(LogisticRegression):
    """XGBoost's classifier: it refuses classes that are not numbered 0, 1, 2, ..."""

    def __init__(self, **options):
        super().__init__()

    def fit(self, x, y):
        assert set(y) == set(range(max(y) + 1)), f"Invalid classes inferred from {set(y)}"
        return super().fit(x, y)


def test_xgboost_takes_labels_with_a_class_that_has_no_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", types.SimpleNamespace(XGBClassifier=Strict))
    x, y = make_classification(300, 8, n_informative=6, n_classes=3, class_sep=3.0, random_state=0)
    parts, labels = splits_of(x, np.array([1, 2, 4])[y], 200)
    fitted, _ = estimators.fit("xgboost", parts, labels)
    p = estimators.predict(fitted, parts["val"], 5)
    assert not p[:, [0, 3]].any()
    assert (p.argmax(axis=1) == labels["val"]).mean() > 0.7


def test_only_images_that_the_run_keeps_are_fitted(trained, tmp_path, monkeypatch):
    run = Run.open(trained)
    source = opening.open_source(run.config.data)
    run.config.sampling.keep = {"gender": {"male": 0.0}}
    monkeypatch.setattr(baselines_report.Run, "open", lambda *_: run)
    fitted = {}

    def fit(estimator, x, y):
        fitted[len(fitted)] = y["train"]
        return estimators_fit(estimator, x, y)

    estimators_fit = estimators.fit
    monkeypatch.setattr(estimators, "fit", fit)
    baselines_report.evaluate_baseline(
        trained, "linear", output=tmp_path / "out", write_report=False
    )
    train = splits.make(source, run.config.data.split)["train"]
    females = int((source.labels["gender"][train] != 0).sum())
    assert 0 < females < len(train)
    assert {len(y) for y in fitted.values()} == {females}


@pytest.mark.parametrize("estimator", ["linear", "svm", "boosting"])
def test_a_single_class_is_always_predicted(estimator):
    x = np.random.default_rng(0).normal(size=(30, 4))
    parts, labels = splits_of(x, np.repeat([1, -1, 1], 10), 20)
    fitted, _ = estimators.fit(estimator, parts, labels)
    np.testing.assert_array_equal(
        estimators.predict(fitted, parts["val"], 3), np.tile([0, 1, 0], (10, 1))
    )


@pytest.mark.parametrize("unknown", [("gender",), ("age", "gender", "ethnicity")])
def test_a_label_that_no_val_image_has_is_left_out(trained, tmp_path, monkeypatch, capsys, unknown):
    source = opening.open_source(Run.open(trained).config.data)
    rows = splits.make(source, Run.open(trained).config.data.split)
    labels = {name: values.copy() for name, values in source.labels.items()}
    for name in unknown:
        labels[name][rows["val"]] = np.nan if name == "age" else -1
    source = dataclasses.replace(source, labels=labels)
    monkeypatch.setattr(opening, "open_source", lambda *args: source)
    monkeypatch.setattr(splits, "make", lambda *args: rows)
    flags = [f"--workdir={trained}", "--estimator=linear", f"--output={tmp_path / 'out'}"]
    code = run_command(baselines.main, ["baselines", *flags])
    assert "gender: left out, since no val image has it" in capsys.readouterr().err
    if len(unknown) > 1:
        assert code == 2
        return
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["groups"].keys() == {
        "age", "ethnicity",
    }  # fmt: skip


def test_the_options_are_those_with_the_least_error_on_val():
    x, y = make_regression(90, 60, n_informative=60, noise=80.0, random_state=1)
    parts, labels = splits_of(x, y, 60)
    make, _, grid = estimators.ESTIMATORS["linear"]
    errors, said = [], []
    for options in grid:
        made = make(**options).fit(parts["train"], labels["train"])
        said.append(made.predict(parts["val"]))
        errors.append(np.abs(said[-1] - labels["val"]).mean())
    best = int(np.argmin(errors))
    assert min(errors) < errors[0]
    fitted, options = estimators.fit("linear", parts, labels)
    assert options == grid[best]
    np.testing.assert_allclose(fitted.predict(parts["val"]), said[best])


def test_the_command_scores_as_evaluate_does(trained, tmp_path, capsys):
    flags = [f"--workdir={trained}", "--estimator=linear", f"--output={tmp_path / 'out'}"]
    assert run_command(baselines.main, ["baselines", *flags]) == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["n"] == 19
    # Brightness follows age, so any features reveal it.
    assert result["age"]["mae"] < 0.6 * result["age"]["floor_mae"]
    assert (tmp_path / "out" / "report.html").exists()
    # It is no run of so many steps.
    page = (tmp_path / "out" / "report.html").read_text()
    assert "linear, fitted to features of the backbone with its trained weights" in page
    assert "the weights of step" not in page
    # The network's saliency does not explain another estimator.
    assert not (tmp_path / "out" / "figures" / "saliency.png").exists()


def test_features_are_those_of_the_run(trained):
    run = Run.open(trained)
    source = opening.open_source(run.config.data)
    x = estimators.features(run, source, np.arange(20), "run")
    assert x.shape == (20, 16)
    again = estimators.features(run, source, np.arange(10, 20), "run")
    np.testing.assert_allclose(again, x[10:], rtol=1e-5)
    with pytest.raises(UserError, match="started from random weights"):
        estimators.features(run, source, np.arange(20), "pretrained")
