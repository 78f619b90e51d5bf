"""Small copies of the exact layouts of public data sets, complete and broken."""

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
from agejax.data.builders import archives, base, cells, matlab
from agejax.errors import DAMAGE, UserError

AAF = pathlib.Path(__file__).parents[2] / "shared/data/aaf/AAF_chips.tar.gz"


def packed(files, path):
    """Like `pack`, with an image's number in place of its bytes."""
    return pack({k: jpeg(v) if isinstance(v, int) else v for k, v in files.items()}, path)


def read(name, source, **options):
    """({id: face}, skipped) as the builder returns them."""
    builder = builders.find(name)(source=source, data_dir="/nowhere", **options)
    return {face.id: face for face in builder.faces()}, builder.skipped


def load(name, files, folder, kind="x.zip", **options):
    """The source that a run would use."""
    path = str(packed(files, folder / kind))
    arguments = {"image_size": 8, "cache_dir": str(folder / "cache"), "options": options}
    return sources.load(name, path, **arguments)


def csv(*lines):
    return "\n".join(lines).encode()


APPA = "appa-real-release"
APPA_FILES = {
    # A tar gives images before the tables that describe them.
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
    assert any("000002.jpg_face.jpg: x is not an age" in line for line in skipped)
    assert "train/000009.jpg: no such face" in skipped


def test_appa_real_may_take_the_apparent_age(tmp_path):
    faces, _ = read("appa_real", packed(APPA_FILES, tmp_path / "x"), target="apparent")
    assert faces["train/000000.jpg"].age == 5.05
    with pytest.raises(UserError, match="'guessed' is not one of real, apparent"):
        read("appa_real", tmp_path / "x", target="guessed")
    broken = {f"{APPA}/gt_avg_train.csv": csv("file_name,age", "000000.jpg,4")}
    with pytest.raises(UserError, match="no column apparent_age_avg, apparent_age_std, real_age"):
        read("appa_real", packed(broken, tmp_path / "y.zip"))
    with pytest.raises(UserError, match="no gt_avg_train"):
        read("appa_real", packed({"train/1.jpg_face.jpg": 1}, tmp_path / "z.zip"))


def test_official_splits_reach_the_run(tmp_path):
    source = load("appa_real", APPA_FILES, tmp_path)
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
    for folder in ("aglined faces", "aligned faces"):
        (tmp_path / folder).mkdir()
        release = {
            f"{root}/original images/00000A02.jpg": 10,
            f"{root}/original images/07381A80.jpg": 12,
            f"{root}/{folder}/00000A02.jpg": 11,
            f"{root}/{folder}/07381A80.jpg": 13,
            f"{root}/image sets/train.txt": b"00000A02 0\n\n",
            f"{root}/image sets/val.txt": b"07381A80.jpg 1\r\n00009A09 0",
        }
        for kind in ("x.zip", "x.tar.gz", "x"):
            faces, skipped = read("aaf", packed(release, tmp_path / folder / kind))
            assert faces["00000A02.jpg"].image == jpeg(11)
            assert {k: f.split for k, f in faces.items()} == {
                "00000A02.jpg": "train",
                "07381A80.jpg": "val",
            }
            assert not skipped
    source = load("aaf", release, tmp_path)
    assert {k: source.ids[rows].tolist() for k, rows in splits.official(source).items()} == {
        "train": ["00000A02.jpg"],
        "val": ["07381A80.jpg"],
    }


def test_a_second_image_of_a_name_is_skipped_and_listed(tmp_path):
    for name, file in (
        ("aaf", "00000A02.jpg"),
        ("agedb", "0_A_35_f.jpg"),
        ("fg_net", "001A02.JPG"),
    ):
        source = load(name, {f"a/{file}": 1, f"b/{file}": 2}, tmp_path, f"{name}.zip")
        assert source.ids.tolist() == [file]
        assert source.skipped == (f"{file}: a second image with this name",)


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
    assert sorted(skipped) == [
        "1_Maria_Callas_121_f.jpg: 121 is not an age",
        "2_JohnWayne_35_x.jpg: not named [number]_[name]_[age]_[m|f].jpg",
    ]
    more = {"AgeDB/4_JohnWayne_50_m.jpg": 5}
    source = load("agedb", files | more, tmp_path)
    assert sorted(source.labels["gender"]) == [0, 0, 1, 1]
    johns = source.groups[[("JohnWayne" in name) for name in source.ids]]
    assert len(set(johns)) == 1
    assert len(set(source.groups)) == 3
    files = {"FGNET/images/001A02.JPG": 0, "FGNET/images/001A43a.JPG": 1, "FGNET/images/x.JPG": 2}
    faces, skipped = read("fg_net", packed(files, tmp_path / "FGNET.zip"))
    assert {k: (f.age, f.group) for k, f in faces.items()} == {
        "001A02.JPG": (2, "001"),
        "001A43a.JPG": (43, "001"),
    }
    assert skipped == ["x.JPG: not named [subject]A[age].JPG"]
    source = load("fg_net", files, tmp_path, "fg.zip")
    assert len(set(source.groups)) == 1
    assert (source.labels["gender"] == -1).all()


FAIRFACE_IMAGES = {"train/1.jpg": 1, "train/2.jpg": 2, "val/1.jpg": 3, "val/9.jpg": 4}
FAIRFACE_TABLES = {
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
FAIRFACE = "fairface-img-margin025-trainval"


@pytest.mark.parametrize("images", ["fairface", f"fairface/{FAIRFACE}", f"fairface/{FAIRFACE}.zip"])
def test_fairface_as_downloaded_or_unpacked(images, tmp_path):
    """The source is the folder of everything, or that of the images with the tables beside it."""
    folder = packed(FAIRFACE_TABLES, tmp_path / "fairface")
    packed(FAIRFACE_IMAGES, tmp_path / images)
    for source in {folder, tmp_path / images}:
        faces, _ = read("fairface", source)
        assert list(faces) == ["train/1.jpg", "val/1.jpg"]


def test_fairface(tmp_path):
    source = packed(FAIRFACE_IMAGES | FAIRFACE_TABLES, tmp_path / "fairface.tar.gz")
    faces, skipped = read("fairface", source)
    assert {k: (f.age, f.gender, f.ethnicity, f.split) for k, f in faces.items()} == {
        "train/1.jpg": (54.5, 0, 2, "train"),
        "val/1.jpg": (76.0, 1, 6, "val"),
    }
    assert sorted(skipped) == [
        "train/2.jpg: an unknown label in '200', 'Male', 'East Asian'",
        "train/3.jpg: no such image",
        "val/9.jpg: no row in fairface_label_*.csv",
    ]
    loaded = load("fairface", FAIRFACE_IMAGES | FAIRFACE_TABLES, tmp_path, age="none")
    assert np.isnan(loaded.labels["age"]).all()
    assert len(loaded.label_names["ethnicity"]) == 7
    assert set(splits.official(loaded)) == {"train", "val"}
    with pytest.raises(UserError, match="'oldest' is not one of middle, none"):
        read("fairface", source, age="oldest")
    with pytest.raises(UserError, match=r"no fairface_label_train\.csv .* in it or beside it"):
        read("fairface", packed(FAIRFACE_IMAGES, tmp_path / "bare.zip"))


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
        "17/a.jpg": (0, "A"),
        "17/b.jpg": (1, "B"),
        "18/c.jpg": (-1, "C"),
    }
    # Born on 1 January, photographed in the middle of 2000.
    np.testing.assert_allclose([f.age for f in faces.values()], [40.5, 30.5, 20.5], atol=0.01)
    assert sorted(skipped) == ["18/d.jpg: no clear face", "19/e.jpg: an impossible age"]
    source = load("imdb_wiki", files | {"wiki_crop/20/f.jpg": 10}, tmp_path)
    assert sorted(source.ids) == ["17/a.jpg", "17/b.jpg", "18/c.jpg"]
    assert sorted(source.labels["gender"]) == [-1, 0, 1]
    assert "20/f.jpg: no row in the .mat" in source.skipped
    seconds = wiki(second_face_score=np.array([1.2, np.nan, np.nan, np.nan, np.nan]))
    files = images | {"wiki_crop/wiki.mat": seconds}
    faces, skipped = read("imdb_wiki", packed(files, tmp_path / "x.zip"), min_face_score=2.0)
    assert list(faces) == ["17/b.jpg"]
    assert skipped == [
        "17/a.jpg: a second face",
        "18/c.jpg: no clear face",
        "18/d.jpg: no such image",
        "19/e.jpg: no such image",
    ]
    whole, ragged = wiki(), wiki(name=np.array([["A"]], object))
    for content in (b"no table", b"", ragged, *(whole[: len(whole) * i // 20] for i in range(20))):
        with pytest.raises(UserError, match="not a readable IMDB-WIKI table"):
            read("imdb_wiki", packed({"wiki_crop/wiki.mat": content}, tmp_path / "y.zip"))
    with pytest.raises(UserError, match=r"no imdb\.mat or wiki\.mat"):
        read("imdb_wiki", packed(images, tmp_path / "z.zip"))


@pytest.mark.parametrize("version", ["6.1_SOL2", "6.5.1_GLNX86", "7.1_GLNX86", "7.4_GLNX86"])
def test_a_struct_of_matlab_itself_is_read_as_scipy_does(version):  # in either order of bytes
    path = pathlib.Path(scipy.io.matlab.__file__).with_name("tests") / "data"
    data = (path / f"teststruct_{version}.mat").read_bytes()
    expected = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)["teststruct"]
    found = matlab.read(data, "teststruct", ("stringfield", "doublefield"))
    assert found["stringfield"] == expected["stringfield"].item()
    np.testing.assert_array_equal(found["doublefield"], expected["doublefield"].item())
    with pytest.raises(DAMAGE):
        matlab.read(data, "other", ())


def test_a_table_of_matlab_with_any_code_wrong_ends_in_no_crash():
    whole, refused = wiki(), 0
    for at in range(matlab.HEADER, len(whole), 4):
        for code in (0, 8, 20, 2**16 - 1, 2**31):
            data = whole[:at] + code.to_bytes(4, "little") + whole[at + 4 :]
            try:
                matlab.read(data, "wiki", ("dob", "full_path"))
            except DAMAGE:
                refused += 1
    assert refused > 200


def test_a_table_of_matlab_that_unpacks_to_far_more_than_its_size_is_refused():
    columns = {"dob": np.zeros(archives.ALWAYS // 8 + 1)}
    scipy.io.savemat(out := io.BytesIO(), {"wiki": columns}, do_compression=True)
    with pytest.raises(ValueError, match="far more than its size"):
        matlab.read(out.getvalue(), "wiki", ["dob"])


def test_imdb_wiki_counts_what_it_does_not_list_and_survives_odd_cells(tmp_path):
    files = {f"wiki_crop/30/{i}.jpg": i for i in range(8)}
    files["wiki_crop/17/a.jpg"] = 20
    files["wiki_crop/17/b.jpg"] = 21
    odd = {
        "name": np.array([[np.array([])], [np.array([])], ["C"], ["D"], ["E"]], object).T,
        "photo_taken": np.array([2000, 2001, np.nan, np.inf, 99999]),
        "second_face_score": np.array([np.nan, np.nan, -0.5, np.nan, np.nan]),
        "face_score": np.array([2.0, 2.0, 2.0, np.inf, 2.0]),
    }
    files["wiki_crop/wiki.mat"] = wiki(**odd)
    more = {f"wiki_crop/{path}": 30 for path in ("18/c.jpg", "18/d.jpg", "19/e.jpg")}
    faces, skipped = read("imdb_wiki", packed(files | more, tmp_path / "x.zip"))
    assert {k: f.group for k, f in faces.items()} == {"17/a.jpg": "", "17/b.jpg": ""}
    assert sorted(skipped) == [
        "18/c.jpg: a second face",
        "18/d.jpg: no clear face",
        "19/e.jpg: an impossible age",
        *(f"30/{i}.jpg: no row in the .mat" for i in range(3)),
        "and 5 more: no row in the .mat",
    ]


def test_a_table_may_be_larger_than_an_image_but_not_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1)
    source = packed(LABELLED, tmp_path / "x.zip")
    _, skipped = read("image_folder", source, labels="labels.csv")
    assert sum("larger than" in line for line in skipped) == 5
    monkeypatch.setattr(archives, "MAX_TABLE", 1)
    with pytest.raises(UserError, match=r"labels\.csv is larger than"):
        read("image_folder", source, labels="labels.csv")


def test_the_cells_of_a_table_have_a_limit_even_where_its_rows_leave_them_out(monkeypatch):
    monkeypatch.setattr(base, "MAX_CELLS", 6)
    data = csv("file,age,gender", "a", "b")
    assert len(list(base.table(data, "x.csv", ()))) == 2
    with pytest.raises(UserError, match="has over 6 cells; leave out columns or rows"):
        list(base.table(data + b"\nc", "x.csv", ()))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_may_end_its_lines_as_any_system_does(end):
    data = csv("file,age", '"a\nb",3', "c,4").replace(b"\n", end.encode())
    assert [row["age"] for row in base.table(data, "x.csv", ("file",))] == ["3", "4"]


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
        "images/c.jpg: 130 is not an age",
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
    unlabelled = sources.load("image_folder", path, options={"labels": "none"}, **arguments)
    assert len(unlabelled.ids) == 5
    assert np.isnan(unlabelled.labels["age"]).all()
    assert (unlabelled.labels["gender"] == -1).all()
    assert unlabelled.official is None


def classes(tmp_path, column, *cells, **options):
    """(class numbers, names) of the values `cells` in `column`."""
    rows = [f"{i}.jpg,{cell}" for i, cell in enumerate(cells)]
    files = {f"{i}.jpg": i for i in range(len(cells))}
    files["labels.csv"] = csv(f"File,{column}", *rows)
    source = load("image_folder", files, tmp_path, labels="labels.csv", **options)
    order = np.argsort(source.ids)
    return source.labels[column][order].tolist(), source.label_names.get(column)


def test_classes_are_names_or_numbers(tmp_path):
    names = ("male", "female")
    assert classes(tmp_path, "gender", "female", "Male", "", "1", "0.0", "-1") == (
        [1, 0, -1, 1, 0, -1],
        names,
    )
    assert classes(tmp_path, "ethnicity", "3", "10", "", "0") == (
        [3, 10, -1, 0],
        tuple(str(i) for i in range(11)),
    )
    assert classes(tmp_path, "ethnicity", "south", "north", "") == ([1, 0, -1], ("north", "south"))
    given = {"ethnicity_names": ("south", "north")}
    assert classes(tmp_path, "ethnicity", "south", "1", "", **given) == (
        [0, 1, -1],
        given.popitem()[1],
    )
    assert classes(tmp_path, "ethnicity", "3", "1", "2.0") == ([2, 0, 1], ("1", "2", "3"))
    assert classes(tmp_path, "gender", "M", "f", "Woman") == ([0, 1, 1], names)
    with pytest.raises(UserError, match="'male'; set it to a list"):
        classes(tmp_path, "gender", "1", gender_names="male")


def test_a_csv_may_leave_out_the_folders_an_archive_begins_with(tmp_path):
    rows = csv("file,age", "./images/a.jpg,3", r"images\b.jpg,4", "c.jpg,5", ",6", "x/e.jpg,7")
    images = {f"faces/images/{name}.jpg": i for i, name in enumerate("abcd")}
    files = images | {"faces/labels.csv": rows}
    for kind in ("x.tar.gz", "x.zip", "x"):
        faces, skipped = read("image_folder", packed(files, tmp_path / kind), labels="labels.csv")
        assert [face.age for face in faces.values()] == [3, 4, 5]
        assert skipped == [
            "row 4 of labels.csv: no file",
            "faces/images/d.jpg: no row in labels.csv",
            "x/e.jpg: no such image",
        ]


def test_which_of_several_csv_files_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(packed({"labels.csv": csv("file,age", "a.jpg,1")}, tmp_path / "here"))
    table = csv("file,age", "a.jpg,2")
    files = {"a.jpg": 1, "labels.csv": table, "old/labels.csv": csv("file,age", "a.jpg,3")}
    faces, _ = read("image_folder", packed(files, tmp_path / "x.zip"), labels="labels.csv")
    assert faces["a.jpg"].age == 2  # inside comes before outside, the exact path before another
    twice = {"a.jpg": 1, "new/labels.csv": table, "old/labels.csv": table}
    with pytest.raises(UserError, match=r"labels\.csv is 2 times in"):
        read("image_folder", packed(twice, tmp_path / "y.zip"), labels="labels.csv")
    faces, _ = read("image_folder", packed({"a.jpg": 1}, tmp_path / "z.zip"), labels="labels.csv")
    assert faces["a.jpg"].age == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (csv("file,age"), "no rows"),
        (csv("picture,age", "a.jpg,3"), "no column file, file_name"),
        (csv("file,height", "a.jpg,3"), "none of the columns age"),
        (csv(""), "no rows"),
        (b"\xff\xfe\x00", "save it as CSV UTF-8"),
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
@pytest.mark.parametrize("name", ["aaf", "agedb", "fg_net", "utkface"])
def test_an_image_of_any_name_is_a_face_or_is_skipped(name, text):
    file = text.replace("/", "") + ".jpg"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            archives,
            "read",
            lambda _, wanted, *more, **mine: ((p, b"") for p in [file] if wanted(p)),
        )
        faces, skipped = read(name, pathlib.Path("x"))
    if archives.IMAGE.fullmatch(file):
        assert len(faces) + len(skipped) == 1
        assert all(0 <= face.age <= cells.OLDEST for face in faces.values())


@given(st.binary(max_size=60) | st.text("file,ag\n\r\"'a.j0 -1", max_size=60).map(str.encode))
def test_any_csv_is_read_or_is_one_clear_line(data):
    contents = {"a.jpg": b"", "labels.csv": data, "good.csv": b"file,age\n" + data}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            archives,
            "read",
            lambda _, wanted, *more, **mine: (f for f in contents.items() if wanted(f[0])),
        )
        for labels in ("labels.csv", "good.csv"):
            message = ""
            try:
                faces, skipped = read("image_folder", pathlib.Path("x"), labels=labels)
            except UserError as error:
                message = str(error)
            assert "\n" not in message
            assert message or faces or skipped


@pytest.mark.parametrize("name", [n for n in builders.TABLE if n != "procedural_faces"])
def test_every_data_set_says_what_to_get(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"--config\.data\.source=PATH") as error:
        builders.find(name).locate(None)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="/no/such does not exist"):
        builders.find(name).locate("/no/such")


def test_an_edited_csv_outside_of_the_source_is_read_again(tmp_path):
    source = packed({"a.jpg": 1, "b.jpg": 2}, tmp_path / "folder")
    table = tmp_path / "ages.csv"
    for age in (30, 40):
        table.write_bytes(csv("file,age", f"a.jpg,{age}", "b.jpg,5"))
        loaded = sources.load(
            "image_folder",
            str(source),
            image_size=8,
            cache_dir=str(tmp_path / "cache"),
            options={"labels": str(table)},
        )
        assert sorted(loaded.labels["age"]) == [5, age]
