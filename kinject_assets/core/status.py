"""How far a study is, and what is being made now, by whatever process."""

import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinject_assets.config import Profile
from kinject_assets.core import journal
from kinject_assets.core.lake.opening import open_store
from kinject_assets.core.plan import Plan
from kinject_assets.core.progress import Progress
from kinject_assets.core.results.rendering import dumped

FAILURES = "failures.jsonl"
"""File in the profile's folder that runs of the UI which failed are written to."""

SHOWN_FAILURES = 5
"""Last of them that are shown."""


@dataclass(frozen=True)
class Step:
    """What is being made, or was when its process died.

    Attributes:
        cell: The artefact.
        alive: Whether its process is.
        seconds: Since it last said something.
        says: How far it was.
    """

    cell: str
    alive: bool
    seconds: int
    says: str

    @classmethod
    def of(cls, step: Progress) -> "Step":
        """The step as its file tells it."""
        ago = max(0, round(time.time() - step.at))
        return cls(step.cell, step.owner.alive, ago, f"{step.amount} {step.message}")

    def __str__(self) -> str:
        what = "being made" if self.alive else "stopped, goes on with the next run"
        return f"{self.cell}: {what}; {self.seconds} s ago: {self.says}"


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        assets: Asset -> state -> how many cells.
        steps: Under way.
        failures: Last failed runs of the UI: `time`, `what` and `why`.
    """

    assets: dict[str, dict[str, int]]
    steps: list[Step]
    failures: list[dict[str, Any]]

    def __str__(self) -> str:
        lines = [
            f"{asset:24} " + ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
            for asset, states in self.assets.items()
        ]
        lines += map(str, self.steps)
        lines += [
            f"failed at {row['time']}: {row['what']}: {row['why'].splitlines()[0]}"
            for row in self.failures
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same for programs."""
        return dumped(asdict(self))


def _failures(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    mend = f"Delete {path}: it only lists runs that failed."
    return list(journal.read(path, mend))[-SHOWN_FAILURES:]


def status(profile: Profile) -> Status:
    """Counts the cells of a profile by state, and looks who is at work."""
    store = open_store(profile)
    plan = Plan(profile, store)
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for cell in plan.cells:
        counts[cell.asset][plan.state(cell)] += 1
    asked = {str(cell) for cell in plan.cells}
    return Status(
        {asset: dict(states) for asset, states in counts.items()},
        [Step.of(step) for step in store.under_way() if step.cell in asked],
        _failures(store.root / FAILURES),
    )
