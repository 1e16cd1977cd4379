"""The verdict on a corpus and a model: retrieve, fine-tune, both, neither, or not shown.

The rule, declared before any data is seen. Four ways to answer the same questions are held against
each other: the base model, retrieval (RAG), fine-tuning (FT), and both (FT + RAG). The recipe that
stands for FT is the one with the highest accuracy without retrieval, the one that stands for both
has the highest with it (the first of equals); that favours fine-tuning, and Holm's adjustment has
counted every recipe. *Better* means better by McNemar's exact test at the level at which Holm's
procedure tests that pair in its family; *worthwhile* is a gain over the base model whose 95 %
interval reaches `WORTHWHILE` or more. Then the verdict is

- `retrieve`, if RAG is better than base and than FT, its gain may be worthwhile, and FT + RAG is
  not better than RAG;
- `fine-tune`, if FT is better than base and than RAG, its gain may be worthwhile, the same recipe
  with RAG is not better, and FT + RAG of the other recipes is not ahead of it;
- `both`, if FT + RAG is better than RAG and than its own recipe without retrieval, ahead of FT, and
  its gain may be worthwhile;
- `neither`, if no gain that was tried can be worthwhile;
- `not shown` otherwise. What was not tried is left out of these sentences.

Each verdict but the last is a conjunction of conditions on pairs of systems, and no two of them can
hold at once. That makes `turning` exact; see there.
"""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from kinject_assets.core.statistics.intervals import paired_difference
from kinject_assets.core.statistics.power import ALPHA, WORTHWHILE
from kinject_assets.core.statistics.tests import mcnemar

Verdict = Literal["retrieve", "fine-tune", "both", "neither", "not shown"]

Outcomes = Mapping[str, bool]
"""Question id -> answered correctly."""

Role = Literal["base", "rag", "ft", "ft_rag", "ft_rag_of_ft", "ft_of_ft_rag"]
"""`ft_rag_of_ft` is FT's own recipe with retrieval, `ft_of_ft_rag` FT + RAG's own without."""

Kind = Literal["better", "not better", "worthwhile", "not worthwhile", "ahead", "not ahead"]


class Tally(NamedTuple):
    """The questions that two systems answered.

    Attributes:
        only_a: Those that A alone answers correctly.
        only_b: Those that B alone answers correctly.
        n: All of them.
    """

    only_a: int
    only_b: int
    n: int


OPPOSITE: Mapping[Kind, Kind] = {
    "better": "not better",
    "not better": "better",
    "worthwhile": "not worthwhile",
    "not worthwhile": "worthwhile",
    "ahead": "not ahead",
    "not ahead": "ahead",
}


@lru_cache(maxsize=65536)
def _p_value(only_a: int, only_b: int) -> float:
    return mcnemar(only_a, only_b)


@dataclass(frozen=True)
class Clause:
    """A condition on two systems: A is so to B.

    Attributes:
        level: Level of the test; `better` and `not better` alone use it.
    """

    a: Role
    kind: Kind
    b: Role
    level: float = ALPHA

    def holds(self, tally: Tally) -> bool:
        """Whether it is so, by the counts alone."""
        only_a, only_b, n = tally
        match self.kind:
            case "better":
                return only_a > only_b and _p_value(only_a, only_b) < self.level
            case "ahead":
                return only_a > only_b
            case "worthwhile":
                return paired_difference(only_a, only_b, n).high >= WORTHWHILE
            case _:
                return not self.opposite.holds(tally)

    @property
    def opposite(self) -> "Clause":
        """The clause that holds where this one does not."""
        return Clause(self.a, OPPOSITE[self.kind], self.b, self.level)

    @property
    def favours_a(self) -> bool:
        """Questions that A alone answers correctly speak for it."""
        return not self.kind.startswith("not ")

    def against(self, tally: Tally) -> int:
        """Questions that speak against it."""
        return tally.only_b if self.favours_a else tally.only_a

    def spared(self, tally: Tally, against: int, gone: int) -> Tally:
        """The counts without some questions.

        Args:
            tally: The counts.
            against: How many of those that speak against the clause are gone.
            gone: How many are gone in all.
        """
        only_a, only_b, n = tally
        if self.favours_a:
            only_b -= against
        else:
            only_a -= against
        return Tally(only_a, only_b, max(n - gone, only_a + only_b))

    def demand(self, tally: Tally, gone: int) -> int | None:
        """How many questions that speak against it must be among those gone for it to hold.

        Args:
            tally: The counts with all questions.
            gone: How many questions are gone in all; an interval is wider without them.

        Returns:
            The smallest number; `None` if no number will do.
        """
        speaking = self.against(tally)
        return _first(speaking, lambda some: self.holds(self.spared(tally, some, gone)))

    def to_make(self, tally: Tally) -> int | None:
        """Smallest number of questions without which it holds; `None` if there is none.

        Those that speak against it go first. Those that both systems answer alike follow: without
        them an interval is wider.
        """
        speaking = self.against(tally)
        most = tally.n - (tally.only_a + tally.only_b - speaking)
        return _first(
            most if self.kind == "worthwhile" else speaking,
            lambda gone: self.holds(self.spared(tally, min(gone, speaking), gone)),
        )


