"""Errors that a user can act on: the message says what is wrong, where, and what to do."""

import errno
import shutil
from pathlib import Path


class KinjectError(Exception):
    """Base of all errors whose message is meant for the user. The command line exits with 2."""


class ProfileError(KinjectError):
    """A profile cannot be read or holds a wrong field."""


class MissingArtefact(KinjectError):
    """An artefact that a step reads has not been made."""


class BrokenArtefact(KinjectError):
    """An artefact on disk does not match its manifest or cannot be read."""


class SourceError(KinjectError):
    """A wiki, folder or data set cannot be read."""


class ReviewError(KinjectError):
    """A file with a review of questions cannot be used; nothing of it was recorded."""


class ModelError(KinjectError):
    """A model or encoder cannot be loaded."""


class LLMError(KinjectError):
    """The language model service refused or gave nothing usable."""


class BudgetExceeded(LLMError):
    """The next request would cross the profile's budget; nothing was sent."""

    @classmethod
    def before(cls, amount: float, spent: float, limit: float) -> "BudgetExceeded":
        """The error before a request that could cost `amount` (all in USD)."""
        return cls(
            f"The next request could cost {amount:.4f} USD; {spent:.4f} of {limit:.4f} USD are "
            "spent, so it was not sent. Raise llm.budget_usd and run again: nothing received is "
            "asked for twice."
        )


class DiskFull(KinjectError):
    """There was no room for a file. What is complete is kept; the unfinished part is removed."""

    @classmethod
    def at(cls, what: str, folder: Path) -> "DiskFull":
        """The error for work on `what`, whose files lie below `folder`."""
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 2**20
        return cls(
            f"{what}: the disk of {there} is full (now {free:,.0f} MiB free). Make room there, or "
            "set KINJECT_HOME to a folder on a larger disk and move what is there, then run again: "
            "what is complete is kept, and only this part is made again."
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota.

    Libraries written in other languages (safetensors, SQLite, FAISS) tell it in words alone.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(error).lower()
        if any(words in text for words in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


_FULL = ("no space left on device", "os error 28", "disk is full", "disk quota exceeded")
