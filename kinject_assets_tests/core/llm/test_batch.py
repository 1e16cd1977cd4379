"""Batches against the lab's server: real files, real client, and processes that really die."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kinject_assets import config
from kinject_assets.core.errors import BudgetExceeded, LLMError
from kinject_assets.core.llm import batch as batches
from kinject_assets.core.llm.client import Failure, LLMClient, Received
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.schema import Generation
from kinject_assets.core.store import Cell
from kinject_assets.lab.server import running
from kinject_assets_tests.core.llm.asker import (
    POINTS,
    PRICES,
    paraphrase_asks,
    settings,
    texts,
)
from kinject_assets_tests.core.llm.conftest import KEY, Scripted, said
from kinject_assets_tests.core.test_plan import plan

COUNT = 10


def client_on(lab: str, folder: Path, **changes: Any) -> LLMClient:
    return LLMClient(settings(**changes), base_url=f"{lab}/v1", ledger=Ledger(folder))


def faults(lab: str, **fields: Any) -> None:
    httpx.post(f"{lab}/lab/faults", json=fields).raise_for_status()


def stats(lab: str) -> dict[str, Any]:
    return httpx.get(f"{lab}/lab/stats").json()


def states(ledger: Ledger) -> Counter[str]:
    return Counter(row.state for row in ledger.generations())


def asker(lab: str, folder: Path, point: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.asker", f"{lab}/v1", folder, str(COUNT), point],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(met: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


def submitted(folder: Path) -> Callable[[], object]:
    """Whether a batch's name is on disk."""
    return lambda: any('"batch_id"' in path.read_text() for path in folder.glob("*.jsonl"))


@contextmanager
def dies(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the lab's writer answers when asked one by one."""
    with running(config.Lab()) as lab:
        folder = tmp_path_factory.mktemp("undisturbed")
        client = LLMClient(
            settings(batch=False), base_url=f"{lab}/v1", ledger=Ledger(folder / "ledger")
        )
        return texts(client.ask_many(paraphrase_asks(COUNT)))


def test_a_batch_brings_what_direct_requests_bring_for_half_the_price(
    lab: str, tmp_path: Path
) -> None:
    asks = paraphrase_asks(COUNT)
    direct = client_on(lab, tmp_path / "direct", batch=False)
    batched = client_on(lab, tmp_path / "batched")
    assert batched.ask_many(asks) == direct.ask_many(asks)
    assert stats(lab)["batches"]["lines"] == COUNT == stats(lab)["requests"]["chat"]

    def comparable(row: Generation) -> tuple[Any, ...]:
        return row.generation_id, row.purpose, row.attempt, row.input_tokens, row.output_tokens

    ours, theirs = batched.ledger.generations(PRICES), direct.ledger.generations(PRICES)
    assert sorted(map(comparable, ours)) == sorted(map(comparable, theirs))
    full = {row.generation_id: row.cost_usd or 0 for row in theirs}
    assert all(row.cost_usd == pytest.approx(full[row.generation_id] / 2) for row in ours)
    assert batched.ledger.spent(PRICES) == pytest.approx(direct.ledger.spent(PRICES) / 2)

    # One ledger serves both ways: nothing is sent that either has an answer to.
    before = stats(lab)
    for folder, batch in (("direct", True), ("batched", False)):
        again = client_on(lab, tmp_path / folder, batch=batch)
        assert again.ask_many(asks) == direct.ask_many(asks)
    assert stats(lab) == before


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_process_leaves_its_batch_to_the_next(
    lab: str, tmp_path: Path, undisturbed: list[str], point: str
) -> None:
    killed = asker(lab, tmp_path, point)
    said_by_it = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, said_by_it

    client = client_on(lab, tmp_path)
    assert texts(client.ask_many(paraphrase_asks(COUNT))) == undisturbed

    assert stats(lab)["batches"]["created"] == 1
    assert stats(lab)["batches"]["lines"] == COUNT
    found = states(client.ledger)
    if point == "file written down":
        # The one moment in which a batch may be there or not; here it was not, and it is counted.
        assert found == {"received": COUNT, "in flight": COUNT}
        assert client.ledger.lost() == COUNT
    else:
        unpaid = COUNT if point in {"requests written down", "file uploaded"} else 0
        assert found == Counter(received=COUNT, failed=unpaid)
        assert client.ledger.lost() == 0
        received = [row for row in client.ledger.generations(PRICES) if row.state == "received"]
        assert client.ledger.spent(PRICES) == pytest.approx(sum(r.cost_usd or 0 for r in received))
    assert client.ledger.open_batches() == []


def test_killed_while_polling_the_batch_is_collected_by_the_next(
    lab: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    faults(lab, batch_seconds=2)
    with dies(asker(lab, tmp_path)):
        wait_for(submitted(tmp_path))
    between = Ledger(tmp_path)
    assert states(between) == {"in batch": COUNT}
    assert between.lost() == 0
    upper = between.spent(PRICES)

    client = client_on(lab, tmp_path)
    assert texts(client.ask_many(paraphrase_asks(COUNT))) == undisturbed
    assert stats(lab)["batches"]["created"] == 1
    assert states(client.ledger) == {"received": COUNT}
    assert 0 < client.ledger.spent(PRICES) < upper
    assert texts(client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT))) == undisturbed
    assert stats(lab)["batches"]["created"] == 1


