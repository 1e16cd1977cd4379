"""Text to vectors, through sentence-transformers.

Vectors are kept with the encoder's identity (a hash of its weights, and what else changes them), so
that chunks embedded before are never embedded again by the same encoder, and never mixed with those
of another. They are written as they come and read memory-mapped: neither needs memory for all.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, ModelError
from kinject_assets.core.manifest import content_hash, write_atomically
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.retrieval.encoders import prefixes_of
from kinject_assets.core.schema import Chunk, Question

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

VECTORS = "vectors.safetensors"
CHUNKS = "chunks.json"
ENCODER = "encoder.json"
CUT = "cut.json"

TEXTS_A_BLOCK = 4096
"""Texts between two reports, and between two blocks that survive a crash."""

DTYPES = ("float32", "float16", "bfloat16")
"""Numbers that an encoder computes with."""

FLOAT32 = 4
"""Bytes of a number of a vector."""


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """What made a set of vectors.

    Attributes:
        model: Hub id or folder, as the profile names it.
        weights: Hash of the weights as they compute: the same encoder in another folder has the
            same, in float16 another than in float32.
        dimension: Length of a vector.
        dtype: Numbers that it computed with; empty where it was not recorded.
        passage_prefix: Text that stood in front of each chunk.
        max_tokens: The profile's limit of the tokens that were read of a text, if it has one.
        made_by: Hash of what the weights alone do not say: the encoder's parts (its pooling among
            them), its tokenizer, and how many tokens it reads; empty where it was not recorded.
    """

    model: str
    revision: str | None
    weights: str
    dimension: int
    dtype: str = ""
    passage_prefix: str = ""
    max_tokens: int | None = None
    made_by: str = ""

    @property
    def version(self) -> str:
        """Hash of all that decides the vectors."""
        return content_hash(self.weights, self.passage_prefix, self.max_tokens, self.made_by)

    def same_as(self, other: "EncoderIdentity") -> bool:
        """Whether both make the same vectors, as far as both say what made them."""
        known = self.made_by and other.made_by
        return (self.dimension, self.version) == (
            other.dimension,
            (other if known else replace(other, made_by=self.made_by)).version,
        )

    def __str__(self) -> str:
        parts = [f"{self.dimension} numbers", f"weights {self.weights}"]
        parts += [self.dtype] if self.dtype else []
        parts += [f"passage_prefix {self.passage_prefix!r}"] if self.passage_prefix else []
        parts += [f"max_tokens {self.max_tokens}"] if self.max_tokens else []
        parts += [f"pooling, tokenizer and limit {self.made_by}"] if self.made_by else []
        return f"`{self.model}` ({', '.join(parts)})"


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors of chunks.

    Attributes:
        vectors: float32, one normalised row a chunk, in the order of `chunk_ids`; memory-mapped
            where they come from a file.
        cut: Ids of the chunks of which the encoder read only the beginning.
        path: The file of the vectors, `None` if there is none.
    """

    chunk_ids: list[str]
    vectors: "np.ndarray"
    encoder: EncoderIdentity
    cut: list[str] = field(default_factory=list)
    path: Path | None = None


def load_encoder(settings: config.Encoder, device: str = "auto") -> "SentenceTransformer":
    """Loads an encoder from a local folder or the Hugging Face hub, without code from either.

    Args:
        settings: Its `model` is a folder or a hub id (names of the lab already resolved).
        device: `auto`, `cpu`, `cuda`, `cuda:0`, ...

    Raises:
        ModelError: If it cannot be loaded.
    """
    import torch
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
    name = settings.dtype
    if name == "auto":
        # The range of float16 may be too small for weights that are stored as bfloat16.
        half = "bfloat16" if encoder.dtype == torch.bfloat16 else "float16"
        name = half if encoder.device.type == "cuda" else "float32"
    encoder = encoder.to(getattr(torch, name))
    if settings.max_tokens is not None:
        if _tokenizer(encoder) is None:
            raise ModelError(
                f"retrieval.encoder.max_tokens: `{settings.model}` reads texts of any length whole "
                "and cannot be told to read less. Leave the field out."
            )
        encoder.max_seq_length = min(settings.max_tokens, encoder.max_seq_length or math.inf)
    return encoder.eval()


