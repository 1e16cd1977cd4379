"""The three settings of docs/cluster.md, changed one after the other on one study."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kinject_assets.core.history import POSTGRES_URL
from kinject_assets_tests.e2e.conftest import command, environment, small_lab
from kinject_assets_tests.object_store import Server, s3_server
from kinject_assets_tests.postgres import needs_postgres, running_postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), needs_postgres]

CHECKPOINT = "checkpoint/events/lab-llama.full.p01"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with s3_server(tmp_path / "s3") as started:
        yield started


def put(server: Server, folder: Path, name: str) -> None:
    """Copies files into the bucket, as `aws s3 sync` does."""
    import s3fs

    keys = server.environment()
    files = s3fs.S3FileSystem(
        key=server.key,
        secret=server.secret,
        endpoint_url=keys["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": "us-east-1"},
        skip_instance_cache=True,
    )
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder).as_posix()
        if not relative.startswith(".work/"):
            files.put_file(str(path), f"{name}/{relative}")


def test_each_setting_alone_and_all_of_them(
    study: tuple[Path, Path, str], server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("dagster_ray", reason="pip install 'kinject[ray]'")
    home = tmp_path / "home"
    shutil.copytree(study[1], home)
    profile = small_lab(tmp_path)
    settings = environment(home)

    def run(*words: str) -> str:
        done = subprocess.run(
            command(words[0], "--profile", str(profile), *words[1:]),
            env=settings,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def change(**settings: object) -> None:
        profile.write_text(yaml.safe_dump(yaml.safe_load(profile.read_text()) | settings))

    assert "0 made, 40 were complete" in run("run"), "a laptop, with all that is asked for"

    change(compute="ray")
    assert "0 made, 40 were complete" in run("run"), "where steps run decides nothing"
    shutil.rmtree(home / "small" / "lake" / CHECKPOINT)
    assert "1 made" in run("run", "--select", "checkpoint")
    assert "0 made" in run("run", "--select", "answers_ft"), "it is the same checkpoint"

    put(server, home / "small" / "lake", "lake/study")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in ("results.duckdb", "report.html"):
        shutil.copy(home / "small" / name, outputs)
    put(server, outputs, "lake/study/outputs")
    (home / "small" / "lake").rename(tmp_path / "lake-before")
    change(lake="s3://lake/study")
    settings |= server.environment()
    assert "0 made, 40 were complete" in run("run"), "a lake that was copied is the same lake"
    run("audit", "--all")

    with running_postgres() as postgres:
        settings[POSTGRES_URL] = postgres.create()
        said = run("run")
        assert "40 artefacts of the lake were new to Dagster's log: reported" in said
        assert "0 made, 40 were complete" in said
        # All of it at once: a job of Ray, its work through the store, its events in Postgres.
        change(scoring={**yaml.safe_load(profile.read_text())["scoring"], "k": [1, 2, 3]})
        assert "2 made" in run("run", "--select", "answers_rag")
