import random

import pytest

from kinject_assets.core.statistics.power import detectable_difference, mcnemar_power
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
