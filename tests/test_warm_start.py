"""A run that starts from another run's weights predicts what that run predicts."""

import dataclasses
import pathlib
import shutil

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import tiny
from agejax import checks
from agejax import heads as heads_lib
from agejax.data import opening, pipeline
from agejax.errors import UserError
from agejax.models import pretrained
from agejax.runs import run_folder, warm_start
from agejax.runs.run import Run
from agejax.train import train

OLD = heads_lib.Facts(
    labels=["age", "sex", "group"],
    means={"age": 30.0},
    stds={"age": 20.0},
    medians={"age": 28.0},
    label_names={"sex": ["male", "female"], "group": ["A", "B", "C"]},
    counts={"age": [2] * 80, "sex": [9, 5], "group": [10, 20, 30]},
)
NEW = heads_lib.Facts(
    labels=["age", "sex", "group"],
    means={"age": 45.5},
    stds={"age": 8.0},
    medians={"age": 44.0},
    label_names={"sex": ["female", "male"], "group": ["C", "A", "B"]},
    counts={"age": [0] * 20 + [3] * 60, "sex": [4, 5], "group": [7, 20, 90]},
)
FEATURES = 5


def layer(head, seed):
    """The head's last layer with random arrays, and its function."""
    module = head.output(FEATURES, nnx.Rngs(seed))
    graph, state = nnx.split(module)
    flat = {"/".join(map(str, path)): v for path, v in nnx.to_flat_state(state)}
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.asarray(v.get_value()) + rng.normal(size=v.get_value().shape).astype(np.float32)
        for name, v in flat.items()
    }

    def apply(arrays, x):
        for name, variable in flat.items():
            variable.set_value(jnp.asarray(arrays[name], jnp.float32))
        return nnx.merge(graph, state)(x)

    return arrays, apply


def adapted(given, given_new=None, label="age", new_facts=NEW, old_facts=OLD):
    """(old head, its outputs), (new head, the outputs of its adapted layer), note of one kind."""
    x = np.random.default_rng(7).normal(size=(40, FEATURES)).astype(np.float32)
    old = heads_lib.create({"h": {"label": label} | given}, old_facts)["h"]
    new = heads_lib.create({"h": {"label": label} | (given_new or given)}, new_facts)["h"]
    (theirs, apply), (fresh, apply_new) = layer(old, 1), layer(new, 2)
    result = new.adapt(old, theirs, fresh)
    if result is None:
        return None
    assert {k: v.shape for k, v in result.arrays.items()} == {k: v.shape for k, v in fresh.items()}
    return (old, apply(theirs, x)), (new, apply_new(result.arrays, x)), result.note


def assert_same_years(given, given_new=None):
    (old, before), (new, after), note = adapted(given, given_new)
    years = np.asarray(old.decode(before))
    assert np.ptp(years) > 1
    np.testing.assert_allclose(new.decode(after), years, rtol=1e-4, atol=1e-3)
    return (old, before), (new, after), note


# ---- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["l1", "bmc"])
@pytest.mark.parametrize("new", ["identity", "unit", "standard"])
@pytest.mark.parametrize("old", ["identity", "unit", "standard"])
def test_a_regression_predicts_the_same_years_on_any_straight_scale(old, new, loss):
    given = {"kind": "regression", "loss": loss, "range": (-0.0, 900.0)}
    assert_same_years(given | {"transform": old}, given | {"transform": new})


def test_the_learned_noise_of_a_regression_keeps_its_years():
    given = {"kind": "regression", "loss": "bmc"}
    (_, before), (_, after), _ = assert_same_years(given)
    # On the scale of labels with a deviation of 20 years, and of 8 years.
    np.testing.assert_allclose(np.exp(after[:, 1]) * 8, np.exp(before[:, 1]) * 20, rtol=1e-5)


def test_a_regression_may_change_its_loss():
    plain = {"kind": "regression"}
    assert_same_years(plain, plain | {"loss": "gai"})
    assert_same_years(plain | {"loss": "gai"}, plain)


