"""Figures of the report and of Dagster's metadata, as PNG or SVG bytes.

Every function draws from plain numbers, so that it may be called in any process; what is remembered
of a page is what drawing it again would give.
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ImageFormat = Literal["png", "svg"]

LIMIT = 60_000
"""Characters of a data URI that Dagster's event log still takes well."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe and Ito's palette: told apart by colour-blind readers."""

MARKERS = "osD^vP*"


@dataclass(frozen=True)
class Point:
    """An accuracy with its interval."""

    value: float
    low: float
    high: float


def _canvas(width: float = 6.4, height: float = 3.6) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def _bytes(figure: "Figure", fmt: ImageFormat, dpi: int) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    # A fixed salt and no date: the same numbers give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "kinject", "svg.fonttype": "path"}):
        metadata = {"Date": None} if fmt == "svg" else {"Software": None}
        figure.savefig(buffer, format=fmt, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def _curves(axes: "Axes", curves: Mapping[str, Mapping[int, Point]]) -> None:
    for index, (name, points) in enumerate(curves.items()):
        xs = sorted(points)
        axes.errorbar(
            xs,
            [points[x].value for x in xs],
            yerr=[
                [max(0.0, points[x].value - points[x].low) for x in xs],
                [max(0.0, points[x].high - points[x].value) for x in xs],
            ],
            label=name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="--" if index >= len(COLOURS) else "-",
            capsize=2,
            linewidth=1.4,
            markersize=4,
        )


def _chance(axes: "Axes", chance: float | None) -> None:
    if chance is not None:
        axes.axhline(chance, color="#7f7f7f", linestyle=":", label=f"chance ({chance:.2f})")


def _legend(axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, fontsize=7, loc="best", frameon=False)


def accuracy_by_k(
    curves: Mapping[str, Mapping[int, Point]],
    *,
    chance: float | None = None,
    title: str = "Accuracy by number of retrieved chunks",
    fmt: ImageFormat = "png",
    dpi: int = 90,
) -> bytes:
    """Accuracy against K, one curve a row; K = 0 is without retrieval.

    Args:
        curves: Name -> K -> accuracy with its interval.
        chance: Accuracy of guessing, drawn as a line.
        title: Title.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas()
    _curves(axes, curves)
    _chance(axes, chance)
    axes.set(xlabel="K, chunks in front of the question", ylabel="accuracy", title=title)
    axes.set_xticks(sorted({k for points in curves.values() for k in points}))
    _legend(axes)
    return _bytes(figure, fmt, dpi)


