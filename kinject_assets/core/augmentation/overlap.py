"""What training has met before: exam questions and validation texts in what is trained on.

Questions and training texts are written from the same chunks, each without knowledge of the other.
A model that has trained on a question of its exam answers from memory of the question; a validation
text that is trained on, too, rates memory where it should rate the facts.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kinject_assets.core.augmentation.facts import dropped_facts, likeness, normalised
from kinject_assets.core.exams.gates import says_the_same
from kinject_assets.core.schema import Paraphrase, Question
from kinject_assets.core.store import Cell, Store

_PAIR = re.compile(r"^Question: (.+)\nAnswer: (.+)$", re.MULTILINE)
"""As the augmentation `question_answer` renders it."""


@dataclass(frozen=True)
class Met:
    """A question or validation text that training has met.

    Attributes:
        text: The question, or the validation text.
        augmentation: Of the text to train on that has it.
        exact: Word for word, layout and case apart; else only nearly.
    """

    text: str
    augmentation: str
    exact: bool


@dataclass(frozen=True)
class Overlap:
    """What a corpus's training texts have met.

    Attributes:
        scored: Questions of the exam's test split.
        questions: Those that were met.
        validation: How many validation texts there are.
        texts: Those that were met.
    """

    corpus: str
    scored: int
    questions: list[Met]
    validation: int
    texts: list[Met]


def overlaps(store: Store, near: float) -> list[Overlap]:
    """What is met in each corpus of a lake that has texts to train on.

    Args:
        store: The lake; what is not there yet has not been met.
        near: Likeness from which a text counts as a copy, as in the profile's `augmentation`.
    """
    published = {cell for cell, _ in store.published()}
    found: list[Overlap] = []
    for cell in sorted(cell for cell in published if cell.asset == "paraphrases"):
        exam, held_out = (Cell(a, cell.parts) for a in ("questions", "validation_paraphrases"))
        texts = store.rows(cell, "paraphrases", Paraphrase)
        asked = store.rows(exam, "questions", Question) if exam in published else []
        scored = [row for row in asked if row.split == "test" and not row.retired]
        validation = (
            store.rows(held_out, "paraphrases", Paraphrase) if held_out in published else []
        )
        found.append(
            Overlap(
                cell.parts[0],
                len(scored),
                met_questions(scored, texts, near),
                len(validation),
                met_texts(validation, texts, near),
            )
        )
    return found


def met_questions(
    questions: Sequence[Question], texts: Sequence[Paraphrase], near: float
) -> list[Met]:
    """Exam questions that texts to train on ask, each once.

    A question is met word for word where it stands in a text on its own chunk, or is asked in a
    text on any chunk and answered with its right option. It is nearly met where a text asks another
    question that, with its answer, is as like as `near` to the question with its right option, and
    has their names and numbers.
    """
    asked: defaultdict[str, dict[str, str]] = defaultdict(dict)
    pairs: dict[str, _Pair] = {}
    texts_on: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for text in texts:
        texts_on[text.chunk_id].append((normalised(text.text), text.augmentation))
        for question, answer in _PAIR.findall(text.text):
            key = normalised(question)
            asked[key].setdefault(answer, text.augmentation)
            pair = _Pair(f"{question} {answer}", key, text.augmentation)
            pairs.setdefault(normalised(pair.text), pair)
    lines = _Lines(pairs, near)
    found: list[Met] = []
    for question in questions:
        stem = normalised(question.stem)
        if not stem:
            continue
        gold = question.options[question.gold]
        right = (
            name for answer, name in asked.get(stem, {}).items() if says_the_same(answer, gold)
        )
        # Whole words: "who won" is not in "the man who wondered".
        here = (
            name
            for text, name in texts_on.get(question.chunk_id or "", ())
            if f" {stem} " in f" {text} "
        )
        if exact := next(right, None) or next(here, None):
            found.append(Met(question.stem, exact, True))
            continue
        own = f"{question.stem} {gold}"
        # Questions of one mould differ in a name or a number alone, and are not the same; nor is
        # the question itself with another answer, which another chunk gives.
        alike = (
            pair.augmentation
            for pair in map(pairs.__getitem__, lines.like(normalised(own)))
            if pair.question != stem and not dropped_facts(own, pair.text)
        )
        if nearly := next(alike, None):
            found.append(Met(question.stem, nearly, False))
    return found


def met_texts(
    validation: Iterable[Paraphrase], texts: Iterable[Paraphrase], near: float
) -> list[Met]:
    """Validation texts that are copies or near-copies of texts to train on, on the same chunk."""
    texts_on: defaultdict[str, list[Paraphrase]] = defaultdict(list)
    for text in texts:
        texts_on[text.chunk_id].append(text)
    found: list[Met] = []
    for row in validation:
        alike = [(likeness(row.text, text.text), text) for text in texts_on[row.chunk_id]]
        best, text = max(alike, key=lambda pair: pair[0], default=(0.0, row))
        if best >= near:
            found.append(Met(row.text, text.augmentation, best == 1.0))
    return found


@dataclass(frozen=True)
class _Pair:
    """A question that is trained on, with its answer.

    Attributes:
        text: Both, as they are written.
        question: Normalised.
        augmentation: Of the text that has it.
    """

    text: str
    question: str
    augmentation: str


class _Lines:
    """Normalised lines to find one by another that is nearly the same.

    Each word becomes one letter, so that lines are compared as strings, which takes well below a
    microsecond. Lines of n and m words that are as like as `near` share at least near / 2 * (n + m)
    of them, so only lines of about the same length are compared at all.
    """

    def __init__(self, lines: Iterable[str], near: float) -> None:
        self._near = near
        self._letters: dict[str, str] = {}
        self._lines = sorted(lines, key=lambda line: len(line.split()))
        self._spelt = [
            "".join(self._letters.setdefault(word, self._next()) for word in line.split())
            for line in self._lines
        ]
        self._lengths = [len(letters) for letters in self._spelt]

    def _next(self) -> str:
        # NUL is left for words that no line has; past the last letter, words share one.
        return chr(1 + len(self._letters) % 0x10FFFF)

    def like(self, line: str) -> Iterator[str]:
        """Lines that are as like one as `near`, the likest first."""
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        spelt = "".join(self._letters.get(word, "\0") for word in line.split())
        # A little wider, as products of fractions are a little off.
        shortest = len(spelt) * self._near / (2 - self._near) - 1e-9
        longest = len(spelt) * (2 - self._near) / self._near + 1e-9
        start = bisect_left(self._lengths, shortest)
        end = bisect_right(self._lengths, longest)
        found = process.extract(
            spelt,
            self._spelt[start:end],
            scorer=Indel.normalized_similarity,
            score_cutoff=self._near,
            limit=None,
        )
        near = (self._lines[start + place] for _, _, place in found)
        yield from (other for other in near if likeness(line, other) >= self._near)
