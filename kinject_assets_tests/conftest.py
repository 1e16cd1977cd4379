"""The real MediaWiki, for tests that want one."""

import os
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
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
    state = Path(tempfile.gettempdir()) / "kinject-mediawiki"
    environment = {**os.environ, "MW_STATE": str(state)}
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
