"""Text to vectors, through sentence-transformers.

Vectors are kept with the encoder's identity (a hash of its weights), so that chunks embedded before
are never embedded again by the same encoder, and never mixed with those of another.
"""

import contextlib
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, ModelError
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Chunk, Question

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

VECTORS = "vectors.safetensors"
CHUNKS = "chunks.json"
ENCODER = "encoder.json"

TEXTS_A_BLOCK = 4096
"""Texts between two reports, and between two blocks that survive a crash."""

_BLOCK = "block-"


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """What made a set of vectors.

    Attributes:
        model: Hub id or folder, as the profile names it.
        weights: Hash of the weights: the same encoder in another folder has the same.
        dimension: Length of a vector.
    """

    model: str
    revision: str | None
    weights: str
    dimension: int

    def same_as(self, other: "EncoderIdentity") -> bool:
        """Whether both make the same vectors."""
        return (self.weights, self.dimension) == (other.weights, other.dimension)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors of chunks.

    Attributes:
        vectors: float32, one normalised row a chunk, in the order of `chunk_ids`.
    """

    chunk_ids: list[str]
    vectors: "np.ndarray"
    encoder: EncoderIdentity


def load_encoder(settings: config.Encoder, device: str = "auto") -> "SentenceTransformer":
    """Loads an encoder from a local folder or the Hugging Face hub, without code from either.

    Args:
        settings: Its `model` is a folder or a hub id (names of the lab already resolved).
        device: `auto`, `cpu`, `cuda`, `cuda:0`, ...

    Raises:
        ModelError: If it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        encoder = SentenceTransformer(
            settings.model,
            revision=settings.revision,
            device=None if device == "auto" else device,
            trust_remote_code=False,
            local_files_only=Path(settings.model).is_dir(),
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:
        raise ModelError(
            f"retrieval.encoder.model: `{settings.model}` cannot be loaded as a "
            f"sentence-transformers model ({error}). Give a folder with modules.json and "
            "safetensors weights, or a hub id that this machine can reach or has in its HF_HOME."
        ) from error
    return encoder.eval()


def identify(encoder: "SentenceTransformer", settings: config.Encoder) -> EncoderIdentity:
    """The identity of a loaded encoder. Reads all its weights once."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return EncoderIdentity(
        model=settings.model,
        revision=settings.revision,
        weights=digest.hexdigest()[:32],
        dimension=encoder.get_embedding_dimension() or 0,
    )


def encode(
    encoder: "SentenceTransformer",
    texts: Sequence[str],
    batch_size: int,
    prefix: str = "",
    report: Report = silent,
) -> "np.ndarray":
    """Vectors of texts: float32 of shape (texts, dimension), each of length 1.

    Texts of like length share a batch; rows come back in the order of `texts`.

    Args:
        encoder: From `load_encoder`.
        texts: May be empty.
        batch_size: Texts a forward pass.
        prefix: Put in front of each text, e.g. an encoder's instruction for queries.
        report: Told after every few thousand texts.
    """
    import numpy as np

    vectors = np.zeros((len(texts), encoder.get_embedding_dimension() or 0), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))
    for start in range(0, len(order), TEXTS_A_BLOCK):
        rows = order[start : start + TEXTS_A_BLOCK]
        vectors[rows] = encoder.encode(
            [prefix + texts[row] for row in rows],
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        report("embedding texts", start + len(rows), len(texts))
    return vectors


def embed_chunks(
    encoder: "SentenceTransformer",
    chunks: Sequence[Chunk],
    settings: config.Encoder,
    previous: Sequence[Embeddings] = (),
    report: Report = silent,
    work: Path | None = None,
) -> Embeddings:
    """Embeds chunks in their order, reusing vectors that the same encoder made before.

    Args:
        encoder: From `load_encoder`.
        chunks: Each becomes a row.
        settings: What the encoder was loaded with.
        previous: Vectors of earlier versions of the corpus, or of corpora that share its chunks;
            those of another encoder are ignored.
        report: Told how many are new, and then of progress.
        work: Folder where vectors are kept block by block, for the next try after a crash.
    """
    import numpy as np

    identity = identify(encoder, settings)
    kept = _kept_blocks(work)
    known: dict[str, np.ndarray] = {}
    for embeddings in (*previous, *kept):
        if embeddings.encoder.same_as(identity):
            known |= dict(zip(embeddings.chunk_ids, embeddings.vectors, strict=True))
    # Texts of like length share a batch, also over the borders of blocks.
    new = sorted(
        (chunk for chunk in chunks if chunk.chunk_id not in known),
        key=lambda chunk: (-len(chunk.text), chunk.chunk_id),
    )
    report(f"{len(chunks) - len(new)} chunks already embedded, {len(new)} to embed", 0, len(new))
    for start in range(0, len(new), TEXTS_A_BLOCK):
        block = new[start : start + TEXTS_A_BLOCK]
        ids = [chunk.chunk_id for chunk in block]
        vectors = encode(encoder, [chunk.text for chunk in block], settings.batch_size)
        known |= dict(zip(ids, vectors, strict=True))
        if work is not None:
            made = Embeddings(chunk_ids=ids, vectors=vectors, encoder=identity)
            _keep_block(work, made)
        report("embedding texts", start + len(block), len(new))
    vectors = np.zeros((len(chunks), identity.dimension), dtype=np.float32)
    for row, chunk in enumerate(chunks):
        vectors[row] = known[chunk.chunk_id]
    return Embeddings(
        chunk_ids=[chunk.chunk_id for chunk in chunks], vectors=vectors, encoder=identity
    )


def _keep_block(work: Path, block: Embeddings) -> None:
    partial = work / f".{_BLOCK}{uuid.uuid4().hex}"
    save_embeddings(partial, block)
    partial.rename(work / f"{_BLOCK}{uuid.uuid4().hex}")


def _kept_blocks(work: Path | None) -> list[Embeddings]:
    """Whole blocks of a run that did not end; a damaged one is made again."""
    found: list[Embeddings] = []
    for folder in sorted(work.glob(f"{_BLOCK}*")) if work else ():
        with contextlib.suppress(BrokenArtefact):
            found.append(load_embeddings(folder))
    return found


def query_text(question: Question, settings: config.Retrieval) -> str:
    """What the retriever is asked for a question, without the encoder's prefix."""
    if settings.query == "question":
        return question.stem
    return "\n".join([question.stem, *question.options])


def save_embeddings(folder: Path, embeddings: Embeddings) -> None:
    """Writes `vectors.safetensors`, `chunks.json` and `encoder.json`."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": embeddings.vectors}, folder / VECTORS)
    write_identity(folder, embeddings.chunk_ids, embeddings.encoder)


def load_embeddings(folder: Path) -> Embeddings:
    """Reads what `save_embeddings` wrote.

    Raises:
        BrokenArtefact: If a file is missing, unreadable or does not fit the others.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    chunk_ids, identity = read_identity(folder)
    try:
        vectors = load_file(folder / VECTORS)["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        raise broken(folder / VECTORS, f"not readable ({error})") from error
    if vectors.shape != (len(chunk_ids), identity.dimension):
        raise broken(
            folder / VECTORS,
            f"holds {vectors.shape} numbers for {len(chunk_ids)} chunks of {identity.dimension}",
        )
    return Embeddings(chunk_ids=chunk_ids, vectors=vectors, encoder=identity)


def write_identity(folder: Path, chunk_ids: Sequence[str], encoder: EncoderIdentity) -> None:
    """Writes `chunks.json` and `encoder.json`."""
    (folder / CHUNKS).write_text(json.dumps(list(chunk_ids)) + "\n", encoding="utf-8")
    (folder / ENCODER).write_text(
        json.dumps(asdict(encoder), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def read_identity(folder: Path) -> tuple[list[str], EncoderIdentity]:
    """Reads `chunks.json` and `encoder.json`.

    Raises:
        BrokenArtefact: If one is missing or not what we wrote.
    """
    try:
        chunk_ids = json.loads((folder / CHUNKS).read_text(encoding="utf-8"))
        record = json.loads((folder / ENCODER).read_text(encoding="utf-8"))
        if not isinstance(chunk_ids, list) or not isinstance(record, Mapping):
            raise ValueError("other content than expected")
        return [str(chunk_id) for chunk_id in chunk_ids], EncoderIdentity(**record)
    except (OSError, ValueError, TypeError) as error:
        raise broken(folder, f"{CHUNKS} or {ENCODER} is not readable ({error})") from error


def broken(path: Path, problem: str) -> BrokenArtefact:
    """The error for files that do not hold what they should."""
    return BrokenArtefact(
        f"{path}: {problem}. Materialise `embeddings` and `faiss_index` of this corpus again; "
        "nothing else is lost."
    )
