"""What a text states that another text can be held against: numbers, units, dates and names.

No language is understood here. Words are compared after the usual rewordings are made equal: digit
groups (1,000), number words (five, twenty-first), Roman numerals, scales (2.5 million), the order
and spelling of dates (3 March, March 3rd, 2021-03-03), units and currencies (km, $), initials (US).
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from kinject_assets.core.augmentation.numbers import (
    JOINED,
    VALUES,
    Number,
    Sentence,
    Token,
    numbers,
)
from kinject_assets.core.corpus.chunking import sentences, spaceless
from kinject_assets.core.quantities import (
    CURRENCIES,
    MONTHS,
    SHORT_MONTHS,
    full_years,
    roman,
    unit_of,
)


def normalised(text: str) -> str:
    """Words and numbers alone, case folded: equal for texts that differ in layout only.

    Scripts that write no spaces between words (see `spaceless`) come as single letters.
    """
    words = re.findall(r"\w+", text.casefold())
    if spaceless(text):
        words = [part for word in words for part in _parted(word)]
    return " ".join(words)


def _parted(word: str) -> Iterator[str]:
    """Letters of scripts without spaces one by one, whatever is between them as it is."""
    for single, letters in groupby(word, spaceless):
        if single:
            yield from letters
        else:
            yield "".join(letters)


def likeness(text: str, other: str) -> float:
    """Share of common words in common order, 1 for a copy."""
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(normalised(text).split(), normalised(other).split())


def facts(text: str) -> list[str]:
    """All that `dropped_facts` can miss of a text, each once, in order of appearance."""
    return list(dict.fromkeys(fact.shown for fact in _read(text).facts))


def dropped_facts(source: str, text: str) -> list[str]:
    """Numbers, units and names of a source that a text lacks, in order of appearance.

    A capital alone makes no name at the start of a sentence: there the word counts if it also
    stands capitalised within a sentence, or if the next word is capitalised too. Case, accents,
    endings (America, American) and whatever the module makes equal are no difference. A unit is
    missed only where its number is there. Never missed: single letters, `one`, `first`, `second`,
    units of time.
    """
    return _lacking(_read(source).facts, _read(text))


def invented_facts(text: str, source: str) -> list[str]:
    """Numbers, units and names of a text that its source lacks, in order of appearance.

    The reverse of `dropped_facts`, but for number words up to twelve: "the two" is a way of
    speaking.
    """
    return _lacking((fact for fact in _read(text).facts if not fact.small), _read(source))


def foreign_words(text: str, source: str) -> list[str]:
    """Words and numbers of a text that its source lacks, in order; small words are left out."""
    there = _read(source)
    counted = {
        place: number.keys
        for row, sentence in enumerate(_read(text).sentences)
        for number in numbers(sentence)
        for place in ((row, p) for p in range(number.place, number.end))
    }
    return [
        token.word
        for row, sentence in enumerate(_read(text).sentences)
        for place, token in enumerate(sentence)
        if token.word.isalnum()
        and _folded(token.word) not in _SMALL
        and not there.has_word(_folded(token.word))
        and not counted.get((row, place), frozenset()) & there.keys
    ]


def names(text: str) -> list[str]:
    """Names of a text, each once, in order of appearance.

    A name is a run of capitalised words, with small words of names (of, de, van) in between. One
    that is the end of a longer one (Curie, Marie Curie) is left out, as are months and days.
    """
    runs = [run for sentence in _read(text).sentences for run in _runs(sentence)]
    sure = {word for run in runs if run.sure for word in run.folded}
    found = dict.fromkeys(
        run.text
        for run in runs
        if (run.sure or sure.issuperset(run.folded))
        and any(len(word) > 1 for word in run.words)
        and not _CALENDAR.issuperset(run.folded)
    )
    plain = {name: normalised(name) for name in found}
    return [
        name
        for name, own in plain.items()
        if not any(other.endswith(f" {own}") for other in plain.values())
    ]


LONGEST_STEM = 40
"""Letters up to which beginnings of words are compared; no name is longer."""

_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_CALENDAR = frozenset((*MONTHS, *_DAYS))
_VERBS = frozenset({"march", "may"})
"""Months that may be another word where a sentence starts."""

_SHORT_MONTH = re.compile(rf"\b({SHORT_MONTHS})\b\.?(?=\s+\d)|(?<=\d )({SHORT_MONTHS})\b\.?")
_ISO_DATE = re.compile(r"\b(\d{4})-(0[1-9]|1[0-2])-([0-2]\d|3[01])\b")

_GROUPED = re.compile(r"(?<=\d)[,\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_POWER = re.compile(r"\b(km|m|cm|mm|mi|ft|yd)[23]\b")
_TOKEN = re.compile(r"\d+(?:\.\d+)*|[^\W\d_]+|[%$€£¥₹°]")

_ERAS = {"bce": "bc", "ce": "ad"}

_LEFT_OUT = frozenset("year decade century".split())
"""Units that a number may do without: "45 years old" is "aged 45"."""

_SMALL_TEXT = (
    "a after all although an and are as at be because been before both but by during each every "
    "for from had has have he her here his how however i if in into is it its many most no not of "
    "on once one or our over she since so some such that the their then there these they this "
    "those through to under until was we were what when where which while who with "
    "additionally also consequently despite even finally furthermore hence indeed later meanwhile "
    "moreover nevertheless only soon still therefore though thus today whose yet you your"
)
_SMALL = frozenset(_SMALL_TEXT.split())
"""Words that say little by themselves, and are capitalised where a sentence starts."""

_PARTICLES = frozenset("of de da del della der den di do dos du la le van von".split())


@dataclass(frozen=True)
class _Fact:
    """Something that a text states.

    Attributes:
        shown: As the text has it.
        keys: Each of them keeps it.
        word: Folded word of a name, which its stem keeps, too; empty for anything else.
        of: For a unit or a scale, the keys of its number; empty for anything else.
        unit: Name of a unit; empty for anything else.
        small: A number word up to twelve.
    """

    shown: str
    keys: frozenset[str]
    word: str = ""
    of: frozenset[str] = frozenset()
    unit: str = ""
    small: bool = False


@dataclass(frozen=True)
class _Reading:
    """What was read in a text.

    Attributes:
        facts: In order of appearance.
        keys: What keeps numbers, units, dates and initials of other texts.
        loose: Units that a number of the text may have although none stands beside it.
        words: Folded.
        stems: Beginnings of the words.
    """

    sentences: list[list[Token]]
    facts: list[_Fact] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    loose: set[str] = field(default_factory=lambda: set(_LEFT_OUT))
    words: set[str] = field(default_factory=set)
    stems: set[str] = field(default_factory=set)

    def has_word(self, low: str) -> bool:
        return low in self.words or (len(low) > 4 and low[: max(4, len(low) - 3)] in self.stems)

    def keeps(self, fact: _Fact) -> bool:
        if fact.unit in self.loose and any(f"{key} alone" in self.keys for key in fact.of):
            return True
        return bool(fact.keys & self.keys) or (bool(fact.word) and self.has_word(fact.word))


def _lacking(wanted: Iterable[_Fact], there: _Reading) -> list[str]:
    lost = (
        fact.shown
        for fact in wanted
        if not there.keeps(fact) and (not fact.of or fact.of & there.keys)
    )
    return list(dict.fromkeys(lost))


@lru_cache(maxsize=4096)
def _read(text: str) -> _Reading:
    found = _Reading(list(_sentences(text)))
    stated: list[tuple[_Fact, bool]] = []
    for sentence in found.sentences:
        here: list[tuple[int, _Fact, bool]] = []
        taken: set[int] = set()
        counted = numbers(sentence)
        measures = {place for n in counted for place in range(n.unit_place, n.unit_end)}
        for place, token in enumerate(sentence):
            low = _folded(token.word)
            found.words.add(low)
            found.stems.update(low[:size] for size in range(3, min(len(low), LONGEST_STEM) + 1))
            found.keys.update(VALUES.get(low, set()) | roman(token.word))
            # Spelt out, a unit says what it is without its number beside it.
            if len(low) > 3 and place not in measures and (unit := unit_of(low)):
                found.loose.add(unit.name)
        for number in counted:
            found.keys.update(number.keys, {number.scale}, _measured(number))
            if number.counts:
                taken.update(range(number.place, number.end), measures)
                here += [(place, fact, True) for place, fact in _of_number(number)]
        for run in _runs(sentence):
            initials = _initials(run)
            found.keys.update(initials)
            for place, word, low in zip(run.places, run.words, run.folded, strict=True):
                keys = _name_keys(word, low)
                found.keys.update(keys)
                if place not in taken and len(word) > 1 and low not in _PARTICLES:
                    fact = _Fact(word, frozenset(keys | initials), "" if low in MONTHS else low)
                    here.append((place, fact, run.sure))
        here.sort(key=lambda entry: entry[0])
        stated += [(fact, sure) for _, fact, sure in here]
    sure = {fact.word for fact, sure in stated if sure}
    found.facts.extend(fact for fact, certain in stated if certain or fact.word in sure)
    return found


def _of_number(number: Number) -> Iterator[tuple[int, _Fact]]:
    yield number.place, _Fact(number.shown, number.keys, small=number.small)
    if number.scale:
        keys = frozenset({number.scale, number.value})
        yield number.end - 1, _Fact(number.scale.removeprefix("scale "), keys, of=number.keys)
    if number.unit:
        keys = frozenset(f"{key} {number.unit}" for key in number.keys)
        fact = _Fact(number.unit_shown, keys, of=number.keys, unit=number.unit)
        yield number.unit_place, fact


def _measured(number: Number) -> set[str]:
    """Keys of a number with the units that it may have."""
    units = {number.unit or "alone", *number.near}
    if number.unit.startswith("degree"):
        units.add("degree")
    return {f"{key} {unit}" for key in number.keys for unit in units}


def _sentences(text: str) -> Iterator[list[Token]]:
    for line in _plain(text).splitlines():
        for sentence in sentences(line):
            for part in re.split(r"(?<=:)\s+", sentence):
                tokens: list[Token] = []
                end = 0
                for match in _TOKEN.finditer(part):
                    tokens.append(Token(match[0], part[end : match.start()]))
                    end = match.end()
                if tokens:
                    yield tokens


def _plain(text: str) -> str:
    """A text with digit groups joined, and dates and ranges of years written in full."""

    def month(match: re.Match[str]) -> str:
        short = (match[1] or match[2])[:3].casefold()
        return next(name for name in MONTHS if name.startswith(short)).capitalize()

    def date(match: re.Match[str]) -> str:
        return f"{int(match[3])} {MONTHS[int(match[2]) - 1].capitalize()} {match[1]}"

    text = unicodedata.normalize("NFKC", _GROUPED.sub("", text))
    text = full_years(_ISO_DATE.sub(date, text))
    return _SHORT_MONTH.sub(month, _POWER.sub(r"\1", text))


@lru_cache(maxsize=65536)
def _folded(word: str) -> str:
    """A word without case and accents."""
    parts = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in parts if not unicodedata.combining(c))


@dataclass(frozen=True)
class _Run:
    """Capitalised words side by side, with small words of names in between.

    Attributes:
        places: Of each word in its sentence.
        text: The words as they stand in the text.
        sure: A name; else a single word at the start of a sentence, which may be none.
    """

    words: list[str]
    places: list[int]
    text: str
    sure: bool

    @property
    def folded(self) -> list[str]:
        return [_folded(word) for word in self.words]


def _runs(sentence: Sentence) -> Iterator[_Run]:
    place = 0
    while place < len(sentence):
        if not _capital(sentence, place):
            place += 1
            continue
        places = [place]
        while (following := _next_of_name(sentence, places[-1])) is not None:
            places += range(places[-1] + 1, following + 1)
        first, *rest = (sentence[p] for p in places)
        month = _folded(first.word) in _CALENDAR - _VERBS
        yield _Run(
            [sentence[p].word for p in places],
            places,
            first.word + "".join(token.gap + token.word for token in rest),
            place > 0 or len(places) > 1 or month,
        )
        place = places[-1] + 1


def _next_of_name(sentence: Sentence, place: int) -> int | None:
    """Place of the next capitalised word of a name; `None` where it ends."""
    after = place + 1
    while after < len(sentence) and sentence[after].word in _PARTICLES:
        after += 1
    if after == len(sentence) or not _capital(sentence, after):
        return None
    # The stop after an initial ends no name: J. Smith, U.S. Senate.
    allowed = {*JOINED, ".", ". "} if len(sentence[place].word) == 1 else JOINED
    return after if all(t.gap in allowed for t in sentence[place + 1 : after + 1]) else None


def _capital(sentence: Sentence, place: int) -> bool:
    """Whether a word may be part of a name."""
    word = sentence[place].word
    after = sentence[place + 1] if place + 1 < len(sentence) else Token("", "")
    if not word[0].isupper() or word.casefold() in CURRENCIES:
        return False
    if _folded(word) in _SMALL:
        # A. Smith; not "A smith".
        return len(word) == 1 and after.gap.startswith(".")
    # US$ is a dollar, and no country.
    return after != ("$", "")


def _name_keys(word: str, low: str) -> set[str]:
    if low in MONTHS:
        return {f"month {low}"}
    keys = roman(word) | VALUES.get(low, set())
    if word.isupper() and len(word) > 1:
        keys |= {f"initials {word}", f"initials {_ERAS.get(low, low).upper()}"}
    return keys


def _initials(run: _Run) -> set[str]:
    """Initials of any two to six neighbours in a name: US, USA of United States of America."""
    letters = "".join(word[0] for word in run.words if word[0].isupper())
    return {
        f"initials {letters[start:end]}"
        for start in range(len(letters))
        for end in range(start + 2, min(len(letters), start + 6) + 1)
    }
