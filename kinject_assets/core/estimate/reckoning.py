"""One estimate of a study: put together, kept before anything is spent, compared afterwards."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinject_assets.config import LLM, Hardware, Profile, RecipeSpec
from kinject_assets.core.estimate.assumptions import Assumed, Assumption
from kinject_assets.core.estimate.compute import (
    SCORING,
    ModelSize,
    Reckoner,
    Work,
    memory_needed,
)
from kinject_assets.core.estimate.corpora import CorpusSize, measure
from kinject_assets.core.estimate.disk import DiskReckoner, Space
from kinject_assets.core.estimate.listing import listed_pages
from kinject_assets.core.estimate.requests import Requester, Requests
from kinject_assets.core.estimate.spent import Spent, anything, read_spent, stage_of, took
from kinject_assets.core.llm.prices import AS_OF, cost
from kinject_assets.core.manifest import Manifest, content_hash, write_atomically
from kinject_assets.core.plan import Plan
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.store import Cell, Store

ESTIMATE = "estimate.json"
"""File in the profile's folder that keeps the estimate made before anything was spent."""

THOROUGH, QUICK = 10.0, 0.3
"""Seconds that reading documents may take for each corpus: for a person who asked, and on the way
to something else."""

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a study costs from nothing, whatever is there already.

    Attributes:
        settings: Hash of the profile as it was.
        made_at: When it was made.
        artefacts: Artefacts that were there then.
        corpora: How large each corpus is.
        requests: What is asked of the language model, by artefact and purpose.
        work: What models compute, by artefact.
        models: Model, `encoder` or `cross-encoder` -> its size.
        space: What is on disk in the end, by artefact.
        while_training: Bytes that training needs for a while beside that.
        downloads: Models that are not on this disk -> bytes.
        free: Bytes that are free on the disk.
        assumptions: Those that went into it.
        warnings: What is amiss, each with its mend.
    """

    profile: str
    settings: str
    made_at: str
    artefacts: int
    corpora: list[CorpusSize]
    llm: LLM
    requests: list[Requests]
    hardware: Hardware
    work: list[Work]
    models: dict[str, ModelSize]
    space: list[Space]
    while_training: int
    downloads: dict[str, int]
    free: int
    assumptions: dict[str, Assumption]
    warnings: list[str]

    @property
    def not_counted(self) -> list[str]:
        """Corpora that are in no number, since nobody knows how large they are."""
        return [size.corpus for size in self.corpora if size.chunks.value is None]

    @property
    def usd(self) -> float | None:
        """What the language model costs; `None` where a price is unknown."""
        return total_usd(self.requests)

    @property
    def gpu_hours(self) -> float | None:
        """Hours of one GPU; `None` where a model's size is unknown."""
        seconds = [work.seconds for work in self.work]
        return None if None in seconds else sum(s or 0.0 for s in seconds) / HOUR

    @property
    def bytes(self) -> int:
        """What is on disk in the end."""
        return sum(space.bytes for space in self.space)

    def totals(self) -> dict[str, float | None]:
        """What can be compared with what was spent; names as in `spent_totals`."""
        found: dict[str, float | None] = {}
        for purpose, rows in by(self.requests, lambda row: row.purpose).items():
            found[f"{purpose}: requests"] = sum(row.count + row.again for row in rows)
            found[f"{purpose}: input tokens"] = sum(row.input_tokens for row in rows)
            found[f"{purpose}: output tokens"] = sum(row.output_tokens for row in rows)
        if self.requests:
            found[USD] = self.usd
        for stage, rows in by(self.work, lambda row: row.stage).items():
            seconds = [row.seconds for row in rows]
            whole = None if None in seconds else sum(s or 0.0 for s in seconds)
            found[f"{stage}: seconds"] = whole
        for stage, rows in by(self.space, lambda row: row.stage).items():
            found[f"{stage}: bytes"] = sum(row.bytes for row in rows)
        return found

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("corpora", "requests", "work", "space"):
            found[name] = [asdict(row) for row in found[name]]
        for name in ("models", "assumptions"):
            found[name] = {key: asdict(row) for key, row in found[name].items()}
        prices = (
            cost(self.llm.model, 1_000_000, 0, self.llm.prices),
            cost(self.llm.model, 0, 1_000_000, self.llm.prices),
        )
        found["llm"] = {
            "model": self.llm.model,
            "usd_per_million_input_and_output_tokens": list(prices),
            "prices_as_of": None if self.llm.model in self.llm.prices else AS_OF,
            "batch": self.llm.batch,
            "budget_usd": self.llm.budget_usd,
        }
        found["hardware"] = self.hardware.model_dump(mode="json")
        return {**found, "not_counted": self.not_counted, "totals": self.totals()}


USD = "language model: USD"


def by(rows: Sequence[Any], key: Any) -> dict[str, list[Any]]:
    """Rows by a key, in their order."""
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def total_usd(requests: Sequence[Requests]) -> float | None:
    """What requests cost; `None` where a price is unknown."""
    costs = [row.usd for row in requests]
    return None if None in costs else sum(usd or 0.0 for usd in costs)


