"""Data in real users' forms: each input once gave wrong data, was lost silently, or was refused.

The kinds are those of ../shared/repro; the files here are small, and nothing is trained.
"""

import ast
import io
import os
import pathlib
import unicodedata
import zipfile
import zlib

import cv2
import ml_collections
import numpy as np
import pytest
import scipy.io
from packing import jpeg, pack
from PIL import Image

from agejax.config import default
from agejax.data import builders, edits, mixture, sources, splits
from agejax.data.builders import archives, cells, pairing
from agejax.errors import UserError
from agejax.predicting.images import find_images


def read(name, source, **options):
    """({id: face}, skipped, class names) as the builder returns them."""
    builder = builders.find(name)(source=pathlib.Path(source), data_dir="/nowhere", **options)
    return {face.id: face for face in builder.faces()}, builder.skipped, builder.label_names


def load(name, source, folder, **options):
    """The source that a run would use."""
    return sources.load(
        name, str(source), image_size=32, cache_dir=str(folder / "cache"), options=options
    )


def refused(name, source, folder, **options):
    """The one line that a user sees."""
    with pytest.raises(UserError) as error:
        load(name, source, folder, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value).replace(str(folder), "")) < 500
    return str(error.value)


def csv(*lines):
    return "\n".join(lines).encode()


def table(*lines):
    """A folder's files: two images and labels.csv."""
    return {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "labels.csv": csv(*lines)}


