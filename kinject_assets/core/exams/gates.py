"""Gates that turn an unsound question away, each with its reason.

A gate looks at one question and its passage, or (near-duplicates) at one question and those before
it. Each stands alone, so that its precision and recall can be measured: `docs/exams.md` has the
figures. They read words, not meaning: what they let through is for `exams.verify` and for people.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import pairwise

from kinject_assets.core.corpus.chunking import spaceless
from kinject_assets.core.exams.wording import (
    FUNCTION_WORDS,
    TITLES,
    Sentence,
    Term,
    content,
    plain,
    sentences,
    stems,
    terms,
    told_apart,
    words,
)

LONGEST_STEM = 1200
"""Characters of a question. Exam questions have some hundred; a longer one is not a question, and
comparing its words would take long."""

LONGEST_OPTION = 400
"""Characters of an option, for the same reasons."""

SUPPORTED = 0.5
"""Share of an answer's common words that its chunk must hold, beside all its names and numbers.
Answers that say it in other words keep some of them; made-up ones seldom do."""

WINDOW = 3
"""Sentences of a chunk, one after the other, that must hold an answer's words together: words from
all over a chunk support anything."""

BETTER_BY = 2
"""Words of the question that the best sentence with another option must have more than the best
sentence with the answer, for the answer to count as not supported."""

LONGER = 1.6
"""The right option is clearly longer from this many times the characters of the longest wrong
one..."""

MORE_WORDS = 4
"""... if it also has this many more words. One long name beside short ones is no hint."""

LEAKED = 0.6
"""Share of the words that only the right option has, from which the question gives it away when it
has none of the wrong options' words. One of two words is no more than the subject's name."""

SAME_FACT = 0.5
"""Share of the smaller question's own words (names of the article apart) that a question with the
same answer must share for the two to ask the same."""

EVIDENCE = 0.6
"""The same, of words that the other's sentence of the chunk holds."""

MOST_PLACES = 100
"""Places of an option in a sentence that are looked at: a sentence has a few, a list of a hundred
thousand characters may have more than there is time for."""

NEAR_DUPLICATE = 0.9
"""Jaccard similarity of two questions' words from which they ask the same, whatever the rest."""


@dataclass(frozen=True)
class Item:
    """A question as the gates see it.

    Attributes:
        stem: The question.
        options: Its options.
        answer: Index of the right one.
        passage: Text that it was written from; empty to leave out what needs one.
        title: Of the article that the passage is from: its words tell questions on it not apart.
    """

    stem: str
    options: tuple[str, ...]
    answer: int
    passage: str = ""
    title: str = ""

    @property
    def gold(self) -> str:
        """The right option."""
        return self.options[self.answer]

    @property
    def wrong(self) -> list[str]:
        """The other options."""
        return [text for place, text in enumerate(self.options) if place != self.answer]

    @cached_property
    def ordered(self) -> bool:
        """Whether the options list the same things in different orders: then that is the point."""
        lists = [_listed(option) for option in self.options]
        return any(found is not None and lists.count(found) > 2 for found in lists)

    @cached_property
    def cased(self) -> bool:
        """Whether most options differ in case alone: then that is the point."""
        alike = [plain(option).casefold() for option in self.options]
        return any(alike.count(found) > 2 for found in alike)

    def same(self, a: str, b: str) -> bool:
        """Whether two of its options are one answer."""
        if self.cased and plain(a) != plain(b):
            return False
        return says_the_same(a, b, self.ordered)

    @cached_property
    def asked(self) -> frozenset[str]:
        """Stems of what the question says."""
        said = content(self.stem)
        return stems([t for t in said if t.name]) | (stems(said) - _asking())

    @cached_property
    def stem_words(self) -> frozenset[str]:
        """Words of the question as they are written."""
        return frozenset(words(plain(self.stem))) or frozenset({plain(self.stem)})

    @cached_property
    def answer_words(self) -> frozenset[str]:
        """Stems of the right option."""
        return stems(content(self.gold)) or stems(terms(self.gold))

    @cached_property
    def subject(self) -> frozenset[str]:
        """Stems of the article's title."""
        return stems(content(self.title))

    @cached_property
    def own(self) -> frozenset[str]:
        """Those that tell it from other questions on the same article."""
        return self.asked - self.subject

    @cached_property
    def evidence(self) -> Sentence | None:
        """The sentence of the passage that holds the answer and most of the question's words."""
        holding = _holding(self.gold, self.passage)
        return max(holding, key=lambda s: len(s.stems & self.own), default=None)


