"""The Dagster UI and a real browser, for tests that look."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page

from kinject_assets_tests.e2e.conftest import command, environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium (apt-get install chromium)"
)


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving_ui(
    profile: Path, home: Path, log: Path = Path(os.devnull), **variables: str
) -> Iterator[str]:
    """`kinject ui` as a user starts it; its address. Nothing is left behind at the end.

    Args:
        profile: The profile's file.
        home: Its KINJECT_HOME.
        log: Where all that webserver, daemon and runs say goes.
        variables: More of the environment.
    """
    port = free_port()
    with log.open("ab") as said:
        process = subprocess.Popen(
            command("ui", "--profile", str(profile), "--port", str(port)),
            env={**environment(home), **variables},
            stdout=said,
            stderr=said,
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


def keep(page: Page, name: str) -> None:
    """Keeps a picture where `KINJECT_SCREENSHOTS` says so."""
    if folder := os.environ.get("KINJECT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def pick(page: Page, key: str) -> None:
    """Chooses a partition key in the next empty field of the launch dialog."""
    page.get_by_role("dialog").get_by_text("Select a partition or create one").first.click()
    page.get_by_text(key, exact=True).locator("visible=true").last.click()
    page.keyboard.press("Escape")
