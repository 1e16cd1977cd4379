"""What orchestration costs, local against Ray, and the simulation of `kinject plan --cluster`.

The lab's small study from nothing, side by side: heavy steps in a process each, then as jobs on two
nodes of this machine. Run it on an idle machine: `python -m kinject_assets_tests.bench.cluster`;
the figures go to `data/out/bench/cluster.json`.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import dagster as dg

from kinject_assets.core.store import Store
from kinject_assets_tests.e2e.conftest import command, environment, small_lab
from kinject_assets_tests.raying import Cluster

NODES = {"left": 1, "right": 1}

STUDY: dict[str, Any] = {
    "recipes": {"full.p00": None, "full.p01": None},
    "grid": [{"corpora": ["events"], "models": ["lab-llama"], "recipes": ["full.p01"]}],
    "damage": {},
}
"""A corpus, a model and a recipe: every kind of heavy step once or twice."""


def run(words: list[str], env: dict[str, str]) -> float:
    """Runs a command to its end; its seconds."""
    began = time.monotonic()
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return time.monotonic() - began


def made(home: Path) -> dict[str, dict[str, Any]]:
    """Artefact -> metadata of its making: `seconds`, `worker_seconds`, `ray_processes`."""
    store = Store(home / "small")
    found: dict[str, dict[str, Any]] = {}
    with dg.DagsterInstance.from_config(str(home / "small" / "dagster")) as instance:
        for cell, manifest in store.published():
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(
                    asset_key=dg.AssetKey(cell.asset),
                    asset_partitions=[manifest.partition] if manifest.partition else None,
                ),
                limit=1,
            ).records
            event = records[0].asset_materialization
            assert event is not None
            found[str(cell)] = {key: value.value for key, value in event.metadata.items()}
    return found


def figures(wall: float, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Where the time of a run went."""
    heavy = {cell: m for cell, m in cells.items() if "worker_seconds" in m}
    worked = sum(m["worker_seconds"] for m in heavy.values())
    return {
        "wall_seconds": round(wall, 1),
        "worker_seconds": round(worked, 1),
        "share_that_is_not_worker": round(1 - worked / wall, 3),
        "artefacts": len(cells),
        "heavy_steps": len(heavy),
        "seconds_around_a_worker": round(
            sum(m["seconds"] - m["worker_seconds"] for m in heavy.values()) / len(heavy), 2
        ),
        "orchestration_seconds_an_artefact": round(
            (wall - sum(m["seconds"] for m in cells.values())) / len(cells), 2
        ),
    }


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("data/out/bench/cluster.json"),
    show_default=True,
)
def main(out: Path) -> None:
    """Measures a study run locally and through Ray, one after the other."""
    folder = Path(tempfile.mkdtemp(prefix="kb-", dir="/tmp"))
    try:
        result = measure(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps({k: v for k, v in result.items() if k != "placed"}, indent=2))


def measure(folder: Path) -> dict[str, Any]:
    """Runs the study each way."""
    local, ray = folder / "local", folder / "ray"
    for home in (local, ray):
        home.mkdir()
    profile = small_lab(local, compute="local", **STUDY)
    walls = {"local": run(command("run", "--profile", str(profile)), environment(local))}
    nodes = {name: {"cpus": cpus} for name, cpus in NODES.items()}
    profile = small_lab(ray, compute="ray", cluster={"nodes": nodes}, **STUDY)
    cluster = Cluster(folder / "c", dict(os.environ))
    try:
        for name, cpus in NODES.items():
            cluster.start(name, cpus, {})
        words = cluster.namespace.words(*command("run", "--profile", str(profile)))
        walls["ray"] = run(words, {**environment(ray), **cluster.client})
    finally:
        cluster.stop()
    cells = made(ray)
    return {
        "local": figures(walls["local"], made(local)),
        "ray": figures(walls["ray"], cells),
        "ray_to_local": round(walls["ray"] / walls["local"], 2),
        "placed": {
            cell: [{**p, "node": p["node"].split(" ")[0]} for p in m["ray_processes"]]
            for cell, m in cells.items()
            if "ray_processes" in m
        },
    }


if __name__ == "__main__":
    main()