_ASKING_WORDS = (
    "year date day month city town country state place name number kind type sort person company "
    "reason purpose way called named term word many percentage share amount sum title one following"
)
"""Words that say what kind of answer is wanted; another wording leaves them out. In a name they
stay."""


@cache
def _asking() -> frozenset[str]:
    return stems(content(_ASKING_WORDS))


def form(item: Item, options: int) -> str | None:
    """Whether this is a question with its options at all."""
    if not terms(item.stem[: LONGEST_STEM + 1]):
        return "empty question"
    if len(plain(item.stem)) > LONGEST_STEM:
        return f"question is longer than {LONGEST_STEM} characters"
    if len(item.options) != options:
        return f"wrong number of options: {len(item.options)}, not {options}"
    if not 0 <= item.answer < options:
        return f"answer index out of range: {item.answer}"
    if not all(terms(text) for text in item.options):
        return "empty option"
    if any(len(plain(text)) > LONGEST_OPTION for text in item.options):
        return f"option is longer than {LONGEST_OPTION} characters"
    return None


def distinct(item: Item) -> str | None:
    """Whether every option is another answer, two wrong ones included."""
    spelt = [[term.key for term in terms(option)] for option in item.options]
    for place, option in enumerate(item.options):
        for before, other in enumerate(item.options[:place]):
            # The right option in other words is for `single` to find.
            counts = item.answer not in (place, before) or spelt[place] == spelt[before]
            if counts and item.same(option, other):
                return "options are not distinct"
    return None


def single(item: Item) -> str | None:
    """Whether no wrong option says the same as the right one, or holds it."""
    for option in item.wrong:
        if item.same(option, item.gold):
            return "two options are right: they say the same"
        if not told_apart(option, item.gold) and _rewords(option, item.gold, item.passage):
            return "two options are right: one holds the other"
    return None


def alone(item: Item) -> str | None:
    """Whether the passage does not state a wrong option in one breath with the right one."""
    best = item.evidence
    if best is None:
        return None
    pieces = _PIECE.findall(best.text)
    low = [piece.casefold() for piece in pieces]
    shared = _shared_words(item.stem, low)
    if shared is None:
        return None
    gold = _places(low, item.gold)
    for option in item.wrong:
        for (start, end), (then, stop) in _neighbours(gold, _places(low, option)):
            chosen = any(first >= start - 1 and last <= stop + 2 for first, last in shared)
            if not chosen and _coordinated(pieces, end, then, stop):
                return "two options are right: the chunk names both together"
    return None


def standing(item: Item) -> str | None:
    """Whether every option is an answer by itself, not one about the other options."""
    if any(_COMBINES.search(plain(option)) for option in item.options):
        return "an option refers to other options"
    return None


def reference(item: Item) -> str | None:
    """Whether the question stands without the passage."""
    if any(pattern.search(plain(item.stem)) for pattern in _REFERS):
        return "question refers to the text"
    return None


def supported(item: Item) -> str | None:
    """Whether the passage states the answer, and no other option more to the point."""
    if not item.passage:
        return None
    if not _stated(item.gold, item.stem, item.passage) or _outdone(item):
        return "answer is not supported by the chunk"
    return None


def leak(item: Item) -> str | None:
    """Whether the question does not give its answer away."""
    said = stems(content(item.stem))
    options = [stems(content(option)) or stems(terms(option)) for option in item.options]
    common = frozenset.intersection(*options)
    shares = [len((o - common) & said) / max(1, len(o - common)) for o in options]
    right = shares.pop(item.answer)
    # A question that names several of its options ("which is larger, A or B?") gives none away.
    if right == 1.0 and 1.0 not in shares:
        return "question gives the answer away"
    if right >= LEAKED and max(shares) == 0.0:
        return "question gives the answer away"
    return None


