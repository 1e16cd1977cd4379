"""The lab's server on loopback: a MediaWiki, a chat API, and faults on demand.

Paths: `/w/api.php` (MediaWiki's API), `/v1/chat/completions` and `/v1/models` (OpenAI's chat API,
answered by `lab.writer`, which works by rule), `/v1/files` and `/v1/batches` (its Batch API, in
`lab.batches`), `/lab/faults`, `/lab/stats`, `/lab/health`.
"""

import asyncio
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinject_assets import config
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.manifest import content_hash
from kinject_assets.lab import writer

if TYPE_CHECKING:
    from kinject_assets.lab.world import World

HOST = "127.0.0.1"
CHAT_PATH = "/v1/chat/completions"
WIKI_PATH = "/w/api.php"

FaultKind = Literal["429", "500", "timeout", "cut", "malformed", "wrong_schema", "maxlag"]

FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

CALL_KINDS: frozenset[str] = frozenset({"429", "500", "timeout", "cut"})
"""Faults of every path."""

_KINDS_AT: dict[str, frozenset[str]] = {
    CHAT_PATH: CALL_KINDS | {"malformed", "wrong_schema"},
    WIKI_PATH: CALL_KINDS | {"maxlag"},
}

_NAMES = {CHAT_PATH: "chat", WIKI_PATH: "wiki"}
"""Path -> name in the counts; calls of the Batch API count together."""

_SPOILED = (CHAT_PATH, WIKI_PATH, "/v1/files", "/v1/batches")
"""Beginnings of paths that are counted and get faults."""


class Faults(BaseModel):
    """Faults that the server really produces.

    Attributes:
        rate: Share of requests, and of lines of batches, with a fault.
        kinds: `429` and `500` as statuses; `timeout` hangs; `cut` closes within the body;
            `malformed` and `wrong_schema` spoil the message's JSON (chat only); `maxlag` as
            MediaWiki's error (wiki only).
        seed: The same seed gives the n-th request the same fault.
        retry_after: Seconds in the header `Retry-After`.
        delay: Seconds after which a `timeout` ends even if the client waits on.
        latency: Seconds that every answer takes, as of a service that is far away.
        batch_seconds: Seconds that a batch takes.
        batch_window: Seconds after which a batch expires with what it has done until then.
        batch_tokens: Input tokens that batches under way may have together; more fail.
    """

    model_config = ConfigDict(extra="forbid")

    rate: float = Field(default=0.0, ge=0, le=1)
    kinds: list[FaultKind] = list(FAULT_KINDS)
    seed: int = 1
    retry_after: float = Field(default=0.01, ge=0)
    delay: float = Field(default=30.0, ge=0, le=600)
    latency: float = Field(default=0.0, ge=0, le=60)
    batch_seconds: float = Field(default=0.0, ge=0)
    batch_window: float = Field(default=86400.0, gt=0)
    batch_tokens: int | None = Field(default=None, ge=1)


