"""What an audit finds, and how it says so."""

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

Kind = Literal["missing", "changed", "orphaned", "stale"]
Area = Literal["lake", "rows", "chains"]

KINDS: tuple[Kind, ...] = ("missing", "changed", "orphaned", "stale")
"""In the order in which they are told; the first three are broken."""

SHOWN = 5
"""Keys of rows that a finding names; its count says how many there are."""


@dataclass(frozen=True, order=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        artefact: `asset/corpus/...`, or `results.duckdb`.
        kind: `missing`: a file, artefact or row is gone. `changed`: it is not what was written.
            `orphaned`: there, but nothing that was made wrote it. `stale`: whole, and made from
            what has changed since.
        detail: What exactly.
        mend: What to do.
        area: Where it was found: in the `lake`, in the `rows` of the database against what was
            written to it, or in the `chains` of answers.
        file: Which file of the artefact, below its folder.
        table: Which table of the database.
        keys: The first rows, `column=value, ...`.
        count: How many rows.
        rests: Artefacts that are made from it: asset, how many.
        answers: Answers that rest on it.
        made_from: For what is stale: the stale artefact that it is made from; empty where its own
            inputs or settings have changed.
    """

    artefact: str
    kind: Kind
    detail: str
    mend: str
    area: Area = "lake"
    file: str = ""
    table: str = ""
    keys: tuple[str, ...] = ()
    count: int = 1
    rests: tuple[tuple[str, int], ...] = ()
    answers: int = 0
    made_from: str = ""

    @property
    def broken(self) -> bool:
        """Not what was made; what is stale is whole."""
        return self.kind != "stale"

    @property
    def bearing(self) -> str:
        """What rests on it, for people; empty when nothing does."""
        made = ", ".join(f"{n} {asset}" for asset, n in self.rests)
        parts = [f"made from it: {made}"] if made else []
        if self.answers:
            parts.append(f"{_count(self.answers, 'answer')} {_verb(self.answers, 'rest')} on it")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain values."""
        return {**dataclasses.asdict(self), "rests": dict(self.rests), "broken": self.broken}


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        checked: Artefacts that were verified.
        files: Files whose hash was computed.
        rows: Rows of the database that were compared with those written.
        answers: Answers of the database.
        whole: Of them, those whose chain reaches its end everywhere.
        findings: Sorted by artefact.
    """

    checked: int
    files: int
    rows: int = 0
    answers: int = 0
    whole: int = 0
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.findings

    @property
    def broken(self) -> tuple[Finding, ...]:
        """What is missing, changed or orphaned."""
        return tuple(f for f in self.findings if f.broken)

    @property
    def stale(self) -> tuple[Finding, ...]:
        """What was made from something that has changed since."""
        return tuple(f for f in self.findings if not f.broken)

    @property
    def verdict(self) -> str:
        """E.g. `sound`, or `1 broken, 3 stale`."""
        if self.ok:
            return "sound"
        counts = {"broken": len(self.broken), "stale": len(self.stale)}
        return ", ".join(f"{n} {name}" for name, n in counts.items() if n)

    @property
    def extent(self) -> str:
        """How much was verified."""
        parts = [_count(self.checked, "artefact"), _count(self.files, "file")]
        if self.rows:
            parts.append(_count(self.rows, "row"))
        if self.answers:
            parts.append(
                f"{_count(self.answers, 'answer')}, {self.whole:,} of them with their whole chain"
            )
        return "verified: " + ", ".join(parts)

    def to_json(self) -> str:
        """The audit as JSON."""
        found = {
            "ok": self.ok,
            "verdict": self.verdict,
            "broken": len(self.broken),
            "stale": len(self.stale),
            **{name: getattr(self, name) for name in ("checked", "files", "rows", "answers")},
            "whole": self.whole,
            "findings": [finding.to_dict() for finding in self.findings],
        }
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"

    def text(self, width: int | None = None) -> str:
        """The audit for people: the summary, then the findings by kind.

        Args:
            width: Columns of the terminal; by default lines are as long as they come.
        """
        lines = [self.verdict, *wrapped(self.extent, width, "  ")]
        for kind in KINDS:
            found = [f for f in self.findings if f.kind == kind]
            if found:
                lines += ["", f"{kind} ({len(found)})", *told(found, width)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def told(findings: Iterable[Finding], width: int | None = None) -> list[str]:
    """Findings as lines; those that are only made from others that are stale in one paragraph."""
    found = list(findings)
    lines: list[str] = []
    own = [f for f in found if not f.made_from]
    for artefact, group in groupby(own, key=lambda f: f.artefact):
        lines.append(f"  {artefact}")
        for finding in group:
            lines += _one(finding, width)
    names = [f.artefact for f in found if f.made_from]
    if names:
        said = f"made from these ({len(names)}): {', '.join(names)}"
        lines += wrapped(said, width, "  ", "    ")
    return lines


def _one(finding: Finding, width: int | None) -> Iterator[str]:
    yield from wrapped(finding.detail, width, "    ", "      ")
    for text in (finding.bearing, f"mend: {finding.mend}"):
        if text:
            yield from wrapped(text, width, "      ", "        ")


def wrapped(text: str, width: int | None, indent: str, hanging: str = "") -> list[str]:
    """Lines of a text, no longer than a width unless a single word is."""
    if width is None:
        return [f"{indent}{text}"]
    return textwrap.wrap(
        text,
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=hanging or indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _verb(number: int, verb: str) -> str:
    return f"{verb}s" if number == 1 else verb
