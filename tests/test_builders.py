"""UTKFace in its real forms: archives and folders, complete, malformed and damaged."""

import pathlib
import sys
import tarfile

import numpy as np
import pytest
from packing import jpeg, pack

from agejax.data import builders
from agejax.data.builders import archives, base
from agejax.data.builders.utkface import UTKFace
from agejax.errors import UserError

REAL = pathlib.Path(__file__).parents[2] / "shared/data/utkface/UTKFace.tar.gz"


GOOD = {
    "0_0_4_20170109191140082.jpg.chip.jpg": (0, 0, 4),
    "26_1_2_20170116184751526.jpg.chip.jpg": (26, 1, 2),
    "116_0_0_20170112213500903.jpg": (116, 0, 0),
    "39_1_20170116174525125.jpg.chip.jpg": (39, 1, -1),  # no race
}
MALFORMED = [
    "39_1_2017.jpg.chip.jpg",  # no time
    "24_0_1_20170116220224657 .jpg.chip.jpg",  # a blank
    "55_0_0_20170116232725357jpg.chip.jpg",  # a dot missing
    "117_0_0_20170116232725357.jpg.chip.jpg",
    "30_2_0_20170116232725357.jpg.chip.jpg",
    "30_0_5_20170116232725357.jpg.chip.jpg",
    "face.png",
]
OTHER = ["._26_1_2_20170116184751526.jpg.chip.jpg", ".DS_Store", "readme.txt"]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    names = [*GOOD, *MALFORMED, *OTHER]
    return {f"UTKFace/{name}": jpeg(i) for i, name in enumerate(names)}


def faces(source: pathlib.Path) -> tuple[dict[str, base.Face], list[str]]:
    builder = UTKFace(source=source, data_dir="/nowhere")
    found = {face.id: face for face in builder.faces()}
    return found, builder.skipped


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.tgz", "x.tar", "x.tar.xz", "x.zip", "folder"])
def test_every_container_gives_the_same_faces(kind, files, tmp_path):
    found, skipped = faces(pack(files, tmp_path / kind))
    assert {k: (f.age, f.gender, f.ethnicity) for k, f in found.items()} == GOOD
    assert all(found[name].image == files[f"UTKFace/{name}"] for name in GOOD)
    assert sorted(line.split(": ")[0] for line in skipped) == sorted(MALFORMED)


def test_files_without_a_folder_and_a_second_file_of_a_name_count_once(tmp_path):
    name = next(iter(GOOD))
    files = {name: jpeg(1), f"part2/{name}": jpeg(2)}
    found, skipped = faces(pack(files, tmp_path / "x.tar"))
    assert list(found) == [name]
    assert found[name].image == jpeg(1)
    assert not skipped


def test_an_enormous_member_is_skipped(tmp_path, files, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 2**20)
    name = "50_0_0_20170116232725357.jpg"
    for kind in ("x.zip", "x.tar", "folder"):
        source = pack(files | {name: bytes(2**20 + 1)}, tmp_path / kind)
        found, skipped = faces(source)
        assert set(found) == set(GOOD)
        assert f"{name}: larger than 1 MB" in skipped


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.tar", "x.zip"])
@pytest.mark.parametrize("left", [0.97, 0.5, 0.001])
def test_a_truncated_archive_is_refused(kind, left, tmp_path):
    files = {f"{age}_0_0_2017.jpg": jpeg(age) for age in range(1, 60)}
    whole = pack(files, tmp_path / kind).read_bytes()
    # A tar ends with 10 KB of padding: the cut must reach the members.
    size = len(whole.rstrip(b"\0")) + 512 if kind == "x.tar" else len(whole)
    (tmp_path / kind).write_bytes(whole[: int(left * size)])
    with pytest.raises(UserError, match="download it again") as error:
        faces(tmp_path / kind)
    assert str(tmp_path / kind) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    """tarfile itself treats the cut as the end."""
    path = pack({name: jpeg() for name in GOOD}, tmp_path / "x.tar")
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1].offset
    path.write_bytes(path.read_bytes()[:second])
    with pytest.raises(UserError, match="download it again"):
        faces(path)


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
def test_an_archive_with_a_flipped_bit_is_refused(kind, tmp_path, files):
    path = pack(files, tmp_path / kind)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(UserError, match="download it again"):
        faces(path)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"not a \.tar\.gz, \.tar or \.zip"):
        faces(tmp_path / "x.tar.gz")


def test_locate_looks_in_the_manual_folder_and_says_what_to_get(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        UTKFace.locate(None)
    for part in ("https://susanqq.github.io/UTKFace/", "UTKFace.tar.gz", "with --source=PATH",
                 "a training with --config.data.source=PATH"):  # fmt: skip
        assert part in str(error.value)
    manual = tmp_path / "tensorflow_datasets/downloads/manual"
    assert str(manual) in str(error.value)
    with pytest.raises(UserError, match="/no/such does not exist"):
        UTKFace.locate("/no/such")
    manual.mkdir(parents=True)
    (manual / "UTKFace.zip").touch()
    assert UTKFace.locate(None) == manual / "UTKFace.zip"
    assert UTKFace.locate(str(tmp_path)) == tmp_path


def test_the_table_finds_builders_and_names_the_nearest():
    for name in builders.TABLE:
        assert builders.find(name).name == name
    with pytest.raises(UserError, match="'utkface'"):
        builders.find("utk_face")


def test_tfds_prepares_and_reads_it_without_tensorflow(tmp_path, files):
    source = pack(files, tmp_path / "x.tar.gz")
    builder = UTKFace(source=source, data_dir=str(tmp_path / "data"))
    builder.download_and_prepare()
    again = UTKFace(source=source, data_dir=str(tmp_path / "data"))
    examples = again.as_data_source(split=base.SPLIT)
    assert {e["id"].decode(): (e["age"], e["gender"], e["ethnicity"]) for e in examples} == GOOD
    example = examples[0]
    assert example["image"].shape == (20, 20, 3)
    assert np.isnan(example["apparent_age"])
    assert again.info.metadata["label_names"]["gender"] == ["male", "female"]
    assert len(again.info.metadata["skipped"]) == len(MALFORMED)
    assert "tensorflow" not in sys.modules


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there")
def test_the_real_archive_has_19009_faces_3_without_a_race_and_2_malformed_names():
    found, skipped = faces(REAL)
    assert len(found) == 19_009
    unknown = {name for name, face in found.items() if face.ethnicity == -1}
    assert unknown == {
        "39_1_20170116174525125.jpg.chip.jpg",
        "61_1_20170109142408075.jpg.chip.jpg",
        "61_1_20170109150557335.jpg.chip.jpg",
    }
    assert [(found[name].age, found[name].gender) for name in sorted(unknown)] == [
        (39, 1), (61, 1), (61, 1),
    ]  # fmt: skip
    assert len(skipped) == 2
    assert {face.gender for face in found.values()} == {0, 1}
    assert {face.ethnicity for face in found.values()} == {-1, 0, 1, 2, 3, 4}
