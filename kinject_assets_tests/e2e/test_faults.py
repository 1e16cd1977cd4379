"""A study through bad weather: every third request goes wrong, and the tables are the same."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kinject_assets.core.results.tables import fetch
from kinject_assets_tests.e2e.conftest import command, environment, small_lab
from kinject_assets_tests.e2e.crashes import TABLES, asked_again, ledger_rows

pytestmark = pytest.mark.slow

KINDS = ("429", "500", "timeout", "malformed", "maxlag")
RATE = 0.3

SHAPED_BY_FAULTS = {"rejections"}


@pytest.fixture
def bad_weather(tmp_path: Path) -> Iterator[str]:
    """The lab's server as its command starts it, with a fault in three requests of ten."""
    profile = small_lab(tmp_path)
    words = command("lab", "serve", "--profile", str(profile), "--port", "0")
    words += ["--faults", str(RATE), *(w for kind in KINDS for w in ("--fault", kind))]
    log = tmp_path / "server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(words, stderr=sink, env=environment(tmp_path / "none"))
    until = time.monotonic() + 60
    while "chat: " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    yield log.read_text().split("chat: ")[1].split("/v1")[0]
    process.terminate()
    process.wait(timeout=30)


def test_the_tables_are_those_of_fair_weather(
    study: tuple[Path, Path, str], bad_weather: str, tmp_path: Path
) -> None:
    # Waiting for 20 s at each time-out would say nothing more.
    profile = small_lab(
        tmp_path,
        wikis={
            "lab": {"api_url": "lab", "licence": "invented text, CC0", "batch": 2, "timeout": 1}
        },
        llm={
            "model": "lab-writer-by-rule",
            "base_url": "lab",
            "concurrency": 8,
            "timeout": 1,
            "attempts": 10,
            "prices": {"lab-writer-by-rule": [0, 0]},
        },
    )
    home = tmp_path / "home"
    done = subprocess.run(
        command("run", "--profile", str(profile)),
        env={**environment(home), "KINJECT_LAB_URL": bad_weather},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stats = httpx.get(f"{bad_weather}/lab/stats").json()
    assert set(stats["faults"]) == set(KINDS), "every kind was met"
    asked = sum(stats["requests"].values())
    assert sum(stats["faults"].values()) > 0.2 * asked

    for table, columns in TABLES.items():
        if table in SHAPED_BY_FAULTS:
            continue
        statement = f"SELECT {columns} FROM {table}"
        fair = fetch(study[1] / "small" / "results.duckdb", statement).rows
        foul = fetch(home / "small" / "results.duckdb", statement).rows
        assert sorted(map(str, foul)) == sorted(map(str, fair)), table

    ledger = ledger_rows(home / "small" / "lake" / "llm_ledger")
    rows = [row for _, rows in ledger for row in rows]
    intents = sum(row["row"] == "intent" for row in rows)
    assert intents == stats["requests"]["chat"], "each request that was sent is on record"
    assert asked_again(ledger) == 0
    assert intents == sum(row["row"] != "intent" for row in rows), "and how each ended"
    assert os.listdir(home / "small" / "lake" / ".work" / ".drafts") == []
