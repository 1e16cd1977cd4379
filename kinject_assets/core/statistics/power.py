"""What a comparison of a given size could have shown."""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ALPHA = 0.05
POWER = 0.8


@lru_cache(maxsize=64)
def _critical_counts(n: int, alpha: float) -> "np.ndarray":
    """For 0..n discordant questions, the largest lesser count that McNemar's test rejects."""
    import numpy as np
    from scipy.stats import binom

    discordant = np.arange(n + 1)
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
    critical = _critical_counts(n, alpha)
    discordant = np.arange(n + 1)
    chance = (discordance + abs(difference)) / (2 * discordance)
    rejected = binom.cdf(critical, discordant, chance) + binom.cdf(critical, discordant, 1 - chance)
    return float(np.sum(binom.pmf(discordant, n, discordance) * rejected))


@lru_cache(maxsize=4096)
def detectable_difference(
    n: int, discordant: int, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """Smallest true difference that McNemar's exact test finds with the given power.

    The discordance is the observed one; a difference larger than that would need, and is given,
    as much discordance as its own size. The level is that of a single comparison: after Holm's
    adjustment the detectable difference is larger.

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
