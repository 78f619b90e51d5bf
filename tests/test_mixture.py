"""Mixtures of data sets: rows, classes, draws, and training on different labels."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from packing import pack
from test_sources import encode, photo, versions

import tiny
from agejax.config import default
from agejax.data import draws, edits, mixture, opening, pipeline, sources, splits
from agejax.data.sampling import Sampler
from agejax.distillation.files import TargetFile
from agejax.errors import UserError
from agejax.reporting import results
from agejax.train import train

DRAWN = {"count": 64, "seed": 1, "size": 32}


@pytest.fixture(scope="module")
def utkface(faces, cache):
    return sources.load("utkface", str(faces), image_size=32, cache_dir=str(cache))


@pytest.fixture(scope="module")
def drawn(cache):
    return sources.load("procedural_faces", image_size=32, cache_dir=str(cache), options=DRAWN)


@pytest.fixture(scope="module")
def both(utkface, drawn):
    return mixture.join({"real": utkface, "drawn": drawn}, {"real": 2.0})


def test_a_mixture_holds_every_row_of_every_part(both, utkface, drawn):
    assert len(both.ids) == len(both.images) == 96 + 64
    assert both.images.shape == (160, 32, 32, 3)
    rows = np.array([0, 97, 95, 159, 96, 3])
    images = [utkface.images[0], drawn.images[1], utkface.images[95], drawn.images[63],
              drawn.images[0], utkface.images[3]]  # fmt: skip
    batch = pipeline.gather(both, rows)
    np.testing.assert_array_equal(batch["image"], images)
    np.testing.assert_array_equal(batch["age"][1], drawn.labels["age"][1])
    np.testing.assert_array_equal(np.isnan(batch["apparent_age"]), rows < 96)
    assert both.ids[0] == f"real/{utkface.ids[0]}"
    assert both.ids[96] == f"drawn/{drawn.ids[0]}"
    np.testing.assert_array_equal(both.part, [0] * 96 + [1] * 64)
    assert not np.intersect1d(both.groups[:96], both.groups[96:]).size
    np.testing.assert_array_equal(both.groups[96:] - 96, drawn.groups)
    assert both.name == "real+drawn"


def test_classes_of_one_name_share_a_number_and_others_are_added(both, utkface, drawn):
    assert both.label_names["gender"] == ("male", "female")
    assert both.label_names["ethnicity"] == (
        "White", "Black", "Asian", "Indian", "Other", "fair", "tan", "brown", "dark",
    )  # fmt: skip
    np.testing.assert_array_equal(both.labels["gender"][96:], drawn.labels["gender"])
    np.testing.assert_array_equal(both.labels["ethnicity"][:96], utkface.labels["ethnicity"])
    np.testing.assert_array_equal(both.labels["ethnicity"][96:], drawn.labels["ethnicity"] + 5)
    turned = dataclasses.replace(drawn, label_names={"gender": ("female", "male")})
    turned.label_names["ethnicity"] = ("Other", "tan", "White", "x")
    mixed = mixture.join({"a": utkface, "b": turned}, {})
    np.testing.assert_array_equal(mixed.labels["gender"][96:], 1 - drawn.labels["gender"])
    expected = np.array([4, 5, 0, 6])[drawn.labels["ethnicity"]]
    np.testing.assert_array_equal(mixed.labels["ethnicity"][96:], expected)


def sampling(**changes):
    config = default().sampling
    config.update(changes)
    return config


def test_targets_of_a_part_or_the_whole_fit_a_mixture_that_was_edited(both, utkface, tmp_path):
    view = both.select(np.arange(10, 150)).select(np.arange(0, 140, 2))
    rows = np.arange(10, 150, 2)
    for made_for, expected in ((both, rows), (utkface, np.where(rows < 96, rows, -1))):
        facts = {"images": made_for.fingerprint}
        file = TargetFile(tmp_path / "a.npz", made_for.ids, {}, {}, None, facts)
        np.testing.assert_array_equal(file.rows_of(view), expected)


def test_an_edited_source_knows_the_rows_of_what_it_was_made_from(both, utkface, drawn, tmp_path):
    (tmp_path / "labels.csv").write_text(f"id,age\n{both.ids[12]},7\n")
    view = edits.relabelled(both, str(tmp_path / "labels.csv")).select(np.arange(90, 100))
    for made_from, rows in (
        (view, range(10)),
        (both, range(90, 100)),
        (utkface, [90, 91, 92, 93, 94, 95, -1, -1, -1, -1]),
        (drawn, [-1] * 6 + [0, 1, 2, 3]),
    ):
        source, there = view.rows_in(made_from.fingerprint)
        assert source.fingerprint == made_from.fingerprint
        np.testing.assert_array_equal(there, rows)
    assert view.rows_in("another") is None
    twice = mixture.join({"a": utkface, "b": utkface}, {})
    np.testing.assert_array_equal(twice.rows_in(utkface.fingerprint)[1], [*range(96)] * 2)
    # The fingerprint of new labels is that of earlier versions, whose runs go on.
    fewer = edits.with_classes(utkface, {"gender": ("female", "male")})
    names = sorted({**utkface.label_names, "gender": ("female", "male")}.items())
    digest = hashlib.sha256(f"{utkface.fingerprint} {names}".encode()).hexdigest()
    assert fewer.fingerprint == digest[:16]


@pytest.mark.parametrize("kind", ["uniform", "density", "oversample"])
def test_parts_are_drawn_by_their_weights(utkface, drawn, kind):
    mixed = mixture.join({"real": utkface, "drawn": drawn}, {"real": 3.0, "drawn": 1.0})
    rows = np.arange(0, 160, 2)
    sampler = Sampler(*draws.weigh(sampling(kind=kind), mixed, rows), 0)
    part = mixed.part[rows[sampler.indices(np.arange(10 * sampler.size))]]
    assert (part == 0).mean() == pytest.approx(0.75, abs=0.01)


def test_without_weights_parts_are_drawn_by_their_size(utkface, drawn):
    mixed = mixture.join({"real": utkface, "drawn": drawn}, {})
    assert draws.weigh(sampling(), mixed, np.arange(160)) == (None, 160)
    weights, size = draws.weigh(sampling(kind="density"), mixed, np.arange(160))
    sums = np.bincount(mixed.part, weights) * size / weights.sum()
    np.testing.assert_allclose(sums, (96, 64))


def test_without_weights_a_part_that_lost_images_is_drawn_by_what_is_left(utkface, drawn):
    """Of a mixture's rows, as edits, splits and under-sampling leave them."""
    mixed = mixture.join({"real": utkface, "drawn": drawn}, {})
    rows = np.r_[:90, 96:106]
    for source, left in ((mixed, rows), (mixed.select(rows), np.arange(100))):
        expected = draws.weigh(sampling(), source, left).expected(100)
        np.testing.assert_allclose(expected, 1)
    heavy = mixture.join({"real": utkface, "drawn": drawn}, {"drawn": 2.0})
    expected = draws.weigh(sampling(), heavy, rows).expected(100)
    np.testing.assert_allclose(expected[:90].sum() / expected[90:].sum(), (90 / 50) / 2)


