import threading
from pathlib import Path

import pytest

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.llm.ledger import Ledger, SentBatch
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


def test_ledgers_from_before_batches_are_read(tmp_path: Path) -> None:
    (tmp_path / "77-aa.jsonl").write_text(
        '{"row": "intent", "id": "1", "key": "k", "purpose": "question", "model": "gpt-4o", '
        '"attempt": 0, "input_tokens": 1000, "max_output_tokens": 500, '
        '"time": "2025-05-01T10:00:00+00:00"}\n'
        '{"row": "received", "id": "1", "text": "t", "finish_reason": "stop", "refusal": "", '
        '"input_tokens": 200, "output_tokens": 100, "seconds": 1.5, '
        '"time": "2025-05-01T10:00:02+00:00"}\n'
        '{"row": "intent", "id": "2", "key": "l", "purpose": "question", "model": "gpt-4o", '
        '"attempt": 0, "input_tokens": 1000, "max_output_tokens": 500, '
        '"time": "2025-05-01T10:00:03+00:00"}\n'
    )
    ledger = Ledger(tmp_path)
    assert [row.state for row in ledger.generations()] == ["received", "in flight"]
    assert ledger.spent() == cost("gpt-4o", 1200, 600)
    assert ledger.lost() == 1
    assert ledger.open_batches() == []


def _submit(ledger: Ledger, *keys: str) -> SentBatch:
    return ledger.intend_batch(
        [
            {
                "key": key,
                "purpose": "question",
                "model": "gpt-4o",
                "attempt": 0,
                "input_tokens": 1000,
                "max_output_tokens": 500,
            }
            for key in keys
        ],
        url="http://here",
        discount=0.5,
    )


ANSWER = {
    "text": "t",
    "finish_reason": "stop",
    "refusal": "",
    "input_tokens": 200,
    "output_tokens": 100,
}


def test_a_batch_is_collected_in_another_file_than_it_was_submitted_in(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    batch = _submit(first, "a", "b", "c")
    first.note_batch(batch.token, file_id="file-1")
    first.note_batch(batch.token, batch_id="batch_1")
    first.let_go(batch)
    full = cost("gpt-4o", 1000, 500) or 0

    second = Ledger(tmp_path)
    (found,) = second.open_batches()
    assert (found.file_id, found.batch_id, found.url) == ("file-1", "batch_1", "http://here")
    assert found.requests.keys() == {"a", "b", "c"}
    assert [row.state for row in second.generations()] == ["in batch"] * 3
    assert second.spent() == pytest.approx(3 * full / 2)
    assert second.lost() == 0
    assert second.hold(found)
    assert not second.hold(found), "once in a process"
    ids = {key: row["id"] for key, row in found.requests.items()}
    failure = {"status": 500, "why": "why", "possibly_paid": False}
    second.end_requests(found.token, 60.0, {ids["a"]: ANSWER, ids["b"]: failure})
    assert found.requests.keys() == {"c"}
    second.note_batch(found.token, ended="completed")
    second.let_go(found)

    for name in ("0-first.jsonl", "9-last.jsonl"):  # whichever file is read first
        second._file.rename(tmp_path / name)
        second._file = tmp_path / name
        third = Ledger(tmp_path)
        assert third.open_batches() == []
        states = {row.generation_id: row.state for row in third.generations()}
        assert states == {ids["a"]: "received", ids["b"]: "failed", ids["c"]: "in flight"}
        assert third.lost() == 1
        answer = third.answer("a")
        assert answer is not None
        assert (answer.text, answer.generation_id) == ("t", ids["a"])
        half = (cost("gpt-4o", 200, 100) or 0) / 2
        assert third.spent() == pytest.approx(half + full / 2)
        row = next(row for row in third.generations() if row.state == "received")
        assert (row.cost_usd, row.seconds) == (pytest.approx(half), 60.0)


def test_a_reader_learns_what_others_have_written_since(tmp_path: Path) -> None:
    reader, writer = Ledger(tmp_path), Ledger(tmp_path)
    _receive(writer, "a", "one")
    assert reader.answer("a") is None
    reader.refresh()
    _receive(writer, "b", "two")
    reader.refresh()
    assert [reader.answer(key) is not None for key in "ab"] == [True, True]
    assert reader.generations() == writer.generations()


def test_the_answer_under_the_higher_limit_stays_the_latest(tmp_path: Path) -> None:
    early, late = Ledger(tmp_path), Ledger(tmp_path)
    _receive(early, "a", "cut")
    _receive(late, "a", "whole")
    early._file.rename(tmp_path / "9-early.jsonl")
    late._file.rename(tmp_path / "0-late.jsonl")
    answer = Ledger(tmp_path).answer("a")
    assert answer is not None
    assert answer.text == "whole"
