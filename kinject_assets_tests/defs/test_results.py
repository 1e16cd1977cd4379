"""What the asset `results` keeps and shows of earlier results; neither stands in its way."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kinject_assets.core.results.history import FOLDER, history
from kinject_assets.defs import results
from kinject_assets.defs.results import _remember
from kinject_assets_tests.core.results.worlds import ARTICLES, BRILL, World


def step(world: World, database: Path) -> Any:
    """As much of a step as is asked of it."""
    context = SimpleNamespace(log=logging.getLogger("step"), run_id="1234abcd-9")
    study = SimpleNamespace(database=database, profile=world.profile())
    return SimpleNamespace(study=study, context=context, fingerprint="f")


def test_what_changed_is_shown_and_kept(tmp_path: Path) -> None:
    first = World()
    assert _remember(step(first, first.write(tmp_path)), "v1") == {}
    second = World(articles=ARTICLES | {BRILL: "2"})
    shown = _remember(step(second, second.write(tmp_path)), "v2")
    assert "article edited" in shown["changes_since_the_last_results"].value
    assert [kept.run for kept in history(tmp_path)] == ["1234abcd", "1234abcd"]


def test_nothing_of_it_stops_new_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    database = world.write(tmp_path)
    _remember(step(world, database), "v1")
    (kept,) = history(tmp_path)
    kept.path.write_bytes(b"torn")
    assert _remember(step(world, database), "v2") == {}
    assert "not compared" in caplog.text
    for copy in history(tmp_path):
        copy.path.unlink()
    (tmp_path / FOLDER).rmdir()
    (tmp_path / FOLDER).write_text("a file, not a folder")
    assert _remember(step(world, database), "v3") == {}
    assert "no copy was kept" in caplog.text


def test_not_even_what_nobody_thought_of_stops_new_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> str:
        raise KeyError("q-Brill")

    world = World()
    monkeypatch.setattr(results, "last_change", fails)
    monkeypatch.setattr(results, "keep", fails)
    assert _remember(step(world, world.write(tmp_path)), "v1") == {}
    assert "not compared with those before: KeyError('q-Brill')" in caplog.text
    assert "no copy was kept" in caplog.text