def _first(most: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest of 0..most for which something holds that goes on holding."""
    if not holds(most):
        return None
    low, high = -1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


Level = Callable[[str, str], float]


@dataclass(frozen=True)
class Cast:
    """Who stands for what in the decision on one corpus and model.

    Attributes:
        outcomes: Role -> what it answered correctly; roles that were not tried are not in it.
        levels: Pair of roles -> level at which Holm's procedure tests it.
        recipe: Recipe that stands for FT; empty for none.
        recipe_of_both: Recipe that stands for FT + RAG; empty for none.
    """

    outcomes: Mapping[Role, Outcomes]
    levels: Mapping[tuple[Role, Role], float] = field(default_factory=dict)
    recipe: str = ""
    recipe_of_both: str = ""

    def tally(self, a: Role, b: Role) -> Tally:
        """Counts of A against B on the questions that both answered."""
        mine, other = self.outcomes[a], self.outcomes[b]
        shared = mine.keys() & other.keys()
        return Tally(
            sum(mine[q] and not other[q] for q in shared),
            sum(other[q] and not mine[q] for q in shared),
            len(shared),
        )

    def clauses(self, verdict: Verdict) -> list[Clause] | None:
        """What a verdict asks for; `None` where what it names was not tried."""
        if verdict == "not shown":
            return None
        winner, others, wanted = RULE[verdict]
        tried = self.outcomes.keys()
        if winner not in tried or "base" not in tried or not others <= tried:
            return None
        found = [
            Clause(a, kind, b, self.levels.get((a, b), self.levels.get((b, a), ALPHA)))
            for a, kind, b in wanted
            if a in tried and b in tried
        ]
        return found or None

    def without(self, questions: Container[str]) -> "Cast":
        """The same on the other questions, with roles and levels as they are."""
        kept: dict[Role, Outcomes] = {
            role: {q: right for q, right in outcomes.items() if q not in questions}
            for role, outcomes in self.outcomes.items()
        }
        return replace(self, outcomes=kept)


RULE: Mapping[Verdict, tuple[Role, Set[Role], tuple[tuple[Role, Kind, Role], ...]]] = {
    "retrieve": (
        "rag",
        frozenset(),
        (
            ("rag", "better", "base"),
            ("rag", "worthwhile", "base"),
            ("rag", "better", "ft"),
            ("ft_rag", "not better", "rag"),
        ),
    ),
    "fine-tune": (
        "ft",
        frozenset(),
        (
            ("ft", "better", "base"),
            ("ft", "worthwhile", "base"),
            ("ft", "better", "rag"),
            ("ft_rag_of_ft", "not better", "ft"),
            ("ft_rag", "not ahead", "ft"),
        ),
    ),
    "both": (
        "ft_rag",
        frozenset({"rag", "ft", "ft_of_ft_rag"}),
        (
            ("ft_rag", "better", "rag"),
            ("ft_rag", "better", "ft_of_ft_rag"),
            ("ft_rag", "ahead", "ft"),
            ("ft_rag", "worthwhile", "base"),
        ),
    ),
    "neither": (
        "base",
        frozenset(),
        (
            ("rag", "not worthwhile", "base"),
            ("ft", "not worthwhile", "base"),
            ("ft_rag", "not worthwhile", "base"),
        ),
    ),
}
"""Verdict -> its winner, who else must have been tried, and its clauses.

Every clause speaks of the winner, and a question that the winner answers wrongly never speaks for
one: to make a verdict hold, questions are taken away that its winner answers wrongly, and no
others.
"""


def assign(
    base: Outcomes | None,
    rag: Outcomes | None,
    ft: Mapping[str, Outcomes],
    ft_rag: Mapping[str, Outcomes],
    level: Level = lambda a, b: ALPHA,
) -> Cast:
    """Gives each role to a system.

    Args:
        base: The base model.
        rag: It with retrieval.
        ft: Recipe -> its checkpoint without retrieval, in the order that breaks ties.
        ft_rag: Recipe -> the same with retrieval.
        level: Level of the test of two systems, named `base`, `rag`, `ft RECIPE`, `ft_rag RECIPE`.
    """
    recipe, both = _best(ft), _best(ft_rag)
    systems: dict[Role, tuple[str, Outcomes | None]] = {
        "base": ("base", base),
        "rag": ("rag", rag),
        "ft": (f"ft {recipe}", ft.get(recipe)),
        "ft_rag": (f"ft_rag {both}", ft_rag.get(both)),
        "ft_rag_of_ft": (f"ft_rag {recipe}", ft_rag.get(recipe)),
        "ft_of_ft_rag": (f"ft {both}", ft.get(both)),
    }
    outcomes: dict[Role, Outcomes] = {role: found for role, (_, found) in systems.items() if found}
    names = {role: systems[role][0] for role in outcomes}
    levels: dict[tuple[Role, Role], float] = {
        (a, b): level(names[a], names[b])
        for _, _, wanted in RULE.values()
        for a, kind, b in wanted
        if kind.endswith("better") and a in names and b in names
    }
    return Cast(outcomes, levels, recipe, both)


def accuracy(outcomes: Outcomes) -> float:
    """Share of right answers; 0 without any."""
    return sum(outcomes.values()) / len(outcomes) if outcomes else 0.0


def _best(recipes: Mapping[str, Outcomes]) -> str:
    return max(recipes, key=lambda name: accuracy(recipes[name]), default="")


def decide(cast: Cast) -> Verdict:
    """The verdict by the rule above."""
    for verdict in RULE:
        clauses = cast.clauses(verdict)
        if clauses and all(c.holds(cast.tally(c.a, c.b)) for c in clauses):
            return verdict
    return "not shown"


def open_clauses(cast: Cast, verdict: Verdict) -> list[Clause]:
    """What keeps a verdict from being given; empty where it is, or cannot be."""
    return [c for c in cast.clauses(verdict) or [] if not c.holds(cast.tally(c.a, c.b))]


@dataclass(frozen=True)
class Turning:
    """How few bad questions would turn a verdict.

    Attributes:
        questions: The number; `None` if no number would.
        clause: From a verdict: the condition that then fails.
        to: From `not shown`: the verdict that is then given.
    """

    questions: int | None
    clause: Clause | None = None
    to: Verdict | None = None


def turning(cast: Cast) -> Turning:
    """The smallest number of questions without which the rule gives another verdict.

    The adversary takes away the questions that matter most and no others; who stands for what, K
    and the levels of the tests stay as they are. The number is exact:

    - A verdict is a conjunction, so it falls with its first clause. A clause depends on three
      counts alone, and the questions that speak for it are the ones to take.
    - `not shown` ends where all clauses of a verdict hold. They demand numbers of questions of
      certain kinds, one question may serve several, and the smallest set that meets all demands is
      found by integer programming.
    """
    verdict = decide(cast)
    if verdict == "not shown":
        found = [
            Turning(n, to=other) for other in RULE if (n := _to_reach(cast, other)) is not None
        ]
    else:
        found = [
            Turning(n, clause=clause)
            for clause in cast.clauses(verdict) or []
            if (n := clause.opposite.to_make(cast.tally(clause.a, clause.b))) is not None
        ]
    return min(found, key=lambda t: t.questions or 0, default=Turning(None))


def _to_reach(cast: Cast, verdict: Verdict) -> int | None:
    """Smallest number of questions without which a verdict is given."""
    clauses = cast.clauses(verdict)
    if not clauses:
        return None
    questions = sorted({q for outcomes in cast.outcomes.values() for q in outcomes})
    kinds = Counter(
        tuple(_speaks_against(cast, clause, q) for clause in clauses) for q in questions
    )
    tallies = [cast.tally(c.a, c.b) for c in clauses]
    gone = 0
    while gone < len(questions):
        demands = [c.demand(t, gone) for c, t in zip(clauses, tallies, strict=True)]
        # A wider interval may do what no question that speaks against the clause can.
        waits = [c.kind == "worthwhile" for c, d in zip(clauses, demands, strict=True) if d is None]
        needed = _cover([demand or 0 for demand in demands], kinds)
        if needed is None or not all(waits):
            return None
        if needed <= gone and not waits:
            return gone
        # Where no interval shall be wide, demands only grow; elsewhere they may shrink.
        gone = needed if verdict == "neither" else gone + 1
    return None


def _speaks_against(cast: Cast, clause: Clause, question: str) -> bool:
    mine = cast.outcomes[clause.a].get(question)
    other = cast.outcomes[clause.b].get(question)
    if mine is None or other is None:
        return False
    return (other and not mine) if clause.favours_a else (mine and not other)


def _cover(demands: Sequence[int], kinds: Mapping[tuple[bool, ...], int]) -> int | None:
    """Fewest questions that meet every demand, by kinds of questions and how many there are."""
    if not any(demands):
        return 0
    from scipy.optimize import linprog

    useful = [kind for kind in kinds if any(kind)]
    if not useful:
        return None
    found = linprog(
        [1] * len(useful),
        # At least as many as are demanded: at most as many less than none.
        A_ub=[[-int(kind[i]) for kind in useful] for i in range(len(demands))],
        b_ub=[-demand for demand in demands],
        bounds=[(0, kinds[kind]) for kind in useful],
        integrality=1,
    )
    return round(found.fun) if found.success else None


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Level at which Holm's procedure tests each hypothesis, all others being what they are.

    A hypothesis is rejected at 5 % after adjustment if and only if its own p-value is below this.
    """
    tests = len(p_values)
    order = sorted(range(tests), key=lambda i: p_values[i])
    found = [0.0] * tests
    for mine in range(tests):
        rejected = 0
        for other in order:
            if other == mine:
                continue
            if p_values[other] * (tests - rejected) >= ALPHA:
                break
            rejected += 1
        found[mine] = ALPHA / (tests - rejected)
    return found
