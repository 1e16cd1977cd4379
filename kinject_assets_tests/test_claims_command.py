"""`kinject claims` without results, and the check that names collapsed conditions."""

import json

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from kinject_assets.cli import main
from kinject_assets.core.statistics.claims import RULES
from kinject_assets.defs import checks


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch, tmp_path):
    # The command makes its profile this process's: put the variable back afterwards.
    monkeypatch.setenv("KINJECT_PROFILE", "lab")
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["claims", *arguments])

    return run


def test_rules_are_printed_without_results(claims) -> None:
    done = claims("--rules", "--format", "json")
    assert done.exit_code == 0, done.output
    assert [rule["claim"] for rule in json.loads(done.stdout)] == [rule.claim for rule in RULES]


def test_published_tables_are_judged_without_results(claims) -> None:
    done = claims("--published")
    assert done.exit_code == 0, done.output
    assert "rag_above_base" in done.stdout and "in 30 of 30 rows" in done.stdout


def test_not_both(claims) -> None:
    assert claims("--rules", "--published").exit_code == 2


def test_collapsed_conditions_warn_and_do_not_block() -> None:
    stuck = {
        "corpus": "rivers",
        "model": "stuck",
        "method": "base",
        "recipe": "",
        "shots": 0,
        "k": 0,
        "collapse": "one letter",
    }
    found = {c.check_name: c for c in checks.results({"scores": 3}, [stuck])}
    letters = found["letters_not_collapsed"]
    assert not letters.passed and letters.severity == dg.AssetCheckSeverity.WARN
    assert "rivers stuck base 0-shot K=0 (one letter)" in (letters.description or "")
    assert all(c.passed for c in checks.results({"scores": 3}, []))
    assert set(found) == set(checks.CHECKS["results"])
