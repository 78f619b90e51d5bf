"""Small copies of the exact layouts of public data sets, whole and broken."""

import datetime
import io
import pathlib

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from packing import jpeg, pack

from agejax.data import builders, sources, splits
from agejax.data.builders import aaf, agedb, fg_net, utkface
from agejax.errors import UserError

AAF = pathlib.Path(__file__).parents[2] / "shared/data/aaf/AAF_chips.tar.gz"


def packed(files, path):
    """As `pack`, with the number of a picture for its bytes."""
    return pack({k: jpeg(v) if isinstance(v, int) else v for k, v in files.items()}, path)


def read(name, source, **options):
    """({id: face}, skipped) of the builder itself."""
    builder = builders.find(name)(source=source, data_dir="/nowhere", **options)
    return {face.id: face for face in builder.faces()}, builder.skipped


def csv(*lines):
    return "\n".join(lines).encode()


APPA = "appa-real-release"
APPA_FILES = {
    # A tar gives images before the tables that say what they are.
    **{f"{APPA}/train/00000{i}.jpg": 100 + i for i in range(4)},
    **{f"{APPA}/train/00000{i}.jpg_face.jpg": i for i in range(4)},
    f"{APPA}/valid/000007.jpg_face.jpg": 7,
    f"{APPA}/test/000008.jpg_face.jpg": 8,
    f"{APPA}/gt_avg_train.csv": csv(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age",
        "000000.jpg,36,5.05,3.01,4",
        "000001.jpg,38,19.0,2.5,18",
        "000002.jpg,38,x,2.5,18",
        "000009.jpg,38,30.0,2.5,31",
    ),
    f"{APPA}/gt_avg_valid.csv": csv(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age",
        "000007.jpg,36,50.5,4.5,55",
    ),
    f"{APPA}/gt_avg_test.csv": csv(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age",
        "000008.jpg,36,70.25,6.5,69",
    ),
    f"{APPA}/gt_train.csv": csv("file_name,age,worker_age", "000000.jpg,5,30"),
}
APPA_EXTRA = {
    f"{APPA}/allcategories_train.csv": csv(
        "file,gender,race,makeup,time,happiness",
        "000000.jpg,female,asian,nomakeup,modernpicture,happy",
        "000001.jpg,male,caucasian,nomakeup,modernpicture,neutral",
    )
}


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip", "folder"])
def test_appa_real(kind, tmp_path):
    faces, skipped = read("appa_real", packed(APPA_FILES | APPA_EXTRA, tmp_path / kind))
    assert {k: (f.age, f.apparent_age, f.split) for k, f in faces.items()} == {
        "train/000000.jpg": (4, 5.05, "train"),
        "train/000001.jpg": (18, 19.0, "train"),
        "valid/000007.jpg": (55, 50.5, "val"),
        "test/000008.jpg": (69, 70.25, "test"),
    }
    assert faces["train/000000.jpg"].image == jpeg(0)  # the face, not the photo
    assert (faces["train/000000.jpg"].gender, faces["train/000000.jpg"].ethnicity) == (1, 1)
    assert (faces["test/000008.jpg"].gender, faces["test/000008.jpg"].ethnicity) == (-1, -1)
    assert faces["valid/000007.jpg"].apparent_age_std == 4.5
    assert len(skipped) == 3
    assert any("000003.jpg_face.jpg: no row" in line for line in skipped)
    assert any("000002.jpg_face.jpg: could not convert" in line for line in skipped)
    assert "train/000009.jpg: no such face" in skipped


def test_appa_real_may_take_the_apparent_age(tmp_path):
    faces, _ = read("appa_real", packed(APPA_FILES, tmp_path / "x"), target="apparent")
    assert faces["train/000000.jpg"].age == 5.05
    with pytest.raises(UserError, match="'guessed' is not real or apparent"):
        read("appa_real", tmp_path / "x", target="guessed")
    broken = {f"{APPA}/gt_avg_train.csv": csv("file_name,age", "000000.jpg,4")}
    with pytest.raises(UserError, match="no column apparent_age_avg, apparent_age_std, real_age"):
        read("appa_real", packed(broken, tmp_path / "y.zip"))
    with pytest.raises(UserError, match="no gt_avg_train"):
        read("appa_real", packed({"train/1.jpg_face.jpg": 1}, tmp_path / "z.zip"))


