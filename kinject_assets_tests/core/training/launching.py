"""Training in processes of its own, as Dagster starts it but without Dagster."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from kinject_assets.core.schema import Checkpoint, Trial
from kinject_assets.core.store import read_rows
from kinject_assets.core.training.trainer import TrainRequest
from kinject_assets_tests.workers.test_workers import pipes_environment

RequestOf = Callable[..., TrainRequest]

MANY_STEPS = {
    "piece_tokens": 16,
    "epochs": 3,
    "batch_pieces": 5,
    "micro_batch": 2,
    "learning_rates": [1e-3],
}
STEPS = 30
"""Steps of an epoch with four paraphrases a chunk: 2,354 tokens are 148 pieces, so that the last
step has three of them, one shorter. Two processes have unequal parts of every step."""


def many_steps(request_of: RequestOf, texts: Path, folder: Path, **changes: Any) -> TrainRequest:
    """A request whose epochs are long enough to be interrupted in the middle."""
    training = MANY_STEPS | changes.pop("training", {})
    fields: dict[str, Any] = {
        "recipe": "full.p04",
        "n_paraphrases": 4,
        "paraphrases": str(texts / "paraphrases.parquet"),
        "work": str(folder / "work"),
        "out": str(folder / "out"),
        "resume_seconds": 0.01,
    }
    return request_of(training, **fields | changes)


def result_path(request: TrainRequest) -> Path:
    return Path(request.work) / "result.json"


def environment(request: TrainRequest) -> dict[str, str]:
    """One thread a process, so that results are the same to the last bit."""
    Path(request.work).mkdir(parents=True, exist_ok=True)
    fields = json.loads(json.dumps(asdict(request))) | {"result_path": str(result_path(request))}
    messages = Path(request.work).parent / "messages"
    return {**pipes_environment(fields, messages), "OMP_NUM_THREADS": "1"}


def command(request: TrainRequest) -> list[str]:
    processes = request.training.get("processes", 1)
    worker = ["torchrun", str(processes), "train"] if processes > 1 else ["train"]
    return [sys.executable, "-m", f"kinject_assets.workers.{worker[0]}", *worker[1:]]


def start(request: TrainRequest) -> subprocess.Popen[str]:
    """Starts training; the caller waits."""
    return subprocess.Popen(
        command(request), env=environment(request), stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Waits for the end and returns what was said."""
    _, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def stand_still_in_the_middle(
    pid: int, request: TrainRequest, kind: str = "checkpoint"
) -> list[psutil.Process]:
    """Suspends a training once its only saved state is in the first half of a later epoch.

    It is looked at while it stands still: on a busy machine it may be far on a moment later.

    Returns:
        The process and all its descendants, suspended.
    """
    top = psutil.Process(pid)
    until = time.monotonic() + 240
    while True:
        assert top.status() != psutil.STATUS_ZOMBIE, "ended before it could be interrupted"
        members = [top, *family(pid)]
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        places = [divmod(step, STEPS) for step in saved_steps(request, kind)]
        # Two for a moment: the older one goes when the newer one has its name.
        if len(places) == 1 and places[0][0] and 0 < places[0][1] < STEPS / 2:
            return members
        go_on(members)
        assert time.monotonic() < until, f"saved: {places}"
        time.sleep(0.02)


def go_on(members: Iterable[psutil.Process]) -> None:
    """Lets suspended processes run."""
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.resume()


def kill_in_the_middle(process: subprocess.Popen[str], request: TrainRequest) -> int:
    """Kills a training whose last saved state is in the middle of a later epoch; that state's step.

    Its processes that are left are let run again, to end by themselves.
    """
    members = stand_still_in_the_middle(process.pid, request)
    (step,) = saved_steps(request)
    process.kill()
    go_on(members[1:])
    finish(process, -signal.SIGKILL)
    return step


def saved_steps(request: TrainRequest, kind: str = "checkpoint") -> list[int]:
    """Steps of the saved states of the first trial."""
    folder = Path(request.work) / "trial-0"
    return sorted(int(path.name.rsplit("-", 1)[1]) for path in folder.glob(f"{kind}-*"))


def family(pid: int) -> list[psutil.Process]:
    """All descendants of a process."""
    return psutil.Process(pid).children(recursive=True)


def gone(processes: list[psutil.Process], seconds: float = 15) -> list[psutil.Process]:
    """Those that are still there after a while; a zombie is not."""
    until = time.monotonic() + seconds
    while True:
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def rows(request: TrainRequest) -> tuple[Checkpoint, list[Trial], list[dict[str, Any]]]:
    """What training wrote, without its seconds."""
    out = Path(request.out)
    (checkpoint,) = read_rows(out / "checkpoint.parquet", Checkpoint)
    losses = json.loads((out / "loss.json").read_text(encoding="utf-8"))
    return replace(checkpoint, seconds=0.0), read_rows(out / "trials.parquet", Trial), losses
