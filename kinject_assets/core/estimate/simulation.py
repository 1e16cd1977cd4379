"""A study on a cluster, simulated: which process runs on which node, from when to when.

The model, in full:

- A step is one artefact. It starts when its inputs are made. Steps of one partition are made one
  after another, by one run of Dagster, as the orchestrator does; a run that begins takes in every
  step of its partition whose inputs are made, or are made by itself before.
- `KINJECT_RUN`: one run after another in the order of the plan. `backfills`: so many runs at once
  as the queue lets in; those whose inputs were made first come first.
- A step of a pool holds one of its slots from before it looks for a node until it is made.
- A process takes what it needs from the first node that has it free, of nodes without GPUs first
  if it needs none: near enough to Ray's default. Who waits longer goes first, and who fits goes
  before who does not. Processes that train together start together; the slowest sets the pace.
- Steps that need no node run on the orchestrator, which is never full.
- Nothing fails, nodes are there from the beginning, and nothing is slower because of others but by
  sharing a GPU or the cores of a node.

A simulation is a pure function. Its result can be held against what was measured: `compare`.
"""

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kinject_assets.config import Need, Node
from kinject_assets.core.errors import KinjectError

ORCHESTRATOR = "orchestrator"
"""Where steps run that need no node."""

EVERYTHING = ""
"""Label of the only process of a step."""

MERGE = "merge"
"""Label of the process that puts together what the parts made."""

TOLERANCE = 1e-9

Pools = Mapping[str, float]
"""Pool -> its slots."""


class NoNodeFits(KinjectError):
    """A step needs what no node of the cluster has."""


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


# --- nodes


def named_nodes(kinds: Mapping[str, Node], times: int = 1) -> dict[str, Node]:
    """Every node by a name of its own, those of a kind next to one another.

    Args:
        kinds: Kind -> what each node of it is, and how many there are.
        times: How many times as many of each kind there shall be.
    """
    found: dict[str, Node] = {}
    for kind, node in kinds.items():
        count = node.count * times
        found |= {kind if count == 1 else f"{kind}-{n + 1}": node for n in range(count)}
    return found


def speed(need: Need, node: Node) -> float:
    """How fast a process works on a node, to one that has a node of speed 1 to itself.

    It has a part of a GPU, or one: a process uses no second one. Without a GPU it has as many of
    the node's cores as it asks for, since Ray sets the number of its threads so.
    """
    if need.gpus:
        return node.speed * min(1.0, need.gpus)
    if need.cpus and node.cpus and math.isfinite(node.cpus):
        return node.speed * min(1.0, need.cpus / node.cpus)
    return node.speed


class Machine:
    """A node with what is free on it.

    Args:
        name: Its own.
        node: What it is.
    """

    def __init__(self, name: str, node: Node) -> None:
        self.name, self.node = name, node
        self._cpus, self._memory = node.cpus, node.memory_gb
        self._gpus = [1.0] * node.gpus
        self._resources = dict(node.resources)

    def take(self, need: Need) -> tuple[int, ...] | None:
        """Takes what a process needs, if it is free.

        Returns:
            Numbers of the GPUs that it has; `None` if it does not fit.
        """
        if need.accelerator not in {"", self.node.accelerator} or not self._free(need):
            return None
        gpus = self._gpus_for(need.gpus)
        if gpus is None:
            return None
        self._change(need, gpus, -1)
        return gpus

    def give_back(self, need: Need, gpus: Sequence[int]) -> None:
        """Gives back what a process had."""
        self._change(need, gpus, 1)

    def _free(self, need: Need) -> bool:
        return (
            need.cpus <= self._cpus + TOLERANCE
            and need.memory_gb <= self._memory + TOLERANCE
            and all(
                amount <= self._resources.get(name, 0.0) + TOLERANCE
                for name, amount in need.resources.items()
            )
        )

    def _gpus_for(self, asked: float) -> tuple[int, ...] | None:
        """GPUs for a process: whole free ones, or of those in which its part fits the fullest."""
        each = min(1.0, asked)
        fitting = [n for n, free in enumerate(self._gpus) if each <= free + TOLERANCE]
        count = math.ceil(asked)
        if len(fitting) < count:
            return None
        return tuple(sorted(fitting, key=lambda n: (self._gpus[n], n))[:count])

    def _change(self, need: Need, gpus: Sequence[int], sign: int) -> None:
        self._cpus += sign * need.cpus
        self._memory += sign * need.memory_gb
        for name, amount in need.resources.items():
            self._resources[name] += sign * amount
        for number in gpus:
            self._gpus[number] += sign * min(1.0, need.gpus)


def lacking(need: Need, node: Node) -> list[str]:
    """What an empty node lacks for a process; empty if it fits."""
    found = [
        f"{there:g} of the {asked:g} {name} asked for"
        for name, asked, there in (
            ("CPU cores", need.cpus, node.cpus),
            ("GPUs", need.gpus, node.gpus),
            ("GB of memory", need.memory_gb, node.memory_gb),
            *((name, a, node.resources.get(name, 0.0)) for name, a in need.resources.items()),
        )
        if asked > there + TOLERANCE
    ]
    if need.accelerator and need.accelerator != node.accelerator:
        found.append(f"GPUs of kind `{node.accelerator}` and not `{need.accelerator}`")
    return found


def share_of(need: Need, node: Node) -> float:
    """Part of a node that a process takes, of the resource that it takes most of."""
    return max(
        (
            asked / there
            for asked, there in (
                (need.cpus, node.cpus),
                (need.gpus, node.gpus),
                (need.memory_gb, node.memory_gb),
                *((a, node.resources.get(name, 0.0)) for name, a in need.resources.items()),
            )
            if asked and there
        ),
        default=0.0,
    )


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


def said(need: Need) -> str:
    """What a process needs, for people."""
    parts = [
        f"{amount:g} {name}{'s' if amount > 1 else ''}"
        for amount, name in ((need.cpus, "CPU core"), (need.gpus, "GPU"))
        if amount
    ]
    if need.accelerator:
        parts.append(f"of kind {need.accelerator}")
    if need.memory_gb:
        parts.append(f"{need.memory_gb:g} GB of memory")
    parts += [f"{amount:g} {name}" for name, amount in need.resources.items()]
    return ", ".join(parts) or "nothing"


# --- simulation


def simulate(steps: Sequence[Step], nodes: Mapping[str, Node], pools: Pools, way: Way) -> Schedule:
    """Simulates the making of steps; the module says how.

    To hold it against a measured run, give it steps with the seconds that were measured, and the
    result and the measured processes to `compare`:

        schedule = simulate(steps, named_nodes(profile.cluster.nodes), pools, KINJECT_RUN)
        check = compare(schedule, [Placed(cell=..., node=..., start=..., end=...), ...])

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
        if not step.merging or step.need is None:
            self._finish(run, step)
            return
        self._waiting.append(
            _Waiting(step, step.need, [MERGE], step.merging, lambda: self._finish(run, step))
        )

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


# --- bounds, and what was measured


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
    found = step.submitting + step.starting + step.seconds / pace
    return found + (step.starting + step.merging / pace if step.merging else 0.0)


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


def extents(placed: Sequence[Placed]) -> dict[str, tuple[float, float, tuple[str, ...]]]:
    """Cell -> first start, last end, and nodes in alphabetical order, of its processes."""
    found: dict[str, tuple[float, float, tuple[str, ...]]] = {}
    for one in placed:
        start, end, nodes = found.get(one.cell, (one.start, one.end, ()))
        where = tuple(sorted({*nodes, one.node}))
        found[one.cell] = (min(start, one.start), max(end, one.end), where)
    return found