def picture(form):
    pixels = np.random.default_rng(3).integers(0, 255, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(out := io.BytesIO(), form)
    return out.getvalue()


# ---- people on both sides of a split -------------------------------------------------------------


def crops(kind, people):
    """imdb_crop or wiki_crop as published, with two images per person."""
    folder = {"imdb": "01", "wiki": "02"}[kind]
    paths = [f"{folder}/{kind}{i}_{j}.jpg" for i in range(len(people)) for j in range(2)]
    n = len(paths)
    scipy.io.savemat(
        out := io.BytesIO(),
        {kind: {
            "dob": np.full((1, n), 720_000.0),
            "photo_taken": np.full((1, n), 2005),
            "gender": np.ones((1, n)),
            "face_score": np.full((1, n), 3.0),
            "second_face_score": np.full((1, n), np.nan),
            "full_path": np.array([paths], object),
            "name": np.array([[name for name in people for _ in range(2)]], object),
        }},
    )  # fmt: skip
    images = {f"{kind}_crop/{path}": jpeg(zlib.crc32(path.encode())) for path in paths}
    return images | {f"{kind}_crop/{kind}.mat": out.getvalue()}


PEOPLE = [f"Person {i}" for i in range(10)]


def test_a_person_of_two_parts_of_a_mixture_is_on_one_side_of_a_split(tmp_path, capsys):
    both = pack(crops("imdb", PEOPLE) | crops("wiki", [*PEOPLE[:6], *"ABCD"]), tmp_path / "both")
    parts = {
        kind: {"name": "imdb_wiki", "source": str(both / f"{kind}_crop")}
        for kind in ("imdb", "wiki")
    }
    mixed = mixture.load(
        ml_collections.ConfigDict(parts), image_size=32, cache_dir=str(tmp_path / "cache")
    )
    one = load("imdb_wiki", both, tmp_path)
    assert len(np.unique(mixed.groups)) == len(np.unique(one.groups)) == 10 + 4
    assert "6 people (or groups) are in more than one part" in capsys.readouterr().err
    # Image i of a person of imdb has the group of that person's images in wiki.
    group = dict(zip(mixed.ids.tolist(), mixed.groups.tolist(), strict=True))
    for i in range(10):
        assert (group[f"imdb/01/imdb{i}_0.jpg"] == group[f"wiki/02/wiki{i}_1.jpg"]) == (i < 6)
    for seed in range(5):
        made = splits.by_fraction(mixed, {"train": 0.6, "test": 0.4}, seed)
        assert splits.leaking_groups(mixed, made) == 0


def test_names_of_people_are_the_same_in_other_data_sets_and_numbers_are_not(tmp_path):
    files = {"agedb/0_Person1_30_m.jpg": jpeg(1), "agedb/1_Zoë Nobody_30_f.jpg": jpeg(2)}
    agedb = load("agedb", pack(files, tmp_path / "agedb.zip"), tmp_path)
    imdb = load("imdb_wiki", pack(crops("imdb", ["Person 1", "Zoe Nobody"]), tmp_path / "x.zip"),
                tmp_path)  # fmt: skip
    np.testing.assert_array_equal(np.isin(agedb.people, imdb.people), [True, True])
    person = {name: builders.find(name).person for name in ("fg_net", "morph", "agedb", "cacd")}
    assert person["fg_net"]("001") != person["morph"]("001")
    assert person["agedb"]("Jean Reno") == person["cacd"]("jean_reno") != 0
    assert person["agedb"]("") == 0


# ---- folders and archives ------------------------------------------------------------------------


def test_a_folder_that_is_a_symbolic_link_is_read_and_loops_end(tmp_path):
    chips = {f"{20 + i}_0_0_2017000{i}.jpg": jpeg(i) for i in range(4)}
    store = pack({f"deep/{name}": data for name, data in chips.items()}, tmp_path / "store")
    folder = pack({f"part1/4{name}": data for name, data in chips.items() if name < "22"},
                  tmp_path / "faces")  # fmt: skip
    (folder / "part2").symlink_to(store)
    (folder / "again").symlink_to(store / "deep")  # entered once
    (folder / "up").symlink_to(tmp_path)
    (folder / "itself").symlink_to(folder)
    (store / "back").symlink_to(folder)
    (folder / "to itself").symlink_to("to itself")
    source = load("image_folder", folder, tmp_path)
    assert len(source.ids) == 6
    found = find_images([str(folder)])
    assert [path.relative_to(folder).as_posix() for path in found] == sorted(source.ids)
    assert {name.split("/")[0] for name in source.ids.tolist()} == {"part1", "again"}
    assert len(load("utkface", folder, tmp_path).ids) == 4  # two ages of 420 are none
    (store / "deep" / "30_0_0_20170000.jpg").write_bytes(jpeg(9))  # is noticed
    assert len(load("image_folder", folder, tmp_path).ids) == 7


def test_files_of_a_folder_without_links_come_in_the_same_order_as_ever(tmp_path):
    names = ["b.jpg", "a/z.jpg", "a/b/c.jpg", "a/a.jpg", "c/x.jpg", "a.jpg"]
    folder = pack({name: jpeg(i) for i, name in enumerate(names)}, tmp_path / "x")
    expected = ["a.jpg", "b.jpg", "a/a.jpg", "a/z.jpg", "a/b/c.jpg", "c/x.jpg"]
    assert [name for name, _ in archives.read(folder)] == expected


def test_archives_in_a_folder_or_an_archive_are_named(tmp_path):
    chips = {f"{20 + i}_0_0_2017000{i}.jpg": jpeg(i) for i in range(3)}
    folder = tmp_path / "f"
    folder.mkdir()
    for k in (1, 2):
        pack(chips, folder / f"part{k}.tar.gz")
    said = refused("utkface", folder, tmp_path)
    assert (
        "it contains archives (part1.tar.gz, part2.tar.gz): name one of them as the source" in said
    )
    inner = (folder / "part1.tar.gz").read_bytes()
    said = refused("utkface", pack({"x/part1.tar.gz": inner}, tmp_path / "y.zip"), tmp_path)
    assert "it contains archives (x/part1.tar.gz)" in said
    pack(chips, folder)
    _, skipped, _ = read("utkface", folder)
    assert skipped == [f"part{k}.tar.gz: an archive in it, which is not read" for k in (1, 2)]


def windows_zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo("x")
            info.filename = name  # as an archive written on Windows has it
            archive.writestr(info, b"" if name.endswith("\\") else jpeg(i))
    return path


def test_a_zip_with_backslashes_is_read_as_one_with_slashes(tmp_path):
    names = ["UTK\\", *(f"UTK\\a\\{20 + i}_0_0_2017000{i}.jpg" for i in range(3))]
    path = windows_zip(tmp_path / "x.zip", names)
    faces, skipped, _ = read("utkface", path)
    assert [face.age for face in faces.values()] == [20, 21, 22]
    assert not skipped
    assert list(read("image_folder", path)[0]) == [name.replace("\\", "/") for name in names[1:]]
    # Where some names have a "/", a "\" is a letter like others.
    mixed = windows_zip(tmp_path / "y.zip", ["a/b.jpg", "c\\d.jpg"])
    assert list(read("image_folder", mixed)[0]) == ["a/b.jpg", "c\\d.jpg"]


@pytest.mark.parametrize("name", ["..\\{}", "a\\..\\..\\{}", "C:\\{}", "\\{}", "\\\\host\\{}"])
def test_a_zip_with_backslashes_that_lead_out_is_refused(name, tmp_path):
    path = windows_zip(tmp_path / "x.zip", ["a\\b.jpg", name.format("1_0_0_1.jpg")])
    with pytest.raises(UserError, match="points outside of it"):
        read("image_folder", path)
    hidden = windows_zip(tmp_path / "y.zip", ["a\\b.jpg", "a\\.c\\d.jpg"])
    assert list(read("image_folder", hidden)[0]) == ["a/b.jpg"]


# ---- file endings --------------------------------------------------------------------------------

NAMED = {
    "utkface": ("26_1_2_20170116184751526", 26),
    "aaf": ("00000A02", 2),
    "agedb": ("10_GlennClose_62_f", 62),
    "fg_net": ("001A43a", 43),
    "cacd": ("53_Robin_Williams_0001", 53),
    "morph": ("009055_1M54", 54),
}
FORMS = {"jpg": "JPEG", "JPG": "JPEG", "jpeg": "JPEG", "png": "PNG", "PNG": "PNG", "bmp": "BMP",
         "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF"}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_labels_in_names_are_read_whatever_the_image_type(name, tmp_path):
    stem, age = NAMED[name]
    for end, form in FORMS.items():
        source = pack({f"{stem}.{end}": picture(form)}, tmp_path / f"{end}-x")
        faces, skipped, _ = read(name, source)
        assert {k: face.age for k, face in faces.items()} == {f"{stem}.{end}": age}
        assert not skipped
    for end in ("jpg.chip.png", "chip.jpg", "JPG.chip.JPG", "png.chip.jpg"):
        if name == "utkface":
            source = pack({f"{stem}.{end}": b""}, tmp_path / end.replace(".", "-"))
            assert len(read(name, source)[0]) == 1


@pytest.mark.parametrize("end", FORMS)
def test_every_image_type_that_predict_reads_is_data_too(end, tmp_path):
    folder = pack({f"a.{end}": picture(FORMS[end])}, tmp_path / "x")
    assert [path.name for path in find_images([str(folder)])] == [f"a.{end}"]
    assert load("image_folder", folder, tmp_path).ids.tolist() == [f"a.{end}"]


def test_predict_leaves_hidden_files_out_as_data_sets_do_and_warns_of_other_pictures(
    tmp_path, capsys
):
    names = (".hidden.jpg", "._b.jpg", "__MACOSX/._a.jpg", ".thumbs/a.jpg", "a.jpg", "c.GIF", "d")
    folder = pack({name: jpeg(i) for i, name in enumerate(names)}, tmp_path / ".home" / "x")
    assert [path.name for path in find_images([str(folder)])] == ["a.jpg"]
    assert "warning: skipped 1 file ending in .gif: convert to one of .jpg" in (
        capsys.readouterr().err
    )
    assert load("image_folder", folder, tmp_path).ids.tolist() == ["a.jpg"]


def test_data_sets_with_tables_find_images_of_other_types(tmp_path):
    appa = {
        "train/000000.jpg_face.png": jpeg(1),
        "train/000001_face.JPG": jpeg(2),
        "gt_avg_train.csv": csv(
            "file_name,apparent_age_avg,apparent_age_std,real_age",
            "000000.jpg,5,3,4", "000001.jpg,6,3,5",
        ),
    }  # fmt: skip
    faces, skipped, _ = read("appa_real", pack(appa, tmp_path / "a.zip"))
    assert sorted(face.age for face in faces.values()) == [4, 5]
    fairface = {
        "train/1.png": jpeg(1),
        "val/1.JPG": jpeg(2),
        "fairface_label_train.csv": csv("file,age,gender,race", "train/1.jpg,3-9,Male,White"),
        "fairface_label_val.csv": csv("file,age,gender,race", "val/1.jpg,3-9,male,white"),
    }
    faces, more, _ = read("fairface", pack(fairface, tmp_path / "f.zip"))
    assert {k: (f.age, f.ethnicity) for k, f in faces.items()} == {
        "train/1.png": (6, 0),
        "val/1.JPG": (6, 0),
    }
    imdb = crops("imdb", ["A"])
    imdb = {name.replace(".jpg", ".png"): data for name, data in imdb.items()}
    faces, also, _ = read("imdb_wiki", pack(imdb, tmp_path / "i.zip"))
    assert len(faces) == 2
    assert not skipped + more + also


def test_pictures_of_other_types_are_counted(tmp_path):
    files = {"a.jpg": jpeg(1), "b.HEIC": b"", "c.heic": b"", "d.gif": b"", "notes.txt": b""}
    _, skipped, _ = read("image_folder", pack(files, tmp_path / "x"))
    types = ".jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff"
    assert skipped == [
        f"1 file ending in .gif: convert to one of {types}",
        f"2 files ending in .heic: convert to one of {types}",
    ]
    del files["a.jpg"]
    said = refused("image_folder", pack(files, tmp_path / "y"), tmp_path)
    assert "2 .heic, 1 .gif, 1 .txt" in said
    bare = pack({"000001": jpeg(1), "000002": jpeg(2)}, tmp_path / "z")
    assert "2 no ending" in refused("image_folder", bare, tmp_path)


# ---- codes, dates, names of splits, unknown labels -----------------------------------------------


def coded(*cells_, column="gender"):
    rows = (f"{i:02}.jpg,30,{cell}" for i, cell in enumerate(cells_))
    images = {f"{i:02}.jpg": jpeg(i) for i in range(len(cells_))}
    return images | {"labels.csv": csv(f"file,age,{column}", *rows)}


def test_gender_coded_as_1_and_2_is_one_error_whose_remedy_works(tmp_path):
    folder = pack(coded(1, 2, 1, 1, "", 2), tmp_path / "x")
    said = refused("image_folder", folder, tmp_path)
    assert "numbers in the column gender (1, 2) do not count from 0 (0 male, 1 female)" in said
    remedy = ("", "male", "female")
    assert said.endswith(f"gender_names to a name for each number from 0, '' for a number that "
                         f"is not a class, such as {remedy!r}")  # fmt: skip
    source = load("image_folder", folder, tmp_path, gender_names=remedy)
    assert source.label_names["gender"] == ("male", "female")
    order = np.argsort(source.ids)
    assert source.labels["gender"][order].tolist() == [0, 1, 0, 0, -1, 1]
    # 0 unknown, 1 male, 2 female (ISO 5218).
    folder = pack(coded(0, 1, 2, 1, 2), tmp_path / "iso")
    said = refused("image_folder", folder, tmp_path)
    assert "column gender (0, 1, 2) are more than its classes (0 male, 1 female); write" in said
    assert said.endswith(f"such as {remedy!r}")
    faces, _, _ = read("image_folder", folder, gender_names=remedy)
    assert [face.gender for face in faces.values()] == [-1, 0, 1, 0, 1]


def test_any_column_of_classes_that_is_counted_otherwise_is_an_error(tmp_path):
    names = ("White", "Black", "Asian")
    folder = pack(coded(1, 2, 3, column="ethnicity"), tmp_path / "x")
    said = refused("image_folder", folder, tmp_path, ethnicity_names=names)
    assert "column ethnicity (1, 2, 3) do not count from 0 (0 White, 1 Black, 2 Asian)" in said
    faces, _, found = read("image_folder", folder)  # 0 is not defined
    assert found["ethnicity"] == ("1", "2", "3")
    assert [face.ethnicity for face in faces.values()] == [0, 1, 2]
    one_mistake = pack(coded(*[0, 1] * 30, 7), tmp_path / "y")
    _, skipped, _ = read("image_folder", one_mistake)
    assert skipped == ["60.jpg: gender '7' is not one of male, female"]
    source = load("image_folder", folder, tmp_path)
    labels = tmp_path / "edit.csv"
    labels.write_bytes(csv("id,gender", "00.jpg,1", "01.jpg,2"))
    with pytest.raises(UserError, match=r"column gender \(1, 2\) do not count from 0"):
        edits.relabelled(source, str(labels))


def remedy_of(said):
    """The setting that a message suggests."""
    return ast.literal_eval(said.rpartition("such as ")[2])


@pytest.mark.parametrize("cells_", [(0, 1, 2, 3, 4, 5), (1, 2, 9), (1, 1, ""), (2, 3)])
def test_the_names_that_a_message_proposes_for_numbers_are_accepted(cells_, tmp_path):
    folder = pack(coded(*cells_), tmp_path / "x")
    names = remedy_of(refused("image_folder", folder, tmp_path))
    faces, skipped, found = read("image_folder", folder, gender_names=names)
    assert len(faces) == len(cells_)
    assert not skipped
    assert found["gender"] == ("male", "female")


def test_gender_coded_as_1_and_minus_1_or_as_1_alone_is_one_error(tmp_path):
    """CelebA's Male is 1 and -1: ones became female, and men and women alike were lost."""
    celeba = pack(coded(1, -1, -1, 1), tmp_path / "celeba")
    said = refused("image_folder", celeba, tmp_path)
    assert "column gender (-1, 1) do not count from 0 (0 male, 1 female)" in said
    assert said.endswith("write names in the table")
    ones = pack(coded(1, 1, "", 1), tmp_path / "ones")
    said = refused("image_folder", ones, tmp_path)
    assert "column gender has only the number 1, which may be either class" in said
    faces, _, _ = read("image_folder", ones, gender_names=remedy_of(said))
    assert [face.gender for face in faces.values()] == [0, 0, -1, 0]
    zeros = pack(coded(0, 1, -1), tmp_path / "zeros")  # counts from 0
    faces, _, _ = read("image_folder", zeros)
    assert [face.gender for face in faces.values()] == [0, 1, -1]
    source = load("image_folder", zeros, tmp_path)
    labels = tmp_path / "edit.csv"
    for rows, message in (
        (("00.jpg,1", "01.jpg,-1"), r"\(-1, 1\) do not count from 0"),
        (("00.jpg,1", "01.jpg,"), "only the number 1, .*; write names in the table$"),
    ):
        labels.write_bytes(csv("id,gender", *rows))
        with pytest.raises(UserError, match=message):
            edits.relabelled(source, str(labels))


def test_folders_of_men_and_women_are_the_classes_of_gender(tmp_path):
    for men, women in (("men", "women"), ("Males", "Females")):
        files = {f"{men}/a.jpg": jpeg(1), f"{women}/b.jpg": jpeg(2)}
        faces, skipped, _ = read("image_folder", pack(files, tmp_path / men), folders="gender")
        assert [face.gender for face in faces.values()] in ([0, 1], [1, 0])
        assert faces[f"{men}/a.jpg"].gender == 0
        assert not skipped


@pytest.mark.parametrize("band", ["20-29", "(25, 32)", "60+", "20 – 29", "more than 70"])
def test_a_band_of_ages_is_refused_with_what_to_write(band, tmp_path):
    remedy = f"{band} is an age range; write a number, such as its middle"
    rows = (f'{name},"{band}"' for name in ("a.jpg", "b.jpg"))
    folder = pack(table("file,age", *rows), tmp_path / "table")
    assert remedy in refused("image_folder", folder, tmp_path)
    folder = pack({f"{band}/a.jpg": jpeg(1)}, tmp_path / "folders")
    assert remedy in refused("image_folder", folder, tmp_path, folders="age")


def test_an_age_with_a_comma_may_be_a_band_so_it_is_refused_with_what_to_write(tmp_path):
    folder = pack(table("file;age", "a.jpg;25,32", "b.jpg;25.5"), tmp_path / "table")
    faces, skipped, _ = read("image_folder", folder)
    assert faces["b.jpg"].age == 25.5
    assert skipped == ["a.jpg: 25,32 is not an age; write a decimal point"]


BANDS = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")


@pytest.mark.parametrize(
    ("young", "teens"),
    [("9-Mar", "19-Oct"), ("Mar-09", "Oct-19"), ("03-Sep", "Oct-19"), ("9. Mrz", "19. Okt"),
     ("2026-03-09", "2026-10-19"), ("2009-03-01", "2019-10-01"), ("3/9/2026 0:00", "10/19/2026"),
     ("09-mars", "19-oct."), ("9.3.26", "19.10.26"), ("3 - 9", "10–19")],
)  # fmt: skip
def test_a_spreadsheets_dates_for_bands_of_ages_are_read(young, teens, tmp_path):
    written = [young if b == "3-9" else teens if b == "10-19" else b for b in BANDS]
    files = {f"train/{i}.jpg": jpeg(i) for i in range(9)}
    rows = (f"train/{i}.jpg,{age},Male,White,TRUE" for i, age in enumerate(written))
    files["fairface_label_train.csv"] = csv("file,age,gender,race,service_test", *rows)
    faces, skipped, _ = read("fairface", pack(files, tmp_path / "x.zip"))
    ages = [faces[f"train/{i}.jpg"].age for i in range(9)]
    assert ages == [1, 6, 14.5, 24.5, 34.5, 44.5, 54.5, 64.5, 76]
    assert not skipped


@pytest.mark.parametrize("text", ["9-Apr", "200", "1-Jan", "45725", "x", "2026", "9-x", "40-50"])
def test_what_may_be_no_band_is_none(text):
    assert cells.band(text, dict.fromkeys(BANDS)) is None


def test_a_table_that_has_lost_a_band_is_refused(tmp_path):
    files = {f"train/{i}.jpg": jpeg(i) for i in range(12)}
    rows = [f"train/{i}.jpg,{'45725' if i % 2 else '20-29'},Male,White" for i in range(12)]
    files["fairface_label_train.csv"] = csv("file,age,gender,race", *rows)
    folder = pack(files, tmp_path / "x")
    said = refused("fairface", folder, tmp_path)
    assert (
        "6 rows of its tables have the age '45725', which is not an age range, and none has 0-2, "
        "3-9" in said
    )
    assert "a spreadsheet changes 3-9 and 10-19 to dates" in said
    assert len(load("fairface", folder, tmp_path, age="none").ids) == 12


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "valid", "test"), ("Train", "VALIDATION", "Testing"), ("training", "dev", "test"),
     (" train ", "Development", "TEST"), ("TRAINING", "Val", "testing")],
)  # fmt: skip
def test_a_column_of_splits_may_have_any_of_the_usual_names(train, val, test, tmp_path):
    names = [train, train, train, val, test] * 2
    rows = (f"{i}.jpg,{20 + i},{name}" for i, name in enumerate(names))
    files = {f"{i}.jpg": jpeg(i) for i in range(10)} | {"l.csv": csv("file,age,split", *rows)}
    source = load("image_folder", pack(files, tmp_path / "x.zip"), tmp_path, labels="l.csv")
    config = default().data.split
    config.official = True
    made = {name: len(rows) for name, rows in splits.make(source, config).items()}
    assert made == {"train": 6, "val": 2, "test": 2}


