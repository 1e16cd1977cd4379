"""A study on a cluster: what each step needs and takes, its schedule, and what more nodes bring."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kinject_assets.config import Need, Node, Profile, RecipeSpec, Spread
from kinject_assets.core.estimate.assumptions import Assumed, Assumption
from kinject_assets.core.estimate.compute import DTYPE_BYTES, STAGES
from kinject_assets.core.estimate.nodes import named_nodes
from kinject_assets.core.estimate.reckoning import Estimate, by, estimate
from kinject_assets.core.estimate.requests import Requests
from kinject_assets.core.estimate.schedule import Schedule, Step, Way, critical_path
from kinject_assets.core.estimate.simulation import simulate
from kinject_assets.core.estimate.spent import read_spent, stage_of, took
from kinject_assets.core.manifest import PROCESSES, Manifest
from kinject_assets.core.plan import METHODS, Plan
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.store import Cell, Store

SETTINGS = {
    "embeddings": "embed",
    "retrieved": "embed",
    "checkpoint": "train",
    **dict.fromkeys(METHODS.values(), "score"),
    "damage": "score",
    "triage": "triage",
}
"""Asset -> field of `cluster` that says what its processes need; others run on the orchestrator."""

SPREAD = {"embeddings", "damage", *METHODS.values()}
"""Assets whose work `parts` processes share."""

POOLS = {
    "articles": "wiki",
    **dict.fromkeys(("questions", "paraphrases", "validation_paraphrases"), "llm"),
    **dict.fromkeys(SETTINGS.keys() - {"retrieved"}, "gpu"),
    "results": "duckdb",
}
"""Asset -> pool of Dagster that its steps hold a slot of."""

HARDWARE = "hardware"
"""Name of the only node where the profile names none."""

RUN, BACKFILLS, OPEN = "kinject run", "backfills", "backfills, pools.gpu open"

GAIN = 0.01
"""Part of the wall time that more nodes have to save, or they bring nothing."""

LEAST_TIMES, MOST_TIMES = 8, 64
"""How many times the nodes are looked at: up to the first in any case, up to the second as long as
it brings something."""

Source = Literal["made", "throughput", "estimated", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How long a step is expected to work.

    Attributes:
        seconds: Of one process on the machine under `hardware`; `None` if nobody knows.
        source: `made`: this artefact is in the lake and took so long. `throughput`: of others of
            its kind that are. `estimated`: from operations, requests, or an assumption.
        loading: Seconds that each process loads models beside that.
    """

    seconds: float | None
    source: Source
    loading: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What a number of nodes comes to.

    Attributes:
        times: How many times the nodes of the profile.
        nodes: How many these are.
        way: How the study is driven.
        usd: Of all nodes for the wall time; `None` where a price is not known.
        usd_busy: Of nodes while any process has them.
        used: Part of the time of all GPUs (of CPU cores, where there are none) that processes have.
        heavy: Steps of the pool `gpu` that have nodes at once, at most.
    """

    times: int
    nodes: int
    way: str
    wall: float
    usd: float | None
    usd_busy: float | None
    used: float
    heavy: int


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """All that `kinject plan --cluster` shows.

    Attributes:
        kinds: Kind of node -> what it is.
        needs: Field of `cluster` -> what a process needs.
        expected: Cell -> how long it works.
        steps: What is simulated, in the order of the plan.
        schedules: Way -> its schedule, on `times` the nodes.
        times: How many times the nodes of the profile these have.
        scaling: For each number of nodes and way.
        chain: The longest chain of steps that need one another: seconds and cells.
        assumptions: Those that went into it.
        warnings: What is amiss, each with its mend.
    """

    profile: Profile
    kinds: Mapping[str, Node]
    needs: Mapping[str, Need]
    expected: Mapping[str, Expected]
    steps: Sequence[Step]
    schedules: Mapping[str, Schedule]
    times: int
    scaling: Sequence[Scaling]
    chain: tuple[float, Sequence[str]]
    assumptions: Mapping[str, Assumption]
    warnings: Sequence[str]

    @property
    def unknown(self) -> list[str]:
        """Steps that are in no time, since nobody knows how long they work."""
        return [step.cell for step in self.steps if self.expected[step.cell].seconds is None]

    def enough(self, way: str) -> int:
        """Times the nodes from which on more bring nothing, among those that were looked at."""
        rows = [row for row in self.scaling if row.way == way]
        best = min(row.wall for row in rows)
        return next(row.times for row in rows if row.wall <= best * (1 + GAIN))


def plan_cluster(
    profile: Profile,
    store: Store,
    times: Sequence[int] = (),
    still_open: bool = False,
    report: Report = silent,
) -> ClusterPlan:
    """Plans a study on the cluster of its profile, by simulation.

    Args:
        profile: The experiment.
        store: Its lake: what was made says how long things take.
        times: How many times the profile's nodes to look at; the schedule is that of the first.
            Empty: once, and as often twice as many as brings something.
        still_open: Only what is missing or out of date, else everything from nothing.
        report: Told which documents are read.

    Raises:
        NoNodeFits: If a step needs what no node has.
    """
    plan, assume = Plan(profile, store), Assumed()
    spent, published = read_spent(store, profile.llm.prices)
    found = estimate(profile, store, spent, report=report)
    kinds, needs, warnings = cluster_of(plan.profile)
    expected = expected_seconds(plan, found, published, assume)
    wanted = [cell for cell in plan.cells if not still_open or plan.state(cell) != "complete"]
    steps = steps_of(plan, needs, expected, assume, wanted)
    looked_at = list(times) or [1]
    schedules = simulate_ways(plan.profile, steps, named_nodes(kinds, looked_at[0]), assume)
    rows = _scalings(looked_at[0], schedules)
    for more in looked_at[1:]:
        nodes = named_nodes(kinds, more)
        rows += _scalings(more, simulate_ways(plan.profile, steps, nodes, assume))
    while not times and _goes_on(rows):
        more = rows[-1].times * 2
        nodes = named_nodes(kinds, more)
        rows += _scalings(more, simulate_ways(plan.profile, steps, nodes, assume))
    made = ClusterPlan(
        profile=plan.profile,
        kinds=kinds,
        needs=needs,
        expected=expected,
        steps=steps,
        schedules=schedules,
        times=looked_at[0],
        scaling=rows,
        chain=critical_path(steps, named_nodes(kinds)),
        assumptions=assume.used,
        warnings=warnings,
    )
    return made


def _scalings(times: int, schedules: Mapping[str, Schedule]) -> list[Scaling]:
    return [
        Scaling(
            times=times,
            nodes=len(schedule.nodes),
            way=name,
            wall=schedule.wall,
            usd=schedule.usd,
            usd_busy=schedule.usd_busy,
            used=schedule.used,
            heavy=schedule.at_once.get("gpu", 0),
        )
        for name, schedule in schedules.items()
    ]


def _goes_on(rows: Sequence[Scaling]) -> bool:
    """Whether twice as many nodes as the last ones are looked at."""
    last = rows[-1].times
    if last < LEAST_TIMES:
        return True
    walls: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        walls[row.way].append(row.wall)
    return last < MOST_TIMES and any(
        then < before * (1 - GAIN) for *_, before, then in walls.values()
    )


def simulate_ways(
    profile: Profile, steps: Sequence[Step], nodes: Mapping[str, Node], assume: Assumed
) -> dict[str, Schedule]:
    """Way -> schedule: by `kinject run`, by backfills, and by backfills without the pool `gpu`.

    The last one says what the pool costs, and its `at_once` how many slots would be enough.
    """
    pools = {name: float(slots) for name, slots in profile.pools.model_dump().items()}
    # As the instance's settings have it: `defs.instance`.
    runs, starting = 1 + max(pools.values()), assume("backfill_run_seconds")
    ways = (
        Way(name=RUN, runs=1, in_order=True, starting=assume("run_seconds")),
        Way(name=BACKFILLS, runs=runs, starting=starting),
        Way(name=OPEN, runs=math.inf, starting=starting),
    )
    opened = {**pools, "gpu": math.inf}
    return {
        way.name: simulate(steps, nodes, opened if way.name == OPEN else pools, way) for way in ways
    }


# --- what the profile says


def cluster_of(profile: Profile) -> tuple[dict[str, Node], dict[str, Need], list[str]]:
    """Kinds of nodes, what processes need (by field of `cluster`), and what is to be said of it."""
    cluster, warnings = profile.cluster, list[str]()
    needs: dict[str, Need] = {
        name: getattr(cluster, name) for name in dict.fromkeys(SETTINGS.values())
    }
    kinds = dict(cluster.nodes)
    if not kinds:
        machine = profile.hardware
        price = machine.usd_per_hour
        kinds[HARDWARE] = Node(
            gpus=machine.gpus,
            # `hardware` says nothing of them: they are taken to be enough.
            cpus=math.inf,
            memory_gb=math.inf,
            usd_per_hour=None if price is None else price * machine.gpus,
        )
        warnings.append(
            f"cluster.nodes is empty: reckoned with one node with {machine.gpus} x "
            f"{machine.name} (`hardware`), CPU cores and memory enough. Name your nodes there."
        )
    silent_ones = [name for name, need in needs.items() if "gpus" not in need.model_fields_set]
    if silent_ones and any(node.gpus for node in kinds.values()):
        for name in silent_ones:
            needs[name] = needs[name].model_copy(update={"gpus": 1.0})
        if cluster.nodes:
            fields = ", ".join(f"cluster.{name}.gpus" for name in silent_ones)
            warnings.append(
                f"{fields}: not said, so one GPU is reckoned with. Ray gives a process that asks "
                "for none no GPU: set them, e.g. to 1."
            )
    if all(node.gpus for node in kinds.values()):
        warnings += [
            f"cluster.{name}.gpus is 0 and every node has GPUs: reckoned with its part of a node's "
            "cores at the speed of its GPUs, which is too quick. Ask for a GPU, or name nodes "
            "without."
            for name, need in needs.items()
            if not need.gpus
        ]
    if profile.compute != "ray":
        warnings.append(
            f"compute is {profile.compute}: set it to ray in the profile, or run with `kinject run "
            "--compute ray`, to have it so."
        )
    if profile.llm.batch:
        warnings.append(
            "llm.batch: answers may take up to a day, and each step that asks is reckoned with a "
            "day for each purpose; often it is much less."
        )
    return kinds, needs, warnings


# --- how long steps work


def expected_seconds(
    plan: Plan, found: Estimate, published: Mapping[Cell, Manifest], assume: Assumed
) -> dict[str, Expected]:
    """How long each cell works: as it did, else as others of its kind did, else as estimated.

    What was made was measured from beginning to end, with the loading of models, on whatever
    machine it was: that machine is taken for the one under `hardware`.

    Args:
        plan: The cells.
        found: The estimate that `kinject plan` makes.
        published: What is in the lake.
        assume: Gives what nobody knows.
    """
    return _Clock(plan, found, published, assume).expected()


class _Clock:
    def __init__(
        self, plan: Plan, found: Estimate, published: Mapping[Cell, Manifest], assume: Assumed
    ) -> None:
        self._plan, self._found, self._assume = plan, found, assume
        # As one process would have taken: those that shared the work are reckoned with anew.
        self._made = {
            cell: took(manifest) * int(manifest.counts.get(PROCESSES, 1))
            for cell, manifest in published.items()
        }
        self._work = by(found.work, lambda row: row.cell)
        self._requests = by(found.requests, lambda row: row.cell)
        self._sizes = {size.corpus: size for size in found.corpora}

    def expected(self) -> dict[str, Expected]:
        rates = self._rates()
        return {str(cell): self._of(cell, rates) for cell in self._plan.cells}

    def _of(self, cell: Cell, rates: Mapping[str, float]) -> Expected:
        if seconds := self._made.get(cell):
            return Expected(seconds=seconds, source="made")
        units, rate = self._units(cell), rates.get(_kind(cell))
        if units is None:
            return Expected(seconds=None, source="unknown")
        if rate is not None:
            return Expected(seconds=units * rate, source="throughput")
        if cell.asset in STAGES:
            seconds = sum(row.seconds or 0.0 for row in self._work[str(cell)])
            return Expected(seconds=seconds, source="estimated", loading=self._loading(cell))
        if cell.asset == "articles":
            seconds = self._assume("light_seconds")
            if self._plan.profile.corpora[cell.parts[0]].source.kind != "files":
                seconds += units * self._assume("page_seconds")
            return Expected(seconds=seconds, source="estimated")
        seconds = self._assume("light_seconds") + self._asking(self._requests.get(str(cell), []))
        return Expected(seconds=seconds, source="estimated")

    def _rates(self) -> dict[str, float]:
        """Kind -> seconds of a unit, of what is in the lake."""
        seconds, units = defaultdict[str, float](float), defaultdict[str, float](float)
        for cell in self._plan.cells:
            count = self._units(cell)
            if count and self._made.get(cell):
                seconds[_kind(cell)] += self._made[cell]
                units[_kind(cell)] += count
        return {kind: seconds[kind] / units[kind] for kind in units}

    def _units(self, cell: Cell) -> float | None:
        """How much there is to do: operations, pages, requests, or one piece; `None`: unknown."""
        if cell.asset in STAGES:
            flops = [row.flops for row in self._work.get(str(cell), [])]
            return None if not flops or None in flops else sum(f or 0.0 for f in flops)
        if not cell.parts:
            return 1.0
        size = self._sizes[cell.parts[0]]
        if size.chunks.value is None:
            return None
        if cell.asset == "articles":
            # A page has at least a chunk.
            pages = size.articles.value
            return float(size.chunks.value if pages is None else pages)
        if POOLS.get(cell.asset) == "llm":
            return float(sum(r.count + r.again for r in self._requests.get(str(cell), [])))
        return 1.0

    def _asking(self, requests: Sequence[Requests]) -> float:
        llm = self._plan.profile.llm
        if llm.batch:
            return self._assume("batch_seconds") * len(requests) if requests else 0.0
        seconds = 0.0
        for row in requests:
            seconds += (row.count + row.again) * self._assume("request_seconds")
            seconds += row.output_tokens / self._assume("output_tokens_per_second")
        return seconds / llm.concurrency

    def _loading(self, cell: Cell) -> float:
        """Seconds that a process reads the weights of its models."""
        size = 0.0
        for model in dict.fromkeys(row.model for row in self._work[str(cell)]):
            dtype = self._plan.profile.models[model].dtype if model else "float32"
            parameters = self._found.models[model or "encoder"].parameters or 0
            size += parameters * DTYPE_BYTES[dtype]
        return size / self._assume("load_bytes_per_second")


def _kind(cell: Cell) -> str:
    """Cells of a kind take as long for the same amount of work."""
    return STAGES.get(cell.asset, cell.asset)


def class_of(cell: str) -> str:
    """The class of a cell for people: its stage."""
    asset = cell.split("/")[0]
    return STAGES.get(asset) or stage_of(asset)


def sources(
    steps: Sequence[Step], expected: Mapping[str, Expected]
) -> dict[str, tuple[Counter[Source], float]]:
    """Class of steps -> from where their times are, and seconds of work of them all together."""
    found: dict[str, tuple[Counter[Source], float]] = {}
    for step in steps:
        counts, seconds = found.get(class_of(step.cell), (Counter[Source](), 0.0))
        counts[expected[step.cell].source] += 1
        found[class_of(step.cell)] = (counts, seconds + (expected[step.cell].seconds or 0.0))
    return found


# --- steps


def steps_of(
    plan: Plan,
    needs: Mapping[str, Need],
    expected: Mapping[str, Expected],
    assume: Assumed,
    cells: Collection[Cell] | None = None,
) -> list[Step]:
    """The steps of a plan, as they are simulated.

    Args:
        plan: The cells and their inputs.
        needs: Field of `cluster` -> what a process needs.
        expected: Cell -> how long it works. A time that is not known counts as none.
        assume: Gives what it takes to start.
        cells: Those that are made; the others are there. `None`: all.
    """
    return [
        _step(plan, cell, needs, expected[str(cell)], assume)
        for cell in plan.cells
        if cells is None or cell in cells
    ]


def _step(
    plan: Plan, cell: Cell, needs: Mapping[str, Need], expected: Expected, assume: Assumed
) -> Step:
    seconds = expected.seconds or 0.0
    partition, pool = "/".join(cell.parts), POOLS.get(cell.asset, "")
    inputs = tuple(dict.fromkeys(str(upstream) for upstream, _ in plan.inputs(cell)))
    setting = SETTINGS.get(cell.asset)
    if setting is None:
        return Step(
            cell=str(cell),
            partition=partition,
            inputs=inputs,
            seconds=seconds,
            submitting=assume("step_seconds"),
            pool=pool,
        )
    need = needs[setting]
    # Each probe is a job of its own.
    jobs = sum(map(len, plan.probes(cell.parts[0]).values())) if cell.asset == "damage" else 1
    processes, together, merging = 1, False, 0.0
    if cell.asset == "checkpoint":
        recipe = RecipeSpec.parse(cell.parts[1].split(".", 1)[1]).name
        processes = plan.profile.recipe_training(recipe).processes
        together = processes > 1
        seconds /= processes * (assume("parallel_efficiency") if together else 1.0)
    elif cell.asset in SPREAD and isinstance(need, Spread) and need.parts > 1:
        processes = need.parts
        seconds /= processes
        merging = expected.loading + assume("merge_seconds")
    return Step(
        cell=str(cell),
        partition=partition,
        inputs=inputs,
        seconds=seconds,
        need=need,
        setting=f"cluster.{setting}",
        processes=processes,
        together=together,
        one_node=_apart(plan.profile),
        submitting=assume("step_seconds") + jobs * assume("ray_job_seconds"),
        starting=jobs * assume("process_seconds") + expected.loading,
        merging=merging,
        ending=jobs * assume("ray_end_seconds"),
        pool=pool,
    )


def _apart(profile: Profile) -> bool:
    """Whether nodes share no folder, so that what trains together has to be on one of them."""
    return profile.lake is not None and not profile.lake.startswith("file://")
