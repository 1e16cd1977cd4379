"""An object store below a URL, through fsspec: whole objects, patience, and clear errors.

Keys come from the environment, as the library of the store reads them; none is in a URL or message.
"""

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from kinject_assets.core.errors import KinjectError, ProfileError

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
"""How long a store that does not answer is asked again."""

ERROR_SECONDS = 60.0
"""The same for one that answers, with an error of its own: it starts, or an object is damaged."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0

BLOCK = 16 * 2**20
"""Bytes of an object that are read at once to hash it."""

PART = 50 * 2**20
"""Bytes of a part of a multipart upload: s3fs's own number."""

REMOVED_AT_ONCE = 1000
"""Objects that one request of S3 may remove."""

AT_ONCE = 64
"""Small objects that are asked for together."""

SMALL = 2**20
"""Bytes up to which objects are read together, in memory."""

BUSY = {"SlowDown", "ThrottlingException", "Throttling", "RequestTimeout", "InternalError"}
"""Answers of S3 after which the same request may be sent again."""

_log = logging.getLogger(__name__)


class LakeError(KinjectError):
    """The object store with the lake refuses, or does not answer."""


class TornUpload(LakeError):
    """What the object store holds is not what was uploaded."""


@dataclass(frozen=True)
class Object:
    """An object as a listing tells it.

    Attributes:
        size: Bytes.
        tag: Changes when the object does: its ETag, or its time and size where there is none.
        at: Time of its last change, in seconds since 1970 by the store's clock; 0 when not told.
    """

    size: int
    tag: str
    at: float = 0.0

    @classmethod
    def of(cls, info: dict[str, Any]) -> "Object":
        """The object that fsspec describes."""
        when = next((info[k] for k in ("LastModified", "mtime", "created") if info.get(k)), 0.0)
        at = when.timestamp() if isinstance(when, datetime) else float(when)
        tag = next((info[k] for k in ("ETag", "etag", "md5Hash") if info.get(k)), None)
        return cls(int(info["size"]), str(tag or f"{at!r}-{info['size']}"), at)


