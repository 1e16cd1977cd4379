"""A study on a cluster, simulated: which process runs on which node, from when to when.

The model, in full:

- A step is one artefact. It starts when its inputs are made. Steps of one partition are made one
  after another, by one run of Dagster, as the orchestrator does; a run that begins takes in every
  step of its partition whose inputs are made, or are made by itself before.
- A `Way` is in order, one run after another as the plan has them, as `kinject run` does; or so many
  runs at once as the queue lets in, those whose inputs were made first coming first: backfills.
- A step of a pool holds one of its slots from before it looks for a node until it is made.
- A process takes what it needs from the first node that has it free, of nodes without GPUs first
  if it needs none: near enough to Ray's default. Who waits longer goes first, and who fits goes
  before who does not. Processes that train together start together; the slowest sets the pace.
- Steps that need no node run on the orchestrator, which is never full.
- Nothing fails, nodes are there from the beginning, and nothing is slower because of others but by
  sharing a GPU or the cores of a node.

A simulation is a pure function. `checking` holds it against what was measured.
"""

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kinject_assets.config import Need, Node
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.estimate.nodes import TOLERANCE, Machine, lacking, said, share_of, speed
from kinject_assets.core.estimate.schedule import (
    EVERYTHING,
    MERGE,
    ORCHESTRATOR,
    Placed,
    Schedule,
    Step,
    Way,
    extents,
)

Pools = Mapping[str, float]
"""Pool -> its slots."""


class NoNodeFits(KinjectError):
    """A step needs what no node of the cluster has."""


def simulate(steps: Sequence[Step], nodes: Mapping[str, Node], pools: Pools, way: Way) -> Schedule:
    """Simulates the making of steps; the module says how.

    To hold it against a run whose processes were measured:

        measured = [Placed(cell=..., node=..., start=..., end=...), ...]
        nodes = named_nodes(profile.cluster.nodes)
        schedule = simulate(as_measured(steps, measured, nodes), nodes, pools, way)
        check = compare(schedule, measured)

    Args:
        steps: What is to be made, inputs first: the order of the plan.
        nodes: Name of each node -> what it is, as `named_nodes` gives them.
        pools: Pool -> its slots; one that is not there has no end of them.
        way: How they are driven.

    Raises:
        NoNodeFits: If a step needs what the nodes do not have.
    """
    check_that_all_fit(steps, nodes)
    return _Simulation(steps, nodes, pools, way).run()


@dataclass(eq=False)
class _Run:
    """A run of Dagster: steps of one partition, one after another."""

    steps: list[Step]
    position: int = 0

    @property
    def step(self) -> Step:
        return self.steps[self.position]


@dataclass(eq=False)
class _Waiting:
    """Processes of a step that wait for nodes; those that start together are placed together."""

    step: Step
    need: Need
    labels: list[str]
    seconds: float
    done: Callable[[], None]
    together: bool = False


