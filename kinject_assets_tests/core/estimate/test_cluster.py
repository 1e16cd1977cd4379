"""What a profile's cluster is taken for, where times come from, and what more nodes bring."""

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Node, home, load_profile
from kinject_assets.core.estimate import estimate
from kinject_assets.core.estimate.assumptions import ASSUMPTIONS, Assumed
from kinject_assets.core.estimate.cluster import (
    BACKFILLS,
    HARDWARE,
    OPEN,
    POOLS,
    RUN,
    SETTINGS,
    Expected,
    cluster_of,
    expected_seconds,
    plan_cluster,
    simulate_ways,
    sources,
    steps_of,
)
from kinject_assets.core.estimate.simulation import NoNodeFits
from kinject_assets.core.estimate.spent import read_spent
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.plan import Plan
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.estimate.conftest import ProfileOf, make_text

FOUR: dict[str, Any] = {
    "nodes": {"gpu": {"count": 4, "gpus": 1, "usd_per_hour": 2}},
    **{name: {"gpus": 1} for name in ("embed", "train", "score", "triage")},
}


def value(name: str) -> float:
    return ASSUMPTIONS[name].value


def expect(
    plan: Plan, published: dict[Cell, Manifest] | None = None, assume: Assumed | None = None
) -> dict[str, Expected]:
    found = estimate(plan.profile, plan.store, read_spent(plan.store)[0])
    return expected_seconds(plan, found, published or {}, assume or Assumed())


# --- the cluster


def test_without_nodes_the_hardware_is_one(profile_of: ProfileOf) -> None:
    kinds, needs, warnings = cluster_of(
        profile_of(hardware={"name": "a box", "gpus": 2, "usd_per_hour": 3})
    )
    node = kinds[HARDWARE]
    assert (node.count, node.gpus, node.cpus, node.usd_per_hour) == (1, 2, math.inf, 6)
    assert {need.gpus for need in needs.values()} == {1}
    assert any(
        "cluster.nodes is empty" in warning and "2 x a box" in warning for warning in warnings
    )
    assert any("compute is local" in warning for warning in warnings)


def test_an_unknown_price_of_the_hardware_stays_unknown(profile_of: ProfileOf) -> None:
    kinds, _, _ = cluster_of(profile_of(hardware={"usd_per_hour": None}))
    assert kinds[HARDWARE].usd_per_hour is None


def test_a_gpu_is_reckoned_with_where_a_need_says_nothing_of_gpus(profile_of: ProfileOf) -> None:
    cluster = {"nodes": {"gpu": {"gpus": 1}}, "train": {"gpus": 2}, "score": {"gpus": 0}}
    _, needs, warnings = cluster_of(profile_of(cluster=cluster, compute="ray"))
    assert {name: need.gpus for name, need in needs.items()} == {
        "embed": 1,
        "train": 2,
        "score": 0,
        "triage": 1,
    }
    said, none_asked = warnings
    assert "cluster.embed.gpus, cluster.triage.gpus: not said" in said
    assert "cluster.score.gpus is 0 and every node has GPUs" in none_asked
    _, plain, none = cluster_of(profile_of(cluster={"nodes": {"cpu": {}}}, compute="ray"))
    assert ({need.gpus for need in plain.values()}, none) == ({0}, [])


def test_pools_and_needs_are_those_of_the_assets() -> None:
    from kinject_assets.definitions import ASSETS
    from kinject_assets.defs.compute import LIBRARIES

    pools = {asset.key.to_user_string(): asset.op.pool for asset in ASSETS if asset.op.pool}
    assert pools == POOLS
    # What imports torch runs a model, and is put on a node.
    assert {name for name, wanted in LIBRARIES.items() if "torch" in wanted} == SETTINGS.keys()


# --- times


def test_times_are_estimated_from_operations_where_nothing_is_made(
    profile_of: ProfileOf, store: Store
) -> None:
    profile = profile_of()
    plan = Plan(profile, store)
    found = estimate(profile, store, read_spent(store)[0])
    expected = expect(plan)
    checkpoint = "checkpoint/docs/small.full.p00"
    (work,) = (row for row in found.work if row.cell == checkpoint)
    assert work.seconds
    assert expected[checkpoint].seconds == work.seconds
    assert expected[checkpoint].source == "estimated"
    # 100 million weights of 4 bytes.
    assert expected[checkpoint].loading == 0.4
    assert expected["chunks/docs"].seconds == value("light_seconds")
    assert expected["articles/docs"].seconds == value("light_seconds"), "no page is fetched"
    (asked,) = (row for row in found.requests if row.purpose == "validation_paraphrase")
    seconds = (asked.count + asked.again) * value("request_seconds")
    seconds += asked.output_tokens / value("output_tokens_per_second")
    assert expected["validation_paraphrases/docs"].seconds == pytest.approx(
        value("light_seconds") + seconds / profile.llm.concurrency
    )


