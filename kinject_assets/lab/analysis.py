"""What the lab's study says, pooled over worlds: the analysis that `docs/lab.md` declares.

Reads the results database of each world, and nothing else. The unit is a question; questions of
all worlds are pooled within a model, and the difference of each world is kept beside the pool.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kinject_assets.config import RecipeSpec
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.intervals import Interval, paired_difference, wilson
from kinject_assets.core.statistics.power import ALPHA, detectable_difference
from kinject_assets.core.statistics.tests import holm, mcnemar

BEST, COMMON = "best", "common"
"""Settings: each recipe's own best learning rate and epoch, or one for all to the last epoch."""

_OUTCOMES = """
    WITH fitted AS (
        SELECT s.* FROM scores s
        WHERE s.k_rule = 'cross_fitted' AND s.corpus = 'events' AND s.stratum = 'all'
    )
    SELECT s.model, s.method, s.recipe, s.k, q.question_id, a.correct
    FROM fitted s
    JOIN k_choices f ON f.condition_id = s.condition_id
    JOIN corpus_questions q ON q.corpus = s.corpus AND q.fold = f.fold
    JOIN conditions c ON (c.corpus, c.model, c.method, c.recipe, c.shots, c.k)
        = (s.corpus, s.model, s.method, s.recipe, s.shots, f.k)
    JOIN answers a ON a.condition_id = c.condition_id AND a.question_id = q.question_id
    UNION ALL
    SELECT s.model, s.method, s.recipe, s.k, a.question_id, a.correct
    FROM fitted s JOIN answers a USING (condition_id) WHERE s.k = 0
"""

_FIXED_K = """
    SELECT model, method, recipe, k, n, correct FROM scores
    WHERE k_rule = 'fixed' AND corpus = 'events' AND stratum = 'all' ORDER BY ALL
"""

_DAMAGE = """
    SELECT c.model, c.recipe, d.probe, d.before, d.after, d.n, d.lost, d.won
    FROM damage d JOIN checkpoints c USING (checkpoint_id) ORDER BY ALL
"""

_CHECKPOINTS = """
    SELECT model, recipe, learning_rate, epochs, steps, packed_tokens, validation_loss
    FROM checkpoints ORDER BY ALL
"""

Question = tuple[int, str]
"""World seed and question id."""


@dataclass(frozen=True, order=True)
class System:
    """A way to answer: a model, a method, and for the fine-tuned ones a recipe."""

    model: str
    method: str
    recipe: str = ""

    @property
    def spec(self) -> RecipeSpec | None:
        """What the recipe's name means."""
        return RecipeSpec.parse(self.recipe) if self.recipe else None

    @property
    def label(self) -> str:
        """Short name for tables."""
        return f"{self.method} {self.recipe}".strip()


@dataclass(frozen=True)
class Study:
    """The rows of all worlds.

    Attributes:
        worlds: World seeds.
        outcomes: System -> question -> answered correctly, K cross-fitted.
        fixed: One row a world, system and K.
        damage: One row a world, checkpoint and probe.
        checkpoints: One row a world and checkpoint.
    """

    worlds: tuple[int, ...]
    outcomes: Mapping[System, Mapping[Question, bool]]
    fixed: Sequence[Mapping[str, Any]]
    damage: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[Mapping[str, Any]]


def read_study(databases: Mapping[int, Path]) -> Study:
    """Reads the databases of the worlds.

    Args:
        databases: World seed -> `results.duckdb`.

    Raises:
        MissingArtefact: If one is not there yet.
    """
    outcomes: dict[System, dict[Question, bool]] = defaultdict(dict)
    rows: dict[str, list[dict[str, Any]]] = {"fixed": [], "damage": [], "checkpoints": []}
    statements = {"fixed": _FIXED_K, "damage": _DAMAGE, "checkpoints": _CHECKPOINTS}
    for world, database in sorted(databases.items()):
        for row in fetch(database, _OUTCOMES).dicts():
            system = System(row["model"], row["method"], row["recipe"])
            outcomes[system][world, row["question_id"]] = row["correct"]
        for name, statement in statements.items():
            rows[name] += [{"world": world, **row} for row in fetch(database, statement).dicts()]
    return Study(tuple(sorted(databases)), dict(outcomes), **rows)


# --- which pairs are compared: the declared families


@dataclass(frozen=True)
class Family:
    """Comparisons that answer one question and are adjusted together.

    Attributes:
        pairs: Whether A and B are compared; the model is always the same.
    """

    name: str
    question: str
    pairs: Callable[[System, System], bool]


