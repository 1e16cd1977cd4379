import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from kinject_assets.core.errors import KinjectError, MissingArtefact
from kinject_assets.core.lineage.ancestry import trace
from kinject_assets.core.lineage.audit import audit
from kinject_assets.core.lineage.tree import Node, plain
from kinject_assets.core.results.loader import DATABASE, build_database
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results import synthetic


def _answer(store: Store, where: str) -> str:
    rows = fetch(
        store.root / DATABASE,
        f"SELECT answer_id FROM answers JOIN conditions USING (condition_id) WHERE {where} "
        "ORDER BY answer_id LIMIT 1",
    ).rows
    return rows[0][0]


def _walk(node: Node) -> list[Node]:
    return [node, *(n for parent in node.parents for n in _walk(parent))]


def _by_kind(node: Node) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for parent in node.parents:
        found.setdefault(parent.kind, []).append(parent)
    return found


def test_a_base_answer_reaches_its_article(built: Store) -> None:
    root = trace(built.root / DATABASE, _answer(built, "method = 'base'"))
    question, artefact = root.parents
    assert [n.kind for n in question.parents] == ["chunk", "generation"]
    (article,) = question.parents[0].parents
    assert (article.kind, artefact.kind) == ("article", "artefact")
    assert article.id.endswith("@1")
    revision, link = article.details
    assert revision == "revision 1 of 2031-05-01 00:00 UTC, CC0"
    assert link.startswith("https://example.org/")
    assert link in str(root)
    assert root.whole


def test_choice_and_gold_are_told(built: Store) -> None:
    database = built.root / DATABASE
    wrong = trace(database, _answer(built, "method = 'base' AND NOT correct"))
    (row,) = fetch(
        database,
        "SELECT choice, a.gold, options[choice + 1] AS chosen, options[a.gold + 1] AS golden "
        "FROM answers a JOIN questions USING (question_id) WHERE answer_id = ?",
        [wrong.id],
    ).dicts()
    chosen, gold = (f"{'ABCD'[row[name]]}" for name in ("choice", "gold"))
    assert wrong.details[0] == (
        f"chose {chosen} ({row['chosen']}); wrong: right is {gold} ({row['golden']})"
    )
    right = trace(database, _answer(built, "method = 'base' AND correct"))
    assert right.details[0].endswith("; right")


def test_retrieved_chunks_stand_in_the_order_of_their_ranks_with_scores(built: Store) -> None:
    root = trace(built.root / DATABASE, _answer(built, "method = 'rag' AND k = 3"))
    chunks = _by_kind(root)["chunk"]
    assert [c.note.split(",")[0] for c in chunks] == ["rank 1", "rank 2", "rank 3"]
    assert all("score " in c.note for c in chunks)
    ranked = fetch(
        built.root / DATABASE,
        "SELECT t.chunk_id FROM answers a JOIN conditions c USING (condition_id) JOIN retrieved t "
        "ON t.corpus = c.corpus AND t.retriever = c.retriever AND t.question_id = a.question_id "
        "WHERE a.answer_id = ? AND rank <= 3 ORDER BY rank",
        [root.id],
    ).rows
    assert [(c.id,) for c in chunks] == ranked


def test_a_fine_tuned_answer_shows_the_text_it_was_asked_about_first(built: Store) -> None:
    root = trace(
        built.root / DATABASE, _answer(built, "method = 'ft_rag' AND k = 3 AND recipe = 'full.p04'")
    )
    by_kind = _by_kind(root)
    assert len(by_kind["chunk"]) == 3
    source = by_kind["question"][0].parents[0].id
    (checkpoint,) = by_kind["checkpoint"]
    assert checkpoint.parents[0].id == source
    first = next(n for n in checkpoint.parents if n.kind == "paraphrase")
    assert first.parents[0].id == source
    assert checkpoint.left_out == {"chunk": 9, "paraphrase": 57}
    assert "and 57 more of kind paraphrase" in str(root)
    assert {"article", "generation"} <= {n.kind for n in _walk(root)}
    settings, text = checkpoint.details
    assert settings.startswith("full training, seed 0, learning rate 0.0001, 2 epochs, 10 steps")
    assert text == (
        "trained on 12 chunks and 48 texts of paraphrase; chosen on 12 validation paraphrases"
    )


def test_every_artefact_on_the_way_is_told_once_in_full(built: Store) -> None:
    root = trace(
        built.root / DATABASE, _answer(built, "method = 'ft_rag' AND k = 3 AND recipe = 'full.p04'")
    )
    artefacts = [n for n in _walk(root) if n.kind == "artefact"]
    names = {n.id.split("/")[0] for n in artefacts}
    assert {"answers_ft_rag", "checkpoint", "paraphrases", "questions", "chunks"} <= names
    full = [n.id for n in artefacts if not n.above]
    assert len(full) == len(set(full))
    assert any(n.above for n in artefacts)
    chunks = next(n for n in artefacts if n.id == "chunks/events-2031-04" and not n.above)
    (row,) = fetch(
        built.root / DATABASE, "SELECT * FROM artefacts WHERE artefact = ?", [chunks.id]
    ).dicts()
    assert chunks.label == f"version {row['logical_version']}, code 1"
    assert chunks.details[0].startswith("finished ")
    assert chunks.details[1] == "kinject 0.1"
    part = next(n for n in artefacts if n.id == "paraphrases/events-2031-04")
    assert part.note == "its part p04"


def test_json_has_the_whole_tree(built: Store) -> None:
    root = trace(built.root / DATABASE, _answer(built, "method = 'rag' AND k = 1"))
    read = json.loads(root.to_json())
    assert (read["kind"], read["id"]) == ("answer", root.id)
    assert [p["kind"] for p in read["parents"]] == ["question", "chunk", "artefact"]


