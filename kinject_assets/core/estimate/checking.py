"""A simulation held against a run whose processes were measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kinject_assets.config import Node
from kinject_assets.core.estimate.nodes import speed
from kinject_assets.core.estimate.schedule import Placed, Schedule, Step, extents


def as_measured(
    steps: Sequence[Step], measured: Sequence[Placed], nodes: Mapping[str, Node]
) -> list[Step]:
    """Steps whose processes take as long as they did; those not measured stay as they are.

    Simulated again, they check all but the seconds of work: order, nodes, and what goes on around
    processes.

    Args:
        steps: The steps, with as many processes as there were.
        measured: Their processes; of a step that merges, the last one to start is the one that did.
        nodes: Name of each node -> what it is.
    """
    by_cell: defaultdict[str, list[Placed]] = defaultdict(list)
    for placed in sorted(measured, key=lambda placed: placed.start):
        by_cell[placed.cell].append(placed)
    return [
        _timed(step, by_cell[step.cell], nodes) if step.cell in by_cell else step for step in steps
    ]


def _timed(step: Step, placed: Sequence[Placed], nodes: Mapping[str, Node]) -> Step:
    if step.need is None:
        seconds = max(one.end for one in placed) - min(one.start for one in placed)
        return replace(step, seconds=seconds)
    need = step.need
    merging = 0.0
    if step.merging and len(placed) > 1:
        *placed, last = placed
        # Its process has to be started, too.
        waited = last.end - max(one.end for one in placed)
        merging = waited * speed(need, nodes[last.node])
    # At speed 1; the slowest part decides when all are made.
    worked = max((one.end - one.start) * speed(need, nodes[one.node]) for one in placed)
    return replace(step, starting=0.0, seconds=worked, merging=merging)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A step as it was simulated and as it was measured; times from the beginning of each."""

    cell: str
    simulated: tuple[float, float]
    measured: tuple[float, float]
    simulated_nodes: tuple[str, ...]
    measured_nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A simulation beside a measured run.

    Attributes:
        steps: Steps that both have.
        only_simulated: Those that were not measured.
        only_measured: Those that were not simulated.
        simulated_wall: Seconds from the first start to the last end, of the steps that both have.
        measured_wall: The same, measured.
    """

    steps: tuple[Difference, ...]
    only_simulated: tuple[str, ...]
    only_measured: tuple[str, ...]
    simulated_wall: float
    measured_wall: float

    @property
    def ratio(self) -> float | None:
        """Measured wall time to the simulated one."""
        return self.measured_wall / self.simulated_wall if self.simulated_wall else None

    @property
    def same_nodes(self) -> float | None:
        """Part of the steps that ran where the simulation had them."""
        if not self.steps:
            return None
        same = sum(step.simulated_nodes == step.measured_nodes for step in self.steps)
        return same / len(self.steps)


def compare(schedule: Schedule, measured: Sequence[Placed]) -> Check:
    """Holds a simulation against a run.

    Args:
        schedule: The simulation.
        measured: Processes as they ran: cell, node (by the name that it has in the simulation),
            and start and end in seconds of any clock. A step may have several.
    """
    ours, theirs = extents(schedule.placed), extents(measured)
    both = [cell for cell in ours if cell in theirs]
    began = [min((of[cell][0] for cell in both), default=0.0) for of in (ours, theirs)]
    ended = [max((of[cell][1] for cell in both), default=0.0) for of in (ours, theirs)]
    steps = tuple(
        Difference(
            cell=cell,
            simulated=(ours[cell][0] - began[0], ours[cell][1] - began[0]),
            measured=(theirs[cell][0] - began[1], theirs[cell][1] - began[1]),
            simulated_nodes=ours[cell][2],
            measured_nodes=theirs[cell][2],
        )
        for cell in both
    )
    return Check(
        steps=steps,
        only_simulated=tuple(cell for cell in ours if cell not in theirs),
        only_measured=tuple(cell for cell in theirs if cell not in ours),
        simulated_wall=ended[0] - began[0],
        measured_wall=ended[1] - began[1],
    )