def recall_by_k(
    curves: Mapping[str, Sequence[float]],
    *,
    title: str = "Questions whose own chunk is among the first K",
    fmt: ImageFormat = "png",
    dpi: int = 80,
) -> bytes:
    """Recall against K, one curve a retriever.

    Args:
        curves: Name -> recall at K = 1, 2, ...
        title: Title.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas(height=2.8)
    for index, (name, values) in enumerate(curves.items()):
        axes.plot(
            range(1, len(values) + 1),
            values,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
        )
    axes.set(xlabel="K", ylabel="share of the questions", title=title, ylim=(-0.02, 1.02))
    axes.locator_params(axis="x", integer=True)
    _legend(axes)
    return _bytes(figure, fmt, dpi)


def accuracy_by_paraphrases(
    curves: Mapping[str, Mapping[int, Point]],
    *,
    levels: Mapping[str, float] | None = None,
    faint: Mapping[str, Sequence[Mapping[int, float]]] | None = None,
    chance: float | None = None,
    title: str = "Accuracy by number of paraphrases",
    fmt: ImageFormat = "png",
    dpi: int = 90,
) -> bytes:
    """Accuracy against the number of paraphrases, FT-par and its control as curves of their own.

    Arguments are those of `accuracy_by_k`, with the number of paraphrases for K, and:

    Args:
        levels: Name -> accuracy of a method without paraphrases, drawn as a dashed line.
        faint: Name of a curve -> its parts, e.g. one a seed, drawn thin in its colour.
    """
    figure, axes = _canvas()
    for index, name in enumerate(curves):
        for part in (faint or {}).get(name, ()):
            xs = sorted(part)
            axes.plot(xs, [part[x] for x in xs], color=COLOURS[index], alpha=0.3, linewidth=0.8)
    _curves(axes, curves)
    for index, (name, value) in enumerate((levels or {}).items(), len(curves)):
        axes.axhline(value, color=COLOURS[index], linestyle="--", linewidth=1, label=name)
    _chance(axes, chance)
    axes.set(xlabel="paraphrases a chunk", ylabel="accuracy", title=title)
    axes.set_xticks(sorted({n for points in curves.values() for n in points}))
    _legend(axes)
    return _bytes(figure, fmt, dpi)


def gain_by_damage(
    points: Mapping[str, Sequence[tuple[float, float, str]]],
    *,
    x_label: str,
    title: str = "What training brought against what it cost",
    fmt: ImageFormat = "png",
    dpi: int = 90,
) -> bytes:
    """Gain on the corpus against the change of a damage probe, one mark a checkpoint.

    Args:
        points: Series -> (change of the probe, gain over the base model, label).
        x_label: Which probe.
        title: Title.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas()
    for index, (name, marks) in enumerate(points.items()):
        axes.plot(
            [x for x, _, _ in marks],
            [y for _, y, _ in marks],
            label=name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="",
            markersize=5,
        )
        for x, y, label in marks:
            axes.annotate(label, (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.axhline(0, color="#7f7f7f", linestyle=":")
    axes.axvline(0, color="#7f7f7f", linestyle=":")
    axes.grid(alpha=0.25)
    axes.set(xlabel=x_label, ylabel="gain in accuracy over the base model", title=title)
    _legend(axes)
    return _bytes(figure, fmt, dpi)


def loss_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str = "Loss while training",
    x_label: str = "epoch",
    fmt: ImageFormat = "png",
    dpi: int = 90,
) -> bytes:
    """Loss in nats per token, one curve a trial or data set.

    Args:
        curves: Name -> (step or epoch, loss); points that are not finite are left out.
        title: Title.
        x_label: What the first number counts.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas()
    for index, (name, points) in enumerate(curves.items()):
        finite = [(x, y) for x, y in points if math.isfinite(y)]
        axes.plot(
            [x for x, _ in finite],
            [y for _, y in finite],
            label=name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)] if len(finite) < 30 else None,
            markersize=4,
            linewidth=1.4,
        )
    axes.set(xlabel=x_label, ylabel="loss, nats per token", title=title)
    _legend(axes)
    return _bytes(figure, fmt, dpi)


MOST_POINTS = 200
"""Points of a curve that are told apart in a figure of its size."""


def smoothed(
    points: Sequence[tuple[float, float]], most: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that a long curve is no band of noise.

    Args:
        points: In order; those that are not finite are left out.
        most: At most so many come back.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    size = -(-len(finite) // most) or 1
    blocks = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [
        (sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block))
        for block in blocks
    ]


def loss_by_rate(
    trials: Sequence[tuple[float, Sequence[tuple[int, float]]]],
    *,
    title: str = "Validation loss by learning rate",
    fmt: ImageFormat = "png",
    dpi: int = 90,
) -> bytes:
    """Validation loss against learning rate: every epoch as a dot, the best of each trial marked.

    Args:
        trials: Learning rate of each, and its (epoch, loss); losses that are not finite are left
            out.
        title: Title.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas()
    best: list[tuple[float, float]] = []
    for rate, epochs in sorted(trials, key=lambda trial: trial[0]):
        finite = [(loss, epoch) for epoch, loss in epochs if math.isfinite(loss)]
        if not finite:
            continue
        axes.plot([rate] * len(finite), [loss for loss, _ in finite], ".", color="#7f7f7f")
        loss, epoch = min(finite)
        best.append((rate, loss))
        axes.annotate(
            f"epoch {epoch}", (rate, loss), fontsize=7, xytext=(4, -9), textcoords="offset points"
        )
    if best:
        axes.plot(
            [rate for rate, _ in best],
            [loss for _, loss in best],
            color=COLOURS[0],
            marker=MARKERS[0],
            label="best epoch of a trial",
            linewidth=1.4,
            markersize=5,
        )
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="validation loss, nats per token", title=title)
    _legend(axes)
    return _bytes(figure, fmt, dpi)


