"""What the words of a question, an option or a passage mean, however they are written.

Texts are compared as sequences of terms: words without case, accents, articles and plurals; numbers
with their units, whether in digits or in words; dates in any of the usual spellings. English is
what the lists know; other scripts are compared word by word.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from kinject_assets.core.corpus.chunking import sentences as split_sentences

FUNCTION_WORDS = frozenset(
    "a an and are as at be been being but by did do does for from had has have he her hers him his "
    "how if in into is it its itself me my nor of on or our she so such than that the their them "
    "themselves then there these they this those to too was we were what when where which who whom "
    "whose why will with would you your also not no about upon between during within".split()
)
"""Words that carry no fact of their own."""

HEDGES = frozenset(
    "about around approximately roughly circa almost nearly over more than under less fewer at "
    "least most some only just up as many much".split()
)
"""Words before a number that leave it the number it is."""

TITLES = frozenset(
    "mr mrs ms dr doctor prof professor sir lady lord saint st president chancellor king queen "
    "emperor prince princess general captain pope bishop minister".split()
)

ABBREVIATIONS = {
    "us": "united states",
    "usa": "united states",
    "uk": "united kingdom",
    "eu": "european union",
    "un": "united nations",
    "dr": "doctor",
    "prof": "professor",
    "mt": "mount",
    "st": "saint",
    "corp": "corporation",
    "co": "company",
    "dept": "department",
    "univ": "university",
    "intl": "international",
    "govt": "government",
    "jr": "junior",
    "sr": "senior",
    "vs": "versus",
    "approx": "approximately",
    "&": "and",
}

_SMALL = {
    word: n
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * n
    for n, word in enumerate(
        "twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2
    )
}
_SPELLED = frozenset(_SMALL) | frozenset(_TENS)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LOOSE = {"dozen": 12.0, "half": 0.5}
_ORDINALS = {
    word: n
    for n, word in enumerate(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(),
        start=1,
    )
}

_UNITS: dict[str, tuple[str, float]] = {}
for _names, _base, _factor in (
    ("mm millimetre millimeter", "m", 0.001),
    ("cm centimetre centimeter", "m", 0.01),
    ("m metre meter", "m", 1),
    ("km kilometre kilometer", "m", 1000),
    ("mi mile", "m", 1609.344),
    ("ft foot feet", "m", 0.3048),
    ("in inch inche", "m", 0.0254),
    ("mg milligram", "g", 0.001),
    ("g gram gramme", "g", 1),
    ("kg kilogram kilo", "g", 1000),
    ("t tonne ton", "g", 10**6),
    ("second sec", "s", 1),
    ("minute min", "s", 60),
    ("hour hr", "s", 3600),
    ("day", "s", 86400),
    ("week", "s", 604800),
    ("month", "month", 1),
    ("year yr", "month", 12),
    ("decade", "month", 120),
    ("century centurie", "month", 1200),
    ("% percent pct", "%", 1),
    ("hp bhp horsepower", "hp", 1),
    ("kw kilowatt", "w", 1000),
    ("mw megawatt", "w", 10**6),
    ("l litre liter", "l", 1),
    ("ml millilitre milliliter", "l", 0.001),
    ("cc", "cc", 1),
    ("mph", "mph", 1),
    ("kph", "kph", 1),
    ("$ usd dollar", "$", 1),
    ("£ gbp pound", "£", 1),
    ("€ eur euro", "€", 1),
    ("¥ yen", "¥", 1),
):
    _UNITS |= dict.fromkeys(_names.split(), (_base, float(_factor)))

_MONTHS = {
    name: n
    for n, names in enumerate(
        (
            "january jan",
            "february feb",
            "march mar",
            "april apr",
            "may",
            "june jun",
            "july jul",
            "august aug",
            "september sept sep",
            "october oct",
            "november nov",
            "december dec",
        ),
        start=1,
    )
    for name in names.split()
}
_MONTH_NAMES = {n: name for name, n in reversed(_MONTHS.items())}


@dataclass(frozen=True)
class Term:
    """A word, a number with its unit, or a date.

    Attributes:
        key: The same for whatever means the same.
        parts: Words and numbers that a text must hold to state it.
        also: What a text states beside it: the bare number of one with a unit.
        kind: `word`, `number` or `date`.
        name: It was written with a capital letter, or is a number or date: one thing, not a kind.
    """

    key: str
    parts: tuple[str, ...]
    kind: str
    name: bool
    also: tuple[str, ...] = ()


def plain(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """Words and numbers, case folded; digit groups joined (1,000 and 1000 are one)."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    return re.findall(r"\w+", text)


def _bare(text: str) -> str:
    """Without accents on Latin letters, which writers leave out; other scripts as they are."""
    split = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", re.sub(r"(?<=[A-Za-z])[\u0300-\u036f]+", "", split))