def test_direct_requests_wait_for_a_batch_that_holds_them(
    lab: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    faults(lab, batch_seconds=1)
    with dies(asker(lab, tmp_path)):
        wait_for(submitted(tmp_path))
    client = client_on(lab, tmp_path, batch=False)
    assert texts(client.ask_many(paraphrase_asks(COUNT + 1)))[:COUNT] == undisturbed
    assert stats(lab)["requests"]["chat"] == 1
    assert states(client.ledger) == {"received": COUNT + 1}


def test_a_batch_of_a_living_process_is_left_to_it(
    lab: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    faults(lab, batch_seconds=2)
    owner = asker(lab, tmp_path)
    with dies(owner):
        wait_for(submitted(tmp_path))
        said_here: list[str] = []
        client = client_on(lab, tmp_path)
        client.report = lambda message, done=None, total=None: said_here.append(message)
        assert texts(client.ask_many(paraphrase_asks(COUNT))) == undisturbed
        assert f"a batch of process {owner.pid} on" in " ".join(said_here)
        told, _ = owner.communicate(timeout=30)
    assert json.loads(told) == undisturbed
    assert stats(lab)["batches"]["created"] == 1
    rows = [line for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum('"row": "received"' in row for row in rows) == COUNT


def test_a_batch_is_taken_over_when_its_process_dies(
    lab: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    faults(lab, batch_seconds=1)
    owner = asker(lab, tmp_path)
    with dies(owner):
        wait_for(submitted(tmp_path))
        owner.send_signal(signal.SIGSTOP)  # alive, and collects nothing
        death = threading.Timer(2.5, owner.kill)
        began = time.monotonic()
        death.start()
        client = client_on(lab, tmp_path)
        assert texts(client.ask_many(paraphrase_asks(COUNT))) == undisturbed
        assert time.monotonic() - began > 2.5
    assert stats(lab)["batches"]["created"] == 1
    assert states(Ledger(tmp_path)) == {"received": COUNT}


def test_ctrl_c_leaves_the_batch_and_says_so(
    lab: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    faults(lab, batch_seconds=20)
    process = asker(lab, tmp_path)
    wait_for(submitted(tmp_path))
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    faults(lab, batch_seconds=0)
    assert process.returncode != 0
    assert "goes on at" in told
    assert "run again to collect it" in told
    assert states(Ledger(tmp_path)) == {"in batch": COUNT}
    assert texts(client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT))) == undisturbed
    assert stats(lab)["batches"]["created"] == 1


def test_faults_in_lines_and_calls_lose_nothing_and_pay_nothing_twice(
    lab: str, tmp_path: Path
) -> None:
    asks = paraphrase_asks(100)
    kinds = ["429", "500", "timeout", "cut", "malformed", "wrong_schema"]
    faults(lab, rate=0.3, kinds=kinds, seed=3)
    client = client_on(lab, tmp_path, attempts=12, timeout=0.5)
    replies = client.ask_many(asks)
    assert all(isinstance(reply, Received) for reply in replies)

    found = stats(lab)
    assert {"429", "500", "malformed", "wrong_schema"} <= set(found["faults"])
    rows = client.ledger.generations()
    received = [row for row in rows if row.state == "received"]
    again = [row for row in received if row.attempt > 0]
    assert len(received) == len(asks) + len(again)
    assert len(again) == found["faults"]["malformed"] + found["faults"]["wrong_schema"]
    assert {row.state for row in rows} == {"received", "failed"}
    assert len(rows) == found["batches"]["lines"], "each line is one request, with its end"

    repeated = client_on(lab, tmp_path, attempts=12)
    assert repeated.ask_many(asks) == replies
    assert stats(lab) == found
    for path in tmp_path.rglob("*.jsonl"):
        assert KEY.encode() not in path.read_bytes()


def test_a_batch_whose_creation_was_not_acknowledged_is_found(lab: str, tmp_path: Path) -> None:
    def spoils(seed: int) -> list[bool]:
        return [random.Random(f"{seed}:{n}").random() < 0.3 for n in range(1, 8)]

    # The upload goes well, the answer to the second call is cut, what follows goes well.
    seed = next(s for s in range(1000) if spoils(s) == [False, True, *[False] * 5])
    faults(lab, rate=0.3, kinds=["cut"], seed=seed)
    client = client_on(lab, tmp_path)
    assert len(texts(client.ask_many(paraphrase_asks(2)))) == 2
    assert stats(lab)["faults"] == {"cut": 1}
    assert stats(lab)["batches"]["created"] == 1
    assert states(client.ledger) == {"received": 2}


def test_an_expired_batch_keeps_what_it_did_and_the_rest_goes_again(
    lab: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    faults(lab, batch_seconds=1, batch_window=0.6)
    with pytest.raises(LLMError, match=r"did not answer in 1 tries.*batch_expired"):
        client_on(lab, tmp_path, attempts=1).ask_many(paraphrase_asks(COUNT))
    found = states(Ledger(tmp_path))
    assert 0 < found["received"] < COUNT
    assert found["failed"] == COUNT - found["received"]
    assert Ledger(tmp_path).lost() == 0
    faults(lab)
    assert texts(client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT))) == undisturbed
    assert stats(lab)["batches"]["lines"] == COUNT


def test_a_cancelled_batch_stops_the_run_and_is_not_sent_again_by_itself(
    lab: str, tmp_path: Path, undisturbed: list[str]
) -> None:
    faults(lab, batch_seconds=2)

    def cancel() -> None:
        wait_for(lambda: stats(lab)["batches"]["lines"] >= 3)
        (found,) = httpx.get(f"{lab}/v1/batches").json()["data"]
        httpx.post(f"{lab}/v1/batches/{found['id']}/cancel").raise_for_status()

    person = threading.Thread(target=cancel)
    person.start()
    with pytest.raises(LLMError, match=r"batch_\w+ was cancelled at .* run again"):
        client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT))
    person.join()
    assert 3 <= states(Ledger(tmp_path))["received"] < COUNT
    faults(lab)
    assert texts(client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT))) == undisturbed
    assert stats(lab)["batches"]["lines"] == COUNT


