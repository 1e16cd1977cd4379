"""The lab's Batch API: files of requests that are answered one after the other, in memory."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email import policy
from email.parser import BytesParser
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kinject_assets.lab.server import CHAT_PATH, State, refuse, told_to_refuse

Answer = Callable[[bytes, str | None], tuple[int, dict[str, Any]]]
"""Status and body of the answer to a chat request, given a fault to spoil it with."""

LINE_KINDS: frozenset[str] = frozenset({"429", "500", "malformed", "wrong_schema"})
"""Faults that a line of a batch may meet."""

UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass
class _File:
    id: str
    name: str
    purpose: str
    content: bytes
    created_at: int = field(default_factory=lambda: int(time.time()))

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class _Batch:
    """One batch; `stamps` are the times of its statuses, e.g. `completed_at`."""

    id: str
    input_file_id: str
    metadata: dict[str, str]
    window: float
    status: str = "validating"
    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    stamps: dict[str, int] = field(default_factory=dict)

    def become(self, status: str) -> None:
        self.status = status
        self.stamps[f"{status}_at"] = int(time.time())

    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": CHAT_PATH,
            "completion_window": "24h",
            "input_file_id": self.input_file_id,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "status": self.status,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "metadata": self.metadata,
            "created_at": int(self.created),
            "expires_at": int(self.created + self.window),
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            **self.stamps,
        }


class _Batches:
    """Files and batches of one server, and the work on them."""

    def __init__(self, answer: Answer, state: State) -> None:
        self.answer = answer
        self.state = state
        self.files: dict[str, _File] = {}
        self.batches: dict[str, _Batch] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def add_file(self, name: str, purpose: str, content: bytes) -> _File:
        file = _File(f"file-{uuid4().hex[:24]}", name, purpose, content)
        self.files[file.id] = file
        return file

    def create(self, input_file_id: str, metadata: dict[str, str]) -> _Batch:
        batch = _Batch(
            f"batch_{uuid4().hex[:24]}", input_file_id, metadata, self.state.faults.batch_window
        )
        self.batches[batch.id] = batch
        self.state.batches["created"] += 1
        task = asyncio.get_running_loop().create_task(self._work(batch))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return batch

    async def _work(self, batch: _Batch) -> None:
        """Validates a batch, answers its lines at an even pace, and publishes its files."""
        await asyncio.sleep(self.state.faults.batch_seconds / 10)
        rows, batch.errors = _read(self.files[batch.input_file_id].content)
        batch.tokens = sum(len(json.dumps(row["body"])) // 4 for row in rows)
        enqueued = sum(b.tokens for b in self.batches.values() if b.status in UNDER_WAY)
        limit = self.state.faults.batch_tokens
        if limit is not None and enqueued > limit:
            batch.errors = [_problem("token_limit_exceeded", f"Enqueued token limit is {limit}.")]
        if batch.errors:
            batch.become("failed")
            return
        batch.total = len(rows)
        if batch.status == "validating":
            batch.become("in_progress")
        done: list[dict[str, Any]] = []
        undone = ""
        for row in rows:
            if not undone:
                await asyncio.sleep(0.9 * self.state.faults.batch_seconds / len(rows))
                if batch.status == "cancelling":
                    undone = "batch_cancelled"
                elif time.time() > batch.created + batch.window:
                    undone = "batch_expired"
            done.append(self._left(row, undone) if undone else self._line(batch, row))
        for field_name, failed in (("output_file_id", False), ("error_file_id", True)):
            lines = [json.dumps(line, ensure_ascii=False) for line in done if _bad(line) == failed]
            if lines:
                content = "".join(f"{line}\n" for line in lines).encode()
                name = f"{batch.id}_{field_name.removesuffix('_file_id')}.jsonl"
                setattr(batch, field_name, self.add_file(name, "batch_output", content).id)
        batch.become(undone.removeprefix("batch_") or "completed")

    def _line(self, batch: _Batch, row: dict[str, Any]) -> dict[str, Any]:
        self.state.batches["lines"] += 1
        kind = self.state.draw(LINE_KINDS)
        if kind in {"429", "500"}:
            status, body = int(kind), told_to_refuse(kind)
        else:
            status, body = self.answer(json.dumps(row["body"]).encode(), kind)
        if status == 200:
            batch.completed += 1
        else:
            batch.failed += 1
        response = {"status_code": status, "request_id": uuid4().hex, "body": body}
        return _result(row["custom_id"], response=response)

    @staticmethod
    def _left(row: dict[str, Any], code: str) -> dict[str, Any]:
        error = {"code": code, "message": "This request was not executed."}
        return _result(row["custom_id"], error=error)


def _result(custom_id: str, **parts: Any) -> dict[str, Any]:
    return {
        "id": f"batch_req_{uuid4().hex[:24]}",
        "custom_id": custom_id,
        "response": None,
        "error": None,
        **parts,
    }


def _bad(line: dict[str, Any]) -> bool:
    return line["response"] is None or line["response"]["status_code"] != 200


def _read(content: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests of a file, and what is wrong with it."""
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            asked = row["custom_id"], row["method"], row["url"], row["body"]
        except (ValueError, TypeError, KeyError):
            problems.append(_problem("invalid_json_line", "This line is no request.", number))
            continue
        if asked[0] in seen:
            said = f"The custom_id {asked[0]} stands twice."
            problems.append(_problem("duplicate_custom_id", said, number))
        elif asked[1:3] != ("POST", CHAT_PATH):
            problems.append(_problem("invalid_url", f"Only POST {CHAT_PATH} is done.", number))
        seen.add(asked[0])
        rows.append(row)
    if not rows and not problems:
        problems.append(_problem("empty_file", "The file holds no requests."))
    return rows, problems


