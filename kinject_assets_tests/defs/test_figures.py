"""The figures as assets: made from the results, and stale when those change."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from kinject_assets.cli import main
from kinject_assets.config import home
from kinject_assets.core.plan import FIGURES, Plan
from kinject_assets.core.report.figures import FIGURES as MADE
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.store import Cell, Store
from kinject_assets.defs import figures
from kinject_assets.defs.checks import CHECKS
from kinject_assets.defs.partitions import PROFILE
from kinject_assets.defs.resources import Study
from kinject_assets_tests.core.made import make

pytestmark = pytest.mark.filterwarnings("ignore:.*run_id.*:DeprecationWarning")

ASSETS = [getattr(figures, name) for name in FIGURES]


@pytest.fixture
def plan(built: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The lab's profile with the database of the synthetic lake."""
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))
    found = Plan(PROFILE, Store(home(PROFILE)))
    make(found, Cell("results"))
    shutil.copyfile(built.root / DATABASE, found.store.root / DATABASE)
    return found


def materialize(selection: list[str]) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        ASSETS,
        resources={"study": Study(), "io_manager": dg.mem_io_manager},
        instance=dg.DagsterInstance.ephemeral(),
        selection=selection,
    )


def test_every_figure_is_an_asset() -> None:
    assert tuple(MADE) == FIGURES


def test_a_figure_shows_itself_and_is_stale_when_results_change(plan: Plan) -> None:
    names = ["figure_k", "figure_training_loss"]
    result = materialize(names)
    assert result.success
    for name in names:
        (event,) = result.asset_materializations_for_node(name)
        pages = [k for k in event.metadata if k in {"rivers", "events-2031-04"}]
        assert len(pages) == 2 == event.metadata["pages"].value
        for key in pages:
            assert str(event.metadata[key].value).startswith("![")
        assert "preview" in event.metadata and "dagster/column_schema" in event.metadata
        evaluated = {e.check_name: e for e in result.get_asset_check_evaluations()
            if e.asset_key.to_user_string() == name}  # fmt: skip
        assert evaluated.keys() == CHECKS[name].keys()
        assert all(e.passed for e in evaluated.values())
        cell = Cell(name)
        for file in (f"{name}.rivers.png", f"{name}.rivers.svg", f"{name}.parquet", f"{name}.csv"):
            assert plan.store.path(cell, file).stat().st_size
        assert plan.state(cell) == "complete"
    make(plan, Cell("results"), "changed")
    assert [plan.state(Cell(name)) for name in names] == ["stale", "stale"]


def test_a_figure_without_data_warns_with_the_lines_that_add_it(plan: Plan) -> None:
    import duckdb

    with duckdb.connect(str(plan.store.root / DATABASE)) as connection:
        connection.execute("DELETE FROM scores")
    result = materialize(["figure_k"])
    assert result.success
    (event,) = result.asset_materializations_for_node("figure_k")
    assert "`kinject run` makes it" in str(event.metadata["missing"].value)
    checks = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert checks["is_whole"].passed
    assert not checks["has_data"].passed
    assert checks["has_data"].severity == dg.AssetCheckSeverity.WARN


def test_the_command_writes_every_figure(plan: Plan, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["figures", "--profile", "lab", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    printed = [Path(line) for line in done.stdout.splitlines()]
    assert sorted(printed) == sorted((tmp_path / "out").iterdir())
    assert {path.name.split(".")[0] for path in printed} == set(FIGURES)
    assert "No curve for the texts of" in done.stderr
    (plan.store.root / DATABASE).unlink()
    gone = CliRunner().invoke(main, ["figures", "--profile", "lab"])
    assert gone.exit_code == 2 and "kinject run" in gone.stderr
