"""The index of a corpus: FAISS, flat, inner product. On normalised vectors that is the cosine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.retrieval.encoder import (
    Embeddings,
    EncoderIdentity,
    broken,
    read_identity,
    write_identity,
)

if TYPE_CHECKING:
    import faiss

INDEX = "index.faiss"


@dataclass(frozen=True, kw_only=True)
class ChunkIndex:
    """An index with the chunks of its rows and the encoder of its vectors."""

    chunk_ids: list[str]
    index: "faiss.Index"
    encoder: EncoderIdentity


def build_index(embeddings: Embeddings) -> ChunkIndex:
    """Builds the index of a corpus.

    Raises:
        MissingArtefact: If the corpus has no chunks.
    """
    import faiss

    if not embeddings.chunk_ids:
        raise MissingArtefact(
            "the corpus has no chunks to search. Look at the exclusions of `articles` and at "
            "`corpora` in the profile, then materialise `articles` and what follows again."
        )
    index = faiss.IndexFlatIP(embeddings.encoder.dimension)
    index.add(embeddings.vectors)  # pyright: ignore[reportCallIssue] (FAISS replaces its signature)
    return ChunkIndex(chunk_ids=embeddings.chunk_ids, index=index, encoder=embeddings.encoder)


def save_index(folder: Path, index: ChunkIndex) -> None:
    """Writes `index.faiss`, `chunks.json` and `encoder.json`."""
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index.index, str(folder / INDEX))
    write_identity(folder, index.chunk_ids, index.encoder)


def load_index(folder: Path, encoder: EncoderIdentity | None = None) -> ChunkIndex:
    """Reads what `save_index` wrote.

    Args:
        folder: Holds the three files.
        encoder: The encoder that will embed the queries; another one than the index's is refused.

    Raises:
        BrokenArtefact: If the file is damaged, is another kind of index, or does not fit its chunks
            or the encoder.
    """
    import faiss

    path = folder / INDEX
    chunk_ids, identity = read_identity(folder)
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise broken(path, f"not a readable FAISS index ({reason})") from error
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise broken(path, "not a flat inner-product index")
    if (index.ntotal, index.d) != (len(chunk_ids), identity.dimension):
        raise broken(
            path,
            f"holds {index.ntotal} vectors of {index.d} numbers, expected {len(chunk_ids)} of "
            f"{identity.dimension}",
        )
    if encoder is not None and not identity.same_as(encoder):
        raise BrokenArtefact(
            f"{path}: was built with the encoder `{identity.model}` ({identity.dimension} numbers, "
            f"weights {identity.weights}), but queries would be embedded with `{encoder.model}` "
            f"({encoder.dimension} numbers, weights {encoder.weights}). Materialise `embeddings` "
            "and `faiss_index` of this corpus again, or set retrieval.encoder back."
        )
    return ChunkIndex(chunk_ids=chunk_ids, index=index, encoder=identity)
