"""What a study has cost so far, from its ledger and its manifests."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.plan import METHODS
from kinject_assets.core.schema import Generation
from kinject_assets.core.store import Cell, Store

LEDGER_FOLDER = "llm_ledger"
"""Folder of the lake that holds the ledger."""

LEDGER, LOG = "ledger", "log"
"""What takes room and is no artefact: the ledger, and Dagster's own records."""

STAGE_OF = {
    "articles": "corpus",
    "chunks": "corpus",
    "questions": "exams",
    "paraphrases": "paraphrases",
    "validation_paraphrases": "paraphrases",
    "embeddings": "embed",
    "faiss_index": "embed",
    "retrieved": "embed",
    "checkpoint": "train",
    **dict.fromkeys(METHODS.values(), "score"),
    "triage": "triage",
    "damage": "damage",
}
"""Asset -> stage; those that are missing here belong to `results`."""

RESULTS = "results"

FEWEST = 20
"""Answers of a purpose from which on their means replace assumptions."""


def stage_of(asset: str) -> str:
    """The stage that an asset belongs to."""
    return STAGE_OF.get(asset, RESULTS)


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What was asked of the language model for one purpose.

    Attributes:
        requests: Those that were answered, or may have been paid.
        unpaid: Those that were refused or never arrived.
        answers: Those that were answered.
        first: Of these, first attempts.
        usd: `None` when a price is not known.
    """

    requests: int = 0
    unpaid: int = 0
    answers: int = 0
    first: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    answered_output_tokens: int = 0
    usd: float | None = 0.0

    @property
    def output_mean(self) -> float | None:
        """Output tokens of an answer; `None` where there are too few to tell."""
        return self.answered_output_tokens / self.answers if self.answers >= FEWEST else None

    @property
    def again(self) -> float | None:
        """Requests beyond the first ones, to the first ones; `None` where there are too few."""
        return (self.requests - self.first) / self.first if self.first >= FEWEST else None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a study has cost so far.

    Attributes:
        bills: Purpose -> what was asked for it.
        seconds: Stage -> seconds that its artefacts took, those that were replaced left out.
        training_seconds: Seconds of training itself, without loading models.
        bytes: Stage, `ledger`, `log` -> bytes on disk.
        artefacts: Number of artefacts.
    """

    bills: Mapping[str, Bill]
    seconds: Mapping[str, float]
    training_seconds: float
    bytes: Mapping[str, int]
    artefacts: int


def anything(store: Store) -> bool:
    """Whether anything was asked of a service or made; reads no file."""
    folders = (
        (store.lake / LEDGER_FOLDER).glob("*.jsonl"),
        store.lake.glob("[!.]*/**/manifest.json"),
    )
    return any(next(iter(found), None) is not None for found in folders)


def read_spent(
    store: Store, prices: Mapping[str, tuple[float, float]] | None = None
) -> tuple[Spent, dict[Cell, Manifest]]:
    """Reads what was spent, and every manifest."""
    published = dict(store.published(skip_broken=True))
    seconds: defaultdict[str, float] = defaultdict(float)
    sizes: defaultdict[str, int] = defaultdict(int)
    training = 0.0
    for cell, manifest in published.items():
        stage = stage_of(cell.asset)
        seconds[stage] += took(manifest)
        sizes[stage] += sum(int(file["bytes"]) for file in manifest.files.values())
        training += float(manifest.counts.get("training_seconds", 0.0))
    for name in ("results.duckdb", "report.html"):
        path = store.root / name
        sizes[RESULTS] += path.stat().st_size if path.is_file() else 0
    if published:
        sizes[LEDGER] = _size(store.lake / LEDGER_FOLDER)
        sizes[LOG] = _size(store.root / "dagster")
    return (
        Spent(
            bills=_bills(store, prices),
            seconds=dict(seconds),
            training_seconds=training,
            bytes=dict(sizes),
            artefacts=len(published),
        ),
        published,
    )


def took(manifest: Manifest) -> float:
    """Seconds that an artefact took."""
    if not (manifest.started_at and manifest.finished_at):
        return 0.0
    began, ended = map(datetime.fromisoformat, (manifest.started_at, manifest.finished_at))
    return (ended - began).total_seconds()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bills(store: Store, prices: Mapping[str, tuple[float, float]] | None) -> dict[str, Bill]:
    folder = store.lake / LEDGER_FOLDER
    # Opening a ledger makes its folder: a plan leaves nothing behind.
    if not folder.is_dir():
        return {}
    by_purpose: defaultdict[str, list[Generation]] = defaultdict(list)
    for row in Ledger(folder).generations(prices):
        by_purpose[row.purpose].append(row)
    return {purpose: _bill(rows) for purpose, rows in by_purpose.items()}


def _bill(rows: Sequence[Generation]) -> Bill:
    paid = [row for row in rows if row.input_tokens or row.output_tokens]
    answers = [row for row in paid if row.state == "received"]
    costs = [row.cost_usd for row in paid]
    return Bill(
        requests=len(paid),
        unpaid=len(rows) - len(paid),
        answers=len(answers),
        first=sum(row.attempt == 0 for row in answers),
        input_tokens=sum(row.input_tokens for row in paid),
        output_tokens=sum(row.output_tokens for row in paid),
        answered_output_tokens=sum(row.output_tokens for row in answers),
        usd=None if None in costs else sum(cost or 0.0 for cost in costs),
    )