def test_a_column_of_other_splits_is_refused_and_may_be_left_out(tmp_path):
    files = table("file,age,split", "a.jpg,3,holdout", "b.jpg,4,0")
    folder = pack(files, tmp_path / "x")
    said = refused("image_folder", folder, tmp_path)
    assert "split 'holdout' is not train, val or test, in 1 rows" in said
    assert "config.data.options.columns = {'split': ''}" in said
    assert len(load("image_folder", folder, tmp_path, columns={"split": ""}).ids) == 2


def test_splits_of_files_and_fractions_have_usual_names_too(tmp_path):
    files = {f"{i}.jpg": jpeg(i) for i in range(30)}
    source = load("image_folder", pack(files, tmp_path / "x.zip"), tmp_path)
    config = default().data.split
    config.fractions = ml_collections.ConfigDict({"Train": 0.6, "valid": 0.2, "testing": 0.2})
    made = splits.make(source, config)
    assert {name: len(rows) for name, rows in made.items()} == {"train": 18, "val": 6, "test": 6}
    for name, first in (("train", 0), ("validation", 10)):
        text = "\n".join(f"{i}.jpg" for i in range(first, first + 10))
        (tmp_path / name).write_text(text)
    config = default().data.split
    config.files = ml_collections.ConfigDict(
        {name: str(tmp_path / name) for name in ("train", "validation")}
    )
    assert len(splits.make(source, config)["val"]) == 10
    config.files["dev"] = str(tmp_path / "third")
    (tmp_path / "third").write_text("25.jpg")
    with pytest.raises(UserError, match="dev, train, validation: two of them are val"):
        splits.make(source, config)


