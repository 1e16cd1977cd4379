import random
import re

import pytest

from kinject_assets.core.augmentation.prompts import paraphrase
from kinject_assets.core.exams.prompts import selection, writing
from kinject_assets.core.schema import Chunk
from kinject_assets.lab.grammar import KINDS, POOLS, parse_text, tell
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


def test_other_prompts_are_not_understood() -> None:
    assert answer([{"role": "user", "content": "Hello"}], 1) is None
