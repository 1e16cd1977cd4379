"""Four heavy steps (embed, train, score, triage), two ways to run them: here, or in an own process.

A worker is a function from a JSON request to a JSON result, `kinject_assets.workers.NAME.run`. In a
process of its own it is started through Dagster Pipes: its log is live, cancelling the run ends it,
and its memory is freed.
"""

import contextlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError

from kinject_assets.core.errors import DiskFull, KinjectError
from kinject_assets.core.plan import METHODS
from kinject_assets.core.progress import KEPT_SECONDS, PROGRESS, Progress
from kinject_assets.defs.io import LISTENERS, Step
from kinject_assets.defs.partitions import PROFILE
from kinject_assets.workers.entry import DISK_FULL

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
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(KEPT_SECONDS):
            if note := Progress.read(step.work / PROGRESS):
                with contextlib.suppress(KeyboardInterrupt):  # the main thread hears it, too
                    for listener in LISTENERS:
                        listener.progress(note.message, note.done, note.total)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_worker(step: Step, worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """Runs a worker on a request and returns its result.

    Raises:
        KinjectError: If the worker's process ended without a result; its log says why.
    """
    if compute_mode() == "inline":
        module = importlib.import_module(f"kinject_assets.workers.{worker}")
        return module.run(request, step.report)
    result_path = step.work / f"{worker}.json"
    result_path.unlink(missing_ok=True)
    try:
        with _shown(step):
            dg.PipesSubprocessClient().run(
                context=step.context,
                command=[sys.executable, "-m", f"kinject_assets.workers.{worker}"],
                extras={
                    "request": {**request, "result_path": str(result_path)},
                    "cell": str(step.cell),
                },
                env=dict(os.environ),
            )
    except DagsterPipesExecutionError as error:
        if f"code {DISK_FULL}" in str(error):
            raise DiskFull.at(str(step.cell), step.study.store.root) from error
        # A message for the user ends the process with a code, too: the file says more.
    if not result_path.exists():
        raise KinjectError(
            f"the {worker} process ended without a result (killed, or out of memory?); the log of "
            "this run has its last lines. Finished parts are kept: start it again."
        )
    outcome = json.loads(result_path.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise KinjectError(outcome["error"]["message"])
    return outcome["result"]
