import random
from dataclasses import replace

import pytest

from kinject_assets.core.schema import Condition
from kinject_assets.core.statistics.comparisons import (
    FAMILIES,
    System,
    Trained,
    compare,
    compare_all,
)
from kinject_assets.core.statistics.power import WORTHWHILE, detectable_difference, mcnemar_power
from kinject_assets.core.statistics.selection import KRule
from kinject_assets.core.statistics.tests import holm, mcnemar


def _system(
    method: str,
    skill: float,
    *,
    recipe: str = "",
    k: int = 0,
    shots: int = 0,
    n: int = 200,
    corpus: str = "c",
    rule: KRule = "cross_fitted",
) -> System:
    draw = random.Random(f"{method}{recipe}{k}{shots}")
    condition = Condition.of(
        corpus=corpus,
        model="m",
        recipe=recipe,
        seed=0,
        method=method,
        shots=shots,
        k=k,
        retriever="r" if k else "",
        query="question" if k else "",
        choice_format="letter",
        rotation=False,
        engine="e",
    )
    return System(condition, rule, {f"q{i}": draw.random() < skill for i in range(n)})


def _pairs(systems: list[System]) -> set[tuple[str, str, str]]:
    names = {s.condition.condition_id: s.condition.recipe or s.condition.method for s in systems}
    return {(c.family, names[c.condition_a], names[c.condition_b]) for c in compare_all(systems)}


def test_families_pair_what_they_say() -> None:
    systems = [
        _system("base", 0.3),
        _system("rag", 0.8, k=2),
        *(_system("ft", 0.5, recipe=r) for r in ("full.p00", "full.p10", "full.r10")),
    ]
    assert _pairs(systems) == {
        ("rag_vs_base", "rag", "base"),
        ("ft_vs_base", "full.p00", "base"),
        ("ft_vs_base", "full.p10", "base"),
        ("rag_vs_ft", "rag", "full.p00"),
        ("rag_vs_ft", "rag", "full.p10"),
        ("par_vs_reg", "full.p10", "full.p00"),
        ("par_vs_control", "full.p10", "full.r10"),
    }


def _trained(recipe: str, augmentation: str, settings: str = "") -> System:
    return replace(_system("ft", 0.5, recipe=recipe), trained=Trained(augmentation, settings))


def test_other_augmentations_are_families_of_their_own() -> None:
    systems = [
        *(_trained(r, "paraphrase") for r in ("full.p02", "full.p04")),
        *(_trained(r, "") for r in ("full.p00", "full.r04", "full.r04.qa", "full.p00.qa")),
        _trained("full.p04.qa", "question_answer"),
        _trained("full.p04.imp", "implications"),
        _trained("full.p04.imp.s1", "implications"),
    ]
    found = {pair for pair in _pairs(systems) if pair[0].startswith(("par_", "aug_"))}
    assert found == {
        ("par_vs_reg", "full.p02", "full.p00"),
        ("par_vs_reg", "full.p04", "full.p00"),
        ("par_vs_control", "full.p04", "full.r04"),
        ("aug_vs_reg", "full.p04.qa", "full.p00"),
        ("aug_vs_reg", "full.p04.qa", "full.p00.qa"),
        ("aug_vs_reg", "full.p04.imp", "full.p00"),
        ("aug_vs_reg", "full.p04.imp", "full.p00.qa"),
        ("aug_vs_control", "full.p04.qa", "full.r04.qa"),
        ("aug_vs_par", "full.p04.qa", "full.p04"),
        ("aug_vs_par", "full.p04.imp", "full.p04"),
    }


def test_other_augmentations_do_not_change_what_is_found_of_paraphrases() -> None:
    plain = [_system("ft", s, recipe=r) for r, s in (("full.p00", 0.4), ("full.p04", 0.5))]
    others = [_trained(f"full.p0{n}.qa", "question_answer") for n in range(1, 5)]

    def of_paraphrases(systems: list[System]) -> list[object]:
        return [c for c in compare_all(systems) if c.family.startswith("par_")]

    assert of_paraphrases(plain) == of_paraphrases([*plain, *others]) != []


