"""Where each artefact lives, and how it gets there whole.

`lake/<asset>/<partition>/manifest.json` names the files of the current version, which lie in
`lake/<asset>/<partition>/<version>/`. A new version is written beside the old one and becomes
current when its manifest replaces the old one: readers and crashes never see a mixture.
"""

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.manifest import Manifest, file_sha256, write_atomically
from kinject_assets.core.schema import arrow_schema

Row = TypeVar("Row")

MANIFEST = "manifest.json"


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
    pq.write_table(table, path, compression="zstd")


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Reads rows that `write_rows` wrote.

    Raises:
        BrokenArtefact: If the file cannot be read or has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        if table.schema.names != arrow_schema(row_type).names:
            raise BrokenArtefact(
                f"{path}: columns are {table.schema.names}, expected "
                f"{arrow_schema(row_type).names}. Delete {path.parent.parent} and run again."
            )
        return [row_type(**row) for row in table.to_pylist()]
    except (pa.ArrowInvalid, OSError) as error:
        raise BrokenArtefact(
            f"{path}: not a readable Parquet file ({error}). Delete the folder "
            f"{path.parent.parent} and run again: only this artefact and what is built on it are "
            "made again."
        ) from error


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
    """The lake of one profile.

    Args:
        root: The profile's folder; the lake lies in `root/lake`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lake = root / "lake"

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

    def manifest(self, cell: Cell) -> Manifest | None:
        """The manifest of a published artefact, or `None`."""
        path = self.folder(cell) / MANIFEST
        return Manifest.read(path) if path.exists() else None

    def input_version(self, key: str) -> str | None:
        """Current version of an input as manifests spell it, or `None` if it is not there.

        Args:
            key: `asset/partition`, or with `#pNN`: the first NN paraphrases of each chunk, whose
                versions the manifest of the paraphrases keeps under `counts`.
        """
        name, _, part = key.partition("#")
        asset, *parts = name.split("/")
        manifest = self.manifest(Cell(asset, tuple(parts)))
        if manifest is None:
            return None
        return manifest.counts.get("prefixes", {}).get(part) if part else manifest.logical_version

    def path(self, cell: Cell, name: str) -> Path:
        """Path of a published file or folder.

        Raises:
            MissingArtefact: If the artefact has not been published or has no such file.
        """
        manifest = self.manifest(cell)
        if manifest is None:
            raise MissingArtefact(
                f"{cell} has not been made yet. Materialise it in the UI, or run `kinject run`."
            )
        current = next(iter(manifest.files)).split("/", 1)[0]
        path = self.folder(cell) / current / name
        if not path.exists():
            raise BrokenArtefact(
                f"{path} is gone, though the manifest of {cell} names it. Delete the folder "
                f"{self.folder(cell)} and run again."
            )
        return path

    def rows(self, cell: Cell, name: str, row_type: type[Row]) -> list[Row]:
        """Rows of a published Parquet file, `name` without its ending."""
        return read_rows(self.path(cell, f"{name}.parquet"), row_type)

    @contextmanager
    def draft(self, cell: Cell) -> Iterator[Path]:
        """A new empty folder to write an artefact's files to; removed unless it is published."""
        folder = self.folder(cell) / f"v{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            manifest = self.manifest(cell)
            current = manifest and next(iter(manifest.files), "").split("/", 1)[0]
            if current != folder.name:
                shutil.rmtree(folder, ignore_errors=True)

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
    ) -> Manifest:
        """Makes a draft the current version of its artefact and sweeps what it replaces."""
        files = {
            str(path.relative_to(draft.parent)): {
                "sha256": file_sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        }
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
        )
        write_atomically(self.folder(cell) / MANIFEST, manifest.to_json())
        self.sweep(cell)
        work = self.lake.joinpath(".work", cell.asset, *cell.parts)
        shutil.rmtree(work, ignore_errors=True)
        return manifest

    def sweep(self, cell: Cell) -> None:
        """Removes versions of an artefact that are not current: replaced ones and torn drafts."""
        manifest = self.manifest(cell)
        current = next(iter(manifest.files), "").split("/", 1)[0] if manifest else ""
        folder = self.folder(cell)
        for path in folder.glob("v????????????") if folder.exists() else ():
            if path.is_dir() and path.name != current:
                shutil.rmtree(path, ignore_errors=True)

    def published(self) -> list[tuple[Cell, Manifest]]:
        """Every artefact of the lake with its manifest, sorted."""
        found: list[tuple[Cell, Manifest]] = []
        for path in self.lake.rglob(MANIFEST) if self.lake.exists() else ():
            relative = path.parent.relative_to(self.lake).parts
            if 1 <= len(relative) <= 3 and relative[0] != ".work":
                found.append((Cell(relative[0], relative[1:]), Manifest.read(path)))
        return sorted(found, key=lambda pair: pair[0])
