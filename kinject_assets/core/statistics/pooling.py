"""Recipes trained with several seeds, pooled.

A question is answered once by each seed; its answers hang together, so that questions, not answers,
are what intervals and tests count. Both speak of these seeds and these questions, not of seeds to
come: for those, `seed_sd` says how far seeds lie apart.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist, fmean, pstdev, pvariance, stdev

from kinject_assets.core.statistics.comparisons import (
    ALL,
    System,
    is_control,
    no_difference,
    setting,
)
from kinject_assets.core.statistics.intervals import Interval, wilson
from kinject_assets.core.statistics.power import ALPHA, POWER
from kinject_assets.core.statistics.selection import KRule, best_k
from kinject_assets.core.statistics.tests import holm, sign_flip

REFERENCE = {"ft": "base", "ft_rag": "rag"}
"""Method -> the one that it is held against."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One recipe under one setting over all its seeds.

    Attributes:
        recipe: Without its seed.
        k: K that most seeds have, the smaller of equals; `ks` has each seed's.
        accuracies: One a seed, in the order of `seeds`.
        n: Questions that every seed answered.
        seed_sd: Standard deviation of accuracy between seeds.
        reference_id: Condition that it is held against; `None` for controls, and where it was not
            scored.
        difference: Accuracy less that of the reference, on the questions that all answered.
        p_value: Exact sign-flip test over questions.
        p_adjusted: The same after Holm's adjustment within method, retriever and `k_rule`.
        detectable_difference: What would have been found with 80 % power at the strictest level of
            that adjustment, by the spread between questions that was seen.
    """

    corpus: str
    model: str
    recipe: str
    method: str
    shots: int
    k: int
    k_rule: KRule
    stratum: str
    choice_format: str
    rotation: bool
    engine: str
    retriever: str
    query: str
    chat_template: bool
    bos: bool
    seeds: list[int]
    ks: list[int]
    accuracies: list[float]
    n: int
    accuracy: float
    ci_low: float
    ci_high: float
    seed_sd: float
    reference_id: str | None = None
    difference: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    detectable_difference: float | None = None
    verdict: str | None = None


def pooled_interval(means: Sequence[float], seeds: int) -> Interval:
    """Interval of the mean over questions of each question's mean over seeds.

    Wilson's interval with the effective sample size p(1 - p) / Var(mean), where the variance is
    that between questions: C. Franco, R. J. A. Little, T. A. Louis and E. V. Slud, Comparative
    study of confidence intervals for proportions in complex sample surveys, Journal of Survey
    Statistics and Methodology 7 (2019) 334-364. It lies within 0 and 1 and is no point when all
    answers are right or wrong. The effective size is at least the number of questions and is held
    to the number of answers.

    Args:
        means: A question's share of seeds that answer it correctly, one a question.
        seeds: Number of seeds.
    """
    n = len(means)
    accuracy = fmean(means)
    between = pvariance(means, accuracy)
    spread = accuracy * (1 - accuracy)
    # Without any variance nothing says that seeds add to what one of them tells, or that they do
    # not: at 0 and 1 the questions count once, elsewhere the seeds disagree on each and count all.
    effective = n if spread == 0 else n * min(float(seeds), spread / between if between else seeds)
    return wilson(accuracy * effective, effective)


def _retrieval(system: System) -> tuple[object, ...]:
    c = system.condition
    # Under the other rules each seed has a K of its own.
    return (c.retriever, c.query, c.k if system.k_rule == "fixed" else None)


def _key(system: System, method: str) -> tuple[object, ...]:
    c = system.condition
    retrieval = _retrieval(system) if method.endswith("rag") else ()
    return (setting(c), method, c.shots, system.k_rule, *retrieval)


def _pool(seeds: Mapping[int, System], stratum: str) -> Pooled | None:
    order = sorted(seeds)
    systems = [seeds[seed] for seed in order]
    shared = sorted(set.intersection(*(set(s.outcomes) for s in systems)))
    if not shared:
        return None
    means = [fmean(s.outcomes[q] for s in systems) for q in shared]
    accuracies = [fmean(s.outcomes[q] for q in shared) for s in systems]
    ks = [s.condition.k for s in systems]
    interval = pooled_interval(means, len(order))
    c = systems[0].condition
    return Pooled(
        corpus=c.corpus,
        model=c.model,
        recipe=_seedless(systems[0]),
        method=c.method,
        shots=c.shots,
        k=best_k(Counter(ks)),
        k_rule=systems[0].k_rule,
        stratum=stratum,
        choice_format=c.choice_format,
        rotation=c.rotation,
        engine=c.engine,
        retriever=c.retriever,
        query=c.query,
        chat_template=c.chat_template,
        bos=c.bos,
        seeds=order,
        ks=ks,
        accuracies=accuracies,
        n=len(shared),
        accuracy=fmean(accuracies),
        ci_low=interval.low,
        ci_high=interval.high,
        seed_sd=stdev(accuracies),
    )


@dataclass(frozen=True)
class _Row:
    """A pooled row, with the standard error of its difference where it has one."""

    pooled: Pooled
    error: float | None = None


def _held_against(pooled: Pooled, seeds: Iterable[System], reference: System) -> _Row:
    systems = list(seeds)
    shared = sorted(set.intersection(*(set(s.outcomes) for s in (*systems, reference))))
    if not shared:
        return _Row(pooled)
    # In answers, not shares: sums of integers are compared exactly.
    differences = [
        sum(s.outcomes[q] for s in systems) - len(systems) * reference.outcomes[q] for q in shared
    ]
    tested = replace(
        pooled,
        reference_id=reference.condition.condition_id,
        difference=sum(differences) / (len(systems) * len(shared)),
        p_value=sign_flip(differences),
    )
    return _Row(tested, pstdev(differences) / (len(systems) * sqrt(len(shared))))


def _seedless(system: System) -> str:
    spec = system.recipe
    assert spec is not None, "only recipes are pooled"
    return spec.name.removesuffix(f".s{spec.seed}")


def pool_all(systems: Iterable[System], stratum: str = ALL) -> list[Pooled]:
    """Every recipe that has two seeds or more, under every setting and rule of choosing K.

    Args:
        systems: Conditions with their outcomes, of the questions of one stratum.
        stratum: Its name.
    """
    references: dict[tuple[object, ...], System] = {}
    groups: dict[tuple[object, ...], dict[int, System]] = defaultdict(dict)
    for system in systems:
        method = system.condition.method
        if system.recipe is None:
            references[_key(system, method)] = system
        else:
            key = (_seedless(system), *_key(system, method))
            groups[key].setdefault(system.recipe.seed, system)
    families: dict[tuple[str, str, KRule], list[_Row]] = defaultdict(list)
    for seeds in groups.values():
        if len(seeds) < 2 or (pooled := _pool(seeds, stratum)) is None:
            continue
        some = seeds[pooled.seeds[0]]
        against = references.get(_key(some, REFERENCE[pooled.method]))
        # The base model's own answers sorted the questions: within strata it is no measure.
        if against is None or is_control(some) or stratum != ALL:
            row = _Row(pooled)
        else:
            row = _held_against(pooled, seeds.values(), against)
        families[pooled.method, pooled.retriever, pooled.k_rule].append(row)
    return [row for family in families.values() for row in _adjusted(family)]


def _adjusted(family: Sequence[_Row]) -> list[Pooled]:
    p_values = {i: p for i, row in enumerate(family) if (p := row.pooled.p_value) is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [_judged(row, adjusted.get(i), len(p_values)) for i, row in enumerate(family)]


def _judged(row: _Row, p_adjusted: float | None, tests: int) -> Pooled:
    if p_adjusted is None:
        return row.pooled
    normal = NormalDist()
    # The test's exact power is not known for several seeds: the normal approximation. Where all
    # questions differ alike there is no spread to go by.
    steps = normal.inv_cdf(1 - ALPHA / tests / 2) + normal.inv_cdf(POWER)
    could = steps * row.error if row.error else None
    verdict = no_difference(could)
    if p_adjusted < ALPHA and row.pooled.difference:
        verdict = "better" if row.pooled.difference > 0 else "worse"
    return replace(row.pooled, p_adjusted=p_adjusted, detectable_difference=could, verdict=verdict)
