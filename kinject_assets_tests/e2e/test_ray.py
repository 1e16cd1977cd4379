"""The lab through a Ray cluster of two nodes: same rows, placed as asked, nodes lost on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import yaml

from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Answer
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.e2e.conftest import command, environment, small_lab
from kinject_assets_tests.e2e.crashes import TABLES
from kinject_assets_tests.object_store import Server
from kinject_assets_tests.raying import Cluster, Namespace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

MODEL = "lab-llama"

PLACED: dict[str, Any] = {
    # Each node has one core, so that two processes are never on the same one.
    "embed": {"parts": 2},
    "score": {"parts": 2},
    "train": {"resources": {"trainer": 1}},
    "triage": {"resources": {"reader": 1}},
}


CELL = f"events/{MODEL}.full.p01"

SMALLER: dict[str, Any] = {
    # A job costs some ten seconds, most of them imports: a corpus and a recipe say all.
    "recipes": {"full.p00": None, "full.p01": None},
    "grid": [
        {"corpora": ["comets"], "models": [MODEL], "methods": ["base"]},
        {"corpora": ["events"], "models": [MODEL], "recipes": ["full.p01"]},
    ],
    "damage": {"facts": ["comets"]},
}


def study_of(folder: Path, **changes: Any) -> Path:
    return small_lab(folder, **{**SMALLER, "compute": "ray", "cluster": PLACED, **changes})


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    pytest.importorskip("dagster_ray", reason="pip install 'kinject[ray]'")
    try:
        Namespace().close()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"Ray would listen on every interface: {error}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes: `left`, the head, and `right`."""
    # A short path: sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="kr-", dir="/tmp"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KINJECT_", "RAY_"))}
    started = Cluster(folder / "ray", kept)
    try:
        started.start("left", 1, {"reader": 1})
        started.start("right", 1, {"trainer": 1})
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Run:
    """A `kinject` command inside the cluster's network."""

    cluster: Cluster
    profile: Path
    home: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.cluster.namespace.words(
                *command(words[0], "--profile", str(self.profile), *words[1:])
            ),
            # Ray gives each process the threads that it asked for, here one.
            env={**environment(self.home), **self.cluster.client, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str) -> str:
        process = self.start(*words)
        _, said = process.communicate(timeout=1500)
        assert process.returncode == 0, said
        return said

    @property
    def lake(self) -> Path:
        return self.home / "small" / "lake"

    @property
    def database(self) -> Path:
        return self.home / "small" / "results.duckdb"

    def nodes(self, asset: str, partition: str) -> str:
        """Where an artefact was made, as its page in the UI says."""
        with dg.DagsterInstance.from_config(str(self.home / "small" / "dagster")) as instance:
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]),
                limit=1,
            ).records
        made = records[0].asset_materialization
        assert made is not None
        return str(made.metadata["ray_nodes"].value)


def same(one: Path, other: Path) -> None:
    """Both databases hold the same rows, and log-likelihoods within 1e-4."""
    for table, columns in TABLES.items():
        statement = f"SELECT {columns} FROM {table}"
        rows = [sorted(map(str, fetch(path, statement).rows)) for path in (one, other)]
        assert rows[0] == rows[1], table
    statement = "SELECT condition_id, question_id, logliks FROM answers ORDER BY ALL"
    for a, b in zip(fetch(one, statement).rows, fetch(other, statement).rows, strict=True):
        assert a[:2] == b[:2]
        assert a[2] == pytest.approx(b[2], abs=1e-4)


def same_answers(one: Run, other: Run, cell: str) -> None:
    """Two lakes hold the same answers, each once, with log-likelihoods within 1e-4."""
    rows = [
        {
            (row.condition_id, row.question_id): row
            for row in Store(run.home / "small").rows(
                Cell(cell.split("/")[0], tuple(cell.split("/")[1:])), "answers", Answer
            )
        }
        for run in (one, other)
    ]
    assert rows[0].keys() == rows[1].keys()
    for key, row in rows[0].items():
        assert row.choice == rows[1][key].choice
        assert row.logliks == pytest.approx(rows[1][key].logliks, abs=1e-4)
    assert len(list((one.lake / cell).glob("v*"))) == 1


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def ray_run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The small lab study, every heavy step of it on the cluster."""
    folder = tmp_path_factory.mktemp("ray")
    run = Run(cluster, study_of(folder), folder / "home")
    run("run")
    return run


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of the same study on this machine alone."""
    folder = tmp_path_factory.mktemp("local")
    words = command("run", "--profile", str(study_of(folder, compute="inline")))
    subprocess.run(words, env=environment(folder / "home"), check=True, capture_output=True)
    return folder / "home" / "small" / "results.duckdb"


