"""Teachers: their targets, what a student learns from them, and which are refused."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

import tiny
from agejax import distill
from agejax.data import draws, edits, opening, pipeline, splits
from agejax.distillation import onnx_models, seen, setup, targets
from agejax.distillation.files import TargetFile
from agejax.distillation.setup import open_teachers
from agejax.distillation.teachers import FEATURES, Teachers
from agejax.errors import UserError
from agejax.evaluation import ensembling
from agejax.exporting import files
from agejax.exporting.prediction import prediction
from agejax.heads import Facts, create, losses, training
from agejax.models import inputs
from agejax.runs import lineage, run_folder
from agejax.runs.run import Run
from agejax.train import train
from agejax.training import augment, feature_map, sharding
from agejax.training.augment import Mix
from agejax.training.teaching import Target

ROWS = np.arange(16)


@pytest.fixture(scope="module")
def config_of(faces, cache):
    def make(**changes):
        config = tiny.get_config()
        config.data.source, config.data.cache_dir = str(faces), str(cache)
        config.heads.age = {"kind": "distribution", "loss": "ce"}
        config.total = {"steps": 6}
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return config.lock()

    return make


@pytest.fixture(scope="module")
def teachers(config_of, tmp_path_factory):
    """Two trained runs that differ in their seed."""
    folders = [tmp_path_factory.mktemp("teacher") / "run" for _ in range(2)]
    for seed, folder in enumerate(folders):
        train(config_of(seed=seed), folder)
    return tuple(map(str, folders))


@pytest.fixture(scope="module")
def other(config_of, tmp_path_factory):
    """A trained run of another size, width, normalisation and sampler."""
    folder = tmp_path_factory.mktemp("other") / "run"
    config = config_of(
        model__image_size=24, model__mean=(0.1, 0.5, 0.9), model__std=(0.5, 0.3, 0.2),
        sampling__kind="uniform", total={"steps": 2}, seed=3,
    )  # fmt: skip
    with config.unlocked():
        config.model.options = {"widths": (4, 12)}
    train(config, folder)
    return str(folder)


@pytest.fixture(scope="module")
def targets_of(teachers, tmp_path_factory):
    """The file that the command writes for the first teacher."""
    path = tmp_path_factory.mktemp("targets") / "targets.npz"
    distill.main(["distill", f"--workdir={teachers[0]}", f"--output={path}"])
    return path


def opened(config):
    """(teachers, source, splits) of a run that would start with this config."""
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)
    facts = Facts.of({k: v[rows["train"]] for k, v in source.labels.items()}, source.label_names)
    drawn = draws.weigh(config.sampling, source, rows["train"])
    heads, facts, _ = training.prepare(
        config.heads, facts, source.labels, rows["train"],
        *(each.expected(len(rows["train"])) for each in (drawn, draws.even(source, rows["train"]))),
    )  # fmt: skip
    return open_teachers(config, heads, facts, source, rows), source, rows


def taught(config, rows=ROWS, mix=None):
    """The targets of images without augmentation."""
    group, source, _ = opened(config)
    columns = source.labels | group.columns
    batch = pipeline.gather(dataclasses.replace(source, labels=columns), rows)
    targets = group.targets(
        batch | {"teachers": group.arrays}, lambda s: inputs.eval_images(batch["image"], s), mix
    )
    return {name: np.asarray(target.values) for name, target in targets.items()}


def answers(path, config, rows=ROWS):
    run = Run.open(path, devices=1)
    batch = pipeline.gather(opening.open_source(config.data), rows)
    return {k: np.asarray(v) for k, v in run.eval_step(run.params, run.batch_stats, batch).items()}


def first_line(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


# ---- networks as teachers ------------------------------------------------------------------------


def test_a_target_is_the_mean_of_the_teachers_probabilities(config_of, teachers):
    config = config_of(distill__runs=teachers)
    given = taught(config)
    for name in ("gender", "ethnicity"):  # their predictions are probabilities
        apart = [answers(path, config)[name] for path in teachers]
        assert not np.allclose(apart[0], apart[1], atol=1e-3)
        np.testing.assert_allclose(given[name], np.mean(apart, axis=0), atol=1e-5)
    assert given["age"].shape == (16, 117)
    np.testing.assert_allclose(given["age"].sum(axis=1), 1, rtol=1e-5)
    assert FEATURES not in given


def test_the_members_of_an_ensemble_teach_by_their_weights(config_of, teachers, tmp_path):
    ensembling.create(tmp_path / "both", teachers, weights=".75,.25", views=("plain", "flip"))
    config = config_of(distill__runs=(str(tmp_path / "both"),))
    given, batch = taught(config), pipeline.gather(opening.open_source(config.data), ROWS)
    expected = np.zeros_like(given["ethnicity"])
    for path, weight in zip(teachers, (0.75, 0.25), strict=True):
        run = Run.open(path, devices=1)
        for image in (batch["image"], batch["image"][:, :, ::-1]):
            p = run.eval_step(run.params, run.batch_stats, {"image": image})["ethnicity"]
            expected += weight / 2 * np.asarray(p)
    np.testing.assert_allclose(given["ethnicity"], expected, atol=1e-5)


def test_a_teacher_of_another_size_sees_the_same_view_at_its_own_size(config_of, other):
    """It also normalises the view as in its own training."""
    config = config_of(distill__runs=(other,), sampling__kind="uniform")
    np.testing.assert_allclose(
        taught(config)["ethnicity"], answers(other, config)["ethnicity"], atol=1e-5
    )
    source = opening.open_source(config.data)
    recipe = tiny.get_config().augment
    recipe.rotate, recipe.erase, recipe.contrast, recipe.perspective = 20.0, 1.0, 0.5, 0.2
    batch, key = pipeline.gather(source, ROWS), jax.random.key(5)
    (small, mixed), (large, _) = (
        jax.jit(augment.build(recipe, size))(key, batch["image"], batch["strength"])
        for size in (16, 32)
    )
    assert mixed is not None
    shrunk = np.asarray(large).reshape(16, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    apart = np.abs(shrunk[:, None] - np.asarray(small)[None]).mean(axis=(2, 3, 4))
    assert (apart.argmin(axis=1) == np.arange(16)).all()
    assert np.diag(apart).max() < 0.4 * apart[~np.eye(16, dtype=bool)].min()


def test_targets_are_of_the_world_that_the_students_sampler_shows(config_of, teachers, other):
    """By Bayes' rule; equal samplers change nothing (the first test)."""
    density, uniform = config_of(), config_of(sampling__kind="uniform")
    prior = Run.open(teachers[0], devices=1).facts.priors["ethnicity"]
    ratio = np.array(prior["natural"]) / prior["sampled"]
    assert np.ptp(ratio) > 0.05

    def shifted(p, factor):
        return p * factor / (p * factor).sum(axis=1, keepdims=True)

    with uniform.unlocked():
        uniform.distill.runs = teachers[:1]
    given = taught(uniform)["ethnicity"]
    p = answers(teachers[0], uniform)["ethnicity"]
    np.testing.assert_allclose(given, shifted(p, ratio), atol=1e-5)
    assert np.abs(given - p).max() > 1e-3

    with density.unlocked():
        density.distill.runs = (other,)
    p = answers(other, density)["ethnicity"]
    np.testing.assert_allclose(taught(density)["ethnicity"], shifted(p, 1 / ratio), atol=1e-5)