def test_official_splits_reach_the_run(tmp_path):
    source = sources.load(
        "appa_real",
        str(packed(APPA_FILES, tmp_path / "x.zip")),
        image_size=8,
        cache_dir=str(tmp_path / "cache"),
    )
    assert source.label_names["ethnicity"] == ("Caucasian", "Asian", "Afroamerican")
    found = {k: sorted(source.ids[rows]) for k, rows in splits.official(source).items()}
    assert found == {
        "train": ["train/000000.jpg", "train/000001.jpg"],
        "val": ["valid/000007.jpg"],
        "test": ["test/000008.jpg"],
    }
    np.testing.assert_allclose(np.sort(source.labels["apparent_age_std"]), [2.5, 3.01, 4.5, 6.5])


def test_aaf_chips_and_the_release(tmp_path):
    chips = {"AAF/00000A02.jpg": 0, "AAF/07380A30.jpg": 1, "AAF/07381A80.jpg": 2, "AAF/a.jpg": 3}
    faces, skipped = read("aaf", packed(chips, tmp_path / "chips.tar.gz"))
    assert {k: (f.age, f.gender) for k, f in faces.items()} == {
        "00000A02.jpg": (2, 1),
        "07380A30.jpg": (30, 1),
        "07381A80.jpg": (80, 0),
    }
    assert skipped == ["a.jpg: not named [id]A[age].jpg"]
    root = "All-Age-Faces Dataset"
    release = {
        f"{root}/original images/00000A02.jpg": 10,
        f"{root}/aglined faces/00000A02.jpg": 11,
        f"{root}/image sets/train.txt": b"00000A02.jpg 1",
    }
    faces, skipped = read("aaf", packed(release, tmp_path / "release.zip"))
    assert faces["00000A02.jpg"].image == jpeg(11)
    assert not skipped


@pytest.mark.skipif(not AAF.exists(), reason=f"{AAF} is not there")
def test_the_real_chips_of_aaf():
    faces, skipped = read("aaf", AAF)
    assert len(faces) == 8000
    assert not skipped
    ages = np.array([face.age for face in faces.values()])
    assert (ages.min(), ages.max()) == (2, 80)
    assert {face.gender for face in faces.values()} == {0, 1}


def test_agedb_and_fg_net_keep_people_together(tmp_path):
    files = {
        "AgeDB/0_MariaCallas_35_f.jpg": 0,
        "AgeDB/10000_GlennClose_62_f.jpg": 1,
        "AgeDB/1_Maria_Callas_121_f.jpg": 2,
        "AgeDB/2_JohnWayne_35_x.jpg": 3,
        "AgeDB/3_JohnWayne_40_m.jpg": 4,
    }
    faces, skipped = read("agedb", packed(files, tmp_path / "AgeDB.zip"))
    assert {k: (f.age, f.gender, f.group) for k, f in faces.items()} == {
        "0_MariaCallas_35_f.jpg": (35, 1, "mariacallas"),
        "10000_GlennClose_62_f.jpg": (62, 1, "glennclose"),
        "3_JohnWayne_40_m.jpg": (40, 0, "johnwayne"),
    }
    assert len(skipped) == 2
    files = {"FGNET/images/001A02.JPG": 0, "FGNET/images/001A43a.JPG": 1, "FGNET/images/x.JPG": 2}
    faces, skipped = read("fg_net", packed(files, tmp_path / "FGNET.zip"))
    assert {k: (f.age, f.group) for k, f in faces.items()} == {
        "001A02.JPG": (2, "001"),
        "001A43a.JPG": (43, "001"),
    }
    assert skipped == ["x.JPG: not named [subject]A[age].JPG"]


