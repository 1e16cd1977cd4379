"""The choice of K, the number of retrieved chunks.

The study took the K that was best on the test score. `cross_fit` chooses on four fifths of the
questions and scores the last fifth: no question is scored with a K that it helped to choose.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from kinject_assets.core.manifest import content_hash

KRule = Literal["cross_fitted", "test_best", "fixed"]
Unit = TypeVar("Unit", bound=Hashable)


def fold_of(key: str, folds: int) -> int:
    """Fold of an article (generated exams) or of a question (MMLU): a hash, never a draw.

    Questions on one article share a fold: they are alike.
    """
    return int(content_hash("fold", key), 16) % folds


@dataclass(frozen=True)
class Choice:
    """A cross-fitted choice.

    Attributes:
        by_fold: Fold -> K chosen on all the other folds.
        k: K chosen in most folds, the smaller of equals.
        stability: Share of the folds that chose `k`.
    """

    by_fold: dict[int, int]
    k: int
    stability: float


def best_k(correct: Mapping[int, int]) -> int:
    """K with the most correct answers on the same questions; the smaller of equals."""
    return min(correct, key=lambda k: (-correct[k], k))


def cross_fit(
    outcomes: Mapping[int, Mapping[Unit, bool]], fold: Mapping[Unit, int], folds: int
) -> Choice:
    """Chooses K for each fold on the questions of the others.

    Args:
        outcomes: K -> question -> answered correctly. Questions without an answer under every K
            are left out of the choice.
        fold: Question -> fold in 0..folds-1.
        folds: Number of folds; those without a question choose nothing.
    """
    shared = set.intersection(*(set(answers) for answers in outcomes.values()))
    per_fold = {k: [0] * folds for k in outcomes}
    for k, answers in outcomes.items():
        for unit in shared:
            per_fold[k][fold[unit]] += answers[unit]
    by_fold = {
        left_out: best_k({k: sum(c) - c[left_out] for k, c in per_fold.items()})
        for left_out in sorted(set(fold.values()))
    }
    counts = Counter(by_fold.values())
    k = best_k(counts)
    return Choice(by_fold, k, counts[k] / len(by_fold))


def cross_fitted_outcomes(
    outcomes: Mapping[int, Mapping[Unit, bool]], fold: Mapping[Unit, int], choice: Choice
) -> dict[Unit, bool]:
    """Each question's answer under the K chosen without it."""
    shared = set.intersection(*(set(answers) for answers in outcomes.values()))
    return {unit: outcomes[choice.by_fold[fold[unit]]][unit] for unit in shared}
