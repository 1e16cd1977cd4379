"""A lake in an object store, and its mirror on this machine.

The store is the truth. The mirror holds every manifest and side file; files of artefacts come when
they are read, and go, the least recently used first, when they take more disk than they may.
"""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from kinject_assets.core.errors import BrokenArtefact, KinjectError
from kinject_assets.core.lake.objects import SMALL, LakeError, Object, Objects
from kinject_assets.core.manifest import MANIFEST, file_sha256, is_version, write_atomically
from kinject_assets.core.process import Owner, this_process
from kinject_assets.core.progress import repeating
from kinject_assets.core.store import OUTPUTS

FRESH_SECONDS = 5.0
"""For how long a listing of the whole lake counts as what is there."""

BEAT_SECONDS = 30.0
"""Time between two signs of life of a step: its lease is renewed, and side files go up."""

EXPIRY_SECONDS = 180.0
"""A lease that has not been renewed for so long, by the watch of who waits, has lost its owner."""

LARGE_SIDE = 64 * 2**20
"""Side files of more bytes go up in parts: ledgers, each of which one process writes alone."""

NOTE_SECONDS = 6 * 3600.0
"""For how long a process's note in a mirror counts where it cannot be told whether that works."""

CROWDED_SECONDS = 60.0
"""How long no room is looked for again, after all copies were found to be in use."""

REPLACED_SECONDS = 24 * 3600.0
"""Age after which a version that no manifest names is no upload that still goes on."""

LOOK_SECONDS = 2.0
"""Time between two looks at a lease that another machine holds."""

LIVING_SECONDS = 600.0
"""A lease that was renewed within this time counts as living where only its age can be told."""

WORK = ".work"
LEASES = f"{WORK}/.leases"

MIRROR = "mirror.json"
"""File beside a mirror that says of what it is one."""

_log = logging.getLogger(__name__)

Mark = tuple[int, int]
"""Time of change (ns) and size of a file here."""


@dataclass
class _Known:
    """A side file when it was the same here and there.

    Attributes:
        tag: The object's.
        mark: The file's; `None` when the file holds more than the object.
    """

    tag: str
    mark: Mark | None


def mirrored_url(index: Path) -> str:
    """URL of the lake that a mirror is of.

    Args:
        index: The mirror's `mirror.json`.

    Raises:
        LakeError: If it cannot be read.
    """
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LakeError(
            f"{index}: not readable ({error}). Delete it and {index.parent / 'lake'}, which is a "
            "copy: all is brought again."
        ) from error


def is_plain(key: str) -> bool:
    """Whether a key leads to a file below the lake: a store may hold others."""
    return not {"", ".", ".."} & set(key.split("/"))


def is_side(key: str) -> bool:
    """Whether an object is a manifest or a side file: all that is in no version and no work."""
    parts = key.split("/")
    return (
        is_plain(key)
        and parts[0] != WORK
        and not any(is_version(part) for part in parts[:-1])
        and not parts[-1].startswith(".")
        and not key.endswith(".lock")
    )


def is_manifest(key: str) -> bool:
    """Whether a side file says which version of an artefact is current: it goes up last, alone."""
    parts = key.split("/")
    return parts[-1] == MANIFEST and 2 <= len(parts) <= 4


