"""What the report's verdicts rest on, read from the database: systems, answers and pairs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinject_assets.config import RecipeSpec
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.decision import holm_levels

FAMILIES = ("rag_vs_base", "ft_vs_base", "rag_vs_ft", "ft_rag_vs_rag", "ft_rag_vs_ft")
"""Families of comparisons that verdicts are made from."""

SYSTEMS = """
    SELECT s.condition_id, s.corpus, s.model, s.recipe, s.seed, s.method, s.shots, s.k,
        s.retriever, s.n, s.accuracy, s.ci_low, s.ci_high, s.main
    FROM scores s WHERE s.k_rule = 'cross_fitted' AND s.stratum = 'all'
    ORDER BY s.corpus, s.model, s.shots, s.method, s.recipe, s.retriever, s.condition_id
"""
"""Every condition under the K that cross-fitting chose."""

STANDING = """
    SELECT condition_id, NULL AS fold, condition_id AS answered FROM conditions WHERE k = 0
    UNION ALL
    SELECT h.condition_id, h.fold, o.condition_id
    FROM k_choices h JOIN conditions c USING (condition_id) JOIN conditions o USING (
        corpus, model, recipe, seed, method, shots, retriever, query, choice_format, rotation,
        engine, chat_template, bos)
    WHERE o.k = h.k
"""
"""Whose answers stand for a condition: its own, or under cross-fitting those of each fold's K."""

OUTCOMES = f"""
    SELECT t.condition_id, a.question_id, a.correct
    FROM ({STANDING}) t JOIN conditions c USING (condition_id)
        JOIN corpus_questions q ON q.corpus = c.corpus AND q.split = 'test' AND NOT q.retired
            AND (t.fold IS NULL OR t.fold = q.fold)
        JOIN answers a ON a.condition_id = t.answered AND a.question_id = q.question_id
"""
"""Each scored question's answer under the K that was chosen without it."""

PAIRS = """
    SELECT c.*, corpora.release_of, conditions.corpus
    FROM comparisons c JOIN conditions ON conditions.condition_id = c.condition_a
        JOIN corpora USING (corpus)
    WHERE stratum = 'all' AND k_rule = 'cross_fitted'
    ORDER BY family, condition_a, condition_b
"""


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A condition under the K that cross-fitting chose, as one row of `scores`.

    Attributes:
        k: K that most folds chose.
        main: It stands in the tables.
        outcomes: Question id -> answered correctly.
    """

    condition_id: str
    corpus: str
    model: str
    recipe: str
    seed: int
    method: str
    shots: int
    k: int
    retriever: str
    n: int
    accuracy: float
    ci_low: float
    ci_high: float
    main: bool
    outcomes: Mapping[str, bool] = field(repr=False)

    @property
    def control(self) -> bool:
        """It was trained on repeated text, to tell variety from repetition."""
        return bool(self.recipe) and RecipeSpec.parse(self.recipe).control_of is not None


@dataclass(frozen=True)
class Group:
    """Comparisons that Holm's procedure adjusts together.

    Attributes:
        family: One of `FAMILIES`.
        rows: Rows of the table `comparisons`.
    """

    family: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Evidence:
    """Everything that verdicts are made from.

    Attributes:
        systems: In a fixed order.
        groups: Comparisons by family and release.
        levels: Conditions A and B -> level at which Holm's procedure tests them.
        comparisons: Conditions A and B -> their row.
    """

    systems: Sequence[Answering]
    groups: Sequence[Group]
    levels: Mapping[tuple[str, str], float]
    comparisons: Mapping[tuple[str, str], Mapping[str, Any]]


def read_evidence(database: Path) -> Evidence:
    """Reads it from the database.

    Raises:
        MissingArtefact: If there is no database.
    """
    outcomes: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for condition, question, correct in fetch(database, OUTCOMES).rows:
        outcomes[condition][question] = correct
    systems = [
        Answering(**row, outcomes=outcomes[row["condition_id"]])
        for row in fetch(database, SYSTEMS).dicts()
        if outcomes[row["condition_id"]]
    ]
    by_group: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in fetch(database, PAIRS).dicts():
        if row["family"] in FAMILIES:
            # Releases are adjusted each by itself, as they were compared.
            release = row["corpus"] if row["release_of"] else ""
            by_group[row["family"], release].append(row)
    groups = [Group(family, rows) for (family, _), rows in by_group.items()]
    levels: dict[tuple[str, str], float] = {}
    for group in groups:
        found = holm_levels([row["p_value"] for row in group.rows])
        levels |= {
            (row["condition_a"], row["condition_b"]): level
            for row, level in zip(group.rows, found, strict=True)
        }
    comparisons = {
        (row["condition_a"], row["condition_b"]): row for group in groups for row in group.rows
    }
    return Evidence(systems, groups, levels, comparisons)
