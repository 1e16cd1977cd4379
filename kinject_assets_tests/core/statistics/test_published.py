"""What the published tables are known to show, found by the code that judges our own."""

import csv
import shutil
from pathlib import Path

import pytest

from kinject_assets.core.statistics.published import Facts, facts

REFERENCES = Path(__file__).parents[3] / "data" / "reference"


@pytest.fixture(scope="module")
def found() -> Facts:
    return facts(REFERENCES)


def test_rag_is_the_best_k_of_the_test_score_in_every_row(found: Facts) -> None:
    assert (found.rag_is_best_k, found.rows) == (30, 30)


def test_mean_relative_gains(found: Facts) -> None:
    assert {name: round(100 * gain, 2) for name, gain in found.gains.items()} == {
        "RAG": 11.95,
        "FT": 3.27,
        "FT + RAG": 10.49,
    }


def test_best_fixed_k(found: Facts) -> None:
    assert found.best_fixed_k == 5
    assert round(100 * found.best_fixed_gain, 2) == 8.29


def test_ft_is_above_rag_in_two_rows(found: Facts) -> None:
    assert set(found.ft_above_rag) == {
        ("astronomy", "llama2-7b", "0"),
        ("college_chemistry", "llama2-7b", "0"),
    }


def test_facts_are_read_and_not_remembered(tmp_path: Path, found: Facts) -> None:
    for path in REFERENCES.glob("*.csv"):
        shutil.copy(path, tmp_path)
    with (tmp_path / "paper_table1.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    rows[0] |= {"base_rag": "0.100", "ft": "0.900"}
    with (tmp_path / "paper_table1.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    other = facts(tmp_path)
    assert other.rag_is_best_k == 29
    assert len(other.ft_above_rag) == 3
    assert other.gains["RAG"] < found.gains["RAG"]
    assert "29 of 30" in "\n".join(other.lines())
