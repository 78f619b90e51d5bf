"""The published systems: every arm trains, and the table compares it with published figures."""

import json
import shutil
import sys

import numpy as np
import pytest
from sklearn.metrics import f1_score

from agejax.configs import mobilenet_v1_utk
from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.evaluation import metrics, replicates
from agejax.process.command import run_command
from experiments import arms, cross_data, levers, recompute, run, targets, transfer_check
from experiments.benchmarks import intervals, start
from experiments.mutations import __main__ as mutations
from experiments.systems import imbalance, setting, transfer


@pytest.mark.parametrize("system", run.SYSTEMS)
def test_every_arm_runs_and_is_compared(system, faces, trained, tmp_path, capsys):
    (tmp_path / "drawn").mkdir()
    for i, path in enumerate(sorted(faces.iterdir())[:20]):
        shutil.copy(path, tmp_path / "drawn" / f"{i}.jpg")
    flags = [
        system, "--scale=smoke", f"--source={faces}", "--seeds=1", f"--folder={tmp_path / 'runs'}",
        f"--output={tmp_path / 'table'}", f"--synthetic={tmp_path / 'drawn'}",
        f"--genders={trained}",
    ]  # fmt: skip
    (tmp_path / "runs" / "genders").mkdir(parents=True)  # a run of four steps cannot predict them
    told = [f"{path.name},{('male', 'female')[i % 2]}" for i, path in enumerate(faces.iterdir())]
    (tmp_path / "runs/genders/labels.csv").write_text("\n".join(["file,gender", *told]))
    assert run_command(run.main, ["run", *flags]) == 0
    assert ("gender of 96 of 96 images" in capsys.readouterr().err) == (system == "architectures")
    result = json.loads((tmp_path / "table.json").read_text())
    module = __import__(f"experiments.systems.{system}", fromlist=["arms"])
    known = module.arms(setting.Setting("smoke", synthetic="drawn"))
    assert result["arms"].keys() == known.keys()
    text = (tmp_path / "table.md").read_text()
    assert "; seeds: 0. Intervals of 95 % are a bootstrap over groups of copies, of one" in text
    for kind in ("decades", "curves", *(["confusion-gender"] if system == "small_model" else [])):
        assert f"(table-{kind}.png)" in text
        assert (tmp_path / f"table-{kind}.png").stat().st_size > 5000
    for name, row in result["arms"].items():
        assert f"| {name}: {row['what']} |" in text
        for path in module.COLUMNS:
            low, high = row[path]["ci95"]
            assert low <= row[path]["mean"] <= high
            assert row[path]["n"] > 0
            if name == module.REFERENCE:
                assert row[path]["difference"]["mean"] == 0
    # Finished arms do not run again.
    capsys.readouterr()
    assert run_command(run.main, ["run", *flags]) == 0
    assert "====" not in capsys.readouterr().out


