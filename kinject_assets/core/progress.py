"""How long work tells where it is."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.process import Owner, this_process

KEPT_SECONDS = 1.0
"""Least time between two notes of progress on disk."""

PROGRESS = "progress.json"
"""Name of the file in a step's work folder."""


class Report(Protocol):
    """Called by long work; cheap enough to call often."""

    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None:
        """Reports progress: what is being done, and how much of how much."""


@contextmanager
def repeating(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Does something every so often, in a thread of its own, as long as the block runs."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def silent(message: str, done: int | None = None, total: int | None = None) -> None:
    """A `Report` that says nothing."""


@dataclass(frozen=True)
class Progress:
    """Where a step is, as it is on disk while the step works, and after a crash.

    Attributes:
        cell: What is being made.
        message: What is being done.
        done: How much, of `total`; `None` when it cannot be counted.
        at: Seconds since 1970.
        owner: Process that does it.
    """

    cell: str
    message: str
    done: int | None
    total: int | None
    at: float
    owner: Owner

    @property
    def amount(self) -> str:
        """E.g. `120/200`; empty when it cannot be counted."""
        return f"{self.done}/{self.total}" if self.done is not None and self.total else ""

    @classmethod
    def now(cls, cell: str, message: str, done: int | None, total: int | None) -> "Progress":
        """The progress of a step of this process."""
        return cls(cell, message, done, total, time.time(), this_process())

    def write(self, folder: Path) -> None:
        """Writes it to a step's work folder."""
        write_atomically(folder / PROGRESS, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Progress | None":
        """Reads what `write` wrote; `None` if it is not there or damaged."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**fields, "owner": Owner(**fields["owner"])})
        return None
