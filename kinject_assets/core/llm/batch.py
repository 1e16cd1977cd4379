"""Requests that go together through the service's Batch API: half the price, within a day.

What is submitted is in the ledger first, step by step: the requests, the uploaded file, the batch.
Wherever a process dies, the next one knows whether there can be a batch, finds it, and collects it
before it sends anything that the batch may answer.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from kinject_assets.core.errors import BudgetExceeded, LLMError
from kinject_assets.core.llm.asking import Asking, ChatRequest
from kinject_assets.core.llm.ledger import OWNED, Ledger, SentBatch
from kinject_assets.core.llm.service import (
    FIRST_PAUSE,
    Pauses,
    Service,
    Trouble,
    read_completion,
)
from kinject_assets.core.progress import Report

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

T = TypeVar("T")

METADATA = "kinject"
"""Name under which the service keeps our token of a batch."""

FILE_BYTES = 100_000_000
"""Largest file of requests that OpenAI takes."""

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

PATIENCE = 3600.0
"""Seconds that a service may be out of reach while a batch is under way."""

SEARCHES = 3
"""How often a batch that may have been made is looked for before it is made again."""

logger = logging.getLogger(__name__)


class _Refused(LLMError):
    """The service refused a call, and would again."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.why)
        self.status = trouble.status


