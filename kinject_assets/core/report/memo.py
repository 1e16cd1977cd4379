"""The decision memo: a verdict for each corpus and model, in numbers and in plain words."""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from kinject_assets.config import RecipeSpec
from kinject_assets.core.report.evidence import Answering, Evidence, read_evidence
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.decision import (
    Cast,
    Clause,
    Role,
    Turning,
    Verdict,
    accuracy,
    assign,
    decide,
    open_clauses,
    turning,
)
from kinject_assets.core.statistics.intervals import paired_difference
from kinject_assets.core.statistics.power import ALPHA, WORTHWHILE, questions_needed

WINNERS: Mapping[Verdict, Role] = {"retrieve": "rag", "fine-tune": "ft", "both": "ft_rag"}
"""Verdict -> the role that it recommends."""

DOING: Mapping[Verdict, str] = {
    "retrieve": "retrieve",
    "fine-tune": "fine-tune",
    "both": "fine-tune and retrieve",
    "neither": "do neither",
    "not shown": "nothing is shown",
}

COMPARED: tuple[tuple[Role, Role], ...] = (
    ("rag", "base"),
    ("ft", "base"),
    ("rag", "ft"),
    ("ft_rag", "rag"),
)
"""Pairs that are told where nothing is shown."""

WIDTH = 79
"""Characters of a line in a terminal."""

WORST_DAMAGE = 0.05
"""A probe that fell by more than this is named in the memo."""


