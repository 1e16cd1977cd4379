"""Figures of the report and of Dagster's metadata, as PNG or SVG bytes.

Every function draws from plain numbers and is free of global state, so that it may be called in
any process.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
