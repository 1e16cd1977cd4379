import random
from itertools import product

import pytest
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.multitest import multipletests

from kinject_assets.core.statistics.tests import holm, mcnemar, sign_flip


def test_mcnemar_is_statsmodels_exact_test() -> None:
    draw = random.Random(5)
    for _ in range(50):
        b, c = draw.randrange(40), draw.randrange(40)
        found = reference([[10, b], [c, 10]], exact=True)
        expected = float(found.pvalue)  # pyright: ignore[reportAttributeAccessIssue] (untyped Bunch)
        assert mcnemar(b, c) == pytest.approx(min(1.0, expected))


def test_mcnemar_without_discordance() -> None:
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand_and_in_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_statsmodels_and_by_definition() -> None:
    draw = random.Random(8)
    for size in (1, 2, 7, 40):
        p_values = [draw.random() ** 3 for _ in range(size)]
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
        order = sorted(range(size), key=lambda i: p_values[i])
        step, expected = 0.0, [0.0] * size
        for rank, i in enumerate(order):
            step = max(step, min(1.0, (size - rank) * p_values[i]))
            expected[i] = step
        assert holm(p_values) == pytest.approx(expected)


def test_sign_flip_with_one_seed_is_mcnemar() -> None:
    for only_a, only_b in product(range(0, 40, 3), repeat=2):
        differences = [1] * only_a + [-1] * only_b + [0] * 11
        assert sign_flip(differences) == pytest.approx(mcnemar(only_a, only_b), rel=1e-9)


def test_sign_flip_counts_every_flip() -> None:
    draw = random.Random(4)
    for _ in range(20):
        differences = [draw.randint(-3, 3) for _ in range(9)]
        sums = [
            abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in product((1, -1), repeat=9)
        ]
        as_far = sum(s >= abs(sum(differences)) for s in sums)
        assert sign_flip(differences) == pytest.approx(as_far / len(sums))


def test_sign_flip_is_scipys_exact_permutation_test() -> None:
    differences = [3, 1, -2, 2, 2, 0, 1, 3, -1, 2, 3]
    found = permutation_test(
        ([float(d) for d in differences],),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
    )
    assert sign_flip(differences) == pytest.approx(found.pvalue)


def test_sign_flip_without_differences() -> None:
    assert sign_flip([]) == sign_flip([0, 0]) == 1.0
