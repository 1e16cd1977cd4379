"""Dagster's history in a real Postgres: backfills at once, pools, and runs that are killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from kinject_assets.core.history import POSTGRES_URL
from kinject_assets.core.store import Cell, Store
from kinject_assets.defs.liveness import PID_TAG
from kinject_assets_tests.e2e.browsing import serving_ui
from kinject_assets_tests.e2e.conftest import command, environment, small_lab
from kinject_assets_tests.postgres import Server, needs_postgres, running_postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), needs_postgres]

GPU = 2
"""Slots of the pool `gpu`."""

MINUTE = 60.0

TROUBLE = ("deadlock", "is locked", "lock timeout", "too many clients", "serialize access")
"""Words of a database that was too much for."""

BACKFILLS = {
    "answers_base": ["comets|lab-llama", "events|lab-llama"],
    "answers_rag": ["comets|lab-llama", "events|lab-llama"],
    "answers_ft": [f"events|lab-llama.full.{recipe}" for recipe in ("p00", "p01")],
    "answers_ft_rag": [f"events|lab-llama.full.{recipe}" for recipe in ("p00", "p01")],
}

LAUNCH = """mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params)
  { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
CANCEL = """mutation($id: String!) { terminateRun(runId: $id, terminatePolicy: SAFE_TERMINATE)
  { __typename } }"""
BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id)
  { ... on PartitionBackfill { status } } }"""
RUNS = """{ runsOrError { ... on Runs { results { runId status tags { key value }
  events: eventConnection(limit: 1000) { events { __typename
    ... on MessageEvent { timestamp stepKey } } } } } } }"""


@dataclass(frozen=True)
class Site:
    """A served study whose history is in Postgres."""

    url: str
    profile: Path
    home: Path
    log: Path
    server: Server
    database: str

    def graphql(self, query: str, **variables: Any) -> Any:
        """Asks the webserver, as the UI does."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def launch(self, asset: str, keys: Sequence[str]) -> str:
        """Starts a backfill; its id."""
        params = {
            "assetSelection": [{"path": [asset]}],
            "partitionNames": list(keys),
            "fromFailure": False,
        }
        launched = self.graphql(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return launched["backfillId"]

    def holders(self) -> list[str]:
        """Runs that hold a slot of the pool `gpu`, one for each slot."""
        rows = self.server.ask(
            self.database,
            "SELECT run_id FROM concurrency_slots WHERE concurrency_key = 'gpu' "
            "AND run_id IS NOT NULL AND NOT deleted",
        )
        return [row[0] for row in rows]

    def run(self, run_id: str) -> tuple[str, dict[str, str]]:
        """Status and tags of a run, from the database: the UI hides some tags."""
        ((status, body),) = self.server.ask(
            self.database, f"SELECT status, run_body FROM runs WHERE run_id = '{run_id}'"
        )
        return status, json.loads(body)["tags"]

    def failures(self) -> list[str]:
        """What failed runs said."""
        rows = self.server.ask(
            self.database, "SELECT event FROM event_logs WHERE dagster_event_type = 'STEP_FAILURE'"
        )
        return [row[0] for row in rows]

    def env(self) -> dict[str, str]:
        """The environment of a command on this study."""
        return {**environment(self.home), POSTGRES_URL: self.server.url(self.database)}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def site(
    study: tuple[Path, Path, str], server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The finished study's copy. It has no history in Postgres yet: kinject reports it there."""
    folder = tmp_path_factory.mktemp("postgres")
    home = shutil.copytree(study[1], folder / "home")
    # No runs but the test's: changes are not carried on.
    profile = small_lab(folder, pools={"gpu": GPU}, refresh={"automatic": False})
    url = server.create()
    log = folder / "ui.log"
    with serving_ui(profile, home, log, **{POSTGRES_URL: url}) as address:
        yield Site(address, profile, home, log, server, url.rsplit("/", 1)[1])


def wait(what: Callable[[], Any], seconds: float, said: str) -> float:
    """Waits until something is so; the seconds that it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, f"after {seconds:.0f} s: {said}"
        time.sleep(0.2)
    return time.monotonic() - began


@dataclass
class Sampler:
    """Counts taken slots of the pool `gpu`, and connections, several times a second."""

    site: Site
    counts: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.1):
                self.counts.append(len(self.site.holders()))
                ((used,),) = self.site.server.ask(
                    self.site.database,
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
                )
                self.connections.append(used - 1)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def most_at_once(runs: Sequence[dict[str, Any]]) -> int:
    """Most steps that were under way at the same moment, by the event log."""
    changes: list[tuple[float, int]] = []
    for run in runs:
        for event in run["events"]["events"]:
            if event["__typename"] == "ExecutionStepStartEvent":
                changes.append((float(event["timestamp"]), 1))
            if event["__typename"] in ("ExecutionStepSuccessEvent", "ExecutionStepFailureEvent"):
                changes.append((float(event["timestamp"]), -1))
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    assert now == 0
    return most


def test_four_backfills_at_once_stay_within_the_pool(site: Site) -> None:
    sampler = Sampler(site)
    began = time.monotonic()
    with sampler.sampling():
        ids = [site.launch(asset, keys) for asset, keys in BACKFILLS.items()]
        for each in ids:

            def done(each: str = each) -> bool:
                status = site.graphql(BACKFILL, id=each)["partitionBackfillOrError"]["status"]
                assert not status.startswith(("COMPLETED_FAILED", "FAIL")), site.failures()
                return status == "COMPLETED_SUCCESS"

            wait(done, 900, f"backfill {each} is not done")
    seconds = time.monotonic() - began
    runs = [
        run
        for run in site.graphql(RUNS)["runsOrError"]["results"]
        if any(tag["key"] == "dagster/backfill" for tag in run["tags"])
    ]
    assert [run["status"] for run in runs] == ["SUCCESS"] * sum(map(len, BACKFILLS.values()))
    most = most_at_once(runs)
    print(
        f"\n{len(ids)} backfills, {len(runs)} runs in {seconds:.0f} s; at most {most} steps at "
        f"once by the event log, {max(sampler.counts)} slots in {len(sampler.counts)} samples, "
        f"{max(sampler.connections)} connections"
    )
    # The limit was reached, and never crossed.
    assert most == GPU
    assert max(sampler.counts) == GPU
    assert site.holders() == []
    said = site.log.read_text().lower()
    assert [word for word in TROUBLE if word in said] == []


@contextlib.contextmanager
def training(site: Site) -> Iterator[str]:
    """A run of the UI that trains and holds a slot; its id. Nothing of it is left at the end."""
    before = set(site.holders())
    site.launch("checkpoint", ["events|lab-llama.full.p01"])
    wait(lambda: set(site.holders()) - before, 120, "no slot was claimed")
    (run_id,) = set(site.holders()) - before
    wait(lambda: PID_TAG in site.run(run_id)[1], 60, "the run names no process")
    worker = psutil.Process(int(site.run(run_id)[1][PID_TAG]))
    wait(worker.children, 60, "nothing trains")
    family = [worker, *worker.children(recursive=True)]
    yield run_id
    assert run_id not in site.holders()
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == [], "a process goes on without its slot"


def test_a_cancelled_runs_slot_is_free_within_a_minute(site: Site) -> None:
    with training(site) as run_id:
        began = time.monotonic()
        site.graphql(CANCEL, id=run_id)
        wait(lambda: run_id not in site.holders(), MINUTE, "the slot is still taken")
        seconds = time.monotonic() - began
        assert seconds < MINUTE
        wait(lambda: site.run(run_id)[0] == "CANCELED", MINUTE, "the run is not cancelled")
    print(f"\ncancelled: slot free after {seconds:.1f} s")


def test_a_killed_runs_slot_is_free_within_a_minute(site: Site) -> None:
    with training(site) as run_id:
        os.kill(int(site.run(run_id)[1][PID_TAG]), signal.SIGKILL)
        seconds = wait(lambda: run_id not in site.holders(), MINUTE, "the slot is still taken")
        assert site.run(run_id)[0] == "FAILURE"
    print(f"\nkilled run of the UI: slot free after {seconds:.1f} s")


@contextlib.contextmanager
def training_by_command(site: Site) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `kinject run` that trains, and its run."""
    cell = Cell("checkpoint", ("events", "lab-llama.full.p01"))
    shutil.rmtree(Store(site.home / "small").folder(cell), ignore_errors=True)
    with subprocess.Popen(
        command("run", "--profile", str(site.profile), "--select", "checkpoint"),
        env=site.env(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait(site.holders, 120, "no slot was claimed")
        (run_id,) = site.holders()
        assert site.run(run_id)[1][PID_TAG] == str(process.pid)
        yield process, run_id


def test_a_command_that_is_cancelled_in_the_ui_stops(site: Site) -> None:
    with training_by_command(site) as (process, run_id):
        began = time.monotonic()
        site.graphql(CANCEL, id=run_id)
        _, said = process.communicate(timeout=MINUTE)
        wait(lambda: run_id not in site.holders(), MINUTE, "the slot is still taken")
        seconds = time.monotonic() - began
    assert process.returncode == 130
    assert "stopped; start the same command again" in said
    assert site.run(run_id)[0] in {"CANCELED", "FAILURE"}
    print(f"\ncancelled `kinject run`: ended, and slot free, after {seconds:.1f} s")


def test_a_killed_commands_slot_is_free_within_a_minute(site: Site) -> None:
    with training_by_command(site) as (process, run_id):
        process.kill()
        process.communicate()
    seconds = wait(lambda: run_id not in site.holders(), MINUTE, "the slot is still taken")
    assert site.run(run_id)[0] == "FAILURE"
    print(f"\nkilled `kinject run`: slot free after {seconds:.1f} s")


def test_a_run_killed_with_its_code_server_is_noticed(site: Site) -> None:
    with training(site) as run_id:
        worker = psutil.Process(int(site.run(run_id)[1][PID_TAG]))
        code_server = worker.parent()
        assert code_server is not None
        for process in (code_server, worker):
            process.kill()
        seconds = wait(lambda: run_id not in site.holders(), MINUTE, "the slot is still taken")
        assert site.run(run_id)[0] == "FAILURE"
    print(f"\nkilled with its code server: slot free after {seconds:.1f} s")


def test_the_password_is_nowhere(site: Site) -> None:
    doctor = subprocess.run(
        command("doctor", "--profile", str(site.profile)),
        env=site.env(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"database {site.database} at 127.0.0.1:{site.server.port} (reached)" in doctor.stdout
    secret = site.server.password
    assert secret not in doctor.stdout + doctor.stderr
    assert secret not in json.dumps(site.graphql("{ instance { info } }"))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert secret not in " ".join(process.cmdline())
    for path in [site.log, *(p for p in site.home.rglob("*") if p.is_file())]:
        assert secret.encode() not in path.read_bytes(), path
