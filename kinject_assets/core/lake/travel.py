"""Requests that travel to another machine, and what is made there that comes back.

Two machines have the lake of an object store in common, and nothing else. A request's paths below
the profile's folder become `lake:RELATIVE`, and paths again where it arrives. For a lake that both
machines see as a folder, nothing is to be done but making folders.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from kinject_assets.core.errors import KinjectError, MissingArtefact
from kinject_assets.core.lake.objects import Objects
from kinject_assets.core.lake.remote import WORK, Mark, Remote
from kinject_assets.core.manifest import file_sha256, is_version, write_atomically
from kinject_assets.core.progress import PROGRESS
from kinject_assets.core.store import ELSEWHERE, Cell, Store

PREFIX = "lake:"

LARGEST = 64 * 2**20
"""Bytes up to which a file that a worker made comes to the orchestrator."""

KEPT = ".kept.json"
"""Object that says what a work folder holds: path -> hash and size. It is written last."""

BLOBS = ".kept"
"""Folder of the objects with these bytes, by their hash: what is named never changes."""

UNFINISHED = {"saving"}
"""Folders in which training writes what gets its name when it is whole."""

_hashed: dict[str, tuple[Mark, str]] = {}
"""Files of work folders whose hash this process knows: path -> time of change and size, hash."""

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_PARTIAL = re.compile(r"\.[0-9a-f]{32}(\.|$)|\.partial$")

Listing = Mapping[str, Mapping[str, Any]]
"""Path in a folder -> `sha256` and `bytes`."""


def packed(request: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """A request for another machine; what it names in work folders is brought to the store.

    Args:
        request: Paths may stand at any depth.
        store: The lake of this machine.
    """
    remote = store.remote
    if remote is None:
        return dict(request)
    root = str(store.root.absolute())

    def pack(text: str) -> str:
        if text != root and not text.startswith(f"{root}{os.sep}"):
            return text
        relative = Path(text).relative_to(root).as_posix()
        if relative.startswith(f"lake/{WORK}/"):
            _send_work(store, remote, Path(text))
        return f"{PREFIX}{relative}"

    return _mapped(request, pack)


def unpacked(request: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """The request on the machine where it arrived, with all that it names in place.

    Published files are brought and verified; folders of drafts are empty; work folders hold what
    `sync_work` brought to the store last.

    Args:
        request: What `packed` made.
        store: The lake of this machine.

    Raises:
        MissingArtefact: If something that it names was replaced meanwhile.
    """
    remote = store.remote
    if remote is None:
        made = dict(request)
        for name in ("work", "out"):
            if isinstance(made.get(name), str):
                Path(made[name]).mkdir(parents=True, exist_ok=True)
        return made
    store.refresh(force=True)

    def unpack(text: str) -> str:
        if not text.startswith(PREFIX):
            return text
        relative = PurePosixPath(text.removeprefix(PREFIX))
        _require_inside(relative)
        path = store.root / relative
        if relative.parts[:2] == ("lake", WORK):
            _take_work(store, remote, path)
        elif text == request.get("out"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        elif relative.parts[:1] == ("lake",):
            _take(store, relative.parts[1:], path)
        return str(path)

    return _mapped(request, unpack)


def bring(request: Mapping[str, Any], store: Store) -> None:
    """Brings published files that a request of this machine names by `Store.reference`.

    Args:
        request: Paths may stand at any depth.
        store: The lake of this machine.
    """
    if store.remote is None:
        return

    def look(text: str) -> str:
        path = Path(text)
        if path.is_absolute() and path.is_relative_to(store.lake):
            parts = path.relative_to(store.lake).parts
            at = next((n for n, part in enumerate(parts) if is_version(part)), None)
            if at is not None and store.current(Cell(parts[0], parts[1:at])) == parts[at]:
                _take(store, parts, path)
        return text

    _mapped(request, look)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same structure with every text changed."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {key: _mapped(inner, change) for key, inner in value.items()}
        case list() | tuple():
            return [_mapped(inner, change) for inner in value]
    return value


def _require_inside(path: PurePosixPath) -> None:
    if path.is_absolute() or ".." in path.parts:
        raise KinjectError(f"{path}: leads out of the lake; the request is not one of ours")


def _take(store: Store, parts: tuple[str, ...], path: Path) -> None:
    """Brings what a published version holds."""
    at = next((n for n, part in enumerate(parts) if is_version(part)), None)
    if at is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    cell, name = Cell(parts[0], parts[1:at]), "/".join(parts[at + 1 :]) or "."
    if store.current(cell) != parts[at]:
        raise MissingArtefact(
            f"{cell} was made anew after this was asked for, so {'/'.join(parts)} is gone. Run "
            "again."
        )
    store.path(cell, name)


# --- drafts ---


def send_draft(store: Store, draft: Path) -> dict[str, dict[str, Any]]:
    """Brings what a worker wrote to a draft's folder to its place in the store.

    Returns:
        Path in the draft -> `sha256` and `bytes`, for `receive_draft`; empty for a folder that both
        machines see.

    Raises:
        TornUpload: If the store holds something else than was uploaded.
    """
    if store.remote is None:
        return {}
    objects, place = store.remote.objects, _key(store, draft)
    listing = {
        path.relative_to(draft).as_posix(): {
            "sha256": file_sha256(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(draft.rglob("*"))
        if path.is_file() and path.name != ELSEWHERE
    }
    for name in listing:
        objects.upload(draft / name, f"{place}/{name}")
    there = objects.listing(place)
    for name, sent in listing.items():
        key = f"{place}/{name}"
        objects.verify(key, there.get(key), sent["bytes"], sent["sha256"], draft / name)
    return listing


def receive_draft(
    store: Store, draft: Path, listing: Listing, largest: int | None = LARGEST
) -> None:
    """Brings what `send_draft` sent to the draft's folder here; large files stay where they are.

    `Store.publish` takes these over from a note in the draft.

    Args:
        store: The lake of this machine.
        draft: The folder, or one in it.
        listing: What `send_draft` returned.
        largest: Bytes up to which a file is brought; `None` for all, as a folder in a draft needs.

    Raises:
        BrokenArtefact: If a file is not the one that was sent.
    """
    if store.remote is None:
        return
    place = _key(store, draft)
    parts = place.split("/")
    version = next(n for n, part in enumerate(parts) if is_version(part))
    store.remote.sent.add("/".join(parts[: version + 1]))
    for name, sent in listing.items():
        _require_inside(PurePosixPath(name))
        path = draft / name
        if (largest is None or sent["bytes"] <= largest) and not _same(path, sent):
            store.remote.bring(f"{place}/{name}", sent["bytes"], sent["sha256"], path)
    if largest is None:
        return
    write_atomically(draft / ELSEWHERE, json.dumps({name: dict(s) for name, s in listing.items()}))


# --- work folders ---


def sync_work(store: Store, work: Path) -> None:
    """Brings what a work folder keeps to the store, and removes there what it keeps no more.

    What arrives on another machine is of one moment, and whole: bytes go up under their hash, then
    the one object that names them.

    Args:
        store: The lake of this machine.
        work: `Store.work` of a step, or a folder in it that one process has for itself.
    """
    if store.remote is None or not work.exists():
        return
    objects, place = store.remote.objects, _key(store, work)
    before = _kept(objects, place)
    there = {recorded["sha256"] for recorded in before.values()}
    marks = _scan(work)
    now: dict[str, dict[str, Any]] = {}
    # What says that others are complete is taken before them: later, it might claim too much.
    for name in sorted(marks, key=lambda name: (not name.endswith(".json"), name)):
        with suppress(FileNotFoundError):
            now[name] = _send(objects, place, work / name, marks[name], there)
    # A saved state that was removed meanwhile is not whole.
    after = _scan(work)
    torn = {PurePosixPath(name).parent for name in marks if name not in after}
    now = {
        name: sent
        for name, sent in now.items()
        if name in after and PurePosixPath(name).parent not in torn - {PurePosixPath(".")}
    }
    if now != before:
        objects.write(f"{place}/{KEPT}", json.dumps(now).encode())
    wanted = {sent["sha256"] for sent in now.values()}
    objects.remove(f"{place}/{BLOBS}/{sha256}" for sha256 in there - wanted)


def _send(objects: Objects, place: str, path: Path, mark: Mark, there: set[str]) -> dict[str, Any]:
    """Uploads a file under its hash, unless that is there; one that is being written as a copy."""
    copy = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        source = path
        sha256 = _sha256(path, mark)
        if _mark_of(path) != mark:
            source = Path(shutil.copyfile(path, copy))
            sha256 = file_sha256(source)
        if sha256 not in there:
            objects.upload(source, f"{place}/{BLOBS}/{sha256}")
            if source == path and _mark_of(path) != mark:
                # It changed on its way: these bytes are not of that name.
                source = Path(shutil.copyfile(path, copy))
                objects.remove([f"{place}/{BLOBS}/{sha256}"])
                sha256 = file_sha256(source)
                objects.upload(source, f"{place}/{BLOBS}/{sha256}")
            there.add(sha256)
        return {"sha256": sha256, "bytes": source.stat().st_size}
    finally:
        copy.unlink(missing_ok=True)


def _sha256(path: Path, mark: Mark) -> str:
    """Hash of a file, computed once while it stays as it is: a saved state may be of many GB."""
    known = _hashed.get(str(path))
    if known is None or known[0] != mark:
        known = _hashed[str(path)] = (mark, file_sha256(path))
    return known[1]


def _send_work(store: Store, remote: Remote, path: Path) -> None:
    """Brings what a request names in a work folder; what the store keeps of it stays."""
    work = _work_of(store, path)
    place = _key(store, work)
    kept = _kept(remote.objects, place)
    if not kept:
        sync_work(store, work)
        return
    # What a run of this machine kept since is added.
    marks = {name: mark for name, mark in _scan(work).items() if name not in kept}
    if path.is_file():
        marks[path.relative_to(work).as_posix()] = _mark_of(path)
    there = {recorded["sha256"] for recorded in kept.values()}
    for name, mark in marks.items():
        kept[name] = _send(remote.objects, place, work / name, mark, there)
    if marks:
        remote.objects.write(f"{place}/{KEPT}", json.dumps(kept).encode())


def _take_work(store: Store, remote: Remote, path: Path) -> None:
    """Makes a work folder, or that of a file in it, what the store keeps of it."""
    work = _work_of(store, path)
    own = _key(store, path)
    holders = [
        key.removesuffix(f"/{KEPT}")
        for key in remote.listing
        if key.startswith(f"{_key(store, work)}/") and key.endswith(f"/{KEPT}")
    ]
    for holder in holders:
        if f"{own}/".startswith(f"{holder}/") or f"{holder}/".startswith(f"{own}/"):
            _fill(store, remote, holder)
    if own in holders:
        _clear(store, remote, own, [holder for holder in holders if holder != own])
    if path == work or not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)


def _fill(store: Store, remote: Remote, place: str) -> None:
    """Brings what the store keeps of a work folder."""
    folder = store.lake / place
    for name, recorded in _kept(remote.objects, place).items():
        _require_inside(PurePosixPath(name))
        if not _same(folder / name, recorded):
            blob = f"{place}/{BLOBS}/{recorded['sha256']}"
            remote.bring(blob, recorded["bytes"], recorded["sha256"], folder / name)


def _clear(store: Store, remote: Remote, place: str, others: Sequence[str]) -> None:
    """Removes what this machine kept of an earlier try, but for folders of other processes."""
    folder, kept = store.lake / place, _kept(remote.objects, place)
    for name in _scan(folder):
        foreign = any(f"{place}/{name}".startswith(f"{other}/") for other in others)
        if name not in kept and not foreign:
            (folder / name).unlink(missing_ok=True)
    # A folder's name may say that it is whole: one that is empty now must not stay.
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()


def _kept(objects: Objects, place: str) -> dict[str, dict[str, Any]]:
    """What the store keeps of a work folder."""
    with suppress(FileNotFoundError, ValueError):
        return json.loads(objects.read(f"{place}/{KEPT}"))
    return {}


def _scan(work: Path) -> dict[str, Mark]:
    """Files of a work folder that are whole, with their marks."""
    return {path.relative_to(work).as_posix(): mark for path, mark in _whole(work)}


def _whole(work: Path) -> Iterator[tuple[Path, Mark]]:
    for folder, folders, files in os.walk(work):
        folders[:] = [name for name in folders if name not in UNFINISHED and name[0] != "."]
        for name in files:
            if name != PROGRESS and name[0] != "." and not _PARTIAL.search(name):
                with suppress(FileNotFoundError):
                    path = Path(folder, name)
                    yield path, _mark_of(path)


def _mark_of(path: Path) -> Mark:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _same(path: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether a file is here already."""
    return (
        path.is_file()
        and path.stat().st_size == recorded["bytes"]
        and file_sha256(path) == recorded["sha256"]
    )


def _key(store: Store, path: Path) -> str:
    """Place of a path of the mirror in the store."""
    return path.relative_to(store.lake).as_posix()


def _work_of(store: Store, path: Path) -> Path:
    """The work folder of a step that a path lies in."""
    parts = path.relative_to(store.lake).parts
    at = next((n for n, part in enumerate(parts) if _FINGERPRINT.fullmatch(part)), len(parts) - 1)
    return store.lake.joinpath(*parts[: at + 1])