def test_fairface(tmp_path):
    files = {
        "fairface-img-margin025-trainval/train/1.jpg": 1,
        "fairface-img-margin025-trainval/train/2.jpg": 2,
        "fairface-img-margin025-trainval/val/1.jpg": 3,
        "fairface-img-margin025-trainval/val/9.jpg": 4,
        "fairface_label_train.csv": csv(
            "file,age,gender,race,service_test",
            "train/1.jpg,50-59,Male,East Asian,True",
            "train/2.jpg,200,Male,East Asian,True",
            "train/3.jpg,0-2,Male,White,True",
        ),
        "fairface_label_val.csv": csv(
            "file,age,gender,race,service_test",
            "val/1.jpg,more than 70,Female,Latino_Hispanic,False",
        ),
    }
    source = packed(files, tmp_path / "fairface")
    faces, skipped = read("fairface", source)
    assert {k: (f.age, f.gender, f.ethnicity, f.split) for k, f in faces.items()} == {
        "train/1.jpg": (54.5, 0, 2, "train"),
        "val/1.jpg": (76.0, 1, 6, "val"),
    }
    assert len(skipped) == 3
    faces, _ = read("fairface", source, age="none")
    assert all(np.isnan(face.age) for face in faces.values())


def wiki(**changes):
    """wiki.mat as published: a struct of rows, MATLAB day numbers of birth."""
    born = [datetime.date(y, 1, 1).toordinal() + 366 for y in (1960, 1970, 1980, 1990, 2020)]
    paths = ["17/a.jpg", "17/b.jpg", "18/c.jpg", "18/d.jpg", "19/e.jpg"]
    columns = {
        "dob": np.array(born, np.int32),
        "photo_taken": np.array([2000, 2000, 2000, 2000, 2000], np.uint16),
        "full_path": np.array([[p] for p in paths], object).T,
        "gender": np.array([1.0, 0.0, np.nan, 1.0, 1.0]),
        "name": np.array([["A"], ["B"], ["C"], ["D"], ["E"]], object).T,
        "face_location": np.zeros((1, 5)),
        "face_score": np.array([2.0, 3.0, 1.5, -np.inf, 4.0]),
        "second_face_score": np.array([np.nan, np.nan, np.nan, np.nan, np.nan]),
    } | changes
    scipy.io.savemat(out := io.BytesIO(), {"wiki": columns})
    return out.getvalue()


def test_imdb_wiki(tmp_path):
    images = {f"wiki_crop/{p}": i for i, p in enumerate(["17/a.jpg", "17/b.jpg", "18/c.jpg"])}
    more = {"wiki_crop/18/d.jpg": 8, "wiki_crop/19/e.jpg": 9}
    files = images | more | {"wiki_crop/wiki.mat": wiki()}
    faces, skipped = read("imdb_wiki", packed(files, tmp_path / "wiki_crop.tar.gz"))
    assert {k: (f.gender, f.group) for k, f in faces.items()} == {
        "17/a.jpg": (0, "wiki A"),
        "17/b.jpg": (1, "wiki B"),
        "18/c.jpg": (-1, "wiki C"),
    }
    # Born on 1 January, photographed in the middle of 2000.
    np.testing.assert_allclose([f.age for f in faces.values()], [40.5, 30.5, 20.5], atol=0.01)
    assert sorted(skipped) == ["1 images: an impossible age", "1 images: no clear face"]
    seconds = wiki(second_face_score=np.array([1.2, np.nan, np.nan, np.nan, np.nan]))
    files = images | {"wiki_crop/wiki.mat": seconds}
    faces, skipped = read("imdb_wiki", packed(files, tmp_path / "x.zip"), min_face_score=2.0)
    assert list(faces) == ["17/b.jpg"]
    assert "1 images: a second face" in skipped
    for content in (b"no table", b""):
        with pytest.raises(UserError, match="no IMDB-WIKI table"):
            read("imdb_wiki", packed({"wiki_crop/wiki.mat": content}, tmp_path / "y.zip"))
    with pytest.raises(UserError, match=r"no imdb\.mat or wiki\.mat"):
        read("imdb_wiki", packed(images, tmp_path / "z.zip"))


