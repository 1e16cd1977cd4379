"""`kinject plan` on a study that is finished: what was estimated before it, and what it cost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from pathlib import Path

import pytest

from kinject_assets.config import Need, Node, load_profile
from kinject_assets.core.estimate import estimate, keep_estimate
from kinject_assets.core.estimate.assumptions import ASSUMPTIONS, Assumed
from kinject_assets.core.estimate.checking import Difference, compare
from kinject_assets.core.estimate.cluster import (
    RUN,
    SETTINGS,
    expected_seconds,
    simulate_ways,
    steps_of,
)
from kinject_assets.core.estimate.reckoning import ESTIMATE, Estimate
from kinject_assets.core.estimate.schedule import ORCHESTRATOR, Placed
from kinject_assets.core.estimate.spent import Spent, read_spent
from kinject_assets.core.plan import Plan
from kinject_assets.core.store import Store
from kinject_assets_tests.e2e.conftest import Kinject, command, environment

STARTS = """
import sys
from kinject_assets.cli import main
main(["plan", "--profile", sys.argv[1]], standalone_mode=False)
heavy = {"torch", "transformers", "dagster", "lm_eval", "sentence_transformers", "openai"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def before(study: tuple[Path, Path, str], tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    """What would have been estimated before anything was spent, in an empty folder."""
    profile = load_profile(str(study[0]))
    nothing = Store(tmp_path_factory.mktemp("nothing") / profile.name)
    return estimate(profile, nothing, read_spent(nothing)[0])


@pytest.fixture(scope="module")
def after(study: tuple[Path, Path, str]) -> Spent:
    """What was spent."""
    profile = load_profile(str(study[0]))
    return read_spent(Store(study[1] / profile.name), profile.llm.prices)[0]


def test_requests_were_estimated_exactly(before: Estimate, after: Spent) -> None:
    estimated: dict[str, int] = {}
    for row in before.requests:
        estimated[row.purpose] = estimated.get(row.purpose, 0) + row.count
    print({purpose: (estimated[purpose], bill.requests) for purpose, bill in after.bills.items()})
    assert all(bill.first == bill.requests for bill in after.bills.values()), "nothing went wrong"
    assert {purpose: bill.requests for purpose, bill in after.bills.items()} == estimated


def test_tokens_were_estimated_within_35_percent(before: Estimate, after: Spent) -> None:
    """Of input, and of all; the lab writes by rule, and its questions are short ones."""
    into, out = tokens(before)
    bills = after.bills.values()
    spent = sum(bill.input_tokens for bill in bills), sum(bill.output_tokens for bill in bills)
    print((into, out), spent, round(spent[0] / into, 2), round(spent[1] / out, 2))
    assert into == pytest.approx(spent[0], rel=0.35)
    assert into + out == pytest.approx(sum(spent), rel=0.35)
    assert out == pytest.approx(spent[1], rel=0.6)


def test_once_there_are_chunks_and_answers_tokens_are_known_better(
    study: tuple[Path, Path, str], after: Spent
) -> None:
    profile = load_profile(str(study[0]))
    into, out = tokens(estimate(profile, Store(study[1] / profile.name), after))
    bills = after.bills.values()
    spent = sum(bill.input_tokens for bill in bills), sum(bill.output_tokens for bill in bills)
    print((into, out), spent, round(spent[0] / into, 2), round(spent[1] / out, 2))
    assert into == pytest.approx(spent[0], rel=0.05)
    assert out == pytest.approx(spent[1], rel=0.01)


def tokens(found: Estimate) -> tuple[int, int]:
    """Input and output tokens of all requests."""
    return (
        sum(row.input_tokens for row in found.requests),
        sum(row.output_tokens for row in found.requests),
    )


def test_disk_was_estimated_within_a_factor_of_two(before: Estimate, after: Spent) -> None:
    by_stage: dict[str, int] = {}
    for row in before.space:
        by_stage[row.stage] = by_stage.get(row.stage, 0) + row.bytes
    for stage, spent in after.bytes.items():
        print(stage, by_stage[stage], spent, round(spent / by_stage[stage], 2))
        assert 0.5 < spent / by_stage[stage] < 2, stage
    assert by_stage["train"] == pytest.approx(after.bytes["train"], rel=0.05)


def test_the_command_shows_before_and_after(study: tuple[Path, Path, str], tmp_path: Path) -> None:
    """A copy of the study with the estimate that its folder had before it began."""
    path, home, _ = study
    profile = load_profile(str(path))
    copy = tmp_path / "home" / profile.name
    shutil.copytree(home / profile.name, copy, ignore=shutil.ignore_patterns("dagster"))
    kept = keep_estimate(profile, Store(tmp_path / "empty"))
    assert kept is not None
    shutil.copy(kept, copy / ESTIMATE)
    done = subprocess.run(
        command("plan", "--profile", str(path), "--format", "json"),
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kept"]["artefacts"] == 0
    assert found["kept"]["same_settings"]
    rows = {row["what"]: row for row in found["compared"]}
    for purpose in ("question", "question_selection", "paraphrase", "validation_paraphrase"):
        assert rows[f"{purpose}: requests"]["ratio"] == 1
    assert rows["train: seconds"]["spent"] > 0
    assert rows["train: bytes"]["ratio"] == pytest.approx(1, abs=0.05)
    assert found["open"]["cells"] == 0


def test_a_finished_study_has_exact_sizes_and_nothing_open(kinject: Kinject) -> None:
    done = kinject("plan")
    assert done.returncode == 0, done.stderr
    assert "artefacts are there" in done.stdout
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("events "))
    assert row.count(" m") == 6
    assert "tok/s" in done.stdout
    cells = kinject("plan", "--cells")
    assert cells.returncode == 0
    assert {line.split()[0] for line in cells.stdout.splitlines()} == {"complete"}


def test_it_starts_without_heavy_libraries(study: tuple[Path, Path, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTS, str(study[0])],
        env=environment(study[1]),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_run_was_as_it_is_simulated(study: tuple[Path, Path, str]) -> None:
    """With the seconds of each step, the simulation says how long the whole took."""
    profile = load_profile(str(study[0]))
    store = Store(study[1] / profile.name)
    plan, assume = Plan(profile, store), Assumed()
    found, made = estimate(profile, store, read_spent(store)[0]), dict(store.published())
    expected = expected_seconds(plan, found, made, assume)
    assert {one.source for one in expected.values()} == {"made"}
    # This run was inline: no step went to a node.
    steps = [
        replace(step, need=None, submitting=ASSUMPTIONS["step_seconds"].value)
        for step in steps_of(plan, {name: Need() for name in SETTINGS.values()}, expected, assume)
    ]
    measured = [
        Placed(
            cell=str(cell),
            node=ORCHESTRATOR,
            start=datetime.fromisoformat(manifest.started_at).timestamp(),
            end=datetime.fromisoformat(manifest.finished_at).timestamp(),
        )
        for cell, manifest in made.items()
    ]
    schedule = simulate_ways(profile, steps, {"none": Node()}, assume)[RUN]
    check = compare(schedule, measured)
    assert (check.only_simulated, check.only_measured) == ((), ())
    print(check.simulated_wall, check.measured_wall, check.ratio)
    # Dagster's own time between steps is several times longer where others work beside it.
    assert check.ratio is not None
    assert 0.75 < check.ratio < 1.5
    # Partitions follow one another as they did; the order within one is Dagster's.
    simulated = sorted(check.steps, key=lambda step: step.simulated[0])
    real = sorted(check.steps, key=lambda step: step.measured[0])
    assert partitions(simulated) == partitions(real)


def partitions(steps: Sequence[Difference]) -> list[str]:
    """Partitions in the order in which they come."""
    return [name for name, _ in groupby(step.cell.partition("/")[2] for step in steps)]
