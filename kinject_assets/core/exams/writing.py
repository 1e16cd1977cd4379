"""Writes a corpus's exam with the language model, and turns bad questions away.

Per chunk the model writes several questions, gates turn away the unsound ones, where the profile
says so a further request checks the rest against the chunk, another one picks the most specific,
and near-duplicates within the corpus are dropped. Everything that was turned away is kept with its
reason. Chunks that were asked about before are not asked about again.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kinject_assets import config
from kinject_assets.core.exams import prompts
from kinject_assets.core.exams.gates import Asked, Item, gate
from kinject_assets.core.exams.wording import plain
from kinject_assets.core.llm.client import Ask, Failure, LLMClient, Received, Reply, seed_of
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Chunk, Question, Rejection

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


class RightOptions(BaseModel):
    """What a passage makes right of one question's options."""

    model_config = ConfigDict(extra="forbid")

    question: int = Field(description="number of the question")
    right: list[int] = Field(description="numbers of all options that the passage makes right")


class CheckedQuestions(BaseModel):
    """Answer to the request that checks questions against their passage."""

    model_config = ConfigDict(extra="forbid")

    answers: list[RightOptions]


class KeptQuestions(BaseModel):
    """Answer to the request that selects."""

    model_config = ConfigDict(extra="forbid")

    kept: list[int] = Field(description="numbers of the questions to keep")


@dataclass(frozen=True)
class Written:
    """An exam, in the order of the chunks, and what did not get into it.

    Attributes:
        questions: Those on chunks that have left the corpus come last, retired.
        counts: `chunks_asked` and `chunks_reused` (taken over from earlier), `questions_retired`,
            and `right_is_longest`, see `right_is_longest`.
    """

    questions: list[Question]
    rejections: list[Rejection]
    counts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    chunk: Chunk
    item: Item
    generation_id: str

    @property
    def shown(self) -> str:
        return " | ".join((self.item.stem, *self.item.options))


@dataclass
class _TurnedAway:
    """What did not get into the exam, in the order in which it was found."""

    rows: list[tuple[Chunk, str, str]] = field(default_factory=list)

    def add(self, chunk: Chunk, reason: str, shown: str = "") -> None:
        self.rows.append((chunk, reason, shown))

    def useless(self, chunk: Chunk, reply: Reply[Any]) -> None:
        """Notes each answer before a reply that was received and of no use."""
        for reason in reply.useless:
            self.add(chunk, f"answer asked for again: {reason}")

    def rejections(self) -> list[Rejection]:
        twins: Counter[tuple[str, str, str]] = Counter()
        found: list[Rejection] = []
        for chunk, reason, text in self.rows:
            content = (chunk.chunk_id, reason, text)
            found.append(
                Rejection(
                    rejection_id=content_hash("question", *content, twins[content]),
                    kind="question",
                    chunk_id=chunk.chunk_id,
                    reason=reason,
                    text=text,
                )
            )
            twins[content] += 1
        return found


