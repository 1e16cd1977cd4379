"""Page texts that were fetched in a run that did not end, to be used by the next one."""

import threading
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kinject_assets.core import journal

if TYPE_CHECKING:
    from kinject_assets.core.corpus.wiki import Revision

TEXTS = "texts.jsonl"


class KeptTexts:
    """Revisions on disk as they come; a revision never changes, so they never grow old.

    Args:
        work: Folder for the file, which is made with the first text.
    """

    def __init__(self, work: Path) -> None:
        from kinject_assets.core.corpus.wiki import Revision

        path = self._path = work / TEXTS
        self._lock = threading.Lock()
        self._found: dict[int, Revision] = {}
        if path.exists():
            for row in journal.read(path, f"Delete {path}: its pages are fetched again."):
                row["revised_at"] = datetime.fromisoformat(row["revised_at"])
                self._found[row["revision_id"]] = Revision(**row)

    @staticmethod
    def forget(work: Path) -> None:
        """Throws away what was kept."""
        (work / TEXTS).unlink(missing_ok=True)

    def get(self, revision_id: int) -> "Revision | None":
        """A text that was kept, or `None`."""
        return self._found.get(revision_id)

    def add(self, revisions: "Iterable[Revision]") -> None:
        """Keeps texts; they are on disk when this returns."""
        rows = [asdict(r) | {"revised_at": r.revised_at.isoformat()} for r in revisions]
        with self._lock:
            journal.append(self._path, *rows)
