"""Writes a corpus's exam with the language model, and turns bad questions away.

Per chunk the model writes several questions, gates turn away the unsound ones, a second request
picks the most specific of the rest, and near-duplicates within the corpus are dropped. Everything
that was turned away is kept with its reason.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from kinject_assets import config
from kinject_assets.core.exams import prompts
from kinject_assets.core.llm.client import Ask, Failure, LLMClient, Received, seed_of
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Chunk, Question, Rejection

NEAR_DUPLICATE = 0.9
"""Jaccard similarity of two stems' words from which they ask the same, given the same answer."""

ARTICLES_FOR_SHOTS = 10
"""From so many articles on, one is set aside for few-shot examples even if none was drawn."""


class WrittenQuestion(BaseModel):
    """One question as the language model writes it."""

    model_config = ConfigDict(extra="forbid")

    question: str
    options: list[str]
    answer: int = Field(description="index of the right option, counted from 0")


class WrittenQuestions(BaseModel):
    """Answer to the first request."""

    model_config = ConfigDict(extra="forbid")

    questions: list[WrittenQuestion]


class KeptQuestions(BaseModel):
    """Answer to the second request."""

    model_config = ConfigDict(extra="forbid")

    kept: list[int] = Field(description="numbers of the questions to keep")


@dataclass(frozen=True)
class Written:
    """An exam, in the order of the chunks, and what did not get into it."""

    questions: list[Question]
    rejections: list[Rejection]


@dataclass(frozen=True)
class _Candidate:
    chunk: Chunk
    stem: str
    options: list[str]
    answer: int
    generation_id: str

    @property
    def gold(self) -> str:
        return self.options[self.answer]


def write_exam(
    chunks: Sequence[Chunk],
    *,
    corpus: str,
    client: LLMClient,
    settings: config.Exams,
    report: Report = silent,
) -> Written:
    """Writes questions on every chunk that is not small.

    Where the second request brings nothing usable, the order of writing decides; where fewer than
    `settings.keep` of its picks are left, others of the chunk that passed the gates fill up.

    Args:
        chunks: The corpus, in order.
        corpus: Its key, for progress.
        client: The language model.
        settings: How many questions, how many options, the seed.
        report: Told which of the two rounds runs, and what came out.

    Raises:
        LLMError: If the service fails for good; received answers are in the client's ledger.
    """
    asked = [chunk for chunk in chunks if not chunk.small]
    turned_away: list[tuple[Chunk, str, str]] = []
    report(f"{corpus}: writing questions on {len(asked)} chunks")
    replies = client.ask_many([_writing(chunk, settings) for chunk in asked])
    passed: list[list[_Candidate]] = []
    for chunk, reply in zip(asked, replies, strict=True):
        if isinstance(reply, Failure):
            turned_away.append((chunk, f"no usable answer: {reply.reason}", ""))
            passed.append([])
        elif not reply.value.questions:
            # Not asked again: some passages state nothing to ask about.
            turned_away.append((chunk, "no question was written on this chunk", ""))
            passed.append([])
        else:
            passed.append(_sound(chunk, reply, settings, turned_away))
    report(f"{corpus}: selecting the most specific questions")
    ranked = _select(asked, passed, client, settings)
    kept = _keep(ranked, settings.keep, turned_away)
    questions = _questions(kept, client.settings.model, settings)
    report(f"{corpus}: {len(questions)} questions, {len(turned_away)} turned away")
    return Written(questions, _rejections(turned_away))


def _writing(chunk: Chunk, settings: config.Exams) -> Ask[WrittenQuestions]:
    return Ask(
        purpose="question",
        messages=prompts.writing(chunk, questions=settings.per_chunk, options=settings.options),
        answer=WrittenQuestions,
        seed=seed_of("question", settings.seed, chunk.chunk_id),
    )


