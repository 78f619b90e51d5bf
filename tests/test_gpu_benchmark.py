"""The benchmark for GPUs: its table, time, failures and starts; one row on a CPU."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
import subprocess
import tempfile
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agejax.config import check, default, replaced
from agejax.models import vit
from agejax.models.lowerings import attention
from agejax.models.lowerings import conv as conv_lib
from agejax.process.command import run_command
from agejax.training import sharding
from experiments.benchmarks import gpu, peers
from experiments.benchmarks.contestants import ours
from experiments.benchmarks.contestants.case import Case, Data

TINY = gpu.Scale(
    small=Case("cnn", 32, dtype="bfloat16"),
    transformer=Case("mlp", 16, dtype="bfloat16"),
    deep=Case("cnn", 16, dtype="bfloat16"),
    batches=(2, 4, 8),
    edge=40,
)


def test_every_row_has_agejax_as_it_is_first_and_names_settings_and_forms_that_exist():
    rows = [row for group in gpu.table(gpu.ON_GPU) for row in group]
    assert rows[0].title == "first step: mobilenet_v3_small, bfloat16, 128 px, batch 64"
    assert len({row.title for row in rows}) == len(rows)
    assert {row.case.batch for row in rows if row.kind == "train step"} == {64, 256, 1024}
    for row in (row for row in rows if row.kind != "two starts"):
        assert next(iter(row.entries.values())).peer == peers.Peer("agejax", "bfloat16")
    for row in rows:
        for entry in row.entries.values():
            check(replaced(default(), entry.peer.options.get("settings", {})))
            assert set(entry.peer.options.get("forms", ())) <= set(ours.FORMS)


def test_flags_of_xla_are_added_to_those_of_the_user(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    entry = gpu.contestant("two", flags="--xla_two=2")
    assert entry.peer.environment == {"XLA_FLAGS": "--xla_one=1 --xla_two=2"}


class Fake:
    """A contestant's process on a GPU, with 10 ms per step, PyTorch with 20.

    Attributes:
      trouble: networks that agejax fails with.
      asked: (library, steps) of every turn.
      programs: compile cache -> a number of its own.
    """

    trouble: ClassVar[set[str]] = set()
    asked: ClassVar[list[tuple[str, int]]] = []
    programs: ClassVar[dict[str, int]] = collections.defaultdict(itertools.count(1).__next__)

    def __init__(self, peer, case, data, patience, **environment):
        self.peer, self.case, self.data = peer, case, data
        self.seconds = 0.02 if peer.library == "torch" else 0.01
        self.cache = environment.get("AGEJAX_CACHE")

    def prepare(self, task):
        if self.case.network in self.trouble and self.peer.library == "agejax":
            raise peers.Failed("out of memory")
        if self.peer.options.get("forms") == ["attention by cuDNN"]:
            raise peers.Failed("no such kernel")

        def turn(steps):
            self.asked.append((self.peer.library, steps))
            return self.seconds

        return turn

    def ask(self, ask):
        if ask == "save":
            own = pathlib.Path(tempfile.mkdtemp(dir=self.data.folder)) / "state.npz"
            np.savez(own, a=np.float32([1, self.programs[self.cache]]), b=np.ones(3))
            return {"file": str(own)}
        return {
            "facts": {"parameters": 7, "versions": {"jax": "1.2"}},
            "memory": {"bytes": 1, "device_bytes": 3 * 2**20},
            "cost": {"flops": 1e12, "bytes": 1e9},
            "host": {"host_milliseconds": 0.125},
        }[ask]

    def close(self):
        pass


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """Runs the command on a GPU of fake contestants: flags -> (exit code, its JSON)."""
    monkeypatch.setattr(peers, "Child", Fake)
    monkeypatch.setattr(peers, "find_device", lambda: ("gpu", "NVIDIA H200"))
    monkeypatch.setattr(gpu, "commit", lambda: "abc")
    monkeypatch.setattr(gpu, "ON_GPU", TINY)
    monkeypatch.setattr(Fake, "trouble", set())
    monkeypatch.setattr(Fake, "asked", [])

    def run(*flags):
        code = run_command(gpu.main, ["gpu", f"--output={tmp_path / 'new' / 'gpu'}", *flags])
        return code, json.loads((tmp_path / "new" / "gpu.json").read_text())

    return run


def test_rows_have_ratios_shares_of_the_peaks_and_memory(on_gpu, tmp_path, capsys):
    code, result = on_gpu("--only=^(train step: cnn.*32 px, batch 4|loop|attention)")
    assert code == 0
    assert result["left"] == []
    assert result["versions"] == {"jax": "1.2"}
    by_kind = {row["kind"]: row for row in result["rows"]}
    step = by_kind["train step"]["contestants"]
    assert step["agejax"]["images_per_second"] == 400
    assert step["agejax"]["device_bytes"] == 3 * 2**20
    # 1e12 operations in 0.01 s, of 989.4e12 a second; 1,000 a byte at 4.8e12 bytes/s are more.
    assert step["agejax"]["mfu"] == pytest.approx(1e14 / 989.4e12)
    assert step["agejax"]["bound"] == "compute"
    assert step["torch compiled"]["mfu"] == pytest.approx(0.5e14 / 989.4e12)
    assert step["torch compiled"]["ratio"] == {"median": 2, "min": 2, "max": 2}
    assert by_kind["loop"]["contestants"]["training"]["host_milliseconds"] == 0.125
    assert by_kind["attention"]["skipped"] == {"cuDNN": "no such kernel"}
    # Turns of 0.4 s: 40 steps of agejax, 20 of PyTorch.
    assert Fake.asked.count(("torch", 20)) == gpu.REPEATS
    assert {steps for library, steps in Fake.asked if library == "agejax"} == {2, 40}
    text = (tmp_path / "new" / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "| torch compiled | 200 images/s, 50,000.0 GFLOP/s, MFU 5.1%, 3 MiB" in text
    assert "0.12 ms of the host per step, 3 MiB of the device" in text


def test_two_starts_with_one_cache_share_it_and_what_differs_is_counted(on_gpu, tmp_path):
    _, result = on_gpu("--only=two starts")
    (row,) = result["rows"]
    assert row["contestants"].keys() == {"as it is", gpu.ONE_CACHE, "config.deterministic"}
    assert row["contestants"]["as it is"]["of"] == 2
    # A fake program is as its cache is, so it repeats where two starts share the cache.
    differ = {label: figures["median"] for label, figures in row["contestants"].items()}
    assert differ == {"as it is": 1, gpu.ONE_CACHE: 0, "config.deterministic": 1}
    text = (tmp_path / "new" / "gpu.md").read_text()
    assert "| as it is | 1 of 2 arrays differ, by up to" in text
    assert f"| {gpu.ONE_CACHE} | the same bits in all 2 arrays |" in text


def test_differences_are_counted_and_measured():
    first = {"a": np.float32([1, -4, np.nan]), "b": np.int32(3), "c": np.ones(2)}
    assert gpu.difference(first, first) == {"median": 0, "of": 3, "largest": 0}
    first = {"a": np.float32([1, -4]), "b": np.int32(3), "c": np.ones(2)}
    second = first | {"a": np.float32([1, -3]), "c": np.float64([1, 0.9])}
    assert gpu.difference(first, second) == {"median": 2, "of": 3, "largest": 0.25}


def test_what_was_not_reached_or_failed_is_measured_by_the_next_start(on_gpu, tmp_path, capsys):
    only = "--only=train step.*batch 4"
    code, result = on_gpu(only, "--minutes=0")
    titles = [f"train step: {name}, batch 4" for name in (
        "cnn, bfloat16, 32 px", "mlp, bfloat16, 16 px", "cnn, bfloat16, 16 px",
    )]  # fmt: skip
    assert (code, result["rows"], result["left"]) == (0, [], titles)
    Fake.trouble = {"mlp"}
    _, result = on_gpu(only)
    assert [bool(row["contestants"]) for row in result["rows"]] == [True, False, True]
    assert result["rows"][1]["skipped"] == {"agejax": "agejax itself failed: out of memory"}
    assert result["left"] == titles[1:2]
    Fake.trouble, Fake.asked = set(), []
    _, result = on_gpu(only)
    assert [row["row"] for row in result["rows"]] == [titles[0], titles[2], titles[1]]
    assert result["left"] == []
    assert Fake.asked.count(("torch", 20)) == gpu.REPEATS  # the others were not measured again


def test_rows_of_another_commit_are_kept_from_being_mixed(on_gpu, monkeypatch, capsys):
    on_gpu("--only=loop")
    monkeypatch.setattr(gpu, "commit", lambda: "def")
    code, result = on_gpu("--only=loop")
    assert (code, result["commit"]) == (2, "abc")
    assert "has rows of commit abc, not def; move it away, or give" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=("], "--only=(: not a regex"),
        (["--only=resnet51"], "--only=resnet51: no such row; there are first step: mobilenet_v3"),
        ([], "JAX finds no GPU but cpu; install jax[cuda12], or give --smoke"),
    ],
)
def test_bad_arguments_and_no_gpu_are_told_in_one_line(
    flags, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(peers, "find_device", lambda: ("cpu", "cpu"))
    assert run_command(gpu.main, ["gpu", f"--output={tmp_path / 'gpu'}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_form_of_an_operation_is_used_while_it_is_asked_for(monkeypatch):
    x, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 1, 4))

    def primitives():
        return str(jax.make_jaxpr(lambda x, k: conv_lib.conv(x, k, 1, 1, 4))(x, kernel))

    with ours.using(["depthwise by taps", "attention by heads"]):
        assert "conv_general_dilated" not in primitives()
        assert vit.attention is attention.by_heads
    assert "conv_general_dilated" in primitives()
    assert vit.attention is attention.attention


def test_a_contestant_has_its_settings_and_saves_its_state(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "start", lambda: None)
    case = dataclasses.replace(TINY.small, batch=4)
    data = gpu.noise(tmp_path, TINY)
    settings = {"optim.ema": 0.9, "model.options": {"widths": (4,)}}
    contestant = ours.Ours(case, data, settings=settings)
    assert contestant.config().optim.ema == 0.9
    contestant.train()(2)
    with np.load(contestant.save()["file"]) as saved:
        kept = dict(saved)
    state = contestant.trained.state
    # Every array by its name, not the vectors that hold several.
    for place, arrays in (
        (".params", state.params), (".ema['params']", state.ema["params"]),
        (".batch_stats", state.batch_stats),
    ):  # fmt: skip
        of_place = {k: v for k, v in kept.items() if k.startswith(f"{place}[")}
        named = {f"{place}['{name}']": value for name, value in arrays.items()}
        assert of_place.keys() == named.keys()
        for name, value in named.items():
            np.testing.assert_array_equal(of_place[name], value)
    assert int(kept[".step"]) == 3


def test_a_process_that_gives_no_answer_is_ended(tmp_path, monkeypatch):
    popen = subprocess.Popen
    sleep = lambda command, **options: popen(["sleep", "60"], **options)  # noqa: E731
    monkeypatch.setattr(subprocess, "Popen", sleep)
    child = peers.Child(peers.Peer("agejax", "float32"), Case(), Data(tmp_path, 8), 0.2)
    with pytest.raises(peers.Failed, match=r"^no answer within 0\.2 s$"):
        child.ask(ask="memory")
    child.close()


def test_one_row_is_measured_on_a_cpu_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setenv("AGEJAX_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "gpu"
    title = "train step: cnn, bfloat16, 32 px, batch 2"
    flags = ["--smoke", f"--only=^{title}$", f"--output={output}"]
    assert run_command(gpu.main, ["gpu", *flags]) == 0
    (row,) = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert row["row"] == title
    assert row["flops"] > 1e6
    figures = row["contestants"]["agejax"]
    assert len(figures["turns"]) == gpu.REPEATS
    assert 0 < figures["median"] < 60
    assert "torch compiled" in {**row["contestants"], **row["skipped"]}
