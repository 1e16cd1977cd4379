"""What one answer rests on, down to article revisions, and who made each step."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.core.errors import KinjectError, MissingArtefact
from kinject_assets.core.lineage.tree import Node, shorten
from kinject_assets.core.results.ancestry import CHANGED
from kinject_assets.core.results.tables import opened

if TYPE_CHECKING:
    import duckdb

SHOWN = 3
"""Parents of one kind that are shown; a checkpoint has thousands of chunks."""

PREFIX = 8
"""Least characters of an answer's id."""

TEXT_SHOWN = 100
"""Characters of an option that are shown."""

Row = Mapping[str, Any]

_ROWS: dict[str, str] = {
    "answer": """
        SELECT a.*, c.*, q.options, m.source, m.revision FROM answers a
            JOIN conditions c USING (condition_id) LEFT JOIN questions q USING (question_id)
            LEFT JOIN models m USING (model) WHERE a.answer_id = ?""",
    "question": "SELECT * FROM questions WHERE question_id = ?",
    "checkpoint": "SELECT * FROM checkpoints WHERE checkpoint_id = ?",
    "chunk": "SELECT * FROM chunks WHERE chunk_id = ?",
    "paraphrase": "SELECT * FROM paraphrases WHERE paraphrase_id = ?",
    "generation": "SELECT * FROM generations WHERE generation_id = ?",
    "article": "SELECT * FROM articles WHERE concat(article_id, '@', revision_id) = ?",
    "artefact": "SELECT * FROM artefacts WHERE artefact = ?",
}
"""Kind -> query that gives its row."""

_ORDER = ("question", "chunk", "checkpoint", "paraphrase", "generation", "article", "artefact")
"""In which order what a thing rests on is told."""

_PARENTS = """
    SELECT parent_kind, parent_id, p.purpose,
        parent_id = $focus OR p.chunk_id = $focus AS first
    FROM lineage LEFT JOIN paraphrases p
        ON parent_kind = 'paraphrase' AND p.paraphrase_id = parent_id
    WHERE child_kind = $kind AND child_id = $id
        AND (parent_kind <> 'artefact' OR $kind IN ('answer', 'artefact'))
    ORDER BY list_position($order, parent_kind), NOT coalesce(first, false), p.purpose,
        p.ordinal, parent_id
"""
"""Rows name the artefact that holds them, too; the answer's own leads to all of these."""

_RANKS = """
    SELECT chunk_id, rank, score, hit FROM retrieved
    WHERE corpus = ? AND question_id = ? AND retriever = ? AND rank <= ?
"""

_REVISIONS = """
    SELECT concat(article_id, '@', cc.revision_id)
    FROM corpus_chunks cc JOIN chunks USING (chunk_id)
    WHERE corpus = ? AND chunk_id = ?
"""

_TEXTS = ("chunks", "paraphrases", "validation_paraphrases")
"""Assets that a checkpoint reads texts of."""

_TRAINED_ON = """
    SELECT count(*) FILTER (parent_kind = 'chunk'), count(*) FILTER (p.purpose = 'train'),
        count(*) FILTER (p.purpose = 'validation')
    FROM lineage LEFT JOIN paraphrases p
        ON parent_kind = 'paraphrase' AND p.paraphrase_id = parent_id
    WHERE child_kind = 'checkpoint' AND child_id = ?
"""


_CHANGED_OF_ROW = f"""
    SELECT DISTINCT input FROM lineage JOIN ({CHANGED}) changed ON changed.artefact = parent_id
    WHERE child_kind = ? AND child_id = ? AND parent_kind = 'artefact' ORDER BY input
"""
"""Inputs that have changed since the artefact that holds a row read them."""

_CHANGED_OF_ARTEFACT = f"SELECT input FROM ({CHANGED}) WHERE artefact = ?"

SINCE = "has changed since it was read"
"""What is said of an input whose version is another one now."""

SINCE_MANY = "have changed since they were read"
"""The same of several."""


