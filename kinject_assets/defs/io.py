"""The frame of every asset: refuse what was not asked for, read inputs, publish with a manifest."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import dagster as dg

from kinject_assets.core.carry import only_inputs_differ
from kinject_assets.core.corpus.releases import family
from kinject_assets.core.errors import (
    BrokenArtefact,
    DiskFull,
    KinjectError,
    MissingArtefact,
    is_disk_full,
)
from kinject_assets.core.lake.objects import LakeError
from kinject_assets.core.manifest import PROCESSES, Manifest, fingerprint
from kinject_assets.core.plan import CODE_VERSIONS, OUTPUTS, Plan
from kinject_assets.core.process import this_process
from kinject_assets.core.progress import KEPT_SECONDS, PROGRESS, Progress
from kinject_assets.core.report.plots import markdown_image
from kinject_assets.core.schema import arrow_schema, described
from kinject_assets.core.store import Cell, library_versions, write_rows
from kinject_assets.defs.liveness import note_process
from kinject_assets.defs.partitions import cell_parts
from kinject_assets.defs.resources import Study

Row = TypeVar("Row")


class Listener(Protocol):
    """Hears of every step of this process."""

    def begin(self, cell: Cell) -> Callable[[], None]:
        """A step starts; the answer is called when its artefact is published."""
        ...

    def progress(self, message: str, done: int | None, total: int | None) -> None:
        """A step goes on."""


LISTENERS: list[Listener] = []
"""The command line adds its display."""

LOG_SECONDS = 5.0
OBSERVED_SECONDS = 20.0
"""Seconds between two lines of the log, and between two marks on the asset's page."""

SEAL = "manifest_seal"
"""Metadata that keeps the manifest's seal in Dagster's log: a second witness against edits."""

PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 160


