"""export --format=web: a page that opens offline and predicts what `predict` predicts."""

import base64
import gzip
import io
import json
import os
import pathlib
import re
import shutil
import tarfile
import zlib

import cv2
import numpy as np
import pytest
from browsing import opened
from PIL import Image

from agejax import export
from agejax.data import sources
from agejax.data.procedural import drawing
from agejax.errors import UserError
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.uncertainty import ByGroup, GroupQuantile
from agejax.exporting import files, onnx_export
from agejax.exporting.web import page, runtime
from agejax.faces import detection
from agejax.faces.detection import Detector
from agejax.faces.geometry import Face, Geometry, align
from agejax.predicting import images, model, output, predictions
from agejax.process.command import run_command
from agejax.runs.run import Run

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

ROOT = pathlib.Path(__file__).parents[1]
TEMPLATE = np.array([[0.3, 0.31], [0.7, 0.31], [0.5, 0.5], [0.34, 0.68], [0.66, 0.68]])
GEOMETRY = Geometry(
    TEMPLATE, np.full((5, 2), 0.01), {"scale": 1.15, "shift": 0.04, "rotation": 7.0}, 300, 299
)
SECONDS = 120_000  # ms that a busy machine may take to compile the runtime


@pytest.fixture(scope="module")
def engine(cache):
    """onnxruntime-web, kept from session to session as the compiled programs are."""
    kept = ROOT / ".cache" / "npm"
    kept.mkdir(parents=True, exist_ok=True)
    if not (cache / "npm").exists():
        (cache / "npm").symlink_to(kept)
    try:
        return runtime.find()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
    """A run with a known framing of faces, and with intervals that differ by decade."""
    workdir = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("calibration.json"))
    decades = page.DECADES
    widths = ByGroup(
        GroupQuantile(100, 9.0, True),
        {name: GroupQuantile(30, 2.0 + i, True) for i, name in enumerate(decades)},
    )
    step = Run.open(workdir, devices=1).step
    temperatures = {"gender": 0.6, "ethnicity": 1.7}
    Calibration(step, 100, temperatures, {"age": widths}, 0.1, GEOMETRY).save(workdir)
    return workdir


@pytest.fixture(scope="module")
def folder(engine, workdir, tmp_path_factory):
    output = tmp_path_factory.mktemp("web")
    files.export(workdir, output, ["web"])
    return output


@pytest.fixture(scope="module")
def ready(browser, folder):
    """The page with its model loaded, and its errors and requests."""
    tab, said = opened(browser, folder / "index.html", permissions=["camera"])
    tab.locator("#state", has_text="Ready.").wait_for(timeout=SECONDS)
    return tab, said


def block(path: pathlib.Path, name: str) -> bytes:
    text = re.search(f'id="{name}">([^<]*)<', path.read_text()).group(1)
    return gzip.decompress(base64.b64decode(text))


def chosen(tab, files, kind="crops"):
    """Gives the page files {name: bytes}; returns results as {name: text, data name: value}."""
    tab.locator("#clear").click()
    if tab.locator("#kind").is_visible():
        tab.locator(f"input[value={kind}]").check()
    payload = [{"name": k, "mimeType": "image/png", "buffer": v} for k, v in files.items()]
    tab.locator("#state").evaluate("e => e.textContent = ''")
    tab.locator("#files").set_input_files(payload)
    tab.locator("#state", has_text=re.compile(r"\bface")).wait_for(timeout=SECONDS)
    return results(tab)


def results(tab):
    return tab.eval_on_selector_all(
        "#results li",
        """all => all.map(li => ({
          path: li.querySelector('p').textContent,
          ...Object.fromEntries([...li.querySelectorAll('data')].map(
            d => [d.dataset.name, +d.value])),
        }))""",
    )


def calculated(tab, image, expression):
    """The list that the page's own functions compute from an image."""
    height, width, _ = image.shape
    return tab.evaluate(
        f"""async text => {{
          const data = Uint8Array.from(atob(text), c => c.charCodeAt(0));
          const image = {{width: {width}, height: {height}, data}};
          return [...({expression})];
        }}""",
        base64.b64encode(image.tobytes()).decode(),
    )


