"""Where each artefact lives, and how it gets there whole.

`lake/<asset>/<partition>/manifest.json` names the files of the current version, which lie in
`lake/<asset>/<partition>/<version>/`. A new version is written beside the old one and becomes
current when its manifest replaces the old one: readers and crashes never see a mixture.

The lake is a folder; or an object store (`core.lake`), of which the folder is a mirror then.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.lake.objects import LakeError
from kinject_assets.core.manifest import (
    MANIFEST,
    Manifest,
    file_sha256,
    write_atomically,
)
from kinject_assets.core.process import Owner, this_process
from kinject_assets.core.progress import PROGRESS, Progress
from kinject_assets.core.schema import arrow_schema

if TYPE_CHECKING:
    from kinject_assets.core.lake.remote import Remote

__all__ = [
    "MANIFEST",
    "Cell",
    "Store",
    "keep_rows",
    "library_versions",
    "read_rows",
    "write_rows",
]

Row = TypeVar("Row")

ELSEWHERE = ".elsewhere.json"
"""File of a draft that names those of its files which a worker has brought to the object store."""

OUTPUTS = "outputs"
"""Folder of a lake elsewhere with what lies beside the lake for people: database and report."""

HASHED = 256 * 2**20
"""Bytes up to which a file's hash is verified before it is read; of larger ones only the size."""

LISTED_SECONDS = 1.0
"""A listing younger than this is not asked for again because of an object that it lacks."""

_verified: set[tuple[str, int, int, str]] = set()
"""Files whose hash this process has verified: path, time of change, size, hash."""


@dataclass(frozen=True, order=True)
class Cell:
    """One artefact: an asset and its partition.

    Attributes:
        asset: Asset key, e.g. `checkpoint`.
        parts: Partition dimensions in path order: corpus, then model or recipe. Empty for none.
    """

    asset: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join((self.asset, *self.parts))


