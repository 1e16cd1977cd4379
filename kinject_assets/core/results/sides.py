"""What `kinject diff` is given, found: a date, a run, a file, `now`, `previous`, or a corpus."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path

from kinject_assets.core.errors import BrokenArtefact, KinjectError
from kinject_assets.core.results.history import Kept, history, version_of
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Cell, Store

DATE = re.compile(r"^\d{4}-\d\d-\d\d([T ].*)?$")
BACK = re.compile(r"^-(\d+)$")

SHORTEST_RUN = 4
"""Characters of a run's id that are enough."""

LISTED = 10
"""Earlier results and runs that an error names."""


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared.

    Attributes:
        label: For people.
        corpus: The one corpus of it that is meant; empty for all.
    """

    database: Path
    label: str
    corpus: str = ""


class NoSuchResults(KinjectError):
    """A name of results that there are none of."""


def present_version(root: Path) -> str:
    """Version of the present results, as `history` names copies of them; empty if it is unknown.

    Args:
        root: The study's folder.
    """
    try:
        manifest = Store(root).manifest(Cell("results"))
    except BrokenArtefact:
        return ""
    return version_of(manifest.logical_version, manifest.fingerprint) if manifest else ""


def resolve(database: Path, first: str, second: str, version: str = "") -> tuple[Side, Side]:
    """What two words of the command line name.

    Args:
        database: The study's present results.
        first: See `docs/diff.md`.
        second: The same; a corpus of the present results where the first is one.
        version: First digits of the version of the present results, to tell them from the newest
            copy; empty where it is not known.

    Raises:
        NoSuchResults: If a word names nothing; the message lists what there is.
        MissingArtefact: If there are no results.
    """
    kept = history(database.parent)
    corpora = [row[0] for row in fetch(database, "SELECT corpus FROM corpora ORDER BY 1").rows]
    both = {first, second} & set(corpora)
    if both == {first, second}:
        return Side(database, first, first), Side(database, second, second)
    if both:
        other = second if first in both else first
        raise NoSuchResults(
            f"`{both.pop()}` is a corpus and `{other}` is none: name two corpora "
            f"({', '.join(corpora)}) or two results. {_there(database, kept)}"
        )
    return _side(database, kept, first, version), _side(database, kept, second, version)


def _side(database: Path, kept: Sequence[Kept], word: str, version: str) -> Side:
    # The newest copy is that of the present results, unless they could not be kept.
    present = bool(kept) and (not version or kept[0].version == version[:8])
    earlier = kept[1:] if present else kept
    if word == "now":
        return Side(database, "now")
    back = BACK.match(word)
    if word == "previous" or (back and int(back[1])):
        place = int(back[1]) if back else 1
        if place <= len(earlier):
            return _of(earlier[place - 1])
        raise NoSuchResults(
            f"`{word}`: {len(earlier)} earlier results are kept. {_there(database, kept)}"
        )
    if Path(word).suffix == ".duckdb" and Path(word).is_file():
        return Side(Path(word), word)
    if DATE.match(word):
        return _at(database, kept, word)
    if len(word) >= SHORTEST_RUN and (found := _of_run(database, kept, word.lower())):
        return found
    raise NoSuchResults(
        f"`{word}` is no date, run, corpus or .duckdb file. {_there(database, kept)}"
    )


def _of(copy: Kept) -> Side:
    return Side(copy.path, copy.label)


def _at(database: Path, kept: Sequence[Kept], word: str) -> Side:
    """The newest results at or before a time; a date alone means its end. UTC."""
    try:
        moment = datetime.fromisoformat(word)
    except ValueError as error:
        raise NoSuchResults(
            f"`{word}` is no date or time ({error}); write e.g. 2026-11-20T14:30"
        ) from error
    if len(word) == len("2026-11-20"):
        moment = datetime.combine(moment.date(), time.max)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    for copy in kept:
        if copy.at <= moment:
            return _of(copy)
    raise NoSuchResults(f"no results were kept at or before {word}. {_there(database, kept)}")


def _of_run(database: Path, kept: Sequence[Kept], word: str) -> Side | None:
    """Results that a run made, or the oldest ones that something of it is in."""
    for copy in kept:
        if copy.run and (copy.run.startswith(word) or word.startswith(copy.run)):
            return _of(copy)
    sides = [*(_of(copy) for copy in reversed(kept)), Side(database, "now")]
    for side in sides:
        sql = "SELECT 1 FROM artefacts WHERE starts_with(run_id, ?) LIMIT 1"
        if fetch(side.database, sql, [word]).rows:
            return side
    return None


def _there(database: Path, kept: Sequence[Kept]) -> str:
    """What could have been named."""
    runs = [
        row[0][:8]
        for row in fetch(
            database,
            "SELECT run_id FROM artefacts WHERE run_id <> '' GROUP BY run_id "
            "ORDER BY max(finished_at) DESC LIMIT ?",
            [LISTED],
        ).rows
    ]
    corpora = [row[0] for row in fetch(database, "SELECT corpus FROM corpora ORDER BY 1").rows]
    copies = "; ".join(copy.label for copy in kept[:LISTED])
    return (
        f"Kept results: {copies or 'none yet'}. Runs: {', '.join(runs) or 'none'}. "
        f"Corpora: {', '.join(corpora) or 'none'}. Also: now, previous, -2, FILE.duckdb."
    )
