"""The published systems: every arm trains, and the table compares ours with theirs."""

import json
import shutil

import pytest

from agejax.errors import UserError, run_command
from experiments import run
from experiments.systems import setting


@pytest.mark.parametrize("system", run.SYSTEMS)
def test_every_arm_runs_and_is_compared(system, faces, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AGEJAX_CACHE", str(cache))
    (tmp_path / "drawn").mkdir()
    for i, path in enumerate(sorted(faces.iterdir())[:20]):
        shutil.copy(path, tmp_path / "drawn" / f"{i}.jpg")
    flags = [
        system, "--scale=smoke", f"--source={faces}", "--seeds=1", f"--folder={tmp_path / 'runs'}",
        f"--output={tmp_path / 'table'}", f"--synthetic={tmp_path / 'drawn'}",
    ]  # fmt: skip
    assert run_command(run.main, ["run", *flags]) == 0
    result = json.loads((tmp_path / "table.json").read_text())
    module = __import__(f"experiments.systems.{system}", fromlist=["arms"])
    known = module.arms(setting.Setting("smoke", synthetic="drawn"))
    assert result["arms"].keys() == known.keys()
    text = (tmp_path / "table.md").read_text()
    for name, row in result["arms"].items():
        assert f"| {name}: {row['what']} |" in text
        for path in module.COLUMNS:
            assert row[path]["n"] > 0
            if name == module.REFERENCE:
                assert row[path]["difference"]["mean"] == 0
    # What is done is not done again.
    capsys.readouterr()
    assert run_command(run.main, ["run", *flags]) == 0
    assert "====" not in capsys.readouterr().out


def test_an_arm_that_is_not_there_is_named(faces, tmp_path, capsys):
    flags = ["imbalance", "--scale=smoke", f"--source={faces}", "--arm=none"]
    assert run_command(run.main, ["run", *flags]) == 2
    assert "there are baseline, ins, undersample, dense-lmf" in capsys.readouterr().err


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="no file whose name begins with mobilenet_v3_small"):
        setting.Setting("cpu", weights=tmp_path).pretrained("mobilenet_v3_small")