def longest(item: Item) -> str | None:
    """Whether the right option does not stand out by its length and detail."""
    gold = item.gold
    if all(
        len(gold) >= LONGER * len(other) and len(gold.split()) >= len(other.split()) + MORE_WORDS
        for other in item.wrong
    ):
        return "right option is clearly longer than the others"
    return None


GATES: dict[str, Callable[[Item], str | None]] = {
    "distinct": distinct,
    "single": single,
    "standing": standing,
    "reference": reference,
    "supported": supported,
    "alone": alone,
    "leak": leak,
    "longest": longest,
}
"""Gates on one question whose form is sound, in the order in which they are asked."""


def gate(item: Item, options: int) -> str | None:
    """Why a question is unsound; `None` if nothing is wrong with it.

    Args:
        item: The question with its passage. Any text is judged, whatever it holds.
        options: Number of options that was asked for.
    """
    if reason := form(item, options):
        return reason
    return next((reason for check in GATES.values() if (reason := check(item))), None)


# -- What options say ------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def _keys(text: str) -> tuple[str, ...]:
    found = tuple(term.key for term in content(text))
    return found or tuple(term.key for term in terms(text))


def says_the_same(a: str, b: str, ordered: bool = False) -> bool:
    """Whether two options are one answer in two spellings; lists in any order unless `ordered`."""
    first, second = _keys(a), _keys(b)
    joined = "".join(first)
    same = (
        first == second
        or (joined == "".join(second) and joined.isalpha())  # Wal-Mart and Walmart
        or (not ordered and _listed(a) is not None and _listed(a) == _listed(b))
    )
    return same and not told_apart(a, b)


@lru_cache(maxsize=1 << 14)
def _listed(text: str) -> frozenset[tuple[str, ...]] | None:
    """The members of a list (A and B), whatever their order; `None` if it is none."""
    parts = re.split(r"\s*(?:,|;|&|\band\b|\bor\b)\s*", plain(text))
    members = frozenset(_keys(part) for part in parts if part)
    return members if len(members) > 1 else None


_CHANGING = frozenset(
    "non not no never without anti un half great step ex former vice deputy assistant semi quasi "
    "pseudo sub pre post - + ± < > ≤ ≥ ≠".split()
)
"""Words and signs that make something else of what is after them."""

_PREPOSITIONS = frozenset(
    "of with in for from by to on at without under over between against than".split()
)

_NOTHING_ELSE = re.compile(r"\b(?:only|just|alone|solely|merely)\b", re.IGNORECASE)

_NEUTRAL = TITLES | frozenset("city town village state country company group river mount".split())
"""Words that may be added to a name without changing what it names."""


def _rewords(option: str, gold: str, passage: str) -> bool:
    """Whether a wrong option is the right one said less or more precisely."""
    if _listed_with_and(gold) or _listed_with_and(option) or _NOTHING_ELSE.search(option):
        return False
    right, wrong = content(gold), content(option)
    if not right or not wrong:
        return False
    if len(right) == len(wrong) == 1 and _coarser(wrong[0].key, right[0].key):
        return True
    rights, wrongs = [t.key for t in right], [t.key for t in wrong]
    if len(wrongs) < len(rights):
        extra = _around(rights, wrongs)
        if extra is None:
            return False
        before, after = extra
        if after and not _breaks_after(gold, option):
            return False
        # In "a band with lines" the lines are not what is named.
        if before and not set(before) <= _NEUTRAL and _follows(gold, wrongs[0]) in _PREPOSITIONS:
            return False
        return not _CHANGING & set(before)
    extra = _around(wrongs, rights)
    if extra is None or not any(extra):
        return False
    before, after = extra
    if _CHANGING & set(before):
        return False
    if set(before) | set(after) <= _NEUTRAL:
        return True
    held = {key for sentence in sentences(passage) for key in sentence.keys}
    apart = re.search(r"[,(]", option) is not None
    return apart and set(before) | set(after) <= held


def _around(longer: list[str], shorter: list[str]) -> tuple[list[str], list[str]] | None:
    """What stands before and after the shorter one where it begins or ends the longer one."""
    n = len(shorter)
    if longer[-n:] == shorter:
        return longer[:-n], []
    if longer[:n] == shorter:
        return [], longer[n:]
    return None


