"""What words and marks say of numbers, months and units, for whoever reads quantities in a text.

There are two readers with two questions. `core.exams.wording` asks whether two wordings are one
answer, and folds a figure, its scale and its unit into one value: 5 km is 5,000 m.
`core.augmentation.numbers` asks what of one text another text lacks, and keeps the three apart,
since each can be lost: 5 km told as 5 m has lost its unit. What the words mean is here, once.
"""

import re
from dataclasses import dataclass

ONES = {
    word: n
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen".split()
    )
}
TENS = {
    word: 10 * n
    for n, word in enumerate(
        "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2
    )
}
ORDINALS = {
    word: n
    for n, word in enumerate(
        "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
        "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth".split()
    )
} | {f"{word[:-1]}ieth": n for word, n in TENS.items()}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NEGATIVE = frozenset({"minus", "negative"})

HEDGES = frozenset(
    "about around approximately roughly circa almost nearly over more than under less fewer at "
    "least most some only just up as many much".split()
)
"""Words before a number that leave it the number it is."""

MONTHS = (
    "january february march april may june july august september october november december".split()
)


@dataclass(frozen=True)
class Unit:
    """A unit of measurement or a currency.

    Attributes:
        name: The same for every spelling.
        base: Unit that it is a multiple of.
        factor: How many of those it is.
    """

    name: str
    base: str
    factor: float


_PREFIXES = {
    "M": ("mega", 10**6),
    "G": ("giga", 10**9),
    "T": ("tera", 10**12),
    "P": ("peta", 10**15),
    "k": ("kilo", 10**3),
    "h": ("hecto", 10**2),
    "c": ("centi", 10**-2),
    "m": ("milli", 10**-3),
    "μ": ("micro", 10**-6),
    "n": ("nano", 10**-9),
    "p": ("pico", 10**-12),
}

_PREFIXED = (
    # Symbol, words, prefixes in use, whether the symbol alone is read, base, factor.
    ("m", "metre meter", "kcmμn", True, "m", 1),
    ("g", "gram gramme", "kmμ", True, "g", 1),
    ("t", "tonne ton", "Mk", True, "g", 10**6),
    ("l", "litre liter", "hcmμ", True, "l", 1),
    ("s", "second sec", "mμn", False, "s", 1),
    ("V", "volt", "kmμM", True, "V", 1),
    ("A", "ampere amp", "kmμn", True, "A", 1),
    ("W", "watt", "MGTkm", True, "W", 1),
    ("Wh", "", "MGTk", True, "Wh", 1),
    ("J", "joule", "MGTk", True, "J", 1),
    ("N", "newton", "Mk", False, "N", 1),
    ("Hz", "hertz", "MGTk", True, "Hz", 1),
    ("Pa", "pascal", "MGkh", True, "Pa", 1),
    ("bar", "bar", "m", True, "Pa", 10**5),
    ("B", "byte", "MGTPk", False, "B", 1),
    ("bit", "bit", "MGTk", True, "bit", 1),
    ("b", "", "MGTk", False, "bit", 1),
    ("eV", "electronvolt", "MGTk", True, "eV", 1),
    ("Ω", "ohm", "Mk", True, "Ω", 1),
    ("F", "farad", "mμnp", False, "F", 1),
    ("T", "tesla", "m", False, "T", 1),
    ("Sv", "sievert", "mμ", True, "Sv", 1),
    ("cal", "calorie", "k", True, "cal", 1),
    ("mol", "mole", "m", True, "mol", 1),
)
"""Units that take prefixes. The case of a symbol counts: mW and MW, GB and Gb."""

