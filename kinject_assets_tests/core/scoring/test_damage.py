"""Damage is counted question by question, and its bill shows all that was measured."""

import pytest

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.schema import Answer, Damage
from kinject_assets.core.scoring.damage import bill, damage_of
from kinject_assets.core.statistics.intervals import paired_difference
from kinject_assets.core.statistics.letters import BELOW_CHANCE, ONE_LETTER
from kinject_assets.core.training.trainer import GENERAL_PERPLEXITY


def answers(**right: bool) -> list[Answer]:
    return [
        Answer(
            condition_id="c",
            question_id=question,
            answer_id=question,
            choice=0,
            gold=0 if correct else 1,
            correct=correct,
            logliks=[0.0, -1.0],
            truncated_tokens=0,
            checkpoint_id="",
            run_id="",
        )
        for question, correct in right.items()
    ]


def test_lost_and_won_questions() -> None:
    before = answers(a=True, b=True, c=False, d=True)
    row = damage_of("id", "facts:rivers", before, answers(a=True, b=False, c=True, d=False))
    assert (row.before, row.after, row.n, row.lost, row.won) == (0.75, 0.5, 4, 2, 1)


@pytest.mark.parametrize("after", [answers(a=True), answers(a=True, x=True), []])
def test_answers_to_other_questions_are_refused(after: list[Answer]) -> None:
    with pytest.raises(BrokenArtefact, match="not the same ones"):
        damage_of("id", "facts:rivers", answers(a=True, b=True), after)


def chosen(places: list[int], golds: list[int]) -> list[Answer]:
    """Answers to questions with four options, by the place chosen and the right one."""
    return [
        Answer(
            condition_id="c",
            question_id=f"q{number}",
            answer_id=f"a{number}",
            choice=place,
            gold=gold,
            correct=place == gold,
            logliks=[0.0, -1.0, -2.0, -3.0],
            truncated_tokens=0,
            checkpoint_id="",
            run_id="",
            places=[place],
        )
        for number, (place, gold) in enumerate(zip(places, golds, strict=True))
    ]


GOLDS = [0, 1, 2, 3] * 10
READS = chosen(GOLDS, GOLDS)
STUCK = chosen([1] * 40, GOLDS)
WRONG = chosen([(gold + 1) % 4 for gold in GOLDS], GOLDS)


def test_answers_that_fall_onto_a_letter() -> None:
    row = damage_of("id", "facts:rivers", READS, STUCK)
    assert (row.most_chosen_before, row.most_chosen_after) == (0.25, 1.0)
    assert (row.entropy_before, row.entropy_after) == (2.0, 0.0)
    assert (row.collapse_before, row.collapse_after) == ("", ONE_LETTER)


def test_answers_below_chance_are_spread_and_collapsed_all_the_same() -> None:
    row = damage_of("id", "reading:rivers", READS, WRONG)
    assert (row.most_chosen_after, row.entropy_after) == (0.25, 2.0)
    assert row.collapse_after == BELOW_CHANCE


def test_where_no_letters_are_shown_there_is_none_to_fall_onto() -> None:
    row = damage_of("id", "facts:rivers", READS, STUCK, letters=False)
    assert (row.most_chosen_before, row.most_chosen_after) == (None, None)
    assert (row.entropy_before, row.entropy_after) == (None, None)
    assert (row.collapse_before, row.collapse_after) == ("", "")
    assert damage_of("id", "facts:rivers", READS, WRONG, False).collapse_after == BELOW_CHANCE


def _table(*rows: Damage) -> list[list[str]]:
    lines = bill(rows).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_bill_has_all_four_in_one_table() -> None:
    perplexity = Damage(checkpoint_id="id", probe=GENERAL_PERPLEXITY, before=10.0, after=12.5)
    half = chosen([1] * 20 + GOLDS[20:], GOLDS)
    heads, rule, general, facts, reading = _table(
        damage_of("id", "reading:comets", READS, READS, letters=False),
        damage_of("id", "facts:rivers", READS, half),
        perplexity,
    )
    assert len({len(heads), len(rule), len(general), len(facts), len(reading)}) == 1
    assert general[:4] == ["Perplexity on general text", "10.000", "12.500", "+2.500"]
    assert facts[0] == "Other facts: accuracy on rivers, closed-book"
    assert facts[1:4] == ["1.000", "0.625", "-0.375"]
    low, high = paired_difference(0, 15, 40)
    assert facts[4] == f"{low:+.3f} to {high:+.3f}"
    assert low < -0.375 < high < 0
    assert facts[5:8] == ["40", "15", "0"]
    assert facts[8:] == ["25%, then 62%", "2.00, then 1.55", "no, then no"]
    assert reading[0] == "Reading: accuracy on comets, FT + RAG against RAG"
    assert reading[8:10] == ["no letters shown"] * 2


def test_the_bill_says_what_was_not_measured() -> None:
    _, _, general, facts, reading = _table(damage_of("id", "facts:rivers", READS, READS))
    assert general[1] == "not measured: training.general_text names no text"
    assert reading[1] == "not measured: damage.reading names no other corpus"
    assert "not measured" not in facts[1]
