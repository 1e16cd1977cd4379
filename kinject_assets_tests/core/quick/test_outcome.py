"""What a pilot says: the declared rules, and a sentence for every way in which it can end."""

import random
from dataclasses import replace

import pytest

from kinject_assets.core.quick.outcome import (
    Asked,
    Bottleneck,
    Gain,
    Outcome,
    Recipe,
    Setting,
    Stopped,
    Tally,
    bottleneck,
)
from kinject_assets.core.quick.words import answer, caveats, next_steps, sentences, text
from kinject_assets.core.statistics.sequential import Decision

SETTING = Setting(
    profile="quick-docs",
    profile_path="/somewhere/quick-docs.yaml",
    corpus="docs",
    model="org/model",
    writer="writer-1",
    lab_writer=False,
    lab_model=False,
    encoder="org/encoder",
    retriever="dense",
    k=3,
    hardware="one GPU",
)
FOUND = Outcome(
    setting=SETTING,
    documents=5,
    passages=90,
    asked_passages=30,
    questions=60,
    rejections={"vague": 4, "two options are right": 3, "a": 2, "b": 1},
    stopped="decided",
    accuracy={"base": 0.27, "rag": 0.58, "oracle": 0.78},
    chance=0.25,
    hit_rate=0.55,
    decision="better",
    gain=Gain(difference=0.31, low=0.18, high=0.44),
    gap=Gain(difference=0.2, low=0.05, high=0.35),
    bottleneck="retrieval",
    recipes=(
        Recipe(recipe="lora.p00", paraphrases=0, seconds=0.4, requests=10, usd=0.02),
        Recipe(recipe="lora.p04", paraphrases=4, seconds=7200, requests=400, usd=None),
    ),
    spent_usd=0.12,
    seconds=61.0,
)


def row(base: bool, rag: bool, oracle: bool, number: int = 0) -> Asked:
    return Asked(
        question_id=f"q{number}",
        chunk_id=f"c{number // 2}",
        base=base,
        rag=rag,
        oracle=oracle,
        hit=rag,
        chance=0.25,
    )


@pytest.mark.parametrize(
    ("rag", "oracle", "expected"),
    [
        (0.3, 0.28, "model"),
        (0.97, 0.98, "neither"),
        (0.5, 0.8, "retrieval"),
        (0.5, 0.75, "retrieval"),
        (0.5, 0.7, "reading"),
        (0.6, 0.55, "reading"),
    ],
)
def test_the_rule_for_bottlenecks(rag: float, oracle: float, expected: Bottleneck) -> None:
    assert bottleneck(rag, oracle, 60, 0.25) == expected


@pytest.mark.parametrize(("n", "expected"), [(6, "unknown"), (29, "unknown"), (30, "model")])
def test_a_handful_of_questions_does_not_blame_the_model(n: int, expected: Bottleneck) -> None:
    assert bottleneck(0.3, 0.3, n, 0.25) == expected


def test_a_tally_decides_and_adds_up() -> None:
    tally = Tally(2)
    assert tally.findings() == {}
    assert tally.decision == "undecided"
    chance = random.Random(0)
    for place in range(30):
        tally.add(
            [row(False, chance.random() < 0.6, True, 2 * place + n) for n in range(2)],
        )
    found = tally.findings()
    assert found["decision"] == "better"
    assert found["more_questions"] is None
    assert found["accuracy"]["oracle"] == 1.0
    gain = found["gain"]
    assert gain.difference == pytest.approx(found["accuracy"]["rag"] - found["accuracy"]["base"])
    assert gain.low <= gain.difference <= gain.high
    assert found["hit_rate"] == found["accuracy"]["rag"]


def test_an_undecided_tally_says_how_many_more() -> None:
    tally = Tally(1)
    for place in range(30):
        tally.add([row(place % 5 == 0, place % 3 == 0, True, place)])
    found = tally.findings()
    assert found["decision"] == "undecided"
    assert found["more_questions"] > 0


def test_the_sentence_of_the_issue() -> None:
    assert answer(FOUND) == "RAG gives +0.31 [+0.18, +0.44] (0.27 → 0.58 on 60 questions)."


