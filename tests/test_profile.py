"""The profile of a step's time: the trace of a few steps, and its page."""

import re

import jax
import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st

import tiny
from agejax.logging import profile
from agejax.train import train


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10))))
def test_time_that_intervals_share_counts_once(spans):
    taken = {second for start, length in spans for second in range(start, start + length)}
    assert profile.covered((start, start + length) for start, length in spans) == len(taken)


def loss(x):
    with jax.named_scope("middle"):
        return jnp.sum(jnp.tanh(x @ x) ** 2)


def test_operations_are_told_apart_by_phase_and_place():
    program = jax.jit(lambda x: x - jax.grad(loss)(x)).lower(jnp.ones((8, 8))).compile()
    ops = profile.parse(program.as_text())
    products = [op for op in ops.values() if op.opcode == "dot"]
    assert {op.phase for op in products} == {"forward", "backward"}
    assert {op.place for op in products} == {"test_profile.py loss"}


def test_shares_and_times_are_those_of_the_trace():
    program = jax.jit(lambda x: jnp.sort(x @ x)).lower(jnp.ones((8, 8))).compile()
    text = program.as_text()
    module = text.partition("HloModule ")[2].partition(",")[0]
    first, second = [n for n, op in profile.parse(text).items() if op.opcode != "parameter"][:2]
    events = [
        (module, first, 0.0, 0.003),
        (module, second, 0.002, 0.003),
        ("another", second, 0.0, 9.0),  # no part of the step
        (module, "unheard of", 0.0, 9.0),
    ]
    page = profile.summary([program], events, steps=2, seconds=0.006, batch_size=30)
    assert "| a step | 3.0 ms, 10,000 images/s |" in page
    assert "| of this, the device was busy | 50% |" in page
    assert re.search(rf"\| {re.escape(first)}: .* \| 0 \| 1.50 \| 75.0% \|", page)
    assert re.search(rf"\| {re.escape(second)}: .* \| 0 \| 0.50 \| 25.0% \|", page)


def test_a_run_leaves_its_profile(faces, cache, tmp_path, capsys):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total, config.profile = {"steps": 6}, 2
    train(config, tmp_path / "run")
    folder = tmp_path / "run" / "profile"
    assert list(folder.rglob("*.trace.json.gz"))
    assert f"profile of 2 steps: {folder / 'summary.md'}" in capsys.readouterr().out
    page = (folder / "summary.md").read_text()
    shares = dict(re.findall(r"^\| (\w+) \|.* ([\d.]+)% \|$", page, re.MULTILINE))
    assert {"augmentation", "forward", "backward", "update"} <= shares.keys()
    assert 99 < sum(map(float, shares.values())) < 101


def test_a_run_that_ends_before_its_profile_ends_well(faces, cache, tmp_path, capsys):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total, config.profile = {"steps": 4}, 10
    train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "profile" / "summary.md").exists()
    assert "no profile: the run ended before 10 steps after its first 3" in capsys.readouterr().err
    jax.profiler.start_trace(tmp_path / "free")  # the first one was ended
    jax.profiler.stop_trace()
