"""Rows as text, CSV, JSON or Markdown: for people at a terminal, for pages, and for programs."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from kinject_assets.core.errors import KinjectError

WIDEST = 60
"""Characters of a column in text tables; longer values are wrapped, never cut."""

NARROWEST = 24
"""Characters that a column with long values keeps in a terminal; where that is too much for it,
each row is shown as a block."""

BETWEEN = "  "

_UNSEEN = dict.fromkeys({*range(32), *range(127, 160)} - set(map(ord, "\t\n\r")), "\ufffd")
"""Control characters: texts come from strangers, and a terminal would obey them."""


def plain(value: Any) -> Any:
    """A value as programs take it, and all that is in it; JSON has no NaN."""
    if isinstance(value, dict):
        return {str(plain(key)): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date | datetime) else value


def words(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, float | Decimal):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(words(v) for v in value) + "]"
    return str(plain(value)).translate(_UNSEEN)


def dumped(value: Any) -> str:
    """JSON, indented."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None
) -> str:
    """Rows one below the other, or where that is too wide a block for each row.

    Args:
        columns: Their names.
        rows: Values.
        width: Columns of the terminal; `None`: as wide as it gets.
    """
    texts = [[words(value) for value in row] for row in rows]
    widths = [WIDEST] * len(columns) if width is None else _fitted(columns, texts, width)
    if widths is None:
        return _blocks(columns, texts, width or 0)
    cells = [[_wrapped(t, w) for t, w in zip(row, widths, strict=True)] for row in texts]
    taken = [
        max([len(name), *(len(line) for row in cells for line in row[i])])
        for i, name in enumerate(columns)
    ]
    numeric = [
        all(isinstance(row[i], int | float | Decimal) for row in rows if row[i] is not None)
        for i in range(len(columns))
    ]

    def line(values: Sequence[str]) -> str:
        return BETWEEN.join(
            v.rjust(w) if right else v.ljust(w)
            for v, w, right in zip(values, taken, numeric, strict=True)
        ).rstrip()

    rule = BETWEEN.join("-" * width for width in taken)
    lines = [line(values) for row in cells for values in zip_longest(*row, fillvalue="")]
    return "\n".join([line(columns), rule, *lines])


def _fitted(columns: Sequence[str], texts: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Widths to wrap columns at, so that all fit side by side; `None` if they cannot."""
    natural = [
        max([len(name), *(min(WIDEST, len(row[i])) for row in texts)])
        for i, name in enumerate(columns)
    ]
    least = [
        max(len(name), min(size, NARROWEST)) for name, size in zip(columns, natural, strict=True)
    ]
    room = width - len(BETWEEN) * (len(columns) - 1)
    if sum(least) > room:
        return None
    widths = list(natural)
    while sum(widths) > room:
        # The widest that may yield gives a character.
        widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[widest] -= 1
    return widths


def _blocks(columns: Sequence[str], texts: Sequence[Sequence[str]], width: int) -> str:
    label = max(map(len, columns))
    room = max(NARROWEST, width - label - len(BETWEEN))
    if not texts:
        return "\n".join(_wrapped(f"no rows of {', '.join(columns)}", max(NARROWEST, width)))
    blocks = []
    for number, row in enumerate(texts, 1):
        lines = [f"-- {number} --"]
        for name, text in zip(columns, row, strict=True):
            first, *rest = _wrapped(text, room)
            lines.append(f"{name.ljust(label)}{BETWEEN}{first}".rstrip())
            lines += [f"{' ' * label}{BETWEEN}{line}" for line in rest]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def _in_csv(value: Any) -> Any:
    """What is nested stands in its field as JSON."""
    found = plain(value)
    return json.dumps(found, default=str) if isinstance(found, list | dict) else found


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    yield buffer.getvalue().removesuffix("\n")
    for row in rows:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(_in_csv(value) for value in row)
        yield buffer.getvalue().removesuffix("\n")


def _json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    last = ""
    for row in rows:
        yield f"{last}," if last else "["
        last = textwrap.indent(
            dumped({name: plain(v) for name, v in zip(columns, row, strict=True)}), "  "
        )
    yield f"{last}\n]" if last else "[]"


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    def line(values: Iterable[str]) -> str:
        safe = (" ".join(v.split()).replace("\\", "\\\\").replace("|", "\\|") for v in values)
        return f"| {' | '.join(safe)} |"

    yield line(columns)
    yield f"|{'|'.join('---' for _ in columns)}|"
    for row in rows:
        yield line(words(value) for value in row)


STREAMED = {"csv": _csv, "json": _json, "markdown": _markdown}
"""Formats whose rows can be written as they come."""


def rendered(columns: Sequence[str], rows: Iterable[Sequence[Any]], fmt: str) -> Iterator[str]:
    """Rows in one of the `STREAMED` formats, piece by piece, to be joined by line ends.

    Raises:
        KinjectError: If there is no such format.
    """
    if fmt not in STREAMED:
        raise KinjectError(f"no format is called {fmt}; there are: text, csv, json, markdown")
    return STREAMED[fmt](columns, rows)
