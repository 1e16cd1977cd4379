"""How well the gates on exam questions do: precision and recall of each, on real passages.

`data/questions.jsonl` holds good four-option questions on passages of real Wikipedia articles, and
bad ones of each kind, a fifth of the good ones' number, all written by hand. Of the passages it
holds the article's title and a few words that find them in the dump. One half was there to tune the
gates with; the other half was written before them and nothing was tuned on it. The published
questions of MMLU, which people wrote, tell how often gates that need no passage turn a good
question away.

    python -m kinject_assets_tests.bench.gates      prints the tables and renews docs/exams.md
"""

import bz2
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kinject_assets.config import Chunking, Cleaning, MMLUExam
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.cleaning import clean
from kinject_assets.core.exams.gates import GATES, Asked, Item, gate
from kinject_assets.core.exams.mmlu import load_mmlu
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.schema import Article, Chunk
from kinject_assets.core.statistics.intervals import wilson

REPOSITORY = Path(__file__).parents[2]
REALDATA = Path(os.environ.get("KINJECT_REALDATA") or REPOSITORY.parent / "shared" / "realdata")
DUMP = REALDATA / "wikipedia" / "enwiki-2021-minidump.xml.bz2"
MMLU = REALDATA / "mmlu"
QUESTIONS = Path(__file__).parent / "data" / "questions.jsonl"
PAGE = REPOSITORY / "docs" / "exams.md"
BEGIN, END = "<!-- gates: begin -->", "<!-- gates: end -->"

PARTS = ("tuning", "held out")
CHUNKING = Chunking(tokenizer="words", max_tokens=256, min_tokens=30)
SUBJECTS = ("anatomy", "astronomy", "college_chemistry")

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unsupported": ("answer not supported by the chunk", ("supported",)),
    "two_right": ("two right answers", ("distinct", "single", "alone")),
    "reference": ("refers to the text", ("reference",)),
    "leak": ("gives the answer away", ("leak",)),
    "longest": ("longest is right", ("longest",)),
    "near_duplicate_within": ("near-duplicate, same chunk", ()),
    "near_duplicate_across": ("near-duplicate, another chunk", ()),
}
"""Kind of planted questions -> its name, and the gates that are to find it."""

STEM_GATES = ("distinct", "single", "standing", "reference", "leak", "longest")
"""Gates that need no passage."""


@dataclass(frozen=True)
class Case:
    """A question of the benchmark.

    Attributes:
        part: `tuning` or `held out`.
        kind: `good`, or what is wrong with it.
    """

    case_id: str
    part: str
    kind: str
    item: Item


@dataclass(frozen=True)
class Figure:
    """What the gates of one kind do.

    Attributes:
        caught: Planted questions that they turn away.
        by_any: Planted questions that any gate turns away.
        alarms: Good questions that they turn away.
    """

    kind: str
    part: str
    planted: int
    caught: int
    by_any: int
    good: int
    alarms: int


def articles() -> list[Article]:
    """The articles of the dump, cleaned."""
    root = ElementTree.fromstring(bz2.decompress(DUMP.read_bytes()))
    space = root.tag.removesuffix("mediawiki")
    found: list[Article] = []
    for page in root.iter(f"{space}page"):
        title = page.findtext(f"{space}title") or ""
        sections = clean(page.findtext(f"{space}revision/{space}text") or "", Cleaning())
        found.append(
            Article(
                article_id=title,
                revision_id=page.findtext(f"{space}revision/{space}id") or "",
                source="dump",
                title=title,
                revised_at=None,
                fetched_at=datetime(2021, 1, 1, tzinfo=UTC),
                url="",
                licence="CC BY-SA 3.0",
                text_sha256="",
                n_chars=sum(len(body) for _, body in sections),
                headings=[heading for heading, _ in sections],
                bodies=[body for _, body in sections],
            )
        )
    return found


