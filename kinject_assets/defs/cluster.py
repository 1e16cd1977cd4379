"""Heavy steps as jobs of a Ray cluster, through dagster-ray's Pipes client.

The cluster is the one at `RAY_ADDRESS`, or one that this process starts on the loopback interface
and that ends with it. What runs there is `kinject_assets.workers.cluster`.
"""

import contextlib
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import PipesMessageHandler

from kinject_assets.config import base_folder
from kinject_assets.core.errors import DiskFull, KinjectError
from kinject_assets.core.lake.travel import LARGEST, packed, receive_draft
from kinject_assets.core.process import this_process
from kinject_assets.core.training.ranks import RankOutOfMemory
from kinject_assets.defs.io import Step
from kinject_assets.defs.partitions import PROFILE
from kinject_assets.workers import cluster as worker_side

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

LOOPBACK = "127.0.0.1"

MODULE = "kinject_assets.workers.cluster"

CELL_KEY = "kinject_cell"
"""Metadata of a job: the lake and what it makes in it."""

FLUSH_SECONDS = 30.0
"""How long the rest of a log is waited for when its job has ended."""

PATIENCE_SECONDS = 120.0
"""How long the dashboard may be out of reach while a job runs."""

NO_AGENT = "No available agent"
"""In what Ray says where no node can take a job yet."""

STOP_SECONDS = 30.0
"""How long a job that was asked to stop is waited for; Ray kills it after three seconds."""


class ClusterError(KinjectError):
    """The cluster cannot be used, or a job on it failed."""


def run_on_cluster(
    step: Step, worker: str, request: dict[str, Any], processes: int = 1
) -> dict[str, Any]:
    """Runs a worker as a Ray job and returns its result.

    Args:
        step: What is made.
        worker: Module of `kinject_assets.workers`.
        request: Its request.
        processes: How many processes train together.

    Raises:
        KinjectError: If the worker said one, or no node fits, or the cluster is gone.
        RankOutOfMemory: If one of several processes ran out of GPU memory.
    """
    store = step.study.store
    job = _job(step, worker, request, processes)
    outcome = _submit(step, job, packed(request, store) if job.lake else request)
    if "files" in outcome:
        # All of what lies below a draft comes here; of a draft itself large files stay there.
        out = Path(request["out"])
        largest = LARGEST if out == step.draft else None
        receive_draft(store, out, outcome["files"], largest)
    step.processes = max(job.parts, job.processes)
    step.placement |= {
        "ray_processes": [*step.placement.get("ray_processes", []), *outcome["processes"]],
        "ray_nodes": ", ".join(outcome["places"]),
        **({"ray_nodes_lost": outcome["lost"]} if outcome["lost"] else {}),
    }
    if "error" not in outcome:
        step.worked(outcome["seconds"])
        return outcome["result"]
    kind, message = outcome["error"]["type"], outcome["error"]["message"]
    if kind == worker_side.OUT_OF_MEMORY:
        raise RankOutOfMemory(message)
    if kind == worker_side.DISK_FULL:
        raise DiskFull(f"{step.cell}: {message}. Make room there, and run again.")
    raise KinjectError(message)


def _job(step: Step, worker: str, request: dict[str, Any], processes: int) -> worker_side.Job:
    need = getattr(PROFILE.cluster, worker)
    # Finding chunks is one pass over an index; embedding and answering can be shared.
    shared = worker == "score" or request.get("task") == "embed"
    return worker_side.Job(
        worker=worker,
        need=need.model_dump(include={"cpus", "gpus", "memory_gb", "accelerator", "resources"}),
        parts=need.parts if shared else 1,
        processes=processes,
        retries=PROFILE.cluster.retries,
        wait_minutes=PROFILE.cluster.wait_minutes,
        lake=None
        if step.study.store.remote is None
        else {"profile": PROFILE.name, "url": PROFILE.lake, "cache_gb": PROFILE.cache_gb},
    )


def _submit(step: Step, job: worker_side.Job, request: dict[str, Any]) -> dict[str, Any]:
    """Runs a job to its end, also when this process is told to stop."""
    from dagster_ray import PipesRayJobClient

    address = cluster_address()
    jobs = _client(address)
    # Others may use the cluster, and call their profile the same.
    lake = PROFILE.lake or f"{this_process().host}:{step.study.store.lake.absolute()}"
    key = f"{lake}/{step.cell}"
    for stopped in _stop(jobs, key):
        step.context.log.info("%s: stopped Ray job %s, which nobody waited for", step.cell, stopped)
    client = PipesRayJobClient(address=address, message_reader=_reader(step))
    vars(client)["client"] = jobs  # a cached property: ours is patient
    submission = f"kinject-{uuid.uuid4().hex[:12]}"
    python = sys.executable if _started.cache_info().currsize else PROFILE.cluster.python
    try:
        invocation = client.run(
            context=step.context,
            submit_job_params={
                "entrypoint": f"{shlex.quote(python)} -m {MODULE}",
                "submission_id": submission,
                "metadata": {CELL_KEY: key},
            },
            extras={"request": request, "job": vars(job)},
        )
    except BaseException as error:
        with contextlib.suppress(Exception):
            _stop(jobs, key)
        if not isinstance(error, RuntimeError | ConnectionError | OSError):
            raise
        raise ClusterError(
            f"{step.cell}: Ray job {submission} at {address} did not end well: {error} Finished "
            "parts are kept: start it again."
        ) from error
    messages = [m for m in invocation.get_custom_messages() if "outcome" in m]
    if not messages:
        # The connection that brings its log may have been cut; the log itself is whole.
        messages = _outcomes(jobs.get_job_logs(submission))
    if not messages:
        raise ClusterError(
            f"{step.cell}: Ray job {submission} ended without a result; `ray job logs {submission} "
            f"--address {address}` shows its log. Finished parts are kept: start it again."
        )
    return messages[-1]["outcome"]