class Step:
    """One asset partition being made.

    Attributes:
        cell: What is being made.
        draft: Folder for its files; it becomes the artefact on `finish`.
        work: Folder that survives a crash, for work that a second try goes on with.
        placement: Metadata on where it was made.
        processes: How many processes shared the work.
    """

    def __init__(
        self, context: dg.AssetExecutionContext, study: Study, cell: Cell, draft: Path
    ) -> None:
        self.context = context
        self.study = study
        self.cell = cell
        self.draft = draft
        self.config = study.plan.config(cell)
        self.inputs, missing = study.plan.input_versions(cell)
        if missing and cell.parts:
            raise MissingArtefact(
                f"{cell} is made from {', '.join(map(str, missing))}, which "
                f"{'is' if len(missing) == 1 else 'are'} not there yet. Materialise "
                f"{'it' if len(missing) == 1 else 'them'} first, or run `kinject run`."
            )
        self.fingerprint = fingerprint(CODE_VERSIONS[cell.asset], self.config, self.inputs)
        self.work = study.store.work(cell, self.fingerprint)
        self.placement: dict[str, Any] = {}
        self.processes = 1
        self._began = datetime.now(UTC)
        self._last_log = self._last_kept = self._last_observed = time.monotonic()
        before = Progress.read(self.work / PROGRESS)
        if before is not None and before.owner != this_process():
            context.log.info(
                "%s: goes on; it was stopped at %s %s", cell, before.amount, before.message
            )
        self._keep("started", None, None)

    def report(self, message: str, done: int | None = None, total: int | None = None) -> None:
        """Tells listeners at once, and the run's log every few seconds."""
        for listener in LISTENERS:
            listener.progress(message, done, total)
        now = time.monotonic()
        ended = total is not None and done == total
        if now - self._last_kept >= KEPT_SECONDS:
            self._last_kept = now
            self._keep(message, done, total)
        if ended or now - self._last_log >= LOG_SECONDS:
            self._last_log = now
            amount = "" if total is None else f" {done}/{total}"
            self.context.log.info("%s:%s %s", self.cell, amount, message)
        if total and now - self._last_observed >= OBSERVED_SECONDS:
            self._last_observed = now
            self._observe(message, done or 0, total)

    def worked(self, seconds: float) -> None:
        """Adds up what workers of this step took, for its metadata."""
        before = self.placement.get("worker_seconds", 0.0)
        self.placement["worker_seconds"] = round(before + seconds, 2)

    def _keep(self, message: str, done: int | None, total: int | None) -> None:
        # Without room for a note the work itself goes on, and says so if it needs room.
        with contextlib.suppress(OSError):
            Progress.now(str(self.cell), message, done, total).write(self.work)

    def _observe(self, message: str, done: int, total: int) -> None:
        """Shows long work on the asset's page while it goes on, and afterwards as a plot."""
        self.context.log_event(
            dg.AssetObservation(
                asset_key=self.cell.asset,
                partition=str(self.context.partition_key) if self.cell.parts else None,
                metadata={"progress_percent": round(100 * done / total, 1), "doing": message},
            )
        )

    def upstream(self, asset: str) -> Cell:
        """The cell of another asset of this corpus."""
        return Cell(asset, self.cell.parts[:1])

    def rows(self, asset: str, row_type: type[Row], name: str | None = None) -> list[Row]:
        """Rows of another asset of this corpus."""
        return self.study.store.rows(self.upstream(asset), name or asset, row_type)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return (datetime.now(UTC) - self._began).total_seconds()

    def previous(self, *but: str) -> list[tuple[Cell, Manifest]]:
        """Earlier versions of this asset under the same settings, this cell's first.

        Those of corpora that share pages with this one are among them.

        Args:
            *but: Parts of the configuration that may differ.
        """
        store = self.study.store
        found: list[tuple[Cell, Manifest]] = []
        for cell in (self.cell, *self.family()):
            manifest = self.previous_manifest(cell)
            if (
                manifest is not None
                and manifest.code_version == CODE_VERSIONS[cell.asset]
                and self.study.plan.same_config(cell, manifest, *but)
                and not store.problem(cell, manifest, hashes=True)
            ):
                found.append((cell, manifest))
        return found

    def previous_folders(self, *but: str) -> list[str]:
        """Folders of `previous`."""
        return [self.study.store.reference(cell, ".") for cell, _ in self.previous(*but)]

    def family(self) -> list[Cell]:
        """Cells of this asset whose corpus shares pages with this one's (releases of a window)."""
        lake = self.study.store.lake
        corpora = family(self.study.profile, lake, self.cell.parts[0])
        return [Cell(self.cell.asset, (corpus, *self.cell.parts[1:])) for corpus in corpora]

    def previous_manifest(self, cell: Cell | None = None) -> Manifest | None:
        """Manifest of the version that this one will replace; `None` if it cannot be read."""
        try:
            return self.study.store.manifest(cell or self.cell)
        except BrokenArtefact:
            return None

    def previous_rows(
        self, name: str, row_type: type[Row], *decided_by: str, of: Cell | None = None
    ) -> list[Row]:
        """Rows of the version that this one will replace, where they may be used again.

        Args:
            name: The file.
            row_type: Its rows.
            *decided_by: Parts of the configuration that decide what a row says. When one of them,
                or the asset's code, has changed since, there are none.
            of: Another cell of this asset whose rows are as good.
        """
        cell = of or self.cell
        manifest = self.previous_manifest(cell)
        if (
            manifest is None
            or manifest.code_version != CODE_VERSIONS[self.cell.asset]
            or any(manifest.config.get(part) != self.config.get(part) for part in decided_by)
        ):
            return []
        return self.rows_before(name, row_type, of=cell)

    def rows_before(self, name: str, row_type: type[Row], of: Cell | None = None) -> list[Row]:
        """Rows of the version that this one will replace, whatever it was made with.

        Args:
            name: The file.
            row_type: Its rows.
            of: Another cell.

        Returns:
            None where there is no such version, or where it cannot be read.
        """
        cell = of or self.cell
        if self.previous_manifest(cell) is None:
            return []
        try:
            return self.study.store.rows(cell, name, row_type)
        except KinjectError as error:
            self.context.log.warning("nothing of %s is used again: %s", cell, error)
            return []

    def bill(self) -> dict[str, float]:
        """What this step asked of the language model service, for its metadata.

        Answers that the ledger had already cost nothing and are not in it.
        """
        return self.study.ledger.bill(self._began, self.study.profile.llm.prices)

    def write(self, name: str, rows: Sequence[Any], row_type: type) -> None:
        """Writes rows as a Parquet file of the artefact."""
        write_rows(self.draft / f"{name}.parquet", rows, row_type)

    def finish(
        self,
        logical_version: str,
        *,
        rows: Sequence[Any] | None = None,
        row_type: type | None = None,
        counts: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        checks: Sequence[dg.AssetCheckResult] = (),
        libraries: Sequence[str] = (),
        seeds: Mapping[str, int] | None = None,
    ) -> dg.MaterializeResult:
        """Publishes the artefact and tells Dagster what it is."""
        if self.processes > 1:
            counts = {**(counts or {}), PROCESSES: self.processes}
        key = self.context.partition_key if self.context.has_partition_key else ""
        # Side files first: what is published may name them.
        self.study.store.push()
        if output := OUTPUTS.get(self.cell.asset):
            self.study.store.keep_output(output)
        manifest = self.study.store.publish(
            self.cell,
            self.draft,
            partition=str(key),
            logical_version=logical_version,
            fingerprint=self.fingerprint,
            code_version=CODE_VERSIONS[self.cell.asset],
            inputs=self.inputs,
            config=self.config,
            started_at=self._began,
            run_id=self.context.run_id,
            libraries=library_versions(*libraries),
            seeds=seeds,
            counts=counts,
            checks=[
                {
                    "name": result.check_name,
                    "passed": result.passed,
                    "warn": result.severity == dg.AssetCheckSeverity.WARN,
                    "message": result.description,
                }
                for result in checks
            ],
        )
        shown: dict[str, Any] = {
            # Four digits are what people read; the files hold the rest.
            key: float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in (counts or {}).items()
            if isinstance(value, int | float | str)
        }
        shown["seconds"] = round(self.seconds, 2)
        shown[SEAL] = manifest.seal
        shown["dagster/uri"] = self.study.store.where(self.cell)
        shown["bytes"] = sum(file["bytes"] for file in manifest.files.values())
        if rows is not None and row_type is not None:
            shown["dagster/row_count"] = len(rows)
            shown["dagster/column_schema"] = column_schema(row_type)
            if rows:
                shown["preview"] = preview(rows)
        shown.update(self.placement)
        shown.update(metadata or {})
        return dg.MaterializeResult(
            data_version=dg.DataVersion(logical_version), metadata=shown, check_results=checks
        )


