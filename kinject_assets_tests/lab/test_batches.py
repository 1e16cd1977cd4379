"""The lab's Batch API, spoken to by OpenAI's client."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from kinject_assets import config
from kinject_assets.core.augmentation.prompts import PARAPHRASE
from kinject_assets.core.llm.quoting import quote
from kinject_assets.lab.server import running
from kinject_assets.lab.writer import MODEL

TEXT = "Abric led the Balan Accord. The Balan Accord drew 33 guests."


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    with running(config.Lab()) as address:
        yield address


@pytest.fixture
def client(lab: str) -> openai.OpenAI:
    httpx.delete(f"{lab}/lab/faults")
    httpx.delete(f"{lab}/lab/stats")
    return openai.OpenAI(base_url=f"{lab}/v1", api_key="none", max_retries=0, timeout=5)


def line(custom_id: str, **fields: Any) -> dict[str, Any]:
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": PARAPHRASE},
            {"role": "user", "content": quote("passage", TEXT)},
        ],
        "seed": 1,
    }
    row = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return row | fields


def submit(client: openai.OpenAI, *rows: dict[str, Any] | str) -> Batch:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"ours": "x"},
    )


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    until = time.monotonic() + 20
    while batch.status in {"validating", "in_progress", "finalizing", "cancelling"}:
        assert time.monotonic() < until
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def counts(batch: Batch) -> tuple[int, int, int]:
    found = batch.request_counts
    assert found is not None
    return found.total, found.completed, found.failed


def lines(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(row) for row in client.files.content(file_id).content.splitlines()]


def test_a_file_comes_back_byte_by_byte(client: openai.OpenAI) -> None:
    content = '{"a": "zwölf \u2028 – \\r\\n"}\n\r\n--x\n\x00\n'.encode() + bytes(range(256))
    file = client.files.create(file=("ü.jsonl", content), purpose="batch")
    assert (file.bytes, file.purpose) == (len(content), "batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    with pytest.raises(openai.NotFoundError, match="No such File"):
        client.files.content("file-x")


def test_a_batch_is_answered_as_direct_requests_are(client: openai.OpenAI, lab: str) -> None:
    httpx.post(f"{lab}/lab/faults", json={"batch_seconds": 0.5})
    batch = submit(client, line("a"), line("b"), line("c", body={"model": "none"}))
    assert batch.status == "validating"
    assert batch.metadata == {"ours": "x"}
    done = ended(client, batch)
    assert done.status == "completed"
    assert done.completed_at is not None
    assert done.completed_at >= done.created_at
    assert counts(done) == (3, 2, 1)
    first, second = lines(client, done.output_file_id)
    assert (first["custom_id"], second["custom_id"]) == ("a", "b")
    direct = client.chat.completions.create(**line("a")["body"])
    for row in (first, second):
        assert row["response"]["status_code"] == 200
        said = row["response"]["body"]["choices"][0]["message"]["content"]
        assert said == direct.choices[0].message.content
    (bad,) = lines(client, done.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("c", 400)
    assert "messages" in bad["response"]["body"]["error"]["message"]


def test_lines_meet_faults_and_stand_in_the_file_of_errors(client: openai.OpenAI, lab: str) -> None:
    assert ended(client, submit(client, line("a"))).error_file_id is None
    httpx.post(f"{lab}/lab/faults", json={"rate": 0.5, "kinds": ["429", "malformed"], "seed": 2})
    patient = client.with_options(max_retries=20)
    done = ended(patient, submit(patient, *(line(f"{n}") for n in range(40))))
    good, bad = lines(patient, done.output_file_id), lines(patient, done.error_file_id)
    assert len(good) + len(bad) == 40
    assert counts(done) == (40, len(good), len(bad))
    assert {row["response"]["status_code"] for row in bad} == {429}
    texts = [row["response"]["body"]["choices"][0]["message"]["content"] for row in good]
    assert {text.endswith("}") for text in texts} == {True, False}, "some are malformed"


@pytest.mark.parametrize(
    ("rows", "code", "number"),
    [
        (["{"], "invalid_json_line", 1),
        ([line("a"), line("a")], "duplicate_custom_id", 2),
        ([line("a", url="/v1/embeddings")], "invalid_url", 1),
        ([], "empty_file", None),
    ],
)
def test_a_wrong_file_fails_the_batch_with_the_line(
    client: openai.OpenAI, rows: list[Any], code: str, number: int | None
) -> None:
    done = ended(client, submit(client, *rows))
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(e.code, e.line) for e in done.errors.data] == [(code, number)]
    assert done.output_file_id is None


def test_wrong_calls_are_refused(client: openai.OpenAI, lab: str) -> None:
    file = client.files.create(file=("a", b"{}"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="There are only batches for"):
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
    with pytest.raises(openai.BadRequestError, match="No such File"):
        client.batches.create(
            input_file_id="x", endpoint="/v1/chat/completions", completion_window="24h"
        )
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_x")
    assert httpx.post(f"{lab}/v1/files", content=b"x").status_code == 400
    assert httpx.post(f"{lab}/v1/batches", content=b"[").status_code == 400


def test_what_expires_or_is_cancelled_keeps_what_it_did(client: openai.OpenAI, lab: str) -> None:
    rows = [line(f"{n}") for n in range(10)]
    httpx.post(f"{lab}/lab/faults", json={"batch_seconds": 1, "batch_window": 0.5})
    expired = ended(client, submit(client, *rows))
    httpx.post(f"{lab}/lab/faults", json={"batch_seconds": 2})
    batch = submit(client, *rows)
    while counts(client.batches.retrieve(batch.id))[1] < 2:
        time.sleep(0.02)
    assert client.batches.cancel(batch.id).status == "cancelling"
    cancelled = ended(client, batch)
    for done, status in ((expired, "expired"), (cancelled, "cancelled")):
        assert done.status == status
        good, left = lines(client, done.output_file_id), lines(client, done.error_file_id)
        assert len(good) + len(left) == 10
        assert {row["error"]["code"] for row in left} == {f"batch_{status}"}
        assert all(row["response"] is None for row in left)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_batches_are_listed_newest_first_page_by_page(client: openai.OpenAI) -> None:
    made = [submit(client, line("a")).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)][:5] == made[::-1]
    assert len(client.batches.list(limit=2).data) == 2