def load_as_before(
    settings: config.Encoder, device: str, previous: Sequence[EncoderIdentity]
) -> "SentenceTransformer":
    """Loads an encoder; where `auto` is asked for, with the dtype of vectors that it made before.

    So that a corpus is not embedded anew, nor its index refused, on a machine of another kind.

    Args:
        settings: As for `load_encoder`.
        device: As for `load_encoder`.
        previous: What made the vectors that are there.

    Raises:
        ModelError: If it cannot be loaded.
    """
    found = load_encoder(settings, device)
    if settings.dtype != "auto":
        return found
    now = str(found.dtype).removeprefix("torch.")
    for dtype in dict.fromkeys(made.dtype for made in previous if made.dtype):
        other = found if dtype == now else load_encoder(as_made(settings, dtype), device)
        identity = identify(other, settings)
        if any(made.same_as(identity) for made in previous):
            return other
    return found


def as_made(settings: config.Encoder, dtype: str) -> config.Encoder:
    """Settings with the dtype of vectors that are there in place of `auto`; empty: not known."""
    if settings.dtype != "auto" or not dtype:
        return settings
    return settings.model_copy(update={"dtype": dtype})


def identify(encoder: "SentenceTransformer", settings: config.Encoder) -> EncoderIdentity:
    """The identity of a loaded encoder. Reads all its weights once.

    Args:
        encoder: From `load_encoder`.
        settings: What it was loaded with.
    """
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
        dtype=str(encoder.dtype).removeprefix("torch."),
        passage_prefix=prefixes_of(encoder, settings).passage,
        max_tokens=settings.max_tokens,
        made_by=_made_by(encoder),
    )


def _made_by(encoder: "SentenceTransformer") -> str:
    """Hash of an encoder's parts, tokenizer and limit; the same in whatever folder it lies."""
    from tokenizers import Tokenizer

    tokenizer: Any = getattr(encoder[0], "tokenizer", None)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if isinstance(backend, Tokenizer):
        # Of a copy without what the last texts left behind.
        plain = Tokenizer.from_str(backend.to_str())
        plain.no_truncation()
        plain.no_padding()
        cuts = plain.to_str()
    else:
        cuts = type(tokenizer).__name__
    parts: list[Any] = list(encoder)
    said = [(type(part).__name__, part.get_config_dict()) for part in parts]
    return content_hash(said, encoder.max_seq_length, cuts)


def _tokenizer(encoder: "SentenceTransformer") -> Any:
    """The tokenizer of an encoder that reads texts up to a limit; `None` for any other."""
    from transformers import PreTrainedTokenizerBase

    found = getattr(encoder[0], "tokenizer", None)
    return found if isinstance(found, PreTrainedTokenizerBase) else None


def text_lengths(
    encoder: "SentenceTransformer", texts: Sequence[str], prefix: str = ""
) -> "tuple[np.ndarray, np.ndarray]":
    """How long texts are to an encoder, which decides which of them share a batch well.

    Args:
        encoder: From `load_encoder`.
        texts: Without the prefix.
        prefix: What is put in front of each.

    Returns:
        Tokens that the encoder reads of each text, or characters if it has no limit; and whether it
        reads only the beginning.
    """
    import numpy as np

    tokenizer, limit = _tokenizer(encoder), encoder.max_seq_length
    if tokenizer is None or limit is None:
        return np.array([len(text) for text in texts], dtype=np.int64), np.zeros(len(texts), bool)
    limit = min(limit, 10**9)  # tokenizers without a limit name a number that no integer type holds
    lengths = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), TEXTS_A_BLOCK):
        block = [prefix + text for text in texts[start : start + TEXTS_A_BLOCK]]
        # Not verbose: the tokenizer would warn of the very texts that are looked for.
        ids = tokenizer(block, return_attention_mask=False, verbose=False)["input_ids"]
        lengths[start : start + len(block)] = [len(row) for row in ids]
    return np.minimum(lengths, limit), lengths > limit


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
    lengths, _ = text_lengths(encoder, texts, prefix)
    for rows, made in _batches(encoder, texts, lengths, batch_size, prefix, report):
        vectors[rows] = made
    return vectors