def _sound(
    chunk: Chunk,
    reply: Received[WrittenQuestions],
    settings: config.Exams,
    turned_away: list[tuple[Chunk, str, str]],
) -> list[_Candidate]:
    """The questions of an answer that pass every gate."""
    passed: list[_Candidate] = []
    for number, written in enumerate(reply.value.questions):
        if number >= settings.per_chunk:
            reason: str | None = f"more than the {settings.per_chunk} questions asked for"
        else:
            reason = gate(written, chunk.text, settings.options)
        if reason is not None:
            turned_away.append((chunk, reason, _shown(written.question, written.options)))
            continue
        passed.append(
            _Candidate(
                chunk=chunk,
                stem=_plain(written.question),
                options=_unlabelled(written.options),
                answer=written.answer,
                generation_id=reply.generation_id,
            )
        )
    return passed


def gate(written: WrittenQuestion, passage: str, options: int) -> str | None:
    """Why a question on a passage is unsound; `None` if nothing is wrong with it.

    Args:
        written: The question.
        passage: Text of the chunk that it was written from.
        options: Number of options that was asked for.
    """
    stem = _plain(written.question)
    if not stem:
        return "empty question"
    if len(written.options) != options:
        return f"wrong number of options: {len(written.options)}, not {options}"
    if not 0 <= written.answer < options:
        return f"answer index out of range: {written.answer}"
    texts = [_words(option) for option in _unlabelled(written.options)]
    if not all(texts):
        return "empty option"
    if len({tuple(text) for text in texts}) < options:
        return "options are not distinct"
    if _REFERS.search(stem):
        return "question refers to the text"
    answer = texts[written.answer]
    if not _supported(answer, _words(passage)):
        return "answer is not supported by the chunk"
    # A question that names all its options ("which is larger, A or B?") gives none of them away.
    named = [_holds(_words(stem), text) for text in texts]
    if named[written.answer] and not all(named):
        return "question gives the answer away"
    return None


_REFERS = re.compile(
    r"\b(?:the|this|that)\s+(?:(?:above|given|provided|following|preceding)\s+)?"
    r"(?:text|passage|article|excerpt|extract|paragraph|author)\b(?!\s+(?:of|[IVX\d]+)\b)"
    r"|\b(?:mentioned|described|stated)\s+above\b",
    re.IGNORECASE,
)

_FUNCTION_WORDS_TEXT = (
    "a an and as at be been by for from had has have he her his in into is it its of on or she "
    "that the their they this to was were which who with"
)
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())


