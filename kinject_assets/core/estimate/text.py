"""An estimate for people and for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kinject_assets.config import Profile
from kinject_assets.core.estimate.corpora import Figure
from kinject_assets.core.estimate.reckoning import (
    HOUR,
    Compared,
    Estimate,
    Kept,
    Open,
    by,
    compare,
    estimate,
    gigabytes,
    kept_estimate,
    measured_speeds,
    still_open,
    total_usd,
)
from kinject_assets.core.estimate.sections import Section, in_hours, in_usd, laid_out
from kinject_assets.core.estimate.spent import anything, read_spent
from kinject_assets.core.plan import Plan
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.results.tables import Format, Result, render
from kinject_assets.core.store import Store

MARKS = {
    "made": "m",
    "read": "r",
    "listed": "l",
    "expected": "e",
    "known": "k",
    "computed": "c",
    "unknown": "?",
}
UNKNOWN = "Unknown, as the size of its corpora is."

LEGEND = (
    "m made: in the lake. r read: documents cut just now. l listed: from the lengths of pages. "
    "e expected: the profile's expected_chunks. k known: MMLU's size. c computed from chunks and "
    "exams. ? unknown."
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """All that `kinject plan` shows.

    Attributes:
        kept: The estimate from before anything was spent, if there is one.
        compared: It beside what was spent since.
        speeds: Stage -> tokens a second measured on this machine.
    """

    estimate: Estimate
    open: Open
    kept: Kept | None
    compared: Sequence[Compared]
    speeds: Mapping[str, float]


def format_cells(profile: Profile, store: Store, fmt: Format | str = "text") -> tuple[str, str]:
    """The artefacts that a profile asks for, with their states, and how many are complete."""
    plan = Plan(profile, store)
    states = [(plan.state(cell), str(cell)) for cell in plan.cells]
    done = f"{sum(state == 'complete' for state, _ in states)} of {len(states)} complete"
    if fmt == "text":
        return "\n".join(f"{state:9} {name}" for state, name in states), done
    return render(Result(("state", "artefact"), [*states]), fmt), done


def format_plan(
    profile: Profile,
    store: Store,
    fmt: Format | str = "text",
    report: Report = silent,
) -> str:
    """What a profile costs, and what it has cost.

    Args:
        profile: The experiment.
        store: Its lake.
        fmt: `text` of 80 columns, `markdown`, `json`, or `csv` with a line for each number.
        report: Told which documents are read.
    """
    spent, published = read_spent(store, profile.llm.prices)
    found = estimate(profile, store, spent, report=report)
    kept = kept_estimate(profile, store)
    shown = Shown(
        estimate=found,
        open=still_open(Plan(profile, store), found),
        kept=kept,
        compared=compare(kept, spent) if kept and anything(store) else (),
        speeds=measured_speeds(found, spent, published),
    )
    return format_estimate(shown, fmt)


def format_estimate(shown: Shown, fmt: Format | str = "text") -> str:
    """An estimate as text of 80 columns, Markdown, JSON, or CSV with a line for each number."""
    if fmt == "json":
        return json.dumps(_plain(shown), indent=2, ensure_ascii=False, default=str)
    if fmt == "csv":
        columns = ("part", "name", "quantity", "value", "source")
        return render(Result(columns, _lines(shown)), fmt)
    return laid_out(_sections(shown), fmt)


# --- numbers


def _count(value: float | None) -> str:
    if value is None:
        return "?"
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if value >= 10 * scale or (unit == "B" and value >= scale):
            return f"{value / scale:,.1f}{unit}"
    return f"{value:,.0f}"


def _figure(figure: Figure) -> str:
    if figure.value is None:
        return MARKS["unknown"]
    return f"{_count(figure.value)} {MARKS[figure.source]}"


# --- sections


def _sections(shown: Shown) -> list[Section]:
    found = [
        _head(shown),
        _corpora(shown.estimate),
        _model_service(shown.estimate),
        _computing(shown),
        _disk(shown.estimate),
    ]
    if shown.compared:
        found.append(_afterwards(shown))
    return [*found, _assumed(shown.estimate)]


def _head(shown: Shown) -> Section:
    found, left = shown.estimate, shown.open
    hours = found.gpu_hours
    section = Section(f"What {found.profile} costs, from nothing")
    least = "At least: language model" if found.not_counted else "Language model"
    section.above = [
        f"{least} {in_usd(found.usd)} USD, {_machine_hours(hours)}, "
        f"{gigabytes(found.bytes)} on disk."
    ]
    if len(found.not_counted) == len(found.corpora):
        section.above = [UNKNOWN]
    if left.cells == 0:
        section.above.append(f"All of its {left.of} artefacts are there.")
    elif left.cells < left.of:
        section.above.append(
            f"Still open: {left.cells} of {left.of} artefacts, with at most {left.requests:,} "
            f"requests ({in_usd(left.usd)} USD), {in_hours(left.seconds)} of computing, "
            f"{gigabytes(left.bytes)}."
        )
    section.below = [f"! {warning}" for warning in found.warnings]
    return section


def _machine_hours(hours: float | None) -> str:
    return (
        "unknown hours of computing" if hours is None else f"{in_hours(hours * HOUR)} of computing"
    )


def _corpora(found: Estimate) -> Section:
    section = Section(
        "Corpora",
        ("corpus", "articles", "chunks", "asked", "tokens", "test", "shots"),
        [
            (
                size.corpus,
                *map(
                    _figure,
                    (
                        size.articles,
                        size.chunks,
                        size.askable,
                        size.tokens,
                        size.test,
                        size.shots,
                    ),
                ),
            )
            for size in found.corpora
        ],
    )
    section.below = [LEGEND]
    computed = [f"{size.corpus}: {size.arithmetic}" for size in found.corpora if size.arithmetic]
    if computed:
        section.below.append(
            "Test questions = chunks asked about x exams.keep x (1 - exams.shots_share): "
            f"{'; '.join(computed)}."
        )
    section.below += [f"- {size.corpus}: {size.note}" for size in found.corpora if size.note]
    return section


def _model_service(found: Estimate) -> Section:
    llm = found.llm
    section = Section("Language model", ("purpose", "requests", "again", "input", "output", "USD"))
    if not found.requests:
        nothing = "Nothing is asked of a language model."
        return Section(section.title, above=[UNKNOWN if found.not_counted else nothing])
    groups = by(found.requests, lambda row: row.purpose)
    section.rows = [
        (
            purpose,
            _count(sum(row.count for row in rows)),
            _count(sum(row.again for row in rows)),
            _count(sum(row.input_tokens for row in rows)),
            _count(sum(row.output_tokens for row in rows)),
            in_usd(total_usd(rows)),
        )
        for purpose, rows in [*groups.items(), ("all", found.requests)]
    ]
    batch = f", in batches at {1 - llm.batch_discount:.0%} of the price" if llm.batch else ""
    section.above = [f"{llm.model}{batch}."]
    budget = "not set" if llm.budget_usd is None else f"{llm.budget_usd:,.2f} USD"
    section.below = [f"Tokens in and out. {_prices(found)} llm.budget_usd: {budget}."]
    return section


def _prices(found: Estimate) -> str:
    details = found.to_dict()["llm"]
    into, out = details["usd_per_million_input_and_output_tokens"]
    if into is None:
        return "Price unknown: add llm.prices."
    as_of = details["prices_as_of"]
    whose = f"the table of {as_of}" if as_of else "the profile's llm.prices"
    return f"USD {into:g} and {out:g} for a million tokens in and out, by {whose}."


def _computing(shown: Shown) -> Section:
    found = shown.estimate
    machine = found.hardware
    section = Section(
        "Computing",
        ("stage", "trained on", "read", "FLOPs", "time", "measured here"),
    )
    if not found.work:
        nothing = "No model is run."
        return Section(section.title, above=[UNKNOWN if found.not_counted else nothing])
    groups = by(found.work, lambda row: row.stage)
    for stage, rows in [*groups.items(), ("all", found.work)]:
        flops = [row.flops for row in rows]
        seconds = [row.seconds for row in rows]
        speed = shown.speeds.get(stage)
        section.rows.append(
            (
                stage,
                _count(sum(row.trained for row in rows)),
                _count(sum(row.forward for row in rows)),
                "?" if None in flops else f"{sum(f or 0.0 for f in flops):.1e}",
                in_hours(None if None in seconds else sum(s or 0.0 for s in seconds)),
                "" if speed is None else f"{_count(speed)} tok/s",
            )
        )
    section.above = [
        f"{machine.name}: {machine.tflops:g} TFLOPS at the peak, "
        f"{machine.utilisation_training:.0%} of it in training and "
        f"{machine.utilisation_scoring:.0%} in scoring (assumed)."
    ]
    sizes = ", ".join(
        f"{name} {_count(size.parameters)} ({size.source})" for name, size in found.models.items()
    )
    section.below = [
        "Tokens that are trained on, over all epochs and learning rates, and tokens that are only "
        "read. Loading models is not counted.",
        f"Parameters: {sizes}.",
        _machine_price(found),
    ]
    return section


def _machine_price(found: Estimate) -> str:
    machine, hours = found.hardware, found.gpu_hours
    if hours is None:
        return "What the machine costs is unknown, as the computing is."
    text = in_hours(hours * HOUR)
    if machine.gpus > 1:
        text += (
            f" of one GPU, {in_hours(hours * HOUR / machine.gpus)} if {machine.gpus} share evenly"
        )
    if machine.usd_per_hour is None:
        return f"{text}; hardware.usd_per_hour is not set."
    as_of = f" (as of {machine.price_as_of})" if machine.price_as_of else ""
    usd = hours * machine.usd_per_hour
    return f"{text}, at {machine.usd_per_hour:g} USD an hour{as_of}: {usd:,.2f} USD."


def _disk(found: Estimate) -> Section:
    section = Section("Disk", ("what", "size"))
    for stage, rows in by(found.space, lambda row: row.stage).items():
        section.rows.append((stage, gigabytes(sum(row.bytes for row in rows))))
    section.rows.append(("all", gigabytes(found.bytes)))
    if found.while_training:
        section.rows.append(("while training", gigabytes(found.while_training)))
    section.rows.append(("free now", gigabytes(found.free)))
    if found.downloads:
        whole = gigabytes(sum(found.downloads.values()))
        section.below = [
            f"Beside that, in the Hugging Face cache: about {whole} of downloads "
            f"({', '.join(found.downloads)})."
        ]
    return section


def _afterwards(shown: Shown) -> Section:
    kept = shown.kept
    assert kept is not None, "there is something to compare with"
    section = Section("Before and after", ("what", "estimated", "spent so far", "ratio"))
    for row in shown.compared:
        unit = row.what.rpartition(": ")[2]
        show = {"bytes": gigabytes, "seconds": in_hours, "USD": in_usd}.get(unit, _count)
        section.rows.append(
            (
                row.what,
                "-" if row.estimated is None else show(row.estimated),
                "-" if row.spent is None else show(row.spent),
                "" if row.ratio is None else f"{row.ratio:.2f}",
            )
        )
    there = "nothing was there" if not kept.artefacts else f"{kept.artefacts} artefacts were there"
    section.above = [f"Estimated on {kept.made_at}, when {there}."]
    if kept.not_counted:
        section.above.append(f"Not counted then, being unknown: {', '.join(kept.not_counted)}.")
    if not kept.same_settings:
        section.above.append("The profile has changed since.")
    section.below = ["Seconds and bytes are those of the artefacts that are there now."]
    return section


def _assumed(found: Estimate) -> Section:
    section = Section("Taken for granted (docs/planning.md and --format json say why)")
    values = (f"{name} {assumed.value:g}" for name, assumed in found.assumptions.items())
    section.above = [", ".join(values) + "."]
    return section


# --- for programs


def _plain(shown: Shown) -> dict[str, Any]:
    found = shown.estimate.to_dict()
    found["open"] = asdict(shown.open)
    found["measured_tokens_per_second"] = dict(shown.speeds)
    found["compared"] = [{**asdict(row), "ratio": row.ratio} for row in shown.compared]
    if shown.kept:
        found["kept"] = {
            "made_at": shown.kept.made_at,
            "artefacts": shown.kept.artefacts,
            "same_settings": shown.kept.same_settings,
        }
    return found


def _lines(shown: Shown) -> list[tuple[Any, ...]]:
    """Every number: part, name, quantity, value, source."""
    found = shown.estimate
    lines: list[tuple[Any, ...]] = []
    for size in found.corpora:
        for name, value in vars(size).items():
            if isinstance(value, Figure):
                lines.append(("corpus", size.corpus, name, value.value, value.source))
    for what, value in found.totals().items():
        name, _, quantity = what.rpartition(": ")
        lines.append(("estimate", name, quantity, value, "estimated"))
    for row in shown.compared:
        name, _, quantity = row.what.rpartition(": ")
        lines.append(("before", name, quantity, row.estimated, "estimated"))
        lines.append(("spent", name, quantity, row.spent, "measured"))
    for name, value in asdict(shown.open).items():
        lines.append(("open", name, name, value, "estimated"))
    lines.append(("disk", "while training", "bytes", found.while_training, "estimated"))
    lines.append(("disk", "free", "bytes", found.free, "measured"))
    for stage, speed in shown.speeds.items():
        lines.append(("measured", stage, "tokens per second", speed, "measured"))
    for name, assumption in found.assumptions.items():
        lines.append(("assumption", name, "value", assumption.value, "assumed"))
    lines += [("warning", "", "text", warning, "") for warning in found.warnings]
    return lines