def write_exam(
    chunks: Sequence[Chunk],
    *,
    corpus: str,
    client: LLMClient,
    settings: config.Exams,
    report: Report = silent,
    previous: Sequence[Question] = (),
    previous_rejections: Sequence[Rejection] = (),
    siblings: Sequence[Question] = (),
    sibling_rejections: Sequence[Rejection] = (),
    earlier_chunks: Sequence[Chunk] = (),
) -> Written:
    """Writes questions on every chunk that is not small and was not asked about before.

    Where the request that selects brings nothing usable, the order of writing decides; where fewer
    than `settings.keep` of its picks are left, others of the chunk that passed the gates fill up.

    What was written earlier, with the same settings, is taken over: questions and rejections of a
    chunk that is in the corpus as they are, a question whose chunk has left it with `retired` set
    (unset again when the chunk is back), rejections of chunks that have left not at all. An article
    stays in the split that its questions were in. Retired questions block no new ones.

    Args:
        chunks: The corpus, in order.
        corpus: Its key, for progress.
        client: The language model.
        settings: How many questions, how many options, the seed, whether they are verified.
        report: Told which of the rounds runs, and what came out.
        previous: Earlier questions of this corpus.
        previous_rejections: Earlier rejections of this corpus.
        siblings: Questions of other corpora that share chunks with this one, such as the window
            that a release was frozen from. They stand in for asking about those chunks; they are
            compared with this corpus's own questions, and never kept as retired.
        sibling_rejections: Rejections of those corpora.
        earlier_chunks: Chunks that have left this corpus, and those of the siblings: they say which
            article an earlier question was on, whose split it keeps.

    Raises:
        LLMError: If the service fails for good; received answers are in the client's ledger.
    """
    askable = [chunk for chunk in chunks if not chunk.small]
    there = {chunk.chunk_id: chunk for chunk in askable}
    asked = Asked()
    kept, rejections = _taken_over(there, previous, previous_rejections, asked)
    shared, shared_rejections = _shared(
        {key: chunk for key, chunk in there.items() if key not in rejections and key not in kept},
        siblings,
        sibling_rejections,
        settings.keep,
        asked,
    )
    kept |= shared
    rejections |= shared_rejections
    splits = _splits((*chunks, *earlier_chunks), (*previous, *siblings))

    fresh = [c for c in askable if c.chunk_id not in kept and c.chunk_id not in rejections]
    turned_away = _TurnedAway()
    passed = _write(fresh, corpus, client, settings, report, turned_away)
    if settings.verify:
        report(f"{corpus}: checking questions against {sum(map(bool, passed))} chunks")
        passed = _verify(fresh, passed, client, settings, turned_away)
    report(f"{corpus}: selecting the most specific questions")
    ranked = _select(fresh, passed, client, settings, turned_away)
    new = _keep(ranked, settings.keep, asked, turned_away)

    articles = {there[key].article_id for key, rows in kept.items() if rows}
    articles |= {candidate.chunk.article_id for candidate in new}
    shots = shot_articles(articles, settings, splits)
    for candidate in new:
        row = _question(candidate, client.settings.model, settings, shots)
        kept.setdefault(candidate.chunk.chunk_id, []).append(row)
    questions = [
        replace(row, split="shots" if chunk.article_id in shots else "test", retired=False)
        for chunk in askable
        for row in kept.get(chunk.chunk_id, ())
    ]
    retired = _retired(previous, there, questions)
    found = [row for chunk in askable for row in rejections.get(chunk.chunk_id, ())]
    found += turned_away.rejections()
    counts = {
        "chunks_asked": len(fresh),
        "chunks_reused": len(askable) - len(fresh),
        "questions_retired": len(retired),
        "right_is_longest": right_is_longest(questions),
    }
    report(
        f"{corpus}: {len(questions)} questions, {len(found)} turned away; "
        f"{len(fresh)} chunks asked about, {len(askable) - len(fresh)} as before"
    )
    return Written([*questions, *retired], found, counts)


def right_is_longest(questions: Iterable[Question]) -> dict[str, float]:
    """How often the right option is the longest one, and how often it would be by chance.

    Returns:
        `share` of the questions, options that are equally long counted in parts; `chance`, what
        would be expected if length said nothing; `questions`, how many there are. Shares are 0
        where there is no question.
    """
    share, chance, n = 0.0, 0.0, 0
    for question in questions:
        lengths = [len(option) for option in question.options]
        longest = max(lengths)
        if lengths[question.gold] == longest:
            share += 1 / lengths.count(longest)
        chance += 1 / len(lengths)
        n += 1
    return {"share": share / max(1, n), "chance": chance / max(1, n), "questions": n}


# -- What was written earlier ----------------------------------------------------------------------


def _by_chunk(rows: Iterable[Any]) -> dict[str, list[Any]]:
    """Rows of each chunk, each id once, in their order."""
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        if row.chunk_id is not None:
            key = row.question_id if isinstance(row, Question) else row.rejection_id
            found[row.chunk_id].setdefault(key, row)
    return {chunk_id: list(found[chunk_id].values()) for chunk_id in found}


def _item(question: Question, chunk: Chunk) -> Item:
    return Item(question.stem, tuple(question.options), question.gold, chunk.text, chunk.title)


def _taken_over(
    there: Mapping[str, Chunk],
    questions: Iterable[Question],
    rejections: Iterable[Rejection],
    asked: Asked,
) -> tuple[dict[str, list[Question]], dict[str, list[Rejection]]]:
    """Earlier questions and rejections of chunks that are there, as they are."""
    kept = {key: rows for key, rows in _by_chunk(questions).items() if key in there}
    turned_away = {key: rows for key, rows in _by_chunk(rejections).items() if key in there}
    for key, chunk in there.items():
        for row in kept.get(key, ()):
            asked.add(_item(row, chunk))
    return kept, turned_away


def _shared(
    there: Mapping[str, Chunk],
    questions: Iterable[Question],
    rejections: Iterable[Rejection],
    keep: int,
    asked: Asked,
) -> tuple[dict[str, list[Question]], dict[str, list[Rejection]]]:
    """What other corpora have on chunks that are there, compared with what is asked already."""
    candidates = _by_chunk(questions)
    found = _by_chunk(rejections)
    kept: dict[str, list[Question]] = {}
    turned_away: dict[str, list[Rejection]] = {}
    for key, chunk in there.items():
        if key not in candidates and key not in found:
            continue
        kept[key] = []
        objections = _TurnedAway()
        for row in candidates.get(key, ()):
            item = _item(row, chunk)
            if reason := asked.objection(item):
                objections.add(chunk, reason, " | ".join((row.stem, *row.options)))
            elif len(kept[key]) < keep:
                asked.add(item)
                kept[key].append(row)
        # Another corpus may have turned away as a near-duplicate what stands here.
        standing = {_apart((row.stem, *row.options)) for row in candidates.get(key, ())}
        others = [
            row
            for row in found.get(key, ())
            if _apart(row.text.split(" | ")) not in standing
            # What reviewers decided is applied to each corpus by itself.
            and not row.reason.startswith("review: ")
        ]
        turned_away[key] = [*others, *objections.rejections()]
    return kept, turned_away


