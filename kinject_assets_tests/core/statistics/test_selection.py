import hashlib
import random

from kinject_assets.core.statistics.selection import (
    best_k,
    cross_fit,
    cross_fitted_outcomes,
    fold_of,
)


def test_ties_go_to_the_smaller_k() -> None:
    assert best_k({5: 3, 2: 3, 1: 1}) == 2


def test_folds_are_fixed_and_all_used() -> None:
    folds = [fold_of(f"article{i}", 5) for i in range(200)]
    assert folds == [fold_of(f"article{i}", 5) for i in range(200)]
    assert set(folds) == {0, 1, 2, 3, 4}
    expected = hashlib.sha256(b'["fold","article0"]').hexdigest()[:32]
    assert fold_of("article0", 5) == int(expected, 16) % 5


def test_a_fold_never_chooses_its_own_k() -> None:
    # K = 2 wins only through fold 0; without it the others prefer K = 1.
    units = [(fold, i) for fold in range(5) for i in range(10)]
    fold = {u: u[0] for u in units}
    one = {u: u[0] != 0 and u[1] < 6 for u in units}
    two = {u: u[1] < 5 or u[0] == 0 for u in units}
    assert sum(two.values()) > sum(one.values())
    choice = cross_fit({1: one, 2: two}, fold, 5)
    assert choice.by_fold[0] == 1
    assert set(choice.by_fold.values()) == {1, 2}
    fitted = cross_fitted_outcomes({1: one, 2: two}, fold, choice)
    assert all(fitted[u] == one[u] for u in units if u[0] == 0)
    assert choice.k == 2
    assert choice.stability == 0.8


def test_cross_fitting_is_not_optimistic_where_k_does_not_matter() -> None:
    draw = random.Random(1)
    best, fitted = [], []
    for _ in range(60):
        units = list(range(60))
        fold = {u: u % 5 for u in units}
        outcomes = {k: {u: draw.random() < 0.5 for u in units} for k in range(1, 6)}
        choice = cross_fit(outcomes, fold, 5)
        fitted.append(sum(cross_fitted_outcomes(outcomes, fold, choice).values()) / 60)
        best.append(max(sum(o.values()) for o in outcomes.values()) / 60)
    assert abs(sum(fitted) / 60 - 0.5) < 0.03
    assert sum(best) / 60 > 0.54


def test_questions_without_every_k_are_left_out() -> None:
    outcomes = {1: {"a": True, "b": False}, 2: {"b": True}}
    choice = cross_fit(outcomes, {"a": 0, "b": 1}, 2)
    assert choice.by_fold == {0: 2, 1: 1}
    assert cross_fitted_outcomes(outcomes, {"a": 0, "b": 1}, choice) == {"b": False}


def test_folds_without_questions_do_not_vote() -> None:
    # Two articles in five folds: each fold chooses by the other, and nothing else is counted.
    fold = {"a1": 0, "a2": 0, "b1": 3, "b2": 3}
    one = {"a1": True, "a2": True, "b1": False, "b2": False}
    two = {unit: not correct for unit, correct in one.items()}
    choice = cross_fit({1: one, 2: two}, fold, 5)
    assert choice.by_fold == {0: 2, 3: 1}
    assert (choice.k, choice.stability) == (1, 0.5)
