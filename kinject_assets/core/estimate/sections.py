"""Sections of an estimate as text of 80 columns or as Markdown, and numbers for people."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from kinject_assets.core.estimate.reckoning import HOUR
from kinject_assets.core.results.tables import Format, Result, render

WIDTH = 80
"""Characters of a line of text."""

SHORTEST_NAME = 16
"""Characters that a table's first column has at least; longer names are wrapped to what fits."""


@dataclass
class Section:
    """A table with lines above and below it; all but its first column are right-aligned.

    Attributes:
        picture: Lines that are shown as they are, between what is above and the table.
    """

    title: str
    columns: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    above: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    picture: list[str] = field(default_factory=list)


def laid_out(sections: Sequence[Section], fmt: Format | str) -> str:
    """Sections as text or as Markdown."""
    return "\n\n".join(map(_markdown if fmt == "markdown" else _text, sections))


def _text(section: Section) -> str:
    lines = [*_wrapped(section.title)]
    for line in section.above:
        lines += _wrapped(line)
    if section.picture:
        lines += ["", *section.picture]
    if section.rows:
        lines += ["", *_table(section.columns, section.rows)]
    if section.below:
        lines.append("")
    for line in section.below:
        lines += _wrapped(line)
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    hanging = "  " if line.startswith(("- ", "! ")) else ""
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [
        max(len(column), *(len(row[n]) for row in rows))
        for n, column in enumerate(columns[1:], start=1)
    ]
    room = max(SHORTEST_NAME, WIDTH - sum(widths) - 2 * len(widths))
    names = [textwrap.wrap(row[0], room) or [""] for row in rows]
    first = max(len(columns[0]), *(len(part) for parts in names for part in parts))

    def line(name: str, values: Sequence[str]) -> str:
        cells = (value.rjust(width) for value, width in zip(values, widths, strict=True))
        return "  ".join((name.ljust(first), *cells)).rstrip()

    lines = [line(columns[0], columns[1:]), "  ".join("-" * width for width in (first, *widths))]
    for (name, *more), row in zip(names, rows, strict=True):
        lines += [line(name, row[1:]), *more]
    return lines


def _markdown(section: Section) -> str:
    parts = [f"### {section.title}", *section.above]
    if section.picture:
        parts.append("\n".join(("```", *section.picture, "```")))
    if section.rows:
        parts.append(
            render(Result(tuple(section.columns), [tuple(r) for r in section.rows]), "markdown")
        )
    bullets = [line[2:] if line.startswith(("- ", "! ")) else line for line in section.below]
    parts.append("\n".join(f"- {line}" for line in bullets))
    return "\n\n".join(part for part in parts if part)


def in_usd(value: float | None) -> str:
    """USD for people; `unknown` for `None`."""
    return "unknown" if value is None else f"{value:,.2f}"


def in_hours(seconds: float | None) -> str:
    """Seconds as hours for people, short times as they are; `?` for `None`."""
    if seconds is None:
        return "?"
    if seconds < 0.1 * HOUR:
        return f"{seconds:,.1f} s"
    return f"{seconds / HOUR:,.1f} h"
