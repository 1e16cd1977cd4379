"""`kinject run`: makes what a profile asks for and is not there yet, as real Dagster runs."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import dagster as dg
from dagster import DagsterInstance
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult

from kinject_assets.core.interrupts import Interrupts
from kinject_assets.core.plan import Plan
from kinject_assets.core.store import Cell
from kinject_assets.defs import io
from kinject_assets.defs.io import COMPLETE, UNLESS_COMPLETE
from kinject_assets.defs.liveness import process_tags
from kinject_assets.defs.partitions import partition_key

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Display(Protocol):
    """What a drive shows while it works."""

    def begin(self, cell: str) -> None:
        """A cell is being made."""

    def progress(self, message: str, done: int | None, total: int | None) -> None:
        """Work on the current cell goes on."""

    def end(self, cell: str, seconds: float) -> None:
        """A cell was made."""

    def fail(self, cell: str, message: str) -> None:
        """A cell could not be made."""


@dataclass
class Outcome:
    """What a drive did.

    Attributes:
        made: Cell -> seconds, in the order in which they were made.
        failed: Cell -> message.
        waiting: Cells whose inputs are missing, since those failed.
        kept: Cells that were complete before.
    """

    made: dict[Cell, float] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    waiting: list[Cell] = field(default_factory=list)
    kept: int = 0


def drive(
    plan: Plan,
    definitions: dg.Definitions,
    instance: DagsterInstance,
    cells: Sequence[Cell],
    display: Display,
    again: Collection[Cell] = (),
) -> Outcome:
    """Makes the given cells where they are missing or stale, inputs first, one run per partition.

    A failure does not stop cells that do not need what failed.

    Args:
        plan: What each cell is made from.
        definitions: The code location.
        instance: Where the runs are recorded.
        cells: What to make, inputs first.
        display: Told what goes on.
        again: Those of the cells that are made even if they are complete.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when the run that it met has been marked as failed.
    """
    outcome = Outcome()
    job = definitions.resolve_implicit_global_asset_job_def()
    with Interrupts() as interrupts, _listening(_Watcher(display, outcome, interrupts)):
        for parts, group in _partitions(cells):
            plan = plan.renewed()
            states = {cell: plan.state(cell) for cell in group}
            outcome.kept += sum(
                state == "complete" and cell not in again for cell, state in states.items()
            )
            for cell in (cell for cell, state in states.items() if state == "broken"):
                outcome.failed[cell] = plan.problem(cell)
                display.fail(str(cell), outcome.failed[cell])
            # Making an input anew may leave what follows as it was: look again after each run.
            while pending := [
                cell
                for cell in group
                if cell not in outcome.failed
                and (plan.state(cell) != "complete" or cell in set(again) - outcome.made.keys())
            ]:
                ready = [
                    cell
                    for cell in pending
                    if not _blocked(plan, cell, pending, outcome)
                    and not _early(plan, cell, pending, outcome)
                ]
                if not ready:
                    outcome.waiting += pending
                    break
                before = (len(outcome.made), len(outcome.failed))
                result = job.execute_in_process(
                    run_config=QUIET,
                    instance=instance,
                    partition_key=partition_key(parts),
                    asset_selection=[dg.AssetKey(cell.asset) for cell in ready],
                    raise_on_error=False,
                    tags={
                        **process_tags(),
                        **({} if set(ready) & set(again) else {UNLESS_COMPLETE: COMPLETE}),
                    },
                )
                plan = plan.renewed()
                # Dagster takes Ctrl-C for a failure of the step that it met; it ends the drive.
                interrupts.check()
                _note_failures(result, ready, outcome, display)
                if (len(outcome.made), len(outcome.failed)) == before:
                    raise RuntimeError(f"the run for {ready[0]} neither made nor failed anything")
    return outcome


def _partitions(cells: Sequence[Cell]) -> Iterator[tuple[tuple[str, ...], list[Cell]]]:
    """Cells that one run can make: the same partition, next to one another in the plan."""

    def key(cell: Cell) -> tuple[tuple[str, ...], bool]:
        return cell.parts, cell.asset == "lineage_audit"

    for (parts, _), group in groupby(cells, key):
        yield parts, list(group)


def _blocked(plan: Plan, cell: Cell, pending: Sequence[Cell], outcome: Outcome) -> bool:
    """Whether an input is broken, or missing and not going to be made by this run either."""
    _, missing = plan.input_versions(cell)
    if not cell.parts:
        # Results are of what is there; but those that are there lose nothing that they hold.
        known = plan.store.manifest(cell)
        held = known.inputs if known and cell.asset == "results" else {}
        gone = [*missing, *(c for c in outcome.failed if plan.state(c) == "broken")]
        return any(str(upstream) in held for upstream in gone)
    return any(upstream in outcome.failed for upstream, _ in plan.inputs(cell)) or any(
        upstream not in pending or _blocked(plan, upstream, pending, outcome)
        for upstream in missing
    )


def _early(plan: Plan, cell: Cell, pending: Sequence[Cell], outcome: Outcome) -> bool:
    """Whether an input that is complete as yet may have to be made anew after this run.

    Dagster puts the cells of a run in order by the edges between them. What lies between two of
    them and is no part of the run, it does not wait for.
    """

    def changes(above: Cell) -> bool:
        return any(
            upstream not in outcome.failed and (upstream in pending or changes(upstream))
            for upstream, _ in plan.inputs(above)
            if upstream.parts == cell.parts
        )

    return any(
        upstream not in pending and changes(upstream)
        for upstream, _ in plan.inputs(cell)
        if upstream.parts == cell.parts
    )


def _note_failures(
    result: ExecuteInProcessResult, cells: Sequence[Cell], outcome: Outcome, display: Display
) -> None:
    by_asset = {cell.asset: cell for cell in cells}
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        described = data.user_failure_data and data.user_failure_data.description
        error = data.error
        while error is not None and error.cause is not None:
            error = error.cause
        message = described or (error.message.strip() if error else "failed")
        cell = by_asset[event.step_key or cells[0].asset]
        outcome.failed[cell] = f"{message}\n(run {result.run_id})"
        display.fail(str(cell), message)


class _Watcher:
    """Passes what steps say on to a display, and keeps the time."""

    def __init__(self, display: Display, outcome: Outcome, interrupts: Interrupts) -> None:
        self._display = display
        self._outcome = outcome
        self._interrupts = interrupts

    def begin(self, cell: Cell) -> Callable[[], None]:
        """Called when a step starts; the answer is called when it has published."""
        began = time.monotonic()
        self._display.begin(str(cell))

        def end() -> None:
            seconds = time.monotonic() - began
            self._outcome.made[cell] = seconds
            self._display.end(str(cell), seconds)

        return end

    def progress(self, message: str, done: int | None, total: int | None) -> None:
        """Called often by every long step: also where a lost Ctrl-C is noticed."""
        self._interrupts.check()
        self._display.progress(message, done, total)


@contextlib.contextmanager
def _listening(watcher: _Watcher) -> Iterator[None]:
    io.LISTENERS.append(watcher)
    try:
        yield
    finally:
        io.LISTENERS.remove(watcher)
