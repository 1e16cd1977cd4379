import random
from math import sqrt

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, multinomial, norm
from statsmodels.stats.proportion import proportion_confint

from kinject_assets.core.statistics.intervals import (
    paired_difference,
    relative_gain,
    relative_gain_interval,
    wilson,
)


def _score(b: int, c: int, n: int, difference: float) -> float:
    """Score statistic with the nuisance parameter found by maximising the likelihood."""
    from math import log

    def loss(q: float) -> float:
        parts = ((b, q + difference), (c, q), (n - b - c, 1 - 2 * q - difference))
        return -sum(count * log(max(p, 1e-300)) for count, p in parts if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    q = float(found.x)  # pyright: ignore[reportAttributeAccessIssue] (untyped Bunch)
    return (b - c - n * difference) / sqrt(n * (2 * q + difference * (1 - difference)))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 5, 100), (3, 9, 40), (20, 20, 150), (7, 1, 30)])
def test_tango_inverts_the_score_test(b: int, c: int, n: int) -> None:
    z = norm.ppf(0.975)
    estimate = (b - c) / n
    found = paired_difference(b, c, n)
    low = brentq(lambda d: _score(b, c, n, d) - z, -0.9, estimate - 1e-9)
    high = brentq(lambda d: _score(b, c, n, d) + z, estimate + 1e-9, 0.9)
    assert found == pytest.approx((low, high), abs=2e-5)


def test_tango_without_discordant_questions_is_no_point() -> None:
    low, high = paired_difference(0, 0, 100)
    # Inverting n d^2 / (d (1 - d)) = z^2 gives z^2 / (n + z^2).
    assert high == pytest.approx(1.95996**2 / (100 + 1.95996**2), abs=1e-5)
    assert low == pytest.approx(-high)


def test_tango_at_the_ends() -> None:
    assert paired_difference(10, 0, 10).high == pytest.approx(1.0)
    assert paired_difference(0, 10, 10).low == pytest.approx(-1.0)
    assert paired_difference(0, 0, 0) == (-1.0, 1.0)
    forward, backward = paired_difference(8, 3, 50), paired_difference(3, 8, 50)
    assert forward.low == pytest.approx(-backward.high)


def _draws(n: int, p_a: float, p_b: float, times: int) -> list[tuple[int, int]]:
    draw = random.Random(7)
    found = []
    for _ in range(times):
        b = c = 0
        for _ in range(n):
            u = draw.random()
            b += u < p_a
            c += p_a <= u < p_a + p_b
        found.append((b, c))
    return found


def test_tango_covers_the_truth() -> None:
    draws = _draws(60, 0.2, 0.1, 600)
    covered = sum(
        low <= 0.1 <= high for b, c in draws for low, high in [paired_difference(b, c, 60)]
    )
    assert 0.92 <= covered / len(draws) <= 0.98


def test_wilson_matches_its_formula_and_covers() -> None:
    n, correct, z = 135, 81, norm.ppf(0.975)
    p = correct / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson(correct, n) == pytest.approx((centre - half, centre + half))
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20).low == 0.0
    assert wilson(20, 20).high == 1.0
    draw = random.Random(3)
    counts = [sum(draw.random() < 0.3 for _ in range(50)) for _ in range(800)]
    share = sum(low <= 0.3 <= high for k in counts for low, high in [wilson(k, 50)]) / 800
    assert 0.92 <= share <= 0.98


def test_relative_gain() -> None:
    assert relative_gain(0.6, 0.5) == pytest.approx(0.2)
    assert relative_gain(0.6, 0.0) is None
    low, high = relative_gain_interval(30, 20, 5) or (0, 0)
    assert low < 50 / 35 - 1 < high
    assert relative_gain_interval(0, 5, 0) is None


def test_relative_gain_interval_covers() -> None:
    draw = random.Random(11)
    n, times, covered = 150, 500, 0
    for _ in range(times):
        both = after = before = 0
        for _ in range(n):
            u = draw.random()
            both += u < 0.4
            after += 0.4 <= u < 0.6
            before += 0.6 <= u < 0.7
        interval = relative_gain_interval(both, after, before)
        assert interval is not None
        covered += interval.low <= 0.6 / 0.5 - 1 <= interval.high
    assert 0.92 <= covered / times <= 0.98


@pytest.mark.parametrize("n", [1, 7, 22, 42, 285])
def test_wilson_holds_the_accuracy_itself_at_its_ends(n: int) -> None:
    assert wilson(n, n).high == 1.0
    assert wilson(0, n).low == 0.0


def test_wilson_is_statsmodels() -> None:
    draw = random.Random(6)
    for _ in range(60):
        n = draw.randint(1, 1000)
        correct, level = draw.randint(1, n), draw.choice([0.9, 0.95, 0.99])
        expected = proportion_confint(correct, n, alpha=1 - level, method="wilson")
        assert wilson(correct, n, level) == pytest.approx(expected)


@pytest.mark.parametrize("n", [100, 135, 324, 910])
def test_wilson_covers_exactly(n: int) -> None:
    intervals = [wilson(correct, n) for correct in range(n + 1)]
    low, high = np.array(intervals).T
    grid = np.linspace(0.02, 0.98, 97)
    coverage = [binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum() for p in grid]
    assert 0.94 <= np.mean(coverage) <= 0.96
    assert min(coverage) >= 0.90


@pytest.mark.parametrize("n", [100, 135])
def test_tango_covers_exactly(n: int) -> None:
    pairs = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    low, high = np.array([paired_difference(b, c, n) for b, c in pairs]).T
    counts = np.array([(b, c, n - b - c) for b, c in pairs])
    coverage = []
    for only_a, only_b in (
        (a, b) for a in (0.02, 0.05, 0.1, 0.2, 0.3) for b in (0.02, 0.05, 0.1, 0.2, 0.3)
    ):
        chances = multinomial.pmf(counts, n, (only_a, only_b, 1 - only_a - only_b))
        assert chances.sum() == pytest.approx(1.0)
        difference = only_a - only_b
        coverage.append(chances[(low <= difference) & (difference <= high)].sum())
    assert 0.93 <= np.mean(coverage) <= 0.97
    assert min(coverage) >= 0.93
