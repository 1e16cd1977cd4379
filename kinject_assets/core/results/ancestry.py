"""Edges of the table `lineage`, linear in the number of rows that they connect."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from kinject_assets.config import RecipeSpec
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.schema import (
    Answer,
    Checkpoint,
    Chunk,
    Condition,
    Paraphrase,
    Question,
    Retrieved,
)
from kinject_assets.core.store import Cell

Edge = tuple[str, str, str, str]
"""Kind and id of the child, kind and id of the parent."""

CHANGED = """
    SELECT r.artefact, r.input FROM (
        SELECT artefact, inputs, unnest(json_keys(inputs)) AS input FROM artefacts
    ) r LEFT JOIN artefacts s ON s.artefact = split_part(r.input, '#', 1)
    WHERE json_extract_string(r.inputs, concat('$."', r.input, '"')) IS DISTINCT FROM
        CASE WHEN contains(r.input, '#') THEN json_extract_string(
            s.counts, concat('$.prefixes."', split_part(r.input, '#', 2), '"'))
        ELSE s.logical_version END
"""
"""Query: artefacts of a database with each input that has changed since they read it."""

ANSWERED_IN = """concat('answers_', c.method, '/', c.corpus, '/', c.model,
    CASE WHEN c.recipe = '' THEN '' ELSE concat('.', c.recipe) END)"""
"""Expression: the artefact that holds the answers under a condition `c`."""


def article_key(article_id: str, revision_id: str) -> str:
    """Id of one article revision in the table `lineage`."""
    return f"{article_id}@{revision_id}"


def of_chunks(chunks: Iterable[Chunk]) -> Iterator[Edge]:
    """Chunk to article revision."""
    for c in chunks:
        yield "chunk", c.chunk_id, "article", article_key(c.article_id, c.revision_id)


def of_texts(kind: str, rows: Iterable[Question | Paraphrase], id_field: str) -> Iterator[Edge]:
    """Question or paraphrase to its chunk and to the request that wrote it."""
    for row in rows:
        child = getattr(row, id_field)
        if row.chunk_id:
            yield kind, child, "chunk", row.chunk_id
        if row.generation_id:
            yield kind, child, "generation", row.generation_id


def of_checkpoints(
    checkpoints: Iterable[tuple[Checkpoint, str]],
    chunks: Mapping[str, Sequence[Chunk]],
    paraphrases: Mapping[str, Sequence[Paraphrase]],
    changed: Mapping[str, AbstractSet[str]],
) -> Iterator[Edge]:
    """Checkpoint to the chunks and paraphrases of its corpus that it was trained or chosen on.

    Texts that have changed since they were read are not those that it saw: it gets no link to them.

    Args:
        checkpoints: Each with the augmentation whose texts it reads.
        chunks: Corpus -> its chunks.
        paraphrases: Corpus -> texts of every augmentation and purpose.
        changed: Artefact -> assets that have changed since it read them.
    """
    for checkpoint, augmentation in checkpoints:
        spec = RecipeSpec.parse(checkpoint.recipe)
        wanted = 0 if spec.control_of else spec.n_paraphrases
        name = f"checkpoint/{checkpoint.corpus}/{checkpoint.model}.{checkpoint.recipe}"
        others = changed.get(name, frozenset())
        for chunk in chunks.get(checkpoint.corpus, ()) if "chunks" not in others else ():
            yield "checkpoint", checkpoint.checkpoint_id, "chunk", chunk.chunk_id
        for p in paraphrases.get(checkpoint.corpus, ()):
            if p.purpose == "validation":
                read = "validation_paraphrases" not in others
            else:
                mine = p.augmentation == augmentation and p.ordinal < wanted
                read = mine and "paraphrases" not in others
            if read:
                yield "checkpoint", checkpoint.checkpoint_id, "paraphrase", p.paraphrase_id


def of_answers(
    answers: Iterable[Answer],
    conditions: Mapping[str, Condition],
    retrieved: Iterable[Retrieved],
    changed: Mapping[str, AbstractSet[str]],
) -> Iterator[Edge]:
    """Answer to its question, its checkpoint, and the chunks that stood in its prompt.

    Where others have been retrieved since it was asked, it gets no link to chunks.

    Args:
        answers: All of them.
        conditions: By id.
        retrieved: Chunks by question, corpus and retriever.
        changed: Artefact -> assets that have changed since it read them.
    """
    ranked: dict[tuple[str, str, str], list[Retrieved]] = defaultdict(list)
    for row in retrieved:
        ranked[row.corpus, row.retriever, row.question_id].append(row)
    for answer in answers:
        yield "answer", answer.answer_id, "question", answer.question_id
        if answer.checkpoint_id:
            yield "answer", answer.answer_id, "checkpoint", answer.checkpoint_id
        c = conditions[answer.condition_id]
        recipe = f".{c.recipe}" if c.recipe else ""
        if "retrieved" in changed.get(f"answers_{c.method}/{c.corpus}/{c.model}{recipe}", ()):
            continue
        for row in ranked.get((c.corpus, c.retriever, answer.question_id), ()) if c.k else ():
            if row.rank <= c.k:
                yield "answer", answer.answer_id, "chunk", row.chunk_id


def changed_inputs(published: Iterable[tuple[Cell, Manifest]]) -> dict[str, set[str]]:
    """Artefact -> assets that have changed since it read them, of the whole lake.

    What `CHANGED` says of a database, before there is one.
    """
    manifests = {str(cell): manifest for cell, manifest in published}

    def version(key: str) -> str | None:
        name, _, part = key.partition("#")
        if name not in manifests:
            return None
        if part:
            return manifests[name].counts.get("prefixes", {}).get(part)
        return manifests[name].logical_version

    found = {
        artefact: {k.split("/", 1)[0] for k, v in manifest.inputs.items() if version(k) != v}
        for artefact, manifest in manifests.items()
    }
    return {artefact: assets for artefact, assets in found.items() if assets}


def of_artefacts(published: Iterable[tuple[Cell, Manifest]]) -> Iterator[Edge]:
    """Artefact to the artefacts that it was made from; where it read a part, to the whole."""
    for cell, manifest in published:
        for source in sorted({key.partition("#")[0] for key in manifest.inputs}):
            yield "artefact", str(cell), "artefact", source


def of_makers(kind: str, ids: Iterable[str], cell: Cell) -> Iterator[Edge]:
    """Rows to the artefact that holds them."""
    for row_id in ids:
        yield kind, row_id, "artefact", str(cell)