@dataclass(eq=False)
class _Simulation:
    steps: Sequence[Step]
    nodes: Mapping[str, Node]
    pools: Pools
    way: Way
    _now: float = 0.0
    _made: set[str] = field(default_factory=set)
    _spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    _placed: list[Placed] = field(default_factory=list)
    _runs: list[_Run] = field(default_factory=list)
    _idle: list[_Run] = field(default_factory=list)
    _ready: dict[str, float] = field(default_factory=dict)
    _slots: list[tuple[Step, Callable[[], None]]] = field(default_factory=list)
    _held: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _waiting: list[_Waiting] = field(default_factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = {step.cell for step in self.steps}
        self._inputs = {step.cell: known.intersection(step.inputs) for step in self.steps}
        self._machines = [Machine(name, node) for name, node in self.nodes.items()]
        # Who needs no GPU leaves nodes with GPUs to others, where it can.
        self._plain_first = sorted(self._machines, key=lambda machine: machine.node.gpus > 0)
        self._number = itertools.count()
        self._partitions: defaultdict[str, list[Step]] = defaultdict(list)
        for step in self.steps:
            self._partitions[step.partition].append(step)
        neighbours = itertools.groupby(self.steps, key=lambda step: step.partition)
        self._in_order = [_Run(list(group)) for _, group in neighbours]

    def run(self) -> Schedule:
        """Lets time pass until nothing happens any more."""
        while True:
            self._start_runs()
            self._start_steps()
            self._give_slots()
            self._place()
            if not self._events:
                break
            self._now = self._events[0][0]
            # What ends at the same time frees all that it has before anything new starts.
            while self._events and self._events[0][0] <= self._now + TOLERANCE:
                heapq.heappop(self._events)[2]()
        assert self._made == self._inputs.keys(), "an input is made by no step before it"
        return Schedule(
            way=self.way,
            nodes=dict(self.nodes),
            needs={step.cell: step.need for step in self.steps if step.need},
            placed=tuple(sorted(self._placed, key=lambda placed: placed.start)),
            spans=self._spans,
            at_once=self._at_once(),
        )

    def _at_once(self) -> dict[str, int]:
        changes: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        pools = {step.cell: step.pool for step in self.steps if step.pool}
        for cell, (start, end, _) in extents(self._placed).items():
            if cell in pools:
                changes[pools[cell]] += [(start, 1), (end, -1)]
        return {
            pool: max(itertools.accumulate(change for _, change in sorted(found)))
            for pool, found in changes.items()
        }

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._number), what))

    # --- runs

    def _start_runs(self) -> None:
        while len(self._runs) < self.way.runs and (run := self._next_run()):
            self._runs.append(run)
            self._later(self.way.starting, lambda run=run: self._idle.append(run))

    def _next_run(self) -> _Run | None:
        if self.way.in_order:
            return self._in_order.pop(0) if self._in_order else None
        ready = dict(self._ready_partitions())
        # Whose inputs were made first comes first.
        self._ready = {name: self._ready.get(name, self._now) for name in ready}
        if not ready:
            return None
        first = min(self._ready, key=lambda name: self._ready[name])
        return _Run(ready[first])

    def _ready_partitions(self) -> Iterator[tuple[str, list[Step]]]:
        """Partitions that no run works on, with the steps that one could make now."""
        active = {run.steps[0].partition for run in self._runs}
        for name, steps in self._partitions.items():
            if name in active:
                continue
            there = set(self._made)
            found: list[Step] = []
            for step in steps:
                if step.cell not in there and self._inputs[step.cell] <= there:
                    found.append(step)
                    there.add(step.cell)
            if found:
                yield name, found

    def _start_steps(self) -> None:
        for run in [r for r in self._idle if self._inputs[r.step.cell] <= self._made]:
            self._idle.remove(run)
            self._spans[run.step.cell] = (self._now, self._now)
            self._slots.append((run.step, lambda run=run: self._submit(run, run.step)))

    # --- pools

    def _give_slots(self) -> None:
        left: list[tuple[Step, Callable[[], None]]] = []
        for step, go in self._slots:
            if step.pool and self._held[step.pool] >= self.pools.get(step.pool, math.inf):
                left.append((step, go))
                continue
            if step.pool:
                self._held[step.pool] += 1
            go()
        self._slots = left

    # --- processes

    def _submit(self, run: _Run, step: Step) -> None:
        if step.need is None:
            self._on_orchestrator(run, step)
            return
        count = step.processes
        waiting = _Waiting(
            step,
            step.need,
            [f"{n + 1}/{count}" for n in range(count)] if count > 1 else [EVERYTHING],
            step.seconds,
            self._after(count, lambda: self._merge(run, step)),
            step.together,
        )
        self._later(step.submitting, lambda: self._waiting.append(waiting))

    def _on_orchestrator(self, run: _Run, step: Step) -> None:
        start = self._now + step.submitting
        end = start + step.seconds
        self._placed.append(Placed(cell=step.cell, node=ORCHESTRATOR, start=start, end=end))
        self._later(end - self._now, lambda: self._finish(run, step))

    def _merge(self, run: _Run, step: Step) -> None:
        def end() -> None:
            self._later(step.ending, lambda: self._finish(run, step))

        if step.merging and step.need:
            self._waiting.append(_Waiting(step, step.need, [MERGE], step.merging, end))
        else:
            end()

    @staticmethod
    def _after(count: int, then: Callable[[], None]) -> Callable[[], None]:
        """Called for each process that ends; after the last one it goes on."""
        ended = itertools.count(1)

        def one() -> None:
            if next(ended) == count:
                then()

        return one

    def _finish(self, run: _Run, step: Step) -> None:
        self._made.add(step.cell)
        self._spans[step.cell] = (self._spans[step.cell][0], self._now)
        if step.pool:
            self._held[step.pool] -= 1
        run.position += 1
        if run.position == len(run.steps):
            self._runs.remove(run)
        else:
            self._idle.append(run)

    def _place(self) -> None:
        self._waiting = [
            waiting
            for waiting in self._waiting
            if not (self._place_together if waiting.together else self._place_each)(waiting)
        ]

    def _place_each(self, waiting: _Waiting) -> bool:
        """Places processes as far as they fit; whether all are placed."""
        machines = self._machines_for(waiting.need)
        while waiting.labels and (place := self._take(waiting.need, machines)):
            machine, gpus = place
            pace = speed(waiting.need, machine.node)
            self._start(waiting, waiting.labels.pop(0), machine, gpus, pace)
        return not waiting.labels

    def _place_together(self, waiting: _Waiting) -> bool:
        """Places all processes, or none; whether they are placed."""
        step = waiting.step
        machines = self._machines_for(waiting.need)
        for group in [[machine] for machine in machines] if step.one_node else [machines]:
            places: list[tuple[Machine, tuple[int, ...]]] = []
            while len(places) < len(waiting.labels):
                place = self._take(waiting.need, group)
                if place is None:
                    break
                places.append(place)
            if len(places) == len(waiting.labels):
                pace = min(speed(waiting.need, machine.node) for machine, _ in places)
                for label, (machine, gpus) in zip(waiting.labels, places, strict=True):
                    self._start(waiting, label, machine, gpus, pace)
                return True
            for machine, gpus in places:
                machine.give_back(waiting.need, gpus)
        return False

    def _machines_for(self, need: Need) -> Sequence[Machine]:
        return self._machines if need.gpus else self._plain_first

    @staticmethod
    def _take(need: Need, machines: Sequence[Machine]) -> tuple[Machine, tuple[int, ...]] | None:
        for machine in machines:
            gpus = machine.take(need)
            if gpus is not None:
                return machine, gpus
        return None

    def _start(
        self, waiting: _Waiting, label: str, machine: Machine, gpus: tuple[int, ...], pace: float
    ) -> None:
        step, need = waiting.step, waiting.need
        seconds = step.starting + waiting.seconds / pace
        self._placed.append(
            Placed(
                cell=step.cell,
                process=label,
                node=machine.name,
                start=self._now,
                end=self._now + seconds,
                share=share_of(need, machine.node),
                gpu=gpus[0] if gpus else None,
            )
        )

        def end() -> None:
            machine.give_back(need, gpus)
            waiting.done()

        self._later(seconds, end)


