"""Killed at random moments in every stage, a study ends as if nothing had happened."""

import os
from collections import Counter

import pytest

from kinject_assets_tests.e2e.crashes import CONCURRENCY, STAGES, Matrix, crash_matrix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

KILLS = int(os.environ.get("KINJECT_KILLS", "6"))


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return crash_matrix(tmp_path_factory.mktemp("crashes"), kills=KILLS)


def test_every_stage_was_killed_as_often_as_asked(matrix: Matrix) -> None:
    assert Counter(kill.stage for kill in matrix.kills) == dict.fromkeys(STAGES, KILLS)
    met = sum(
        any(cell.split("/")[0] in STAGES[kill.stage] for cell in kill.cells)
        for kill in matrix.kills
    )
    assert met >= 0.8 * len(matrix.kills), "most kills fall within a cell of their stage"


def test_the_tables_are_those_of_an_undisturbed_run(matrix: Matrix) -> None:
    assert {table: n for table, n in matrix.differences.items() if n} == {}
    assert matrix.largest_loglik_difference < 1e-4


def test_no_received_answer_was_asked_again(matrix: Matrix) -> None:
    assert matrix.asked_again == 0


def test_at_most_the_requests_under_way_were_lost(matrix: Matrix) -> None:
    assert max(kill.in_flight for kill in matrix.kills) <= CONCURRENCY
    assert sum(kill.in_flight for kill in matrix.kills) > 0, "no kill met a request under way"


def test_nothing_is_left_behind(matrix: Matrix) -> None:
    assert [kill.strays for kill in matrix.kills if kill.strays] == []
    assert (matrix.unfinished_runs, matrix.held_slots) == (0, 0)
    assert matrix.audit == 0