class State:
    """Counters and faults of one server."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.seen = 0
        self.requests: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self.produced: Counter[str] = Counter()

    def draw(self, possible: Collection[str]) -> str | None:
        """The fault of the next request, or line of a batch, if it gets one."""
        self.seen += 1
        rng = random.Random(f"{self.faults.seed}:{self.seen}")
        kinds = [kind for kind in self.faults.kinds if kind in possible]
        if not kinds or rng.random() >= self.faults.rate:
            return None
        kind = rng.choice(kinds)
        self.produced[kind] += 1
        return kind


class _FaultMiddleware:
    """Counts requests and spoils some of them."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith(_SPOILED):
            await self.app(scope, receive, send)
            return
        self.state.requests[_NAMES.get(path, "batch")] += 1
        if self.state.faults.latency:
            await asyncio.sleep(self.state.faults.latency)
        kind = self.state.draw(_KINDS_AT.get(path, CALL_KINDS))
        if kind == "timeout":
            await self._hang(scope, receive, send)
        elif kind == "cut":
            await self.app(scope, receive, _Cut(send))
        elif kind in {"429", "500", "maxlag"}:
            await self._refusal(kind, path)(scope, receive, send)
        else:
            scope.setdefault("state", {})["fault"] = kind
            await self.app(scope, receive, send)

    async def _hang(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        try:
            await asyncio.wait_for(gone(), self.state.faults.delay)
        except TimeoutError:
            await Response("the lab was told to hang", 504)(scope, receive, send)

    def _refusal(self, kind: str, path: str) -> Response:
        headers = {"Retry-After": f"{self.state.faults.retry_after:g}"}
        if kind == "maxlag":
            error = {
                "code": "maxlag",
                "info": "Waiting for a database server: 7.5 seconds lagged.",
                "host": "lab",
                "lag": 7.5,
                "type": "db",
            }
            headers["MediaWiki-API-Error"] = "maxlag"
            return JSONResponse({"error": error}, 200, headers)
        if path == WIKI_PATH:
            return Response(f"the lab was told to answer {kind}", int(kind), headers)
        return JSONResponse(told_to_refuse(kind), int(kind), headers)


class _Cut:
    """Sends half of a body and then nothing: the server closes the connection."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.cut = False

    async def __call__(self, message: Message) -> None:
        if self.cut:
            return
        if message["type"] == "http.response.body":
            self.cut = True
            body = message.get("body", b"")
            half = {"type": message["type"], "body": body[: len(body) // 2], "more_body": True}
            await self.send(half)
            return
        await self.send(message)


def build_app(
    settings: config.Lab,
    clock: Callable[[], datetime] | None = None,
    faults: Faults | None = None,
    world: "World | None" = None,
) -> Starlette:
    """Builds the lab's server.

    Args:
        settings: The world.
        clock: Gives the world's time, before each answer; `None` for the end of its months.
        faults: What it starts with; it can be changed at `/lab/faults`.
        world: The world of these settings, where the caller wants to edit it.
    """
    from kinject_assets.lab.batches import batch_routes
    from kinject_assets.lab.wiki import wiki_routes
    from kinject_assets.lab.world import World

    state = State(faults or Faults())
    return Starlette(
        routes=[
            *wiki_routes(world or World(settings), clock),
            *_chat_routes(settings.seed),
            *batch_routes(partial(chat_answer, settings.seed), state),
            *_lab_routes(state),
        ],
        middleware=[Middleware(_FaultMiddleware, state=state)],
    )


def _chat_routes(lab_seed: int) -> list[Route]:
    started = int(time.time())

    async def models(request: Request) -> Response:
        entry = {"id": writer.MODEL, "object": "model", "created": started, "owned_by": "kinject"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def chat(request: Request) -> Response:
        fault = request.scope.get("state", {}).get("fault")
        status, body = chat_answer(lab_seed, await request.body(), fault)
        return JSONResponse(body, status)

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route(CHAT_PATH, chat, methods=["POST"]),
    ]


def chat_answer(lab_seed: int, raw: bytes, fault: str | None) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer to a chat request."""
    try:
        body = ChatBody.model_validate_json(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = f"{where}: {problem['msg']}" if where else problem["msg"]
        return 400, _error(400, said, where)
    if body.model != writer.MODEL:
        said = f"The model `{body.model}` does not exist here. There is: {writer.MODEL}"
        return 404, _error(404, said, "model", "model_not_found")
    return 200, _complete(body, lab_seed, fault)


def _lab_routes(state: State) -> list[Route]:
    async def faults(request: Request) -> Response:
        if request.method == "DELETE":
            state.faults, state.seen = Faults(), 0
        elif request.method == "POST":
            try:
                state.faults = Faults.model_validate_json(await request.body())
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(str(part) for part in problem["loc"])
                return refuse(400, f"{where}: {problem['msg']}", where)
            state.seen = 0
        return JSONResponse(state.faults.model_dump())

    async def stats(request: Request) -> Response:
        if request.method == "DELETE":
            state.requests.clear()
            state.batches.clear()
            state.produced.clear()
        return JSONResponse(
            {
                "requests": {name: state.requests[name] for name in ("chat", "wiki")},
                "batches": {
                    "calls": state.requests["batch"],
                    **{name: state.batches[name] for name in ("created", "lines")},
                },
                "faults": dict(sorted(state.produced.items())),
            }
        )

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return [
        Route("/lab/faults", faults, methods=["GET", "POST", "DELETE"]),
        Route("/lab/stats", stats, methods=["GET", "DELETE"]),
        Route("/lab/health", health, methods=["GET"]),
    ]


class ChatMessage(BaseModel):
    """One message of a chat request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class JSONSchemaSpec(BaseModel):
    """`response_format.json_schema` of a chat request."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """`response_format` of a chat request."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JSONSchemaSpec | None = None


class ChatBody(BaseModel):
    """A chat request, as far as the lab has a use for it; other fields are ignored."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    response_format: ResponseFormat = ResponseFormat()
    seed: int = 0
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: Literal[1] | None = None
    stream: Literal[False] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)


def _complete(body: ChatBody, lab_seed: int, fault: str | None) -> dict[str, Any]:
    messages = [message.model_dump() for message in body.messages]
    answer = writer.answer(messages, int(content_hash(lab_seed, body.seed)[:12], 16))
    spec = body.response_format.json_schema
    if spec is not None:
        answer = shaped(answer or {}, spec.json_schema)
    if fault == "wrong_schema":
        answer = {"unexpected": True}
    if answer is None:
        text = "The lab's writer works by rule: it writes and selects questions and paraphrases."
    else:
        text = json.dumps(answer, ensure_ascii=False)
    if fault == "malformed":
        text = text[: len(text) // 2]
    limit = body.max_completion_tokens or body.max_tokens
    cut = limit is not None and _tokens(text) > limit
    if cut and limit is not None:
        text = text[: limit * 4]
    prompt_tokens = sum(_tokens(message["content"]) for message in messages)
    return {
        "id": f"chatcmpl-{content_hash(body.model_dump())}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": f"lab-{lab_seed}",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "length" if cut else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": _tokens(text),
            "total_tokens": prompt_tokens + _tokens(text),
        },
    }


def _tokens(text: str) -> int:
    """Tokens as the lab counts them: four characters each."""
    return -(-len(text) // 4)


def shaped(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> Any:
    """A value of the form that a JSON schema asks for, as close to `value` as it allows."""
    root = root or schema
    if "$ref" in schema:
        target = schema["$ref"].rsplit("/", 1)[-1]
        return shaped(value, root.get("$defs", {}).get(target, {}), root)
    if "enum" in schema:
        return value if value in schema["enum"] else schema["enum"][0]
    if "anyOf" in schema:
        return shaped(value, schema["anyOf"][0], root)
    kind = schema.get("type")
    if kind == "object":
        given = value if isinstance(value, dict) else {}
        parts = schema.get("properties", {})
        return {name: shaped(given.get(name), part, root) for name, part in parts.items()}
    if kind == "array":
        items = value if isinstance(value, list) else []
        return [shaped(item, schema.get("items", {}), root) for item in items]
    return _plain(value, kind)


def _plain(value: Any, kind: str | None) -> Any:
    plain: dict[str, tuple[type, Any]] = {
        "string": (str, ""),
        "integer": (int, 0),
        "number": (float, 0.0),
        "boolean": (bool, False),
    }
    if kind not in plain:
        return value
    wanted, default = plain[kind]
    return value if isinstance(value, wanted) else default


def refuse(status: int, message: str, param: str | None = None) -> JSONResponse:
    """An answer of failure in OpenAI's form."""
    return JSONResponse(_error(status, message, param), status)


def told_to_refuse(kind: str) -> dict[str, Any]:
    """Body of the faults `429` and `500`."""
    code = "rate_limit_exceeded" if kind == "429" else "server_error"
    return _error(int(kind), f"the lab was told to answer {kind}", code=code)


def _error(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code}}


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise KinjectError(
            f"port {port} on {HOST} cannot be used ({error.strerror}). End what listens there, or "
            "choose another: kinject lab serve --port PORT"
        ) from error
    return listener


@contextmanager
def serving(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """Serves an app on loopback from a thread of this process.

    Args:
        app: What to serve.
        port: Port on 127.0.0.1; 0 for a free one.

    Yields:
        Its address, e.g. `http://127.0.0.1:8123`.

    Raises:
        KinjectError: If the port is taken.
    """
    import uvicorn

    listener = _listen(port)
    # `cut` breaks off answers on purpose, which uvicorn logs as errors.
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@contextmanager
def running(
    settings: config.Lab, port: int = 0, clock: Callable[[], datetime] | None = None
) -> Iterator[str]:
    """Runs the lab's server in a thread and yields its address.

    The wiki's API is at `/w/api.php` below it, the chat API's base at `/v1`.

    Raises:
        KinjectError: If the port is taken.
    """
    with serving(build_app(settings, clock), port) as address:
        yield address


_KEPT = ExitStack()
"""Keeps servers as long as this process; their threads end with it."""

_addresses: dict[str, str] = {}


def address_of(profile: config.Profile) -> str:
    """Address of a profile's lab: `$KINJECT_LAB_URL`, or a server that this process keeps running.

    The lab's world is a function of its seed and its clock, so that any two servers answer alike.
    """
    if given := os.environ.get("KINJECT_LAB_URL"):
        return given
    assert profile.lab is not None, "the profile model refuses `lab` addresses without a lab"
    if profile.name not in _addresses:
        from kinject_assets.lab.clock import lab_now

        started = running(profile.lab, clock=lambda: lab_now(profile))
        _addresses[profile.name] = _KEPT.enter_context(started)
    return _addresses[profile.name]


def main(
    settings: config.Lab,
    port: int,
    clock: Callable[[], datetime] | None = None,
    faults: Faults | None = None,
) -> None:
    """Serves the lab in the foreground until it is interrupted.

    Raises:
        KinjectError: If the port is taken.
    """
    import uvicorn

    app = build_app(settings, clock, faults)
    listener = _listen(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    print(f"wiki: {address}{WIKI_PATH}\nchat: {address}/v1  (Ctrl-C ends)", file=sys.stderr)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    # uvicorn raises the interrupt again once it has shut down; here it is the way to end.
    with closing(listener), suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