def test_logarithms_of_years_fit_each_other_only():
    log, plain = ({"kind": "regression", "transform": kind} for kind in ("log", "standard"))
    assert_same_years(log)
    assert adapted(log, plain) is None
    assert adapted(plain, log) is None


def test_a_gaussian_keeps_its_years_and_its_deviation():
    (old, before), (new, after), _ = assert_same_years({"kind": "gaussian"})
    sigma = np.asarray(old.extras(before)["sigma"])
    inside = sigma < 20 * np.exp(3) / 3  # below the clip of the narrower scale
    np.testing.assert_allclose(new.extras(after)["sigma"][inside], sigma[inside], rtol=1e-4)


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "distribution"},
        {"kind": "ordinal", "method": "coral"},
        {"kind": "ordinal", "method": "corn", "decode": "expectation"},
        {"kind": "ordinal", "method": "or_cnn", "decode": "expectation"},
    ],
)
def test_distributions_and_ranks_are_taken_as_they_are(given):
    assert_same_years(given)


def test_a_wider_range_keeps_the_logits_of_the_ages_that_were_there():
    given = {"kind": "distribution", "range": (0, 60)}
    (_, before), (_, after), note = adapted(given, given | {"range": (10, 70)})
    np.testing.assert_allclose(after[:, :51], before[:, 10:], rtol=1e-6)
    assert note == "51 of 61 ages"


def test_ranks_from_another_age_on_or_of_another_method_start_anew():
    given = {"kind": "ordinal", "range": (0, 60)}
    assert adapted(given, given | {"range": (5, 60)}) is None
    assert adapted(given, given | {"method": "corn"}) is None


def test_a_binary_head_turns_round_with_its_classes():
    (old, before), (new, after), _ = adapted({"kind": "binary"}, label="sex")
    np.testing.assert_allclose(new.decode(after), old.decode(before)[:, ::-1], rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [{}, {"loss": "ldam", "scale": 3.0}, {"loss": "lmf", "cosine": True}]
)
def test_classes_are_matched_by_name(loss):
    given = {"kind": "categorical"} | loss
    (old, before), (new, after), note = adapted(given, label="group")
    np.testing.assert_allclose(new.decode(after), old.decode(before)[:, [2, 0, 1]], rtol=1e-5)
    assert not note


def test_the_scale_of_logits_may_change():
    given = {"kind": "categorical"}
    (old, before), (new, after), _ = adapted(
        given, given | {"loss": "ldam", "scale": 4.0}, label="group"
    )
    np.testing.assert_allclose(new.decode(after), old.decode(before)[:, [2, 0, 1]], rtol=1e-5)


def named(*classes):
    return heads_lib.Facts(
        labels=["group"],
        means={},
        stds={},
        medians={},
        label_names={"group": classes},
        counts={"group": [5] * len(classes)},
    )


def test_a_new_class_starts_fresh_beside_those_that_are_known():
    facts = named("B", "D", "A", "C")
    (_, before), (_, after), note = adapted({"kind": "categorical"}, label="group", new_facts=facts)
    np.testing.assert_allclose(after[:, [2, 0, 3]], before, rtol=1e-6)
    assert np.abs(after[:, 1]).max() > 0
    assert note == "3 of 4 classes"
    assert adapted({"kind": "categorical"}, label="group", new_facts=named("X", "Y")) is None


def test_buckets_keep_their_probabilities_and_take_the_ages_of_the_new_data():
    given = {"kind": "buckets", "edges": (30, 50)}
    (old, before), (new, after), note = adapted(given)
    np.testing.assert_allclose(new.extras(after)["bucket"], old.extras(before)["bucket"], rtol=1e-5)
    assert note == "with the new data's mean age of each bucket"


