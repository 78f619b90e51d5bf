"""The papers about a run hold what it has stored, and name what nobody has measured."""

import re
import shutil
import types

import numpy as np
import pytest

import tiny
from agejax import files, papers
from agejax.data import builders
from agejax.evaluation import gates, headlines, metrics
from agejax.evaluation.calibration import Calibration
from agejax.exporting import card, datasheet, practice_statement
from agejax.process.command import run_command
from agejax.reporting import markdown
from agejax.runs import lineage

# 40 boys and 20 girls of 16, and 60 men of 30: half the images are copies of nothing.
AGE = np.repeat([16.0, 30.0], [60, 60])
GENDER = np.concatenate([np.repeat([0, 1], [40, 20]), np.zeros(60, int)])
ETHNICITY = np.full(120, -1)


def predicted() -> np.ndarray:
    """4 boys and 3 girls look 26, the others 17; 54 men look 28, and 6 look 20."""
    boys, girls = [26.0] * 4 + [17.0] * 36, [26.0] * 3 + [17.0] * 17
    return np.array([*boys, *girls, *[28.0] * 54, *[20.0] * 6])


def evaluation(**changes) -> dict:
    labels = {"age": AGE, "gender": GENDER, "ethnicity": ETHNICITY}
    names = {"gender": ("male", "female"), "ethnicity": ()}
    result = metrics.evaluate({"age": predicted()}, labels, names)
    parts, alone = metrics.partitions(labels, names), np.arange(120)
    result |= {"dataset": "utkface", "fingerprint": "f00", "split": "test", "step": 7}
    result["headlines"] = headlines.measure(AGE, predicted(), parts["gender"], alone)
    result["gates"] = gates.measure(AGE, predicted(), parts, alone)
    return result | changes


@pytest.fixture
def run(tmp_path):
    """What the papers read of a run."""
    config = tiny.get_config()
    params = {"w": np.zeros((3, 4), np.float32)}
    return types.SimpleNamespace(
        workdir=tmp_path / "mine", results=tmp_path / "mine", step=7, config=config, params=params,
        fingerprint="f00",
        facts=types.SimpleNamespace(
            labels=["age"], means={"age": 33.0}, medians={"age": 29.0}, stds={"age": 20.0},
            label_names={}, counts={},
        ),
    )  # fmt: skip


def store(run, **named):
    for name, result in named.items():
        place = run.workdir / "evaluation" / name
        place.mkdir(parents=True)
        files.write_json(place / "metrics.json", result)