def _problem(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


def _form(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """Fields of a multipart form with their file names."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = BytesParser(policy=policy.HTTP).parsebytes(head + body)
    found: dict[str, tuple[str, bytes]] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            found[name] = (part.get_filename() or "", content)
    return found


def batch_routes(answer: Answer, state: State) -> list[Route]:
    """Routes of `/v1/files` and `/v1/batches`.

    Args:
        answer: Answers one chat request.
        state: The server's faults and counters.
    """
    service = _Batches(answer, state)

    async def upload(request: Request) -> Response:
        form = _form(request.headers.get("content-type", ""), await request.body())
        if "file" not in form or "purpose" not in form:
            return refuse(400, "A file and its purpose are needed, as a multipart form.", "file")
        name, content = form["file"]
        purpose = form["purpose"][1].decode()
        return JSONResponse(service.add_file(name, purpose, content).body())

    async def file(request: Request) -> Response:
        found = service.files.get(request.path_params["id"])
        if found is None:
            return refuse(404, f"No such File object: {request.path_params['id']}", "id")
        if request.url.path.endswith("/content"):
            return Response(found.content, media_type="application/octet-stream")
        return JSONResponse(found.body())

    async def create(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
            input_file_id, metadata = body["input_file_id"], body.get("metadata") or {}
            kind = body["endpoint"], body["completion_window"]
        except (ValueError, TypeError, KeyError) as error:
            return refuse(400, f"Not the body of a new batch: {error}")
        if kind != (CHAT_PATH, "24h"):
            return refuse(400, f"There are only batches for {CHAT_PATH} within 24h.", "endpoint")
        if input_file_id not in service.files:
            return refuse(400, f"No such File object: {input_file_id}", "input_file_id")
        return JSONResponse(service.create(input_file_id, metadata).body())

    async def listed(request: Request) -> Response:
        rows = [batch.body() for batch in reversed(service.batches.values())]
        ids = [row["id"] for row in rows]
        after = request.query_params.get("after")
        start = ids.index(after) + 1 if after in ids else 0
        end = start + int(request.query_params.get("limit", 20))
        page = rows[start:end]
        return JSONResponse(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": end < len(rows),
            }
        )

    async def batch(request: Request) -> Response:
        found = service.batches.get(request.path_params["id"])
        if found is None:
            return refuse(404, f"No batch found with id '{request.path_params['id']}'.", "id")
        if request.method == "POST":
            if found.status not in {"validating", "in_progress"}:
                return refuse(409, f"A batch that is {found.status} cannot be cancelled.")
            found.become("cancelling")
        return JSONResponse(found.body())

    return [
        Route("/v1/files", upload, methods=["POST"]),
        Route("/v1/files/{id}", file, methods=["GET"]),
        Route("/v1/files/{id}/content", file, methods=["GET"]),
        Route("/v1/batches", create, methods=["POST"]),
        Route("/v1/batches", listed, methods=["GET"]),
        Route("/v1/batches/{id}", batch, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", batch, methods=["POST"]),
    ]
