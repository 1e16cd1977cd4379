"""Rows for terminals of any width, and for programs row by row."""

import csv
import io
import json
import tracemalloc
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.rendering import NARROWEST, rendered, text_table
from kinject_assets.core.results.tables import (
    SHOWN,
    TOO_MANY,
    QueryError,
    answer,
    format_tables,
    published_text,
    rules_text,
)
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results.fixtures import REFERENCES

LONG = " ".join(f"word{i}" for i in range(30))


def test_columns_stand_side_by_side_where_they_fit() -> None:
    assert text_table(("a", "n"), [("x", 1), ("y", 10)], 80).splitlines() == [
        "a   n",
        "-  --",
        "x   1",
        "y  10",
    ]


def test_the_widest_columns_yield_first() -> None:
    text = text_table(("id", "first", "second"), [("abc", LONG, LONG)], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].startswith("id")
    assert " ".join(text.split()).count("word29") == 2


def test_a_row_is_a_block_where_columns_do_not_fit() -> None:
    columns = ("key", *(f"column_{i}" for i in range(8)))
    text = text_table(columns, [("a", *["some words"] * 8), ("b", *[None] * 8)], 60)
    lines = text.splitlines()
    assert lines[:3] == ["-- 1 --", "key       a", "column_0  some words"]
    assert lines[10:12] == ["-- 2 --", "key       b"]
    assert text_table(columns, [], 60).startswith("no rows of key, column_0")


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.text(max_size=90), min_size=n, max_size=n), min_size=1)
    ),
    st.integers(40, 120),
)
def test_no_line_is_wider_than_the_terminal(rows: list[list[str]], width: int) -> None:
    columns = [f"c{i}" for i in range(len(rows[0]))]
    text = text_table(columns, rows, width)
    assert max(map(len, text.splitlines()), default=0) <= max(width, NARROWEST + 4)


def test_a_terminal_obeys_no_text() -> None:
    text = text_table(("t",), [("\x1b[31mred\x07\x9b1m",)], 80)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\x9b" not in text
    assert "red" in text


def test_rows_are_written_as_they_come() -> None:
    rows = [("a,b", 1.5, None, ["x"]), ('"', float("nan"), date(2031, 1, 2), Decimal("0.5"))]
    columns = ("t", "x", "d", "l")
    found = list(csv.reader(io.StringIO("\n".join(rendered(columns, rows, "csv")))))
    assert found == [list(columns), ["a,b", "1.5", "", '["x"]'], ['"', "", "2031-01-02", "0.5"]]
    assert json.loads("\n".join(rendered(columns, rows, "json"))) == [
        {"t": "a,b", "x": 1.5, "d": None, "l": ["x"]},
        {"t": '"', "x": None, "d": "2031-01-02", "l": 0.5},
    ]
    assert "\n".join(rendered(columns, [], "json")) == "[]"
    assert list(rendered(("a",), [("x|y",)], "markdown")) == ["| a |", "|---|", "| x\\|y |"]


def test_many_rows_need_little_memory(built: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinject_assets.core.results.tables.BATCH", 500)
    written = 0

    def write(text: str) -> None:
        nonlocal written
        written += text.count("\n") + 1

    tracemalloc.start()
    try:
        sql = "SELECT range AS n, 'some text' AS t FROM range(20_000)"
        assert answer(built.root / DATABASE, sql, "csv", write) == ""
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written == 20_001
    assert peak < 2**20, "a batch of rows is held at a time"


def test_text_shows_the_first_rows_and_says_so(built: Store) -> None:
    written: list[str] = []
    database = built.root / DATABASE
    sql = f"SELECT range AS n FROM range({SHOWN + 5})"
    assert answer(database, sql, "text", written.append) == TOO_MANY
    assert len(written[0].splitlines()) == SHOWN + 2
    assert answer(database, f"{sql} WHERE n < 5", "text", written.append) == ""


def test_a_wrong_statement_is_refused_before_anything_is_written(built: Store) -> None:
    written: list[str] = []
    with pytest.raises(QueryError):
        answer(built.root / DATABASE, "SELECT nothing FROM scores", "csv", written.append)
    assert written == []


@pytest.mark.parametrize("width", [60, 80, 100])
def test_tables_and_claims_fit_the_terminal(built: Store, width: int) -> None:
    for text in (
        format_tables(built.root / DATABASE, width=width),
        rules_text(width=width),
        published_text(REFERENCES, width=width),
    ):
        assert max(map(len, text.splitlines())) <= width


def test_a_narrow_terminal_gets_the_same_cells(built: Store) -> None:
    database = built.root / DATABASE
    wide, narrow = format_tables(database), format_tables(database, width=70)
    assert wide == format_tables(database, width=200)
    for cell in ("0.267 [0.17, 0.39]", "base_rag"):
        assert cell in wide
        assert cell in narrow


def test_what_is_nested_is_plain_all_the_way_down() -> None:
    row = ([date(2031, 5, 1), None], [1.5, float("nan"), [float("-inf")]], {"at": Decimal("0.5")})
    names = ("days", "numbers", "struct")
    (read,) = json.loads("\n".join(rendered(names, [row], "json")))
    assert read == {
        "days": ["2031-05-01", None],
        "numbers": [1.5, None, [None]],
        "struct": {"at": 0.5},
    }
    text = "\n".join(rendered(names, [row], "csv"))
    (fields,) = csv.DictReader(io.StringIO(text))
    assert {name: json.loads(value) for name, value in fields.items()} == read