@pytest.mark.parametrize(
    ("given", "label", "order"),
    [
        ({"kind": "distribution"}, "age", None),
        ({"kind": "distribution", "decode": "expectation"}, "age", None),
        ({"kind": "buckets", "edges": (30, 50)}, "age", None),
        ({"kind": "categorical", "loss": "ldam", "scale": 3.0}, "group", [2, 0, 1]),
        ({"kind": "binary"}, "sex", [1, 0]),
    ],
)
def test_what_decoding_adds_for_the_prior_moves_into_the_biases(given, label, order):
    """Both runs used uneven samplers, each its own."""
    rng = np.random.default_rng(3)
    drawn = []
    for facts in (OLD, NEW):
        counts = [10.0 + count for count in facts.counts[label]]
        sampled = rng.uniform(10, 90, len(counts)).tolist()
        priors = {"h": {"natural": counts, "sampled": sampled}}
        drawn.append(dataclasses.replace(facts, priors=priors))
    (old, before), (new, after), _ = adapted(
        given | {"decode_prior": "natural"}, label=label, old_facts=drawn[0], new_facts=drawn[1]
    )
    assert old.prior != new.prior
    if given["kind"] == "buckets":
        said, expected = new.extras(after)["bucket"], old.extras(before)["bucket"]
    else:
        said, expected = new.decode(after), np.asarray(old.decode(before))
        expected = expected if order is None else expected[:, order]
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-4)


# ---- runs ----------------------------------------------------------------------------------------


def config_of(faces, cache, pretrained):
    """A config that trains one step and changes nothing: frozen backbone, learning rate 0."""
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    config.data.edits.min_age = 30.0
    config.total = {"steps": 1}
    config.model.pretrained = str(pretrained)
    config.optim.ema = 0.0
    config.optim.lr_multipliers = (("backbone/.*", None), (".*", 1.0))
    config.schedule.lr = 1e-30
    return config


@pytest.fixture(scope="module")
def continued(trained, faces, cache, tmp_path_factory):
    """(folder, config, printed lines) of a run from the weights of a copy of `trained`, which is
    then deleted."""
    folder = tmp_path_factory.mktemp("continued")
    shutil.copytree(trained, folder / "old")
    config = config_of(faces, cache, folder / "old")
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *args, **_: lines.append(" ".join(map(str, args))))
        train(config, folder / "new")
    shutil.rmtree(folder / "old")
    return folder / "new", config, lines


def predictions(workdir, faces, cache):
    config = tiny.get_config()
    config.data.source, config.data.cache_dir = str(faces), str(cache)
    source = opening.open_source(config.data)
    return Run.open(workdir, devices=1).predict(
        pipeline.evaluation_batches(source, np.arange(20), 16)
    )


def test_a_run_from_a_runs_weights_predicts_the_same_before_it_learns(
    trained, continued, faces, cache
):
    before, after = (predictions(run, faces, cache) for run in (trained, continued[0]))
    old, new = Run.open(trained, devices=1), Run.open(continued[0], devices=1)
    assert abs(old.facts.means["age"] - new.facts.means["age"]) > 5
    assert np.ptp(before["age"]) > 0.1
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-4, atol=1e-3, err_msg=name)


def test_what_was_taken_is_one_line(continued):
    (line,) = (line for line in continued[2] if line.startswith("starting from"))
    assert line == (
        f"starting from step 4 of {continued[0].parent / 'old'}: loaded the backbone, head age, "
        "head "
        "ethnicity, head gender"
    )


def test_a_run_resumes_without_the_run_it_started_from(continued):
    workdir, config, _ = continued
    assert not (workdir.parent / "old").exists()
    assert train(config, workdir)["steps"] == 1


def test_other_splits_of_the_same_data_are_warned_of(trained, faces, cache, tmp_path, capsys):
    config = config_of(faces, cache, trained)
    config.data.edits.min_age = None
    config.data.split.seed = 5
    config.model.hidden = 7
    config.heads.ethnicity = {"kind": "distribution", "label": "age", "range": (0, 90)}
    config.heads.other = {"kind": "regression", "label": "age"}
    train(config, tmp_path / "run")
    said = capsys.readouterr()
    assert "may have seen images that this run is scored on" in said.err
    assert (
        "loaded the backbone; new, at random: the hidden layer (none wide there), head age (it "
        "reads other "
        "features), head ethnicity (it reads other features), head gender (it reads other "
        "features), head other (not there)"
    ) in said.out