def again(run: Run, folder: Path, *gone: str, **changes: Any) -> Run:
    """A copy of a finished study that lacks some artefacts, under changed settings."""
    folder.mkdir(exist_ok=True)
    profile = study_of(folder)
    content = yaml.safe_load(profile.read_text())
    for part, settings in changes.items():
        content[part] = {**content[part], **settings} if part != "compute" else settings
    profile.write_text(yaml.safe_dump(content))
    shutil.copytree(run.home / "small" / "lake", folder / "home" / "small" / "lake")
    for cell in gone:
        shutil.rmtree(folder / "home" / "small" / "lake" / cell)
    return Run(run.cluster, profile, folder / "home")


def under_way(run: Run, cell: str, message: str) -> Callable[[], bool]:
    """Whether a step counts what it does, by what it keeps of its progress."""

    def look() -> bool:
        for path in (run.lake / ".work" / cell).glob("*/progress.json"):
            try:
                note = json.loads(path.read_text())
            except (OSError, ValueError):
                return False
            return message in note["message"] and note["done"] is not None
        return False

    return look


def saved(run: Run, cell: str) -> list[Path]:
    """States of an unfinished training that it can go on from."""
    return [*(run.lake / ".work" / cell).rglob("checkpoint-*")]


def test_nothing_listens_beyond_the_loopback_interface(cluster: Cluster) -> None:
    assert cluster.namespace.listeners() <= {"127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"}


def test_the_rows_are_those_of_a_local_run(local_run: Path, ray_run: Run) -> None:
    same(local_run, ray_run.database)


def test_steps_ran_where_the_profile_puts_them(ray_run: Run) -> None:
    placed = ray_run.nodes("checkpoint", f"events|{MODEL}.full.p01")
    assert "right" in placed
    assert "left" not in placed
    placed = ray_run.nodes("triage", "events")
    assert "left" in placed
    assert "right" not in placed
    for asset, partition in (("embeddings", "events"), ("answers_rag", f"events|{MODEL}")):
        placed = ray_run.nodes(asset, partition)
        assert "left" in placed
        assert "right" in placed


def test_a_node_that_is_lost_in_training_is_made_up_for(
    ray_run: Run, cluster: Cluster, tmp_path: Path
) -> None:
    """The raylet of the node that trains is killed; a node of its kind comes in its place."""
    longer = {"training": {"epochs": 250}}
    run = again(ray_run, tmp_path / "ray", **longer)
    words = ("run", "--select", "checkpoint,answers_ft")
    process = run.start(*words)
    wait_for(lambda: saved(run, f"checkpoint/{CELL}"), 300)
    cluster.nodes["right"].kill_raylet()
    cluster.start("third", 1, {"trainer": 1})
    _, said = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    placed = run.nodes("checkpoint", f"events|{MODEL}.full.p01")
    assert "right" in placed
    assert "third" in placed
    undisturbed = again(ray_run, tmp_path / "local", compute="inline", **longer)
    undisturbed(*words)
    assert len(list((run.lake / "checkpoint" / CELL).glob("v*"))) == 1
    same_answers(run, undisturbed, f"answers_ft/{CELL}")


def test_a_node_that_is_lost_in_scoring_is_made_up_for(
    ray_run: Run, cluster: Cluster, tmp_path: Path
) -> None:
    """Its share of the questions is answered by the other node."""
    cell = f"answers_rag/events/{MODEL}"
    longer = {"scoring": {"k": [1, 2, 3, 4, 5]}}
    run = again(ray_run, tmp_path / "ray", cell, **longer)
    words = ("run", "--select", "answers_rag")
    process = run.start(*words)
    wait_for(under_way(run, cell, "part"), 300)
    cluster.nodes["third"].kill_raylet()
    _, said = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    assert "third" in run.nodes("answers_rag", f"events|{MODEL}")
    undisturbed = again(ray_run, tmp_path / "local", cell, compute="inline", **longer)
    undisturbed(*words)
    same_answers(run, undisturbed, cell)