def histogram(
    values: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    title: str,
    limit: float | None = None,
    fmt: ImageFormat = "png",
    dpi: int = 80,
) -> bytes:
    """How values are spread.

    Args:
        values: May be empty.
        x_label: What a value is.
        y_label: What is counted.
        title: Title.
        limit: Drawn as a line, e.g. a budget.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas(height=2.8)
    axes.hist(values, bins=min(30, max(5, len(set(values)))), color=COLOURS[0])
    if limit is not None:
        axes.axvline(limit, color=COLOURS[1], linestyle="--", label=f"limit ({limit:g})")
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    _legend(axes)
    return _bytes(figure, fmt, dpi)


def bars(
    groups: Mapping[str, Mapping[str, float]],
    *,
    y_label: str,
    title: str,
    fmt: ImageFormat = "png",
    dpi: int = 80,
) -> bytes:
    """Plain bars beside one another, e.g. how often each letter is right and how often chosen.

    Args:
        groups: Series -> name of the bar -> its height; a bar may be missing in a series.
        y_label: What a height is.
        title: Title.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas(height=2.8)
    names = list(dict.fromkeys(name for series in groups.values() for name in series))
    width = 0.8 / max(1, len(groups))
    for index, (label, series) in enumerate(groups.items()):
        axes.bar(
            [i + (index - (len(groups) - 1) / 2) * width for i in range(len(names))],
            [series.get(name, 0.0) for name in names],
            width,
            label=label,
            color=COLOURS[index % len(COLOURS)],
        )
    axes.set(ylabel=y_label, title=title)
    axes.set_xticks(range(len(names)), names)
    if len(groups) > 1:
        _legend(axes)
    return _bytes(figure, fmt, dpi)


def table_bars(
    rows: Mapping[str, Mapping[str, Point]],
    *,
    chance: float | None = None,
    title: str = "Accuracy by method",
    fmt: ImageFormat = "png",
    dpi: int = 90,
) -> bytes:
    """A table as groups of bars with intervals.

    Args:
        rows: Row -> method -> accuracy with its interval; a method may be missing in a row.
        chance: Accuracy of guessing, drawn as a line.
        title: Title.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    methods = list(dict.fromkeys(m for points in rows.values() for m in points))
    figure, axes = _canvas(width=max(6.4, 0.9 + 0.22 * len(rows) * max(1, len(methods))))
    width = 0.8 / max(1, len(methods))
    for index, method in enumerate(methods):
        there = [(i, points[method]) for i, points in enumerate(rows.values()) if method in points]
        axes.bar(
            [i + (index - (len(methods) - 1) / 2) * width for i, _ in there],
            [p.value for _, p in there],
            width,
            yerr=[
                [max(0.0, p.value - p.low) for _, p in there],
                [max(0.0, p.high - p.value) for _, p in there],
            ],
            label=method,
            color=COLOURS[index % len(COLOURS)],
            hatch="//" if index >= len(COLOURS) else None,
            error_kw={"linewidth": 0.8},
        )
    _chance(axes, chance)
    axes.set(ylabel="accuracy", title=title, ylim=(0, 1))
    axes.set_xticks(range(len(rows)), list(rows), rotation=30, ha="right", fontsize=7)
    # Bars fill the axes, so that a legend among them would hide some.
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return _bytes(figure, fmt, dpi)


# --- pages of the study's figures: data alone, so that the same page is drawn once a process

DOTS = 100
"""Dots per inch of a page's PNG."""

