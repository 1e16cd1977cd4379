"""A digest of every row of the database, kept beside it, so that changed rows can be named."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.results.catalogue import tables
from kinject_assets.core.results.tables import opened

if TYPE_CHECKING:
    import duckdb

ROWS = "rows.parquet"
"""Name of the file, one of the artefact `results`."""


@dataclass(frozen=True)
class Difference:
    """Rows of one table that are not those that were written.

    Attributes:
        table: Name of the table.
        kind: `missing`, `changed` or `added`.
        count: How many.
        keys: Values of the columns of their keys; none where the whole table is gone.
    """

    table: str
    kind: str
    count: int
    keys: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Compared:
    """What comparing the rows gave.

    Attributes:
        rows: Rows that were written, of all tables.
        differences: By table.
    """

    rows: int
    differences: tuple[Difference, ...]


def _digests(table: str, key: tuple[str, ...]) -> str:
    """Query that gives a table's rows as key and digest.

    The text of a row is its JSON, which DuckDB writes with every digit of a number.
    """
    values = ", ".join(f'CAST(t."{column}" AS VARCHAR)' for column in key)
    return f'SELECT to_json([{values}]) AS key, unhex(md5(to_json(t))) AS digest FROM "{table}" t'


def write_digests(connection: "duckdb.DuckDBPyConnection", path: Path) -> None:
    """Writes the digests of all tables of an open database to a Parquet file."""
    import pyarrow.parquet as pq

    parts = (
        f"SELECT '{name}' AS \"table\", * FROM ({_digests(name, table.key)})"
        for name, table in tables().items()
    )
    found = connection.sql(f"{' UNION ALL '.join(parts)} ORDER BY ALL").to_arrow_table()
    pq.write_table(found, path, compression="zstd", write_page_checksum=True)


def compare(database: Path, kept: Path) -> Compared:
    """Compares the rows of a database with the digests that were kept when it was built.

    Raises:
        BrokenArtefact: If the database cannot be opened, or the digests cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(kept, page_checksum_verification=True) as file:
            written = file.read(columns=["table", "key", "digest"])
    except (pa.ArrowException, OSError) as error:
        raise BrokenArtefact(f"{kept}: not a readable Parquet file ({error})") from error
    with opened(database) as connection:
        connection.register("written", written)
        found = [d for name in tables() for d in _differences(connection, name)]
    return Compared(written.num_rows, tuple(found))


def _differences(connection: "duckdb.DuckDBPyConnection", table: str) -> Iterator[Difference]:
    import duckdb

    mine = f"(SELECT key, digest FROM written WHERE \"table\" = '{table}')"
    known = connection.execute(f"SELECT count(*) FROM {mine}").fetchall()[0][0]
    try:
        rows = connection.execute(
            f"""
            SELECT CASE WHEN now.digest IS NULL THEN 'missing' WHEN was.digest IS NULL THEN 'added'
                ELSE 'changed' END AS kind, count(*),
                list(coalesce(was.key, now.key) ORDER BY coalesce(was.key, now.key))
            FROM {mine} was FULL JOIN ({_digests(table, tables()[table].key)}) now
                ON was.key = now.key
            WHERE was.digest IS DISTINCT FROM now.digest GROUP BY kind ORDER BY kind
            """
        ).fetchall()
    except duckdb.Error:
        # The table, or a column of its key, is not there any more.
        if known:
            yield Difference(table, "missing", known)
        return
    for kind, count, keys in rows:
        yield Difference(table, kind, count, tuple(tuple(json.loads(key)) for key in keys))
