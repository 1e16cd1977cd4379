import random

import pytest

from kinject_assets.core.statistics.power import (
    MOST_QUESTIONS,
    WORTHWHILE,
    detectable_difference,
    mcnemar_power,
    questions_needed,
)
from kinject_assets.core.statistics.tests import mcnemar


def _simulated(n: int, discordance: float, difference: float, times: int) -> float:
    draw = random.Random(2)
    found = 0
    for _ in range(times):
        b = c = 0
        for _ in range(n):
            u = draw.random()
            b += u < (discordance + difference) / 2
            c += (discordance + difference) / 2 <= u < discordance
        found += mcnemar(b, c) < 0.05
    return found / times


def test_power_is_that_of_simulated_exams() -> None:
    assert mcnemar_power(100, 0.3, 0.15) == pytest.approx(
        _simulated(100, 0.3, 0.15, 1500), abs=0.04
    )


def test_the_level_is_held() -> None:
    assert mcnemar_power(200, 0.3, 0.0) <= 0.05
    assert mcnemar_power(200, 0.0, 0.0) == 0.0


def test_detectable_difference_reaches_the_power_and_no_less_does() -> None:
    found = detectable_difference(910, 200)
    assert found is not None
    assert mcnemar_power(910, 200 / 910, found) >= 0.8
    assert mcnemar_power(910, 200 / 910, found - 0.005) < 0.8


def test_more_questions_show_less_and_too_few_show_nothing() -> None:
    small, large = detectable_difference(100, 20), detectable_difference(1000, 200)
    assert small is not None and large is not None
    assert large < small
    assert detectable_difference(5, 2) is None
    assert detectable_difference(0, 0) is None
    assert detectable_difference(6, 0) is not None


@pytest.mark.parametrize(
    ("discordance", "difference", "alpha"),
    [(0.3, 0.05, 0.05), (0.3, 0.05, 0.05 / 40), (0.05, 0.05, 0.01), (0.2, 0.1, 0.05)],
)
def test_questions_needed_reach_the_power_and_one_less_does_not(
    discordance: float, difference: float, alpha: float
) -> None:
    n = questions_needed(discordance, difference, alpha=alpha)
    assert n is not None
    assert mcnemar_power(n, discordance, difference, alpha) >= 0.8
    assert mcnemar_power(n - 1, discordance, difference, alpha) < 0.8


def test_questions_needed_by_simulation() -> None:
    n = questions_needed(0.25, 0.1)
    assert n is not None
    assert _simulated(n, 0.25, 0.1, 1500) == pytest.approx(0.8, abs=0.035)


def test_questions_needed_grow_with_discordance_and_with_the_family() -> None:
    needed = [
        questions_needed(discordance, WORTHWHILE, alpha=0.05 / family)
        for family in (1, 30)
        for discordance in (0.0, 0.1, 0.3, 1.0)
    ]
    numbers = [n for n in needed if n is not None]
    assert len(numbers) == 8
    assert numbers[:4] == sorted(numbers[:4]) and numbers[4:] == sorted(numbers[4:])
    assert all(a < b for a, b in zip(numbers[:4], numbers[4:], strict=True))


def test_more_questions_than_anyone_writes_are_not_named() -> None:
    assert questions_needed(0.5, 0.001) is None
    # Just within: the exact search ends, and below the bound.
    assert 0 < (questions_needed(0.3, 0.004) or 0) <= MOST_QUESTIONS