def test_augmentations_are_compared_under_the_same_training_settings() -> None:
    systems = [
        _trained("full.p00", "", "own"),
        _trained("full.p04", "paraphrase", "own"),
        _trained("full.p00.common", "", "common"),
        _trained("full.p04.common", "paraphrase", "common"),
        _trained("full.p04.qa", "question_answer", "own"),
        _trained("full.p04.common-qa", "question_answer", "common"),
    ]
    found = {pair for pair in _pairs(systems) if pair[0].startswith("aug_")}
    assert found == {
        ("aug_vs_reg", "full.p04.qa", "full.p00"),
        ("aug_vs_par", "full.p04.qa", "full.p04"),
        ("aug_vs_reg", "full.p04.common-qa", "full.p00.common"),
        ("aug_vs_par", "full.p04.common-qa", "full.p04.common"),
    }


def test_other_seeds_and_kinds_of_training_are_not_mixed() -> None:
    recipes = ("full.p00", "full.p10.s1", "lora.p10", "full.r10")
    assert not {
        pair
        for pair in _pairs([_system("ft", 0.5, recipe=r) for r in recipes])
        if pair[0].startswith("par_")
    }


def test_corpora_are_never_compared_with_each_other() -> None:
    assert compare_all([_system("rag", 0.8, k=1, corpus="a"), _system("base", 0.3)]) == []


def test_k_is_compared_between_fixed_conditions() -> None:
    systems = [_system("rag", 0.5, k=k, rule="fixed") for k in (1, 2, 3)]
    assert [c.family for c in compare_all(systems)] == ["k"] * 3


def test_numbers_are_those_of_the_answers() -> None:
    a, b = _system("rag", 0.8, k=2), _system("base", 0.3, n=150)
    c = compare(a, b, "rag_vs_base", "all")
    assert c is not None
    shared = [f"q{i}" for i in range(150)]
    assert c.n == 150
    assert c.only_a == sum(a.outcomes[q] and not b.outcomes[q] for q in shared)
    assert c.difference == pytest.approx(
        (sum(a.outcomes[q] for q in shared) - sum(b.outcomes[q] for q in shared)) / 150
    )
    assert c.ci_low < c.difference < c.ci_high
    assert c.p_value == mcnemar(c.only_a, c.only_b)


def test_nothing_shared_is_no_comparison() -> None:
    assert (
        compare(_system("rag", 0.8, k=1), _system("base", 0.3, n=0), "rag_vs_base", "all") is None
    )


def test_verdicts_follow_the_adjusted_test_within_a_family() -> None:
    systems = [
        _system("base", 0.5),
        _system("ft", 0.9, recipe="full.p00"),
        _system("ft", 0.1, recipe="lora.p00"),
        _system("ft", 0.52, recipe="qlora.p00"),
    ]
    found = [c for c in compare_all(systems) if c.family == "ft_vs_base"]
    assert [c.p_adjusted for c in found] == holm([c.p_value for c in found])
    verdicts = sorted(c.verdict for c in found)
    assert verdicts[0] == "better"
    assert verdicts[1].startswith("no difference shown (could have shown 0.")
    assert verdicts[2] == "worse"


def test_family_names_are_unique() -> None:
    assert len({f.name for f in FAMILIES}) == len(FAMILIES)


def _at(system: System, **fields: object) -> System:
    kept = {
        name: getattr(system.condition, name)
        for name in system.condition.__dataclass_fields__
        if name != "condition_id"
    }
    return replace(system, condition=Condition.of(**{**kept, **fields}))


@pytest.mark.parametrize(
    "fields", [{"chat_template": True}, {"bos": True}, {"rotation": True}, {"engine": "other"}]
)
def test_settings_are_never_mixed(fields: dict[str, object]) -> None:
    rag, base = _system("rag", 0.8, k=1), _system("base", 0.3)
    assert len(compare_all([rag, base])) == 1
    assert compare_all([_at(rag, **fields), base]) == []
    assert len(compare_all([_at(rag, **fields), _at(base, **fields)])) == 1


