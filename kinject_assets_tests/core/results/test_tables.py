import csv
import io
import json
from pathlib import Path

import pytest

from kinject_assets.core.errors import BrokenArtefact, KinjectError, MissingArtefact
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import (
    QueryError,
    Result,
    format_tables,
    published_text,
    query,
    render,
    rules_text,
)
from kinject_assets.core.statistics.claims import RULES
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results.fixtures import REFERENCES


def test_text_fits_a_terminal_and_has_intervals(built: Store) -> None:
    text = format_tables(built.root / DATABASE)
    assert "Table 1" in text and "Table 2" in text
    assert "0.267 [0.17, 0.39]" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "\x1b" not in text


def test_machine_formats_hold_the_same_numbers(built: Store) -> None:
    database = built.root / DATABASE
    found = json.loads(format_tables(database, "json"))
    assert {r["task"] for r in found["table1"]} == {"rivers"}
    first, second = format_tables(database, "csv").split("\n\n")
    rows = list(csv.DictReader(io.StringIO(first)))
    assert [float(r["base_rag"]) for r in rows] == [r["base_rag"] for r in found["table1"]]
    assert second.startswith("model,base,base_low,base_high,base_rag")
    assert "| events-2031-04 | tiny | ft_par |" in format_tables(database, "markdown")


def test_queries_in_every_format(built: Store) -> None:
    database = built.root / DATABASE
    sql = "SELECT options, 1.5 AS x FROM questions ORDER BY question_id LIMIT 1"
    assert json.loads(query(database, sql, "json")) == [{"options": list("abcd"), "x": 1.5}]
    assert query(database, sql, "text").splitlines()[2].split("  ")[0] == "[a, b, c, d]"
    with pytest.raises(KinjectError, match="text, csv, json, markdown"):
        query(database, sql, "xml")


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM answers",
        "DROP TABLE answers",
        "SELECT * FROM read_csv('/etc/hostname')",
        "COPY answers TO 'answers.csv'",
        "ATTACH 'other.duckdb'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
    ],
)
def test_nothing_is_written_or_read_outside(built: Store, sql: str) -> None:
    before = (built.root / DATABASE).read_bytes()
    with pytest.raises(QueryError):
        query(built.root / DATABASE, sql)
    assert (built.root / DATABASE).read_bytes() == before


@pytest.mark.parametrize("sql", ["", "SELECT 1; SELECT 2", "SELEC 1", "SELECT nothing FROM scores"])
def test_wrong_statements_say_what_is_wrong(built: Store, sql: str) -> None:
    with pytest.raises(QueryError):
        query(built.root / DATABASE, sql)


def test_no_database_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="kinject run"):
        format_tables(tmp_path / DATABASE)


def test_a_broken_database_names_the_mend(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_text("not a database, though long enough to look like a file" * 99)
    with pytest.raises(BrokenArtefact, match="Delete it"):
        format_tables(tmp_path / DATABASE)


def test_long_text_is_wrapped_and_markdown_is_escaped() -> None:
    words = " ".join(f"word{i}" for i in range(40))
    result = Result(("name", "n"), [(words, 1), ("a|b\nc", None)])
    text = render(result, "text")
    assert " ".join(text.split()).count("word39") == 1
    assert "a\\|b c" in render(result, "markdown")
    assert render(Result(("a",), []), "text").splitlines() == ["a", "-"]


def test_declared_rules_need_no_results() -> None:
    declared = json.loads(rules_text("json"))
    assert [r["claim"] for r in declared] == [rule.claim for rule in RULES]
    assert [r["rule"] for r in declared] == [rule.rule for rule in RULES]
    text = rules_text()
    assert all(text.count(f"{rule.claim} ") == 1 for rule in RULES)
    assert text.count(" aggregation ") == len(RULES)
    assert max(map(len, text.splitlines())) <= 110


def test_published_tables_are_judged_and_their_facts_computed() -> None:
    text = published_text(REFERENCES)
    assert "30 of 30 rows" in text
    assert "RAG +11.95 %, FT +3.27 %, FT + RAG +10.49 %" in text
    assert "5, mean relative gain +8.29 %" in text
    assert "above RAG in 2 rows" in text
    assert text.count("replicated") == 6 and text.count("not tested") == 1
    found = json.loads(published_text(REFERENCES, "json"))
    assert found["facts"]["rag_is_best_k"] == 30
    assert len(found["claims"]) == len(RULES)
    assert "fact\n" in published_text(REFERENCES, "csv")
