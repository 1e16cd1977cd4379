"""The Dagster UI in a real browser, on a finished study.

`KINJECT_SCREENSHOTS=docs/images` keeps the pictures that the README shows.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from kinject_assets_tests.e2e.conftest import command, environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ui(study: tuple[Path, Path, str]) -> Iterator[str]:
    profile, home, _ = study
    port = free_port()
    process = subprocess.Popen(
        command("ui", "--profile", str(profile), "--port", str(port)),
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/server_info", timeout=5).read()
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "kinject ui ended"
            assert time.monotonic() < until, "the UI never answered"
            time.sleep(0.5)
    family = psutil.Process(process.pid).children(recursive=True)
    yield url
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, "kinject ui left processes behind"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    yield page
    page.close()


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("KINJECT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_the_graph_shows_every_group(ui: str, page: Page) -> None:
    page.goto(f"{ui}/asset-groups")
    for group in ("a_corpus", "b_exams", "d_retrieval", "e_training", "g_results"):
        page.get_by_text(group).first.wait_for(timeout=60_000)
    page.wait_for_timeout(2_000)
    keep(page, "dagster-lineage")
    assert page.get_by_role("dialog").count() == 0, "a dialog covers the first visit"


def test_partitions_are_there_and_metadata_has_a_plot(ui: str, page: Page) -> None:
    page.goto(f"{ui}/assets/checkpoint?view=partitions")
    page.get_by_text("lab-llama.full.p01").first.wait_for(timeout=60_000)
    page.goto(f"{ui}/assets/checkpoint?view=overview")
    page.get_by_text("validation_loss").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1_000)
    keep(page, "dagster-checkpoint")


def test_runs_of_the_command_line_are_shown(ui: str, page: Page) -> None:
    page.goto(f"{ui}/runs")
    page.get_by_text("Success").first.wait_for(timeout=60_000)
    keep(page, "dagster-runs")


def test_the_report_opens_without_a_request_or_an_error(
    study: tuple[Path, Path, str], page: Page
) -> None:
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((study[1] / "small" / "report.html").as_uri())
    page.get_by_text("Table 2").first.wait_for(timeout=30_000)
    keep(page, "report")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert errors == []
