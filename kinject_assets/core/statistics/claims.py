"""The study's claims as code, declared before any data is seen.

A rule reads rows: pairs of methods (one row of a table each), accuracies by K, and accuracies by
number of paraphrases. With per-question answers a row is above or below by its point estimate, and
shown to be so by its adjusted paired test. Published tables have point estimates alone: there, a
row counts as shown by the sign of its difference, and what that cannot decide is `not tested`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

Verdict = Literal["replicated", "contradicted", "underpowered", "not tested"]

MARGIN = 0.05
"""The largest advantage that still counts as none, where a claim says that there is none."""

EXCEPTIONS = 2
"""Rows in which the study itself saw fine-tuning above retrieval."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two methods in one row of a table.

    Attributes:
        family: Name in `comparisons.FAMILIES`.
        table: Which of the study's tables the row would stand in.
        row: Corpus, model and shots, for people.
        difference: Accuracy of the first less that of the second.
        ci_high: Upper end of its interval; `None` without answers.
        outcome: `better`, `worse` or `undecided` by the adjusted test; `None` without answers.
    """

    family: str
    table: int
    row: str
    difference: float
    ci_high: float | None = None
    outcome: Literal["better", "worse", "undecided"] | None = None

    @property
    def up(self) -> bool:
        """The first is shown to be better: by the test where there are answers, else by sign."""
        return self.outcome == "better" if self.outcome else self.difference > 0

    @property
    def down(self) -> bool:
        """The first is shown to be worse, in the same sense."""
        return self.outcome == "worse" if self.outcome else self.difference < 0


@dataclass(frozen=True)
class Evidence:
    """What claims are held against.

    Attributes:
        pairs: Rows of all families but `k`.
        by_k: Row -> K -> accuracy of base + RAG.
        beaten: K values that another K beats by the adjusted test in some row; `None` without
            answers.
        by_paraphrases: Row -> number of paraphrases -> accuracy of FT.
    """

    pairs: Sequence[Pair] = ()
    by_k: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    beaten: frozenset[int] | None = None
    by_paraphrases: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def of(self, family: str, table: int | None = None) -> list[Pair]:
        """Rows of a family, of one table or both."""
        return [p for p in self.pairs if p.family == family and table in (None, p.table)]


Finding = tuple[Verdict, str]


@dataclass(frozen=True)
class Rule:
    """A claim and how it is judged.

    Attributes:
        claim: Key in the table `claims`.
        statement: The claim in our words.
        family: Family of comparisons that it rests on.
        aggregation: Which rows are counted, in words.
        rule: When it is replicated and when contradicted, in words; anything else is
            `underpowered`.
        judge: The rule as code.
    """

    claim: str
    statement: str
    family: str
    aggregation: str
    rule: str
    judge: Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Claim:
    """A judged claim."""

    claim: str
    statement: str
    verdict: Verdict
    evidence: str


def _tally(pairs: Sequence[Pair]) -> str:
    up, down = sum(p.up for p in pairs), sum(p.down for p in pairs)
    mean = sum(p.difference for p in pairs) / len(pairs)
    how = "by the adjusted paired test" if pairs[0].outcome else "by point estimates alone"
    text = (
        f"{len(pairs)} rows {how}: above in {up}, below in {down}, undecided in "
        f"{len(pairs) - up - down}"
    )
    if pairs[0].outcome:
        text += f"; point estimates above in {sum(p.difference > 0 for p in pairs)}"
        text += f", below in {sum(p.difference < 0 for p in pairs)}"
    worst = min(pairs, key=lambda p: (p.difference, p.row))
    return f"{text}; mean difference {mean:+.3f}; lowest {worst.difference:+.3f} ({worst.row})"


def _every_row(family: str, table: int | None = None) -> Callable[[Evidence], Finding]:
    """Point estimates above in every row; contradicted by any row shown to be below."""

    def judge(evidence: Evidence) -> Finding:
        pairs = evidence.of(family, table)
        if not pairs:
            return "not tested", "no such rows"
        if any(p.down for p in pairs):
            return "contradicted", _tally(pairs)
        above = all(p.difference > 0 for p in pairs)
        return "replicated" if above else "underpowered", _tally(pairs)

    return judge


def _but_few(evidence: Evidence) -> Finding:
    pairs = evidence.of("rag_vs_ft", 1)
    if not pairs:
        return "not tested", "no such rows"
    # Of three rows, all but two is one: exceptions stay fewer than half.
    exceptions = min(EXCEPTIONS, (len(pairs) - 1) // 2)
    if sum(p.down for p in pairs) > exceptions:
        return "contradicted", _tally(pairs)
    few = sum(p.difference < 0 for p in pairs) <= exceptions
    return "replicated" if few else "underpowered", _tally(pairs)


def _not_above(evidence: Evidence) -> Finding:
    pairs = evidence.of("ft_rag_vs_rag", 2)
    if not pairs:
        return "not tested", "no such rows"
    if any(p.up for p in pairs):
        return "contradicted", _tally(pairs)
    shown = all(p.down or (p.ci_high is not None and p.ci_high <= MARGIN) for p in pairs)
    return "replicated" if shown else "underpowered", _tally(pairs)


def _rises(evidence: Evidence) -> Finding:
    curves = {row: c for row, c in evidence.by_paraphrases.items() if len(c) >= 3}
    if not curves:
        return "not tested", "no row has three numbers of paraphrases (0 is one)"
    rising = {
        row: all(c[m] <= c[n] for m, n in pairwise(sorted(c))) and c[max(c)] > c[min(c)]
        for row, c in curves.items()
    }
    ends = evidence.of("par_vs_reg")
    control = evidence.of("par_vs_control")
    text = f"rises at every step in {sum(rising.values())} of {len(rising)} rows"
    if control:
        text += f"; against the control of equal training: {_tally(control)}"
    if any(p.down for p in ends):
        return "contradicted", text
    tested = bool(ends) and all(p.up and p.outcome for p in ends)
    return "replicated" if tested and all(rising.values()) else "underpowered", text


def _most_rows(evidence: Evidence) -> Finding:
    pairs = evidence.of("shots")
    if not pairs:
        return "not tested", "no row was answered with and without shots"
    if 2 * sum(p.up for p in pairs) > len(pairs):
        return "replicated", _tally(pairs)
    return "contradicted" if 2 * sum(p.down for p in pairs) > len(pairs) else "underpowered", (
        _tally(pairs)
    )


def _no_best_k(evidence: Evidence) -> Finding:
    rows = evidence.by_k
    if not rows or any(len(accuracies) < 2 for accuracies in rows.values()):
        return "not tested", "needs several K in every row"
    best = {
        row: {k for k, accuracy in accuracies.items() if accuracy == max(accuracies.values())}
        for row, accuracies in rows.items()
    }
    everywhere = set.intersection(*best.values())
    values = sorted({k for accuracies in rows.values() for k in accuracies})
    counts = ", ".join(f"K={k} in {sum(k in b for b in best.values())}" for k in values)
    text = f"best (ties included) of {len(rows)} rows: {counts}"
    if everywhere:
        return ("contradicted" if len(rows) > 1 else "not tested"), text
    if evidence.beaten is None:
        return "replicated", f"{text}; point estimates alone"
    text += f"; beaten by the adjusted test somewhere: {sorted(evidence.beaten) or 'none'}"
    return "replicated" if evidence.beaten >= set(values) else "underpowered", text


RULES: tuple[Rule, ...] = (
    Rule(
        "rag_above_base",
        "Base + RAG is more accurate than the base model in every row.",
        "rag_vs_base",
        "every row of both tables",
        "replicated: every point estimate above; contradicted: any row below by test",
        _every_row("rag_vs_base"),
    ),
    Rule(
        "rag_not_below_ft",
        "RAG is at least as accurate as fine-tuning in all but two rows of Table 1.",
        "rag_vs_ft",
        "every row of Table 1",
        "replicated: point estimates below in at most two rows, and in fewer than half; "
        "contradicted: more rows than that below by test",
        _but_few,
    ),
    Rule(
        "ft_adds_nothing_to_rag",
        "On new facts, FT + RAG does not beat RAG alone.",
        "ft_rag_vs_rag",
        "every row of Table 2, each recipe a row",
        f"replicated: each row below by test, or its interval ends by +{MARGIN}; "
        "contradicted: any row above by test",
        _not_above,
    ),
    Rule(
        "par_above_reg",
        "On new facts, training on paraphrases is more accurate than training on the text alone.",
        "par_vs_reg",
        "every row of Table 2, with and without RAG, each number of paraphrases a row",
        "replicated: every point estimate above; contradicted: any row below by test",
        _every_row("par_vs_reg", 2),
    ),
    Rule(
        "rises_with_paraphrases",
        "Accuracy rises with the number of paraphrases.",
        "par_vs_reg",
        "FT's curve over the numbers of paraphrases in every row that has three or more (0 is "
        "one), and every row of the family",
        "replicated: no curve falls from one number to the next, each ends above its start, and "
        "every row of the family is above by test; contradicted: any row of the family below by "
        "test",
        _rises,
    ),
    Rule(
        "shots_help",
        "Five examples in the prompt help in most rows.",
        "shots",
        "every row of both tables, each method and recipe a row",
        "replicated: above by test in more than half of the rows; contradicted: below by test in "
        "more than half",
        _most_rows,
    ),
    Rule(
        "no_best_k",
        "No number of retrieved chunks is best everywhere.",
        "k",
        "base + RAG under every fixed K in every row of both tables",
        "replicated: no K has the best point estimate in all rows, and every K is beaten by "
        "another in some row by test; contradicted: one K is best (ties included) in all rows",
        _no_best_k,
    ),
)
"""The claims, declared in one place before any result is read."""


def judge(evidence: Evidence) -> list[Claim]:
    """Every claim with its verdict, in the order of `RULES`."""
    return [Claim(rule.claim, rule.statement, *rule.judge(evidence)) for rule in RULES]
