"""The API key is nowhere but in the environment and in the requests: searched for in every file."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kinject_assets.core.results.tables import fetch
from kinject_assets.lab.server import serving
from kinject_assets_tests.e2e.conftest import command, environment, small_lab

KEY = "sk-proj-Zq7Wx93LmT0vKpR5sYdGhJ2bNcFuAe8i"


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """The text of every file below a folder, of columns and tables too."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        yield path, path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            yield path, str(pq.read_table(path).to_pylist())
        if path.suffix == ".duckdb":
            for (name,) in fetch(path, "SELECT table_name FROM duckdb_tables()").rows:
                yield path, str(fetch(path, f'SELECT * FROM "{name}"').rows)


def run(folder: Path, *words: str, **changes: object) -> subprocess.CompletedProcess[str]:
    profile = small_lab(folder, exams={"shots_share": 0.1, "triage": False}, **changes)
    return subprocess.run(
        command(*words, "--profile", str(profile)),
        env={**environment(folder / "home"), "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=400,
    )


def assert_absent(folder: Path, *said: str) -> None:
    found = [path for path, text in texts(folder) if KEY in text]
    assert found == []
    assert not [text for text in said if KEY in text]


def test_a_study_keeps_the_key_nowhere(tmp_path: Path) -> None:
    done = run(tmp_path, "run", "--corpus", "comets")
    assert done.returncode == 0, done.stderr
    doctor = run(tmp_path, "doctor")
    assert len(list(texts(tmp_path / "home"))) > 50
    assert_absent(tmp_path / "home", done.stdout, done.stderr, doctor.stdout, doctor.stderr)


@pytest.fixture
def echo() -> Iterator[str]:
    """A service that refuses every request and tells the key in its answer, as OpenAI does."""
    seen: list[str] = []

    async def refuse(request: Request) -> JSONResponse:
        seen.append(request.headers["authorization"])
        message = f"Incorrect API key provided: {seen[-1].removeprefix('Bearer ')}."
        return JSONResponse({"error": {"message": message, "code": "invalid_api_key"}}, 401)

    with serving(Starlette(routes=[Route("/{path:path}", refuse, methods=["POST"])])) as address:
        yield f"{address}/v1"
    assert seen, "nobody asked"
    assert KEY in seen[0]


def test_a_service_that_echoes_the_key_is_not_quoted(echo: str, tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "run",
        "--corpus",
        "comets",
        llm={"model": "m", "base_url": echo, "concurrency": 2, "attempts": 2},
    )
    assert done.returncode == 1
    assert "Incorrect API key provided: ***" in done.stderr
    assert_absent(tmp_path / "home", done.stdout, done.stderr)