def _follows(text: str, key: str) -> str:
    """The word before the last term with a key."""
    found = [term.key for term in terms(text)]
    place = len(found) - 1 - found[::-1].index(key)
    return found[place - 1] if place else ""


def _breaks_after(gold: str, option: str) -> bool:
    """Whether what follows the option within the right one is an addition to it."""
    end = re.escape(plain(option).casefold().split()[-1].strip(".,;"))
    return bool(
        re.search(
            rf"{end}\s*(?:[,(]|\b(?:in|of|at|on|from|with|for|near|who|which|that)\b)",
            plain(gold).casefold(),
        )
    )


def _listed_with_and(text: str) -> bool:
    return bool(re.search(r"\b(?:and|or)\b|&", text))


def _coarser(coarse: str, fine: str) -> bool:
    """Whether a year, month, decade or century (as keys of terms) holds a finer date or year."""
    year = re.match(r"(?:[12]\d{3})(?=-|$)", fine)
    if year is None or coarse == fine:
        return False
    n = int(year[0])
    if decade := re.fullmatch(r"(\d{3})0s", coarse):
        return n // 10 == int(decade[1])
    if century := re.fullmatch(r"(\d+)\.century", coarse):
        return (n - 1) // 100 + 1 == int(century[1])
    return fine.startswith(f"{coarse}-")


_COMBINES = re.compile(
    r"\b(?:all|none|any|both|some|neither|either|one|two|more than one)\s+of\s+"
    r"(?:the\s+)?(?:above|these|those|them|others?|options?|answers?|choices?|following|preceding)\b"
    r"|^\s*(?:both|neither|either|all|only|options?|answers?|choices?)?\s*\(?(?-i:[A-H]|I{1,3}|\d)\)?"
    r"\s*(?:,|and|or|nor|&|\+)\s*(?:\(?(?-i:[A-H]|I{1,3}|\d)\)?\s*(?:,|and|or|&)\s*)*"
    r"\(?(?-i:[A-H]|I{1,3}|\d)\)?(?:\s+(?:only|above|are\s+\w+))?\s*\.?$"
    r"|^\s*(?:options?|answers?|choices?)\s+(?:[A-H]|\d)\b"
    r"|\b(?:the|an)\s+(?:other|above|previous)\s+(?:options?|answers?|choices?)\b"
    r"|^\s*(?:both|neither)\s*\.?$|\bnone\s+is\s+(?:correct|right)\b",
    re.IGNORECASE,
)


# -- What the passage states -----------------------------------------------------------------------


def _holding(option: str, passage: str) -> list[Sentence]:
    """Sentences that hold an option: word for word, or else most of its words."""
    wanted = stems(content(option)) or stems(terms(option))
    found = sentences(passage)
    for share in (1.0, SUPPORTED):
        holding = [s for s in found if len(wanted & s.stems) >= share * len(wanted)]
        if holding:
            return holding
    return []


def _stated(gold: str, question: str, passage: str) -> bool:
    """Whether some sentences on end hold the answer's names, numbers and enough of its words."""
    if spaceless(gold) and plain(gold).casefold() in plain(passage).casefold():
        return True
    if f" {' '.join(words(gold))} " in f" {' '.join(words(passage))} ":
        return True
    held = content(gold)
    if not held:
        return False
    opening = held[0].kind == "word" and not (len(held) == 1 or _is_name(held, 0))
    fixed = stems([term for n, term in enumerate(held) if term.name and not (opening and n == 0)])
    loose = stems(held) - fixed
    said = stems(content(question))
    found = sentences(passage)
    everywhere = frozenset[str]().union(*(sentence.stems for sentence in found))
    for start in range(max(1, len(found) - WINDOW + 1)):
        near = frozenset[str]().union(*(s.stems for s in found[start : start + WINDOW]))
        if not fixed <= near:
            continue
        if len(loose) <= 1 and not fixed:
            if loose <= near:
                return True
        elif len(loose & (near | (said & everywhere))) >= SUPPORTED * len(loose):
            return True
    return False