@pytest.mark.parametrize(
    ("decision", "begins"),
    [
        ("better", "RAG gives +0.31"),
        ("worse", "RAG does harm: +0.31"),
        ("no difference", "RAG makes no difference of 10 points or more: +0.31"),
        ("undecided", "Not decided: RAG gives +0.31"),
    ],
)
def test_an_answer_for_each_decision(decision: Decision, begins: str) -> None:
    assert answer(replace(FOUND, decision=decision)).startswith(begins)


def test_how_many_more_and_why_it_stopped() -> None:
    undecided = replace(FOUND, decision="undecided", more_questions=140, stopped="budget")
    assert (
        "About 140 more questions would settle it. It stopped because the budget was reached."
        in sentences(undecided)
    )
    many = replace(undecided, more_questions=None, stopped="time")
    assert sentences(many)[1].startswith("More than 2,000 further questions")
    assert "more --questions" in next_steps(undecided)[0]
    used_up = next_steps(replace(undecided, stopped="passages"))
    assert "add documents, or raise exams.keep" in used_up[0]
    assert not any("--questions" in step for step in used_up), "no more can be asked"
    assert len(sentences(FOUND)) == 3, "what is decided needs no more questions"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("retrieval", "Retrieval is the bottleneck: the right passage was found for 55 %"),
        ("reading", "Reading is the bottleneck: the right passage was found for 55 %"),
        ("neither", "Nothing much is left to mend"),
        ("model", "The model seems to be the bottleneck: even with the right passage in front"),
        ("model", "answers 0.78, which is not shown to be better than chance (0.25)"),
        ("unknown", "On 60 questions it cannot be told what holds RAG back"),
    ],
)
def test_a_sentence_for_each_bottleneck(name: Bottleneck, says: str) -> None:
    assert says in sentences(replace(FOUND, bottleneck=name))[1]


def test_a_gap_that_may_be_none_only_seems() -> None:
    unsure = replace(FOUND, gap=Gain(difference=0.1, low=-0.02, high=0.22))
    assert "Retrieval seems to be the bottleneck" in sentences(unsure)[1]


def test_fine_tuning_is_reckoned() -> None:
    said = sentences(FOUND)[-1]
    assert "on one GPU" in said
    assert "lora.p00 (text alone) under a second, and 0.02 USD" in said
    assert "lora.p04 (text and 4 paraphrases) about 2.0 h, and an unknown sum" in said
    assert not any("Fine-tuning" in line for line in sentences(replace(FOUND, recipes=())))


@pytest.mark.parametrize(
    ("stopped", "asked", "says"),
    [
        ("budget", 0, "none was complete when the budget was reached. What was paid for is kept"),
        ("time", 0, "the time was up"),
        ("passages", 0, "no passage of the documents is long enough"),
        ("passages", 30, "vague (4); two options are right (3); a (2)"),
    ],
)
def test_no_question(stopped: Stopped, asked: int, says: str) -> None:
    found = replace(
        FOUND, questions=0, stopped=stopped, asked_passages=asked, gain=None, gap=None, accuracy={}
    )
    (only,) = sentences(found)
    assert says in only
    assert answer(found) == only
    assert "kinject plan" in text(found)


def test_what_to_mind() -> None:
    assert any("Asked was org/model" in line for line in caveats(FOUND))
    assert any("writer-1" in line and "nobody" in line for line in caveats(FOUND))
    assert not any("lab" in line for line in caveats(FOUND))
    lab = replace(FOUND, setting=replace(SETTING, lab_writer=True, lab_model=True))
    said = " ".join(caveats(lab))
    assert "no language model" in said
    assert "invented world" in said


def test_the_page_is_narrow_and_whole() -> None:
    page = text(FOUND)
    prose = page.partition("Next:")[0]
    assert max(map(len, prose.splitlines())) <= 80
    for line in sentences(FOUND):
        assert line.split()[-1] in prose
    assert "5 documents, 90 passages, 30 of them" in " ".join(page.split())
    assert "/somewhere/quick-docs.yaml" in page
    assert FOUND.to_dict()["gain"]["low"] == 0.18
