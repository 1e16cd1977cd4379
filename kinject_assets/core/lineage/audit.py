"""Whether every published artefact is what was made, and rests on current inputs.

The witnesses are compared: manifests, the files beside them, what Dagster's event log says, and the
database that was built from the lake. Nothing is mended.
"""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from kinject_assets.config import Profile
from kinject_assets.core.corpus.releases import FOLDER as RELEASES
from kinject_assets.core.corpus.releases import (
    FROZEN,
    RECORD,
    frozen_list,
    mend_of,
    read_release,
    records,
    unchanged,
)
from kinject_assets.core.errors import BrokenArtefact, KinjectError
from kinject_assets.core.lake.inventory import Inventory, inventory
from kinject_assets.core.lineage.database import RESULTS, check_database
from kinject_assets.core.lineage.findings import Audit, Finding
from kinject_assets.core.manifest import Manifest, file_sha256, is_version
from kinject_assets.core.plan import CODE_VERSIONS, OUTPUTS, Plan
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.results.loader import ANSWERS, DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import MANIFEST, Cell, Store
from kinject_assets.core.store import OUTPUTS as FOR_PEOPLE

__all__ = ["Audit", "Finding", "Logged", "audit"]

AUDIT = Cell("lineage_audit")
"""Not judged for staleness and drafts: while it is being made it cannot be current."""

RECORDED = ("inputs", "config", "seeds", "libraries", "counts")
"""Fields of a manifest that the table `artefacts` holds as JSON."""

AGAIN = "run `kinject run`"


@dataclass(frozen=True)
class Logged:
    """The last event of an artefact in Dagster's log.

    Attributes:
        version: Its data version.
        seal: The seal of the manifest that it reports; empty in events of old.
        at: Seconds since 1970.
    """

    version: str
    seal: str = ""
    at: float = 0.0

    def before(self, manifest: Manifest) -> bool:
        """Whether the artefact was finished after this event: a crash came before the next one."""
        try:
            return datetime.fromisoformat(manifest.finished_at).timestamp() > self.at
        except ValueError:
            return False  # it says no time: it is of old, or was edited


Events = Callable[[Iterable[Cell]], Mapping[str, Logged]]
"""Gives the last events in Dagster's log by artefact: of all that are published, and of others."""


@dataclass
class _Lake:
    """What the manifests say.

    Attributes:
        manifests: As they were written: where one was edited since, its fields are put back as far
            as another witness knows them.
        unreadable: Cells whose manifest is none.
        edited: Cells whose manifest is not the one that was written -> fields that are known to
            differ.
        seals: Of the manifests as they stood on disk, to tell those that were written since.
    """

    manifests: dict[Cell, Manifest] = field(default_factory=dict)
    unreadable: dict[Cell, str] = field(default_factory=dict)
    edited: dict[Cell, list[str]] = field(default_factory=dict)
    seals: dict[Cell, str] = field(default_factory=dict)

    def version(self, key: str) -> str | None:
        """Version of an input as manifests spell it; `None` when it is not there."""
        name, _, part = key.partition("#")
        manifest = self.manifests.get(_named(name))
        if manifest is None:
            return None
        if part:
            return manifest.counts.get("prefixes", {}).get(part)
        return manifest.logical_version

    def there(self, key: str) -> bool:
        """Whether an input has a manifest, readable or not."""
        cell = _named(key.partition("#")[0])
        return cell in self.manifests or cell in self.unreadable

    def children(self) -> dict[str, list[Cell]]:
        """Artefact -> those that read it."""
        found: dict[str, list[Cell]] = {}
        for cell, manifest in self.manifests.items():
            for name in {key.partition("#")[0] for key in manifest.inputs}:
                found.setdefault(name, []).append(cell)
        return found


