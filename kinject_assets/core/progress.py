"""How long work tells where it is."""

from typing import Protocol


class Report(Protocol):
    """Called by long work; cheap enough to call often."""

    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None:
        """Reports progress: what is being done, and how much of how much."""


def silent(message: str, done: int | None = None, total: int | None = None) -> None:
    """A `Report` that says nothing."""
