"""An audit finds all planted faults and no others, and its page is self-contained."""

import html.parser
import json
import shutil

import cv2
import numpy as np
import pytest
from test_sources import photo

from agejax import files
from agejax.auditing import audit as auditing
from agejax.data import audit
from agejax.data.sources import Source
from agejax.process.command import run_command
from agejax.reporting import audit_figures, audit_page

N, S = 40, 64


def face(i: int, size: int, contrast: float = 1.0, brightness: float = 128.0) -> np.ndarray:
    """A noise photo with texture, which is not an outlier, uint8 [size, size, 3]."""
    texture = np.random.default_rng(i).normal(0, 12, (size, size, 1))
    pixels = (photo(i, size) - 128.0) * contrast + brightness + texture
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source() -> Source:
    """Noise photos, with a few faults."""
    rng = np.random.default_rng(0)
    images = np.stack([face(i, S) for i in range(N)])
    groups = np.arange(N)
    age = rng.integers(18, 60, N).astype(np.float32)
    gender, ethnicity = np.arange(N) % 2, np.arange(N) % 3
    for row, of in ((1, 0), (3, 2), (5, 4), (7, 6), (8, 6)):
        groups[row], age[row] = of, age[of]
        gender[row], ethnicity[row] = gender[of], ethnicity[of]
    images[1] = images[0]  # an exact copy
    images[3] = images[2] // 2 + 40  # a near copy, of another age and gender
    age[2:4], gender[2:4] = (20, 27), (0, 1)
    images[5] = images[4]  # an unnoticed exact copy, of another ethnicity
    groups[5], age[4:6], ethnicity[4:6] = 5, (40, 43), (0, 1)
    images[7] = images[6]  # an exact and a near copy; an unknown label is not a different label
    images[8] = cv2.GaussianBlur(images[6], (0, 0), 0.5)
    age[7], gender[8] = np.nan, -1
    images[20], images[21] = 128, 0
    images[22], images[23] = face(22, S, 0.3, 25), face(23, S, 0.3, 235)
    images[24] = cv2.GaussianBlur(images[24], (0, 0), 6)
    images[25] = images[25].mean(axis=2, keepdims=True)
    age[26], age[27] = 116, -2
    ids = np.array([f"{i}.jpg" for i in range(N)], "U40")
    ids[3] = '<img src=x> & "3".jpg'
    labels = {"age": age, "gender": gender, "ethnicity": ethnicity}
    names = {"gender": ("male", "female"), "ethnicity": ("A", "B", "C")}
    skipped = ("a: b.jpg: no age", "c.jpg: no age", "d.jpg: cannot be decoded")
    return Source("made", images, labels, ids, groups, names, "f00", skipped)


@pytest.fixture(scope="module")
def report(source) -> dict:
    ways = {
        "files": {"train": np.array([0, 2, 4, 6, 30, 31]), "val": np.array([1, 8, 32]),
                  "test": np.array([3, 5, 31, 33])},
        "clean": {"train": np.arange(0, 20), "test": np.arange(20, 40)},
    }  # fmt: skip
    return json.loads(json.dumps(files.clean(auditing.audit(source, ways))))


def test_files_that_are_no_use_are_listed_by_reason(report):
    assert report["skipped"]["n"] == 3
    assert report["skipped"]["reasons"] == {"no age": 2, "cannot be decoded": 1}
    assert report["skipped"]["files"][0] == "a: b.jpg: no age"


def test_duplicates_are_found_exact_and_near(report):
    found = dict(report["duplicates"])
    listed = {tuple(group["ids"]): group["exact"] for group in found.pop("listed")}
    near = '<img src=x> & "3".jpg'
    assert listed == {
        ("0.jpg", "1.jpg"): True,
        ("2.jpg", near): False,
        ("4.jpg", "5.jpg"): True,
        ("6.jpg", "7.jpg", "8.jpg"): False,
    }
    assert found == {
        "groups": 4, "images": 9, "exact": {"groups": 2, "images": 4},
        "near": {"groups": 2, "images": 5}, "sizes": {"2": 3, "3": 1},
    }  # fmt: skip