def test_the_beginning_of_an_id_is_enough(built: Store) -> None:
    database = built.root / DATABASE
    answer = _answer(built, "method = 'base'")
    assert trace(database, answer[:12]).id == answer
    with pytest.raises(KinjectError, match="at least 8 characters"):
        trace(database, answer[:3])


def test_a_beginning_of_two_ids_is_refused(lake: Store) -> None:
    first, second = _answer(lake, "method = 'base'"), _answer(lake, "method = 'rag'")
    with duckdb.connect(str(lake.root / DATABASE)) as connection:
        for answer, name in ((first, "abcdefgh1"), (second, "abcdefgh2")):
            connection.execute(
                "UPDATE answers SET answer_id = ? WHERE answer_id = ?", [name, answer]
            )
    with pytest.raises(KinjectError, match="abcdefgh1, abcdefgh2; give more"):
        trace(lake.root / DATABASE, "abcdefgh")
    # Its links are under the old id.
    assert trace(lake.root / DATABASE, "abcdefgh1").parents == ()


def test_an_unknown_answer_or_database(built: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="no answer `nothing'--`"):
        trace(built.root / DATABASE, "nothing'--")
    with pytest.raises(MissingArtefact, match="kinject run"):
        trace(tmp_path / DATABASE, "x")


def test_a_database_of_old_is_refused_with_the_mend(built: Store, tmp_path: Path) -> None:
    shutil.copyfile(built.root / DATABASE, tmp_path / DATABASE)
    with duckdb.connect(str(tmp_path / DATABASE)) as connection:
        connection.execute("ALTER TABLE artefacts DROP COLUMN seal")
    with pytest.raises(MissingArtefact, match="kinject run --select results"):
        trace(tmp_path / DATABASE, "x")


def test_what_is_not_in_the_database_is_said(lake: Store) -> None:
    answer = _answer(lake, "method = 'base'")
    with duckdb.connect(str(lake.root / DATABASE)) as connection:
        connection.execute("DELETE FROM questions")
    root = trace(lake.root / DATABASE, answer)
    assert not root.whole
    assert "NOT IN THE DATABASE" in str(root)


def test_a_narrow_terminal_gets_short_lines_and_whole_links(built: Store) -> None:
    root = trace(
        built.root / DATABASE, _answer(built, "method = 'ft_rag' AND k = 3 AND recipe = 'full.p04'")
    )
    assert max(map(len, root.text(80).splitlines())) <= 80
    assert max(map(len, root.text().splitlines())) > 100
    assert "https://example.org/" in root.text(80)


def test_text_from_outside_cannot_move_the_terminal() -> None:
    node = Node("article", "a@1", "Title \x1b[2J\nnext\u202e", ("https://x/\x07",))
    assert not {"\x1b", "\x07", "\u202e"} & set(str(node))
    assert plain("a\tb\n c") == "a b c"


def test_the_revision_is_that_of_the_answers_corpus(lake: Store) -> None:
    database = lake.root / DATABASE
    answer = _answer(lake, "method = 'base' AND corpus = 'rivers' AND question_id = 'q-rivers-2'")
    with duckdb.connect(str(database)) as connection:
        chunk = "(SELECT chunk_id FROM questions WHERE question_id = 'q-rivers-2')"
        connection.execute(
            f"INSERT INTO lineage SELECT 'chunk', chunk_id, 'article', 'another@9' FROM chunks "
            f"WHERE chunk_id = {chunk}"
        )
    (article,) = trace(database, answer).parents[0].parents[0].parents
    assert article.id.endswith("@1")


def test_what_was_read_before_it_changed_is_not_shown(
    lake: Store, rewrite: Callable[..., None]
) -> None:
    corpus = "events-2031-04"
    ran = Cell("answers_ft_rag", (corpus, f"{synthetic.MODEL}.full.p04"))
    manifest = lake.manifest(ran)
    assert manifest is not None
    rewrite(lake, ran, inputs={**manifest.inputs, f"retrieved/{corpus}": "as it was then"})
    rewrite(lake, Cell("chunks", (corpus,)), logical_version="moved on")
    build_database(lake, synthetic.profile(), generations=synthetic.GENERATIONS)
    asked = _answer(lake, "method = 'ft_rag' AND k = 3 AND recipe = 'full.p04'")
    root = trace(lake.root / DATABASE, asked)
    by_kind = _by_kind(root)
    assert "chunk" not in by_kind
    (checkpoint,) = by_kind["checkpoint"]
    assert {n.kind for n in checkpoint.parents} == {"paraphrase"}
    assert (
        f"retrieved/{corpus} has changed since it was read: the passages that stood in the prompt "
        "are not shown"
    ) in root.details
    assert checkpoint.details[1:] == (
        "trained on 48 texts of paraphrase; chosen on 12 validation paraphrases",
        f"chunks/{corpus} has changed since it was read: its texts as they were then are not shown",
    )
    notes = {n.id: n.note for n in _walk(root) if n.kind == "artefact" and n.note}
    assert notes[f"retrieved/{corpus}"] == "has changed since it was read"
    assert root.whole
    # Other recipes' answers have their passages all the same.
    other = trace(lake.root / DATABASE, _answer(lake, "method = 'rag' AND k = 3"))
    assert len(_by_kind(other)["chunk"]) == 3
    chains = [f for f in audit(lake).findings if f.area == "chains"]
    assert {f.kind for f in chains} == {"stale"}
    assert str(ran) in {f.artefact for f in chains}
    assert audit(lake).whole < audit(lake).answers
