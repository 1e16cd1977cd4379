"""What `kinject plan --cluster` prints and draws."""

import csv
import io
import itertools
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kinject_assets.cli import main
from kinject_assets.config import home, load_profile, shipped
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.estimate.cluster import BACKFILLS, OPEN, RUN, ClusterPlan, plan_cluster
from kinject_assets.core.estimate.cluster_text import format_cluster, lanes_of, write_picture
from kinject_assets.core.estimate.sections import WIDTH
from kinject_assets.core.store import Store
from kinject_assets_tests.core.estimate.conftest import ProfileOf
from kinject_assets_tests.core.estimate.test_cluster import FOUR


@pytest.fixture
def planned(profile_of: ProfileOf, store: Store) -> ClusterPlan:
    """A small study on four nodes with one GPU each."""
    return plan_cluster(profile_of(cluster=FOUR, pools={"gpu": 4}, compute="ray"), store)


@pytest.mark.parametrize("name", shipped())
def test_text_is_narrow(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))
    profile = load_profile(name)
    text = format_cluster(plan_cluster(profile, Store(home(profile)), (1, 2)))
    assert [line for line in text.splitlines() if len(line) > WIDTH and " " in line[2:]] == []
    for title in ("Nodes and needs", "When, by backfills", "What runs where", "More nodes"):
        assert f"\n{title}" in text
    assert not any(tmp_path.iterdir()), "a plan leaves nothing behind"


def test_text_says_who_runs_where(planned: ClusterPlan) -> None:
    text = format_cluster(planned)
    words = " ".join(text.split())
    assert "compute is" not in words
    assert "Steps at once: gpu 4" in words
    (row,) = (
        line
        for line in text.splitlines()
        if line.startswith("checkpoint/docs/small.full.p0") and "p02" in line
    )
    cell, node, start, *_, usd, source = row.split()
    (placed,) = planned.schedules[BACKFILLS].of(cell)
    assert node == placed.node
    hours, minutes, seconds = map(int, start.split(":"))
    assert hours * 3600 + minutes * 60 + seconds == round(placed.start)
    assert float(usd) == pytest.approx(2 * (placed.end - placed.start) / 3600, abs=0.006)
    assert source == "e"
    assert "No cluster of such nodes needs less than" in words


def test_every_node_has_a_line_in_the_chart(planned: ClusterPlan) -> None:
    lines = [line for line in format_cluster(planned).splitlines() if line.endswith("|")]
    assert [line.split(" ")[0] for line in lines] == [
        "the",
        *(f"gpu:{n}" for n in range(1, 5)),
    ]
    marks = [line.split("|")[1] for line in lines]
    assert len({len(found) for found in marks}) == 1
    assert set(marks[0]) <= {"=", "."}
    assert "=" in marks[0]
    assert {"."} < set(marks[1]) <= set("eEtTsSqQ.")
    schedule = planned.schedules[BACKFILLS]
    for lane, drawn in zip(lanes_of(schedule), marks, strict=True):
        pairs = itertools.pairwise(lane.placed)
        assert all(before.end <= after.start + 1e-6 for before, after in pairs)
        if not lane.placed:
            assert set(drawn) == {"."}


def test_a_terminal_gets_colours_and_its_width(planned: ClusterPlan) -> None:
    plain, narrow = format_cluster(planned), format_cluster(planned, width=50)
    assert "\x1b[" not in plain
    assert "\x1b[" in narrow
    assert "\x1b[" not in format_cluster(planned, "markdown", width=50)
    bare = [line for line in narrow.splitlines() if line.startswith("the orchestrator |")]
    assert len(bare[0].replace("\x1b[0m", "")) <= 50


