"""No file that a user loads runs code, writes elsewhere, or takes unlimited memory or time."""

import contextlib
import io
import os
import pathlib
import stat
import tarfile
import time
import tracemalloc
import zipfile

import pytest
from packing import jpeg, pack

from agejax.data import builders
from agejax.data.builders import archives
from agejax.errors import UserError
from agejax.predicting import images, output
from experiments.fuzzing.archives import bombs

GOOD = "26_1_2_20170116184751526.jpg"
BOMBS = bombs()


def faces(source):
    builder = builders.find("utkface")(source=source, data_dir="/nowhere")
    return [face.id for face in builder.faces()], builder.skipped


@contextlib.contextmanager
def in_no_time(seconds=5, memory=250e6):
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < memory
    assert time.process_time() - start < seconds


# ---- images --------------------------------------------------------------------------------------


def test_what_is_no_file_is_skipped_by_predict_and_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").symlink_to("/dev/zero")
    (tmp_path / "3.jpg").mkdir()
    (tmp_path / "4.jpg").symlink_to("nowhere")
    (tmp_path / "5.jpg").write_bytes(jpeg(1))
    (tmp_path / "6.jpg").write_bytes(bytes(5001))
    monkeypatch.setattr(archives, "MAX_BYTES", 5000)
    outcomes, counts = [], images.Counts()

    def report(path, outcome):
        counts.add(path, outcome)
        outcomes.append(str(outcome))

    paths = images.find_images([str(tmp_path)])
    found = list(images.crops(paths, images.crop_reader(16), report))
    assert [crop.path.name for crop in found] == ["5.jpg"]
    assert (counts.files, counts.skipped, counts.faces) == (6, 5, 1)
    assert outcomes.count("not a file") == 4


def test_predictions_name_files_whose_names_are_no_text(tmp_path, capfdbinary):
    name = os.fsdecode(b"\xff\n.jpg")
    for path in (str(tmp_path / "out"), None):
        for form in ("csv", "jsonl"):
            with output.destination(path) as out:
                output.write(iter([{"path": name, "age": 30.0}]), form, out)
        written = pathlib.Path(path).read_bytes() if path else capfdbinary.readouterr().out
        assert written.endswith(b'{"path": "\\udcff\\n.jpg", "age": 30.0}\n')
        assert path or b'"\xff\n.jpg",30.0' in written


# ---- archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("name", ["../{}", "/{}", "a/../../{}", "C:/{}", "..\\{}", "/etc/{}"])
def test_an_archive_with_a_name_that_leads_out_is_refused(kind, name, tmp_path):
    path = pack({GOOD: jpeg(1), name.format("1_0_0_1.jpg"): jpeg(2)}, tmp_path / kind)
    with pytest.raises(UserError, match="points outside of it; pack it again with relative names"):
        faces(path)


def test_links_and_devices_in_a_tar_are_skipped_and_listed(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(3))
    kinds = {
        "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE,
        "character device": tarfile.CHRTYPE, "block device": tarfile.BLKTYPE,
        "holes": tarfile.GNUTYPE_SPARSE,
    }  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(f"{name}.jpg")
            member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(member)
        member = tarfile.TarInfo(GOOD)
        member.size = len(jpeg(1))
        archive.addfile(member, io.BytesIO(jpeg(1)))
    builder = builders.find("image_folder")(source=tmp_path / "x.tar", data_dir="/nowhere")
    assert [face.id for face in builder.faces()] == [GOOD]
    assert builder.skipped == [f"{name}.jpg: {archives.NO_FILE}" for name in kinds]


def test_a_link_in_a_zip_is_skipped_and_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(GOOD, jpeg(1))
        link = zipfile.ZipInfo("1_0_0_1.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/hostname")
    assert faces(tmp_path / "x.zip") == ([GOOD], [f"1_0_0_1.jpg: {archives.NO_FILE}"])


@pytest.mark.parametrize("name", BOMBS)
def test_an_archive_that_would_go_on_without_end_is_refused_at_once(name, tmp_path):
    (tmp_path / "x").write_bytes(BOMBS[name])
    with in_no_time(), contextlib.suppress(UserError):
        found, skipped = faces(tmp_path / "x")
        assert name == "holes"  # is not read at all
        assert not found
        assert len(skipped) == 1


def test_a_table_that_unpacks_to_far_more_than_its_archive_is_refused(tmp_path):
    table = b"file,age\n" + b"a.jpg,30\n" * 8_000_000
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.jpg", jpeg(1))
        archive.writestr("labels.csv", table)
    builder = builders.find("image_folder")(
        source=tmp_path / "x.zip", data_dir="/nowhere", labels="labels.csv"
    )
    with in_no_time(), pytest.raises(UserError, match=r"unpacks to more than \d+ MB"):
        list(builder.faces())


def test_the_rows_of_a_table_take_little_memory_beside_it(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"file,age\n" + b"a.jpg,30\n" * 50_000)
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").write_bytes(jpeg(1))
    builder = builders.find("image_folder")(
        source=tmp_path / "faces", data_dir="/nowhere", labels=str(tmp_path / "x.csv")
    )
    with in_no_time(seconds=20, memory=2.5e6):
        assert [face.age for face in builder.faces()] == [30]


def test_a_damaged_header_amid_a_tar_is_not_taken_for_its_end(tmp_path):
    path = pack({f"{age}_0_0_1.jpg": jpeg(age) for age in range(1, 9)}, tmp_path / "x.tar")
    with tarfile.open(path) as archive:
        fourth = archive.getmembers()[3].offset
    data = bytearray(path.read_bytes())
    data[fourth + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="download it again"):
        faces(path)


def test_a_name_that_is_no_text_is_still_a_name(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", errors="surrogateescape") as archive:
        member = tarfile.TarInfo("\udcff.jpg")
        member.size = len(jpeg(1))
        archive.addfile(member, io.BytesIO(jpeg(1)))
    assert [name for name, _ in archives.read(tmp_path / "x.tar")] == [r"\udcff.jpg"]
