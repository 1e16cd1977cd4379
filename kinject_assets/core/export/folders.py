"""Folders and files that are exported: new ones, whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinject_assets.core.errors import DiskFull, KinjectError, is_disk_full


class ExportError(KinjectError):
    """Something cannot be exported there, or not at all."""


def refuse_existing(out: Path) -> None:
    """Makes sure that nothing is overwritten.

    Raises:
        ExportError: If there is a file, or a folder with something in it.
    """
    taken = out.is_symlink() or (
        out.exists() and (not out.is_dir() or next(out.iterdir(), None) is not None)
    )
    if taken:
        raise ExportError(
            f"{out}: is there already, and an export overwrites nothing. Give another place with "
            "--out, or remove what is there."
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder to fill; it gets its name when all is in it.

    Args:
        out: Where it shall be; missing folders above it are made.

    Raises:
        ExportError: If there is something already, or nothing can be written there.
        DiskFull: If there is no room for it.
    """
    out = Path(os.path.abspath(out))
    refuse_existing(out)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull.at(f"export to {out}", out.parent) from error
        raise ExportError(f"{out}: cannot be written ({error}). Give another --out.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