UNLESS_COMPLETE = ".dagster/kinject_unless_complete"
"""Tag of runs that leave cells that are complete as they are, e.g. since another process has just
made them. Its values: `COMPLETE`, or `CARRY`, which also leaves what waits for a person."""

COMPLETE, CARRY = "complete", "carry"


def one_maker(compute: Callable[..., dg.MaterializeResult]) -> Callable[..., dg.MaterializeResult]:
    """Lets one process at a time make a cell, and leaves a complete one alone where a run says so.

    Two runs that are asked for the same at once would pay for it twice; the later one waits. Put it
    below `@dg.asset`.
    """

    @functools.wraps(compute)
    def body(context: dg.AssetExecutionContext, **given: Any) -> dg.MaterializeResult:
        study: Study = given["study"]
        key = context.partition_key if context.has_partition_key else None
        cell = Cell(context.asset_key.to_user_string(), cell_parts(key))
        note_process(context.instance, context.run)
        with study.store.lock(
            cell, lambda: context.log.info("%s: another process makes it; waiting", cell)
        ):
            how = context.run.tags.get(UNLESS_COMPLETE)
            if how and cell.asset != "articles" and _stays(study.plan, cell, how):
                manifest = study.store.manifest(cell)
                specified = {spec.name for spec in context.assets_def.check_specs}
                if manifest and specified == {c["name"] for c in manifest.checks}:
                    context.log.info("%s: stays as it is", cell)
                    return _unchanged(manifest)
            return compute(context, **given)

    return body


