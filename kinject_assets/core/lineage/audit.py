"""Whether every published artefact is what its manifest says, and rests on current inputs.

Three witnesses are compared: manifests, the files beside them, and what Dagster's event log says;
and with them the database that was built from the lake.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinject_assets.config import Profile
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.lineage.ancestry import Node, trace
from kinject_assets.core.manifest import Manifest, file_sha256
from kinject_assets.core.plan import CODE_VERSIONS, Plan
from kinject_assets.core.results.loader import ANSWERS, DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Answer
from kinject_assets.core.store import MANIFEST, Cell, Store, read_rows

__all__ = ["Audit", "Finding", "Node", "audit", "trace"]

Kind = Literal["missing", "changed", "orphaned", "stale"]

AUDIT = Cell("lineage_audit")
"""Not judged for staleness and drafts: while it is being made it cannot be current."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        artefact: `asset/corpus/...`, or `results.duckdb`.
        kind: `missing`: a file, input or row is gone. `changed`: bytes or version are not those
            recorded. `orphaned`: there, but nothing names it. `stale`: made from an older input.
        detail: What exactly, and the mend.
    """

    artefact: str
    kind: Kind
    detail: str


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        checked: Artefacts that were verified.
        files: Files whose hash was computed.
        findings: Sorted by artefact.
    """

    checked: int
    files: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.findings

    def to_json(self) -> str:
        """The audit as JSON."""
        return json.dumps({"ok": self.ok, **dataclasses.asdict(self)}, indent=2) + "\n"

    def __str__(self) -> str:
        lines = [f"{f.kind:9} {f.artefact}: {f.detail}" for f in self.findings]
        verdict = "sound" if self.ok else f"{len(self.findings)} findings"
        return "\n".join([*lines, f"{self.checked} artefacts, {self.files} files: {verdict}"])


def audit(
    store: Store, profile: Profile | None = None, events: Mapping[str, str] | None = None
) -> Audit:
    """Verifies every published artefact of a lake.

    Args:
        store: The lake.
        profile: The experiment; given, an artefact that its present settings or code would make
            otherwise is stale, too.
        events: Artefact -> data version of its last event in Dagster's log; given, they are
            compared with the manifests.
    """
    manifests, findings = _read_manifests(store)
    files = 0
    for cell, manifest in manifests.items():
        files += len(manifest.files)
        findings += _files(store, cell, manifest)
        if cell != AUDIT:
            findings += _leftovers(store, cell, manifest)
    findings += _abandoned(store, manifests)
    findings += _stale(store, manifests, Plan(profile, store) if profile else None)
    if events is not None:
        findings += _events(manifests, events)
    findings += _database(store, manifests)
    return Audit(len(manifests), files, tuple(sorted(set(findings))))


def _cell(store: Store, folder: Path) -> Cell:
    asset, *parts = folder.relative_to(store.lake).parts
    return Cell(asset, tuple(parts))


def _manifest_paths(store: Store) -> list[Path]:
    """Manifests at the places where artefacts lie; a saved model may hold files of that name."""
    return sorted(
        path
        for asset in CODE_VERSIONS
        for depth in ("", "*/", "*/*/")
        for path in (store.lake / asset).glob(f"{depth}{MANIFEST}")
        if not _in_version(store, path)
    )


def _in_version(store: Store, path: Path) -> bool:
    return any(_is_version(p) for p in path.relative_to(store.lake).parts)


def _is_version(name: str) -> bool:
    return len(name) == 13 and name[0] == "v" and set(name[1:]) <= set("0123456789abcdef")


def _read_manifests(store: Store) -> tuple[dict[Cell, Manifest], list[Finding]]:
    manifests: dict[Cell, Manifest] = {}
    findings: list[Finding] = []
    for path in _manifest_paths(store):
        cell = _cell(store, path.parent)
        try:
            manifests[cell] = Manifest.read(path)
        except BrokenArtefact as error:
            findings.append(Finding(str(cell), "changed", str(error)))
    return manifests, findings


def _files(store: Store, cell: Cell, manifest: Manifest) -> Iterator[Finding]:
    folder = store.folder(cell)
    mend = f"delete {folder} and run `kinject run`"
    for name, recorded in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            yield Finding(str(cell), "changed", f"its manifest names {name}, outside its folder")
        elif not path.is_file():
            yield Finding(str(cell), "missing", f"file {name} is gone; {mend}")
        elif file_sha256(path) != recorded.get("sha256"):
            yield Finding(str(cell), "changed", f"bytes of {name} are not those written; {mend}")


def _leftovers(store: Store, cell: Cell, manifest: Manifest) -> Iterator[Finding]:
    """Versions that the manifest does not name, and files beside those that it names."""
    folder = store.folder(cell)
    current = {name.split("/", 1)[0] for name in manifest.files}
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST:
            continue
        if _is_version(path.name) and path.name not in current:
            yield Finding(
                str(cell), "orphaned", f"folder {path.name} is no version of it; delete it"
            )
        elif _is_version(path.name):
            for file in sorted(path.rglob("*")):
                name = str(file.relative_to(folder))
                if file.is_file() and name not in manifest.files:
                    yield Finding(
                        str(cell), "orphaned", f"file {name} is in no manifest; delete it"
                    )
        elif path.is_file():
            yield Finding(str(cell), "orphaned", f"file {path.name} is in no manifest; delete it")


