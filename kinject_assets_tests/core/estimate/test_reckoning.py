"""The whole estimate: what it warns of, how it is kept and compared, and what is still open."""

import json
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Profile, home, load_profile, shipped
from kinject_assets.core.estimate import estimate, keep_estimate
from kinject_assets.core.estimate.reckoning import (
    ESTIMATE,
    Compared,
    Estimate,
    compare,
    kept_estimate,
    measured_speeds,
    spent_totals,
    still_open,
)
from kinject_assets.core.estimate.spent import anything, read_spent
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.plan import Plan
from kinject_assets.core.schema import Answer
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.estimate.conftest import ProfileOf, make_text, publish


def reckon(profile: Profile, store: Store) -> Estimate:
    return estimate(profile, store, read_spent(store, profile.llm.prices)[0], within=5)


def warnings(profile: Profile, store: Store) -> str:
    return "\n".join(reckon(profile, store).warnings)


def ask(store: Store, purpose: str = "question", tokens: int = 100) -> None:
    """Pays for an answer."""
    ledger = Ledger(store.lake / "llm_ledger")
    sent = ledger.intend(
        f"{purpose} {time.time_ns()}",
        purpose=purpose,
        model="gpt-4o-mini",
        attempt=0,
        input_tokens=1,
        max_output_tokens=1,
    )
    ledger.received(
        sent,
        text="{}",
        finish_reason="stop",
        refusal="",
        input_tokens=tokens,
        output_tokens=tokens,
        seconds=1.0,
    )


# --- warnings


def test_a_sound_profile_is_warned_of_nothing(profile_of: ProfileOf, store: Store) -> None:
    assert warnings(profile_of(), store) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llm": {"model": "nobody-knows"}}, "Price unknown: add llm.prices"),
        ({"llm": {"model": "gpt-4", "budget_usd": 0.5}}, "and llm.budget_usd is 0.50"),
        ({"scoring": {"shots": [0, 50], "k": [1]}}, "docs: scoring.shots asks for 50 solved"),
        ({"models": {"small": {"source": "some/model"}}}, "The size of small is unknown"),
        (
            {"models": {"small": {"source": "some/model", "parameters": 9_000_000_000}}},
            "small: full training takes 144 GB of GPU memory without activations, and a GPU of "
            "`hardware` has 80 GB",
        ),
        (
            {"models": {"small": {"source": "some/model-30b"}}},
            "small: scoring takes 120 GB of GPU memory without activations",
        ),
        (
            {"models": {"small": {"source": "some/model", "parameters": 10**15}}},
            "Set KINJECT_HOME to a folder on a larger disk",
        ),
        (
            {
                "contact": "me@localhost",
                "corpora": {"docs": {"source": {"kind": "wiki", "titles": ["A mill"]}}},
            },
            "Not counted anywhere, since nobody knows how large they are: docs",
        ),
    ],
)
def test_what_is_amiss_is_said_with_its_mend(
    profile_of: ProfileOf, store: Store, changes: dict[str, Any], expected: str
) -> None:
    assert expected in warnings(profile_of(**changes), store)


def test_what_an_estimate_reckons_with_makes_nothing_stale(
    profile_of: ProfileOf, store: Store
) -> None:
    plain = profile_of()
    source = {"kind": "files", "folder": "docs"}
    changed = profile_of(
        corpora={"docs": {"source": source, "expected_chunks": 3}},
        models={"small": {"source": "some/model-100m", "parameters": 5}},
        hardware={"tflops": 1, "gpus": 4},
    )
    before, after = Plan(plain, store), Plan(changed, store)
    assert before.cells == after.cells
    for cell in before.cells:
        assert before.config(cell) == after.config(cell), cell


def test_an_unknown_price_is_never_nothing(profile_of: ProfileOf, store: Store) -> None:
    found = reckon(profile_of(llm={"model": "nobody-knows"}), store)
    assert found.usd is None
    assert found.totals()["language model: USD"] is None
    assert sum(row.count for row in found.requests) > 0


def test_an_unknown_model_leaves_the_hours_unknown(profile_of: ProfileOf, store: Store) -> None:
    found = reckon(profile_of(models={"small": {"source": "some/model"}}), store)
    assert found.gpu_hours is None
    assert found.totals()["train: seconds"] is None
    assert found.totals()["embed: seconds"] is not None


# --- kept and compared


