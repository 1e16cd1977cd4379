"""Seconds of an answer, kept where a new version of answers takes over most of those before."""

from collections.abc import Iterable
from datetime import datetime

from kinject_assets.core.manifest import Manifest

SECONDS = "seconds_per_answer"
"""Name among an artefact's counts."""

MEASURED = 0.5
"""Part of an artefact's answers that must have been asked for anew for its seconds to count: where
it took most over, loading the model and looking up what was there would pass for answering."""


def seconds_per_answer(
    seconds: float, asked: int, answers: int, earlier: Iterable[Manifest]
) -> float | None:
    """Seconds of an answer, of this making or else of the latest one that measured them.

    Args:
        seconds: That this making took.
        asked: Answers that the model was asked for in it.
        answers: All that it has.
        earlier: Manifests of the versions that answers were taken over from, the best first.

    Returns:
        `None` where none of them asked for enough answers.
    """
    if asked and asked >= MEASURED * answers:
        return seconds / asked
    return next((found for before in earlier if (found := _kept(before)) is not None), None)


def _kept(manifest: Manifest) -> float | None:
    counts = manifest.counts
    if SECONDS in counts:
        return float(counts[SECONDS])
    # Of a version of kinject that did not keep it: its counts and times still tell.
    answers = counts.get("questions", 0) * counts.get("conditions", 0)
    if not answers or not manifest.started_at or not manifest.finished_at:
        return None
    began, ended = map(datetime.fromisoformat, (manifest.started_at, manifest.finished_at))
    asked = answers - counts.get("answers_taken_over", 0)
    return seconds_per_answer((ended - began).total_seconds(), asked, answers, ())
