"""A plan of a study on a cluster, for people and for programs."""

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinject_assets.config import Node
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.estimate.cluster import (
    BACKFILLS,
    OPEN,
    RUN,
    ClusterPlan,
    class_of,
    sources,
)
from kinject_assets.core.estimate.nodes import said
from kinject_assets.core.estimate.reckoning import HOUR
from kinject_assets.core.estimate.schedule import ORCHESTRATOR, Placed, Schedule, Step
from kinject_assets.core.estimate.sections import WIDTH, Section, in_hours, laid_out
from kinject_assets.core.report.plots import ImageFormat, Span, timeline
from kinject_assets.core.results.rendering import dumped, plain
from kinject_assets.core.results.tables import Format, Result, render

LANES = 24
"""Lines of the chart in a terminal; what is beyond is counted."""

MARKS = {"embed": "e", "train": "t", "score": "s", "triage": "q", "damage": "d"}
"""Class of steps -> its letter in the chart; neighbours on a line alternate with capitals."""

LIGHT = "="
"""Mark of steps on the orchestrator."""

COLOURS = {"e": "cyan", "t": "red", "s": "green", "q": "magenta", "d": "yellow"}

MODEL = (
    "A run of Dagster makes the steps of a partition one after another. By kinject run: one run at "
    "a time, in the plan's order. By backfills: one more at once than the largest pool has slots, "
    "and of the pool gpu as many steps as it has slots, also while they wait for a node. A process "
    "goes to the first node that has what it needs. Nothing fails."
)


def format_cluster(plan: ClusterPlan, fmt: Format | str = "text", width: int | None = None) -> str:
    """A plan as text of 80 columns, Markdown, JSON, or CSV with a line for each number.

    Args:
        plan: The plan.
        fmt: One of `Format`.
        width: Columns of the terminal that text is for, whose chart has colours then; `None`: no
            terminal.
    """
    if fmt == "json":
        return dumped(plain(to_dict(plan)))
    if fmt == "csv":
        return render(Result(("part", "name", "quantity", "value", "source"), [*_lines(plan)]), fmt)
    colours = width is not None and fmt == "text"
    return laid_out(_sections(plan, min(width or WIDTH, WIDTH), colours), fmt)


# --- sections


def _sections(plan: ClusterPlan, width: int, colours: bool) -> list[Section]:
    if not plan.steps:
        return [Section(f"{plan.profile.name} on its cluster", above=["Nothing is left to make."])]
    return [
        _head(plan),
        _nodes(plan),
        _times(plan),
        _chart(plan, width, colours),
        _heavy(plan),
        _scaling(plan),
        _assumed(plan),
    ]


def _head(plan: ClusterPlan) -> Section:
    found = Section(f"{plan.profile.name} on its cluster, simulated")
    least = "at least " if plan.unknown else ""
    for name, schedule in plan.schedules.items():
        found.above.append(
            f"By {name}: {least}{in_hours(schedule.wall)} on {_count(schedule.nodes)}, "
            f"{_usd(schedule.usd)} while all are up, {_usd(schedule.usd_busy)} while they work."
        )
    found.below = [f"! {warning}" for warning in plan.warnings]
    if plan.unknown:
        found.below.append(
            f"! {len(plan.unknown)} steps count as nothing, since nobody knows how long they work: "
            f"{_some(plan.unknown)}. `kinject plan` says what to set."
        )
    return found


def _nodes(plan: ClusterPlan) -> Section:
    found = Section(
        "Nodes and needs",
        ("node", "count", "cores", "GPUs", "GB", "speed", "USD/h"),
        [
            (
                f"{kind} ({node.accelerator})" if node.accelerator else kind,
                str(node.count * plan.times),
                _enough(node.cpus),
                str(node.gpus),
                _enough(node.memory_gb),
                f"{node.speed:g}",
                "not known" if node.usd_per_hour is None else f"{node.usd_per_hour:g}",
            )
            for kind, node in plan.kinds.items()
        ],
    )
    for setting, need in plan.needs.items():
        steps = [step for step in plan.steps if step.setting == f"cluster.{setting}"]
        if steps:
            found.below.append(f"- cluster.{setting}: {_processes(steps)} with {said(need)}.")
    pools = plan.profile.pools.model_dump()
    found.below.append(
        f"- Steps at once: {', '.join(f'{name} {slots}' for name, slots in pools.items())} "
        "(`pools`); others run on the orchestrator, whose price is not counted."
    )
    return found


