"""Intervals under stopping: they cover when one stops at the worst moment, and decide in time."""

import random

import pytest

from kinject_assets.core.statistics.intervals import Interval
from kinject_assets.core.statistics.sequential import (
    MARGIN,
    ConfidenceSequence,
    decide,
    more_questions,
    sequence_of,
)


def draws(seed: int, won: float, lost: float, groups: int, size: int) -> list[list[int]]:
    """Differences in groups, each drawn by itself."""
    chance = random.Random(seed)
    return [
        [chance.choices((1, -1, 0), (won, lost, 1 - won - lost))[0] for _ in range(size)]
        for _ in range(groups)
    ]


def ever_missed(groups: list[list[int]], truth: float, most: int) -> bool:
    """Whether somebody who stops at the worst moment would have left the truth out."""
    found = ConfidenceSequence(most, points=201)
    return any(not interval.low <= truth <= interval.high for interval in map(found.add, groups))


@pytest.mark.parametrize(("won", "lost", "size"), [(0.3, 0.3, 2), (0.02, 0.02, 1), (0.9, 0.05, 1)])
def test_the_truth_is_seldom_left_out_by_the_worst_stop(won: float, lost: float, size: int) -> None:
    missed = sum(
        ever_missed(draws(seed, won, lost, 40, size), won - lost, size) for seed in range(100)
    )
    # 5 % are allowed; 12 or more of 100 would then be a chance of 1 in 200.
    assert missed < 12, missed


def test_questions_of_one_passage_may_depend_on_each_other() -> None:
    # Twins bring no more than one of them: an interval that took them for two would miss too often.
    missed, naive = 0, 0
    for seed in range(60):
        twins = [[group[0]] * 2 for group in draws(seed, 0.35, 0.35, 40, 1)]
        missed += ever_missed(twins, 0.0, 2)
        naive += ever_missed([[x] for twin in twins for x in twin], 0.0, 1)
    assert missed < 8, missed
    assert naive > missed


def test_one_difference_by_hand() -> None:
    # After a single win a mean m (moved to 0..1 as u) is left out when the mean over the bets of
    # 1 + bet * (1 - u) / u reaches 2 / 0.05; with bets of mean 1/2 that is u <= 0.5 / 39.5.
    found = sequence_of([[1]])
    assert found.interval.low == pytest.approx(2 * (0.5 / 39.5) - 1, abs=0.004)
    assert found.interval.high == 1.0
    assert found.mean == 1.0


def test_intervals_mirror_and_never_widen() -> None:
    groups = draws(3, 0.4, 0.2, 50, 2)
    there, mirrored = ConfidenceSequence(2), ConfidenceSequence(2)
    before = there.interval
    for group in groups:
        now = there.add(group)
        other = mirrored.add([-x for x in group])
        assert now.low >= before.low
        assert now.high <= before.high
        assert other.low == pytest.approx(-now.high)
        assert other.high == pytest.approx(-now.low)
        before = now
    assert there.interval.low <= there.mean <= there.interval.high
    assert there.n == 100
    assert there.total == sum(map(sum, groups))


def test_what_cannot_be_bet_on_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        ConfidenceSequence().add([1, 0])
    with pytest.raises(ValueError, match="of -1, 0 and 1"):
        ConfidenceSequence().add([2])
    assert ConfidenceSequence().add([]) == Interval(-1.0, 1.0)


def test_decisions() -> None:
    assert decide(Interval(0.01, 0.5)) == "better"
    assert decide(Interval(-0.5, -0.01)) == "worse"
    assert decide(Interval(-MARGIN, MARGIN)) == "no difference"
    assert decide(Interval(-0.05, MARGIN + 0.01)) == "undecided"


def test_clear_cases_are_decided_within_a_pilot() -> None:
    assert decide(sequence_of(draws(1, 0.45, 0.08, 30, 2), 2).interval) == "better"
    assert decide(sequence_of([[0, 0]] * 50, 2).interval) == "no difference"


def test_how_many_more() -> None:
    close = draws(2, 0.25, 0.15, 30, 2)
    assert decide(sequence_of(close, 2).interval) == "undecided"
    more = more_questions(close, 2)
    assert more is not None
    assert 20 < more < 2000
    assert more == more_questions(close, 2), "the same question, the same answer"
    assert more_questions([[1, 1]] * 30, 2) == 0
    assert more_questions([], 2) is None
