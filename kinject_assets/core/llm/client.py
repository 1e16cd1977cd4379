"""Asks a service that speaks OpenAI's chat API for structured answers, each paid for once."""

import asyncio
import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from kinject_assets import config
from kinject_assets.core.errors import BudgetExceeded, LLMError
from kinject_assets.core.llm.ledger import Ledger, Recorded
from kinject_assets.core.llm.prices import cost
from kinject_assets.core.llm.quoting import Message
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI, OpenAIError

A = TypeVar("A", bound=BaseModel)
R = TypeVar("R")

FIRST_PAUSE = 0.5
"""Seconds before the second try when the service names no time; doubled with every try."""

LONGEST_PAUSE = 60.0
"""Seconds that a pause of our own choosing may last."""

SAME_REQUESTS = 4
"""How often a request is sent with one seed, at most, while what comes back breaks off: a service
that cannot close its JSON would break off again. Never more than half of `llm.attempts`."""

LONGEST_RETRY_AFTER = 600.0
"""Seconds that a service may ask us to wait; with more we stop and say so."""


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
    """

    value: A
    generation_id: str
    attempt: int
    seed: int


@dataclass(frozen=True)
class Failure:
    """No usable answer in all attempts; `reason` is what was wrong with the last one."""

    reason: str
    attempt: int


Reply = Received[A] | Failure


def seed_of(*parts: Any) -> int:
    """A seed for requests that follows from values: 31 bits, so that every service takes it."""
    return int(content_hash("seed", *parts)[:8], 16) & 0x7FFFFFFF


class LLMClient:
    """Structured answers with a ledger, retries, a budget and bounded concurrency.

    Args:
        settings: The profile's `llm`.
        base_url: Address of the service; `None` for `OPENAI_BASE_URL`, then OpenAI's own.
        ledger: Where requests and answers are recorded and looked up.
        report: Told how many of the requests are done.

    Raises:
        LLMError: If OpenAI's own service is to be used and `OPENAI_API_KEY` is not set, or a budget
            is set for a model without a price.
    """

    def __init__(
        self,
        settings: config.LLM,
        *,
        base_url: str | None,
        ledger: Ledger,
        report: Report = silent,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.report = report
        self._url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        host = urlsplit(self._url).hostname or ""
        self._openai = host == "openai.com" or host.endswith(".openai.com")
        key = os.environ.get("OPENAI_API_KEY") or ("" if self._openai else "none")
        if not key:
            raise LLMError(
                "OPENAI_API_KEY is not set. Export it (it is never written anywhere), or set "
                "llm.base_url to a service that needs none."
            )
        self._key = key
        if settings.budget_usd is not None and self._cost(0, 0) is None:
            raise LLMError(
                f"llm.budget_usd is set, but no price is known for `{settings.model}`. Add it to "
                f"llm.prices, e.g. `prices: {{{settings.model}: [2.5, 10.0]}}` (USD per million "
                "input and output tokens; 0 for a model of your own)."
            )

    def ask_many(self, asks: Sequence[Ask[A]]) -> list[Reply[A]]:
        """Gets an answer to each question, from the ledger where it has one.

        An answer that is cut at the token limit, refused or does not fit is asked for again with
        the next attempt number, which changes the seed; one that breaks off within its JSON is
        asked for as it was, up to `SAME_REQUESTS` times, so that a bad line changes nothing about
        what is written. All in all a question is asked `settings.attempts` times.

        Returns:
            One reply per question, in their order.

        Raises:
            BudgetExceeded: Before a request that could cross `llm.budget_usd`.
            LLMError: If the service refuses a request, or does not answer in
                `settings.attempts` tries. What was received until then is in the ledger.
        """
        return _run(_Batch(self).run(asks))

    def _cost(self, input_tokens: int, output_tokens: int) -> float | None:
        settings = self.settings
        return cost(settings.model, input_tokens, output_tokens, settings.prices)

    def _connect(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=self._key,
            base_url=self._url,
            timeout=self.settings.timeout,
            max_retries=0,
        )

    def _body(self, ask: Ask[Any], attempt: int) -> dict[str, Any]:
        """The request as it is sent, but for the limit on output tokens."""
        settings = self.settings
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
        return {**body, "messages": messages}

    def _limit(self) -> dict[str, Any]:
        # OpenAI's newer models refuse the old name; most other services know only the old one.
        name = "max_completion_tokens" if self._openai else "max_tokens"
        return {name: self.settings.max_output_tokens}

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key != "none" else text


@dataclass
class _Money:
    """What was spent, and what is set aside for requests under way (USD)."""

    limit: float | None
    spent: float = 0.0
    reserved: float = 0.0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def reserve(self, amount: float) -> None:
        """Sets money aside. Waits while requests under way may turn out cheaper than feared."""
        if self.limit is None:
            return
        async with self.changed:
            while self.spent + self.reserved + amount > self.limit:
                if self.reserved <= 0:
                    raise BudgetExceeded(
                        f"The next request could cost {amount:.4f} USD; {self.spent:.4f} of "
                        f"{self.limit:.4f} USD are spent, so it was not sent. Raise "
                        "llm.budget_usd and run again: nothing received is asked for twice."
                    )
                await self.changed.wait()
            self.reserved += amount

    async def settle(self, reserved: float, spent: float) -> None:
        """Replaces what was set aside for a request by what it cost."""
        if self.limit is None:
            return
        async with self.changed:
            self.reserved = max(0.0, self.reserved - reserved)
            if self.reserved < 1e-12:  # what adding and taking away leaves of nothing
                self.reserved = 0.0
            self.spent += spent
            self.changed.notify_all()


class _Batch:
    """One call of `ask_many`. Lives in one event loop."""

    def __init__(self, client: LLMClient) -> None:
        self.client = client
        self.settings = client.settings
        self.ledger = client.ledger
        self.gate = asyncio.Semaphore(client.settings.concurrency)
        self.money = _Money(client.settings.budget_usd)
        self.error: LLMError | None = None
        # One request at a time per key: a question that stands twice is sent once.
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, asks: Sequence[Ask[A]]) -> list[Reply[A]]:
        if self.money.limit is not None:
            self.money.spent = self.ledger.spent(self.settings.prices)
        replies: list[Reply[A] | None] = [None] * len(asks)
        done = 0
        async with self.client._connect() as service:

            async def one(place: int) -> None:
                nonlocal done
                replies[place] = await self._reply(service, asks[place])
                done += 1
                self.client.report("asking the language model", done, len(asks))

            await asyncio.gather(*(one(place) for place in range(len(asks))))
        if self.error is not None:
            raise self.error
        return [reply for reply in replies if reply is not None]

    async def _reply(self, service: "AsyncOpenAI", ask: Ask[A]) -> Reply[A] | None:
        """The reply to one question; `None` once anything has gone wrong for good."""
        reason, attempt, damaged = "", ask.attempt, 0
        patience = max(1, min(SAME_REQUESTS, self.settings.attempts // 2))
        async with self.gate:
            for tries in range(self.settings.attempts):
                if self.error is not None:
                    return None
                body = self.client._body(ask, attempt)
                try:
                    key = content_hash("request", body, attempt, *([damaged] if damaged else []))
                    recorded = await self._recorded(
                        service, ask.purpose, body, key, ask.attempt + tries
                    )
                except LLMError as error:
                    # Requests under way are let finish: they are paid for.
                    self.error = self.error or error
                    return None
                try:
                    value = _parse(recorded, ask)
                except _Damaged as error:
                    # Asked as it was: an answer that broke on its way comes whole the next time.
                    reason, damaged = str(error), damaged + 1
                    if damaged == patience:
                        attempt, damaged = attempt + 1, 0
                except ValueError as error:
                    reason, attempt, damaged = str(error), attempt + 1, 0
                else:
                    return Received(value, recorded.generation_id, attempt, body["seed"])
        return Failure(f"{reason} ({self.settings.attempts} attempts)", attempt)

    async def _recorded(
        self, service: "AsyncOpenAI", purpose: str, body: dict[str, Any], key: str, attempt: int
    ) -> Recorded:
        async with self.locks[key]:
            known = self.ledger.answer(key)
            limit = self.settings.max_output_tokens
            if known and (known.finish_reason != "length" or known.max_output_tokens >= limit):
                return known
            return await self._sent(service, purpose, body, key, attempt)

    async def _sent(
        self, service: "AsyncOpenAI", purpose: str, body: dict[str, Any], key: str, attempt: int
    ) -> Recorded:
        """Sends a request until it brings an answer."""
        pause = FIRST_PAUSE
        for tries_left in reversed(range(self.settings.attempts)):
            outcome = await self._send(service, purpose, body, key, attempt)
            if isinstance(outcome, Recorded):
                return outcome
            if tries_left == 0:
                raise LLMError(
                    f"{self.client._url} did not answer in {self.settings.attempts} tries; the "
                    f"last time: {outcome.why}. Run again to go on from here (answers received "
                    "are kept), or raise llm.attempts or llm.timeout."
                )
            if self.error is not None:
                raise self.error
            wait = outcome.retry_after
            if wait is None:
                wait = min(pause, LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            else:
                wait *= random.uniform(1.0, 1.1)
            pause *= 2
            await asyncio.sleep(wait)
        raise AssertionError("attempts is at least 1")

    async def _send(
        self, service: "AsyncOpenAI", purpose: str, body: dict[str, Any], key: str, attempt: int
    ) -> "Recorded | _Trouble":
        from openai import OpenAIError

        settings = self.settings
        estimate = _input_estimate(body)
        reserve = self.client._cost(estimate, settings.max_output_tokens) or 0.0
        await self.money.reserve(reserve)
        spent = reserve
        try:
            generation_id = self.ledger.intend(
                key,
                purpose=purpose,
                model=settings.model,
                attempt=attempt,
                input_tokens=estimate,
                max_output_tokens=settings.max_output_tokens,
            )
            start = time.monotonic()
            try:
                completion: Any = await service.chat.completions.create(
                    **body, **self.client._limit()
                )
            except (OpenAIError, ValueError) as error:
                trouble = self._trouble(error)
                self.ledger.failed(
                    generation_id,
                    status=trouble.status,
                    why=trouble.why,
                    possibly_paid=trouble.possibly_paid,
                    seconds=time.monotonic() - start,
                )
                spent = reserve if trouble.possibly_paid else 0.0
                if trouble.final:
                    raise LLMError(trouble.why) from error
                return trouble
            answer = _read(completion, estimate)
            spent = self.client._cost(answer["input_tokens"], answer["output_tokens"]) or 0.0
            return self.ledger.received(generation_id, **answer, seconds=time.monotonic() - start)
        finally:
            await self.money.settle(reserve, spent)

    def _trouble(self, error: "OpenAIError | ValueError") -> "_Trouble":
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APIStatusError):
            return self._status_trouble(error)
        if isinstance(error, APITimeoutError):
            return _Trouble(f"no answer within {self.settings.timeout:g} s", possibly_paid=True)
        if isinstance(error, APIConnectionError):
            cause = type(error.__cause__).__name__
            why = self.client._redacted(f"connection failed ({cause}: {error.__cause__})")
            return _Trouble(why, possibly_paid=cause not in {"ConnectError", "ConnectTimeout"})
        why = self.client._redacted(f"the answer is not of OpenAI's form ({error})")
        return _Trouble(why, possibly_paid=True)

    def _status_trouble(self, error: "APIStatusError") -> "_Trouble":
        status = error.status_code
        said = self.client._redacted(" ".join(error.message.split()))[:500]
        wait = _retry_after(error.response.headers)
        passing = status in {408, 409, 429} or status >= 500
        quota = error.code == "insufficient_quota"
        if not passing or quota:
            return _Trouble(
                f"{self.client._url} refused the request with {status}: {said}. "
                f"{_mend(status, quota, self.settings)}",
                status=status,
                final=True,
            )
        if wait is not None and wait > LONGEST_RETRY_AFTER:
            return _Trouble(
                f"{self.client._url} answered {status} and asks to wait {wait:.0f} s: {said}. Run "
                "again after that; answers received are kept.",
                status=status,
                final=True,
            )
        return _Trouble(f"status {status}: {said}", status=status, retry_after=wait)


@dataclass(frozen=True)
class _Trouble:
    """Why a request brought no answer.

    Attributes:
        final: Trying again would bring the same.
        retry_after: Seconds to wait, where the service named them.
    """

    why: str
    status: int | None = None
    possibly_paid: bool = False
    final: bool = False
    retry_after: float | None = None


def _run(work: Coroutine[Any, Any, R]) -> R:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


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


def _input_estimate(body: dict[str, Any]) -> int:
    """Input tokens, from above for most languages: a token holds about 4 characters of English."""
    text = json.dumps([body["messages"], body.get("response_format")], ensure_ascii=False)
    return len(text) // 3 + 1


def _read(completion: Any, input_estimate: int) -> dict[str, Any]:
    """What the ledger keeps of an answer, whatever parts of OpenAI's form it lacks."""
    choices = getattr(completion, "choices", None) or []
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    text = text if isinstance(text, str) else ""
    usage = getattr(completion, "usage", None)
    return {
        "text": text,
        "finish_reason": str(getattr(choices[0], "finish_reason", None) or "") if choices else "",
        "refusal": str(getattr(message, "refusal", None) or ""),
        "input_tokens": _count(getattr(usage, "prompt_tokens", None), input_estimate),
        "output_tokens": _count(getattr(usage, "completion_tokens", None), len(text) // 3 + 1),
    }


def _count(value: Any, estimate: int) -> int:
    return value if isinstance(value, int) and value > 0 else estimate


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
            return json.JSONDecoder().raw_decode(candidate, start)[0]
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


def _retry_after(headers: Any) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or a date) asks to wait."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        text = headers["retry-after"]
        if re.fullmatch(r"\s*[\d.]+\s*", text):
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _mend(status: int, quota: bool, settings: config.LLM) -> str:
    if quota:
        return "The account has no credit left: top it up and run again."
    if status in {401, 403}:
        return "Check OPENAI_API_KEY, and that it may use the model."
    if status == 404:
        return f"Check llm.model (`{settings.model}`) and llm.base_url."
    if settings.structure != "prompt":
        return "If the service does not know response_format, set llm.structure to `prompt`."
    return "Check llm.model, llm.max_output_tokens and llm.temperature."