def png(image: np.ndarray) -> bytes:
    Image.fromarray(image).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def predicted(workdir, crops):
    """The flat records of `agejax.predict` for crops."""
    run = Run.open(workdir, devices=1)
    faces = [images.Crop(pathlib.Path(name), image) for name, image in crops.items()]
    return [output.flat(record) for record in predictions.of_faces(model.of_run(run), faces, 16)]


def noise(height, width, seed=0, blur=0):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(image, (0, 0), blur) if blur else image


# ---------------------------------------------------------------------------------------- the page


def test_the_page_opens_offline_without_a_complaint_or_a_request(ready):
    assert ready[1] == []


def test_crops_get_the_ages_intervals_and_probabilities_of_predict(ready, workdir):
    hostile = "<img src=x onerror=alert(1)>.png"
    sizes = {"same.png": (32, 32), hostile: (50, 61), "small.png": (20, 27)}
    images = {
        name: np.clip(noise(*size, seed=i, blur=1.5) * np.float32(0.5 + 0.4 * i), 0, 255).astype(
            np.uint8
        )
        for i, (name, size) in enumerate(sizes.items())
    }
    shown = chosen(ready[0], {name: png(image) for name, image in images.items()})
    expected = predicted(workdir, {n: sources.decode(png(i), 32) for n, i in images.items()})
    assert [one["path"] for one in shown] == list(images)
    for ours, theirs in zip(shown, expected, strict=True):
        assert ours.keys() == theirs.keys() >= {"age", "age_low", "age_high", "gender_male"}
        same = ours["path"] == "same.png"  # others are resized, by other roundings
        for name, value in theirs.items():
            if name != "path":
                loose = 0.006 if name.startswith("age") else 1e-4  # what predict rounds to
                assert ours[name] == pytest.approx(value, abs=loose if same else 20 * loose), name
    assert ready[1] == []


@pytest.mark.parametrize("shape", [(64, 64), (47, 33), (100, 81), (20, 25), (32, 32), (31, 90)])
def test_images_are_cut_and_resized_as_the_training_images(ready, shape):
    image = noise(*shape, blur=1)
    ours = calculated(ready[0], image, "square(image, 32).data")
    theirs = sources.decode(png(image), 32)
    assert np.abs(np.array(ours) - theirs.ravel()).max() <= 1


@pytest.mark.parametrize("scale", [10, 32, 90, 200])
def test_faces_are_warped_as_predict_warps_them(ready, scale):
    image = noise(240, 300, blur=3)
    turn = np.array([[0.9, -0.3], [0.3, 0.9]])
    points = (TEMPLATE - 0.5) @ turn.T * scale + (140.3, 118.8)
    face = Face((0, 0, 1, 1), points, 1.0)
    theirs = align(image, face, GEOMETRY, 32)
    ours = calculated(ready[0], image, f"align(image, {points.tolist()}, 32).data")
    away = np.abs(np.array(ours) - theirs.ravel())
    assert away.mean() < 0.1
    assert away.max() <= 2


def test_the_policy_of_the_page_forbids_connections_and_other_scripts(ready):
    blocked = ready[0].evaluate(
        """async () => {
          const seen = [];
          document.addEventListener('securitypolicyviolation', e => seen.push(e.violatedDirective));
          await fetch('https://example.org/').catch(() => 0);
          navigator.sendBeacon('https://example.org/', 'x');
          document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}));
          document.body.append(
            Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));
          await new Promise(resolve => setTimeout(resolve, 100));
          return [seen, window.ran ?? 0];
        }"""
    )
    assert blocked[1] == 0
    assert {"connect-src", "img-src", "script-src-elem"} <= set(blocked[0])
    ready[1].clear()  # the browser reports each


def test_a_picture_of_the_camera_is_predicted(ready):
    tab, _ = ready
    tab.locator("#clear").click()
    tab.locator("input[value=crops]").check()
    tab.locator("#camera").click()
    tab.locator("#take").wait_for()
    tab.locator("#take").click()
    tab.locator("#results li").wait_for(timeout=SECONDS)
    tab.locator("#stop").click()
    assert not tab.locator("#live").is_visible()
    (one,) = results(tab)
    assert one["path"] == "camera"
    assert 0 <= one["age_low"] <= one["age_high"] <= 116


def test_files_that_are_no_images_are_named(ready):
    shown = chosen(ready[0], {"broken.png": b"no image", "good.png": png(noise(32, 32))})
    assert [one["path"] for one in shown] == ["good.png"]
    assert "Cannot be read: broken.png." in ready[0].locator("#state").text_content()


