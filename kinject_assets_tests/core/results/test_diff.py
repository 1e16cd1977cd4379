"""`kinject diff`: each cause alone, found by name, and nothing else named."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from kinject_assets.core.manifest import Manifest
from kinject_assets.core.results.causes import Cause
from kinject_assets.core.results.diff import (
    Diff,
    compare,
    format_diff,
    last_change,
    since_last,
    summary,
)
from kinject_assets.core.results.history import history, keep
from kinject_assets.core.results.loader import build_database
from kinject_assets.core.results.sides import Side
from kinject_assets.core.results.tables import QueryError
from kinject_assets.core.store import MANIFEST, Cell, Store
from kinject_assets_tests.core.results.synthetic import NOW
from kinject_assets_tests.core.results.worlds import ARTICLES, BRILL, World

Made = Callable[[World], Path]
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Builds the database of a world; that of the plain one once."""
    there: dict[str, Path] = {}
    # Statsmodels collects garbage each time that it adjusts p-values: of all that pytest holds.
    gc.freeze()

    def build(world: World) -> Path:
        if str(world) not in there:
            there[str(world)] = world.write(tmp_path_factory.mktemp("world"))
        return there[str(world)]

    yield build
    gc.unfreeze()


def differ(made: Made, before: World, after: World) -> Diff:
    return compare(Side(made(before), "then"), Side(made(after), "now"))


def kinds(found: Diff, *methods: str) -> dict[str, set[str]]:
    """System and question of the flips -> their causes in words."""
    return {
        f"{flip.system} {flip.question_id}": {str(cause) for cause in flip.causes}
        for flip in found.flips
        if not methods or flip.system.split()[1] in methods
    }


def test_nothing_changed(made: Made) -> None:
    found = differ(made, World(), World())
    assert not found.flips
    assert not found.retired
    assert not found.new
    assert sum(line.n for line in found.lines) == 4 * 6
    assert found.headline.startswith("0 of 24 answers")
    assert "6 of 6 systems answer as before" in " ".join(format_diff(found, "text").split())


def test_an_edited_article_is_named_where_it_was_read_and_nowhere_else(made: Made) -> None:
    after = World(articles=ARTICLES | {BRILL: "2"})
    found = differ(made, World(), after)
    edit = f"article edited: {BRILL} (revision 1 → 2)"
    # Its second passage stands in front of its own question at K = 3 alone (rank 2).
    assert {key.partition("q-")[2] for key in kinds(found, "rag")} <= {BRILL}
    assert all(causes == {edit} for causes in kinds(found, "rag").values())
    # A checkpoint was trained on all of the text.
    assert kinds(found, "ft")
    assert all(edit in causes for causes in kinds(found, "ft", "ft_rag").values())
    assert not kinds(found, "base")
    assert {str(cause) for cause, _ in found.by_cause} == {edit}
    # A title is text, whatever stands in it.
    as_markdown = format_diff(found, "markdown")
    assert "Brill \\| &#60;script&#62;" in as_markdown
    assert "<" not in as_markdown


def test_an_article_that_came_and_one_that_went(made: Made) -> None:
    without = {name: r for name, r in ARTICLES.items() if name != "Corve"}
    found = differ(made, World(), World(articles=without))
    (retired,) = found.retired
    assert retired.question_id == "q-Corve"
    assert str(retired.cause) == "article removed: Corve (revision 1)"
    assert {str(c) for causes in kinds(found, "rag").values() for c in causes} <= {
        "article removed: Corve (revision 1)"
    }
    back = differ(made, World(articles=without), World())
    (new,) = back.new
    assert str(new.cause) == "article added: Corve (revision 1)"
    assert "article added" in format_diff(back, "text")


def test_another_encoder(made: Made) -> None:
    found = differ(made, World(), World(encoder="encoder-b"))
    assert kinds(found, "rag")
    assert {str(c) for causes in kinds(found).values() for c in causes} == {
        "index or encoder (model encoder-a → encoder-b)"
    }
    assert not kinds(found, "base", "ft")


