"""python -m agejax.reference > docs/config.md

Lists every setting with its default, its allowed values, and a sentence of help: the page
docs/config.md. `python -m agejax.main --help=config.schedule` prints a part of it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from agejax.process import start

    start.as_command()

import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from agejax.errors import UserError, nearest
from agejax.process import usage
from agejax.process.command import run_command
from agejax.settings import Duration, Group, Setting

# (The place of a group's settings, such as "config.heads.NAME", what they belong to, such as
# "kind ordinal", and the group.)
Section = tuple[str, str, Group]

HEAD = """\
# Every setting

`python -m agejax.reference > docs/config.md` wrote this page. A config file changes what differs
from the defaults (`config.schedule.lr = 1e-3`), and so does the command line
(`--config.schedule.lr=1e-3`); `python -m agejax.main --help=config.schedule` prints a part of this
page. A duration is set as `{"epochs": 2.0}`, or with `--config.eval.every.epochs=2`; its unit is
one of steps, epochs, examples and percent (of the run).
"""


def sections(path: str = "config") -> Iterator[Section]:
    """Yields the sections that have settings at or below `path`, such as "config.heads.age"."""
    for where, of in _SECTIONS.items():
        if _meets(path, where) or _meets(where, path):
            yield from of()


def text(path: str) -> str:
    """The settings at or below `path`, as the command line shows them.

    Raises:
      UserError: there are none.
    """
    lines: list[str] = []
    # Options of heads and the like have pages of their own; "config" lists only its own settings.
    for where, title, group in _config() if path == "config" else sections(path):
        inside = [entry for entry in group.walk(where) if _meets(path, entry[0])]
        if inside and (title or _meets(path, where)):
            lines += ["", f"{where}, {title}: {group.help}" if title else f"{where}: {group.help}"]
        for name, setting in inside:
            if isinstance(setting, Group):
                lines += ["", f"{name}: {setting.help}"]
            else:
                lines += [f"  {name} = {setting.default!r}", _paragraph(setting)]
    if not lines:
        from agejax.config import SETTINGS

        known = ["config", *(name for name, _ in SETTINGS.walk("config"))]
        raise UserError(f"--help={path}: there is no such setting; {nearest(path, known)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def markdown() -> str:
    """The page docs/config.md."""
    lines = [HEAD]
    for where, title, group in sections():
        if where == "config":
            lines += _tables(where, group)
        else:
            lines += [f"### {where}, {title}" if title else f"## {where}", "", group.help, ""]
            lines += _table(where, group)
    return "\n".join(lines)


def _tables(where: str, group: Group) -> list[str]:
    lines = [f"## {where}", "", group.help, "", *_table(where, group)]
    for key, setting in group.items():
        if isinstance(setting, Group):
            lines += _tables(f"{where}.{key}", setting)
    return lines


def _table(where: str, group: Group) -> list[str]:
    rows = [
        f"| `{key}` | {_code(setting.default)} | "
        f"{_cell(_allowed(setting))} | {_cell(setting.help)} |"
        for key, setting in group.items()
        if isinstance(setting, Setting)
    ]
    if not rows:
        return []
    return ["| setting | default | allowed | what it is |", "|---|---|---|---|", *rows, ""]


def _code(value: object) -> str:
    """A value as code in a table's cell. GitHub ends a cell at any bare |, even in backticks."""
    text = repr(value)
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{text.replace('|', '&#124;').replace('*', '&#42;')}</code>"


def _cell(text: str) -> str:
    """Text in a table's cell, without Markdown's meaning of | and *."""
    return re.sub(r"([|*])", r"\\\1", text)


def _paragraph(setting: Setting) -> str:
    what, indent = f"{setting.help} {_allowed(setting)}", 6 * " "
    return textwrap.fill(what, 100, initial_indent=indent, subsequent_indent=indent)


def _allowed(setting: Setting) -> str:
    """The allowed values, as a sentence; "" for a dict, whose help describes them."""
    if isinstance(setting, Duration):
        return "A duration."
    if setting.wanted == "a dict":
        return ""
    unit = f" ({setting.unit})" if setting.unit else ""
    return f"{setting.wanted[0].upper()}{setting.wanted[1:]}{unit}."


def _meets(path: str, below: str) -> bool:
    """Whether `below` lies at or below `path`; NAME and PART stand for any name."""
    ours, theirs = path.split("."), below.split(".")
    return len(ours) <= len(theirs) and all(
        a == b or a.isupper() or b.isupper() for a, b in zip(ours, theirs, strict=False)
    )


def _config() -> Iterator[Section]:
    from agejax.config import SETTINGS

    yield "config", "", SETTINGS


def _copies() -> Iterator[Section]:
    from agejax.training import augment

    yield "config.augment.copies", "", augment.RECIPE


def _mixture() -> Iterator[Section]:
    from agejax.data import mixture

    yield "config.data.mixture.PART", "", mixture.SETTINGS


def _data_sets() -> Iterator[Section]:
    from agejax.data import builders

    for name in builders.TABLE:
        if options := builders.find(name).OPTIONS:
            yield "config.data.options", f"data set {name}", options


def _backbones() -> Iterator[Section]:
    from agejax.models import registry

    alike: dict[str, list[str]] = {}  # options, as text -> the backbones with these options
    for name in registry.MODELS:
        alike.setdefault(repr(registry.options_of(name).defaults()), []).append(name)
    for names in alike.values():
        yield "config.model.options", f"model {', '.join(names)}", registry.options_of(names[0])


def _heads() -> Iterator[Section]:
    from agejax.heads import KINDS, weights
    from agejax.heads.head import COMMON
    from agejax.models import feature_smoothing, necks

    yield "config.heads.NAME", "", COMMON
    for kind, head in KINDS.items():
        yield "config.heads.NAME", f"kind {kind}", head.options
    yield "config.heads.NAME.neck", "", necks.SETTINGS
    yield "config.heads.NAME.fds", "", feature_smoothing.SETTINGS
    for kind, options in weights.KINDS.items():
        yield "config.heads.NAME.example_weights", f"kind {kind}", options


def _onnx() -> Iterator[Section]:
    from agejax.distillation import onnx_models

    yield "config.distill.onnx.NAME", "", onnx_models.SETTINGS


# Place -> its sections, imported only on demand: some take seconds.
_SECTIONS: dict[str, Callable[[], Iterator[Section]]] = {
    "config": _config,
    "config.data.options": _data_sets,
    "config.data.mixture.PART": _mixture,
    "config.augment.copies": _copies,
    "config.model.options": _backbones,
    "config.heads.NAME": _heads,
    "config.distill.onnx.NAME": _onnx,
}


def main(argv: Sequence[str]) -> None:
    usage.parser(__doc__).parse_args(argv[1:])
    print(markdown(), end="")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