def _stays(plan: Plan, cell: Cell, how: str) -> bool:
    """Whether a run that looks for changes leaves a cell as it is."""
    state = plan.state(cell)
    if state == "complete":
        return True
    # What a person has changed in the profile waits for `kinject run`: it may cost a lot.
    return how == CARRY and state == "stale" and not only_inputs_differ(plan, cell)


def _unchanged(manifest: Manifest) -> dg.MaterializeResult:
    """What an artefact is, and what its checks found when it was made."""
    return dg.MaterializeResult(
        data_version=dg.DataVersion(manifest.logical_version),
        metadata={"unchanged_since": manifest.finished_at, SEAL: manifest.seal},
        check_results=[
            check(c["name"], c["passed"], c["message"], warn=c["warn"]) for c in manifest.checks
        ],
    )


@contextmanager
def making(context: dg.AssetExecutionContext, study: Study) -> Iterator[Step]:
    """The frame of an asset body.

    Raises:
        dagster.Failure: With the message of any `KinjectError` of the body, or of a full disk.
    """
    key = context.partition_key if context.has_partition_key else None
    cell = Cell(context.asset_key.to_user_string(), cell_parts(key))
    try:
        study.plan.require(cell)
        ends = [listener.begin(cell) for listener in LISTENERS]
        with study.store.draft(cell) as draft:
            step = Step(context, study, cell, draft)
            try:
                yield step
            except Exception:
                # It is not being made any more; a killed process leaves its note.
                (step.work / PROGRESS).unlink(missing_ok=True)
                # What was paid for is not lost with this machine.
                with contextlib.suppress(LakeError):
                    study.store.push()
                raise
        for end in ends:
            end()
    except KinjectError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except Exception as error:
        if not is_disk_full(error):
            raise
        full = DiskFull.at(str(cell), study.store.root)
        raise dg.Failure(description=str(full), allow_retries=False) from error


def column_schema(row_type: type) -> dg.TableSchema:
    """Columns of a row class as Dagster shows them."""
    said = described(row_type)
    return dg.TableSchema(
        columns=[
            dg.TableColumn(field.name, str(field.type), description=said.get(field.name))
            for field in arrow_schema(row_type)
        ]
    )


def preview(
    rows: Sequence[Any], limit: int = PREVIEW_ROWS, leave_out: Sequence[str] = ()
) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table; long cells are cut, and nothing in them is markup."""
    names = [field.name for field in fields(rows[0]) if field.name not in leave_out]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows[:limit]:
        lines.append("| " + " | ".join(_plain(getattr(row, name)) for name in names) + " |")
    return dg.MetadataValue.md("\n".join(lines))


def _plain(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    if len(text) > PREVIEW_CHARACTERS:
        text = text[: PREVIEW_CHARACTERS - 1] + "…"
    for mark in "\\`*_{}[]()#+!|<>":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else f"&#{ord(mark)};")
    return text


def image(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A plot as metadata; `alt` is for readers who do not see it."""
    return dg.MetadataValue.md(markdown_image(png, alt))


def check(
    name: str, passed: bool, message: str, *, warn: bool = False, **values: Any
) -> dg.AssetCheckResult:
    """Result of one of an asset's checks, with what to do in its message."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
        description=message,
        metadata=values,
    )