def test_training_settings_and_paraphrases(made: Made) -> None:
    found = differ(made, World(), World(learning_rate=3e-4))
    (cause,) = {str(c) for causes in kinds(found).values() for c in causes}
    assert cause.startswith("training settings: tiny.full.p01 (training.learning_rates")
    assert not kinds(found, "base", "rag")
    found = differ(made, World(), World(paraphrases="2"))
    (cause,) = {str(c) for causes in kinds(found).values() for c in causes}
    assert cause == "paraphrases (20 on unchanged text differ)"


def test_libraries_and_numbers_that_nearly_tie(made: Made) -> None:
    found = differ(made, World(), World(nudge="x", libraries={"torch": "2.9.0"}))
    assert kinds(found)
    assert {str(c) for causes in kinds(found).values() for c in causes} == {
        "code or libraries (torch 2.8.0 → 2.9.0)"
    }
    found = differ(made, World(), World(nudge="x"))
    assert {str(c) for causes in kinds(found).values() for c in causes} == {
        "same inputs (another answer: numbers that nearly tie)"
    }


def test_other_examples(made: Made) -> None:
    without = {name: r for name, r in ARTICLES.items() if name != "Eyot"}
    found = differ(made, World(shots=1), World(articles=without, shots=1))
    assert kinds(found, "base")
    assert all(
        causes == {"examples (other solved examples in front)"}
        for causes in kinds(found, "base").values()
    )


def test_two_corpora_of_which_one_goes_on(made: Made) -> None:
    then = Side(made(World()), "handbook", "handbook")
    other = World(articles=ARTICLES | {BRILL: "2", "Corve": "7"}, corpus="handbook-r2")
    found = compare(then, Side(made(other), "handbook-r2", "handbook-r2"))
    assert {line.corpus for line in found.lines} == {"handbook → handbook-r2"}
    brill, corve = (f"article edited: {title} (revision 1 → " for title in (BRILL, "Corve"))
    assert {str(cause) for cause, _ in found.by_cause} == {f"{brill}2)", f"{corve}7)"}
    # What stands in a prompt is told apart; a checkpoint rests on both.
    for key, causes in kinds(found, "rag").items():
        assert causes == {f"{brill}2)"} if BRILL in key else {f"{corve}7)"}


def test_only_one_corpus(made: Made) -> None:
    sides = Side(made(World()), "a"), Side(made(World(encoder="encoder-b")), "b")
    assert compare(*sides, corpus="nowhere").lines == []
    assert compare(*sides, corpus="handbook").flips


def test_conditions_that_only_one_has(made: Made) -> None:
    found = differ(made, World(), World(shots=1))
    assert not found.lines
    assert len(found.only_before) == len(found.only_after) == 6
    assert "handbook tiny base 0-shot" in found.only_before


def test_formats(made: Made) -> None:
    found = differ(made, World(), World(encoder="encoder-b"))
    as_json = json.loads(format_diff(found, "json"))
    assert as_json["headline"] == found.headline
    assert sum(cause["flips"] for cause in as_json["causes"]) == len(found.flips)
    lines = format_diff(found, "csv").splitlines()
    assert len(lines) == len(found.flips) + 1
    assert lines[0].startswith("corpus,system,question_id")
    assert "| flips | cause |" in format_diff(found, "markdown")
    text = format_diff(found, "text", width=60)
    assert "From then to now." in text
    assert max(map(len, text.splitlines())) <= 100
    outcomes = [(line.won, line.lost, line.still_wrong) for line in found.lines]
    assert sum(map(sum, outcomes)) == len(found.flips)
    for line in found.lines:
        assert line.after - line.before == pytest.approx((line.won - line.lost) / line.n)


def test_older_tables_are_refused_and_stop_no_report(made: Made, tmp_path: Path) -> None:
    database = tmp_path / "results.duckdb"
    database.write_bytes(made(World()).read_bytes())
    with closing(duckdb.connect(str(database))) as connection:
        connection.execute("ALTER TABLE answers DROP COLUMN prompt_id")
    keep(database, version="a" * 32, run_id="1234", at=NOW, most=3)
    keep(database, version="b" * 32, run_id="5678", at=NOW + DAY, most=3)
    other = Side(made(World(encoder="encoder-b")), "now")
    with pytest.raises(QueryError, match="older version"):
        compare(Side(database, "then"), other)
    database.write_bytes(other.database.read_bytes())
    since = since_last(database)
    assert since is not None
    assert since["headline"].startswith("Not compared: ")
    assert since["causes"] == []