def test_an_arm_that_is_not_there_is_named(faces, tmp_path, capsys):
    flags = ["imbalance", "--scale=smoke", f"--source={faces}", "--arm=none"]
    assert run_command(run.main, ["run", *flags]) == 2
    assert "there are baseline, ins, undersample, dense-lmf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("nobody", "no arm has such a name; there are baseline, ins, undersample, dense-lmf"),
        ("(", "not a regular expression"),
    ],
)
def test_only_that_matches_no_arm_is_refused_and_the_arms_are_named(
    only, message, faces, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = ["imbalance", "--scale=smoke", f"--source={faces}", f"--only={only}"]
    assert run_command(run.main, ["run", *flags]) == 2
    assert f"--only={only}: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("main", [run.main, levers.main, targets.main])
def test_a_comparison_has_a_seed(main, capsys):
    with pytest.raises(SystemExit) as end:
        main(["experiment", "--seeds=0"])
    assert end.value.code == 2
    assert "argument --seeds: 0; set it to 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("module", [targets, cross_data, transfer_check])
def test_intervals_of_one_seed_are_not_called_those_over_seeds(module, tmp_path, monkeypatch):
    scores = arms.Scores(
        columns={
            "id": np.array(["a", "b"]), "group": np.array(["0", "1"]),
            "age": np.array([20.0, 30.0]), "gender": np.array([0.0, 1.0]),
            "ethnicity": np.array([0.0, 1.0]),
        },
        predicted={
            "age": np.array([[21.0, 33.0]]), "gender": np.array([[0.0, 0.0]]),
            "ethnicity": np.array([[0.0, 1.0]]),
        },
        runs=({"facts": {"counts": {"age": [1] * 40}}, "images_per_second": 1.0},),
        commits=("x",),
    )  # fmt: skip
    monkeypatch.setattr(arms, "run", lambda chosen, *_: dict.fromkeys(chosen, scores))
    monkeypatch.setattr(cross_data, "cross", lambda *_: scores)
    monkeypatch.setattr(metrics, "SMALLEST_GROUP", 1)
    flags = ["--source=x", "--pretrained=y", "--seeds=1", f"--output={tmp_path / 'table.json'}"]
    module.main(["x", *flags, *(["--aaf=z"] if module is cross_data else [])])
    assert json.loads((tmp_path / "table.json").read_text())["intervals"] == replicates.ONE_SEED
    if module is not transfer_check:
        assert replicates.ONE_SEED in (tmp_path / "table.md").read_text()


def test_an_unknown_ethnicity_is_no_class_of_the_table_of_targets(monkeypatch):
    scores = arms.Scores(
        columns={
            "id": np.array(["a", "b", "c"]), "group": np.array(["0", "1", "2"]),
            "age": np.full(3, 20.0), "gender": np.zeros(3), "ethnicity": np.array([0.0, 1.0, -1.0]),
        },
        predicted={
            "age": np.full((1, 3), 20.0), "gender": np.zeros((1, 3)),
            "ethnicity": np.array([[0.0, 1.0, 1.0]]),
        },
        runs=({"facts": {"counts": {"age": [1] * 40}}, "images_per_second": 1.0},),
        commits=("x",),
    )  # fmt: skip
    monkeypatch.setattr(metrics, "SMALLEST_GROUP", 1)
    row = targets.measure(scores, scores)
    assert row["ethnicity_macro_f1"] == {"mean": 1.0, "seeds": [1.0]}


def test_a_balanced_val_has_no_copy_in_train_nor_an_image_of_the_test_set(
    faces, cache, tmp_path, monkeypatch
):
    where = setting.Setting("smoke", source=str(faces), folder=tmp_path)
    config = imbalance.arms(where)["faces-frozen"].config
    config.data.split.balanced.over, config.data.split.balanced.n = ("decade",), 2
    monkeypatch.setattr(imbalance, "arms", lambda _: {"faces-frozen": arms.Arm(config)})
    source = opening.open_source(config.data)
    test = splits.make(source, config.data.split)["test"]
    rows = splits.make(source, levers.with_balanced_val(where).data.split)
    assert rows.keys() == {"train", "val"}
    groups = [set(source.groups[some].tolist()) for some in (*rows.values(), test)]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    decades = np.unique(source.labels["age"][rows["val"]] // 10, return_counts=True)[1]
    assert len(decades) > 3
    assert decades.max() == 2


def test_only_keeps_the_reference_and_the_order_of_the_arms():
    known = imbalance.arms(setting.Setting("smoke"))
    assert list(arms.chosen(known, "undersample|ins$", "baseline")) == [
        "baseline", "ins", "undersample",
    ]  # fmt: skip
    assert arms.chosen(known, "", "baseline") == known


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="no file whose name begins with mobilenet_v3_small"):
        setting.Setting("cpu", weights=tmp_path).pretrained("mobilenet_v3_small")


def test_the_face_network_has_rows_on_the_systems_own_images(tmp_path):
    (tmp_path / "mobilenet_v3_small.safetensors").touch()
    place = setting.Setting("cpu", weights=tmp_path)
    assert not any(name.startswith("faces") for name in imbalance.arms(place))
    (tmp_path / "mobilenet_v1_faces.safetensors").touch()
    known = imbalance.arms(place)
    like, frozen, tuned, small = (
        known[name].config for name in ("baseline", "faces-frozen", "faces", "small")
    )
    assert small.data.split == like.data.split
    assert small.model.pretrained == str(tmp_path / "mobilenet_v3_small.safetensors")
    names = [f"{name}.npz" for name in imbalance.TEACHERS]
    assert [path.rsplit("/", 1)[1] for path in small.distill.files] == names
    assert small.distill.features.teacher in small.distill.files
    assert set(imbalance.TEACHERS) < set(known)
    for config in (frozen, tuned):
        assert config.data.split == like.data.split
        assert config.data.edits == like.data.edits
        assert set(config.heads) == {"age", "gender", "ethnicity"}
        assert config.model.pretrained == str(tmp_path / "mobilenet_v1_faces.safetensors")
        assert config.model.image_size > like.model.image_size
    assert frozen.model.cached_views == 1
    # The published rows are of these recipes, not of shorter ones.
    assert tuned.total.to_dict() == {"epochs": 10.0}
    assert tuned.optim.lr_multipliers == mobilenet_v1_utk.LR_MULTIPLIERS
    assert set(transfer.arms(place)["faces"].config.heads) == {"age"}


def test_macro_f1_and_its_paired_interval():
    rng = np.random.default_rng(0)
    true = rng.integers(4, size=400)
    groups = np.arange(400) // 2  # every image has a copy
    good, bad = (
        np.where(rng.random((3, 400)) < right, true, rng.integers(4, size=(3, 400)))
        for right in (0.8, 0.5)
    )
    true[:10] = -1
    figure, difference = arms.macro_f1_interval(true, good, bad, groups, resamples=300)
    ours, theirs = (
        [f1_score(true[10:], said[10:], average="macro") for said in of] for of in (good, bad)
    )
    assert figure["seeds"] == pytest.approx(ours)
    assert figure["n"] == 390
    assert difference["mean"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert 0 < difference["ci95"][0] < difference["mean"] < difference["ci95"][1] < 0.4
    _, none = arms.macro_f1_interval(true, good, good, groups, resamples=20)
    assert none["ci95"] == [0, 0]
    # Copies are no extra evidence: without them the interval is equally wide.
    once, _ = arms.macro_f1_interval(true[::2], good[:, ::2], bad[:, ::2], groups[::2])
    twice, _ = arms.macro_f1_interval(
        np.repeat(true[::2], 2), np.repeat(good[:, ::2], 2, 1), np.repeat(bad[:, ::2], 2, 1), groups
    )
    assert twice["ci95"] == pytest.approx(once["ci95"], abs=0.02)


@pytest.mark.parametrize(("seeds", "paired"), [(2, False), (3, True)])
def test_intervals_over_seeds_hold_the_truth_where_percentiles_do_not(seeds, paired):
    held = intervals.seeds_coverage(seeds, 30, paired, trials=120)
    assert held["joined"] >= 0.89  # 0.95 less three deviations
    assert held["percentile"] < min(held["joined"], 0.91)


def test_simulated_intervals_of_gaps_cells_and_challenge_ages_hold():
    """Far from the 93 to 100 times in 100 of many trials, only where something is broken."""
    assert min(intervals.gap_coverage((3.0,) * 6, trials=40).values()) > 0.7
    assert intervals.cells_coverage(5, trials=20) > 0.7
    found = intervals.challenge_age_coverage(120, 0.01, trials=60)
    assert found["held"] > 0.9
    assert found["with an upper end"] == 0


def test_recorded_tables_are_computed_again_from_what_is_stored(tmp_path):
    rng = np.random.default_rng(0)
    losses = rng.exponential(5, (1, 500)) + np.array([[0.0], [0.4], [-0.3]])
    groups = np.arange(500)
    now = replicates.mean_interval(losses, groups)
    # As it was recorded: percentiles over seeds and images drawn together.
    means = [
        losses[rng.integers(3, size=3)][:, rng.integers(500, size=500)].mean() for _ in range(4000)
    ]
    row = {
        "age/mae": {
            "mean": now["mean"],
            "ci95": np.percentile(means, [2.5, 97.5]).tolist(),
            "seeds": now["seeds"],
            "n": 500,
        },
        "what": "as it is",
        "theirs": {},
        "minutes": 3.0,
    }
    row["age/mae"]["difference"] = row["age/mae"] | {
        "mean": 0.0,
        "ci95": [0.0, 0.0],
        "seeds": [0.0] * 3,
    }
    recorded = {
        "command": "python -m experiments.run imbalance --scale=cpu",
        "arms": {"baseline": row},
    }
    path, text = tmp_path / "imbalance-cpu.json", "### B\n\n| arm | x |\n|---|---|\n| old | 1 |\n"
    text += "\n601 images. Intervals of 95 % resample seeds; differences are paired. More.\n"
    path.write_text(json.dumps(recorded))
    path.with_suffix(".md").write_text(text)
    recompute.main(["recompute", str(path)])
    made = json.loads(path.read_text())
    figure = made["arms"]["baseline"]["age/mae"]
    assert figure["ci95"] == pytest.approx(now["ci95"], abs=0.1)
    assert figure["images95"] == pytest.approx(now["images95"], abs=0.1)
    assert figure["difference"]["ci95"] == [0.0, 0.0]
    page = path.with_suffix(".md").read_text()
    low, high = figure["ci95"]
    assert f"| baseline: as it is | {now['mean']:.3f} [{low:.3f}, {high:.3f}] |" in page
    assert "| old |" not in page
    assert "601 images. Intervals of 95 % join Student's t" in page
    assert page.endswith("More.\n")
    recompute.main(["recompute", str(path)])  # repeating changes nothing
    assert json.loads(path.read_text()) == made
    assert path.with_suffix(".md").read_text() == page


def test_the_share_in_the_right_bucket():
    of = arms.Scores(
        columns={"age": np.array([2.0, 3.0, 30.0, np.nan])},
        predicted={"age": np.array([[2.9, 2.9, 45.9, 1.0], [3.0, 5.0, 46.0, 1.0]])},
        runs=(),
        commits=(),
    )
    wrong = of.bucket_errors("age", transfer.EDGES)
    assert wrong[:, :3].tolist() == [[0, 1, 0], [1, 0, 1]]
    assert np.isnan(wrong[:, 3]).all()


def test_data_sets_are_crossed_on_the_images_that_all_arms_share():
    def said(ids: list[str], ages: list[float]) -> arms.Scores:
        columns = {"id": np.array(ids), "age": np.arange(len(ids)).astype(float)}
        return arms.Scores(columns, {"age": np.array([ages])}, (), ())

    chosen = cross_data.on_common_images(
        {"alone": said(["b.jpg", "a.jpg", "c.jpg"], [1.0, 2.0, 3.0]),
         "both": said(["aaf/x.jpg", "utk/a.jpg", "utk/b.jpg"], [4.0, 5.0, 6.0])}
    )  # fmt: skip
    assert chosen["alone"].predicted["age"].tolist() == [[2.0, 1.0]]
    assert chosen["both"].predicted["age"].tolist() == [[5.0, 6.0]]
    assert chosen["both"].columns["id"].tolist() == ["utk/a.jpg", "utk/b.jpg"]


def test_the_table_of_mutations_fits_the_code(tmp_path):
    mutations.check(mutations.MUTATIONS)
    names = [each.name for each in mutations.MUTATIONS]
    assert len(set(names)) == len(names)
    # And names where it does not.
    first = mutations.MUTATIONS[0]
    (tmp_path / first.file).parent.mkdir(parents=True)
    (tmp_path / first.file).write_text(f"{first.old}\n{first.old}")
    with pytest.raises(
        UserError, match=rf"{first.name}: found 2 times in {first.file}(.|\n)*tests"
    ):
        mutations.check([first], tmp_path)


def test_a_mutation_is_caught_by_the_test_that_fails_and_taken_back(tmp_path):
    """Uses a checkout of one function and its two tests."""
    code, tests = tmp_path / "agejax" / "sign.py", tmp_path / "tests"
    code.parent.mkdir()
    tests.mkdir()
    code.write_text("def sign(x):\n    return 1 if x > 0 else -1\n")
    (tests / "test_sign.py").write_text(
        "from agejax.sign import sign\n\n\n"
        "def test_above():\n    assert sign(2) == 1\n\n\n"
        "def test_below():\n    assert sign(-2) == -1\n"
    )
    of = lambda new: mutations.Mutation("x", "agejax/sign.py", "else -1", new, ("test_sign.py",))  # noqa: E731
    caught = mutations.judge(of("else 1"), tmp_path)
    assert (caught["caught"], caught["by"]) == (True, "test_sign.py::test_below")
    missed = mutations.judge(of("else  -1"), tmp_path)
    assert (missed["caught"], missed["by"]) == (False, "")
    broken = mutations.judge(of("else ("), tmp_path)  # no test ran: that catches nothing
    assert not broken["caught"]
    assert code.read_text() == "def sign(x):\n    return 1 if x > 0 else -1\n"
    assert "**nothing**" in mutations.table([caught, missed])


def test_a_start_is_measured_until_its_first_step_and_then_ended():
    says = "import time; sum(range(10**7)); print('step 1/2  loss', flush=True); time.sleep(60)"
    trees = {start.THIS: start.HERE, start.OTHER: start.HERE}
    rows = start.measure(trees, [sys.executable, "-c", says], 1)
    assert [(row["start"], row["unit"]) for row in rows] == [
        (kind, unit) for kind in ("nothing compiled before", "compiled before")
        for unit in ("cpu_seconds", "seconds", "peak_mib")
    ]  # fmt: skip
    for row in rows:
        (one,), (other,) = row["turns"].values()
        assert row["ratio"]["median"] == pytest.approx(one / other)
        assert 0 < one < 50
    with pytest.raises(UserError, match=r"no first step: a reason$"):
        start.measure(trees, [sys.executable, "-c", "raise SystemExit('a reason')"], 1)
