"""Append-only record of every request to the language model service and of every answer.

A row is on disk before a request is sent and before its answer is used: a crash loses at most the
answers in flight, and an answer that was received is never asked, or paid, for again.
"""

import os
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinject_assets.core import journal
from kinject_assets.core.llm.prices import cost
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Generation

MEND = "Remove this line: the request that it stood for may be asked, and paid for, again."


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
        self._lock = threading.Lock()
        self._sent: dict[tuple[str, str], _Sent] = {}
        self._answers: dict[str, Recorded] = {}
        self._sends: Counter[str] = Counter()
        self._file = folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.jsonl"
        for path in sorted(folder.glob("*.jsonl")):
            for row in journal.read(path, MEND):
                self._take(path.name, row)

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
            generation_id = content_hash(key, self._sends[key])
            self._write(
                {
                    "row": "intent",
                    "id": generation_id,
                    "key": key,
                    "purpose": purpose,
                    "model": model,
                    "attempt": attempt,
                    "input_tokens": input_tokens,
                    "max_output_tokens": max_output_tokens,
                    "time": datetime.now(UTC).isoformat(),
                }
            )
        return generation_id

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
                {
                    "row": "received",
                    "id": generation_id,
                    "text": text,
                    "finish_reason": finish_reason,
                    "refusal": refusal,
                    "input_tokens": input_tokens,
                    "output_tokens": output_tokens,
                    "seconds": round(seconds, 3),
                    "time": datetime.now(UTC).isoformat(),
                }
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
                {
                    "row": "failed",
                    "id": generation_id,
                    "status": status,
                    "why": why,
                    "possibly_paid": possibly_paid,
                    "seconds": round(seconds, 3),
                    "time": datetime.now(UTC).isoformat(),
                }
            )

    def generations(
        self, prices: Mapping[str, tuple[float, float]] | None = None
    ) -> list[Generation]:
        """Every request in the ledger, oldest first.

        A request in flight, or one that failed after the service may have done the work, is
        counted with the upper bound that the budget set aside for it.

        Args:
            prices: Model -> USD per million input and output tokens, before the built-in table.
        """
        with self._lock:
            sent = sorted(self._sent.items(), key=lambda item: (item[1].intent["time"], item[0]))
            found: dict[str, Generation] = {}
            for (name, generation_id), request in sent:
                # Two processes that sent the same request at once gave it the same id.
                unique = (
                    content_hash(generation_id, name) if generation_id in found else generation_id
                )
                found[unique] = _generation(unique, request, prices)
        return list(found.values())

    def bill(
        self, since: datetime, prices: Mapping[str, tuple[float, float]] | None = None
    ) -> dict[str, float]:
        """Requests sent since a moment, with their tokens and USD; unknown prices count nothing."""
        rows = [row for row in self.generations(prices) if row.created_at >= since]
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
                request.state == "in flight" and name != self._file.name
                for (name, _), request in self._sent.items()
            )

    def spent(self, prices: Mapping[str, tuple[float, float]] | None = None) -> float:
        """USD of all generations, by the same prices; models without a price count nothing."""
        return sum(row.cost_usd or 0.0 for row in self.generations(prices))

    def _take(self, name: str, row: dict[str, Any]) -> None:
        if row["row"] == "intent":
            self._sent[name, row["id"]] = _Sent(row)
            self._sends[row["key"]] += 1
            return
        sent = self._sent.get((name, row["id"]))
        if sent is None:  # its intent was a damaged line that somebody removed
            return
        sent.end = row
        if row["row"] == "received":
            self._answers[sent.intent["key"]] = Recorded(
                generation_id=row["id"],
                text=row["text"],
                finish_reason=row["finish_reason"],
                refusal=row["refusal"],
                max_output_tokens=sent.intent["max_output_tokens"],
            )

    def _write(self, row: dict[str, Any]) -> None:
        journal.append(self._file, row)
        self._take(self._file.name, row)


def _generation(
    generation_id: str, sent: _Sent, prices: Mapping[str, tuple[float, float]] | None
) -> Generation:
    intent = sent.intent
    tokens = sent.tokens()
    return Generation(
        generation_id=generation_id,
        purpose=intent["purpose"],
        model=intent["model"],
        attempt=intent["attempt"],
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cost_usd=cost(intent["model"], *tokens, prices),
        seconds=sent.end.get("seconds", 0.0),
        state=sent.state,
        created_at=datetime.fromisoformat(intent["time"]),
    )
