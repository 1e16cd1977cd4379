"""Append-only JSON lines that survive crashes: a row is on disk before `append` returns."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinject_assets.core.errors import BrokenArtefact


def append(path: Path, *rows: dict[str, Any]) -> None:
    """Adds rows to a file, all of them or none.

    Raises:
        OSError: If they could not be written, e.g. to a full disk; the file is as it was.
    """
    lines = b"".join((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
    with path.open("a+b", buffering=0) as handle:
        start = _whole(handle)
        try:
            if handle.write(lines) != len(lines):
                # The disk took what it had room for, and would refuse the rest.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(handle.fileno())
        except OSError:
            # A full disk must not leave half a line before later ones.
            os.ftruncate(handle.fileno(), start)
            raise


def _whole(handle: Any) -> int:
    """Cuts off a last line that a crash tore, so that the next row starts a line; the new size."""
    end = handle.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    handle.seek(end - 1)
    if handle.read(1) != b"\n":
        handle.seek(0)
        end = handle.read().rfind(b"\n") + 1
        os.ftruncate(handle.fileno(), end)
    return end


def read(path: Path, mend: str) -> Iterator[dict[str, Any]]:
    """The rows of a file; a last line that a crash tore off is left out.

    Args:
        path: The file.
        mend: What to do about a damaged line, for the error.

    Raises:
        BrokenArtefact: If a line other than the last one is damaged.
    """
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # torn by a crash: the row was never relied on
                return
            raise BrokenArtefact(f"{path}, line {number}: not JSON ({error}). {mend}") from error
        yield row
