"""What the entry points share: requests from JSON, Pipes, results and errors back.

The parent gives the request as the Pipes extra `request`, with one more field: `result_path`, the
file that gets `{"result": ..., "seconds": ...}` or, for an error that a user can act on,
`{"error": {"type", "message"}}`. Exit codes: 0 done, 2 such an error, 28 no room on the disk, 77
out of GPU memory where several processes have to start again together, 130 interrupted, 1 anything
else (the exception goes to Dagster through Pipes).

Of several processes that work together, only the first one reports to Dagster and writes the
result; an error is written by each that meets one.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin, get_type_hints

from kinject_assets.core.errors import KinjectError, is_disk_full
from kinject_assets.core.interrupts import Interrupts
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.progress import KEPT_SECONDS, Progress, Report, silent
from kinject_assets.core.training.ranks import RankOutOfMemory, launched

Request = TypeVar("Request")

LOG_SECONDS = 2.0
"""Least time between two progress lines in Dagster's log: each is a row of its database."""

WATCH_SECONDS = 1.0
"""Seconds between two looks at whether the parent still lives."""

USERS_ERROR = 2
INTERRUPTED = 130
DISK_FULL = 28
OUT_OF_MEMORY = 77
"""Exit codes; that of a full disk is the number of the error `no space left on device`."""


def read_request(request_type: type[Request], fields: Mapping[str, Any]) -> Request:
    """Builds a request from JSON, lists becoming tuples where the class has tuples.

    Raises:
        TypeError: If a field is missing or unknown: parent and worker are of different versions.
    """
    hints = get_type_hints(request_type)
    return request_type(
        **{
            name: tuple(value) if get_origin(hints.get(name)) is tuple else value
            for name, value in fields.items()
        }
    )


def to_json(row: Any) -> dict[str, Any]:
    """A row as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(row)))


def stay_local(*sources: str) -> None:
    """Keeps the Hugging Face libraries off the network when all that is loaded is a folder.

    It must be called before they are imported.
    """
    if all(Path(source).is_dir() for source in sources if source):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main(
    run: Callable[[Mapping[str, Any], Report], dict[str, Any]],
    sources: Callable[[Mapping[str, Any]], list[str]],
) -> NoReturn:
    """Runs a worker as a process and exits.

    Args:
        run: The worker's function.
        sources: Folders and hub ids that a request loads.
    """
    from dagster_pipes import DAGSTER_PIPES_MESSAGES_ENV_VAR, encode_param, open_dagster_pipes

    end_with_parent()
    ranks = launched()
    # A parent that a script started in the background ignores SIGINT, and so would this process.
    # One of several dies at once: while it waits for the others, Python handles no signal.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_DFL if ranks.several else signal.default_int_handler)
    if not ranks.first:
        os.environ[DAGSTER_PIPES_MESSAGES_ENV_VAR] = encode_param({"path": os.devnull})
    try:
        with Interrupts() as interrupts, open_dagster_pipes() as pipes:
            fields = dict(pipes.extras["request"])
            result_path = Path(fields.pop("result_path"))
            cell = str(pipes.extras.get("cell", ""))
            stay_local(*sources(fields))
            report = _log_report(pipes.log, interrupts, cell, result_path.parent)
            began = time.monotonic()
            try:
                outcome: dict[str, Any] = {"result": run(fields, report if ranks.first else silent)}
                outcome["seconds"] = time.monotonic() - began
            except KinjectError as error:
                outcome = {"error": {"type": type(error).__name__, "message": str(error)}}
            if ranks.first or "error" in outcome:
                write_atomically(result_path, json.dumps(outcome) + "\n")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except RankOutOfMemory:
        # At once: the others wait for this process, and so might it for them on an orderly way out.
        os._exit(OUT_OF_MEMORY)
    except Exception as error:
        # There may be no room for a result file either: the exit code says it.
        if is_disk_full(error):
            sys.exit(DISK_FULL)
        raise
    sys.exit(USERS_ERROR if "error" in outcome else 0)


def end_with_parent() -> None:
    """Ends this process when its parent is gone: an orphan would work on beside the next run."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def _log_report(log: Any, interrupts: Interrupts, cell: str, work: Path) -> Report:
    told_at = kept_at = -LOG_SECONDS

    def report(message: str, done: int | None = None, total: int | None = None) -> None:
        nonlocal told_at, kept_at
        interrupts.check()
        now = time.monotonic()
        if now - kept_at >= KEPT_SECONDS:
            kept_at = now
            with contextlib.suppress(OSError):
                Progress.now(cell, message, done, total).write(work)
        if now - told_at >= LOG_SECONDS or done is None or done == total:
            told_at = now
            log.info(f"{message} ({done}/{total})" if total else message)

    return report
