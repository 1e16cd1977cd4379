"""Whether the database holds the rows that were written, and every chain in it reaches its end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.lineage.findings import SHOWN, Finding, Kind
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.results.ancestry import CHANGED
from kinject_assets.core.results.catalogue import tables
from kinject_assets.core.results.digests import ROWS, VIEWS, Difference, compare
from kinject_assets.core.results.loader import ANSWERS, DATABASE
from kinject_assets.core.results.tables import opened
from kinject_assets.core.schema import Answer
from kinject_assets.core.store import Cell, Store, library_versions, read_rows

if TYPE_CHECKING:
    import duckdb

RESULTS = Cell("results")

NODES: dict[str, tuple[str, str]] = {
    "answer": ("answers", "answer_id"),
    "question": ("questions", "question_id"),
    "checkpoint": ("checkpoints", "checkpoint_id"),
    "chunk": ("chunks", "chunk_id"),
    "paraphrase": ("paraphrases", "paraphrase_id"),
    "generation": ("generations", "generation_id"),
    "article": ("articles", "concat(article_id, '@', revision_id)"),
    "artefact": ("artefacts", "artefact"),
}
"""Kind of the table `lineage` -> table that holds it, and its id there."""

_IDS = " UNION ALL ".join(
    f"SELECT '{kind}' AS kind, {expression} AS id FROM {table}"
    for kind, (table, expression) in NODES.items()
)

_BELOW = """
    WITH RECURSIVE below(kind, id) AS (
        SELECT kind, id FROM seeds
        UNION
        SELECT child_kind, child_id FROM lineage JOIN below
            ON parent_kind = below.kind AND parent_id = below.id
    )
    SELECT count(*) FROM below WHERE kind = 'answer'
"""
"""Answers that rest on the rows of `seeds`."""

_DANGLING = f"""
    SELECT child_kind, child_id, parent_kind, parent_id FROM lineage
    WHERE NOT EXISTS (FROM ({_IDS}) n WHERE n.kind = parent_kind AND n.id = parent_id)
"""


def _unless_changed(kind: str, row_id: str, asset: str) -> str:
    """Condition: the artefact of a row has read this asset as it is now, so that links are due."""
    return f"""NOT EXISTS (
            FROM lineage own JOIN ({CHANGED}) other ON other.artefact = own.parent_id
            WHERE own.child_kind = '{kind}' AND own.child_id = {row_id}
                AND own.parent_kind = 'artefact' AND starts_with(other.input, '{asset}/'))"""


_UNLINKED = f"""
    SELECT DISTINCT l.parent_id AS artefact, c.input, l.child_kind AS kind, l.child_id AS id
    FROM lineage l JOIN ({CHANGED}) c ON c.artefact = l.parent_id
    LEFT JOIN answers a ON l.child_kind = 'answer' AND a.answer_id = l.child_id
    LEFT JOIN conditions n ON n.condition_id = a.condition_id
    WHERE l.parent_kind = 'artefact' AND (
        (l.child_kind = 'answer' AND n.k > 0 AND starts_with(c.input, 'retrieved/'))
        OR (l.child_kind = 'checkpoint' AND regexp_matches(
            c.input, '^(chunks|paraphrases|validation_paraphrases)/')))
    ORDER BY ALL
