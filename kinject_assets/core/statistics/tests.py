"""Tests of paired answers."""

from collections.abc import Sequence


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: the discordant questions against a fair coin."""
    from scipy.stats import binomtest

    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(min(only_a, only_b), only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of the p-values of one family, in the order given."""
    import numpy as np
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return np.asarray(multipletests(p_values, method="holm")[1]).tolist()
