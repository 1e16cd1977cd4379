"""`docs/duckdb.md` names every table and column, and its queries run."""

import re
from pathlib import Path

from kinject_assets.core.results.catalogue import tables
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store

PAGE = (Path(__file__).parents[3] / "docs" / "duckdb.md").read_text(encoding="utf-8")


def test_every_table_and_column_is_described() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S))
    for name, table in tables().items():
        for column in table.columns:
            assert f"`{column}`" in sections[name], f"{name}.{column}"
        assert "Empty when:" in sections[name]


def test_every_query_of_the_page_runs(built: Store) -> None:
    queries = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
    assert len(queries) >= 10
    for sql in queries:
        assert fetch(built.root / DATABASE, sql).columns