WIDTH = 7.8
"""Inches of a page."""

WRAP_TITLE, WRAP_NOTES, WRAP_LINES = 95, 120, 112
"""Characters of a line above a page, below it, and below a panel that is as wide as the page."""

LEVELS = ("-.", (0, (6, 2)))
"""Dashes of lines across a panel."""

STACK = (("#0072b2", ""), ("#a6d3f0", ".."), ("#e69f00", "//"), ("#8c2d04", "xx"))
"""Colours and hatches of a stack, told apart in grey print, too."""

BARS = 14
"""Bars that a panel has room for, at least."""

RINGED, STARRED = "K by cross-fitting", "best K on the test score"


@dataclass(frozen=True)
class Curve:
    """A curve with intervals.

    Attributes:
        name: For the legend; one name has one style throughout a page.
        points: x -> accuracy, by x.
        style: Number of its colour and mark.
        twin: It is the control of the curve with the same style: dashed, its marks open.
        ringed: The x whose mark gets a ring.
        starred: The x whose mark gets a star.
        faint: Points that it is the mean of, e.g. one a seed.
        plain: No line and no interval are known: published values.
    """

    name: str
    points: tuple[tuple[float, Point], ...]
    style: int = 0
    twin: bool = False
    ringed: float | None = None
    starred: float | None = None
    faint: tuple[tuple[float, float], ...] = ()
    plain: bool = False


@dataclass(frozen=True)
class CurvePanel:
    """Accuracy against a number.

    Attributes:
        title: Above the panel.
        x_label: What the number counts.
        curves: Drawn beside one another where they have the same x.
        levels: Name -> value of a line across the panel.
        chance: Accuracy of guessing.
        lines: Sentences below the panel.
        y_label: What is measured.
        shaded: The area between a curve and its control is tinted.
        whole: The scale goes from 0 to 1, whatever the values are.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, float], ...] = ()
    chance: float | None = None
    lines: tuple[str, ...] = ()
    y_label: str = "accuracy"
    shaded: bool = False
    whole: bool = False


@dataclass(frozen=True)
class LossPanel:
    """Loss by epoch of every trial of a checkpoint.

    Attributes:
        title: Above the panel.
        training: Of each trial, its (epoch, loss) on training pieces.
        validation: The same on validation paraphrases.
        kept: Number of the trial that was kept; drawn bold.
        epoch: Epoch whose weights were kept; ringed.
        lines: Sentences below the panel.
        x_label: What is counted.
    """

    title: str
    training: tuple[tuple[tuple[int, float], ...], ...]
    validation: tuple[tuple[tuple[int, float], ...], ...]
    kept: int | None
    epoch: int | None
    lines: tuple[str, ...] = ()
    x_label: str = "epoch"


@dataclass(frozen=True)
class StackPanel:
    """Stacked bars of shares, in groups.

    Attributes:
        title: Above the panel.
        x_label: What the number below a bar is.
        parts: Names of the parts, from below.
        groups: Name of a group -> its bars: the number below, and the share of each part.
        lines: Sentences below the panel.
    """

    title: str
    x_label: str
    parts: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[int, tuple[float, ...]], ...]], ...]
    lines: tuple[str, ...] = ()


Panel = CurvePanel | LossPanel | StackPanel


@dataclass(frozen=True)
class Page:
    """A picture of several panels.

    Attributes:
        name: Of its files.
        title: Above all panels.
        caption: What it shows, for people who do not see it, too.
        panels: Read by rows; none for a page that says what is missing.
        columns: Panels side by side.
        notes: Sentences and lines of a profile below the panels.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...] = ()
    columns: int = 2
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=64)
def draw_page(page: Page, fmt: ImageFormat = "png") -> bytes:
    """A page as an image; a PNG has few colours, so that it is small."""
    found = _bytes(_laid_out(page), fmt, DOTS)
    return _few_colours(found) if fmt == "png" else found


