"""Dagster's launcher on Kubernetes, which leaves runs alone that are no pods of their own.

`full_study` and the nightly catch-up run `kinject` in their pod, and each partition becomes a run
there. Dagster's run monitoring looks for a pod of each run that is under way, finds none for these,
and would mark them as failed; cancelling one would mark it, and stop nothing. The package
`dagster-k8s` comes with the extra `kubernetes`; this module is imported where `dagster.yaml` names
it alone.
"""

from dagster import DagsterRun
from dagster._core.launcher.base import CheckRunHealthResult
from dagster_k8s import K8sRunLauncher  # pyright: ignore[reportMissingImports] (an extra)

from kinject_assets.defs.liveness import Watched


class WatchedK8sRunLauncher(Watched, K8sRunLauncher):
    """Asks Kubernetes about pods, and about runs within a pod their process and parent.

    Cancelling a run within a pod cancels the run that the pod is for.
    """

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether a run's pod, or its process, is there."""
        if run.remote_job_origin is None:  # not launched from a workspace
            return self.health_by_process(run)
        return super().check_run_worker_health(run)