def _is_name(held: Sequence[Term], place: int) -> bool:
    """Whether a term with a capital is a name although it opens the option: all that follow are."""
    return all(term.name for term in held[place:])


def _outdone(item: Item) -> bool:
    """Whether another option stands in a sentence that fits the question far better."""
    found = sentences(item.passage)

    def fit(option: str, before: int) -> int:
        """Most words of the question beside an option, and in so many sentences before it."""
        wanted = stems(content(option))
        kept = item.own - wanted
        near = (
            frozenset[str]().union(*(s.stems for s in found[max(0, n - before) : n + 1]))
            for n, sentence in enumerate(found)
            if wanted and wanted <= sentence.stems
        )
        return max((len(kept & held) for held in near), default=-1)

    # What the answer's sentence is about may stand in the one before it.
    right = fit(item.gold, 1)
    if right < 0:
        return False
    return any(fit(option, 0) >= max(right + BETTER_BY, 2 * right) for option in item.wrong)


_CHOOSES = re.compile(
    r"(?:first|last|second|third|final|only|other|another|besides|except|apart|addition|along|"
    r"together|respectively|most|least|more|less|worst|two|three|four|both|all|before|after|"
    r"(?!\w*west|forest|\w*quest|\w+terest|protest|guest|contest|harvest|arrest|priest|chest|"
    r"\w*test)\w+est)(?:-(?:\w+est|named|placed|born))?"
)
"""Words with which a question picks one of several things named together."""

_COUNTS = frozenset({("at", "least"), ("at", "most"), ("more", "than"), ("less", "than")})

_PIECE = re.compile(r"[^\W_]+(?:['’.\-·][^\W_]+)*|[,;()&]|[$£€¥%]")
_AND = frozenset({"and", "or", "&", "nor", "plus"})
_BREAKS = frozenset(
    "is was were are be been has had have did does do but while whereas then not who which that "
    "when after before because although later until instead than to into ; :".split()
)
_ADDED = frozenset("of with from in at on near".split())
_DETERMINERS = frozenset("the a an his her its their".split())
_CIRCUMSTANCES = [[word] for word in "in at on during for from by with of to since".split()]
_SINGULAR = frozenset("was is has had became did does would will".split())


