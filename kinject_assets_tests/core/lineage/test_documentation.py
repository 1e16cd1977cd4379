"""`docs/lineage.md` says what there is, and its queries run."""

import re
from pathlib import Path

from kinject_assets.core.lineage.database import NODES
from kinject_assets.core.lineage.findings import KINDS
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store

PAGE = (Path(__file__).parents[3] / "docs" / "lineage.md").read_text(encoding="utf-8")


def test_every_kind_of_thing_and_of_finding_is_described() -> None:
    words = set(re.findall(r"[a-z_]+", PAGE))
    assert set(NODES) | set(KINDS) <= words


def test_every_query_of_the_page_runs(built: Store) -> None:
    queries = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
    assert queries
    for sql in queries:
        assert fetch(built.root / DATABASE, sql).rows
