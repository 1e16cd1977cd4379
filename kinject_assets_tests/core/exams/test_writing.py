import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from kinject_assets import config
from kinject_assets.core.exams.writing import (
    Written,
    WrittenQuestions,
    right_is_longest,
    shot_articles,
    write_exam,
)
from kinject_assets.core.llm.client import Ask, LLMClient, Received, Reply
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Chunk, Question
from kinject_assets.lab.grammar import parse_text, tell
from kinject_assets.lab.things import draw_things


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
    exam = _write(client_on("a"), chunks)
    assert (exam.questions, exam.rejections) == ([], [])
    assert exam.counts["chunks_asked"] == 0


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


def test_verified_questions_are_the_same_where_nothing_is_wrong(
    client_on: Callable[[str], LLMClient],
) -> None:
    chunks = _chunks(6)
    client = client_on("a")
    exam = _write(client, chunks, verify=True)
    assert exam.questions == _write(client_on("b"), chunks).questions
    purposes = Counter(row.purpose for row in client.ledger.generations())
    assert purposes == {"question": 6, "question_verification": 6, "question_selection": 6}


class _Erring(LLMClient):
    """A client whose questions are written by somebody careless; the rest is the lab's."""

    written: WrittenQuestions

    def ask_many(self, asks: Sequence[Ask[Any]]) -> list[Reply[Any]]:
        if asks and asks[0].purpose == "question":
            return [Received(self.written, "g", 0, 0) for _ in asks]
        return super().ask_many(asks)


def test_what_the_passage_does_not_make_right_is_turned_away(
    lab: str, client_on: Callable[[str], LLMClient]
) -> None:
    honest = client_on("a")
    client = _Erring(honest.settings, base_url=f"{lab}/v1", ledger=honest.ledger)
    client.written = WrittenQuestions.model_validate(
        {
            "questions": [
                {"question": stem, "options": options, "answer": answer}
                for stem, options, answer in (
                    ("Who led the Balan Accord?", ["Abric", "Delton", "Falmir", "Casric"], 1),
                    ("How many guests saw the Balan Accord?", ["20", "30", "40", "50"], 0),
                    ("What was given at the Balan Accord?", ["Delton", "Cal", "Gri", "Hes"], 0),
                    (
                        "Where did the Balan Accord take place?",
                        ["Ashwick", "Kiel", "Ulm", "Rom"],
                        0,
                    ),
                )
            ]
        }
    )
    text = (
        "The Balan Accord drew 20 guests. There were 30 guests at the Balan Accord. Abric led the "
        "Balan Accord. The Balan Accord was held in Ashwick. Delton led the Coreth Trial."
    )
    chunk = replace(_chunks(1)[0], text=text, title="The Balan Accord")
    exam = _write(client, [chunk], verify=True)
    assert [question.stem for question in exam.questions] == [
        "Where did the Balan Accord take place?"
    ]
    assert [(r.reason, r.text.split("?")[0]) for r in exam.rejections] == [
        ("another option is right", "Who led the Balan Accord"),
        ("two options are right", "How many guests saw the Balan Accord"),
        ("the passage makes no option right", "What was given at the Balan Accord"),
    ]


def _again(client: LLMClient, chunks: list[Chunk], before: Written, **settings: Any) -> Written:
    return write_exam(
        chunks,
        corpus="events",
        client=client,
        settings=config.Exams(**settings),
        previous=before.questions,
        previous_rejections=before.rejections,
    )


def test_only_new_chunks_are_asked_about(client_on: Callable[[str], LLMClient]) -> None:
    chunks = _chunks(14)
    before = _write(client_on("a"), chunks[:12])
    client = client_on("b")
    after = _again(client, [chunks[13], *chunks[:12], chunks[12]], before)
    assert Counter(row.purpose for row in client.ledger.generations()) == {
        "question": 2,
        "question_selection": 2,
    }
    assert after.questions[2:-2] == before.questions
    assert set(before.rejections) < set(after.rejections)
    assert after.questions[:2] + after.questions[-2:] == [
        q
        for c in (chunks[13], chunks[12])
        for q in _write(client_on("a"), chunks).questions
        if q.chunk_id == c.chunk_id
    ]
    counts = {name: n for name, n in after.counts.items() if name != "right_is_longest"}
    assert counts == {"chunks_asked": 2, "chunks_reused": 12, "questions_retired": 0}


