"""Who is drawn: labels, and the traits that follow from them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

GENDERS = ("male", "female")
COLOURINGS = ("fair", "tan", "brown", "dark")  # of skin, hair and eyes; not groups of people
Array = np.ndarray


# ---- labels ------------------------------------------------------------------------------------

# A mixture close to UTKFace's age histogram: (share, kind, mean or low, deviation or high).
AGE_MIXTURE = (
    (0.10, "exponential", 1.0, 2.0),  # babies and toddlers
    (0.07, "uniform", 4.0, 19.0),
    (0.30, "normal", 26.0, 2.7),  # the mode
    (0.32, "normal", 34.5, 8.5),
    (0.15, "normal", 55.0, 8.0),
    (0.06, "normal", 77.0, 11.0),  # the tail
)
OLDEST = 100
COLOURING_SHARES = (0.42, 0.20, 0.20, 0.18)


@dataclasses.dataclass(frozen=True)
class Labels:
    """age in whole years, 1 to 100; looks, the years the face is drawn with; class indices."""

    age: int
    looks: float
    gender: int
    colouring: int


def draw_labels(rng: np.random.Generator) -> Labels:
    """Draws the labels of one face; ages are long-tailed.

    The standard deviation of looks around age is 0.5 years + 10 % of the age, at most 4.5 years, so
    that no predictor can have a mean absolute error much below 2.5 years.
    """
    _, kind, a, b = AGE_MIXTURE[_choice(rng, [share for share, *_ in AGE_MIXTURE])]
    if kind == "exponential":
        age = a + rng.exponential(b)
    elif kind == "uniform":
        age = rng.uniform(a, b)
    else:
        age = rng.normal(a, b)
    years = int(within(round(age), 1, OLDEST))
    looks = max(years + rng.standard_normal() * min(0.5 + 0.1 * years, 4.5), 0.5)
    return Labels(years, looks, int(rng.random() < 0.48), _choice(rng, COLOURING_SHARES))


def _choice(rng: np.random.Generator, shares: list[float] | tuple[float, ...]) -> int:
    """Index drawn with the given probabilities (rng.choice costs 20 µs, this 2)."""
    u = rng.random() * sum(shares)
    for i, share in enumerate(shares):
        u -= share
        if u < 0:
            return i
    return len(shares) - 1


# ---- traits ------------------------------------------------------------------------------------

SKIN = np.array([[234, 198, 176], [214, 168, 132], [166, 116, 82], [100, 68, 50]], np.float64)
HAIR = np.array(
    [[218, 182, 118], [172, 92, 50], [146, 104, 66], [78, 50, 34], [32, 26, 26]], np.float64
)  # blond, red, light brown, dark brown, black
HAIR_SHARES = ((0.32, 0.1, 0.33, 0.2, 0.05), (0.03, 0.02, 0.2, 0.4, 0.35),
               (0, 0, 0.05, 0.35, 0.6), (0, 0, 0.01, 0.14, 0.85))  # fmt: skip
GREY = np.array([206, 204, 202], np.float64)
IRIS = np.array([[86, 136, 176], [98, 128, 84], [128, 92, 54], [66, 42, 28]], np.float64)
IRIS_SHARES = ((0.42, 0.22, 0.22, 0.14), (0.08, 0.14, 0.3, 0.48),
               (0.01, 0.04, 0.25, 0.7), (0, 0.01, 0.09, 0.9))  # fmt: skip


def ramp(x: float, low: float, high: float) -> float:
    """0 below low, 1 above high, linear between."""
    return min(max((x - low) / (high - low), 0.0), 1.0)


def within(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@dataclasses.dataclass(frozen=True)
class Traits:
    """What one face looks like; lengths in units of about half a face's width, y downwards."""

    looks: float  # years
    adult: float  # 0 newborn, 1 grown up
    old: float  # 0 to 25 years, 1 at 85
    manly: float  # about 0 for women, 1 for men, with overlap
    skin: Array
    hair: Array
    grey: float  # share of grey hair
    iris: Array
    style: str  # bald, short, fringe, long, bun, curly
    hairline: float  # y of the hairline
    recede: float  # how far the temples have receded
    beard: float  # 0 none, 1 full
    moustache: bool
    lipstick: float
    glasses: bool
    smile: float
    width: float
    top: float
    chin: float
    jaw: float
    eye_y: float
    eye_x: float
    eye: float  # half the width of an eye
    openness: float
    nose_y: float
    nose: float  # half its width
    mouth_y: float
    mouth: float  # half its width
    lips: float  # thickness
    brow: float  # thickness
    ear: float


