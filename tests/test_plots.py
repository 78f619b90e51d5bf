"""The figures: what they show, and that odd data does not stop them."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from agejax.reporting import plots


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures saved during a test, to look at their parts."""
    saved: list[Figure] = []
    save = Figure.savefig

    def remember(figure: Figure, *args: object, **kwargs: object) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


def test_age_figure_shows_error_bias_and_count_of_each_decade(figures, tmp_path):
    true = np.repeat([5.0, 25.0, 95.0], [10, 20, 30])
    predicted = true + np.repeat([2.0, -3.0, 7.0], [10, 20, 30])
    plots.save_age_figure(true, predicted, tmp_path / "age.png", title="a run")
    image = np.asarray(Image.open(tmp_path / "age.png").convert("L"))
    assert image.shape[1] > 1000
    assert (image < 250).mean() > 0.03
    left, right = figures[0].axes[:2]
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in right.patches}
    assert bars == pytest.approx({0: 2, 2: 3, 9: 7})
    diamonds = next(line for line in right.lines if line.get_marker() == "D")
    assert diamonds.get_xydata().tolist() == [[0, 2], [2, -3], [9, 7]]
    assert [text.get_text() for text in right.texts] == ["10", "20", "30"]
    assert left.collections[0].get_array().sum() == 60  # every image is in a cell
    medians = next(line for line in left.lines if line.get_label() == "median of a decade")
    assert medians.get_xydata().tolist() == [[5, 7], [25, 22], [95, 102]]
    assert "n = 60, MAE 4.83 years" in figures[0].get_suptitle()


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        ([], []),
        ([30.0], [35.0]),
        ([30.0, np.nan, 40.0], [35.0, 20.0, np.inf]),
        ([1.0, 2.0], [-8.0, 140.0]),
        ([0.0], [0.0]),
    ],
)
def test_age_figure_takes_few_and_odd_values(true, predicted, tmp_path, figures, recwarn):
    path = tmp_path / "age.png"
    plots.save_age_figure(np.array(true), np.array(predicted, np.float32), path, title="odd")
    assert path.stat().st_size > 10_000
    usable = np.isfinite(true) & np.isfinite(predicted)
    cells = np.ma.filled(figures[0].axes[0].collections[0].get_array(), 0)
    assert cells.sum() == usable.sum()
    assert not recwarn.list


def test_training_curves_show_training_and_validation(figures, tmp_path):
    lines = [{"step": s, "loss": 1 / s, "age/mae": 20 / s, "images_per_second": 9} for s in (1, 2)]
    lines += [{"step": 2, "val/age/mae": 11.0}, {"step": 3, "loss": None, "age/mae": 6.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    chart = plots.training_curves(tmp_path / "metrics.jsonl")
    assert len(chart.png) > 10_000
    assert "age/mae from 20 to 6" in chart.alt
    assert "val/age/mae from 11 to 11" in chart.alt
    drawn = {
        (axes.get_title(), line.get_label()): line.get_xydata().tolist()
        for axes in figures[0].axes
        for line in axes.lines
    }
    assert drawn == {
        ("loss", "training"): [[1, 1], [2, 0.5]],
        ("age/mae", "training"): [[1, 20], [2, 10], [3, 6]],
        ("age/mae", "validation"): [[2, 11]],
    }


def test_training_curves_of_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert plots.training_curves(tmp_path / "metrics.jsonl").alt.endswith("no entry yet.")


def test_drawing_needs_no_pyplot():
    code = (
        "import sys; from agejax.reporting import plots; print('matplotlib.pyplot' in sys.modules)"
    )
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