def _shared_words(stem: str, low: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where a sentence has a question's choosing words as the question has them.

    Such a word picks nothing: who won *the final* is all that the sentence says won the final. One
    beside the options may be said of one of them: Rome, *the first capital*, and Turin.

    Args:
        stem: The question.
        low: The sentence's pieces, case folded.

    Returns:
        End of the first place and start of the last place of each such word that may be said of an
        option; `None` if the question picks with another word.
    """
    asked = _PIECE.findall(stem)
    found: list[tuple[int, int]] = []
    for n, word in enumerate(asked):
        before, after = asked[n - 1 : n], asked[n + 1 : n + 2]
        name = n > 0 and word[0].isupper() and not stem.isupper()  # the First World War
        amount = {(*before, word), (word, *after)} & _COUNTS or (word, *after) == ("most", "of")
        if name or amount or not _CHOOSES.fullmatch(word.casefold()):
            continue
        end = n + 1
        while end < len(asked) and asked[end].casefold() in _DETERMINERS:
            end += 1
        alone = not after or not after[0][0].isalnum()
        phrase = [*before, word] if alone else asked[n : end + 1]
        places = _places(low, " ".join(phrase))
        if not places:
            return None
        if not any(_circumstance(low, start, word.casefold()) for start, _ in places):
            found.append((places[0][1], places[-1][0]))
    return found


def _circumstance(low: Sequence[str], start: int, word: str) -> bool:
    """Whether a phrase says when or where, and so is not said of what stands beside it."""
    while start and low[start - 1] in _DETERMINERS:
        start -= 1
    return word in {"before", "after"} or low[start - 1 : start] in _CIRCUMSTANCES


def _neighbours(
    gold: Sequence[tuple[int, int]], option: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Places of one and of the other that follow each other, in their order.

    None is between them, so that all the stretches together are no longer than the sentence.
    """
    found = sorted([(place, 0) for place in gold] + [(place, 1) for place in option])
    for (left, one), (right, other) in pairwise(found):
        if one != other and left[1] <= right[0]:
            yield left, right


def _places(low: Sequence[str], option: str) -> list[tuple[int, int]]:
    """Start and end of the first places where a sentence has an option."""
    wanted = [piece.casefold() for piece in _PIECE.findall(option)]
    while wanted and wanted[0] in {"the", "a", "an", "in", "at"}:
        wanted = wanted[1:]
    found: list[tuple[int, int]] = []
    place = -1
    # list.index finds the next place of the first word far sooner than a look at every place.
    while wanted and len(found) < MOST_PLACES:
        try:
            place = low.index(wanted[0], place + 1)
        except ValueError:
            break
        if low[place : place + len(wanted)] == wanted:
            found.append((place, place + len(wanted)))
    return found


def _coordinated(pieces: list[str], end: int, start: int, stop: int) -> bool:
    """Whether two options are members of one list, or two names of one thing.

    Args:
        pieces: The sentence.
        end: Where the first option ends.
        start: Where the second one starts.
        stop: Where that ends.
    """
    gap = pieces[end:start]
    if stop < len(pieces) and pieces[stop] in _SINGULAR and {"and", "&"} & set(gap):
        return False  # ", and Y was ...": another statement begins
    if gap[:1] == ["("] and ")" not in gap:
        return len(gap) <= 3
    flat: list[str] = []
    depth = 0
    for piece in gap:
        depth += (piece == "(") - (piece == ")")
        if depth == 0 and piece != ")":
            flat.append(piece)
    if depth or any(piece.casefold() in _BREAKS for piece in flat):
        return False
    segments: list[list[str]] = [[]]
    joined = False
    for piece in flat:
        if piece == "," or piece.casefold() in _AND:
            joined = joined or piece != ","
            segments.append([])
        else:
            segments[-1].append(piece)
    if len(segments) == 1:
        return False
    first, *middle, last = segments
    if first and not (first[0].casefold() in _ADDED and len(first) <= 5):
        return False
    if any(len(segment) > 5 for segment in middle):
        return False
    named = all(p[0].isupper() or p.casefold() in FUNCTION_WORDS for p in last)
    if len(last) > 4 or not (named or last[0].casefold() in _DETERMINERS):
        return False
    # A list of commas alone is one only if it ends with an "and".
    return joined or bool(_AND & {p.casefold() for p in pieces[start : start + 25]})


# -- Questions that need the passage ---------------------------------------------------------------

_TEXT = r"(?:passage|text|excerpt|extract|paragraph|snippet|article)s?"
_SOURCE = (
    r"(?:passage|text|excerpt|extract|paragraph|snippet|article|document|source|material|section|"
    r"description|account|biography|summary|sentence|information|details?|facts|context|author|"
    r"writer|narrator|reading|quotation|story|essay|chapter|page)s?"
)
_GIVEN = (
    r"(?:above|given|provided|following|preceding|previous|present|presented|quoted|short|same)"
)
_OWN = (
    r"(?!\s+(?:of|by|through|between|across|over)\s+(?!(?:the|this|that)\s+(?:\w+\s+)?"
    rf"{_TEXT}\b))"
    r"(?!\s+(?:published|written|entitled|titled|called|engraved|inscribed|printed)\b)"
    r"(?!\s*[\"“'‘«])(?!\s+(?-i:[A-Z]|[IVX]+\b)|\s+\d)"
)
"""What follows where a text is a subject of its own: `the text of the treaty`."""
_SAYS = (
    r"(?:sa(?:y|ys|id)|state[sd]?|mention(?:s|ed)?|tells?|told|describe[sd]?|claim(?:s|ed)?|"
    r"suggest(?:s|ed)?|argue[sd]?|note[sd]?|name[sd]?|lists?|gives?|gave|identif(?:y|ies|ied)|"
    r"report(?:s|ed)?|explain(?:s|ed)?|refer(?:s|red)?|discuss(?:es|ed)?|impl(?:y|ies|ied)|"
    r"indicate[sd]?|highlight(?:s|ed)?|attribute[sd]?|credit(?:s|ed)?|cite[sd]?|quote[sd]?|"
    r"present(?:s|ed)?|focus(?:es|ed)?|provide[sd]?|calls?|define[sd]?|point(?:s|ed)?|"
    r"emphasi[sz]e[sd]?|compare[sd]?|consider(?:s|ed)?|conclude[sd]?|express(?:es|ed)?|"
    r"thinks?|thought|believe[sd]?|feels?|sees?|views?|regards?|recommends?|warns?|begins?|opens?)"
)

_REFERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # according to the passage; from this text; in the given article
        rf"\b(?:according\s+to|as\s+per|per|(?:up)?on|by|from|in|within|throughout|using(?:\s+only)?|"
        rf"considering|given|by)\s+(?:the|this|that|these)\s+(?:{_GIVEN}\s+)*{_TEXT}\b{_OWN}",
        rf"\b(?:according\s+to|as\s+per|judging\s+(?:from|by)|going\s+by|based\s+(?:up)?on)\s+"
        rf"(?:only\s+)?(?:the|this|that|these)\s+(?:{_GIVEN}\s+)*{_SOURCE}\b{_OWN}",
        r"\baccording\s+to\s+what\s+(?:is|was|has\s+been)\b",
        # the text states; does the author mention
        rf"\b(?:the|this|that)\s+(?:{_GIVEN}\s+)*(?:{_TEXT}|authors?|writers?|narrator)\s+"
        rf"(?:(?:also|then|only|explicitly|specifically|directly)\s+)?{_SAYS}\b",
        r"\bthe\s+(?:author|writer|narrator)['’]s\b",
        # the passage, the excerpt, this article: unless it is a subject of its own
        rf"\bthe\s+(?:passage|excerpt|snippet)\b{_OWN}(?!\s+(?:to|from|into)\b)",
        rf"\b(?:this|our)\s+(?:{_TEXT}|section|biography|summary|account|description|document|essay|"
        rf"chapter|reading)\b{_OWN}",
        rf"\b(?:the|this)\s+(?:above|aforementioned|preceding|following|given|provided)\s+"
        rf"(?:\w+\s+)?{_SOURCE}\b",
        # the information provided; the details above
        r"\b(?:information|details?|facts|data|context|material|text|description)\s+"
        r"(?:(?:that|which)\s+(?:is|are|was|were)\s+)?(?:provided|given|presented|supplied|above|"
        r"here|shown)\b(?!\s+(?:by|to|for)\b)",
        r"\b(?:information|details?|facts|material)\s+(?:contained\s+)?in\s+(?:the|this)\s+"
        rf"{_SOURCE}\b",
        r"\b(?:stated|mentioned|said|given|described|found)\s+in\s+(?:the|this)\s+"
        rf"(?:{_GIVEN}\s+)*{_SOURCE}\b{_OWN}",
        # as described above, mentioned here
        r"\b(?:mentioned|described|stated|discussed|listed|cited|noted|outlined|given|presented|"
        r"quoted|named|referred\s+to|referenced|provided|specified|written|indicated|shown|"
        r"reported)\s+(?:above|below|here)\b",
        r"\bas\s+(?:\w+\s+)?(?:mentioned|described|stated|discussed|noted|outlined|explained|"
        r"indicated|shown|seen)\s*(?:earlier|before|previously)\b",
        r"\b(?:is|are|was|were)\s+(?:\w+ly\s+)?mentioned\s+(?:as|for)\b|\bmentioned\s*(?:[?,.]|$)",
        r"\bin\s+(?:the|this)\s+(?:given\s+)?(?:second|third|last|opening|final|first)\s+"
        r"(?:paragraph|sentence|section)\b",
        # you have read, we learn, does it say
        r"\byou\s+(?:have\s+|'ve\s+|’ve\s+)?(?:just\s+)?read\b|\bwe\s+(?:are\s+told|learn|read)\b|"
        r"\b(?:are\s+we\s+told|do\s+we\s+(?:learn|read)|is\s+the\s+reader|the\s+reader\s+is)\b|"
        r"\bdoes\s+it\s+(?:say|state|mention)\b|\bit\s+(?:says|states|mentions)\s+(?:here|that)\b",
    )
)


