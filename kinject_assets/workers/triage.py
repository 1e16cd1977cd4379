"""Probes the questions of an exam with the base models."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from kinject_assets.core.progress import Report, silent
from kinject_assets.core.scoring.triage import TriageRequest, triage
from kinject_assets.workers.entry import main, read_request


def run(request: Mapping[str, Any], report: Report = silent) -> dict[str, Any]:
    """Sorts the questions of an exam.

    Args:
        request: Fields of `TriageRequest`.
        report: Told of progress.

    Returns:
        `strata`: stratum -> number of questions.

    Raises:
        KinjectError: See `triage`.
    """
    rows = triage(read_request(TriageRequest, request), report)
    return {"strata": dict(Counter(row.stratum for row in rows))}


def sources(request: Mapping[str, Any]) -> list[str]:
    """The models that a request loads."""
    return [str(model["base"]) for model in request["models"]]


if __name__ == "__main__":
    main(run, sources)
