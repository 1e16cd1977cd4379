"""Append-only record of every request to the language model service and of every answer.

A row is on disk before a request is sent and before its answer is used: a crash loses at most the
answers in flight, and an answer that was received is never asked, or paid, for again. A batch has
rows of its own: whose it is, and how far its submission came. Any process may collect a batch whose
own is gone; the rows that it writes name the batch.
"""

import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from kinject_assets.core import journal
from kinject_assets.core.llm.prices import cost
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.process import Owner, this_process
from kinject_assets.core.schema import Generation

MEND = "Remove this line: the request that it stood for may be asked, and paid for, again."

OWNED = timedelta(hours=26)
"""How long a batch belongs to a process that seems to live: on another machine that cannot be told,
and services end batches within 24 hours."""

BLOCK = 200
"""Answers of a batch that are written at once."""


@dataclass(frozen=True)
class Recorded:
    """An answer as it was received.

    Attributes:
        text: The whole answer, as sent; empty when the service sent none.
        finish_reason: The service's word, e.g. `stop` or `length`.
        refusal: The service's words when it refused; else empty.
        max_output_tokens: Limit under which it was asked.
    """

    generation_id: str
    text: str
    finish_reason: str
    refusal: str
    max_output_tokens: int


@dataclass
class _Sent:
    """One request: its intent row and, when there is one, how it ended."""

    intent: dict[str, Any]
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return self.end.get("row", "in flight")

    def tokens(self) -> tuple[int, int]:
        """Input and output tokens; the upper bound for what may have been paid without a trace."""
        if self.state == "received":
            return self.end["input_tokens"], self.end["output_tokens"]
        if self.state == "failed" and not self.end["possibly_paid"]:
            return 0, 0
        return self.intent["input_tokens"], self.intent["max_output_tokens"]


@dataclass
class SentBatch:
    """Requests that were, or were to be, submitted together.

    Attributes:
        token: Our name of it, also in the metadata that the service keeps with it.
        url: Address of the service.
        time: When it was written down.
        owner: Process that submitted it, or took it over; `None` when that has let go of it.
        file_id: The service's name of the uploaded requests; empty before it was known.
        batch_id: The service's name of the batch; empty before it was known.
        ended: How it ended; empty while it may be at the service.
        requests: Key -> intent row, of the requests that have not ended.
    """

    token: str
    url: str
    time: datetime
    owner: Owner | None
    file_id: str = ""
    batch_id: str = ""
    ended: str = ""
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)


