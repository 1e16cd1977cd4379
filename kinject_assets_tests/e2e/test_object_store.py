"""The whole lab study with its lake on a real S3 server, which is killed in the middle."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinject_assets.core.lake.objects import Objects, TornUpload
from kinject_assets.core.results.tables import fetch
from kinject_assets_tests.e2e.conftest import command, environment, small_lab
from kinject_assets_tests.e2e.crashes import TABLES
from kinject_assets_tests.object_store import Proxy, Server, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

URL = "s3://lake/small"

KILLED_AT = 15
"""Artefact after which the server dies, of 40."""

DOWN_SECONDS = 6.0

LISTS_PER_STEP = 3
"""Most listings that a step may ask for, on average."""


@dataclass
class Study:
    """A study whose lake is on the server.

    Attributes:
        said: What the run said.
        listed: Listings that it asked for.
    """

    profile: Path
    folder: Path
    server: Server
    proxy: Proxy
    said: str = ""
    listed: int = 0

    def call(self, home: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as a machine whose KINJECT_HOME is `home`."""
        return subprocess.run(
            command(words[0], "--profile", str(self.profile), *words[1:]),
            env=self.environment(home),
            capture_output=True,
            text=True,
            timeout=900,
        )

    def environment(self, home: str) -> dict[str, str]:
        """Of that machine."""
        return environment(self.folder / home) | self.server.environment(self.proxy.port)

    def interrupted(self) -> None:
        """Makes the study; the server is killed in the middle, and started again."""
        log = self.folder / "run.log"
        with log.open("w") as out:
            run = subprocess.Popen(
                command("run", "--profile", str(self.profile), "--compute", "inline"),
                env=self.environment("first"),
                stdout=out,
                stderr=out,
            )
        until = time.monotonic() + 600
        while run.poll() is None and f"[{KILLED_AT}/" not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        assert run.poll() is None, log.read_text()
        self.server.kill()
        time.sleep(DOWN_SECONDS)
        self.server.start()
        code = run.wait(timeout=900)
        self.said, self.listed = log.read_text(), self.proxy.lists
        assert code == 0, self.said


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A finished study whose lake is on a server that died in the middle."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with s3_server(folder / "server") as server:
        proxy = Proxy(server.port)
        study = Study(small_lab(folder, lake=URL), folder, server, proxy)
        study.interrupted()
        yield study
        proxy.close()


def test_a_study_survives_its_object_store(elsewhere: Study, study: tuple[Path, Path, str]) -> None:
    assert "trying again" in elsewhere.said
    assert "40 made, 0 were complete, 0 failed" in elsewhere.said
    plain = study[1] / "small" / "results.duckdb"
    other = elsewhere.folder / "first" / "small" / "results.duckdb"
    for table, columns in TABLES.items():
        select = f"SELECT {columns} FROM {table} ORDER BY ALL"
        assert fetch(other, select).rows == fetch(plain, select).rows, table
    select = "SELECT unnest(logliks) FROM answers ORDER BY condition_id, question_id"
    ours, theirs = ([row[0] for row in fetch(path, select).rows] for path in (other, plain))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_listings_stay_few(elsewhere: Study) -> None:
    assert 0 < elsewhere.listed <= 40 * LISTS_PER_STEP
    # One look at each object is what a mirror is there to avoid.
    heads = sum(line.startswith("HEAD ") for line in elsewhere.proxy.requests)
    puts = sum(line.startswith("PUT ") for line in elsewhere.proxy.requests)
    assert heads < puts


def test_no_key_is_written(elsewhere: Study) -> None:
    secret = elsewhere.server.secret.encode()
    for path in (elsewhere.folder / "first").rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), path
    assert elsewhere.server.secret not in elsewhere.said


def test_the_audit_verifies_the_objects(elsewhere: Study) -> None:
    done = elsewhere.call("first", "audit", "--all")
    assert done.returncode == 0, done.stdout
    assert "verified: 40 artefacts" in done.stdout


def test_another_machine_has_nothing_to_make(elsewhere: Study) -> None:
    done = elsewhere.call("second", "run")
    assert done.returncode == 0, done.stderr
    assert "0 made, 40 were complete" in done.stderr
    first, second = (
        {p.relative_to(root).as_posix() for p in root.rglob("v*/**/*") if p.is_file()}
        for root in (elsewhere.folder / home / "small" / "lake" for home in ("first", "second"))
    )
    assert len(second) < len(first) / 4
    assert not any(name.endswith(".safetensors") for name in second)
    tables = [elsewhere.call(home, "tables").stdout for home in ("first", "second")]
    assert tables[0] == tables[1] != ""


