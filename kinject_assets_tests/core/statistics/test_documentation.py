"""`docs/statistics.md` declares what the code does."""

from pathlib import Path

from kinject_assets.core.schema import STRATA
from kinject_assets.core.statistics.claims import RULES
from kinject_assets.core.statistics.comparisons import FAMILIES
from kinject_assets.core.statistics.intervals import paired_difference
from kinject_assets.core.statistics.letters import BELOW_CHANCE, CHOSEN, ONE_LETTER, RIGHT
from kinject_assets.core.statistics.power import (
    ALPHA,
    MOST_QUESTIONS,
    POWER,
    WORTHWHILE,
    detectable_difference,
    questions_needed,
)
from kinject_assets.core.statistics.tests import mcnemar

PAGE = (Path(__file__).parents[3] / "docs" / "statistics.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())


def _table(header: str) -> list[list[str]]:
    """Rows of the table below a header line, by cell."""
    lines = PAGE.split(f"{header}\n", 1)[1].splitlines()[1:]
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def test_families_are_declared() -> None:
    assert _table("| family | question | K | strata |") == [
        [f"`{f.name}`", f.question, f.k_rule, "all, and each" if f.strata else "all"]
        for f in FAMILIES
    ]


def test_claims_are_declared() -> None:
    assert _table("| claim | statement | family | rows counted | rule |") == [
        [f"`{r.claim}`", r.statement, f"`{r.family}`", r.aggregation, r.rule] for r in RULES
    ]


def test_constants_are_declared() -> None:
    assert f"{100 * WORTHWHILE:.0f} points (`WORTHWHILE` = {WORTHWHILE})" in TEXT
    assert f"more than {MOST_QUESTIONS:,} in all" in TEXT
    assert f"{100 * POWER:.0f} % power" in TEXT and f"`p_adjusted` is below {ALPHA}" in TEXT
    assert f"more than {CHOSEN} of the choices" in TEXT
    assert f"right in less than {RIGHT} of the orders" in TEXT
    assert f"- `{BELOW_CHANCE}`:" in PAGE and f"- `{ONE_LETTER}`:" in PAGE
    assert all(f"`{stratum}`" in PAGE for stratum in STRATA)


def test_the_worked_example_is_computed() -> None:
    low, high = paired_difference(19, 12, 100)
    assert f"from {low:.3f} to {high:.3f}, and p is {mcnemar(19, 12):.3f}" in TEXT
    alpha = ALPHA / 8
    found, needed = (
        detectable_difference(100, 31, alpha=alpha),
        questions_needed(0.31, 0.05, alpha=alpha),
    )
    assert found is not None and needed is not None
    assert f"the strictest level is {alpha}" in TEXT
    assert f"`detectable_difference` is {found:.3f} and `more_questions` is {needed - 100}" in TEXT
