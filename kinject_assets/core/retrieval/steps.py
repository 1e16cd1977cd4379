"""The two steps that run an encoder, as requests that travel as JSON: embed chunks, find chunks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.retrieval.encoder import (
    Embeddings,
    embed_chunks,
    identify,
    load_as_before,
    load_embeddings,
    rows_of,
)
from kinject_assets.core.retrieval.retrievers import Search
from kinject_assets.core.retrieval.search import as_rows
from kinject_assets.core.schema import Chunk, Question, Retrieved
from kinject_assets.core.store import read_rows, write_rows

RETRIEVED = "retrieved.parquet"


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """Chunks to embed.

    Attributes:
        chunks: Parquet file of `Chunk` rows.
        encoder: Fields of `config.Encoder`, `model` being a folder or a hub id.
        out: Folder that gets `vectors.safetensors`, `chunks.json`, `encoder.json` and `cut.json`.
        previous: Folders with earlier versions of them, to reuse, or with those of corpora that
            share chunks.
        work: Folder for what is wanted after a crash; empty for none.
        part: Number and count of the processes that share the work: this one embeds its share of
            the chunks that `previous` lacks, and `out` gets those alone.
        parts: Folders with what such processes made.
        device: `auto`, `cpu`, `cuda`, ...
    """

    chunks: str
    encoder: dict[str, Any]
    out: str
    previous: tuple[str, ...] = ()
    work: str = ""
    part: tuple[int, int] = (0, 1)
    parts: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class RetrieveRequest:
    """Questions to find chunks for.

    Attributes:
        questions: Parquet file of `Question` rows; all that are not retired are asked, whatever
            their split.
        chunks: Parquet file of `Chunk` rows.
        index: Folder with `index.faiss`, `chunks.json` and `encoder.json`.
        retrieval: Fields of `config.Retrieval`, its `model`s folders or hub ids.
        retrievers: Names of those that rank, in the order of the rows.
        out: Folder that gets `retrieved.parquet`.
    """

    corpus: str
    questions: str
    chunks: str
    index: str
    retrieval: dict[str, Any]
    retrievers: tuple[str, ...]
    out: str
    device: str = "auto"


def located(profile: config.Profile) -> dict[str, Any]:
    """Fields of the profile's retrieval, encoder and cross-encoder as folders or hub ids."""
    found = profile.retrieval.model_dump()
    for part in (found["encoder"], found["rerank"]):
        if part:
            part["model"] = config.local_or_hub(profile, part["model"])
    return found


def embed(request: EmbedRequest, report: Report = silent) -> dict[str, Any]:
    """Embeds the chunks of a corpus.

    Returns:
        `chunks`, `reused` and `cut` (of them: taken over, and longer than the encoder reads),
        `dimension`, `dtype`, `passage_prefix` and `encoder` (hash of its weights, and of what else
        decides the vectors).

    Raises:
        ModelError: If the encoder cannot be loaded.
        BrokenArtefact: If the chunks cannot be read.
    """
    settings = config.Encoder(**request.encoder)
    chunks = sorted(read_rows(Path(request.chunks), Chunk), key=lambda chunk: chunk.ordinal)
    previous = [e for folder in request.previous for e in _reusable(folder, report)]
    encoder = load_as_before(settings, request.device, [p.encoder for p in previous])
    number, count = request.part
    if count > 1:
        identity = identify(encoder, settings)
        held = {c for p in previous if p.encoder.same_as(identity) for c in p.chunk_ids}
        new = [chunk for chunk in chunks if chunk.chunk_id not in held]
        chunks = new[len(new) * number // count : len(new) * (number + 1) // count]
    parts = [e for folder in request.parts for e in _reusable(folder, report)]
    work = Path(request.work) if request.work else None
    made = embed_chunks(
        encoder, chunks, settings, Path(request.out), [*previous, *parts], report, work
    )
    known = [c for p in previous if p.encoder.same_as(made.encoder) for c in p.chunk_ids]
    return {
        "chunks": len(chunks),
        "reused": int((rows_of(made.chunk_ids, known) >= 0).sum()),
        "cut": int((rows_of(made.chunk_ids, made.cut) >= 0).sum()),
        "dimension": made.encoder.dimension,
        "dtype": made.encoder.dtype,
        "passage_prefix": made.encoder.passage_prefix,
        "encoder": made.encoder.version,
    }


def _reusable(folder: str, report: Report) -> list[Embeddings]:
    """Earlier vectors; none if damaged: they must not stand in the way of making them again."""
    try:
        return [load_embeddings(Path(folder))]
    except BrokenArtefact as error:
        report(f"embedding again what only {folder} holds: {error}")
        return []


def find(request: RetrieveRequest, report: Report = silent) -> dict[str, Any]:
    """Finds chunks for each question, by each retriever.

    Returns:
        `questions` and `rows`.

    Raises:
        ModelError: If an encoder cannot be loaded.
        BrokenArtefact: If a file is damaged or the index is another encoder's.
        MissingArtefact: If the corpus has no chunks, or not the one that the oracle knows.
    """
    questions = [q for q in read_rows(Path(request.questions), Question) if not q.retired]
    chunks = sorted(read_rows(Path(request.chunks), Chunk), key=lambda chunk: chunk.ordinal)
    if not chunks:
        raise MissingArtefact(
            f"{request.corpus} has no chunks to search. Look at the exclusions of `articles` and "
            "at `corpora` in the profile, then materialise `articles` and what follows again."
        )
    search = Search(
        corpus=request.corpus,
        questions=questions,
        chunks=chunks,
        settings=config.Retrieval(**request.retrieval),
        index=Path(request.index),
        device=request.device,
        report=report,
    )
    ids = [chunk.chunk_id for chunk in chunks]
    rows = [
        row
        for name in request.retrievers
        for row in as_rows(request.corpus, questions, ids, name, search.rank(name))
    ]
    folder = Path(request.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / RETRIEVED, rows, Retrieved)
    return {"questions": len(questions), "rows": len(rows)}