def _few_colours(png: bytes) -> bytes:
    # matplotlib itself is built on Pillow.
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        # An octree keeps the few colours that curves have as they are; other methods mix them.
        image.convert("RGB").quantize(
            method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        ).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _laid_out(page: Page) -> "Figure":
    """The page with everything in its place: laid out once for all formats."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.container import Container
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = max(1, min(page.columns, len(page.panels)))
    rows = [page.panels[i : i + columns] for i in range(0, len(page.panels), columns)]
    heights = [max(_height(panel, columns) for panel in row) for row in rows]
    title = textwrap.wrap(page.title, WRAP_TITLE)
    notes = [line for note in page.notes for line in textwrap.wrap(note, WRAP_NOTES) or [""]]
    figure = Figure(figsize=(WIDTH, 1.0))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights) if rows else None
    shared: Axes | None = None
    for number, panel in enumerate(page.panels):
        assert grid is not None
        axes = figure.add_subplot(
            grid[number // columns, number % columns],
            # Panels of one page are to be compared: they have one scale.
            sharey=shared if isinstance(panel, CurvePanel) else None,
        )
        match panel:
            case CurvePanel():
                shared = shared or axes
                _draw_curves(axes, panel)
            case LossPanel():
                _draw_losses(axes, panel)
            case StackPanel():
                _draw_stack(axes, panel)
        below = "\n".join((panel.x_label, *_wrapped(panel.lines, columns)))
        axes.set_xlabel(below, fontsize=8, loc="left")
        axes.set_title("\n".join(_titled(panel, columns)), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    found = [
        (label, handle)
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    # Curves and bars come first, lines across a panel after them.
    handles = dict(sorted(found, key=lambda item: not isinstance(item[1], Container)))
    beside = max(1, min(4, WRAP_NOTES // (8 + max(map(len, handles), default=1))))
    # Title, panels, legend and notes from above, in inches.
    head = 0.08 + 0.2 * len(title)
    legend = 0.08 + 0.19 * math.ceil(len(handles) / beside) if handles else 0.0
    foot = 0.08 + 0.14 * len(notes)
    height = head + sum(heights) + legend + foot
    figure.set_size_inches(WIDTH, height)
    figure.text(0.01, 1 - 0.06 / height, "\n".join(title), fontsize=10, va="top", weight="bold")
    figure.text(0.01, 0.06 / height, "\n".join(notes), fontsize=7.5, va="bottom", color="#333333")
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="lower center",
            bbox_to_anchor=(0.5, foot / height),
            ncols=beside,
            fontsize=8,
            frameon=False,
            borderaxespad=0,
        )
    if rows:
        rect = (0, (foot + legend) / height, 1, sum(heights) / height)
        ConstrainedLayoutEngine(rect=rect, h_pad=0.07).execute(figure)
    return figure


def _height(panel: Panel, columns: int) -> float:
    """Inches of a panel, with the sentences below it."""
    lines = len(_wrapped(panel.lines, columns)) + len(_titled(panel, columns)) - 1
    return (1.9 if isinstance(panel, StackPanel) else 2.55) + 0.14 * lines


def _titled(panel: Panel, columns: int) -> list[str]:
    return textwrap.wrap(panel.title, WRAP_TITLE // columns)


def _wrapped(lines: Sequence[str], columns: int) -> list[str]:
    """Sentences below a panel, as wide as it."""
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, WRAP_LINES // columns, subsequent_indent="    ")
    ]


def _draw_curves(axes: "Axes", panel: CurvePanel) -> None:
    xs = sorted({x for curve in panel.curves for x, _ in curve.points})
    step = min((*(b - a for a, b in pairwise(xs)), (xs[-1] - xs[0]) / 5), default=1.0)
    for number, curve in enumerate(panel.curves):
        # Beside one another, so that no interval hides another.
        aside = step * 0.07 * (number - (len(panel.curves) - 1) / 2)
        _draw_curve(axes, curve, aside)
    for curve in panel.curves if panel.shaded else ():
        above = next((c for c in panel.curves if c.style == curve.style and not c.twin), None)
        if curve.twin and above:
            mine, other = dict(curve.points), dict(above.points)
            both = sorted(mine.keys() & other.keys())
            axes.fill_between(
                both,
                [mine[x].value for x in both],
                [other[x].value for x in both],
                color=COLOURS[curve.style % len(COLOURS)],
                alpha=0.15,
                linewidth=0,
            )
    for (name, value), dashes in zip(panel.levels, cycle(LEVELS), strict=False):
        axes.axhline(value, color="#000000", linestyle=dashes, linewidth=1, label=name)
    if panel.chance is not None:
        axes.axhline(panel.chance, color="#7f7f7f", linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    if panel.whole:
        axes.set_ylim(0, 1.03)
    axes.set_ylabel(panel.y_label, fontsize=8)


def _draw_curve(axes: "Axes", curve: Curve, aside: float) -> None:
    colour = "#000000" if curve.plain else COLOURS[curve.style % len(COLOURS)]
    xs = [x + aside for x, _ in curve.points]
    points = [point for _, point in curve.points]
    axes.errorbar(
        xs,
        [p.value for p in points],
        yerr=None
        if curve.plain
        else [
            [max(0.0, p.value - p.low) for p in points],
            [max(0.0, p.high - p.value) for p in points],
        ],
        label=curve.name,
        color=colour,
        # Other marks come with the same colours again.
        marker="x"
        if curve.plain
        else MARKERS[sum(divmod(curve.style, len(COLOURS))) % len(MARKERS)],
        markerfacecolor="#ffffff" if curve.twin else colour,
        linestyle=":" if curve.plain else "--" if curve.twin else "-",
        capsize=2,
        elinewidth=0.9,
        linewidth=1.5,
        markersize=5,
    )
    axes.plot(
        [x + aside for x, _ in curve.faint],
        [y for _, y in curve.faint],
        color=colour,
        marker=".",
        linestyle="",
        markersize=4,
        alpha=0.6,
    )
    for at, marker, size, label in (
        (curve.ringed, "o", 12, RINGED),
        (curve.starred, "*", 9, STARRED),
    ):
        if at in dict(curve.points):
            axes.plot(
                [at + aside],
                [dict(curve.points)[at].value],
                marker=marker,
                markersize=size,
                markerfacecolor="none" if marker == "o" else "#f0e442",
                markeredgecolor="#000000",
                markeredgewidth=0.8,
                linestyle="",
                label=label,
                zorder=5,
                clip_on=False,
            )


def _draw_losses(axes: "Axes", panel: LossPanel) -> None:
    shown: list[float] = []
    for name, trials, style in (
        ("on training pieces", panel.training, 0),
        ("on validation paraphrases", panel.validation, 1),
    ):
        for number, trial in enumerate(trials):
            finite = [(x, y) for x, y in trial if math.isfinite(y)]
            if not finite:
                continue
            best = number == panel.kept
            axes.plot(
                [x for x, _ in finite],
                [y for _, y in finite],
                label=f"{name}, {'kept trial' if best else 'other trials'}",
                color=COLOURS[style],
                marker=MARKERS[style],
                markersize=5 if best else 2,
                linewidth=2 if best else 0.7,
                linestyle="--" if style else "-",
                alpha=1 if best else 0.6,
            )
            shown += [y for _, y in finite] if best else []
            if best and style and panel.epoch in dict(finite):
                axes.plot(
                    [panel.epoch],
                    [dict(finite)[panel.epoch]],
                    marker="o",
                    markersize=13,
                    markerfacecolor="none",
                    markeredgecolor="#000000",
                    linestyle="",
                    label="kept epoch",
                    clip_on=False,
                )
    # A trial that ran away must not flatten the one that was kept.
    low, high = axes.get_ylim()
    if shown and high > 2 * max(shown):
        axes.set_ylim(low, 1.5 * max(shown))
    epochs = sorted({x for trial in (*panel.training, *panel.validation) for x, _ in trial})
    axes.set_xticks(epochs)
    axes.set_ylabel("loss, nats per token", fontsize=8)


def _draw_stack(axes: "Axes", panel: StackPanel) -> None:
    places: list[float] = []
    labels: list[str] = []
    bars: list[tuple[float, ...]] = []
    at = 0.0
    for name, group in panel.groups:
        for number, (below, shares) in enumerate(group):
            places.append(at)
            # The name of a group stands below the middle of its bars.
            labels.append(f"{below}\n{name if number == (len(group) - 1) // 2 else ''}")
            bars.append(shares)
            at += 1
        # Names stand beside one another however few bars they have.
        at += max(0, 3 - len(group)) + 0.8
    for index, part in enumerate(panel.parts):
        colour, hatch = STACK[index % len(STACK)]
        # Bars of no height cost time; one of them keeps the part in the legend.
        there = [i for i, shares in enumerate(bars) if shares[index]] or [0]
        axes.bar(
            [places[i] for i in there],
            [bars[i][index] for i in there],
            0.82,
            [sum(bars[i][:index]) for i in there],
            label=part,
            color=colour,
            hatch=hatch,
            edgecolor="#ffffff",
            linewidth=0.4,
        )
    axes.set_xticks(places, labels)
    # A few bars are as wide as many.
    axes.set_xlim(-1, max(at, BARS))
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of questions", fontsize=8)


@dataclass(frozen=True)
class Span:
    """A bar of a timeline, in hours; bars of a kind have one colour."""

    start: float
    end: float
    kind: str


def timeline(
    lanes: Sequence[tuple[str, Sequence[Span]]],
    *,
    title: str,
    fmt: ImageFormat = "svg",
    dpi: int = 110,
) -> bytes:
    """Who worked on what and when: a line for each lane, the first one on top.

    Args:
        lanes: Name and bars; a lane without a name belongs to the one above it.
        title: Title.
        fmt: `png` or `svg`.
        dpi: Dots per inch of a PNG.
    """
    figure, axes = _canvas(width=9.0, height=1.4 + 0.22 * len(lanes))
    axes.grid(visible=False)
    kinds = list(dict.fromkeys(span.kind for _, spans in lanes for span in spans))
    last = max((span.end for _, spans in lanes for span in spans), default=1.0)
    for index, kind in enumerate(kinds):
        for place, (_, spans) in enumerate(lanes):
            if mine := [(s.start, s.end - s.start) for s in spans if s.kind == kind]:
                # Edges tell neighbours apart, and would hide what is hardly wider than they are.
                axes.broken_barh(
                    mine,
                    (place - 0.4, 0.8),
                    facecolors=COLOURS[index % len(COLOURS)],
                    edgecolors=["#ffffff" if width > last / 200 else "none" for _, width in mine],
                    linewidth=0.5,
                )
        axes.bar(0, 0, color=COLOURS[index % len(COLOURS)], label=kind)
    axes.set_yticks(range(len(lanes)), [name for name, _ in lanes], fontsize=7)
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set_xlim(0, last)
    axes.set(xlabel="hours", title=title)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, fontsize=7, loc="outside lower center", ncols=8, frameon=False
        )
    return _bytes(figure, fmt, dpi)


def data_uri(image: bytes, fmt: ImageFormat = "png") -> str:
    """An image as a data URI."""
    kind = "image/svg+xml" if fmt == "svg" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def markdown_image(png: bytes, alt: str = "plot") -> str:
    """A PNG inside Markdown, for Dagster's metadata.

    Args:
        png: Image; one whose data URI is over `LIMIT` characters is named, not embedded.
        alt: Text for readers who do not see it.
    """
    safe = alt.replace("[", "(").replace("]", ")")
    uri = data_uri(png)
    if len(uri) > LIMIT:
        return f"*{safe}: the plot is too large for the event log; the report has it.*"
    return f"![{safe}]({uri})"
