import pytest

from kinject_assets.core.schema import Answer
from kinject_assets.core.statistics.letters import (
    BELOW_CHANCE,
    ONE_LETTER,
    Place,
    collapse,
    entropy,
    places,
)


def _answer(gold: int, choice: int, shown: list[int], options: int = 4) -> Answer:
    return Answer(
        condition_id="c",
        question_id=f"q{gold}{choice}",
        answer_id="a",
        choice=choice,
        gold=gold,
        correct=choice == gold,
        logliks=[0.0] * options,
        truncated_tokens=0,
        checkpoint_id="",
        run_id="",
        places=shown,
    )


def test_shares_of_one_order() -> None:
    found = places([_answer(0, 0, [0]), _answer(1, 0, [0]), _answer(2, 2, [2]), _answer(0, 3, [3])])
    assert [(p.letter, p.gold, p.chosen) for p in found] == [
        ("A", 0.5, 0.5),
        ("B", 0.25, 0.0),
        ("C", 0.25, 0.25),
        ("D", 0.0, 0.25),
    ]
    assert {p.shown for p in found} == {4}


def test_under_rotation_each_place_is_right_once() -> None:
    # Always the letter B, whatever stands there: one answer in four orders.
    found = places([_answer(2, 1, [1, 1, 1, 1])])
    assert [p.gold for p in found] == [0.25] * 4
    assert [p.chosen for p in found] == [0.0, 1.0, 0.0, 0.0]
    # A reader of the question follows the right option: in order r it stands at (2 - r) mod 4.
    found = places([_answer(2, 2, [2, 1, 0, 3])])
    assert [p.chosen for p in found] == [p.gold for p in found] == [0.25] * 4
    assert {p.shown for p in found} == {4}


def test_answers_without_places_count_by_their_choice() -> None:
    assert places([_answer(0, 3, [])]) == places([_answer(0, 3, [3])])
    assert places([]) == []


def test_questions_with_fewer_options() -> None:
    found = places([_answer(0, 0, [0], options=4), _answer(1, 1, [1, 0], options=2)])
    assert len(found) == 4
    assert [p.gold for p in found] == pytest.approx([2 / 3, 1 / 3, 0, 0])


def _places(chosen: float, gold: float) -> list[Place]:
    rest = Place(1, "B", 100, 1 - gold, 1 - chosen)
    return [Place(0, "A", 100, gold, chosen), rest]


@pytest.mark.parametrize(
    ("correct", "chosen", "gold", "why"),
    [
        (30, 0.3, 0.25, ""),
        # 14 of 100: Wilson's upper end is 0.222; of 17 it is 0.256.
        (14, 0.3, 0.25, BELOW_CHANCE),
        (17, 0.3, 0.25, ""),
        (25, 0.91, 0.25, ONE_LETTER),
        (25, 0.90, 0.25, ""),
        (90, 0.95, 0.5, ""),
        (10, 0.95, 0.25, f"{BELOW_CHANCE}, {ONE_LETTER}"),
    ],
)
def test_collapse(correct: int, chosen: float, gold: float, why: str) -> None:
    assert collapse(correct, 100, 0.25, _places(chosen, gold)) == why


def test_entropy_of_places_against_scipy() -> None:
    from scipy.stats import entropy as of_shares

    shares = [0.5, 0.3, 0.2, 0.0]
    found = [Place(i, "ABCD"[i], 10, 0.25, share) for i, share in enumerate(shares)]
    assert entropy(found) == pytest.approx(of_shares(shares, base=2))
    assert entropy([]) == 0
    assert entropy([Place(0, "A", 10, 0.25, 1.0)]) == 0