class Batched:
    """Asks in batches, and collects those that were left behind. Lives in one event loop.

    Args:
        service: Whom to ask.
        api: The connection.
        ledger: Where requests, batches and answers are recorded and looked up.
        report: Told how many requests of the batches under way are answered.
    """

    def __init__(
        self, service: Service, api: "AsyncOpenAI", ledger: Ledger, report: Report
    ) -> None:
        self.service = service
        self.settings = service.settings
        self.api = api
        self.ledger = ledger
        self.report = report
        self.most = self.settings.batch_requests
        self.one_by_one = self.crowded = False
        self.held: dict[str, SentBatch] = {}
        self.counts: dict[str, int] = {}
        self.missed: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.error: LLMError | None = None
        self.cancelled = ""
        self.reached = time.monotonic()

    async def run(self, askings: Sequence[Asking[Any]]) -> None:
        """Asks, round by round, until each has its reply.

        A round is what the ledger cannot answer; what came back of no use is in the next one.

        Raises:
            LLMError: Once anything has gone wrong for good, or a batch was cancelled.
        """
        with self._letting_go():
            await self._look_at_left()
            while left := self._answered(askings):
                await self._round({asking.request.key: asking.request for asking in left})
                if self.error is not None:
                    raise self.error
                if self.cancelled:
                    raise LLMError(
                        f"{self.cancelled} was cancelled at {self.service.url}. What it had "
                        "answered is kept; run again to send the rest."
                    )

    async def collect(self, askings: Sequence[Asking[Any]]) -> None:
        """Collects batches that were left behind; those that hold open requests are waited for."""
        if not self._here():
            return
        with self._letting_go():
            await self._look_at_left()
            while left := self._answered(askings):
                needed = {asking.request.key for asking in left}
                if not self._waiting_for(needed):
                    return
                # What could not be answered is sent by the caller, who meets the same trouble.
                self.error = None
                await self._wait(needed)

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        """Leaves what is still under way at the service to whoever runs next."""
        try:
            yield
        finally:
            for batch in list(self.held.values()):
                if batch.batch_id and not batch.ended:
                    logger.warning(
                        "Batch %s (%d requests) goes on at %s: run again to collect it.",
                        batch.batch_id,
                        len(batch.requests),
                        self.service.url,
                    )
                self._let_go(batch)

    def _answered(self, askings: Sequence[Asking[Any]]) -> list[Asking[Any]]:
        """Takes what the ledger has; the questions that it leaves open."""
        for asking in askings:
            while asking.reply is None and (known := asking.known(self.ledger)):
                asking.take(known)
        left = [asking for asking in askings if asking.reply is None]
        self.report("asking the language model", len(askings) - len(left), len(askings))
        return left

    async def _round(self, requests: Mapping[str, ChatRequest]) -> None:
        if self.crowded:
            await asyncio.sleep(self.settings.batch_poll)
            self.crowded = False
        self.ledger.refresh()
        waiting = self._waiting_for(requests)
        under_way = {key for batch in waiting for key in batch.requests}
        new = [request for key, request in requests.items() if key not in under_way]
        self._tell_of_batches_elsewhere(new)
        for part in self._packed(new, spare=bool(waiting)):
            await self._submit(part)
        await self._wait(requests)

    def _here(self) -> list[SentBatch]:
        return [batch for batch in self.ledger.open_batches() if batch.url == self.service.url]

    def _waiting_for(self, needed: Collection[str]) -> list[SentBatch]:
        """Open batches that may answer any of these keys."""
        return [batch for batch in self._here() if any(key in batch.requests for key in needed)]

    def _tell_of_batches_elsewhere(self, new: Sequence[ChatRequest]) -> None:
        keys = {request.key for request in new}
        for batch in self.ledger.open_batches():
            if batch.url != self.service.url and (again := len(keys & batch.requests.keys())):
                logger.warning(
                    "Batch %s of this study is at %s and may answer %d requests that now go to "
                    "%s. Set llm.base_url back to collect it.",
                    batch.batch_id or batch.token,
                    batch.url,
                    again,
                    self.service.url,
                )

    # Submission

    def _packed(
        self, requests: Sequence[ChatRequest], spare: bool
    ) -> Iterator[list[tuple[ChatRequest, bytes]]]:
        """Requests with their lines, as many in one batch as the service and the budget allow.

        Args:
            requests: What to send, in order.
            spare: Batches under way may turn out cheaper than feared.

        Raises:
            BudgetExceeded: If there is no money for any, and none may come back.
        """
        limit = self.settings.budget_usd
        spent = 0.0 if limit is None else self.ledger.spent(self.settings.prices)
        part: list[tuple[ChatRequest, bytes]] = []
        size = 0
        for request in requests:
            if limit is not None:
                price = self.service.cost(request.input_tokens, self.settings.max_output_tokens)
                price = (price or 0.0) * (1 - self.settings.batch_discount)
                if spent + price > limit:
                    if not part and not spare:
                        raise BudgetExceeded.before(price, spent, limit)
                    break
                spent += price
            line = self._line(request)
            if part and (len(part) == self.most or size + len(line) > FILE_BYTES):
                yield part
                if self.one_by_one:
                    return
                part, size, spare = [], 0, True
            part.append((request, line))
            size += len(line)
        if part:
            yield part

    def _line(self, request: ChatRequest) -> bytes:
        row = {
            "custom_id": request.key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**request.body, **self.service.limit()},
        }
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()

    async def _submit(self, part: Sequence[tuple[ChatRequest, bytes]]) -> None:
        batch = self.ledger.intend_batch(
            [
                {
                    "key": request.key,
                    "purpose": request.purpose,
                    "model": self.settings.model,
                    "attempt": request.number,
                    "input_tokens": request.input_tokens,
                    "max_output_tokens": self.settings.max_output_tokens,
                }
                for request, _ in part
            ],
            url=self.service.url,
            discount=self.settings.batch_discount,
        )
        self.held[batch.token] = batch
        self.report(f"submitting a batch of {len(part)} requests")
        name = f"{METADATA}-{batch.token}.jsonl"
        content = b"".join(line for _, line in part)
        try:
            file = await self._call(
                lambda: self.api.files.create(file=(name, content), purpose="batch")
            )
        except LLMError as error:
            self._give_up(batch, str(error))
            raise self._without_batches(error) from None
        self.ledger.note_batch(batch.token, file_id=file.id)
        await self._create(batch)

    async def _create(self, batch: SentBatch) -> None:
        from openai import OpenAIError

        pauses, possibly_there, why = Pauses(), False, ""
        for _ in range(self.settings.attempts):
            try:
                created = await self.api.batches.create(
                    input_file_id=batch.file_id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata={METADATA: batch.token},
                )
            except (OpenAIError, ValueError) as error:
                trouble = self.service.trouble(error)
                if trouble.final:
                    self._give_up(batch, trouble.why)
                    raise self._without_batches(_Refused(trouble)) from None
                why = trouble.why
                possibly_there = possibly_there or trouble.possibly_paid
                # It may be there although we were not told: never twice, so look first.
                for _ in range(SEARCHES if trouble.possibly_paid else 1):
                    await asyncio.sleep(pauses.after(trouble))
                    if await self._found(batch):
                        return
            else:
                self.ledger.note_batch(batch.token, batch_id=created.id)
                return
        if not possibly_there:
            self._give_up(batch, why)
        raise self.service.no_answer(why)

    def _give_up(self, batch: SentBatch, why: str) -> None:
        """Ends a batch that the service has never run: nothing was paid."""
        self._end(batch, "not submitted", 0.0, dict.fromkeys(batch.requests, _unpaid(why)))

    def _without_batches(self, error: LLMError) -> LLMError:
        if isinstance(error, _Refused) and error.status in {404, 405}:
            return LLMError(
                f"{self.service.url} has no Batch API (status {error.status}). Set llm.batch: "
                "false to send requests one by one."
            )
        return error

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Calls the service, again after troubles that pass.

        Raises:
            _Refused: If it would bring the same again.
            LLMError: After `settings.attempts` tries.
        """
        from openai import OpenAIError

        pauses, why = Pauses(), ""
        for _ in range(self.settings.attempts):
            try:
                return await call()
            except (OpenAIError, ValueError) as error:
                trouble = self.service.trouble(error)
                if trouble.final:
                    raise _Refused(trouble) from None
                why = trouble.why
                await asyncio.sleep(pauses.after(trouble))
        raise self.service.no_answer(why)

    # Collection

    async def _look_at_left(self) -> None:
        """Collects batches of earlier processes that have ended, whatever they were for."""
        for batch in self._here():
            if self._hold(batch):
                # What is wrong is met again by whoever needs the batch.
                with suppress(LLMError):
                    await self._look(batch)
                self._let_go(batch)
        self.error, self.cancelled = None, ""
        self.failures.clear()

    def _hold(self, batch: SentBatch) -> bool:
        if batch.token in self.held:
            return True
        if not self.ledger.hold(batch):
            return False
        self.held[batch.token] = batch
        return True

    def _let_go(self, batch: SentBatch) -> None:
        if self.held.pop(batch.token, None):
            self.ledger.let_go(batch)

    async def _wait(self, needed: Collection[str]) -> None:
        """Waits until no batch may answer any of these keys, or something went wrong for good."""
        pause = FIRST_PAUSE
        self.reached = time.monotonic()
        together = len(self._waiting_for(needed))
        while self.error is None and (waiting := self._waiting_for(needed)):
            for batch in waiting:
                if self._hold(batch):
                    await self._look(batch, alone=together == 1)
            if under_way := [batch for batch in waiting if not batch.ended]:
                self._tell(under_way)
                await asyncio.sleep(min(pause, self.settings.batch_poll))
                pause *= 2

    def _tell(self, under_way: Sequence[SentBatch]) -> None:
        names: list[str] = []
        for batch in under_way:
            if batch.token in self.held:
                names.append(batch.batch_id or "a batch to be found")
            elif owner := batch.owner:
                names.append(f"a batch of process {owner.pid} on {owner.host}")
        done = sum(self.counts.get(batch.token, 0) for batch in under_way)
        total = sum(len(batch.requests) for batch in under_way)
        self.report(
            f"waiting for {', '.join(names)}: stopping leaves it at the service, and the next run "
            "collects it",
            min(done, total),
            total,
        )

    async def _look(self, batch: SentBatch, alone: bool = True) -> None:
        """Asks how a batch is, and collects it when it has ended.

        Args:
            batch: One that is held.
            alone: No other one was under way with it.
        """
        from openai import OpenAIError

        if not batch.batch_id and not await self._located(batch):
            return
        try:
            state = await self.api.batches.retrieve(batch.batch_id)
        except (OpenAIError, ValueError) as error:
            trouble = self.service.trouble(error)
            if trouble.status == 404:
                self._miss(batch)
                return
            if trouble.final:
                raise _Refused(trouble) from None
            if time.monotonic() - self.reached > PATIENCE:
                raise self.service.no_answer(trouble.why) from None
            return
        self.reached = time.monotonic()
        self.missed.pop(batch.token, None)
        if counts := state.request_counts:
            self.counts[batch.token] = counts.completed + counts.failed
        if state.status in ENDED:
            await self._collect(batch, state, alone)

    async def _located(self, batch: SentBatch) -> bool:
        """Finds a batch whose process died before it knew its name."""
        if not batch.file_id:
            # A batch is made from a file whose name was written down first.
            self._give_up(batch, "its process died before it was submitted")
            return False
        if await self._found(batch):
            return True
        self._miss(batch)
        return False

    async def _found(self, batch: SentBatch) -> bool:
        """Looks for a batch among all that the service has."""

        async def search() -> str | None:
            async for other in self.api.batches.list(limit=100):
                ours = (other.metadata or {}).get(METADATA) == batch.token
                if ours or other.input_file_id == batch.file_id:
                    return other.id
            return None

        try:
            batch_id = await self._call(search)
        except _Refused as error:
            if error.status != 404:
                raise
            batch_id = None
        if batch_id:
            self.ledger.note_batch(batch.token, batch_id=batch_id)
        return bool(batch_id)

    def _miss(self, batch: SentBatch) -> None:
        """Takes note that the service does not know a batch; time and again, it is lost."""
        self.missed[batch.token] += 1
        if self.missed[batch.token] < self.settings.attempts and not _old(batch):
            return  # services need a moment to know of what they have made
        logger.warning(
            "%s does not know batch %s (%d requests): possibly paid, lost. They are sent again. "
            "Is OPENAI_API_KEY still of the project that sent it?",
            self.service.url,
            batch.batch_id or batch.token,
            len(batch.requests),
        )
        self.ledger.note_batch(batch.token, ended="lost")
        self._let_go(batch)

    async def _collect(self, batch: SentBatch, state: "Batch", alone: bool) -> None:
        """Records how each request of an ended batch came out."""
        outcomes: dict[str, Any] = {}
        for file_id in (state.output_file_id, state.error_file_id):
            if file_id:
                outcomes |= self._outcomes(await self._content(batch, file_id))
        otherwise = self._unanswered(batch, state)
        full = state.status == "failed" and _code(state) == "token_limit_exceeded"
        if full:
            # Too much at once for the account: less of it, and only that, the next time.
            self.one_by_one = self.crowded = True
            if alone:
                self.most = max(1, len(batch.requests) // 2)
        ends: dict[str, dict[str, Any]] = {}
        for key, intent in batch.requests.items():
            outcome = outcomes.get(key, otherwise)
            if isinstance(outcome, Trouble):
                if not full or (alone and len(batch.requests) == 1):
                    self._note_trouble(key, outcome)
                ends[key] = _failed(outcome)
            else:
                ends[key] = read_completion(outcome, intent["input_tokens"])
        ended_at = state.completed_at or state.expired_at or state.cancelled_at
        seconds = float(ended_at - state.created_at) if ended_at else 0.0
        if state.status == "cancelled":
            self.cancelled = state.id
        self._end(batch, state.status, seconds, ends)

    def _note_trouble(self, key: str, trouble: Trouble) -> None:
        self.failures[key] += 1
        if trouble.final:
            self.error = self.error or LLMError(trouble.why)
        elif self.failures[key] == self.settings.attempts:
            self.error = self.error or self.service.no_answer(trouble.why)

    def _unanswered(self, batch: SentBatch, state: "Batch") -> Trouble:
        """What it means that a request stands in neither of the files."""
        if state.status != "failed":
            # A service takes nothing for requests that it did not come to.
            return Trouble(
                f"batch {state.id} is {state.status} without an answer to it",
                possibly_paid=state.status == "completed",
            )
        errors = (state.errors and state.errors.data) or []
        said = "; ".join(
            f"{e.code}: {e.message}" + (f" (line {e.line})" if e.line else "") for e in errors[:3]
        )
        why = f"batch {state.id} failed: {self.service.said(said or 'no reason given')}"
        if _code(state) == "token_limit_exceeded":
            return Trouble(why)
        return Trouble(
            f"{self.service.url}: {why}. Nothing of it was paid. Set llm.batch: false to send the "
            f"{len(batch.requests)} requests one by one.",
            final=True,
        )

    def _outcomes(self, content: bytes) -> dict[str, Any]:
        """Key -> completion, or trouble, of the lines of a file."""
        from openai.types.chat import ChatCompletion

        found: dict[str, Any] = {}
        for line in content.split(b"\n"):
            try:
                row = json.loads(line)
                key, answer = row["custom_id"], row.get("response") or {}
                status, body = answer.get("status_code"), answer.get("body") or {}
                error = row.get("error") or body.get("error") or {}
                code, message = error.get("code"), error.get("message") or json.dumps(error)
                if status == 200:
                    found[key] = ChatCompletion.construct(**body)
                elif status:
                    found[key] = self.service.refusal(status, code, message)
                else:
                    found[key] = Trouble(f"{code}: {self.service.said(message)}")
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # the request of such a line counts as one without a line
        return found

    async def _content(self, batch: SentBatch, file_id: str) -> bytes:
        try:
            return (await self._call(lambda: self.api.files.content(file_id))).content
        except _Refused as error:
            # Services keep results for some weeks.
            if error.status == 404 and _old(batch):
                return b""
            raise

    def _end(
        self, batch: SentBatch, how: str, seconds: float, ends: Mapping[str, dict[str, Any]]
    ) -> None:
        """Records the ends of requests, by their keys, and then that of the batch."""
        ids = {batch.requests[key]["id"]: end for key, end in ends.items()}
        self.ledger.end_requests(batch.token, seconds, ids)
        self.ledger.note_batch(batch.token, ended=how)
        self._let_go(batch)


def _old(batch: SentBatch) -> bool:
    return datetime.now(UTC) - batch.time > OWNED


def _code(state: "Batch") -> str | None:
    errors = (state.errors and state.errors.data) or []
    return errors[0].code if errors else None


def _failed(trouble: Trouble) -> dict[str, Any]:
    """What the ledger keeps of a request without an answer."""
    return {
        "status": trouble.status,
        "why": trouble.why,
        "possibly_paid": trouble.possibly_paid,
    }


def _unpaid(why: str) -> dict[str, Any]:
    return _failed(Trouble(why))
