"""Several rankings as one: reciprocal rank fusion."""

from collections import defaultdict
from collections.abc import Sequence
from math import fsum

from kinject_assets.core.retrieval.search import Ranked

RANK_CONSTANT = 60
"""How much first ranks count beyond later ones; the authors' value."""

FUSED_DEPTH = 100
"""Ranks of each ranking that are fused, or as many as are wanted where that is more."""


def fuse(rankings: Sequence[Sequence[int]], depth: int) -> Ranked:
    """Ranks by the sum of 1 / (60 + rank) over all rankings that hold a row.

    Source: G. V. Cormack, C. L. A. Clarke and S. Büttcher, Reciprocal rank fusion outperforms
    Condorcet and individual rank learning methods, SIGIR 2009.

    Args:
        rankings: Rows, best first, each once in a ranking.
        depth: Rows to return; fewer where the rankings hold fewer.
    """
    parts: dict[int, list[float]] = defaultdict(list)
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            parts[row].append(1 / (RANK_CONSTANT + rank))
    # An exact sum is the same in whatever order rankings come, so that equals stay equal.
    scores = {row: fsum(found) for row, found in parts.items()}
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:depth]
