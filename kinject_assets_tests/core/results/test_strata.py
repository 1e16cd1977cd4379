"""Strata, seeds and letters in the database, recomputed from its answers."""

from statistics import fmean

import pytest

from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import STRATA
from kinject_assets.core.statistics.tests import holm
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic

EVENTS = "events-2031-04"


def _rows(store: Store, sql: str) -> list[tuple]:
    return fetch(store.root / DATABASE, sql).rows


def test_every_stratum_has_its_questions(rich: Store) -> None:
    found = _rows(
        rich, f"SELECT stratum, n FROM scores WHERE corpus = '{EVENTS}' GROUP BY ALL ORDER BY n"
    )
    assert dict(found) == synthetic.TRIAGE | {"all": synthetic.QUESTIONS}
    assert set(synthetic.TRIAGE) == set(STRATA)
    strata = _rows(rich, "SELECT DISTINCT stratum FROM scores WHERE corpus = 'rivers'")
    assert strata == [("all",)]
    filled = _rows(rich, "SELECT triage, count(*) FROM questions WHERE triage <> '' GROUP BY ALL")
    assert dict(filled) == synthetic.TRIAGE


def test_scores_of_a_stratum_are_counts_of_its_answers(rich: Store) -> None:
    different = _rows(
        rich,
        """
        SELECT s.condition_id, s.stratum FROM scores s JOIN answers a USING (condition_id)
            JOIN triage t USING (question_id)
        WHERE s.k_rule = 'fixed' AND t.stratum = s.stratum
        GROUP BY s.condition_id, s.stratum, s.n, s.correct
        HAVING count(*) <> s.n OR count(*) FILTER (a.correct) <> s.correct
        """,
    )
    assert different == []


def test_k_is_that_of_all_questions_in_every_stratum(rich: Store) -> None:
    # Strata are parts of the exam: their correct answers under each rule add up to those of all.
    rows = _rows(
        rich,
        f"""
        SELECT k_rule, sum(correct) FILTER (stratum <> 'all'),
            sum(correct) FILTER (stratum = 'all'), count(DISTINCT k)
        FROM scores WHERE corpus = '{EVENTS}' GROUP BY condition_id, k_rule
        """,
    )
    assert {row[0] for row in rows} == {"fixed", "test_best", "cross_fitted"}
    for _, parts, whole, ks in rows:
        assert (parts, ks) == (whole, 1)


def test_holm_is_applied_within_family_and_stratum(rich: Store) -> None:
    groups = _rows(
        rich,
        "SELECT family, stratum, list(p_value ORDER BY condition_a, condition_b), "
        "list(p_adjusted ORDER BY condition_a, condition_b) FROM comparisons GROUP BY ALL",
    )
    strata = {stratum for _, stratum, _, _ in groups}
    assert strata == {"all", *STRATA}
    # Who sorted the questions, and what leans on that, is not compared within strata.
    assert {family for family, stratum, _, _ in groups if stratum != "all"} == {"par_vs_control"}
    for _, _, p_values, adjusted in groups:
        assert adjusted == pytest.approx(holm(p_values))


def test_tables_and_claims_read_all_questions(rich: Store, built: Store) -> None:
    for sql in (
        "SELECT * FROM table2",
        "SELECT * FROM table1",
        "SELECT claim, verdict, evidence FROM claims",
    ):
        assert _rows(rich, sql) == _rows(built, sql)