def test_a_student_of_its_teacher_alone_comes_to_answer_as_it_does(config_of, teachers, tmp_path):
    """Labels do not count: they cannot bring it closer to the teacher than they are themselves."""
    config = config_of(
        distill__runs=teachers[:1], distill__share=1.0, total={"steps": 60}, seed=7,
        eval__every={"steps": 60}, checkpoint__every={"steps": 60},
    )  # fmt: skip
    train(config, tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    lost = [line["ethnicity/distill"] for line in lines if "ethnicity/distill" in line]
    rows = np.arange(96)
    p, q = (answers(path, config, rows)["ethnicity"] for path in (tmp_path / "run", teachers[0]))
    least = entropy(q, axis=1).mean()
    assert np.mean(lost[-3:]) - least < 0.5 * (np.mean(lost[:3]) - least)
    assert entropy(q, p, axis=1).mean() < 0.1


def test_a_student_may_lack_a_head_of_its_teachers(config_of, teachers, tmp_path):
    config = config_of(distill__runs=teachers, total={"steps": 1}, log_every={"steps": 1}).unlock()
    del config.heads.ethnicity
    train(config, tmp_path / "run")
    assert {name for name in first_line(tmp_path / "run") if name.endswith("/distill")} == {
        "age/distill",
        "gender/distill",
    }


def test_shares_of_labels_and_teachers_add_up(config_of, teachers, tmp_path):
    """In the first step's loss, also where micro-batches add up to it."""

    def first_step(share, runs=teachers, micro=1):
        folder = tmp_path / f"{share}{len(runs)}{micro}"
        config = config_of(
            distill__runs=runs, distill__share=share, total={"steps": 1}, model__dropout=0.0,
            log_every={"steps": 1}, optim__accumulate=micro, augment__mixup=0.0,
        )  # fmt: skip
        train(config, folder)
        return first_line(folder)

    def sum_of(losses, share):
        weights = {"age": 1.0, "gender": 0.2, "ethnicity": 0.2}
        return sum(
            weight * ((1 - share) * losses[f"{name}/loss"] + share * losses[f"{name}/distill"])
            for name, weight in weights.items()
        )

    both, labels = first_step(0.25), first_step(0.0)
    assert both["loss"] == pytest.approx(sum_of(both, 0.25), rel=1e-5)
    assert labels["loss"] == pytest.approx(sum_of(both, 0.0), rel=1e-5)
    assert labels["loss"] != pytest.approx(both["loss"], rel=1e-3)
    assert first_step(0.0, ())["loss"] == pytest.approx(labels["loss"], rel=1e-6)
    # Batch norm normalises over other images, so the losses differ slightly.
    parts = first_step(0.25, micro=2)
    assert parts["loss"] == pytest.approx(sum_of(parts, 0.25), rel=1e-5)
    assert parts["loss"] == pytest.approx(both["loss"], rel=0.05)


def test_a_temperature_softens_both_sides_and_keeps_the_size_of_the_gradient():
    heads = create(
        {"gender": {"kind": "binary", "weight": 0.5}},
        Facts(["gender"], {}, {}, {}, {"gender": ("male", "female")}, {"gender": [1, 1]}),
    )
    p = np.float32([[0.9, 0.1], [0.2, 0.8]])

    class Constant:
        size, arrays, columns, heads, features = 8, (), {}, {"gender": 1.0}, 0

        def teach(self, arrays, images, columns):
            return {"gender": Target(jnp.array(p), jnp.ones(2, bool))}

    group = Teachers([Constant()], share=0.5, probabilities=3.0, temperature=2.0)
    targets = group.targets({"teachers": ((),)}, lambda size: None, None)
    softened = np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(targets["gender"].values, softened, rtol=1e-5)
    weight, loss = group.terms(heads, {"gender": jnp.array([[1.0], [-3.0]])}, {}, targets)["gender"]
    assert weight == pytest.approx(0.5 * 3.0 * 0.5 * 2**2)
    logits = np.array([[0, 1.0], [0, -3.0]]) / 2
    np.testing.assert_allclose(loss, -(softened * log_softmax(logits, axis=1)).sum(1), rtol=1e-5)


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_teaches_what_its_run_would_of_images_as_they_are(
    config_of, teachers, targets_of, tmp_path
):
    """For any order of its rows and classes, and any sampler of the student."""
    file = TargetFile.read(targets_of)
    order = np.random.default_rng(0).permutation(len(file.ids))
    turned = dataclasses.replace(
        file,
        path=tmp_path / "turned.npz",
        ids=file.ids[order],
        probabilities={name: values[order][:, ::-1] for name, values in file.probabilities.items()},
        outcomes={name: names[::-1] for name, names in file.outcomes.items()},
        features=file.features[order],
    )
    turned.write()
    for kind in ("density", "uniform"):
        config = config_of(sampling__kind=kind, distill__features__weight=1.0)
        with config.unlocked():
            config.distill.runs = teachers[:1]
        expected = taught(config)
        assert expected[FEATURES].shape == (16, 16)
        for path in (file.path, turned.path):
            with config.unlocked():
                config.distill.runs, config.distill.files = (), (str(path),)
            given = taught(config)
            for name, values in expected.items():
                np.testing.assert_allclose(given[name], values, rtol=2e-3, atol=2e-4)


def test_views_in_a_file_are_averaged(config_of, teachers, targets_of, tmp_path):
    path = tmp_path / "views.npz"
    distill.main([
        "distill", f"--workdir={teachers[0]}", f"--output={path}", "--views=plain,flip",
        "--targets=probabilities", "--split=train,val",
    ])  # fmt: skip
    file, plain = TargetFile.read(path), TargetFile.read(targets_of)
    assert file.features is None
    config = config_of()
    source = opening.open_source(config.data)
    row = int(np.flatnonzero(source.ids == file.ids[3])[0])
    assert splits.make(source, config.data.split).keys() == {"train", "val", "test"}
    assert len(file.ids) == len(source.ids) - len(splits.make(source, config.data.split)["test"])
    run = Run.open(teachers[0], devices=1)
    image = source.take(np.array([row]))
    both = [
        np.asarray(run.model.apply(
            run.params, run.batch_stats, inputs.eval_images(view, 32)
        )[0]["ethnicity"])
        for view in (image, image[:, :, ::-1])
    ]  # fmt: skip
    prior = run.facts.priors["ethnicity"]
    natural = np.log(np.array(prior["natural"]) / prior["sampled"])
    mean = np.mean([softmax(logits + natural, axis=1) for logits in both], axis=0)
    np.testing.assert_allclose(file.probabilities["ethnicity"][3], mean[0], atol=1e-3)
    # A file of another program may hold the views separately.
    apart = np.stack([plain.probabilities["gender"], plain.probabilities["gender"][:, ::-1]])
    np.savez(tmp_path / "foreign.npz", **{"ids": plain.ids, "probabilities/gender": apart})
    np.testing.assert_allclose(
        TargetFile.read(tmp_path / "foreign.npz").probabilities["gender"], 0.5, atol=1e-3
    )


def test_an_image_without_a_row_is_an_error_or_learns_from_its_labels_alone(
    config_of, targets_of, tmp_path
):
    config = config_of(augment__mixup=0.0, total={"steps": 1}, log_every={"steps": 1})
    file = TargetFile.read(targets_of)
    source = opening.open_source(config.data)
    train_rows = splits.make(source, config.data.split)["train"]
    gone = source.ids[train_rows[:20]]
    keep = ~np.isin(file.ids, gone)
    less = dataclasses.replace(
        file,
        path=tmp_path / "less.npz",
        ids=file.ids[keep],
        probabilities={name: values[keep] for name, values in file.probabilities.items()},
        features=None,
    )
    less.write()
    with config.unlocked():
        config.distill.files = (str(less.path),)
    with pytest.raises(UserError, match=f"20 of the {len(train_rows)} training images have no age"):
        opened(config)
    with config.unlocked():
        config.distill.missing = "labels"
    group, _, _ = opened(config)
    batch = pipeline.gather(
        dataclasses.replace(source, labels=source.labels | group.columns), train_rows[12:28]
    )
    assert batch["image"].shape[0] == 16
    mix = Mix(jnp.arange(16) - 1, jnp.full(16, 0.75))
    # Image 8 is not mixed with the one before it, and image 0 is all covered by the last one.
    apart = Mix(mix.partner, mix.lam.at[8].set(1).at[0].set(0))
    plain, mixed, some = (
        group.targets(batch | {"teachers": group.arrays}, None, each)["gender"]
        for each in (None, mix, apart)
    )
    np.testing.assert_array_equal(plain.known, np.arange(16) >= 8)
    np.testing.assert_array_equal(mixed.known, np.arange(16) >= 9)  # each with the one before it
    np.testing.assert_array_equal(some.known, (np.arange(16) >= 8) | (np.arange(16) == 0))
    np.testing.assert_allclose(some.values[np.array([0, 8])], plain.values[np.array([15, 8])])
    np.testing.assert_allclose(
        mixed.values[9:], 0.75 * plain.values[9:] + 0.25 * plain.values[8:-1], rtol=1e-6
    )
    train(config, tmp_path / "run")
    assert np.isfinite(first_line(tmp_path / "run")["age/distill"])
    # The teacher has changed: a resumed run would not be the run that began.
    dataclasses.replace(less, ids=less.ids[::-1]).write()
    with config.unlocked():
        config.checkpoint.every, config.sharding.devices = {"steps": 1}, 1
    with pytest.raises(UserError, match="are not those that it started with"):
        train(config, tmp_path / "run")


def half_labelled(faces):
    """A config.data.mixture of the same images with labels and, far more often drawn, without."""
    return {
        "known": {"name": "utkface", "source": str(faces)},
        "plain": {
            "name": "image_folder", "source": str(faces), "train_only": True, "weight": 100.0,
            "options": {"labels": "none"},
        },
    }  # fmt: skip


def test_a_file_for_a_data_set_fits_the_part_of_a_mixture_that_has_it(config_of, targets_of, faces):
    config = config_of()
    with config.unlocked():
        config.data.mixture = half_labelled(faces)
    source, file = opening.open_source(config.data), TargetFile.read(targets_of)
    rows, known = file.rows_of(source), source.part == [*source.parts].index("known")
    assert (rows[~known] == -1).all()  # they have the same names, but are not its images
    found = [f"known/{name}" for name in file.ids[rows[known]]]
    assert found == source.ids[known].tolist()


def test_images_without_any_label_learn_from_the_teacher_alone(
    config_of, teachers, faces, tmp_path
):
    """A part of a mixture has no labels; its teacher has trained on the other part."""
    config = config_of(total={"steps": 1}, log_every={"steps": 1}, distill__runs=teachers[:1])
    with config.unlocked():
        config.data.mixture = half_labelled(faces)
    folder = tmp_path / "run"
    train(config, folder)
    line = first_line(folder)
    assert np.isfinite(line["age/distill"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["distill"]["teachers"][0]["seen"] == 0


# ---- ONNX models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(teachers, tmp_path_factory):
    """The first teacher as an ONNX model."""
    folder = tmp_path_factory.mktemp("exported")
    files.export(teachers[0], folder, ["onnx"])
    return folder / "model.onnx"


def with_model(config, model, **options):
    with config.unlocked():
        config.distill.onnx = {"other": {"path": str(model), **options}}
        config.distill.allow_seen = True
    return config


@pytest.mark.parametrize("devices", [1, 2])
def test_an_onnx_model_teaches_what_the_run_that_it_was_exported_from_does(
    config_of, teachers, exported, devices
):
    """Also for a batch that lies on several devices."""
    outputs = {"gender": "gender", "ethnicity": "ethnicity"}
    config = config_of(sampling__kind="uniform")  # an exported model does not undo a sampler
    with_model(config, exported, probabilities=outputs, years={"age": "age"}, sigma=2.0)
    group, source, _ = opened(config)
    assert group.facts["teachers"][0]["seen"] is None
    mesh = sharding.create_mesh(devices, 1)
    batch = sharding.put_batch(pipeline.gather(source, ROWS), mesh)
    given = jax.jit(
        lambda batch: group.targets(
            batch | {"teachers": group.arrays},
            lambda size: inputs.eval_images(batch["image"], size),
            None,
        )
    )(batch)
    expected = answers(teachers[0], config)
    for name in outputs:
        np.testing.assert_allclose(given[name].values, expected[name], atol=1e-4)
    years = np.arange(117)
    normal = np.exp(-((years - expected["age"][:, None]) ** 2) / 2 / 2.0**2)
    normal /= normal.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(given["age"].values, normal, atol=1e-4)


@pytest.fixture
def foreign(tmp_path):
    """A model of another library: [B, 3, 8, 8] floats to a mean of each channel, and a sigmoid."""
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        make.make_node("GlobalAveragePool", ["x"], ["means4"]),
        make.make_node("Flatten", ["means4"], ["means"]),
        make.make_node("ReduceMean", ["means"], ["mean"], axes=[1], keepdims=1),
        make.make_node("Sigmoid", ["mean"], ["second"]),
    ]
    graph = make.make_graph(
        nodes, "foreign",
        [make.make_tensor_value_info("x", floats, [1, 3, 8, 8])],
        [make.make_tensor_value_info(n, floats, [1, k]) for n, k in (("means", 3), ("second", 1))],
    )  # fmt: skip
    opset = [make.make_opsetid("", 13)]
    onnx.save(make.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_model_of_another_library_is_given_what_it_expects(config_of, foreign):
    config = with_model(
        config_of(sampling__kind="uniform", distill__features__weight=1.0), foreign,
        channels="BGR", scale=2.0, mean=(0.5, 0.25, 0.125), std=(1.0, 2.0, 4.0),
        probabilities={"gender": "second"}, features="means",
        outcomes={"gender": ("female", "male")},
    )  # fmt: skip
    given = taught(config)
    image = pipeline.gather(opening.open_source(config.data), ROWS)["image"]
    view = np.asarray(inputs.eval_images(image, 8))[..., ::-1]
    means = ((2 * view - [0.5, 0.25, 0.125]) / [1, 2, 4]).mean(axis=(1, 2))
    np.testing.assert_allclose(given[FEATURES], means, atol=1e-5)
    p = 1 / (1 + np.exp(-means.mean(axis=1)))  # its second class, male: the student's first
    np.testing.assert_allclose(given["gender"], np.stack([p, 1 - p], axis=1), atol=1e-5)
    assert "age" not in given


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "/nowhere.onnx"}, "there is no file '/nowhere.onnx'"),
        ({"layout": "CHWN"}, "'CHWN' is not one of"),
        ({"std": (1.0, 0.0, 1.0)}, "set it to 3 numbers above 0"),
        ({"probabilities": {"race": "means"}}, "config.heads has no race"),
        ({"probabilities": {"gender": "means"}}, "output means has 3 numbers, this run's head 2"),
        ({"probabilities": {"gender": "third"}}, "it has no output 'third'; its outputs are means"),
        ({"years": {"gender": "second"}}, "that head has no years"),
        ({"outcomes": {"gender": ("a", "b")}, "logits": {"gender": "second"}}, "a, b are not"),
    ],
)
def test_models_that_cannot_teach_are_refused(config_of, foreign, tmp_path, options, words):
    config = with_model(config_of(), foreign, **options)
    with pytest.raises(UserError, match=words):  # before the data where it can be, else with it
        setup.check(config.distill, config.heads) or opened(config)


