"""The rule of the verdict, and how many bad questions turn it: hand-made, and by brute force."""

from collections.abc import Mapping
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject_assets.core.statistics.decision import (
    RULE,
    Cast,
    Clause,
    Role,
    Tally,
    Verdict,
    assign,
    decide,
    holm_levels,
    open_clauses,
    turning,
)
from kinject_assets.core.statistics.power import ALPHA
from kinject_assets.core.statistics.tests import holm, mcnemar

ROLES: tuple[Role, ...] = ("base", "rag", "ft", "ft_rag", "ft_rag_of_ft", "ft_of_ft_rag")

Kinds = Mapping[str, int]
"""Who answers correctly, as a word of 0 and 1 in the order base, RAG, FT, FT + RAG -> how many."""


def cast_of(kinds: Kinds, level: float = ALPHA) -> Cast:
    answers = [kind for kind, count in kinds.items() for _ in range(count)]
    columns = [{str(i): kind[place] == "1" for i, kind in enumerate(answers)} for place in range(4)]
    base, rag, ft, both = columns
    return assign(base, rag, {"full.p00": ft}, {"full.p00": both}, lambda a, b: level)


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        ({"0101": 40, "1111": 60}, "retrieve"),
        ({"0011": 40, "1111": 60}, "fine-tune"),
        ({"0101": 20, "0011": 20, "0001": 10, "1111": 50}, "both"),
        ({"1111": 600, "0000": 200}, "neither"),
        ({"1111": 20, "0000": 10}, "not shown"),  # too few to exclude five points
        ({"0111": 40, "1111": 60}, "not shown"),  # which of the two is not shown
    ],
)
def test_verdicts(kinds: Kinds, verdict: Verdict) -> None:
    assert decide(cast_of(kinds)) == verdict


def test_the_best_recipe_of_each_kind_stands_for_it() -> None:
    some = {str(i): i < 5 for i in range(10)}
    more = {str(i): i < 8 for i in range(10)}
    cast = assign(some, some, {"a": some, "b": more, "c": more}, {"a": more, "b": some})
    assert (cast.recipe, cast.recipe_of_both) == ("b", "a")
    assert cast.outcomes["ft_rag_of_ft"] == some and cast.outcomes["ft_of_ft_rag"] == some


def test_what_was_not_tried_is_left_out() -> None:
    base = {str(i): i < 20 for i in range(100)}
    rag = {str(i): i < 80 for i in range(100)}
    assert decide(assign(base, rag, {}, {})) == "retrieve"
    assert decide(assign(base, None, {}, {})) == "not shown"
    assert decide(assign(None, rag, {}, {})) == "not shown"
    assert decide(assign(base, None, {"full.p00": rag}, {})) == "fine-tune"
    assert turning(assign(None, None, {}, {})).questions is None


def test_a_level_of_its_own_counts() -> None:
    kinds = {"0101": 7, "1111": 60}
    assert mcnemar(7, 0) < ALPHA
    assert decide(cast_of(kinds)) == "retrieve"
    assert decide(cast_of(kinds, level=ALPHA / 10)) == "not shown"
    assert {c.kind for c in open_clauses(cast_of(kinds, ALPHA / 10), "retrieve")} == {"better"}


def test_turning_of_a_mcnemar_verdict_by_hand() -> None:
    # 40 against 0: the test still rejects with 6 left (p 0.03125), and no more with 5 (0.0625).
    found = turning(cast_of({"0101": 40, "1111": 60}))
    assert found.questions == 35
    assert found.clause is not None and found.clause.kind == "better"
    # Not shown with 5 in favour and 1 against (0.219) and 6 in favour (0.031): one has to go.
    found = turning(cast_of({"0101": 6, "1010": 1, "1111": 20}))
    assert (found.questions, found.to) == (1, "retrieve")


def brute_force(cast: Cast) -> int | None:
    questions = sorted({q for outcomes in cast.outcomes.values() for q in outcomes})
    verdict = decide(cast)
    for n in range(1, len(questions) + 1):
        if any(decide(cast.without(set(gone))) != verdict for gone in combinations(questions, n)):
            return n
    return None


ANSWERS = st.sampled_from([f"{i:04b}" for i in range(16)])


