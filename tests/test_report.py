"""The report of an evaluation: its figures, and its page in a browser."""

import csv
import dataclasses
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from browsing import opened

from agejax.data import opening, splits
from agejax.errors import UserError
from agejax.evaluation import comparison, fitting, gaps
from agejax.evaluation import gates as audited_gates
from agejax.evaluation.calibration import Calibration
from agejax.evaluation.scored import score, score_rows
from agejax.reporting import cells, figures, gates, headlines, report, results
from agejax.reporting.plots import Chart
from agejax.runs.run import Run


@pytest.fixture(scope="module")
def written(trained, other, tmp_path_factory):
    """A report about the whole small data set, compared with a second run."""
    output = tmp_path_factory.mktemp("report")
    result = results.evaluate(trained, split="all", output=output, compare_with=[other]).metrics
    return result, output


def test_a_second_run_that_knows_the_answers_is_told(trained, other, tmp_path, capsys):
    scored = score(Run.open(trained))
    comparison.score_again(scored, Run.open(other))
    assert "its errors are too small" not in capsys.readouterr().err
    everything = score(Run.open(trained), split="all")
    learned = json.loads((trained / "summary.json").read_text())["examples"]["train"]
    comparison.score_again(everything, Run.open(other))
    assert f"was trained on {learned} of these 96 images" in capsys.readouterr().err


def test_every_figure_of_the_page_stands_in_metrics_json(written):
    result, output = written
    assert json.loads((output / "metrics.json").read_text()) == result
    text = (output / "report.html").read_text()
    assert f"<b>{result['age']['mae']:.2f}</b>age: MAE" in text
    worst = result["groups"]["age"]["worst"]
    assert f"worst group, {worst['name']} (n = {worst['n']})" in text
    for row in result["groups"]["age"]["gender"]:
        assert f"<td>{row['mae']:.3f}</td>" in text
    assert f"<td>{result['headlines']['sd']:.2f}</td>" in text
    assert f"<td>{result['headlines']['cells']['mae']:.2f}</td>" in text
    for row in result["gates"]["groups"]["gender"]:
        adults = row["challenge"][25 - 18]["tpr"]
        assert f"<td>{cells.rate(adults)[0]}</td>" in text
    assert f"<td>{result['uncertainty']['gender']['temperature']:.3f}</td>" in text


