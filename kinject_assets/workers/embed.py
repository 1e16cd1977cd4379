"""Runs an encoder: embeds chunks, or finds chunks for questions."""

from collections.abc import Mapping
from typing import Any

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.retrieval.steps import EmbedRequest, RetrieveRequest, embed, find
from kinject_assets.workers.entry import main, read_request


def run(request: Mapping[str, Any], report: Report = silent) -> dict[str, Any]:
    """Runs one step.

    Args:
        request: `task` is `embed` or `retrieve`; the other fields are those of `EmbedRequest` or
            `RetrieveRequest`.
        report: Told of progress.

    Returns:
        What `embed` or `find` returns.

    Raises:
        KinjectError: See `embed` and `find`.
    """
    fields = dict(request)
    task = fields.pop("task", None)
    if task == "embed":
        return embed(read_request(EmbedRequest, fields), report)
    if task == "retrieve":
        return find(read_request(RetrieveRequest, fields), report)
    raise KinjectError(f"the worker `embed` knows the tasks embed and retrieve, not `{task}`")


def sources(request: Mapping[str, Any]) -> list[str]:
    """The encoders that a request loads."""
    retrieval = request.get("retrieval", {})
    encoder = request.get("encoder") or retrieval.get("encoder", {})
    reranker = retrieval.get("rerank") or {}
    return [str(encoder.get("model", "hub")), str(reranker.get("model", ""))]


if __name__ == "__main__":
    main(run, sources)