def trace(database: Path, answer_id: str, shown: int = SHOWN) -> Node:
    """The chain of an answer: question, retrieved chunks, checkpoint, articles, and each step.

    Args:
        database: `results.duckdb`.
        answer_id: Id of a row of `answers`, or its first characters.
        shown: Parents of one kind shown at each step of a checkpoint; retrieved chunks are all
            shown.

    Raises:
        MissingArtefact: If there is no database or no such answer.
        KinjectError: If more than one answer's id begins so, or too little of it is given.
    """
    with opened(database) as connection:
        require_lineage(connection, database)
        return Tracer(connection, shown).answer(_whole_id(connection, database, answer_id))


def require_lineage(connection: "duckdb.DuckDBPyConnection", database: Path) -> None:
    """Refuses a database that an older version built.

    Raises:
        MissingArtefact: If it does not hold how its artefacts were made.
    """
    if "seal" not in {row[0] for row in connection.execute("DESCRIBE artefacts").fetchall()}:
        raise MissingArtefact(
            f"{database} was built by an older version, without what a chain needs; "
            "`kinject run --select results` builds it again"
        )


def _whole_id(connection: "duckdb.DuckDBPyConnection", database: Path, answer_id: str) -> str:
    found = connection.execute(
        "SELECT answer_id FROM answers WHERE starts_with(answer_id, ?) "
        "ORDER BY answer_id = ? DESC, answer_id LIMIT 4",
        [answer_id, answer_id],
    ).fetchall()
    ids = [row[0] for row in found]
    if answer_id in ids:
        return answer_id
    if not ids:
        raise MissingArtefact(
            f"no answer `{answer_id}` in {database}; list some with "
            '`kinject sql "SELECT answer_id FROM answers LIMIT 5"`'
        )
    if len(answer_id) < PREFIX:
        raise KinjectError(
            f"answer `{answer_id}`: give at least {PREFIX} characters of its id, e.g. {ids[0]}"
        )
    if len(ids) > 1:
        raise KinjectError(
            f"answer `{answer_id}`: more than one id begins so: {', '.join(ids)}; give more of it"
        )
    return ids[0]