def _processes(steps: Sequence[Step]) -> str:
    counts = sorted({step.processes for step in steps})
    numbers = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    together = " that train together" if any(step.together for step in steps) else ""
    return f"{numbers} process{'' if counts == [1] else 'es'} a step{together}, each"


def _times(plan: ClusterPlan) -> Section:
    found = Section(
        "Where the times are from", ("class", "steps", "made", "others", "est.", "?", "work")
    )
    for name, (counts, seconds) in sources(plan.steps, plan.expected).items():
        known = ("made", "throughput", "estimated", "unknown")
        found.rows.append(
            (
                name,
                str(counts.total()),
                *(str(counts[source] or "") for source in known),
                in_hours(seconds),
            )
        )
    found.below = [
        "made: measured, this artefact is in the lake. others: measured, the speed of others of "
        "its kind there. est.: the operations that `kinject plan` counts at the speed of "
        "`hardware`, requests, or an assumption. work: of one process at speed 1, without start.",
    ]
    return found


def _chart(plan: ClusterPlan, width: int, colours: bool) -> Section:
    schedule = plan.schedules[BACKFILLS]
    lanes = lanes_of(schedule)
    label = min(16, max(len(lane.name) for lane in lanes))
    room = max(16, width - label - 3)
    shown: list[str] = []
    for lane in lanes[:LANES]:
        marks = _painted(_drawn(lane, schedule.wall, room), colours)
        shown.append(f"{_short(lane.name, label):{label}} |{marks}|")
    end = in_hours(schedule.wall)
    shown.append(f"{'':{label}} 0{end.rjust(room)}")
    letters = ", ".join(f"{letter} {name}" for name, letter in MARKS.items())
    found = Section(f"When, by backfills on {_count(schedule.nodes)}", picture=shown)
    if len(lanes) > LANES:
        found.below.append(f"{len(lanes) - LANES} more lines are not shown; --out draws them.")
    found.below.append(
        f"{letters}; capitals tell neighbours apart. {LIGHT} the orchestrator, . nothing."
    )
    return found


def _heavy(plan: ClusterPlan) -> Section:
    schedule = plan.schedules[BACKFILLS]
    found = Section("What runs where, by backfills", ("step", "node", "start", "time", "USD", ""))
    heavy = [step.cell for step in plan.steps if step.need]
    for cell in sorted(heavy, key=lambda cell: schedule.of(cell)[0].start):
        placed = schedule.of(cell)
        start, end = placed[0].start, max(one.end for one in placed)
        usd = schedule.usd_of(cell)
        found.rows.append(
            (
                cell,
                _short(_where(placed), 16),
                _clock(start),
                in_hours(end - start),
                "?" if usd is None else f"{usd:,.2f}",
                {"made": "m", "throughput": "o", "estimated": "e", "unknown": "?"}[
                    plan.expected[cell].source
                ],
            )
        )
    found.below = [
        "start in hours, minutes and seconds; USD of the part of a node that the step takes; m "
        "made, o others, e estimated. Lighter steps: --format csv or json."
    ]
    return found


def _scaling(plan: ClusterPlan) -> Section:
    found = Section("More nodes", ("how", "nodes", "wall time", "USD, all up", "USD, busy", "used"))
    for way in plan.schedules:
        rows = [row for row in plan.scaling if row.way == way]
        for number, row in enumerate(rows):
            found.rows.append(
                (
                    f"by {way}" if number == 0 else "",
                    str(row.nodes),
                    in_hours(row.wall),
                    _amount(row.usd),
                    _amount(row.usd_busy),
                    f"{row.used:.0%}",
                )
            )
    seconds, chain = plan.chain
    what = "GPUs" if any(node.gpus for node in plan.kinds.values()) else "CPU cores"
    found.below = [
        f"- used: part of the time of all {what} that processes have. Below: from how many nodes "
        "on more save less than 1 % of the wall time, of those that were looked at.",
        *(f"- By {way}: {_saturated(plan, way)}" for way in plan.schedules),
        f"- No cluster of such nodes needs less than {in_hours(seconds)}, the longest chain: "
        f"{', '.join(chain)}.",
    ]
    return found


