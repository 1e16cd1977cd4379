"""What one number of the study's tables rests on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.lineage.ancestry import (
    SINCE,
    SINCE_MANY,
    Tracer,
    condition_label,
    require_lineage,
)
from kinject_assets.core.lineage.tree import Node
from kinject_assets.core.results.ancestry import CHANGED
from kinject_assets.core.results.catalogue import METHOD_COLUMNS, named_scores
from kinject_assets.core.results.tables import opened

if TYPE_CHECKING:
    import duckdb

_COUNTED = """
    CREATE TEMP TABLE counted AS
    SELECT a.answer_id, a.correct, c.condition_id, q.fold
    FROM scores s JOIN conditions own USING (condition_id)
        JOIN corpus_questions q ON q.corpus = s.corpus AND q.split = 'test' AND NOT q.retired
        LEFT JOIN k_choices f ON f.condition_id = s.condition_id AND f.fold = q.fold
        JOIN conditions c ON c.k = coalesce(f.k, own.k)
            AND (c.corpus, c.model, c.recipe, c.seed, c.method, c.shots, c.retriever, c.query,
                c.choice_format, c.rotation, c.engine, c.chat_template, c.bos)
            = (own.corpus, own.model, own.recipe, own.seed, own.method, own.shots, own.retriever,
                own.query, own.choice_format, own.rotation, own.engine, own.chat_template, own.bos)
        JOIN answers a ON a.condition_id = c.condition_id AND a.question_id = q.question_id
    WHERE s.k_rule = 'cross_fitted' AND s.stratum = 'all' AND s.condition_id = ?
"""
"""The answers that a score counts: each question's under the K that its fold was given."""

_BEHIND = """
    CREATE TEMP TABLE behind AS
    WITH RECURSIVE above(kind, id) AS (
        SELECT 'answer', answer_id FROM counted
        UNION
        SELECT parent_kind, parent_id FROM lineage JOIN above
            ON child_kind = above.kind AND child_id = above.id
        WHERE parent_kind <> 'artefact'
    )
    SELECT * FROM above
"""
"""All rows that they rest on."""

_CHANGED = f"""
    WITH RECURSIVE made(artefact) AS (
        SELECT parent_id FROM lineage JOIN counted ON child_id = answer_id
        WHERE child_kind = 'answer' AND parent_kind = 'artefact'
        UNION
        SELECT parent_id FROM lineage JOIN made ON child_id = artefact
        WHERE child_kind = 'artefact' AND parent_kind = 'artefact'
    )
    SELECT DISTINCT input FROM ({CHANGED}) JOIN made USING (artefact) ORDER BY input
"""
"""Inputs of the artefacts that they rest on which have changed since these read them."""

_COUNTED_KINDS = {
    "question": "question",
    "checkpoint": "checkpoint",
    "chunk": "chunk",
    "paraphrase": "paraphrase",
    "generation": "generation",
    "article": "article revision",
}
"""Kind of row -> what it is called in the summary."""


@dataclass(frozen=True)
class _Named:
    """A number of the tables.

    Attributes:
        name: As `kinject audit --cell` takes it.
        condition_id: Condition that its score names.
    """

    name: str
    condition_id: str
    accuracy: float
    low: float
    high: float


def trace_cell(database: Path, name: str) -> Node:
    """What a number of the study's tables rests on.

    Args:
        database: `results.duckdb`.
        name: `table2/CORPUS/MODEL/COLUMN` or `table1/CORPUS/SHOTS/MODEL/COLUMN`.

    Raises:
        MissingArtefact: If there is no database.
        KinjectError: If the tables have no such number; the message lists those that there are.
    """
    with opened(database) as connection:
        require_lineage(connection, database)
        there = {cell.name: cell for cell in _cells(connection)}
        if name not in there:
            known = "\n".join(f"  {other}" for other in there) or "  none yet: run `kinject run`"
            raise KinjectError(
                f"--cell {name!r}: the tables have no such number. There are:\n{known}"
            )
        return _traced(connection, there[name])


