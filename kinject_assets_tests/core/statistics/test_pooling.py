import random
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pytest

from kinject_assets.core.schema import Condition
from kinject_assets.core.statistics.comparisons import System
from kinject_assets.core.statistics.intervals import wilson
from kinject_assets.core.statistics.pooling import pool_all, pooled_interval
from kinject_assets.core.statistics.selection import KRule
from kinject_assets.core.statistics.tests import holm, mcnemar, sign_flip


def _system(
    method: str,
    outcomes: Mapping[str, bool],
    *,
    recipe: str = "",
    seed: int = 0,
    k: int = 0,
    shots: int = 0,
    rule: KRule = "cross_fitted",
    **fields: object,
) -> System:
    condition = Condition.of(
        **{
            "corpus": "c",
            "model": "m",
            "recipe": recipe,
            "seed": seed,
            "method": method,
            "shots": shots,
            "k": k,
            "retriever": "r" if k else "",
            "query": "question" if k else "",
            "choice_format": "letter",
            "rotation": False,
            "engine": "e",
            **fields,
        }
    )
    return System(condition, rule, outcomes)


def _draw(skill: float, name: str, n: int = 120) -> dict[str, bool]:
    draw = random.Random(name)
    return {f"q{i}": draw.random() < skill for i in range(n)}


BASE = _draw(0.3, "base")
SEEDS = [_draw(0.5, f"seed {seed}") for seed in range(3)]
RECIPES = ("full.p10", "full.p10.s1", "full.p10.s2")
FT = [
    _system("ft", outcomes, recipe=recipe, seed=seed)
    for seed, (recipe, outcomes) in enumerate(zip(RECIPES, SEEDS, strict=True))
]


def test_a_row_is_made_of_its_seeds() -> None:
    base = _system("base", BASE)
    (row,) = pool_all([FT[2], base, FT[0], FT[1]])
    accuracies = [fmean(outcomes.values()) for outcomes in SEEDS]
    assert (row.recipe, row.seeds, row.n) == ("full.p10", [0, 1, 2], 120)
    assert row.accuracies == pytest.approx(accuracies)
    assert row.accuracy == pytest.approx(fmean(accuracies))
    assert row.seed_sd == pytest.approx(stdev(accuracies))
    assert row.ci_low < row.accuracy < row.ci_high
    assert row.reference_id == base.condition.condition_id
    assert row.difference == pytest.approx(row.accuracy - fmean(BASE.values()))
    differences = [sum(s[q] for s in SEEDS) - 3 * BASE[q] for q in BASE]
    assert row.p_value == row.p_adjusted == sign_flip(differences)
    assert row.verdict == "better"


def test_one_seed_is_no_row() -> None:
    assert pool_all([FT[0], _system("base", BASE)]) == []
    # The same seed twice is one seed.
    assert pool_all([FT[0], _system("ft", SEEDS[1], recipe="full.p10.s0")]) == []


def test_settings_and_recipes_are_never_mixed() -> None:
    others = [
        _system("ft", SEEDS[1], recipe="full.p10.s1", seed=1, chat_template=True),
        _system("ft", SEEDS[1], recipe="full.p10.s1", seed=1, bos=True),
        _system("ft", SEEDS[1], recipe="full.p10.s1", seed=1, shots=5),
        _system("ft", SEEDS[1], recipe="full.p10.s1", seed=1, corpus="d"),
        _system("ft", SEEDS[1], recipe="full.p10.s1", seed=1, rule="test_best"),
        _system("ft", SEEDS[1], recipe="full.p10.common.s1", seed=1),
        _system("ft", SEEDS[1], recipe="full.p02.s1", seed=1),
    ]
    for other in others:
        assert pool_all([FT[0], other]) == []


def test_ft_rag_is_held_against_rag_and_each_seed_has_its_k() -> None:
    rag = _system("rag", _draw(0.6, "rag"), k=1)
    systems = [
        _system("ft_rag", outcomes, recipe=recipe, seed=seed, k=k)
        for seed, (recipe, outcomes, k) in enumerate(zip(RECIPES, SEEDS, (2, 2, 1), strict=True))
    ]
    (row,) = pool_all([*systems, rag, _system("base", BASE)])
    assert row.reference_id == rag.condition.condition_id
    assert (row.ks, row.k) == ([2, 2, 1], 2)


