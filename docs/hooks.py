"""What mkdocs needs beside docs/: the README as the first page, results, and links out of docs/.

The pages are written to be read in the repository, where a link may lead to any file. The site
holds README.md and experiments/results/; of a link to another file only the text stays.
"""

from __future__ import annotations

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "experiments" / "results"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README and the results."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in (".md", ".png", ".json"):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at the places that files have in the site."""
    folder = pathlib.Path(page.file.abs_src_path or "").parent

    def mended(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups("")
        path = (folder / target).resolve()
        if "://" in target or not path.exists():
            return match[0]  # mkdocs tells where there is nothing
        uri = path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
        if path == ROOT / "README.md":
            uri = "index.md"
        if files.get_file_from_path(uri) is None:
            return text
        start = posixpath.dirname(page.file.src_uri)
        return f"{mark}[{text}]({posixpath.relpath(uri, start or '.')}{anchor})"

    return LINK.sub(mended, markdown)
