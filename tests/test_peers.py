"""The comparison with other libraries: turns, ratios, tables, and agejax's own side of it."""

from __future__ import annotations

import json
import math
import os
import sys
import time

import numpy as np
import pytest

from agejax.process.command import run_command
from experiments.benchmarks import commits, peers, peers_report, roofline
from experiments.benchmarks.contestants import case as case_lib
from experiments.benchmarks.contestants import ours
from experiments.benchmarks.contestants.__main__ import respond
from experiments.benchmarks.contestants.case import Case, Contestant, Data
from experiments.benchmarks.turns import alternate, ratio

SMALL = Case("cnn", 32, 4)  # compiles in a fifth of the time of any other


def row(**turns: list[float]) -> dict:
    """A row with 2 seconds per step for agejax, and 10 images per step."""
    turns = {"agejax": [2.0, 4.0, 2.0], **turns}
    return peers.summarise("train step", "net", "seconds", turns, {"Keras": "no | here"}, 10)


def test_turns_alternate_and_keep_what_each_gave():
    order = []
    turns = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert alternate(turns, 3) == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert "".join(order) == "abccbaabc"


def test_ratios_are_of_the_same_round():
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == {"median": 3, "min": 2, "max": 4}


def test_a_row_has_speeds_and_ratios_to_agejax():
    result = row(torch=[6.0, 4.0, 1.0])
    torch = result["contestants"]["torch"]
    assert (torch["median"], torch["images_per_second"]) == (4, 2.5)
    assert torch["ratio"] == {"median": 1, "min": 0.5, "max": 3}
    assert "ratio" not in result["contestants"]["agejax"]


def test_the_table_has_every_contestant_and_the_reasons_of_the_others():
    slow = peers.summarise(
        "memory", "net", "bytes", {"agejax": [2.0**20], "torch": [3.0 * 2**20]}, {}
    )
    text = peers_report.tables([row(torch=[6.0, 4.0, 1.0]), slow])
    assert "### Train step" in text
    assert "| net | agejax | 5 images/s |  |" in text
    assert "| net | torch | 2.5 images/s | 1.00 (0.50 to 3.00) |" in text
    assert "| net | Keras | no / here | |" in text
    assert "| net | torch | 3 MiB | 3.00 (3.00 to 3.00) |" in text


def test_the_chart_says_its_ratios_and_stands_an_empty_comparison():
    chart = peers_report.chart([row(torch=[6.0, 4.0, 1.0])])
    assert "train step, net, torch: 1.00" in chart.alt
    assert len(chart.png) > 5000
    assert "nobody to compare with" in peers_report.chart([row()]).alt


def test_who_fails_is_left_out_with_the_reason_but_agejax_may_not():
    failed = peers.Failed("out of memory")
    given = {"agejax": [1.0, 2.0], "torch": [1.0, failed]}
    assert peers.sort_out(given) == ({"agejax": [1.0, 2.0]}, {"torch": "out of memory"})
    with pytest.raises(RuntimeError, match="agejax itself failed: out of memory"):
        peers.sort_out({"agejax": [failed]})


def test_utilisation_is_of_the_peak_and_of_what_the_memory_allows():
    peaks = roofline.Peaks(float32=100.0, bfloat16=400.0, memory=10.0)
    figures = roofline.utilisation(50.0, 10.0, 2.0, "float32", peaks)
    # 5 operations a byte at 10 bytes/s are 50 a second, half of the peak.
    assert figures == {
        "flops_per_second": 25, "bytes_per_second": 5, "mfu": 0.25, "roofline": 0.5,
        "bound": "memory",
    }  # fmt: skip
    assert roofline.utilisation(50.0, 1.0, 2.0, "float32", peaks)["bound"] == "compute"
    assert roofline.utilisation(50.0, None, 2.0, "bfloat16", peaks)["mfu"] == 0.0625
    assert roofline.utilisation(50.0, 10.0, 2.0, "float32", None).keys() == {
        "flops_per_second", "bytes_per_second",
    }  # fmt: skip


def test_a_gpu_has_rows_of_bfloat16_and_a_cpu_contestants():
    titles = [row.title for row in peers.rows_of(peers.ON_GPU, on_gpu=True)]
    assert "train step: vit_s16, bfloat16, 224 px, batch 64" in titles
    on_cpu = peers.rows_of(peers.ON_CPU, on_gpu=False)
    assert not any("bfloat16" in row.title for row in on_cpu)
    assert {e.peer.dtype for e in on_cpu[0].entries.values()} == {"float32", "bfloat16"}
    for some in on_cpu:
        assert next(iter(some.entries)) == "agejax"


