"""Progress of a run in the terminal: live bars for people, plain lines for pipes and logs."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

LINE_SECONDS = 5.0
"""Seconds between two plain lines on the same work."""


class _Live:
    """Its bars are on the screen while it is entered."""

    _progress: Progress

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class StepDisplay(_Live):
    """Shows the progress of one command's work on stderr; called as a `core.progress.Report`.

    Args:
        console: Where to; its `is_terminal` decides between a live line and plain lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, amount="")
        self._said = ("", float("-inf"))

    def __call__(self, message: str, done: int | None = None, total: int | None = None) -> None:
        """Work goes on."""
        amount = f"{done}/{total}" if done is not None and total else ""
        self._progress.update(self._task, description=message, amount=amount)
        before, at = self._said
        now = time.monotonic()
        # What changes with every file or token is the same work as before.
        work = message.split(" ", 1)[0]
        if not self._console.is_terminal and (work != before or now - at >= LINE_SECONDS):
            self._said = (work, now)
            self.say(f"{message} {amount}".rstrip())

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class TerminalDisplay(_Live):
    """Shows a drive on stderr.

    Args:
        total: Cells that the drive may make.
        done: How many of them were complete before.
        console: Where to; its `is_terminal` decides between live bars and plain lines.
    """

    def __init__(self, total: int, console: Console, done: int = 0) -> None:
        self._console = console
        self._total = total
        self._count = done
        self._plain = not console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=self._plain,
        )
        self._all = self._progress.add_task("all artefacts", total=total, completed=done)
        self._now = self._progress.add_task("", total=None, visible=False)
        self._said = time.monotonic()

    def begin(self, cell: str) -> None:
        """A cell is being made."""
        self._progress.update(self._now, description=cell, completed=0, total=None, visible=True)

    def progress(self, message: str, done: int | None, total: int | None) -> None:
        """Work on the current cell goes on."""
        self._progress.update(self._now, completed=done or 0, total=total)

    def end(self, cell: str, seconds: float) -> None:
        """A cell was made."""
        self._count += 1
        self._progress.update(self._all, completed=self._count)
        self._line(f"[{self._count}/{self._total}] {cell}  {seconds:.1f} s")

    def fail(self, cell: str, message: str) -> None:
        """A cell could not be made."""
        self._line(f"FAILED {cell}: {message}")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