def write_rows(path: Path, rows: Iterable[Any], row_type: type) -> None:
    """Writes rows of one class as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=arrow_schema(row_type))
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def keep_rows(path: Path, rows: Iterable[Any], row_type: type) -> None:
    """Writes rows to be found again after a crash: whole or not at all, in a work folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        write_rows(partial, rows, row_type)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Reads rows that `write_rows` wrote.

    Raises:
        BrokenArtefact: If the file cannot be read or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # `read_table` would import pandas, for nothing.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        if table.schema.names != arrow_schema(row_type).names:
            raise BrokenArtefact(
                f"{path}: columns are {table.schema.names}, expected "
                f"{arrow_schema(row_type).names}. Delete {path.parent.parent} and run again."
            )
        return [row_type(**row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BrokenArtefact(
            f"{path}: not a readable Parquet file ({error}). Delete the folder "
            f"{path.parent.parent} and run again: only this artefact and what is built on it are "
            "made again."
        ) from error


def _named(name: str) -> Cell:
    asset, *parts = name.split("/")
    return Cell(asset, tuple(parts))


def _version(manifest: Manifest) -> str:
    return next(iter(manifest.files), "").split("/", 1)[0]


def _files(manifest: Manifest, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of a version that are a file or lie in a folder of it; `.` for all."""
    for file, recorded in manifest.files.items():
        inside = file.split("/", 1)[1]
        if name == "." or inside == name or inside.startswith(f"{name}/"):
            yield file, recorded


def _is_verified(path: Path, found: os.stat_result, sha256: str) -> bool:
    """Whether a file has a hash; this process asks its bytes only when it has changed."""
    key = (str(path), found.st_mtime_ns, found.st_size, sha256)
    if key not in _verified:
        if file_sha256(path) != sha256:
            return False
        _verified.add(key)
    return True


def _bring(remote: "Remote", key: str, recorded: Mapping[str, Any]) -> None:
    """Makes sure that a file of an artefact is here; a damaged copy is replaced."""
    size, sha256 = recorded["bytes"], recorded["sha256"]
    path = remote.fetch(key, size, sha256)
    if size <= HASHED and not _is_verified(path, path.stat(), sha256):
        path.unlink()
        remote.fetch(key, size, sha256)


def _copied(path: Path, target: Path) -> None:
    """Copies a file so that readers see the old or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        shutil.copy2(path, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _drafted(record: Path) -> tuple[Cell, Owner]:
    """What the record of a draft says: the artefact, and the process that makes it."""
    said = json.loads(record.read_text(encoding="utf-8"))
    asset, *parts = said["cell"]
    return Cell(asset, tuple(parts)), Owner(**said["owner"])


def _elsewhere(draft: Path) -> dict[str, dict[str, Any]]:
    """Files of a draft that lie in the object store alone, as manifests name them."""
    note = draft / ELSEWHERE
    if not note.exists():
        return {}
    files = json.loads(note.read_text(encoding="utf-8"))
    return {f"{draft.name}/{name}": recorded for name, recorded in files.items()}


def library_versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages, those that are there."""
    found: dict[str, str] = {}
    for package in ("kinject", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Store:
    """The lake of one profile; `lake.opening.open_store` opens it where the profile has it.

    Args:
        root: The profile's folder.
        lake: The lake's folder; default `root/lake`.
        remote: The object store that holds it; `root/lake` is a mirror then.
    """

    def __init__(
        self, root: Path, lake: Path | None = None, remote: "Remote | None" = None
    ) -> None:
        self.root = root
        self.lake = lake or root / "lake"
        self.remote = remote

    def where(self, cell: Cell) -> str:
        """Where an artefact really is: its folder, or its place in the object store."""
        return f"{self.remote}/{cell}" if self.remote else str(self.folder(cell))

    def refresh(self, force: bool = False) -> None:
        """Sees what other machines have published since.

        Args:
            force: Look even if that was done a moment ago.
        """
        if self.remote is None:
            self._bring_outputs()
            return
        changed = self.remote.refresh(force)
        drafts = self.drafts(here=True) if changed else {}
        for name in changed:
            self.sweep(_named(name), spare=drafts)

    def push(self) -> None:
        """Brings side files that were written here (journals, releases) to the object store."""
        if self.remote is not None:
            self.remote.push()

    def keep_output(self, name: str) -> None:
        """Lets other machines have what was written beside the lake for people."""
        if self.remote is not None:
            self.remote.keep_output(name)
        elif self.lake != self.root / "lake":
            _copied(self.root / name, self.lake / OUTPUTS / name)

    def _bring_outputs(self) -> None:
        """Takes from a shared folder what another machine wrote for people."""
        if self.lake == self.root / "lake":
            return
        for path in (self.lake / OUTPUTS).glob("[!.]*"):
            own = self.root / path.name
            if not own.exists() or own.stat().st_mtime_ns < path.stat().st_mtime_ns:
                _copied(path, own)

    def folder(self, cell: Cell) -> Path:
        """Folder of an artefact. Its parts are slugs, so no title ever becomes a path."""
        return self.lake.joinpath(cell.asset, *cell.parts)

    def work(self, cell: Cell, fingerprint: str) -> Path:
        """Folder for what an unfinished step wants to find again after a crash.

        It is removed when the artefact is published.
        """
        path = self.lake.joinpath(".work", cell.asset, *cell.parts, fingerprint[:16])
        path.mkdir(parents=True, exist_ok=True)
        return path

    def under_way(self) -> list[Progress]:
        """Where every unfinished step is, or was when its process died, the newest first."""
        found = (Progress.read(p) for p in self.lake.glob(f".work/**/{PROGRESS}"))
        return sorted((p for p in found if p), key=lambda p: p.at, reverse=True)

    @contextmanager
    def lock(self, cell: Cell, waiting: Callable[[], None]) -> Iterator[None]:
        """Keeps other processes from making a cell.

        Args:
            cell: What is going to be made.
            waiting: Called when another process makes it, before that is waited for.
        """
        from filelock import FileLock, Timeout

        path = self.lake.joinpath(".work", ".locks", *cell.parts, f"{cell.asset}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            if self.remote is None:
                self.refresh()
                yield
                return
            self.remote.begin()
            with self.remote.lease(str(cell), waiting) as waited:
                self.refresh(force=waited)
                yield
        finally:
            lock.release()

    def manifest(self, cell: Cell) -> Manifest | None:
        """The manifest of a published artefact, or `None`."""
        path = self.folder(cell) / MANIFEST
        return Manifest.read(path) if path.exists() else None

    def input_version(self, key: str) -> str | None:
        """Current version of an input as manifests spell it, or `None` if it is not there.

        Args:
            key: `asset/partition`, or with `#PART`: the first texts of each chunk by one
                augmentation, whose versions the manifest of the paraphrases keeps under `counts`.
        """
        name, _, part = key.partition("#")
        manifest = self.manifest(_named(name))
        if manifest is None:
            return None
        return manifest.counts.get("prefixes", {}).get(part) if part else manifest.logical_version

    def path(self, cell: Cell, name: str) -> Path:
        """Path of a published file or folder, brought here if need be.

        Raises:
            MissingArtefact: If the artefact has not been published or has no such file.
        """
        if self.remote is None:
            path, manifest = self._place(cell, name)
        else:
            path, manifest = self._brought(self.remote, cell, name)
        if problem := self.problem(cell, manifest, name=name, hashes=True):
            raise BrokenArtefact(problem)
        if not path.exists():
            raise MissingArtefact(f"{cell} has no {name}; its manifest does not name it.")
        return path

    def reference(self, cell: Cell, name: str) -> str:
        """The same path for a request to a worker; it is not brought here for that.

        Raises:
            MissingArtefact: See `path`.
        """
        if self.remote is None:
            return str(self.path(cell, name))
        path, manifest = self._place(cell, name)
        if problem := self.problem(cell, manifest, name=name):
            raise BrokenArtefact(problem)
        if not any(_files(manifest, name)):
            raise MissingArtefact(f"{cell} has no {name}; its manifest does not name it.")
        return str(path)

    def _place(self, cell: Cell, name: str) -> tuple[Path, Manifest]:
        manifest = self.manifest(cell)
        if manifest is None:
            raise MissingArtefact(
                f"{cell} has not been made yet. Materialise it in the UI, or run `kinject run`."
            )
        return self.folder(cell) / _version(manifest) / name, manifest

    def _brought(self, remote: "Remote", cell: Cell, name: str) -> tuple[Path, Manifest]:
        """The same after its files were brought here; copies that were damaged are replaced.

        Another machine may replace the version meanwhile: then the new one is taken.
        """
        while True:
            path, manifest = self._place(cell, name)
            try:
                for file, recorded in _files(manifest, name):
                    _bring(remote, f"{cell}/{file}", recorded)
                return path, manifest
            except FileNotFoundError as error:
                self.refresh(force=True)
                if self.manifest(cell) == manifest:
                    raise BrokenArtefact(
                        f"{cell}: {error} is gone, though its manifest names it. {self._mend(cell)}"
                    ) from error

    def local(self, cell: Cell, file: str) -> Path:
        """Path of a file that a manifest names, brought here if need be; nothing else is checked.

        Raises:
            FileNotFoundError: If the object store has it no more.
        """
        manifest = self.manifest(cell)
        if self.remote is not None and manifest is not None and file in manifest.files:
            _bring(self.remote, f"{cell}/{file}", manifest.files[file])
        return self.folder(cell) / file

    def _mend(self, cell: Cell) -> str:
        what = "objects below" if self.remote else "folder"
        return (
            f"Delete the {what} {self.where(cell)} and run again: only {cell} and what is built on "
            "it are made again."
        )

    def problem(
        self, cell: Cell, manifest: Manifest, *, name: str = ".", hashes: bool = False
    ) -> str:
        """What is wrong with the files of an artefact, and the mend; empty when nothing is.

        An object store must hold each file; whether it is here, too, does not matter.

        Args:
            cell: The artefact.
            manifest: Its manifest.
            name: A file or folder of it; `.` for all.
            hashes: Also verify hashes, of files up to `HASHED` bytes; else presence and size.
        """
        folder, mend = self.folder(cell), self._mend(cell)
        for file, recorded in _files(manifest, name):
            path = folder / file
            try:
                found = path.stat()
            except FileNotFoundError:
                found = None
            if self.remote is not None:
                # A copy here is of no use to other machines.
                if not self._holds(self.remote, cell, manifest, file):
                    return (
                        f"{cell}: {self.where(cell)}/{file} is gone or has another size, though "
                        f"its manifest names it. {mend}"
                    )
                if found is None or found.st_size != recorded["bytes"]:
                    continue
            if found is None:
                return f"{cell}: {path} is gone, though its manifest names it. {mend}"
            if found.st_size != recorded["bytes"]:
                return (
                    f"{cell}: {path} has {found.st_size} bytes, its manifest says "
                    f"{recorded['bytes']}: it was cut off or changed. {mend}"
                )
            if (
                hashes
                and found.st_size <= HASHED
                and not _is_verified(path, found, recorded["sha256"])
            ):
                return (
                    f"{cell}: {path} does not hold the bytes that were written: it was "
                    f"changed, or the disk is failing. {mend}"
                )
        return ""

    def _holds(self, remote: "Remote", cell: Cell, manifest: Manifest, file: str) -> bool:
        """Whether the object store has a file; one that was listed before it came is asked anew."""
        key, size = f"{cell}/{file}", manifest.files[file]["bytes"]
        if not remote.holds(key, size) and remote.age > LISTED_SECONDS:
            self.refresh(force=True)
            now = self.manifest(cell)
            if now is None or now.seal != manifest.seal:
                return True  # it is another artefact by now, which will be judged by itself
        return remote.holds(key, size)

    def rows(self, cell: Cell, name: str, row_type: type[Row]) -> list[Row]:
        """Rows of a published Parquet file, `name` without its ending."""
        return read_rows(self.path(cell, f"{name}.parquet"), row_type)

    @contextmanager
    def draft(self, cell: Cell) -> Iterator[Path]:
        """A new empty folder to write an artefact's files to; removed unless it is published."""
        folder = self.folder(cell) / f"v{uuid.uuid4().hex[:12]}"
        record = self._drafts / f"{folder.name}.json"
        owner = {"cell": [cell.asset, *cell.parts], "owner": asdict(this_process())}
        write_atomically(record, json.dumps(owner))
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            place = f"{cell}/{folder.name}"
            sent = self.remote is None or place in self.remote.sent
            if self._drop(cell, folder.name, sent) is not None:
                record.unlink(missing_ok=True)

    @property
    def _drafts(self) -> Path:
        """Who is making which draft, so that those of dead processes can be swept."""
        return self.lake / ".work" / ".drafts"

    def _drop(self, cell: Cell, name: str, sent: bool = True) -> bool | None:
        """Removes a version unless it is the current one; whether there was anything.

        `None` where it cannot be told which version is current: nothing is removed then.

        Args:
            cell: The artefact.
            name: The version.
            sent: Whether an object store may hold anything of it.
        """
        folder = self.folder(cell) / name
        try:
            if self.current(cell) == name or not folder.exists():
                return False
            if self.remote is not None and sent:
                # Its manifest may have come there, and the answer not here.
                self.refresh(force=True)
                if self.current(cell) == name:
                    return False
                self.remote.discard(f"{cell}/{name}")
        except (BrokenArtefact, LakeError):
            return None
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def current(self, cell: Cell) -> str:
        """Name of the current version; empty for none."""
        manifest = self.manifest(cell)
        return _version(manifest) if manifest else ""

    def drafts(self, here: bool = False) -> dict[str, Cell]:
        """Versions that living processes are making, with their artefacts.

        Args:
            here: Only those of this machine, of which it is known; others count as living.
        """
        found: dict[str, Cell] = {}
        for record in sorted(self._drafts.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                cell, owner = _drafted(record)
                if owner.alive and (not here or owner.host == this_process().host):
                    found[record.stem] = cell
        if self.remote is not None and not here:
            for name in self.remote.living():
                cell = _named(name)
                for version in self.remote.versions(name) - {self.current(cell)}:
                    found[version] = cell
        return found

    def sweep_dead(self) -> list[str]:
        """Removes drafts whose process is gone; returns the cells that had one."""
        swept: list[str] = []
        for record in sorted(self._drafts.glob("*.json")):
            try:
                cell, owner = _drafted(record)
            except OSError:
                continue  # its process has just ended it
            except (ValueError, KeyError, TypeError):
                record.unlink(missing_ok=True)
                continue
            if owner.alive:
                continue
            dropped = self._drop(cell, record.stem)
            if dropped is None:
                continue  # its record stays for the next start
            if dropped:
                swept.append(str(cell))
            for partial in self.folder(cell).glob(f".{MANIFEST}.*"):
                partial.unlink(missing_ok=True)
            record.unlink(missing_ok=True)
        return swept

    def publish(
        self,
        cell: Cell,
        draft: Path,
        *,
        partition: str,
        logical_version: str,
        fingerprint: str,
        code_version: str,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        started_at: datetime,
        run_id: str = "",
        libraries: Mapping[str, str] | None = None,
        seeds: Mapping[str, int] | None = None,
        counts: Mapping[str, Any] | None = None,
        checks: Iterable[Mapping[str, Any]] = (),
    ) -> Manifest:
        """Makes a draft the current version of its artefact and sweeps what it replaces."""
        away = _elsewhere(draft)
        here = {
            str(path.relative_to(draft.parent)): {
                "sha256": file_sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(draft.rglob("*"))
            if path.is_file() and path != draft / ELSEWHERE
        }
        files = dict(sorted({**away, **here}.items()))
        if not files:
            raise BrokenArtefact(
                f"{cell}: what was made for it is gone from {draft}. Did another process, or a "
                "person, clear the lake? Run again."
            )
        manifest = Manifest(
            asset=cell.asset,
            partition=partition,
            logical_version=logical_version,
            fingerprint=fingerprint,
            code_version=code_version,
            files=files,
            inputs=dict(inputs),
            config=dict(config),
            libraries=dict(libraries or {}),
            seeds=dict(seeds or {}),
            run_id=run_id,
            started_at=started_at.isoformat(),
            finished_at=datetime.now(UTC).isoformat(),
            counts=dict(counts or {}),
            checks=[dict(check) for check in checks],
        ).sealed()
        if self.remote is not None:
            text = manifest.to_json().encode()
            sent = {name for name, file in away.items() if here.get(name, file) == file}
            self.remote.publish(str(cell), files, text, sent)
        else:
            write_atomically(self.folder(cell) / MANIFEST, manifest.to_json())
        (draft / ELSEWHERE).unlink(missing_ok=True)
        self.sweep(cell)
        work = self.lake.joinpath(".work", cell.asset, *cell.parts)
        shutil.rmtree(work, ignore_errors=True)
        return manifest

    def sweep(self, cell: Cell, spare: Container[str] = ()) -> None:
        """Removes versions of an artefact that are not current: replaced ones and torn drafts.

        Args:
            cell: The artefact.
            spare: Versions that are left.
        """
        current = self.current(cell)
        folder = self.folder(cell)
        for path in folder.glob("v????????????") if folder.exists() else ():
            if path.is_dir() and path.name != current and path.name not in spare:
                shutil.rmtree(path, ignore_errors=True)

    def published(self, skip_broken: bool = False) -> list[tuple[Cell, Manifest]]:
        """Every artefact of the lake with its manifest, sorted.

        Args:
            skip_broken: Leave out manifests that cannot be read.

        Raises:
            BrokenArtefact: If one cannot be read.
        """
        found: list[tuple[Cell, Manifest]] = []
        for path in self.lake.rglob(MANIFEST) if self.lake.exists() else ():
            relative = path.parent.relative_to(self.lake).parts
            if not 1 <= len(relative) <= 3 or relative[0] == ".work":
                continue
            try:
                found.append((Cell(relative[0], relative[1:]), Manifest.read(path)))
            except BrokenArtefact:
                if not skip_broken:
                    raise
        return sorted(found, key=lambda pair: pair[0])