def arrays_of(heads, rng, **more):
    shapes = {f"heads/{name}/{leaf}": shape for name in heads
              for leaf, shape in (("kernel", (6, 1)), ("bias", (1,)))}  # fmt: skip
    shapes |= {"backbone/kernel": (3, 6)} | more
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def parts(their_necks, our_necks, theirs=None, fresh=None, hidden=0):
    """The parts that `adapt` takes and leaves for a regression head with these necks."""
    configs, rng = [], np.random.default_rng(0)
    for neck in (their_necks, our_necks):
        config = tiny.get_config()
        config.model.pretrained, config.model.hidden = "RUN", hidden
        config.heads = {"age": {"kind": "regression"} | ({"neck": neck} if neck else {})}
        configs.append(config)
    heads = {"age": heads_lib.create({"age": {"kind": "regression"}}, OLD)["age"]}
    theirs = arrays_of(heads, rng, **(theirs or {}))
    fresh = arrays_of(heads, rng, **(fresh or {}))
    arrays, taken, left = warm_start.adapt(configs[0], heads, theirs, configs[1], heads, fresh)
    assert arrays.keys() == fresh.keys()
    for name, array in arrays.items():
        assert any(np.array_equal(array, from_[name]) for from_ in (theirs, fresh) if name in from_)
    kept = {name for name in fresh if np.array_equal(arrays[name], fresh[name])}
    return kept, taken, left


NECK = {"necks/age/hidden/0/kernel": (6, 6)}


def test_a_neck_comes_with_its_head_or_both_stay_fresh():
    kept, taken, _ = parts({"hidden": (6,)}, {"hidden": (6,), "dropout": 0.5}, NECK, NECK)
    assert not kept
    assert taken == ["the backbone", "the neck of age", "head age"]
    kept, _, left = parts({"hidden": (6,)}, {"hidden": (6,), "activation": "gelu"}, NECK, NECK)
    assert kept == {"necks/age/hidden/0/kernel", "heads/age/kernel", "heads/age/bias"}
    assert left == ["head age (it reads other features)"]


def test_the_shared_hidden_layer_is_taken_where_it_is_as_wide():
    hidden = {"hidden/kernel": (6, 6)}
    kept, taken, left = parts(None, None, hidden, hidden, hidden=6)
    assert (kept, left) == (set(), [])
    assert taken == ["the backbone", "the hidden layer", "head age"]


def test_statistics_of_feature_smoothing_start_anew():
    stats = {"smoothing/age/epoch": (), "smoothing/age/mean": (3, 6)}
    kept, *_ = parts(None, None, stats, stats)
    assert kept == stats.keys()


def test_positions_of_a_transformer_are_brought_to_the_new_image_size():
    old, new = {"backbone/pos_embed": (1, 5, 4)}, {"backbone/pos_embed": (1, 10, 4)}
    theirs, fresh = (
        arrays_of([], np.random.default_rng(seed), **more) for seed, more in ((0, old), (1, new))
    )
    taken = warm_start._backbone(theirs, fresh, "here")
    assert taken["backbone/pos_embed"].shape == (1, 10, 4)
    first = theirs["backbone/pos_embed"][:, :1]
    np.testing.assert_array_equal(taken["backbone/pos_embed"][:, :1], first)


def test_a_backbone_that_does_not_fit_is_one_short_line():
    with pytest.raises(
        UserError, match=r"backbone/kernel \(4, 6\): \(3, 6\) there\); set"
    ) as error:
        parts(None, None, None, {"backbone/kernel": (4, 6)})
    assert len(str(error.value)) < 300


# ---- folders -------------------------------------------------------------------------------------


