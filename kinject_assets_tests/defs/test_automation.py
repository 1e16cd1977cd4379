"""What happens by itself, with the lab's profile and artefacts that cost nothing to make."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterInstance

from kinject_assets.config import home
from kinject_assets.core import journal
from kinject_assets.core.plan import Plan
from kinject_assets.core.status import FAILURES
from kinject_assets.core.store import Cell, Store
from kinject_assets.definitions import defs
from kinject_assets.defs import automation
from kinject_assets.defs.checks import CHECKS
from kinject_assets.defs.instance import open_instance
from kinject_assets.defs.io import UNLESS_COMPLETE
from kinject_assets.defs.partitions import PROFILE
from kinject_assets_tests.core.made import make

CORPUS = "events-current"
PREPARED = {"chunks", "embeddings", "faiss_index", "questions", "retrieved"}


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    opened = open_instance(PROFILE)
    yield opened
    opened.dispose()


@pytest.fixture
def plan(instance: DagsterInstance) -> Plan:
    """The lab's study, everything made."""
    found = Plan(PROFILE, Store(home(PROFILE)))
    for cell in found.cells:
        make(found, cell, prefixes={f"p{n:02d}": "v" for n in range(20)})
    (found.store.root / "results.duckdb").write_text("")
    (found.store.root / "report.html").write_text("")
    return found


def requested(result: dg.EvaluateAutomationConditionsResult) -> dict[str, set[str]]:
    """Asset -> partitions that are asked for."""
    return {
        r.key.to_user_string(): set(r.true_subset.expensively_compute_partition_keys())
        for r in result.results
        if not r.true_subset.is_empty and r.true_subset.partitions_def is not None
    }


def look(instance: DagsterInstance, cursor: object = None) -> dg.EvaluateAutomationConditionsResult:
    """One tick of the sensor."""
    automation._seen_at.cache_clear()
    return dg.evaluate_automation_conditions(defs=defs, instance=instance, cursor=cursor)  # pyright: ignore[reportArgumentType]


def test_a_change_is_asked_for_once_and_again_when_it_changes_again(
    instance: DagsterInstance, plan: Plan
) -> None:
    quiet = look(instance)
    assert quiet.total_requested == 0
    make(plan, Cell("articles", (CORPUS,)), "changed")
    first = look(instance, quiet.cursor)
    assert requested(first) == {asset: {CORPUS} for asset in PREPARED}
    # It failed, or takes long: the same is not asked for twice.
    second = look(instance, first.cursor)
    assert second.total_requested == 0
    make(plan, Cell("articles", (CORPUS,)), "changed again")
    third = look(instance, second.cursor)
    assert requested(third) == {asset: {CORPUS} for asset in PREPARED}
    for asset in ("chunks", "questions", "embeddings", "faiss_index", "retrieved"):
        make(plan, Cell(asset, (CORPUS,)), "changed")
    fourth = requested(look(instance, third.cursor))
    assert fourth == {
        "answers_base": {f"{CORPUS}|lab-llama"},
        "answers_rag": {f"{CORPUS}|lab-llama"},
        "triage": {CORPUS},
    }


def test_a_tick_that_was_lost_loses_nothing(instance: DagsterInstance, plan: Plan) -> None:
    quiet = look(instance)
    make(plan, Cell("articles", (CORPUS,)), "changed")
    look(instance, quiet.cursor)
    assert requested(look(instance, quiet.cursor)) == {asset: {CORPUS} for asset in PREPARED}


def test_training_is_not_asked_for(instance: DagsterInstance, plan: Plan) -> None:
    quiet = look(instance)
    make(plan, Cell("articles", ("comets",)), "changed")
    asked: set[str] = set()
    cursor = quiet.cursor
    for _ in range(4):
        result = look(instance, cursor)
        cursor = result.cursor
        found = requested(result)
        asked |= set(found)
        for asset, keys in found.items():
            for key in keys:
                make(plan, Cell(asset, tuple(key.split("|"))), "changed")
    assert {"answers_base", "answers_rag"} <= asked
    assert not asked & {"checkpoint", "answers_ft", "answers_ft_rag", "damage", "paraphrases"}


def at(hour: int, instance: DagsterInstance) -> dg.ScheduleEvaluationContext:
    """A tick of a schedule."""
    return dg.build_schedule_context(
        instance,
        scheduled_execution_time=datetime(2031, 5, 1, hour, tzinfo=UTC),
        repository_def=defs.get_repository_def(),
    )


