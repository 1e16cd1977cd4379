"""Numbers of a sentence and the units that they stand with, whichever way they are written."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple


class Token(NamedTuple):
    """A word, a number in digits or a mark, with what stands between it and the token before."""

    word: str
    gap: str


Sentence = Sequence[Token]

JOINED = frozenset({" ", "-", "‐"})
"""What may stand between the words of a number or of a name."""

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen".split()
)
_ORDINAL_ONES = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth".split()
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_CARDINALS = {word: n for n, word in enumerate(_ONES)}
_CARDINALS |= {word: 10 * n for n, word in enumerate(_TENS, 2)}
_ORDINALS = {word: n for n, word in enumerate(_ORDINAL_ONES)}
_ORDINALS |= {f"{word[:-1]}ieth": 10 * n for n, word in enumerate(_TENS, 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_SCALES = {"k": "thousand", "mn": "million", "bn": "billion", "tn": "trillion"}

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
    **{word: {str(n)} for word, n in (*_CARDINALS.items(), *_ORDINALS.items())},
    **{word: {value} for value, words in _SPOKEN.items() for word in words.split()},
    **{word: {*values, "unit percent"} for word, values in _SHARES.items()},
}
"""Word -> keys of the numbers (and of the unit) that it keeps."""

_UNIT_WORDS = {
    "percent": "% percent pct percentage",
    "degree": "° degree degrees",
    "mm": "mm millimetre millimetres millimeter millimeters",
    "cm": "cm centimetre centimetres centimeter centimeters",
    "m": "m metre metres meter meters",
    "km": "km kph kmh kilometre kilometres kilometer kilometers",
    "inch": "inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard yards",
    "mile": "mi mph mile miles",
    "hectare": "ha hectare hectares",
    "acre": "acre acres",
    "litre": "l litre litres liter liters",
    "gallon": "gallon gallons",
    "barrel": "barrel barrels",
    "gram": "g gram grams gramme grammes",
    "kg": "kg kilo kilos kilogram kilograms kilogramme kilogrammes",
    "ton": "t ton tons tonne tonnes",
    "ounce": "oz ounce ounces",
    "kw": "kw kilowatt kilowatts",
    "mw": "mw megawatt megawatts",
    "gw": "gw gigawatt gigawatts",
    # Money or weight: the number beside it says as much in either.
    "pound": "lb lbs pound pounds £ gbp sterling",
    "dollar": "$ dollar dollars usd aud cad",
    "euro": "€ euro euros eur",
    "yen": "¥ yen jpy",
    "rupee": "₹ rupee rupees inr",
    "yuan": "yuan renminbi cny",
    "franc": "franc francs chf",
    "krone": "krone kroner krona kronor",
    "peso": "peso pesos",
    "rouble": "rouble roubles ruble rubles",
    "cent": "cent cents",
}
UNITS = {word: unit for unit, words in _UNIT_WORDS.items() for word in words.split()}
"""Word or mark, case folded -> unit. Units of time are left out: "45 years old" is "aged 45"."""

CURRENCIES = frozenset("$ € £ ¥ ₹ usd aud cad eur gbp jpy inr cny chf".split())
"""What may stand in front of its number."""

LONGEST = 15
"""Digits up to which a number is read; longer ones are compared as they stand."""

_MODIFIERS = frozenset("square sq cubic cu metric".split())

_ROMAN = re.compile(r"(?=[IVX]{2,})X{0,3}(?:IX|IV|V?I{0,3})")
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}


def roman(word: str) -> set[str]:
    """Key of a Roman numeral of two letters or more, up to XXXIX; empty for any other word."""
    if not _ROMAN.fullmatch(word):
        return set()
    digits = [_ROMAN_DIGITS[letter] for letter in word]
    after = [*digits[1:], 0]
    return {str(sum(-a if a < b else a for a, b in zip(digits, after, strict=True)))}


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
        unit: Key of its unit, e.g. `unit km`; empty for none.
        unit_shown: The unit as it is written.
        unit_place: Place of the unit.
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
    counts: bool = True
    small: bool = False


def numbers(sentence: Sentence) -> Iterator[Number]:
    """The numbers of a sentence, in digits or in words, with their units."""
    place = 0
    while place < len(sentence):
        found = _digits(sentence, place) or _spoken(sentence, place)
        if found is None:
            place += 1
            continue
        place = found.end
        yield _with_unit(sentence, found)


def _word(sentence: Sentence, place: int) -> str:
    """The word at a place, case folded; empty outside the sentence."""
    return sentence[place].word.casefold() if 0 <= place < len(sentence) else ""


def _gap(sentence: Sentence, place: int) -> str | None:
    return sentence[place].gap if place < len(sentence) else None


def _key(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.12g}"


def _digits(sentence: Sentence, place: int) -> Number | None:
    word = sentence[place].word
    if not word[0].isdigit():
        return None
    if len(word) > LONGEST:
        return Number(place, place + 1, word, frozenset({word}), word)
    figure = _key(float(word)) if "." in word else str(int(word))
    plain = Number(place, place + 1, word, frozenset({figure}), figure)
    after, gap = _word(sentence, place + 1), _gap(sentence, place + 1)
    if gap == "" and after in {"st", "nd", "rd", "th", "s"}:
        return Number(place, place + 2, word, plain.keys, figure)
    scale = after if after in _SCALES and gap in {*JOINED, ""} else ""
    if gap == "":
        money = _word(sentence, place - 1) in CURRENCIES and not sentence[place].gap
        scale = scale or _SHORT_SCALES.get(after, "million" if after == "m" and money else "")
    if not scale:
        return plain
    value = _key(float(word) * _SCALES[scale])
    return Number(place, place + 2, word, frozenset({figure, value}), value, f"scale {scale}")


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
        value = _CARDINALS.get(low, _ORDINALS.get(low))
        if value is not None:
            if current % 100 and not (tens and 0 < value < 10):
                break
            current += value
            tens, ordinal, scale = value >= 20, low in _ORDINALS, ""
        elif low == "hundred" and current < 10:
            current, tens, scale = 100 * (current or 1), False, ""
        elif low in _SCALES and (current or place == start):
            total += (current or 1) * _SCALES[low]
            current, tens, scale = 0, False, low
        else:
            break
        place += 1
    if place == start:
        return None
    value = total + current
    words = [token.word for token in sentence[start:place]]
    figure = value // _SCALES[scale] if scale else value
    one_scale = bool(scale) and figure < 1000 and value % _SCALES[scale] == 0
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


def _with_unit(sentence: Sentence, number: Number) -> Number:
    """The number with the currency in front of it, or the unit behind it."""
    place = number.place - 1
    unit = UNITS[_word(sentence, place)] if _word(sentence, place) in CURRENCIES else ""
    if not unit and _gap(sentence, number.end) in {*JOINED, ""}:
        place = number.end
        while _word(sentence, place) in _MODIFIERS:
            place += 1
        word = sentence[place].word
        if (word, _word(sentence, place + 1)) == ("per", "cent"):
            unit = "percent"
        elif word not in {"M", "L", "G", "T"}:
            unit = UNITS.get(word.casefold(), "")
    if not unit:
        return number
    shown = sentence[place].word
    return replace(
        number,
        unit=f"unit {unit}",
        unit_shown="per cent" if shown == "per" else shown,
        unit_place=place,
    )
