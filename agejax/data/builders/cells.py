"""Reads ages, classes and splits from cells of users' tables and from names of their folders."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

OLDEST = 120  # years; nobody in a photo is older
# How people, spreadsheets and pandas write an unknown label, in lower case.
UNKNOWN = frozenset(
    ("", "-", "?", "-1", "-1.0", "na", "n/a", "#n/a", "n.a.", "<na>", "nan", "none", "null",
     "unknown")
)  # fmt: skip
MINUS_ONE = ("-1", "-1.0")  # unknown, but also a class of some data sets
TOO_MANY = 0.05  # share of wrong cells in a column
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "development": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
NUMBER = re.compile(r"([0-9]{1,3})(?:\.0+)?")  # a class number; spreadsheets write 1.0 for 1
# A band of ages, such as "20-29", "(25, 32)" or "60+".
BAND = re.compile(
    r"\d+ *(?:[-\u2013\u2014]|to) *\d+|\( *\d+ *, *\d+ *\)|\[ *\d+ *, *\d+ *\]"
    r"|\d+ *\+|more than \d+"
)
DECIMAL_COMMA = re.compile(r"\d+,\d+")  # or a range, such as 25,32: refused, not guessed
MOST_NUMBERS = 10  # largest number of classes for which a message proposes names
MALE, FEMALE = ("m", "man", "men", "males"), ("f", "w", "woman", "women", "females")
SHORT = dict.fromkeys(MALE, "male") | dict.fromkeys(FEMALE, "female")
MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan", "feb", "mar mär mrz mrt", "apr", "may mai mei mag", "jun", "jul", "aug ago",
         "sep set", "oct okt ott out", "nov", "dec dez dic"), 1)
    for name in names.split()
}  # fmt: skip


def is_unknown(text: str) -> bool:
    """Whether a cell marks its label as unknown."""
    return text.strip().lower() in UNKNOWN


def years(text: str) -> float:
    """An age in years, NaN if the cell is empty or marks the age as unknown.

    Raises:
      ValueError: not a number, or an impossible age.
    """
    if is_unknown(text):
        return math.nan
    if BAND.fullmatch(text):
        raise ValueError(f"{text} is an age range; write a number, such as its middle")
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not 0 <= value <= OLDEST:
        remedy = "; write a decimal point" if DECIMAL_COMMA.fullmatch(text) else ""
        raise ValueError(f"{text} is not an age{remedy}")
    return value


def split_name(text: str) -> str:
    """train, val or test, by any usual name of it; "" if unknown.

    Raises:
      ValueError: not the name of a split.
    """
    if is_unknown(text):
        return ""
    if (name := SPLITS.get(text.strip().lower())) is None:
        raise ValueError(f"split {text!r} is not train, val or test")
    return name


def class_names(found: Iterable[str]) -> tuple[str, ...]:
    """The classes of a column without given names: its texts, sorted.

    If all are numbers, the classes are all numbers from the lowest to the highest.
    """
    names = sorted(text for text in found if not is_unknown(text))
    numbers = _numbers(names)
    if names and len(numbers) == len(names):
        return tuple(str(i) for i in range(min(numbers), max(numbers) + 1))
    return tuple(names)


def class_number(text: str, label: str, names: Sequence[str]) -> int:
    """The number of a class by its name (upper or lower case) or its place in `names`; -1: unknown.

    An empty name holds the place of a number that stands for no class: with ("", "male",
    "female"), "1" is male, whose number is 0, since empty names are not counted.

    Raises:
      ValueError: no such class.
    """
    classes = [name for name in names if name]
    if text in classes:
        return classes.index(text)
    if is_unknown(text):
        return -1
    number = NUMBER.fullmatch(text)
    if number and str(int(number[1])) in classes:
        return classes.index(str(int(number[1])))
    if number and int(number[1]) < len(names) and not classes_are_numbers(classes):
        name = names[int(number[1])]
        return classes.index(name) if name else -1
    folded = [name.casefold() for name in classes]
    for word in (text.casefold(), SHORT.get(text.casefold())):
        if word in folded:
            return folded.index(word)
    raise ValueError(f"{label} {text!r} is not one of {', '.join(classes)}")


def classes_are_numbers(names: Collection[str]) -> bool:
    """Whether the class names are only the numbers found in a column."""
    return bool(names) and len(_numbers(names)) == len(names)


def miscounted(found: Mapping[str, int], label: str, names: Sequence[str], option: str = "") -> str:
    """What is wrong with a column whose class numbers do not fit `names`; "": nothing.

    A few numbers without a class are mistakes in single rows; this checks the column as a whole.
    With two classes, a column of only ones, or of ones and -1, does not show which class 1 is.

    Args:
      found: the distinct cells of the column -> how often each occurs.
      option: the setting in which the user may name the classes.
    """
    known = {text: count for text, count in found.items() if not is_unknown(text)}
    numbers = {int(m[1]): n for text, n in known.items() if (m := NUMBER.fullmatch(text))}
    classes = [name for name in names if name]
    if not classes or len(numbers) < len(known) or classes_are_numbers(classes):
        return ""
    counted = ", ".join(f"{i} {name}" for i, name in enumerate(names) if name)
    beyond = sum(count for number, count in numbers.items() if number >= len(names))
    shown = sorted(numbers)
    said = ", ".join(map(str, shown[:4])) + (", ..." if len(shown) > 4 else "")
    if shown == [1] and len(classes) == len(names) == 2:
        if any(text.strip() in MINUS_ONE for text in found):
            return (
                f"the numbers in the column {label} (-1, 1) do not count from 0 ({counted}), and "
                "-1 marks an unknown label; write names in the table"
            )
        wrong = f"the column {label} has only the number 1, which may be either class ({counted})"
    elif not beyond or (0 in numbers and beyond < TOO_MANY * sum(numbers.values())):
        return ""
    elif 0 in numbers:
        wrong = f"the numbers in the column {label} ({said}) are more than its classes ({counted})"
    else:
        wrong = f"the numbers in the column {label} ({said}) do not count from 0 ({counted})"
    if not option or shown[-1] >= MOST_NUMBERS:
        return f"{wrong}; write names in the table"
    places = (*[""] * max(shown[0], 1), *classes)
    places += ("",) * (shown[-1] + 1 - len(places))
    return (
        f"{wrong}; write names in the table, or set {option} to a name for each number from 0, '' "
        f"for a number that is not a class, such as {places!r}"
    )


def _numbers(texts: Iterable[str]) -> list[int]:
    return [int(match[1]) for text in texts if (match := NUMBER.fullmatch(text))]


def band(text: str, bands: Mapping[str, object]) -> str | None:
    """The one of `bands` ("3-9", "10-19") in a cell, even where a spreadsheet made a date of it.

    A spreadsheet reads 3-9 as the 9th of March, the 3rd of September, or March of 2009, and writes
    9-Mar, 03-Sep, Mar-09, 2026-03-09 or 3/9/2026. A date is read as the band whose two numbers it
    shows, if there is only one such band.
    """
    if text in bands:
        return text
    words = re.findall(r"\d+|[^\W\d_]+", re.sub(r"\s\d+:.*", "", text.lower()))  # without a time
    numbers = [int(word) if word.isdecimal() else MONTHS.get(word[:3], -1) for word in words]
    match numbers:
        case [_, _]:
            pairs = [set(numbers)]
        case [a, b, c] if 1 in numbers:  # the first of a month, in the year 2009 or 2019
            pairs = [{n % 100 if n >= 1900 else n for n in (a, b, c)} - {1}]
        case [a, b, c]:  # with the year in which the spreadsheet was opened
            pairs = [{a, b}, {b, c}]
        case _:
            return None
    found = [name for name in bands if set(map(int, re.findall(r"\d+", name))) in pairs]
    return found[0] if len(found) == 1 else None
