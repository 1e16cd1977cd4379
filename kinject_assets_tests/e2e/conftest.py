"""The command line as a user meets it: real processes, the embedded lab, a small profile."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinject_assets.config import PROFILES

Kinject = Callable[..., subprocess.CompletedProcess[str]]


def small_lab(folder: Path, **changes: object) -> Path:
    """The lab profile with a small world, one model, and few conditions."""
    profile = yaml.safe_load((PROFILES / "lab.yaml").read_text())
    profile |= {
        "name": "small",
        "lab": {
            "seed": 5,
            "first_month": "2031-01",
            "months": 2,
            "events_per_month": 12,
            "things": 12,
        },
        "recipes": {"full.p00": None, "full.p01": None, "full.r01": None},
        "grid": [
            {"corpora": ["comets"], "models": ["lab-llama"], "methods": ["base", "rag"]},
            {
                "corpora": ["events"],
                "models": ["lab-llama"],
                "recipes": ["full.p00", "full.p01", "full.r01"],
            },
        ],
        "scoring": {"choice_format": "text", "batch_size": 16, "shots": [0], "k": [1, 2]},
        "exams": {"shots_share": 0.1},
        "damage": {"facts": ["comets"], "reading": ["comets"], "k": 1},
    }
    corpora = profile["corpora"]
    events = corpora["events-2031-04"]
    events["source"] |= {"until": "2031-02", "window_months": 2}
    corpora["comets"]["expected_chunks"] = events["expected_chunks"] = 12
    profile["corpora"] = {"comets": corpora["comets"], "events": events}
    profile["training"] |= {"learning_rates": [1.0e-3], "epochs": 2}
    profile |= changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path


def environment(home: Path) -> dict[str, str]:
    """A user's environment with its own KINJECT_HOME and nothing of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KINJECT_", "DAGSTER_"))}
    return {**kept, "KINJECT_HOME": str(home)}


def command(*words: str) -> list[str]:
    """The words of a kinject command in this interpreter."""
    return [sys.executable, "-m", "kinject_assets.cli", *words]


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A finished small study: its profile, its KINJECT_HOME, and what the run said."""
    folder = tmp_path_factory.mktemp("study")
    profile = small_lab(folder)
    done = subprocess.run(
        command("run", "--profile", str(profile)),
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return profile, folder / "home", done.stderr


@pytest.fixture(scope="session")
def kinject(study: tuple[Path, Path, str]) -> Kinject:
    """Runs a kinject command on the finished study."""
    profile, home, _ = study

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(words[0], "--profile", str(profile), *words[1:]),
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    from kinject_assets_tests.e2e.browsing import CHROMIUM, FLAGS

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A window of the browser."""
    opened = browser.new_page(viewport={"width": 1500, "height": 950})
    yield opened
    opened.close()