# --- what would wait for ever


def check_that_all_fit(steps: Sequence[Step], nodes: Mapping[str, Node]) -> None:
    """Refuses steps that would wait for ever.

    Raises:
        NoNodeFits: The message names the step, what it needs, and the node that comes nearest.
    """
    checked: list[tuple[object, ...]] = []
    for step in steps:
        if step.need is None:
            continue
        asked = (step.need, step.together and step.processes, step.one_node)
        if asked not in checked:
            checked.append(asked)
            _check(step, step.need, nodes)


def _check(step: Step, need: Need, nodes: Mapping[str, Node]) -> None:
    short = {name: lacking(need, node) for name, node in nodes.items()}
    if all(short.values()):
        nearest = min(short, key=lambda name: (len(short[name]), -nodes[name].gpus))
        raise NoNodeFits(
            f"{step.cell} fits no node: a process needs {said(need)}. The nearest node is "
            f"`{nearest}`, which has {', '.join(short[nearest])}. Ask for less under "
            f"{step.setting}, or name a node that has it under cluster.nodes."
        )
    if not step.together:
        return
    machines = [Machine(name, node) for name, node in nodes.items()]
    room = {machine.name: _room(machine, need, step.processes) for machine in machines}
    most = max(room.values()) if step.one_node else sum(room.values())
    if most < step.processes:
        where = "on one node (with this lake nodes share no folder)" if step.one_node else "at once"
        nearest = max(room, key=lambda name: room[name])
        raise NoNodeFits(
            f"{step.cell} fits no nodes: its {step.processes} processes run {where}, and each "
            f"needs {said(need)}. There is room for {most} of them; most on `{nearest}`, for "
            f"{room[nearest]}. Lower training.processes, ask for less under {step.setting}, or add "
            "nodes under cluster.nodes."
        )


def _room(machine: Machine, need: Need, enough: int) -> int:
    """How many processes fit a node at once."""
    for count in range(enough):
        if machine.take(need) is None:
            return count
    return enough
