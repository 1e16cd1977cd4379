"""Numbers of a sentence and the units that they stand with, whichever way they are written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from kinject_assets.core.quantities import (
    CURRENCIES,
    DEGREES,
    HEDGES,
    NEGATIVE,
    ONES,
    ORDINALS,
    SCALES,
    TENS,
    unit_of,
)


class Token(NamedTuple):
    """A word, a number in digits or a mark, with what stands between it and the token before."""

    word: str
    gap: str


Sentence = Sequence[Token]

JOINED = frozenset({" ", "-", "‐"})
"""What may stand between the words of a number or of a name."""

_CARDINALS = ONES | TENS
_SHORT_SCALES = {"k": "thousand", "mn": "million", "bn": "billion", "tn": "trillion"}

PERCENT = "percent"

_SPOKEN = {
    "1": "once single",
    "2": "both twice twins pair couple double",
    "3": "trio triple",
    "10": "decade",
    "12": "dozen noon midnight",
    "100": "century",
}
_SHARES = {"half": {"50", "0.5"}, "quarter": {"25", "0.25"}, "quarters": {"75", "0.75"}}

VALUES: dict[str, set[str]] = {
    **{word: {str(n)} for word, n in (*_CARDINALS.items(), *ORDINALS.items())},
    **{word: {value} for value, words in _SPOKEN.items() for word in words.split()},
    **{word: values | {f"{v} {PERCENT}" for v in values} for word, values in _SHARES.items()},
}
"""Word -> keys of the numbers, and of the numbers with their unit, that it keeps."""

LONGEST = 15
"""Digits up to which a number is read; longer ones are compared as they stand."""

_MODIFIERS = frozenset("square sq cubic cu metric".split())

_VERSIONS = frozenset("v ver version versions release releases build update".split())
_MINUS = re.compile(r"[\s(\[/:=~<>≈,;±][-−–]$")
_TO_MINUS = re.compile(r"[–—-]\s?[-−]$")
_LISTING = frozenset("and or to by x".split())
_LISTED = re.compile(r"[\s,–—‐/×-]*")


@dataclass(frozen=True)
class Number:
    """A number in a sentence.

    Attributes:
        place: Of its first token.
        end: Place after its last token, scale included.
        shown: The figure or the words, without scale.
        keys: Figure and value: 2.5 and 2500000 for 2.5 million.
        scale: Key of what multiplies the figure, e.g. `scale million`; empty for none.
        value: Key of its value.
        unit: Name of its unit, e.g. `km` or `degree C`; empty for none.
        unit_shown: The unit as it is written.
        unit_place: Of the unit's first token.
        unit_end: Place after its last token.
        near: Units of numbers beside it in a list or range, which may be meant for it, too.
        counts: It says how many: `one`, `first` and `second` have other uses.
        small: One word up to twelve, which has other uses, too.
    """

    place: int
    end: int
    shown: str
    keys: frozenset[str]
    value: str
    scale: str = ""
    unit: str = ""
    unit_shown: str = ""
    unit_place: int = 0
    unit_end: int = 0
    near: frozenset[str] = frozenset()
    counts: bool = True
    small: bool = False


def numbers(sentence: Sentence) -> list[Number]:
    """The numbers of a sentence, in digits or in words, with their signs and units."""
    found: list[Number] = []
    place = 0
    while place < len(sentence):
        number = _digits(sentence, place) or _spoken(sentence, place)
        if number is None:
            place += 1
            continue
        place = number.end
        found.append(_with_unit(sentence, _with_sign(sentence, number)))
    joined = [_side_by_side(sentence, left, right) for left, right in pairwise(found)]
    for n in range(1, len(found)):
        if joined[n - 1]:
            found[n] = _beside(found[n], found[n - 1])
    for n in reversed(range(len(found) - 1)):
        if joined[n]:
            found[n] = _beside(found[n], found[n + 1])
    return found


def _beside(number: Number, other: Number) -> Number:
    """The number with the unit of one beside it: $5 to 10; 45, 50 and 60 %."""
    near = number.near | other.near | {other.unit} - {""}
    return number if number.unit else replace(number, near=near)


def _side_by_side(sentence: Sentence, left: Number, right: Number) -> bool:
    """Whether nothing but a comma, a dash or a small word is between two numbers."""
    between = sentence[max(left.end, left.unit_end) : right.place + 1]
    words = [word for t in between[:-1] if (word := t.word.casefold()) not in CURRENCIES]
    return (
        # Empty where the unit of one reads as the other: 5 second.
        len(between) > 0
        and len(words) < 2
        and _LISTING.issuperset(words)
        and all(_LISTED.fullmatch(token.gap) for token in between)
    )


def _word(sentence: Sentence, place: int) -> str:
    """The word at a place, case folded; empty outside the sentence."""
    return sentence[place].word.casefold() if 0 <= place < len(sentence) else ""


def _gap(sentence: Sentence, place: int) -> str | None:
    return sentence[place].gap if place < len(sentence) else None


def _key(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.12g}"


def _digits(sentence: Sentence, place: int) -> Number | None:
    word = sentence[place].word
    if not word[0].isdecimal():
        return None
    if len(word) > LONGEST:
        return Number(place, place + 1, word, frozenset({word}), word)
    if word.count(".") > 1:
        return Number(place, place + 1, word, frozenset({word}), word)
    figure = _key(float(word)) if "." in word else str(int(word))
    # Python 3.10 is not Python 3.1; 0.50 of something is 0.5 of it.
    keys = {figure, word} if "." in word else {figure}
    if figure != word and "." in word and _follows_a_name(sentence, place):
        keys = {word}
    plain = Number(place, place + 1, word, frozenset(keys), figure)
    after, gap = _word(sentence, place + 1), _gap(sentence, place + 1)
    if gap == "" and after in {"st", "nd", "rd", "th", "s"}:
        return Number(place, place + 2, word, plain.keys, figure)
    scale = after if after in SCALES and gap in {*JOINED, ""} else ""
    if gap == "":
        money = _word(sentence, place - 1) in CURRENCIES and not sentence[place].gap
        scale = scale or _SHORT_SCALES.get(after, "million" if after == "m" and money else "")
    if not scale:
        return plain
    value = _key(float(word) * SCALES[scale])
    keys = frozenset({figure, word.lstrip("0"), value})
    return Number(place, place + 2, word, keys, value, f"scale {scale}")


def _follows_a_name(sentence: Sentence, place: int) -> bool:
    """Whether what is before a number and what is after it make it a version: no amount."""
    before, after = _word(sentence, place - 1), _word(sentence, place + 1)
    if not before or sentence[place].gap not in {*JOINED, ""} or before in CURRENCIES:
        return False
    if before in _VERSIONS:
        return True
    named = sentence[place - 1].word[0].isupper() and before not in HEDGES
    return named and not (after in SCALES or after == "per" or unit_of(after))


def _spoken(sentence: Sentence, start: int) -> Number | None:
    """A number in words: five, twenty-one, two hundred and six, three million, twentieth."""
    total = current = 0
    place, scale, ordinal, tens = start, "", False, False
    while place < len(sentence) and not ordinal:
        low = _word(sentence, place)
        if place > start and sentence[place].gap not in JOINED:
            break
        if low == "and" and current >= 100 and _word(sentence, place + 1) in _CARDINALS:
            place += 1
            continue
        value = _CARDINALS.get(low, ORDINALS.get(low))
        if value is not None:
            if current % 100 and not (tens and 0 < value < 10):
                break
            current += value
            tens, ordinal, scale = value >= 20, low in ORDINALS, ""
        elif low == "hundred" and current < 10:
            current, tens, scale = 100 * (current or 1), False, ""
        elif low in SCALES and (current or place == start):
            total += (current or 1) * SCALES[low]
            current, tens, scale = 0, False, low
        else:
            break
        place += 1
    if place == start:
        return None
    value = total + current
    words = [token.word for token in sentence[start:place]]
    figure = value // SCALES[scale] if scale else value
    one_scale = bool(scale) and figure < 1000 and value % SCALES[scale] == 0
    return Number(
        start,
        place,
        " ".join(words[:-1] or words) if one_scale else " ".join(words),
        frozenset({str(value), str(figure)}) if one_scale else frozenset({str(value)}),
        str(value),
        f"scale {scale}" if one_scale else "",
        counts=value >= (3 if ordinal else 2),
        small=len(words) == 1 and value <= 12,
    )


def _with_sign(sentence: Sentence, number: Number) -> Number:
    """The number, negative if a minus is in front of it; in either way where that is open."""
    place = number.place
    if _word(sentence, place - 1) in CURRENCIES and not sentence[place].gap:
        place -= 1
    before, gap = _word(sentence, place - 1), sentence[place].gap
    gap = gap if before else f" {gap}"
    counted = before[:1].isdecimal() or before in _CARDINALS
    spoken = before in NEGATIVE and not _word(sentence, place - 2)[:1].isdecimal()
    negative = {f"-{key}" for key in number.keys}
    if (spoken and gap in JOINED) or (_TO_MINUS if counted else _MINUS).search(gap):
        shown, value = f"-{number.shown}", f"-{number.value}"
        return replace(number, shown=shown, value=value, keys=frozenset(negative))
    glued = gap in {"-", "−", "–"} and before.isalpha()
    below = "below" in (_word(sentence, number.end + n) for n in range(4))
    return replace(number, keys=number.keys | negative) if glued or below else number


def _with_unit(sentence: Sentence, number: Number) -> Number:
    """The number with the currency in front of it, or the unit behind it."""
    place = end = number.place - 1
    unit = unit_of(sentence[place].word) if _word(sentence, place) in CURRENCIES else None
    if unit is None and _gap(sentence, number.end) in {*JOINED, ""}:
        place = end = number.end
        while _word(sentence, end) in _MODIFIERS:
            place = end = end + 1
        if (_word(sentence, end), _word(sentence, end + 1)) == ("per", "cent"):
            unit, end = unit_of("%"), end + 1
        elif end < len(sentence):
            unit = unit_of(sentence[end].word)
    if unit is None:
        return number
    name, after = unit.name, _word(sentence, end + 1)
    if name == "degree" and after in DEGREES:
        name, end = f"degree {DEGREES[after]}", end + 1
    elif name == PERCENT and after in {"point", "points"}:
        name, end = "percentage point", end + 1
    first, *rest = sentence[place : end + 1]
    return replace(
        number,
        unit=name,
        unit_shown=first.word + "".join(token.gap + token.word for token in rest),
        unit_place=place,
        unit_end=end + 1,
    )