def test_batches_are_reckoned_with_the_day_that_they_may_take(
    profile_of: ProfileOf, store: Store
) -> None:
    profile = profile_of(llm={"model": "gpt-4o-mini", "batch": True})
    expected = expect(Plan(profile, store))
    seconds = expected["validation_paraphrases/docs"].seconds
    assert seconds == 86_400 + value("light_seconds")
    assert any("llm.batch" in warning for warning in cluster_of(profile)[2])


def test_what_is_made_is_measured_and_others_go_by_its_speed(
    profile_of: ProfileOf, store: Store
) -> None:
    profile = profile_of()
    make_text(profile, store)
    plan = Plan(profile, store)
    began = datetime(2031, 1, 1, tzinfo=UTC)
    whole = store.manifest(Cell("chunks", ("docs",)))
    assert whole is not None

    def took(seconds: float) -> Manifest:
        ended = began + timedelta(seconds=seconds)
        return replace(whole, started_at=began.isoformat(), finished_at=ended.isoformat())

    p00, p02 = (f"checkpoint/docs/small.full.{name}" for name in ("p00", "p02"))
    made = {
        Cell("checkpoint", ("docs", "small.full.p00")): took(40),
        Cell("chunks", ("docs",)): took(7),
    }
    expected = expect(plan, made)
    work = {row.cell: row.flops for row in estimate(profile, store, read_spent(store)[0]).work}
    assert (expected[p00].seconds, expected[p00].source) == (40, "made")
    assert expected[p02].source == "throughput"
    more, less = work[p02], work[p00]
    assert more
    assert less
    assert expected[p02].seconds == pytest.approx(40 * more / less)
    assert (expected[p02].loading, expected[p00].loading) == (0, 0), "it is in what was measured"
    assert expected["chunks/docs"].seconds == 7
    assert expected["embeddings/docs"].source == "estimated"
    counts = sources(steps_of(plan, cluster_of(profile)[1], expected, Assumed()), expected)
    assert dict(counts["train"][0]) == {"made": 1, "throughput": 2}
    assert counts["train"][1] == pytest.approx(
        sum(expected[name].seconds or 0 for name in expected if name.startswith("checkpoint/"))
    )


