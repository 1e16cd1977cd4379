"""What is made by itself when the text changes, and what waits for a person."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kinject_assets.config import Profile
from kinject_assets.core.carry import followers, out_of_date, ready
from kinject_assets.core.corpus.releases import FOLDER, FROZEN, RECORD, Release
from kinject_assets.core.plan import TABLES, Plan
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.made import make

NOW = datetime(2031, 5, 3, tzinfo=UTC)


def plan(root: Path, **changes: object) -> Plan:
    profile = Profile(
        **{
            "name": "mine",
            "contact": "tests@localhost",
            "clock": {"mode": "fixed", "now": NOW},
            "corpora": {
                "docs": {"source": {"kind": "files", "folder": "texts"}},
                "news-current": {"source": {"kind": "events", "categories": ["{year}-{month}"]}},
            },
            "models": {"small": {"source": "a"}},
            "recipes": {"full.p00": None},
            "grid": [
                {
                    "corpora": ["docs", "news-current"],
                    "models": ["small"],
                    "recipes": ["full.p00"],
                }
            ],
            **changes,
        }  # pyright: ignore[reportArgumentType]
    )
    return Plan(profile, Store(root))


def made_whole(grid: Plan) -> None:
    """Everything that the grid asks for, but for tables, which write files for people as well."""
    for cell in grid.cells:
        if cell.parts:
            make(grid, cell, prefixes={})


def names(cells: object) -> list[str]:
    return [str(cell) for cell in cells]  # pyright: ignore[reportGeneralTypeIssues]


def release(grid: Plan, month: str = "2031-04") -> str:
    """Freezes a month of the window."""
    key = f"news-{month}"
    folder = grid.store.lake / FOLDER / key
    folder.mkdir(parents=True)
    (folder / FROZEN).write_text('{"page_id": 1, "revision_id": 2, "title": "Albedo"}\n')
    record = Release(
        corpus="news-current",
        month=month,
        number=1,
        key=key,
        first_month="2031-01",
        version="v",
        revisions="v",
        frozen_sha256="v",
        pages=1,
        frozen_at=NOW.isoformat(),
    )
    (folder / RECORD).write_text(json.dumps(asdict(record)))
    return key


@pytest.fixture
def grid(tmp_path: Path) -> Plan:
    found = plan(tmp_path)
    made_whole(found)
    return found


def test_nothing_is_out_of_date_but_the_tables_that_are_not_there(grid: Plan) -> None:
    assert names(out_of_date(grid)) == list(TABLES)


def test_a_change_of_text_goes_down_to_base_and_rag_and_no_further(grid: Plan) -> None:
    make(grid, Cell("articles", ("docs",)), "changed")
    waiting = out_of_date(grid)
    assert names(waiting) == [
        "chunks/docs",
        "questions/docs",
        "embeddings/docs",
        "faiss_index/docs",
        "retrieved/docs",
        "answers_base/docs/small",
        "answers_rag/docs/small",
        "triage/docs",
        *TABLES,
    ]
    # One run prepares the corpus; answers wait until it is there, tables until those are.
    first = ready(grid, waiting)
    assert names(first) == names(waiting)[:5]
    for cell in first:
        make(grid, cell, "changed")
    second = ready(grid, out_of_date(grid))
    assert names(second) == ["answers_base/docs/small", "answers_rag/docs/small", "triage/docs"]
    for cell in second:
        make(grid, cell, "changed")
    assert names(ready(grid, out_of_date(grid)))[0] == "results"


def test_a_text_that_says_the_same_puts_nothing_out_of_date(grid: Plan) -> None:
    make(grid, Cell("articles", ("docs",)), "v")
    assert names(out_of_date(grid))[0] == "results"


def test_what_a_person_changed_in_the_profile_waits_for_a_person(tmp_path: Path) -> None:
    made_whole(plan(tmp_path))
    other = plan(tmp_path, exams={"per_chunk": 6}, chunking={"max_tokens": 100})
    assert other.state(Cell("questions", ("docs",))) == "stale"
    assert names(out_of_date(other)) == list(TABLES)
    make(other, Cell("articles", ("docs",)), "changed")
    waiting = names(out_of_date(other))
    assert not [name for name in waiting if "docs" in name], "nothing is made from what waits"


def test_a_corpus_that_was_never_made_waits_and_a_window_goes_on(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    assert names(out_of_date(grid)) == []
    make(grid, Cell("articles", ("docs",)))
    assert names(out_of_date(grid)) == []
    # A person who names it has it made.
    assert names(followers(grid, ["docs"]))[0] == "chunks/docs"
    make(grid, Cell("articles", ("news-current",)))
    waiting = names(out_of_date(grid))
    assert waiting[0] == "chunks/news-current"
    assert "answers_rag/news-current/small" in waiting
    assert waiting[-1] == "lineage_audit", "the tables follow the first answers"
    assert not any("docs" in name or "checkpoint" in name for name in waiting)


@pytest.mark.parametrize(
    ("rule", "trained"),
    [
        ("never", set()),
        ("releases", {"news-2031-04"}),
        ("always", {"docs", "news-current", "news-2031-04"}),
    ],
)
def test_training_follows_the_rule(tmp_path: Path, rule: str, trained: set[str]) -> None:
    grid = plan(tmp_path, refresh={"train": rule})
    made_whole(grid)
    key = release(grid)
    grid = plan(tmp_path, refresh={"train": rule})
    for corpus in ("docs", "news-current"):
        make(grid, Cell("articles", (corpus,)), "changed")
    waiting = out_of_date(grid)
    assert f"articles/{key}" in names(waiting)
    assert {c.parts[0] for c in waiting if c.asset == "checkpoint"} == trained
    assert {c.parts[0] for c in waiting if c.asset == "answers_ft_rag"} == trained
    chosen = followers(grid, ["news-current"])
    assert {c.parts[0] for c in chosen if c.parts} == {"news-current", key}
    assert {c.parts[0] for c in chosen if c.asset == "checkpoint"} == trained - {"docs"}


def test_a_damaged_cell_is_left_for_a_person(grid: Plan) -> None:
    cell = Cell("embeddings", ("docs",))
    manifest = grid.store.manifest(cell)
    assert manifest is not None
    (grid.store.folder(cell) / next(iter(manifest.files))).unlink()
    make(grid, Cell("articles", ("docs",)), "changed")
    waiting = names(out_of_date(grid))
    assert "embeddings/docs" not in waiting
    assert "retrieved/docs" not in waiting
    assert "answers_rag/docs/small" not in waiting
    assert "answers_base/docs/small" in waiting
