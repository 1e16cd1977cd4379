"""Nearest chunks of questions, and how often the right one is among them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from kinject_assets.core.retrieval.index import BLOCK, ChunkIndex
from kinject_assets.core.schema import Question, Retrieved

if TYPE_CHECKING:
    import numpy as np

SCORE_DIGITS = 6
"""Scores that agree to this many decimals count as equal: vectors are float32."""

LEAST = -1.0
"""Least inner product of normalised vectors: the score of what an index has left out."""

Ranked = list[tuple[int, float]]
"""Rows of chunks and their scores, best first; rows with equal scores in the corpus's order."""


def in_order(found: Iterable[tuple[int, float]]) -> Ranked:
    """Rows by their scores, rounded to `SCORE_DIGITS`."""
    rounded = ((int(row), round(float(score), SCORE_DIGITS)) for row, score in found)
    return sorted(rounded, key=lambda pair: (-pair[1], pair[0]))


def best(scores: "np.ndarray", depth: int) -> Ranked:
    """The best rows of a whole corpus.

    Args:
        scores: One a row.
        depth: Rows to return, or all if there are fewer.
    """
    import numpy as np

    rounded = np.round(scores.astype(np.float64), SCORE_DIGITS)
    rows = np.arange(len(rounded))
    if depth < len(rounded):
        # All that share the last place stay in, so that the corpus's order decides among them.
        rows = np.flatnonzero(rounded >= np.partition(rounded, -depth)[-depth])
    return in_order(zip(rows.tolist(), rounded[rows].tolist(), strict=True))[:depth]


def nearest(index: ChunkIndex, queries: "np.ndarray", depth: int) -> list[Ranked]:
    """The rows of an index with the largest inner products, for each query.

    Args:
        index: Of any kind. Rows that an approximate one leaves out come last.
        queries: float32 of shape (queries, dimension), normalised.
        depth: Rows a query, or all if there are fewer.
    """
    size = len(index.chunk_ids)
    # Which of several equals an index returns is its own affair, so look one place further: only
    # where the last place is shared must more of the corpus be ranked.
    wanted = min(depth + 1, size)
    scores, rows = index.search(queries, wanted)
    found: list[Ranked] = []
    for query, some_scores, some_rows in zip(queries, scores, rows, strict=True):
        ranked, reach = _ranked(some_rows, some_scores), wanted
        while reach < size and _shares_last_place(ranked, depth):
            reach = min(4 * reach, size)
            more_scores, more_rows = index.search(query[None], reach)
            ranked = _ranked(more_rows[0], more_scores[0])
        found.append(filled(ranked[:depth], min(depth, size), LEAST))
    return found


def _ranked(rows: "np.ndarray", scores: "np.ndarray") -> Ranked:
    return in_order((row, score) for row, score in zip(rows, scores, strict=True) if row >= 0)


def _shares_last_place(ranked: Ranked, depth: int) -> bool:
    """Whether rows that were not looked at may score as the last that is wanted does."""
    return len(ranked) > depth and ranked[depth - 1][1] == ranked[-1][1]


def filled(ranked: Ranked, length: int, score: float) -> Ranked:
    """A ranking with the first rows of the corpus that it lacks behind it.

    Args:
        ranked: Rows and scores.
        length: How long it is to be; not more than the corpus.
        score: Of the rows that are put behind.
    """
    there = {row for row, _ in ranked}
    # Among so many first rows, enough are not there yet.
    left = (row for row in range(length) if row not in there)
    return [*ranked, *((row, score) for row in islice(left, max(0, length - len(ranked))))]


def as_rows(
    corpus: str,
    questions: Sequence[Question],
    chunk_ids: Sequence[str],
    retriever: str,
    rankings: Sequence[Ranked],
) -> list[Retrieved]:
    """What a retriever brought, ranked from 1.

    Args:
        corpus: Goes into every row.
        questions: One for each ranking.
        chunk_ids: Chunk of each row that is ranked.
        retriever: Its name.
        rankings: Best first.
    """
    return [
        Retrieved(
            corpus=corpus,
            question_id=question.question_id,
            retriever=retriever,
            rank=rank,
            chunk_id=chunk_ids[row],
            score=score,
            hit=chunk_ids[row] == question.chunk_id,
        )
        for question, ranked in zip(questions, rankings, strict=True)
        for rank, (row, score) in enumerate(ranked, start=1)
    ]


def recall_at(retrieved: Sequence[Retrieved], k: int) -> float:
    """Share of questions whose own chunk is among the first `k`, between 0 and 1.

    Give rows of questions that were written from a chunk: others can have no hit.

    Raises:
        ValueError: If there are no rows.
    """
    ranks = hit_ranks(retrieved).values()
    return _mean([float(rank is not None and rank <= k) for rank in ranks])


def recall_curve(retrieved: Sequence[Retrieved], depth: int) -> list[float]:
    """`recall_at` every k from 1 to `depth`.

    Raises:
        ValueError: If there are no rows.
    """
    ranks = hit_ranks(retrieved)
    if not ranks:
        raise ValueError("no retrieved rows to average")
    hits = Counter(ranks.values())
    return [found / len(ranks) for found in accumulate(hits[k] for k in range(1, depth + 1))]


def mean_reciprocal_rank(retrieved: Sequence[Retrieved]) -> float:
    """Mean of 1 / rank of each question's own chunk, 0 where it was not found.

    Raises:
        ValueError: If there are no rows.
    """
    return _mean([1.0 / rank if rank else 0.0 for rank in hit_ranks(retrieved).values()])


def hit_ranks(retrieved: Sequence[Retrieved]) -> dict[str, int | None]:
    """Question -> rank of its own chunk, `None` where it was not found.

    Args:
        retrieved: Rows of one retriever.
    """
    ranks: dict[str, int | None] = {}
    for row in retrieved:
        best_rank = ranks.setdefault(row.question_id, None)
        if row.hit and (best_rank is None or row.rank < best_rank):
            ranks[row.question_id] = row.rank
    return ranks


def hits_at(retrieved: Sequence[Retrieved], k: int) -> set[str]:
    """Questions whose own chunk is among the first `k`.

    Args:
        retrieved: Rows of one retriever.
        k: How many are looked at.
    """
    return {row.question_id for row in retrieved if row.hit and row.rank <= k}


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
    nearest_one = np.full(len(some), -np.inf, dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        products = some @ vectors[start : start + BLOCK].T
        own = np.arange(start, min(start + products.shape[1], len(some)))
        products[own, own - start] = -np.inf
        nearest_one = np.maximum(nearest_one, products.max(axis=1))
    return nearest_one.tolist()