def test_copies_across_the_parts_share_a_group_and_a_split(cache, tmp_path, capsys):
    """The second part has versions of two photos of the first part, and one other photo."""
    names = [f"{20 + i}_0_0_2020{i}.jpg" for i in range(12)]
    real = {name: encode(photo(i)) for i, name in enumerate(names)}
    web = {f"{i}-{j}.jpg": v for i in (3, 7) for j, v in enumerate(versions(photo(i)).values())}
    web["new.jpg"] = encode(photo(99))
    parts = {
        "real": {"name": "utkface", "source": str(pack(real, tmp_path / "real.zip"))},
        "web": {"name": "image_folder", "source": str(pack(web, tmp_path / "web.zip"))},
    }

    mixed = mixture.load(parts, image_size=64, cache_dir=str(cache))
    group = dict(zip(mixed.ids.tolist(), mixed.groups.tolist(), strict=True))
    for name in web:
        row = name.split("-")[0]
        same = f"real/{names[int(row)]}" if row.isdigit() else f"web/{name}"
        assert group[f"web/{name}"] == mixed.ids.tolist().index(same)
    assert len(np.unique(mixed.groups)) == 12 + 1
    made = splits.by_fraction(mixed, {"train": 0.6, "test": 0.4}, seed=0)
    assert splits.leaking_groups(mixed, made) == 0

    assert "searching" in capsys.readouterr().err
    again = mixture.load(parts, image_size=64, cache_dir=str(cache))
    np.testing.assert_array_equal(again.groups, mixed.groups)
    assert again.fingerprint == mixed.fingerprint
    assert "searching" not in capsys.readouterr().err


def test_drawn_faces_are_no_copies_of_anything(utkface, drawn):
    assert mixture.copies_across([utkface, drawn], [True, False]).shape == (0, 2)


def test_a_view_of_a_mixture_keeps_the_parts(both, utkface, drawn):
    view = both.select(np.array([150, 2, 96]))
    np.testing.assert_array_equal(view.part, [1, 0, 1])
    images = [drawn.images[54], utkface.images[2], drawn.images[0]]
    np.testing.assert_array_equal(view.take(np.arange(3)), images)
    with pytest.raises(UserError, match=r"mixture\.drawn: no training image is left"):
        draws.weigh(sampling(), both, np.arange(90))