def test_what_nobody_knows_is_named(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(models={"small": {"source": "some/model"}})
    plan = plan_cluster(profile, store)
    assert "checkpoint/docs/small.full.p00" in plan.unknown
    assert "chunks/docs" not in plan.unknown
    wiki = profile_of(
        contact="me@localhost",
        corpora={"docs": {"source": {"kind": "wiki", "titles": ["A mill"]}}},
    )
    assert "articles/docs" in plan_cluster(wiki, store).unknown


# --- steps


def test_steps_say_what_they_need(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(
        cluster={**FOUR, "score": {"gpus": 1, "parts": 3}, "embed": {"gpus": 1, "parts": 2}},
        training={"processes": 4},
        lake="s3://bucket/lake",
    )
    plan, assume = Plan(profile, store), Assumed()
    expected = {str(cell): Expected(seconds=36, source="made", loading=5) for cell in plan.cells}
    steps = {s.cell: s for s in steps_of(plan, cluster_of(profile)[1], expected, assume)}
    train = steps["checkpoint/docs/small.full.p02"]
    assert (train.processes, train.together, train.one_node) == (4, True, True)
    assert train.seconds == 36 / 4 / value("parallel_efficiency")
    assert "paraphrases/docs" in train.inputs
    score = steps["answers_rag/docs/small"]
    assert (score.processes, score.seconds, score.together) == (3, 12, False)
    assert score.merging == 5 + value("merge_seconds")
    assert score.submitting == value("step_seconds") + value("ray_job_seconds")
    assert score.starting == value("process_seconds") + 5
    assert (score.pool, score.setting) == ("gpu", "cluster.score")
    assert steps["embeddings/docs"].processes == 2
    # One pass over an index is not shared, and holds no slot.
    assert (steps["retrieved/docs"].processes, steps["retrieved/docs"].pool) == (1, "")
    light = steps["faiss_index/docs"]
    assert (light.need, light.seconds, light.pool) == (None, 36, "")
    assert light.submitting == value("step_seconds")
    assert steps["results"].partition == ""


def test_each_probe_of_damage_is_a_job(profile_of: ProfileOf, store: Store) -> None:
    source = {"source": {"kind": "files", "folder": "docs"}}
    grid = [{"corpora": ["docs", "a", "b"], "models": ["small"], "recipes": ["full.p00"]}]
    profile = profile_of(
        corpora={"docs": source, "a": source, "b": source},
        grid=grid,
        damage={"facts": ["a", "b"], "reading": ["b"], "k": 1},
    )
    plan = Plan(profile, store)
    expected = {str(cell): Expected(seconds=1, source="made") for cell in plan.cells}
    steps = {s.cell: s for s in steps_of(plan, cluster_of(profile)[1], expected, Assumed())}
    three, one = steps["damage/docs/small.full.p00"], steps["answers_ft/docs/small.full.p00"]
    assert three.submitting - one.submitting == pytest.approx(2 * value("ray_job_seconds"))
    assert three.starting == 3 * one.starting
    assert steps["damage/b/small.full.p00"].submitting == one.submitting, "its own is no probe"


# --- the plan


def test_more_nodes_help_backfills_as_far_as_the_pool_goes(
    profile_of: ProfileOf, store: Store
) -> None:
    recipes = {f"full.p{n:02d}": None for n in range(8)}
    grid = [{"corpora": ["docs"], "models": ["small"], "methods": ["ft"], "recipes": [*recipes]}]
    # So slow that all else hardly counts.
    hardware = {"tflops": 0.0001}

    def walls(pool: int) -> dict[tuple[str, int], float]:
        profile = profile_of(
            recipes=recipes, grid=grid, hardware=hardware, cluster=FOUR, pools={"gpu": pool}
        )
        plan = plan_cluster(profile, store, (1, 2))
        return {(row.way, row.nodes): row.wall for row in plan.scaling}

    one, four = walls(1), walls(4)
    assert one[RUN, 4] == one[RUN, 8] == four[RUN, 8], "one step at a time"
    assert one[BACKFILLS, 4] == one[BACKFILLS, 8] == pytest.approx(one[RUN, 4], rel=0.01)
    assert one[RUN, 4] / 4 < four[BACKFILLS, 4] < one[RUN, 4] / 2
    assert four[BACKFILLS, 8] == four[BACKFILLS, 4], "pools.gpu is 4"
    assert four[OPEN, 8] < four[BACKFILLS, 8]
    assert four[OPEN, 8] == one[OPEN, 8]


def test_nodes_are_doubled_as_long_as_that_brings_something(
    profile_of: ProfileOf, store: Store
) -> None:
    plan = plan_cluster(profile_of(cluster=FOUR), store)
    assert [row.times for row in plan.scaling if row.way == RUN] == [1, 2, 4, 8]
    assert plan.enough(RUN) == 1
    assert plan.times == 1
    two = plan_cluster(profile_of(cluster=FOUR), store, (2, 3))
    assert [row.nodes for row in two.scaling if row.way == OPEN] == [8, 12]
    assert len(two.schedules[RUN].nodes) == 8


def test_a_run_in_this_process_is_simulated_as_it_was(profile_of: ProfileOf, store: Store) -> None:
    """By hand: two partitions, one step after another, with Dagster's own time between them."""
    profile = profile_of()
    plan, assume = Plan(profile, store), Assumed()
    wanted = [cell for cell in plan.cells if cell.asset in {"articles", "chunks", "answers_base"}]
    expected = {str(cell): Expected(seconds=10, source="made") for cell in plan.cells}
    steps = [
        replace(step, need=None, submitting=value("step_seconds"))
        for step in steps_of(plan, cluster_of(profile)[1], expected, assume, wanted)
    ]
    found = simulate_ways(profile, steps, {"n": Node()}, assume)[RUN]
    spans = {cell: (one.start, one.end) for cell in found.spans for one in found.of(cell)}
    run, step = value("run_seconds"), value("step_seconds")
    assert spans["articles/docs"] == pytest.approx((run + step, run + step + 10))
    assert spans["chunks/docs"][0] == pytest.approx(run + 2 * step + 10)
    assert spans["answers_base/docs/small"][0] == pytest.approx(2 * run + 3 * step + 20)


def test_what_is_left_takes_less(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(cluster=FOUR)
    whole = plan_cluster(profile, store, (1,))
    make_text(profile, store)
    left = plan_cluster(profile, store, (1,), still_open=True)
    gone = {s.cell for s in whole.steps} - {s.cell for s in left.steps}
    assert gone == {"articles/docs", "chunks/docs"}
    assert left.schedules[RUN].wall < whole.schedules[RUN].wall


def test_a_step_that_fits_no_node_is_refused(profile_of: ProfileOf, store: Store) -> None:
    cluster = {**FOUR, "train": {"gpus": 1, "memory_gb": 512}}
    with pytest.raises(NoNodeFits, match=r"checkpoint/docs/.*64 of the 512 GB of memory"):
        plan_cluster(profile_of(cluster=cluster), store)


def test_the_papers_plan_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))
    profile = load_profile("paper")
    began = time.monotonic()
    plan = plan_cluster(profile, Store(home(profile)))
    assert time.monotonic() - began < 10
    assert plan.unknown == []
    assert len(plan.steps) == len(Plan(profile, Store(home(profile))).cells)
    hours = [plan.schedules[way].wall / 3600 for way in (RUN, BACKFILLS)]
    # 33.5 h of computing on one GPU, by `kinject plan`.
    assert all(33.5 < found < 40 for found in hours)
    assert plan.scaling[-1].times > 8, "its trainings can be made side by side"
    assert all(row.wall >= plan.chain[0] for row in plan.scaling)
    assert plan.chain[1][-3].startswith("answers_")
    assert_cheaper_when_given_back(row.usd_busy for row in plan.scaling if row.way == OPEN)


def assert_cheaper_when_given_back(found: Iterable[float | None]) -> None:
    """Nodes that are given back while idle cost as much, however many there are."""
    costs = [usd for usd in found if usd is not None]
    assert costs == pytest.approx([costs[0]] * len(costs), rel=0.01)