def test_an_estimate_is_kept_until_something_is_spent(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    path = store.root / ESTIMATE
    assert keep_estimate(profile, store) == path
    first = json.loads(path.read_text())
    # Nothing was spent: the documents may change before anything is.
    (profile.folder / "docs" / "doc0.txt").unlink()
    assert keep_estimate(profile, store) == path
    second = json.loads(path.read_text())
    assert second["totals"]["question: requests"] < first["totals"]["question: requests"]
    ask(store)
    (profile.folder / "docs" / "doc1.txt").unlink()
    assert keep_estimate(profile, store) == path
    assert json.loads(path.read_text()) == second


def test_without_one_it_is_kept_even_after_the_start(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    make_text(profile, store)
    keep_estimate(profile, store)
    kept = kept_estimate(profile, store)
    assert kept is not None
    assert kept.artefacts == 2


def test_what_was_spent_stands_beside_it(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    keep_estimate(profile, store)
    kept = kept_estimate(profile, store)
    assert kept is not None
    assert kept.same_settings
    assert kept.artefacts == 0
    for _ in range(3):
        ask(store, tokens=1000)
    ask(store, purpose="another_purpose")
    make_text(profile, store)
    spent, _ = read_spent(store)
    rows = {row.what: row for row in compare(kept, spent)}
    asked = rows["question: requests"]
    assert (asked.estimated, asked.spent) == (kept.totals["question: requests"], 3)
    assert rows["another_purpose: requests"] == Compared("another_purpose: requests", None, 1)
    assert rows["paraphrase: requests"].ratio == 0
    money = rows["language model: USD"].spent
    assert money == pytest.approx((3100 * 0.15 + 3100 * 0.6) / 1e6)
    assert 0.5 < (rows["corpus: bytes"].ratio or 0) < 2
    assert "corpus: seconds" not in rows, "nothing was said of it"


def test_a_changed_profile_is_noticed(profile_of: ProfileOf, store: Store) -> None:
    keep_estimate(profile_of(), store)
    kept = kept_estimate(profile_of(exams={"keep": 1}), store)
    assert kept is not None
    assert not kept.same_settings


@pytest.mark.parametrize("content", ["", "[]", '{"totals": 3}', "null"])
def test_a_damaged_estimate_is_none(profile_of: ProfileOf, store: Store, content: str) -> None:
    store.root.mkdir(parents=True)
    (store.root / ESTIMATE).write_text(content)
    assert kept_estimate(profile_of(), store) is None


def test_a_run_is_never_stopped_by_its_estimate(profile_of: ProfileOf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert keep_estimate(profile_of(), Store(tmp_path / "file" / "mine")) is None


@pytest.mark.parametrize("name", shipped())
def test_keeping_is_quick_and_asks_nobody(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))
    profile = load_profile(name)
    store = Store(home(profile))
    began = time.process_time()
    path = keep_estimate(profile, store)
    assert time.process_time() - began < 1.0
    assert path is not None
    assert json.loads(path.read_text())["profile"] == profile.name


def test_reading_documents_for_it_takes_moments(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    text = (profile.folder / "docs" / "doc0.txt").read_text()
    for number in range(300):
        (profile.folder / "docs" / f"more{number}.txt").write_text(text * 20)
    began = time.process_time()
    path = keep_estimate(profile, store)
    assert time.process_time() - began < 1.0
    assert path is not None
    (size,) = json.loads(path.read_text())["corpora"]
    assert size["articles"]["value"] == pytest.approx(306, abs=5)
    assert "of 306 documents were cut" in size["note"]


# --- open, measured


def test_what_is_open_is_what_is_not_complete(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    nothing = still_open(Plan(profile, store), reckon(profile, store))
    assert nothing.cells == nothing.of == len(Plan(profile, store).cells)
    make_text(profile, store)
    found = reckon(profile, store)
    left = still_open(Plan(profile, store), found)
    assert left.cells == left.of - 2
    assert left.requests == sum(row.count + row.again for row in found.requests)
    assert left.usd == pytest.approx(found.usd)
    assert left.bytes < nothing.bytes


def test_speeds_are_those_of_what_was_made(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    make_text(profile, store)
    publish(profile, store, Cell("answers_base", ("docs", "small")), [], Answer)
    spent, published = read_spent(store)
    found = reckon(profile, store)
    speeds = measured_speeds(found, spent, published)
    assert set(speeds) == {"score"}
    tokens = next(row.forward for row in found.work if row.cell == "answers_base/docs/small")
    manifest = published[Cell("answers_base", ("docs", "small"))]
    took = datetime.fromisoformat(manifest.finished_at) - datetime.fromisoformat(
        manifest.started_at
    )
    assert speeds["score"] == pytest.approx(tokens / took.total_seconds())


def test_nothing_is_spent_in_an_empty_home(profile_of: ProfileOf, store: Store) -> None:
    spent, published = read_spent(store)
    assert not anything(store)
    assert published == {}
    assert {value for value in spent_totals(spent).values() if value} == set()
    reckon(profile_of(), store)
    assert not store.root.exists(), "looking leaves nothing behind"
    assert datetime.fromisoformat(reckon(profile_of(), store).made_at) <= datetime.now(UTC)
