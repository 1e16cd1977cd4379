"""A digest of every row of the database, kept beside it, so that changed rows can be named."""

import hashlib
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

VIEWS = "(views)"
"""Stands among the tables for the statements of all views."""

_VIEWS = """
    SELECT to_json([if(schema_name = 'main', view_name, concat(schema_name, '.', view_name))])
        AS key, unhex(md5(sql)) AS digest
    FROM duckdb_views() WHERE NOT internal AND database_name = current_database()
"""

_ADDED_TABLES = """
    SELECT if(schema_name = 'main', table_name, concat(schema_name, '.', table_name)) AS name,
        estimated_size FROM duckdb_tables()
    WHERE NOT internal AND database_name = current_database() ORDER BY name
"""


@dataclass(frozen=True)
class Difference:
    """Rows of one table that are not those that were written.

    Attributes:
        table: Name of the table; `VIEWS` for views, whose keys are their names.
        kind: `missing`, `changed` or `added`.
        count: How many.
        keys: Values of the columns of their keys; none where the whole table is gone, or is added.
        unreadable: Why the table, which is there, cannot be read; empty where it can.
    """

    table: str
    kind: str
    count: int
    keys: tuple[tuple[str, ...], ...] = ()
    unreadable: str = ""


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
    """Writes the digests of all tables and views of an open database to a Parquet file."""
    import pyarrow.parquet as pq

    queries = {name: _digests(name, table.key) for name, table in tables().items()}
    parts = (
        f"SELECT '{name}' AS \"table\", * FROM ({query})"
        for name, query in {**queries, VIEWS: _VIEWS}.items()
    )
    found = connection.sql(f"{' UNION ALL '.join(parts)} ORDER BY ALL").to_arrow_table()
    pq.write_table(found, path, compression="zstd", write_page_checksum=True)


def content_version(kept: Path) -> str:
    """Hash of all rows but those of `artefacts`, which say when and by whom these were made."""
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    with pq.ParquetFile(kept) as file:
        # They are sorted.
        for batch in file.iter_batches(columns=["table", "key", "digest"]):
            for row in batch.to_pylist():
                if row["table"] != "artefacts":
                    digest.update(f"{row['table']} {row['key']} {row['digest'].hex()}\n".encode())
    return digest.hexdigest()[:32]


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
        found = [
            d
            for name, table in tables().items()
            for d in _differences(connection, name, _digests(name, table.key))
        ]
        views = written["table"].to_pylist().count(VIEWS)
        # An older version kept none of views.
        if views:
            found += _differences(connection, VIEWS, _VIEWS)
            found += [
                Difference(name, "added", rows)
                for name, rows in connection.execute(_ADDED_TABLES).fetchall()
                if name not in tables()
            ]
    return Compared(written.num_rows - views, tuple(found))


def _differences(
    connection: "duckdb.DuckDBPyConnection", table: str, digests: str
) -> Iterator[Difference]:
    import duckdb

    mine = f"(SELECT key, digest FROM written WHERE \"table\" = '{table}')"
    known = connection.execute(f"SELECT count(*) FROM {mine}").fetchall()[0][0]
    try:
        rows = connection.execute(
            f"""
            SELECT CASE WHEN now.digest IS NULL THEN 'missing' WHEN was.digest IS NULL THEN 'added'
                ELSE 'changed' END AS kind, count(*),
                list(coalesce(was.key, now.key) ORDER BY coalesce(was.key, now.key))
            FROM {mine} was FULL JOIN ({digests}) now
                ON was.key = now.key
            WHERE was.digest IS DISTINCT FROM now.digest GROUP BY kind ORDER BY kind
            """
        ).fetchall()
    except (duckdb.CatalogException, duckdb.BinderException):
        # The table, or a column of its key, is not there any more.
        if known:
            yield Difference(table, "missing", known)
        return
    except duckdb.Error as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        yield Difference(table, "changed", max(1, known), unreadable=said)
        return
    for kind, count, keys in rows:
        yield Difference(table, kind, count, tuple(tuple(json.loads(key)) for key in keys))
