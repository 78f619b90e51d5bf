"""A few inputs of every kind of `experiments.fuzz`, and its reports of failures."""

import json
import os
import pathlib
import random

import pytest

from agejax.errors import UserError
from experiments import fuzz

EACH = 12  # inputs of a kind


def every_kind(folder):
    """All kinds in one worker, since most of the time is its start."""
    targets = [prepare(folder) for prepare in fuzz.KINDS.values()]
    return lambda rng, folder: rng.choice(targets)(rng, folder)


def test_no_input_of_any_kind_ends_badly(tmp_path):
    names = [f"all/{i}" for i in range(EACH * len(fuzz.KINDS))]
    tally = fuzz.run("all", every_kind, names, 0, tmp_path)
    assert tally.failures == []
    assert (tally.inputs, tally.failed) == (len(names), 0)
    assert min(tally.accepted, tally.refused, tally.skipped) > 0  # not all are refused


def ends_badly(folder):
    """A target whose inputs have all possible outcomes."""

    def target(rng, folder):
        match list(ENDS)[rng.randrange(len(ENDS))]:
            case "a traceback":
                raise KeyError("of no use to a user")
            case "several lines":
                error = UserError("")
                error.args = ("one\ntwo",)  # `UserError` makes one line of it
                raise error
            case "a file outside":
                pathlib.Path("here").write_text("")
            case "a change outside":
                (folder.parent / "outside" / "canary").write_text("moved")
            case "a crash":
                os.abort()
            case "no end":
                while True:
                    pass
            case "no memory":
                bytearray(2 * fuzz.MEMORY)
            case "refused":
                raise UserError("x: is wrong; set it right")
            case "skipped":
                return False
        (folder / "file").write_text("within")
        return True

    return target


ENDS = {
    "a traceback": "tracebacks",
    "several lines": "tracebacks",
    "a file outside": "outside",
    "a change outside": "outside",
    "no memory": "tracebacks",
    "accepted": "",
    "refused": "",
    "skipped": "",
    "a crash": "crashes",
    "no end": "hangs",
}


def test_every_bad_end_is_told_with_the_command_that_repeats_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "KINDS", {"bad": ends_badly})
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 1.0)
    drawn = [random.Random(f"0/bad/{i}").randrange(len(ENDS)) for i in range(100)]
    number = [drawn.index(i) for i in range(len(ENDS))]
    for i in (-2, -1):  # end the worker: late, as the start of one takes most of the time
        number[i] = max(n for n, end in enumerate(drawn) if end == len(ENDS) + i)
    only = f"^bad/({'|'.join(map(str, number))})$"
    with pytest.raises(UserError, match="7 inputs failed"):
        fuzz.main(["", "--inputs=100", f"--only={only}", f"--output={tmp_path}"])
    tally = json.loads((tmp_path / "fuzz.json").read_text())["kinds"]["bad"]
    assert tally["inputs"] == len(ENDS)
    assert [tally[end] for end in ("accepted", "refused", "skipped")] == [1, 1, 1]
    told = {failure["again"]: failure["outcome"] for failure in tally["failures"]}
    expected = {
        f"python -m experiments.fuzz --seed=0 --only='^bad/{number[i]}$'": outcome
        for i, outcome in enumerate(ENDS.values())
        if outcome
    }
    assert told == expected
    assert "KeyError: 'of no use to a user'" in capsys.readouterr().out
    assert "| bad | 10 | 1 | 1 | 1 | 3 | 1 | 1 | 2 |" in (tmp_path / "fuzz.md").read_text()