@pytest.mark.parametrize("text", ["NA", "N/A", "None", "null", "nan", "NaN", "-1", "-1.0", "?",
                                  "unknown", "UNKNOWN", "", "#N/A", "<NA>"])  # fmt: skip
def test_an_unknown_label_may_be_spelled_so_in_any_column(text, tmp_path):
    columns = ("age", "apparent_age", "apparent_age_std", "gender", "ethnicity", "split", "group")
    files = table(f"file,{','.join(columns)}", "a.jpg,3,4,1,male,x,train,g",
                  f"b.jpg{f',{text}' * 7}")  # fmt: skip
    faces, skipped, names = read("image_folder", pack(files, tmp_path / "x"))
    face = faces["b.jpg"]
    assert not skipped
    assert np.isnan([face.age, face.apparent_age, face.apparent_age_std]).all()
    assert (face.gender, face.ethnicity, face.split, face.group) == (-1, -1, "", "")
    assert names["ethnicity"] == ("x",)
    fairface = {
        "train/1.jpg": jpeg(1),
        "fairface_label_train.csv": csv("file,age,gender,race", f"train/1.jpg,{text},{text},White"),
    }
    faces, _, _ = read("fairface", pack(fairface, tmp_path / "f"))
    face = faces["train/1.jpg"]
    assert np.isnan(face.age)
    assert (face.gender, face.ethnicity) == (-1, 0)


# ---- paths and columns of tables -----------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    ["/home/me/faces/{0}.jpg", "data/faces/{0}.jpg", "{0}", "{0}.JPG", "C:\\me\\faces\\{0}.jpg",
     "./{0}.jpg", "faces/{0}", "..\\{0}.png"],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["{0}.jpg", "faces/{0}.jpg", "faces/{0}.JPG"])
def test_paths_of_a_table_are_found_however_they_are_written(cell, inside, tmp_path):
    names = [f"{i:06}" for i in range(4)]
    images = {inside.format(name): jpeg(i) for i, name in enumerate(names)}
    rows = (f"{cell.format(name)},{30 + i}" for i, name in enumerate(names))
    (tmp_path / "l.csv").write_bytes(csv("file,age", *rows))
    source = pack(images, tmp_path / "x.zip")
    faces, skipped, _ = read("image_folder", source, labels=str(tmp_path / "l.csv"))
    assert [faces[inside.format(name)].age for name in names] == [30, 31, 32, 33]
    assert not skipped