def test_conflicts_are_counted_and_listed_worst_first(report):
    found = dict(report["conflicts"])
    listed = found.pop("listed")
    assert found == {"groups": 2, "age": 2, "age_over_5_years": 1, "gender": 1, "ethnicity": 1}
    assert [group["years_apart"] for group in listed] == [7, 3]
    assert listed[0]["age"] == [20, 27]
    assert listed[0]["gender"] == ["male", "female"]
    assert listed[1]["ids"] == ["4.jpg", "5.jpg"]
    assert listed[1]["ethnicity"] == ["A", "B"]


def test_leaks_between_any_two_splits(report):
    leaks = report["leakage"]["files"]
    assert leaks["splits"] == {"train": 6, "val": 3, "test": 4}
    assert leaks["groups"] == 5
    pairs = {tuple(pair["splits"]): pair for pair in leaks["pairs"]}
    train_val = pairs["train", "val"]
    assert (train_val["groups"], train_val["exact"], train_val["shared"]) == (2, 1, 0)
    assert train_val["images"] == {"train": 2, "val": 2}
    assert train_val["listed"][1] == {"train": ["6.jpg"], "val": ["8.jpg"]}
    train_test = pairs["train", "test"]
    assert (train_test["groups"], train_test["exact"], train_test["shared"]) == (3, 2, 1)
    assert pairs["val", "test"]["groups"] == 0
    assert report["leakage"]["clean"]["groups"] == 0


def test_outliers_are_found_and_nothing_else(report):
    found = {kind: row["ids"] for kind, row in report["outliers"].items()}
    assert found == {
        "implausible age": ["26.jpg", "27.jpg"],
        "nearly uniform": ["20.jpg", "21.jpg"],
        "dark": ["22.jpg"],
        "bright": ["23.jpg"],
        "blurred": ["24.jpg"],
        "greyscale": ["25.jpg"],
    }


