"""A process that asks in batches, for tests that kill it: `python -m ... URL LEDGER COUNT POINT`.

It kills itself at a named point, with SIGKILL, or runs until it is done or killed.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kinject_assets import config
from kinject_assets.core.augmentation.prompts import PARAPHRASE
from kinject_assets.core.llm import ledger as ledgers
from kinject_assets.core.llm.client import Ask, LLMClient, Received, Reply, seed_of
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.llm.quoting import quote
from kinject_assets.lab.writer import MODEL

PRICES = {MODEL: (1.0, 10.0)}

POINTS = (
    "requests written down",
    "file uploaded",
    "file written down",
    "batch created",
    "batch written down",
    "answers downloaded",
    "answers half recorded",
    "answers recorded",
)


class Paraphrase(BaseModel):
    """What the lab's writer answers."""

    paraphrase: str


def settings(**changes: Any) -> config.LLM:
    """Those of a patient client that looks at its batches often."""
    return config.LLM(
        **{
            "model": MODEL,
            "timeout": 2.0,
            "attempts": 8,
            "batch": True,
            "batch_poll": 0.1,
            "prices": PRICES,
        }
        | changes
    )


def paraphrase_asks(count: int) -> list[Ask[Paraphrase]]:
    """Questions that the lab's writer has an answer to."""
    return [
        Ask(
            purpose="paraphrase",
            messages=[
                {"role": "system", "content": PARAPHRASE},
                {
                    "role": "user",
                    "content": quote(
                        "passage",
                        f"The Balan Accord drew {12 + n % 60} guests. Abric led the Balan Accord.",
                    ),
                },
            ],
            answer=Paraphrase,
            seed=seed_of("test", n),
        )
        for n in range(count)
    ]


def texts(replies: list[Reply[Any]]) -> list[str]:
    """Replies as they can be compared between processes."""
    values = [reply.value for reply in replies if isinstance(reply, Received)]
    return [value.model_dump_json() for value in values if isinstance(value, BaseModel)]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(call: Callable[..., Any], at: Callable[..., bool], before: bool) -> Callable[..., Any]:
    """A call, and death before or after it."""

    def done(*args: Any, **kwargs: Any) -> Any:
        if before and at(**kwargs):
            _die()
        found = call(*args, **kwargs)
        if at(**kwargs):
            _die()
        return found

    return done


def arm(point: str) -> None:
    """Makes this process die at a point; the batch itself is real, and so is the death."""

    def on(name: str, at: Callable[..., bool], before: bool) -> None:
        setattr(Ledger, name, _dying(getattr(Ledger, name), at, before))

    match point:
        case "requests written down":
            on("intend_batch", lambda **_: True, False)
        case "file uploaded" | "file written down":
            on("note_batch", lambda **known: "file_id" in known, point == "file uploaded")
        case "batch created" | "batch written down":
            on("note_batch", lambda **known: "batch_id" in known, point == "batch created")
        case "answers downloaded" | "answers recorded":
            on("end_requests", lambda **_: True, point == "answers downloaded")
        case "answers half recorded":
            ledgers.BLOCK = 3
            _after_blocks(2)
        case _:
            assert not point, point


def _after_blocks(count: int) -> None:
    append = ledgers.journal.append
    left = count

    def counted(path: Path, *rows: dict[str, Any]) -> None:
        nonlocal left
        append(path, *rows)
        left -= rows[0]["row"] == "received"
        if left == 0:
            _die()

    ledgers.journal.append = counted


def main() -> None:
    """The script; prints the answers."""
    # A test run that a script started in the background ignores SIGINT, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    url, folder, count, point = sys.argv[1:]
    arm(point)
    client = LLMClient(settings(), base_url=url, ledger=Ledger(Path(folder)))
    print(json.dumps(texts(client.ask_many(paraphrase_asks(int(count))))))


if __name__ == "__main__":
    main()
