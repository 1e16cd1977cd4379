"""What happens by itself: looking for changes, carrying them on, catching up, telling of failures.

The schedule looks at the windows of current events. A condition on each asset carries what has
changed down to the answers of base and RAG and to the tables; training waits for a person or for
`refresh.train`. The nightly catch-up tries again what failed or was lost. All of it needs the
daemon, which `kinject ui` starts; `kinject refresh` does the same without one.
"""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import dagster as dg

from kinject_assets.config import home
from kinject_assets.core import journal
from kinject_assets.core.carry import CARRIED, PREPARED, out_of_date, ready, rolling_corpora
from kinject_assets.core.lake.opening import open_store
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import Plan
from kinject_assets.core.status import FAILURES
from kinject_assets.core.store import Cell
from kinject_assets.defs.io import CARRY, UNLESS_COMPLETE
from kinject_assets.defs.jobs import follow
from kinject_assets.defs.partitions import CORPUS, PROFILE, cell_parts, corpus_keys, partition_key

REFRESH = PROFILE.refresh

TAGS = {UNLESS_COMPLETE: CARRY}

ROLLING = rolling_corpora(PROFILE)
"""Windows of current events."""

ALERT_URL = "KINJECT_ALERT_URL"
"""Environment variable with an address that failures are posted to, as `{"text": ...}`."""

SENSORS = dg.DefaultSensorStatus.RUNNING if REFRESH.automatic else dg.DefaultSensorStatus.STOPPED
SCHEDULES = (
    dg.DefaultScheduleStatus.RUNNING if REFRESH.automatic else dg.DefaultScheduleStatus.STOPPED
)


def _plan() -> Plan:
    return Plan(PROFILE, open_store(PROFILE))


@lru_cache(maxsize=1)
def _seen_at(moment: datetime) -> tuple[Plan, dict[Cell, str]]:
    """What is out of date, looked up once for all assets of a tick."""
    plan = _plan()
    return plan, out_of_date(plan)


OTHERS, STUCK = "/others", "/stuck"
"""Keys of a cursor, beside partitions: what else waited at the last tick, and for how many."""

PATIENCE = 4
"""Ticks after which the tables do not wait any more for what does not get on."""


class OutOfDate(dg.AutomationCondition):
    """What an artefact is made from has changed, and it can be made now.

    Asked of the lake itself, not of events: a tick that was lost loses nothing. What was asked for
    and failed is not asked for again as long as it would be made from the same; the nightly
    catch-up does that.
    """

    @property
    def name(self) -> str:
        """As the UI shows it."""
        return "what it is made from has changed"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        """The partitions that are out of date and were not asked for in this state before."""
        asked: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        candidates = context.candidate_subset
        if candidates.is_empty:
            return dg.AutomationResult(context, candidates, cursor=json.dumps(asked))
        plan, waiting = _seen_at(context.evaluation_time)
        chosen: dict[str, str] = {}
        if context.partitions_def is None:
            # What fails again and again must not keep the tables from what is there.
            others = content_hash([h for cell, h in waiting.items() if cell.parts])
            stuck = int(asked.get(STUCK, 0)) + 1 if asked.get(OTHERS) == others else 0
            asked |= {OTHERS: others, STUCK: str(stuck)}
            if stuck >= PATIENCE:
                waiting = {cell: h for cell, h in waiting.items() if not cell.parts}
        for cell in ready(plan, waiting):
            key = str(partition_key(cell.parts) or "")
            if cell.asset == context.key.to_user_string() and asked.get(key) != waiting[cell]:
                chosen[key] = waiting[cell]
        if context.partitions_def is None:
            true = candidates if chosen else context.get_empty_subset()
        else:
            true = candidates.compute_intersection_with_partition_keys(set(chosen))
            chosen = {key: chosen[key] for key in true.expensively_compute_partition_keys()}
        return dg.AutomationResult(context, true, cursor=json.dumps(asked | chosen))


CARRY_ON = (
    ~dg.AutomationCondition.in_progress()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & OutOfDate()
).with_label("carry changes on")
"""The candidates that `OutOfDate` sees are those that no run is making, nor what they are made
from: what it gives is asked."""


FRESH = ("articles", "chunks", "questions", "retrieved")
"""Assets that a working schedule looks at every day, whether there is something new or not."""


def with_condition(spec: dg.AssetSpec) -> dg.AssetSpec:
    """Puts the condition, and the policy of freshness, on the assets that have them."""
    name = spec.key.to_user_string()
    if name in CARRIED and (name != "articles" or ROLLING):
        spec = spec.replace_attributes(automation_condition=CARRY_ON)
    if ROLLING and name in FRESH:
        policy = dg.FreshnessPolicy.time_window(
            fail_window=timedelta(hours=2 * REFRESH.stale_hours),
            warn_window=timedelta(hours=REFRESH.stale_hours),
        )
        spec = spec.replace_attributes(freshness_policy=policy)
    return spec