def spent_totals(spent: Spent) -> dict[str, float | None]:
    """What was spent, by the names of `Estimate.totals`."""
    found: dict[str, float | None] = {}
    for purpose, bill in spent.bills.items():
        found[f"{purpose}: requests"] = bill.requests
        found[f"{purpose}: input tokens"] = bill.input_tokens
        found[f"{purpose}: output tokens"] = bill.output_tokens
    costs = [bill.usd for bill in spent.bills.values()]
    found[USD] = None if None in costs else sum(usd or 0.0 for usd in costs)
    for stage, seconds in spent.seconds.items():
        found[f"{stage}: seconds"] = seconds
    for stage, size in spent.bytes.items():
        found[f"{stage}: bytes"] = size
    return found


def estimate(
    profile: Profile,
    store: Store,
    spent: Spent,
    *,
    within: float = THOROUGH,
    report: Report = silent,
) -> Estimate:
    """Estimates what a study costs, from the best knowledge there is; sends no request.

    Args:
        profile: The experiment.
        store: Its lake.
        spent: What was measured so far: its means go before assumptions.
        within: Seconds that reading documents may take for each corpus.
        report: Told which documents are read.
    """
    assume, plan = Assumed(), Plan(profile, store)
    pages = listed_pages(plan.profile, store)
    materials = measure(plan, assume, within=within, pages=pages, report=report)
    reckoner = Reckoner(plan, materials, assume)
    requests = Requester(plan, materials, spent.bills, assume).requests()
    disk = DiskReckoner(plan, materials, reckoner, requests, assume)
    there = next(path for path in (store.root, *store.root.parents) if path.exists())
    found = Estimate(
        profile=profile.name,
        settings=settings_hash(profile),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        artefacts=spent.artefacts,
        corpora=[material.size for material in materials.values()],
        llm=profile.llm,
        requests=requests,
        hardware=profile.hardware,
        work=reckoner.work(),
        models={
            **reckoner.sizes,
            "encoder": reckoner.encoder,
            **({"cross-encoder": reckoner.cross_encoder} if reckoner.cross_encoder else {}),
        },
        space=disk.space(),
        while_training=disk.while_training(),
        downloads=dict(disk.downloads()),
        free=shutil.disk_usage(there).free,
        assumptions=assume.used,
        warnings=[],
    )
    found.warnings.extend(_warnings(plan, found, spent))
    return found


def settings_hash(profile: Profile) -> str:
    """Hash of a profile's settings, to tell whether it has changed."""
    return content_hash(profile.model_dump(mode="json"))


def _warnings(plan: Plan, found: Estimate, spent: Spent) -> list[str]:
    profile, warnings = plan.profile, list[str]()
    if found.not_counted:
        warnings.append(
            "Not counted anywhere, since nobody knows how large they are: "
            f"{', '.join(found.not_counted)}. Set expected_chunks of these corpora in the profile, "
            "or use --list for wikis."
        )
    for size in found.corpora:
        shots = size.shots.value
        if shots is not None and shots < max(profile.scoring.shots):
            warnings.append(
                f"{size.corpus}: scoring.shots asks for {max(profile.scoring.shots)} solved "
                f"questions, and about {shots} will be there. Raise exams.shots_share, or ask for "
                "fewer shots."
            )
    if found.usd is None:
        warnings.append(
            f"Price unknown: add llm.prices, e.g. `prices: {{{profile.llm.model}: [2.5, 10.0]}}` "
            "(USD per million input and output tokens; 0 for a model of your own)."
        )
    budget = profile.llm.budget_usd
    if found.usd is not None and budget is not None and found.usd > budget:
        warnings.append(
            f"The language model will cost about {found.usd:,.2f} USD, and llm.budget_usd is "
            f"{budget:,.2f}: the run will stop there. Raise it, or ask for less."
        )
    warnings += _about_models(plan, found)
    there = sum(spent.bytes.values())
    needed = max(0, found.bytes - there) + found.while_training
    if needed > found.free:
        warnings.append(
            f"About {gigabytes(needed)} more are needed on the disk of {plan.store.root}, "
            f"{gigabytes(found.while_training)} of them only while a model is trained, and "
            f"{gigabytes(found.free)} are free. Set KINJECT_HOME to a folder on a larger disk."
        )
    return warnings


def _about_models(plan: Plan, found: Estimate) -> list[str]:
    profile, warnings = plan.profile, list[str]()
    used = {work.model for work in found.work}
    unknown = [name for name in used if name and found.models[name].parameters is None]
    if unknown:
        warnings.append(
            f"The size of {', '.join(sorted(unknown))} is unknown, so is the computing. Set "
            "parameters of these models in the profile, e.g. `parameters: 7000000000`."
        )
    ways = dict.fromkeys((name, SCORING) for name in sorted(used) if name)
    ways |= dict.fromkeys(
        (plan.model_of(cell), RecipeSpec.parse(cell.parts[1].split(".", 1)[1]).method)
        for cell in plan.cells
        if cell.asset == "checkpoint"
    )
    for model, way in ways:
        needed = memory_needed(found.models[model], way, profile.models[model].dtype)
        if needed is not None and needed > profile.hardware.memory_gb * 1e9:
            what = way if way == SCORING else f"{way} training"
            mend = "" if way in {SCORING, "qlora"} else ", or use lora or qlora recipes"
            warnings.append(
                f"{model}: {what} takes {gigabytes(needed)} of GPU memory without activations, and "
                f"a GPU of `hardware` has {profile.hardware.memory_gb:g} GB. It runs on one GPU: "
                f"name a larger one there and use it{mend}."
            )
    return warnings