def test_the_fingerprint_follows_the_parts(both, utkface, drawn):
    again = mixture.join({"real": utkface, "drawn": drawn}, {})
    assert again.fingerprint == both.fingerprint
    turned = mixture.join({"drawn": drawn, "real": utkface}, {})
    assert turned.fingerprint != both.fingerprint


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "mixture: it is empty"),
        ({"a": {"nam": "utkface"}}, "mixture.a: unknown key 'nam'; did you mean 'name'"),
        ({"a": {"source": "x"}}, "mixture.a: name is missing"),
        ({"a": "utkface"}, "mixture.a: 'utkface'; set it to"),
        ({"a": {"name": "procedural_faces", "options": DRAWN, "weight": 0.0}}, "a.weight: 0.0"),
        ({"a": {"name": "procedural_faces", "options": DRAWN, "weight": "x"}}, "a.weight: 'x'"),
        ({"a": {"name": "procedural_face"}}, "did you mean 'procedural_faces'"),
    ],
    ids=str,
)
def test_a_bad_mixture_is_named(cache, parts, message):
    with pytest.raises(UserError, match=message):
        mixture.load(parts, image_size=32, cache_dir=str(cache))


def test_parts_that_draw_the_same_faces_are_named(cache, capsys):
    """Their copies are not searched, so a split may separate them."""
    few = DRAWN | {"count": 4}
    parts = {
        "a": {"name": "procedural_faces", "options": DRAWN},
        "b": {"name": "procedural_faces", "options": few},
        "c": {"name": "procedural_faces", "options": few | {"seed": 2}},
    }
    mixture.load(parts, image_size=32, cache_dir=str(cache))
    warned = [line for line in capsys.readouterr().err.splitlines() if "in common" in line]
    assert len(warned) == 1
    assert "config.data.mixture: a and b have 4 faces in common, such as 1-000000" in warned[0]


def test_a_mixture_that_may_only_train_is_named(cache):
    part = {"name": "procedural_faces", "options": DRAWN, "train_only": True}
    with pytest.raises(UserError, match="all parts are train_only"):
        mixture.load({"a": part}, image_size=32, cache_dir=str(cache))


@pytest.fixture
def config(faces, cache):
    """A mixture: ages and genders in both parts, apparent ages only in the drawn faces."""
    config = tiny.get_config()
    config.data.cache_dir = str(cache)
    config.data.mixture = {
        "real": {"name": "utkface", "source": str(faces), "weight": 2.0},
        "drawn": {"name": "procedural_faces", "options": DRAWN},
    }
    config.heads.apparent_age = {"kind": "regression"}
    config.total = {"steps": 4}
    config.eval.every = {"steps": 4}
    config.log_every = {"steps": 1}
    return config


def test_a_run_on_a_mixture_learns_what_each_part_knows(config, tmp_path):
    config.data.edits.drop = {"ethnicity": ("Other", "dark")}
    config.augment.mixup = 0.0
    workdir = tmp_path / "run"
    summary = train(config.lock(), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["apparent_age/loss"] for line in lines if "apparent_age/loss" in line]
    assert len(losses) == 4
    assert np.isfinite([*losses, *(line["loss"] for line in lines if "loss" in line)]).all()

    source = opening.open_source(config.data)
    val = splits.make(source, config.data.split)["val"]
    last = summary["last"]
    assert last["n"] == len(val)
    known = np.isfinite(source.labels["apparent_age"][val])
    assert 0 < known.sum() < len(val)
    assert last["gender"]["n"] == len(val)
    scored = results.evaluate(workdir).metrics
    assert scored["dataset"] == "drawn+real"
    rows = (workdir / "evaluation/drawn+real-test/predictions.csv").read_text()
    assert "real/" in rows
    assert "drawn/" in rows

    other = results.evaluate(
        workdir, dataset="utkface", source_path=config.data.mixture.real.source
    ).metrics
    assert other["n"] == 96
    assert other["ethnicity"]["n"] == 96 - 19  # "Other" is no class of the run
    with pytest.raises(UserError, match="a mixture; its config says"):
        results.evaluate(workdir, source_path="elsewhere")


def test_a_head_without_a_label_in_any_part_is_named(config, faces, tmp_path):
    config.data.mixture = {
        "a": {"name": "utkface", "source": str(faces)},
        "b": {"name": "utkface", "source": str(faces)},
    }
    with pytest.raises(UserError, match="the training data has no 'apparent_age' label"):
        train(config.lock(), tmp_path / "run")
