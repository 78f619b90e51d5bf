"""Mutates bytes and texts; the given generator is the only source of randomness."""

from __future__ import annotations

import random

# Hard cases for parsers: ends of ranges, signs, other digits, line ends, paths, escapes.
ODD_TEXTS = (
    *("", " ", "0", "-1", "1", "nan", "inf", "-inf", "1e999", "1e-320", "2147483648", "9" * 40),
    *(
        "None",
        "True",
        "()",
        "[]",
        "{}",
        "(1,)",
        "[1, 2",
        "'",
        '"',
        "\\",
        ";",
        ",",
        "=",
        "\t",
        "\r\n",
    ),
    *("\n", "\x00", "\x1b[2J", "\u202e", "\ufeff", "٣٤", "²", "é", "e\u0301", "😀", "\udcff"),
    *("../x.jpg", "/etc/hostname", "~", "*", "%s%n", "$HOME", "a" * 300, "x/" * 40),
)
ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, -1)


def mutated(rng: random.Random, data: bytes, most: int = 6) -> bytes:
    """Overwrites, removes, doubles or copies bytes at up to `most` places, or cuts off the end."""
    result = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randint(0, len(result))
        size = min(rng.choice((1, 1, 2, 4, 8, 64)), len(result) - at)
        match rng.randrange(7):
            case 0:
                result[at : at + size] = rng.randbytes(size)
            case 1:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(ODD_NUMBERS) % 2 ** (8 * width)
                result[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 2:
                del result[at : at + size]
            case 3:
                result[at:at] = result[at : at + size] * rng.randint(1, 50)
            case 4:
                other = rng.randint(0, len(result))
                result[at : at + size] = result[other : other + size]
            case 5 if result:
                result[at % len(result)] ^= 1 << rng.randrange(8)
            case _ if rng.random() < 0.3:
                del result[at:]
    return bytes(result)


def text(rng: random.Random, alphabet: str = "", most: int = 20) -> str:
    """An odd text, or random characters of the alphabet, or of Unicode."""
    if rng.random() < 0.5:
        return rng.choice(ODD_TEXTS)
    draw = (lambda: rng.choice(alphabet)) if alphabet else (lambda: chr(rng.randrange(1, 0x2FF)))
    return "".join(draw() for _ in range(rng.randint(0, most)))


def encodable(given: str) -> str:
    """Removes unpaired surrogates, which no Unicode file can hold."""
    return given.encode(errors="replace").decode()


def changed_text(rng: random.Random, given: str) -> str:
    """Replaces, removes, doubles or adds a few characters of a text."""
    letters = list(given)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(letters))
        letters[at : at + rng.randint(0, 2)] = rng.choice(("", given[at : at + 3], text(rng)))
    return "".join(letters)
