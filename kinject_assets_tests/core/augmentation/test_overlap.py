"""What training has met of its exam and of its validation set is counted, and nothing else is."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from kinject_assets.core.augmentation.facts import likeness
from kinject_assets.core.augmentation.overlap import Met, met_questions, met_texts, overlaps
from kinject_assets.core.augmentation.question_answer import (
    QuestionAnswerPlugin,
    WrittenPair,
    WrittenPairs,
)
from kinject_assets.core.schema import Paraphrase, Question
from kinject_assets.core.store import Store
from kinject_assets.defs import checks

NEAR = 0.9


def _question(stem: str, gold: str, chunk: str = "c1", split: str = "test") -> Question:
    return Question(
        question_id=stem,
        origin="llm",
        stem=stem,
        options=["Rome", gold, "Kiel", "Bonn"],
        gold=1,
        chunk_id=chunk,
        generator="",
        generation_id="",
        triage="",
        split=split,
        retired=False,
    )


def _text(text: str, chunk: str = "c1", augmentation: str = "paraphrase") -> Paraphrase:
    return Paraphrase(
        paraphrase_id=text,
        chunk_id=chunk,
        augmentation=augmentation,
        purpose="train",
        ordinal=0,
        seed=0,
        generator="",
        generation_id="",
        text=text,
    )


def _pairs(*pairs: tuple[str, str], chunk: str = "c1") -> Paraphrase:
    written = [WrittenPair(question=question, answer=answer) for question, answer in pairs]
    text = QuestionAnswerPlugin().render(WrittenPairs(pairs=written))
    return _text(text, chunk, "question_answer")


BORN = _question("In which town was the physicist Marie Curie born in the year 1867?", "Warsaw")


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        (_pairs((BORN.stem, "in Warsaw")), True),
        (_pairs((BORN.stem.upper(), "Warsaw"), chunk="c2"), True),
        (_text(f"This may be asked: {BORN.stem} It was Warsaw."), True),
        (_pairs((BORN.stem, "in Warsaw"), chunk="c2"), True),
        (
            _pairs(("In which town was physicist Marie Curie born in the year 1867?", "Warsaw")),
            False,
        ),
    ],
)
def test_a_question_that_is_trained_on_is_met(text: Paraphrase, exact: bool) -> None:
    others = [_pairs((f"What is thing {n}?", f"{n}")) for n in range(20)]
    met = met_questions([BORN], [*others, text], NEAR)
    assert met == [Met(BORN.stem, text.augmentation, exact)]


@pytest.mark.parametrize(
    "text",
    [
        _pairs(("Where did Marie Curie come from?", "Warsaw")),
        # Of one mould: another name, another year.
        _pairs(("In which town was the physicist Pierre Curie born in the year 1867?", "Warsaw")),
        _pairs(("In which town was the physicist Marie Curie born in the year 1876?", "Warsaw")),
        _text("Marie Curie was born in Warsaw in the year 1867."),
        _text(f"Elsewhere it says: {BORN.stem}", "c2"),
        _pairs((BORN.stem, "Lodz"), chunk="c2"),
    ],
)
def test_a_fact_in_other_words_and_a_question_of_one_mould_are_not_met(text: Paraphrase) -> None:
    assert met_questions([BORN], [text], NEAR) == []


@pytest.mark.parametrize(
    ("stem", "text", "met"),
    [
        ("Who won?", "The man who wondered went home", False),
        ("Who won?", "They ask who won", True),
        ("What is 3?", "What is 30 % of it?", False),
        ("谁出生在华沙?", "有人问谁出生在华沙,没有人回答", True),
        ("谁出生在华沙?", "有人问谁出生在柏林,没有人回答", False),
    ],
)
def test_a_question_is_in_a_text_in_whole_words(stem: str, text: str, met: bool) -> None:
    assert bool(met_questions([_question(stem, "Curie")], [_text(text)], NEAR)) == met


def test_the_same_question_of_another_chunk_is_met_with_its_right_answer_alone() -> None:
    asked = _question("What is the main colour of the flag that the city council has?", "blue")
    other = _pairs((asked.stem, "red"), chunk="c2")
    assert likeness(f"{asked.stem} blue", f"{asked.stem} red") >= NEAR
    assert met_questions([asked], [other], NEAR) == []
    same = _pairs((asked.stem, "Blue."), chunk="c3")
    assert met_questions([asked], [other, same], NEAR) == [Met(asked.stem, "question_answer", True)]


def test_a_nearly_copied_question_is_met_in_a_script_without_spaces() -> None:
    asked = _question("居里夫人于一八六七年出生在波兰的哪一座城市里面呢?", "华沙")
    text = _pairs(("居里夫人于一八六七年出生在波兰的哪一个城市里面呢?", "华沙"))
    assert met_questions([asked], [text], NEAR) == [Met(asked.stem, "question_answer", False)]


def test_lines_of_few_words_are_all_compared() -> None:
    # Many lines of a small vocabulary: each found by likeness alone is found by the lookup.
    rng = random.Random(0)
    lines = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 12))) for _ in range(300)]
    asked = [_question(line, "x") for line in lines[:40]]
    pairs = [_pairs((line, "x"), chunk="c2") for line in lines[40:]]
    for near in (0.5, 0.7, 0.9, 1.0):
        met = {found.text for found in met_questions(asked, pairs, near)}
        alike = {
            q.stem
            for q in asked
            if any(likeness(f"{q.stem} x", f"{line} x") >= near for line in lines[40:])
        }
        assert met == alike
        assert near == 1.0 or met


def test_validation_texts_are_met_on_their_own_chunk() -> None:
    words = "In 1903 Marie Curie won half of a prize for her work on what she called radioactivity"
    held_out = [_text(f"{words}."), _text("Nothing like it."), _text(f"{words}!", "c2")]
    training = [
        _text(f"{words.upper()}"),
        _text(f"{words}, too", "c2"),
        _text("Other words."),
        _text(words, "c3"),
    ]
    assert [m.exact for m in met_texts(held_out, training, NEAR)] == [True, False]
    assert likeness(held_out[2].text, training[1].text) >= NEAR
    assert met_texts(held_out[1:2], training, NEAR) == []


def test_no_question_is_overlooked_for_the_words_that_it_is_looked_up_by() -> None:
    # Every text with one word of the question left out, doubled or exchanged, against likeness.
    words = BORN.stem.split()
    lines = [" ".join([*words[:n], *middle, *words[n + 1 :]]) for n, middle in _variants(words)]
    for near in (0.7, 0.9, 0.95):
        for line in lines:
            text = _pairs((line, "Warsaw"))
            alike = likeness(f"{line} Warsaw", f"{BORN.stem} Warsaw") >= near
            names = all(word in line for word in ("Marie", "Curie", "1867"))
            assert bool(met_questions([BORN], [text], near)) == (alike and names), line


def _variants(words: list[str]) -> Iterator[tuple[int, list[str]]]:
    for n, word in enumerate(words):
        yield from ((n, found) for found in ([], [word, word], ["else"], ["else", "where"]))


def test_a_lake_is_looked_through_and_the_checks_warn(built: Store) -> None:
    found = overlaps(built, NEAR)
    assert found and all(o.scored > 0 for o in found)
    clean = [replace(o, questions=[], texts=[]) for o in found]
    results = {c.check_name: c for c in checks.results({"scores": 1}, [], clean)}
    assert results["questions_not_trained_on"].passed
    assert results["validation_not_trained_on"].passed
    met = [replace(o, questions=[Met(BORN.stem, "question_answer", True)]) for o in clean]
    results = {c.check_name: c for c in checks.results({"scores": 1}, [], met)}
    warned = results["questions_not_trained_on"]
    assert not warned.passed and warned.severity == dg.AssetCheckSeverity.WARN
    said = warned.description or ""
    assert f"{found[0].corpus}: 1 of {found[0].scored} scored questions" in said
    assert "(1 word for word; question_answer)" in said
    assert BORN.stem in said
    assert warned.metadata["met"].value == len(found)
    assert results["validation_not_trained_on"].passed


def test_a_lake_without_texts_has_met_nothing(tmp_path: Path) -> None:
    assert overlaps(Store(tmp_path), NEAR) == []
