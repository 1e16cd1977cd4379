"""What a comparison of a given size could have shown, and how many questions it would take."""

from functools import lru_cache
from math import ceil, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ALPHA = 0.05
POWER = 0.8

WORTHWHILE = 0.05
"""The difference of accuracies that an exam should be able to show: 5 points."""

MOST_QUESTIONS = 200_000
"""More questions than this are not asked for."""

TAIL = 1e-12
"""Probability of numbers of discordant questions that the power leaves out at either end."""


@lru_cache(maxsize=256)
def _critical_counts(most: int, alpha: float) -> "np.ndarray":
    """Largest lesser count that McNemar's test rejects, for 0..most discordant questions."""
    import numpy as np
    from scipy.stats import binom

    discordant = np.arange(most + 1)
    count = binom.ppf(alpha / 2, discordant, 0.5)
    # ppf gives the first count whose tail reaches alpha/2; the last one at or below it is wanted.
    over = binom.cdf(count, discordant, 0.5) > alpha / 2
    return np.where(over, count - 1, count)


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = ALPHA) -> float:
    """Exact unconditional power of McNemar's exact test.

    Args:
        n: Questions.
        discordance: Chance that exactly one of the two systems answers a question correctly.
        difference: True difference of accuracies, at most `discordance` in size.
        alpha: Two-sided level.
    """
    import numpy as np
    from scipy.stats import binom

    if discordance == 0:
        return 0.0
    first, last = (int(m) for m in binom.ppf([TAIL, 1 - TAIL], n, discordance))
    discordant = np.arange(first, last + 1)
    # One table serves many n: its length goes up in powers of two.
    critical = _critical_counts(2 ** last.bit_length(), alpha)[first : last + 1]
    chance = (discordance + abs(difference)) / (2 * discordance)
    rejected = binom.cdf(critical, discordant, chance) + binom.cdf(critical, discordant, 1 - chance)
    return float(np.sum(binom.pmf(discordant, n, discordance) * rejected))


@lru_cache(maxsize=4096)
def detectable_difference(
    n: int, discordant: int, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """Smallest true difference that McNemar's exact test finds with the given power.

    The discordance is the observed one; a difference larger than that would need, and is given,
    as much discordance as its own size. In a family of comparisons, give the strictest level that
    Holm's procedure applies in it: what is found at that level is found whatever the others are.

    Args:
        n: Questions.
        discordant: Questions that exactly one of the two systems answered correctly.
        power: Wanted power.
        alpha: Two-sided level.

    Returns:
        The difference in (0, 1]; `None` when no difference would be found with so few questions.
    """

    def reached(difference: float) -> bool:
        return mcnemar_power(n, max(discordant / n, difference), difference, alpha) >= power

    if n == 0 or not reached(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _questions_needed(
    discordance: float, difference: float, power: float, alpha: float
) -> int | None:
    def reached(n: int) -> bool:
        return mcnemar_power(n, discordance, difference, alpha) >= power

    normal = NormalDist()
    z_alpha, z_power = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    spread = sqrt(max(0.0, discordance - difference**2))
    start = ((z_alpha * sqrt(discordance) + z_power * spread) / difference) ** 2
    if start > MOST_QUESTIONS:
        return None
    # The exact test needs a few more than the approximation: a narrow bracket round it does.
    low, high = int(0.9 * start), ceil(1.1 * start) + 1
    while low and reached(low):
        low //= 2
    while not reached(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high if high <= MOST_QUESTIONS else None


def questions_needed(
    discordance: float, difference: float, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Number of questions with which McNemar's exact test finds a difference with a given power.

    The search starts at the normal approximation (R. J. Connor, Sample size for testing
    differences in proportions for the paired-sample design, Biometrics 43 (1987) 207-211) and ends
    by bisection on the exact power. That power is saw-toothed in n, as every exact test's is: the
    answer reaches it and one question less does not, but a smaller number beyond that may, and a
    slightly larger one may fall short by a hair.

    Args:
        discordance: Chance that exactly one of the two systems answers a question correctly,
            rounded to three decimals; one smaller than the difference is raised to it.
        difference: True difference of accuracies, above 0.
        power: Wanted power.
        alpha: Two-sided level.

    Returns:
        The number; `None` when it is over `MOST_QUESTIONS`.
    """
    return _questions_needed(max(round(discordance, 3), difference), difference, power, alpha)