def gigabytes(size: float) -> str:
    """A number of bytes for people."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


# --- kept, compared, open


def keep_estimate(profile: Profile, store: Store) -> Path | None:
    """Writes down what a study will cost, once: before anything is spent on it.

    Quick, without the network, and never in the way: it does nothing where an estimate is kept and
    something was spent since, and gives `None` where none could be made.
    """
    path = store.root / ESTIMATE
    try:
        if path.exists() and anything(store):
            return path
        spent, _ = read_spent(store, profile.llm.prices)
        made = estimate(profile, store, spent, within=QUICK)
        write_atomically(path, json.dumps(made.to_dict(), indent=1, ensure_ascii=False) + "\n")
    except Exception:  # an estimate is a service, and must not stop the run that it is made for
        return None
    return path


@dataclass(frozen=True)
class Kept:
    """The estimate that was made before anything was spent.

    Attributes:
        same_settings: The profile is as it was then.
        not_counted: Corpora that were in no number.
    """

    made_at: str
    artefacts: int
    same_settings: bool
    not_counted: list[str]
    totals: dict[str, float | None]


def kept_estimate(profile: Profile, store: Store) -> Kept | None:
    """Reads what `keep_estimate` wrote; `None` if it is not there or damaged."""
    try:
        found = json.loads((store.root / ESTIMATE).read_text(encoding="utf-8"))
        return Kept(
            made_at=str(found["made_at"]),
            artefacts=int(found["artefacts"]),
            same_settings=found["settings"] == settings_hash(profile),
            not_counted=[str(name) for name in found["not_counted"]],
            totals={str(name): value for name, value in found["totals"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Compared:
    """An estimated number beside the one that came.

    Attributes:
        ratio: Spent to estimated; `None` where one of them is not there, or the estimate is 0.
    """

    what: str
    estimated: float | None
    spent: float | None

    @property
    def ratio(self) -> float | None:
        """Spent to estimated."""
        if not self.estimated or self.spent is None:
            return None
        return self.spent / self.estimated


def compare(kept: Kept, spent: Spent) -> list[Compared]:
    """What was estimated beside what was spent, in the order of the estimate."""
    came = spent_totals(spent)
    names = list(dict.fromkeys((*kept.totals, *came)))
    timed = {name.partition(":")[0] for name in kept.totals if name.endswith(": seconds")}
    return [
        Compared(name, kept.totals.get(name), came.get(name, 0.0))
        for name in names
        # What no model computes is quick, and nothing was said of its time.
        if not name.endswith(": seconds") or name.partition(":")[0] in timed
    ]


@dataclass(frozen=True, kw_only=True)
class Open:
    """What is left to do.

    Attributes:
        cells: Artefacts that are missing, stale or broken, of how many.
        requests: What these ask, at most: answers that are in the ledger are not paid again.
        usd: What that costs; `None` where a price is unknown.
        seconds: Of computing on one GPU; `None` where a model's size is unknown.
        bytes: On disk.
    """

    cells: int
    of: int
    requests: int
    usd: float | None
    seconds: float | None
    bytes: int


def still_open(plan: Plan, found: Estimate) -> Open:
    """What is left to do of a study."""
    names = {str(cell) for cell in plan.cells if plan.state(cell) != "complete"}
    requests = [row for row in found.requests if row.cell in names]
    seconds = [row.seconds for row in found.work if row.cell in names]
    return Open(
        cells=len(names),
        of=len(plan.cells),
        requests=sum(row.count + row.again for row in requests),
        usd=total_usd(requests),
        seconds=None if None in seconds else sum(s or 0.0 for s in seconds),
        bytes=sum(row.bytes for row in found.space if row.cell in names),
    )


def measured_speeds(
    found: Estimate, spent: Spent, published: Mapping[Cell, Manifest]
) -> dict[str, float]:
    """Stage -> tokens a second of what was made on this machine.

    The tokens are those that the estimate has for these artefacts; training is timed without the
    loading of models, all else as it came.
    """
    made = {str(cell): manifest for cell, manifest in published.items()}
    speeds: dict[str, float] = {}
    for stage, rows in by(found.work, lambda row: row.stage).items():
        there = [row for row in rows if row.cell in made]
        tokens = sum(row.trained + row.forward for row in there)
        seconds = sum(took(made[name]) for name in dict.fromkeys(row.cell for row in there))
        if stage == stage_of("checkpoint"):
            seconds = spent.training_seconds
        if tokens and seconds:
            speeds[stage] = tokens / seconds
    return speeds