def test_the_images_of_a_folder_are_predicted_by_their_paths(ready, tmp_path):
    tab, _ = ready
    (tmp_path / "album/old").mkdir(parents=True)
    for name in ("one.png", "old/two.png"):
        (tmp_path / "album" / name).write_bytes(png(noise(32, 32)))
    (tmp_path / "album/notes.txt").write_text("no picture")
    tab.locator("#clear").click()
    tab.locator("input[value=crops]").check()
    tab.locator("#folder").set_input_files(tmp_path / "album")
    tab.locator("#state", has_text="2 faces in 2 pictures.").wait_for(timeout=SECONDS)
    assert {one["path"] for one in results(tab)} == {"album/one.png", "album/old/two.png"}


def test_it_can_be_used_by_keyboard_and_screen_reader(ready):
    tab, _ = ready
    assert tab.evaluate("document.documentElement.lang") == "en"
    names = tab.evaluate(
        """() => [...document.querySelectorAll('input, button, video')].map(
          e => e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent)"""
    )
    assert all(name.strip() for name in names)
    tab.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(12):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"kind", "files", "folder", "camera", "clear"} <= reached


def test_it_says_what_it_is_not_for(ready):
    text = re.sub(r"\s+", " ", ready[0].locator("main").text_content())
    assert "Do not use it for decisions about persons" in text
    assert "contains the true age for 90% of pictures like the 100 it was fitted to" in text
    assert "no picture and no result leaves this page" in text


def test_it_fits_a_phone(browser, folder):
    tab, _ = opened(browser, folder / "index.html", viewport={"width": 360, "height": 700})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


# ------------------------------------------------------------------------------------------- faces


@pytest.fixture(scope="module")
def photo():
    """A photo with drawn faces pasted into it."""
    image = np.full((600, 800, 3), (90, 120, 150), np.uint8)
    for seed, (edge, left, top) in enumerate([(260, 60, 80), (150, 500, 300), (190, 480, 40)]):
        face = np.asarray(drawing.draw(1, seed, edge)[0])
        image[top : top + edge, left : left + edge] = face
    return image


def test_the_page_finds_the_faces_that_predict_finds(ready, workdir, photo):
    detector = Detector.if_installed()
    if detector is None:
        pytest.skip(f"no detector: {detection.REMEDY}")
    theirs = detector.find(photo)
    assert theirs, "the detector knows no drawn face"
    ours = calculated(ready[0], photo, "await find((await loaded).detector, image)")
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["box"], other.box, atol=1.5)
        np.testing.assert_allclose(one["points"], other.landmarks, atol=1.5)
        assert one["score"] == pytest.approx(other.score, abs=0.02)

    shown = chosen(ready[0], {"photo.png": png(photo)}, "photos")
    crops = {i: crop for i, (_, crop) in enumerate(detector.crops(photo, GEOMETRY, 32))}
    expected = predicted(workdir, {str(i): crop for i, crop in crops.items()})
    assert len(shown) == len(expected)
    for one, other in zip(shown, expected, strict=True):
        assert one["age"] == pytest.approx(other["age"], abs=0.2)


def test_a_photo_without_a_face_is_named(ready):
    if Detector.if_installed() is None:
        pytest.skip(f"no detector: {detection.REMEDY}")
    assert chosen(ready[0], {"wall.png": png(np.full((90, 90, 3), 90, np.uint8))}, "photos") == []
    assert "No face found in wall.png." in ready[0].locator("#state").text_content()


def test_a_page_without_a_detector_takes_crops_and_says_so(
    browser, engine, workdir, tmp_path, monkeypatch
):
    monkeypatch.setattr(page, "installed_detector", lambda: None)
    files.export(workdir, tmp_path, ["web"])
    tab, said = opened(browser, tmp_path / "index.html")
    tab.locator("#state", has_text="Ready.").wait_for(timeout=SECONDS)
    assert tab.locator("#no-detector").is_visible()
    assert not tab.locator("#kind").is_visible()
    assert len(chosen(tab, {"one.png": png(noise(40, 40))})) == 1
    assert said == []


# -------------------------------------------------------------------------------- what is exported