def test_suspected_labels_lie_beside_the_page(trained, tmp_path):
    scored = score(Run.open(trained), split="all")
    copies = scored.source.photos.copy()
    one, other = np.argsort(scored.labels["age"])[[0, -1]]
    copies[other] = copies[one]  # the youngest and the oldest are called copies
    scored = dataclasses.replace(scored, source=dataclasses.replace(scored.source, photos=copies))
    result = results.publish(scored, tmp_path, fitting.calibrate(scored.run))
    with (tmp_path / "suspects.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(rows) == result["suspects"]["n"]
    assert result["suspects"]["reasons"]["copies disagree"] == 2
    for row in (one, other):
        found = rows[scored.source.ids[row]]
        assert float(found["age"]) == scored.labels["age"][row]
        assert "copies disagree: age " in found["reasons"]
    page = (tmp_path / "report.html").read_text()
    assert f"{len(rows)} images have labels that may be wrong" in page


def test_charts_lie_beside_the_page_and_are_named_by_what_they_show(written):
    _, output = written
    names = {path.stem.replace("-", " ") for path in (output / "figures").iterdir()}
    assert {
        "age", "age by decade", "age by gender", "age by gender x ethnicity", "bias",
        "cumulative score", "age by single year", "let in by age", "true accepts by group",
        "gender confusion", "ethnicity confusion", "gender reliability",
        "coverage", "risk", "gates", "quality", "training loss", "training age mae",
        "age compared", "gender compared", "best faces", "typical faces", "worst faces", "saliency",
    } <= names  # fmt: skip


def test_the_faces_shown_are_the_best_and_the_worst_each_under_its_own_caption(
    trained, monkeypatch
):
    shown = {}
    chart = Chart(b"", "", "")
    monkeypatch.setattr(figures, "faces", lambda kind, *given: shown.update({kind: given}) or chart)
    monkeypatch.setattr(
        figures, "saliency",
        lambda images, heats, captions: shown.update({"saliency": (images, captions)}) or chart,
    )  # fmt: skip
    scored = score(Run.open(trained), split="test")
    charts = report._faces(scored)
    assert charts.keys() == {"best faces", "typical faces", "worst faces", "saliency"}
    source, rows = scored.source, scored.rows
    error = np.abs(scored.predictions["age"] - scored.labels["age"])
    order = np.argsort(error)
    assert len(set(error)) == len(error) > 12
    expected = {
        "the best predictions": order[:9],
        "the worst predictions": order[::-1][:9],
        "saliency": order[::-1][:6],
    }
    for kind, which in expected.items():
        images, captions = shown[kind]
        np.testing.assert_array_equal(images, source.take(rows[which]))
        for i, caption in zip(which, captions, strict=True):
            true, predicted = caption.split("\n")
            assert true.startswith(f"true {source.labels['age'][rows[i]]:.0f}, ")
            assert predicted.startswith(f"predicted {scored.predictions['age'][i]:.0f}, ")
            gender = ("male", "female")[source.labels["gender"][rows[i]]]
            assert f", {gender}, " in true


def test_a_run_is_compared_image_by_image_and_below_0_it_is_the_better_one(trained, other):
    scored = score(Run.open(trained), split="test")
    backwards = score_rows(scored.run, scored.source, scored.rows[::-1], "test")
    again = comparison.score_again(backwards, Run.open(other))
    assert again.source.ids[again.rows].tolist() == scored.source.ids[scored.rows][::-1].tolist()
    np.testing.assert_allclose(again.predictions["age"], backwards.predictions["age"], rtol=1e-5)

    worse = scored.labels["age"] + 30.0
    said = scored.predictions | {"age": worse.astype(np.float32)}
    (found,) = comparison.compare(scored, [dataclasses.replace(scored, predictions=said)])
    mae = np.abs(scored.predictions["age"] - scored.labels["age"]).mean()
    assert found["targets"]["age"]["difference"] == pytest.approx(mae - 30, rel=1e-5)
    assert mae < 30


def test_the_differences_of_two_runs_are_printed(trained, other, tmp_path, capsys):
    results.evaluate(
        trained, split="test", output=tmp_path, compare_with=[other], write_report=False
    )
    lines = capsys.readouterr().out.splitlines()
    at = lines.index(f"against {other}, paired on the same images:")
    shown = [" ".join(line.split()) for line in lines[at + 2 : at + 5]]
    n = json.loads((trained / "summary.json").read_text())["examples"]["test"]
    names = ("age mae", "ethnicity accuracy", "gender accuracy")
    assert sorted(shown) == [f"{name} +0.000 [+0.000, +0.000] {n}" for name in names]


def test_two_equal_runs_do_not_differ(written):
    result, _ = written
    for target in ("age", "gender", "ethnicity"):
        found = result["compared"][0]["targets"][target]
        assert found["difference"] == 0
        assert found["difference_ci95"] == [0, 0]
        assert sum(row["n"] for row in found["groups"]["gender"]) == found["n"]


def test_runs_of_one_config_count_as_its_seeds(trained):
    scored = score(Run.open(trained), split="test")
    first = scored.run.config.seed

    def again(seed, error, **changes):
        config = scored.run.config.copy_and_resolve_references()
        config.seed = seed
        for path, value in changes.items():
            config.update_from_flattened_dict({path.replace("__", "."): value})
        run = dataclasses.replace(scored.run, config=config)
        said = scored.predictions | {"age": (scored.labels["age"] + error).astype(np.float32)}
        return dataclasses.replace(scored, run=run, predictions=said)

    def other(seed, error):
        return again(seed, error, schedule__lr=0.5)

    ours = again(first, 3.0)
    (found,) = comparison.compare(
        ours, [other(first + 1, 7.0), again(first + 1, 5.0), other(first, 9.0)]
    )
    assert found["ours"]["seeds"] == found["theirs"]["seeds"] == [first, first + 1]
    assert found["matched"]
    age = found["targets"]["age"]
    assert age["difference"] == pytest.approx((3 + 5) / 2 - (9 + 7) / 2)
    # By seed the differences are -6 and -2: Student's t with one degree of freedom.
    assert np.ptp(age["difference_ci95"]) == pytest.approx(2 * 12.706 * 2, rel=1e-3)
    assert "2 seeds" in comparison.title(found)
    assert ", by seed" in comparison.title(found)

    (found,) = comparison.compare(ours, [other(first + 1, 7.0), other(first + 2, 9.0)])
    assert (found["matched"], len(found["ours"]["seeds"])) == (False, 1)
    # Seeds of its own config alone are compared with it one by one, and so is a copy of it.
    found = comparison.compare(ours, [again(first + 1, 5.0), again(first + 2, 4.0)])
    assert [each["targets"]["age"]["difference"] for each in found] == [-2, -1]
    (found,) = comparison.compare(ours, [again(first, 4.0)])
    assert found["targets"]["age"]["difference"] == -1
    # Another start is another recipe.
    found = comparison.compare(ours, [again(first + 1, 5.0, model__pretrained="x"), other(0, 1.0)])
    assert [each["ours"]["seeds"] for each in found] == [[first], [first]]


def test_calibration_is_fitted_on_val_and_kept(trained, written, faces, tmp_path):
    run = Run.open(trained)
    kept = Calibration.read(trained, run.step)
    assert kept is not None
    assert kept.n == json.loads((trained / "summary.json").read_text())["examples"]["val"]
    assert fitting.calibrate(run) == kept
    val = score(run, split="val")
    fitted = Calibration.fit(val.predictions, val.labels, val.duplicates, run.step)
    assert fitted.temperatures == pytest.approx(dict(kept.temperatures), rel=1e-6)
    assert fitted.widths == kept.widths
    result, output = written
    rows = (output / "predictions.csv").read_text().splitlines()
    header = rows[0].split(",")
    low, high, age = (header.index(name) for name in ("age_low", "age_high", "age"))
    cells = np.array([[row.split(",")[i] for i in (low, age, high)] for row in rows[1:]], float)
    held = (cells[:, 0] <= cells[:, 1]) & (cells[:, 1] <= cells[:, 2])
    assert held.mean() == result["uncertainty"]["age"]["by_decade"]["coverage"]


def test_calibration_is_fitted_on_images_of_its_own_where_some_are_kept_for_it(trained, tmp_path):
    run = Run.open(trained)
    assert fitting.calibrate(run).split == "val"
    config = run.config.copy_and_resolve_references()
    config.data.split.calibration_of_val = 0.5
    source = opening.open_source(config.data)
    rows = splits.make(source, config.data.split)["calibration"]
    found = fitting.calibrate(dataclasses.replace(run, config=config, workdir=tmp_path))
    assert found.split == "calibration"
    assert found.n == len(np.unique(source.groups[rows]))
    # A run from before there was this setting has the splits of its default.
    del config.data.split.calibration_of_val
    assert run.has_splits(run.fingerprint, config)
    config.data.split.calibration_of_val = 0.5
    assert not run.has_splits(run.fingerprint, config)


def test_a_page_of_the_images_that_calibrate_says_that_they_do():
    covered = {"n": 40, "coverage": 0.9, "band95": [0.8, 1.0], "width": 9.0}
    of = {"age": {"marginal": covered, "by_decade": covered}}
    found = {"validation_images": 40, "fitted_to": "val", "alpha": 0.1} | of
    pages = [
        report._certainty("age", {"split": split, "uncertainty": found}, {})
        for split in ("val", "test")
    ]
    assert ["not whether it holds" in page for page in pages] == [True, False]


def test_without_the_validation_images_it_says_so(trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("calibration.json"))
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["source"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(config))
    assert fitting.calibrate(Run.open(workdir)) is None
    assert "the run's validation images are not here" in capsys.readouterr().err
    assert not (workdir / "calibration.json").exists()


def test_runs_are_compared_on_another_data_set_too(trained, other, tmp_path):
    result = results.evaluate(
        trained, dataset="procedural_faces", options={"count": 16, "size": 32}, output=tmp_path,
        compare_with=[other], write_report=False,
    ).metrics  # fmt: skip
    assert result["compared"][0]["targets"]["age"]["n"] == 16


def test_a_run_without_these_images_cannot_be_compared(trained):
    run = Run.open(trained)
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.edits.drop = {"ethnicity": ["Other"]}
    scored = score(run, split="all")
    with pytest.raises(UserError, match="its data lacks 19 of the 96 images"):
        comparison.score_again(scored, dataclasses.replace(run, config=config))


def test_the_head_of_the_page_names_the_model_and_the_data(trained, written):
    result, output = written
    text = (output / "report.html").read_text()
    summary = json.loads((trained / "summary.json").read_text())
    assert f"<dt>Backbone</dt><dd>cnn, {summary['parameters']:,} parameters</dd>" in text
    assert "<dt>Image size</dt><dd>32 x 32 pixels</dd>" in text
    assert "<dt>Training</dt><dd>4 steps on utkface; the weights of step 4</dd>" in text
    assert "<dt>Scored on</dt><dd>utkface, split all, n = 96 images</dd>" in text
    assert f"<dt>Date</dt><dd>{result['date']}</dd>" in text


def test_groups_stand_before_the_headline_and_each_target_has_its_section(written):
    _, output = written
    text = (output / "report.html").read_text()
    assert text.index("age: worst group") < text.index("age: MAE")
    assert text.index("gender: worst group") < text.index("gender: accuracy")
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles[:5] == ["Age", "Gender", "Ethnicity", "Headline figures", "Age gates"]
    assert titles == re.findall(r'<a href="#section-\d+">(.*?)</a>', text)
    # True against predicted is the first chart, and a caption stands above its chart.
    captions = re.findall(r"<figure><figcaption>(.*?)</figcaption><img", text)
    assert captions[0] == "Predicted against true age"
    assert len(captions) == text.count("<img")


# ------------------------------------------------------------------------------------- in a browser


def test_the_page_opens_whole_and_silently(browser, written):
    page, said = opened(browser, written[1] / "report.html")
    images = page.eval_on_selector_all("img", "all => all.map(i => [i.complete, i.naturalWidth])")
    assert len(images) >= 18
    assert all(complete and width > 200 for complete, width in images)
    assert said == []


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_a_phone_and_a_desk(browser, written, width):
    page, _ = opened(browser, written[1] / "report.html", viewport={"width": width, "height": 800})
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.eval_on_selector_all("img", "all => all.map(i => i.getBoundingClientRect().width)")
    assert min(shown) > 0
    assert max(shown) <= width
    # Two columns at a desk, one on a phone.
    first = "all => all.slice(0, 2).map(f => f.getBoundingClientRect().left)"
    left, right = page.eval_on_selector_all("figure", first)
    assert (left < right) == (width > 1000)


def test_nothing_is_cut_off_on_paper(browser, written):
    a4 = {"width": 680, "height": 1000}  # 21 cm less two margins, at 96 dots per inch
    page, _ = opened(browser, written[1] / "report.html", viewport=a4)
    page.emulate_media(media="print")
    wider = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.eval_on_selector_all(".wide", wider) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 680


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_the_light_and_in_the_dark(browser, written, scheme):
    page, _ = opened(browser, written[1] / "report.html", color_scheme=scheme)

    def colour(selector: str, which: str) -> np.ndarray:
        text = page.eval_on_selector(selector, f"e => getComputedStyle(e)['{which}']")
        return np.array([float(x) for x in re.findall(r"[\d.]+", text)[:3]]) / 255

    def luminance(rgb: np.ndarray) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    back = luminance(colour("body", "background-color"))
    assert (back < 0.1) == (scheme == "dark")
    for selector in ("body", "p", "figcaption"):
        text = luminance(colour(selector, "color"))
        contrast = (max(text, back) + 0.05) / (min(text, back) + 0.05)
        assert contrast >= 4.5  # WCAG 2.2, 1.4.3


def test_it_can_be_heard_and_used_without_a_mouse(browser, written):
    page, _ = opened(browser, written[1] / "report.html")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("main h1").count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => +h.tagName[1])")
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    alts = page.eval_on_selector_all("img", "all => all.map(i => i.alt)")
    assert min(map(len, alts)) > 40
    assert len(set(alts)) == len(alts)
    # What scrolls by itself can be reached and has a name.
    page.set_viewport_size({"width": 360, "height": 800})
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    unreachable = page.eval_on_selector_all(
        ".wide",
        "all => all.filter(e => e.scrollWidth > e.clientWidth"
        " && !(e.tabIndex == 0 && e.getAttribute('aria-label'))).length",
    )
    assert unreachable == 0
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = false)")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


