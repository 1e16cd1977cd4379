import json
from pathlib import Path

import pytest

from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.lineage.ancestry import Node, trace
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store


def _answer(store: Store, where: str) -> str:
    rows = fetch(
        store.root / DATABASE,
        f"SELECT answer_id FROM answers JOIN conditions USING (condition_id) WHERE {where} "
        "ORDER BY answer_id LIMIT 1",
    ).rows
    return rows[0][0]


def _walk(node: Node) -> list[Node]:
    return [node, *(n for parent in node.parents for n in _walk(parent))]


def test_a_base_answer_reaches_its_article(built: Store) -> None:
    root = trace(built.root / DATABASE, _answer(built, "method = 'base'"))
    (question,) = root.parents
    assert [n.kind for n in question.parents] == ["chunk", "generation"]
    (article,) = question.parents[0].parents
    assert article.kind == "article"
    assert article.id.endswith("@1")
    assert "https://example.org/" in article.label
    assert "https://example.org/" in str(root)


def test_a_fine_tuned_answer_shows_the_text_it_was_asked_about_first(built: Store) -> None:
    root = trace(
        built.root / DATABASE, _answer(built, "method = 'ft_rag' AND k = 3 AND recipe = 'full.p04'")
    )
    by_kind: dict[str, list[Node]] = {}
    for parent in root.parents:
        by_kind.setdefault(parent.kind, []).append(parent)
    assert len(by_kind["chunk"]) == 3
    source = by_kind["question"][0].parents[0].id
    (checkpoint,) = by_kind["checkpoint"]
    assert checkpoint.parents[0].id == source
    first = next(n for n in checkpoint.parents if n.kind == "paraphrase")
    assert first.parents[0].id == source
    assert checkpoint.left_out == {"chunk": 9, "paraphrase": 57}
    assert "and 57 more of kind paraphrase" in str(root)
    assert {"article", "generation"} <= {n.kind for n in _walk(root)}


def test_json_has_the_whole_tree(built: Store) -> None:
    root = trace(built.root / DATABASE, _answer(built, "method = 'rag' AND k = 1"))
    read = json.loads(root.to_json())
    assert (read["kind"], read["id"]) == ("answer", root.id)
    assert len(read["parents"]) == 2


def test_an_unknown_answer_or_database(built: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="no answer `nothing'--`"):
        trace(built.root / DATABASE, "nothing'--")
    with pytest.raises(MissingArtefact, match="kinject run"):
        trace(tmp_path / DATABASE, "x")
