"""Answers with several retrievers in the database: what each brought, and what is the study's."""

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Profile, Retrieval
from kinject_assets.core import schema
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.results.loader import DATABASE, build_database
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.intervals import wilson
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results import synthetic

RIVERS = Cell("answers_rag", ("rivers", synthetic.MODEL))
DEPTH = 4


def profile(*retrievers: str) -> Profile:
    found = Retrieval.model_validate({"retrievers": retrievers})
    return synthetic.profile().model_copy(update={"retrieval": found})


def add_lexical(store: Store) -> None:
    """Rows and answers of `lexical` beside those of `dense`, for rivers and the base model.

    Its own chunk is at rank 1, 2, 3, 4 or nowhere.
    """
    at = Cell("retrieved", ("rivers",))
    rows = store.rows(at, "retrieved", schema.Retrieved)
    draw = random.Random(7)
    rank_of = {q: draw.randrange(1, DEPTH + 2) for q in sorted({r.question_id for r in rows})}
    rows += [
        replace(row, retriever="lexical", hit=row.rank == rank_of[row.question_id]) for row in rows
    ]
    synthetic.publish(store, at, {"retrieved": (schema.Retrieved, rows)})
    conditions = store.rows(RIVERS, "conditions", schema.Condition)
    answers = store.rows(RIVERS, "answers", schema.Answer)
    for condition in list(conditions):
        fields = {**asdict(condition), "retriever": "lexical"}
        del fields["condition_id"]
        other = schema.Condition.of(**fields)
        conditions.append(other)
        for answer in [a for a in answers if a.condition_id == condition.condition_id]:
            choice = answer.choice if draw.random() < 0.7 else draw.randrange(4)
            answers.append(
                replace(
                    answer,
                    condition_id=other.condition_id,
                    answer_id=content_hash(other.condition_id, answer.question_id),
                    choice=choice,
                    correct=choice == answer.gold,
                )
            )
    files = {"answers": (schema.Answer, answers), "conditions": (schema.Condition, conditions)}
    synthetic.publish(store, RIVERS, files)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """One lake built for the profile's order `dense, lexical`, another for the reverse."""
    found: dict[str, Store] = {}
    for first, second in (("dense", "lexical"), ("lexical", "dense")):
        store = synthetic.write_lake(tmp_path_factory.mktemp(first))
        add_lexical(store)
        build_database(store, profile(first, second))
        found[first] = store
    return found


def rows(store: Store, sql: str) -> list[dict[str, Any]]:
    return fetch(store.root / DATABASE, sql).dicts()


def own_ranks(store: Store, retriever: str) -> dict[str, int | None]:
    tested = {
        q.question_id
        for q in store.rows(Cell("questions", ("rivers",)), "questions", schema.Question)
        if q.split == "test" and not q.retired
    }
    found: dict[str, int | None] = dict.fromkeys(tested)
    for row in store.rows(Cell("retrieved", ("rivers",)), "retrieved", schema.Retrieved):
        if row.hit and row.retriever == retriever and row.question_id in tested:
            found[row.question_id] = row.rank
    return found


@pytest.mark.parametrize("retriever", ["dense", "lexical"])
def test_quality_is_counted_over_the_test_questions(
    lakes: dict[str, Store], retriever: str
) -> None:
    store = lakes["dense"]
    found = rows(
        store,
        "SELECT * FROM retrieval_quality WHERE corpus = 'rivers' AND "
        f"retriever = '{retriever}' ORDER BY k",
    )
    ranks = own_ranks(store, retriever)
    assert [row["k"] for row in found] == list(range(1, DEPTH + 1))
    for row in found:
        inside = [rank for rank in ranks.values() if rank and rank <= row["k"]]
        assert row["n"] == len(ranks) == synthetic.QUESTIONS
        assert row["recall"] == pytest.approx(len(inside) / len(ranks))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(wilson(len(inside), len(ranks)))
        assert row["mrr"] == pytest.approx(sum(1 / rank for rank in inside) / len(ranks))
    if retriever == "lexical":
        assert 0 < found[0]["recall"] < found[-1]["recall"] < 1


