"""Confidence intervals of an accuracy and of the difference of two paired accuracies."""

from math import copysign, exp, inf, log, sqrt
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95
"""Confidence level of every interval that is reported."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def critical_value(level: float = LEVEL) -> float:
    """Two-sided critical value of the standard normal distribution."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(correct: float, n: float, level: float = LEVEL) -> Interval:
    """Wilson's score interval of an accuracy; the whole range when there are no questions."""
    import numpy as np
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return Interval(0.0, 1.0)
    limits = proportion_confint(correct, n, alpha=1 - level, method="wilson")
    low, high = np.clip(np.asarray(limits, dtype=float), 0.0, 1.0).tolist()
    # At 0 and n the exact limit is 0 and 1; rounding may leave it just inside.
    return Interval(0.0 if correct == 0 else low, 1.0 if correct == n else high)


def _tango_score(only_a: int, only_b: int, n: int, difference: float) -> float:
    """Tango's statistic: standard normal if the true difference is `difference`."""
    linear = -only_a - only_b + (2 * n - only_a + only_b) * difference
    constant = -only_b * difference * (1 - difference)
    q = (sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    numerator = only_a - only_b - n * difference
    variance = n * (2 * q + difference * (1 - difference))
    if abs(numerator) < 1e-12:
        return 0.0
    return numerator / sqrt(variance) if variance > 1e-15 else copysign(inf, numerator)


def paired_difference(only_a: int, only_b: int, n: int, level: float = LEVEL) -> Interval:
    """Score interval of accuracy(A) - accuracy(B) on the same questions.

    Source: T. Tango, Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design, Statistics in Medicine 17 (1998) 891-908. It holds its level for
    small n and for no discordant questions, where the usual Wald interval collapses to a point.

    Args:
        only_a: Questions that only A answers correctly.
        only_b: Questions that only B answers correctly.
        n: All questions; with none, the whole range is returned.
        level: Confidence level.
    """
    if n == 0:
        return Interval(-1.0, 1.0)
    z = critical_value(level)
    estimate = (only_a - only_b) / n

    def root(target: float, low: float, high: float) -> float:
        # The statistic falls as the difference grows.
        for _ in range(60):
            middle = (low + high) / 2
            if _tango_score(only_a, only_b, n, middle) > target:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    return Interval(root(z, -1.0, estimate), root(-z, estimate, 1.0))


def relative_gain(after: float, before: float) -> float | None:
    """Eq. 5 of the study: (after - before) / before; `None` when `before` is 0."""
    return None if before == 0 else (after - before) / before


def relative_gain_interval(
    both: int, only_after: int, only_before: int, level: float = LEVEL
) -> Interval | None:
    """Interval of the relative gain on the same questions, by the logarithm of the paired ratio.

    The variance of log(p1/p2) is (b + c) / (x1 x2), with x1 and x2 the correct answers of each;
    M. M. Desu and D. Raghavarao, Nonparametric Statistical Methods for Complete and Censored Data,
    2003, p. 184. `None` when either answers nothing correctly.

    Args:
        both: Questions that both answer correctly.
        only_after: Questions correct only after injection.
        only_before: Questions correct only before it.
        level: Confidence level.
    """
    after, before = both + only_after, both + only_before
    if after == 0 or before == 0:
        return None
    spread = critical_value(level) * sqrt((only_after + only_before) / (after * before))
    centre = log(after / before)
    return Interval(exp(centre - spread) - 1, exp(centre + spread) - 1)