def test_what_is_gone_there_is_made_by_another_machine(
    elsewhere: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in elsewhere.server.environment().items():
        monkeypatch.setenv(name, value)
    objects = Objects(URL)
    objects.remove(objects.listing("answers_ft/events/lab-llama.full.p00"))
    done = elsewhere.call("second", "run", "--select", "answers_ft", "--compute", "local")
    assert done.returncode == 0, done.stderr
    assert "1 made, 2 were complete" in done.stderr
    # It brought the one model that it needed.
    lake = elsewhere.folder / "second" / "small" / "lake"
    brought = lake.glob("checkpoint/events/*/v*/model/*.safetensors")
    assert {path.parts[-4] for path in brought} == {"lab-llama.full.p00"}
    assert "0 made, 40 were complete" in elsewhere.call("first", "run").stderr


def test_a_run_that_is_killed_while_it_uploads_goes_on(
    elsewhere: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in elsewhere.server.environment().items():
        monkeypatch.setenv(name, value)
    objects, folder = Objects(URL), "checkpoint/events/lab-llama.full.p01"
    objects.remove(objects.listing(folder))
    words = ("run", "--select", "checkpoint", "--compute", "inline")
    killed = subprocess.Popen(
        command(words[0], "--profile", str(elsewhere.profile), *words[1:]),
        env=elsewhere.environment("first"),
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 300
    while not any("/v" in key for key in objects.listing(folder)):
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert f"{folder}/manifest.json" not in objects.listing(folder)
    again = elsewhere.call("first", *words)
    assert again.returncode == 0, again.stderr
    assert f"unfinished parts were removed: {folder}" in again.stderr
    assert "1 made, 2 were complete" in again.stderr
    audit = elsewhere.call("first", "audit", "--all")
    assert audit.returncode == 0, audit.stdout


def test_a_large_file_goes_up_in_parts(
    elsewhere: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in elsewhere.server.environment(elsewhere.proxy.port).items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "large"
    block = os.urandom(2**20)
    with path.open("wb") as file:
        for number in range(110):
            file.write(number.to_bytes(8, "little") + block[8:])
    size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    objects = Objects("s3://lake/other")
    objects.upload(path, "large")
    assert any("uploadId" in line for line in elsewhere.proxy.requests)
    found = objects.listing()["large"]
    objects.verify("large", found, size, sha256, path)
    assert objects.sha256("large", size) == sha256
    path.write_bytes(path.read_bytes()[::-1])
    other_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(TornUpload, match="does not give back the bytes"):
        objects.verify("large", found, size, other_sha256, path)
    objects.remove(["large"])
    assert objects.listing() == {}


def test_only_one_gets_a_lease(elsewhere: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in elsewhere.server.environment().items():
        monkeypatch.setenv(name, value)
    objects = Objects("s3://lake/other")
    made = objects.create("lease", b"mine")
    assert made is not None
    assert objects.create("lease", b"yours") is None
    assert objects.swap("lease", b"yours", '"0123456789abcdef0123456789abcdef"') is None
    assert objects.swap("lease", b"mine still", made.tag) is not None
    assert objects.read("lease") == b"mine still"
    objects.remove(["lease"])


def test_a_wrong_key_and_a_missing_bucket_are_said_at_once(elsewhere: Study) -> None:
    began = time.monotonic()
    wrong = elsewhere.environment("third") | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    words = command("status", "--profile", str(elsewhere.profile))
    refused = subprocess.run(words, env=wrong, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "refused" in refused.stderr
    assert "AWS_SECRET_ACCESS_KEY" in refused.stderr
    other = elsewhere.folder / "other"
    other.mkdir()
    profile = small_lab(other, lake="s3://no-such-bucket/small")
    gone = subprocess.run(
        command("status", "--profile", str(profile)),
        env=elsewhere.environment("third"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert gone.returncode == 2
    assert "s3://no-such-bucket/small: there is no such bucket" in gone.stderr
    assert time.monotonic() - began < 60


def test_a_byte_that_flips_on_the_servers_disk_is_found(elsewhere: Study) -> None:
    """The last one: it damages the lake."""
    lake = elsewhere.folder / "first" / "small" / "lake"
    path = next(lake.glob("checkpoint/*/*.p00/v*/model/model.safetensors"))
    data = path.read_bytes()
    middle = len(data) // 2
    assert elsewhere.server.flip(data[middle : middle + 64]) == 1
    done = elsewhere.call("first", "audit", "--all", "--json")
    assert done.returncode == 1
    findings = [f for f in json.loads(done.stdout)["findings"] if f["kind"] != "stale"]
    assert [f["artefact"] for f in findings] == ["checkpoint/events/lab-llama.full.p00"]
    assert findings[0]["file"].endswith("model/model.safetensors")
    # The copy here is whole: it is the object that is not.
    assert path.read_bytes() == data