_POSSESSIVE = re.compile(r"(?<=\w)['’]s?(?!\w)")
_INITIALS = re.compile(r"\b(?:[A-Za-z]\.){2,}")
_SPEED = re.compile(r"\b(?:mi|miles|km|kilomet(?:re|er)s)\s?(?:/\s?h|per hour)\b")
_ISO_DATE = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b")


def _tokens(text: str) -> list[str]:
    """Words, numbers and telling signs, with their case; full stops and the like are left out."""
    text = _bare(text)
    text = _POSSESSIVE.sub("", text)
    text = _INITIALS.sub(lambda match: match[0].replace(".", ""), text)
    text = _ISO_DATE.sub(lambda m: f"{int(m[3])} {_MONTH_NAMES.get(int(m[2]), m[2])} {m[1]}", text)
    text = re.sub(r"\bUS\$", "$", text)
    text = _SPEED.sub(lambda match: "mph" if match[0][1] == "i" else "kph", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\s?[–—-]\s?(?=\d)", " to ", text)
    found: list[str] = []
    current = ""
    for place, character in enumerate(text):
        group = unicodedata.category(character)[0]
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        if group in "LMN" or (character == "." and before.isdigit() and after.isdigit()):
            current += character
            continue
        if current and character in "+#" and not after.isalnum():
            current += character  # C++, C#, Na+
            continue
        if current:
            found.append(current)
            current = ""
        sign = character in "-−" and after.isdigit() and not before.isalnum()
        ion = character in "-−" and before.isalnum() and not after.isalnum()
        if sign or ion:
            found.append("-")
        elif group == "S" or character in "%&#*/@":
            found.append(character)
    return [*found, current] if current else found


def singular(word: str) -> str:
    """An English noun without its plural ending, roughly: the same for both numbers."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@cache
def _stemmer():  # noqa: ANN202 - nltk has no types
    from nltk.stem.snowball import SnowballStemmer

    return SnowballStemmer("english")


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """An English word without its endings (invented, inventing); others as they are."""
    return _stemmer().stem(word) if word.isascii() and word.isalpha() else word


def _number(token: str) -> float | None:
    """Value of a token of digits, or `None`."""
    return float(token) if re.fullmatch(r"\d{1,15}(?:\.\d{1,9})?", token, re.ASCII) else None


def _shown(value: float) -> str:
    return f"{value:.10g}"


class _Reader:
    """Reads tokens to terms from the left."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.low = [token.casefold() for token in tokens]
        self.place = 0
        self.terms: list[Term] = []

    def _at(self, place: int) -> str:
        return self.low[place] if 0 <= place < len(self.low) else ""

    def read(self) -> tuple[Term, ...]:
        while self.place < len(self.tokens):
            if not (self._date() or self._quantity()):
                self._word()
        return tuple(self.terms)

    def _day(self, place: int) -> int | None:
        found = re.fullmatch(r"(\d{1,2})(?:st|nd|rd|th)?", self._at(place), re.ASCII)
        return int(found[1]) if found and 1 <= int(found[1]) <= 31 else None

    def _year(self, place: int) -> int | None:
        token = self._at(place)
        return int(token) if re.fullmatch(r"[12]\d{3}", token, re.ASCII) else None

    def _date(self) -> bool:
        start = self.place
        day, month, year, end = None, None, None, start
        if (first := self._day(start)) is not None:
            after = start + 1 + (self._at(start + 1) == "of")
            if self._at(after) in _MONTHS:
                day, month, end = first, _MONTHS[self._at(after)], after + 1
        # Months that are other words too (may, march) count with a number beside them alone.
        elif self._at(start) in _MONTHS and self.tokens[start][0].isupper():
            month, end = _MONTHS[self._at(start)], start + 1
            if (then := self._day(end)) is not None:
                day, end = then, end + 1
            elif self._year(end) is None:
                return False
        if month is None:
            return False
        if (then := self._year(end)) is not None:
            year, end = then, end + 1
        self.place = end
        key = f"{year or '----'}-{month:02d}" + (f"-{day:02d}" if day else "")
        parts = (str(day or ""), _MONTH_NAMES[month], str(year or ""))
        self.terms.append(Term(key, tuple(filter(None, parts)), "date", True))
        return True

    def _cardinal(self, start: int) -> tuple[float, int] | None:
        """A number that starts here, in digits or words, and the place after it, or `None`."""
        total, current, place = 0.0, 0.0, start
        spelled, anew = (
            True,
            True,
        )  # whether words may go on with it; whether none did since a scale
        while place < len(self.low):
            word = self.low[place]
            tens = spelled and current % 100 == 0
            ones = spelled and current >= 20 and current % 10 == 0
            value = _number(word)
            if value is not None and place == start:
                current, spelled = value, False
            elif word in _SMALL and (tens or (ones and _SMALL[word] < 10)):
                current += _SMALL[word]
            elif word in _TENS and tens:
                current += _TENS[word]
            elif word in _LOOSE and place == start:
                current, spelled = _LOOSE[word], False
            elif word == "hundred":
                current, spelled = (1.0 if anew else current) * 100, True
            elif word in _SCALES:
                total += (1.0 if anew else current) * _SCALES[word]
                current, spelled, anew = 0.0, True, True
                place += 1
                continue
            elif not (
                word == "and"
                and spelled
                and (total or (current and current % 100 == 0))
                and self._at(place + 1) in _SPELLED
            ):
                break
            anew = False
            place += 1
        return (total + current, place) if place > start else None

    def _quantity(self) -> bool:
        start = self.place
        ordinal = re.fullmatch(r"(\d+)(?:st|nd|rd|th)", self._at(start), re.ASCII)
        if ordinal or self._at(start) in _ORDINALS:
            n = int(ordinal[1]) if ordinal else _ORDINALS[self._at(start)]
            self.place += 1
            if self._at(self.place) in {"century", "centuries"}:
                self.place += 1
                self.terms.append(Term(f"{n}.century", (f"{n}.", "century"), "date", True))
            else:
                self.terms.append(Term(f"{n}.", (f"{n}.",), "word", False))
            return True
        if decade := re.fullmatch(r"([12]\d\d0)s", self._at(start), re.ASCII):
            self.place += 1
            self.terms.append(Term(f"{decade[1]}s", (f"{decade[1]}s",), "date", True))
            return True
        glued = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", self._at(start), re.ASCII)
        if glued and glued[2] in _UNITS:
            base, factor = _UNITS[glued[2]]
            self._quantified(float(glued[1]), base, factor, start + 1)
            return True
        money = self._at(start) in _UNITS and _UNITS[self._at(start)][0] in "$£€¥"
        minus = self._at(start) == "-"
        found = self._cardinal(start + 1 if money or minus else start)
        if found is None:
            return False
        value, end = found
        value = -value if minus else value
        if money:
            self._quantified(value, _UNITS[self._at(start)][0], 1.0, end)
            return True
        if value == 0.5 and self._at(start) == "half" and self._at(end) in {"a", "an"}:
            end += 1
        unit = singular(self._at(end))
        if unit == "per" and self._at(end + 1) == "cent":
            self._quantified(value, "%", 1.0, end + 2)
        elif self._at(end) in {"°", "degree", "degrees"}:
            scale = self._at(end + 1)
            celsius = {"c": "C", "celsius": "C", "f": "F", "fahrenheit": "F"}.get(scale, "")
            self._quantified(value, f"°{celsius}", 1.0, end + 1 + bool(celsius))
        # `in` is the inch where nothing follows ("10 in"), and else nearly always a preposition.
        elif unit in _UNITS and (unit != "in" or end + 1 == len(self.low)):
            base, factor = _UNITS[unit]
            self._quantified(value, base, factor, end + 1)
        else:
            self._quantified(value, "", 1.0, end)
        return True

    def _quantified(self, value: float, unit: str, factor: float, end: int) -> None:
        self.place = end
        key = f"{_shown(value * factor)}{unit}"
        self.terms.append(Term(key, (key,), "number", True, (_shown(value),)))

    def _word(self) -> None:
        token, low = self.tokens[self.place], self.low[self.place]
        self.place += 1
        for word in ABBREVIATIONS.get(low, low).split():
            self.terms.append(Term(singular(word), (word,), "word", token[:1].isupper()))


@lru_cache(maxsize=1 << 13)
def terms(text: str) -> tuple[Term, ...]:
    """A text's terms in their order, function words among them."""
    return _Reader(_tokens(text)).read()


def content(text: str) -> tuple[Term, ...]:
    """Terms that carry a fact: without function words and hedges."""
    found = terms(text)
    kept: list[Term] = []
    for place, term in enumerate(found):
        word = term.parts[0] if term.kind == "word" else ""
        if word == "a":
            # Vitamin A, k [A]: an article has a word or a number after it.
            after = found[place + 1].parts[0] if place + 1 < len(found) else ""
            if not after[:1].isalnum():
                kept.append(term)
        elif word not in FUNCTION_WORDS and word not in HEDGES:
            kept.append(term)
    return tuple(kept)


def stems(found: Sequence[Term]) -> frozenset[str]:
    """Stems of the words of terms, and their numbers."""
    return frozenset(stem(part) for term in found for part in term.parts)


@dataclass(frozen=True)
class Sentence:
    """A sentence of a passage with what is asked of it again and again."""

    text: str
    stems: frozenset[str]
    keys: frozenset[str]


@lru_cache(maxsize=1 << 10)
def sentences(passage: str) -> tuple[Sentence, ...]:
    """A passage's sentences."""
    found: list[Sentence] = []
    for line in passage.splitlines():
        for sentence in split_sentences(line):
            held = content(sentence)
            also = frozenset(part for term in held for part in term.also)
            keys = frozenset(term.key for term in held)
            found.append(Sentence(sentence, stems(held) | also, keys))
    return tuple(found)