def test_pooled_seeds_are_those_of_the_scores(rich: Store) -> None:
    rows = fetch(
        rich.root / DATABASE,
        "SELECT * FROM pooled WHERE stratum = 'all' AND k_rule = 'cross_fitted' ORDER BY ALL",
    ).dicts()
    assert {(r["recipe"], r["method"], tuple(r["seeds"]), r["shots"]) for r in rows} == {
        (recipe, method, seeds, 0)
        for recipe, seeds in (("full.p04", (0, 1, 2)), ("full.r04", (0, 1)))
        for method in ("ft", "ft_rag")
    }
    for row in rows:
        each = dict(
            _rows(
                rich,
                "SELECT seed, accuracy FROM scores WHERE k_rule = 'cross_fitted' AND shots = 0 "
                f"AND stratum = 'all' AND method = '{row['method']}' AND corpus = '{EVENTS}' "
                f"AND recipe LIKE '{row['recipe']}%'",
            )
        )
        assert row["accuracies"] == pytest.approx([each[seed] for seed in row["seeds"]])
        assert row["accuracy"] == pytest.approx(fmean(each.values()))
        assert row["n"] == synthetic.QUESTIONS
        if row["recipe"] == "full.r04":
            assert row["reference_id"] is row["verdict"] is None
            continue
        ((method, accuracy),) = _rows(
            rich,
            "SELECT method, accuracy FROM scores WHERE k_rule = 'cross_fitted' "
            f"AND stratum = 'all' AND condition_id = '{row['reference_id']}'",
        )
        assert method == {"ft": "base", "ft_rag": "rag"}[row["method"]]
        assert row["difference"] == pytest.approx(row["accuracy"] - accuracy)
        shown = f"no difference shown (could have shown {row['detectable_difference']:.3f})"
        assert row["verdict"] in {"better", "worse", shown}


def test_pooled_rows_stand_in_every_stratum(rich: Store, built: Store) -> None:
    found = _rows(rich, "SELECT DISTINCT stratum, n FROM pooled WHERE method = 'ft'")
    assert dict(found) == synthetic.TRIAGE | {"all": synthetic.QUESTIONS}
    assert _rows(built, "SELECT count(*) FROM pooled") == [(0,)]


def test_letters_of_every_condition_are_counted(rich: Store) -> None:
    different = _rows(
        rich,
        """
        SELECT l.condition_id, l.place FROM letter_bias l JOIN conditions d USING (condition_id)
            JOIN answers a USING (condition_id)
            JOIN corpus_questions q ON q.corpus = d.corpus AND q.question_id = a.question_id
        WHERE NOT d.rotation AND q.split = 'test' AND NOT q.retired
        GROUP BY l.condition_id, l.place, l.shown, l.chosen, l.gold
        HAVING count(*) <> l.shown OR count(*) FILTER (a.choice = l.place) <> l.chosen * l.shown
            OR count(*) FILTER (a.gold = l.place) <> l.gold * l.shown
        """,
    )
    assert different == []
    conditions = _rows(rich, "SELECT count(DISTINCT condition_id) FROM letter_bias")
    assert conditions == _rows(rich, "SELECT count(*) FROM conditions")


def test_a_model_that_is_stuck_on_a_letter_is_found(rich: Store) -> None:
    rows = _rows(
        rich,
        "SELECT letter, shown, gold, chosen, collapse FROM letter_bias "
        "JOIN conditions USING (condition_id) WHERE model = 'stuck' ORDER BY place",
    )
    shown = 4 * synthetic.QUESTIONS
    assert rows[0] == ("A", shown, 0.25, 1.0, "one letter")
    assert rows[1:] == [(letter, shown, 0.25, 0.0, "one letter") for letter in "BCD"]
    models = _rows(
        rich,
        "SELECT DISTINCT model FROM letter_bias JOIN conditions USING (condition_id) "
        "WHERE collapsed",
    )
    assert models == [("stuck",)]


def test_optimism_is_what_the_rules_differ_by(rich: Store) -> None:
    rows = fetch(rich.root / DATABASE, "SELECT * FROM optimism WHERE stratum = 'all'").dicts()
    retrieving = _rows(
        rich,
        "SELECT count(*) FROM scores WHERE k_rule = 'cross_fitted' AND k > 0 AND stratum = 'all'",
    )
    assert [(len(rows),)] == retrieving
    assert any(row["gap"] > 0 for row in rows)
    for row in rows:
        assert row["gap"] == row["test_best"] - row["cross_fitted"]
        assert 0.2 <= row["stability"] <= 1
        ((best,),) = _rows(
            rich,
            "SELECT max(accuracy) FROM scores WHERE k_rule = 'fixed' AND stratum = 'all' AND k > 0 "
            f"AND corpus = '{row['corpus']}' AND recipe = '{row['recipe']}' "
            f"AND method = '{row['method']}' AND shots = {row['shots']}",
        )
        assert row["test_best"] == best
