"""What a crash leaves in Dagster's instance, and how opening it puts that right."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.types import DaemonHeartbeat
from dagster._grpc.types import (
    CanCancelExecutionRequest,
    CanCancelExecutionResult,
    CancelExecutionRequest,
    CancelExecutionResult,
)
from dagster._serdes import serialize_value

from kinject_assets.config import Pools, load_profile
from kinject_assets.core.history import HEADER
from kinject_assets.core.store import MANIFEST, Cell, Store
from kinject_assets.definitions import ASSETS
from kinject_assets.defs.instance import (
    dagster_home,
    logged,
    open_instance,
    recover,
    served_elsewhere,
)
from kinject_assets.defs.liveness import (
    HOST_TAG,
    PARENT_RUN,
    PARENT_TAG,
    PID_TAG,
    WatchedRunLauncher,
    note_process,
    process_tags,
)
from kinject_assets_tests.e2e.browsing import free_port

DEAD = "999999"


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    opened = open_instance(load_profile("lab"))
    yield opened
    opened.dispose()


def started(instance: DagsterInstance, **tags: str) -> str:
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED, tags=tags)
    return run.run_id


def claim(instance: DagsterInstance, pool: str, run_id: str) -> None:
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default(pool)
    claimed = storage.claim_concurrency_slot(pool, run_id, "step")
    assert claimed.slot_status.value == "CLAIMED"


def held(instance: DagsterInstance, pool: str) -> int:
    return len(instance.event_log_storage.get_concurrency_info(pool).claimed_slots)


def test_pools_follow_the_profile(instance: DagsterInstance) -> None:
    profile = load_profile("lab")
    storage = instance.event_log_storage
    limits = {pool.name: pool.limit for pool in storage.get_pool_limits()}
    assert limits == profile.pools.model_dump() == {"gpu": 1, "llm": 1, "wiki": 1, "duckdb": 1}

    pools = profile.pools.model_copy(update={"gpu": 3, "llm": 2})
    wider = profile.model_copy(update={"pools": pools})
    with open_instance(wider) as again:
        info = again.event_log_storage.get_concurrency_info("gpu")
        assert (info.limit, info.slot_count) == (3, 3)
        queue = again.get_concurrency_config().run_queue_config
        assert queue is not None
        # The largest pool, and a run that waits for runs of its own.
        assert queue.max_concurrent_runs == 4
    with open_instance(profile) as again:
        assert again.event_log_storage.get_concurrency_info("gpu").slot_count == 1


def test_every_pool_of_the_assets_is_in_the_profile() -> None:
    used = {pool for asset in ASSETS for pool in asset.node_def.pools}
    assert used == set(Pools.model_fields)


def test_settings_are_written_only_when_they_change(instance: DagsterInstance) -> None:
    path = dagster_home(load_profile("lab")) / "dagster.yaml"
    before = path.stat().st_mtime_ns
    dagster_home(load_profile("lab"))
    assert path.stat().st_mtime_ns == before


def test_the_launcher_tells_the_monitoring_of_dead_processes(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = instance.run_launcher
    assert isinstance(launcher, WatchedRunLauncher)

    def health(run_id: str) -> str:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        return launcher.check_run_worker_health(run).status.value

    assert health(started(instance)) == "RUNNING"
    assert health(started(instance, **process_tags())) == "RUNNING"
    assert health(started(instance, **{**process_tags(), PID_TAG: DEAD})) == "FAILED"

    # A child of a run, on a machine whose processes we do not see: it ends with its parent.
    parent = started(instance)
    monkeypatch.setenv(PARENT_RUN, parent)
    child = started(instance, **{**process_tags(), HOST_TAG: "elsewhere"})
    assert health(child) == "RUNNING"
    run = instance.get_run_by_id(parent)
    assert run is not None
    instance.report_run_failed(run)
    assert health(child) == "FAILED"


def test_on_kubernetes_a_run_within_a_pod_is_judged_by_its_process(
    instance: DagsterInstance,
) -> None:
    pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed (extra `kubernetes`)")
    from kinject_assets.defs.kubernetes import WatchedK8sRunLauncher

    # Without its own start, which wants a cluster.
    launcher = WatchedK8sRunLauncher.__new__(WatchedK8sRunLauncher)
    launcher.register_instance(instance)
    for pid, expected in ((str(os.getpid()), "RUNNING"), (DEAD, "FAILED")):
        run = instance.get_run_by_id(started(instance, **{**process_tags(), PID_TAG: pid}))
        assert run is not None
        assert run.remote_job_origin is None
        assert launcher.check_run_worker_health(run).status.value == expected


FROM_THE_UI = RemoteJobOrigin(
    RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin("kinject-code", 4000), "kinject"), "job"
)


def elsewhere(instance: DagsterInstance, parent: str = "") -> str:
    """A run that a `kinject run` on another machine drives, by itself or for a run."""
    tags = {**process_tags(), HOST_TAG: "kinject-code", PID_TAG: "77"}
    return started(instance, **tags, **({PARENT_TAG: parent} if parent else {}))


def full_study(instance: DagsterInstance, port: int) -> str:
    """A run of the UI, in the code server at a port."""
    run = create_run_for_test(
        instance,
        status=DagsterRunStatus.STARTED,
        tags={GRPC_INFO_TAG: json.dumps({"host": "127.0.0.1", "port": port})},
        remote_job_origin=FROM_THE_UI,
    )
    return run.run_id


def status(instance: DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status.value


def told(instance: DagsterInstance, run_id: str) -> str:
    """The last that was reported about a run."""
    return instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT)[-1].message


class CodeServer:
    """Answers as the code server in which some runs live; the requests are Dagster's."""

    def __init__(self, *runs: str) -> None:
        self.runs = runs
        self.cancelled: list[str] = []

    def can_cancel_execution(self, request: CanCancelExecutionRequest) -> str:
        known = request.run_id in self.runs
        return serialize_value(CanCancelExecutionResult(can_cancel=known))

    def cancel_execution(self, request: CancelExecutionRequest) -> str:
        self.cancelled.append(request.run_id)
        result = CancelExecutionResult(success=True, message=None, serializable_error_info=None)
        return serialize_value(result)