def audit(
    store: Store,
    profile: Profile | None = None,
    events: Events | None = None,
    report: Report = silent,
) -> Audit:
    """Verifies every published artefact of a lake, and the database.

    A study may be running meanwhile: what was made or is being made since is not judged.

    Args:
        store: The lake.
        profile: The experiment; given, an artefact that its present settings or code would make
            otherwise is stale, too.
        events: Asks Dagster's log; given, its last events are compared with the manifests.
        report: Told how far it is.
    """
    _look_again(store)
    plan = _plan(store, profile)
    cells = plan.cells if plan else ()
    held = _Held(inventory(store))
    lake = _read(held)
    log = events(cells) if events else {}
    _judge(store, lake, log)
    findings = list(_manifests(store, lake))
    for done, (cell, manifest) in enumerate(lake.manifests.items(), 1):
        report(f"hashes of {cell}", done, len(lake.manifests))
        findings += _files(store, held, cell, manifest)
        if cell != AUDIT:
            findings += _leftovers(store, held, cell, manifest)
    findings += _abandoned(store, held, lake)
    findings += _outputs(store, held, lake)
    findings += _gone(lake, log)
    damaged = list(_releases(store))
    findings += [*damaged, *_stale(lake, plan, {_named(f.artefact) for f in damaged})]
    unlogged = list(_events(lake, log)) if events else []
    database = check_database(store, lake.manifests, report)
    if events and unlogged:
        # A manifest is there a moment before its event.
        still = {finding.artefact for finding in _events(lake, events(cells))}
        unlogged = [finding for finding in unlogged if finding.artefact in still]
    weighed = _weighed(store, lake, _standing(store, held, lake, [*findings, *unlogged]))
    return Audit(
        checked=len(lake.manifests) + len(lake.unreadable),
        files=sum(len(manifest.files) for manifest in lake.manifests.values()),
        rows=database.rows,
        answers=database.answers,
        whole=database.whole,
        findings=tuple(sorted({*weighed, *_settled(store, lake, database.findings)})),
    )


def _plan(store: Store, profile: Profile | None) -> Plan | None:
    """What the profile asks for; `None` where a release cannot be read, which is a finding."""
    try:
        return Plan(profile, store) if profile else None
    except BrokenArtefact:
        return None


def _named(name: str) -> Cell:
    asset, *parts = name.split("/")
    return Cell(asset, tuple(parts))


def _look_again(store: Store) -> None:
    """Sees what an object store holds now; lists of releases are read by their bytes there."""
    store.refresh(force=True)
    if store.remote is not None:
        store.remote.reread(f"{RELEASES}/")


class _Held:
    """What a lake held when the audit began, by the folder of the artefact that it belongs to."""

    def __init__(self, files: Inventory) -> None:
        self.files = files
        self.names: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(files.names()):
            parts = name.split("/")
            end = next((n for n, p in enumerate(parts) if is_version(p)), len(parts) - 1)
            if parts[0] in CODE_VERSIONS and 1 <= end <= 3:
                self.names["/".join(parts[:end])].append("/".join(parts[end:]))
        self.files_of = {folder: set(names) for folder, names in self.names.items()}


# --- manifests ---


def _read(held: _Held) -> _Lake:
    lake = _Lake()
    for folder, names in held.names.items():
        if MANIFEST not in names:
            continue
        cell = _named(folder)
        try:
            lake.manifests[cell] = held.files.manifest(f"{folder}/{MANIFEST}")
            lake.seals[cell] = lake.manifests[cell].seal
        except BrokenArtefact as error:
            lake.unreadable[cell] = str(error)
    return lake


def _judge(store: Store, lake: _Lake, events: Mapping[str, Logged]) -> None:
    """Tells manifests that were edited, and puts their fields back."""
    suspects = {
        cell: manifest
        for cell, manifest in lake.manifests.items()
        if not manifest.intact or _contradicted(manifest, events.get(str(cell)))
    }
    known = _recorded(store) if suspects else {}
    for cell, manifest in suspects.items():
        written = _as_written(manifest, known.get(str(cell), {}), events.get(str(cell)))
        lake.edited[cell] = [
            name
            for name in (f.name for f in dataclasses.fields(Manifest))
            if getattr(written, name) != getattr(manifest, name)
        ]
        lake.manifests[cell] = written


def _contradicted(manifest: Manifest, event: Logged | None) -> bool:
    """Whether an event reports another manifest; after a crash the event is the older one."""
    return bool(event and event.seal and event.seal != manifest.seal and not event.before(manifest))


def _recorded(store: Store) -> dict[str, dict[str, object]]:
    """What the database read in the manifests when it was built."""
    try:
        rows = fetch(store.root / DATABASE, "SELECT * FROM artefacts").dicts()
    except KinjectError:
        return {}
    return {str(row["artefact"]): row for row in rows if row.get("seal")}


