"""examples/quickstart.ipynb runs from top to bottom, here with a network that trains in seconds."""

import json
import pathlib

import matplotlib as mpl
import numpy as np

NOTEBOOK = pathlib.Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
FAST = {
    "total": {"steps": 4},
    "data__options": {"count": 120, "size": 32},
    "data__image_size": 32,
    "data__batch_size": 16,
    "model__name": "cnn",
    "model__options": {"widths": (8, 16)},
    "model__image_size": 32,
    "eval__batch_size": 16,
    "sharding__devices": 1,
}


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    cells = [
        cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    (parameters,) = [cell for cell in cells if cell["metadata"].get("tags") == ["parameters"]]
    names = {}
    for cell in cells:
        assert not cell["outputs"], "clear the outputs before you commit"
        exec("".join(cell["source"]), names)
        if cell is parameters:
            names["settings"] = FAST
    assert names["summary"]["steps"] == 4
    assert (tmp_path / "runs/notebook/evaluation/procedural_faces-test/report.html").exists()
    assert [face["image"] for face in names["faces"]] == list(range(8))
    heat = names["explanation"].heat
    assert heat.shape == (32, 32)
    assert np.abs(heat).max() > 0
    assert "years of mean absolute error" in capsys.readouterr().out
