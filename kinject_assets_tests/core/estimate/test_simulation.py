"""Schedules worked out by hand, what always holds of them, and what is refused."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject_assets.config import Need, Node
from kinject_assets.core.estimate.checking import as_measured, compare
from kinject_assets.core.estimate.nodes import lacking, named_nodes, speed
from kinject_assets.core.estimate.schedule import (
    ORCHESTRATOR,
    Placed,
    Schedule,
    Step,
    Way,
    critical_path,
)
from kinject_assets.core.estimate.simulation import NoNodeFits, simulate

FREE = Way(name="free", runs=math.inf)
RUN = Way(name="kinject run", runs=1, in_order=True)
GPU = Need(cpus=0, gpus=1)
ONE_GPU = Node(gpus=1, usd_per_hour=3600)
"""A node whose every second costs a dollar."""


def step(cell: str, seconds: float, *inputs: str, **changes: object) -> Step:
    """A step on a GPU, in a partition of its own."""
    fields = {"partition": cell, "need": GPU, **changes}
    return Step(cell=cell, seconds=seconds, inputs=inputs, **fields)  # type: ignore[arg-type]


def table(schedule: Schedule) -> dict[str, list[tuple[str, float, float]]]:
    """Cell -> node, start and end of its processes."""
    return {
        cell: [(one.node, one.start, one.end) for one in schedule.of(cell)]
        for cell in schedule.spans
    }


# --- by hand


def test_three_steps_on_two_nodes() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 2})})
    steps = [step("a", 10), step("b", 4), step("c", 5)]
    found = simulate(steps, nodes, {}, FREE)
    assert table(found) == {
        "a": [("n:1", 0, 10)],
        "b": [("n:2", 0, 4)],
        "c": [("n:2", 4, 9)],
    }
    assert found.wall == 10
    assert found.busy == {"n:1": 10, "n:2": 9}
    assert (found.usd, found.usd_busy, found.usd_of("c")) == (20, 19, 5)
    assert found.used == 19 / 20


def test_a_step_waits_for_its_inputs_and_the_chain_is_the_bound() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 3})})
    steps = [step("a", 3), step("b", 2), step("c", 4, "a", "b"), step("d", 1)]
    found = simulate(steps, nodes, {}, FREE)
    assert table(found)["c"] == [("n:1", 3, 7)]
    assert found.wall == 7
    assert critical_path(steps, nodes) == (7, ["a", "c"])


def test_what_is_made_by_no_step_is_there() -> None:
    found = simulate([step("a", 3, "made before")], {"n": ONE_GPU}, {}, FREE)
    assert found.wall == 3


def test_kinject_run_makes_one_step_after_another() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 4})})
    steps = [
        step("a", 3, partition="x"),
        step("b", 2, partition="x"),
        step("c", 4, partition="y"),
        step("d", 1, partition="x"),
    ]
    way = Way(name="kinject run", runs=1, in_order=True, starting=10)
    found = simulate(steps, nodes, {}, way)
    # Three runs: neighbours of one partition share one.
    assert table(found) == {
        "a": [("n:1", 10, 13)],
        "b": [("n:1", 13, 15)],
        "c": [("n:1", 25, 29)],
        "d": [("n:1", 39, 40)],
    }


def test_steps_of_one_partition_are_made_one_after_another() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 4})})
    steps = [step("a", 3, partition="x"), step("b", 2, partition="x"), step("c", 1)]
    found = simulate(steps, nodes, {}, FREE)
    assert table(found)["b"] == [("n:1", 3, 5)]
    assert table(found)["c"] == [("n:2", 0, 1)]


def test_a_run_takes_in_what_it_makes_itself_and_what_is_late_needs_another() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 2})})
    steps = [
        step("a", 5),
        step("b", 1, partition="x"),
        step("c", 1, "b", partition="x"),
        step("d", 1, "c", "a", partition="x"),
    ]
    found = simulate(steps, nodes, {}, Way(name="", runs=math.inf, starting=2))
    assert table(found)["b"] == [("n:2", 2, 3)]
    assert table(found)["c"] == [("n:2", 3, 4)]
    # Its input was not there when the run began: `a` is made at 7, a run of its own starts then.
    assert table(found)["d"] == [("n:1", 9, 10)]


def test_so_many_runs_at_once() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 3})})
    found = simulate([step(name, 1) for name in "abc"], nodes, {}, Way(name="", runs=2))
    assert [start for (_, start, _), *_ in table(found).values()] == [0, 0, 1]


def test_a_pools_slot_is_held_while_a_step_waits_for_its_node() -> None:
    nodes = {"big": Node(gpus=1), "small": Node(cpus=2)}
    cores = Need(cpus=2)
    steps = [
        step("a", 10, need=GPU, pool="gpu"),
        step("b", 10, need=GPU, pool="gpu"),
        step("c", 1, need=cores, pool="gpu"),
        step("d", 1, need=cores, pool="llm"),
    ]
    two = simulate(steps, nodes, {"gpu": 2}, FREE)
    # c could have the small node, but b has the other slot and waits for the big one.
    assert table(two)["c"] == [("small", 10, 11)]
    assert table(two)["d"] == [("small", 0, 1)]
    assert two.at_once == {"gpu": 2, "llm": 1}
    assert table(simulate(steps, nodes, {"gpu": 3}, FREE))["c"] == [("small", 0, 1)]
    assert simulate(steps, nodes, {"gpu": 1}, FREE).at_once["gpu"] == 1


def test_resources_exclude() -> None:
    nodes = {
        "plain": Node(cpus=4),
        "old": Node(gpus=1, accelerator="A100"),
        "new": Node(gpus=1, accelerator="H100", resources={"disk": 1}, memory_gb=100),
    }
    steps = [
        step("h100", 5, need=Need(gpus=1, accelerator="H100")),
        step("memory", 5, need=Need(memory_gb=80)),
        step("disk", 5, need=Need(resources={"disk": 0.75})),
        step("disk-2", 5, need=Need(resources={"disk": 0.5})),
        step("any", 5, need=Need(gpus=1)),
        step("cores", 5, need=Need(cpus=4)),
    ]
    found = simulate(steps, nodes, {}, FREE)
    assert {cell: (where[0][0], where[0][1]) for cell, where in table(found).items()} == {
        "h100": ("new", 0),
        "memory": ("new", 0),
        "disk": ("new", 0),
        "disk-2": ("new", found.of("disk")[0].end),
        "any": ("old", 0),
        "cores": ("plain", 0),
    }


def test_processes_share_a_gpu_and_each_has_its_part_of_it() -> None:
    half, whole = Need(cpus=0, gpus=0.5), Need(cpus=0, gpus=2)
    steps = [step("a", 5, need=half), step("b", 5, need=half), step("c", 5, need=whole)]
    found = simulate(steps, {"n": Node(gpus=2)}, {}, FREE)
    # Both halves lie on one GPU; two whole ones are free when they are done.
    assert [found.of(cell)[0].gpu for cell in "abc"] == [0, 0, 0]
    assert table(found) == {"a": [("n", 0, 10)], "b": [("n", 0, 10)], "c": [("n", 10, 15)]}


@pytest.mark.parametrize(
    ("need", "node", "expected"),
    [
        (Need(gpus=1), Node(gpus=8, speed=0.4), 0.4),
        (Need(gpus=4), Node(gpus=8), 1),
        (Need(gpus=0.25), Node(gpus=8), 0.25),
        (Need(cpus=2), Node(cpus=8), 0.25),
        (Need(cpus=8), Node(cpus=8, speed=3), 3),
        (Need(cpus=0), Node(cpus=8), 1),
        (Need(cpus=2), Node(cpus=math.inf), 1),
    ],
)
def test_speed(need: Need, node: Node, expected: float) -> None:
    assert speed(need, node) == expected


def test_parts_are_spread_and_put_together() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 2})})
    parted = step("a", 6, processes=3, submitting=10, starting=2, merging=1)
    found = simulate([parted, step("b", 1, "a")], nodes, {}, FREE)
    assert [(p.process, p.node, p.start, p.end) for p in found.of("a")] == [
        ("1/3", "n:1", 10, 18),
        ("2/3", "n:2", 10, 18),
        ("3/3", "n:1", 18, 26),
        ("merge", "n:1", 26, 29),
    ]
    assert found.spans["a"] == (0, 29)
    assert table(found)["b"] == [("n:1", 29, 30)]
    assert critical_path([parted], nodes)[0] == 10 + 2 + 6 + 2 + 1


def test_what_trains_together_starts_together_at_the_pace_of_the_slowest() -> None:
    nodes = {"a": Node(gpus=2), "b": Node(gpus=2, speed=0.5)}
    steps = [
        step("busy", 4, need=GPU),
        step("train", 10, processes=3, together=True),
        step("late", 1, need=GPU),
    ]
    found = simulate(steps, nodes, {}, FREE)
    assert [(p.process, p.node, p.start, p.end) for p in found.of("train")] == [
        ("1/3", "a", 0, 20),
        ("2/3", "b", 0, 20),
        ("3/3", "b", 0, 20),
    ]
    assert table(found)["late"] == [("a", 4, 5)]


def test_what_has_to_be_on_one_node_waits_for_it() -> None:
    nodes = {"a": Node(gpus=2), "b": Node(gpus=2)}
    steps = [
        step("x", 4),
        step("y", 4, need=Need(gpus=2, cpus=0)),
        step("train", 1, processes=2, together=True, one_node=True),
    ]
    found = simulate(steps, nodes, {}, FREE)
    assert table(found)["train"] == [("a", 4, 5), ("a", 4, 5)]


def test_the_orchestrator_is_never_full_and_has_no_price() -> None:
    steps = [step(name, 3, need=None) for name in "abc"]
    found = simulate(steps, {"n": ONE_GPU}, {}, FREE)
    assert set(map(tuple, table(found).values())) == {((ORCHESTRATOR, 0, 3),)}
    assert found.usd_of("a") is None
    assert (found.usd, found.usd_busy) == (3, 0)


def test_a_price_that_is_not_known_is_not_nothing() -> None:
    nodes = {"a": ONE_GPU, "b": Node(gpus=1)}
    found = simulate([step("x", 2), step("y", 2)], nodes, {}, FREE)
    assert (found.usd, found.usd_busy) == (None, None)
    assert (found.usd_of("x"), found.usd_of("y")) == (2, None)


def test_a_step_costs_the_part_of_the_node_that_it_takes() -> None:
    node = Node(gpus=4, cpus=10, usd_per_hour=3600)
    found = simulate([step("x", 2, need=Need(gpus=1, cpus=5))], {"n": node}, {}, FREE)
    assert found.usd_of("x") == pytest.approx(1.0), "half of the cores for two seconds"
    assert found.usd == 2


def test_nothing_to_make_takes_no_time() -> None:
    found = simulate([], {"n": ONE_GPU}, {}, RUN)
    assert (found.wall, found.usd, found.used) == (0, 0, 0)


# --- refused


def test_a_step_that_fits_no_node_is_named_with_the_nearest_one() -> None:
    nodes = {"cpu": Node(cpus=4), "gpu": Node(cpus=8, gpus=1, accelerator="A100", memory_gb=64)}
    need = Need(gpus=2, memory_gb=32, accelerator="A100")
    with pytest.raises(NoNodeFits) as error:
        simulate([step("checkpoint/x", 1, need=need, setting="cluster.train")], nodes, {}, RUN)
    said = str(error.value)
    assert "checkpoint/x fits no node" in said
    assert "1 CPU core, 2 GPUs, of kind A100, 32 GB of memory" in said
    assert "`gpu`, which has 1 of the 2 GPUs asked for" in said
    assert "cluster.train" in said


def test_processes_that_fit_only_one_after_another_are_refused() -> None:
    nodes = named_nodes({"gpu": Node(gpus=2, count=2)})
    steps = [step("checkpoint/x", 1, processes=5, together=True, setting="cluster.train")]
    with pytest.raises(NoNodeFits, match=r"its 5 processes run at once.*room for 4 of them"):
        simulate(steps, nodes, {}, RUN)
    apart = [step("checkpoint/x", 1, processes=3, together=True, one_node=True)]
    with pytest.raises(NoNodeFits, match=r"on one node .*room for 2 of them"):
        simulate(apart, nodes, {}, RUN)
    # Parts need not run at once.
    assert simulate([step("answers/x", 1, processes=5)], nodes, {}, RUN).wall == 2


# --- what always holds

NEEDS = (
    None,
    Need(),
    Need(cpus=3, memory_gb=20),
    GPU,
    Need(gpus=0.5),
    Need(gpus=2, cpus=0),
    Need(gpus=1, accelerator="H100"),
    Need(resources={"disk": 0.5}),
)
KINDS = {
    "plain": Node(cpus=4, memory_gb=32, resources={"disk": 1}, usd_per_hour=1),
    "new": Node(cpus=8, gpus=2, accelerator="H100", speed=2.0, usd_per_hour=10, count=2),
}


@st.composite
def studies(draw: st.DrawFn) -> list[Step]:
    """Steps with inputs among those before them."""
    found: list[Step] = []
    for number in range(draw(st.integers(1, 9))):
        need = draw(st.sampled_from(NEEDS))
        together = need is not None and draw(st.booleans())
        found.append(
            Step(
                cell=f"c{number}",
                partition=draw(st.sampled_from("xyz")),
                inputs=tuple(
                    draw(st.sets(st.sampled_from([s.cell for s in found]), max_size=3))
                    if found
                    else ()
                ),
                seconds=draw(st.floats(0, 50)),
                need=need,
                processes=draw(st.integers(1, 2 if together else 4)) if need else 1,
                together=together,
                submitting=draw(st.sampled_from((0.0, 3.0))),
                starting=draw(st.sampled_from((0.0, 2.0))),
                merging=draw(st.sampled_from((0.0, 1.0))),
                ending=draw(st.sampled_from((0.0, 1.5))),
                pool=draw(st.sampled_from(("", "gpu", "llm"))),
            )
        )
    return found


WAYS = st.sampled_from(
    (RUN, FREE, Way(name="backfills", runs=2, starting=5), Way(name="one", runs=1))
)


@settings(max_examples=150, deadline=None)
@given(studies(), WAYS, st.integers(1, 3))
def test_what_holds_of_every_schedule(steps: list[Step], way: Way, slots: int) -> None:
    nodes = named_nodes(KINDS)
    found = simulate(steps, nodes, {"gpu": slots}, way)
    assert found.spans.keys() == {s.cell for s in steps}
    by_cell = {s.cell: s for s in steps}
    for s in steps:
        begun, made = found.spans[s.cell]
        assert len(found.of(s.cell)) == s.processes + (s.merging > 0 and s.need is not None)
        assert all(begun - 1e-6 <= p.start <= p.end <= made + 1e-6 for p in found.of(s.cell))
        for name in s.inputs:
            assert found.spans[name][1] <= begun + 1e-6, "no step before its inputs"
        if s.need:
            assert all(not lacking(s.need, nodes[p.node]) for p in found.of(s.cell))
        if s.together:
            firsts = [p for p in found.of(s.cell) if p.process != "merge"]
            assert len({(p.start, p.end) for p in firsts}) == 1
    assert nothing_is_taken_twice(found, by_cell)
    for partition in "xyz":
        spans = sorted(found.spans[s.cell] for s in steps if s.partition == partition)
        assert all(a[1] <= b[0] + 1e-6 for a, b in itertools.pairwise(spans))
    worked = [
        (min(p.start for p in found.of(s.cell)), max(p.end for p in found.of(s.cell)))
        for s in steps
        if s.pool == "gpu"
    ]
    assert most_at_once(worked) <= slots
    assert found.at_once.get("gpu", 0) <= slots
    assert most_at_once(list(found.spans.values())) <= way.runs
    least, _ = critical_path(steps, nodes)
    assert found.wall >= least - 1e-6
    assert found.used <= 1 + 1e-9, "the work is done by nodes that are there"
    assert found.usd is not None
    assert found.usd_busy is not None
    assert found.usd_busy <= found.usd + 1e-9


def nothing_is_taken_twice(found: Schedule, steps: dict[str, Step]) -> bool:
    """Whether no node gives more than it has, whenever a process starts."""
    by_node: defaultdict[str, list[Placed]] = defaultdict(list)
    for placed in found.placed:
        by_node[placed.node].append(placed)
    for name, node in found.nodes.items():
        for at in by_node[name]:
            # Times are sums of many; what ends within a nanosecond is over.
            here = [p for p in by_node[name] if p.start <= at.start + 1e-7 < p.end]
            needs = [need for p in here if (need := steps[p.cell].need)]
            if not (
                sum(need.cpus for need in needs) <= node.cpus + 1e-6
                and sum(need.gpus for need in needs) <= node.gpus + 1e-6
                and sum(need.memory_gb for need in needs) <= node.memory_gb + 1e-6
                and sum(need.resources.get("disk", 0) for need in needs)
                <= node.resources.get("disk", 0) + 1e-6
            ):
                return False
    return True


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    """The most spans that overlap by more than a rounding error."""
    return max(
        (sum(start <= at + 1e-7 < end for start, end in spans) for at, _ in spans), default=0
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.floats(0.5, 20))
def test_more_nodes_are_never_slower_for_steps_that_are_alike(
    steps: int, nodes: int, parts: int, seconds: float
) -> None:
    alike = [step(f"c{n}", seconds, processes=parts) for n in range(steps)]
    walls = [
        simulate(alike, named_nodes({"n": ONE_GPU}, times), {}, FREE).wall
        for times in (nodes, nodes + 1)
    ]
    assert walls[1] <= walls[0] + 1e-6
    assert walls[0] == pytest.approx(math.ceil(steps * parts / nodes) * seconds)


# --- held against a run


def test_a_simulation_is_held_against_what_was_measured() -> None:
    nodes = named_nodes({"n": ONE_GPU.model_copy(update={"count": 2})})
    steps = [step("a", 10), step("b", 4), step("c", 5), step("d", 1)]
    schedule = simulate(steps, nodes, {}, FREE)
    measured = [
        Placed(cell="a", node="n:1", start=1000, end=1011),
        Placed(cell="b", node="n:2", start=1001, end=1003),
        Placed(cell="b", node="n:1", start=1003, end=1006),
        Placed(cell="c", node="n:2", start=1006, end=1022),
        Placed(cell="x", node="n:2", start=1022, end=1023),
    ]
    check = compare(schedule, measured)
    assert [difference.cell for difference in check.steps] == ["a", "b", "c"]
    assert check.steps[1].measured == (1, 6)
    assert check.steps[1].measured_nodes == ("n:1", "n:2")
    assert check.steps[1].simulated_nodes == ("n:2",)
    assert (check.only_simulated, check.only_measured) == (("d",), ("x",))
    assert (check.simulated_wall, check.measured_wall) == (10, 22)
    assert check.ratio == 2.2
    assert check.same_nodes == 2 / 3


def test_steps_take_as_long_as_they_were_measured() -> None:
    nodes = {"left": Node(cpus=2), "right": Node(cpus=2, speed=2.0)}
    core = Need(cpus=1)
    steps = [
        step("light", 99, need=None),
        step("parts", 99, need=core, processes=2, merging=99, starting=7, submitting=4, ending=3),
        step("alone", 99, need=core, starting=7),
        step("other", 5),
    ]
    measured = [
        Placed(cell="light", node=ORCHESTRATOR, start=0, end=3),
        Placed(cell="parts", node="left", start=10, end=19),
        Placed(cell="parts", node="left", start=10, end=18),
        Placed(cell="parts", node="left", start=20, end=22),
        Placed(cell="alone", node="right", start=30, end=34),
    ]
    light, parts, alone, other = as_measured(steps, measured, nodes)
    assert light.seconds == 3
    # Half of the cores for 9 s, of a node of speed 1; and 3 s from the last part on.
    assert (parts.seconds, parts.merging, parts.starting) == (4.5, 1.5, 0)
    assert (alone.seconds, alone.starting) == (4, 0)
    assert other == steps[3]
    found = simulate([light, parts], nodes, {}, RUN)
    assert [p.end - p.start for p in found.of("parts")] == [9, 9, 3]
    assert found.spans["parts"] == (3, 3 + 4 + 9 + 3 + 3)
    assert critical_path([parts], {"left": nodes["left"]})[0] == 4 + 9 + 3 + 3


def test_nothing_measured_is_no_ratio() -> None:
    check = compare(simulate([step("a", 1)], {"n": ONE_GPU}, {}, FREE), [])
    assert (check.ratio, check.same_nodes, check.only_simulated) == (None, None, ("a",))