def test_files_of_one_name_are_told_apart_by_their_folders():
    files = ["p/a/1.jpg", "p/b/1.jpg", "p/c/2.jpg"]
    pairs = pairing.pair(files, ["/home/p/a/1.jpg", "/home/p/b/1.jpg", "/home/q/2.jpg"])
    assert pairs.row_of == {
        "p/a/1.jpg": "/home/p/a/1.jpg",
        "p/b/1.jpg": "/home/p/b/1.jpg",
        "p/c/2.jpg": "/home/q/2.jpg",
    }
    pairs = pairing.pair(["1.jpg", "2.jpg"], ["x/1.jpg", "y/1.jpg", "z/2.jpg"])
    assert pairs.row_of == {"2.jpg": "z/2.jpg"}
    assert pairs.why_not == {
        "1.jpg": "1 images and 2 rows could belong together, such as x/1.jpg and y/1.jpg"
    }
    assert pairs.doubtful == {"x/1.jpg", "y/1.jpg"}
    assert not pairing.pair(["val/1.jpg"], ["train/1.jpg"]).row_of
    assert pairing.pair(["new/1.jpg"], ["old/1.jpg"]).row_of == {"new/1.jpg": "old/1.jpg"}
    # Case counts where it tells files apart, and a whole path comes before a part of one.
    pairs = pairing.pair(["a.jpg", "A.jpg"], ["A.jpg", "a.jpg"])
    assert pairs.row_of == {"a.jpg": "a.jpg", "A.jpg": "A.jpg"}
    pairs = pairing.pair(["a.jpg", "a.png"], ["a"])
    assert not pairs.row_of
    assert set(pairs.why_not) == {"a.jpg", "a.png"}


def test_a_row_that_two_images_could_be_labels_neither(tmp_path):
    files = {
        "train/000000.jpg": jpeg(1),
        "valid/000000.jpg": jpeg(2),
        "valid/000001.jpg": jpeg(3),
        "labels.csv": csv("file,age", "000000.jpg,70", "000001.jpg,30"),
    }
    faces, skipped, _ = read("image_folder", pack(files, tmp_path / "x"))
    assert {name: face.age for name, face in faces.items()} == {"valid/000001.jpg": 30}
    assert skipped == [
        f"{split}/000000.jpg: one of 2 images for the row 000000.jpg"
        for split in ("train", "valid")
    ]
    del files["valid/000001.jpg"]
    files["labels.csv"] = csv("file,age", "000000.jpg,70")
    said = refused("image_folder", pack(files, tmp_path / "y"), tmp_path)
    assert "none of its 1 rows matches exactly one image; train/000000.jpg: one of 2 images" in said
    # The whole path of an image is that image, in any order.
    for order in (["a.jpg", "old/a.jpg"], ["old/a.jpg", "a.jpg"]):
        pairs = pairing.pair(order, ["a.jpg"])
        assert pairs.row_of == {"a.jpg": "a.jpg"}
        why_not = "no row of its own; the row a.jpg is of the file a.jpg"
        assert pairs.why_not == {"old/a.jpg": why_not}
        assert not pairs.doubtful


def test_the_longest_common_ending_counts_beside_rows_that_match_exactly():
    files = ["a.jpg", "new/b.jpg", "new/c.jpg"]
    pairs = pairing.pair(files, ["a.jpg", "old/b.jpg", "old/c.png"])
    assert pairs.row_of == {
        "a.jpg": "a.jpg",
        "new/b.jpg": "old/b.jpg",
        "new/c.jpg": "old/c.png",
    }
    # A name that a paired file or row has too tells nothing; with its folder it may.
    pairs = pairing.pair(["x/a/1.jpg", "x/c/1.jpg"], ["a/1.jpg", "b/1.jpg"])
    assert pairs.row_of == {"x/a/1.jpg": "a/1.jpg"}
    pairs = pairing.pair(["x/a/1.jpg", "x/c/1.jpg"], ["a/1.jpg", "y/c/1.jpg"])
    assert pairs.row_of == {"x/a/1.jpg": "a/1.jpg", "x/c/1.jpg": "y/c/1.jpg"}


