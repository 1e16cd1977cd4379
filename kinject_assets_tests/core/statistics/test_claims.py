from pathlib import Path
from typing import Literal

import pytest

from kinject_assets.core.statistics.claims import (
    RULES,
    Claim,
    Evidence,
    Pair,
    judge,
)
from kinject_assets.core.statistics.comparisons import FAMILIES
from kinject_assets.core.statistics.published import published

REFERENCES = Path(__file__).parents[3] / "data" / "reference"

Outcome = Literal["better", "worse", "undecided"]


def _verdict(claim: str, evidence: Evidence) -> str:
    return next(c.verdict for c in judge(evidence) if c.claim == claim)


def _pairs(family: str, outcomes: str, table: int = 2, high: float = 0.3) -> list[Pair]:
    """A row a character: `+` better, `-` worse, `?` above and `!` below, both undecided."""
    names: dict[str, Outcome] = {"+": "better", "-": "worse", "?": "undecided", "!": "undecided"}
    size = {"+": 0.1, "-": -0.1, "?": 0.01, "!": -0.01}
    return [
        Pair(
            family=family,
            table=table,
            row=f"row {i}",
            difference=size[o],
            ci_high=high,
            outcome=names[o],
        )
        for i, o in enumerate(outcomes)
    ]


def test_self_test_on_the_published_tables() -> None:
    found = {c.claim: c for c in judge(published(REFERENCES))}
    assert {name: c.verdict for name, c in found.items()} == {
        "rag_above_base": "replicated",
        "rag_not_below_ft": "replicated",
        "ft_adds_nothing_to_rag": "replicated",
        "par_above_reg": "replicated",
        "rises_with_paraphrases": "not tested",
        "shots_help": "replicated",
        "no_best_k": "replicated",
    }
    assert "above in 33, below in 0" in found["rag_above_base"].evidence
    assert "above in 28, below in 2" in found["rag_not_below_ft"].evidence
    assert "point estimates alone" in found["no_best_k"].evidence


def test_without_data_nothing_is_tested() -> None:
    assert {c.verdict for c in judge(Evidence())} == {"not tested"}
    assert [c.claim for c in judge(Evidence())] == [r.claim for r in RULES]


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ("++", "replicated"),
        ("+?", "replicated"),
        ("??", "replicated"),
        ("+!", "underpowered"),
        ("++-", "contradicted"),
        ("!!-", "contradicted"),
    ],
)
def test_every_row(outcomes: str, verdict: str) -> None:
    assert _verdict("rag_above_base", Evidence(_pairs("rag_vs_base", outcomes))) == verdict


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ("+++--", "replicated"),
        ("+????", "replicated"),
        ("+++!-", "replicated"),
        ("++!!-", "underpowered"),
        ("++---", "contradicted"),
        # Of few rows, two exceptions would be most.
        ("?!", "underpowered"),
        ("?-", "contradicted"),
        ("??-", "replicated"),
    ],
)
def test_all_but_two(outcomes: str, verdict: str) -> None:
    assert _verdict("rag_not_below_ft", Evidence(_pairs("rag_vs_ft", outcomes, 1))) == verdict


@pytest.mark.parametrize(
    ("outcomes", "high", "verdict"),
    [
        ("-?", 0.04, "replicated"),
        ("-?", 0.2, "underpowered"),
        ("-+", 0.04, "contradicted"),
    ],
)
def test_no_advantage_needs_a_narrow_interval(outcomes: str, high: float, verdict: str) -> None:
    evidence = Evidence(_pairs("ft_rag_vs_rag", outcomes, high=high))
    assert _verdict("ft_adds_nothing_to_rag", evidence) == verdict


@pytest.mark.parametrize(
    ("outcomes", "curve", "verdict"),
    [
        ("+", {0: 0.3, 2: 0.4, 4: 0.5}, "replicated"),
        ("+", {0: 0.3, 2: 0.6, 4: 0.5}, "underpowered"),
        ("?", {0: 0.3, 2: 0.4, 4: 0.5}, "underpowered"),
        ("-", {0: 0.5, 2: 0.4, 4: 0.3}, "contradicted"),
        ("+", {0: 0.3, 4: 0.5}, "not tested"),
    ],
)
def test_rising_accuracy(outcomes: str, curve: dict[int, float], verdict: str) -> None:
    evidence = Evidence(_pairs("par_vs_reg", outcomes), by_paraphrases={"row": curve})
    assert _verdict("rises_with_paraphrases", evidence) == verdict


def test_best_k_needs_tests_where_there_are_answers() -> None:
    rows = {"a": {1: 0.5, 2: 0.6}, "b": {1: 0.6, 2: 0.5}}
    assert _verdict("no_best_k", Evidence(by_k=rows)) == "replicated"
    assert _verdict("no_best_k", Evidence(by_k=rows, beaten=frozenset())) == "underpowered"
    assert _verdict("no_best_k", Evidence(by_k=rows, beaten=frozenset({1, 2}))) == "replicated"
    same = {"a": {1: 0.5, 2: 0.6}, "b": {1: 0.5, 2: 0.6}}
    assert _verdict("no_best_k", Evidence(by_k=same)) == "contradicted"


def test_claims_are_plain_rows() -> None:
    assert all(isinstance(c, Claim) and c.statement and c.evidence for c in judge(Evidence()))


def test_point_estimates_alone_contradict_by_their_sign() -> None:
    def alone(*differences: float) -> Evidence:
        return Evidence(
            [
                Pair(family="rag_vs_base", table=1, row=str(i), difference=d)
                for i, d in enumerate(differences)
            ]
        )

    assert _verdict("rag_above_base", alone(0.1, 0.001)) == "replicated"
    assert _verdict("rag_above_base", alone(0.1, -0.001)) == "contradicted"
    assert _verdict("rag_above_base", alone(0.1, 0.0)) == "underpowered"


def test_rules_rest_on_declared_families_and_say_what_they_count() -> None:
    assert {rule.family for rule in RULES} <= {family.name for family in FAMILIES}
    assert len({rule.claim for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert "row" in rule.aggregation
        assert rule.rule.startswith("replicated: ") and "; contradicted: " in rule.rule
