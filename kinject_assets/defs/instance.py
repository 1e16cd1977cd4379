"""The profile's own Dagster instance: opened ready to use, and cleared of what a crash left."""

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from kinject_assets.config import Profile
from kinject_assets.core.history import (
    HEADER,
    POSTGRES_URL,
    SETTINGS,
    dagster_folder,
    keeps_in_postgres,
    name_driver,
    opening,
    wants_postgres,
    written_by_us,
)
from kinject_assets.core.lineage.audit import Logged
from kinject_assets.core.manifest import Manifest, write_atomically
from kinject_assets.core.store import Cell, Store
from kinject_assets.defs.io import SEAL
from kinject_assets.defs.liveness import PARENT_RUN, WatchedRunLauncher, alive
from kinject_assets.defs.partitions import add_corpus_keys, partition_key

POSTGRES = f"""storage:
  postgres:
    postgres_url: {{env: {POSTGRES_URL}}}
"""

HEARTBEAT_SECONDS = 120
"""Age of a daemon's last heartbeat at which it is gone; they come every 30 seconds."""

UNFINISHED = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class Recovered:
    """What a crash had left behind and opening the instance put right.

    Attributes:
        runs: Ids of runs that were marked as failed, since their process is gone.
        slots: Pool slots that were freed.
        drafts: Artefacts of which a torn draft was removed.
        events: Artefacts that were published without their event, now reported.
    """

    runs: tuple[str, ...]
    slots: int
    drafts: tuple[str, ...]
    events: tuple[str, ...]


def _settings(profile: Profile, postgres: bool) -> str:
    """Dagster's settings for a profile.

    A slot is free within a minute after its run's end, however that came: a run whose process is
    gone is noticed in the next poll, one that does not obey is given up after the cancel timeout.
    """
    # A run of `full_study` waits for runs of its own.
    most = 1 + max(profile.pools.model_dump().values())
    return f"""{HEADER}telemetry: {{enabled: false}}
nux: {{enabled: false}}
concurrency:
  pools: {{default_limit: 1, granularity: op}}
  runs: {{max_concurrent_runs: {most}}}
freshness: {{enabled: true}}
run_launcher: {{module: {WatchedRunLauncher.__module__}, class: {WatchedRunLauncher.__name__}}}
run_monitoring:
  enabled: true
  poll_interval_seconds: 10
  start_timeout_seconds: 180
  cancel_timeout_seconds: 30
  free_slots_after_run_end_seconds: 5
{POSTGRES if postgres else ""}"""


def dagster_home(profile: Profile) -> Path:
    """`$DAGSTER_HOME`, or the profile's own folder; its `dagster.yaml` is kept up to date."""
    folder = dagster_folder(profile)
    if written_by_us(folder):
        path = folder / SETTINGS
        postgres = wants_postgres(folder)
        if postgres:
            name_driver()
        text = _settings(profile, postgres)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)
    os.environ["DAGSTER_HOME"] = str(folder)
    return folder


def open_history(profile: Profile) -> DagsterInstance:
    """Opens the profile's instance as it is."""
    folder = dagster_home(profile)
    ours = written_by_us(folder) and wants_postgres(folder)
    with opening(profile) if ours else contextlib.nullcontext():
        return DagsterInstance.get()


def open_instance(profile: Profile) -> DagsterInstance:
    """Opens the profile's instance, with its corpora as partition keys and its pools' limits."""
    instance = open_history(profile)
    add_corpus_keys(instance)
    set_pools(instance, profile)
    return instance


def set_pools(instance: DagsterInstance, profile: Profile) -> None:
    """Gives the pools the profile's limits; those that are right are left alone."""
    storage = instance.event_log_storage
    known = {pool.name: pool.limit for pool in storage.get_pool_limits()}
    for pool, limit in profile.pools.model_dump().items():
        if known.get(pool) != limit:
            storage.set_concurrency_slots(pool, limit)