class Remote:
    """An object store's lake and its mirror. Safe to share between threads and processes.

    Args:
        url: Of the lake.
        root: The profile's folder; the mirror is `root/lake`.
        cache_bytes: What copies of artefacts' files may take here.
        outputs: Bring what lies beside the lake for people, too.

    Attributes:
        listing: What the store held when it was listed last, and what this process did since.
        sent: Versions that this process, or its workers, have brought to the store.

    Raises:
        LakeError: If the folder mirrors another lake, or holds one that is none's mirror.
    """

    def __init__(self, url: str, root: Path, cache_bytes: float, outputs: bool = True) -> None:
        self.objects = Objects(url)
        self.root = root
        self.lake = root / "lake"
        self.cache_bytes = cache_bytes
        self._outputs = outputs
        self._used: float | None = None
        self._crowded_at = -float("inf")
        self._leases: dict[str, _Lease] = {}
        self._began = 0.0
        self.listing: dict[str, Object] = {}
        self.sent: set[str] = set()
        self._listed_at = -float("inf")
        self._lock = threading.RLock()
        self._file_lock = FileLock(root / "mirror.lock", thread_local=False)
        self._index_path = root / MIRROR
        self._require_ours()

    def __str__(self) -> str:
        return str(self.objects)

    def _require_ours(self) -> None:
        if self._index_path.exists():
            url = mirrored_url(self._index_path)
            if url != self.objects.url:
                raise LakeError(
                    f"{self.lake} mirrors {url}, and the profile's `lake` is {self.objects.url}. "
                    f"Use another KINJECT_HOME or name of the profile, or delete {self.lake} and "
                    f"{self._index_path}: all that the other lake holds stays there."
                )
        elif any(self.lake.glob(f"*/**/{MANIFEST}")):
            raise LakeError(
                f"{self.lake} holds a lake of this machine, and the profile's `lake` is "
                f"{self.objects.url}. To go on with it there, copy it (e.g. aws s3 sync "
                f"{self.lake} {self.objects.url} --exclude '.work/*'), then move {self.lake} away."
            )

    @contextlib.contextmanager
    def _machine(self) -> Iterator[None]:
        """One process of this machine at a time works on the mirror."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock, self._file_lock:
            yield

    # --- manifests and side files ---

    def refresh(self, force: bool = False) -> list[str]:
        """Brings what has changed in the store; folders of artefacts whose manifest has.

        Args:
            force: List the store even if that was done a moment ago.
        """
        with self._machine():
            if not force and time.monotonic() - self._listed_at < FRESH_SECONDS:
                return []
            began = time.monotonic()
            listing = self.objects.listing()
            changed = self._pull(listing)
            self.listing, self._listed_at = listing, began
            return changed

    @property
    def listed(self) -> bool:
        """Whether the store has been listed at all."""
        return self._listed_at > -float("inf")

    @property
    def age(self) -> float:
        """Seconds since the store was listed."""
        return time.monotonic() - self._listed_at

    def _pull(self, listing: Mapping[str, Object]) -> list[str]:
        index = self._read_index()
        side = {key: found for key, found in listing.items() if self._mirrors(key)}
        wanted = [
            key
            for key, found in side.items()
            if key not in index or index[key].tag != found.tag or not self._path(key).exists()
        ]
        small = self.objects.read_small([key for key in wanted if side[key].size <= SMALL])
        for key in wanted:
            more = False
            if key in small:
                more = self._take(key, small[key], index.get(key))
            elif side[key].size <= SMALL:
                continue  # gone since it was listed
            else:
                try:
                    more = self._take_large(key, index.get(key))
                except FileNotFoundError:
                    continue
            index[key] = _Known(side[key].tag, None if more else _mark(self._path(key)))
        gone = [key for key in index if key not in side and self._mirrors(key)]
        for key in gone:
            known, path = index.pop(key), self._path(key)
            # What was written here since goes up again.
            if _mark(path) == known.mark:
                path.unlink(missing_ok=True)
        if wanted or gone or not self._index_path.exists():
            self._write_index(index)
        return [key.rpartition("/")[0] for key in (*wanted, *gone) if is_manifest(key)]

    def _mirrors(self, key: str) -> bool:
        return is_side(key) and (self._outputs or not key.startswith(f"{OUTPUTS}/"))

    def _take(self, key: str, data: bytes, known: _Known | None) -> bool:
        """Puts an object's bytes in place of a side file; whether that holds more now.

        Rows that a journal has here alone stay, behind those that came.
        """
        path = self._path(key)
        own = _mark(path)
        more: list[bytes] = []
        if own and self._has_own_rows(key, known):
            there = data.splitlines(keepends=True)
            if there and not there[-1].endswith(b"\n"):
                there.pop()  # torn: whoever wrote it sends it again
            came = set(there)
            rows = path.read_bytes().splitlines(keepends=True)
            more = [row for row in rows if row not in came]
            data = b"".join([*there, *more])
        if own is None or path.read_bytes() != data:
            _write_bytes(path, data)
        return bool(more)

    def _has_own_rows(self, key: str, known: _Known | None) -> bool:
        """Whether a journal here may hold rows that the store has not seen."""
        own = _mark(self._path(key))
        return own is not None and key.endswith(".jsonl") and (known is None or own != known.mark)

    def _take_large(self, key: str, known: _Known | None) -> bool:
        """The same for a large one: it is in memory only where rows must be merged.

        Raises:
            FileNotFoundError: If it is gone.
        """
        partial = self._partial()
        try:
            self.objects.fetch(key, partial)
            if self._has_own_rows(key, known):
                return self._take(key, partial.read_bytes(), known)
            path = self._path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return False

    def reread(self, below: str) -> None:
        """Reads side files by their bytes in the store, whatever its listing says of them."""
        with self._machine():
            index = self._read_index()
            keys = [key for key in self.listing if key.startswith(below) and is_side(key)]
            for key, data in self.objects.read_small(keys).items():
                more = self._take(key, data, index.get(key))
                index[key] = _Known(self.listing[key].tag, None if more else _mark(self._path(key)))
            self._write_index(index)

    def push(self) -> None:
        """Brings side files that were written here to the store."""
        with self._machine():
            index = self._read_index()
            waiting = [
                (key, path)
                for key, path in self._side_files()
                if key not in index or index[key].mark != _mark(path)
            ]
            for key, path in waiting:
                # Noted one by one: after a crash, what went up is not taken for another's.
                try:
                    self._push(key, path, index)
                finally:
                    self._write_index(index)

    def _push(self, key: str, path: Path, index: dict[str, _Known]) -> None:
        for _ in range(3):
            mark = _mark(path)
            if mark is None:
                return
            if mark[1] > LARGE_SIDE:
                # Only the process that writes it does; too large for one conditional request.
                self.objects.upload(path, key)
                if found := self.objects.look(key):
                    index[key] = _Known(found.tag, mark)
                return
            known = index.get(key)
            data = path.read_bytes()
            made = (
                self.objects.swap(key, data, known.tag)
                if known and known.tag
                else self.objects.create(key, data)
            )
            if made is not None:
                index[key] = _Known(made.tag, mark)
                self._note(key, made)
                return
            # Another machine wrote it since it was seen: its rows come first, then again.
            found = self.objects.look(key)
            if found is None:
                index.pop(key, None)
                continue
            more = self._take(key, self.objects.read(key), known)
            index[key] = _Known(found.tag, None if more else _mark(path))
            if not more:
                return
        raise LakeError(
            f"{self.objects.url}/{key}: other machines write it all the time; try again later"
        )

    def _note(self, key: str, made: Object) -> None:
        """Adds an object to the listing, of which others may be looking at the former one."""
        with self._lock:
            self.listing = {**self.listing, key: made}

    def _side_files(self) -> Iterator[tuple[str, Path]]:
        for folder, folders, files in os.walk(self.lake):
            folders[:] = [name for name in folders if name[0] != "." and not is_version(name)]
            for name in files:
                path = Path(folder, name)
                key = path.relative_to(self.lake).as_posix()
                if is_side(key) and not is_manifest(key):
                    yield key, path

    def _path(self, key: str) -> Path:
        """Where an object's copy lies here."""
        if key.startswith(f"{OUTPUTS}/"):
            return self.root / key.removeprefix(f"{OUTPUTS}/")
        return self.lake / key

    def _read_index(self) -> dict[str, _Known]:
        try:
            found = json.loads(self._index_path.read_text(encoding="utf-8"))["files"]
            return {
                key: _Known(tag, (mark[0], mark[1]) if mark else None)
                for key, (tag, mark) in found.items()
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write_index(self, index: Mapping[str, _Known]) -> None:
        files = {key: [known.tag, known.mark] for key, known in sorted(index.items())}
        text = json.dumps({"url": self.objects.url, "files": files})
        write_atomically(self._index_path, text)

    # --- files of artefacts ---

    def versions(self, folder: str) -> set[str]:
        """Versions of an artefact that the store holds anything of, by the last listing."""
        parts = (key[len(folder) + 1 :].split("/") for key in self.listing if _below(key, folder))
        return {part[0] for part in parts if is_version(part[0])}

    def holds(self, key: str, size: int) -> bool:
        """Whether the store has an object of a size, by the last listing."""
        found = self.listing.get(key)
        return found is not None and found.size == size

    def fetch(self, key: str, size: int, sha256: str) -> Path:
        """A file of an artefact: brought here unless its copy is there, and noted as used.

        Raises:
            FileNotFoundError: If the store has it no more.
            BrokenArtefact: If the store's bytes are not those that were published.
        """
        if not is_plain(key):
            raise BrokenArtefact(
                f"{self.objects.url}/{_artefact(key)}/{MANIFEST} names {key}, outside its folder: "
                "it was edited. Restore it from a backup."
            )
        path = self.lake / key
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if found.st_size == size:
                os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
                return path
        if self._began == 0:
            self.begin()  # it may need this with what it brings next
        self._make_room(size)
        self.bring(key, size, sha256, path)
        return path

    def bring(self, key: str, size: int, sha256: str, path: Path) -> None:
        """Downloads an object, and gives it its name when its bytes are those that are expected.

        Raises:
            FileNotFoundError: If the store has it no more.
            BrokenArtefact: If its bytes are others.
        """
        partial = self._partial()
        try:
            for _ in range(2):
                self.objects.fetch(key, partial)
                if partial.stat().st_size == size and file_sha256(partial) == sha256:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial.replace(path)
                    return
        finally:
            partial.unlink(missing_ok=True)
        raise BrokenArtefact(
            f"{self.objects.url}/{key} does not hold the bytes that were published: it was changed "
            f"or cut off there. Restore it from a backup, or delete the objects below "
            f"{self.objects.url}/{_artefact(key)} and run again: only this artefact and what is "
            "built on it are made again."
        )

    def _partial(self) -> Path:
        self._fetching.mkdir(parents=True, exist_ok=True)
        return self._fetching / f"{_own_name()}-{uuid.uuid4().hex}"

    @property
    def _fetching(self) -> Path:
        """Folder of what is being brought."""
        return self.lake / WORK / ".fetching"

    def _sweep_fetching(self) -> None:
        """Removes what dead processes were bringing."""
        for path in self._fetching.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if not _may_live(_named_owner(path.name), path.stat().st_mtime):
                    path.unlink()

    def _make_room(self, wanted: int) -> None:
        """Removes copies that were not used for longest, as far as they take too much.

        What living processes of this machine may be reading stays: all that was used since the
        first of them began what it does.
        """
        crowded = time.monotonic() - self._crowded_at < CROWDED_SECONDS
        if self._used is not None and (crowded or self._used + wanted <= self.cache_bytes):
            self._used += wanted
            return
        copies = list(self._copies())
        over = sum(found.st_size for _, found in copies) + wanted - self.cache_bytes
        begun = min(self._sessions(), default=time.time())
        for path, found in sorted(copies, key=lambda pair: pair[1].st_atime_ns):
            if over <= 0 or found.st_atime >= begun:
                break
            with contextlib.suppress(FileNotFoundError):
                # Another process may have begun to read it since.
                if path.stat().st_atime < begun:
                    path.unlink()
                    over -= found.st_size
        self._used = self.cache_bytes + over
        self._crowded_at = time.monotonic() if over > 0 else -float("inf")

    def _copies(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Files of versions that the store has, so that they can be brought again."""
        for folder, folders, files in os.walk(self.lake):
            parts = Path(folder).relative_to(self.lake).parts
            folders[:] = [name for name in folders if parts or name != WORK]
            if not any(is_version(part) for part in parts):
                continue
            for name in files:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    if self.holds("/".join((*parts, name)), found.st_size):
                        yield path, found

    def begin(self) -> None:
        """Notes that this process begins something new: what it used before may be evicted.

        Nothing is noted while a step of this process works: what it uses stays.
        """
        if self._leases:
            return
        self._began = time.time()
        self._sweep_fetching()
        self._sessions()  # forgets those that are gone
        self._crowded_at = -float("inf")
        self._note_session()

    def _note_session(self) -> None:
        path = self.root / ".readers" / f"{_own_name()}.json"
        works = bool(self._leases)
        note = {"owner": asdict(this_process()), "at": self._began, "works": works}
        write_atomically(path, json.dumps(note))

    def _sessions(self) -> list[float]:
        """When each process that still works began what it does; others are forgotten.

        One that makes nothing, as a server, counts for some hours.
        """
        found: list[float] = []
        for path in (self.root / ".readers").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                note = json.loads(path.read_text(encoding="utf-8"))
                at = float(note["at"])
                owner = Owner(**note["owner"])
                if not note["works"] and time.time() - at > NOTE_SECONDS:
                    path.unlink(missing_ok=True)
                elif _may_live(owner, at):
                    found.append(at)
                else:
                    path.unlink(missing_ok=True)
        return found

    # --- publication ---

    def publish(
        self,
        folder: str,
        files: Mapping[str, Mapping[str, Any]],
        manifest: bytes,
        sent: Collection[str] = (),
    ) -> None:
        """Uploads a version, verifies it, and makes it the current one by its manifest.

        Until the manifest is there, the version that it replaces stays current.

        Args:
            folder: The artefact.
            files: Path below it -> `sha256` and `bytes`.
            manifest: Its manifest.
            sent: Those of the files that a worker has uploaded already.

        Raises:
            TornUpload: If the store does not hold what was uploaded.
            LakeError: If another machine has taken over the making of the artefact.
        """
        self._used = None
        current = next(iter(files)).split("/", 1)[0]
        self.sent.add(f"{folder}/{current}")
        there = self._upload(folder, files, sent)
        self._require_lease(folder)
        key = f"{folder}/{MANIFEST}"
        former = self._former(key)
        made = self.objects.write(key, manifest)
        # Versions are removed whole, so one file tells of all.
        if self.objects.look(last := f"{folder}/{max(files)}") is None:
            self._take_back(key, made, former)
            raise LakeError(
                f"{self.objects.url}/{last}: it was removed while its manifest was written. Does "
                "another machine make the same? Run again: nothing was published."
            )
        with self._machine():
            index = self._read_index()
            _write_bytes(self.lake / key, manifest)
            index[key] = _Known(made.tag, _mark(self.lake / key))
            self._write_index(index)
        gone = self._remove_replaced(folder, there, current, former, bool(sent))
        with self._lock:
            others = {k: v for k, v in self.listing.items() if not _below(k, folder)}
            now = {**others, **there, key: made}
            self.listing = {k: v for k, v in now.items() if k not in gone}

    def _upload(
        self, folder: str, files: Mapping[str, Mapping[str, Any]], sent: Collection[str]
    ) -> dict[str, Object]:
        """Brings the files of a version to the store; what that holds of the artefact then."""
        here = [name for name in files if name not in sent]
        for name in here:
            self.objects.upload(self.lake / folder / name, f"{folder}/{name}")
        there = self.objects.listing(folder)
        for name, recorded in files.items():
            key = f"{folder}/{name}"
            path = self.lake / key
            if name in here:
                size, sha256 = recorded["bytes"], recorded["sha256"]
                self.objects.verify(key, there.get(key), size, sha256, path)
            elif (found := there.get(key)) is None or found.size != recorded["bytes"]:
                raise LakeError(
                    f"{self.objects.url}/{key}: what a worker uploaded is not there any more. Run "
                    "again: nothing was published."
                )
        return there

    def _former(self, key: str) -> bytes | None:
        """The manifest that is about to be replaced."""
        with contextlib.suppress(FileNotFoundError):
            return self.objects.read(key)
        return None

    def _require_lease(self, folder: str) -> None:
        """Makes sure that no other machine has taken over what this process makes."""
        lease = self._leases.get(folder)
        if lease and not lease.is_ours():
            raise LakeError(
                f"{self.objects.url}/{folder}: another machine makes it now, because this one gave "
                f"no sign of life for {EXPIRY_SECONDS:.0f} s (was it asleep, or cut off?). Nothing "
                "was published here: run again, and what the other made is taken."
            )

    def _take_back(self, key: str, made: Object, former: bytes | None) -> None:
        """Puts the former manifest in place of one, unless another machine has replaced it."""
        now = self.objects.look(key)
        if now is None or now.tag != made.tag:
            return
        if former is None:
            self.objects.remove([key])
        else:
            self.objects.swap(key, former, made.tag)

    def _remove_replaced(
        self,
        folder: str,
        there: Mapping[str, Object],
        current: str,
        former: bytes | None,
        worked: bool,
    ) -> set[str]:
        """Removes the version that was replaced, old ones that none names, and the step's work.

        A younger one may be what another machine is just going to publish.
        """
        versions: dict[str, list[str]] = {}
        for key in there:
            if is_version(part := key[len(folder) + 1 :].split("/", 1)[0]) and part != current:
                versions.setdefault(part, []).append(key)
        now = max((found.at for found in there.values()), default=0.0)
        before = _version_of(former)
        old = {
            key
            for version, keys in versions.items()
            if version == before or 0 < max(there[key].at for key in keys) < now - REPLACED_SECONDS
            for key in keys
        }
        work = f"{WORK}/{folder}"
        if worked or any(_below(key, work) for key in self.listing):
            old |= set(self.objects.listing(work))
        try:
            self.objects.remove(old)
        except LakeError as error:  # it is published; the audit names what is left
            _log.warning("%s: %s", folder, error)
            return set()
        return old

    def discard(self, folder: str) -> bool:
        """Removes all objects below a folder; whether there were any."""
        keys = set(self.objects.listing(folder))
        self.objects.remove(keys)
        with self._lock:
            self.listing = {k: found for k, found in self.listing.items() if k not in keys}
        return bool(keys)

    def keep_output(self, name: str) -> None:
        """Uploads what was written beside the lake for people."""
        key, path = f"{OUTPUTS}/{name}", self.root / name
        self.objects.upload(path, key)
        found = self.objects.look(key)
        if found is None or found.size != path.stat().st_size:
            raise LakeError(f"{self.objects.url}/{key}: it is not as it was uploaded. Run again.")
        with self._machine():
            index = self._read_index()
            index[key] = _Known(found.tag, _mark(path))
            self._write_index(index)
        self._note(key, found)

    # --- leases ---

    @contextlib.contextmanager
    def lease(self, name: str, waiting: Callable[[], None]) -> Iterator[bool]:
        """Keeps other machines from making an artefact, and shows them that this one works.

        Meanwhile side files go up every now and then: a machine that is lost loses little.

        Args:
            name: The artefact.
            waiting: Called when another machine makes it, before that is waited for.

        Yields:
            Whether another had it meanwhile.
        """
        lease = _Lease(self.objects, f"{LEASES}/{name}.json")
        waited = lease.take(waiting)
        try:
            # Two threads: the lease must not wait for a large file that goes up.
            with (
                repeating(partial(_tried, name, lease.renew), BEAT_SECONDS),
                repeating(partial(_tried, name, self.push), BEAT_SECONDS),
            ):
                self._leases[name] = lease
                self._note_session()
                yield waited
        finally:
            self._leases.pop(name, None)
            lease.leave()
            self._note_session()

    def living(self) -> dict[str, Owner]:
        """Artefacts that some machine is making, by the leases of the last listing."""
        found: dict[str, Owner] = {}
        for key, lease in self.listing.items():
            if not key.startswith(f"{LEASES}/"):
                continue
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                owner = Owner(**json.loads(self.objects.read(key))["owner"])
                here = owner.host == this_process().host
                if owner.alive if here else time.time() - lease.at < LIVING_SECONDS:
                    found[key.removeprefix(f"{LEASES}/").removesuffix(".json")] = owner
        return found


def _tried(name: str, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:  # the step itself says so when it needs the store
        _log.warning("%s: %s", name, error)


class _Lease:
    """The right to make an artefact: an object that only one can create.

    Whoever waits takes it over when it has not changed for long, by his own watch: clocks of
    machines need not agree.
    """

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._key = objects, key
        self._tag = ""
        self._beats = 0
        self._id = uuid.uuid4().hex

    def _data(self) -> bytes:
        # A new number each time: an object with the same bytes would have the same tag.
        self._beats += 1
        note = {"owner": asdict(this_process()), "beat": self._beats, "id": self._id}
        return json.dumps(note).encode()

    def take(self, waiting: Callable[[], None]) -> bool:
        """Waits until it is ours; whether it was another's meanwhile."""
        seen, since, told = "", time.monotonic(), False
        while True:
            if made := self._objects.create(self._key, self._data()):
                self._tag = made.tag
                return told
            asked = time.monotonic()
            found = self._objects.look(self._key)
            if found is None:
                continue
            if time.monotonic() - asked > BEAT_SECONDS:
                since = time.monotonic()  # the store was down: nobody could renew it
            note = self._note()
            if note.get("id") == self._id:  # it was made, and the answer was lost
                self._tag = found.tag
                return told
            if found.tag != seen:
                seen, since = found.tag, time.monotonic()
            if _abandoned(note) or time.monotonic() - since > EXPIRY_SECONDS:
                if made := self._objects.swap(self._key, self._data(), seen):
                    self._tag = made.tag
                    return True
                continue
            if not told:
                told = True
                waiting()
            time.sleep(LOOK_SECONDS)

    def _note(self) -> dict[str, Any]:
        """What it says now; nothing if it cannot be read."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return dict(json.loads(self._objects.read(self._key)))
        return {}

    def is_ours(self) -> bool:
        """Whether nobody has taken it over, as the store says now."""
        return self._note().get("id") == self._id

    def renew(self) -> None:
        """Shows that its owner lives."""
        made = self._objects.swap(self._key, self._data(), self._tag)
        if made is None and self.is_ours():
            made = self._objects.look(self._key)  # it was renewed, and the answer was lost
        if made is None:
            _log.warning("%s was taken over by another machine", self._key)
        else:
            self._tag = made.tag

    def leave(self) -> None:
        """Gives it back, if it is still ours."""
        with contextlib.suppress(KinjectError):  # it expires by itself
            found = self._objects.look(self._key)
            if found and found.tag == self._tag:
                self._objects.remove([self._key])


def _own_name() -> str:
    """Name of this process in names of files."""
    me = this_process()
    return f"{me.host}-{me.pid}-{me.born}"


def _named_owner(name: str) -> Owner | None:
    """The process that a name which begins with `_own_name` tells."""
    host, *numbers = name.rsplit("-", 3)
    if len(numbers) == 3 and numbers[0].isdecimal() and numbers[1].isdecimal():
        return Owner(int(numbers[0]), int(numbers[1]), host)
    return None


def _may_live(owner: Owner | None, seen: float) -> bool:
    """Whether a process lives; of one that is not of this machine its last sign of life tells."""
    if owner and owner.host == this_process().host:
        return owner.alive
    return time.time() - seen < NOTE_SECONDS


def _version_of(manifest: bytes | None) -> str:
    """The version that a manifest names; empty where there is none or it cannot be read."""
    with contextlib.suppress(ValueError, KeyError, TypeError, StopIteration):
        return str(next(iter(json.loads(manifest or b"{}")["files"]))).split("/", 1)[0]
    return ""


def _abandoned(note: dict[str, Any]) -> bool:
    """Whether the owner of a lease was a process of this machine, and is gone."""
    with contextlib.suppress(KeyError, TypeError):
        return not Owner(**note["owner"]).alive
    return False


def _mark(path: Path) -> Mark | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _below(key: str, folder: str) -> bool:
    return key.startswith(f"{folder}/")


def _write_bytes(path: Path, data: bytes) -> None:
    """Writes a file so that readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _artefact(key: str) -> str:
    """Folder of the artefact that a file of a version belongs to."""
    parts = key.split("/")
    version = next((n for n, part in enumerate(parts) if is_version(part)), len(parts) - 1)
    return "/".join(parts[:version])
