"""What will be asked of the language model: counts, overlap, tokens and money."""

from dataclasses import replace
from pathlib import Path

import pytest

from kinject_assets.config import Profile, load_profile
from kinject_assets.core.augmentation.registry import PLUGINS
from kinject_assets.core.estimate.assumptions import ASSUMPTIONS, Assumed
from kinject_assets.core.estimate.corpora import measure
from kinject_assets.core.estimate.requests import Requester, Requests
from kinject_assets.core.estimate.spent import FEWEST, Bill, read_spent
from kinject_assets.core.exams import prompts
from kinject_assets.core.exams.writing import WrittenQuestions
from kinject_assets.core.llm.asking import Ask, Asking
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.plan import Plan
from kinject_assets.core.store import Store
from kinject_assets_tests.core.estimate.conftest import ProfileOf, chunks_of, make_text


def requests(profile: Profile, store: Store, **bills: Bill) -> dict[str, Requests]:
    """By purpose, of the one corpus that there is."""
    return {row.purpose: row for row in every(profile, store, **bills)}


def every(profile: Profile, store: Store, **bills: Bill) -> list[Requests]:
    assume, plan = Assumed(), Plan(profile, store)
    materials = measure(plan, assume, within=5)
    return Requester(plan, materials, bills, assume).requests()