def _cells(connection: "duckdb.DuckDBPyConnection") -> list[_Named]:
    """The numbers of both tables, in their order."""
    found: list[_Named] = []
    for number, columns in METHOD_COLUMNS.items():
        for column, where in columns:
            rows = connection.execute(
                f"{named_scores(number)} SELECT corpus, shots, model, condition_id, accuracy, "
                f"ci_low, ci_high FROM named WHERE {where} ORDER BY ALL"
            ).fetchall()
            for corpus, shots, model, *rest in rows:
                keys = (corpus, shots, model) if number == 1 else (corpus, model)
                found.append(_Named("/".join(map(str, (f"table{number}", *keys, column))), *rest))
    return sorted(found, key=lambda cell: cell.name)


def _traced(connection: "duckdb.DuckDBPyConnection", cell: _Named) -> Node:
    connection.execute(_COUNTED, [cell.condition_id])
    connection.execute(_BEHIND)
    counts = _one(connection, "SELECT count(*), count(*) FILTER (correct) FROM counted")
    kinds = dict(connection.execute("SELECT kind, count(*) FROM behind GROUP BY kind").fetchall())
    tracer = Tracer(connection)
    parents = [
        *_conditions(connection, tracer),
        *_revisions(connection, tracer),
        *(
            tracer.node("artefact", artefact)
            for (artefact,) in connection.execute(
                "SELECT DISTINCT parent_id FROM lineage JOIN counted ON child_id = answer_id "
                "WHERE child_kind = 'answer' AND parent_kind = 'artefact' ORDER BY ALL"
            ).fetchall()
        ),
    ]
    rows = ", ".join(
        f"{kinds[kind]:,} {name}{'' if kinds[kind] == 1 else 's'}"
        for kind, name in _COUNTED_KINDS.items()
        if kinds.get(kind)
    )
    details = (
        f"{counts[1]:,} right of {counts[0]:,} answers"
        + (f" = {counts[1] / counts[0]:.3f}, counted again now" if counts[0] else ""),
        f"they rest on {rows}{_since(connection)}",
    )
    label = f"{cell.accuracy:.3f} [{cell.low:.2f}, {cell.high:.2f}]"
    articles = kinds.get("article", 0)
    shown = sum(parent.kind == "article" for parent in parents)
    left_out = {"article": articles - shown} if articles > shown else {}
    return Node("cell", cell.name, label, details, parents=tuple(parents), left_out=left_out)


def _since(connection: "duckdb.DuckDBPyConnection") -> str:
    """How many inputs have changed since they were read, and which; empty where none has."""
    inputs = [row[0] for row in connection.execute(_CHANGED).fetchall()]
    if not inputs:
        return ""
    said = f"1 input {SINCE}" if len(inputs) == 1 else f"{len(inputs):,} inputs {SINCE_MANY}"
    return f"; {said}: {', '.join(inputs)}"


def _one(connection: "duckdb.DuckDBPyConnection", sql: str) -> tuple[Any, ...]:
    return connection.execute(sql).fetchall()[0]


def _conditions(connection: "duckdb.DuckDBPyConnection", tracer: Tracer) -> list[Node]:
    """The conditions whose answers are counted, with the folds of each."""
    rows = connection.execute(
        "SELECT condition_id, list(DISTINCT fold ORDER BY fold), count(*), "
        "count(*) FILTER (correct) FROM counted JOIN conditions USING (condition_id) "
        "GROUP BY condition_id, k ORDER BY k, condition_id"
    ).fetchall()
    found: list[Node] = []
    for condition, folds, n, correct in rows:
        row = tracer.condition(condition)
        said = f"{correct:,} right of {n:,} answers"
        if row["k"]:
            said += (
                f", of the folds for which K={row['k']} was chosen: {', '.join(map(str, folds))}"
            )
        found.append(Node("condition", condition, condition_label(row), (said,)))
    return found


def _revisions(connection: "duckdb.DuckDBPyConnection", tracer: Tracer) -> list[Node]:
    """The newest and the oldest of the article revisions behind the answers."""
    rows = connection.execute(
        "SELECT id FROM behind JOIN articles ON id = concat(article_id, '@', revision_id) "
        "WHERE kind = 'article' ORDER BY revised_at DESC NULLS LAST, id"
    ).fetchall()
    chosen = dict.fromkeys([("newest", rows[0][0]), ("oldest", rows[-1][0])] if rows else [])
    found: dict[str, Node] = {}
    for note, article in chosen:
        found.setdefault(article, tracer.node("article", article, note=note))
    return list(found.values())
