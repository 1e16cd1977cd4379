"""What a lake holds and what its bytes are, wherever they lie: for the audit.

An object store is asked for the objects themselves; copies on this machine are no witness for them.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.lake.objects import LakeError
from kinject_assets.core.lake.remote import WORK, Remote
from kinject_assets.core.manifest import Manifest, file_sha256
from kinject_assets.core.store import Store

PATIENCE_SECONDS = 5.0
"""How long one object that cannot be read is asked for again, where the store itself answers."""


class Inventory(Protocol):
    """The files of a lake by their path below it."""

    def names(self) -> Iterable[str]:
        """All files but those of unfinished work; an empty folder with a `/` at its end."""
        ...

    def manifest(self, name: str) -> Manifest:
        """Reads a manifest.

        Raises:
            BrokenArtefact: If it is none, or cannot be read.
        """
        ...

    def inside(self, folder: str, name: str) -> bool:
        """Whether a name that a manifest gives leads to a file below its folder."""
        ...

    def has(self, name: str) -> bool:
        """Whether a file is there now."""
        ...

    def sha256(self, name: str) -> str:
        """Hash of a file's bytes.

        Raises:
            OSError: If it cannot be read.
        """
        ...


def inventory(store: Store) -> Inventory:
    """What a lake holds."""
    return _Folder(store.lake) if store.remote is None else _Bucket(store.remote)


class _Folder:
    """A lake in a folder of this machine, or of several."""

    def __init__(self, lake: Path) -> None:
        self._lake = lake

    def names(self) -> Iterable[str]:
        """See `Inventory`."""
        for folder, folders, files in os.walk(self._lake):
            here = Path(folder).relative_to(self._lake)
            if not here.parts:
                folders[:] = [name for name in folders if name != WORK]
            elif not folders and not files:
                yield f"{here.as_posix()}/"
            yield from ((here / name).as_posix() for name in files)

    def manifest(self, name: str) -> Manifest:
        """See `Inventory`."""
        return Manifest.read(self._lake / name)

    def inside(self, folder: str, name: str) -> bool:
        """See `Inventory`."""
        own = self._lake / folder
        return (own / name).resolve().is_relative_to(own.resolve())

    def has(self, name: str) -> bool:
        """See `Inventory`."""
        return (self._lake / name).exists()

    def sha256(self, name: str) -> str:
        """See `Inventory`."""
        return file_sha256(self._lake / name)


class _Bucket:
    """A lake in an object store."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._patient = remote.objects
        self._objects = remote.objects.patiently(PATIENCE_SECONDS)

    def names(self) -> Iterable[str]:
        """See `Inventory`."""
        return [key for key in self._remote.listing if not key.startswith(f"{WORK}/")]

    def manifest(self, name: str) -> Manifest:
        """See `Inventory`."""
        place = f"{self._remote}/{name}"
        try:
            return Manifest.parsed(
                self._patient.read(name), place, f"objects below {place.rpartition('/')[0]}"
            )
        except FileNotFoundError as error:
            raise BrokenArtefact(f"{place}: cannot be read (it is gone). Look again.") from error

    def inside(self, folder: str, name: str) -> bool:
        """See `Inventory`."""
        return ".." not in name.split("/")

    def has(self, name: str) -> bool:
        """See `Inventory`."""
        return self._patient.look(name) is not None

    def sha256(self, name: str) -> str:
        """See `Inventory`."""
        found = self._remote.listing.get(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "it is gone", name)
        try:
            return self._objects.sha256(name, found.size)
        except LakeError as error:
            # If it is the store that does not answer, this says so, and nothing is judged.
            self._patient.look(name)
            raise OSError(errno.EIO, str(error), name) from error
