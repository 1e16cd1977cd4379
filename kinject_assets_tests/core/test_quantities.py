"""Units are read by symbol, name or prefix, and case counts where it tells units apart."""

import pytest

from kinject_assets.core.quantities import unit_of


@pytest.mark.parametrize(
    ("words", "base", "factor"),
    [
        ("km KM kilometre kilometers", "m", 1000),
        ("mW milliwatt", "W", 0.001),
        ("MW mw megawatts", "W", 10**6),
        ("GB gb gigabytes", "B", 10**9),
        ("Gb gigabit", "bit", 10**9),
        ("mA milliamps", "A", 0.001),
        ("μA microampere", "A", 10**-6),
        ("kV kv kilovolts", "V", 1000),
        ("l L litres", "l", 1),
        ("h hrs Hours", "s", 3600),
        ("lb lbs", "g", 453.59237),
        ("£ pounds", "£", 1),
        ("% PERCENT", "%", 1),
    ],
)
def test_all_spellings_are_one_unit(words: str, base: str, factor: float) -> None:
    for word in words.split():
        unit = unit_of(word)
        assert unit is not None, word
        assert (unit.base, unit.factor) == (base, pytest.approx(factor)), word


@pytest.mark.parametrize("word", [*"M G T K s ma pa GPA EV kn PM in of Rome".split(), ""])
def test_what_is_more_often_something_else_is_no_unit(word: str) -> None:
    assert unit_of(word) is None