def _as_written(manifest: Manifest, row: Mapping[str, object], event: Logged | None) -> Manifest:
    """An edited manifest as it was, as far as the database or Dagster's log knows."""
    written = manifest
    if event:
        written = replace(written, logical_version=event.version)
    if row and row["seal"] in {manifest.seal, event.seal if event else ""}:
        plain = ("partition", "logical_version", "fingerprint", "code_version", "run_id")
        written = replace(
            written,
            **{name: row[name] for name in plain},
            **{name: json.loads(str(row[name])) for name in RECORDED},
        )
    return written


def _manifests(store: Store, lake: _Lake) -> Iterator[Finding]:
    for cell, problem in lake.unreadable.items():
        yield _unreadable(str(cell), problem, MANIFEST)
    for cell, fields in lake.edited.items():
        what = f" ({', '.join(fields)})" if fields else ""
        yield Finding(
            artefact=str(cell),
            kind="changed",
            file=MANIFEST,
            detail=f"{MANIFEST} is not the one that was written: it was edited{what}",
            mend=f"restore it from a backup, or delete {store.where(cell)} and {AGAIN}",
        )


def _unreadable(artefact: str, problem: str, file: str = "") -> Finding:
    """What the message of a `BrokenArtefact` says: what is wrong (why). What to do."""
    said, _, mend = problem.partition("). ")
    return Finding(artefact=artefact, kind="changed", file=file, detail=f"{said})", mend=mend)


# --- files ---


def _files(store: Store, held: _Held, cell: Cell, manifest: Manifest) -> Iterator[Finding]:
    mend = f"delete {store.where(cell)} and {AGAIN}"
    for name, recorded in manifest.files.items():
        if not held.files.inside(str(cell), name):
            detail = f"its manifest names {name}, outside its folder"
        elif name not in held.files_of[str(cell)]:
            yield Finding(
                artefact=str(cell),
                kind="missing",
                file=name,
                detail=f"file {name} is gone",
                mend=mend,
            )
            continue
        else:
            try:
                if held.files.sha256(f"{cell}/{name}") == recorded.get("sha256"):
                    continue
                detail = f"bytes of {name} are not those written"
            except OSError as error:
                detail = f"{name} cannot be read: {error.strerror}"
        yield Finding(artefact=str(cell), kind="changed", file=name, detail=detail, mend=mend)


def _orphan(store: Store, cell: Cell, name: str, why: str) -> Finding:
    mend = f"delete {store.where(cell)}/{name}" if store.remote else "delete it"
    return Finding(
        artefact=str(cell), kind="orphaned", file=name, detail=f"{name} {why}", mend=mend
    )


def _leftovers(store: Store, held: _Held, cell: Cell, manifest: Manifest) -> Iterator[Finding]:
    """Versions that the manifest does not name, and files beside those that it names."""
    current = {name.split("/", 1)[0] for name in manifest.files}
    for name in held.names[str(cell)]:
        version = name.split("/", 1)[0]
        if name == MANIFEST or name in manifest.files:
            continue
        if is_version(version) and version not in current:
            yield _orphan(store, cell, version, "is no version of it")
        elif not name.endswith("/"):
            yield _orphan(store, cell, name, "is in no manifest")


def _abandoned(store: Store, held: _Held, lake: _Lake) -> Iterator[Finding]:
    """Versions in folders without a manifest: drafts of a killed process, or a lost manifest."""
    for folder, names in held.names.items():
        cell = _named(folder)
        if cell == AUDIT or cell in lake.manifests or cell in lake.unreadable:
            continue
        for version in sorted({name.split("/", 1)[0] for name in names}):
            if is_version(version):
                yield _orphan(store, cell, version, "has no manifest")


def _outputs(store: Store, held: _Held, lake: _Lake) -> Iterator[Finding]:
    """What people read outside the lake; the rows of the database are checked by themselves."""
    for asset, name in OUTPUTS.items():
        if Cell(asset) not in lake.manifests:
            continue
        path = store.root / name
        if name != DATABASE and not path.exists():
            yield Finding(
                artefact=asset, kind="missing", file=name, detail=f"{name} is gone", mend=AGAIN
            )
        elif store.remote is not None and path.exists():
            try:
                if held.files.sha256(f"{FOR_PEOPLE}/{name}") == file_sha256(path):
                    continue
                detail = "is not the one here"
            except OSError as error:
                detail = f"cannot be read: {error.strerror}"
            there = f"{store.remote}/{FOR_PEOPLE}/{name}"
            yield Finding(
                artefact=asset,
                kind="changed",
                file=name,
                detail=f"{there} {detail}",
                mend=f"delete it and {path}, and {AGAIN}",
            )


