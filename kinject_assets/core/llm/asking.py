"""What is asked of the language model, and what becomes of an answer: used, or asked again."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from kinject_assets import config
from kinject_assets.core.llm.ledger import Ledger, Recorded
from kinject_assets.core.llm.quoting import Message
from kinject_assets.core.llm.service import writable
from kinject_assets.core.manifest import content_hash

A = TypeVar("A", bound=BaseModel)

SAME_REQUESTS = 4
"""How often a request is sent with one seed, at most, while what comes back breaks off: a service
that cannot close its JSON would break off again. Never more than half of `llm.attempts`."""


@dataclass(frozen=True)
class Ask(Generic[A]):
    """A question to the language model.

    Attributes:
        purpose: What it is for, e.g. `question`; stands in `generations`.
        messages: The prompt.
        answer: Model that the answer must fit; its JSON schema goes with the request.
        seed: Base of the seed that is sent. Each attempt sends another one.
        attempt: First attempt number: higher to ask again after an answer that was of no use.
        check: Raises `ValueError` with the reason when an answer that fits the schema is no use.
    """

    purpose: str
    messages: Sequence[Message]
    answer: type[A]
    seed: int
    attempt: int = 0
    check: Callable[[A], object] | None = None


@dataclass(frozen=True)
class Received(Generic[A]):
    """A usable answer.

    Attributes:
        attempt: Attempt that brought it.
        seed: Seed that was sent with this attempt.
        useless: What was wrong with the answers before it.
    """

    value: A
    generation_id: str
    attempt: int
    seed: int
    useless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """No usable answer in all attempts.

    Attributes:
        reason: What was wrong with the last one.
        useless: What was wrong with those before it.
    """

    reason: str
    attempt: int
    useless: tuple[str, ...] = ()


Reply = Received[A] | Failure


@dataclass(frozen=True)
class ChatRequest:
    """A request as it is sent, but for the limit on output tokens.

    Attributes:
        key: Hash of its content and attempt, by which the ledger knows its answer.
        number: Which request of its question it is; stands in `generations` as the attempt.
    """

    key: str
    purpose: str
    body: dict[str, Any]
    number: int

    @property
    def input_tokens(self) -> int:
        """Estimate from above: a token holds about 4 English characters, of other scripts one."""
        parts = [self.body["messages"], self.body.get("response_format")]
        text = json.dumps(parts, ensure_ascii=False)
        # Other scripts take about a token a character, and some more than one.
        other = sum(not character.isascii() for character in text)
        return (len(text) - other) // 3 + other + other // 2 + 1


class Asking(Generic[A]):
    """Where the asking of one question stands: its reply, or the request that comes next.

    An answer that is cut at the token limit, refused or does not fit is asked for again with the
    next attempt number, which changes the seed; one that breaks off within its JSON is asked for as
    it was, up to `SAME_REQUESTS` times, so that a bad line changes nothing about what is written.
    All in all a question is asked `settings.attempts` times.

    Attributes:
        reply: `None` until there is one.
    """

    def __init__(self, ask: Ask[A], settings: config.LLM) -> None:
        self.ask = ask
        self.reply: Reply[A] | None = None
        self._settings = settings
        self._patience = max(1, min(SAME_REQUESTS, settings.attempts // 2))
        self._attempt = ask.attempt
        self._damaged = 0
        self._tries = 0
        self._request: ChatRequest | None = None
        self._useless: list[str] = []

    @property
    def request(self) -> ChatRequest:
        """The request to send next."""
        if self._request is None:
            body = _body(self.ask, self._attempt, self._settings)
            damaged = [self._damaged] if self._damaged else []
            self._request = ChatRequest(
                key=content_hash("request", body, self._attempt, *damaged),
                purpose=self.ask.purpose,
                body=body,
                number=self.ask.attempt + self._tries,
            )
        return self._request

    def known(self, ledger: Ledger) -> Recorded | None:
        """The answer to the next request that the ledger has, unless a higher limit helps."""
        known = ledger.answer(self.request.key)
        limit = self._settings.max_output_tokens
        if known and (known.finish_reason != "length" or known.max_output_tokens >= limit):
            return known
        return None

    def take(self, recorded: Recorded) -> None:
        """Reads the answer to `request`: there is a reply now, or another request."""
        seed = self.request.body["seed"]
        self._request = None
        self._tries += 1
        try:
            value = _parse(recorded, self.ask)
        except _Damaged as error:
            # Asked as it was: an answer that broke on its way comes whole the next time.
            reason = str(error)
            self._damaged += 1
            if self._damaged == self._patience:
                self._attempt, self._damaged = self._attempt + 1, 0
        except ValueError as error:
            reason = str(error)
            self._attempt, self._damaged = self._attempt + 1, 0
        else:
            self.reply = Received(
                value, recorded.generation_id, self._attempt, seed, tuple(self._useless)
            )
            return
        self._useless.append(reason)
        if self._tries == self._settings.attempts:
            self.reply = Failure(
                f"{reason} ({self._tries} attempts)", self._attempt, tuple(self._useless[:-1])
            )


def seed_of(*parts: Any) -> int:
    """A seed for requests that follows from values: 31 bits, so that every service takes it."""
    return int(content_hash("seed", *parts)[:8], 16) & 0x7FFFFFFF


def _body(ask: Ask[Any], attempt: int, settings: config.LLM) -> dict[str, Any]:
    schema = _schema(ask.answer)
    messages = [dict(message) for message in ask.messages]
    body: dict[str, Any] = {
        "model": settings.model,
        "temperature": settings.temperature,
        "seed": ask.seed if attempt == 0 else seed_of(ask.seed, attempt),
    }
    if settings.structure == "json_schema":
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": ask.answer.__name__, "strict": True, "schema": schema},
        }
    else:
        messages = _with_schema(messages, schema)
        if settings.structure == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif settings.structure == "json_object_schema":
            body["response_format"] = {"type": "json_object", "schema": schema}
    return {**body, "messages": messages}


@cache
def _schema(answer: type[BaseModel]) -> dict[str, Any]:
    return answer.model_json_schema()


def _with_schema(messages: list[Message], schema: dict[str, Any]) -> list[Message]:
    note = (
        "Answer with one JSON object that follows this JSON Schema, and with nothing else:\n"
        + json.dumps(schema, ensure_ascii=False)
    )
    first, *rest = messages
    if first["role"] == "system":
        return [{"role": "system", "content": f"{first['content']}\n\n{note}"}, *rest]
    return [{"role": "system", "content": note}, *messages]


class _Damaged(ValueError):
    """An answer that is empty or breaks off within its JSON, though no limit was met."""


def _parse(recorded: Recorded, ask: Ask[A]) -> A:
    """Reads an answer.

    Raises:
        _Damaged: If it was broken on its way.
        ValueError: With the reason, if it is of no use.
    """
    if recorded.refusal:
        raise ValueError(f"refused: {recorded.refusal[:200]}")
    if recorded.finish_reason == "content_filter":
        raise ValueError("stopped by the service's content filter")
    if recorded.finish_reason == "length":
        raise ValueError(
            f"cut at llm.max_output_tokens ({recorded.max_output_tokens}): raise it to have such "
            "answers asked again"
        )
    if not recorded.text.strip():
        raise _Damaged("empty answer")
    try:
        found = extract_json(recorded.text)
    except ValueError as error:
        if _breaks_off(recorded.text):
            raise _Damaged(f"{error}: it breaks off") from None
        raise
    try:
        value = ask.answer.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"does not fit the schema: {where}: {problem['msg']}") from None
    if ask.check is not None:
        ask.check(value)
    return value


def extract_json(text: str) -> Any:
    """The JSON object in an answer: the whole of it, in a code fence, or from its first brace.

    Raises:
        ValueError: If there is none.
    """
    fence = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    for candidate in (text, fence[1] if fence else ""):
        start = candidate.find("{")
        if start < 0:
            continue
        try:
            found = json.JSONDecoder().raw_decode(candidate, start)[0]
            # Half characters may be written as escapes; no file could hold them.
            return json.loads(writable(json.dumps(found, ensure_ascii=False)))
        except (ValueError, RecursionError):
            continue
    raise ValueError("not JSON")


def _breaks_off(text: str) -> bool:
    """Whether an answer is the beginning of a JSON object, as a broken connection leaves it."""
    start = text.find("{")
    if start < 0:
        return False
    try:
        json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())
    except RecursionError:
        return False
    return False
