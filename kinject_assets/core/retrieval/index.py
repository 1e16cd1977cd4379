"""The index of a corpus: FAISS, inner product. On normalised vectors that is the cosine.

Flat, HNSW or IVF-PQ, as the rule or the profile says. All give exact inner products: IVF-PQ finds
candidates, which are ranked by their vectors. Built from memory-mapped vectors block by block, and
memory-mapped when loaded; nothing is given to FAISS that has other bytes than were written.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.manifest import file_sha256
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.retrieval.encoder import (
    VECTORS,
    Embeddings,
    EncoderIdentity,
    broken,
    open_vectors,
    read_identity,
    write_identity,
)
from kinject_assets.core.retrieval.rule import PARAMETERS, TRAINING, IndexChoice, choose_index

if TYPE_CHECKING:
    import faiss
    import numpy as np

INDEX = "index.faiss"
ABOUT = "index.json"

BLOCK = 16_384
"""Vectors read at once while an index is built."""

SEED = 20231203
"""Draws the vectors that IVF-PQ is trained on, and starts its k-means."""

PQ_TRAINING = 64
"""Vectors for each of its 256 centroids that a part of IVF-PQ's code is trained on."""

REFINED_BYTES = 64 * 2**20
"""Memory for the exact vectors of candidates, of as many queries at once as fit, at least one."""


@dataclass(frozen=True, kw_only=True)
class ChunkIndex:
    """An index with the chunks of its rows and the encoder of its vectors.

    Attributes:
        choice: What kind it is, and why.
        vectors: For IVF-PQ the exact vectors, float32 of shape (chunks, dimension), memory-mapped.
        path: File of `vectors`, if there is one.
    """

    chunk_ids: list[str]
    index: "faiss.Index"
    encoder: EncoderIdentity
    choice: IndexChoice
    vectors: "np.ndarray | None" = None
    path: Path | None = None

    def search(self, queries: "np.ndarray", depth: int) -> "tuple[np.ndarray, np.ndarray]":
        """The rows with the largest inner products, best first.

        Args:
            queries: float32 of shape (queries, dimension), normalised.
            depth: Rows a query; at least 1.

        Returns:
            Scores, float32, and rows, int64, both of shape (queries, depth); rows are -1 where
            there are fewer.

        Raises:
            BrokenArtefact: If queries have another dimension than the index.
        """
        import faiss

        if queries.shape[1] != self.index.d:
            raise BrokenArtefact(
                f"the index has vectors of {self.index.d} numbers, of the encoder {self.encoder}, "
                f"and queries have {queries.shape[1]}. Materialise `embeddings` and `faiss_index` "
                "of this corpus again, or set retrieval.encoder back."
            )
        index: Any = self.index
        settings = self.choice.parameters
        if self.choice.kind == "flat":
            return index.search(queries, depth)
        if self.choice.kind == "hnsw":
            reach = max(settings["ef_search"], 2 * depth)
            looking = faiss.SearchParametersHNSW(efSearch=reach)  # pyright: ignore[reportAttributeAccessIssue]
            return index.search(queries, depth, params=looking)
        wanted = min(len(self.chunk_ids), depth * settings["refine"])
        probing = faiss.SearchParametersIVF(nprobe=settings["nprobe"])  # pyright: ignore[reportCallIssue]
        _, candidates = index.search(queries, wanted, params=probing)
        return self._refined(queries, candidates, depth)

    def _refined(
        self, queries: "np.ndarray", candidates: "np.ndarray", depth: int
    ) -> "tuple[np.ndarray, np.ndarray]":
        """The best candidates by their exact vectors."""
        import numpy as np

        assert self.vectors is not None, "IVF-PQ has them"
        scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), depth), -1, dtype=np.int64)
        # Places without a candidate are the last ones.
        candidates = candidates[:, : int((candidates >= 0).sum(axis=1).max(initial=1))]
        kept = min(depth, candidates.shape[1])
        at_once = max(1, REFINED_BYTES // (candidates.shape[1] * self.vectors[:1].nbytes))
        for start in range(0, len(queries), at_once):
            part = slice(start, start + at_once)
            found = candidates[part]
            products = np.matmul(self.vectors[found], queries[part, :, None])[..., 0]
            products[found < 0] = -np.inf
            order = np.argsort(-products, axis=1, kind="stable")[:, :kept]
            scores[part, :kept] = np.take_along_axis(products, order, axis=1)
            rows[part, :kept] = np.take_along_axis(found, order, axis=1)
        return scores, rows


def build_index(
    embeddings: Embeddings, settings: config.Retrieval | None = None, report: Report = silent
) -> ChunkIndex:
    """Builds the index of a corpus.

    Args:
        embeddings: Vectors of its chunks.
        settings: Which index; default `auto`.
        report: Told of progress.

    Raises:
        MissingArtefact: If the corpus has no chunks.
        ProfileError: If a parameter does not fit the vectors.
    """
    import faiss
    import numpy as np

    if not embeddings.chunk_ids:
        raise MissingArtefact(
            "the corpus has no chunks to search. Look at the exclusions of `articles` and at "
            "`corpora` in the profile, then materialise `articles` and what follows again."
        )
    settings = settings or config.Retrieval()
    vectors, (count, dimension) = embeddings.vectors, embeddings.vectors.shape
    choice = choose_index(
        count,
        dimension,
        settings.index_memory_gb,
        settings.index,
        settings.index_parameters,
    )
    index: Any = _empty(choice, dimension)
    if choice.kind == "ivfpq":
        report(f"training {choice.kind}", 0, count)
        wanted = max(TRAINING * choice.parameters["nlist"], PQ_TRAINING * 256)
        some = np.random.default_rng(SEED).choice(count, min(count, wanted), replace=False)
        index.train(np.ascontiguousarray(vectors[np.sort(some)]))
    threads = settings.index_parameters.build_threads
    before = faiss.omp_get_max_threads()
    try:
        if choice.kind == "hnsw" and threads:
            faiss.omp_set_num_threads(threads)
        for start in range(0, count, BLOCK):
            index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
            report(f"adding vectors to {choice.kind}", min(start + BLOCK, count), count)
    finally:
        faiss.omp_set_num_threads(before)
    refining = choice.kind == "ivfpq"
    return ChunkIndex(
        chunk_ids=embeddings.chunk_ids,
        index=index,
        encoder=embeddings.encoder,
        choice=choice,
        vectors=vectors if refining else None,
        path=embeddings.path if refining else None,
    )


def _empty(choice: IndexChoice, dimension: int) -> "faiss.Index":
    import faiss

    settings = choice.parameters
    if choice.kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if choice.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dimension, settings["hnsw_m"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = settings["ef_construction"]
        return graph
    lists = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(dimension),
        dimension,
        settings["nlist"],
        settings["pq_m"],
        8,
        faiss.METRIC_INNER_PRODUCT,
    )
    lists.cp.seed = lists.pq.cp.seed = SEED
    lists.pq.cp.max_points_per_centroid = PQ_TRAINING
    return lists


def save_index(folder: Path, index: ChunkIndex) -> None:
    """Writes `index.faiss`, `index.json`, `chunks.json` and `encoder.json`.

    Beside IVF-PQ, `vectors.safetensors` of `embeddings` is linked: it needs them, and they take no
    room twice.
    """
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index.index, str(folder / INDEX))
    if index.path is not None and not (folder / VECTORS).exists():
        try:
            os.link(index.path, folder / VECTORS)
        except OSError:  # another disk, or one without links
            shutil.copyfile(index.path, folder / VECTORS)
    about = {
        **asdict(index.choice),
        "vectors": len(index.chunk_ids),
        "dimension": index.encoder.dimension,
        "faiss": faiss.__version__,
        "sha256": file_sha256(folder / INDEX),
    }
    if index.path is not None:
        about["vectors_sha256"] = file_sha256(folder / VECTORS)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    write_identity(folder, index.chunk_ids, index.encoder)


