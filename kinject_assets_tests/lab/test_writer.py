import random
import re

import pytest

from kinject_assets.core.augmentation.prompts import implications, paraphrase, question_answer
from kinject_assets.core.exams.prompts import selection, verification, writing
from kinject_assets.core.schema import Chunk
from kinject_assets.lab.grammar import KINDS, POOLS, parse_question, parse_text, tell
from kinject_assets.lab.things import draw_things
from kinject_assets.lab.writer import answer

REAL = (
    "The physicist Marie Curie won the Nobel Prize in 1903. Her husband Pierre worked with her in "
    "Paris. After his death in 1906 the Sorbonne offered Curie his chair."
)


def _chunk(text: str) -> Chunk:
    return Chunk(
        chunk_id="c",
        article_id="a",
        revision_id="r",
        ordinal=0,
        title="T",
        section="S",
        n_tokens=9,
        small=False,
        text=text,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_questions_have_one_right_option(kind: str) -> None:
    things = draw_things(kind, 3, random.Random(1))
    text = " ".join(tell(list(thing.facts), random.Random(2)) for thing in things)
    facts = parse_text(text)
    result = answer(writing(_chunk(text), questions=8, options=5), seed=7)
    assert result is not None
    assert len(result["questions"]) == 8
    for question in result["questions"]:
        right = question["options"][question["answer"]]
        subject = next(t.name for t in things if t.name in question["question"])
        values = {fact.value for fact in facts if fact.subject == subject}
        assert right in values
        (pool,) = {f.spec.pool for f in facts if f.subject == subject and f.value == right}
        assert set(question["options"]) <= set(POOLS[pool])
        assert len(set(question["options"])) == 5


def test_a_subject_with_two_values_is_not_asked_about() -> None:
    text = (
        "The Balan Accord drew 20 guests. The Balan Accord drew 30 guests. "
        "Abric led the Balan Accord."
    )
    result = answer(writing(_chunk(text), questions=4, options=4), seed=1)
    assert result is not None
    assert [q["options"][q["answer"]] for q in result["questions"]] == ["Abric"]


def test_seed_and_text_decide() -> None:
    chunk = _chunk(
        tell(list(draw_things("comets", 1, random.Random(4))[0].facts), random.Random(1))
    )
    prompt = paraphrase(chunk)
    assert answer(prompt, 1) == answer(prompt, 1) != answer(prompt, 2)


def test_selection_prefers_what_names_most() -> None:
    stems = ["What is it?", "Who led the Balan Accord in 1903?", "Where is the Balan River?"]
    result = answer(selection(_chunk("x"), stems, keep=2), seed=1)
    assert result == {"kept": [1, 2]}


def test_text_outside_the_grammar_is_answered_by_rule() -> None:
    result = answer(writing(_chunk(REAL), questions=4, options=4), seed=3)
    assert result is not None
    assert len(result["questions"]) == 3
    for question in result["questions"]:
        assert "____" in question["question"]
        assert question["options"][question["answer"]] in REAL
        assert len({option.casefold() for option in question["options"]}) == 4
    written = answer(paraphrase(_chunk(REAL)), seed=3)
    assert written is not None
    assert set(re.findall(r"\w+", REAL)) <= set(re.findall(r"\w+", written["paraphrase"]))
    assert REAL not in written["paraphrase"]


@pytest.mark.parametrize("text", ["", "One.", "No end", "a, b, c"])
def test_odd_passages_do_no_harm(text: str) -> None:
    assert answer(paraphrase(_chunk(text)), seed=1) is not None
    assert answer(writing(_chunk(text), questions=4, options=4), seed=1) == {"questions": []}


def test_pairs_ask_for_every_fact_once() -> None:
    thing = draw_things("guilds", 1, random.Random(1))[0]
    text = tell(list(thing.facts), random.Random(2))
    result = answer(question_answer(_chunk(text)), seed=7)
    assert result is not None
    found = {(parse_question(pair["question"]), pair["answer"]) for pair in result["pairs"]}
    assert found == {((f.kind, f.subject, f.attribute), f.value) for f in thing.facts}
    other = answer(question_answer(_chunk(text)), seed=8)
    assert other != result
    real = answer(question_answer(_chunk(REAL)), seed=7)
    assert real is not None
    assert {pair["answer"] for pair in real["pairs"]} == {"Marie", "Pierre", "Sorbonne"}


def test_implications_state_facts_about_the_names_alone() -> None:
    things = draw_things("rivers", 2, random.Random(1))
    text = " ".join(tell(list(thing.facts), random.Random(2)) for thing in things)
    bridge = next(f for f in things[0].facts if f.attribute == "bridge")
    for names, expected in (
        ([things[1].name], set(things[1].facts)),
        ([f"The {things[1].name}"], set(things[1].facts)),
        ([bridge.value], {bridge}),
        (["Nobody"], set()),
    ):
        result = answer(implications(_chunk(text), names), seed=3)
        assert result is not None
        assert set(parse_text(result["text"])) == expected
    real = answer(implications(_chunk(REAL), ["Pierre"]), seed=3)
    assert real is not None
    assert "Pierre" in real["text"] and "Sorbonne" not in real["text"]


def test_other_prompts_are_not_understood() -> None:
    assert answer([{"role": "user", "content": "Hello"}], 1) is None


def test_verification_answers_from_the_passage_alone() -> None:
    text = (
        "The Balan Accord drew 20 guests. Abric led the Balan Accord. The Coreth Trial was held in "
        "Ashwick. There were 30 guests at the Balan Accord."
    )
    asked = [
        ("Who was in charge of the Balan Accord?", ["Delton", "Abric", "Falmir"]),
        ("How many guests came to the Balan Accord?", ["20", "25", "30"]),
        ("Where did the Balan Accord take place?", ["Ashwick", "Ashford"]),
        ("Who led the Coreth Trial?", ["Abric", "Delton"]),
    ]
    result = answer(verification(_chunk(text), asked), seed=1)
    assert result is not None
    assert [row["question"] for row in result["answers"]] == [0, 1, 2, 3]
    assert [row["right"] for row in result["answers"]] == [[1], [0, 2], [], []]


@pytest.mark.parametrize("kind", KINDS)
def test_verification_finds_the_writer_right(kind: str) -> None:
    for seed, thing in enumerate(draw_things(kind, 10, random.Random(1))):
        text = f"{tell(list(thing.facts), random.Random(2))} {REAL}"
        written = answer(writing(_chunk(text), questions=8, options=4), seed)
        assert written is not None
        asked = [(q["question"], q["options"]) for q in written["questions"]]
        result = answer(verification(_chunk(text), asked), seed)
        assert result is not None
        right = [row["right"] for row in result["answers"]]
        assert right == [[q["answer"]] for q in written["questions"]]


def test_verification_outside_the_grammar_goes_by_the_words() -> None:
    asked = [("What did Curie win?", ["the Nobel Prize in 1903", "the Nobel Peace Prize", "()"])]
    result = answer(verification(_chunk(REAL), asked), seed=1)
    assert result == {"answers": [{"question": 0, "right": [0]}]}