def _apart(parts: Sequence[str]) -> tuple[str, ...]:
    """A question's words whatever the order of its options."""
    stem, *options = parts
    return (stem, *sorted(options))


def _splits(chunks: Iterable[Chunk], questions: Iterable[Question]) -> dict[str, str]:
    """Article -> the split that earlier questions on it are in."""
    article = {chunk.chunk_id: chunk.article_id for chunk in chunks}
    found: dict[str, str] = {}
    for row in questions:
        if row.chunk_id in article:
            found.setdefault(article[row.chunk_id], row.split)
    return found


def _retired(
    previous: Iterable[Question], there: Mapping[str, Chunk], questions: Iterable[Question]
) -> list[Question]:
    """Earlier questions whose chunk is no longer there, each once."""
    current = {row.question_id for row in questions}
    found = {
        row.question_id: replace(row, retired=True)
        for row in previous
        if row.chunk_id not in there and row.question_id not in current
    }
    return list(found.values())


# -- Writing ---------------------------------------------------------------------------------------


def _write(
    chunks: Sequence[Chunk],
    corpus: str,
    client: LLMClient,
    settings: config.Exams,
    report: Report,
    turned_away: _TurnedAway,
) -> list[list[_Candidate]]:
    """The questions on each chunk that pass every gate."""
    report(f"{corpus}: writing questions on {len(chunks)} chunks")
    replies = client.ask_many([_writing(chunk, settings) for chunk in chunks])
    passed: list[list[_Candidate]] = []
    for chunk, reply in zip(chunks, replies, strict=True):
        passed.append([])
        turned_away.useless(chunk, reply)
        if isinstance(reply, Failure):
            turned_away.add(chunk, f"no usable answer: {reply.reason}")
        elif not reply.value.questions:
            # Not asked again: some passages state nothing to ask about.
            turned_away.add(chunk, "no question was written on this chunk")
        else:
            passed[-1] = _sound(chunk, reply, settings, turned_away)
    return passed


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
    turned_away: _TurnedAway,
) -> list[_Candidate]:
    """The questions of an answer that pass every gate."""
    passed: list[_Candidate] = []
    for number, written in enumerate(reply.value.questions):
        options = _unlabelled(written.options)
        item = Item(
            plain(written.question), tuple(options), written.answer, chunk.text, chunk.title
        )
        candidate = _Candidate(chunk, item, reply.generation_id)
        if number >= settings.per_chunk:
            reason: str | None = f"more than the {settings.per_chunk} questions asked for"
        else:
            reason = gate(item, settings.options)
        if reason is None:
            passed.append(candidate)
        else:
            turned_away.add(chunk, reason, candidate.shown)
    return passed


def _unlabelled(options: list[str]) -> list[str]:
    """Options without the letters that some models put in front of every one."""
    texts = [plain(option) for option in options]
    labels = [re.match(rf"\(?{chr(65 + n)}[.):]\s+(.+)", text) for n, text in enumerate(texts)]
    return [label[1] for label in labels if label] if all(labels) else texts


def _order(item: Item, settings: config.Exams) -> list[int]:
    """The order in which a question's options are shown."""
    order = list(range(len(item.options)))
    seed = content_hash("options", settings.seed, item.stem, sorted(item.options))
    # Sorted first: the writer's own order, often with the right one in front, leaves no trace.
    order.sort(key=lambda place: item.options[place])
    random.Random(seed).shuffle(order)
    return order


def _verify(
    chunks: Sequence[Chunk],
    passed: Sequence[list[_Candidate]],
    client: LLMClient,
    settings: config.Exams,
    turned_away: _TurnedAway,
) -> list[list[_Candidate]]:
    """The questions of which a reader of the passage, who has no key, finds the same option right.

    What was not checked, for want of a usable answer, does not pass.
    """
    checked = [n for n, candidates in enumerate(passed) if candidates]
    replies = client.ask_many([_checking(chunks[n], passed[n], settings) for n in checked])
    sound: list[list[_Candidate]] = [[] for _ in passed]
    for n, reply in zip(checked, replies, strict=True):
        turned_away.useless(chunks[n], reply)
        if isinstance(reply, Failure):
            for candidate in passed[n]:
                reason = f"no usable answer to the verification: {reply.reason}"
                turned_away.add(chunks[n], reason, candidate.shown)
            continue
        right = {answer.question: answer.right for answer in reply.value.answers}
        for number, candidate in enumerate(passed[n]):
            order = _order(candidate.item, settings)
            reason = _verdict({order[place] for place in right[number]}, candidate.item.answer)
            if reason is None:
                sound[n].append(candidate)
            else:
                turned_away.add(chunks[n], reason, candidate.shown)
    return sound


