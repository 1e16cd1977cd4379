"""The real MediaWiki, the synthetic lake, and a small disk, for tests that want them."""

import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinject_assets.core.history import POSTGRES_URL
from kinject_assets_tests.core.results.fixtures import built, lake, rich

# Here, so that they are built once for all folders of tests.
__all__ = ["built", "lake", "rich"]

# Tests never open a developer's database.
os.environ.pop(POSTGRES_URL, None)

REPOSITORY = Path(__file__).parents[1]
WIKI_STATE = Path(tempfile.gettempdir()) / "kinject-mediawiki"
API_URL = "http://127.0.0.1:8099/w/api.php"


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"{API_URL}?action=query&meta=siteinfo&format=json") as answer:
            return b"loopbackwiki" in answer.read()
    except OSError:
        return False


@pytest.fixture(scope="session")
def real_wiki():
    """API address of a real MediaWiki with real pages; started when it is not running."""
    folder = Path(os.environ.get("KINJECT_REALDATA") or REPOSITORY.parent / "shared" / "realdata")
    start = folder / "mediawiki" / "start.sh"
    if not start.is_file():
        pytest.skip(f"no real MediaWiki: {start} is absent (KINJECT_REALDATA names its folder)")
    if _answers():
        yield API_URL
        return
    environment = {**os.environ, "MW_STATE": str(WIKI_STATE)}
    started = subprocess.run(
        ["bash", str(start)], env=environment, capture_output=True, text=True, timeout=500
    )
    if started.returncode != 0:
        said = (started.stdout + started.stderr)[-500:]
        pytest.skip(f"no real MediaWiki: start.sh failed: {said}")
    yield API_URL
    subprocess.run(
        ["bash", str(start.with_name("stop.sh"))], env=environment, capture_output=True, check=False
    )


@pytest.fixture
def wiki_switch(real_wiki: str) -> Iterator[Path]:
    """Folder of the real MediaWiki's switches: `lag` and `fault`, off at the end."""
    folder = WIKI_STATE / "switch"
    if not WIKI_STATE.is_dir():
        pytest.skip("the real MediaWiki was started by somebody else: its switches are not known")
    folder.mkdir(exist_ok=True)
    yield folder
    for name in ("lag", "fault"):
        (folder / name).unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