def test_the_distribution_counts_everybody(source, report):
    shown = report["distribution"]
    assert shown["known"] == {"age": N - 1, "gender": N - 1, "ethnicity": N}
    assert sum(map(sum, shown["table"].values())) == N - 1  # -2 years is in no decade
    women = (source.labels["gender"] == 1) & (source.labels["ethnicity"] == 2)
    twenties = source.labels["age"] // 10 == 2
    assert shown["table"]["female C"][2] == (women & twenties).sum()
    assert sum(shown["table"]["unknown"]) == 1
    men = source.labels["age"][source.labels["gender"] == 0]
    counts, _ = np.histogram(men[men >= 0], shown["edges"])
    assert shown["histograms"]["gender"]["male"] == counts.tolist()


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects the page's references."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.references, self.alts, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.references += [v for k, v in given.items() if k in ("src", "href", "srcset", "data")]
        if tag == "img":
            self.alts.append(given.get("alt", ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_says_what_its_charts_show(report):
    text = audit_page.audit(report, audit_figures.draw(report))
    page = Page(text)
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert len(page.alts) == 4
    assert all(len(alt) > 40 for alt in page.alts)
    assert "female" in page.alts[2]
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert '<img src=x> & "3".jpg' in page.text  # a file's name is not markup
    assert page.tags.count("img") == 4


def test_data_without_labels_or_duplicates_is_audited_too():
    n = 12
    labels = {
        "age": np.full(n, np.nan, np.float32), "gender": np.full(n, -1), "ethnicity": np.full(n, -1)
    }  # fmt: skip
    images = np.stack([face(i, 200) for i in range(n)])
    ids = np.array([f"{i}.jpg" for i in range(n)])
    bare = Source("bare", images, labels, ids, np.arange(n), {}, "", ())
    report = files.clean(auditing.audit(bare, {}))
    assert report["duplicates"]["groups"] == report["conflicts"]["groups"] == 0
    assert not any(row["n"] for row in report["outliers"].values())
    charts = audit_figures.draw(report)
    assert not charts
    assert "No splits were given" in Page(audit_page.audit(report, charts)).text
    assert "12 images" in auditing.summary(report)


def test_the_command_writes_its_files(faces, cache, tmp_path, capsys):
    folder = tmp_path / "UTKFace"
    shutil.copytree(faces, folder)
    chips = sorted(path.name for path in folder.iterdir())
    _, rest = chips[0].split("_", 1)
    shutil.copy(folder / chips[0], folder / f"99_{rest}")  # a copy of another age
    shutil.copy(folder / chips[1], folder / "12_1_2017.jpg.chip.jpg")
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("\n".join([*chips[:50], "nobody.jpg"]))
    test.write_text("\n".join([*chips[50:], f"UTKFace/99_{rest}"]))
    argv = ["audit", "--dataset=utkface", f"--source={folder}", f"--cache-dir={cache}",
            f"--split-file=train={train}", "--split-file", f"test={test}", "--image-size=32",
            "--fraction=train=.8", "--fraction=test=.2", f"--output={tmp_path}/out"]  # fmt: skip
    assert run_command(audit.main, argv) == 0
    report = json.loads((tmp_path / "out/audit.json").read_text())
    assert report["images"] == 97
    assert report["skipped"]["n"] == 1
    exact = [set(g["ids"]) for g in report["duplicates"]["listed"] if g["exact"]]
    assert exact == [{chips[0], f"99_{rest}"}]
    assert report["leakage"]["files"]["pairs"][0]["exact"] == 1
    assert report["leakage"]["fractions, duplicates kept together"]["groups"] == 0
    assert "1 of 51 names" in report["notes"][0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "index.html"}
    said = capsys.readouterr().out
    assert "97 images, 1 files skipped" in said
    assert "1 of 51 names" in said
    Page((tmp_path / "out/index.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--dataset=utkfce"], "did you mean 'utkface'"),
        (["--source=/nowhere"], "/nowhere does not exist"),
        (["--split-file=train"], "NAME=VALUE"),
        (["--split-file=a=x.txt", "--split-file=a=y.txt"], "'a' is given twice"),
        (["--split-file=train=/nowhere.txt"], "/nowhere.txt cannot be read"),
        (["--split-file=train=EMPTY"], "names no image"),
        (["--fraction=train=much"], "write train=0.8"),
        (["--fraction=train=.8", "--fraction=test=.5"], "must lie above 0 and sum to at most 1"),
        (["--option=colour=red"], "unknown key 'colour'"),
        (["--image-size=0"], "image_size"),
        (["--output=EMPTY"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line(faces, cache, tmp_path, capsys, arguments, match):
    (tmp_path / "empty.txt").write_text("\n")
    given = [text.replace("EMPTY", str(tmp_path / "empty.txt")) for text in arguments]
    usual = [f"--source={faces}", f"--cache-dir={cache}", "--image-size=32",
             f"--output={tmp_path}/out"]  # fmt: skip
    assert run_command(audit.main, ["audit", *usual, *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("agejax: error: ")
    assert match in error
    assert not (tmp_path / "out/audit.json").exists()


def test_real_faces(real_utkface, tmp_path, capsys):
    archive, cache = real_utkface
    splits = archive.parent / "splits"
    files = [f"--split-file={k}={splits}/coral_{k}.txt" for k in ("train", "test")]
    argv = ["audit", f"--source={archive}", f"--cache-dir={cache}", "--image-size=32", *files,
            f"--output={tmp_path}"]  # fmt: skip
    assert run_command(audit.main, argv) == 0
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["duplicates"]["groups"] > 500
    assert report["conflicts"]["age_over_5_years"] > 100
    assert report["leakage"]["files"]["groups"] > 100
    assert report["skipped"]["n"] == 2
    assert not report["outliers"]["nearly uniform"]["n"]
    assert (tmp_path / "index.html").stat().st_size < 1_000_000
    assert "share" in capsys.readouterr().out
