import threading
from pathlib import Path

import pytest

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.llm.prices import cost


def _intend(ledger: Ledger, key: str, attempt: int = 0) -> str:
    return ledger.intend(
        key,
        purpose="question",
        model="gpt-4o",
        attempt=attempt,
        input_tokens=1000,
        max_output_tokens=500,
    )


def _receive(ledger: Ledger, key: str, text: str) -> str:
    generation_id = _intend(ledger, key)
    ledger.received(
        generation_id,
        text=text,
        finish_reason="stop",
        refusal="",
        input_tokens=200,
        output_tokens=100,
        seconds=1.5,
    )
    return generation_id


def test_answers_survive_reopening_with_a_torn_last_line(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    _receive(first, "a", "zwölf – “x”\u2028y")
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("ab") as handle:
        handle.write(b'{"row": "intent", "id": "torn')

    again = Ledger(tmp_path)

    found = again.answer("a")
    assert found is not None
    assert found.text == "zwölf – “x”\u2028y"
    assert again.answer("b") is None
    _receive(again, "b", "later")
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert Ledger(tmp_path).answer("b") is not None


def test_a_damaged_line_within_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    _receive(Ledger(tmp_path), "a", "text")
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(b"not json\n" + path.read_bytes())
    with pytest.raises(BrokenArtefact, match=rf"{path.name}, line 1"):
        Ledger(tmp_path)


def test_generations_have_states_and_costs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    _receive(ledger, "a", "text")
    for paid in (False, True):
        ledger.failed(_intend(ledger, "b"), status=None, why="why", possibly_paid=paid, seconds=0.1)
    _intend(ledger, "c", attempt=2)

    rows = ledger.generations()

    assert [row.state for row in rows] == ["received", "failed", "failed", "in flight"]
    received, upper = cost("gpt-4o", 200, 100), cost("gpt-4o", 1000, 500)
    assert [row.cost_usd for row in rows] == [received, 0.0, upper, upper]
    assert rows[3].attempt == 2
    assert len({row.generation_id for row in rows}) == 4
    assert all(row.created_at.tzinfo is not None for row in rows)
    assert rows == Ledger(tmp_path).generations()
    assert ledger.spent() == pytest.approx(sum(row.cost_usd or 0 for row in rows))
    assert ledger.spent({"gpt-4o": (0, 0)}) == 0


def test_two_processes_that_send_the_same_request_get_two_generations(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    assert _receive(first, "a", "one") == _receive(second, "a", "two")
    rows = Ledger(tmp_path).generations()
    assert len({row.generation_id for row in rows}) == 2


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    def work(n: int) -> None:
        for i in range(10):
            _receive(ledger, f"{n}-{i}", f"text {n}-{i}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    again = Ledger(tmp_path)
    for n in range(4):
        for i in range(10):
            found = again.answer(f"{n}-{i}")
            assert found is not None
            assert found.text == f"text {n}-{i}"


def test_a_profile_price_goes_before_the_table() -> None:
    assert cost("gpt-4o", 1_000_000, 1_000_000, {"gpt-4o": (1.0, 2.0)}) == 3.0
    assert cost("mine", 1, 1) is None
    assert cost("mine", 1_000_000, 0, {"mine": (0, 0)}) == 0.0