carry_changes = dg.AutomationConditionSensorDefinition(
    "carry_changes",
    target=dg.AssetSelection.assets(*CARRIED),
    default_status=SENSORS,
    minimum_interval_seconds=30,
    run_tags=TAGS,
    # The condition is code of ours: it is asked where the assets are.
    use_user_code_server=True,
    description="Carries changes of the text down to the answers of base and RAG, and to the "
    "tables. Training waits for a person, or for refresh.train of the profile.",
)


@dg.sensor(
    name="corpus_keys",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Gives the instance the profile's corpora, and frozen releases, as partition keys.",
)
def add_keys(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Adds the corpora that the instance does not know yet."""
    known = set(context.instance.get_dynamic_partitions("corpus"))
    new = [key for key in corpus_keys(open_store(PROFILE).lake) if key not in known]
    return dg.SensorResult(
        dynamic_partitions_requests=[CORPUS.build_add_request(new)] if new else [],
        skip_reason=None if new else "all corpora are known",
    )


def _prepared(*corpora: str) -> list[str]:
    """What the grid asks for of windows before models are asked, in order."""
    asked = {cell.asset for cell in _plan().cells if cell.parts and cell.parts[0] in corpora}
    return [name for name in PREPARED if name in asked]


refresh_current_events = dg.define_asset_job(
    "refresh_current_events",
    selection=_prepared(*ROLLING) or ["articles"],
    tags=TAGS,
    description="Looks at the last months of a window of current events: fetches pages whose "
    "revision changed, cuts, embeds and asks about what is new, retires questions whose text is "
    "gone, and freezes a month that has closed as a release. What has not changed costs nothing. "
    "Answers and tables follow by the sensor `carry_changes`.",
)


@dg.schedule(
    name="refresh_current_events_daily",
    job=refresh_current_events,
    cron_schedule=REFRESH.cron,
    execution_timezone="UTC",
    default_status=SCHEDULES,
    description="Looks at the windows of current events (refresh.cron of the profile).",
)
def refresh_daily(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    """A run for each window of current events."""
    at = context.scheduled_execution_time
    for corpus in ROLLING:
        yield dg.RunRequest(
            run_key=f"{corpus}:{at.isoformat()}",
            partition_key=corpus,
            asset_selection=[dg.AssetKey(name) for name in _prepared(corpus)],
        )


@dg.op
def make_what_is_out_of_date(context: dg.OpExecutionContext) -> None:
    """Makes what data has put out of date and nobody is making, inputs first."""
    follow(context, ("refresh", "--no-look"))


@dg.job(
    description="Makes what changes of the text have put out of date and nobody is making: what a "
    "lost tick left, or what failed. Looks at no source. Every partition is a run of its own."
)
def catch_up() -> None:
    """What is out of date."""
    make_what_is_out_of_date()


@dg.schedule(
    name="nightly_catch_up",
    job=catch_up,
    cron_schedule=REFRESH.catch_up,
    execution_timezone="UTC",
    default_status=SCHEDULES,
    description="Tries again what failed, or what a lost tick of `carry_changes` left out of date "
    "(refresh.catch_up of the profile).",
)
def catch_up_nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One run, if anything is out of date."""
    waiting = out_of_date(_plan())
    if not waiting:
        return dg.SkipReason("nothing is out of date")
    return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())


@dg.run_failure_sensor(
    name="run_failures",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Writes failed runs to {FAILURES} in the profile's folder, which `kinject status` "
    f"shows, and posts them to the address in {ALERT_URL}, if it is set.",
)
def tell_of_failures(context: dg.RunFailureSensorContext) -> None:
    """Tells of a failed run where people look."""
    run = context.dagster_run
    failures = context.get_step_failure_events()
    first = failures[0].step_failure_data if failures else None
    why = (first and first.user_failure_data and first.user_failure_data.description) or (
        first and first.error and first.error.message
    )
    what = failures[0].step_key if failures else run.job_name
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": run.run_id,
        "what": "/".join((what or "", *cell_parts(_key(run)))),
        "why": (why or context.failure_event.message or "failed").strip(),
    }
    journal.append(home(PROFILE) / FAILURES, row)
    if url := os.environ.get(ALERT_URL):
        import httpx

        text = f"kinject ({PROFILE.name}): {row['what']} failed: {row['why']} (run {row['run_id']})"
        try:
            httpx.post(url, json={"text": text}, timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            # The address may hold a secret: only what went wrong is said.
            context.log.warning("the alert was not delivered: %s", type(error).__name__)


def _key(run: dg.DagsterRun) -> str | dg.MultiPartitionKey | None:
    keys = {
        name.removeprefix("dagster/partition/"): value
        for name, value in run.tags.items()
        if name.startswith("dagster/partition/")
    }
    return dg.MultiPartitionKey(keys) if keys else run.tags.get("dagster/partition")


SENSOR_DEFINITIONS = [add_keys, carry_changes, tell_of_failures]
SCHEDULE_DEFINITIONS = [*([refresh_daily] if ROLLING else []), catch_up_nightly]
AUTOMATION_JOBS = [*([refresh_current_events] if ROLLING else []), catch_up]