def test_each_chunk_is_asked_about_as_the_code_does(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(augmentation={"validation_chunks": 7, "validation_per_chunk": 3})
    _, chunks = chunks_of(profile)
    askable = sum(not chunk.small for chunk in chunks)
    assert askable < len(chunks)
    found = requests(profile, store)
    assert {purpose: row.count for purpose, row in found.items()} == {
        "question": askable,
        "question_selection": askable,
        "paraphrase": 2 * len(chunks),
        "validation_paraphrase": 7 * 3,
    }
    assert found["paraphrase"].again == round(2 * len(chunks) * 0.15)


def test_settings_decide_what_is_asked(profile_of: ProfileOf, store: Store) -> None:
    recipes = {
        "full.p01": None,
        "full.p03.qa": {"augmentation": "question_answer"},
        "full.p02.im": {"augmentation": "implications"},
    }
    cells = {"corpora": ["docs"], "models": ["small"], "recipes": list(recipes)}
    profile = profile_of(
        recipes=recipes, grid=[cells], exams={"verify": True, "per_chunk": 2, "keep": 2}
    )
    _, chunks = chunks_of(profile)
    found = requests(profile, store)
    assert "question_selection" not in found, "all that pass are kept"
    assert found["question_verification"].count == found["question"].count
    assert found["paraphrase"].count == len(chunks)
    assert found["question_answer"].count == 3 * len(chunks)
    assert found["implications"].count == 2 * len(chunks)


def test_prompts_are_those_that_are_sent(profile_of: ProfileOf, store: Store) -> None:
    # In the prompt alone, so that the schema is part of what can be measured.
    profile = profile_of(llm={"model": "gpt-4o-mini", "structure": "prompt"})
    _, chunks = make_text(profile, store)
    sent = 0
    for chunk in (chunk for chunk in chunks if not chunk.small):
        messages = prompts.writing(chunk, questions=4, options=4)
        body = Asking(Ask("question", messages, WrittenQuestions, 0), profile.llm).request.body
        sent += sum(len(message["content"]) for message in body["messages"])
    row = requests(profile, store)["question"]
    once = row.input_tokens * row.count / (row.count + row.again)
    assert once == pytest.approx(sent / 4, rel=0.02)


def test_what_was_measured_goes_before_assumptions(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    bill = Bill(requests=60, answers=60, first=50, answered_output_tokens=60 * 111)
    row = requests(profile, store, question=bill)["question"]
    assert row.again == round(row.count * 0.2)
    assert row.output_tokens == (row.count + row.again) * 111
    few = replace(bill, answers=FEWEST - 1, first=FEWEST - 1, requests=FEWEST)
    assert requests(profile, store, question=few) == requests(profile, store)


def test_only_chunks_with_too_many_good_questions_are_selected_from(
    profile_of: ProfileOf, store: Store
) -> None:
    bills = {
        "question": Bill(requests=100, answers=100, first=100, answered_output_tokens=100),
        "question_selection": Bill(requests=40, answers=40, first=40, answered_output_tokens=40),
    }
    found = requests(profile_of(), store, **bills)
    assert found["question_selection"].count == round(0.4 * found["question"].count)


def test_windows_that_overlap_are_asked_about_once(tmp_path: Path) -> None:
    """The lab's rolling window has two of the four months that come before it."""
    found = every(load_profile("lab"), Store(tmp_path))
    counts = {row.cell: row.count for row in found if row.purpose == "question"}
    assert counts["questions/events-2031-04"] == 4 * 30
    assert counts["questions/events-current"] == 0
    assert sum(counts.values()) == 3 * 40 + 4 * 30


def test_shared_chunks_are_asked_about_once(profile_of: ProfileOf, store: Store) -> None:
    source = {"kind": "files", "folder": "docs"}
    patterns = ["doc0.txt", "doc1.txt"]
    profile = profile_of(
        corpora={"docs": {"source": source}, "some": {"source": {**source, "patterns": patterns}}},
        grid=[{"corpora": ["docs", "some"], "models": ["small"], "methods": ["base"]}],
    )
    counts = {row.cell: row.count for row in every(profile, store) if row.purpose == "question"}
    assert counts["questions/docs"] > 0
    assert counts["questions/some"] == 0


def test_money_follows_the_profiles_prices_and_batches(profile_of: ProfileOf, store: Store) -> None:
    prices = {"mine": [10.0, 100.0]}
    row = requests(profile_of(llm={"model": "mine", "prices": prices}), store)["paraphrase"]
    assert row.usd == pytest.approx((10 * row.input_tokens + 100 * row.output_tokens) / 1e6)
    batch = {"model": "mine", "prices": prices, "batch": True, "batch_discount": 0.4}
    assert row.usd is not None
    cheaper = requests(profile_of(llm=batch), store)["paraphrase"]
    assert cheaper.usd == pytest.approx(0.6 * row.usd)
    unknown = requests(profile_of(llm={"model": "nobody-knows"}), store)
    assert {row.usd for row in unknown.values()} == {None}


def test_every_augmentation_has_an_assumed_length() -> None:
    assert {f"{name}_length" for name in PLUGINS} <= set(ASSUMPTIONS)


def test_an_augmentation_of_ones_own_is_as_long_as_a_paraphrase(
    profile_of: ProfileOf, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLUGINS, "mine", PLUGINS["paraphrase"])
    recipes = {"full.p02.mine": {"augmentation": "mine"}, "full.p02": None}
    cells = {"corpora": ["docs"], "models": ["small"], "recipes": list(recipes)}
    found = requests(profile_of(recipes=recipes, grid=[cells]), store)
    assert found["mine"].count == found["paraphrase"].count
    assert found["mine"].output_tokens == found["paraphrase"].output_tokens


def test_the_ledger_says_what_was_spent(store: Store) -> None:
    ledger = Ledger(store.lake / "llm_ledger")

    def send(key: str, attempt: int) -> str:
        return ledger.intend(
            key,
            purpose="question",
            model="gpt-4o-mini",
            attempt=attempt,
            input_tokens=500,
            max_output_tokens=1000,
        )

    for number, attempt in enumerate([0, 0, 1]):
        ledger.received(
            send(f"k{number}", attempt),
            text="{}",
            finish_reason="stop",
            refusal="",
            input_tokens=100,
            output_tokens=10,
            seconds=1.0,
        )
    ledger.failed(send("k3", 0), status=429, why="busy", possibly_paid=False, seconds=0.1)
    send("k4", 0)  # in flight: possibly paid
    spent, _ = read_spent(store)
    bill = spent.bills["question"]
    assert bill.usd == pytest.approx((800 * 0.15 + 1030 * 0.6) / 1e6)
    assert replace(bill, usd=None) == Bill(
        requests=4,
        unpaid=1,
        answers=3,
        first=2,
        input_tokens=800,
        output_tokens=1030,
        answered_output_tokens=30,
        usd=None,
    )