def _batches(
    encoder: "SentenceTransformer",
    texts: Sequence[str],
    lengths: "np.ndarray",
    batch_size: int,
    prefix: str,
    report: Report,
) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
    """Rows of texts and their vectors, block by block."""
    import numpy as np
    import torch

    # The longest first: memory runs out at once or never.
    order = np.argsort(-lengths, kind="stable")
    whole = max(1, TEXTS_A_BLOCK // batch_size) * batch_size
    for start in range(0, len(order), whole):
        rows = order[start : start + whole]
        made = [
            # A call a batch: within a call the library sorts by characters. `prompt` is given even
            # when empty, else the encoder's default prompt would be used.
            encoder.encode(
                [texts[row] for row in rows[at : at + batch_size]],
                prompt=prefix,
                batch_size=batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            for at in range(0, len(rows), batch_size)
        ]
        vectors = np.concatenate(made)
        if encoder.dtype != torch.float32:
            # Lengths in half precision are right to three digits only.
            vectors = vectors.astype(np.float32)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.maximum(norms, np.finfo(np.float32).tiny)
        yield rows, vectors
        report("embedding texts", start + len(rows), len(order))


def embed_chunks(
    encoder: "SentenceTransformer",
    chunks: Sequence[Chunk],
    settings: config.Encoder,
    out: Path,
    previous: Sequence[Embeddings] = (),
    report: Report = silent,
    work: Path | None = None,
) -> Embeddings:
    """Embeds chunks in their order, reusing vectors that the same encoder made before.

    Args:
        encoder: From `load_encoder`.
        chunks: Each becomes a row.
        settings: What the encoder was loaded with.
        out: Folder that gets `vectors.safetensors`, `chunks.json`, `encoder.json` and `cut.json`.
        previous: Vectors of earlier versions of the corpus, or of corpora that share its chunks;
            those of another encoder are ignored.
        report: Told how many are new, and then of progress.
        work: Folder where rows that are made are found again after a crash.
    """
    import numpy as np

    identity = identify(encoder, settings)
    ids = [chunk.chunk_id for chunk in chunks]
    file = VectorFile(work or out, ids, identity)
    try:
        for embeddings in previous:
            if embeddings.encoder.same_as(identity):
                _take_over(file, embeddings)
        new = np.flatnonzero(~file.there)
        report(f"{len(ids) - len(new)} chunks already embedded, {len(new)} to embed", 0, len(new))
        texts = [chunks[row].text for row in new.tolist()]
        lengths, cut = text_lengths(encoder, texts, identity.passage_prefix)
        file.cut[new] = cut
        for rows, vectors in _batches(
            encoder, texts, lengths, settings.batch_size, identity.passage_prefix, report
        ):
            file.write(new[rows], vectors)
            file.keep()
    finally:
        file.close()
    file.finish(out)
    return load_embeddings(out)


def _take_over(file: "VectorFile", embeddings: Embeddings) -> None:
    """Copies the rows of chunks that were embedded before."""
    import numpy as np

    held = rows_of(file.chunk_ids, embeddings.chunk_ids)
    missing = np.flatnonzero((held >= 0) & ~file.there)
    file.cut[missing] = rows_of(file.chunk_ids, embeddings.cut)[missing] >= 0
    for start in range(0, len(missing), TEXTS_A_BLOCK):
        rows = missing[start : start + TEXTS_A_BLOCK]
        file.write(rows, embeddings.vectors[held[rows]])


def rows_of(wanted: Sequence[str], held: Sequence[str]) -> "np.ndarray":
    """Place of each of some ids among others, -1 where it is not there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(  # pyright: ignore[reportAttributeAccessIssue] (made when imported)
        pa.array(wanted, pa.string()), value_set=pa.array(held, pa.string())
    )
    return found.fill_null(-1).to_numpy().astype("int64")


class VectorFile:
    """The file of a corpus's vectors while its rows come, in any order.

    It has its full size from the start, so that rows lie where they stay. In a folder that survives
    a crash, the next one of the same chunks and encoder finds the rows that were kept.

    Attributes:
        there: Whether each row is written.
        cut: Whether the encoder reads only the beginning of each row's text.
    """

    def __init__(self, folder: Path, chunk_ids: Sequence[str], encoder: EncoderIdentity) -> None:
        import numpy as np

        self.chunk_ids, self.encoder = list(chunk_ids), encoder
        shape = (len(self.chunk_ids), encoder.dimension)
        header = _header(shape)
        self._start, self._row_bytes = len(header), FLOAT32 * encoder.dimension
        key = content_hash(self.chunk_ids, encoder.version, encoder.dimension)
        self._folder = folder / f"rows-{key}"
        self._path, self._kept = self._folder / VECTORS, self._folder / "kept.json"
        for other in folder.glob("rows-*"):
            if other != self._folder:
                shutil.rmtree(other)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.there = np.zeros(len(self.chunk_ids), dtype=bool)
        self.cut = np.zeros(len(self.chunk_ids), dtype=bool)
        size = self._start + len(self.chunk_ids) * self._row_bytes
        self._find_kept(size)
        self._file = self._path.open("r+b" if self._path.exists() else "w+b")
        self._file.write(header)
        self._file.truncate(size)

    def _find_kept(self, size: int) -> None:
        """Rows of a run that did not end; if they are not what is expected, all are made again."""
        try:
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            if self._path.stat().st_size == size:
                self.cut = _from_hex(kept["cut"], len(self.chunk_ids))
                self.there = _from_hex(kept["there"], len(self.chunk_ids))
        except (OSError, ValueError, KeyError, TypeError):
            self.there[:] = False
        if not self.there.any():
            self._path.unlink(missing_ok=True)

    def write(self, rows: "np.ndarray", vectors: "np.ndarray") -> None:
        """Writes rows.

        Args:
            rows: Their places.
            vectors: float32 of shape (rows, dimension).
        """
        import numpy as np

        # Neighbours are written at once. Not through a memory map: when the disk is full, that
        # would kill the process.
        order = np.argsort(rows, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
            if len(run):
                self._file.seek(self._start + int(rows[run[0]]) * self._row_bytes)
                self._file.write(np.ascontiguousarray(vectors[run], dtype=np.float32).tobytes())
        self.there[rows] = True

    def keep(self) -> None:
        """Makes the rows that are there survive a crash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        kept = {"there": _to_hex(self.there), "cut": _to_hex(self.cut)}
        write_atomically(self._kept, json.dumps(kept))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def finish(self, out: Path) -> None:
        """Moves the file, all of whose rows are there, to where it is wanted."""
        if not self.there.all():
            raise ValueError("rows are missing")
        self.close()
        out.mkdir(parents=True, exist_ok=True)
        shutil.move(self._path, out / VECTORS)
        shutil.rmtree(self._folder)
        write_identity(out, self.chunk_ids, self.encoder)
        cut = [self.chunk_ids[row] for row in self.cut.nonzero()[0].tolist()]
        (out / CUT).write_text(json.dumps(cut) + "\n", encoding="utf-8")


def _to_hex(flags: "np.ndarray") -> str:
    import numpy as np

    return np.packbits(flags).tobytes().hex()


def _from_hex(text: str, count: int) -> "np.ndarray":
    import numpy as np

    found = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)).astype(bool)
    if len(found) < count:
        raise ValueError("too few rows")
    return found[:count]