def test_within_strata_nothing_is_compared_with_who_sorted_them() -> None:
    systems = [_system("rag", 0.5, k=k, rule="fixed") for k in (1, 2, 3)]
    assert compare_all(systems, "new") == []
    systems = [
        _system("base", 0.1),
        _system("rag", 0.9, k=1),
        _system("ft", 0.3, recipe="full.p00"),
        _system("ft", 0.4, recipe="full.p04"),
        _system("ft", 0.3, recipe="full.r04"),
        _system("ft_rag", 0.8, k=1, recipe="full.p00"),
    ]
    families = {c.family for c in compare_all(systems)}
    assert {"rag_vs_base", "ft_vs_base", "rag_vs_ft"} < families
    found = {c.family for c in compare_all(systems, "new")}
    assert found == {"par_vs_control"}


def test_controls_are_compared_with_their_paraphrases_alone() -> None:
    systems = [
        _system("ft", 0.3, recipe=r, shots=s) for r in ("full.p04", "full.r04") for s in (0, 5)
    ]
    found = [c for c in compare_all(systems) if c.family == "shots"]
    control = {s.condition.condition_id for s in systems if s.condition.recipe == "full.r04"}
    assert len(found) == 1 and found[0].condition_a not in control


def test_what_could_have_been_shown_is_asked_at_the_level_that_decides() -> None:
    base = _system("base", 0.5)
    many = [_system("ft", 0.5 + i / 100, recipe=f"full.p{i:02}") for i in range(8)]
    (alone,) = [c for c in compare_all([base, many[1]]) if c.family == "ft_vs_base"]
    family = [c for c in compare_all([base, *many]) if c.family == "ft_vs_base"]
    (same,) = [c for c in family if c.condition_a == alone.condition_a]
    assert alone.detectable_difference is not None and same.detectable_difference is not None
    assert alone.detectable_difference < same.detectable_difference
    assert alone.more_questions is not None and same.more_questions is not None
    assert alone.more_questions < same.more_questions
    for c in family:
        assert c.detectable_difference == detectable_difference(
            c.n, c.only_a + c.only_b, alpha=0.05 / 8
        )


def test_further_questions_reach_the_power_that_this_many_lack() -> None:
    (c,) = compare_all([_system("rag", 0.55, k=1), _system("base", 0.5)])
    assert c.more_questions and c.detectable_difference
    discordance = round((c.only_a + c.only_b) / c.n, 3)
    assert mcnemar_power(c.n + c.more_questions, discordance, WORTHWHILE) >= 0.8
    assert mcnemar_power(c.n, discordance, WORTHWHILE) < 0.8
    assert c.detectable_difference > WORTHWHILE


def test_enough_questions_need_no_more() -> None:
    base = _system("base", 0.5, n=2000)
    outcomes = {q: o if i % 20 else not o for i, (q, o) in enumerate(base.outcomes.items())}
    (c,) = compare_all([replace(_system("rag", 0.5, k=1), outcomes=outcomes), base])
    assert c.more_questions == 0
    assert c.detectable_difference is not None and c.detectable_difference <= WORTHWHILE


def test_other_retrievers_are_compared_with_the_studys_alone() -> None:
    def other(system: System) -> System:
        c = replace(system.condition, retriever="fused", condition_id=f"{system.condition.k}f")
        return replace(system, condition=c, studied=False)

    ours = [_system("base", 0.3), _system("rag", 0.8, k=2), _system("ft", 0.5, recipe="full.p00")]
    fine_tuned = [_system("ft_rag", 0.7, recipe=r, k=1) for r in ("full.p00", "full.r10")]
    theirs = [other(_system("rag", 0.6, k=3)), *map(other, fine_tuned)]
    alone, both = compare_all([*ours, *fine_tuned]), compare_all([*ours, *fine_tuned, *theirs])
    assert [c for c in both if c.family != "retriever"] == alone
    found = {(c.condition_a, c.condition_b) for c in both if c.family == "retriever"}
    assert found == {
        ("3f", ours[1].condition.condition_id),
        ("1f", fine_tuned[0].condition.condition_id),
    }
    (rag,) = [c for c in both if c.condition_a == "3f"]
    a, b = theirs[0].outcomes, ours[1].outcomes
    assert rag.only_a == sum(a[q] and not b[q] for q in a)
    assert rag.p_adjusted >= rag.p_value == mcnemar(rag.only_a, rag.only_b)