def test_batches_shrink_to_what_the_account_may_queue(lab: str, tmp_path: Path) -> None:
    faults(lab, batch_tokens=1500)
    client = client_on(lab, tmp_path)
    assert len(texts(client.ask_many(paraphrase_asks(12)))) == 12
    assert stats(lab)["batches"]["created"] > 2
    assert stats(lab)["batches"]["lines"] == 12, "a batch that is too much costs nothing"
    assert states(client.ledger)["received"] == 12
    faults(lab, batch_tokens=10)
    with pytest.raises(LLMError, match="token_limit_exceeded"):
        client_on(lab, tmp_path, attempts=2).ask_many(paraphrase_asks(13))


def test_requests_are_split_into_batches(lab: str, tmp_path: Path) -> None:
    client = client_on(lab, tmp_path, batch_requests=4)
    assert len(texts(client.ask_many(paraphrase_asks(COUNT)))) == COUNT
    assert stats(lab)["batches"] == {
        "calls": stats(lab)["batches"]["calls"],
        "created": 3,
        "lines": COUNT,
    }


def test_a_file_never_grows_too_large(
    lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FILE_BYTES", 5000)
    assert len(texts(client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT)))) == COUNT
    sizes = [
        httpx.get(f"{lab}/v1/files/{batch['input_file_id']}").json()["bytes"]
        for batch in httpx.get(f"{lab}/v1/batches").json()["data"]
    ]
    assert len(sizes) > 1
    assert max(sizes) <= 5000


def test_the_budget_is_never_crossed_and_counts_batches_under_way(lab: str, tmp_path: Path) -> None:
    asks = paraphrase_asks(40)
    client = client_on(lab, tmp_path / "all", max_output_tokens=100)
    client.ask_many(asks)
    cost = client.ledger.spent(PRICES)

    budget = cost * 0.7
    poorer = client_on(lab, tmp_path / "some", max_output_tokens=100, budget_usd=budget)
    with pytest.raises(BudgetExceeded, match=r"llm\.budget_usd"):
        poorer.ask_many(asks)
    spent = poorer.ledger.spent(PRICES)
    assert 0.3 * budget < spent <= budget
    assert 0 < states(poorer.ledger)["received"] < len(asks)
    assert states(poorer.ledger).keys() == {"received"}
    richer = client_on(lab, tmp_path / "some", max_output_tokens=100, budget_usd=1.0)
    before = stats(lab)["batches"]["lines"]
    assert len(texts(richer.ask_many(asks))) == len(asks)
    assert stats(lab)["batches"]["lines"] - before == len(asks) - states(poorer.ledger)["received"]


def test_what_is_in_a_batch_is_bound_until_it_is_collected(lab: str, tmp_path: Path) -> None:
    faults(lab, batch_seconds=600)
    with dies(asker(lab, tmp_path)):
        wait_for(submitted(tmp_path))
    bound = Ledger(tmp_path).spent(PRICES)
    client = client_on(lab, tmp_path, batch=False, budget_usd=bound)
    others = paraphrase_asks(COUNT + 1)[COUNT:]
    with pytest.raises(BudgetExceeded):
        client.ask_many(others)
    assert states(client.ledger) == {"in batch": COUNT}


