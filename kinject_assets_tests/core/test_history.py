"""Where Dagster's history is kept: one Postgres database a profile, and no password anywhere."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinject_assets.config import Profile, home, load_profile
from kinject_assets.core import history
from kinject_assets.core.doctor import examine
from kinject_assets.core.history import HEADER, POSTGRES_URL, SETTINGS, HistoryError, described
from kinject_assets_tests.e2e.browsing import free_port
from kinject_assets_tests.postgres import Server, needs_postgres, running_postgres

PASSWORD = "correct-horse-battery"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_postgres() as running:
        yield running


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv(POSTGRES_URL, raising=False)
    return load_profile("lab")


def said_of(profile: Profile, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error that an address leads to; it never holds the password."""
    monkeypatch.setenv(POSTGRES_URL, url)
    with pytest.raises(HistoryError) as error:
        described(profile)
    said = str(error.value)
    assert PASSWORD not in said
    assert POSTGRES_URL in said
    return said


def test_sqlite_is_the_default(profile: Profile) -> None:
    assert described(profile) == f"SQLite files in {home(profile) / 'dagster'}"
    assert any("SQLite" in finding.text for finding in examine(profile))


def test_settings_of_the_user_are_not_judged(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES_URL, "postgresql://nobody@127.0.0.1:1/none")
    settings = home(profile) / "dagster" / SETTINGS
    settings.parent.mkdir(parents=True)
    settings.write_text("telemetry: {enabled: false}\n")
    assert "your own" in described(profile)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://kinject:{PASSWORD}",
        f"mysql://kinject:{PASSWORD}@host/base",
        # A password with an @ that is not escaped would become a part of the host's name.
        f"postgresql://kinject:x@{PASSWORD}@host/base",
        f"postgresql://kinject:x@y/{PASSWORD}@host/base",
        f"postgresql+psycopg://kinject:{PASSWORD}@host/base",
        PASSWORD,
    ],
)
def test_a_malformed_address_is_not_shown(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    assert "not of the form" in said_of(profile, url, monkeypatch)


def test_a_missing_package_is_named(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history.importlib.util, "find_spec", lambda name: None)
    said = said_of(profile, f"postgresql://kinject:{PASSWORD}@127.0.0.1/base", monkeypatch)
    assert "pip install 'kinject[postgres]'" in said


def test_a_server_that_is_down_is_named(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    url = f"postgresql://kinject:{PASSWORD}@127.0.0.1:{port}/base"
    said = said_of(profile, url, monkeypatch)
    assert f"database base at 127.0.0.1:{port} cannot be reached" in said
    found = [f for f in examine(profile) if "history" in f.text]
    assert [f.ok for f in found] == [False]


def test_losing_the_address_does_not_begin_a_second_history(profile: Profile) -> None:
    settings = home(profile) / "dagster" / SETTINGS
    settings.parent.mkdir(parents=True)
    settings.write_text(f"{HEADER}storage: {{postgres: {{postgres_url: {{env: X}}}}}}\n")
    with pytest.raises(HistoryError, match=f"{POSTGRES_URL} is not set"):
        described(profile)


@needs_postgres
def test_a_wrong_password_or_database_is_told_apart(
    server: Server, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = said_of(profile, server.url("postgres", PASSWORD), monkeypatch)
    assert "refuses user kinject" in said
    assert "createdb" in said_of(profile, server.url("nowhere"), monkeypatch)


OPEN = """
import sys
from kinject_assets.config import load_profile
from kinject_assets.defs.instance import open_instance
with open_instance(load_profile(sys.argv[1])) as instance:
    print(sorted(instance.get_dynamic_partitions("corpus")))
"""


@needs_postgres
def test_processes_that_open_a_new_database_at_once_do_not_collide(
    server: Server, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.create()
    monkeypatch.setenv(POSTGRES_URL, url.replace("postgresql://", "postgres://"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, "lab"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(sorted(profile.corpora))}
    assert "(reached)" in described(profile)
    settings = (home(profile) / "dagster" / SETTINGS).read_text()
    assert POSTGRES_URL in settings
    assert not list((home(profile) / "dagster").rglob("*.db"))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or server.password.encode() not in path.read_bytes()

    # Another profile, and the same one with another lake, are refused.
    other = profile.model_copy(update={"name": "other"})
    assert "the history of profile `lab`" in said_of(other, url, monkeypatch)
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path / "elsewhere"))
    said = said_of(profile, url, monkeypatch)
    assert str(tmp_path / "lab" / "lake") in said
    assert "Profiles share no database" in said
    rows = server.ask(url.rsplit("/", 1)[1], "SELECT value FROM kvs WHERE key = 'kinject/profile'")
    assert [json.loads(row[0])["profile"] for row in rows] == ["lab"]
