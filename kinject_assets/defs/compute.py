"""Four heavy steps (embed, train, score, triage), three ways to run them.

In this process, in one of their own, or on the nodes of a Ray cluster.

A worker is a function from a JSON request to a JSON result, `kinject_assets.workers.NAME.run`. In a
process of its own it is started through Dagster Pipes: its log is live, cancelling the run ends it,
and its memory is freed. Training may take several processes (`training.processes`).
"""

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError

from kinject_assets.config import Training
from kinject_assets.core.errors import DiskFull, KinjectError
from kinject_assets.core.history import POSTGRES_URL
from kinject_assets.core.lake.travel import bring
from kinject_assets.core.plan import METHODS
from kinject_assets.core.progress import KEPT_SECONDS, PROGRESS, Progress, Report, repeating
from kinject_assets.core.training.ranks import RankOutOfMemory
from kinject_assets.core.training.trial import leaner, said_of, too_large
from kinject_assets.defs.io import LISTENERS, Step
from kinject_assets.defs.partitions import PROFILE
from kinject_assets.workers.entry import DISK_FULL, OUT_OF_MEMORY

WORKERS = "kinject_assets.workers"

Worker = Literal["embed", "train", "score", "triage"]


def compute_mode() -> str:
    """`$KINJECT_COMPUTE` (set by `kinject run --compute`), else the profile's."""
    return os.environ.get("KINJECT_COMPUTE") or PROFILE.compute


RETRIEVES = ("faiss", "torch", "sentence_transformers")
TRAINS = ("torch", "transformers", "peft")
SCORES = (*TRAINS, "lm_eval", "lm_eval.models.huggingface", "lm_eval.evaluator")

LIBRARIES: dict[str, tuple[str, ...]] = {
    "embeddings": RETRIEVES,
    "faiss_index": ("faiss",),
    "retrieved": RETRIEVES,
    "checkpoint": TRAINS,
    **dict.fromkeys((*METHODS.values(), "damage", "triage"), SCORES),
}
"""Asset -> heavy modules that making it imports."""


def load_libraries(assets: Iterable[str]) -> None:
    """Imports what assets will need, so that the cost is paid once and seen apart."""
    wanted = {name for asset in assets for name in LIBRARIES.get(asset, ())}
    # FAISS goes before torch, as it has to on macOS.
    for name in sorted(wanted, key=lambda name: (name != "faiss", name != "torch", name)):
        importlib.import_module(name)


@contextlib.contextmanager
def _shown(step: Step) -> Iterator[None]:
    """Passes on to listeners what a worker's process notes of its progress."""

    def look() -> None:
        if note := Progress.read(step.work / PROGRESS):
            with contextlib.suppress(KeyboardInterrupt):  # the main thread hears it, too
                for listener in LISTENERS:
                    listener.progress(note.message, note.done, note.total)

    with repeating(look, KEPT_SECONDS):
        yield


def _reports(step: Step) -> Report:
    """What a worker in this process says; as in one of its own, what has no count is logged."""

    def report(message: str, done: int | None = None, total: int | None = None) -> None:
        if done is None:
            step.context.log.info("%s: %s", step.cell, message)
        else:
            step.report(message, done, total)

    return report


def run_worker(
    step: Step, worker: Worker, request: dict[str, Any], processes: int = 1
) -> dict[str, Any]:
    """Runs a worker on a request and returns its result.

    Args:
        step: What is made.
        worker: Who makes it.
        request: Its request.
        processes: How many processes work on it together. More than one are never in this process,
            whatever the profile's `compute`.

    Raises:
        KinjectError: If the worker's process ended without a result; its log says why.
        RankOutOfMemory: If one of several processes ran out of GPU memory; all have ended.
    """
    if compute_mode() == "ray":
        from kinject_assets.defs.cluster import run_on_cluster

        return run_on_cluster(step, worker, request, processes)
    bring(request, step.study.store)
    if processes > 1:
        command = [f"{WORKERS}.torchrun", str(processes), worker]
    elif compute_mode() == "inline":
        run = importlib.import_module(f"{WORKERS}.{worker}").run
        began = time.monotonic()
        result = run(request, _reports(step))
        step.worked(time.monotonic() - began)
        return result
    else:
        command = [f"{WORKERS}.{worker}"]
    result_path = step.work / f"{worker}.json"
    result_path.unlink(missing_ok=True)
    try:
        with _shown(step):
            dg.PipesSubprocessClient().run(
                context=step.context,
                command=[sys.executable, "-m", *command],
                extras={
                    "request": {**request, "result_path": str(result_path)},
                    "cell": str(step.cell),
                },
                # A worker has no business with Dagster's history, whose address holds a password.
                env={k: v for k, v in os.environ.items() if k != POSTGRES_URL},
            )
    except DagsterPipesExecutionError as error:
        if f"code {DISK_FULL}" in str(error):
            raise DiskFull.at(str(step.cell), step.study.store.root) from error
        if f"code {OUT_OF_MEMORY}" in str(error):
            raise RankOutOfMemory from error
        # A message for the user ends the process with a code, too: the file says more.
    if not result_path.exists():
        raise KinjectError(
            f"the {worker} process ended without a result (killed, or out of memory?); the log of "
            "this run has its last lines. Finished parts are kept: start it again."
        )
    outcome = json.loads(result_path.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise KinjectError(outcome["error"]["message"])
    step.worked(outcome["seconds"])
    return outcome["result"]


def run_training(step: Step, request: dict[str, Any]) -> dict[str, Any]:
    """Runs the worker `train`, in as many processes as the request's settings say.

    One process that runs out of memory helps itself. Several end together, and start again from
    the last saved step with settings that need less.

    Raises:
        KinjectError: See `run_worker`; also if nothing is left that needs less.
    """
    settings = Training(**request["training"])
    step.processes = settings.processes
    if settings.processes > 1 and compute_mode() == "inline":
        step.context.log.info(
            "%s: training.processes is %d: processes of their own, although compute is inline",
            step.cell,
            settings.processes,
        )
        from kinject_assets.core.scoring.lm import release

        # A model that answered an exam in this process would keep its memory meanwhile.
        release()
    while True:
        fields = {**request, "training": settings.model_dump(mode="json")}
        try:
            return run_worker(step, "train", fields, settings.processes)
        except RankOutOfMemory as error:
            label = f"{request['corpus']} {request['model']}.{request['recipe']}"
            less = leaner(settings)
            if less is None:
                raise too_large(label) from error
            step.context.log.info("%s: %s", label, said_of(settings, less))
            settings = less