def load_index(folder: Path, encoder: EncoderIdentity | None = None) -> ChunkIndex:
    """Reads what `save_index` wrote. Numbers stay on the disk until a search needs them.

    Args:
        folder: Holds the files.
        encoder: The encoder that will embed the queries; another one than the index's is refused.

    Raises:
        BrokenArtefact: If a file is missing or damaged, or does not fit its chunks or the encoder.
    """
    import faiss

    path = folder / INDEX
    chunk_ids, identity = read_identity(folder)
    shape = (len(chunk_ids), identity.dimension)
    if encoder is not None and not identity.same_as(encoder):
        raise BrokenArtefact(
            f"{path}: was built with the encoder {identity}, but queries would be embedded with "
            f"{encoder}. Materialise `embeddings` and `faiss_index` of this corpus again, or set "
            "retrieval.encoder back."
        )
    choice = _verified(folder)
    try:
        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise broken(path, f"not a readable FAISS index ({reason})") from error
    kinds = {"flat": faiss.IndexFlat, "hnsw": faiss.IndexHNSWFlat, "ivfpq": faiss.IndexIVFPQ}
    if not isinstance(index, kinds[choice.kind]) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise broken(path, f"not a {choice.kind} index of inner products")
    if (index.ntotal, index.d) != shape:
        raise broken(
            path,
            f"holds {index.ntotal} vectors of {index.d} numbers, expected {shape[0]} of {shape[1]}",
        )
    refining = choice.kind == "ivfpq"
    return ChunkIndex(
        chunk_ids=chunk_ids,
        index=index,
        encoder=identity,
        choice=choice,
        vectors=open_vectors(folder / VECTORS, shape) if refining else None,
        path=folder / VECTORS if refining else None,
    )


def _verified(folder: Path) -> IndexChoice:
    """What `index.json` says, once index and vectors are known to have the bytes that it names.

    FAISS trusts what it reads: damaged bytes could crash the process.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        names = ("kind", "parameters", "bytes", "reason")
        choice, sha256 = IndexChoice(**{name: about[name] for name in names}), about["sha256"]
        if choice.kind not in PARAMETERS:
            raise ValueError(f"kind {choice.kind}")
        if not isinstance(choice.parameters, dict):
            raise ValueError(f"parameters {choice.parameters!r}")
        for name in PARAMETERS[choice.kind]:
            value = choice.parameters[name]
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} {value!r}, expected a whole number from 1")
        written = {INDEX: sha256}
        if choice.kind == "ivfpq":
            written[VECTORS] = about["vectors_sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise broken(folder / ABOUT, f"not readable ({error})") from error
    for file, expected in written.items():
        path = folder / file
        try:
            if file_sha256(path) != expected:
                raise broken(path, "does not hold the bytes that were written")
        except OSError as error:
            raise broken(path, f"not readable ({error})") from error
    return choice