def _gone(lake: _Lake, events: Mapping[str, Logged]) -> Iterator[Finding]:
    """Artefacts that others were made from, or that Dagster knows, and that are not there."""
    readers: dict[str, list[str]] = {}
    for name in events:
        if not lake.there(name) and name != str(AUDIT):
            readers.setdefault(name, [])
    for cell, manifest in lake.manifests.items():
        for name in {key.partition("#")[0] for key in manifest.inputs}:
            if not lake.there(name):
                readers.setdefault(name, []).append(str(cell))
    for name, cells in readers.items():
        said = [f"it is an input of {', '.join(sorted(cells))}"] if cells else []
        if name in events:
            said.append("Dagster's log has it")
        yield Finding(
            artefact=name,
            kind="missing",
            detail=f"the artefact is gone; {'; '.join(said)}",
            mend=AGAIN,
        )


def _releases(store: Store) -> Iterator[Finding]:
    """Frozen releases whose record or list is damaged: what their articles are read by."""
    for path in records(store.lake):
        artefact = f"articles/{path.parent.name}"
        try:
            release = read_release(path)
            if unchanged(store.lake, release):
                continue
            there = frozen_list(store.lake, release.key).exists()
            what = "not the list of revisions that was frozen" if there else "gone"
        except BrokenArtefact as error:
            yield _unreadable(artefact, str(error), RECORD)
            continue
        except OSError as error:
            there, what = True, f"not to be read: {error.strerror}"
        key = path.parent.name
        yield Finding(
            artefact=artefact,
            kind="changed" if there else "missing",
            file=FROZEN,
            detail=f"the release's list {frozen_list(store.lake, key)} is {what}",
            mend=mend_of(store.lake, key),
        )


# --- inputs and settings ---


def _stale(lake: _Lake, plan: Plan | None, damaged: Collection[Cell]) -> Iterator[Finding]:
    """Artefacts whose inputs or settings are others now, and all that is built on them.

    Args:
        lake: What the manifests say.
        plan: What the profile asks for.
        damaged: Articles of releases whose list is not the one that was frozen: they are what was
            made from that one, and their own finding says so.
    """
    reasons: dict[Cell, str] = {}
    for cell, manifest in lake.manifests.items():
        if cell == AUDIT:
            continue
        for key, version in manifest.inputs.items():
            parent = _named(key.partition("#")[0])
            if parent in lake.manifests and lake.version(key) != version:
                reasons.setdefault(cell, f"{key} has changed since it was read")
        if plan is None or cell not in plan.cells:
            continue
        try:
            but = ("frozen_sha256",) if cell in damaged else ()
            if why := _settings(lake, plan, cell, *but):
                reasons.setdefault(cell, why)
        except BrokenArtefact as error:  # what reviewers decided on its questions
            yield _unreadable(str(cell), str(error))
    made_from = _spread(lake, reasons)
    for cell, reason in {**reasons, **made_from}.items():
        yield Finding(
            artefact=str(cell),
            kind="stale",
            detail=f"made from {reason}, which is stale" if cell in made_from else reason,
            mend=AGAIN,
            made_from=made_from.get(cell, ""),
        )


def _settings(lake: _Lake, plan: Plan, cell: Cell, *but: str) -> str:
    """Why the profile or the code would make an artefact otherwise now; empty when not."""
    manifest = lake.manifests[cell]
    code = CODE_VERSIONS[cell.asset]
    if manifest.code_version != code:
        return f"it was made by code version {manifest.code_version}; now it is {code}"
    if not plan.same_config(cell, manifest, *but):
        now = json.loads(json.dumps(plan.config(cell)))
        names = sorted(
            name for name in {*now, *manifest.config} if now.get(name) != manifest.config.get(name)
        )
        return f"its settings in the profile have changed: {', '.join(names)}"
    wanted = {f"{up}#{part}" if part else str(up) for up, part in plan.inputs(cell)}
    new = sorted(k for k in wanted - manifest.inputs.keys() if lake.version(k) is not None)
    dropped = sorted(manifest.inputs.keys() - wanted)
    if new:
        return f"it has not read {', '.join(new)}, which {'is' if len(new) == 1 else 'are'} there"
    return f"it would not read {', '.join(dropped)} any more" if dropped else ""