@settings(max_examples=80, deadline=None)
@given(st.lists(ANSWERS, min_size=1, max_size=8), st.sampled_from([0.2, 0.4, 0.6]))
def test_turning_is_what_brute_force_finds(answers: list[str], level: float) -> None:
    cast = cast_of({kind: answers.count(kind) for kind in answers}, level)
    assert turning(cast).questions == brute_force(cast)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6), st.booleans())
def test_turning_with_other_recipes_is_what_brute_force_finds(
    recipes: list[tuple[bool, bool]], flipped: bool
) -> None:
    # Two recipes of which one is best without retrieval and the other with it.
    n = len(recipes)
    base = {str(i): i % 3 == 0 for i in range(n)}
    rag = {str(i): i % 2 == 0 for i in range(n)}
    first = {str(i): a for i, (a, _) in enumerate(recipes)}
    second = {str(i): b for i, (_, b) in enumerate(recipes)}
    pairs = ({"a": first, "b": second}, {"a": second, "b": first})
    cast = assign(base, rag, *(reversed(pairs) if flipped else pairs), level=lambda a, b: 0.6)
    assert turning(cast).questions == brute_force(cast)


LARGE = st.dictionaries(ANSWERS, st.integers(0, 30), min_size=1)


@settings(max_examples=25, deadline=None)
@given(LARGE)
def test_one_question_less_than_the_turning_keeps_the_verdict(kinds: Kinds) -> None:
    """Whichever kind of question goes: the adversary of the definition, and single-minded ones."""
    cast = cast_of(kinds)
    verdict, found = decide(cast), turning(cast)
    if found.questions is None:
        return
    answers = [kind for kind, count in kinds.items() for _ in range(count)]
    for kind in kinds:
        mine = [str(i) for i, other in enumerate(answers) if other == kind]
        assert decide(cast.without(set(mine[: found.questions - 1]))) == verdict
    if found.clause is not None:
        # Those that speak for the clause go first, then those that both answer alike.
        speaking, alike = _by_clause(cast, found.clause)
        order = [*speaking, *alike]
        assert decide(cast.without(set(order[: found.questions - 1]))) == verdict
        assert decide(cast.without(set(order[: found.questions]))) != verdict
    else:
        assert verdict == "not shown" and found.to in RULE


def _by_clause(cast: Cast, clause: Clause) -> tuple[list[str], list[str]]:
    mine, other = cast.outcomes[clause.a], cast.outcomes[clause.b]
    ahead = [q for q in mine if mine[q] != other[q] and mine[q] == clause.favours_a]
    return ahead, [q for q in mine if mine[q] == other[q]]


@settings(max_examples=40, deadline=None)
@given(LARGE)
def test_no_two_verdicts_hold_at_once(kinds: Kinds) -> None:
    cast = cast_of(kinds)
    held = [v for v in RULE if cast.clauses(v) and not open_clauses(cast, v)]
    assert len(held) <= 1
    assert held == ([] if decide(cast) == "not shown" else [decide(cast)])


@pytest.mark.parametrize("kind", ["better", "ahead", "worthwhile"])
def test_a_clause_and_its_opposite_are_broken_by_their_smallest_number(kind: str) -> None:
    for only_a in range(5):
        for only_b in range(5):
            for alike in (0, 2, 20):
                tally = Tally(only_a, only_b, only_a + only_b + alike)
                clause = Clause("rag", kind, "base", 0.3)  # pyright: ignore[reportArgumentType]
                for asked in (clause, clause.opposite):
                    n = asked.to_make(tally)
                    by_hand = [
                        gone_a + gone_b + gone
                        for gone_a in range(only_a + 1)
                        for gone_b in range(only_b + 1)
                        for gone in range(alike + 1)
                        if asked.holds(
                            Tally(
                                only_a - gone_a,
                                only_b - gone_b,
                                tally.n - gone_a - gone_b - gone,
                            )
                        )
                    ]
                    assert n == (min(by_hand) if by_hand else None), (asked, tally)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_levels_are_those_of_holms_procedure(p_values: list[float]) -> None:
    for p_value, adjusted, level in zip(
        p_values, holm(p_values), holm_levels(p_values), strict=True
    ):
        if abs(adjusted - ALPHA) > 1e-9:
            assert (adjusted < ALPHA) == (p_value < level)
