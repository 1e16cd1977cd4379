import random

import pytest
from statsmodels.stats.contingency_tables import mcnemar as reference

from kinject_assets.core.statistics.tests import holm, mcnemar


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
