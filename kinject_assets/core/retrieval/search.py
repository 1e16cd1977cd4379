"""Nearest chunks of questions, and how often the right one is among them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kinject_assets import config
from kinject_assets.core.schema import Question, Retrieved

if TYPE_CHECKING:
    import faiss
    import numpy as np

SCORE_DIGITS = 6
"""Scores that agree to this many decimals count as equal: vectors are float32."""


def retrieve(
    corpus: str,
    questions: Sequence[Question],
    chunk_ids: Sequence[str],
    index: "faiss.Index",
    query_vectors: "np.ndarray",
    settings: config.Retrieval,
    retriever: str,
) -> list[Retrieved]:
    """The nearest chunks of each question, ranked from 1 to `settings.depth`.

    Equal scores rank in the order of the corpus. A corpus with fewer chunks than the depth gives
    as many as it has.

    Args:
        corpus: Goes into every row.
        questions: One query each.
        chunk_ids: Chunk of each row of `index`.
        index: Flat, inner product.
        query_vectors: float32 of shape (questions, dimension), normalised.
        settings: Gives the depth.
        retriever: Name under which the rows are known.
    """
    if not questions:
        return []
    depth = min(settings.depth, len(chunk_ids))
    rows: list[Retrieved] = []
    for question, found in zip(questions, _nearest(index, query_vectors, depth), strict=True):
        rows += [
            Retrieved(
                corpus=corpus,
                question_id=question.question_id,
                retriever=retriever,
                rank=rank,
                chunk_id=chunk_ids[row],
                score=score,
                hit=chunk_ids[row] == question.chunk_id,
            )
            for rank, (row, score) in enumerate(found, start=1)
        ]
    return rows


def _nearest(
    index: "faiss.Index", queries: "np.ndarray", depth: int
) -> list[list[tuple[int, float]]]:
    """Rows and rounded scores of the best `depth`, best first, equals in row order."""
    # Which of several equals FAISS returns is its own affair, so look one place further: only
    # where the last place is shared must the whole corpus be ranked.
    wanted = min(depth + 1, index.ntotal)
    scores, rows = index.search(queries, wanted)  # pyright: ignore[reportCallIssue]
    found: list[list[tuple[int, float]]] = []
    for query, some_scores, some_rows in zip(queries, scores, rows, strict=True):
        ranked = _rank(some_rows, some_scores)
        if wanted > depth and ranked[depth - 1][1] == ranked[depth][1]:
            all_scores, all_rows = index.search(  # pyright: ignore[reportCallIssue]
                query[None], index.ntotal
            )
            ranked = _rank(all_rows[0], all_scores[0])
        found.append(ranked[:depth])
    return found


def _rank(rows: "np.ndarray", scores: "np.ndarray") -> list[tuple[int, float]]:
    pairs = [
        (int(row), round(float(score), SCORE_DIGITS))
        for row, score in zip(rows, scores, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def recall_at(retrieved: Sequence[Retrieved], k: int) -> float:
    """Share of questions whose own chunk is among the first `k`, between 0 and 1.

    Give rows of questions that were written from a chunk: others can have no hit.

    Raises:
        ValueError: If there are no rows.
    """
    return _mean([1.0 if rank and rank <= k else 0.0 for rank in _hit_ranks(retrieved)])


def mean_reciprocal_rank(retrieved: Sequence[Retrieved]) -> float:
    """Mean of 1 / rank of each question's own chunk, 0 where it was not found.

    Raises:
        ValueError: If there are no rows.
    """
    return _mean([1.0 / rank if rank else 0.0 for rank in _hit_ranks(retrieved)])


def _hit_ranks(retrieved: Sequence[Retrieved]) -> list[int | None]:
    ranks: dict[str, int | None] = {}
    for row in retrieved:
        best = ranks.setdefault(row.question_id, None)
        if row.hit and (best is None or row.rank < best):
            ranks[row.question_id] = row.rank
    return list(ranks.values())


def _mean(values: list[float]) -> float:
    if not values:
        raise ValueError("no retrieved rows to average")
    return sum(values) / len(values)


def nearest_likeness(vectors: "np.ndarray", sample: int = 1000) -> list[float]:
    """Inner product of each vector with its nearest other one, for the first `sample` vectors.

    Near 1 a corpus holds copies, which crowd out other chunks from what is retrieved.
    """
    import numpy as np

    some = vectors[:sample]
    if len(vectors) < 2:
        return []
    products = some @ vectors.T
    products[np.arange(len(some)), np.arange(len(some))] = -np.inf
    return products.max(axis=1).tolist()