def test_errors_are_told_apart_by_what_was_retrieved(lakes: dict[str, Store]) -> None:
    store = lakes["dense"]
    found = rows(store, "SELECT * FROM rag_errors WHERE corpus = 'rivers'")
    answers = store.rows(RIVERS, "answers", schema.Answer)
    checked = 0
    for row in found:
        if row["recipe"]:
            continue
        ranks = own_ranks(store, row["retriever"])
        counts = {"hit_right": 0, "hit_wrong": 0, "miss_right": 0, "miss_wrong": 0}
        for answer in answers:
            if answer.condition_id == row["condition_id"] and answer.question_id in ranks:
                rank = ranks[answer.question_id]
                there = "hit" if rank and rank <= row["k"] else "miss"
                counts[f"{there}_{'right' if answer.correct else 'wrong'}"] += 1
        assert {name: row[name] for name in counts} == counts
        assert sum(counts.values()) == row["n"] == synthetic.QUESTIONS
        checked += 1
    # Two shots, three K, two retrievers; dense always has the chunk, lexical not.
    assert checked == 12
    assert {row["miss_wrong"] > 0 for row in found if row["retriever"] == "lexical"} == {True}
    assert {row["condition_id"] for row in found} <= {
        row["condition_id"] for row in rows(store, "SELECT condition_id FROM conditions")
    }


def test_questions_that_were_written_from_no_chunk_have_no_hits(tmp_path: Path) -> None:
    store = synthetic.write_lake(tmp_path)
    at = Cell("questions", ("rivers",))
    questions = [replace(q, chunk_id=None) for q in store.rows(at, "questions", schema.Question)]
    synthetic.publish(
        store,
        at,
        {"questions": (schema.Question, questions), "rejections": (schema.Rejection, [])},
    )
    build_database(store, synthetic.profile())
    for view in ("retrieval_quality", "rag_errors"):
        corpora = {row["corpus"] for row in rows(store, f"SELECT corpus FROM {view}")}
        assert corpora == {"events-2031-04"}


def test_the_profiles_first_retriever_is_the_studys(lakes: dict[str, Store]) -> None:
    assert "dense" < "lexical", "the order of the alphabet must not decide"
    shown: dict[str, Sequence[Any]] = {}
    for first, store in lakes.items():
        main = rows(
            store,
            "SELECT DISTINCT retriever FROM scores WHERE main AND k > 0 AND corpus = 'rivers'",
        )
        assert main == [{"retriever": first}]
        (row,) = rows(store, "SELECT base, base_rag FROM table1 WHERE shots = 0")
        (score,) = rows(
            store,
            "SELECT accuracy FROM scores WHERE k_rule = 'cross_fitted' AND stratum = 'all' AND "
            f"corpus = 'rivers' AND method = 'rag' AND shots = 0 AND retriever = '{first}'",
        )
        assert row["base_rag"] == score["accuracy"]
        shown[first] = [row["base"], row["base_rag"]]
    assert shown["dense"][0] == shown["lexical"][0]
    assert shown["dense"][1] != shown["lexical"][1]


def test_another_retriever_changes_no_other_family(lakes: dict[str, Store], built: Store) -> None:
    columns = "* EXCLUDE (condition_a, condition_b), condition_a, condition_b"
    asked = f"SELECT {columns} FROM comparisons WHERE family <> 'retriever' ORDER BY ALL"
    assert rows(lakes["dense"], asked) == rows(built, asked)
    retriever = rows(
        lakes["dense"],
        "SELECT a.retriever AS a, b.retriever AS b, a.shots, p_value, p_adjusted FROM comparisons "
        "JOIN conditions a ON condition_a = a.condition_id "
        "JOIN conditions b ON condition_b = b.condition_id WHERE family = 'retriever'",
    )
    assert sorted((row["a"], row["b"], row["shots"]) for row in retriever) == [
        ("lexical", "dense", 0),
        ("lexical", "dense", 5),
    ]
    assert rows(built, "SELECT * FROM comparisons WHERE family = 'retriever'") == []
    claims = "SELECT claim, verdict, evidence FROM claims ORDER BY claim"
    assert rows(lakes["dense"], claims) == rows(built, claims)


def test_each_retriever_has_its_own_choice_of_k(lakes: dict[str, Store], built: Store) -> None:
    asked = (
        "SELECT retriever, shots, accuracy, k, k_stability FROM scores WHERE k_rule = "
        "'cross_fitted' AND method = 'rag' AND corpus = 'rivers' AND stratum = 'all' ORDER BY ALL"
    )
    found = rows(lakes["dense"], asked)
    assert [(row["retriever"], row["shots"]) for row in found] == [
        (name, shots) for name in ("dense", "lexical") for shots in (0, 5)
    ]
    assert found[:2] == rows(built, asked)


def test_a_retriever_that_the_profile_does_not_name_is_not_shown(tmp_path: Path) -> None:
    store = synthetic.write_lake(tmp_path)
    build_database(store, profile("lexical"))
    assert rows(store, "SELECT * FROM scores WHERE main AND k > 0") == []
    assert rows(store, "SELECT DISTINCT base_rag FROM table1") == [{"base_rag": None}]