def _saturated(plan: ClusterPlan, way: str) -> str:
    rows = [row for row in plan.scaling if row.way == way]
    times = plan.enough(way)
    enough = next(row for row in rows if row.times == times)
    if times == rows[-1].times and len(rows) > 1:
        found = f"{enough.nodes} nodes, the most that were looked at, still bring something."
    else:
        found = f"more than {enough.nodes} bring nothing."
    if way == RUN:
        found += " It makes one step at a time, so only parts and processes use several nodes."
    slots = plan.profile.pools.gpu
    if way == BACKFILLS and enough.heavy >= slots:
        found += f" pools.gpu lets {slots} heavy step{'s' if slots > 1 else ''} run at once."
    if way == OPEN:
        found += f" At most {enough.heavy} heavy steps run at once on these: pools.gpu of that."
    return found


def _assumed(plan: ClusterPlan) -> Section:
    values = (f"{name} {assumed.value:g}" for name, assumed in plan.assumptions.items())
    return Section(
        "How it was simulated (docs/planning.md says more)",
        above=[MODEL, f"Taken for granted beside what `kinject plan` does: {', '.join(values)}."],
    )


# --- words


def _count(nodes: Mapping[str, Node]) -> str:
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"


def _usd(value: float | None) -> str:
    return "a price not known" if value is None else f"{value:,.2f} USD"


def _amount(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.2f}"


