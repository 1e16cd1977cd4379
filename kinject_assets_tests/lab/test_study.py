"""The lab study's analysis on rows made by hand, and its page."""

from pathlib import Path

import pytest

from kinject_assets.config import load_profile
from kinject_assets.core.statistics.intervals import paired_difference
from kinject_assets.core.statistics.tests import holm, mcnemar
from kinject_assets.lab import study as lab_study
from kinject_assets.lab.analysis import (
    BEST,
    COMMON,
    FAMILIES,
    Study,
    System,
    accuracies,
    compare,
    compare_damage,
    over_worlds,
    to_csv,
    write_raw,
)

WORLDS = (101, 102, 103)
RECIPES = [
    f"full.{kind}{n:02d}{variant}"
    for variant in ("", ".common")
    for kind, numbers in (("p", lab_study.NUMBERS), ("r", lab_study.NUMBERS[1:]))
    for n in numbers
]


def answered(right: int) -> dict[tuple[int, str], bool]:
    """Twenty questions a world, the first of which are answered correctly."""
    return {(world, f"q{i:02d}"): i < right for world in WORLDS for i in range(20)}


def made(**right: int) -> Study:
    """A study of one model; each recipe has the accuracy that `right` gives, 8 of 20 if none."""
    outcomes = {
        System("tiny", "base"): answered(5),
        System("tiny", "rag"): answered(18),
        **{
            System("tiny", method, recipe): answered(right.get(recipe.replace(".", "_"), 8))
            for method in ("ft", "ft_rag")
            for recipe in RECIPES
        },
    }
    damage = [
        {"world": world, "model": "tiny", "recipe": recipe, "probe": "facts:guilds"}
        | {"before": 0.9, "after": 0.5, "n": 20, "lost": 9, "won": 1}
        for world in WORLDS
        for recipe in RECIPES
    ]
    checkpoints = [
        {"world": world, "model": "tiny", "recipe": recipe, "learning_rate": 1e-3}
        for world in WORLDS
        for recipe in RECIPES
    ]
    return Study(WORLDS, outcomes, [], damage, checkpoints)


def test_a_pair_is_pooled_over_worlds_and_adjusted_within_its_family() -> None:
    rows = [row for row in compare(made(full_p10=14)) if row.family == f"par_vs_control.{BEST}"]
    assert [(row.a, row.b) for row in rows] == [
        (f"ft full.p{n:02d}", f"ft full.r{n:02d}") for n in lab_study.NUMBERS[1:]
    ]
    best = rows[-1]
    assert (best.n, best.only_a, best.only_b, best.difference) == (60, 18, 0, 0.3)
    assert (best.ci_low, best.ci_high) == tuple(paired_difference(18, 0, 60))
    assert [row.p_value for row in rows] == [1.0] * 5 + [mcnemar(18, 0)]
    assert [row.p_adjusted for row in rows] == holm([row.p_value for row in rows])
    assert best.by_world == "+0.300 +0.300 +0.300"
    assert best.verdict == "better, across worlds"
    assert all(row.verdict.startswith("no difference shown") for row in rows[:-1])


def test_every_declared_family_has_its_pairs() -> None:
    rows = compare(made())
    ns = len(lab_study.NUMBERS)
    sizes = {
        "rag_vs_base": 1,
        **{
            f"{name}.{setting}": size
            for setting in (BEST, COMMON)
            for name, size in (
                ("ft_vs_base", ns),
                ("rag_vs_ft", ns),
                ("par_vs_reg", ns - 1),
                ("par_vs_control", ns - 1),
                ("control_vs_reg", ns - 1),
                ("ten_vs_one", 1),
                ("ft_rag_vs_rag", ns),
            )
        },
    }
    assert sizes.keys() == {family.name for family in FAMILIES}
    assert {name: sum(row.family == name for row in rows) for name in sizes} == sizes
    page = (Path(__file__).parents[2] / "docs" / "lab.md").read_text()
    for family in {name.split(".")[0] for name in sizes}:
        assert f"`{family}`" in page, "a family that the page does not declare"


def test_settings_are_never_mixed() -> None:
    for row in compare(made()):
        for name in (row.a, row.b):
            if "full." in name:
                assert name.endswith(".common") == row.family.endswith(COMMON), row


def test_damage_is_held_against_the_base_model() -> None:
    rows = compare_damage(made())
    assert len(rows) == len(RECIPES)
    assert {(row.n, row.only_a, row.only_b, row.difference) for row in rows} == {(60, 3, 27, -0.4)}
    assert {row.verdict for row in rows} == {"worse, across worlds"}


def test_a_mean_over_worlds_has_students_interval() -> None:
    # t(0.975, 2) = 4.3027; mean 0.2, standard error 0.1 / sqrt(3)
    low, high = over_worlds([0.1, 0.2, 0.3])
    assert (low, high) == pytest.approx((0.2 - 0.24841, 0.2 + 0.24841), abs=1e-5)
    assert over_worlds([0.1]) == (-1.0, 1.0)


def test_every_world_is_shown_beside_the_pool() -> None:
    rows = [row for row in accuracies(made()) if row["method"] == "rag"]
    assert [(row["world"], row["n"], row["correct"]) for row in rows] == [
        *((world, 20, 18) for world in WORLDS),
        ("all", 60, 54),
    ]


def test_raw_figures_pictures_and_tables_are_written(tmp_path: Path) -> None:
    study = made(full_p10=14)
    write_raw(study, tmp_path)
    lines = (tmp_path / "comparisons.csv").read_text().splitlines()
    assert lines[0].startswith("family,model,a,b,n,only_a,only_b,difference,ci_low,ci_high,p_value")
    assert len(lines) == 1 + len(compare(study)) + len(compare_damage(study))
    pictures = lab_study.write_plots(study, tmp_path)
    assert len(pictures) == 3
    for name, _ in pictures:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = lab_study.results_text(study, pictures)
    assert "| tiny | 10 | 0.700 [0.575, 0.801] | 0.400 | +0.300" in text
    assert "### par_vs_control.best" in lab_study.tables_text(study)
    assert to_csv([]) == "\n"


def test_each_world_gets_a_profile_of_its_own(tmp_path: Path) -> None:
    profile = load_profile(str(lab_study.world_profile(103, tmp_path)))
    assert profile.name == "lab-study-103"
    assert profile.lab is not None
    assert profile.lab.seed == 103
    assert set(profile.recipes) == set(RECIPES)
    assert not set(lab_study.WORLDS) & {1, *range(100)}, "tuning used seeds below 100"
