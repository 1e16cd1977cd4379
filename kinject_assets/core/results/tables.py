"""Reads the database: SQL from the user, and the study's two tables for people and programs."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from kinject_assets.core.errors import BrokenArtefact, KinjectError, MissingArtefact
from kinject_assets.core.results.catalogue import METHOD_COLUMNS
from kinject_assets.core.statistics.claims import RULES, judge
from kinject_assets.core.statistics.published import facts, published

Format = Literal["text", "csv", "json", "markdown"]

WIDEST = 60
"""Characters of a column in text tables; longer values are wrapped, never cut."""


class QueryError(KinjectError):
    """An SQL statement of the user that the database refuses."""


@dataclass(frozen=True)
class Result:
    """Rows of a query."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> list[dict[str, Any]]:
        """Each row by column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def fetch(database: Path, sql: str, parameters: Sequence[Any] = ()) -> Result:
    """Runs one statement read-only, with no access to anything outside the file.

    Raises:
        MissingArtefact: If there is no database.
        BrokenArtefact: If the file is no database that this version reads.
        QueryError: If the statement is refused.
    """
    import duckdb

    if not database.exists():
        raise MissingArtefact(
            f"there are no results at {database} yet; make them with `kinject run`"
        )
    settings: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "lock_configuration": True,
    }
    try:
        connection = duckdb.connect(str(database), read_only=True, config=settings)
    except duckdb.Error as error:
        raise BrokenArtefact(
            f"{database} cannot be opened ({error}). Delete it and run "
            "`kinject run --select results`: it is built from the lake again."
        ) from error
    with closing(connection):
        try:
            if len(connection.extract_statements(sql)) != 1:
                raise QueryError("give exactly one SQL statement")
            cursor = connection.execute(sql, list(parameters))
            columns = tuple(column[0] for column in cursor.description or ())
            return Result(columns, cursor.fetchall() if columns else [])
        except duckdb.Error as error:
            raise QueryError(
                f"{error}\nThe database is read-only; `SHOW TABLES` and `DESCRIBE scores` say "
                "what it holds."
            ) from error


def _plain(value: Any) -> Any:
    """A value as programs take it; JSON has no NaN."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date | datetime) else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float | Decimal):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(v) for v in value) + "]"
    return str(_plain(value))


def _aligned(result: Result) -> str:
    cells = [
        [textwrap.wrap(_text(v), WIDEST, break_on_hyphens=False) or [""] for v in row]
        for row in result.rows
    ]
    widths = [
        max(len(name), *(len(line) for row in cells for line in row[i])) if cells else len(name)
        for i, name in enumerate(result.columns)
    ]
    numeric = [
        all(isinstance(row[i], int | float | Decimal) for row in result.rows if row[i] is not None)
        for i in range(len(result.columns))
    ]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            v.rjust(w) if right else v.ljust(w)
            for v, w, right in zip(values, widths, numeric, strict=True)
        ).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [line(values) for row in cells for values in zip_longest(*row, fillvalue="")]
    return "\n".join([line(result.columns), rule, *lines])


def _markdown(result: Result) -> str:
    def line(values: Sequence[str]) -> str:
        safe = (" ".join(v.split()).replace("\\", "\\\\").replace("|", "\\|") for v in values)
        return f"| {' | '.join(safe)} |"

    rule = f"|{'|'.join('---' for _ in result.columns)}|"
    rows = [line([_text(v) for v in row]) for row in result.rows]
    return "\n".join([line(result.columns), rule, *rows])


def _csv(result: Result) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(result.columns)
    for row in result.rows:
        writer.writerow([json.dumps(v) if isinstance(v, list) else _plain(v) for v in row])
    return buffer.getvalue().rstrip("\n")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def render(result: Result, fmt: Format | str) -> str:
    """A result as text, CSV, JSON (a list of objects) or Markdown."""
    match fmt:
        case "text":
            return _aligned(result)
        case "csv":
            return _csv(result)
        case "json":
            return _json([{k: _plain(v) for k, v in row.items()} for row in result.dicts()])
        case "markdown":
            return _markdown(result)
    raise KinjectError(f"no format is called {fmt}; there are: text, csv, json, markdown")