def test_a_model_is_refused_where_nobody_knows_what_it_has_seen(config_of, foreign):
    config = with_model(config_of(), foreign, probabilities={"gender": "second"})
    with config.unlocked():
        config.distill.allow_seen = False
    with pytest.raises(UserError, match=r"onnx\.other .* may have seen .*allow_seen=True"):
        opened(config)


def test_a_model_without_onnxruntime_is_one_line(config_of, foreign, monkeypatch):
    config = with_model(config_of(), foreign, probabilities={"gender": "second"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxruntime is missing; pip install -e '\.\[onnx\]'"):
        setup.check(config.distill, config.heads)


# ---- features ------------------------------------------------------------------------------------


def test_distances_of_features_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 7))
    cosine = 1 - (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(losses.cosine_distance(x, y), cosine, rtol=1e-5)
    np.testing.assert_allclose(losses.mean_squared(x, y), ((x - y) ** 2).mean(1), rtol=1e-5)
    slope = jax.grad(lambda x: losses.cosine_distance(x, jnp.ones((1, 3))).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(slope).all()


@pytest.fixture(scope="module")
def student(config_of, other, tmp_path_factory):
    """A run that learned only the features of another network."""
    folder = tmp_path_factory.mktemp("student") / "run"
    config = config_of(
        distill__runs=(other,), distill__share=1.0, distill__probabilities__weight=0.0,
        distill__features__weight=2.0, optim__ema=0.0, log_every={"steps": 1},
        checkpoint__every={"steps": 2}, eval__every={"steps": 3},
    )  # fmt: skip
    return train(config, folder), folder, config


def test_features_are_learned_through_a_map_that_only_training_has(student, other):
    summary, folder, config = student
    run = Run.open(folder, devices=1)
    names = run.model.parameters
    assert summary["parameters"] == sum(run.params[name].size for name in names)
    assert set(run.params) == set(names)
    assert summary["distill"]["features"] == 12
    image = pipeline.gather(opening.open_source(config.data), ROWS)["image"]
    assert set(prediction(run)(image)) >= {"age", "gender", "ethnicity"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "loss" in line)
    assert first["loss"] == pytest.approx(2 * first["features/distill"], rel=1e-5)


def test_features_alone_leave_the_heads_as_they_are(student):
    folder = student[1]
    last = Run.open(folder, devices=1)
    early = Run.open(folder, devices=1, step=4)
    for name in last.model.parameters:
        same = np.array_equal(last.params[name], early.params[name])
        assert same == name.startswith("heads/"), name


def test_a_run_with_a_feature_map_resumes_exactly(student, tmp_path):
    _, folder, config = student
    stopped = tmp_path / "run"
    assert train(config, stopped, stop_after=lambda step, value: step == 3)["steps"] == 3
    assert train(config, stopped)["steps"] == 6
    sums = []
    for kept in (folder, stopped):
        meta = json.loads((kept / "checkpoints/6/meta/metadata").read_text())
        sums.append(meta["checksum"])  # over all arrays, including the map and its moments
    assert sums[0] == sums[1]


def test_the_map_begins_alike_whatever_else_begins():
    def initialise(key):
        return {"a": jax.random.normal(key, (3,))}, {}

    key = jax.random.key(1)
    params, _ = feature_map.added(initialise, 4, 6)(key)
    np.testing.assert_array_equal(params["a"], initialise(key)[0]["a"])
    assert set(params) == {"a", *feature_map.names(6)}
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    bias = np.arange(6, dtype=np.float32)
    np.testing.assert_allclose(
        feature_map.apply(params | {feature_map.BIAS: bias}, x),
        x @ np.asarray(params[feature_map.KERNEL]) + bias,
        rtol=1e-5,
    )


def test_members_without_a_heads_probabilities_leave_a_file_of_the_others(
    teachers, trained, tmp_path
):
    ensembling.create(tmp_path / "both", (teachers[0], trained))  # whose age is a number
    found = []
    for workdir, name in ((teachers[0], "alone"), (tmp_path / "both", "both")):
        output = tmp_path / f"{name}.npz"
        distill.main(["distill", f"--workdir={workdir}", f"--output={output}"])
        found.append(TargetFile.read(output).probabilities)
    alone, both = found
    np.testing.assert_allclose(both["age"], alone["age"], atol=1e-3)
    assert both.keys() == {"age", "gender", "ethnicity"}


def test_a_file_is_of_members_with_the_same_ages():
    facts = Facts(["age"], {"age": 30.0}, {"age": 9.0}, {"age": 30.0}, {}, {"age": [1] * 100})
    opened = []
    for name, oldest in (("a", 116), ("b", 100)):
        heads = create({"age": {"kind": "distribution", "range": (0, oldest)}}, facts)
        opened.append((types.SimpleNamespace(workdir=name, heads=heads), {}, ()))
    members = [types.SimpleNamespace(heads={"age": 0.5}) for _ in opened]
    assert targets._heads(opened[:1] * 2, members).keys() == {"age"}
    with pytest.raises(UserError, match="head age of b has other outcomes than that of a"):
        targets._heads(opened, members)


# ---- resume --------------------------------------------------------------------------------------


def test_a_run_resumes_with_teachers_that_moved_but_not_with_others(config_of, teachers, tmp_path):
    def config_with(*runs):
        return config_of(distill__runs=runs, eval__every={"steps": 3})

    teacher, second = teachers
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    train(config_with(teacher), workdir, stop_after=lambda step, value: step == 3)
    for others in ((), (second,), (teacher, second)):
        with pytest.raises(UserError, match="are not those that it started with"):
            train(config_with(*others), workdir)
    shutil.copytree(teacher, moved)
    summary = train(config_with(str(moved)), workdir)
    assert summary["steps"] == 6
    (facts,) = summary["distill"]["teachers"]
    assert facts["name"] == str(moved)

    # Runs of earlier versions have no digest of a run, so that its path must stay.
    older = {"features": 0, "teachers": [{k: v for k, v in facts.items() if k != "digest"}]}
    now = Teachers(facts=summary["distill"])
    config = config_with(teacher).distill
    setup.check_same(workdir, {"distill": older}, config, now)
    older["teachers"][0]["name"] = teacher
    with pytest.raises(UserError, match="are not those that it started with"):
        setup.check_same(workdir, {"distill": older}, config, now)


def resumes(before, now, facts=None):
    """Whether a run that began with the teachers of one config goes on with those of another.

    Args:
      facts: changes to what its checkpoint tells about its teachers; None for one that tells
        nothing.
    """
    meta = {"config": json.loads(before.to_json_best_effort())}
    if facts is not None:
        meta["distill"] = json.loads(json.dumps(opened(before)[0].facts))
        for name, value in facts.items():
            meta["distill"].pop(name) if value is None else meta["distill"].update({name: value})
    try:
        setup.check_same("run", meta, now.distill, opened(now)[0])
    except UserError as error:
        return "are not those that it started with" not in str(error)
    return True


def test_an_ensemble_that_was_made_again_is_another_teacher(config_of, teachers, tmp_path):
    def made(name, **options):
        ensembling.create(tmp_path / name, teachers, **options)
        return config_of(distill__runs=(str(tmp_path / name),))

    first = made("first", weights="3,1")
    assert resumes(first, made("moved", weights=".75,.25"), {})
    assert not resumes(first, made("even"), {})
    assert not resumes(first, made("flipped", weights="3,1", views=("plain", "flip")), {})


def test_a_file_that_names_its_outcomes_otherwise_is_another_teacher(
    config_of, targets_of, tmp_path
):
    file = TargetFile.read(targets_of)
    configs = []
    for name, outcomes in {
        "same": file.outcomes,
        "swapped": {**file.outcomes, "gender": file.outcomes["gender"][::-1]},
    }.items():
        dataclasses.replace(file, path=tmp_path / f"{name}.npz", outcomes=outcomes).write()
        configs.append(config_of(distill__files=(str(tmp_path / f"{name}.npz"),)))
    same, swapped = configs
    assert resumes(config_of(distill__files=(str(targets_of),)), same, {})
    assert not resumes(same, swapped, {})


def test_an_onnx_model_is_known_by_its_weights_wherever_they_lie(exported, tmp_path):
    assert onnx_models.digest(exported) == hashlib.sha256(exported.read_bytes()).hexdigest()[:16]
    found = []
    for name in ("first", "second"):
        model = onnx.load(exported)
        if name == "second":
            changed = onnx.numpy_helper.to_array(model.graph.initializer[0]) + 1
            model.graph.initializer[0].raw_data = changed.tobytes()
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model.onnx"
        onnx.save_model(
            model, path, save_as_external_data=True, location="weights", size_threshold=0
        )
        found.append((path.read_bytes(), onnx_models.digest(path)))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_run_of_an_earlier_version_keeps_its_teachers(config_of, teachers):
    def giving(name):
        return config_of(
            distill__runs=teachers, distill__features__weight=1.0, distill__features__teacher=name
        )

    first, second = map(giving, teachers)
    for of_earlier in ({}, {"features_of": None}):
        assert resumes(first, first, of_earlier)
        assert not resumes(first, second, of_earlier)
    # One from before teachers were stored at all is not checked, but gets none if it had none.
    assert resumes(first, second)
    assert resumes(config_of(), config_of())
    assert not resumes(config_of(), first)


def test_a_teacher_resumes_whose_own_teacher_is_gone(config_of, teachers, tmp_path):
    shutil.copytree(teachers[0], tmp_path / "first")
    second, now = tmp_path / "second", tmp_path / "now"
    train(config_of(distill__runs=(str(tmp_path / "first"),), total={"steps": 1}), second)
    before = config_of(distill__runs=(str(second),))
    meta = {"distill": opened(before)[0].facts}
    assert meta["distill"]["teachers"][0]["seen"] == 0
    second.rename(now)
    shutil.rmtree(tmp_path / "first")
    moved = config_of(distill__runs=(str(now),))
    with pytest.raises(UserError, match=r"data that is not known.*allow_seen=True"):
        opened(moved)
    allowed = config_of(distill__runs=(str(now),), distill__allow_seen=True)
    run_folder.check_same_config(tmp_path, before, allowed)
    setup.check_same(tmp_path, meta, allowed.distill, opened(allowed)[0])


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__split__seed": 1}, "another split of this data: it has seen"),
        ({"heads__age": {"kind": "regression"}}, "head age gives no probabilities"),
        ({"heads__age__range": (0.0, 90.0)}, "no head age with the same classes"),
        ({"distill__share": 1.5}, "config.distill.share"),
        ({"distill__runs": ("/nowhere/run",)}, "/nowhere/run"),
        ({"distill__files": ("/nowhere/t.npz",)}, "there is no file /nowhere/t.npz"),
        ({"distill__features__loss": "l3"}, "'l3' is not one of cosine, l2"),
        ({"distill__missing": "skip"}, "'skip' is not one of error, labels"),
        ({"distill__features__weight": 1.0}, "2 networks have features; name one of"),
        ({"distill__probabilities__weight": 0.0}, "the teachers teach nothing"),
        ({"distill__features__teacher": "x"}, "features.teacher: x is none of"),
        ({"distill__runs": (), "distill__features__weight": 1.0}, "no teacher is named"),
    ],
)
def test_teachers_that_cannot_teach_this_are_refused(config_of, teachers, tmp_path, changes, words):
    config = config_of(distill__runs=teachers).unlock()
    for path, value in changes.items():
        *where, key = path.split("__")
        part = config
        for name in where:
            part = part[name]
        with part.unlocked():
            part[key] = value
    with pytest.raises(UserError, match=words):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_teacher_that_has_seen_the_test_images_is_allowed_where_it_is_asked_for(
    config_of, teachers, capsys
):
    config = config_of(distill__runs=teachers[:1], data__split__seed=1, distill__allow_seen=True)
    group, source, rows = opened(config)
    theirs = splits.make(source, config_of().data.split)
    judged = np.concatenate([rows["val"], rows["test"]])
    known = np.isin(judged, theirs["train"]) | (
        np.isin(judged, rows["test"]) & np.isin(judged, theirs["val"])
    )
    assert group.facts["teachers"][0]["seen"] == known.sum() > 0
    assert f"it has seen {known.sum()} of the images" in capsys.readouterr().err


