"""What one answer rests on, down to article revisions."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.results.tables import fetch

SHOWN = 3
"""Parents of one kind that are shown; a checkpoint has thousands of chunks."""


@dataclass(frozen=True)
class Node:
    """Something that an answer rests on.

    Attributes:
        kind: `answer`, `question`, `checkpoint`, `chunk`, `paraphrase`, `generation`, `article`.
        id: Its id in the database.
        label: What it is, for people.
        parents: What it was made from, those first that the question was written from.
        left_out: Parents that are not shown: kind -> how many.
    """

    kind: str
    id: str
    label: str
    parents: tuple["Node", ...] = ()
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The tree as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        lines = [f"{self.kind} {self.id}" + (f"  {self.label}" if self.label else "")]
        rest = [[f"… and {n} more of kind {kind}"] for kind, n in self.left_out.items()]
        blocks = [*(parent._lines() for parent in self.parents), *rest]
        for index, block in enumerate(blocks):
            last = index == len(blocks) - 1
            head, tail = ("└─ ", "   ") if last else ("├─ ", "│  ")
            lines += [head + block[0], *(tail + line for line in block[1:])]
        return lines


_LABELS: dict[str, str] = {
    "answer": """
        SELECT concat_ws(', ', c.corpus, c.model, c.method, nullif(c.recipe, ''),
            c.shots || '-shot', 'K=' || c.k, if(a.correct, 'correct', 'wrong'))
        FROM answers a JOIN conditions c USING (condition_id) WHERE a.answer_id = ?""",
    "question": "SELECT stem FROM questions WHERE question_id = ?",
    "checkpoint": "SELECT concat_ws(', ', corpus, model, recipe) FROM checkpoints "
    "WHERE checkpoint_id = ?",
    "chunk": "SELECT concat_ws(', ', title, nullif(section, '')) FROM chunks WHERE chunk_id = ?",
    "paraphrase": "SELECT concat(augmentation, ' ', purpose, ' ', ordinal) FROM paraphrases "
    "WHERE paraphrase_id = ?",
    "generation": "SELECT concat_ws(', ', purpose, model, state) FROM generations "
    "WHERE generation_id = ?",
    "article": "SELECT concat_ws(', ', title, url, licence) FROM articles "
    "WHERE concat(article_id, '@', revision_id) = ?",
}

_FOCUS = """
    SELECT c.parent_id FROM lineage a JOIN lineage c
        ON c.child_kind = 'question' AND c.child_id = a.parent_id AND c.parent_kind = 'chunk'
    WHERE a.child_kind = 'answer' AND a.child_id = ? AND a.parent_kind = 'question'"""

_PARENTS = """
    SELECT parent_kind, parent_id FROM lineage l WHERE child_kind = ? AND child_id = ?
    ORDER BY parent_kind, NOT (parent_id = ? OR EXISTS (
        SELECT 1 FROM lineage p WHERE p.child_kind = l.parent_kind AND p.child_id = l.parent_id
            AND p.parent_kind = 'chunk' AND p.parent_id = ?)), parent_id"""


def trace(database: Path, answer_id: str, shown: int = SHOWN) -> Node:
    """The chain of an answer: question, checkpoint, retrieved chunks, article revisions.

    Args:
        database: `results.duckdb`.
        answer_id: Id of a row of `answers`.
        shown: Parents of one kind shown at each step of a checkpoint; retrieved chunks are all
            shown.

    Raises:
        MissingArtefact: If there is no database or no such answer.
    """
    if not fetch(database, "SELECT 1 FROM answers WHERE answer_id = ?", [answer_id]).rows:
        raise MissingArtefact(
            f"no answer `{answer_id}` in {database}; list some with "
            '`kinject sql "SELECT answer_id FROM answers LIMIT 5"`'
        )
    focus_rows = fetch(database, _FOCUS, [answer_id]).rows
    focus = focus_rows[0][0] if focus_rows else ""

    @cache
    def node(kind: str, node_id: str) -> Node:
        labels = fetch(database, _LABELS[kind], [node_id]).rows
        found = fetch(database, _PARENTS, [kind, node_id, focus, focus]).rows
        shown_parents, left_out = _shorten(found, shown if kind == "checkpoint" else None)
        parents = tuple(node(*parent) for parent in shown_parents)
        return Node(kind, node_id, labels[0][0] if labels else "", parents, left_out)

    return node("answer", answer_id)


def _shorten(
    parents: Sequence[tuple[str, str]], limit: int | None
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The first parents of each kind, and how many more there are."""
    kept: list[tuple[str, str]] = []
    left_out: dict[str, int] = {}
    for kind, group in groupby(parents, key=lambda parent: parent[0]):
        members = list(group)
        kept += members[:limit]
        if limit is not None and len(members) > limit:
            left_out[kind] = len(members) - limit
    return kept, left_out