def query(database: Path, sql: str, fmt: Format | str = "text") -> str:
    """Answers one SQL statement; see `fetch` for what it may do and what it raises."""
    return render(fetch(database, sql), fmt)


CAPTIONS = {
    1: "Table 1: accuracy on known topics, K cross-fitted [95 % Wilson interval]",
    2: "Table 2: accuracy on new facts, 0-shot, K cross-fitted [95 % Wilson interval]",
}


def with_interval(row: dict[str, Any], name: str) -> str:
    """`0.481 [0.45, 0.51]`, or a dash when the method was not scored."""
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _compact(number: int, result: Result) -> Result:
    """The table with one column a method, the interval in it.

    Table 2 has too many methods for a line of 100 characters: there, a row a method.
    """
    methods = [name for name, _ in METHOD_COLUMNS[number]]
    rows = result.dicts()
    if number == 1:
        columns = ("task", "shots", "model", *methods, "n")
        return Result(
            columns,
            [
                (r["task"], r["shots"], r["model"], *(with_interval(r, m) for m in methods), r["n"])
                for r in rows
            ],
        )
    return Result(
        ("corpus", "model", "method", "accuracy", "n"),
        [
            (r["corpus"], r["model"], m, with_interval(r, m), r["n"])
            for r in rows
            for m in methods
            if r[m] is not None
        ],
    )


def format_tables(database: Path, fmt: Format | str = "text") -> str:
    """The study's two tables.

    Args:
        database: `results.duckdb`.
        fmt: `text` and `markdown` are for people, one cell an accuracy with its interval; `csv`
            is both views one after the other with an empty line between; `json` is an object
            with the keys `table1` and `table2`.

    Raises:
        MissingArtefact: If there is no database.
    """
    found = {number: fetch(database, f"SELECT * FROM table{number}") for number in (1, 2)}
    if fmt == "json":
        return _json({f"table{number}": result.dicts() for number, result in found.items()})
    if fmt == "csv":
        return "\n\n".join(render(result, fmt) for result in found.values())
    parts = []
    for number, result in found.items():
        if result.rows:
            parts.append(f"{CAPTIONS[number]}\n\n{render(_compact(number, result), fmt)}")
        else:
            parts.append(f"{CAPTIONS[number]}\n\nno corpus of this table has been scored yet")
    return "\n\n".join(parts)


def rules_text(fmt: Format | str = "text") -> str:
    """The claims as they are declared: what each rests on, counts and asks for."""
    parts = ("statement", "family", "aggregation", "rule")
    if fmt == "text":
        # Side by side they are too wide for a terminal.
        lines = [
            (rule.claim if part == parts[0] else None, part, getattr(rule, part))
            for rule in RULES
            for part in parts
        ]
        return render(Result(("claim", "part", "text"), lines), fmt)
    columns = ("claim", *parts)
    return render(Result(columns, [tuple(getattr(r, c) for c in columns) for r in RULES]), fmt)


def published_text(references: Path, fmt: Format | str = "text") -> str:
    """The claims on the published tables, and what those tables show.

    Args:
        references: Folder of the published tables.
        fmt: `json` is an object with the keys `claims` and `facts`; otherwise the facts stand
            below the claims, after an empty line.
    """
    columns = ("claim", "verdict", "statement", "evidence")
    verdicts = Result(
        columns, [tuple(getattr(c, name) for name in columns) for c in judge(published(references))]
    )
    found = facts(references)
    if fmt == "json":
        return _json({"claims": verdicts.dicts(), "facts": asdict(found)})
    lines = found.lines()
    below = render(Result(("fact",), [(line,) for line in lines]), fmt)
    if fmt in {"text", "markdown"}:
        below = "\n".join(f"- {line}" for line in lines)
    return f"{render(verdicts, fmt)}\n\n{below}"
