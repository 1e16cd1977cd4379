"""Answers an exam with one model under several conditions."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from kinject_assets.core.progress import Report, silent
from kinject_assets.core.scoring.answers import ScoreRequest, score
from kinject_assets.workers.entry import main, read_request


def run(request: Mapping[str, Any], report: Report = silent) -> dict[str, Any]:
    """Answers an exam.

    Args:
        request: Fields of `ScoreRequest`.
        report: Told of progress.

    Returns:
        `conditions` and `answers` (counts), `accuracy`: condition id -> share of right answers,
        `unshared`: why shared beginnings were read each time (empty if they were not), `counts`:
        tokens read and so on, of this call alone, and `reused`: answers taken over.

    Raises:
        KinjectError: See `score`.
    """
    done = score(read_request(ScoreRequest, request), report)
    asked = Counter(answer.condition_id for answer in done.answers)
    right = Counter(answer.condition_id for answer in done.answers if answer.correct)
    return {
        "conditions": len(done.conditions),
        "answers": len(done.answers),
        "accuracy": {key: right[key] / count for key, count in asked.items()},
        "unshared": done.unshared,
        "counts": done.counts,
        "reused": done.reused,
    }


def sources(request: Mapping[str, Any]) -> list[str]:
    """The models that a request loads."""
    return [str(request["base"]), str(request.get("checkpoint", ""))]


if __name__ == "__main__":
    main(run, sources)