def _stop(jobs: "JobSubmissionClient", key: str) -> list[str]:
    """Stops jobs that make a cell, and returns their names when they are gone.

    A process that was killed leaves its job behind, and that would work on beside the next one.
    """
    mine = [
        job.submission_id
        for job in jobs.list_jobs()
        if (job.metadata or {}).get(CELL_KEY) == key
        and not job.status.is_terminal()
        and job.submission_id
    ]
    for name in mine:
        jobs.stop_job(name)
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until and any(
        not jobs.get_job_status(name).is_terminal() for name in mine
    ):
        time.sleep(0.2)
    return mine


def _outcomes(log: str) -> list[dict[str, Any]]:
    """What the log of a job says of its end."""
    found: list[dict[str, Any]] = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)["params"]["payload"]
            if "outcome" in said:
                found.append(said)
    return found


def _reader(step: Step) -> Any:
    """Reads a job's log: its Pipes messages, and progress for those who watch."""
    from dagster_ray import PipesRayJobMessageReader
    from dagster_ray.core.pipes import tail_logs

    class Reader(PipesRayJobMessageReader):
        # As dagster-ray's own, which prints what is no message to stdout: there results go.
        def handle_job_logs(self, handler: PipesMessageHandler) -> None:
            try:
                while self._job_id is None and not self.session_closed.wait(0.1):
                    pass
                if self._job_id is None:
                    return
                until = float("inf")
                for chunk in tail_logs(self.client.tail_job_logs(job_id=self.job_id)):
                    for line in (chunk or "").splitlines():
                        _take(step, handler, line)
                    if self.session_closed.is_set():
                        until = min(until, time.monotonic() + FLUSH_SECONDS)
                    if time.monotonic() > until:
                        break
            finally:
                self.completed.set()

    return Reader()


def _take(step: Step, handler: PipesMessageHandler, line: str) -> None:
    """A line of a job's log: a message, or what some library printed."""
    try:
        message = json.loads(line)
        method, params = message["method"], message["params"]
    except (ValueError, KeyError, TypeError):
        if line.strip():
            step.context.log.debug("%s: %s", step.cell, line)
        return
    said = params.get("payload") if method == "report_custom_message" else None
    if isinstance(said, dict) and "progress" in said:
        _progress(step, *said["progress"])
    else:
        handler.handle_message(message)


def _progress(step: Step, message: str, done: int | None, total: int | None) -> None:
    if done is None:
        step.context.log.info("%s: %s", step.cell, message)
        return
    with contextlib.suppress(KeyboardInterrupt):  # the main thread hears it, too
        step.report(message, done, total)


def cluster_address() -> str:
    """Address of the dashboard that takes jobs: `RAY_ADDRESS`, or of a cluster of our own.

    Raises:
        ClusterError: If Ray is not installed, or the address is not that of a dashboard.
    """
    with contextlib.suppress(ModuleNotFoundError):
        import dagster_ray  # noqa: F401

        given = os.environ.get("RAY_ADDRESS")
        if not given:
            return _started()
        if not given.startswith(("http://", "https://")):
            raise ClusterError(
                f"RAY_ADDRESS: `{given}` is not the address of a dashboard, which takes the jobs; "
                "e.g. RAY_ADDRESS=http://HEAD:8265"
            )
        return given
    raise ClusterError(
        "compute: `ray` needs the packages of Ray: pip install 'kinject[ray]', or choose "
        "`--compute local`."
    )


@cache
def _client(address: str) -> "JobSubmissionClient":
    from ray.job_submission import JobStatus, JobSubmissionClient

    class Patient(JobSubmissionClient):
        """A job of many hours is not given up for one request that fails."""

        def submit_job(self, **job: Any) -> str:
            until = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    return super().submit_job(**job)
                except RuntimeError as error:
                    # A cluster that has just started takes jobs some seconds later.
                    if NO_AGENT not in str(error) or time.monotonic() > until:
                        raise
                    time.sleep(1.0)

        def get_job_status(self, job_id: str) -> JobStatus:
            until = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    return super().get_job_status(job_id)
                except (OSError, RuntimeError):
                    if time.monotonic() > until:
                        raise
                    time.sleep(1.0)

    # It tells of each connection that it closes.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return Patient(address)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(
            f"RAY_ADDRESS: no Ray cluster takes jobs at {address} ({error}). Start it, or give the "
            "address of its dashboard."
        ) from error


@cache
def _started() -> str:
    """Starts a cluster of this machine alone that ends with this process; its address."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else it listens on every interface
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its processes work in other folders than this one.
    os.environ.setdefault("KINJECT_HOME", str(base_folder()))
    # Other users of this machine reach the loopback interface, too. Ray itself would keep a token
    # in the home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    with _handlers_kept():
        context = ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host=LOOPBACK,
            dashboard_port=port,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address=LOOPBACK,
        )
    return f"http://{context.dashboard_url}"


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray sets handlers of its own for signals that are ours to handle."""
    before = {ending: signal.getsignal(ending) for ending in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