def test_a_fixed_k_is_pooled_by_itself() -> None:
    systems = [
        _system("ft_rag", SEEDS[seed], recipe=RECIPES[seed], seed=seed, k=k, rule="fixed")
        for seed in (0, 1)
        for k in (1, 2)
    ]
    rag = [_system("rag", BASE, k=k, rule="fixed") for k in (1, 2)]
    rows = pool_all([*systems, *rag])
    assert {(row.k, row.reference_id) for row in rows} == {
        (r.condition.k, r.condition.condition_id) for r in rag
    }


def test_controls_are_shown_and_not_tested() -> None:
    control = [
        _system("ft", SEEDS[seed], recipe=f"full.r10.s{seed + 1}", seed=seed + 1) for seed in (0, 1)
    ]
    rows = pool_all([*control, *FT, _system("base", BASE)])
    assert {(row.recipe, row.verdict) for row in rows} == {
        ("full.r10", None),
        ("full.p10", "better"),
    }
    (tested,) = (row for row in rows if row.recipe == "full.p10")
    assert tested.p_adjusted == tested.p_value


def test_adjusted_within_method_and_rule() -> None:
    systems = [_system("base", BASE), _system("base", _draw(0.3, "5"), shots=5)]
    for shots in (0, 5):
        systems += [
            _system("ft", _draw(0.42, f"{shots}{recipe}"), recipe=recipe, seed=seed, shots=shots)
            for seed, recipe in enumerate(RECIPES)
        ]
    rows = pool_all(systems)
    p_values = [row.p_value for row in rows if row.p_value is not None]
    assert len(p_values) == 2
    assert [row.p_adjusted for row in rows] == holm(p_values) != p_values


def test_only_questions_that_all_answered_count() -> None:
    fewer = {q: o for q, o in SEEDS[1].items() if q != "q0"}
    other = _system("ft", fewer, recipe="full.p10.s1", seed=1)
    (row,) = pool_all([FT[0], other])
    assert row.n == 119
    assert row.accuracies[0] == pytest.approx(fmean(SEEDS[0][q] for q in fewer))
    assert row.reference_id is row.p_value is row.verdict is None


def test_identical_seeds_add_nothing() -> None:
    (row,) = pool_all(
        [_system("ft", SEEDS[0], recipe=recipe, seed=seed) for seed, recipe in enumerate(RECIPES)]
        + [_system("base", BASE)]
    )
    correct = sum(SEEDS[0].values())
    assert (row.ci_low, row.ci_high) == pytest.approx(wilson(correct, 120))
    only_a = sum(SEEDS[0][q] and not BASE[q] for q in BASE)
    only_b = sum(BASE[q] and not SEEDS[0][q] for q in BASE)
    assert row.p_value == pytest.approx(mcnemar(only_a, only_b))
    assert row.seed_sd == 0


def test_interval_at_the_ends() -> None:
    assert pooled_interval([1.0] * 40, 3) == wilson(40, 40)
    assert pooled_interval([0.0] * 40, 3) == wilson(0, 40)
    # Seeds that disagree on every question count as so many answers, and no more.
    assert pooled_interval([0.5] * 40, 2) == pytest.approx(wilson(40, 80))


def test_interval_covers_the_accuracy_of_these_seeds() -> None:
    draw = np.random.default_rng(9)
    covered, times, n, seeds = 0, 1500, 100, 3
    for _ in range(times):
        # Questions differ in difficulty: their answers hang together between seeds.
        chance = draw.beta(1.2, 0.8, n)
        means = (draw.random((seeds, n)) < chance).mean(axis=0)
        interval = pooled_interval(means.tolist(), seeds)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.93 <= covered / times <= 0.97


def test_counting_answers_as_questions_would_be_too_sure() -> None:
    draw = np.random.default_rng(10)
    chance = draw.beta(0.3, 0.2, 200)
    means = (draw.random((3, 200)) < chance).mean(axis=0)
    honest = pooled_interval(means.tolist(), 3)
    naive = wilson(int(means.sum() * 3), 600)
    assert honest.high - honest.low > 1.3 * (naive.high - naive.low)


def test_another_retriever_is_adjusted_by_itself() -> None:
    systems = [
        _system("rag", _draw(0.3, "rag"), k=2),
        *(
            _system("ft_rag", _draw(0.42, recipe), recipe=recipe, seed=seed, k=2)
            for seed, recipe in enumerate(RECIPES)
        ),
    ]
    other = [
        replace(s, condition=replace(s.condition, retriever="other"), studied=False)
        for s in systems
    ]
    alone, both = pool_all(systems), pool_all([*systems, *other])
    assert len(alone) == 1
    assert [row for row in both if row.retriever != "other"] == alone
    assert [row.p_adjusted for row in both] == [row.p_value for row in both]