def test_rows_and_contestants_are_chosen_by_their_names():
    rows = peers.chosen(peers.ON_CPU, False, "(train|end).*vit", "^torch(,.*images)?$")
    assert [(row.kind, row.case.network, [*row.entries]) for row in rows] == [
        ("train step", "vit_s16", ["agejax", "torch"]),
        ("end to end", "vit_s16", ["agejax", "torch, decoded images"]),
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--repeats=0", "--repeats=0: give 1 or more"),
        ("--steps=-1", "--steps=-1: give 1 or more"),
        ("--only=(", "--only=(: not a regex"),
        ("--only=resnet51", "no such row; there are train step: mobilenet_v3_small, float32, 128"),
        ("--beside=(", "--beside=(: not a regex"),
        ("--beside=jit", "--beside=jit: no such contestant in train step: mobilenet_v3_small"),
        ("--beside=plain", "no such contestant in end to end: mobilenet_v3_small, float32, 128 px"),
    ],
)
def test_bad_arguments_are_told_in_one_line(flag, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_device", lambda: ("cpu", "cpu"))
    assert run_command(peers.main, ["peers", flag, f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_contestant_answers_requests():
    class Fake(Contestant):
        def train(self):
            return lambda steps: steps / 4

    fake, turns = Fake(SMALL, Data(None, 32)), []
    assert respond(fake, turns, {"prepare": {"kind": "train"}}) == {"turn": 0}
    assert respond(fake, turns, {"turn": 0, "steps": 2}) == {"seconds": 0.5}
    assert respond(fake, turns, {"ask": "memory"})["bytes"] > 2**20


def test_our_loop_trains_and_logs_and_our_step_knows_its_cost(tmp_path):
    rng = np.random.default_rng(0)
    labels = {
        "age": rng.uniform(1, 90, 16).astype(np.float32),
        "gender": rng.integers(0, 2, 16).astype(np.int32),
        "ethnicity": rng.integers(0, case_lib.CLASSES, 16).astype(np.int32),
    }
    source = ours.as_source(rng.integers(0, 256, (16, 40, 40, 3), np.uint8), labels)
    loop = ours.Loop(ours.make_config(SMALL, **ours.LIGHT), source, tmp_path)
    assert loop.turn(6) > 0
    logged = (tmp_path / "turn2" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [5, 6]
    cost = loop.cost()
    assert cost["flops"] > 1e6
    assert cost["bytes"] > 1e5


def test_first_steps_are_of_two_processes_with_one_cache(monkeypatch):
    caches = []

    class Fake:
        def __init__(self, peer, case, data, patience, **environment):
            self.peer = peer
            caches.append(environment["AGEJAX_CACHE"])

        def prepare(self, task):
            if self.peer.library == "keras":
                raise peers.Failed("keras is not installed")
            return lambda steps: 0.1 * steps

        def ask(self, ask):
            return {"bytes": 7, "device_bytes": None}

        def close(self):
            pass

    monkeypatch.setattr(peers, "Child", Fake)
    row = next(row for row in peers.rows_of(peers.SMOKE, on_gpu=True) if row.kind == "first step")
    cold, warm, memory = peers.measure(row, None, Data(None, 32), 2, 1, "a GPU")
    assert memory["contestants"]["torch"]["turns"] == [7, 7]
    assert memory["skipped"] == {"Keras": "keras is not installed"}
    for starts in (cold, warm):
        assert all(0 < seconds < 9 for seconds in starts["contestants"]["agejax"]["turns"])
    # Keras was tried once; of the four others two turns of a cold and a warm start.
    assert len(caches) == 1 + 4 * 2 * 2
    assert len(set(caches)) == 1 + 4 * 2


def test_agejax_is_measured_without_the_other_libraries(tmp_path, monkeypatch, capsys):
    scale = peers.Scale(16, 40, (SMALL,), Case(image_size=32, batch=8))
    monkeypatch.setattr(peers, "SMOKE", scale)
    monkeypatch.setenv("AGEJAX_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "new" / "peers"
    flags = ["--smoke", "--only=train|evaluation|input", f"--output={output}"]
    assert run_command(peers.main, ["peers", *flags]) == 0
    result = json.loads(output.with_suffix(".json").read_text())
    assert [row["kind"] for row in result["rows"]] == ["train step", "evaluation", "input"]
    text = output.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    for row in result["rows"]:
        assert "agejax" in row["contestants"]
        for name, figures in row["contestants"].items():
            assert all(value > 0 and math.isfinite(value) for value in figures["turns"])
            assert f"| {row['what']} | {name} | {peers_report.measured(row, figures)} |" in text
        assert "Keras" in row["skipped"] or row["kind"] == "input"
    train = result["rows"][0]
    plain, own = (train["contestants"][name] for name in ("plain Flax", "agejax"))
    assert plain["ratio"]["median"] == plain["turns"][0] / own["turns"][0]
    assert plain["parameters"] == own["parameters"] > 1000
    assert own["flops_per_second"] == pytest.approx(train["flops"] / own["median"])
    assert output.with_suffix(".png").stat().st_size > 5000


def test_another_commit_is_checked_out_whole_and_an_unknown_one_is_one_line(tmp_path, capsys):
    commits.check_out("HEAD", tmp_path / "head")
    assert (tmp_path / "head/agejax/configs/quickstart.py").is_file()
    flags = ["--before=no-commit", f"--output={tmp_path / 'out.json'}"]
    assert run_command(commits.main, ["commits", *flags]) == 2
    error = capsys.readouterr().err
    assert "--before=no-commit: fatal: not a valid object name: no-commit" in error
    assert error.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_cpu_time_of_a_process_is_what_it_used():
    before, known = commits.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - known < 0.2:
        pass
    assert commits.cpu_seconds(os.getpid()) - before == pytest.approx(0.2, abs=0.05)