# ----------------------------------------------------------------------- sections from metrics.json


def test_few_minors_are_marked_and_promise_no_safe_gate():
    age = np.repeat([15.0, 16, 40], [12, 40, 60]).astype(np.float32)
    predicted = np.where(np.arange(112) % 9 == 0, 30.5, age).astype(np.float32)
    parts = {"gender": [("m", np.arange(112) < 12), ("f", np.arange(112) >= 12)]}
    found = audited_gates.measure(age, predicted, parts, np.arange(112))
    charts = gates.charts(found)
    assert charts["false accepts by group"].alt.endswith("m 17% of 12; f 10% of 40.")
    body = gates.section(found, charts).body
    assert '<td>16.7% [4.7, 44.8]</td><td class="number">12 (few)</td>' in body
    # 6 of 52 pass below 31, which allows a rate of 4.4 %; none at 31, which allows one of 6.8 %.
    assert '<td class="number">52</td><td>31 [31 or more]</td><td>31 [18 or more]</td>' in body
    assert "368 for 1% and 72 for 5%" in body
    # At T = 31 nobody of 15 passes; at 25 two of 12 do, 15.5 years off.
    assert "let in at T = 25</th><th" in body
    assert ">12 (few)</td><td>16.7% [4.7, 44.8]</td><td>0.0% [0.0, 24.2]</td>" in body
    row = ('<td class="number">25</td><td>15</td><td class="number">2</td>'
           '<td class="number">12 (few)</td><td>+15.5</td><td>+15.5</td>')  # fmt: skip
    assert row in body
    assert "No two groups have enough minors" in body


