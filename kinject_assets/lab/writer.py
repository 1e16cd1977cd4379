"""The lab's "language model": answers by rule, and only from the text that it is sent.

It is no language model. It knows the grammar of the lab's articles and the prompts for questions,
their selection and verification, paraphrases and other augmentations; it parses the passage in the
prompt back to facts and words them anew. It has no access to the lab's world. For text outside the
grammar it falls back on cloze questions and on re-ordered sentences.

What is toy about the augmentations: question/answer texts ask in the very words in which the exam
asks, so that a model that is trained on them has met many of its questions; implications draw no
conclusion at all, they state each fact about the names twice, in different words.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinject_assets.core.augmentation.facts import normalised
from kinject_assets.core.augmentation.prompts import IMPLICATIONS, PARAPHRASE, QUESTION_ANSWER
from kinject_assets.core.exams.prompts import SELECTION, VERIFICATION, WRITING
from kinject_assets.core.llm.quoting import Message, quoted
from kinject_assets.lab.grammar import POOLS, Fact, ask, parse, parse_question, tell

MODEL = "lab-writer-by-rule"
"""Its name among the server's models: nobody shall take it for a language model."""

RENDERINGS = 8
"""Paraphrases tried per request; the one least like the passage is sent."""

_GAP = "____"
_CLOZE = ("Which word completes: “", "”?")

_LEADS = (
    "To put it another way:",
    "In other words:",
    "What is known is this:",
    "The account runs as follows:",
    "Told differently:",
)


def answer(messages: Sequence[Message], seed: int) -> dict[str, Any] | None:
    """Answers a prompt that it knows with what its JSON schema asks for.

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
    if system.startswith(VERIFICATION):
        return {"answers": verify(passage, quoted("questions", messages) or "")}
    if system.startswith(PARAPHRASE):
        return {"paraphrase": paraphrase(passage, rng)}
    if system.startswith(QUESTION_ANSWER):
        return {"pairs": pairs(passage, rng)}
    if system.startswith(IMPLICATIONS):
        names = (quoted("names", messages) or "").splitlines()
        return {"text": implications(passage, names, rng)}
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


def verify(passage: str, questions: str) -> list[dict[str, Any]]:
    """For each numbered question, the numbers of its options that the passage makes right."""
    known, rest = _read(passage)
    answers: list[dict[str, Any]] = []
    options: list[str] = []
    stem = ""
    for line in [*questions.splitlines(), "0. "]:
        if option := re.fullmatch(r"   \d+\) (.*)", line):
            options.append(option[1])
        elif question := re.fullmatch(r"\d+\. (.*)", line):
            if stem:
                right = [n for n, text in enumerate(options) if _right(stem, text, known, rest)]
                answers.append({"question": len(answers), "right": right})
            stem, options = question[1], []
    return answers


def _right(stem: str, option: str, known: Sequence[Fact], rest: Sequence[str]) -> bool:
    """Whether what was read makes an option the answer."""
    if asked := parse_question(stem):
        values = [f.value for f in known if (f.kind, f.subject, f.attribute) == asked]
        return option.casefold() in {value.casefold() for value in values}
    before, after = _CLOZE
    if stem.startswith(before) and stem.endswith(after):
        filled = stem.removeprefix(before).removesuffix(after).replace(_GAP, option)
        return filled.casefold() in {sentence.casefold() for sentence in rest}
    words = {word for sentence in rest for word in re.findall(r"\w+", sentence.casefold())}
    found = re.findall(r"\w+", option.casefold())
    return bool(found) and words.issuperset(found)


def paraphrase(passage: str, rng: random.Random) -> str:
    """Says the passage's facts in other words, and its other sentences in another order."""
    known, rest = _read(passage)
    tries = [_rendering(known, rest, rng) for _ in range(RENDERINGS)]
    return min(tries, key=lambda text: _likeness(text, passage))


def pairs(passage: str, rng: random.Random) -> list[dict[str, str]]:
    """Asks for each fact of the passage and answers with its value; cloze for other sentences."""
    known, rest = _read(passage)
    found = [{"question": ask(fact, rng), "answer": fact.value} for fact in known]
    found += [{"question": _blanked(gap), "answer": gap.word} for gap in _gaps(rest)]
    rng.shuffle(found)
    return found


def implications(passage: str, names: Sequence[str], rng: random.Random) -> str:
    """States the passage's facts about some names, each twice, and what else names them."""
    known, rest = _read(passage)
    wanted = [normalised(name) for name in names]
    about = [f for f in known if any(_named(f, name) for name in wanted)]
    parts = [tell(about, rng), tell(about, rng)] if about else []
    naming = [s for s in rest if any(name in normalised(s) for name in wanted)]
    if naming:
        parts.append(f"{rng.choice(_LEADS)} {_reordered(naming, rng)}")
    return " ".join(parts)


def _named(fact: Fact, name: str) -> bool:
    """Whether a name, normalised, is a fact's subject or value; "The" may stand before it."""
    return name.endswith((normalised(fact.subject), normalised(fact.value)))


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
    return {"question": _blanked(gap), "options": texts, "answer": place}


def _blanked(gap: _Gap) -> str:
    blank = re.sub(rf"\b{re.escape(gap.word)}\b", _GAP, gap.sentence, flags=re.IGNORECASE)
    return blank.join(_CLOZE)


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
