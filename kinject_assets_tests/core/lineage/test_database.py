"""Rows of the database: what is dropped, changed or added is named; chains are followed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from kinject_assets.core.lineage.audit import Audit, audit
from kinject_assets.core.lineage.findings import Finding
from kinject_assets.core.results.digests import content_version, write_digests
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.schema import Article
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results import synthetic


def _change(store: Store, *statements: str) -> None:
    with duckdb.connect(str(store.root / DATABASE)) as connection:
        for statement in statements:
            connection.execute(statement)


def _rows(store: Store, sql: str) -> list[tuple]:
    with duckdb.connect(str(store.root / DATABASE), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def _of(verdict: Audit, area: str) -> list[Finding]:
    return [f for f in verdict.findings if f.area == area]


def _one(verdict: Audit, area: str) -> Finding:
    (finding,) = _of(verdict, area)
    return finding


def test_a_dropped_answer_is_named_and_nothing_else(study: Store) -> None:
    ((condition, question),) = _rows(
        study, "SELECT condition_id, question_id FROM answers ORDER BY ALL LIMIT 1"
    )
    _change(study, f"DELETE FROM answers WHERE (condition_id, question_id) = {condition, question}")
    verdict = audit(study)
    found = _one(verdict, "rows")
    assert (found.artefact, found.kind, found.table, found.count) == (
        DATABASE,
        "missing",
        "answers",
        1,
    )
    assert found.keys == (f"condition_id={condition}, question_id={question}",)
    assert f"delete {study.root / DATABASE}" in found.mend
    # The links of the answer are there and lead nowhere else.
    assert not _of(verdict, "chains")
    assert verdict.whole == verdict.answers


def test_a_dropped_question_breaks_exactly_its_answers(study: Store) -> None:
    ((question, answers),) = _rows(
        study, "SELECT question_id, count(*) FROM answers GROUP BY ALL ORDER BY ALL LIMIT 1"
    )
    _change(study, f"DELETE FROM questions WHERE question_id = '{question}'")
    verdict = audit(study)
    found = _one(verdict, "rows")
    assert (found.kind, found.table, found.keys) == (
        "missing",
        "questions",
        (f"question_id={question}",),
    )
    assert found.answers == answers
    chain = _one(verdict, "chains")
    assert (chain.kind, chain.table, chain.answers) == ("missing", "lineage", answers)
    assert chain.keys == (f"parent_kind=question, parent_id={question}",)
    assert verdict.whole == verdict.answers - answers


def test_dropped_scores_lose_no_chain(study: Store) -> None:
    _change(study, "DELETE FROM scores WHERE k_rule = 'test_best'")
    verdict = audit(study)
    found = _one(verdict, "rows")
    assert (found.kind, found.table) == ("missing", "scores")
    assert found.count > len(found.keys) == 5
    assert "; ..." in found.detail
    assert not _of(verdict, "chains")


@pytest.mark.parametrize(
    ("parent", "child", "what"),
    [
        ("question", "answer", "question"),
        ("chunk", "answer", "retrieved chunk"),
        ("article", "chunk", "article revision"),
        pytest.param("artefact", "answer", "artefact", marks=pytest.mark.slow),
        pytest.param("checkpoint", "answer", "checkpoint", marks=pytest.mark.slow),
        pytest.param("chunk", "question", "chunk", marks=pytest.mark.slow),
        pytest.param("generation", "question", "generation", marks=pytest.mark.slow),
        pytest.param("chunk", "checkpoint", "training text", marks=pytest.mark.slow),
    ],
)
def test_a_dropped_link_is_a_row_and_a_broken_chain(
    study: Store, parent: str, child: str, what: str
) -> None:
    where = f"child_kind = '{child}' AND parent_kind = '{parent}'"
    chosen = f"SELECT min(child_id) FROM lineage WHERE {where}"
    ((node,),) = _rows(study, chosen)
    _change(study, f"DELETE FROM lineage WHERE {where} AND child_id = '{node}'")
    verdict = audit(study)
    row, chain = _one(verdict, "rows"), _one(verdict, "chains")
    assert (row.kind, row.table) == ("missing", "lineage")
    assert row.keys[0].startswith(f"child_kind={child}, child_id={node}, parent_kind={parent}")
    assert chain.detail == f"table lineage: no link to the {what} of 1 {child} ({node})"
    assert verdict.answers - verdict.whole == chain.answers == row.answers > 0


def test_a_changed_value_is_named(study: Store) -> None:
    ((chunk,),) = _rows(study, "SELECT min(chunk_id) FROM chunks")
    _change(study, f"UPDATE chunks SET text = text || ' not' WHERE chunk_id = '{chunk}'")
    verdict = audit(study)
    found = _one(verdict, "rows")
    assert (found.kind, found.table, found.keys) == ("changed", "chunks", (f"chunk_id={chunk}",))
    assert found.answers > 0
    assert not _of(verdict, "chains")
    assert verdict.whole == verdict.answers


def test_another_version_of_duckdb_is_said(study: Store, rewrite: Callable[..., None]) -> None:
    rewrite(study, Cell("results"), libraries={"duckdb": "1.0.0"})
    _change(study, "UPDATE chunks SET text = 'x' WHERE chunk_id = 'chunk0'")
    assert "written with DuckDB 1.0.0, read with" in _one(audit(study), "rows").detail


def test_the_last_digit_of_a_number_counts(study: Store) -> None:
    _change(
        study,
        "UPDATE scores SET ci_low = ci_low + 1e-16 WHERE k_rule = 'fixed' AND ci_low = "
        "(SELECT min(ci_low) FROM scores WHERE k_rule = 'fixed' AND ci_low > 0)",
    )
    assert _one(audit(study), "rows").table == "scores"


def test_an_added_row_is_an_orphan(study: Store) -> None:
    _change(study, "INSERT INTO claims (claim, verdict) VALUES ('rag_is_magic', 'replicated')")
    found = _one(audit(study), "rows")
    assert (found.kind, found.table, found.keys) == ("orphaned", "claims", ("claim=rag_is_magic",))


def test_a_dropped_table(study: Store) -> None:
    _change(study, "DROP TABLE trials")
    found = _one(audit(study), "rows")
    assert (found.kind, found.table) == ("missing", "trials")
    assert found.count == 2 * 5


def test_without_its_lineage_the_database_has_no_chains(study: Store) -> None:
    _change(study, "DROP TABLE lineage")
    verdict = audit(study)
    assert _one(verdict, "rows").table == "lineage"
    assert "cannot be followed" in _one(verdict, "chains").detail


def test_a_database_that_the_lake_left_behind_still_is_what_was_written(study: Store) -> None:
    synthetic.publish(
        study,
        Cell("articles", ("rivers",)),
        {"articles": (Article, [synthetic.article(0, "2")]), "exclusions": (Article, [])},
    )
    before = audit(study)
    assert not before.broken
    assert before.stale
    _change(study, "UPDATE answers SET correct = NOT correct WHERE question_id = 'q-rivers-0'")
    after = audit(study)
    assert [(f.kind, f.table) for f in after.broken] == [("changed", "answers")]
    assert after.stale == before.stale


def test_a_damaged_list_of_digests_is_the_files_own_finding(study: Store) -> None:
    path = study.path(Cell("results"), "rows.parquet")
    path.write_bytes(path.read_bytes()[:-40])
    verdict = audit(study)
    (found,) = verdict.findings
    assert (found.artefact, found.kind) == ("results", "changed")
    assert found.file.endswith("rows.parquet")
    assert verdict.rows == 0


@pytest.mark.parametrize("how", ["gone", "no database"])
def test_a_database_that_cannot_be_read(study: Store, how: str) -> None:
    path = study.root / DATABASE
    path.unlink()
    if how == "no database":
        path.write_bytes(b"x" * 5000)
    (found,) = audit(study).findings
    kind = "missing" if how == "gone" else "changed"
    assert (found.artefact, found.kind) == (DATABASE, kind)
    assert "built from the lake" in found.mend


def test_lost_requests_are_told_with_their_own_mend(lake: Store) -> None:
    _change(lake, "DELETE FROM generations")
    (found,) = audit(lake).findings
    assert (found.area, found.kind) == ("chains", "missing")
    assert "not in table generations" in found.detail
    assert "llm_ledger" in found.mend


def test_chunks_of_a_revision_that_is_gone_are_stale_not_broken(lake: Store) -> None:
    _change(
        lake,
        "UPDATE artefacts SET logical_version = 'newer' WHERE artefact = 'articles/rivers'",
        "UPDATE articles SET revision_id = '2' WHERE article_id = 'article0'",
    )
    verdict = audit(lake)
    assert not verdict.broken
    found = _one(verdict, "chains")
    assert (found.artefact, found.kind) == ("chunks/rivers", "stale")
    assert 0 < found.answers == verdict.answers - verdict.whole


def test_a_damaged_block_is_no_row_that_is_gone(study: Store) -> None:
    database = study.root / DATABASE
    blocks = "SELECT block_id FROM pragma_storage_info('answers') WHERE block_id >= 0"
    block = min(_rows(study, blocks))[0]
    with database.open("r+b") as handle:
        # Three headers, then blocks of 256 KiB, each with its checksum in front.
        handle.seek(3 * 4096 + block * 256 * 1024 + 100)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 0xFF]))
    told = [f for f in audit(study).findings if f.table == "answers" and f.area == "rows"]
    assert [(f.artefact, f.kind) for f in told] == [(DATABASE, "changed")]
    assert "table answers cannot be read: " in told[0].detail
    assert "gone" not in told[0].detail


def test_without_digests_answers_are_compared_with_the_lake(lake: Store) -> None:
    base = "answers_base/rivers/tiny"
    _change(
        lake,
        "DELETE FROM answers WHERE answer_id IN (SELECT child_id FROM lineage "
        f"WHERE child_kind = 'answer' AND parent_id = '{base}')",
    )
    lacking = _one(audit(lake), "rows")
    assert (lacking.kind, lacking.table) == ("missing", "answers")
    assert base in lacking.detail
    shutil.rmtree(lake.lake / base)
    shutil.rmtree(lake.lake / "answers_rag")
    found = _one(audit(lake), "rows")
    assert (found.artefact, found.kind, found.table) == (DATABASE, "orphaned", "answers")


def test_views_and_added_tables_are_named(study: Store) -> None:
    assert audit(study).ok
    _change(
        study,
        "CREATE OR REPLACE VIEW table2 AS SELECT 1 AS corpus",
        "DROP VIEW rag_errors",
        "CREATE VIEW better AS SELECT 2",
        "CREATE TABLE extra AS SELECT 3",
    )
    found = [(f.kind, f.detail.partition(":")[0]) for f in _of(audit(study), "rows")]
    assert sorted(found) == [
        ("changed", "view table2"),
        ("missing", "view rag_errors"),
        ("orphaned", "table extra (1 rows) is in no artefact"),
        ("orphaned", "view better"),
    ]


def test_the_version_of_the_rows_follows_numbers_and_not_who_made_them(
    study: Store, tmp_path: Path
) -> None:
    versions: list[str] = []
    for number, statement in enumerate(
        (
            "SELECT 1",
            "UPDATE artefacts SET run_id = 'another'",
            "UPDATE models SET knowledge_cutoff = '2031-04-30'",
        )
    ):
        _change(study, statement)
        with duckdb.connect(str(study.root / DATABASE)) as connection:
            write_digests(connection, tmp_path / f"{number}.parquet")
        versions.append(content_version(tmp_path / f"{number}.parquet"))
    assert versions[0] == versions[1] != versions[2]
