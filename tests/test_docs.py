"""README and docs: what they name exists, their commands parse, their configs are valid."""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import inspect
import io
import json
import pathlib
import re
import shlex
import sys
import types
from collections.abc import Iterator

import ml_collections
import numpy as np
import pytest
from scipy import stats

import agejax
from agejax import checks, command_line
from agejax.__main__ import COMMANDS
from agejax.config import check, default
from agejax.data import audit, opening, splits
from agejax.data.builders import find
from agejax.models import pretrained

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "experiments" / "results" / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), RESULTS]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
UNITS = {"steps", "epochs", "examples", "percent"}
SUFFIXES = (".json", ".onnx", ".jaxexport", ".h5", ".py", ".md")


def prose(page: pathlib.Path) -> str:
    """The page without its fenced blocks."""
    return BLOCK.sub("", page.read_text())


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def commands(page: pathlib.Path) -> Iterator[list[str]]:
    """The words of each command in a fenced block or between backticks."""
    lines = []
    for language, block in BLOCK.findall(page.read_text()):
        if language in ("", "sh"):
            lines += block.replace("\\\n", " ").splitlines()
    lines += [code.replace("\\|", "|") for code in re.findall(r"`([^`\n]+)`", prose(page))]
    for line in lines:
        if re.match(r"(\S*python3?|agejax|make|pip) (?!.*(\.\.\.|agejax\.X))", line):
            yield shlex.split(line.replace("$RUN", "RUN").partition(" > ")[0], comments=True)


class Accepted(BaseException):
    """The parser accepted the arguments; `rest` are those that it leaves to another one."""

    def __init__(self, rest: list[str]) -> None:
        self.rest = rest


@pytest.fixture
def stop_after_parsing(monkeypatch):
    real = argparse.ArgumentParser.parse_known_args

    def parse(self, args=None, namespace=None):
        raise Accepted(real(self, args, namespace)[1])

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)


