"""What is checked of retrieval."""

from collections.abc import Sequence

import dagster as dg
import numpy as np
import pytest

from kinject_assets.config import Retrieval
from kinject_assets.core.retrieval import search
from kinject_assets.core.retrieval.encoder import Embeddings, EncoderIdentity
from kinject_assets.core.retrieval.index import build_index
from kinject_assets.core.retrieval.search import nearest_likeness
from kinject_assets.core.schema import Retrieved
from kinject_assets.defs import checks, retrieval
from kinject_assets.defs.checks import CHECKS


def brought(retriever: str, own_ranks: Sequence[int]) -> list[Retrieved]:
    """Ten ranks a question; its own chunk at the rank given, nowhere for 0."""
    return [
        Retrieved(
            corpus="c",
            question_id=f"q{number}",
            retriever=retriever,
            rank=rank,
            chunk_id=f"c{rank}",
            score=1 / rank,
            hit=rank == own,
        )
        for number, own in enumerate(own_ranks)
        for rank in range(1, 11)
    ]


def found(
    first: str, written: bool = True, **ranks: Sequence[int]
) -> dict[str, dg.AssetCheckResult]:
    rows = {name: brought(name, own) for name, own in ranks.items()}
    results = checks.retrieved(rows, first, written)
    assert {result.check_name for result in results} == CHECKS["retrieved"].keys()
    assert all(result.severity == dg.AssetCheckSeverity.WARN for result in results)
    return {result.check_name or "": result for result in results}


@pytest.mark.parametrize(("ranks", "passed"), [([1, 5, 6, 0], True), ([6, 5, 6, 0], False)])
def test_half_of_the_questions_have_their_chunk_among_the_first_five(
    ranks: list[int], passed: bool
) -> None:
    assert found("dense", dense=ranks)["recall"].passed is passed


def test_a_retriever_that_words_beat_is_called_out() -> None:
    equal = found("dense", dense=[1, 0, 6] * 10, lexical=[5, 10, 0] * 10)["not_below_lexical"]
    assert equal.passed
    # Two questions more of thirty are no more than chance; ten are.
    few = found("dense", dense=[1] * 20 + [0] * 10, lexical=[1] * 22 + [0] * 8)
    assert few["not_below_lexical"].passed
    many = found("dense", dense=[1] * 20 + [0] * 10, lexical=[1] * 30)["not_below_lexical"]
    assert not many.passed
    assert "misses 10 that it does" in (many.description or "")
    assert "try `fused`" in (many.description or "")
    better = found("dense", dense=[1] * 30, lexical=[0] * 30)["not_below_lexical"]
    assert better.passed


def test_without_anything_to_compare_the_check_says_how() -> None:
    alone = found("dense", dense=[1, 2])["not_below_lexical"]
    assert alone.passed and "also_ranked: [lexical]" in (alone.description or "")
    assert found("lexical", lexical=[1], dense=[1])["not_below_lexical"].passed
    unwritten = found("dense", written=False, dense=[0, 0], lexical=[0, 0])
    assert all(result.passed for result in unwritten.values())


def found_of_vectors(vectors: np.ndarray, cut_share: float) -> dict[str, dg.AssetCheckResult]:
    results = checks.embeddings(vectors, cut_share)
    assert {result.check_name for result in results} == CHECKS["embeddings"].keys()
    return {result.check_name or "": result for result in results}


def test_every_vector_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BLOCK", 4)
    vectors = np.eye(10, dtype=np.float32)
    assert found_of_vectors(vectors, 0)["normalised"].passed
    vectors[9] = 0
    assert not found_of_vectors(vectors, 0)["normalised"].passed
    assert found_of_vectors(vectors[:0], 0)["normalised"].passed


def test_texts_that_were_cut_are_told_with_what_to_do() -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert found_of_vectors(vectors, 0)["nothing_cut"].passed
    cut = found_of_vectors(vectors, 0.25)["nothing_cut"]
    assert (cut.passed, cut.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "25.0% of the chunks" in (cut.description or "")
    assert "chunking.max_tokens" in (cut.description or "")


def test_an_index_of_other_vectors_is_found_out() -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    identity = EncoderIdentity(model="m", revision=None, weights="w", dimension=16)
    ids = [str(row) for row in range(300)]
    made = Embeddings(chunk_ids=ids, vectors=vectors, encoder=identity)
    for kind in ("flat", "hnsw"):
        index = build_index(made, Retrieval.model_validate({"index": kind}))
        assert checks.faiss_index(index, vectors)[0].passed
        # One in fifty may be missed by an approximate index, and by no other.
        one_off = vectors.copy()
        one_off[::50] = -one_off[::50]
        assert checks.faiss_index(index, one_off)[0].passed is (kind == "hnsw")
        assert not checks.faiss_index(index, -vectors)[0].passed


def test_an_index_is_checked_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SAMPLE", 100)
    vectors = np.random.default_rng(0).standard_normal((1001, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    identity = EncoderIdentity(model="m", revision=None, weights="w", dimension=16)
    ids = [str(row) for row in range(len(vectors))]
    made = Embeddings(chunk_ids=ids, vectors=vectors, encoder=identity)
    index = build_index(made, Retrieval.model_validate({"index": "flat"}))
    good = checks.faiss_index(index, vectors)[0]
    assert good.passed and (good.description or "").startswith("91 vectors")
    for part in (slice(0, 100), slice(450, 550), slice(900, None)):
        other = vectors.copy()
        other[part] = -other[part]
        assert not checks.faiss_index(index, other)[0].passed


def test_recall_is_shown_as_far_as_chunks_are_brought() -> None:
    rows = {"dense": [row for row in brought("dense", [1, 3, 4, 0]) if row.rank <= 3]}
    recalls = retrieval._recalls(rows, "dense", 3)
    assert recalls == {
        "recall_at_1": 0.25,
        "recall_at_3": 0.5,
        "mean_reciprocal_rank": pytest.approx((1 + 1 / 3) / 4),
    }
    table = retrieval._quality(rows, ["dense"], 3)["retrievers"].value
    assert "| recall@1 | recall@3 | MRR |" in table and "@5" not in table
    recall = checks.retrieved(rows, "dense", True)[0]
    assert recall.passed and "among the first 3" in (recall.description or "")
    whole = {"dense": brought("dense", [1, 3, 4, 0])}
    assert list(retrieval._recalls(whole, "dense", 10)) == [
        "recall_at_1",
        "recall_at_5",
        "recall_at_10",
        "mean_reciprocal_rank",
    ]


def test_the_curve_is_recall_at_each_depth() -> None:
    rows = brought("dense", [1, 3, 3, 10, 0, 7])
    expected = [search.recall_at(rows, k) for k in range(1, 13)]
    assert search.recall_curve(rows, 12) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no retrieved rows"):
        search.recall_curve([], 3)


def test_likeness_is_that_of_the_nearest_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK", 7)
    vectors = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    for sample in (1, 7, 12, 100):
        expected = products.max(axis=1)[:sample]
        assert nearest_likeness(vectors, sample) == pytest.approx(expected, abs=1e-5)
    assert nearest_likeness(vectors[:1]) == []
