"""Copies of earlier results, and what names them."""

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from kinject_assets.core.manifest import content_hash
from kinject_assets.core.results.history import FOLDER, history, keep
from kinject_assets.core.results.sides import NoSuchResults, present_version, resolve
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results.worlds import World

DAY = datetime(2031, 5, 1, 12, tzinfo=UTC)


def kept(database: Path, version: str, day: int, run: str = "", most: int = 20) -> Path | None:
    found = keep(database, version=version, run_id=run, at=DAY + timedelta(days=day), most=most)
    return found and found.path


def fill(path: Path, value: object, rows: int = 1) -> None:
    """A database with one table, a view and a comment."""
    path.unlink(missing_ok=True)
    with closing(duckdb.connect(str(path))) as connection:
        connection.execute("CREATE TABLE t (v VARCHAR PRIMARY KEY)")
        connection.execute("INSERT INTO t SELECT ? || i FROM range(?) r(i)", [str(value), rows])
        connection.execute("CREATE VIEW w AS SELECT v || '!' AS v FROM t")
        connection.execute("COMMENT ON TABLE t IS 'said'")


def read(path: Path) -> str:
    (row,) = fetch(path, "SELECT w.v, comment FROM w, duckdb_tables()").rows
    return " ".join(row)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "it's" / "results.duckdb"
    path.parent.mkdir()
    fill(path, "a")
    return path


def test_a_copy_for_each_change(database: Path) -> None:
    first = kept(database, "a" * 32, 0, "0A1B-2c3d4e5f")
    assert first is not None
    assert first.name == "20310501T120000Z-aaaaaaaa-0a1b2c3d.duckdb"
    assert kept(database, "a" * 32, 1) is None, "the same results once more"
    fill(database, "b")
    second = kept(database, "b" * 32, 2)
    assert second is not None
    assert [copy.path for copy in history(database.parent)] == [second, first]
    assert read(first) == "a0! said"
    assert read(second) == "b0! said"
    assert second.stat().st_size < database.stat().st_size
    assert kept(database, "a" * 32, 3), "back to what was before is a change, too"
    assert history(database.parent)[-1].label == "2031-05-01 12:00:00 UTC, run 0a1b2c3d"


def test_only_the_newest_stay(database: Path) -> None:
    for day in range(6):
        kept(database, content_hash(day), day, most=3)
    assert [copy.at.day for copy in history(database.parent)] == [6, 5, 4]
    assert kept(database, "c" * 32, 9, most=0) is None
    assert len(history(database.parent)) == 3


def test_what_else_lies_there_is_left_alone(database: Path) -> None:
    (database.parent / FOLDER).mkdir()
    others = ("mine.duckdb", "20311301T000000Z-aaaaaaaa-none.duckdb")
    for name in others:
        (database.parent / FOLDER / name).write_bytes(b"")
    kept(database, "a" * 32, 0, most=1)
    kept(database, "b" * 32, 1, most=1)
    assert all((database.parent / FOLDER / name).exists() for name in others)
    assert len(history(database.parent)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root alone")
def test_a_full_disk_leaves_no_torn_copy(small_disk: Path) -> None:
    database = small_disk / "results.duckdb"
    fill(database, "a", rows=10_000)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - 40_000))
    with pytest.raises(OSError, match="space"):
        kept(database, "a" * 32, 0)
    assert history(small_disk) == []
    assert list((small_disk / FOLDER).iterdir()) == []


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Three results of one study, the last of them the present ones."""
    root = tmp_path_factory.mktemp("study")
    database = World().write(root)
    paths: dict[str, Path] = {"now": database}
    for day, (version, run) in enumerate((("1" * 8, "feed01"), ("2" * 8, "feed02"), ("3" * 8, ""))):
        path = kept(database, version, day, run)
        assert path is not None
        paths[version[0]] = path
    return paths


def one(study: Mapping[str, Path], word: str, version: str = "33333333") -> Path:
    return resolve(study["now"], word, "now", version)[0].database


def test_words_for_results(study: Mapping[str, Path]) -> None:
    assert one(study, "now") == study["now"]
    assert one(study, "previous") == one(study, "-1") == study["2"]
    assert one(study, "-2") == study["1"]
    assert one(study, "previous", version="") == study["2"]
    # Present results that could not be kept: the newest copy is the one before them.
    assert one(study, "previous", version="44444444") == study["3"]
    assert one(study, "2031-05-02") == study["2"], "a date means its end"
    assert one(study, "2031-05-02T11:59") == study["1"]
    assert one(study, "2031-05-02T14:00+02:00") == study["2"]
    assert one(study, "feed01") == study["1"]
    assert one(study, "feed01aa-the-rest-of-it") == study["1"]
    assert one(study, "run-of-chunks") == study["1"], "the oldest results that hold its work"
    assert one(study, str(study["1"])) == study["1"]


@pytest.mark.parametrize(
    "word", ["2031-04-30", "2031-13-01", "-7", "nowhere", "x", "missing.duckdb", "handbook"]
)
def test_words_for_nothing_list_what_there_is(study: Mapping[str, Path], word: str) -> None:
    with pytest.raises(NoSuchResults) as error:
        resolve(study["now"], word, "now", "33333333")
    if word != "2031-13-01":
        assert "handbook" in str(error.value)
        assert "2031-05-03 12:00:00 UTC" in str(error.value)
        assert "run-of-c" in str(error.value)


def test_two_corpora(study: Mapping[str, Path]) -> None:
    sides = resolve(study["now"], "handbook", "handbook")
    assert [side.corpus for side in sides] == ["handbook", "handbook"]


def test_the_version_of_the_present_results(tmp_path: Path) -> None:
    assert present_version(tmp_path) == ""
    store, cell = Store(tmp_path), Cell("results")
    with store.draft(cell) as draft:
        (draft / "summary.json").write_text("{}")
        store.publish(
            cell,
            draft,
            partition="",
            logical_version="l",
            fingerprint="f",
            code_version="1",
            inputs={},
            config={},
            started_at=DAY,
        )
    assert present_version(tmp_path) == content_hash("l", "f")
    (store.folder(cell) / "manifest.json").write_text("torn")
    assert present_version(tmp_path) == ""