class Objects:
    """The objects below a URL, by their path from there.

    Args:
        url: E.g. `s3://bucket/prefix`.
        patience: Seconds for which a store that does not answer is asked again.

    Raises:
        ProfileError: If fsspec knows no such store.
        LakeError: If its library is not installed.
    """

    def __init__(self, url: str, patience: float = PATIENCE_SECONDS) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        self._files = _file_system(self.url)
        self._root = str(self._files._strip_protocol(self.url)).rstrip("/")
        self._s3 = hasattr(self._files, "call_s3")
        # Without this, s3fs asks for the size of each object before it reads it.
        self._plainly = {"max_concurrency": 1} if self._s3 else {}
        self.counts = {"list": 0, "read": 0, "write": 0}

    def __str__(self) -> str:
        return self.url

    def patiently(self, patience: float) -> "Objects":
        """The same store with another patience."""
        other = object.__new__(Objects)
        other.__dict__.update(self.__dict__, patience=patience)
        return other

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def listing(self, below: str = "") -> dict[str, Object]:
        """Every object below a path, by its path from the URL, in one recursive listing.

        Raises:
            LakeError: If there is no such bucket.
        """
        self.counts["list"] += 1

        def ask() -> dict[str, Any]:
            return self._files.find(self._at(below), detail=True)

        try:
            found = self._try(f"list {self.url}/{below}", ask)
        except FileNotFoundError as error:
            raise LakeError(
                f"{self.url}: there is no such bucket ({error}). Make it, or mend `lake` in the "
                "profile and AWS_ENDPOINT_URL in the environment."
            ) from error
        start = len(self._root.strip("/")) + 1
        return {
            path.strip("/")[start:]: Object.of(info)
            for path, info in found.items()
            if info["type"] == "file" and not path.endswith("/")
        }

    def read(self, key: str) -> bytes:
        """The bytes of an object.

        Raises:
            FileNotFoundError: If it is not there.
        """
        self.counts["read"] += 1

        def ask() -> bytes:
            return self._files.cat_file(self._at(key), **self._plainly)

        return self._try(f"read {self.url}/{key}", ask)

    def read_small(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The bytes of small objects, many at once; those that are gone are left out."""
        found: dict[str, bytes] = {}
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            paths = {self._at(key).strip("/"): key for key in part}
            self.counts["read"] += len(part)

            def ask(part: Sequence[str] = part) -> dict[str, Any]:
                asked = [self._at(key) for key in part]
                answers = self._files.cat(asked, on_error="return", **self._plainly)
                if isinstance(answers, bytes):  # fsspec unwraps the only one
                    return {self._at(part[0]): answers}
                for answer in answers.values():
                    if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                        raise answer
                return answers

            answers = self._try(f"read {self.url}/{part[0]}", ask)
            found |= {
                paths[path.strip("/")]: answer
                for path, answer in answers.items()
                if isinstance(answer, bytes)
            }
        return found

    def fetch(self, key: str, path: Path) -> None:
        """Writes an object to a file.

        Raises:
            FileNotFoundError: If it is not there.
        """
        self.counts["read"] += 1
        self._try(
            f"read {self.url}/{key}",
            lambda: self._files.get_file(self._at(key), str(path)),
        )

    def sha256(self, key: str, size: int) -> str:
        """SHA-256 of an object's bytes as the store gives them now.

        Args:
            key: The object.
            size: Its bytes.

        Raises:
            FileNotFoundError: If it is not there.
        """
        digest = hashlib.sha256()
        for start in range(0, size, BLOCK):
            end = min(size, start + BLOCK)
            self.counts["read"] += 1

            def ask(start: int = start, end: int = end) -> bytes:
                return self._files.cat_file(self._at(key), start=start, end=end)

            digest.update(self._try(f"read {self.url}/{key}", ask))
        return digest.hexdigest()

    def write(self, key: str, data: bytes) -> Object:
        """Makes an object of some bytes; one that was there is replaced at once."""
        return self._put(key, data)

    def create(self, key: str, data: bytes) -> Object | None:
        """Makes an object unless there is one; `None` then.

        Stores that ignore the condition replace it.
        """
        try:
            return self._put(key, data, mode="create")
        except (FileExistsError, _Unmet):
            return None

    def swap(self, key: str, data: bytes, tag: str) -> Object | None:
        """Replaces an object if it is still the one with a tag; `None` when it is not."""
        if not self._s3:
            now = self.look(key)
            return self._put(key, data) if now and now.tag == tag else None
        try:
            return self._put(key, data, IfMatch=tag)
        except (FileNotFoundError, _Unmet):
            return None

    def _put(self, key: str, data: bytes, **how: Any) -> Object:
        self.counts["write"] += 1

        def ask() -> Object:
            try:
                said = self._files.pipe_file(self._at(key), data, **how)
            except OSError as error:
                if _code(error) in {"PreconditionFailed", "ConditionalRequestConflict"}:
                    raise _Unmet from error
                raise
            if isinstance(said, dict) and said.get("ETag"):
                return Object(len(data), said["ETag"], time.time())
            return Object.of(self._files.info(self._at(key)))

        return self._try(f"write {self.url}/{key}", ask)

    def look(self, key: str) -> Object | None:
        """An object, by itself; `None` if it is not there."""
        try:
            found = self._try(f"look at {self.url}/{key}", lambda: self._files.info(self._at(key)))
        except FileNotFoundError:
            return None
        return Object.of(found) if found["type"] == "file" else None

    def upload(self, path: Path, key: str) -> None:
        """Makes an object of a file; a large one goes up in parts."""
        self.counts["write"] += 1
        self._try(f"write {self.url}/{key}", lambda: self._files.put_file(str(path), self._at(key)))

    def verify(self, key: str, stored: Object | None, size: int, sha256: str, path: Path) -> None:
        """Makes sure that the store holds what was uploaded.

        An ETag that is the MD5 of the bytes (or of its parts) says so; where it is something else,
        the object is read back.

        Args:
            key: The object.
            stored: As a listing after the upload tells it; `None` if that has none.
            size: Bytes of the file.
            sha256: Hash of the file.
            path: The file.

        Raises:
            TornUpload: If it holds something else.
        """
        if stored is None or stored.size != size:
            there = f"{stored.size} bytes" if stored else "nothing"
            raise TornUpload(
                f"{self.url}/{key}: the store holds {there} of {size} that were uploaded. Run "
                "again: nothing was published."
            )
        if stored.tag.strip('"') in _md5_tags(path, size):
            return
        if self.sha256(key, size) != sha256:
            raise TornUpload(
                f"{self.url}/{key}: the store does not give back the bytes that were uploaded. "
                "Run again: nothing was published."
            )

    def remove(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are gone already are left."""
        paths = [self._at(key) for key in keys]
        if not paths:
            return

        def ask() -> None:
            # Elsewhere a gone one must not stop the others.
            if self._s3:
                self._delete(paths)
                return
            for path in paths:
                if self._files.exists(path):
                    self._files.rm_file(path)

        self._try(f"remove {paths[0]}", ask)

    def _delete(self, paths: Sequence[str]) -> None:
        """Removes objects of S3, and notices those that stay: s3fs does not look.

        Raises:
            LakeError: If S3 refuses to remove one.
        """
        for start in range(0, len(paths), REMOVED_AT_ONCE):
            places = [self._files.split_path(path) for path in paths[start:][:REMOVED_AT_ONCE]]
            answer = self._files.call_s3(
                "delete_objects",
                Bucket=places[0][0],
                Delete={"Objects": [{"Key": key} for _, key, _ in places], "Quiet": True},
            )
            for left in answer.get("Errors", ()):
                code, place = left.get("Code", ""), f"{places[0][0]}/{left.get('Key')}"
                if code == "NoSuchKey":
                    continue
                said = f"{place} was not removed ({code}: {left.get('Message', '')})"
                if code in BUSY:
                    raise ConnectionError(said)
                raise LakeError(
                    f"{self.url}: {said}. The keys in the environment must be allowed to delete "
                    "there, and no retention rule may hold what is below the prefix."
                )

    def _try(self, what: str, ask: Callable[[], T]) -> T:
        """Does something, again and again while the store does not answer.

        Raises:
            LakeError: If it refuses, or does not answer for longer than the patience.
        """
        began = time.monotonic()
        pause = FIRST_PAUSE
        while True:
            try:
                return ask()
            except (FileNotFoundError, FileExistsError, _Unmet):
                raise
            except Exception as error:
                if isinstance(error, PermissionError) and error.filename is not None:
                    raise LakeError(
                        f"{what}: {error.filename}, on this machine, may not be read or written "
                        f"({error.strerror}). Give its folder to the user that runs kinject."
                    ) from error
                if _refused(error):
                    raise LakeError(
                        f"{what}: refused ({_said(error)}). The keys in the environment "
                        "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) must be right and may list, "
                        "read, write and delete there."
                    ) from error
                if not transient(error):
                    raise
                waited = time.monotonic() - began
                answered = _answer(error)[0] != 0
                if waited >= min(self.patience, ERROR_SECONDS if answered else self.patience):
                    raise LakeError(
                        f"{what}: the object store answers with an error ({_said(error)}). See its "
                        "log; if it is this object alone, restore it from a backup or delete it."
                        if answered
                        else f"{what}: no answer in {waited:.0f} s ({_said(error)}). Is the object "
                        "store up, and is AWS_ENDPOINT_URL right? Then run again: what is complete "
                        "is kept."
                    ) from error
                if pause == FIRST_PAUSE:
                    _log.warning("%s: %s; trying again", what, _said(error))
                time.sleep(min(pause, max(0.1, self.patience - waited)))
                pause = min(pause * 2, LONGEST_PAUSE)


class _Unmet(Exception):
    """A condition of a request did not hold: the object is another one."""


def _quiet_about_connections(loop: Any, told: dict[str, Any]) -> None:
    """Leaves out what a lost connection has besides: the request itself fails, and is repeated."""
    error = told.get("exception")
    if error is None or not transient(error):
        loop.default_exception_handler(told)


def _file_system(url: str) -> Any:
    import fsspec
    from fsspec.asyn import get_loop

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol in {"s3", "s3a"}:
        # Our own loop waits for a store that is down; the libraries' would wait within each turn.
        options |= {
            "config_kwargs": {
                "connect_timeout": 10,
                "read_timeout": 60,
                "retries": {"total_max_attempts": 1},
            },
            "max_concurrency": 4,
        }
    try:
        made = fsspec.filesystem(protocol, **options)
        if protocol in {"s3", "s3a"}:
            made.retries = 1
            get_loop().set_exception_handler(_quiet_about_connections)
        return made
    except ImportError as error:
        raise LakeError(
            f"{url}: the library for `{protocol}://` is not installed ({error}). "
            + ("pip install 'kinject[s3]'" if protocol in {"s3", "s3a"} else "Install it with pip.")
        ) from error
    except ValueError as error:
        raise ProfileError(f"lake: {url}: fsspec knows no `{protocol}://` ({error})") from error


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answer(error: BaseException) -> tuple[int, str]:
    """Status and code of the answer that an error of S3 came with; 0 and nothing without one."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status or 0), str(answer.get("Error", {}).get("Code", ""))
    return 0, ""


def _code(error: BaseException) -> str:
    return _answer(error)[1]


def _said(error: BaseException) -> str:
    """An error in a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _refused(error: BaseException) -> bool:
    """Whether the store does not let us, however often it is asked."""
    missing = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
    return any(
        isinstance(one, PermissionError) or type(one).__name__ in missing for one in _chain(error)
    )


def transient(error: BaseException) -> bool:
    """Whether the same request may do better later."""
    status, code = _answer(error)
    if status:
        return status >= 500 or status == 429 or code in BUSY
    # Only what is loaded can have raised its errors.
    kinds: list[type[BaseException]] = [ConnectionError, TimeoutError]
    if botocore := sys.modules.get("botocore.exceptions"):
        kinds += [botocore.HTTPClientError, botocore.IncompleteReadError]
    if aiohttp := sys.modules.get("aiohttp"):
        kinds.append(aiohttp.ClientError)
    return any(isinstance(one, tuple(kinds)) for one in _chain(error))


def _md5_tags(path: Path, size: int) -> set[str]:
    """ETags that S3 gives a file: the MD5 of its bytes, or of the MD5s of its parts."""
    whole = hashlib.md5(usedforsecurity=False)
    parts: list[bytes] = []
    with path.open("rb") as file:
        while block := file.read(PART):
            whole.update(block)
            parts.append(hashlib.md5(block, usedforsecurity=False).digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return {whole.hexdigest(), f"{of_parts}-{len(parts)}"}
