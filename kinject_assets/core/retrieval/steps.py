"""The two steps that run an encoder, as requests that travel as JSON: embed chunks, find chunks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.retrieval.encoder import (
    Embeddings,
    embed_chunks,
    encode,
    identify,
    load_embeddings,
    load_encoder,
    query_text,
    save_embeddings,
)
from kinject_assets.core.retrieval.index import load_index
from kinject_assets.core.retrieval.search import retrieve
from kinject_assets.core.schema import Chunk, Question, Retrieved
from kinject_assets.core.store import read_rows, write_rows

RETRIEVED = "retrieved.parquet"


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """Chunks to embed.

    Attributes:
        chunks: Parquet file of `Chunk` rows.
        encoder: Fields of `config.Encoder`, `model` being a folder or a hub id.
        out: Folder that gets `vectors.safetensors`, `chunks.json` and `encoder.json`.
        previous: Folders with earlier versions of them, to reuse, or with those of corpora that
            share chunks.
        work: Folder for what is wanted after a crash; empty for none.
        device: `auto`, `cpu`, `cuda`, ...
    """

    chunks: str
    encoder: dict[str, Any]
    out: str
    previous: tuple[str, ...] = ()
    work: str = ""
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class RetrieveRequest:
    """Questions to find chunks for.

    Attributes:
        questions: Parquet file of `Question` rows; all that are not retired are asked, whatever
            their split.
        index: Folder with `index.faiss`, `chunks.json` and `encoder.json`.
        retrieval: Fields of `config.Retrieval`, its encoder's `model` a folder or a hub id.
        retriever: Name under which the rows are known.
        out: Folder that gets `retrieved.parquet`.
    """

    corpus: str
    questions: str
    index: str
    retrieval: dict[str, Any]
    retriever: str
    out: str
    device: str = "auto"


def embed(request: EmbedRequest, report: Report = silent) -> dict[str, Any]:
    """Embeds the chunks of a corpus.

    Returns:
        `chunks`, `reused` (of them), `dimension` and `encoder` (hash of its weights).

    Raises:
        ModelError: If the encoder cannot be loaded.
        BrokenArtefact: If the chunks cannot be read.
    """
    settings = config.Encoder(**request.encoder)
    chunks = sorted(read_rows(Path(request.chunks), Chunk), key=lambda chunk: chunk.ordinal)
    previous = [e for folder in request.previous for e in _reusable(folder, report)]
    encoder = load_encoder(settings, request.device)
    work = Path(request.work) if request.work else None
    embeddings = embed_chunks(encoder, chunks, settings, previous, report, work)
    save_embeddings(Path(request.out), embeddings)
    same = [earlier for earlier in previous if earlier.encoder.same_as(embeddings.encoder)]
    known = {chunk_id for earlier in same for chunk_id in earlier.chunk_ids}
    return {
        "chunks": len(chunks),
        "reused": sum(chunk.chunk_id in known for chunk in chunks),
        "dimension": embeddings.encoder.dimension,
        "encoder": embeddings.encoder.weights,
    }


def _reusable(folder: str, report: Report) -> list[Embeddings]:
    """Earlier vectors; none if damaged: they must not stand in the way of making them again."""
    try:
        return [load_embeddings(Path(folder))]
    except BrokenArtefact as error:
        report(f"embedding again what only {folder} holds: {error}")
        return []


def find(request: RetrieveRequest, report: Report = silent) -> dict[str, Any]:
    """Finds the nearest chunks of each question.

    Returns:
        `questions` and `rows`.

    Raises:
        ModelError: If the encoder cannot be loaded.
        BrokenArtefact: If a file is damaged or the index is another encoder's.
    """
    settings = config.Retrieval(**request.retrieval)
    questions = [q for q in read_rows(Path(request.questions), Question) if not q.retired]
    encoder = load_encoder(settings.encoder, request.device)
    index = load_index(Path(request.index), identify(encoder, settings.encoder))
    vectors = encode(
        encoder,
        [query_text(question, settings) for question in questions],
        settings.encoder.batch_size,
        settings.encoder.query_prefix,
        report,
    )
    rows = retrieve(
        request.corpus,
        questions,
        index.chunk_ids,
        index.index,
        vectors,
        settings,
        request.retriever,
    )
    folder = Path(request.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / RETRIEVED, rows, Retrieved)
    return {"questions": len(questions), "rows": len(rows)}
