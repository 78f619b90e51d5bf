"""Prior correction: by hand, from a sampler's draws, and in a run's folder."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import tiny
from agejax import files, heads
from agejax.data import draws, opening, splits
from agejax.heads import priors, training
from agejax.runs.run import Run
from agejax.train import train

# An image's likelihoods of three ages or classes, and their shares in the data and the draws.
LIKELIHOOD = np.array([0.2, 0.5, 0.3])
NATURAL, SAMPLED = np.array([600.0, 300.0, 100.0]), np.array([250.0, 250.0, 500.0])
POSTERIOR = LIKELIHOOD * NATURAL / (LIKELIHOOD * NATURAL).sum()
AS_SAMPLED = LIKELIHOOD * SAMPLED / (LIKELIHOOD * SAMPLED).sum()
PRIOR = {"natural": NATURAL.tolist(), "sampled": SAMPLED.tolist()}
LABELS = {
    "age": np.repeat(np.arange(3.0), [6, 3, 1]).astype(np.float32),
    "ethnicity": np.repeat(np.arange(3), [6, 3, 1]),
    "gender": np.repeat(np.arange(2), [9, 1]),
}
NAMES = {"ethnicity": ("a", "b", "c"), "gender": ("male", "female")}


def make(label, prior=None, **options):
    facts = heads.Facts.of(LABELS, NAMES)
    facts = heads.Facts(**{**vars(facts), "priors": {label: prior or PRIOR}})
    return heads.create({label: options}, facts)[label]


def outputs_of(p, options):
    """The output of a head with these options for the probabilities p [K]."""
    above = 1 - np.cumsum(p)[:-1]
    if options.get("method") == "corn":
        above = above / np.concatenate([[1.0], above[:-1]])
    logits = scipy.special.logit(above) if options["kind"] == "ordinal" else np.log(p) + 3
    return jnp.array(logits[None], jnp.float32)


AGES = [
    {"kind": "distribution", "decode": "expectation", "range": (0, 2)},
    {"kind": "ordinal", "decode": "expectation", "range": (0, 2)},
    {"kind": "ordinal", "method": "corn", "decode": "expectation", "range": (0, 2)},
    {"kind": "ordinal", "method": "or_cnn", "decode": "expectation", "range": (0, 2)},
    {"kind": "buckets", "edges": (1, 2)},
]


@pytest.mark.parametrize("options", AGES, ids=str)
def test_a_known_posterior_under_a_known_sampling_becomes_the_natural_one(options):
    output = outputs_of(AS_SAMPLED, options)
    natural, sampled = make("age", **options), make("age", decode_prior="sampled", **options)
    assert float(natural.decode(output)[0]) == pytest.approx(POSTERIOR @ np.arange(3), rel=1e-5)
    assert float(sampled.decode(output)[0]) == pytest.approx(AS_SAMPLED @ np.arange(3), rel=1e-5)


def test_what_else_a_head_says_is_of_the_natural_posterior_too():
    output = outputs_of(AS_SAMPLED, {"kind": "distribution"})
    variance = POSTERIOR @ np.arange(3) ** 2 - (POSTERIOR @ np.arange(3)) ** 2
    sigma = make("age", **AGES[0]).extras(output)["sigma"]
    np.testing.assert_allclose(sigma, np.sqrt(variance), rtol=1e-5)
    bucket = make("age", **AGES[-1]).extras(output)["bucket"]
    np.testing.assert_allclose(bucket[0], POSTERIOR, rtol=1e-5)
    # The median: half of the mass is below it, each age's spread over its year.
    median = make("age", kind="distribution", range=(0, 2)).decode(output)
    assert float(median[0]) == pytest.approx(
        -0.5 + 1 + (0.5 - POSTERIOR[0]) / POSTERIOR[1], rel=1e-5
    )


def test_classes_are_decoded_as_sampled_unless_told_otherwise():
    output = outputs_of(AS_SAMPLED, {"kind": "categorical"})
    as_it_is = make("ethnicity", kind="categorical")
    natural = make("ethnicity", kind="categorical", decode_prior="natural")
    np.testing.assert_allclose(as_it_is.decode(output)[0], AS_SAMPLED, rtol=1e-5)
    np.testing.assert_allclose(natural.decode(output)[0], POSTERIOR, rtol=1e-5)
    # The inputs of losses and students stay as trained.
    np.testing.assert_array_equal(natural.logits(output), output)
    two = {"natural": [800.0, 200.0], "sampled": [500.0, 500.0]}
    head = make("gender", two, kind="binary", decode_prior="natural")
    # Odds of 1 among those drawn are odds of 1 : 4 in the data.
    np.testing.assert_allclose(head.decode(jnp.zeros((1, 1)))[0], [0.8, 0.2], rtol=1e-5)
    assert head.metrics(jnp.ones((1, 1)), {"gender": jnp.array([1])})["accuracy"][0] == 0


def test_an_age_with_few_rows_borrows_from_its_neighbours_and_nothing_divides_by_zero():
    prior = {"natural": [100, 0, 3, 50, 0], "sampled": [50, 0, 9, 100, 0]}
    found = priors.log_ratio("natural", prior, lambda counts: np.array(counts, float))
    expected = [100 / 50, 103 / 59, 53 / 109, 50 / 100, 50 / 100]
    np.testing.assert_allclose(np.exp(found), expected)
    classes = priors.log_ratio(
        "natural", prior, lambda counts: np.array(counts, float), ordered=False
    )
    np.testing.assert_allclose(np.exp(classes), [2, 153 / 159, 1 / 3, 0.5, 153 / 159])
    assert priors.log_ratio("natural", None, np.array) == ()


def test_the_prior_is_measured_from_the_draws_and_the_example_weights():
    ages = np.repeat([20.0, 60.0, np.nan, 90.0], [400, 100, 5, 50]).astype(np.float32)
    rows = np.arange(505)  # not the last
    drawn = np.repeat([0.5, 2.0, 1.0], [400, 100, 5])
    facts = heads.Facts.of({"age": ages[rows]}, {})
    config = {"age": {"kind": "distribution"}, "plain": {"kind": "regression", "label": "age"}}
    made, facts, _ = training.prepare(config, facts, {"age": ages}, rows, drawn, np.ones(505))
    assert set(facts.priors) == {"age"}
    ratio = np.exp(made["age"].prior)
    assert ratio[20] == pytest.approx(400 / 200)
    assert ratio[60] == pytest.approx(100 / 200)
    config["age"]["example_weights"] = {"kind": "inverse"}
    made, _, w = training.prepare(config, facts, {"age": ages}, rows, drawn, np.ones(505))
    ratio = np.exp(made["age"].prior)
    assert ratio[20] / ratio[60] == pytest.approx(
        4 * w["example_weight/age"][400] / w["example_weight/age"][0]
    )
    assert not training.prepare({"age": {"kind": "distribution"}}, facts, {"age": ages}, rows,
                                np.ones(505), np.ones(505))[1].priors  # fmt: skip


@pytest.fixture(scope="module")
def run(faces, cache, tmp_path_factory):
    """A run of two steps that draws rare ages more often; and its config."""
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.total = config.eval.every = config.checkpoint.every = {"steps": 2}
    config.heads = {"age": {"kind": "distribution", "range": (0.0, 100.0)}}
    config.sampling.alpha = 1.0
    workdir = tmp_path_factory.mktemp("priors") / "run"
    train(config, workdir)
    return workdir, config


def test_a_run_keeps_the_prior_of_its_draws_and_is_decoded_with_it(run):
    workdir, config = run
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)["train"]
    years = np.rint(source.labels["age"][rows]).astype(int)
    expected = draws.weigh(config.sampling, source, rows).expected(len(rows))
    opened = Run.open(workdir, devices=1)
    prior = opened.facts.priors["age"]
    np.testing.assert_allclose(prior["natural"], np.bincount(years))
    np.testing.assert_allclose(prior["sampled"], np.bincount(years, expected))
    head = opened.heads["age"]
    by_hand = priors.log_ratio("natural", prior, lambda n: np.pad(n, (0, 101 - len(n))))
    np.testing.assert_allclose(head.prior, by_hand)
    assert np.ptp(head.prior) > 0.5
    assert json.loads((workdir / "config.json").read_text())["heads"]["age"] == {
        "kind": "distribution", "range": [0.0, 100.0], "decode_prior": "natural",
    }  # fmt: skip


def test_a_run_from_before_there_were_priors_opens_and_goes_on_as_it_was(run, tmp_path):
    workdir, config = run
    old = tmp_path / "run"
    shutil.copytree(workdir, old)
    for path in (old / "config.json", *old.glob("checkpoints/*/meta/metadata")):
        text = path.read_text()
        stored = json.loads(text)
        kept = stored.get("config", stored)
        kept["heads"]["age"] = {"kind": "distribution"}
        if "digest" in stored:
            stored["digest"] = files.digest(stored)
        path.write_text(json.dumps(stored))
    head = Run.open(old, devices=1).heads["age"]
    assert head.prior == ()
    assert len(head.ages) == 101
    again = config.copy_and_resolve_references()
    again.heads = {"age": {"kind": "distribution"}}
    assert train(again, old) is not None