def rows(text: str, start: str) -> list[list[str]]:
    """The cells of the table rows that begin with a text."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_practice_statement_holds_gates_and_errors_by_group(run):
    store(run, test=evaluation())
    text = practice_statement.write(run, "mine")
    assert "no laboratory" in text
    assert "not to check an age" in text
    # 7 of 60 minors look 25 or older, 4 of them boys; 54 of 60 adults do. Wilson's bounds by hand.
    ((_, false, minors, true, adults),) = rows(text, "25")
    assert (false, minors) == ("11.7% [5.8, 22.2]", "60")
    assert (true, adults) == ("90.0% [79.9, 95.3]", "60")
    assert rows(text, "gender: male")[-1][1:3] == ["10.0% [4.0, 23.1]", "40"]
    girls = rows(text, "gender: female")[-1]
    assert girls[1:] == ["15.0% [5.2, 36.0]", "20 (few)", "no image", "0"]
    assert rows(text, "gender: female")[0][1] == "20 (few)"
    # |26 - 16| = 10 for 7, |17 - 16| = 1 for 53, |28 - 30| = 2 for 54, |20 - 30| = 10 for 6.
    assert f"Mean absolute error: {(70 + 53 + 108 + 60) / 120:.2f} years" in text
    assert f"Acc(x): {53 / 120:.1%} for x = 1," in text
    assert rows(text, "16")[0][1:3] == ["60", f"{(70 + 53) / 60:.2f}"]
    # The 60 minors are too few for 1 %: 7 of them pass until T is 27.
    assert "False accepts of 1% or less need the challenge age 27" in text
    assert "no upper bound: that takes 368 minors" in text


def test_the_practice_statement_takes_only_images_that_were_held_out(run):
    store(
        run,
        test=evaluation(),
        val=evaluation(split="val"),
        train=evaluation(split="train"),
        calibration=evaluation(split="calibration"),
        all=evaluation(split="all"),
        same_set=evaluation(split="all", fingerprint="f01"),
        old=evaluation(split="test", step=6, dataset="old"),
        aaf=evaluation(split="all", dataset="aaf", fingerprint="f02"),
    )
    results = re.findall("## Results on (.*):", practice_statement.write(run, "mine"))
    assert results == ["utkface, test", "aaf, all"]


def test_what_a_user_finds_out_about_a_released_model_comes_before_what_came_with_it(run, tmp_path):
    run.results = tmp_path / "runs" / "released-mine"
    store(run, test=evaluation(dataset="old"), other=evaluation(dataset="kept"))
    place = run.results / "evaluation" / "test"
    place.mkdir(parents=True)
    files.write_json(place / "metrics.json", evaluation(dataset="new"))
    results = re.findall("## Results on (.*),", practice_statement.write(run, "mine"))
    assert sorted(results) == ["kept", "new"]


def test_a_folder_of_ones_own_is_told_apart_by_what_it_holds(run):
    run.config.data.name = "image_folder"
    other = evaluation(split="all", dataset="image_folder", fingerprint="f02")
    same = evaluation(split="all", dataset="image_folder")
    old = {k: v for k, v in other.items() if k != "fingerprint"}  # who knows which folder
    store(run, other=other, same=same, old=old)
    assert practice_statement.write(run, "mine").count("## Results on") == 1


def test_data_that_trained_a_model_it_learned_from_was_not_held_out(run, monkeypatch):
    own, teacher = lineage.of(run), lineage.of(run)
    teacher["data"] = own["data"] | {"names": ["aaf"], "fingerprint": "f03"}
    monkeypatch.setattr(lineage, "of", lambda run: own | {"teachers": [teacher]})
    other = {"split": "all", "dataset": "aaf"}
    store(
        run,
        version=evaluation(**other, fingerprint="f02"),
        same=evaluation(**other | {"dataset": "image_folder"}, fingerprint="f03"),
        other=evaluation(**other | {"dataset": "appa_real"}, fingerprint="f04"),
    )
    results = re.findall("## Results on (.*):", practice_statement.write(run, "mine"))
    assert results == ["appa_real, all"]


def test_papers_leave_out_evaluations_that_served_to_choose_an_image_size(run):
    size = run.config.model.image_size
    store(
        run,
        test=evaluation(image_size=size),
        larger=evaluation(image_size=size + 8, split="all", dataset="aaf", fingerprint="f02"),
    )
    results = re.findall("## Results on (.*):", practice_statement.write(run, "mine"))
    assert results == ["utkface, test"]
    assert re.findall("### (.*):", card.scores(run)) == ["utkface, test"]
    run.config.eval.image_size = size + 8
    assert re.findall("### (.*):", card.scores(run)) == ["aaf, all"]


def test_a_card_gives_the_coverage_of_its_own_intervals(run):
    covered = {"n": 120, "coverage": 0.5, "band95": [0.85, 0.95], "width": 9.0}
    found = {"uncertainty": {"age": {"groups": {}, "by_decade": covered}}}
    store(
        run,
        test=evaluation(**found),
        old=evaluation(**found, step=6, dataset="old"),
        val=evaluation(**found, split="val"),  # they were fitted to these
    )
    text = card.intervals(run, Calibration(7, 40, {}, {}))
    assert "val:" not in text
    assert re.findall("On (.*), test:", text) == ["utkface"]
    assert rows(text, "all") == [["all", "120", "50.0%"]]


@pytest.mark.parametrize("name", sorted(builders.TABLE.keys() - {"image_folder"}))
def test_the_terms_and_the_publisher_of_every_public_data_set_are_named(run, name):
    run.config.data.name = name
    text = datasheet.write(run, "mine", None)
    assert "read its terms" not in text
    assert "files of the person who trained the model" not in text


def test_an_old_evaluation_of_all_of_the_runs_own_mixture_is_left_out(run):
    run.config.data.mixture = {"real": {"name": "utkface"}, "drawn": {"name": "procedural_faces"}}
    own = evaluation(split="all", dataset="drawn+real")
    del own["fingerprint"]
    store(run, own=own)
    assert "## Results on" not in practice_statement.write(run, "mine")


def test_the_practice_statement_names_what_is_missing(run):
    text = practice_statement.write(run, "mine")
    assert "None: the run has no evaluation" in text
    missing = text.partition("## What was not tested")[2]
    assert "Images held out from the data of the training" in missing
    assert "Age gates by group: not among the stored results" in missing
    store(run, test=evaluation(), aaf=evaluation(split="all", dataset="aaf", fingerprint="f02"))
    missing = practice_statement.write(run, "mine").partition("## What was not tested")[2]
    assert "Images held out" not in missing
    assert "Age gates by group" not in missing
    assert "Robustness" in missing
    assert "groups with too few images to tell: female (20)" in missing
    assert "too few minors of 14 to 17 to tell how many an age gate admits: female (20)." in missing
    assert "Groups by ethnicity: the tested images have no such labels" in missing
    assert "Presentation attacks" in missing


def test_images_that_could_not_be_processed_are_in_the_statement_by_group(run):
    lost = {
        "images": 118, "files": 5, "undecoded": 2,
        "groups": {"gender": [{"name": "male", "n": 100, "lost": 2, "rate": 0.02,
                               "ci95": [0.0055, 0.07]}]},
    }  # fmt: skip
    store(run, test=evaluation(unprocessed=lost))
    text = practice_statement.write(run, "mine")
    assert (
        "118 images of the whole data set could be used; files that could not: 5. 2 of these files"
        in text
    )
    assert rows(text, "gender: male")[-1][1:] == ["2", "2.0% [0.5, 7.0]", "100"]


def test_degraded_images_and_views_of_a_face_are_in_the_statement(run):
    blurred = [
        {"name": name, "n": 120, "mae": mae, "mae_ci95": [1, 9], "change": change,
         "change_ci95": [change - 0.5, change + 0.5], "coverage": 0.9}
        for name, mae, change in (("as it is", 2.4, 0.0), ("sigma 2", 3.9, 1.5))
    ]  # fmt: skip
    found = {
        "n": 110, "targets": {"age": {"blur": blurred}}, "undetected": {"images": 3, "groups": {}},
        "stability": {"views": 9, "sd": 1.25, "sd_ci95": [1.1, 1.4], "range": 4.0},
    }  # fmt: skip
    store(run, test=evaluation(robustness=found))
    text = practice_statement.write(run, "mine")
    assert rows(text, "blur: sigma 2") == [
        ["blur: sigma 2", "3.90", "+1.50", "[1.00, 2.00]", "90.0%"]
    ]
    assert "standard deviation of 1.25 years [1.10, 1.40]" in text
    assert "In 3 of these 110 images the face detector finds no face" in text
    assert "Robustness" not in text


def test_a_cell_stays_in_its_row():
    rows = markdown.table(("a", "b"), [("x|y\nz", 1234)]).splitlines()
    assert rows[2] == r"| x\|y z | 1,234 |"


AUDIT = {
    "images": 200,
    "skipped": {"n": 3, "reasons": {"no age": 2, "cannot be decoded": 1}},
    "duplicates": {"groups": 6, "images": 14, "exact": {"groups": 2, "images": 4}},
    "conflicts": {"groups": 4, "age": 3, "age_over_5_years": 2, "gender": 1, "ethnicity": 0},
    "leakage": {
        datasheet.SPLITS: {
            "splits": {"train": 150, "test": 40},
            "groups": 5,
            "pairs": [{"splits": ["train", "test"], "groups": 5}],
        }
    },
    "distribution": {
        "known": {"age": 198, "gender": 200},
        "age": {"min": 1, "mean": 30.5, "median": 28, "max": 90},
        "decades": ["0-9", "10-19", "20-29", "unknown"],
        "table": {"male": [10, 20, 68, 2], "female": [5, 15, 80, 0]},
    },
    "outliers": {"dark": {"what": "mean grey below 40 of 255", "n": 4}},
}


def test_the_datasheet_holds_what_the_audit_found(run):
    text = datasheet.write(run, "mine", AUDIT)
    headings = ["Motivation", "Composition", "Collection process",
                "Preprocessing, cleaning, labelling", "Uses", "Distribution", "Maintenance",
                "What this datasheet cannot say"]  # fmt: skip
    assert re.findall("^## (.*)$", text, re.MULTILINE) == headings
    for part in (
        "# Datasheet: utkface, as the model mine used it",
        "200 images could be used",
        "Files that could not be used: 3 (no age: 2; cannot be decoded: 1)",
        "The run's splits: train 150, test 40.\n- 10 images are in none of them",
        "50 images are labelled younger than 20 years",
        "| male | 10 | 20 | 68 | 2 | 100 |",
        "| age | 198 | 2 |",
        "6 groups of near or exact copies with 14 images; in 2 of them",
        "4 groups. Ages differ in 3, by more than 5 years in 2; gender in 1, ethnicity in 0",
        "train and test share 5 groups of copies",
        "dark (mean grey below 40 of 255): 4",
        "UTKFace: for non-commercial research only",
        "from https://susanqq.github.io/UTKFace/",
        "sampling `density`",
        "fingerprint `f00`",
    ):
        assert part in text


def test_the_datasheet_tells_edits_splits_and_that_it_was_not_audited(run):
    run.config.data.edits.drop = {"ethnicity": ("Other",)}
    run.config.data.edits.labels = "/home/somebody/labels.csv"
    run.config.data.split.files = {"train": "/home/somebody/a.txt"}
    text = datasheet.write(run, "mine", None)
    assert "it was not audited" in text
    assert "age in training: mean 33.0" in text
    assert "drop = {'ethnicity': ['Other']}" in text
    assert "split by lists of names: train" in text
    assert "share a split" not in text  # public lists may separate copies
    assert "/home" not in text


def test_drawn_faces_show_nobody(run):
    run.config.data.name = "procedural_faces"
    text = datasheet.write(run, "mine", None)
    assert "they show nobody" in text
    assert "Faces identify people" not in text


def test_every_way_of_splitting_has_words():
    split = tiny.get_config().data.split.to_dict()
    assert card.split_in_words(split).startswith("random split, test 0.2, train 0.6")
    assert card.split_in_words(split | {"folds": 5, "fold": 2}).startswith(
        "fold 2 of 5 is the test"
    )
    even = split | {"balanced": {"n": 10, "split": "test", "over": ["gender", "decade"]}}
    assert card.split_in_words(even).startswith("test has 10 images of each gender x decade")


def test_the_command_writes_three_papers(trained, faces, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "my run", ignore=shutil.ignore_patterns("evaluation"))
    arguments = ["papers", f"--workdir={tmp_path / 'my run'}", f"--output={tmp_path / 'out'}"]
    assert run_command(papers.main, arguments) == 0
    captured = capsys.readouterr()
    assert "without an audit" not in captured.err
    names = ["datasheet.md", "model_card.md", "practice_statement.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    texts = {name: (tmp_path / "out" / name).read_text() for name in names}
    assert "96 images could be used" in texts["datasheet.md"]
    assert "no group of copies stands in two of the run's splits" in texts["datasheet.md"]
    assert texts["model_card.md"].startswith("# my run\n")
    assert "python -m agejax.predict --workdir='my run' photo.jpg" in texts["model_card.md"]
    assert "`python -m agejax.main --config='my run.py'`" in texts["model_card.md"]
    assert "This text: `python -m agejax.papers --workdir=RUN`" in texts["model_card.md"]
    for name, text in texts.items():
        assert str(tmp_path) not in text, name
        assert not re.search(r"\{\w*\}", text), name

    other = tmp_path / "other"
    shutil.copytree(faces, other)
    next(other.iterdir()).unlink()
    assert run_command(papers.main, [*arguments, f"--source={other}"]) == 2
    assert "is not the data that" in capsys.readouterr().err
