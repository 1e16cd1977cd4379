"""Makes a checkpoint."""

from collections.abc import Mapping
from typing import Any

from kinject_assets.core.progress import Report, silent
from kinject_assets.core.scoring.lm import release
from kinject_assets.core.training.trainer import TrainRequest, train
from kinject_assets.workers.entry import main, read_request, to_json


def run(request: Mapping[str, Any], report: Report = silent) -> dict[str, Any]:
    """Makes a checkpoint; a model that this process kept for scoring makes room for it.

    `python -m kinject_assets.workers.torchrun N train` does it in several processes.

    Args:
        request: Fields of `TrainRequest`.
        report: Told of progress.

    Returns:
        `checkpoint`: the row, as a mapping. All else is in the request's `out`.

    Raises:
        KinjectError: See `train`.
    """
    release()
    result = train(read_request(TrainRequest, request), report)
    return {"checkpoint": to_json(result.checkpoint)}


def sources(request: Mapping[str, Any]) -> list[str]:
    """The base model that a request loads."""
    return [str(request["base"])]


if __name__ == "__main__":
    main(run, sources)