def test_questions_retire_with_their_chunk_and_come_back(
    client_on: Callable[[str], LLMClient],
) -> None:
    chunks = _chunks(12)
    whole = _write(client_on("a"), chunks)
    client = client_on("b")
    less = _again(client, chunks[1:], whole)
    assert less.counts["questions_retired"] == 2
    assert [q.chunk_id for q in less.questions if q.retired] == [chunks[0].chunk_id] * 2
    assert chunks[0].chunk_id not in {r.chunk_id for r in less.rejections}
    assert {q.question_id for q in less.questions} == {q.question_id for q in whole.questions}
    back = _again(client, chunks, less)
    assert back.questions == whole.questions
    assert client.ledger.generations() == []


def test_a_retired_question_blocks_no_new_one(client_on: Callable[[str], LLMClient]) -> None:
    (chunk,) = _chunks(1)
    before = _write(client_on("a"), [chunk])
    edited = replace(chunk, chunk_id="edited", text=f"{chunk.text} Nothing else is known.")
    after = _again(client_on("a"), [edited], before, per_chunk=5, keep=5)
    asked = [q for q in after.questions if not q.retired]
    assert {q.chunk_id for q in asked} == {"edited"}
    assert len(asked) == 5
    assert len({q.question_id for q in after.questions}) == len(after.questions)


def test_an_article_stays_in_its_split(client_on: Callable[[str], LLMClient]) -> None:
    chunks = _chunks(12)
    # None is drawn, so that one article is set aside: which one depends on who else is there.
    few = {"shots_share": 1e-9}
    before = _write(client_on("a"), chunks[:11], **few)
    (shots,) = {q.chunk_id for q in before.questions if q.split == "shots"}
    others = [replace(c, article_id=f"other {n}", chunk_id=f"o{n}") for n, c in enumerate(chunks)]
    for count in range(len(others)):
        more = _again(client_on("a"), [*chunks[:11], *others[: count + 1]], before, **few)
        assert {q.chunk_id for q in more.questions if q.split == "shots"} == {shots}
    fewer = _again(client_on("a"), [c for c in chunks if c.chunk_id != shots], before, **few)
    tested = {q.chunk_id for q in before.questions if q.split == "test"}
    now = {q.chunk_id: q.split for q in fewer.questions if not q.retired}
    assert {now[chunk_id] for chunk_id in tested} == {"test"}
    assert [q.split for q in fewer.questions if q.retired] == ["shots", "shots"]
    assert now[chunks[11].chunk_id] == "shots"


def test_corpora_that_share_chunks_share_what_was_written(
    client_on: Callable[[str], LLMClient],
) -> None:
    chunks = _chunks(12)
    window = _write(client_on("a"), chunks)
    client = client_on("b")
    release = write_exam(
        chunks[3:],
        corpus="release",
        client=client,
        settings=config.Exams(),
        siblings=window.questions,
        sibling_rejections=window.rejections,
    )
    assert client.ledger.generations() == []
    there = {chunk.chunk_id for chunk in chunks[3:]}
    assert release.questions == [q for q in window.questions if q.chunk_id in there]
    assert not any(q.retired for q in release.questions)
    twin = replace(chunks[3], chunk_id="twin", article_id="another")
    own = _write(client_on("c"), [twin], per_chunk=5, keep=5)
    mixed = write_exam(
        [twin, *chunks[3:]],
        corpus="release",
        client=client_on("d"),
        settings=config.Exams(),
        previous=own.questions,
        previous_rejections=own.rejections,
        siblings=window.questions,
        sibling_rejections=window.rejections,
    )
    assert mixed.questions[: len(own.questions)] == own.questions
    repeated = [r for r in mixed.rejections if r.reason.startswith("near-duplicate")]
    assert {r.chunk_id for r in repeated} == {chunks[3].chunk_id}


def test_how_often_the_right_option_is_the_longest() -> None:
    figure = right_is_longest(
        [_row(["aa", "b", "cc", "d"], 0), _row(["a", "bbb", "c", "d"], 0), _row(["abc", "d"], 0)]
    )
    assert figure == {"share": 0.5, "chance": pytest.approx(1 / 3), "questions": 3}
    assert right_is_longest([]) == {"share": 0.0, "chance": 0.0, "questions": 0}


def _row(options: list[str], gold: int) -> Question:
    return Question(
        question_id="q",
        origin="llm",
        stem="?",
        options=options,
        gold=gold,
        chunk_id="c",
        generator="",
        generation_id="",
        triage="",
        split="test",
        retired=False,
    )