def cases() -> list[Case]:
    """The questions with their passages."""
    chunks = chunk_articles(articles(), CHUNKING, token_counter(CHUNKING.tokenizer))
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [_case(row, chunks) for row in rows]


def _case(row: dict[str, Any], chunks: Sequence[Chunk]) -> Case:
    found = [c for c in chunks if c.title == row["title"] and row["anchor"] in c.text]
    if len(found) != 1:
        sys.exit(f"{QUESTIONS}, {row['id']}: `{row['anchor']}` is in {len(found)} chunks, not in 1")
    return Case(
        row["id"],
        row["part"],
        row["kind"],
        Item(row["question"], tuple(row["options"]), row["answer"], found[0].text, row["title"]),
    )


def measure(found: Sequence[Case]) -> Iterator[Figure]:
    """Asks the gates about every question of each part."""
    for part in PARTS:
        here = [case for case in found if case.part == part]
        good = [case.item for case in here if case.kind == "good"]
        exam, repeated = Asked(), 0
        for item in good:
            repeated += exam.objection(item) is not None
            exam.add(item)
        for kind, (_, names) in KINDS.items():
            planted = [case.item for case in here if case.kind == kind]
            checks: list[Callable[[Item], str | None]] = [GATES[name] for name in names]
            checks = checks or [exam.objection]
            yield Figure(
                kind=kind,
                part=part,
                planted=len(planted),
                caught=sum(any(check(item) for check in checks) for item in planted),
                by_any=sum(bool(gate(item, 4) or exam.objection(item)) for item in planted),
                good=len(good),
                alarms=sum(any(check(item) for check in checks) for item in good)
                if names
                else repeated,
            )


def published(split: str) -> tuple[int, dict[str, int]]:
    """MMLU questions of a split, and how many of them each gate turns away."""
    items = [
        Item(question.stem, tuple(question.options), question.gold)
        for subject in SUBJECTS
        for question in load_mmlu(MMLUExam(kind="mmlu", subject=subject, folder=MMLU), Path())
        if question.split == split
    ]
    return len(items), {name: sum(bool(GATES[name](i)) for i in items) for name in STEM_GATES}


def _share(n: int, of: int) -> str:
    low, high = wilson(n, of)
    shown = f"{n / of:.0%}" if of else "-"
    return f"{shown} ({low:.0%} to {high:.0%})"


def table(figures: Sequence[Figure]) -> str:
    """Precision and recall of each gate, as Markdown."""
    lines = [
        "| planted | questions | turned away | good ones turned away | precision | recall "
        "| by any gate |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        rows = [figure for figure in figures if figure.part == part]
        lines.append(f"| **{part}**, {rows[0].good} good questions | | | | | | |")
        for row in rows:
            lines.append(
                f"| {KINDS[row.kind][0]} | {row.planted} | {row.caught} | {row.alarms} "
                f"| {_share(row.caught, row.caught + row.alarms)} "
                f"| {_share(row.caught, row.planted)} | {row.by_any} |"
            )
    return "\n".join(lines)


def published_table() -> str:
    """False alarms of the gates that need no passage on MMLU's test questions, as Markdown."""
    n, alarms = published("test")
    lines = [
        f"| gate | of {n} MMLU questions turned away | share |",
        "|---|---|---|",
        *(f"| `{name}` | {count} | {_share(count, n)} |" for name, count in alarms.items()),
    ]
    return "\n".join(lines)


@cache
def block() -> str:
    """What stands between the marks in docs/exams.md."""
    return (
        f"{BEGIN}\n{table(list(measure(cases())))}\n\n"
        f"In brackets 95 % Wilson intervals.\n\n{published_table()}\n{END}"
    )


def main() -> None:
    """Prints the tables and renews them in the page."""
    if missing := [str(path) for path in (DUMP, MMLU) if not path.exists()]:
        sys.exit(f"absent: {', '.join(missing)}; set KINJECT_REALDATA to the folder with both")
    text = block()
    print(text)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(PAGE, before + text + after)


if __name__ == "__main__":
    main()