def test_every_format_tells_the_same(planned: ClusterPlan) -> None:
    found: dict[str, Any] = json.loads(format_cluster(planned, "json"))
    wall = planned.schedules[BACKFILLS].wall
    assert found["schedules"][BACKFILLS]["wall_seconds"] == wall
    assert found["schedules"].keys() == {RUN, BACKFILLS, OPEN}
    steps = {row["cell"]: row for row in found["schedules"][RUN]["steps"]}
    assert steps.keys() == {step.cell for step in planned.steps}
    checkpoint = steps["checkpoint/docs/small.full.p00"]
    (process,) = checkpoint["processes"]
    assert process["node"] == "gpu:1"
    assert process["gpu"] == 0
    assert checkpoint["source"] == "estimated"
    assert steps["results"]["usd"] is None
    rows = list(csv.DictReader(io.StringIO(format_cluster(planned, "csv"))))
    (csv_wall,) = (
        row["value"]
        for row in rows
        if (row["name"], row["quantity"]) == (f"{BACKFILLS}, 1 times", "wall")
    )
    assert float(csv_wall) == wall
    ends = [float(r["value"]) for r in rows if (r["part"], r["quantity"]) == (BACKFILLS, "end")]
    assert max(ends) == wall
    markdown = format_cluster(planned, "markdown")
    assert "| gpu | 4 | 8 | 1 | 64 | 1 | 2 |" in markdown
    assert markdown.count("```") == 2


def test_an_unknown_price_is_said_and_not_nothing(profile_of: ProfileOf, store: Store) -> None:
    cluster = {**FOUR, "nodes": {"gpu": {"gpus": 1}}}
    plan = plan_cluster(profile_of(cluster=cluster), store, (1,))
    text = format_cluster(plan)
    assert "a price not known while all are up" in " ".join(text.split())
    assert "not known" in next(line for line in text.splitlines() if line.startswith("gpu "))
    assert json.loads(format_cluster(plan, "json"))["scaling"][0]["usd"] is None


def test_unknown_times_make_it_the_least(profile_of: ProfileOf, store: Store) -> None:
    plan = plan_cluster(profile_of(models={"small": {"source": "some/model"}}), store, (1,))
    text = " ".join(format_cluster(plan).split())
    assert "at least" in text
    assert "steps count as nothing, since nobody knows how long they work: " in text


def test_it_says_when_nothing_is_left(
    planned: ClusterPlan, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    from kinject_assets.core.plan import Plan

    monkeypatch.setattr(Plan, "state", lambda self, cell: "complete")
    nothing = plan_cluster(planned.profile, store, (1,), still_open=True)
    assert format_cluster(nothing).endswith("Nothing is left to make.")
    assert json.loads(format_cluster(nothing, "json"))["schedules"][RUN]["wall_seconds"] == 0


# --- the picture


def test_the_picture_has_every_node(planned: ClusterPlan, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.svg"
    write_picture(planned, path)
    root = ET.parse(path).getroot()
    assert root.tag.endswith("svg")
    # Text is drawn as paths; comments name it.
    drawn = path.read_text()
    for name in ("the orchestrator", "gpu:1", "gpu:4", "train"):
        assert f"<!-- {name} -->" in drawn
    write_picture(planned, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_an_error(planned: ClusterPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KinjectError, match="name another --out"):
        write_picture(planned, tmp_path / "file" / "plan.svg")


# --- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", "2"), "go with --cluster"),
        (("--open",), "go with --cluster"),
        (("--out", "a.svg"), "go with --cluster"),
        (("--cluster", "--cells"), "exclude each other"),
        (("--cluster", "--out", "a.pdf"), "has to end in .svg or .png"),
        (("--cluster", "--nodes", "1,x"), "`1,x` is not of the form 1,2,4"),
        (("--cluster", "--nodes", "0"), "`0` is not of the form"),
        (("--cluster", "--nodes", "2000"), "each from 1 to 1000"),
    ],
)
def test_wrong_usage_is_said(words: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(main, ["plan", *words])
    assert done.exit_code == 2
    assert message in done.output


def test_the_command_prints_and_draws(
    planned: ClusterPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KINJECT_PROFILE", "")
    out = tmp_path / "plan.svg"
    words = ["plan", "--profile", str(planned.profile.path), "--cluster"]
    done = CliRunner().invoke(main, [*words, "--nodes", "3", "--format", "json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [row["nodes"] for row in json.loads(done.stdout)["scaling"]] == [12, 12, 12]
    assert out.exists()
    assert "Simulates the study" in CliRunner().invoke(main, ["plan", "--help"]).output


STARTS = """
import sys
from kinject_assets.cli import main
main(["plan", "--cluster", "--profile", "paper", "--nodes", "1"], standalone_mode=False)
heavy = {"torch", "transformers", "dagster", "ray", "matplotlib", "sentence_transformers"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_it_starts_without_heavy_libraries(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTS],
        env={**os.environ, "KINJECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