def test_what_a_teacher_its_start_and_its_teachers_have_seen_counts(config_of, tmp_path):
    config = config_of()
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)

    def data(**changes):
        split = config_of(**changes).data.split.to_dict()
        return {"names": ["utkface"], "fingerprint": source.fingerprint, "split": split}

    def count(*given):
        return seen.count(source, config.data, rows, given)

    own, other = data(), data(data__split__seed=1)
    assert count(own) == 0
    assert count(own, own | {"fingerprint": "another"}) is None  # another part or version of it
    assert count(own, {"names": ["aaf"], "fingerprint": "another", "split": {}}) == 0
    assert count(own, None) is None
    assert count(own, other) == count(other) > 0
    # Also where the student has dropped images, and has other labels.
    (tmp_path / "labels.csv").write_text(f"id,age\n{source.ids[0]},7\n")
    kept = np.sort(np.concatenate([rows["train"][::2], rows["test"]]))
    edited = edits.relabelled(source, str(tmp_path / "labels.csv")).select(kept)
    test = {"test": np.flatnonzero(np.isin(kept, rows["test"]))}
    theirs = splits.make(source, config_of(data__split__seed=1).data.split)
    known = np.isin(source.groups, source.groups[np.concatenate([theirs["train"], theirs["val"]])])
    assert seen.count(edited, config.data, test, [other]) == known[rows["test"]].sum() > 0
    # A teacher that trains on its validation images, and one that was chosen by test.
    assert count(data(data__split__val_of_train=0.0)) == len(rows["val"])
    (tmp_path / "train.txt").write_text("\n".join(source.ids[rows["train"]]))
    (tmp_path / "val.txt").write_text("\n".join(source.ids[rows["test"]]))
    files = {name: str(tmp_path / f"{name}.txt") for name in ("train", "val")}
    listed = config_of()
    with listed.unlocked():
        listed.data.split.files = files
    swapped = own | {"split": lineage.split_of(listed.data.split)}  # with digests for paths
    assert seen.count(source, listed.data, rows, [swapped]) == len(rows["test"])

    def node(data, start=None, teachers=()):
        return {"kind": "run", "data": data, "start": start, "teachers": teachers}

    weights = {"kind": "file", "name": "faces.safetensors"}
    assert [*seen.of_lineage(node(own, weights, [node(other, node(own))]))] == [own, other, own]
    assert [*seen.of_lineage(node(own, None, [weights]))] == [own, None]
    for name, data in {"run-0": [None], "resnet50.pth": []}.items():
        assert [*seen.of_lineage(node(own, {"kind": "missing", "name": name}))] == [own, *data]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"ids": np.arange(3)}, "has no list of texts called ids"),
        ({"ids": np.array(["a", "a"])}, "some of its ids twice"),
        ({"ids": np.array(["a", "b"])}, "has neither probabilities/HEAD nor features"),
        ({"features": np.zeros((3, 4), np.float32)}, r"must be real numbers, \[2, K\]"),
        ({"probabilities/gender": np.float32([[0.5, 0.9]] * 2)}, "are not probabilities"),
        (
            {"probabilities/gender": np.float32([[0.5, 0.5]] * 2)},
            "trained on data that is not known",
        ),
    ],
)
def test_files_that_cannot_teach_are_refused(config_of, tmp_path, arrays, words):
    np.savez(tmp_path / "t.npz", **({"ids": np.array(["a", "b"])} | arrays))
    with pytest.raises(UserError, match=words):
        opened(config_of(distill__files=(str(tmp_path / "t.npz"),)))


def test_what_is_no_archive_is_named(config_of, tmp_path):
    (tmp_path / "t.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"t\.npz is not an \.npz archive"):
        opened(config_of(distill__files=(str(tmp_path / "t.npz"),)))