def _plain(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    """Words and numbers, case folded; digit groups joined (1,000 and 1000 are one)."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    return re.findall(r"\w+", text)


def _holds(words: list[str], part: list[str]) -> bool:
    return f" {' '.join(part)} " in f" {' '.join(words)} "


def _supported(answer: list[str], passage: list[str]) -> bool:
    if _holds(passage, answer):
        return True
    content = set(answer) - _FUNCTION_WORDS
    return bool(content) and content <= set(passage)


def _unlabelled(options: list[str]) -> list[str]:
    """Options without the letters that some models put in front of every one."""
    plain = [_plain(option) for option in options]
    labels = [re.match(rf"\(?{chr(65 + n)}[.):]\s+(.+)", text) for n, text in enumerate(plain)]
    return [label[1] for label in labels if label] if all(labels) else plain


def _shown(stem: str, options: Sequence[str]) -> str:
    return " | ".join((_plain(stem), *map(_plain, options)))


def _select(
    chunks: Sequence[Chunk],
    passed: Sequence[list[_Candidate]],
    client: LLMClient,
    settings: config.Exams,
) -> list[list[_Candidate]]:
    """Each chunk's questions, the picks of the second request first."""
    contested = [n for n, candidates in enumerate(passed) if len(candidates) > settings.keep]
    replies = client.ask_many(
        [_selection(chunks[n], [c.stem for c in passed[n]], settings) for n in contested]
    )
    ranked = [list(candidates) for candidates in passed]
    for n, reply in zip(contested, replies, strict=True):
        if isinstance(reply, Received):
            picked = reply.value.kept
            rest = [place for place in range(len(passed[n])) if place not in picked]
            ranked[n] = [passed[n][place] for place in (*picked, *rest)]
    return ranked


def _selection(chunk: Chunk, stems: list[str], settings: config.Exams) -> Ask[KeptQuestions]:
    def check(answer: KeptQuestions) -> None:
        picked = answer.kept
        if len(set(picked)) != settings.keep or len(picked) != settings.keep:
            raise ValueError(f"{picked} are not {settings.keep} numbers")
        if not all(0 <= place < len(stems) for place in picked):
            raise ValueError(f"{picked}: a number that no question has")

    return Ask(
        purpose="question_selection",
        messages=prompts.selection(chunk, stems, keep=settings.keep),
        answer=KeptQuestions,
        seed=seed_of("question_selection", settings.seed, chunk.chunk_id),
        check=check,
    )


def _keep(
    ranked: Sequence[list[_Candidate]], keep: int, turned_away: list[tuple[Chunk, str, str]]
) -> list[_Candidate]:
    """The first `keep` of each chunk that the corpus does not ask already."""
    kept: list[_Candidate] = []
    by_gold: defaultdict[str, list[frozenset[str]]] = defaultdict(list)
    golds: dict[str, str] = {}
    for candidates in ranked:
        room = keep
        for candidate in candidates:
            words = _words(candidate.stem)
            stem, gold = " ".join(words), " ".join(_words(candidate.gold))
            same = [_jaccard(frozenset(words), other) for other in by_gold[gold]]
            if room == 0:
                reason = "not selected as one of the most specific"
            elif max(same, default=0.0) >= NEAR_DUPLICATE:
                reason = "near-duplicate of another question of the corpus"
            elif golds.get(stem, gold) != gold:
                reason = "same words as another question of the corpus with another answer"
            else:
                by_gold[gold].append(frozenset(words))
                golds[stem] = gold
                kept.append(candidate)
                room -= 1
                continue
            shown = _shown(candidate.stem, candidate.options)
            turned_away.append((candidate.chunk, reason, shown))
    return kept


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def _questions(
    kept: Sequence[_Candidate], generator: str, settings: config.Exams
) -> list[Question]:
    shots = shot_articles({candidate.chunk.article_id for candidate in kept}, settings)
    questions: list[Question] = []
    for candidate in kept:
        order = list(range(len(candidate.options)))
        seed = content_hash("options", settings.seed, candidate.stem, sorted(candidate.options))
        # Sorted first: the writer's own order, often with the right one in front, leaves no trace.
        order.sort(key=lambda place: candidate.options[place])
        random.Random(seed).shuffle(order)
        options = [candidate.options[place] for place in order]
        gold = order.index(candidate.answer)
        questions.append(
            Question(
                question_id=content_hash("llm", candidate.stem, options, gold),
                origin="llm",
                stem=candidate.stem,
                options=options,
                gold=gold,
                chunk_id=candidate.chunk.chunk_id,
                generator=generator,
                generation_id=candidate.generation_id,
                triage="",
                split="shots" if candidate.chunk.article_id in shots else "test",
                retired=False,
            )
        )
    return questions


def shot_articles(articles: set[str], settings: config.Exams) -> set[str]:
    """Articles whose questions serve as few-shot examples, and never as test questions.

    An article's hash decides, so that it stays where it is as others come. Only where that draws
    none of at least `ARTICLES_FOR_SHOTS`, the one with the smallest hash is taken.
    """
    places = {
        article: int(content_hash("split", settings.seed, article)[:13], 16) / 16**13
        for article in articles
    }
    drawn = {article for article, place in places.items() if place < settings.shots_share}
    if not drawn and settings.shots_share > 0 and len(articles) >= ARTICLES_FOR_SHOTS:
        return {min(places, key=places.__getitem__)}
    return drawn


def _rejections(turned_away: Sequence[tuple[Chunk, str, str]]) -> list[Rejection]:
    twins: Counter[tuple[str, str, str]] = Counter()
    rejections: list[Rejection] = []
    for chunk, reason, text in turned_away:
        content = (chunk.chunk_id, reason, text)
        rejections.append(
            Rejection(
                rejection_id=content_hash("question", *content, twins[content]),
                kind="question",
                chunk_id=chunk.chunk_id,
                reason=reason,
                text=text,
            )
        )
        twins[content] += 1
    return rejections