# -- Questions that ask the same -------------------------------------------------------------------


class Asked:
    """The questions that a corpus asks already, to compare others with.

    Two questions can only ask the same if the words of one's answer are all in the other's answer,
    or in what the other says. So a question is filed under the rarest word of its answer, which the
    other one must have: in a corpus of any size, few are compared.
    """

    def __init__(self) -> None:
        self._by_word: defaultdict[str, list[Item]] = defaultdict(list)
        self._by_rarest_word: defaultdict[str, list[Item]] = defaultdict(list)
        self._by_spelling: defaultdict[str, list[Item]] = defaultdict(list)
        self._golds: dict[str, str] = {}

    def add(self, item: Item) -> None:
        """Takes a question in."""
        self._by_rarest_word[self._rarest(item)].append(item)
        self._by_spelling["".join(_keys(item.gold))].append(item)
        for word in item.answer_words:
            self._by_word[word].append(item)
        self._golds.setdefault(" ".join(words(item.stem)), " ".join(words(item.gold)))

    def objection(self, item: Item) -> str | None:
        """Why a question may not stand beside those taken in; `None` if it may."""
        gold = " ".join(words(item.gold))
        if self._golds.get(" ".join(words(item.stem)), gold) != gold:
            return "same words as another question of the corpus with another answer"
        near = [
            *self._by_spelling.get("".join(_keys(item.gold)), ()),
            *self._by_word.get(self._rarest(item), ()),
            *(o for w in item.answer_words | item.asked for o in self._by_rarest_word.get(w, ())),
        ]
        if any(
            ask_the_same(item, other) for other in {id(other): other for other in near}.values()
        ):
            return "near-duplicate of another question of the corpus"
        return None

    def _rarest(self, item: Item) -> str:
        """The word of an answer that the fewest answers have so far."""
        return min(
            sorted(item.answer_words), key=lambda w: len(self._by_word.get(w, ())), default=""
        )