def _header(shape: tuple[int, int]) -> bytes:
    """The beginning of a safetensors file with the one tensor `vectors` of float32."""
    end = shape[0] * shape[1] * FLOAT32
    said = {"vectors": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def query_text(question: Question, settings: config.Retrieval) -> str:
    """What the retriever is asked for a question, without the encoder's prefix."""
    if settings.query == "question":
        return question.stem
    return "\n".join([question.stem, *question.options])


def load_embeddings(folder: Path) -> Embeddings:
    """Reads what `embed_chunks` wrote; the vectors stay on the disk until they are used.

    Raises:
        BrokenArtefact: If a file is missing, unreadable or does not fit the others.
    """
    chunk_ids, identity = read_identity(folder)
    try:
        cut = json.loads((folder / CUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        cut = []  # vectors made before it was looked at
    except ValueError as error:
        raise broken(folder / CUT, f"not readable ({error})") from error
    return Embeddings(
        chunk_ids=chunk_ids,
        vectors=open_vectors(folder / VECTORS, (len(chunk_ids), identity.dimension)),
        encoder=identity,
        cut=cut,
        path=folder / VECTORS,
    )


def open_vectors(path: Path, shape: tuple[int, int]) -> "np.ndarray":
    """Vectors of a file, float32, memory-mapped.

    Raises:
        BrokenArtefact: If the file is missing, unreadable or holds other vectors than expected.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            part = file.get_slice("vectors")
            found, kind = tuple(part.get_shape()), part.get_dtype()
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
    except (OSError, SafetensorError, KeyError) as error:
        raise broken(path, f"not readable ({error})") from error
    if found != shape or kind != "F32":
        raise broken(
            path, f"holds {found} numbers ({kind}) for {shape[0]} chunks of {shape[1]} (F32)"
        )
    if 0 in shape:
        return np.zeros(shape, dtype=np.float32)
    return np.memmap(path, dtype=np.float32, mode="r", offset=start, shape=shape)


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
        identity = EncoderIdentity(**record)
        if identity.dtype not in {"", *DTYPES}:
            raise ValueError(f"dtype {identity.dtype!r}")
        return [str(chunk_id) for chunk_id in chunk_ids], identity
    except (OSError, ValueError, TypeError) as error:
        raise broken(folder, f"{CHUNKS} or {ENCODER} is not readable ({error})") from error


def broken(path: Path, problem: str) -> BrokenArtefact:
    """The error for files that do not hold what they should."""
    return BrokenArtefact(
        f"{path}: {problem}. Materialise `embeddings` and `faiss_index` of this corpus again; "
        "nothing else is lost."
    )
