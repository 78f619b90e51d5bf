"""The figures: what they show, and that odd data does not stop them."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

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


def test_training_curves_show_training_and_validation(figures, tmp_path):
    lines = [{"step": s, "loss": 1 / s, "age/mae": 20 / s, "images_per_second": 9} for s in (1, 2)]
    lines += [{"step": 2, "val/age/mae": 11.0}, {"step": 3, "loss": None, "age/mae": 6.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    charts = plots.training_curves(tmp_path / "metrics.jsonl")
    assert {name: chart.caption for name, chart in charts.items()} == {
        "loss": "Loss", "age/mae": "Age, MAE (years)",
    }  # fmt: skip
    assert all(len(chart.png) > 5_000 for chart in charts.values())
    assert charts["age/mae"].alt == (
        "Line chart over 3 steps: age/mae from 20 to 6; val/age/mae from 11 to 11."
    )
    drawn = [
        {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
        for figure in figures
    ]
    assert drawn == [
        {"training": [[1, 1], [2, 0.5]]},
        {"training": [[1, 20], [2, 10], [3, 6]], "validation": [[2, 11]]},
    ]


def test_an_empty_file_has_no_training_curves(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert plots.training_curves(tmp_path / "metrics.jsonl") == {}


def test_drawing_needs_no_pyplot():
    code = (
        "import sys; from agejax.reporting import plots; print('matplotlib.pyplot' in sys.modules)"
    )
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
