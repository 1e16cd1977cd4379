"""Damage is counted question by question."""

import pytest

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.schema import Answer
from kinject_assets.core.scoring.damage import damage_of


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