def test_summary_and_last_change(made: Made, tmp_path: Path) -> None:
    database = tmp_path / "results.duckdb"
    database.write_bytes(made(World()).read_bytes())
    assert last_change(database) == "", "there is nothing to compare the first results with"
    assert keep(database, version="a" * 32, run_id="1234", at=NOW, most=3)
    database.write_bytes(made(World(articles=ARTICLES | {BRILL: "2"})).read_bytes())
    changes = last_change(database)
    assert "article edited" in changes
    assert "Brill" in changes
    assert "q-Brill" not in changes, "single flips do not stand in the UI"
    assert since_last(database) is None, "the newest copy is taken for that of these"
    assert keep(database, version="b" * 32, run_id="5678", at=NOW + DAY, most=3)
    since = since_last(database)
    assert since is not None
    assert since["before"].endswith("run 1234")
    assert since["causes"][0]["cause"] == "article edited"
    rows = summary(Side(history(tmp_path)[1].path, "then"), Side(database, "now"))
    assert rows["causes"][0]["what"] == BRILL
    assert {row["won"] + row["lost"] + row["still wrong"] for row in rows["accuracy"]} - {0}


def test_retrievers_without_an_index_are_not_blamed_on_it(made: Made) -> None:
    found = differ(
        made, World(retriever="lexical"), World(retriever="lexical", encoder="encoder-b")
    )
    assert kinds(found, "rag")
    causes = {str(c) for causes in kinds(found).values() for c in causes}
    assert causes == {"ranked otherwise"}


def test_a_text_that_changed_after_training_is_not_called_the_same(
    made: Made, tmp_path: Path
) -> None:
    edited = World(articles=ARTICLES | {BRILL: "2"})
    database = edited.write(tmp_path / "world")
    # The corpus moves on, and the checkpoint waits.
    store = Store(tmp_path / "world")
    _rewrite(store, Cell("chunks", (edited.corpus,)), logical_version="moved on")
    asked = Cell("answers_rag", (edited.corpus, "tiny"))
    _rewrite(store, asked, inputs={f"retrieved/{edited.corpus}": "as it was then"})
    build_database(store, edited.profile())
    found = compare(Side(made(World()), "then"), Side(database, "now"))
    causes = {c.kind for key in kinds(found, "ft") for c in _causes_of(found, key)}
    assert causes == {"training text"}
    causes = {c.kind for key in kinds(found, "rag") for c in _causes_of(found, key)}
    assert causes == {"passages not known"}


def _rewrite(store: Store, cell: Cell, **changes: object) -> None:
    path = store.folder(cell) / MANIFEST
    path.write_text(replace(Manifest.read(path), **changes).sealed().to_json())  # pyright: ignore[reportArgumentType]


def _causes_of(found: Diff, key: str) -> set[Cause]:
    return {
        cause
        for flip in found.flips
        if f"{flip.system} {flip.question_id}" == key
        for cause in flip.causes
    }


@pytest.mark.parametrize("lacking", ["before", "after"])
def test_a_question_that_one_side_does_not_know(made: Made, tmp_path: Path, lacking: str) -> None:
    worlds = {"before": World(), "after": World(encoder="encoder-b")}
    sides = {}
    for name, world in worlds.items():
        sides[name] = Side(tmp_path / f"{name}.duckdb", name)
        sides[name].database.write_bytes(made(world).read_bytes())
    whole = compare(sides["before"], sides["after"])
    lost = whole.flips[0].question_id
    with closing(duckdb.connect(str(sides[lacking].database))) as connection:
        # As after a review that has rejected it: its answers stay until they are made again.
        connection.execute("DELETE FROM questions WHERE question_id = ?", [lost])
    found = compare(sides["before"], sides["after"])
    stems = {flip.question_id: flip.stem for flip in whole.flips}
    assert {flip.question_id: flip.stem for flip in found.flips} == stems