def draw_traits(rng: np.random.Generator, looks: float, gender: int, colouring: int) -> Traits:
    """Draws the traits of a face that looks that many years old; hair, jaw and brows overlap
    between genders, skin tones between colourings, and greying and balding vary by person."""

    def n(scale: float = 1.0) -> float:
        return float(rng.standard_normal() * scale)

    adult = 1.0 - math.exp(-looks / 7.5)
    old = max(looks - 25.0, 0.0) / 60.0
    manly = (0.8 if gender == 0 else 0.2) + n(0.16)
    manly = 0.5 + (manly - 0.5) * (0.35 + 0.65 * ramp(looks, 6, 18))  # children differ less

    tone = within(colouring + n(0.3), 0.0, 3.0)
    step = min(int(tone), 2)
    skin = SKIN[step] + (tone - step) * (SKIN[step + 1] - SKIN[step])
    skin = skin * (1 + n(0.03)) + np.array([n(3), n(2), n(4)])
    pale = min(old, 1.2)  # old skin is duller and yellower
    skin = skin * (1 - 0.05 * pale) + pale * np.array([-4.0, -2.0, -10.0])
    natural = HAIR[_choice(rng, HAIR_SHARES[colouring])] * (1 + n(0.1))
    natural = natural + (1 - adult) * (0.35 if colouring == 0 else 0.1) * (HAIR[0] - natural)
    grey = _sigmoid((looks - 52 + n(5)) / 6.5)
    dyed = rng.random() < (0.22 if gender == 1 else 0.04)
    grey = grey * (0.3 if dyed else 1.0)
    iris = IRIS[_choice(rng, IRIS_SHARES[colouring])] * (1 + n(0.08))

    u_style, u_length, u_beard, u_stache, u_lip, u_glass = rng.random(6)
    longish = u_length < ((0.82 - 0.4 * ramp(looks, 55, 85)) if gender == 1 else 0.1)
    if looks < 2.5:
        longish = False
    if longish:
        style = ("long", "long", "bun", "fringe")[int(u_style * 4)]
    else:
        style = "fringe" if u_style < 0.22 else "short"
    if u_style > (0.55 if colouring == 3 else 0.93):
        style = "curly"
    baldness = max(0.0, n(0.25) + 0.55) * ramp(looks, 22, 85) * (1.6 if gender == 0 else 0.25)
    if baldness > 0.85 or (looks < 1.6 and u_style < 0.5):
        style = "bald"
    bearded = gender == 0 and looks > 18
    beard = (0.5 + u_beard) if bearded and u_beard < 0.3 else 0.0
    stubble = 0.22 if bearded and u_beard > 0.7 else 0.0
    return Traits(
        looks=looks, adult=adult, old=old, manly=manly, skin=skin, grey=grey, iris=iris,
        hair=natural + grey * (GREY - natural), style=style,
        hairline=-0.80 + 0.14 * (1 - adult) + n(0.03) - 0.16 * min(baldness, 1.0),
        recede=min(baldness, 1.0), beard=max(beard, stubble),
        moustache=bool(bearded and u_stache < 0.25),
        lipstick=float(0.3 + 0.7 * u_lip) if gender == 1 and looks > 16 and u_lip < 0.5 else 0.0,
        glasses=bool(u_glass < 0.06 + 0.25 * ramp(looks, 30, 70)),
        smile=within(n(0.5) + 0.3, -0.5, 1.2),
        width=1.04 - 0.11 * adult + 0.05 * (manly - 0.5) + n(0.025) + 0.03 * old,
        top=1.24 + 0.05 * adult + n(0.02),
        chin=1.02 + 0.27 * adult + 0.07 * (manly - 0.5) * adult + n(0.025) + 0.05 * old,
        jaw=0.76 + 0.02 * adult + 0.16 * (manly - 0.5) * adult + 0.05 * min(old, 1) + n(0.02),
        eye_y=0.23 - 0.25 * adult + n(0.015), eye_x=0.42 - 0.02 * adult + n(0.012),
        eye=0.25 - 0.065 * adult - 0.02 * min(old, 1) - 0.015 * (manly - 0.5) + n(0.008),
        openness=within(0.72 - 0.2 * adult - 0.17 * min(old, 1.2) + n(0.05), 0.15, 0.9),
        nose_y=0.54 - 0.03 * adult + 0.06 * old + n(0.015),
        nose=0.125 + 0.055 * adult + 0.05 * old + 0.02 * colouring / 3 + n(0.012),
        mouth_y=0.75 + 0.08 * adult + 0.02 * old + n(0.015),
        mouth=0.21 + 0.11 * adult + n(0.02),
        lips=max(0.125 - 0.07 * min(old, 1.2) - 0.02 * manly + 0.012 * colouring + n(0.01), 0.025),
        brow=max(0.035 + 0.05 * manly * adult + n(0.01), 0.022) * (1 - 0.3 * min(old, 1)),
        ear=0.20 + 0.07 * old + n(0.015),
    )  # fmt: skip