def test_the_schedule_looks_at_each_window_every_day(instance: DagsterInstance) -> None:
    context = at(3, instance)
    data = automation.refresh_daily.evaluate_tick(context)
    assert [request.partition_key for request in data.run_requests or []] == [CORPUS]
    assert automation.refresh_daily.cron_schedule == "0 3 * * *"
    job = defs.resolve_job_def("refresh_current_events")
    assert job.tags[UNLESS_COMPLETE] == "carry"
    selected = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert selected == PREPARED | {"articles"}


def test_a_refresh_leaves_alone_what_has_not_changed(instance: DagsterInstance, plan: Plan) -> None:
    at_hand = ("chunks", "questions", "embeddings", "faiss_index", "retrieved")
    for asset in at_hand:
        found = [
            {"name": name, "passed": name != "recall", "warn": True, "message": f"{name}: seen"}
            for name in CHECKS[asset]
        ]
        make(plan, Cell(asset, (CORPUS,)), "v", found)
    before = {asset: plan.store.manifest(Cell(asset, (CORPUS,))) for asset in at_hand}
    job = defs.resolve_job_def("refresh_current_events")
    result = job.execute_in_process(
        instance=instance,
        partition_key=CORPUS,
        asset_selection=[dg.AssetKey(asset) for asset in at_hand],
    )
    assert {asset: plan.store.manifest(Cell(asset, (CORPUS,))) for asset in at_hand} == before
    events = result.get_asset_materialization_events()
    assert {
        event.step_key: (event.materialization.tags or {})["dagster/data_version"]
        for event in events
    } == dict.fromkeys(at_hand, "v")
    checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert checks["recall"] is False
    assert checks["normalised"] is True

    # Asked for by a person, it is made; and what was made by an older version is made anew.
    make(plan, Cell("chunks", (CORPUS,)), "v")
    remade = job.execute_in_process(
        instance=instance,
        partition_key=CORPUS,
        asset_selection=[dg.AssetKey("chunks")],
        raise_on_error=False,
    )
    assert not remade.success, "there are no real articles to cut"


def test_the_nightly_catch_up_runs_if_something_is_out_of_date(
    instance: DagsterInstance, plan: Plan
) -> None:
    context = at(5, instance)
    quiet = automation.catch_up_nightly.evaluate_tick(context)
    assert not quiet.run_requests
    assert quiet.skip_message == "nothing is out of date"
    make(plan, Cell("articles", (CORPUS,)), "changed")
    assert len(automation.catch_up_nightly.evaluate_tick(context).run_requests or []) == 1


def test_conditions_and_freshness_are_on_the_assets() -> None:
    graph = defs.resolve_asset_graph()
    conditions = {
        key.to_user_string()
        for key in graph.materializable_asset_keys
        if graph.get(key).automation_condition is not None
    }
    assert conditions == set(automation.CARRIED)
    fresh = {
        key.to_user_string()
        for key in graph.materializable_asset_keys
        if graph.get(key).freshness_policy is not None
    }
    assert fresh == set(automation.FRESH)
    assert automation.carry_changes.default_status == dg.DefaultSensorStatus.RUNNING


class _Listener(BaseHTTPRequestHandler):
    heard: list[dict[str, str]] = []  # noqa: RUF012 (the handler is made anew for each request)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def alert_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/secret-token"
    monkeypatch.setenv(automation.ALERT_URL, url)
    yield url
    server.shutdown()


def test_a_failed_run_is_told_of(instance: DagsterInstance, alert_url: str) -> None:
    _Listener.heard.clear()
    job = defs.resolve_job_def("refresh_current_events")
    # Without articles, chunks cannot be made.
    result = job.execute_in_process(
        instance=instance,
        partition_key=CORPUS,
        asset_selection=[dg.AssetKey("chunks")],
        raise_on_error=False,
    )
    assert not result.success
    context = dg.build_run_status_sensor_context(
        sensor_name="run_failures",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    automation.tell_of_failures(context)
    (row,) = journal.read(home(PROFILE) / FAILURES, "")
    assert row["what"] == f"chunks/{CORPUS}"
    assert row["run_id"] == result.run_id
    assert "not there yet" in row["why"]
    (heard,) = _Listener.heard
    assert f"chunks/{CORPUS} failed" in heard["text"]
    assert "secret-token" not in json.dumps([row, heard])
