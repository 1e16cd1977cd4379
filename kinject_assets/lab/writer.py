"""The lab's "language model": answers by rule, and only from the text that it is sent.

It is no language model. It knows the grammar of the lab's articles and the prompts for questions,
selection and paraphrases; it parses the passage in the prompt back to facts and words them anew.
It has no access to the lab's world. For text outside the grammar it falls back on cloze questions
and on re-ordered sentences.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinject_assets.core.augmentation.prompts import PARAPHRASE
from kinject_assets.core.exams.prompts import SELECTION, WRITING
from kinject_assets.core.llm.quoting import Message, quoted
from kinject_assets.lab.grammar import POOLS, Fact, ask, parse, tell

MODEL = "lab-writer-by-rule"
"""Its name among the server's models: nobody shall take it for a language model."""

RENDERINGS = 8
"""Paraphrases tried per request; the one least like the passage is sent."""

_LEADS = (
    "To put it another way:",
    "In other words:",
    "What is known is this:",
    "The account runs as follows:",
    "Told differently:",
)


def answer(messages: Sequence[Message], seed: int) -> dict[str, Any] | None:
    """Answers one of the three prompts with what its JSON schema asks for.

    Args:
        messages: The request's messages.
        seed: The same seed and messages give the same answer.

    Returns:
        The answer, or `None` for any other prompt.
    """
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    passage = quoted("passage", messages)
    if passage is None:
        return None
    rng = random.Random(f"{seed}\n{passage}")
    if system.startswith(WRITING):
        wanted = _number(messages, "Questions to write", 4)
        options = _number(messages, "Options per question", 4)
        return {"questions": write_questions(passage, wanted, options, rng)}
    if system.startswith(SELECTION):
        stems = re.findall(r"^\d+\. (.*)$", quoted("questions", messages) or "", re.MULTILINE)
        return {"kept": select(stems, _number(messages, "Questions to keep", 2), rng)}
    if system.startswith(PARAPHRASE):
        return {"paraphrase": paraphrase(passage, rng)}
    return None


def write_questions(
    passage: str, wanted: int, options: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Writes up to `wanted` questions: on facts of the grammar first, then cloze questions."""
    known, rest = _read(passage)
    values: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for fact in known:
        values[fact.subject, fact.spec.pool].add(fact.value)
    # A subject with two values of a pool may have two right answers: not asked.
    single = [fact for fact in known if len(values[fact.subject, fact.spec.pool]) == 1]
    rng.shuffle(single)
    questions = [_question(fact, options, rng) for fact in single[:wanted]]
    gaps = _gaps(rest)
    rng.shuffle(gaps)
    spare = max(0, wanted - len(questions))
    questions += [_cloze(gap, passage, options, rng) for gap in gaps[:spare]]
    return questions


def select(stems: Sequence[str], keep: int, rng: random.Random) -> list[int]:
    """Keeps the questions that name most: capitalised words and numbers; seeded among equals."""
    order = list(range(len(stems)))
    rng.shuffle(order)
    order.sort(key=lambda n: len(re.findall(r"\b(?:[A-Z]\w+|\d+)", stems[n])), reverse=True)
    return sorted(order[:keep])


def paraphrase(passage: str, rng: random.Random) -> str:
    """Says the passage's facts in other words, and its other sentences in another order."""
    known, rest = _read(passage)
    tries = [_rendering(known, rest, rng) for _ in range(RENDERINGS)]
    return min(tries, key=lambda text: _likeness(text, passage))


def _rendering(known: list[Fact], rest: list[str], rng: random.Random) -> str:
    parts = [tell(known, rng)] if known else []
    if rest:
        parts.append(f"{rng.choice(_LEADS)} {_reordered(rest, rng)}")
    rng.shuffle(parts)
    return " ".join(parts)


def _likeness(text: str, other: str) -> float:
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(text.casefold().split(), other.casefold().split())


def _number(messages: Sequence[Message], label: str, default: int) -> int:
    for message in messages:
        if found := re.search(rf"^{label}: (\d+)$", message["content"], re.MULTILINE):
            return int(found[1])
    return default


def _read(passage: str) -> tuple[list[Fact], list[str]]:
    """Facts of the grammar, each once, and the sentences outside it."""
    facts: dict[Fact, None] = {}
    rest: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", passage.strip()):
        fact = parse(sentence)
        if fact is not None:
            facts[fact] = None
        elif sentence:
            rest.append(" ".join(sentence.split()))
    return list(facts), rest


def _question(fact: Fact, options: int, rng: random.Random) -> dict[str, Any]:
    wrong = rng.sample([v for v in POOLS[fact.spec.pool] if v != fact.value], options - 1)
    place = rng.randrange(options)
    texts = [*wrong[:place], fact.value, *wrong[place:]]
    return {"question": ask(fact, rng), "options": texts, "answer": place}


@dataclass(frozen=True)
class _Gap:
    sentence: str
    word: str


def _gaps(sentences: Sequence[str]) -> list[_Gap]:
    """One gap per sentence: its longest number or capitalised word that does not open it."""
    gaps: list[_Gap] = []
    for sentence in sentences:
        words = re.findall(r"\w+", sentence)[1:]
        telling = [word for word in words if _telling(word)]
        if len(words) >= 5 and telling:
            gaps.append(_Gap(sentence, max(telling, key=len)))
    return gaps


def _telling(word: str) -> bool:
    return word.isdigit() or (len(word) > 2 and word[0].isupper() and word.isalpha())


def _cloze(gap: _Gap, passage: str, options: int, rng: random.Random) -> dict[str, Any]:
    blank = re.sub(rf"\b{re.escape(gap.word)}\b", "____", gap.sentence, flags=re.IGNORECASE)
    numeric = gap.word.isdigit()
    spare = POOLS["number"] if numeric else POOLS["person"]
    words = [w for w in re.findall(r"\w+", passage) if _telling(w) and w.isdigit() == numeric]
    wrong: dict[str, str] = {}
    rng.shuffle(words)
    for word in (*words, *rng.sample(spare, options)):
        if word.casefold() != gap.word.casefold() and len(wrong) < options - 1:
            wrong.setdefault(word.casefold(), word)
    place = rng.randrange(options)
    texts = list(wrong.values())
    texts.insert(place, gap.word)
    return {"question": f"Which word completes: “{blank}”?", "options": texts, "answer": place}


def _reordered(sentences: Sequence[str], rng: random.Random) -> str:
    """Sentences in another order; the clauses of one that stands alone."""
    parts = list(sentences)
    if len(parts) == 1:
        body = parts[0].rstrip(".!?")
        parts = re.split(r"[,;]\s+", body)
        return "; ".join(_other_order(parts, rng)) + "."
    return " ".join(_other_order(parts, rng))


def _other_order(parts: list[str], rng: random.Random) -> list[str]:
    order = list(parts)
    rng.shuffle(order)
    return [*order[1:], order[0]] if order == parts else order