LABELLED = {
    "images/a.jpg": 1,
    "images/b.png": 2,
    "images/c.jpg": 3,
    "images/d.jpg": 4,
    "images/e.jpg": 5,
    "labels.csv": csv(
        "\ufefffile, age, gender, ethnicity, split, group",
        "a.jpg,30,female,north,train,p1",
        "images/b.png,,male,south,test,p1",
        "c.jpg,130,male,north,train,",
        "d.jpg,40,robot,north,train,",
        "zz.jpg,1,male,north,train,",
    ),
}


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip", "folder"])
def test_an_image_folder_with_a_csv(kind, tmp_path):
    source = packed(LABELLED, tmp_path / kind)
    faces, skipped = read("image_folder", source, labels="labels.csv")
    a, b = faces.pop("images/a.jpg"), faces.pop("images/b.png")
    assert not faces
    assert (a.age, a.gender, a.ethnicity, a.split, a.group) == (30, 1, 0, "train", "p1")
    assert np.isnan(b.age)
    assert (b.gender, b.ethnicity, b.split) == (0, 1, "test")
    assert sorted(skipped) == [
        "images/c.jpg: 130 is no age",
        "images/d.jpg: gender 'robot' is not one of male, female",
        "images/e.jpg: no row in labels.csv",
        "zz.jpg: no such image",
    ]


def test_an_image_folder_end_to_end_names_its_classes(tmp_path):
    (tmp_path / "outside.csv").write_bytes(LABELLED["labels.csv"])
    arguments = {"image_size": 8, "cache_dir": str(tmp_path / "cache")}
    path = str(packed(LABELLED, tmp_path / "folder"))
    source = sources.load(
        "image_folder", path, options={"labels": str(tmp_path / "outside.csv")}, **arguments
    )
    assert source.label_names["ethnicity"] == ("north", "south")
    assert source.groups[0] == source.groups[1]  # one person
    unlabelled = sources.load("image_folder", path, **arguments)
    assert len(unlabelled.ids) == 5
    assert np.isnan(unlabelled.labels["age"]).all()
    assert (unlabelled.labels["gender"] == -1).all()
    assert unlabelled.official is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (csv("picture,age", "a.jpg,3"), "no column file, file_name"),
        (csv("file,height", "a.jpg,3"), "none of the columns age"),
        (csv(""), "no column file"),
        (b"\xff\xfe\x00", "no CSV file"),
    ],
)
def test_a_csv_that_is_of_no_use_is_one_clear_line(table, message, tmp_path):
    source = packed({"a.jpg": 1, "labels.csv": table}, tmp_path / "x.zip")
    with pytest.raises(UserError, match=message):
        read("image_folder", source, labels="labels.csv")
    with pytest.raises(UserError, match="is nowhere in"):
        read("image_folder", source, labels="other.csv")


def test_rows_that_contradict_each_other_are_skipped(tmp_path):
    table = csv("file,age", "a.jpg,3", "a.jpg,4", "b.jpg,5", "b.jpg,5")
    files = {"a.jpg": 1, "b.jpg": 2, "labels.csv": table}
    faces, skipped = read("image_folder", packed(files, tmp_path / "x.zip"), labels="labels.csv")
    assert list(faces) == ["b.jpg"]
    assert skipped == ["a.jpg: two rows with different labels"]


@given(st.text(max_size=40) | st.from_regex(r"\d{1,5}[A_]\d{1,4}[A-Za-z_]?\d*(\.jpg)?"))
def test_any_name_is_read_or_is_not(name):
    for module in (aaf, agedb, fg_net, utkface):
        if match := module.NAME.fullmatch(name):
            assert all(part is None or part for part in match.groups())


@pytest.mark.parametrize("name", [n for n in builders.TABLE if n != "procedural_faces"])
def test_every_data_set_says_what_to_get(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"--config\.data\.source=PATH") as error:
        builders.find(name).locate(None)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="/no/such does not exist"):
        builders.find(name).locate("/no/such")
