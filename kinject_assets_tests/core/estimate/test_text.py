"""What `kinject plan` prints: narrow, complete, and the same in every format."""

import csv
import io
import json
from pathlib import Path

import pytest

from kinject_assets.config import Profile, home, load_profile, shipped
from kinject_assets.core.estimate import keep_estimate
from kinject_assets.core.estimate.assumptions import ASSUMPTIONS
from kinject_assets.core.estimate.sections import WIDTH
from kinject_assets.core.estimate.text import format_cells, format_plan
from kinject_assets.core.store import Store
from kinject_assets_tests.core.estimate.conftest import ProfileOf, make_text

REPOSITORY = Path(__file__).parents[3]


def at_home(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Profile, Store]:
    monkeypatch.setenv("KINJECT_HOME", str(folder))
    profile = load_profile(name)
    return profile, Store(home(profile))


@pytest.mark.parametrize("name", shipped())
def test_text_is_narrow(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = format_plan(*at_home(name, tmp_path, monkeypatch))
    wide = [line for line in text.splitlines() if len(line) > WIDTH and " " in line.strip("- ")]
    assert wide == []
    for title in ("Corpora", "Language model", "Computing", "Disk", "Taken for granted"):
        assert f"\n{title}" in text


def test_the_papers_plan_says_what_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(format_plan(*at_home("paper", tmp_path, monkeypatch)).split())
    assert "4 months x 120 chunks x 2 x 0.95 = 912" in text
    assert "USD 2.5 and 10 for a million tokens in and out, by the table of 2025-06-01" in text
    assert "NVIDIA H200" in text
    assert "(as of 2025-06-01)" in text
    assert "llm.budget_usd: 200.00 USD" in text


def test_long_names_are_wrapped_and_not_cut(profile_of: ProfileOf, store: Store) -> None:
    name = "a-name-that-goes-on-and-on-and-is-not-at-all-short-enough-here"
    profile = profile_of(
        corpora={name: {"source": {"kind": "files", "folder": "docs"}}},
        grid=[{"corpora": [name], "models": ["small"], "methods": ["base"]}],
    )
    text = format_plan(profile, store)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert name in text.replace("\n", "")


def test_unknown_numbers_are_marked(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(
        contact="me@localhost",
        corpora={"docs": {"source": {"kind": "wiki", "titles": ["A mill"]}}},
        llm={"model": "nobody-knows"},
    )
    text = format_plan(profile, store)
    assert "! Not counted anywhere" in text
    assert "Unknown, as the size of its corpora is." in text
    assert "0.00 USD" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("docs "))
    assert row.split()[1:] == ["?"] * 6


def test_a_part_that_is_known_is_the_least(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(
        contact="me@localhost",
        corpora={
            "docs": {"source": {"kind": "files", "folder": "docs"}},
            "wiki": {"source": {"kind": "wiki", "titles": ["A mill"]}},
        },
        grid=[{"corpora": ["docs", "wiki"], "models": ["small"], "methods": ["base"]}],
    )
    assert "At least: language model" in format_plan(profile, store)
    keep_estimate(profile, store)
    make_text(profile, store)
    assert "Not counted then, being unknown: wiki." in format_plan(profile, store)


def test_before_and_after_stand_side_by_side(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    assert "Before and after" not in format_plan(profile, store)
    keep_estimate(profile, store)
    assert "Before and after" not in format_plan(profile, store), "nothing was spent yet"
    make_text(profile, store)
    text = format_plan(profile, store)
    assert "when nothing was there" in text
    (row,) = (line for line in text.splitlines() if line.startswith("corpus: bytes"))
    assert 0.5 < float(row.split()[-1]) < 2
    assert "The profile has changed since" in format_plan(profile_of(exams={"keep": 1}), store)


def test_every_format_tells_the_same(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    keep_estimate(profile, store)
    make_text(profile, store)
    found = json.loads(format_plan(profile, store, "json"))
    rows = list(csv.DictReader(io.StringIO(format_plan(profile, store, "csv"))))
    numbers = {
        (row["part"], f"{row['name']}: {row['quantity']}"): row["value"]
        for row in rows
        if row["part"] in {"estimate", "spent"}
    }
    assert found["totals"]
    for what, value in found["totals"].items():
        assert float(numbers["estimate", what]) == pytest.approx(value)
    for row in found["compared"]:
        if row["spent"] is not None:
            assert float(numbers["spent", row["what"]]) == pytest.approx(row["spent"])
    assert {row["name"] for row in rows if row["part"] == "assumption"} == set(found["assumptions"])
    markdown = format_plan(profile, store, "markdown")
    assert "### Corpora" in markdown
    assert "| docs | 6 m |" in markdown
    # What is said of each assumption is for programs, too.
    assert all(row["reason"] for row in found["assumptions"].values())


def test_cells_are_listed_with_their_states(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    make_text(profile, store)
    text, complete = format_cells(profile, store)
    assert "complete  chunks/docs" in text.splitlines()
    assert "missing   questions/docs" in text.splitlines()
    assert complete.startswith("2 of ")
    rows = json.loads(format_cells(profile, store, "json")[0])
    assert {"state": "complete", "artefact": "chunks/docs"} in rows


def test_the_page_lists_every_assumption() -> None:
    page = (REPOSITORY / "docs" / "planning.md").read_text()
    for name, assumption in ASSUMPTIONS.items():
        assert f"| `{name}` | {assumption.value:g} | {assumption.reason} |" in page, name
