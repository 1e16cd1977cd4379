"""The parts of a deployment one by one, as service managers and containers start them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kinject_assets.core.history import POSTGRES_URL
from kinject_assets_tests.e2e.browsing import free_port
from kinject_assets_tests.e2e.conftest import command, small_lab
from kinject_assets_tests.e2e.test_postgres import Site, training, wait
from kinject_assets_tests.postgres import needs_postgres, running_postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), needs_postgres]


class Parts:
    """Processes of a deployment, on ports of the test."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.code_port = free_port()
        # As in the files of `deploy/`: Dagster's own commands need the driver's name.
        url = site.server.url(site.database).replace("postgresql:", "postgresql+psycopg2:")
        folder = str(site.home / "dagster")
        self.env = {**site.env(), POSTGRES_URL: url, "DAGSTER_HOME": folder}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, part: str, *words: str) -> None:
        """Starts a part."""
        where = () if part == "code" else ("--code-server", f"127.0.0.1:{self.code_port}")
        with self.site.log.open("ab") as log:
            self.running[name] = subprocess.Popen(
                command("serve", part, "--profile", str(self.site.profile), *where, *words),
                env=self.env,
                stdout=log,
                stderr=log,
            )

    def start_code(self) -> None:
        """Starts the code server and waits until its health check is content."""
        self.start("code", "code", "--port", str(self.code_port))
        wait(self.code_is_healthy, 120, "the code server is not healthy")

    def code_is_healthy(self) -> bool:
        """What the files of `deploy/` ask it."""
        return self.healthy("dagster", "api", "grpc-health-check", "-p", str(self.code_port))

    def healthy(self, *words: str) -> bool:
        """Whether a health check passes."""
        done = subprocess.run(
            [sys.executable, "-m", *words], env=self.env, capture_output=True, timeout=60
        )
        return done.returncode == 0

    def stop(self, name: str) -> int:
        """Ends a part as a service manager does; its exit code."""
        process = self.running.pop(name)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=90)
        _, left = psutil.wait_procs(family, timeout=20)
        assert left == [], f"{name} left processes behind"
        return code

    def kill(self) -> None:
        """Ends whatever is left, so that a failed test leaves nothing."""
        for process in self.running.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
                for member in [*family, psutil.Process(process.pid)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
            process.wait()


@pytest.fixture
def parts(study: tuple[Path, Path, str], tmp_path: Path) -> Iterator[Parts]:
    home = shutil.copytree(study[1], tmp_path / "home")
    with running_postgres() as server:
        database = server.create().rsplit("/", 1)[1]
        url = f"http://127.0.0.1:{free_port()}"
        profile = small_lab(tmp_path, refresh={"automatic": False})
        parts = Parts(Site(url, profile, home, tmp_path / "log", server, database))
        try:
            yield parts
        finally:
            parts.kill()


def answers(url: str) -> bool:
    """Whether a webserver is there."""
    try:
        return urllib.request.urlopen(f"{url}/server_info", timeout=10).status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_the_parts_work_together_and_survive_a_killed_code_server(parts: Parts) -> None:
    site = parts.site
    parts.start_code()
    again = subprocess.run(
        command("serve", "code", "--profile", str(site.profile)),
        env=parts.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 2
    assert "serves this profile already" in again.stderr

    port = site.url.rpartition(":")[2]
    parts.start("webserver", "webserver", "--port", port)
    readers = f"http://127.0.0.1:{free_port()}"
    parts.start("reads", "webserver", "--port", readers.rpartition(":")[2], "--read-only")
    parts.start("daemon", "daemon")
    for url in (site.url, readers):
        wait(lambda url=url: answers(url), 120, f"{url} does not answer")
    wait(
        lambda: parts.healthy("dagster._daemon", "liveness-check"), 120, "the daemon is not healthy"
    )

    only_reads = replace(site, url=readers)
    refused = only_reads.graphql(
        "mutation { launchPartitionBackfill(backfillParams: {assetSelection: "
        '[{path: ["checkpoint"]}], partitionNames: ["events|lab-llama.full.p01"]}) '
        "{ __typename } }"
    )
    assert refused["launchPartitionBackfill"]["__typename"] == "UnauthorizedError"
    assert only_reads.graphql("{ assetNodes { id } }")["assetNodes"]

    # The machine goes down in the middle of a training, and comes up again.
    with training(site) as run_id:
        parts.stop("daemon")
        code = parts.running.pop("code")
        family = [psutil.Process(code.pid), *psutil.Process(code.pid).children(recursive=True)]
        for member in family:
            os.kill(member.pid, signal.SIGKILL)
        code.wait()
        assert site.holders() == [run_id]
        parts.start_code()
        assert site.holders() == []
        assert site.run(run_id)[0] == "FAILURE"
    assert "1 runs had died with their process" in site.log.read_text()

    # The webserver finds the new code server, and the next run goes through.
    parts.start("daemon", "daemon")
    site.launch("answers_base", ["comets|lab-llama"])
    succeeded = "SELECT count(*) FROM runs WHERE status = 'SUCCESS'"
    wait(
        lambda: site.server.ask(site.database, succeeded) == [(1,)],
        240,
        f"no run succeeded: {site.failures()[-1:]}",
    )
    codes = {name: parts.stop(name) for name in ("daemon", "reads", "webserver", "code")}
    print(f"\nexit codes on SIGTERM: {codes}")
