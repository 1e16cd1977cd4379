import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from kinject_assets import config
from kinject_assets.core.augmentation.prompts import PARAPHRASE
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.llm.quoting import quote
from kinject_assets.lab.server import running, shaped
from kinject_assets.lab.writer import MODEL

TEXT = "Abric led the Balan Accord. The Balan Accord drew 33 guests."


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    with running(config.Lab()) as address:
        yield address


@pytest.fixture(autouse=True)
def no_faults(lab: str) -> None:
    httpx.delete(f"{lab}/lab/faults")


def _chat(lab: str, **fields: Any) -> ChatCompletion:
    client = openai.OpenAI(base_url=f"{lab}/v1", api_key="none", max_retries=0, timeout=0.5)
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": PARAPHRASE},
            {"role": "user", "content": quote("passage", TEXT)},
        ],
        "seed": 1,
    }
    return client.chat.completions.create(**(body | fields))


def _fault(lab: str, kind: str, **fields: object) -> None:
    body = {"rate": 1.0, "kinds": [kind], "delay": 2, **fields}
    httpx.post(f"{lab}/lab/faults", json=body).raise_for_status()


def test_the_real_client_is_answered_in_openais_form(lab: str) -> None:
    first, again, other = _chat(lab), _chat(lab), _chat(lab, seed=2)
    assert first.model == MODEL
    assert first.choices[0].finish_reason == "stop"
    assert "Abric" in (first.choices[0].message.content or "")
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content
    assert first.usage is not None
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    client = openai.OpenAI(base_url=f"{lab}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_json_schema_is_obeyed(lab: str) -> None:
    schema = {
        "type": "object",
        "properties": {"paraphrase": {"type": "string"}, "score": {"type": "integer"}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    text = _chat(lab, response_format=form).choices[0].message.content or ""
    assert '"score": 0' in text
    assert "Abric" in text


def test_a_limit_on_tokens_cuts(lab: str) -> None:
    answer = _chat(lab, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_wrong_requests_are_refused_with_their_status(lab: str) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4o") as missing:
        _chat(lab, model="gpt-4o")
    assert missing.value.code == "model_not_found"
    for wrong in ({"messages": []}, {"n": 2}, {"stream": True}, {"temperature": 9}):
        with pytest.raises(openai.BadRequestError) as refused:
            _chat(lab, **wrong)
        assert next(iter(wrong)) in (refused.value.param or "")
    assert httpx.post(f"{lab}/v1/chat/completions", content=b"{").status_code == 400
    assert httpx.get(f"{lab}/v1/chat/completions").status_code == 405


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("timeout", openai.APITimeoutError),
        ("cut", openai.APIConnectionError),
    ],
)
def test_faults_really_happen(lab: str, kind: str, error: type[Exception]) -> None:
    _fault(lab, kind, retry_after=0.25)
    with pytest.raises(error) as caught:
        _chat(lab)
    if isinstance(caught.value, openai.APIStatusError):
        assert caught.value.response.headers["Retry-After"] == "0.25"


def test_messages_can_be_spoiled(lab: str) -> None:
    _fault(lab, "wrong_schema")
    assert _chat(lab).choices[0].message.content == '{"unexpected": true}'
    _fault(lab, "malformed")
    assert not (_chat(lab).choices[0].message.content or "}").endswith("}")


def test_the_wiki_lags_on_demand(lab: str) -> None:
    _fault(lab, "maxlag", retry_after=5)
    answer = httpx.get(f"{lab}/w/api.php", params={"action": "query", "format": "json"})
    assert answer.json()["error"]["code"] == "maxlag"
    assert answer.headers["Retry-After"] == "5"
    assert _chat(lab).model == MODEL


def test_faults_follow_from_seed_and_counter(lab: str) -> None:
    def statuses() -> list[str]:
        body = {"rate": 0.5, "kinds": ["429", "500"], "seed": 4}
        httpx.post(f"{lab}/lab/faults", json=body)
        out = []
        for _ in range(12):
            try:
                _chat(lab)
                out.append("ok")
            except openai.APIStatusError as error:
                out.append(str(error.status_code))
        return out

    first = statuses()
    assert first == statuses()
    assert set(first) == {"ok", "429", "500"}


def test_faults_are_checked_and_counted(lab: str) -> None:
    refused = httpx.post(f"{lab}/lab/faults", json={"kinds": ["418"]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "kinds.0"
    httpx.delete(f"{lab}/lab/stats")
    _fault(lab, "500")
    with pytest.raises(openai.InternalServerError):
        _chat(lab)
    stats = httpx.get(f"{lab}/lab/stats").json()
    assert stats["requests"] == {"chat": 1, "wiki": 0}
    assert stats["faults"] == {"500": 1}
    assert httpx.get(f"{lab}/lab/health").json() == {"status": "ok"}


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(KinjectError, match=f"port {port}.*--port"), running(config.Lab(), port):
            pass


def test_any_value_is_bent_to_a_schema() -> None:
    schema = {
        "$defs": {"item": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
            "kind": {"enum": ["a", "b"]},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    }
    given = {"items": [{"n": 3, "x": 1}, "no"], "kind": "c", "other": 1}
    assert shaped(given, schema) == {"items": [{"n": 3}, {"n": 0}], "kind": "a", "maybe": ""}