def _enough(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "enough"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _where(placed: Sequence[Placed]) -> str:
    nodes = list(dict.fromkeys(one.node for one in placed))
    return nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"


def _short(name: str, width: int) -> str:
    """A name that fits; its end tells nodes of a kind apart."""
    return name if len(name) <= width else f"..{name[len(name) - width + 2 :]}"


# --- the chart


@dataclass(frozen=True)
class Lane:
    """Processes of a node that do not overlap; a node has as many lanes as run on it at once."""

    name: str
    placed: Sequence[Placed]


def lanes_of(schedule: Schedule) -> list[Lane]:
    """The orchestrator and the nodes, in their order, each with at least a lane."""
    found: list[Lane] = []
    for node in (ORCHESTRATOR, *schedule.nodes):
        lanes: list[list[Placed]] = [[]]
        for placed in (one for one in schedule.placed if one.node == node):
            # What is light is drawn as one, however much of it overlaps.
            free = (lane for lane in lanes if not lane or lane[-1].end <= placed.start + 1e-6)
            lane = lanes[0] if node == ORCHESTRATOR else next(free, None)
            if lane is None:
                lanes.append(lane := [])
            lane.append(placed)
        found += [Lane(node if n == 0 else "", lane) for n, lane in enumerate(lanes)]
    return found


def _drawn(lane: Lane, wall: float, width: int) -> str:
    """A lane as characters, each of the process that has most of its time."""
    most = [0.0] * width
    marks = ["."] * width
    for number, placed in enumerate(lane.placed):
        letter = MARKS.get(class_of(placed.cell), "x")
        mark = LIGHT if placed.node == ORCHESTRATOR else letter.upper() if number % 2 else letter
        first, last = placed.start / wall * width, placed.end / wall * width
        for place in range(int(first), min(width, math.ceil(last))):
            part = min(last, place + 1) - max(first, place)
            if part > most[place]:
                most[place], marks[place] = part, mark
    return "".join(marks)


def _painted(marks: str, colours: bool) -> str:
    if not colours:
        return marks
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for mark in marks:
        text.append(mark, COLOURS.get(mark.lower(), ""))
    console = Console(file=io.StringIO(), force_terminal=True, width=max(80, len(marks)))
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()


def draw_schedule(plan: ClusterPlan, fmt: ImageFormat) -> bytes:
    """The schedule of backfills as a picture."""
    schedule = plan.schedules[BACKFILLS]
    lanes = [
        (lane.name, [Span(p.start / HOUR, p.end / HOUR, _kind_of(p)) for p in lane.placed])
        for lane in lanes_of(schedule)
    ]
    title = f"{plan.profile.name}, by backfills on {_count(schedule.nodes)}: simulated"
    return timeline(lanes, title="\n".join(textwrap.wrap(title, 80)), fmt=fmt)


def write_picture(plan: ClusterPlan, path: Path) -> None:
    """Draws the schedule of backfills to a file, as PNG or SVG by its name.

    Raises:
        KinjectError: If it cannot be written.
    """
    picture = draw_schedule(plan, "png" if path.suffix == ".png" else "svg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    except OSError as error:
        raise KinjectError(f"{path} cannot be written ({error}); name another --out") from error


def _kind_of(placed: Placed) -> str:
    return ORCHESTRATOR if placed.node == ORCHESTRATOR else class_of(placed.cell)


# --- for programs


def to_dict(plan: ClusterPlan) -> dict[str, Any]:
    """All of a plan."""
    return {
        "profile": plan.profile.name,
        "times": plan.times,
        "nodes": {kind: node.model_dump() for kind, node in plan.kinds.items()},
        "needs": {name: need.model_dump() for name, need in plan.needs.items()},
        "pools": plan.profile.pools.model_dump(),
        "schedules": {name: _schedule(plan, schedule) for name, schedule in plan.schedules.items()},
        "scaling": [asdict(row) for row in plan.scaling],
        "enough_times": {name: plan.enough(name) for name in plan.schedules},
        "longest_chain": {"seconds": plan.chain[0], "cells": list(plan.chain[1])},
        "unknown": plan.unknown,
        "assumptions": {name: asdict(row) for name, row in plan.assumptions.items()},
        "warnings": list(plan.warnings),
        "model": MODEL,
    }


def _schedule(plan: ClusterPlan, schedule: Schedule) -> dict[str, Any]:
    return {
        "wall_seconds": schedule.wall,
        "usd": schedule.usd,
        "usd_busy": schedule.usd_busy,
        "used": schedule.used,
        "busy_seconds": dict(schedule.busy),
        "steps": [
            {
                "cell": step.cell,
                "class": class_of(step.cell),
                "began": schedule.spans[step.cell][0],
                "made": schedule.spans[step.cell][1],
                "usd": schedule.usd_of(step.cell),
                "working_seconds": plan.expected[step.cell].seconds,
                "source": plan.expected[step.cell].source,
                "processes": [
                    {
                        "process": placed.process,
                        "node": placed.node,
                        "gpu": placed.gpu,
                        "start": placed.start,
                        "end": placed.end,
                    }
                    for placed in schedule.of(step.cell)
                ],
            }
            for step in plan.steps
        ],
    }


def _lines(plan: ClusterPlan) -> Iterator[tuple[Any, ...]]:
    """Every number: part, name, quantity, value, source."""
    for way, schedule in plan.schedules.items():
        for step in plan.steps:
            source = plan.expected[step.cell].source
            yield way, step.cell, "working seconds", plan.expected[step.cell].seconds, source
            yield way, step.cell, "usd", schedule.usd_of(step.cell), "simulated"
            for placed in schedule.of(step.cell):
                name = f"{step.cell} {placed.process}".rstrip()
                yield way, name, "node", placed.node, "simulated"
                yield way, name, "start", placed.start, "simulated"
                yield way, name, "end", placed.end, "simulated"
    for row in plan.scaling:
        for quantity, value in asdict(row).items():
            if quantity not in {"way", "times"}:
                yield "scaling", f"{row.way}, {row.times} times", quantity, value, "simulated"
    yield "longest chain", ", ".join(plan.chain[1]), "seconds", plan.chain[0], "computed"
    for name, assumption in plan.assumptions.items():
        yield "assumption", name, "value", assumption.value, "assumed"
    for warning in plan.warnings:
        yield "warning", "", "text", warning, ""
