"""Canonical hashing, and the manifest that makes an artefact complete.

An artefact has two hashes. The *logical version* covers what it means and is Dagster's data
version. The *integrity* hashes cover the bytes of its files, for the audit. The manifest is
written last: its existence says that the artefact is complete.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kinject_assets.core.errors import BrokenArtefact

MANIFEST = "manifest.json"
"""Name of the file that says which version of an artefact is current."""


def is_version(name: str) -> bool:
    """Whether a folder of an artefact is a version of it."""
    return len(name) == 13 and name[0] == "v" and set(name[1:]) <= set("0123456789abcdef")


PROCESSES = "processes"
"""Count of a manifest: how many processes shared the work, where it was more than one."""


def _canonical(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def content_hash(*parts: Any) -> str:
    """Hash of plain values, lists, mappings and dataclasses: 32 hexadecimal digits.

    Mappings are compared whatever the order of their keys, and 1.0 equals 1.
    """
    text = json.dumps(_canonical(parts), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that readers see the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artefact is, what it was made from, and by what.

    Attributes:
        asset: Asset key.
        partition: Partition key in Dagster's spelling; empty for an asset without partitions.
        logical_version: Hash of the meaning.
        fingerprint: Hash of code version, configuration and input versions: equal means that
            making it again would make the same.
        files: Path below the artefact's folder -> {"sha256", "bytes"}.
        inputs: `asset/partition` -> logical version that was read.
        config: The part of the profile that it depends on.
        libraries: Package -> version.
        seeds: Name -> seed.
        run_id: Dagster run.
        counts: Numbers worth knowing, for metadata.
        checks: What the asset's checks found: `name`, `passed`, `warn`, `message`.
        seal: Hash of all the rest, so that a later edit shows; empty in manifests of old.
    """

    asset: str
    partition: str
    logical_version: str
    fingerprint: str
    code_version: str
    files: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    config: dict[str, Any]
    libraries: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    run_id: str = ""
    started_at: str = ""
    finished_at: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    seal: str = ""

    def sealed(self) -> "Manifest":
        """The same with its seal."""
        return dataclasses.replace(self, seal=self._digest())

    @property
    def intact(self) -> bool:
        """Whether the seal is that of the rest; one without a seal says nothing against itself."""
        return not self.seal or self.seal == self._digest()

    def _digest(self) -> str:
        # As it will be read back: a tuple is a list then, a number as a key a string.
        rest = json.loads(dataclasses.replace(self, seal="").to_json())
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as it is written."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    def _require_kinds(self) -> None:
        """Refuses fields of another kind than is written, which readers would stumble over."""
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"`{name}` is no {_JSON[kind]}")
        for name, kind in (("files", dict), ("inputs", str)):
            for key, value in getattr(self, name).items():
                if not isinstance(value, kind):
                    raise TypeError(f"`{name}`: what `{key}` has is no {_JSON[kind]}")
        if not all(isinstance(check, dict) for check in self.checks):
            raise TypeError("`checks` holds something that is no object")

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Reads a manifest.

        Raises:
            BrokenArtefact: If the file cannot be read or is no manifest of this version.
        """
        try:
            return cls.parsed(path.read_bytes(), str(path), f"folder {path.parent}")
        except OSError as error:
            raise BrokenArtefact(
                f"{path}: cannot be read ({error.strerror}). Mend the disk or the file's "
                f"permissions, or delete the folder {path.parent} and run again."
            ) from error

    @classmethod
    def parsed(cls, data: bytes, where: str, artefact: str) -> "Manifest":
        """The manifest that a file holds.

        Args:
            data: Its bytes.
            where: The file, for the error.
            artefact: What is to be deleted when it is none, e.g. `folder FOLDER`.

        Raises:
            BrokenArtefact: If it is no manifest of this version.
        """
        try:
            found = cls(**json.loads(data.decode("utf-8")))
            found._require_kinds()
            return found
        except (ValueError, TypeError) as error:
            raise BrokenArtefact(
                f"{where}: not a manifest ({error}). Delete the {artefact} and run again: only "
                "this artefact and what is built on it are made again."
            ) from error


_JSON: dict[type, str] = {dict: "object", list: "list", str: "text"}

_KINDS: dict[str, type] = {
    **dict.fromkeys(("asset", "partition", "logical_version", "fingerprint"), str),
    **dict.fromkeys(("code_version", "run_id", "started_at", "finished_at", "seal"), str),
    **dict.fromkeys(("files", "inputs", "config", "libraries", "seeds", "counts"), dict),
    "checks": list,
}
"""Field of a manifest -> the kind of value that it has."""


def fingerprint(code_version: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hash of all that decides what an artefact will be."""
    return content_hash(code_version, config, inputs)