def ask_the_same(a: Item, b: Item) -> bool:
    """Whether two questions ask for one fact, in other words or the other way round."""
    titles = a.subject | b.subject
    if _same_answer(a.gold, b.gold):
        first, second = a.stem_words, b.stem_words
        if len(first & second) / len(first | second) >= NEAR_DUPLICATE:
            return True
        if _apart(a, b):
            return False
        shared = _shared(a.asked - titles, b.asked - titles)
        return shared >= SAME_FACT or max(_answers(a, b), _answers(b, a)) >= EVIDENCE
    return _reversed(a, b)


def _same_answer(a: str, b: str) -> bool:
    if says_the_same(a, b):
        return True
    first, second = stems(content(a)), stems(content(b))
    if not first or not second or told_apart(a, b):
        return False
    return first <= second or second <= first


def _shared(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def _names(item: Item) -> frozenset[str]:
    """Stems of names and numbers that a question is about."""
    # The word that opens the question has its capital letter from that.
    named = [t for n, t in enumerate(terms(item.stem)) if t.name and (n or t.kind != "word")]
    return stems(named) & item.asked


def _apart(a: Item, b: Item) -> bool:
    """Whether each names something that the other, with its sentence and title, does not know."""

    def known(item: Item) -> frozenset[str]:
        evidence = item.evidence
        return item.asked | item.subject | (evidence.stems if evidence else frozenset())

    return bool(_names(a) - known(b)) and bool(_names(b) - known(a))


def _answers(a: Item, b: Item) -> float:
    """Share of one question's own words that the sentence behind the other one holds."""
    evidence = b.evidence
    asked = a.own - b.subject
    if evidence is None or not asked:
        return 0.0
    return len(asked & evidence.stems) / len(asked)


def _reversed(a: Item, b: Item) -> bool:
    """Whether each question says what the other asks for."""
    gold_a, gold_b = stems(content(a.gold)), stems(content(b.gold))
    if not gold_a or not gold_b or not (gold_a <= b.asked and gold_b <= a.asked):
        return False
    titles = a.subject | b.subject
    return _shared(a.asked - titles - gold_b, b.asked - titles - gold_a) >= SAME_FACT