def test_a_gap_that_may_be_chance_starts_at_0():
    rng = np.random.default_rng(0)
    parts = {"x": [("a", np.arange(80) % 2 == 0), ("b", np.arange(80) % 2 == 1),
                   ("c", np.arange(80) < 3)]}  # fmt: skip
    found = gaps.measure(rng.exponential(4, 80), np.ones(80, bool), parts, np.arange(80))
    section = headlines.section({"gaps": {"age": found}}, {})
    assert "<td>age by x</td>" in section.body
    assert f"{found['x']['difference']:.3f} [0.000, " in section.body
    assert "<td>c (3)</td>" in section.body
    assert headlines.section({}, {}).body == ""


def test_what_could_not_be_decoded_is_shown_by_group():
    row = {"name": "60-69", "n": 50, "lost": 3, "rate": 0.06, "ci95": [0.02, 0.16]}
    found = {"images": 900, "files": 5, "undecoded": 4, "groups": {"decade": [row]}}
    body = report._unprocessed(found).body
    assert "900 images were used, 5 files could not be. 4 of these are images" in body
    assert '<td>60-69</td><td class="number">3</td><td>6.0% [2.0, 16.0]</td>' in body
    assert "was not recorded" in report._unprocessed(found | {"undecoded": None, "groups": {}}).body
    assert "None of these is an image" in report._unprocessed(found | {"undecoded": 0}).body
    assert report._unprocessed(found | {"files": 0}).body == ""