"""
"""Answers and checkpoints that are not linked to texts, for these have changed since."""

_LACKING: dict[str, str] = {
    "question": """
        SELECT 'answer' AS kind, answer_id AS id FROM answers a WHERE NOT EXISTS (
            FROM lineage WHERE child_kind = 'answer' AND child_id = answer_id
                AND parent_kind = 'question' AND parent_id = a.question_id)""",
    "artefact": """
        SELECT 'answer', answer_id FROM answers WHERE NOT EXISTS (
            FROM lineage WHERE child_kind = 'answer' AND child_id = answer_id
                AND parent_kind = 'artefact')""",
    "checkpoint": """
        SELECT 'answer', answer_id FROM answers a WHERE checkpoint_id <> '' AND NOT EXISTS (
            FROM lineage WHERE child_kind = 'answer' AND child_id = answer_id
                AND parent_kind = 'checkpoint' AND parent_id = a.checkpoint_id)""",
    "retrieved chunk": f"""
        SELECT 'answer', answer_id FROM answers a JOIN conditions c USING (condition_id)
            JOIN retrieved t ON c.k > 0 AND t.corpus = c.corpus AND t.retriever = c.retriever
                AND t.question_id = a.question_id AND t.rank <= c.k
        WHERE NOT EXISTS (
            FROM lineage WHERE child_kind = 'answer' AND child_id = answer_id
                AND parent_kind = 'chunk' AND parent_id = t.chunk_id)
            AND {_unless_changed("answer", "a.answer_id", "retrieved")}""",
    "chunk": """
        SELECT 'question', question_id FROM questions q WHERE chunk_id IS NOT NULL AND NOT EXISTS (
            FROM lineage WHERE child_kind = 'question' AND child_id = question_id
                AND parent_kind = 'chunk' AND parent_id = q.chunk_id)""",
    "generation": """
        SELECT 'question', question_id FROM questions q WHERE generation_id <> '' AND NOT EXISTS (
            FROM lineage WHERE child_kind = 'question' AND child_id = question_id
                AND parent_kind = 'generation' AND parent_id = q.generation_id)
        UNION ALL
        SELECT 'paraphrase', paraphrase_id FROM paraphrases p
        WHERE generation_id <> '' AND NOT EXISTS (
            FROM lineage WHERE child_kind = 'paraphrase' AND child_id = paraphrase_id
                AND parent_kind = 'generation' AND parent_id = p.generation_id)""",
    "training text": f"""
        SELECT 'checkpoint', checkpoint_id FROM checkpoints WHERE NOT EXISTS (
            FROM lineage WHERE child_kind = 'checkpoint' AND child_id = checkpoint_id
                AND parent_kind = 'chunk')
            AND {_unless_changed("checkpoint", "checkpoint_id", "chunks")}""",
    "article revision": """
        SELECT 'chunk', chunk_id FROM corpus_chunks JOIN chunks USING (chunk_id)
        WHERE NOT EXISTS (
            FROM lineage WHERE child_kind = 'chunk' AND child_id = chunk_id
                AND parent_kind = 'article'
                AND parent_id = concat(article_id, '@', corpus_chunks.revision_id))""",
    "condition": """
        SELECT 'answer', answer_id FROM answers a
        WHERE NOT EXISTS (FROM conditions c WHERE c.condition_id = a.condition_id)""",
}
"""What a row needs and has not -> query that gives kinds and ids of such rows."""

_OUTDATED = """
    SELECT m.child_id, m.parent_id FROM lineage m
        JOIN artefacts made ON m.parent_kind = 'artefact' AND made.artefact = m.parent_id
        JOIN artefacts read ON read.artefact = replace(made.artefact, 'chunks/', 'articles/')
    WHERE m.child_kind = 'chunk' AND made.asset = 'chunks' AND read.logical_version
        IS DISTINCT FROM json_extract_string(made.inputs, concat('$."', read.artefact, '"'))
