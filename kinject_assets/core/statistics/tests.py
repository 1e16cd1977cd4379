"""Tests of paired answers."""

from collections import Counter
from collections.abc import Sequence


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: the discordant questions against a fair coin."""
    from scipy.stats import binomtest

    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(min(only_a, only_b), only_a + only_b, 0.5).pvalue)


def sign_flip(differences: Sequence[int]) -> float:
    """Exact two-sided p-value of the sign-flip permutation test of paired differences.

    If neither is better, each question's difference is as likely to point the other way. The
    distribution of their sum under all flips is a convolution of binomials, one for each size of
    difference. With differences of 1 alone, this is McNemar's exact test.

    Args:
        differences: A question's difference, as an integer, one a question.
    """
    import numpy as np
    from scipy.stats import binom

    sizes = Counter(abs(d) for d in differences if d)
    chances = np.ones(1)
    for size, count in sizes.items():
        # Flips move the sum in steps of two sizes, from -size * count to size * count.
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, steps)
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(sum(differences))].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of the p-values of one family, in the order given."""
    # Not by statsmodels: each call of its `multipletests` collects all garbage of the process,
    # which takes a second where a model is loaded.
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted
