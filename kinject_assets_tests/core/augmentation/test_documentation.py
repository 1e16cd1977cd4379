"""`docs/augmentation.md` says what the code does, and its query runs."""

import re
from pathlib import Path

from kinject_assets.core.augmentation.implications import SHORTEST
from kinject_assets.core.augmentation.question_answer import LEFT_OUT
from kinject_assets.core.augmentation.registry import PLUGINS
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.comparisons import FAMILIES
from kinject_assets.core.store import Store
from kinject_assets_tests.core.augmentation.test_facts import (
    DROPPED,
    KEPT,
    UNITS_FOUND,
    UNITS_SPELT,
)

PAGE = (Path(__file__).parents[3] / "docs" / "augmentation.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())


def test_every_augmentation_is_described_with_its_gates() -> None:
    for name, plugin in PLUGINS.items():
        assert f"| `{name}` | {plugin.texts} |" in PAGE
    described = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert described == [*PLUGINS, *PLUGINS]


def test_constants_are_declared() -> None:
    assert f"leave out more than {LEFT_OUT} of" in TEXT
    assert f"shorter than {SHORTEST} of" in TEXT
    assert f"{len(DROPPED)} sentences whose loss must be found" in TEXT
    assert f"{len(KEPT)} rewordings that lose nothing" in TEXT
    changed, found = UNITS_FOUND
    assert f"found in {found} of {changed} cases" in TEXT
    assert f"taken for another in none of {UNITS_SPELT}" in TEXT
    assert all(f"`{f.name}`" in PAGE for f in FAMILIES if f.name.startswith("aug_"))


def test_the_query_runs(built: Store) -> None:
    (sql,) = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
    assert fetch(built.root / DATABASE, sql).columns == ("corpus", "augmentation", "met", "scored")