class Tracer:
    """Follows links upwards; what was shown once is only named afterwards.

    Args:
        connection: The database.
        shown: Parents of one kind shown at each step of a checkpoint.
    """

    def __init__(self, connection: "duckdb.DuckDBPyConnection", shown: int = SHOWN) -> None:
        self._connection = connection
        self._shown = shown
        self._seen: set[tuple[str, str]] = set()
        self._focus = ""
        self._corpus = ""

    def answer(self, answer_id: str) -> Node:
        """The tree of an answer."""
        row = self.row("answer", answer_id) or {}
        self._corpus = row.get("corpus", "")
        question = self.row("question", row.get("question_id", "")) or {}
        self._focus = question.get("chunk_id") or ""
        ranked = self._dicts(
            _RANKS, [self._corpus, row.get("question_id"), row.get("retriever"), row.get("k")]
        )
        given = {("chunk", r["chunk_id"]): r for r in ranked} if row.get("k") else {}
        notes = {key: _rank(r) for key, r in given.items()}
        order = {key: r["rank"] for key, r in given.items()}
        return self.node("answer", answer_id, notes, order)

    def node(
        self,
        kind: str,
        node_id: str,
        notes: Mapping[tuple[str, str], str] | None = None,
        order: Mapping[tuple[str, str], int] | None = None,
        note: str = "",
    ) -> Node:
        """A thing with all that it rests on.

        Args:
            kind: Its kind.
            node_id: Its id.
            notes: What is to be said of its parents.
            order: Places of parents among those of their kind.
            note: What is to be said of it.
        """
        row = self.row(kind, node_id)
        if row is None:
            return Node(kind, node_id, note=note, found=False)
        label, details = self._told(kind, row)
        if (kind, node_id) in self._seen:
            return Node(kind, node_id, label, note=note, above=True)
        self._seen.add((kind, node_id))
        found = self._parents(kind, node_id)
        if order:
            found.sort(key=lambda p: (_ORDER.index(p[0]), order.get(p, 0)))
        kept, left_out = shorten(found, self._shown if kind == "checkpoint" else None)
        parts = self._notes(row) if kind == "artefact" else {}
        parents = tuple(
            self.node(*parent, note=(notes or {}).get(parent, parts.get(parent[1], "")))
            for parent in kept
        )
        return Node(kind, node_id, label, tuple(details), note, parents, left_out)

    def row(self, kind: str, node_id: str) -> Row | None:
        """The row of a thing; `None` when it is in no table."""
        found = self._dicts(_ROWS[kind], [node_id])
        return found[0] if found else None

    def condition(self, condition_id: str) -> Row:
        """The row of a condition."""
        return self._dicts("SELECT * FROM conditions WHERE condition_id = ?", [condition_id])[0]

    def _dicts(self, sql: str, parameters: list[Any]) -> list[dict[str, Any]]:
        cursor = self._connection.execute(sql, parameters)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _parents(self, kind: str, node_id: str) -> list[tuple[str, str]]:
        given = {"kind": kind, "id": node_id, "focus": self._focus, "order": list(_ORDER)}
        found = [(r[0], r[1]) for r in self._connection.execute(_PARENTS, given).fetchall()]
        if kind != "chunk":
            return found
        # Corpora that share a chunk may have read it in different revisions.
        mine = self._connection.execute(_REVISIONS, [self._corpus, node_id]).fetchall()
        here = [parent for parent in found if (parent[1],) in mine]
        return here or found

    def _notes(self, row: Row) -> dict[str, str]:
        """What is to be said of the inputs of an artefact."""
        notes = _parts(row)
        for (key,) in self._connection.execute(_CHANGED_OF_ARTEFACT, [row["artefact"]]).fetchall():
            name = key.partition("#")[0]
            notes[name] = "; ".join(filter(None, (notes.get(name), SINCE)))
        return notes

    def _unshown(self, kind: str, row_id: str, what: str, *assets: str) -> list[str]:
        """Says that what a row read has changed since, so that it is not linked."""
        found = self._connection.execute(_CHANGED_OF_ROW, [kind, row_id]).fetchall()
        names = [key for (key,) in found if key.split("/", 1)[0] in assets]
        return [f"{name} {SINCE}: {what} are not shown" for name in names]

    def _told(self, kind: str, row: Row) -> tuple[str, list[str]]:
        """Label and details of a thing."""
        match kind:
            case "answer":
                label, details = _of_answer(row)
                if row["k"]:
                    what = "the passages that stood in the prompt"
                    details += self._unshown(kind, row["answer_id"], what, "retrieved")
                return label, details
            case "question":
                return row["stem"], []
            case "checkpoint":
                checkpoint = row["checkpoint_id"]
                counts = self._connection.execute(_TRAINED_ON, [checkpoint]).fetchall()
                label, details = _of_checkpoint(row, *counts[0])
                what = "its texts as they were then"
                return label, details + self._unshown(kind, checkpoint, what, *_TEXTS)
            case "chunk":
                return _joined(row["title"], row["section"]), []
            case "paraphrase":
                label = f"{row['augmentation']} {row['purpose']} {row['ordinal']}"
                return _joined(label, f"seed {row['seed']}", row["generator"]), []
            case "generation":
                return _of_generation(row), []
            case "article":
                when = _moment(row["revised_at"])
                revision = f"revision {row['revision_id']}" + (f" of {when}" if when else "")
                return row["title"], [_joined(revision, row["licence"]), row["permalink"]]
            case _:
                return _of_artefact(row)


def _rank(row: Row) -> str:
    own = ", the text that the question was written from" if row["hit"] else ""
    return f"rank {row['rank']}, score {row['score']:.4g}{own}"


def _joined(*parts: Any, by: str = ", ") -> str:
    return by.join(str(part) for part in parts if part not in ("", None))


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def letter(index: int) -> str:
    """The letter of an option."""
    return chr(ord("A") + index)


