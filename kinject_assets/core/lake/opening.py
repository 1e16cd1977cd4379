"""The one way to open a profile's lake, wherever it is."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kinject_assets.config import Profile, home
from kinject_assets.core.errors import KinjectError, ProfileError
from kinject_assets.core.lake.objects import LakeError
from kinject_assets.core.lake.remote import MIRROR, Remote, mirrored_url
from kinject_assets.core.store import Store


def open_store(profile: Profile, root: Path | None = None, refresh: bool = True) -> Store:
    """Opens the lake of a profile.

    Args:
        profile: Names it: a folder of this machine, a shared one, or an object store.
        root: The profile's folder; default `home(profile)`.
        refresh: See what other machines have published since. Without it, an object store is asked
            only if this process has not asked it yet.

    Raises:
        ProfileError: If its URL is no place for a lake.
        LakeError: If the object store refuses, or does not answer.
    """
    where = profile.path or "the profile"
    place = root or home(profile)
    return open_lake(place, profile.lake, profile.cache_gb, refresh, outputs=True, where=where)


def open_lake(
    root: Path,
    url: str | None,
    cache_gb: float,
    refresh: bool = True,
    outputs: bool = False,
    where: Path | str = "the profile",
) -> Store:
    """Opens a lake by its URL; see `open_store`.

    Args:
        root: Folder of this machine with all that belongs to the profile.
        url: Of the lake; `None` for `root/lake`.
        cache_gb: What copies of an object store's files may take here, in 10^9 bytes.
        refresh: See what other machines have published since.
        outputs: Bring what lies beside the lake for people (database, report), too.
        where: Who names the URL, for errors.
    """
    if url is None:
        _require_no_mirror(root, None, where)
        return Store(root)
    address = urlsplit(url)
    if address.username or address.password:
        raise ProfileError(
            f"{where}: lake: the URL holds a name or password. Keys belong into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), never into a profile; take it out, and "
            "change the key if the profile was shared."
        )
    if address.query or address.fragment:
        raise ProfileError(f"{where}: lake: a URL of a lake ends with its path; take out ? and #")
    if address.scheme == "file":
        _require_no_mirror(root, url, where)
        store = Store(root, _shared(root, url, where))
        store.refresh()
        return store
    if not address.netloc:
        raise ProfileError(f"{where}: lake: {url} names no bucket; e.g. s3://bucket/prefix")
    remote = _remote(url.rstrip("/"), root.absolute(), cache_gb * 1e9, outputs, os.getpid())
    store = Store(root, remote=remote)
    if refresh:
        remote.begin()
    if refresh or not remote.listed:
        store.refresh()
    return store


@cache
def _remote(url: str, root: Path, cache_bytes: float, outputs: bool, process: int) -> Remote:
    """One for each process: a connection does not survive a fork."""
    return Remote(url, root, cache_bytes, outputs)


def _require_no_mirror(root: Path, url: str | None, where: Path | str) -> None:
    """Refuses to take the mirror of an object store, which lacks most files, for the lake."""
    index = root / MIRROR
    if not index.exists():
        return
    store, lake = mirrored_url(index), root / "lake"
    aim = str(lake) if url is None else unquote(urlsplit(url).path)
    away = f"delete {index}" if url is None else f"move {lake} and {index} away"
    raise LakeError(
        f"{where}: lake: {lake} is a mirror of {store} and lacks most of its files, and the "
        f"profile's `lake` is {url or 'null'}. Set `lake: {store}` again; or bring all of it "
        f"(e.g. aws s3 sync {store} {aim}), then {away}."
    )


def _shared(root: Path, url: str, where: Path | str) -> Path:
    """The folder of a `file://` URL, with `root/lake` as a link to it."""
    address = urlsplit(url)
    folder = Path(unquote(address.path))
    if address.netloc or not address.path.strip("/"):
        raise ProfileError(f"{where}: lake: {url} is no folder; e.g. file:///shared/folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KinjectError(
            f"{where}: lake: {folder} cannot be made ({error.strerror}). Is the shared folder "
            "mounted, and may it be written?"
        ) from error
    link = root / "lake"
    if link.is_symlink() and link.resolve() != folder.resolve():
        link.unlink()
    elif link.exists() and not link.is_symlink():
        raise KinjectError(
            f"{link} holds a lake of this machine, and the profile's `lake` is {url}. To go on "
            f"with it there, copy what it holds to {folder}, then move {link} away."
        )
    if not link.is_symlink():
        root.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process has just made it
            link.symlink_to(folder, target_is_directory=True)
    return folder
