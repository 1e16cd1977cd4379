"""Reads the database: SQL from the user, and the study's two tables for people and programs."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinject_assets.core.errors import BrokenArtefact, KinjectError, MissingArtefact
from kinject_assets.core.results.catalogue import METHOD_COLUMNS
from kinject_assets.core.results.rendering import dumped, rendered, text_table
from kinject_assets.core.statistics.claims import RULES, judge
from kinject_assets.core.statistics.published import facts, published

if TYPE_CHECKING:
    import duckdb

Format = Literal["text", "csv", "json", "markdown"]

SHOWN = 10_000
"""Rows of a query that text shows: more is not read by people, and would be held in memory."""

BATCH = 10_000
"""Rows that are fetched and written together."""

TOO_MANY = (
    f"only the first {SHOWN:,} rows are shown: text is for reading. For all of them add "
    "--format csv, json or markdown; for fewer, LIMIT to the query."
)


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


@contextmanager
def opened(database: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Opens the database read-only, with no access to anything outside the file.

    Raises:
        MissingArtefact: If there is no database.
        BrokenArtefact: If the file is no database that this version reads.
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
        yield connection


@contextmanager
def _asked(
    database: Path, sql: str, parameters: Sequence[Any] = ()
) -> "Iterator[tuple[tuple[str, ...], duckdb.DuckDBPyConnection]]":
    """Runs one statement; gives the columns of its result and where its rows are read from."""
    import duckdb

    with opened(database) as connection:
        try:
            if len(connection.extract_statements(sql)) != 1:
                raise QueryError("give exactly one SQL statement")
            cursor = connection.execute(sql, list(parameters))
            yield tuple(column[0] for column in cursor.description or ()), cursor
        except duckdb.Error as error:
            raise QueryError(
                f"{error}\nThe database is read-only; `SHOW TABLES` and `DESCRIBE scores` say "
                "what it holds."
            ) from error


def fetch(database: Path, sql: str, parameters: Sequence[Any] = ()) -> Result:
    """Runs one statement read-only, with no access to anything outside the file.

    Raises:
        MissingArtefact: If there is no database.
        BrokenArtefact: If the file is no database that this version reads.
        QueryError: If the statement is refused.
    """
    with _asked(database, sql, parameters) as (columns, cursor):
        return Result(columns, cursor.fetchall() if columns else [])


def render(result: Result, fmt: Format | str, width: int | None = None) -> str:
    """A result as text, CSV, JSON (a list of objects) or Markdown.

    Args:
        result: Rows.
        fmt: One of `Format`.
        width: Columns of the terminal that text shall fit; `None`: as wide as it gets.
    """
    if fmt == "text":
        return text_table(result.columns, result.rows, width)
    return "\n".join(rendered(result.columns, result.rows, fmt))


def answer(
    database: Path,
    sql: str,
    fmt: Format | str,
    write: Callable[[str], None],
    width: int | None = None,
) -> str:
    """Answers one SQL statement piece by piece: millions of rows need no memory.

    Args:
        database: `results.duckdb`.
        sql: See `fetch` for what it may do and what is raised.
        fmt: One of `Format`. Text, whose columns are as wide as their longest value, shows the
            first `SHOWN` rows.
        write: Gets lines.
        width: As for `render`.

    Returns:
        What is missing, and how to get it; empty when all rows were written.
    """
    with _asked(database, sql) as (columns, cursor):
        if fmt == "text":
            rows = cursor.fetchmany(SHOWN + 1) if columns else []
            write(text_table(columns, rows[:SHOWN], width))
            return TOO_MANY if len(rows) > SHOWN else ""
        rows = chain.from_iterable(iter(lambda: cursor.fetchmany(BATCH), [])) if columns else ()
        pieces = rendered(columns, rows, fmt)
        while batch := list(islice(pieces, BATCH)):
            write("\n".join(batch))
    return ""


def query(database: Path, sql: str, fmt: Format | str = "text", width: int | None = None) -> str:
    """Answers one SQL statement; see `fetch` for what it may do and what it raises."""
    return render(fetch(database, sql), fmt, width)


CAPTIONS = {
    1: "Table 1: accuracy on known topics, K cross-fitted [95 % Wilson interval]",
    2: "Table 2: accuracy on new facts, 0-shot, K cross-fitted [95 % Wilson interval]",
}


def with_interval(row: dict[str, Any], name: str) -> str:
    """`0.481 [0.45, 0.51]`, or a dash when the method was not scored."""
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _compact(number: int, result: Result, by_row: bool) -> Result:
    """The table with the interval in the cell of its accuracy.

    Args:
        number: Which table.
        result: What its view holds.
        by_row: A row a method, not a column. Table 2 is always so: it has too many methods for a
            line of 100 characters.
    """
    methods = [name for name, _ in METHOD_COLUMNS[number]]
    rows = result.dicts()
    keys = ("task", "shots", "model") if number == 1 else ("corpus", "model")
    if number == 1 and not by_row:
        return Result(
            (*keys, *methods, "n"),
            [
                (*(r[k] for k in keys), *(with_interval(r, m) for m in methods), r["n"])
                for r in rows
            ],
        )
    return Result(
        (*keys, "method", "accuracy", "n"),
        [
            (*(r[k] for k in keys), m, with_interval(r, m), r["n"])
            for r in rows
            for m in methods
            if r[m] is not None
        ],
    )


def _shown(number: int, result: Result, fmt: Format | str, width: int | None) -> str:
    """A table of the study for people: as wide as it gets, or where that is too wide, long."""
    text = render(_compact(number, result, by_row=False), fmt)
    if fmt == "text" and width is not None and max(map(len, text.splitlines())) > width:
        return render(_compact(number, result, by_row=True), fmt, width)
    return text


def _caption(number: int, fmt: Format | str, width: int | None) -> str:
    return textwrap.fill(CAPTIONS[number], width) if width and fmt == "text" else CAPTIONS[number]


def format_tables(database: Path, fmt: Format | str = "text", width: int | None = None) -> str:
    """The study's two tables.

    Args:
        database: `results.duckdb`.
        fmt: `text` and `markdown` are for people, one cell an accuracy with its interval; `csv`
            is both views one after the other with an empty line between; `json` is an object
            with the keys `table1` and `table2`.
        width: Columns of the terminal that text shall fit; `None`: as wide as it gets.

    Raises:
        MissingArtefact: If there is no database.
    """
    found = {number: fetch(database, f"SELECT * FROM table{number}") for number in (1, 2)}
    if fmt == "json":
        return dumped({f"table{number}": result.dicts() for number, result in found.items()})
    if fmt == "csv":
        return "\n\n".join(render(result, fmt) for result in found.values())
    parts = []
    for number, result in found.items():
        if result.rows:
            parts.append(f"{_caption(number, fmt, width)}\n\n{_shown(number, result, fmt, width)}")
        else:
            nothing = "no corpus of this table has been scored yet"
            parts.append(f"{_caption(number, fmt, width)}\n\n{nothing}")
    return "\n\n".join(parts)


def rules_text(fmt: Format | str = "text", width: int | None = None) -> str:
    """The claims as they are declared: what each rests on, counts and asks for."""
    parts = ("statement", "family", "aggregation", "rule")
    if fmt == "text":
        # Side by side they are too wide for a terminal.
        lines = [
            (rule.claim if part == parts[0] else None, part, getattr(rule, part))
            for rule in RULES
            for part in parts
        ]
        return render(Result(("claim", "part", "text"), lines), fmt, width)
    columns = ("claim", *parts)
    return render(Result(columns, [tuple(getattr(r, c) for c in columns) for r in RULES]), fmt)


def _item(text: str, width: int | None) -> str:
    return textwrap.fill(f"- {text}", width, subsequent_indent="  ") if width else f"- {text}"


def published_text(references: Path, fmt: Format | str = "text", width: int | None = None) -> str:
    """The claims on the published tables, and what those tables show.

    Args:
        references: Folder of the published tables.
        fmt: `json` is an object with the keys `claims` and `facts`; otherwise the facts stand
            below the claims, after an empty line.
        width: Columns of the terminal that text shall fit; `None`: as wide as it gets.
    """
    columns = ("claim", "verdict", "statement", "evidence")
    verdicts = Result(
        columns, [tuple(getattr(c, name) for name in columns) for c in judge(published(references))]
    )
    found = facts(references)
    if fmt == "json":
        return dumped({"claims": verdicts.dicts(), "facts": asdict(found)})
    said = found.lines()
    below = render(Result(("fact",), [(line,) for line in said]), fmt)
    if fmt in {"text", "markdown"}:
        below = "\n".join(_item(line, width if fmt == "text" else None) for line in said)
    return f"{render(verdicts, fmt, width)}\n\n{below}"
