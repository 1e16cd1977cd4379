"""Asks a service that speaks OpenAI's chat API for structured answers, each paid for once."""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import BaseModel

from kinject_assets import config
from kinject_assets.core.llm.asking import Ask, Asking, Failure, Received, Reply, seed_of
from kinject_assets.core.llm.batch import Batched
from kinject_assets.core.llm.direct import Direct
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.llm.service import Service
from kinject_assets.core.progress import Report, silent

__all__ = ["Ask", "Failure", "LLMClient", "Received", "Reply", "seed_of"]

A = TypeVar("A", bound=BaseModel)
R = TypeVar("R")


class LLMClient:
    """Structured answers with a ledger, retries and a budget, one by one or in batches.

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
        self._service = Service(settings, base_url)

    def ask_many(self, asks: Sequence[Ask[A]]) -> list[Reply[A]]:
        """Gets an answer to each question, from the ledger where it has one.

        Which answers are asked for again, and how, is told at `Asking`. Batches that an earlier
        process left at the service are collected before anything is sent that they may answer.

        Returns:
            One reply per question, in their order.

        Raises:
            BudgetExceeded: Before a request that could cross `llm.budget_usd`.
            LLMError: If the service refuses a request, or does not answer in
                `settings.attempts` tries. What was received until then is in the ledger.
        """
        return _run(self._ask(asks))

    async def _ask(self, asks: Sequence[Ask[A]]) -> list[Reply[A]]:
        askings = [Asking(ask, self.settings) for ask in asks]
        async with self._service.connect() as api:
            batched = Batched(self._service, api, self.ledger, self.report)
            if self.settings.batch:
                await batched.run(askings)
            else:
                await batched.collect(askings)
                await Direct(self._service, api, self.ledger, self.report).run(askings)
        return [asking.reply for asking in askings if asking.reply is not None]


def _run(work: Coroutine[Any, Any, R]) -> R:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