def test_the_folder_has_the_card_and_the_licences(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.html", "licences.txt", "model.json", "model_card.md"}
    info = json.loads((folder / "model.json").read_text())
    assert info["files"]["web"]["bytes"] == (folder / "index.html").stat().st_size
    assert info["files"]["web"]["parity"] <= files.TOLERANCE


def test_a_page_in_int8_says_what_the_int8_model_says(browser, engine, workdir, folder, tmp_path):
    info = files.export(
        workdir, tmp_path, ["web"], int8=True, max_mae_change=100, max_accuracy_loss=1
    )
    data, float32 = (block(each / "index.html", "model") for each in (tmp_path, folder))
    assert len(data) == info["files"]["web"]["quantization"]["bytes"]["int8"]
    kinds = [{n.op_type for n in onnx.load_from_string(one).graph.node} for one in (data, float32)]
    assert ["DequantizeLinear" in each for each in kinds] == [True, False]
    tab, said = opened(browser, tmp_path / "index.html")
    tab.locator("#state", has_text="Ready.").wait_for(timeout=SECONDS)
    image = noise(32, 32, blur=2)
    (shown,) = chosen(tab, {"one.png": png(image)})
    expected = onnx_export.load(data)(image[None])["age"][0]
    assert shown["age"] == pytest.approx(expected, abs=0.02)
    assert said == []


def test_text_of_the_run_ends_no_block_of_the_page():
    assert "<" not in page._json({"name": "</script><script>alert(1)</script>"})
    assert page._inline("x('</SCRIPT>')") == r"x('<\/SCRIPT>')"


# --------------------------------------------------------------------------------- onnxruntime-web


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Puts a program called npm on the path, and empties agejax's cache."""
    monkeypatch.setenv("AGEJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def write(script):
        path = tmp_path / "npm"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


def exporting(workdir, tmp_path, *flags):
    base = ["export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--format=web"]
    return run_command(export.main, [*base, *flags])


def test_npm_that_fails_is_one_line_with_its_reason(workdir, tmp_path, npm, capsys):
    npm("echo 'npm error network is unreachable' >&2; exit 1")
    assert exporting(workdir, tmp_path) == 2
    error = capsys.readouterr().err
    assert "npm error network is unreachable" in error
    assert "--onnxruntime_web" in error
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_another_is_refused_and_not_kept(workdir, tmp_path, npm, capsys):
    name = f"{runtime.PACKAGE.replace('@', '-')}.tgz"
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        for file in runtime.FILES:
            member = tarfile.TarInfo(f"package/dist/{file}")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
    npm(f'for a; do case $a in --pack-destination=*) cp {tmp_path}/{name} "${{a#*=}}";; esac; done')
    assert exporting(workdir, tmp_path) == 2
    assert "is not that of onnxruntime-web@" in capsys.readouterr().err
    assert not list((tmp_path / "cache" / "npm").iterdir())
    assert exporting(workdir, tmp_path, f"--onnxruntime_web={tmp_path / name}") == 2
    assert "is not that of onnxruntime-web@" in capsys.readouterr().err


def test_a_damaged_archive_is_one_line(tmp_path):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        member = tarfile.TarInfo(f"package/dist/{next(iter(runtime.FILES))}")
        member.size = 1 << 16
        archive.addfile(member, io.BytesIO(bytes(1 << 16)))
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(whole.getvalue()[: 1 << 15]) + packer.flush(zlib.Z_FULL_FLUSH)
    path = tmp_path / "package.tgz"
    path.write_bytes(data + b"\xff" * 9)  # no block begins like that
    with pytest.raises(UserError, match=r"package\.tgz holds no ort\.wasm\.min\.js"):
        runtime.find(str(path))


def test_no_npm_and_a_wrong_path_say_what_to_do(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AGEJAX_CACHE", str(tmp_path / "cache"))
    assert exporting(workdir, tmp_path, f"--onnxruntime_web={tmp_path}") == 2
    assert "holds no ort.wasm.min.js of onnxruntime-web@" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert exporting(workdir, tmp_path) == 2
    assert "there is no npm" in capsys.readouterr().err


def test_a_folder_that_has_the_package_needs_no_npm(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("AGEJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    installed = tmp_path / "onnxruntime-web"
    (installed / "dist").mkdir(parents=True)
    for name, data in zip(runtime.FILES, (engine.api, engine.loader, engine.wasm), strict=True):
        (installed / "dist" / name).write_bytes(data)
    assert runtime.find(str(installed)) == engine
