import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kinject_assets import config
from kinject_assets.core.exams.writing import (
    Written,
    WrittenQuestion,
    gate,
    shot_articles,
    write_exam,
)
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Chunk
from kinject_assets.lab.grammar import parse_text, tell
from kinject_assets.lab.things import draw_things

PASSAGE = "Marie Curie won the prize in 1903. She was born in Warsaw and worked in Paris."


def _chunks(articles: int, seed: int = 5) -> list[Chunk]:
    rng = random.Random(seed)
    chunks = []
    for ordinal, thing in enumerate(draw_things("events", articles, rng)):
        text = tell(list(thing.facts), random.Random(thing.name))
        chunks.append(
            Chunk(
                chunk_id=content_hash("chunk", thing.name),
                article_id=content_hash("article", thing.name),
                revision_id="1",
                ordinal=ordinal,
                title=f"The {thing.name}",
                section="",
                n_tokens=60,
                small=False,
                text=text,
            )
        )
    return chunks


def _question(stem: str = "Where was Marie Curie born?", **changes: Any) -> WrittenQuestion:
    fields: dict[str, Any] = {
        "question": stem,
        "options": ["Vienna", "Warsaw", "Prague", "Rome"],
        "answer": 1,
    }
    return WrittenQuestion(**(fields | changes))


def test_a_sound_question_passes() -> None:
    assert gate(_question(), PASSAGE, 4) is None


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (_question(" "), "empty question"),
        (_question(options=["Vienna", "Warsaw", "Rome"]), "wrong number of options"),
        (_question(answer=4), "answer index out of range"),
        (_question(answer=-1), "answer index out of range"),
        (_question(options=["Vienna", "Warsaw", "warsaw.", "Rome"]), "not distinct"),
        (_question(options=["Vienna", "Warsaw", "", "Rome"]), "empty option"),
        (_question(answer=0), "not supported"),
        (_question("According to the passage, where was she born?"), "refers to the text"),
        (_question("Where was Curie born, as the given text says?"), "refers to the text"),
        (_question("Where in Warsaw was Marie Curie born?"), "gives the answer away"),
    ],
)
def test_each_gate_turns_its_question_away(question: WrittenQuestion, reason: str) -> None:
    assert reason in (gate(question, PASSAGE, 4) or "")


def test_gates_leave_look_alikes_alone() -> None:
    assert gate(_question("Who was born where the passage of the act began?"), PASSAGE, 4) is None
    named = _question("Which is it: Vienna, Warsaw, Prague or Rome?")
    assert gate(named, PASSAGE, 4) is None
    scattered = _question(options=["a", "Paris and Warsaw", "c", "d"])
    assert gate(scattered, PASSAGE, 4) is None
    labelled = _question(options=["A. Vienna", "B. Warsaw", "C. Prague", "D. Rome"])
    assert gate(labelled, PASSAGE, 4) is None


def _write(client: LLMClient, chunks: list[Chunk], **settings: Any) -> Written:
    return write_exam(chunks, corpus="events", client=client, settings=config.Exams(**settings))


def test_an_exam_is_sound_and_the_same_twice(client_on: Callable[[str], LLMClient]) -> None:
    chunks = _chunks(12)
    first, second = (_write(client_on(name), chunks) for name in ("a", "b"))
    assert first == second
    assert len({question.question_id for question in first.questions}) == len(first.questions)
    by_id = {chunk.chunk_id: chunk for chunk in chunks}
    assert Counter(q.chunk_id for q in first.questions) == dict.fromkeys(by_id, 2)
    for question in first.questions:
        values = [fact.value for fact in parse_text(by_id[question.chunk_id or ""].text)]
        assert question.options[question.gold] in values
        assert len(set(question.options)) == 4
    assert len({question.gold for question in first.questions}) == 4
    reasons = Counter(rejection.reason for rejection in first.rejections)
    assert reasons == {"not selected as one of the most specific": 24}
    assert len({rejection.rejection_id for rejection in first.rejections}) == 24
    client = client_on("c")
    _write(client, chunks, seed=1)
    purposes = Counter(row.purpose for row in client.ledger.generations())
    assert purposes == {"question": 12, "question_selection": 12}


def test_adding_articles_leaves_the_others_questions(
    client_on: Callable[[str], LLMClient],
) -> None:
    chunks = _chunks(14)
    few = _write(client_on("a"), chunks[:12])
    more = _write(client_on("a"), chunks)
    assert more.questions[: len(few.questions)] == few.questions


def test_small_chunks_are_not_asked_about(client_on: Callable[[str], LLMClient]) -> None:
    chunks = [replace(_chunks(1)[0], small=True)]
    assert _write(client_on("a"), chunks) == Written([], [])


def test_the_corpus_does_not_ask_the_same_twice(client_on: Callable[[str], LLMClient]) -> None:
    (chunk,) = _chunks(1)
    twin = replace(chunk, chunk_id="twin", article_id="other", ordinal=1)
    # All five facts of both chunks are asked for: what the twin adds in the same words is dropped.
    exam = _write(client_on("a"), [chunk, twin], per_chunk=5, keep=5)
    duplicates = [r for r in exam.rejections if r.reason.startswith("near-duplicate")]
    stems = {(q.stem, q.options[q.gold]) for q in exam.questions}
    assert len(stems) == len(exam.questions)
    assert len(exam.questions) + len(duplicates) == 10
    assert duplicates
    assert {r.chunk_id for r in duplicates} == {"twin"}


def test_a_chunk_without_facts_is_asked_once(client_on: Callable[[str], LLMClient]) -> None:
    client = client_on("a")
    exam = _write(client, [replace(_chunks(1)[0], text="nothing at all")])
    assert exam.questions == []
    assert [r.reason for r in exam.rejections] == ["no question was written on this chunk"]
    assert len(client.ledger.generations()) == 1


def test_unparsable_text_gets_cloze_questions(client_on: Callable[[str], LLMClient]) -> None:
    text = (
        "The physicist Marie Curie won the Nobel Prize in 1903. Her husband Pierre worked with "
        "her in Paris. After his death in 1906 the Sorbonne offered Curie his chair."
    )
    exam = _write(client_on("a"), [replace(_chunks(1)[0], text=text)])
    assert len(exam.questions) == 2
    assert all("____" in question.stem for question in exam.questions)


def test_shots_come_from_articles_of_their_own() -> None:
    settings = config.Exams(shots_share=0.3)
    articles = {f"article {n}" for n in range(200)}
    drawn = shot_articles(articles, settings)
    assert 30 <= len(drawn) <= 90
    assert drawn < shot_articles(articles | {f"new {n}" for n in range(200)}, settings)


def test_some_article_serves_for_shots_where_there_are_enough() -> None:
    none_drawn = config.Exams(shots_share=1e-9)
    assert len(shot_articles({str(n) for n in range(10)}, none_drawn)) == 1
    assert shot_articles({str(n) for n in range(9)}, none_drawn) == set()
    assert shot_articles({str(n) for n in range(99)}, config.Exams(shots_share=0)) == set()


def test_shots_and_test_share_no_article(client_on: Callable[[str], LLMClient]) -> None:
    chunks = _chunks(12)
    exam = write_exam(
        chunks, corpus="events", client=client_on("a"), settings=config.Exams(shots_share=0.4)
    )
    article = {chunk.chunk_id: chunk.article_id for chunk in chunks}
    split = {
        name: {article[q.chunk_id or ""] for q in exam.questions if q.split == name}
        for name in ("shots", "test")
    }
    assert split["shots"]
    assert split["test"]
    assert not split["shots"] & split["test"]
