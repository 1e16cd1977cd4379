from pathlib import Path

import faiss
import numpy as np
import pytest

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.retrieval.encoder import Embeddings, EncoderIdentity
from kinject_assets.core.retrieval.index import INDEX, build_index, load_index, save_index
from kinject_assets.core.retrieval.search import mean_reciprocal_rank, recall_at, retrieve
from kinject_assets.core.schema import Question, Retrieved

DIMENSION = 16


def identity(weights: str = "w", dimension: int = DIMENSION) -> EncoderIdentity:
    return EncoderIdentity(model="m", revision=None, weights=weights, dimension=dimension)


def unit_rows(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embeddings(vectors: np.ndarray) -> Embeddings:
    ids = [f"c{row}" for row in range(len(vectors))]
    return Embeddings(chunk_ids=ids, vectors=vectors, encoder=identity())


def questions(count: int, chunk_id: str | None = None) -> list[Question]:
    return [
        Question(
            question_id=f"q{number}",
            origin="llm",
            stem="?",
            options=["a", "b"],
            gold=0,
            chunk_id=chunk_id,
            generator="",
            generation_id="",
            triage="",
            split="test",
            retired=False,
        )
        for number in range(count)
    ]


def search(vectors: np.ndarray, queries: np.ndarray, depth: int) -> list[Retrieved]:
    index = build_index(embeddings(vectors))
    return retrieve(
        "rivers",
        questions(len(queries), "c3"),
        index.chunk_ids,
        index.index,
        queries,
        config.Retrieval.model_validate({"depth": depth}),
        "dense",
    )


def test_ranks_as_brute_force_does() -> None:
    vectors, queries = unit_rows(200, 1), unit_rows(30, 2)
    rows = search(vectors, queries, depth=7)
    scores = queries @ vectors.T
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    assert len(rows) == 30 * 7
    for number in range(30):
        mine = rows[number * 7 : number * 7 + 7]
        assert [row.rank for row in mine] == list(range(1, 8))
        assert [row.chunk_id for row in mine] == [f"c{i}" for i in expected[number]]
        assert [row.score for row in mine] == pytest.approx(
            scores[number, expected[number]], abs=1e-5
        )
        assert [row.hit for row in mine] == [row.chunk_id == "c3" for row in mine]


def test_equal_scores_rank_in_corpus_order_even_across_the_last_place() -> None:
    vectors = unit_rows(40, 3)
    vectors[[5, 17, 30, 38]] = vectors[22]
    rows = search(vectors, vectors[22][None], depth=3)
    assert [row.chunk_id for row in rows] == ["c5", "c17", "c22"]


def test_a_corpus_smaller_than_the_depth_gives_what_it_has() -> None:
    rows = search(unit_rows(4, 4), unit_rows(2, 5), depth=10)
    assert [row.rank for row in rows] == [1, 2, 3, 4] * 2


def test_recall_and_reciprocal_rank_of_known_ranks() -> None:
    def row(question: str, rank: int, hit: bool) -> Retrieved:
        return Retrieved(
            corpus="c",
            question_id=question,
            retriever="r",
            rank=rank,
            chunk_id="x",
            score=0.0,
            hit=hit,
        )

    rows = [row("a", 1, True), row("a", 2, False), row("b", 1, False), row("b", 2, True)]
    rows += [row("c", 1, False), row("c", 2, False)]
    assert recall_at(rows, 1) == pytest.approx(1 / 3)
    assert recall_at(rows, 2) == pytest.approx(2 / 3)
    assert mean_reciprocal_rank(rows) == pytest.approx((1 + 0.5 + 0) / 3)
    with pytest.raises(ValueError, match="no retrieved rows"):
        recall_at([], 1)


def test_index_survives_the_disk(tmp_path: Path) -> None:
    vectors = unit_rows(20, 6)
    save_index(tmp_path, build_index(embeddings(vectors)))
    loaded = load_index(tmp_path, identity())
    assert loaded.chunk_ids == [f"c{row}" for row in range(20)]
    assert np.array_equal(loaded.index.reconstruct_n(0, 20), vectors)


def test_damage_and_other_encoders_are_refused_by_name(tmp_path: Path) -> None:
    save_index(tmp_path, build_index(embeddings(unit_rows(20, 7))))
    with pytest.raises(BrokenArtefact, match=r"other-weights[\s\S]*faiss_index"):
        load_index(tmp_path, identity("other-weights"))
    path = tmp_path / INDEX
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenArtefact, match=r"index\.faiss: not a readable FAISS index"):
        load_index(tmp_path)
    faiss.write_index(faiss.IndexFlatIP(DIMENSION + 1), str(path))
    with pytest.raises(BrokenArtefact, match="holds 0 vectors of 17 numbers"):
        load_index(tmp_path)
    faiss.write_index(faiss.IndexFlatL2(DIMENSION), str(path))
    with pytest.raises(BrokenArtefact, match="not a flat inner-product index"):
        load_index(tmp_path)


def test_an_empty_corpus_has_no_index() -> None:
    with pytest.raises(MissingArtefact, match="no chunks to search"):
        build_index(embeddings(unit_rows(0, 8)))
