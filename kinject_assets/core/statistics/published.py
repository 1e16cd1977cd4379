"""What the study's published tables show: as evidence for its claims, and as numbers."""

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kinject_assets.core.statistics.claims import Evidence, Pair
from kinject_assets.core.statistics.intervals import relative_gain
from kinject_assets.core.statistics.selection import best_k


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


_PUBLISHED: Mapping[int, tuple[tuple[str, str, str], ...]] = {
    1: (
        ("rag_vs_base", "base_rag", "base"),
        ("ft_vs_base", "ft", "base"),
        ("rag_vs_ft", "base_rag", "ft"),
        ("ft_rag_vs_rag", "ft_rag", "base_rag"),
    ),
    2: (
        ("rag_vs_base", "base_rag", "base"),
        ("ft_vs_base", "ft_reg", "base"),
        ("ft_vs_base", "ft_par", "base"),
        ("rag_vs_ft", "base_rag", "ft_reg"),
        ("rag_vs_ft", "base_rag", "ft_par"),
        ("ft_rag_vs_rag", "ft_reg_rag", "base_rag"),
        ("ft_rag_vs_rag", "ft_par_rag", "base_rag"),
        ("par_vs_reg", "ft_par", "ft_reg"),
        ("par_vs_reg", "ft_par_rag", "ft_reg_rag"),
    ),
}
"""Table -> families with the columns of the published tables that they compare."""


def published(references: Path) -> Evidence:
    """The published tables as evidence.

    Args:
        references: Folder of `paper_table1.csv`, `paper_table2.csv` and `paper_table3_k.csv`.
    """
    one = _read(references / "paper_table1.csv")
    pairs: list[Pair] = []
    for table, rows in ((1, one), (2, _read(references / "paper_table2.csv"))):
        for r in rows:
            where = f"{r.get('task', 'current events')}, {r['model']}, {r.get('shots', '0')}-shot"
            pairs += [
                Pair(
                    family=family,
                    table=table,
                    row=where,
                    difference=round(float(r[a]) - float(r[b]), 6),
                )
                for family, a, b in _PUBLISHED[table]
            ]
    zero = {(r["task"], r["model"]): r for r in one if r["shots"] == "0"}
    pairs += [
        Pair(
            family="shots",
            table=1,
            row=f"{r['task']}, {r['model']}, {column}",
            difference=round(float(r[column]) - float(zero[r["task"], r["model"]][column]), 6),
        )
        for r in one
        if r["shots"] == "5"
        for column in ("base", "base_rag", "ft", "ft_rag")
    ]
    by_k: dict[str, dict[int, float]] = {}
    for r in _read(references / "paper_table3_k.csv"):
        row = by_k.setdefault(f"{r['task']}, {r['model']}, {r['shots']}-shot", {})
        row[int(r["k"])] = float(r["accuracy"])
    return Evidence(pairs, by_k)


Row = tuple[str, str, str]
"""Task, model and shots."""

EVENTS = "events-2023-11"
"""The corpus of the study's Table 2, as `paper.yaml` calls it."""


def printed(references: Path) -> dict[tuple[str, str, int], dict[str, float]]:
    """The published accuracies: task (or corpus), model and shots -> column -> accuracy.

    Args:
        references: Folder of `paper_table1.csv` and `paper_table2.csv`.
    """
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for name in ("paper_table1.csv", "paper_table2.csv"):
        for r in _read(references / name):
            key = (r.get("task", EVENTS), r["model"], int(r.get("shots", "0")))
            named = {"task", "model", "shots"}
            found[key] = {
                column: float(value) for column, value in r.items() if column not in named
            }
    return found


METHODS = {"RAG": "base_rag", "FT": "ft", "FT + RAG": "ft_rag"}
"""Method -> column of Table 1."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Table 1 and the ablation of K, recomputed.

    Attributes:
        rows: Rows of Table 1.
        rag_is_best_k: Rows in which Base + RAG equals the best K of the ablation.
        gains: Method -> mean relative gain over the base model (Eq. 5).
        best_fixed_k: K with the largest mean relative gain when it is the same in every row.
        best_fixed_gain: That gain.
        ft_above_rag: Rows in which FT is above Base + RAG.
    """

    rows: int
    rag_is_best_k: int
    gains: Mapping[str, float]
    best_fixed_k: int
    best_fixed_gain: float
    ft_above_rag: tuple[Row, ...]

    def lines(self) -> list[str]:
        """The facts as sentences."""
        gains = ", ".join(f"{name} {100 * gain:+.2f} %" for name, gain in self.gains.items())
        above = "; ".join(
            f"{task}, {model}, {shots}-shot" for task, model, shots in self.ft_above_rag
        )
        return [
            f"Base + RAG equals the best K of the ablation in {self.rag_is_best_k} of {self.rows} "
            "rows of Table 1.",
            f"Mean relative gains over the base model: {gains}.",
            f"Best K held fixed: {self.best_fixed_k}, mean relative gain "
            f"{100 * self.best_fixed_gain:+.2f} %.",
            f"FT is above RAG in {len(self.ft_above_rag)} rows" + (f": {above}." if above else "."),
        ]


def facts(references: Path) -> Facts:
    """Recomputes what the published tables are known to show.

    Args:
        references: Folder of `paper_table1.csv` and `paper_table3_k.csv`.
    """
    table = {_row(r): r for r in _read(references / "paper_table1.csv")}
    by_k: dict[Row, dict[int, float]] = defaultdict(dict)
    for r in _read(references / "paper_table3_k.csv"):
        by_k[_row(r)][int(r["k"])] = float(r["accuracy"])

    def mean_gain(accuracy: Callable[[Row], float]) -> float:
        gains = [relative_gain(accuracy(row), float(r["base"])) for row, r in table.items()]
        return sum(gain or 0.0 for gain in gains) / len(gains)

    def is_best(row: Row) -> bool:
        # Accuracies are printed with three decimals: compared as whole numbers.
        printed = {k: round(1000 * accuracy) for k, accuracy in by_k[row].items()}
        return printed[best_k(printed)] == round(1000 * float(table[row]["base_rag"]))

    def published_gain(column: str) -> float:
        return mean_gain(lambda row: float(table[row][column]))

    def fixed_gain(k: int) -> float:
        return mean_gain(lambda row: by_k[row][k])

    fixed = {k: fixed_gain(k) for k in sorted(set.intersection(*map(set, by_k.values())))}
    best = max(fixed, key=lambda k: fixed[k])
    return Facts(
        rows=len(table),
        rag_is_best_k=sum(map(is_best, table)),
        gains={name: published_gain(column) for name, column in METHODS.items()},
        best_fixed_k=best,
        best_fixed_gain=fixed[best],
        ft_above_rag=tuple(
            row for row, r in table.items() if float(r["ft"]) > float(r["base_rag"])
        ),
    )


def _row(row: Mapping[str, str]) -> Row:
    return row["task"], row["model"], row["shots"]