def _trained(system: System, kind: str, setting: str, method: str = "ft") -> bool:
    spec = system.spec
    if spec is None or system.method != method:
        return False
    here = COMMON if spec.variant == COMMON else BEST
    return here == setting and kind == ("r" if spec.control_of else "p")


def _n(system: System) -> int:
    spec = system.spec
    if spec is None:
        return 0
    return int(spec.name.split(".")[1][1:])


def _families() -> tuple[Family, ...]:
    found = [
        Family(
            "rag_vs_base",
            "Does retrieval help?",
            lambda a, b: (a.method, b.method) == ("rag", "base"),
        )
    ]
    for setting in (BEST, COMMON):

        def reg(system: System, setting: str = setting) -> bool:
            return _trained(system, "p", setting) and _n(system) == 0

        def par(system: System, setting: str = setting) -> bool:
            return _trained(system, "p", setting) and _n(system) > 0

        def control(system: System, setting: str = setting) -> bool:
            return _trained(system, "r", setting)

        def ft(system: System, setting: str = setting) -> bool:
            return _trained(system, "p", setting)

        def ft_rag(system: System, setting: str = setting) -> bool:
            return _trained(system, "p", setting, "ft_rag")

        found += [
            Family(
                f"ft_vs_base.{setting}",
                "Does fine-tuning help?",
                lambda a, b, ft=ft: ft(a) and b.method == "base",
            ),
            Family(
                f"rag_vs_ft.{setting}",
                "Is retrieval better than fine-tuning?",
                lambda a, b, ft=ft: a.method == "rag" and ft(b),
            ),
            Family(
                f"par_vs_reg.{setting}",
                "Does training on paraphrases help?",
                lambda a, b, par=par, reg=reg: par(a) and reg(b),
            ),
            Family(
                f"par_vs_control.{setting}",
                "Do paraphrases help beyond repeating the text as often?",
                lambda a, b, par=par, control=control: par(a) and control(b) and _n(a) == _n(b),
            ),
            Family(
                f"control_vs_reg.{setting}",
                "Does repeating the text help?",
                lambda a, b, control=control, reg=reg: control(a) and reg(b),
            ),
            Family(
                f"ten_vs_one.{setting}",
                "Does accuracy rise from one paraphrase to ten?",
                lambda a, b, par=par: par(a) and par(b) and (_n(a), _n(b)) == (10, 1),
            ),
            Family(
                f"ft_rag_vs_rag.{setting}",
                "Does fine-tuning help where retrieval is used?",
                lambda a, b, ft_rag=ft_rag: ft_rag(a) and b.method == "rag",
            ),
        ]
    return tuple(found)


