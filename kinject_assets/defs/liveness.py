"""Whether the process of a run is still there, for `recover` and for Dagster's run monitoring.

Dagster knows when a run's process dies that it launched itself and whose code server is alive. A
killed `kinject run`, or a code server that was killed with its runs, it does not notice: the run
would stay STARTED and its pool slots taken. Dagster's launcher is asked every few seconds by the
daemon whether a run is healthy; here it answers by the process that the run names in its tags.
"""

import os
import signal

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, RunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

from kinject_assets.core.process import Owner, this_process

# The prefix keeps them out of the UI.
PID_TAG = ".dagster/kinject_pid"
BORN_TAG = ".dagster/kinject_process_born"
HOST_TAG = ".dagster/kinject_host"
PARENT_TAG = ".dagster/kinject_parent_run"

PARENT_RUN = "KINJECT_PARENT_RUN"
"""Environment variable with the run that a `kinject run` works for: it is alive as long as that."""


def process_tags() -> dict[str, str]:
    """Tags that say which process a run lives in, so that its death can be told later."""
    me = this_process()
    tags = {PID_TAG: str(me.pid), BORN_TAG: str(me.born), HOST_TAG: me.host}
    parent = os.environ.get(PARENT_RUN)
    return {**tags, PARENT_TAG: parent} if parent else tags


def note_process(instance: DagsterInstance, run: DagsterRun) -> None:
    """Writes on a run of the UI which process it lives in."""
    if PID_TAG not in run.tags:
        instance.add_run_tags(run.run_id, process_tags())


def alive(instance: DagsterInstance, run: DagsterRun, untagged: bool) -> bool:
    """Whether the process of a run is there; of another machine's we know only its parent's end.

    Args:
        instance: Knows the run's parent.
        run: A run that is not finished.
        untagged: The answer for runs that name no process.
    """
    tags = run.tags
    if PID_TAG not in tags:
        return untagged
    if parent_id := tags.get(PARENT_TAG):
        parent = instance.get_run_by_id(parent_id)
        if parent is None or parent.is_finished:
            return False
    owner = _owner(run)
    return owner is not None and owner.alive


def _owner(run: DagsterRun) -> Owner | None:
    """The process that a run names."""
    tags = run.tags
    try:
        return Owner(int(tags[PID_TAG]), int(tags[BORN_TAG]), tags[HOST_TAG])
    except (ValueError, KeyError):
        return None


class Watched(RunLauncher):
    """What a launcher does about runs that name their process and are not its own.

    Such a run was not launched from a workspace: a `kinject run` drives it, by itself or for a
    run of the UI.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: `run_monitoring` asks for each run that is under way."""
        return True

    def health_by_process(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process that a run names is there."""
        if alive(self._instance, run, untagged=True):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.FAILED, "its process is gone (killed, or the machine went down)"
        )

    def terminate(self, run_id: str) -> bool:
        """Cancels a run; of one that `kinject run` drives, the command is stopped as on Ctrl-C.

        Dagster alone would mark such a run as cancelled, and free its slot, while it goes on. Where
        the command is out of reach, the run that it works for is cancelled; it stops the command.
        """
        run = self._instance.get_run_by_id(run_id)
        owner = _owner(run) if run and not run.is_finished else None
        if run is None or owner is None or run.remote_job_origin is not None or not owner.alive:
            return super().terminate(run_id)
        if owner.host == this_process().host:
            self._instance.report_run_canceling(run)
            os.kill(owner.pid, signal.SIGINT)
            return True
        parent = self._instance.get_run_by_id(run.tags.get(PARENT_TAG, ""))
        if parent and parent.status == DagsterRunStatus.CANCELING:
            return True
        if parent and self.can_stop(parent):
            self._tell(run, f"Cancels the run {parent.run_id}, which this one is a part of.")
            return super().terminate(parent.run_id)
        self._tell(
            run,
            f"Not cancelled: it lives in process {owner.pid} on {owner.host}, out of reach from "
            f"here; stop it there: kill -INT {owner.pid}. If that process is gone, force the "
            "termination: that frees the pool's slot and stops nothing.",
        )
        return False

    def can_stop(self, run: DagsterRun) -> bool:
        """Whether a run was launched from a workspace and its worker can be told to stop."""
        return run.remote_job_origin is not None and run.status == DagsterRunStatus.STARTED

    def _tell(self, run: DagsterRun, message: str) -> None:
        self._instance.report_engine_event(message, run, cls=type(self))


class WatchedRunLauncher(Watched, DefaultRunLauncher):
    """Dagster's default launcher, which also knows runs that `kinject run` drives itself."""

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether a run's process is there."""
        return self.health_by_process(run)

    def can_stop(self, run: DagsterRun) -> bool:
        """Whether the code server that has a run answers, and knows it."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None or not super().can_stop(run):
            return False
        try:
            said = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id))
        except DagsterUserCodeUnreachableError:
            return False
        return deserialize_value(said, CanCancelExecutionResult).can_cancel