def test_ctrl_c_stops_the_job_and_a_killed_run_leaves_none_for_the_next(
    ray_run: Run, cluster: Cluster, tmp_path: Path
) -> None:
    cell = f"answers_rag/events/{MODEL}"
    run = again(ray_run, tmp_path, cell)

    def living() -> list[str]:
        return [
            str(job["submission_id"])
            for job in cluster.jobs()
            if job["status"] in {"PENDING", "RUNNING"}
        ]

    process = run.start("run", "--select", "answers_rag")
    wait_for(living, 120)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert living() == []

    process = run.start("run", "--select", "answers_rag")
    (orphan,) = wait_for(living, 120)
    # nsenter executes the command itself: the process is kinject's own.
    assert "kinject" in " ".join(psutil.Process(process.pid).cmdline())
    process.kill()
    process.communicate()
    assert living() == [orphan], "nobody told the cluster"
    run("run", "--select", "answers_rag")
    stopped = [job for job in cluster.jobs() if job["submission_id"] == orphan]
    assert [job["status"] for job in stopped] == ["STOPPED"]
    assert living() == []


def test_processes_on_two_nodes_train_one_checkpoint(
    ray_run: Run, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.start("fourth", 1, {})
    run = again(ray_run, tmp_path, f"checkpoint/{CELL}")
    profile = study_of(tmp_path, cluster={"train": {"cpus": 1}})
    settings = profile.read_text().replace("learning_rates:", "processes: 2\n  learning_rates:", 1)
    profile.write_text(settings)
    run("run", "--select", "checkpoint")
    placed = run.nodes("checkpoint", f"events|{MODEL}.full.p01")
    assert len(set(placed.split(", "))) == 2, placed
    losses = [
        json.loads((next((home / "checkpoint" / CELL).glob("v*")) / "loss.json").read_text())
        for home in (run.lake, ray_run.lake)
    ]
    for together, alone in zip(*losses, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-3)


def test_a_step_that_no_node_can_do_says_what_it_asked_for(ray_run: Run, tmp_path: Path) -> None:
    cell = f"answers_base/events/{MODEL}"
    run = again(ray_run, tmp_path, cell)
    study_of(
        tmp_path,
        cluster={"score": {"gpus": 1, "accelerator": "H100"}, "wait_minutes": 0},
    )
    process = run.start("run", "--select", "answers_base")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the cluster does not have CPU 1, GPU 1, accelerator H100" in said
    assert "under `cluster` in the profile" in said


BUCKET = """
import time, s3fs
until = time.monotonic() + 90
while True:
    try:
        files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        files.mkdir("lake")
        files.pipe_file("lake/ready", b"1")
        break
    except Exception:
        if time.monotonic() > until:
            raise
        time.sleep(0.5)
"""


def test_nodes_share_nothing_but_a_lake_in_an_object_store(local_run: Path, tmp_path: Path) -> None:
    """Orchestrator and nodes each have a folder of their own, and meet in the store alone."""
    pytest.importorskip("s3fs", reason="pip install 'kinject[s3]'")
    folder = Path(tempfile.mkdtemp(prefix="kr-", dir="/tmp"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KINJECT_", "RAY_", "AWS_"))}
    cluster = Cluster(folder / "ray", kept)
    server = Server(folder / "s3", within=tuple(cluster.namespace.words()))
    try:
        server.start()
        keys = server.environment()
        words = cluster.namespace.words(sys.executable, "-c", BUCKET)
        subprocess.run(words, env={**kept, **keys}, check=True, timeout=120)
        for name in ("left", "right"):
            cluster.start(name, 1, {}, **keys, KINJECT_HOME=str(tmp_path / name))
        cluster.client |= keys
        spread = {"embed": {"parts": 2}, "score": {"parts": 2}}
        run = Run(
            cluster,
            study_of(tmp_path, cluster=spread, lake="s3://lake/study"),
            tmp_path / "home",
        )
        run("run")
        same(local_run, run.database)
        run("audit", "--all")
        trained = run.nodes("checkpoint", f"events|{MODEL}.full.p01")
        node = "left" if "left" in trained else "right"
        assert list((tmp_path / node / "small" / "lake" / "checkpoint").rglob("*.safetensors"))
    finally:
        cluster.stop()
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
