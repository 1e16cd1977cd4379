import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kinject_assets import config
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.lab.server import running, serving

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return KEY


@pytest.fixture
def lab() -> Iterator[str]:
    with running(config.Lab()) as address:
        yield address


def said(content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A completion of OpenAI's form."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


ScriptedAnswer = dict[str, Any] | Response | Callable[[Request], Response]


class Scripted:
    """A service that gives its answers in order, and then the last one for ever."""

    def __init__(self, *answers: ScriptedAnswer) -> None:
        self.answers: Sequence[ScriptedAnswer] = list(answers)
        self.bodies: list[dict[str, Any]] = []

    async def chat(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        answer = self.answers[0]
        self.answers = self.answers[1:] or self.answers
        if callable(answer) and not isinstance(answer, Response):
            answer = answer(request)
        return JSONResponse(answer) if isinstance(answer, dict) else answer

    @contextmanager
    def address(self) -> Iterator[str]:
        route = Route("/v1/chat/completions", self.chat, methods=["POST"])
        with serving(Starlette(routes=[route])) as address:
            yield f"{address}/v1"


@pytest.fixture
def client_for(tmp_path: Path) -> Iterator[Callable[..., LLMClient]]:
    """Builds a client on a scripted service, with a ledger in `tmp_path`."""
    with ExitStack() as stack:

        def build(service: Scripted, **settings: Any) -> LLMClient:
            address = stack.enter_context(service.address())
            llm = config.LLM(
                **{"model": "scripted", "timeout": 5.0, "attempts": 2, "temperature": 0} | settings
            )
            return LLMClient(llm, base_url=address, ledger=Ledger(tmp_path / "ledger"))

        yield build