"""
"""Chunks that were cut from articles which have changed since, and their artefact."""


@dataclass(frozen=True)
class Checked:
    """What the database was found to be.

    Attributes:
        rows: Rows that were compared with those written.
        answers: Its answers.
        whole: Of them, those whose chain reaches its end everywhere.
    """

    findings: tuple[Finding, ...] = ()
    rows: int = 0
    answers: int = 0
    whole: int = 0


def check_database(
    store: Store, manifests: Mapping[Cell, Manifest], report: Report = silent
) -> Checked:
    """Compares the database with what was written to it, and follows every chain in it.

    Args:
        store: The lake that it was built from.
        manifests: The lake's.
        report: Told what is being done.
    """
    database = store.root / DATABASE
    mend = f"delete {database} and run `kinject run`: it is built from the lake again"
    if not database.exists():
        if RESULTS not in manifests:
            return Checked()
        found = Finding(artefact=DATABASE, kind="missing", detail="the database is gone", mend=mend)
        return Checked((found,))
    try:
        with opened(database):
            pass
    except BrokenArtefact as error:
        found = Finding(artefact=DATABASE, kind="changed", detail=str(error), mend=mend)
        return Checked((found,))
    report("rows of the database")
    findings, rows = _rows(store, manifests, database, mend)
    report("chains of the answers")
    chains, answers, whole = _chains(database, mend)
    return Checked((*findings, *chains), rows, answers, whole)


# --- rows ---


def _rows(
    store: Store, manifests: Mapping[Cell, Manifest], database: Path, mend: str
) -> tuple[list[Finding], int]:
    """Rows that are not those written; without digests, answers that are not those of the lake."""
    results = manifests.get(RESULTS)
    other = _other_duckdb(results) if results else ""
    for name in results.files if results else ():
        if name.endswith(f"/{ROWS}"):
            try:
                found = compare(database, store.local(RESULTS, name))
            except (BrokenArtefact, FileNotFoundError):
                return [], 0  # the file's own finding says so
            return [
                replace(told, detail=f"{told.detail}{other}") if told.kind == "changed" else told
                for told in (_told(database, d, mend) for d in found.differences)
            ], found.rows
    return list(_against_lake(store, manifests, database, mend)), 0


def _other_duckdb(results: Manifest) -> str:
    """What is to be said where another version of DuckDB wrote the rows; empty where none did."""
    wrote, reads = results.libraries.get("duckdb"), library_versions("duckdb").get("duckdb")
    if wrote in {None, reads}:
        return ""
    return f" (written with DuckDB {wrote}, read with {reads}, which may spell values otherwise)"


_OF_ROWS: dict[str, Kind] = {"missing": "missing", "changed": "changed", "added": "orphaned"}


def _told(database: Path, difference: Difference, mend: str) -> Finding:
    if difference.table == VIEWS or difference.table not in tables():
        return _told_whole(difference, mend)
    table, n = difference.table, difference.count
    columns = tables()[table].key
    keys = tuple(
        ", ".join(f"{column}={value}" for column, value in zip(columns, key, strict=True))
        for key in difference.keys[:SHOWN]
    )
    what = {
        "missing": "gone",
        "changed": "not what was written",
        "added": "in no artefact: nothing that was made wrote",
    }[difference.kind]
    count = f"{n:,} row{' is' if n == 1 else 's are'}"
    tail = {"added": f" {'it' if n == 1 else 'them'}"}.get(difference.kind, "")
    named = f": {'; '.join(keys)}{'; ...' if n > len(keys) else ''}" if keys else ""
    said = f"table {table}: {count} {what}{tail}{named}"
    if difference.unreadable:
        said = f"table {table} cannot be read: {difference.unreadable}"
    return Finding(
        artefact=DATABASE,
        kind=_OF_ROWS[difference.kind],
        detail=said,
        mend=mend,
        area="rows",
        table=table,
        keys=keys,
        count=n,
        answers=_resting(database, _seeds(table, difference.keys)),
    )


def _told_whole(difference: Difference, mend: str) -> Finding:
    """Of views, and of a table that the database should not have."""
    if difference.table != VIEWS:
        said = f"table {difference.table} ({difference.count:,} rows) is in no artefact: nothing "
        said += "that was made wrote it"
    else:
        what = {
            "missing": "gone",
            "changed": "not what was written",
            "added": "in no artefact: nothing that was made wrote it",
        }[difference.kind]
        named = [key[0] for key in difference.keys[:SHOWN]]
        more = f" and {difference.count - len(named):,} more" * (difference.count > len(named))
        said = f"view {', '.join(named)}{more}: {what}"
    return Finding(
        artefact=DATABASE,
        kind=_OF_ROWS[difference.kind],
        detail=said,
        mend=mend,
        area="rows",
        table=difference.table,
        keys=tuple(f"view={key[0]}" for key in difference.keys[:SHOWN]),
        count=difference.count,
    )


def _seeds(table: str, keys: Sequence[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Kinds and ids of rows in the table `lineage`; none for what no answer rests on."""
    if table == "lineage":
        return [(key[0], key[1]) for key in keys]
    if table == "articles":
        return [("article", "@".join(key)) for key in keys]
    kinds = {name: kind for kind, (name, _) in NODES.items() if kind not in {"answer", "article"}}
    return [(kinds[table], key[0]) for key in keys] if table in kinds else []