def _of_answer(row: Row) -> tuple[str, list[str]]:
    label = condition_label(row)

    def option(index: int) -> str:
        options = row["options"] or []
        text = options[index] if index < len(options) else ""
        cut = f"{text[: TEXT_SHOWN - 1]}…" if len(text) > TEXT_SHOWN else text
        return f"{letter(index)}" + (f" ({cut})" if cut else "")

    details = [
        f"chose {option(row['choice'])}; "
        + ("right" if row["correct"] else f"wrong: right is {option(row['gold'])}"),
        _joined(
            f"model {row['source'] or row['model']}",
            f"revision {row['revision']}" if row["revision"] else "",
            f"asked in run {row['run_id'] or 'unknown'}",
        ),
    ]
    return label, details


def condition_label(row: Row) -> str:
    """A condition in words."""
    return _joined(
        row["corpus"],
        row["model"],
        row["method"],
        row["recipe"],
        f"{row['shots']}-shot",
        f"K={row['k']} by {row['retriever']}" if row["k"] else "",
        f"{row['choice_format']} choices",
    )


def _of_checkpoint(row: Row, chunks: int, texts: int, validation: int) -> tuple[str, list[str]]:
    label = _joined(row["corpus"], row["model"], row["recipe"])
    loss = row["validation_loss"]
    read = _joined(
        f"trained on {chunks:,} chunks"
        + (f" and {texts:,} texts of {row['augmentation']}" if texts else "")
        + (f", each seen {row['repeats']:,} times more" if row["repeats"] else "")
        if chunks
        else f"trained on {texts:,} texts of {row['augmentation']}"
        if texts
        else "",
        f"chosen on {validation:,} validation paraphrases" if validation else "",
        by="; ",
    )
    details = [
        _joined(
            f"{row['method']} training",
            f"seed {row['seed']}",
            f"learning rate {row['learning_rate']:g}",
            f"{row['epochs']} epochs",
            f"{row['steps']:,} steps",
            f"{row['packed_tokens']:,} tokens",
            f"validation loss {loss:.3f}" if loss is not None else "",
        ),
        *([read] if read else []),
    ]
    return label, details


def _of_generation(row: Row) -> str:
    cost = "no price" if row["cost_usd"] is None else f"{row['cost_usd']:.6g} USD"
    tokens = f"{row['input_tokens']} + {row['output_tokens']} tokens"
    return _joined(
        row["purpose"], row["model"], f"attempt {row['attempt']}", row["state"], tokens, cost
    )


def _parts(row: Row) -> dict[str, str]:
    """Inputs of an artefact of which a part was read."""
    keys = (key.partition("#") for key in json.loads(row["inputs"]))
    return {name: f"its part {part}" for name, _, part in keys if part}


def _of_artefact(row: Row) -> tuple[str, list[str]]:
    seeds = ", ".join(f"{name} {seed}" for name, seed in json.loads(row["seeds"]).items())
    libraries = ", ".join(f"{name} {v}" for name, v in json.loads(row["libraries"]).items())
    details = [
        *_specially(row),
        _joined(
            f"finished {_moment(row['finished_at'])}" if row["finished_at"] else "",
            f"run {row['run_id'] or 'unknown'}",
            f"seed of {seeds}" if seeds else "",
        ),
        *([libraries] if libraries else []),
    ]
    return f"version {row['logical_version']}, code {row['code_version']}", details


def _specially(row: Row) -> Iterator[str]:
    """What matters of some artefacts alone."""
    config, counts = json.loads(row["config"]), json.loads(row["counts"])
    if row["asset"] == "embeddings" and "model" in config:
        revision = f", revision {config['revision']}" if config.get("revision") else ""
        yield f"encoder {config['model']}{revision}, identity {counts.get('encoder', 'unknown')}"
    if row["asset"] == "faiss_index" and "index" in counts:
        yield f"index {counts['index']}, {counts.get('vectors', 0):,} vectors"
