"""What is to be made on a cluster, and the schedule that came out of it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kinject_assets.config import Need, Node
from kinject_assets.core.estimate.nodes import lacking, speed

ORCHESTRATOR = "the orchestrator"
"""Where steps run that need no node; no kind of node can be called so."""

EVERYTHING = ""
"""Label of the only process of a step."""

MERGE = "merge"
"""Label of the process that puts together what the parts made."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One artefact to make.

    Attributes:
        cell: Its name.
        partition: Steps of one partition are made one after another.
        inputs: Names of the steps that have to be made before; of others nothing is waited for.
        seconds: That each process works, on a node of speed 1 that it has to itself.
        need: What each process needs from its node; `None`: it runs on the orchestrator.
        setting: Field of the profile that says so, for messages.
        processes: How many there are.
        together: Whether they start and end together.
        one_node: Whether they have to be on the same node then.
        submitting: Seconds from the step's start until its first process may start.
        starting: Seconds before a process works.
        merging: Seconds of one more process that puts together what the others made; 0: none does.
        ending: Seconds from the end of the last process until the step is made.
        pool: Pool that it holds a slot of; empty for none.
    """

    cell: str
    partition: str
    inputs: tuple[str, ...] = ()
    seconds: float
    need: Need | None = None
    setting: str = "cluster"
    processes: int = 1
    together: bool = False
    one_node: bool = False
    submitting: float = 0.0
    starting: float = 0.0
    merging: float = 0.0
    ending: float = 0.0
    pool: str = ""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the orchestrator drives a study.

    Attributes:
        name: For people.
        runs: Runs at once.
        in_order: Runs are those of neighbours in the plan, in its order; else one of a partition,
            as soon as its inputs are made.
        starting: Seconds before a run's first step.
    """

    name: str
    runs: float
    in_order: bool = False
    starting: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A process on a node.

    Attributes:
        process: Which of the step's: empty for the only one, `1/4` for a part, `merge`.
        share: Part of the node that it takes, of the resource that it takes most of.
        gpu: Number of its first GPU on the node; `None` if it has none.
    """

    cell: str
    process: str = EVERYTHING
    node: str
    start: float
    end: float
    share: float = 0.0
    gpu: int | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a simulation found.

    Attributes:
        way: How the study was driven.
        nodes: Name of each node -> what it is.
        needs: Cell -> what each of its processes needs, of those that need a node.
        placed: Processes, in the order in which they started.
        spans: Cell -> when its step began (also to wait for a slot or a node), and when it was
            made.
        at_once: Pool -> the most of its steps that had a node at once, or were made without one.
    """

    way: Way
    nodes: Mapping[str, Node]
    needs: Mapping[str, Need]
    placed: Sequence[Placed]
    spans: Mapping[str, tuple[float, float]]
    at_once: Mapping[str, int]

    @cached_property
    def wall(self) -> float:
        """Seconds until all is made."""
        return max((end for _, end in self.spans.values()), default=0.0)

    @cached_property
    def busy(self) -> dict[str, float]:
        """Node -> seconds in which any process had it."""
        times: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for placed in self.placed:
            times[placed.node].append((placed.start, placed.end))
        return {name: _covered(times[name]) for name in self.nodes}

    @cached_property
    def used(self) -> float:
        """Part of the time of all GPUs that processes had; of CPU cores where there are no GPUs."""
        gpus = sum(node.gpus for node in self.nodes.values())
        there = gpus or sum(node.cpus for node in self.nodes.values())
        held = sum(
            (need.gpus if gpus else need.cpus) * (placed.end - placed.start)
            for placed in self.placed
            if (need := self.needs.get(placed.cell))
        )
        return held / (there * self.wall) if there and self.wall else 0.0

    @property
    def usd(self) -> float | None:
        """What all nodes cost from the beginning to the end; `None` if a price is not known."""
        return self._price(dict.fromkeys(self.nodes, self.wall))

    @property
    def usd_busy(self) -> float | None:
        """What the nodes cost while any process has them, as if they were given back else."""
        return self._price(self.busy)

    def _price(self, seconds: Mapping[str, float]) -> float | None:
        prices = [(self.nodes[name].usd_per_hour, time) for name, time in seconds.items()]
        if any(price is None for price, _ in prices):
            return None
        return sum((price or 0.0) * time / 3600 for price, time in prices)

    def usd_of(self, cell: str) -> float | None:
        """What the parts of nodes cost that a step takes, while it has them.

        Returns:
            `None` if a price is not known, and on the orchestrator, whose price nobody says.
        """
        total = 0.0
        for placed in self.of(cell):
            if placed.node == ORCHESTRATOR:
                return None
            price = self.nodes[placed.node].usd_per_hour
            if price is None:
                return None
            total += price * placed.share * (placed.end - placed.start) / 3600
        return total

    def of(self, cell: str) -> Sequence[Placed]:
        """The processes of a step."""
        return self._by_cell.get(cell, ())

    @cached_property
    def _by_cell(self) -> dict[str, list[Placed]]:
        found: defaultdict[str, list[Placed]] = defaultdict(list)
        for placed in self.placed:
            found[placed.cell].append(placed)
        return dict(found)


def _covered(times: Sequence[tuple[float, float]]) -> float:
    """Length of what intervals cover together."""
    total, until = 0.0, -math.inf
    for start, end in sorted(times):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def extents(placed: Sequence[Placed]) -> dict[str, tuple[float, float, tuple[str, ...]]]:
    """Cell -> first start, last end, and nodes in alphabetical order, of its processes."""
    found: dict[str, tuple[float, float, tuple[str, ...]]] = {}
    for one in placed:
        start, end, nodes = found.get(one.cell, (one.start, one.end, ()))
        where = tuple(sorted({*nodes, one.node}))
        found[one.cell] = (min(start, one.start), max(end, one.end), where)
    return found


def critical_path(steps: Sequence[Step], nodes: Mapping[str, Node]) -> tuple[float, list[str]]:
    """The longest chain of steps that need one another, each on the best node: seconds and cells.

    No number of nodes like these makes a study quicker than this.
    """
    ends: dict[str, float] = {}
    before: dict[str, str] = {}
    for step in steps:
        inputs = [name for name in step.inputs if name in ends]
        last = max(inputs, key=lambda name: ends[name], default="")
        ends[step.cell] = ends.get(last, 0.0) + least_seconds(step, nodes)
        before[step.cell] = last
    cell = max(ends, key=lambda name: ends[name], default="")
    path = []
    while cell:
        path.append(cell)
        cell = before[cell]
    return (ends[path[0]] if path else 0.0), path[::-1]


def least_seconds(step: Step, nodes: Mapping[str, Node]) -> float:
    """What a step takes if nothing is in its way and the best nodes are free."""
    if step.need is None:
        return step.submitting + step.seconds
    fitting = [node for node in nodes.values() if not lacking(step.need, node)]
    pace = max((speed(step.need, node) for node in fitting), default=1.0)
    found = step.submitting + step.starting + step.seconds / pace + step.ending
    return found + (step.starting + step.merging / pace if step.merging else 0.0)
