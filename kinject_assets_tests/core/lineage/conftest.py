"""The synthetic lake with its database, and the artefact `results` beside them."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kinject_assets.core.manifest import Manifest, write_atomically
from kinject_assets.core.results.digests import ROWS, write_digests
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.store import MANIFEST, Cell, Store
from kinject_assets_tests.core.results import synthetic

RESULTS = Cell("results")


@pytest.fixture(scope="session")
def finished(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The lake as a run leaves it, with the digests of its database's rows; read it only."""
    root = tmp_path_factory.mktemp("finished") / "synthetic"
    shutil.copytree(built.root, root)
    store = Store(root)
    cells = [cell for cell, _ in store.published()]
    with store.draft(RESULTS) as draft:
        with duckdb.connect(str(root / DATABASE), read_only=True) as connection:
            write_digests(connection, draft / ROWS)
        store.publish(
            RESULTS,
            draft,
            partition="",
            logical_version="results",
            fingerprint="f",
            code_version="1",
            inputs={str(cell): store.input_version(str(cell)) or "" for cell in cells},
            config={},
            started_at=synthetic.NOW,
        )
    return store


@pytest.fixture
def study(finished: Store, tmp_path: Path) -> Store:
    """A copy of the finished lake that a test may break."""
    shutil.copytree(finished.root, tmp_path / "study")
    return Store(tmp_path / "study")


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., None]:
    """Publishes a manifest with other fields, as if the artefact had been made so."""

    def write(store: Store, cell: Cell, **changes: Any) -> None:
        path = store.folder(cell) / MANIFEST
        written = dataclasses.replace(Manifest.read(path), **changes).sealed()
        write_atomically(path, written.to_json())

    return write