def _resting(database: Path, seeds: Sequence[tuple[str, str]]) -> int:
    """How many answers rest on rows."""
    import duckdb
    import pyarrow as pa

    if not seeds:
        return 0
    kinds, ids = zip(*seeds, strict=True)
    with opened(database) as connection:
        connection.register("seeds", pa.table({"kind": list(kinds), "id": list(ids)}))
        try:
            return connection.execute(_BELOW).fetchall()[0][0]
        except duckdb.Error:
            return 0  # there is no lineage to follow; its own finding says so


def _against_lake(
    store: Store, manifests: Mapping[Cell, Manifest], database: Path, mend: str
) -> Iterator[Finding]:
    """Answers of the lake against those of a database that was built without digests."""
    with opened(database) as connection:
        loaded = {row[0] for row in connection.execute("SELECT answer_id FROM answers").fetchall()}
    kept: set[str] = set()
    complete = True
    for cell, manifest in manifests.items():
        if cell.asset not in ANSWERS:
            continue
        ids = _answer_ids(store, cell, manifest)
        complete = complete and ids is not None
        kept |= ids or set()
        lacking = sorted((ids or set()) - loaded)
        if lacking:
            yield _of_answers("missing", lacking, f"of {cell} are not in it", mend)
    extra = sorted(loaded - kept)
    if extra and complete:
        yield _of_answers("orphaned", extra, "are in no artefact", mend)


def _of_answers(kind: Kind, ids: Sequence[str], what: str, mend: str) -> Finding:
    return Finding(
        artefact=DATABASE,
        kind=kind,
        detail=f"table answers: {len(ids)} answers {what}, e.g. {ids[0]}",
        mend=mend,
        area="rows",
        table="answers",
        keys=tuple(f"answer_id={answer}" for answer in ids[:SHOWN]),
        count=len(ids),
    )


def _answer_ids(store: Store, cell: Cell, manifest: Manifest) -> set[str] | None:
    """Answers of a cell; `None` when its file cannot be read, which its own finding says."""
    for name in manifest.files:
        if name.endswith("/answers.parquet"):
            try:
                return {row.answer_id for row in read_rows(store.local(cell, name), Answer)}
            except (BrokenArtefact, FileNotFoundError):
                return None
    return None


# --- chains ---


def _chains(database: Path, mend: str) -> tuple[list[Finding], int, int]:
    """What the chains lack, how many answers there are, and how many have their whole chain."""
    import duckdb

    with opened(database) as connection:
        try:
            if "inputs" not in _columns(connection, "artefacts"):
                return [], 0, 0  # built by an older version; the artefact `results` is stale
            answers = connection.execute("SELECT count(*) FROM answers").fetchall()[0][0]
            dangling = connection.execute(_DANGLING).fetchall()
            lacking = {
                what: sorted(set(connection.execute(sql).fetchall()))
                for what, sql in _LACKING.items()
            }
            unlinked = connection.execute(_UNLINKED).fetchall()
            outdated = dict(connection.execute(_OUTDATED).fetchall()) if dangling else {}
        except duckdb.Error as error:
            said = Finding(
                artefact=DATABASE,
                kind="changed",
                detail=f"the chains cannot be followed: {str(error).splitlines()[0]}",
                mend=mend,
                area="chains",
            )
            return [said], 0, 0
    findings = [
        *_unresolved(database, dangling, outdated, mend),
        *_behind(database, unlinked),
        *(_unlinked(database, what, rows, mend) for what, rows in lacking.items() if rows),
    ]
    seeds = {(row[0], row[1]) for row in dangling} | {r for rows in lacking.values() for r in rows}
    seeds |= {(row[2], row[3]) for row in unlinked}
    return findings, answers, answers - _resting(database, sorted(seeds))