_OTHERS = (
    # Name, symbols and words, base, factor.
    ("inch", "inch inches", "m", 0.0254),
    ("foot", "ft foot feet", "m", 0.3048),
    ("yard", "yd yard yards", "m", 0.9144),
    ("mile", "mi mile miles", "m", 1609.344),
    # What a speed says beside its distance is said without a unit: per hour.
    ("mile", "mph", "mph", 1),
    ("km", "kph kmh", "kph", 1),
    ("hectare", "ha hectare hectares", "ha", 1),
    ("acre", "acre acres", "acre", 1),
    ("gallon", "gallon gallons", "gallon", 1),
    ("barrel", "barrel barrels", "barrel", 1),
    ("cc", "cc", "cc", 1),
    ("kg", "kilo kilos", "g", 1000),
    ("ounce", "oz ounce ounces", "g", 28.349523125),
    # Money or weight: the number beside it says as much in either.
    ("pound", "lb lbs", "g", 453.59237),
    ("pound", "£ gbp pound pounds sterling", "£", 1),
    ("minute", "min mins minute minutes", "s", 60),
    ("hour", "h hr hrs hour hours", "s", 3600),
    ("day", "day days", "s", 86400),
    ("week", "week weeks", "s", 604800),
    ("month", "month months", "month", 1),
    ("year", "yr yrs year years", "month", 12),
    ("decade", "decade decades", "month", 120),
    ("century", "century centuries", "month", 1200),
    ("percent", "% percent pct percentage percentages", "%", 1),
    ("degree", "° degree degrees", "°", 1),
    ("hp", "hp bhp horsepower", "hp", 1),
    ("dB", "db decibel decibels", "dB", 1),
    ("dollar", "$ dollar dollars usd", "$", 1),
    ("dollar", "aud", "AUD", 1),
    ("dollar", "cad", "CAD", 1),
    ("euro", "€ euro euros eur", "€", 1),
    ("yen", "¥ yen jpy", "¥", 1),
    ("rupee", "₹ rupee rupees inr", "₹", 1),
    ("yuan", "yuan renminbi cny", "yuan", 1),
    ("franc", "franc francs chf", "franc", 1),
    ("krone", "krone kroner krona kronor", "krone", 1),
    ("peso", "peso pesos", "peso", 1),
    ("rouble", "rouble roubles ruble rubles", "rouble", 1),
    ("cent", "cent cents", "cent", 1),
)

CURRENCIES = frozenset("$ € £ ¥ ₹ usd aud cad eur gbp jpy inr cny chf".split())
"""What may stand in front of its number."""

DEGREES = {"c": "C", "celsius": "C", "centigrade": "C", "f": "F", "fahrenheit": "F"}
"""What may follow a degree -> its scale."""

_SYMBOLS: dict[str, Unit] = {}
_WORDS: dict[str, Unit] = {}
for _symbol, _words, _prefixes, _alone, _base, _factor in _PREFIXED:
    for _prefix in ("", *_prefixes):
        _spelt, _times = _PREFIXES.get(_prefix, ("", 1))
        _unit = Unit(_prefix + _symbol, _base, _times * _factor)
        if _prefix or _alone:
            _SYMBOLS[_unit.name] = _unit
        for _word in _words.split():
            _WORDS |= dict.fromkeys((_spelt + _word, f"{_spelt}{_word}s"), _unit)
for _name, _words, _base, _factor in _OTHERS:
    _WORDS |= dict.fromkeys(_words.split(), Unit(_name, _base, _factor))

_SYMBOLS["L"] = _SYMBOLS["l"]

_FOLDED = {
    symbol.casefold(): unit
    for symbol, unit in reversed(_SYMBOLS.items())
    # Those would be words and other things too often: ma, ms, pa, GPA, EV, kn.
    if len(symbol) > 1 and unit.base not in {"A", "s", "Pa", "N"} and symbol != "eV"
}
"""Symbols in the wrong case: KM, mw (megawatts: the first prefix of a unit comes first)."""


def unit_of(word: str) -> Unit | None:
    """The unit that a word, symbol or mark stands for where it follows a number, or `None`."""
    low = word.casefold()
    return _SYMBOLS.get(word) or _WORDS.get(low) or _FOLDED.get(low)


_ROMAN = re.compile(r"(?=[IVX]{2,})X{0,3}(?:IX|IV|V?I{0,3})")
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}


def roman(word: str) -> set[str]:
    """Key of a Roman numeral of two letters or more, up to XXXIX; empty for any other word."""
    if not _ROMAN.fullmatch(word):
        return set()
    digits = [_ROMAN_DIGITS[letter] for letter in word]
    after = [*digits[1:], 0]
    return {str(sum(-a if a < b else a for a, b in zip(digits, after, strict=True)))}


SHORT_MONTHS = "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
_YEARS = re.compile(
    r"\b(\d\d)(\d\d)(\s?[–—-]\s?)(\d\d)\b(?![–—-]?\d)"
    rf"(?!\s+(?:{'|'.join(MONTHS)}|{SHORT_MONTHS})\b)",
    re.IGNORECASE,
)
"""A range whose second year is cut short: 1941-45, and not 1907 – 29 June."""


def full_years(text: str) -> str:
    """A text with the second year of its ranges in full: 1941-1945 for 1941-45."""

    def years(match: re.Match[str]) -> str:
        century, first, dash, last = match.groups()
        counted = match.string[match.end() :].lstrip()[:1].isalpha()
        if counted and dash != dash.strip():  # 2019 – 20 goals
            return match[0]
        return f"{century}{first}{dash}{century if last > first else ''}{last}"

    return _YEARS.sub(years, text)
