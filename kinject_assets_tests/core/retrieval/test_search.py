import numpy as np
import pytest

from kinject_assets.core.retrieval.encoder import Embeddings, EncoderIdentity
from kinject_assets.core.retrieval.index import ChunkIndex, build_index
from kinject_assets.core.retrieval.search import (
    LEAST,
    as_rows,
    best,
    hit_ranks,
    hits_at,
    mean_reciprocal_rank,
    nearest,
    recall_at,
)
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
    asked = questions(len(queries), "c3")
    return as_rows("rivers", asked, index.chunk_ids, "dense", nearest(index, queries, depth))


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


@pytest.mark.parametrize("copies", [5, 30])
def test_equal_scores_rank_in_corpus_order_even_across_the_last_place(copies: int) -> None:
    vectors = unit_rows(40, 3)
    same = sorted(np.random.default_rng(0).permutation(40)[:copies])
    vectors[same] = vectors[22]
    rows = search(vectors, vectors[22][None], depth=3)
    assert [row.chunk_id for row in rows] == [f"c{row}" for row in sorted({*same, 22})[:3]]


def test_a_corpus_smaller_than_the_depth_gives_what_it_has() -> None:
    rows = search(unit_rows(4, 4), unit_rows(2, 5), depth=10)
    assert [row.rank for row in rows] == [1, 2, 3, 4] * 2


def test_what_an_approximate_index_leaves_out_comes_last_in_corpus_order() -> None:
    class Forgetful(ChunkIndex):
        def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
            scores, rows = super().search(queries, depth)
            scores[rows % 3 == 0], rows[rows % 3 == 0] = -np.inf, -1
            return scores, rows

    whole = build_index(embeddings(unit_rows(8, 6)))
    index = Forgetful(**vars(whole))
    (ranked,) = nearest(index, unit_rows(1, 7), 7)
    (everything,) = nearest(whole, unit_rows(1, 7), 8)
    there = [(row, score) for row, score in everything if row % 3]
    assert ranked == [*there, (0, LEAST), (3, LEAST)]


def test_the_best_of_a_whole_corpus_are_those_of_a_stable_sort() -> None:
    scores = np.random.default_rng(1).integers(0, 4, 50).astype(np.float32)
    for depth in (1, 7, 49, 50, 60):
        expected = np.argsort(-scores, kind="stable")[:depth]
        assert best(scores, depth) == [(row, scores[row]) for row in expected]
    assert best(np.zeros(0, dtype=np.float32), 3) == []


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
    assert hit_ranks(rows) == {"a": 1, "b": 2, "c": None}
    assert (hits_at(rows, 1), hits_at(rows, 2)) == ({"a"}, {"a", "b"})
    assert recall_at(rows, 1) == pytest.approx(1 / 3)
    assert recall_at(rows, 2) == pytest.approx(2 / 3)
    assert mean_reciprocal_rank(rows) == pytest.approx((1 + 0.5 + 0) / 3)
    with pytest.raises(ValueError, match="no retrieved rows"):
        recall_at([], 1)