def _columns(connection: "duckdb.DuckDBPyConnection", table: str) -> set[str]:
    return {row[0] for row in connection.execute(f'DESCRIBE "{table}"').fetchall()}


def _unresolved(
    database: Path, dangling: Sequence[Any], outdated: Mapping[str, str], mend: str
) -> Iterator[Finding]:
    """Links to rows that are in no table."""
    stale = sorted({outdated[row[1]] for row in dangling if row[1] in outdated})
    for artefact in stale:
        mine = [(row[0], row[1]) for row in dangling if outdated.get(row[1]) == artefact]
        yield Finding(
            artefact=artefact,
            kind="stale",
            detail="its chunks are of article revisions that its corpus does not hold any more",
            mend="run `kinject run`",
            area="chains",
            answers=_resting(database, mine),
        )
    broken = [row for row in dangling if row[1] not in outdated]
    for kind in sorted({row[2] for row in broken}):
        mine = [row for row in broken if row[2] == kind]
        ids = sorted({row[3] for row in mine})
        where = NODES[kind][0] if kind in NODES else "no table"
        yield Finding(
            artefact=DATABASE,
            kind="missing",
            detail=f"table lineage: {len(mine):,} link{'s lead' if len(mine) > 1 else ' leads'} "
            f"to {_some(kind, ids)}, not in table {where}",
            mend=_mend_of(kind, mend),
            area="chains",
            table="lineage",
            keys=tuple(f"parent_kind={kind}, parent_id={found}" for found in ids[:SHOWN]),
            count=len(ids),
            answers=_resting(database, [(row[0], row[1]) for row in mine]),
        )


def _behind(database: Path, unlinked: Sequence[Any]) -> Iterator[Finding]:
    """Artefacts whose rows have no links to texts that have changed since these were read."""
    for artefact in sorted({row[0] for row in unlinked}):
        mine = [row for row in unlinked if row[0] == artefact]
        names = ", ".join(sorted({row[1] for row in mine}))
        yield Finding(
            artefact=artefact,
            kind="stale",
            detail=f"when the database was built, {names} had changed since it was read: what it "
            "read of it is not in the chains",
            mend="run `kinject run`",
            area="chains",
            answers=_resting(database, sorted({(row[2], row[3]) for row in mine})),
        )


def _mend_of(kind: str, mend: str) -> str:
    if kind != "generation":
        return mend
    return (
        f"{mend}. If they stay, lake/llm_ledger has lost them: restore it from a backup, or delete "
        "the questions and paraphrases to have them written anew"
    )


def _unlinked(database: Path, what: str, rows: Sequence[tuple[str, str]], mend: str) -> Finding:
    """Rows that have not the link that they need."""
    kinds = sorted({kind for kind, _ in rows})
    named = ", ".join(_some(kind, [i for k, i in rows if k == kind]) for kind in kinds)
    return Finding(
        artefact=DATABASE,
        kind="missing",
        detail=f"table lineage: no link to the {what} of {named}",
        mend=mend,
        area="chains",
        table="lineage",
        keys=tuple(f"child_kind={kind}, child_id={found}" for kind, found in rows[:SHOWN]),
        count=len(rows),
        answers=_resting(database, rows),
    )


def _some(kind: str, ids: Sequence[str]) -> str:
    """E.g. `2 chunks (a, b)`."""
    shown = ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
    return f"{len(ids):,} {kind}{'' if len(ids) == 1 else 's'} ({shown})"