def _abandoned(store: Store, manifests: Mapping[Cell, Manifest]) -> Iterator[Finding]:
    """Versions in folders without a manifest: drafts of a killed process, or a lost manifest."""
    for asset in CODE_VERSIONS:
        for depth in ("", "*/", "*/*/"):
            for path in sorted((store.lake / asset).glob(f"{depth}v????????????")):
                cell = _cell(store, path.parent)
                inside = _in_version(store, path.parent)
                if not _is_version(path.name) or inside or cell == AUDIT:
                    continue
                if cell not in manifests and not (path.parent / MANIFEST).exists():
                    yield Finding(
                        str(cell), "orphaned", f"folder {path.name} has no manifest; delete it"
                    )


def _stale(
    store: Store, manifests: Mapping[Cell, Manifest], plan: Plan | None
) -> Iterator[Finding]:
    """Artefacts whose inputs have another version now, and all that is built on them."""
    reasons: dict[Cell, str] = {}
    for cell, manifest in manifests.items():
        for key, version in manifest.inputs.items():
            current = _version(manifests, key)
            if current is None:
                yield Finding(str(cell), "missing", f"its input {key} is gone; run `kinject run`")
            elif current != version and cell != AUDIT:
                reasons.setdefault(cell, f"{key} has changed since it was read")
        judged = plan is not None and cell in plan.cells and cell != AUDIT
        # An input that is gone is reported above, not as a change of settings.
        gone = any(_version(manifests, key) is None for key in manifest.inputs)
        if plan and judged and not gone and plan.state(cell) == "stale":
            reasons.setdefault(cell, "the profile or the code would make it otherwise now")
    _spread(manifests, reasons)
    for cell, reason in reasons.items():
        yield Finding(str(cell), "stale", f"{reason}; run `kinject run`")


def _version(manifests: Mapping[Cell, Manifest], key: str) -> str | None:
    name, _, part = key.partition("#")
    asset, *parts = name.split("/")
    manifest = manifests.get(Cell(asset, tuple(parts)))
    if manifest is None:
        return None
    return manifest.counts.get("prefixes", {}).get(part) if part else manifest.logical_version


def _spread(manifests: Mapping[Cell, Manifest], reasons: dict[Cell, str]) -> None:
    """Adds what is built on stale artefacts."""
    children: dict[str, list[Cell]] = {}
    for cell, manifest in manifests.items():
        for key in manifest.inputs:
            children.setdefault(key.partition("#")[0], []).append(cell)
    waiting = sorted(reasons)
    while waiting:
        parent = waiting.pop()
        for child in children.get(str(parent), ()):
            if child not in reasons and child != AUDIT:
                reasons[child] = f"it is made from {parent}, which is stale"
                waiting.append(child)


def _events(manifests: Mapping[Cell, Manifest], events: Mapping[str, str]) -> Iterator[Finding]:
    published = {str(cell): manifest.logical_version for cell, manifest in manifests.items()}
    for name in sorted(published.keys() - {str(AUDIT)}):
        if name not in events:
            yield Finding(
                name, "orphaned", "Dagster's log has no event of it; `kinject run` reports it again"
            )
        elif events[name] != published[name]:
            yield Finding(
                name,
                "changed",
                f"Dagster's log says version {events[name]}, the manifest {published[name]}; "
                "`kinject run` reports it again",
            )
    for name in sorted(events.keys() - published.keys() - {str(AUDIT)}):
        yield Finding(name, "missing", "Dagster's log has it, the lake does not; run `kinject run`")


def _database(store: Store, manifests: Mapping[Cell, Manifest]) -> Iterator[Finding]:
    """Answers of the lake against those of the database."""
    database = store.root / DATABASE
    if not database.exists():
        if Cell("results") in manifests:
            yield Finding(DATABASE, "missing", "the database is gone; run `kinject run`")
        return
    mend = "run `kinject run --select results`"
    try:
        loaded = {row[0] for row in fetch(database, "SELECT answer_id FROM answers").rows}
    except BrokenArtefact as error:
        yield Finding(DATABASE, "changed", str(error))
        return
    kept: set[str] = set()
    complete = True
    for cell, manifest in manifests.items():
        if cell.asset not in ANSWERS:
            continue
        ids = _answer_ids(store, cell, manifest)
        complete = complete and ids is not None
        kept |= ids or set()
        lacking = sorted((ids or set()) - loaded)
        if lacking:
            yield Finding(
                DATABASE,
                "missing",
                f"{len(lacking)} answers of {cell} are not in it, e.g. {lacking[0]}; {mend}",
            )
    extra = sorted(loaded - kept)
    if extra and complete:
        yield Finding(
            DATABASE,
            "orphaned",
            f"{len(extra)} answers are in no artefact, e.g. {extra[0]}; {mend}",
        )


def _answer_ids(store: Store, cell: Cell, manifest: Manifest) -> set[str] | None:
    """Answers of a cell; `None` when its file cannot be read, which `_files` has reported."""
    for name in manifest.files:
        if name.endswith("/answers.parquet"):
            try:
                return {row.answer_id for row in read_rows(store.folder(cell) / name, Answer)}
            except BrokenArtefact:
                return None
    return None