@pytest.mark.parametrize(("file", "row"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_are_the_same_in_either_form_of_unicode(file, row, tmp_path):
    name = "é/Zoë Müller.jpg"
    inside, cell = (unicodedata.normalize(form, name) for form in (file, row))
    assert inside != cell
    images = {inside: jpeg(1), "b.jpg": jpeg(2)}
    rows = csv("file,age", f"{cell},30", "b.jpg,40")
    source = pack(images | {"labels.csv": rows}, tmp_path / "x.zip")
    faces, skipped, _ = read("image_folder", source)
    assert faces[inside].age == 30
    assert not skipped
    # Also where the rest of the path differs.
    assert pairing.pair([inside], [pairing.normal(f"/home/{cell}")]).row_of
    loaded = load("image_folder", source, tmp_path)
    (tmp_path / "edit.csv").write_bytes(csv("id,age", f"{cell},50"))
    edited = edits.relabelled(loaded, str(tmp_path / "edit.csv"))
    assert edited.labels["age"].max() == 50


def test_a_path_of_a_table_with_a_space_is_named_whole(tmp_path):
    (tmp_path / "my labels.csv").write_bytes(csv("file,age", "a.jpg,3", ",4"))
    images = pack({"a.jpg": jpeg(1), "b.jpg": jpeg(2)}, tmp_path / "x")
    path = str(tmp_path / "my labels.csv")
    _, skipped, _ = read("image_folder", images, labels=path)
    assert skipped == [f"row 2 of {path}: no file", f"b.jpg: no row in {path}"]


def test_a_table_that_is_no_csv_in_utf_8_is_named_with_its_remedy(tmp_path):
    text = "file,age,gender\na.jpg,3,Männer\n"
    with zipfile.ZipFile(out := io.BytesIO(), "w") as book:
        book.writestr("xl/workbook.xml", "")
    images = pack({"a.jpg": jpeg(1)}, tmp_path / "x")
    excel = "is an Excel file: save it as CSV UTF-8"
    encoding = "text in another encoding than UTF-8: save it as CSV UTF-8"
    for name, data, message in (
        ("l.xlsx", out.getvalue(), excel),
        ("l.xls", b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(500), excel),
        ("utf16.csv", text.encode("utf-16"), encoding),
        ("utf16be.csv", text.encode("utf-16-be"), encoding),
        ("utf16le.csv", text.encode("utf-16-le"), encoding),
        ("windows.csv", text.encode("cp1252"), encoding),
    ):
        (tmp_path / name).write_bytes(data)
        said = refused("image_folder", images, tmp_path, labels=str(tmp_path / name))
        assert said.endswith(message)
        assert name in said


def test_groups_of_two_folders_are_joined_by_their_names_and_not_by_numbers(tmp_path):
    parts = {}
    for k, part in enumerate("xy"):
        files = {f"{part}{i}.jpg": jpeg(10 * k + i) for i in range(5)}
        if part == "y":
            files["y4.jpg"] = jpeg(3)  # the same photo of Ann as in the first folder
        groups = ("0", "1", "1", "Ann", "Ann")
        rows = (f"{part}{i}.jpg,30,{group}" for i, group in enumerate(groups))
        files["labels.csv"] = csv("file,age,group", *rows)
        parts[part] = {"name": "image_folder", "source": str(pack(files, tmp_path / part))}
    mixed = mixture.load(
        ml_collections.ConfigDict(parts), image_size=32, cache_dir=str(tmp_path / "cache")
    )
    assert len(np.unique(mixed.groups)) == 2 + 2 + 1
    # Other photos of one person are no copies, in a part and in the mixture.
    row = {name: i for i, name in enumerate(mixed.ids.tolist())}
    expected = np.arange(10)
    expected[row["y/y4.jpg"]] = row["x/x3.jpg"]
    np.testing.assert_array_equal(mixed.copies, expected)
    part = load("image_folder", tmp_path / "x", tmp_path)
    np.testing.assert_array_equal(part.copies, np.arange(5))
    view = mixed.select(np.array([row["y/y4.jpg"], row["x/x3.jpg"], row["x/x2.jpg"]]))
    assert (view.copies.tolist(), view.groups.tolist()) == ([0, 0, 2], [0, 0, 2])


def test_a_table_of_other_images_shows_a_row_beside_an_image(tmp_path):
    files = table("file,age", "x/000001.jpg,3")
    said = refused("image_folder", pack(files, tmp_path / "x"), tmp_path)
    assert (
        "none of its 1 rows matches one of the 2 images; a row is 'x/000001.jpg', an image is "
        in said
    )
    assert said.endswith("an image is 'a.jpg'")


def test_corrected_labels_find_their_images_too(tmp_path):
    source = load("image_folder", pack(table("file,age", "a.jpg,3", "b.jpg,4"), tmp_path / "x"),
                  tmp_path)  # fmt: skip
    labels = tmp_path / "corrected.csv"
    labels.write_bytes(csv("id,age", "/home/me/faces/a.jpg,50", "B,60", "c.jpg,70"))
    edited = edits.relabelled(source, str(labels))
    assert edited.labels["age"][np.argsort(edited.ids)].tolist() == [50, 60]
    labels.write_bytes(csv("id,age", "x/a.jpg,50", "y/a.jpg,60", "b.jpg,"))
    edited = edits.relabelled(source, str(labels))
    assert edited.labels["age"][np.argsort(edited.ids)].tolist() == [3, 4]


def test_corrected_labels_have_headers_in_any_case_and_unknown_cells_change_nothing(tmp_path):
    files = table("file,age,gender", "a.jpg,3,male", "b.jpg,4,female")
    source = load("image_folder", pack(files, tmp_path / "x"), tmp_path)
    labels = tmp_path / "corrected.csv"
    labels.write_bytes(csv("File,AGE,Gender", "a.jpg,NA,female", "b.jpg,50,None"))
    edited = edits.relabelled(source, str(labels))
    order = np.argsort(edited.ids)
    assert edited.labels["age"][order].tolist() == [3, 50]
    assert edited.labels["gender"][order].tolist() == [1, 1]


OWN = ("Picture No,Years,Sex,Notes", "a.jpg,30,F,x", "b.jpg,40,M,y")


def test_own_columns_are_named_and_what_is_not_read_is_said(tmp_path, capsys):
    folder = pack(table(*OWN), tmp_path / "x")
    said = refused("image_folder", folder, tmp_path)
    assert (
        "there are Picture No, Years, Sex, Notes; name yours with config.data.options.columns"
        in said
    )
    columns = {"file": "picture no", "age": "Years", "gender": "Sex"}
    config = ml_collections.ConfigDict({"columns": columns})
    source = load("image_folder", folder, tmp_path, **config)
    order = np.argsort(source.ids)
    assert source.labels["age"][order].tolist() == [30, 40]
    assert source.labels["gender"][order].tolist() == [1, 0]
    assert "columns read: Picture No, Years, Sex; not read: Notes" in capsys.readouterr().err
    said = refused("image_folder", folder, tmp_path, columns=columns | {"age": "Year"})
    assert "no column 'Year' in labels.csv; there are Picture No, Years, Sex, Notes" in said
    assert "did you mean 'age'" in refused(
        "image_folder", folder, tmp_path, columns={"ages": "Years"}
    )
    assert "columns.age: 5; set it to" in refused(
        "image_folder", folder, tmp_path, columns={"age": 5}
    )
    wide = pack(table(",".join(f"{i}{'x' * 90}" for i in range(300)), "1,2"), tmp_path / "wide")
    assert "and 290 more" in refused("image_folder", wide, tmp_path)
    some = pack(table("file,Years", "a.jpg,30"), tmp_path / "some")
    assert "there are file, Years; name yours" in refused("image_folder", some, tmp_path)


def test_labels_csv_in_the_source_is_read_and_said(tmp_path, capsys):
    files = table("file,age", "a.jpg,30", "b.jpg,40")
    for kind in ("x", "x.zip", "x.tar.gz"):
        source = load("image_folder", pack(files, tmp_path / kind), tmp_path)
        assert sorted(source.labels["age"]) == [30, 40]
        said = capsys.readouterr().err
        assert (
            "labels come from labels.csv in it; config.data.options.labels='none' leaves it out"
            in said
        )
    source = load("image_folder", tmp_path / "x", tmp_path, labels="none")
    assert np.isnan(source.labels["age"]).all()
    two = files | {"old/Labels.csv": files["labels.csv"]}
    source = load("image_folder", pack(two, tmp_path / "two"), tmp_path)
    assert np.isnan(source.labels["age"]).all()
    assert "2 files labels.csv in it; name one" in capsys.readouterr().err


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_may_divide_its_columns_by_semicolons_or_tabs(mark, tmp_path):
    rows = [
        row.replace(",", mark) for row in ("file,age,gender", "a.jpg,30,male", "b.jpg,40,female")
    ]
    faces, _, _ = read("image_folder", pack(table(*rows), tmp_path / "x"))
    assert [(face.age, face.gender) for face in faces.values()] == [(30, 0), (40, 1)]


def test_folders_may_say_ages_classes_and_splits(tmp_path):
    files = {
        f"x/{split}/{age}/{split}{age}.jpg": jpeg(i)
        for i, split in enumerate(("train", "valid"))
        for age in ("007", "age_30")
    }
    files |= {"x/train/old/9.jpg": jpeg(9), "1.jpg": jpeg(8)}
    faces, skipped, _ = read("image_folder", pack(files, tmp_path / "x"), folders="split/age")
    assert sorted((f.split, f.age) for f in faces.values()) == [
        ("train", 7), ("train", 30), ("val", 7), ("val", 30),
    ]  # fmt: skip
    assert sorted(skipped) == [
        "1.jpg: not in folders split/age",
        "x/train/old/9.jpg: old is not an age",
    ]
    files = {f"{gender}/{name}/{i}.jpg": jpeg(i) for i, (gender, name) in
             enumerate([("Male", "p1"), ("female", "p1"), ("M", "p2")])}  # fmt: skip
    files["l.csv"] = csv("file,age,gender", "0.jpg,5,", "1.jpg,6,male", "2.jpg,7,")
    folder = pack(files, tmp_path / "y")
    faces, _, _ = read("image_folder", folder, folders="gender/*", labels="l.csv")
    found = {f.age: (f.gender, f.group) for f in faces.values()}
    assert found == {5: (0, ""), 6: (0, ""), 7: (0, "")}  # the table's label comes first
    faces, _, _ = read("image_folder", folder, folders="gender/group")
    assert sorted((f.gender, f.group) for f in faces.values()) == [(0, "p1"), (0, "p2"), (1, "p1")]
    _, _, names = read("image_folder", folder, folders="ethnicity/*")
    assert names["ethnicity"] == ("M", "Male", "female")
    assert "did you mean 'age'" in refused("image_folder", folder, tmp_path, folders="ages")


# ---- Kaggle's table of pixels --------------------------------------------------------------------


def grey(i):
    return np.random.default_rng(i).integers(0, 256, (48, 48), np.uint8)


def pixel_table(*rows):
    lines = (f'{labels},{name},"{" ".join(map(str, grey(i).ravel()))}"'
             for i, (labels, name) in enumerate(rows))  # fmt: skip
    return csv("age,ethnicity,gender,img_name,pixels", *lines)


def test_utkface_as_one_table_of_pixels_is_read(tmp_path):
    data = pixel_table(("25,1,0", "25_0_1_20170109142.jpg"), ("3,2,1", "20170109143.jpg.chip.jpg"),
                       ("200,1,0", "x.jpg"))  # fmt: skip
    pack({"age_gender.csv": data}, tmp_path / "d")
    expected = {"25_0_1_20170109142.jpg": (25, 0, 1), "3_1_2_20170109143.jpg.chip.jpg": (3, 1, 2)}
    for source in (tmp_path / "d/age_gender.csv", tmp_path / "d",
                   pack({"x/age_gender.csv": data}, tmp_path / "d.zip")):  # fmt: skip
        faces, skipped, _ = read("utkface", source)
        assert {k: (f.age, f.gender, f.ethnicity) for k, f in faces.items()} == expected
        assert len(skipped) == 1
        for i, face in enumerate(faces.values()):
            pixels = cv2.imdecode(np.frombuffer(face.image, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(pixels, grey(i))
    source = sources.load("utkface", str(tmp_path / "d"), image_size=48,
                          cache_dir=str(tmp_path / "cache"))  # fmt: skip
    row = source.ids.tolist().index("25_0_1_20170109142.jpg")
    np.testing.assert_array_equal(source.images[row], np.repeat(grey(0)[..., None], 3, 2))


def test_an_image_folder_may_be_a_table_of_pixels(tmp_path):
    data = pixel_table(("25,1,0", "a.jpg"), ("3,2,1", "b.jpg"))
    folder = pack({"age_gender.csv": data}, tmp_path / "d")
    for source, options in ((folder, {"labels": "age_gender.csv"}), (folder, {}),
                            (folder / "age_gender.csv", {})):  # fmt: skip
        loaded = load("image_folder", source, tmp_path, **options)
        assert sorted(loaded.labels["age"]) == [3, 25]
        assert loaded.label_names["ethnicity"] == ("1", "2")


def test_the_pixels_of_a_table_may_fill_a_large_image(tmp_path):
    image = np.random.default_rng(0).integers(100, 256, (200, 200), np.uint8)
    data = csv("age,img_name,pixels", f'7,a.jpg,"{" ".join(map(str, image.ravel()))}"')
    assert len(data) > 2**17  # the longest cell that Python's csv takes by itself
    faces, skipped, _ = read("image_folder", pack({"x.csv": data}, tmp_path / "d"))
    assert not skipped
    pixels = cv2.imdecode(np.frombuffer(faces["a.jpg"].image, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(pixels, image)


def test_pixels_that_are_no_image_are_skipped(tmp_path):
    lines = ("age,ethnicity,gender,img_name,pixels", "30,0,0,a.jpg,1 2 3 4", "30,0,0,b.jpg,1 2 3",
             "30,0,0,c.jpg,1 2 3 256", "30,0,0,d.jpg,1 2 3 x", "30,0,0,e.jpg,")  # fmt: skip
    faces, skipped, _ = read("utkface", pack({"x.csv": csv(*lines)}, tmp_path / "d"))
    assert list(faces) == ["30_0_0_a.jpg"]
    assert [line.split(": ", 1)[1] for line in skipped] == [
        "3 pixels do not make a square",
        "its pixels are not numbers from 0 to 255",
        "its pixels are not numbers from 0 to 255",
        "0 pixels do not make a square",
    ]
    said = refused("utkface", pack({"x.csv": csv("file,age", "a.jpg,3")}, tmp_path / "e") / "x.csv",
                   tmp_path)  # fmt: skip
    assert "it is a table: name the folder or archive of the images as the source" in said


# ---- more public data sets, by their published layouts -------------------------------------------

FOLD = ("user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy\ttilt_ang\tfiducial_yaw_angle"
        "\tfiducial_score")  # fmt: skip
REST = "\t0\t0\t1745\t1745\t-115\t30\t59"
ADIENCE = {
    "fold_0_data.txt": csv(
        FOLD,
        f"30601258@N03\t10399646885_67c7d20df9_o.jpg\t1\t(25, 32)\tf{REST}",
        f"30601258@N03\t10424815813_e94629b1ec_o.jpg\t2\t(60, 100)\tm{REST}",
        f"30601258@N03\t10437979845_5985be4b26_o.jpg\t1\t35\tu{REST}",
    ),
    "fold_1_data.txt": csv(
        FOLD,
        f"101071073@N04\t11_o.jpg\t7\tNone\t{REST}",
        f"101071073@N04\t12_o.jpg\t7\t(0, 2)\tm{REST}",
        f"101071073@N04\t13_o.jpg\t7\t(0, 2\tm{REST}",
    ),
    "fold_frontal_0_data.txt": csv(FOLD),
}
ADIENCE_IMAGES = ("30601258@N03/{}.1.10399646885_67c7d20df9_o.jpg",
                  "30601258@N03/{}.2.10424815813_e94629b1ec_o.jpg",
                  "30601258@N03/{}.1.10437979845_5985be4b26_o.jpg",
                  "101071073@N04/{}.7.11_o.jpg", "101071073@N04/{}.7.13_o.jpg")  # fmt: skip
RELEASES = {"aligned": "landmark_aligned_face", "faces": "coarse_tilt_aligned_face"}


def adience(release, first=0):
    names = (name.format(RELEASES[release]) for name in ADIENCE_IMAGES)
    return {f"{release}/{name}": jpeg(first + i) for i, name in enumerate(names)}


@pytest.mark.parametrize("release", RELEASES)
def test_adience_in_both_releases(release, tmp_path):
    """Unpacked, as archives in a folder with the tables, and as an archive beside the tables."""
    unpacked = pack(ADIENCE | adience("aligned") | adience("faces", 50), tmp_path / "unpacked")
    folder = pack(ADIENCE, tmp_path / "folder")
    for name, first in (("aligned", 0), ("faces", 50)):
        pack(adience(name, first), folder / f"{name}.tar.gz")
    for source in (unpacked, folder, folder / f"{release}.tar.gz"):
        faces, skipped, _ = read("adience", source, images=release)
        known = [f for f in faces.values() if not np.isnan(f.age)]
        assert sorted((f.age, f.gender, f.split, f.group) for f in known) == [
            (28.5, 1, "test", "30601258@N03"),
            (35, -1, "test", "30601258@N03"),
            (72, 0, "test", "30601258@N03"),
        ]
        unknown = next(f for f in faces.values() if np.isnan(f.age))
        assert (unknown.gender, unknown.split, unknown.group) == (-1, "train", "101071073@N04")
        assert unknown.image == jpeg({"aligned": 3, "faces": 53}[release])
        assert len(skipped) == 2
        assert any(line.endswith("13_o.jpg: (0, 2 is not an age") for line in skipped)
        assert "101071073@N04/7.12_o: no such image" in skipped


def test_adiences_folds_are_official_splits_of_whole_albums(tmp_path):
    source = pack(ADIENCE | adience("aligned"), tmp_path / "x.zip")
    loaded = load("adience", source, tmp_path, test_fold=1)
    made = splits.official(loaded)
    assert {name: len(rows) for name, rows in made.items()} == {"train": 3, "test": 1}
    assert len(np.unique(loaded.groups)) == 2
    assert "data.options.test_fold: 5; set it to a whole number in 0..4" in refused(
        "adience", source, tmp_path, test_fold=5
    )
    assert "'x' is not one of aligned, faces" in refused("adience", source, tmp_path, images="x")
    bare = pack(adience("faces"), tmp_path / "bare")
    assert "no fold_0_data.txt to fold_4_data.txt in it" in refused("adience", bare, tmp_path)


def test_cacd_by_its_names_and_its_table(tmp_path):
    stems = ("53_Robin_Williams_0001", "54_Robin_Williams_0002", "23_Katie_Findlay_0012", "x")
    files = {f"CACD2000/{stem}.jpg": jpeg(i) for i, stem in enumerate(stems)}
    faces, skipped, names = read("cacd", pack(files, tmp_path / "x.tar.gz"))
    assert {k: (f.age, f.group) for k, f in faces.items()} == {
        "53_Robin_Williams_0001.jpg": (53, "robin_williams"),
        "54_Robin_Williams_0002.jpg": (54, "robin_williams"),
        "23_Katie_Findlay_0012.jpg": (23, "katie_findlay"),
    }
    assert skipped == ["x.jpg: not named [age]_[name]_[number].jpg"]
    assert not names
    columns = {
        "age": np.array([[53], [44]], np.uint8),
        "identity": np.array([[1], [1]], np.uint16),
        "name": np.array([["53_Robin_Williams_0001.jpg"], ["54_Robin_Williams_0002.jpg"]], object),
    }
    for packed in (True, False):
        scipy.io.savemat(out := io.BytesIO(), {"celebrityImageData": columns},
                         do_compression=packed)  # fmt: skip
        more = {"celebrity2000_meta.mat": out.getvalue()}
        faces, skipped, _ = read("cacd", pack(files | more, tmp_path / f"{packed}.zip"))
        assert [face.age for face in faces.values()] == [53, 44]
        assert "23_Katie_Findlay_0012.jpg: no row in celebrity2000_meta.mat" in skipped
    broken = pack(files | {"celebrity2000_meta.mat": b"x" * 200}, tmp_path / "y.zip")
    assert "remove it: the images' names hold the ages" in refused("cacd", broken, tmp_path)


def test_morph_by_its_names_and_its_table(tmp_path):
    files = {f"Album2/{name}.JPG": jpeg(i) for i, name in enumerate(
        ("009055_1M54", "009055_2M55", "013520_0F21", "100_1F21", "200_1X21"))}  # fmt: skip
    files["morph_2008_nonCommercial.csv"] = csv(
        "id_num,picture_num,dob,doa,race,gender,facial_hair,age,age_diff,glasses,photo",
        "9055,1,01/01/1950,02/02/2004,B,M,,54,0,No,Album2/009055_1M54.JPG",
        "9055,2,01/01/1950,02/02/2005,B,M,,55,1,No,Album2/009055_2M55.JPG",
        "13520,0,01/01/1983,02/02/2004,W,F,NULL,21,0,No,Album2/013520_0F21.JPG",
    )
    faces, skipped, names = read("morph", pack(files, tmp_path / "x"))
    assert {k: (f.age, f.gender, f.ethnicity, f.group) for k, f in faces.items()} == {
        "009055_1M54.JPG": (54, 0, 1, "009055"),
        "009055_2M55.JPG": (55, 0, 1, "009055"),
        "013520_0F21.JPG": (21, 1, 0, "013520"),
        "100_1F21.JPG": (21, 1, -1, "100"),
    }
    assert names["ethnicity"][:2] == ("White", "Black")
    assert skipped == ["200_1X21.JPG: not named [id]_[photo][M|F][age].JPG"]
    assert len(np.unique(load("morph", tmp_path / "x", tmp_path).groups)) == 3


@pytest.mark.parametrize("name", ["MORPH_2008_nonCommercial.csv", "Morph.CSV"])
def test_morphs_table_is_read_by_its_name_in_any_case(name, tmp_path, capsys):
    files = {
        "Album2/009055_1M54.JPG": jpeg(1),
        f"Album2/{name}": csv("race,photo", "B,Album2/009055_1M54.JPG"),
    }
    faces, _, _ = read("morph", pack(files, tmp_path / "x"))
    assert faces["009055_1M54.JPG"].ethnicity == 1
    assert not capsys.readouterr().err
    del files[f"Album2/{name}"]
    faces, _, _ = read("morph", pack(files, tmp_path / "y"))
    assert faces["009055_1M54.JPG"].ethnicity == -1
    line = "morph: no CSV with 'morph' in its name; the ethnicity is unknown\n"
    assert capsys.readouterr().err == line


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path):
    folder = pack({"a/b.jpg": jpeg(1)}, tmp_path / "x")
    if os.geteuid() == 0:
        pytest.skip("root may read every folder")
    (folder / "a").chmod(0)
    try:
        assert "cannot be read" in refused("image_folder", folder, tmp_path)
    finally:
        (folder / "a").chmod(0o755)