def is_setting(path: str) -> bool:
    """Whether a dotted path is in the config, or in a group whose keys are the user's."""
    group = default()
    for key in path.split("."):
        if not isinstance(group, ml_collections.ConfigDict):
            return False
        if key not in group:
            return not group or (key in UNITS and set(group) < UNITS)
        group = group[key]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_and_anchor_exists(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert "://" in link or target.exists(), link
        assert "://" in link or not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_named_exists(page):
    for name in re.findall(
        r"`((?:agejax|configs|docs|experiments|tests)/[^`\s]*)`", page.read_text()
    ):
        if not re.search("[A-Z]{4}", name):  # a part that stands for another
            assert list(ROOT.glob(name)), name


def test_every_recorded_file_exists():
    rows = re.findall(r"^\| (`.*?) \|", RESULTS.read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 60
    for name in names:
        assert list(RESULTS.parent.glob(name)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_named_is_in_the_config(page):
    groups = "|".join(default())
    named = re.findall(r"\bconfig\.([a-z]\w*(?:\.\w+)*)", page.read_text())
    named += re.findall(rf"`((?:{groups})(?:\.\w+)+)", prose(page))
    for path in named:
        if not f"config.{path}".endswith(SUFFIXES):
            assert is_setting(path), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_holds_the_marks_of_a_merge(page):
    assert not re.findall(r"^(?:<{7} |={7}$|>{7} ).*", page.read_text(), re.MULTILINE)


def test_a_setting_that_does_not_exist_is_noticed():
    assert is_setting("eval.every.steps")
    assert is_setting("data.options.labels")
    assert not is_setting("eval.evry")
    assert not is_setting("schedule.lr.peak")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_taken_by_its_parser(page, stop_after_parsing, monkeypatch, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for name in ("my_faces.py", "FILE"):
        (tmp_path / name).write_text("from agejax.config import default as get_config\n")
    monkeypatch.chdir(tmp_path)
    makefile = (ROOT / "Makefile").read_text()
    setup = (ROOT / "setup.py").read_text()
    for command, *words in commands(page):
        if command == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), words
        elif command == "pip":
            for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
                assert f'"{extra}": [' in setup, words
        elif command == "agejax":
            taken(COMMANDS[words[0]][0], words[1:], monkeypatch)
        elif words[0] == "-m":
            taken(words[1], words[2:], monkeypatch)


def taken(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails unless a command's module accepts the arguments; does not run the command."""
    assert importlib.util.find_spec(name), name
    ours = name.startswith(("agejax.", "experiments."))
    if not ours or not arguments or arguments[0].startswith("--help"):
        return
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    if name in ("agejax.main", "agejax.data.distribution"):
        importlib.import_module(name)  # its flags
        check(command_line.parse(sys.argv))
        for flag in command_line.FLAGS.get_flags_for_module(name):
            flag.unparse()  # tests to come have flags of their own
        return
    if importlib.util.find_spec(name).submodule_search_locations:
        name += ".__main__"
    main = importlib.import_module(name).main
    with pytest.raises(Accepted) as accepted:
        main(*[sys.argv] * len(inspect.signature(main).parameters))
    assert all(word.startswith("--config") for word in accepted.value.rest), arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_config_that_is_shown_is_valid(page):
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python" and "import agejax\n" not in block:
            space = {"config": default()}
            exec(compile(block, page.name, "exec"), space)
            config = space["get_config"]() if "get_config" in space else space["config"]
            check(config)


def test_the_python_of_the_readme_calls_functions_that_take_it(monkeypatch):
    calls = []

    def stands_in_for(function):
        def call(*args, **kwargs):
            calls.append(inspect.signature(function).bind(*args, **kwargs).arguments)
            return types.SimpleNamespace(
                metrics={"age": {"mae": 4.7}}, predict=lambda paths, faces: [{"age": 31.0}]
            )

        return call

    for name in ("train", "evaluate", "load"):
        monkeypatch.setattr(f"agejax.api.{name}", stands_in_for(getattr(agejax, name)))
    (block,) = [
        code for kind, code in BLOCK.findall((ROOT / "README.md").read_text()) if kind == "python"
    ]
    exec(block, {})
    trained, evaluated, loaded = calls
    check(trained["config"])
    assert trained["workdir"] == evaluated["run"] == loaded["run"]


def test_a_folder_with_a_csv_can_be_audited_and_trained_as_getting_started_tells(
    tmp_path, monkeypatch
):
    (tmp_path / "faces").mkdir()
    table = csv.writer(text := io.StringIO())
    table.writerow(["file", "Years", "Sex"])
    for face in find("procedural_faces")(count=60, size=64).faces():
        (tmp_path / f"faces/{face.id}.jpg").write_bytes(face.image)
        table.writerow([f"{face.id}.jpg", face.age, "MF"[face.gender]])
    (tmp_path / "ages.csv").write_text(text.getvalue())
    monkeypatch.chdir(tmp_path)
    page = DOCS / "getting_started.md"

    (block,) = [code for kind, code in BLOCK.findall(page.read_text()) if kind == "python"]
    exec(block, space := {})
    config = space["get_config"]()
    checks.before_data(pretrained.settle(config))
    source = opening.open_source(config.data)
    assert len(source.ids) == 60
    np.testing.assert_array_equal(np.isfinite(source.labels["age"]), True)
    assert sorted(set(source.labels["gender"])) == [0, 1]
    checks.with_data(config, splits.make(source, config.data.split))

    (arguments,) = [words[3:] for words in commands(page) if "agejax.data.audit" in words]
    audit.main(["audit", *arguments])
    assert (tmp_path / "runs/audit/index.html").exists()


@pytest.mark.parametrize("config", ["frozen_utk", "mobilenet_v1_utk", "mobilenet_v3_utk_best"])
def test_means_over_seeds_are_those_of_the_recorded_seeds(config):
    recorded = [
        json.loads((RESULTS.parent / config / f"seed{seed}_metrics.json").read_text())
        for seed in range(3)
    ]
    cells = []
    for target, figure, digits in (("age", "mae", 2), ("gender", "accuracy", 3)):
        of_seeds = [metrics[target][figure] for metrics in recorded]
        mean, deviation = np.mean(of_seeds), np.std(of_seeds, ddof=1)
        half = stats.t.ppf(0.975, 2) * deviation / np.sqrt(3)
        bounds = f"{mean - half:.{digits}f}, {mean + half:.{digits}f}"
        cells.append(f"**{mean:.{digits}f}** [{bounds}]")
    row = " | ".join(cells)
    for page in (ROOT / "README.md", DOCS / "results.md"):
        assert row in page.read_text(), f"{page}: {config} has {row}"