def _verdict(right: set[int], answer: int) -> str | None:
    if right == {answer}:
        return None
    if not right:
        return "the passage makes no option right"
    return "two options are right" if answer in right else "another option is right"


def _checking(
    chunk: Chunk, candidates: Sequence[_Candidate], settings: config.Exams
) -> Ask[CheckedQuestions]:
    items = [candidate.item for candidate in candidates]
    shown = [
        (item.stem, [item.options[place] for place in _order(item, settings)]) for item in items
    ]

    def check(answer: CheckedQuestions) -> None:
        numbers = sorted(given.question for given in answer.answers)
        if numbers != list(range(len(items))):
            raise ValueError(f"{numbers} are not the numbers of the {len(items)} questions")
        for given in answer.answers:
            options = len(items[given.question].options)
            if not all(0 <= place < options for place in given.right):
                raise ValueError(f"{given.right}: a number that no option has")

    return Ask(
        purpose="question_verification",
        messages=prompts.verification(chunk, shown),
        answer=CheckedQuestions,
        seed=seed_of("question_verification", settings.seed, chunk.chunk_id),
        check=check,
    )


def _select(
    chunks: Sequence[Chunk],
    passed: Sequence[list[_Candidate]],
    client: LLMClient,
    settings: config.Exams,
    turned_away: _TurnedAway,
) -> list[list[_Candidate]]:
    """Each chunk's questions, the picks of the second request first."""
    contested = [n for n, candidates in enumerate(passed) if len(candidates) > settings.keep]
    replies = client.ask_many(
        [_selection(chunks[n], [c.item.stem for c in passed[n]], settings) for n in contested]
    )
    ranked = [list(candidates) for candidates in passed]
    for n, reply in zip(contested, replies, strict=True):
        turned_away.useless(chunks[n], reply)
        if isinstance(reply, Failure):
            turned_away.add(chunks[n], f"no usable answer to the selection: {reply.reason}")
        else:
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
    ranked: Sequence[list[_Candidate]], keep: int, asked: Asked, turned_away: _TurnedAway
) -> list[_Candidate]:
    """The first `keep` of each chunk that the corpus does not ask already."""
    kept: list[_Candidate] = []
    for candidates in ranked:
        room = keep
        for candidate in candidates:
            if room == 0:
                reason: str | None = "not selected as one of the most specific"
            else:
                reason = asked.objection(candidate.item)
            if reason is not None:
                turned_away.add(candidate.chunk, reason, candidate.shown)
                continue
            asked.add(candidate.item)
            kept.append(candidate)
            room -= 1
    return kept


def _question(
    candidate: _Candidate, generator: str, settings: config.Exams, shots: set[str]
) -> Question:
    item = candidate.item
    order = _order(item, settings)
    options = [item.options[place] for place in order]
    gold = order.index(item.answer)
    return Question(
        question_id=content_hash("llm", item.stem, options, gold),
        origin="llm",
        stem=item.stem,
        options=options,
        gold=gold,
        chunk_id=candidate.chunk.chunk_id,
        generator=generator,
        generation_id=candidate.generation_id,
        triage="",
        split="shots" if candidate.chunk.article_id in shots else "test",
        retired=False,
    )


def shot_articles(
    articles: set[str], settings: config.Exams, splits: Mapping[str, str] | None = None
) -> set[str]:
    """Articles whose questions serve as few-shot examples, and never as test questions.

    An article that is in a split stays there. Of the others an article's hash decides, so that it
    stays where it is as others come. Only where all that draws none of at least
    `ARTICLES_FOR_SHOTS`, the one with the smallest hash of those not yet in a split is taken.

    Args:
        articles: Those that have questions.
        settings: Share of articles, and the seed.
        splits: Article -> split that it is in already.
    """
    given = splits or {}
    places = {
        article: int(content_hash("split", settings.seed, article)[:13], 16) / 16**13
        for article in articles - set(given)
    }
    drawn = {article for article in articles if given.get(article) == "shots"}
    drawn |= {article for article, place in places.items() if place < settings.shots_share}
    if not drawn and places and settings.shots_share > 0 and len(articles) >= ARTICLES_FOR_SHOTS:
        return {min(places, key=places.__getitem__)}
    return drawn
