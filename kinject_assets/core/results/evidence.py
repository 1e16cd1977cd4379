"""What the claims are held against, from scores and comparisons."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kinject_assets.config import RecipeSpec
from kinject_assets.core.statistics.claims import Evidence, Pair
from kinject_assets.core.statistics.comparisons import ALL, Comparison

Scores = Sequence[Mapping[str, Any]]


def _row(score: Mapping[str, Any]) -> str:
    recipe = f", {score['recipe']}" if score["recipe"] else ""
    return f"{score['corpus']}, {score['model']}{recipe}, {score['shots']}-shot"


def _outcome(comparison: Comparison) -> Any:
    return comparison.verdict if comparison.verdict in {"better", "worse"} else "undecided"


def _beaten(comparisons: Sequence[Comparison], ks: Mapping[str, int]) -> frozenset[int]:
    beaten: set[int] = set()
    for c in comparisons:
        if c.verdict in {"better", "worse"}:
            beaten.add(ks[c.condition_b if c.verdict == "better" else c.condition_a])
    return frozenset(beaten)


def gather(
    scores: Scores, comparisons: Sequence[Comparison], tables: Mapping[str, int]
) -> Evidence:
    """The main rows as evidence, on all questions.

    Args:
        scores: Rows of the table `scores`.
        comparisons: Rows of the table `comparisons`.
        tables: Corpus -> table of the study.
    """
    main = [s for s in scores if s["main"] and s["stratum"] == ALL]
    by_id = {s["condition_id"]: s for s in main}
    known = [
        c
        for c in comparisons
        if c.stratum == ALL and {c.condition_a, c.condition_b} <= by_id.keys()
    ]
    pairs = [
        Pair(
            family=c.family,
            table=tables[by_id[c.condition_a]["corpus"]],
            row=_row(by_id[max(c.condition_a, c.condition_b, key=lambda i: by_id[i]["recipe"])]),
            difference=c.difference,
            ci_high=c.ci_high,
            outcome=_outcome(c),
        )
        for c in known
        if c.family != "k"
    ]
    by_k: dict[str, dict[int, float]] = defaultdict(dict)
    for s in main:
        if s["k_rule"] == "fixed" and s["method"] == "rag":
            by_k[_row(s)][s["k"]] = s["accuracy"]
    beaten = _beaten([c for c in known if c.family == "k"], {i: s["k"] for i, s in by_id.items()})
    return Evidence(pairs, by_k, beaten, _by_paraphrases(main))


def _by_paraphrases(main: Scores) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for s in main:
        if s["k_rule"] == "fixed" and s["method"] == "ft":
            spec = RecipeSpec.parse(s["recipe"])
            if not spec.control_of:
                row = f"{s['corpus']}, {s['model']}, {spec.method}, {s['shots']}-shot"
                found[row][spec.n_paraphrases] = s["accuracy"]
    return found
