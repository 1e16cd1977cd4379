"""Earlier results: a copy of the database each time that `results` has made another one.

`history/20311120T050301Z-1f2e3d4c-0a1b2c3d.duckdb`: when it was finished, in UTC, the first digits
of its version, and of the run that made it. A study's last results are kept, so that `kinject diff`
can say what changed and why.
"""

import re
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kinject_assets.core.manifest import content_hash

FOLDER = "history"
"""Below the study's folder."""

NAME = re.compile(r"^(\d{8}T\d{6}Z)-([0-9a-f]{8})-([0-9a-z]{1,8})\.duckdb$")
MOMENT = "%Y%m%dT%H%M%SZ"

BLOCK_SIZE = 16_384
"""Bytes of a block of a copy, the least that DuckDB knows: each column takes some of them."""

NO_RUN = "none"
"""Stands in a name where no run is known."""


@dataclass(frozen=True)
class Kept:
    """Earlier results.

    Attributes:
        at: When they were finished, in UTC.
        version: First 8 digits of their version.
        run: First 8 characters of the run that made them; empty where none is known.
    """

    path: Path
    at: datetime
    version: str
    run: str

    @property
    def label(self) -> str:
        """For people: when, and by which run."""
        by = f", run {self.run}" if self.run else ""
        return f"{self.at:%Y-%m-%d %H:%M:%S} UTC{by}"


def version_of(logical_version: str, fingerprint: str) -> str:
    """Version of a database by the two hashes of `results`: its inputs, and how they were read."""
    return content_hash(logical_version, fingerprint)


def history(root: Path) -> list[Kept]:
    """Kept results of a study, the newest first.

    Args:
        root: The study's folder.
    """
    found: list[Kept] = []
    for path in (root / FOLDER).glob("*.duckdb"):
        # What else lies there is not ours, a name with a 13th month neither.
        with suppress(ValueError):
            if match := NAME.match(path.name):
                at = datetime.strptime(match[1], MOMENT).replace(tzinfo=UTC)
                run = "" if match[3] == NO_RUN else match[3]
                found.append(Kept(path, at, match[2], run))
    return sorted(found, key=lambda kept: (kept.at, kept.path.name), reverse=True)


def keep(
    database: Path,
    *,
    version: str,
    run_id: str,
    at: datetime,
    most: int,
) -> Kept | None:
    """Keeps a copy of a new database, unless the newest one is of the same version.

    Written to another name first, so that a copy is whole or not there. Older ones than the newest
    `most` are removed.

    Args:
        database: `results.duckdb` of the study's folder.
        version: Of its content.
        run_id: Run that made it.
        at: When it was finished.
        most: Copies to keep; 0 keeps none and leaves those that are there alone.

    Returns:
        The copy, or `None` where none was made.

    Raises:
        OSError: If there is no room, or the folder cannot be written.
    """
    there = history(database.parent)
    if not most or (there and there[0].version == version[:8]):
        return None
    folder = database.parent / FOLDER
    folder.mkdir(exist_ok=True)
    run = re.sub(r"[^0-9a-z]", "", run_id.lower())[:8]
    moment = at.astimezone(UTC)
    path = folder / f"{moment.strftime(MOMENT)}-{version[:8]}-{run or NO_RUN}.duckdb"
    partial = folder / f".{uuid.uuid4().hex}"
    try:
        _copy(database, partial)
        partial.replace(path)
    finally:
        for leftover in (partial, partial.with_name(f"{partial.name}.wal")):
            leftover.unlink(missing_ok=True)
    _drop([kept for kept in there if kept.path != path][most - 1 :])
    return Kept(path, moment.replace(microsecond=0), version[:8], run)


def _copy(database: Path, to: Path) -> None:
    """Writes the same tables, views and comments in small blocks: a tenth of a small file.

    Raises:
        OSError: If it cannot be written.
    """
    import duckdb

    def quoted(path: Path) -> str:
        return "'" + str(path).replace("'", "''") + "'"

    with closing(duckdb.connect()) as connection:
        try:
            connection.execute(f"ATTACH {quoted(database)} AS present (READ_ONLY)")
            connection.execute(f"ATTACH {quoted(to)} AS copy (BLOCK_SIZE {BLOCK_SIZE})")
            connection.execute("COPY FROM DATABASE present TO copy")
            connection.execute("DETACH copy")
        except duckdb.Error as error:
            raise OSError(f"{to.parent}: {error}") from error


def _drop(old: Sequence[Kept]) -> None:
    for kept in old:
        # One that cannot be removed now goes the next time.
        with suppress(OSError):
            kept.path.unlink(missing_ok=True)