def recover(instance: DagsterInstance, store: Store, ui_alive: bool) -> Recovered:
    """Puts right what a crash left behind.

    A killed process leaves its run STARTED and its pool slots taken: the next run would wait for
    ever. Dead runs are marked as failed, slots of runs that are not under way freed, drafts of dead
    processes removed, and artefacts that were published without their event reported.

    Args:
        instance: The profile's instance.
        store: The profile's lake.
        ui_alive: Whether a code server of this profile runs; its own runs are then left alone.
    """
    buried: list[str] = []
    for run in instance.get_runs(filters=RunsFilter(statuses=UNFINISHED)):
        if alive(instance, run, ui_alive) or run.run_id == os.environ.get(PARENT_RUN):
            continue
        instance.report_run_failed(
            run, "The process of this run is gone (killed, or the machine went down)."
        )
        buried.append(run.run_id)
    return Recovered(
        runs=tuple(buried),
        slots=free_slots(instance),
        drafts=tuple(store.sweep_dead()),
        events=tuple(report_published(instance, store)),
    )


def served_elsewhere(instance: DagsterInstance) -> bool:
    """Whether a daemon is at work on a history that other machines may share.

    Its runs are then its own matter: of one that has not begun its first step, nobody else can tell
    whether it lives.
    """
    folder = Path(instance.root_directory)
    if written_by_us(folder) and not keeps_in_postgres(folder):
        return False
    beats = instance.get_daemon_heartbeats().values()
    return any(time.time() - beat.timestamp < HEARTBEAT_SECONDS for beat in beats)


def free_slots(instance: DagsterInstance) -> int:
    """Frees pool slots that runs hold which are not under way; returns how many."""
    storage = instance.event_log_storage
    pools = [storage.get_concurrency_info(pool) for pool in storage.get_concurrency_keys()]
    holders = {slot.run_id for pool in pools for slot in pool.claimed_slots}
    waiting = {step.run_id for pool in pools for step in pool.pending_steps}
    freed = 0
    for run_id in holders | waiting:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            freed += sum(slot.run_id == run_id for pool in pools for slot in pool.claimed_slots)
            storage.free_concurrency_slots_for_run(run_id)
    return freed


def logged(
    instance: DagsterInstance, store: Store, cells: Iterable[Cell] = ()
) -> dict[str, Logged]:
    """The last event of each artefact in Dagster's log, by cell.

    Args:
        instance: The profile's instance.
        store: The profile's lake: all that it holds is looked up.
        cells: What is looked up besides, whether it is there or not.
    """
    keys = {cell: partition_key(cell.parts) for cell in cells}
    keys |= {cell: manifest.partition for cell, manifest in store.published(skip_broken=True)}
    found: dict[str, Logged] = {}
    for cell, key in keys.items():
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(cell.asset), asset_partitions=[str(key)] if key else None
            ),
            limit=1,
        ).records
        if records and (event := records[0].asset_materialization) and event.tags:
            seal = event.metadata.get(SEAL)
            found[str(cell)] = Logged(
                version=event.tags.get("dagster/data_version", ""),
                seal=str(seal.value) if seal else "",
                at=records[0].timestamp,
            )
    return found


def report_published(instance: DagsterInstance, store: Store) -> list[str]:
    """Reports artefacts whose manifest is there and whose event is not; returns their cells.

    A manifest that was edited is not reported: the log stays a witness against it.
    """
    events = logged(instance, store)
    reported: list[str] = []
    for cell, manifest in store.published(skip_broken=True):
        event = events.get(str(cell))
        if not manifest.intact or (event and _reports(event, manifest)):
            continue
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=cell.asset,
                partition=manifest.partition or None,
                description="In the lake without its event: of another machine, or before a crash.",
                tags={
                    "dagster/data_version": manifest.logical_version,
                    "dagster/data_version_is_user_provided": "true",
                    "dagster/code_version": manifest.code_version,
                },
                metadata={
                    "made_by_run": manifest.run_id,
                    "made_at": manifest.finished_at,
                    SEAL: manifest.seal,
                },
            )
        )
        reported.append(str(cell))
    return reported


def _reports(event: Logged, manifest: Manifest) -> bool:
    """Whether an event is of this manifest, or of one that this one was made out of by hand."""
    if event.version != manifest.logical_version:
        return False
    return event.seal in {"", manifest.seal} or not event.before(manifest)