class Difference(NamedTuple):
    """One system against another on the same questions.

    Attributes:
        p_adjusted: `None` where the study has no such comparison.
        detectable: Difference that the test could have found; `None` likewise.
    """

    value: float
    low: float
    high: float
    p_adjusted: float | None
    detectable: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The decision on one corpus and model.

    Attributes:
        key: Names it in the page.
        shots: Examples in the prompt: the fewest that were asked for.
        table: Table of the study that the corpus belongs to.
        systems: Role -> the system that has it.
        differences: Pair of roles -> the first against the second.
        ceiling: Accuracy of the base model with the very chunk in front that each question was
            written from; `None` without an oracle retriever.
        damage: What training the recipe cost elsewhere, in a sentence; empty where not measured.
        settle: Further questions that would settle `not shown`; `None` where none can be named.
    """

    key: str
    corpus: str
    model: str
    shots: int
    table: int
    verdict: Verdict
    cast: Cast
    systems: Mapping[Role, Answering]
    differences: Mapping[tuple[Role, Role], Difference]
    turning: Turning
    ceiling: Answering | None = None
    damage: str = ""
    settle: int | None = None
    candidates: Sequence[Answering] = field(default=(), repr=False)

    @property
    def winner(self) -> Role | None:
        """The role that the verdict recommends."""
        return WINNERS.get(self.verdict)

    @property
    def untried(self) -> str:
        """What the verdict says nothing about; empty where all was tried."""
        names = {"rag": "retrieval", "ft": "fine-tuning"}
        return " and ".join(name for role, name in names.items() if role not in self.systems)

    @property
    def headline(self) -> str:
        """The verdict with the gain over the base model."""
        gains = [
            f"{NAMES[role]} {signed(self.differences[role, 'base'])}"
            for role in WINNERS.values()
            if (role, "base") in self.differences
        ]
        base = self.systems.get("base")
        if base is None:
            return "The base model was not asked, so there is nothing to hold the others against."
        return f"Base {base.accuracy:.3f}; against it: {'; '.join(gains) or 'nothing was tried'}."

    @property
    def how_sure(self) -> str:
        """Tests that the verdict rests on, or what could have been found."""
        if self.verdict == "neither":
            return f"Each gain's 95 % interval ends below {100 * WORTHWHILE:.0f} points."
        if self.winner:
            said = [
                f"{NAMES[clause.a]} against {NAMES[clause.b]}: "
                f"{signed(found)}{_p(found.p_adjusted)}"
                for clause in self.cast.clauses(self.verdict) or []
                if clause.kind == "better"
                if (found := self.differences.get((clause.a, clause.b)))
            ]
            return "; ".join(said) + "."
        return " ".join(self._not_shown())

    def _not_shown(self) -> list[str]:
        said: list[str] = []
        for a, b in COMPARED:
            found = self.differences.get((a, b))
            if found is None:
                continue
            if found.p_adjusted is not None and found.p_adjusted < ALPHA:
                how = "better" if found.value > 0 else "worse"
                said.append(f"{NAMES[a]} is {how} than {NAMES[b]}{_p(found.p_adjusted)}.")
            else:
                could = (
                    f"; {100 * found.detectable:.0f} points could have been shown"
                    if found.detectable
                    else ""
                )
                said.append(f"{NAMES[a]} against {NAMES[b]}: {signed(found)}, not shown{could}.")
        return said or ["Too little was answered to compare anything."]

    @property
    def what_turns(self) -> str:
        """How many bad questions would turn the verdict, and how many good ones settle it."""
        if not self.differences:
            return ""
        said: list[str] = []
        n = self.turning.questions
        if self.verdict == "not shown":
            if self.settle:
                said.append(
                    f"About {self.settle:,} more questions like these would settle it, if the "
                    "differences are what they look like (80 % power)."
                )
            if n is not None:
                those = "question that speaks" if n == 1 else f"{n} questions that speak"
                said.append(
                    f"Without the {those} most against it, the verdict would be {self.turning.to}."
                )
        elif n is not None:
            asked = max((len(o) for o in self.cast.outcomes.values()), default=0)
            said.append(
                f"It takes {n} bad {'question' if n == 1 else 'questions'} of {asked}, those that "
                f"favour it most, to turn it{_because(self.turning.clause)}."
            )
        return " ".join(said) or (
            "No number of bad questions would turn it, nor would more questions if the differences "
            "are what they look like."
        )

    def against(self, a: Role, b: Role) -> str:
        """A against B as a cell of a table, with a star where the test shows it."""
        found = self.differences.get((a, b))
        if found is None:
            return "-"
        shown = found.p_adjusted is not None and found.p_adjusted < ALPHA
        return signed(found) + (" *" if shown else "")

    @property
    def detectable(self) -> str:
        """The largest of the differences that its tests could have found."""
        found = [d.detectable for d in self.differences.values() if d.detectable]
        return f"{max(found):.3f}" if found else "-"


NAMES: Mapping[Role, str] = {
    "base": "base",
    "rag": "RAG",
    "ft": "FT",
    "ft_rag": "FT + RAG",
    "ft_rag_of_ft": "FT + RAG",
    "ft_of_ft_rag": "FT",
}


def signed(found: Difference) -> str:
    """`+0.120 [0.05, 0.19]`."""
    return f"{found.value:+.3f} [{found.low:+.2f}, {found.high:+.2f}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return ", adjusted p < 0.0001" if value < 0.0001 else f", adjusted p = {value:.4f}"


def _because(clause: Clause | None) -> str:
    if clause is None:
        return ""
    a, b = NAMES[clause.a], NAMES[clause.b]
    return {
        "better": f": then {a} is no more shown to be better than {b}",
        "not better": f": then {a} is shown to be better than {b}",
        "worthwhile": f": then {a} cannot gain {100 * WORTHWHILE:.0f} points over {b}",
        "not worthwhile": f": then {a} may gain {100 * WORTHWHILE:.0f} points over {b}",
        "ahead": f": then {a} is no more ahead of {b}",
        "not ahead": f": then {a} is ahead of {b}",
    }[clause.kind]


def judge_all(
    evidence: Evidence, corpora: Sequence[Mapping[str, Any]], damage: Sequence[Mapping[str, Any]]
) -> list[Judged]:
    """A decision for each corpus and model, those on new facts first.

    Args:
        evidence: What `read_evidence` gives.
        corpora: Rows of the table `corpora`.
        damage: Rows of `damage`, each with its checkpoint's `corpus`, `model` and `recipe`.
    """
    table = {row["corpus"]: row["table_number"] for row in corpora}
    found: list[Judged] = []
    for (corpus, _), group in groupby(evidence.systems, key=lambda s: (s.corpus, s.model)):
        mine = list(group)
        shots = min((s.shots for s in mine if s.main), default=None)
        if shots is not None:
            here = [s for s in mine if s.shots == shots]
            found.append(_judge(evidence, here, table[corpus], damage, f"d{len(found)}"))
    return sorted(found, key=lambda j: (-j.table, j.corpus, j.model))


def _order(system: Answering) -> tuple[int, int]:
    """Full fine-tuning first, then the fewest texts: what breaks ties between recipes."""
    if not system.recipe:
        return -1, 0
    spec = RecipeSpec.parse(system.recipe)
    return ("full", "lora", "qlora").index(spec.method), spec.n_paraphrases


def _judge(
    evidence: Evidence,
    systems: Sequence[Answering],
    table: int,
    damage: Sequence[Mapping[str, Any]],
    key: str,
) -> Judged:
    main = sorted((s for s in systems if s.main and not s.control), key=_order)
    plain = {s.method: s for s in main if not s.recipe}
    trained: defaultdict[str, dict[str, Answering]] = defaultdict(dict)
    for system in main:
        if system.recipe:
            trained[system.method][system.recipe] = system
    ids = {s.method + (f" {s.recipe}" if s.recipe else ""): s.condition_id for s in main}

    def level(a: str, b: str) -> float:
        pair = ids[a], ids[b]
        return evidence.levels.get(pair, evidence.levels.get((pair[1], pair[0]), ALPHA))

    cast = assign(
        plain["base"].outcomes if "base" in plain else None,
        plain["rag"].outcomes if "rag" in plain else None,
        {name: s.outcomes for name, s in trained["ft"].items()},
        {name: s.outcomes for name, s in trained["ft_rag"].items()},
        level,
    )
    of_role: dict[Role, Answering | None] = {
        "base": plain.get("base"),
        "rag": plain.get("rag"),
        "ft": trained["ft"].get(cast.recipe),
        "ft_rag": trained["ft_rag"].get(cast.recipe_of_both),
        "ft_rag_of_ft": trained["ft_rag"].get(cast.recipe),
        "ft_of_ft_rag": trained["ft"].get(cast.recipe_of_both),
    }
    standing: dict[Role, Answering] = {r: s for r, s in of_role.items() if s is not None}
    verdict = decide(cast)
    some = systems[0]
    return Judged(
        key=key,
        corpus=some.corpus,
        model=some.model,
        shots=some.shots,
        table=table,
        verdict=verdict,
        cast=cast,
        systems=standing,
        differences=_differences(cast, standing, evidence),
        turning=turning(cast),
        ceiling=next((s for s in systems if s.retriever == "oracle" and s.method == "rag"), None),
        damage=_damage_line(damage, some.corpus, some.model, cast.recipe),
        settle=_settle(cast) if verdict == "not shown" else None,
        candidates=main,
    )


def _differences(
    cast: Cast, standing: Mapping[Role, Answering], evidence: Evidence
) -> dict[tuple[Role, Role], Difference]:
    found: dict[tuple[Role, Role], Difference] = {}
    for a in standing:
        for b in standing:
            if a == b or not (tally := cast.tally(a, b)).n:
                continue
            pair = standing[a].condition_id, standing[b].condition_id
            row = evidence.comparisons.get(pair) or evidence.comparisons.get((pair[1], pair[0]))
            found[a, b] = Difference(
                (tally.only_a - tally.only_b) / tally.n,
                *paired_difference(*tally),
                row["p_adjusted"] if row else None,
                row["detectable_difference"] if row else None,
                tally.n,
            )
    return found


def _settle(cast: Cast) -> int | None:
    """Further questions with which the tests of the likeliest verdict would be passed."""
    tried: list[Verdict] = [v for v, role in WINNERS.items() if role in cast.outcomes]
    if not tried:
        return None
    likeliest = max(tried, key=lambda v: accuracy(cast.outcomes[WINNERS[v]]))
    more = 0
    for clause in open_clauses(cast, likeliest):
        only_a, only_b, n = cast.tally(clause.a, clause.b)
        if clause.kind != "better" or only_a <= only_b:
            return None
        needed = questions_needed((only_a + only_b) / n, (only_a - only_b) / n, alpha=clause.level)
        if needed is None:
            return None
        more = max(more, needed - n)
    return more or None


def _damage_line(damage: Sequence[Mapping[str, Any]], corpus: str, model: str, recipe: str) -> str:
    mine = [
        row
        for row in damage
        if (row["corpus"], row["model"], row["recipe"]) == (corpus, model, recipe) and row["n"]
    ]
    if not mine:
        return ""
    worst = min(mine, key=lambda row: row["change"])
    probes = f"{len(mine)} {'probe' if len(mine) == 1 else 'probes'}"
    if worst["change"] >= -WORST_DAMAGE:
        return f"{recipe} cost no more than {100 * WORST_DAMAGE:.0f} points on any of {probes}."
    return (
        f"{recipe} cost elsewhere: {worst['probe']} fell from {worst['before']:.3f} to "
        f"{worst['after']:.3f} (the worst of {probes})."
    )


def overall(judged: Sequence[Judged]) -> str:
    """The memo in a few plain sentences, new facts first."""
    if not any(j.differences for j in judged):
        return "Nothing can be said yet: no question has been answered in two ways."
    said = [
        _about(table, [j for j in judged if j.table == table])
        for table in (2, 1)
        if any(j.table == table for j in judged)
    ]
    return " ".join(said)


def in_words(database: Path) -> str:
    """The memo for a terminal: all in a sentence, then each decision on new facts.

    Decisions on known topics are told where there is none on new facts.

    Args:
        database: `results.duckdb`.
    """
    corpora = fetch(database, "SELECT corpus, table_number FROM corpora").dicts()
    judged = judge_all(read_evidence(database), corpora, read_damage(database))
    told = [j for j in judged if j.table == max(k.table for k in judged)]
    blocks = [
        overall(judged),
        *(
            f"{j.corpus}, {j.model}: {DOING[j.verdict]}. {j.headline} {j.how_sure} {j.what_turns}"
            for j in told
            if j.differences
        ),
    ]
    return "\n\n".join(textwrap.fill(block, WIDTH, break_on_hyphens=False) for block in blocks)


def _about(table: int, judged: Sequence[Judged]) -> str:
    counts: Counter[Verdict] = Counter(j.verdict for j in judged)
    what = {2: "On new facts", 1: "On known topics"}[table]
    untried = {j.untried for j in judged if j.untried}
    names = " or ".join(sorted(untried)).capitalize()
    rest = f" {names} {'were' if ' and ' in names else 'was'} not tried" if untried else ""
    if rest:
        rest += " everywhere." if any(not j.untried for j in judged) else " there."
    if len(counts) > 1:
        parts = ", ".join(f"{verdict} in {n}" for verdict, n in counts.most_common())
        return f"{what}, of {len(judged)} pairs of corpus and model: {parts}.{rest}"
    (verdict,) = counts
    where = (
        f"{judged[0].corpus}, {judged[0].model}"
        if len(judged) == 1
        else f"all {len(judged)} pairs of corpus and model"
    )
    return f"{what}, {DOING[verdict]}{_span(judged)} ({where}).{rest}"


def _span(judged: Sequence[Judged]) -> str:
    """By how much the winner is ahead of the base model."""
    gains = [
        j.differences[j.winner, "base"].value
        for j in judged
        if j.winner and (j.winner, "base") in j.differences
    ]
    if not gains:
        return ""
    low, high = (f"{100 * gain:.0f}" for gain in (min(gains), max(gains)))
    return f": {low if low == high else f'{low} to {high}'} points above the base model"


def read_damage(database: Path) -> list[dict[str, Any]]:
    """Rows of `damage` with their checkpoint's corpus, model and recipe."""
    return fetch(
        database,
        """
        SELECT corpus, model, recipe, probe, before, after, after - before AS change, n, lost, won,
            most_chosen_before, most_chosen_after, collapse_before, collapse_after
        FROM damage JOIN checkpoints USING (checkpoint_id)
        ORDER BY corpus, model, recipe, probe""",
    ).dicts()
