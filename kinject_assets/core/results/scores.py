"""Scores of every condition under every rule of choosing K, from conditions and answers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kinject_assets.config import Profile
from kinject_assets.core.schema import STRATA, Answer, Condition
from kinject_assets.core.statistics.comparisons import (
    ALL,
    AS_NAMED,
    System,
    Trained,
    setting,
)
from kinject_assets.core.statistics.intervals import (
    relative_gain,
    relative_gain_interval,
    wilson,
)
from kinject_assets.core.statistics.letters import collapse, places
from kinject_assets.core.statistics.selection import (
    Choice,
    best_k,
    cross_fit,
    cross_fitted_outcomes,
)


@dataclass(frozen=True)
class Exam:
    """The scored questions of a corpus.

    Attributes:
        table: Table of the study that the corpus belongs to.
        fold: Test question that is not retired -> fold.
        chance: Question -> 1 / number of its options.
        stratum: Question -> stratum that triage put it into; empty where it did not ask.
        release_of: Window of current events that the corpus is a frozen release of; empty for none.
        retriever: The study's: the profile's first that the corpus was answered with; empty where
            it was answered with none of them.
    """

    table: int
    fold: Mapping[str, int]
    chance: Mapping[str, float]
    stratum: Mapping[str, str] = field(default_factory=dict)
    release_of: str = ""
    retriever: str = ""


@dataclass(frozen=True)
class Scored:
    """What `score_all` gives.

    Attributes:
        systems: Every score's condition, rule and outcomes.
        choices: Condition that a cross-fitted score names -> the choice.
    """

    systems: list[System]
    choices: dict[str, Choice]


def by_stratum(systems: Sequence[System], exams: Mapping[str, Exam]) -> dict[str, list[System]]:
    """The systems on all questions, and on those of each stratum that has any."""
    found = {ALL: list(systems)}
    for stratum in STRATA:
        questions = {
            corpus: {q for q, name in exam.stratum.items() if name == stratum}
            for corpus, exam in exams.items()
        }
        inside = [s.within(questions[s.condition.corpus]) for s in systems]
        if answered := [s for s in inside if s.outcomes]:
            found[stratum] = answered
    return found


def _outcomes(
    answers: Iterable[Answer], conditions: Mapping[str, Condition], exams: Mapping[str, Exam]
) -> dict[str, dict[str, bool]]:
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for answer in answers:
        condition = conditions.get(answer.condition_id)
        if condition and answer.question_id in exams[condition.corpus].fold:
            found[condition.condition_id][answer.question_id] = answer.correct
    return found


def _variant(condition: Condition) -> tuple[Any, ...]:
    """All of a condition but its K and corpus."""
    fields = asdict(condition)
    return tuple(v for key, v in fields.items() if key not in {"condition_id", "k", "corpus"})


def _independent(corpora: Iterable[str], exams: Mapping[str, Exam], window: str) -> frozenset[str]:
    """Corpora that share no questions with one another, nor with a release of `window`."""
    return frozenset(c for c in corpora if not exams[c].release_of and c != window)


def score_all(
    conditions: Sequence[Condition],
    answers: Iterable[Answer],
    exams: Mapping[str, Exam],
    folds: int,
    trained: Mapping[tuple[str, str, str], Trained],
) -> Scored:
    """Every condition's outcomes under every rule, in a fixed order.

    K is cross-fitted per model, shots, method, recipe and retriever, pooled over the corpora of one
    table that were answered with the same values of K. Releases of a window share its questions:
    they have no part in the choice for others, nor their window in theirs.

    Args:
        conditions: In any order.
        answers: Of these conditions and others.
        exams: Corpus -> its scored questions.
        folds: Folds of the choice of K.
        trained: Corpus, model and recipe -> how that checkpoint was trained.
    """
    by_id = {condition.condition_id: condition for condition in conditions}
    outcomes = _outcomes(answers, by_id, exams)
    scored = Scored([], {})
    families: dict[tuple[Any, ...], dict[str, dict[int, Condition]]] = defaultdict(dict)
    for condition in sorted(by_id.values(), key=lambda c: c.condition_id):
        if condition.condition_id not in outcomes:
            continue
        mine = outcomes[condition.condition_id]
        scored.systems.append(System(condition, "fixed", mine))
        if condition.k == 0:
            scored.systems.append(System(condition, "test_best", mine))
            scored.systems.append(System(condition, "cross_fitted", mine))
        else:
            key = (exams[condition.corpus].table, *_variant(condition))
            families[key].setdefault(condition.corpus, {})[condition.k] = condition
    for corpora in families.values():
        for corpus, by_k in corpora.items():
            _add_test_best(scored, by_k, outcomes)
            pool = {
                c: ks
                for c, ks in corpora.items()
                if set(ks) == set(by_k)
                and (c == corpus or c in _independent(corpora, exams, exams[corpus].release_of))
            }
            _add_cross_fitted(scored, corpus, pool, outcomes, exams, folds)
    systems = [
        replace(
            s,
            trained=trained.get((c.corpus, c.model, c.recipe), AS_NAMED),
            studied=not c.k or c.retriever == exams[c.corpus].retriever,
        )
        for s in scored.systems
        for c in (s.condition,)
    ]
    return Scored(systems, scored.choices)


def _add_test_best(
    scored: Scored, by_k: Mapping[int, Condition], outcomes: Mapping[str, Mapping[str, bool]]
) -> None:
    mine = {k: outcomes[condition.condition_id] for k, condition in by_k.items()}
    shared = set.intersection(*(set(o) for o in mine.values()))
    k = best_k({k: sum(o[q] for q in shared) for k, o in mine.items()})
    scored.systems.append(System(by_k[k], "test_best", mine[k]))


def _add_cross_fitted(
    scored: Scored,
    corpus: str,
    pool: Mapping[str, Mapping[int, Condition]],
    outcomes: Mapping[str, Mapping[str, bool]],
    exams: Mapping[str, Exam],
    folds: int,
) -> None:
    # A question that two corpora share is one question: its fold is the same in both.
    pooled = {
        k: {
            (c, q): correct
            for c, ks in pool.items()
            for q, correct in outcomes[ks[k].condition_id].items()
        }
        for k in pool[corpus]
    }
    fold = {(c, q): f for c in pool for q, f in exams[c].fold.items()}
    choice = cross_fit(pooled, fold, folds)
    mine = {k: outcomes[c.condition_id] for k, c in pool[corpus].items()}
    condition = pool[corpus][choice.k]
    fitted = cross_fitted_outcomes(mine, exams[corpus].fold, choice)
    scored.systems.append(System(condition, "cross_fitted", fitted))
    scored.choices[condition.condition_id] = choice


def _base_of(system: System, bases: Mapping[tuple[Any, ...], System]) -> System | None:
    return bases.get(_base_key(system.condition))


def _base_key(c: Condition) -> tuple[Any, ...]:
    return (c.shots, *setting(c))


def score_rows(
    scored: Scored, exams: Mapping[str, Exam], profile: Profile, stratum: str = ALL
) -> list[dict[str, Any]]:
    """Rows of the table `scores` for the questions of one stratum.

    Within strata there is no gain over the base model: its own answers sorted the questions.
    """
    bases = (
        {}
        if stratum != ALL
        else {
            _base_key(s.condition): s
            for s in scored.systems
            if s.condition.method == "base" and s.k_rule == "fixed"
        }
    )
    rows: list[dict[str, Any]] = []
    for system in scored.systems:
        c = system.condition
        n, correct = len(system.outcomes), sum(system.outcomes.values())
        interval = wilson(correct, n)
        chances = exams[c.corpus].chance
        chance = sum(chances[q] for q in system.outcomes) / n if n else None
        choice = scored.choices.get(c.condition_id) if system.k_rule == "cross_fitted" else None
        accuracy = correct / n if n else None
        rows.append(
            {
                "k_rule": system.k_rule,
                "stratum": stratum,
                **asdict(c),
                "n": n,
                "correct": correct,
                "accuracy": accuracy,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "chance": chance,
                "above_chance": None if chance is None else (accuracy or 0.0) > chance,
                "above_chance_shown": None if chance is None else interval.low > chance,
                **_gain(system, _base_of(system, bases)),
                "k_stability": choice.stability if choice else None,
                "main": (
                    c.choice_format == profile.scoring.choice_format
                    and c.rotation == profile.scoring.rotation
                    and c.chat_template == profile.scoring.chat_template
                    and c.seed == 0
                    and not (system.recipe and system.recipe.variant)
                    and system.studied
                    and (c.k == 0 or c.query == profile.retrieval.query)
                ),
            }
        )
    return rows


def _gain(system: System, base: System | None) -> dict[str, float | None]:
    """Eq. 5 against the base model, on the questions that both answered."""
    gain, interval = None, None
    if base is not None and base.condition.method != system.condition.method:
        shared = system.outcomes.keys() & base.outcomes.keys()
        both = sum(system.outcomes[q] and base.outcomes[q] for q in shared)
        after = sum(system.outcomes[q] for q in shared)
        before = sum(base.outcomes[q] for q in shared)
        gain = relative_gain(after, before)
        interval = relative_gain_interval(both, after - both, before - both)
    return {
        "relative_gain": gain,
        "relative_gain_low": interval.low if interval else None,
        "relative_gain_high": interval.high if interval else None,
    }


def letter_rows(
    answers: Iterable[Answer], conditions: Mapping[str, Condition], exams: Mapping[str, Exam]
) -> list[dict[str, Any]]:
    """Rows of the table `letter_bias`: a row for each place of the options of a condition."""
    given: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        condition = conditions.get(answer.condition_id)
        if condition and answer.question_id in exams[condition.corpus].fold:
            given[answer.condition_id].append(answer)
    rows: list[dict[str, Any]] = []
    for condition_id, mine in given.items():
        chances = exams[conditions[condition_id].corpus].chance
        found = places(mine)
        why = collapse(
            sum(a.correct for a in mine),
            len(mine),
            sum(chances[a.question_id] for a in mine) / len(mine),
            found,
        )
        rows += [
            {"condition_id": condition_id, **asdict(p), "collapsed": bool(why), "collapse": why}
            for p in found
        ]
    return rows