def _spread(lake: _Lake, reasons: Mapping[Cell, str]) -> dict[Cell, str]:
    """What is built on stale artefacts, each with the one that it is made from."""
    children = lake.children()
    found: dict[Cell, str] = {}
    waiting = sorted(reasons)
    while waiting:
        parent = waiting.pop()
        for child in children.get(str(parent), ()):
            if child not in reasons and child not in found and child != AUDIT:
                found[child] = str(parent)
                waiting.append(child)
    return found


# --- Dagster's log ---


def _events(lake: _Lake, events: Mapping[str, Logged]) -> Iterator[Finding]:
    again = f"{AGAIN}: it reports it again"
    for cell, manifest in lake.manifests.items():
        event = events.get(str(cell))
        if cell == AUDIT or cell in lake.edited:
            continue
        if event is None:
            yield Finding(
                artefact=str(cell),
                kind="orphaned",
                detail="Dagster's log has no event of it",
                mend=again,
            )
        elif event.version != manifest.logical_version or (
            event.seal and event.seal != manifest.seal
        ):
            yield Finding(
                artefact=str(cell),
                kind="changed",
                detail=f"Dagster's log says version {event.version}, the manifest "
                f"{manifest.logical_version}"
                if event.version != manifest.logical_version
                else "it was made again after the last event that Dagster's log has of it",
                mend=again,
            )


# --- what was made meanwhile ---


def _standing(
    store: Store, held: _Held, lake: _Lake, findings: Iterable[Finding]
) -> Iterator[Finding]:
    """Findings that a second look bears out: a study may be running."""
    findings = list(findings)
    if findings:
        store.refresh()
    drafts = store.drafts()
    for finding in findings:
        cell = _named(finding.artefact)
        manifest = lake.manifests.get(cell)
        looked_at = {cell}
        if finding.kind == "stale" and manifest:
            looked_at |= {_named(key.partition("#")[0]) for key in manifest.inputs}
        if any(_remade(store, lake, one) for one in looked_at):
            continue
        left = finding.file if finding.kind == "orphaned" else ""
        if left and (left.split("/", 1)[0] in drafts or not _there(store, cell, left)):
            continue
        yield finding


def _there(store: Store, cell: Cell, name: str) -> bool:
    """Whether a file or version of an artefact is there now."""
    if store.remote is None:
        return (store.folder(cell) / name).exists()
    return any(f"{key}/".startswith(f"{cell}/{name}/") for key in store.remote.listing)


def _settled(store: Store, lake: _Lake, findings: Iterable[Finding]) -> list[Finding]:
    """Findings of the database, without those of its rows while it is made anew."""
    making = RESULTS in store.drafts(here=True).values() or _remade(store, lake, RESULTS)
    return [finding for finding in findings if not (making and finding.area == "rows")]


def _remade(store: Store, lake: _Lake, cell: Cell) -> bool:
    """Whether another manifest stands there than was read."""
    try:
        manifest = store.manifest(cell)
    except BrokenArtefact:
        return cell not in lake.unreadable
    return (manifest.seal if manifest else "") != lake.seals.get(cell, "")


# --- what rests on it ---


def _weighed(store: Store, lake: _Lake, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings with what is made from their artefact, and the answers among it."""
    children = lake.children()
    answers: dict[Cell, int] = {}
    for finding in findings:
        own = _named(finding.artefact)
        below: set[Cell] = set()
        waiting = [finding.artefact]
        while waiting:
            for child in children.get(waiting.pop(), ()):
                if child not in below and child != AUDIT:
                    below.add(child)
                    waiting.append(str(child))
        for cell in {own, *below} - answers.keys():
            answers[cell] = _answers(store, lake, cell)
        yield replace(
            finding,
            rests=tuple(sorted(Counter(cell.asset for cell in below - {own}).items())),
            answers=sum(answers[cell] for cell in {own, *below}),
        )


def _answers(store: Store, lake: _Lake, cell: Cell) -> int:
    """How many answers an artefact holds; 0 where its file cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = lake.manifests.get(cell)
    if cell.asset not in ANSWERS or manifest is None:
        return 0
    for name in manifest.files:
        if name.endswith("/answers.parquet"):
            try:
                return pq.read_metadata(store.local(cell, name)).num_rows
            except (pa.ArrowException, OSError, KinjectError):
                return 0
    return 0