FAMILIES = _families()


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A against B on the questions of all worlds.

    Attributes:
        difference: accuracy(A) - accuracy(B) with Tango's 95 % interval on the pooled questions.
        worlds_mean: Mean of the worlds' differences, with the 95 % t-interval over worlds.
        by_world: The worlds' differences, in the order of their seeds.
        p_value: McNemar's exact test on the pooled questions.
        p_adjusted: After Holm's adjustment within the family.
        verdict: `better` or `worse` by `p_adjusted` at 5 %; with `, across worlds` where the
            t-interval excludes 0, too.
    """

    family: str
    model: str
    a: str
    b: str
    n: int
    only_a: int
    only_b: int
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    p_adjusted: float
    worlds_mean: float
    worlds_low: float
    worlds_high: float
    by_world: str
    verdict: str


def over_worlds(values: Sequence[float]) -> Interval:
    """The 95 % t-interval of a mean over worlds; the whole range for fewer than two."""
    from scipy.stats import t

    if len(values) < 2:
        return Interval(-1.0, 1.0)
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Interval(mean(values) - half, mean(values) + half)


def _counts(a: Mapping[Question, bool], b: Mapping[Question, bool]) -> dict[int, tuple[int, ...]]:
    """World -> (questions, only A right, only B right)."""
    found: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for question in a.keys() & b.keys():
        counts = found[question[0]]
        counts[0] += 1
        counts[1] += a[question] and not b[question]
        counts[2] += b[question] and not a[question]
    return {world: tuple(counts) for world, counts in sorted(found.items())}


def pooled(
    family: str, model: str, names: tuple[str, str], counts: Mapping[int, tuple[int, ...]]
) -> Pooled:
    """One comparison over all worlds, not yet adjusted.

    Args:
        family: Its family.
        model: The model.
        names: A and B.
        counts: World -> (questions, only A right, only B right).
    """
    n, only_a, only_b = (sum(c[i] for c in counts.values()) for i in range(3))
    interval = paired_difference(only_a, only_b, n)
    worlds = [(c[1] - c[2]) / c[0] for c in counts.values()]
    across = over_worlds(worlds)
    p_value = mcnemar(only_a, only_b)
    return Pooled(
        family=family,
        model=model,
        a=names[0],
        b=names[1],
        n=n,
        only_a=only_a,
        only_b=only_b,
        difference=(only_a - only_b) / n,
        ci_low=interval.low,
        ci_high=interval.high,
        p_value=p_value,
        p_adjusted=p_value,
        worlds_mean=mean(worlds),
        worlds_low=across.low,
        worlds_high=across.high,
        by_world=" ".join(f"{value:+.3f}" for value in worlds),
        verdict="",
    )


def _adjusted(members: Sequence[Pooled]) -> list[Pooled]:
    p_values = holm([member.p_value for member in members])
    return [
        Pooled(**{**asdict(member), "p_adjusted": p, "verdict": _verdict(member, p)})
        for member, p in zip(members, p_values, strict=True)
    ]


def _verdict(row: Pooled, p_adjusted: float) -> str:
    if p_adjusted >= ALPHA or row.difference == 0:
        could = detectable_difference(row.n, row.only_a + row.only_b)
        return "no difference shown" + (f" (could have shown {could:.3f})" if could else "")
    across = row.worlds_low > 0 or row.worlds_high < 0
    return ("better" if row.difference > 0 else "worse") + (", across worlds" if across else "")


def compare(study: Study) -> list[Pooled]:
    """Every declared comparison of accuracies, family by family."""
    found: list[Pooled] = []
    for family in FAMILIES:
        members = [
            pooled(family.name, a.model, (a.label, b.label), _counts(mine, other))
            for a, mine in sorted(study.outcomes.items())
            for b, other in sorted(study.outcomes.items())
            if a.model == b.model and family.pairs(a, b)
        ]
        found += _adjusted(members)
    return found


def compare_damage(study: Study) -> list[Pooled]:
    """Every checkpoint against its base model on each probe: a family per probe and setting."""
    groups: dict[tuple[str, str, str], dict[int, tuple[int, ...]]] = defaultdict(dict)
    for row in study.damage:
        if row["n"]:
            key = (row["probe"], row["model"], row["recipe"])
            groups[key][row["world"]] = (row["n"], row["won"], row["lost"])
    families: dict[str, list[Pooled]] = defaultdict(list)
    for (probe, model, recipe), counts in sorted(groups.items()):
        setting = COMMON if RecipeSpec.parse(recipe).variant == COMMON else BEST
        family = f"damage {probe}.{setting}"
        families[family].append(pooled(family, model, (recipe, "before training"), counts))
    return [row for members in families.values() for row in _adjusted(members)]


# --- tables


def accuracies(study: Study) -> list[dict[str, Any]]:
    """Accuracy of every system with its Wilson interval: one row a world, and `all`."""
    rows: list[dict[str, Any]] = []
    for system, outcomes in sorted(study.outcomes.items()):
        for world in (*study.worlds, "all"):
            mine = [right for (w, _), right in outcomes.items() if world in (w, "all")]
            interval = wilson(sum(mine), len(mine))
            rows.append(
                {
                    "world": world,
                    **asdict(system),
                    "n": len(mine),
                    "correct": sum(mine),
                    "accuracy": sum(mine) / len(mine),
                    "ci_low": interval.low,
                    "ci_high": interval.high,
                }
            )
    return rows


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; numbers with six digits."""
    found = [dict(row) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return out.getvalue()


def write_raw(study: Study, folder: Path) -> None:
    """Writes the raw figures: every world, system, comparison, probe and checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    comparisons = [*compare(study), *compare_damage(study)]
    tables: dict[str, Iterable[Mapping[str, Any]]] = {
        "accuracy": accuracies(study),
        "fixed_k": study.fixed,
        "comparisons": [asdict(row) for row in comparisons],
        "damage": study.damage,
        "checkpoints": study.checkpoints,
    }
    for name, rows in tables.items():
        (folder / f"{name}.csv").write_text(to_csv(rows), encoding="utf-8")
