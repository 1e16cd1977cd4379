"""Seconds of an answer survive that answers are taken over."""

from typing import Any

import pytest

from kinject_assets.core.manifest import Manifest
from kinject_assets.core.scoring.pace import SECONDS, seconds_per_answer


def before(**counts: Any) -> Manifest:
    """A version that took ten minutes."""
    return Manifest(
        asset="answers_rag",
        partition="c|m",
        logical_version="v",
        fingerprint="f",
        code_version="1",
        files={},
        inputs={},
        config={},
        started_at="2031-05-01T00:00:00+00:00",
        finished_at="2031-05-01T00:10:00+00:00",
        counts=counts,
    )


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(100, 0.6), (50, 1.2), (49, 0.25), (0, 0.25)],
)
def test_where_most_was_taken_over_the_seconds_are_those_of_before(
    asked: int, seconds: float
) -> None:
    assert seconds_per_answer(60.0, asked, 100, [before(**{SECONDS: 0.25})]) == seconds


def test_the_first_version_that_knows_them_tells() -> None:
    mostly_taken_over = before(questions=10, conditions=10, answers_taken_over=51)
    earlier = [mostly_taken_over, before(**{SECONDS: 0.5}), before(**{SECONDS: 0.25})]
    assert seconds_per_answer(1.0, 0, 100, earlier) == 0.5
    assert seconds_per_answer(1.0, 0, 100, earlier[:1]) is None
    assert seconds_per_answer(1.0, 0, 0, []) is None


def test_of_a_version_that_kept_none_counts_and_times_tell() -> None:
    old = before(questions=10, conditions=10, answers_taken_over=40)
    assert seconds_per_answer(1.0, 0, 100, [old]) == pytest.approx(600 / 60)
    assert seconds_per_answer(1.0, 0, 100, [before()]) is None
