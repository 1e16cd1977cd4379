"""Fixtures: the synthetic lake and its database, built once for all tests."""

import shutil
from pathlib import Path

import pytest

from kinject_assets.core.results.loader import build_database
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic

REFERENCES = Path(__file__).parents[3] / "data" / "reference"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The lake with its database; read it only."""
    store = synthetic.write_lake(tmp_path_factory.mktemp("lake"))
    build_database(
        store,
        synthetic.profile(),
        generations=synthetic.GENERATIONS,
        references=REFERENCES,
    )
    return store


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A lake with seeds, triage and a stuck model, with its database; read it only."""
    store = synthetic.write_rich_lake(tmp_path_factory.mktemp("rich"))
    build_database(store, synthetic.profile(), references=REFERENCES)
    return store


@pytest.fixture
def lake(built: Store, tmp_path: Path) -> Store:
    """A copy of the lake that a test may break."""
    shutil.copytree(built.root, tmp_path / "copy")
    return Store(tmp_path / "copy")