def test_a_bill_holds_what_was_collected_since(lab: str, tmp_path: Path) -> None:
    faults(lab, batch_seconds=1)
    with dies(asker(lab, tmp_path)):
        wait_for(submitted(tmp_path))
    rows = Ledger(tmp_path).generations()
    since = max(row.created_at for row in rows)
    time.sleep(0.01)
    client = client_on(lab, tmp_path)
    client.ask_many(paraphrase_asks(COUNT))
    bill = client.ledger.bill(since, PRICES)
    assert (bill["requests"], bill["answers"]) == (COUNT, COUNT)
    assert bill["cost_usd"] == pytest.approx(client.ledger.spent(PRICES))


def test_a_service_without_batches_says_what_to_set(
    client_for: Callable[..., LLMClient],
) -> None:
    client = client_for(Scripted(said({"word": "otter"})), batch=True, attempts=2)
    with pytest.raises(LLMError, match=r"no Batch API .*404.*llm\.batch: false"):
        client.ask_many(paraphrase_asks(2))
    assert states(client.ledger) == {"failed": 2}
    assert client.ledger.spent({"scripted": (1.0, 1.0)}) == 0
    assert client.ledger.open_batches() == []


def test_a_service_that_forgot_a_batch_is_asked_again_and_the_loss_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(config.Lab()) as first:
        port = int(first.rsplit(":", 1)[1])
        faults(first, batch_seconds=600)
        with dies(asker(first, tmp_path)):
            wait_for(submitted(tmp_path))
    with running(config.Lab(), port) as again:
        client = client_on(again, tmp_path)
        assert len(texts(client.ask_many(paraphrase_asks(COUNT)))) == COUNT
    assert "possibly paid, lost" in caplog.text
    assert states(client.ledger) == {"in flight": COUNT, "received": COUNT}
    assert client.ledger.lost() == COUNT


def test_a_batch_at_another_address_is_left_there(
    lab: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(config.Lab()) as other:
        faults(other, batch_seconds=20)
        with dies(asker(other, tmp_path)):
            wait_for(submitted(tmp_path))
        faults(other, batch_seconds=0)
        assert len(texts(client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT)))) == COUNT
        assert f"is at {other}/v1 and may answer {COUNT} requests" in caplog.text
        assert states(Ledger(tmp_path)) == {"in batch": COUNT, "received": COUNT}
        # Whoever asks there again collects it.
        wait_for(lambda: '"status":"completed"' in httpx.get(f"{other}/v1/batches").text)
        client_on(other, tmp_path).ask_many(paraphrase_asks(1))
    assert states(Ledger(tmp_path)) == {"received": 2 * COUNT}


def test_a_service_that_is_gone_while_a_batch_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PATIENCE", 0.5)
    with running(config.Lab()) as lab:
        faults(lab, batch_seconds=600)
        with dies(asker(lab, tmp_path)):
            wait_for(submitted(tmp_path))
    with pytest.raises(LLMError, match="Run again to go on from here"):
        client_on(lab, tmp_path).ask_many(paraphrase_asks(COUNT))
    assert states(Ledger(tmp_path)) == {"in batch": COUNT}, "it may still be there"


def test_a_line_that_is_refused_stops_everything_with_the_services_words(
    lab: str, tmp_path: Path
) -> None:
    client = client_on(lab, tmp_path, model="unknown", prices={})
    with pytest.raises(LLMError, match=r"404: The model `unknown` does not exist here"):
        client.ask_many(paraphrase_asks(2))
    assert states(client.ledger) == {"failed": 2}
    assert stats(lab)["batches"]["created"] == 1


def test_answers_of_no_use_are_asked_again_and_then_given_up(lab: str, tmp_path: Path) -> None:
    faults(lab, rate=1.0, kinds=["wrong_schema"])
    replies = client_on(lab, tmp_path, attempts=3).ask_many(paraphrase_asks(2))
    assert all(isinstance(reply, Failure) for reply in replies)
    assert "3 attempts" in str(replies[0])
    rows = Ledger(tmp_path).generations()
    assert sorted(row.attempt for row in rows) == [0, 0, 1, 1, 2, 2]


def test_batches_change_speed_and_money_but_no_result(tmp_path: Path) -> None:
    def decides(**llm: Any) -> dict[str, Any]:
        return plan(tmp_path, llm=llm).config(Cell("questions", ("docs",)))

    fields = {"batch": True, "batch_poll": 1, "batch_discount": 0.2, "batch_requests": 7}
    assert decides(**fields) == decides()
    assert decides(model="another") != decides()