class Ledger:
    """The requests and answers in a folder. Safe to share between threads.

    Every process writes a file of its own, so that processes never mix their lines.

    Args:
        folder: Where the files lie; made when missing.

    Raises:
        BrokenArtefact: If a line other than a file's last one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        # By where a request belongs: its batch, else the file of the process that sent it.
        self._sent: dict[tuple[str, str], _Sent] = {}
        self._answers: dict[str, Recorded] = {}
        self._sends: Counter[str] = Counter()
        self._batches: dict[str, SentBatch] = {}
        self._file = folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.jsonl"
        self._rows_read: Counter[str] = Counter()
        self._looked_at: dict[str, tuple[int, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads what other processes have written since."""
        with self._lock:
            rows: list[tuple[str, dict[str, Any]]] = []
            for path in sorted(self.folder.glob("*.jsonl")):
                found = path.stat()
                mark = (found.st_size, found.st_mtime_ns)
                if path == self._file or self._looked_at.get(path.name) == mark:
                    continue
                self._looked_at[path.name] = mark
                new = list(islice(journal.read(path, MEND), self._rows_read[path.name], None))
                self._rows_read[path.name] += len(new)
                rows += [(path.name, row) for row in new]
            # A batch may be collected in a file that comes before the one it was submitted in.
            rows.sort(key=lambda item: (_rank(item[1]), item[1]["time"]))
            for name, row in rows:
                self._take(name, row)

    def answer(self, key: str) -> Recorded | None:
        """The latest answer received for a request, or `None`."""
        with self._lock:
            return self._answers.get(key)

    def intend(
        self,
        key: str,
        *,
        purpose: str,
        model: str,
        attempt: int,
        input_tokens: int,
        max_output_tokens: int,
    ) -> str:
        """Records that a request is about to be sent.

        Args:
            key: Hash of the request's content, with its attempt number.
            purpose: What it is for.
            model: The service's name of the model.
            attempt: Attempt number.
            input_tokens: Estimate, for what may be lost in flight.
            max_output_tokens: Limit that goes with the request.

        Returns:
            Id of this generation, for `received` or `failed`.
        """
        with self._lock:
            row = self._intent(
                {
                    "key": key,
                    "purpose": purpose,
                    "model": model,
                    "attempt": attempt,
                    "input_tokens": input_tokens,
                    "max_output_tokens": max_output_tokens,
                }
            )
            self._write(row)
        return row["id"]

    def received(
        self,
        generation_id: str,
        *,
        text: str,
        finish_reason: str,
        refusal: str,
        input_tokens: int,
        output_tokens: int,
        seconds: float,
    ) -> Recorded:
        """Records an answer; it may be used once this returns."""
        with self._lock:
            self._write(
                _end(
                    "received",
                    generation_id,
                    seconds,
                    text=text,
                    finish_reason=finish_reason,
                    refusal=refusal,
                    input_tokens=input_tokens,
                    output_tokens=output_tokens,
                )
            )
            sent = self._sent[self._file.name, generation_id]
            return self._answers[sent.intent["key"]]

    def failed(
        self,
        generation_id: str,
        *,
        status: int | None,
        why: str,
        possibly_paid: bool,
        seconds: float,
    ) -> None:
        """Records that a request brought no answer.

        Args:
            generation_id: As `intend` gave it.
            status: HTTP status; `None` when there was none.
            why: What went wrong, without any key.
            possibly_paid: The service may have done the work, e.g. before a timeout.
            seconds: Time from sending to giving up.
        """
        with self._lock:
            self._write(
                _end(
                    "failed",
                    generation_id,
                    seconds,
                    status=status,
                    why=why,
                    possibly_paid=possibly_paid,
                )
            )

    def intend_batch(
        self, requests: Sequence[Mapping[str, Any]], *, url: str, discount: float
    ) -> SentBatch:
        """Records that requests are about to be submitted together, by this process.

        Args:
            requests: Arguments of `intend` for each, its key among them.
            url: Address of the service.
            discount: Part of the price that they save.
        """
        with self._lock:
            token = uuid.uuid4().hex
            _HELD.add(token)
            first = _batch_row(token, url=url, owner=asdict(this_process()))
            intents = [
                self._intent({**request, "batch": token, "discount": discount})
                for request in requests
            ]
            self._write(first, *intents)
            return self._batches[token]

    def note_batch(self, token: str, **known: str) -> None:
        """Records what has become known of a batch: `file_id`, `batch_id`, or how it `ended`.

        A request of an ended batch that has no end of its own is possibly paid, and lost.
        """
        with self._lock:
            self._write(_batch_row(token, **known))

    def end_requests(self, token: str, seconds: float, ends: Mapping[str, dict[str, Any]]) -> None:
        """Records how requests of a batch ended.

        Args:
            token: The batch.
            seconds: How long it took.
            ends: Ids of requests -> what `received`, or `failed`, is given for one.
        """
        rows = [
            _end(
                "received" if "text" in end else "failed",
                generation_id,
                seconds,
                batch=token,
                **end,
            )
            for generation_id, end in ends.items()
        ]
        with self._lock:
            for start in range(0, len(rows), BLOCK):
                self._write(*rows[start : start + BLOCK])

    def open_batches(self) -> list[SentBatch]:
        """Batches that may still be at a service, oldest first."""
        with self._lock:
            found = [batch for batch in self._batches.values() if not batch.ended]
        return sorted(found, key=lambda batch: batch.time)

    def hold(self, batch: SentBatch) -> bool:
        """Makes a batch this process's, to collect it, unless a living process has it.

        Each batch is held once in a process; `let_go` ends it.
        """
        # Two processes that start at once must not both take over what a third one left.
        with FileLock(self.folder / "batches.lock"), self._lock:
            self.refresh()
            if batch.ended or batch.token in _HELD:
                return False
            mine = batch.owner == this_process()
            fresh = datetime.now(UTC) - batch.time < OWNED
            if batch.owner is not None and not mine and batch.owner.alive and fresh:
                return False
            if not mine:
                self._write(_batch_row(batch.token, owner=asdict(this_process())))
            _HELD.add(batch.token)
            return True

    def let_go(self, batch: SentBatch) -> None:
        """Ends `hold`: whoever needs the batch next may collect it."""
        with self._lock:
            if not batch.ended:
                self._write(_batch_row(batch.token, owner=None))
            _HELD.discard(batch.token)

    def generations(
        self, prices: Mapping[str, tuple[float, float]] | None = None
    ) -> list[Generation]:
        """Every request in the ledger, oldest first.

        A request that is in flight or in a batch, or one that failed after the service may have
        done the work, is counted with the upper bound that the budget set aside for it.

        Args:
            prices: Model -> USD per million input and output tokens, before the built-in table.
        """
        return [row for row, _ in self._generations(prices)]

    def bill(
        self, since: datetime, prices: Mapping[str, tuple[float, float]] | None = None
    ) -> dict[str, float]:
        """Requests that were sent, or ended in a batch, since a moment, with tokens and USD.

        Requests at unknown prices cost nothing.
        """
        rows = [
            row
            for row, ended in self._generations(prices)
            if row.created_at >= since or (ended is not None and ended >= since)
        ]
        return {
            "requests": len(rows),
            "answers": sum(row.state == "received" for row in rows),
            "input_tokens": sum(row.input_tokens for row in rows),
            "output_tokens": sum(row.output_tokens for row in rows),
            "cost_usd": round(sum(row.cost_usd or 0.0 for row in rows), 6),
        }

    def lost(self) -> int:
        """Requests that were in flight when their process died: possibly paid, answer lost."""
        with self._lock:
            return sum(
                self._state(request) == "in flight" and home != self._file.name
                for (home, _), request in self._sent.items()
            )

    def spent(self, prices: Mapping[str, tuple[float, float]] | None = None) -> float:
        """USD of all generations, by the same prices; models without a price count nothing."""
        return sum(row.cost_usd or 0.0 for row in self.generations(prices))

    def _generations(
        self, prices: Mapping[str, tuple[float, float]] | None
    ) -> Iterator[tuple[Generation, datetime | None]]:
        """Each request, oldest first, and when it ended if it did."""
        with self._lock:
            sent = sorted(self._sent.items(), key=lambda item: (item[1].intent["time"], item[0]))
            ids: set[str] = set()
            found: list[tuple[Generation, datetime | None]] = []
            for (home, generation_id), request in sent:
                # Two processes that sent the same request at once gave it the same id.
                unique = (
                    content_hash(generation_id, home) if generation_id in ids else generation_id
                )
                ids.add(unique)
                end = request.end.get("time")
                found.append(
                    (
                        _generation(unique, request, self._state(request), prices),
                        datetime.fromisoformat(end) if end else None,
                    )
                )
        return iter(found)

    def _state(self, request: _Sent) -> str:
        batch = self._batches.get(request.intent.get("batch", ""))
        waiting = batch is not None and not batch.ended
        return "in batch" if waiting and not request.end else request.state

    def _intent(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The row of a request that is about to be sent."""
        return {
            "row": "intent",
            "id": content_hash(fields["key"], self._sends[fields["key"]]),
            **fields,
            "time": datetime.now(UTC).isoformat(),
        }

    def _take(self, name: str, row: dict[str, Any]) -> None:
        home = row.get("batch", name)
        if row["row"] == "intent":
            self._sent[home, row["id"]] = _Sent(row)
            self._sends[row["key"]] += 1
            if home in self._batches:
                self._batches[home].requests[row["key"]] = row
            return
        if row["row"] == "batch":
            self._take_batch(row)
            return
        sent = self._sent.get((home, row["id"]))
        if sent is None:  # its intent was a damaged line that somebody removed
            return
        sent.end = row
        if home in self._batches:
            self._batches[home].requests.pop(sent.intent["key"], None)
        if row["row"] == "received":
            self._answers[sent.intent["key"]] = Recorded(
                generation_id=row["id"],
                text=row["text"],
                finish_reason=row["finish_reason"],
                refusal=row["refusal"],
                max_output_tokens=sent.intent["max_output_tokens"],
            )

    def _take_batch(self, row: dict[str, Any]) -> None:
        batch = self._batches.get(row["batch"])
        if batch is None:
            if "url" not in row:  # its first row was a damaged line that somebody removed
                return
            batch = SentBatch(
                token=row["batch"],
                url=row["url"],
                time=datetime.fromisoformat(row["time"]),
                owner=None,
            )
            self._batches[batch.token] = batch
        if "owner" in row:
            batch.owner = Owner(**row["owner"]) if row["owner"] else None
        batch.file_id = row.get("file_id", batch.file_id)
        batch.batch_id = row.get("batch_id", batch.batch_id)
        batch.ended = row.get("ended", batch.ended)

    def _write(self, *rows: dict[str, Any]) -> None:
        journal.append(self._file, *rows)
        for row in rows:
            self._take(self._file.name, row)


_HELD: set[str] = set()
"""Batches that an `ask_many` of this process waits for."""


def _batch_row(token: str, **known: Any) -> dict[str, Any]:
    return {"row": "batch", "batch": token, **known, "time": datetime.now(UTC).isoformat()}


def _rank(row: dict[str, Any]) -> int:
    """What comes first: beginnings of batches, then requests, then what became of them."""
    if row["row"] == "batch" and "url" in row:
        return 0
    return 1 if row["row"] == "intent" else 2


def _end(row: str, generation_id: str, seconds: float, **fields: Any) -> dict[str, Any]:
    return {
        "row": row,
        "id": generation_id,
        **fields,
        "seconds": round(seconds, 3),
        "time": datetime.now(UTC).isoformat(),
    }


def _generation(
    generation_id: str,
    sent: _Sent,
    state: str,
    prices: Mapping[str, tuple[float, float]] | None,
) -> Generation:
    intent = sent.intent
    tokens = sent.tokens()
    full = cost(intent["model"], *tokens, prices)
    return Generation(
        generation_id=generation_id,
        purpose=intent["purpose"],
        model=intent["model"],
        attempt=intent["attempt"],
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost_usd=None if full is None else full * (1 - intent.get("discount", 0.0)),
        seconds=sent.end.get("seconds", 0.0),
        state=state,
        created_at=datetime.fromisoformat(intent["time"]),
    )
