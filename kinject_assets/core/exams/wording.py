"""What the words of a question, an option or a passage mean, however they are written.

Texts are compared as sequences of terms: words without case, accents, articles and plurals; numbers
with their units, whether in digits or in words; dates in any of the usual spellings. English is
what the lists know; other scripts are compared word by word.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from kinject_assets.core.corpus.chunking import sentences as split_sentences
from kinject_assets.core.quantities import (
    DEGREES,
    HEDGES,
    MONTHS,
    NEGATIVE,
    ONES,
    ORDINALS,
    SCALES,
    TENS,
    full_years,
    roman,
    unit_of,
)

FUNCTION_WORDS = frozenset(
    "a an and are as at be been being but by did do does for from had has have he her hers him his "
    "how if in into is it its itself me my nor of on or our she so such than that the their them "
    "themselves then there these they this those to too was we were what when where which who whom "
    "whose why will with would you your also not no about upon between during within".split()
)
"""Words that carry no fact of their own."""

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

_SPELLED = ONES.keys() | TENS.keys()
_LOOSE = {"dozen": 12.0, "half": 0.5}
_MONEY = frozenset("$£€¥₹")
_MONTHS = {name: n for n, name in enumerate(MONTHS, start=1)}
_MONTHS |= {name[:3]: n for name, n in _MONTHS.items()} | {"sept": 9}


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
_ISO_DATE = re.compile(r"\b(\d{4})-(0[1-9]|1[0-2])-(\d\d)\b")
_POWER = re.compile(r"(?<=\d)(?=[⁻⁰¹²³⁴-⁹])")
_NOUGHT = re.compile(r"[1-9]\d*\.\d*[1-9]0+", re.ASCII)


def _tokens(text: str) -> list[str]:
    """Words, numbers and telling signs, with their case; full stops and the like are left out."""
    text = _bare(_POWER.sub("^", text))
    text = _POSSESSIVE.sub("", text)
    text = _INITIALS.sub(lambda match: match[0].replace(".", ""), text)
    text = _ISO_DATE.sub(lambda m: f"{int(m[3])} {MONTHS[int(m[2]) - 1]} {m[1]}", text)
    text = full_years(text)
    text = re.sub(r"\bUS\$", "$", text)
    text = _SPEED.sub(lambda match: "mph" if match[0][1] == "i" else "kph", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\s?[–—-]\s?(?=[-−]?\d)", " to ", text)
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
        counted = after.isdigit() or (after and unicodedata.category(after) == "Sc")
        sign = character in "-−–" and counted and not before.isalnum()
        ion = character in "-−" and before.isalnum() and not after.isalnum()
        if sign or ion:
            found.append("-")
        elif (group == "S" and character != "`") or character in "%&#*/@":
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
        parts = (str(day or ""), MONTHS[month - 1], str(year or ""))
        self.terms.append(Term(key, tuple(filter(None, parts)), "date", True))
        return True

    def _cardinal(self, start: int) -> tuple[float, int] | None:
        """A number that starts here, in digits or words, and the place after it, or `None`."""
        total, current, place = 0.0, 0.0, start
        # Whether words may go on with it; whether none did since a scale.
        spelled, anew = True, True
        while place < len(self.low):
            word = self.low[place]
            tens = spelled and current % 100 == 0
            ones = spelled and current >= 20 and current % 10 == 0
            value = _number(word)
            if value is not None and place == start:
                current, spelled = value, False
            elif word in ONES and (tens or (ones and ONES[word] < 10)):
                current += ONES[word]
            elif word in TENS and tens:
                current += TENS[word]
            elif word in _LOOSE and place == start:
                current, spelled = _LOOSE[word], False
            elif word == "hundred":
                current, spelled = (1.0 if anew else current) * 100, True
            elif word in SCALES:
                total += (1.0 if anew else current) * SCALES[word]
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
        ordinal = re.fullmatch(r"(\d{1,15})(?:st|nd|rd|th)", self._at(start), re.ASCII)
        if ordinal or self._at(start) in ORDINALS:
            n = int(ordinal[1]) if ordinal else ORDINALS[self._at(start)]
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
        glued = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([^\W\d_]+)", self.tokens[start])
        if glued and (unit := unit_of(glued[2])):
            self._quantified(float(glued[1]), unit.base, unit.factor, start + 1)
            return True
        minus = self._at(start) == "-" or self._at(start) in NEGATIVE
        place = start + minus
        currency = unit_of(self._at(place))
        money = currency is not None and currency.base in _MONEY
        found = self._cardinal(place + money)
        if found is None:
            return False
        value, end = found
        value = -value if minus else value
        if currency and money:
            self._quantified(value, currency.base, 1.0, end)
            return True
        if value == 0.5 and self._at(start) == "half" and self._at(end) in {"a", "an"}:
            end += 1
        unit = unit_of(self.tokens[end]) if end < len(self.tokens) else None
        # `in` is the inch where nothing follows ("10 in"), and else nearly always a preposition.
        if self._at(end) == "in" and end + 1 == len(self.low):
            unit = unit_of("inch")
        if self._at(end) == "per" and self._at(end + 1) == "cent":
            self._quantified(value, "%", 1.0, end + 2)
        elif unit and unit.name == "degree":
            scale = DEGREES.get(self._at(end + 1), "")
            self._quantified(value, f"°{scale}", 1.0, end + 1 + bool(scale))
        elif unit:
            self._quantified(value, unit.base, unit.factor, end + 1)
        else:
            self._quantified(value, "", 1.0, end)
        return True

    def _quantified(self, value: float, unit: str, factor: float, end: int) -> None:
        written = next(filter(_NOUGHT.fullmatch, self.low[self.place : end]), "")
        self.place = end
        # A bare 3.10 may be a version, which 3.1 is not.
        bare = written and not unit and value == float(written)
        key = written if bare else f"{_shown(value * factor)}{unit}"
        also = (_shown(value), written) if written else (_shown(value),)
        self.terms.append(Term(key, (key,), "number", True, also))

    def _word(self) -> None:
        token, low = self.tokens[self.place], self.low[self.place]
        self.place += 1
        # World War II; a numeral after no name may be anything: an IV, XX chromosomes.
        if self.place > 1 and self.tokens[self.place - 2][0].isupper():
            for figure in roman(token):
                self.terms.append(Term(figure, (figure,), "word", True))
                return
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


_CODE = re.compile(
    r"^--?[^\W\d]|^[.$~/\\][^\W\d]|[^\W\d]\((?!s\))\S*\)$|\w_|_\w|\w\[|"
    r"::|->|=>|[!=<>]=|&&|[\\{}<>|^]"
)
"""A piece of code or notation: a flag, a path, a call, an identifier, an operator."""

_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d*)+", re.ASCII)
_ABOVE = re.compile(r"\b(?:over|more than|at least)\b", re.IGNORECASE)
_BELOW = re.compile(r"\b(?:under|less than|fewer than|at most|up to)\b", re.IGNORECASE)


def told_apart(a: str, b: str) -> bool:
    """Whether texts with the same terms are two things, which case, a sign or a bound tells apart.

    Case and signs count in code (`-v` and `-V`, `Foo()` and `foo()`), in chemical formulae (CO and
    Co) and in letters that stand alone (k and K). In prose they do not (The Hague, the hague).
    """
    if (_ABOVE.search(a) and _BELOW.search(b)) or (_BELOW.search(a) and _ABOVE.search(b)):
        return True
    first, second = _pieces(a), _pieces(b)
    alone = len(first) == len(second) == 1
    twins: defaultdict[str, list[str]] = defaultdict(list)
    for piece in second.keys() - first.keys():
        twins[_bones(piece)].append(piece)
    for piece in first.keys() - second.keys():
        for twin in twins[_bones(piece)]:
            letters = alone and len(piece) == len(twin) == 1
            # The answer NO is more often No than nitric oxide.
            formulae = (
                _FORMULA.fullmatch(piece) and _FORMULA.fullmatch(twin) and piece.casefold() != "no"
            )
            if first[piece] or second[twin] or letters or formulae:
                return True
    return False


@lru_cache(maxsize=1 << 12)
def _pieces(text: str) -> dict[str, bool]:
    """What stands between spaces, without marks of prose around it -> whether it is code."""
    found: dict[str, bool] = {}
    for word in text.split():
        piece = word.strip("\"'“”‘’«»`,;:?").rstrip(".") or word
        if piece.startswith("(") or piece.count("(") != piece.count(")"):
            piece = piece.strip("()") or piece
        code = _CODE.search(piece) is not None
        found[piece.removesuffix("()") if code else piece.rstrip("!") or piece] = code
    return found


def _bones(piece: str) -> str:
    """Letters and digits of a piece, case folded."""
    return "".join(c for c in piece.casefold() if c.isalnum())


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