def test_a_command_on_another_machine_is_not_marked_as_cancelled(
    instance: DagsterInstance,
) -> None:
    claim(instance, "gpu", run_id := elsewhere(instance))
    assert instance.run_launcher.terminate(run_id) is False
    assert status(instance, run_id) == "STARTED"
    assert "process 77 on kinject-code" in told(instance, run_id)
    assert "kill -INT 77" in told(instance, run_id)
    assert held(instance, "gpu") == 1

    # What it worked for is over, or in a code server that does not answer, or no longer knows it.
    over = full_study(instance, free_port())
    run = instance.get_run_by_id(over)
    assert run is not None
    instance.report_run_failed(run)
    for parent in (over, full_study(instance, free_port()), started(instance), "unknown"):
        before = instance.get_run_by_id(parent)
        run_id = elsewhere(instance, parent)
        assert instance.run_launcher.terminate(run_id) is False
        assert status(instance, run_id) == "STARTED"
        assert "Not cancelled" in told(instance, run_id)
        assert before == instance.get_run_by_id(parent)


def test_a_part_of_a_run_on_another_machine_is_cancelled_with_it(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, lost = full_study(instance, 1), full_study(instance, 1)
    server = CodeServer(parent)
    launcher = instance.run_launcher
    monkeypatch.setattr(launcher, "_get_grpc_client_for_termination", lambda run_id: server)
    assert launcher.terminate(elsewhere(instance, lost)) is False
    assert (server.cancelled, status(instance, lost)) == ([], "STARTED")

    child = elsewhere(instance, parent)
    assert launcher.terminate(child) is True
    assert server.cancelled == [parent]
    assert (status(instance, parent), status(instance, child)) == ("CANCELING", "STARTED")
    assert parent in told(instance, child)
    # Whoever cancels all runs of a page meets the others next.
    assert launcher.terminate(elsewhere(instance, parent)) is True
    assert server.cancelled == [parent]


def test_on_kubernetes_a_run_within_a_pod_is_cancelled_with_the_pods(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed (extra `kubernetes`)")
    from dagster_k8s import K8sRunLauncher  # pyright: ignore[reportMissingImports]

    from kinject_assets.defs.kubernetes import WatchedK8sRunLauncher

    stopped: list[str] = []

    def delete_pod(_: K8sRunLauncher, run_id: str) -> bool:
        stopped.append(run_id)
        return True

    monkeypatch.setattr(K8sRunLauncher, "terminate", delete_pod)
    launcher = WatchedK8sRunLauncher.__new__(WatchedK8sRunLauncher)
    launcher.register_instance(instance)
    assert launcher.terminate(alone := elsewhere(instance)) is False
    assert (stopped, status(instance, alone)) == ([], "STARTED")
    parent = full_study(instance, 1)
    assert launcher.terminate(elsewhere(instance, parent)) is True
    assert launcher.terminate(parent) is True
    assert stopped == [parent, parent]


def test_a_run_of_the_ui_notes_its_process_once(instance: DagsterInstance) -> None:
    def run(run_id: str) -> dg.DagsterRun:
        found = instance.get_run_by_id(run_id)
        assert found is not None
        return found

    run_id = started(instance)
    note_process(instance, run(run_id))
    assert run(run_id).tags[PID_TAG] == str(os.getpid())
    other = started(instance, **{PID_TAG: DEAD})
    note_process(instance, run(other))
    assert run(other).tags[PID_TAG] == DEAD


def test_a_fresh_instance_knows_the_profiles_corpora(instance: DagsterInstance) -> None:
    keys = instance.get_dynamic_partitions("corpus")
    assert sorted(keys) == sorted(load_profile("lab").corpora)


def test_a_dead_run_fails_and_its_slot_is_free(instance: DagsterInstance, tmp_path: Path) -> None:
    run_id = started(instance, **{**process_tags(), PID_TAG: DEAD})
    claim(instance, "gpu", run_id)
    found = recover(instance, Store(tmp_path), ui_alive=False)
    assert (found.runs, found.slots) == ((run_id,), 1)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == DagsterRunStatus.FAILURE
    assert held(instance, "gpu") == 0
    claim(instance, "gpu", "the next run")


def test_runs_of_living_processes_keep_their_slots(
    instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = started(instance, **process_tags())
    of_the_ui = started(instance)
    claim(instance, "gpu", mine)
    found = recover(instance, Store(tmp_path), ui_alive=True)
    assert (found.runs, found.slots, held(instance, "gpu")) == ((), 0, 1)

    monkeypatch.setenv(PARENT_RUN, of_the_ui)
    assert recover(instance, Store(tmp_path), ui_alive=False).runs == ()
    monkeypatch.delenv(PARENT_RUN)
    assert recover(instance, Store(tmp_path), ui_alive=False).runs == (of_the_ui,)


def test_a_daemon_of_another_machine_is_known_by_its_heartbeat(instance: DagsterInstance) -> None:
    def beat(age: float) -> None:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - age, "SENSOR", "daemon", None))

    settings = Path(instance.root_directory) / "dagster.yaml"
    beat(1)
    assert not served_elsewhere(instance), "SQLite is of one machine"
    settings.write_text(settings.read_text().removeprefix(HEADER))
    assert served_elsewhere(instance)
    beat(1_000)
    assert not served_elsewhere(instance)


def test_a_slot_of_a_run_that_nobody_knows_is_freed(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    claim(instance, "wiki", str(uuid.uuid4()))
    assert recover(instance, Store(tmp_path), ui_alive=False).slots == 1
    assert held(instance, "wiki") == 0


def made(store: Store, cell: Cell) -> str:
    """Publishes an artefact; the seal of its manifest."""
    with store.draft(cell) as draft:
        (draft / "articles.json").write_text("[]")
        return store.publish(
            cell,
            draft,
            partition="rivers",
            logical_version="v1",
            fingerprint="f",
            code_version="1",
            inputs={},
            config={},
            started_at=datetime.now(UTC),
        ).seal


def test_what_was_published_without_its_event_is_reported_once(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    store, cell = Store(tmp_path), Cell("articles", ("rivers",))
    made(store, cell)
    assert recover(instance, store, ui_alive=False).events == ("articles/rivers",)
    assert {name: e.version for name, e in logged(instance, store).items()} == {
        "articles/rivers": "v1"
    }
    assert instance.get_materialized_partitions(dg.AssetKey("articles")) == {"rivers"}
    assert recover(instance, store, ui_alive=False).events == ()


def test_an_edited_manifest_is_not_reported_and_one_made_again_is(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    store, cell = Store(tmp_path), Cell("articles", ("rivers",))

    first = made(store, cell)
    assert recover(instance, store, ui_alive=False).events == ("articles/rivers",)
    assert logged(instance, store)["articles/rivers"].seal == first
    path = store.folder(cell) / MANIFEST
    written = path.read_text()
    path.write_text(written.replace('"v1"', '"v2"'))
    assert recover(instance, store, ui_alive=False).events == ()
    assert logged(instance, store)["articles/rivers"].version == "v1"
    # Made anew with the same meaning, and killed before the event.
    path.write_text(written)
    second = made(store, cell)
    assert second != first
    assert recover(instance, store, ui_alive=False).events == ("articles/rivers",)
    assert logged(instance, store)["articles/rivers"].seal == second
    assert recover(instance, store, ui_alive=False).events == ()


def test_a_torn_draft_is_swept_and_said(instance: DagsterInstance, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from kinject_assets.core.store import *\n"
        "with Store(Path(sys.argv[1])).draft(Cell('chunks', ('rivers',))): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert recover(instance, Store(tmp_path), ui_alive=False).drafts == ("chunks/rivers",)
    assert os.listdir(tmp_path / "lake" / "chunks" / "rivers") == []
