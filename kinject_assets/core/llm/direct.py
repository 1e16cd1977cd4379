"""Requests that are sent one by one, several at a time, each answered at once."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kinject_assets.core.errors import BudgetExceeded, LLMError
from kinject_assets.core.llm.asking import Asking, ChatRequest
from kinject_assets.core.llm.ledger import Ledger, Recorded
from kinject_assets.core.llm.service import Pauses, Service, Trouble, is_completion, read_completion
from kinject_assets.core.progress import Report

if TYPE_CHECKING:
    from openai import AsyncOpenAI


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
                    raise BudgetExceeded.before(amount, self.spent, self.limit)
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


class Direct:
    """Asks one by one. Lives in one event loop.

    Args:
        service: Whom to ask.
        api: The connection.
        ledger: Where requests and answers are recorded and looked up.
        report: Told how many questions are done.
    """

    def __init__(
        self, service: Service, api: "AsyncOpenAI", ledger: Ledger, report: Report
    ) -> None:
        self.service = service
        self.settings = service.settings
        self.api = api
        self.ledger = ledger
        self.report = report
        self.gate = asyncio.Semaphore(self.settings.concurrency)
        self.money = _Money(self.settings.budget_usd)
        self.error: LLMError | None = None
        # One request at a time per key: a question that stands twice is sent once.
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, askings: Sequence[Asking[Any]]) -> None:
        """Asks until each has its reply.

        Raises:
            LLMError: Once anything has gone wrong for good.
        """
        if self.money.limit is not None:
            self.money.spent = self.ledger.spent(self.settings.prices)
        done = 0

        async def one(asking: Asking[Any]) -> None:
            nonlocal done
            await self._ask(asking)
            done += 1
            self.report("asking the language model", done, len(askings))

        await asyncio.gather(*map(one, askings))
        if self.error is not None:
            raise self.error

    async def _ask(self, asking: Asking[Any]) -> None:
        async with self.gate:
            while asking.reply is None and self.error is None:
                try:
                    async with self.locks[asking.request.key]:
                        recorded = asking.known(self.ledger) or await self._sent(asking.request)
                except LLMError as error:
                    # Requests under way are let finish: they are paid for.
                    self.error = self.error or error
                    return
                asking.take(recorded)

    async def _sent(self, request: ChatRequest) -> Recorded:
        """Sends a request until it brings an answer."""
        pauses = Pauses()
        for tries_left in reversed(range(self.settings.attempts)):
            outcome = await self._send(request)
            if isinstance(outcome, Recorded):
                return outcome
            if tries_left == 0:
                raise self.service.no_answer(outcome.why)
            if self.error is not None:
                raise self.error
            await asyncio.sleep(pauses.after(outcome))
        raise AssertionError("attempts is at least 1")

    async def _send(self, request: ChatRequest) -> Recorded | Trouble:
        from openai import OpenAIError

        settings = self.settings
        estimate = request.input_tokens
        reserve = self.service.cost(estimate, settings.max_output_tokens) or 0.0
        await self.money.reserve(reserve)
        spent = reserve
        try:
            generation_id = self.ledger.intend(
                request.key,
                purpose=request.purpose,
                model=settings.model,
                attempt=request.number,
                input_tokens=estimate,
                max_output_tokens=settings.max_output_tokens,
            )
            start = time.monotonic()
            try:
                completion: Any = await self.api.chat.completions.create(
                    **request.body, **self.service.limit()
                )
                if not is_completion(completion):
                    said = self.service.said(str(getattr(completion, "error", None) or completion))
                    raise ValueError(f"status 200 without an answer in it: {said}")
            except (OpenAIError, ValueError, RecursionError) as error:
                trouble = self.service.trouble(error)
                self.ledger.failed(
                    generation_id,
                    status=trouble.status,
                    why=trouble.why,
                    possibly_paid=trouble.possibly_paid,
                    seconds=time.monotonic() - start,
                )
                spent = reserve if trouble.possibly_paid else 0.0
                if trouble.final:
                    # Its own error may quote the key, and Dagster logs what an error comes from.
                    raise LLMError(trouble.why) from None
                return trouble
            answer = read_completion(completion, estimate)
            spent = self.service.cost(answer["input_tokens"], answer["output_tokens"]) or 0.0
            return self.ledger.received(generation_id, **answer, seconds=time.monotonic() - start)
        finally:
            await self.money.settle(reserve, spent)