def settled(workdir, path, **model):
    config = tiny.get_config()
    if "options" in model:
        config.model.options = ml_collections.ConfigDict()  # an update would keep the old keys
    config.model.update({"pretrained": str(path)} | model)
    return warm_start.settle(config, pathlib.Path(workdir), None).model


def refused(workdir, path, message, **model):
    with pytest.raises(UserError, match=message) as error:
        settled(workdir, path, **model)
    assert str(error.value).startswith(("config.model.", f"{path}/config.json"))
    assert len(str(error.value)) < 400
    assert not pathlib.Path(workdir).exists() or str(workdir) == str(path)


def test_the_model_is_the_runs(trained, tmp_path):
    new = tmp_path / "new"
    model = settled(new, trained, options={})
    assert model.options.widths == [8, 16]
    assert model.mean == (0.485, 0.456, 0.406)
    refused(
        new, trained, "is a run of cnn, and config.model.name is resnet18; set", name="resnet18"
    )
    refused(new, trained, r"options\.widths: .* expects \[8, 16\]", options={"widths": (4, 8)})
    refused(new, trained, r"config\.model\.mean: .* expects", mean=(0.5, 0.5, 0.5))


def test_an_option_that_the_run_left_at_its_default_may_not_differ(trained):
    of_run = run_folder.read_config(trained)
    config = tiny.get_config()
    config.model.pretrained = str(trained)
    for each, options in ((of_run, {}), (config, {"stride_first": True})):
        with each.unlocked():
            each.model.name, each.model.options = "resnet50", ml_collections.ConfigDict(options)
    with pytest.raises(UserError, match=r"options\.stride_first: .* expects False"):
        pretrained.settle(config, None, of_run)


def test_an_option_that_is_of_training_alone_may_differ(trained):
    of_run = run_folder.read_config(trained)
    config = tiny.get_config()
    config.model.pretrained = str(trained)
    for each, options in ((of_run, {"drop_path": 0.1}), (config, {"dropout": 0.3})):
        with each.unlocked():
            each.model.name = "vit_ti16"
            each.model.options = ml_collections.ConfigDict(options)
    options = pretrained.settle(config, None, of_run).model.options
    assert options.to_dict() == {"dropout": 0.3, "drop_path": 0.1}


def test_a_run_that_lost_its_config_json_is_still_a_run(trained, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(trained, old)
    (old / "config.json").write_text("{")
    refused(new, old, r"config\.json is not JSON .*; remove it: the checkpoint has the config")
    (old / "config.json").unlink()
    assert settled(new, old, options={}).options.widths == [8, 16]
    refused(new, old / "checkpoints", f"is a part of the run in {old}; name that folder")
    config = tiny.get_config()
    config.model.pretrained = str(old)
    config.distill.runs = (str(old),)
    checks.before_data(warm_start.settle(config, new, None))
    assert warm_start.of(config, {}, None) is not None


def test_a_path_that_is_no_run_is_named_before_the_model(tmp_path):
    new, path = tmp_path / "new", tmp_path / "path"
    refused(new, path, "path does not exist; name a weights file, or the folder of a run$")
    path.mkdir()
    refused(new, path, "path is a folder without a run of agejax and without a weights file; name")
    (path / "w.npz").touch()
    refused(new, path / "w.npz", r"no rules .* 'cnn' from a file; name the folder of a run to")


def test_a_folder_to_start_from_is_checked_before_the_data(trained, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    shutil.copytree(trained, old)
    refused(old, old, "is the folder of this run itself; set --workdir to a new folder")
    refused(new, old / "checkpoints", f"is a part of the run in {old}; name that folder")
    refused(new, old / "checkpoints" / "4", f"is a part of the run in {old}; name that folder")
    shutil.rmtree(old / "checkpoints")
    refused(new, old, "has no checkpoint yet; wait until that run has saved one")
    (old / "checkpoints").mkdir()
    refused(new, old, "has no checkpoint yet; wait until that run has saved one")
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    (ensemble / "ensemble.json").write_text("{}")
    refused(new, ensemble, "is an ensemble; name the folder of one of its runs")
