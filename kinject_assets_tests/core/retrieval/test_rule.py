import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinject_assets import config
from kinject_assets.core.errors import ProfileError
from kinject_assets.core.retrieval.encoder import Embeddings, EncoderIdentity
from kinject_assets.core.retrieval.index import build_index
from kinject_assets.core.retrieval.rule import PQ_LEAST, choose_index


@pytest.mark.parametrize(
    ("vectors", "dimension", "memory_gb", "kind"),
    [
        (1, 384, 8, "flat"),
        (20_000, 1024, 8, "flat"),
        (200_000, 384, 8, "flat"),
        (200_001, 384, 8, "hnsw"),
        (1_000_000, 384, 8, "hnsw"),
        (1_000_000, 1024, 8, "hnsw"),
        (10_000_000, 384, 8, "ivfpq"),
        (10_000_000, 384, 24, "hnsw"),
        (50_000_000, 1024, 8, "ivfpq"),
        (100_000, 384, 0.05, "ivfpq"),
        (5_000, 384, 0.001, "flat"),
    ],
)
def test_the_rule(vectors: int, dimension: int, memory_gb: float, kind: str) -> None:
    choice = choose_index(vectors, dimension, memory_gb)
    assert choice.kind == kind
    assert choice.reason


@given(
    st.integers(1, 10**8),
    st.sampled_from([1, 5, 256, 384, 382, 768, 1021, 1024]),
    st.floats(0.01, 100),
    st.sampled_from(["auto", "flat", "hnsw", "ivfpq"]),
)
def test_whatever_is_chosen_can_be_built_and_fits_if_anything_does(
    vectors: int, dimension: int, memory_gb: float, kind: str
) -> None:
    choice = choose_index(vectors, dimension, memory_gb, kind)  # pyright: ignore[reportArgumentType]
    assert kind in {"auto", choice.kind} or vectors < PQ_LEAST
    if choice.kind == "ivfpq":
        parameters = choice.parameters
        assert dimension % parameters["pq_m"] == 0
        assert 1 <= parameters["nprobe"] <= parameters["nlist"] <= vectors / 39
    if kind == "auto" and choice.kind != "flat":
        flat = choose_index(vectors, dimension, memory_gb, "flat")
        assert choice.bytes <= memory_gb * 1e9 or choice.kind == "ivfpq"
        assert flat.bytes > memory_gb * 1e9 or vectors * dimension > 200_000 * 384


def test_parameters_of_the_profile_stand_in_place_of_the_rules() -> None:
    given_ = config.IndexParameters(nlist=77, nprobe=5, pq_m=96, refine=3, hnsw_m=8, ef_search=9)
    lists = choose_index(100_000, 384, 8, "ivfpq", given_)
    assert lists.parameters == {"nlist": 77, "nprobe": 5, "pq_m": 96, "refine": 3}
    graph = choose_index(100_000, 384, 8, "hnsw", given_)
    assert (graph.parameters["hnsw_m"], graph.parameters["ef_search"]) == (8, 9)
    with pytest.raises(ProfileError, match=r"pq_m: 100 does not divide 384.*Give 96 or 128"):
        choose_index(100_000, 384, 8, "ivfpq", config.IndexParameters(pq_m=100))


@pytest.mark.parametrize("dimension", [64, 200])
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_the_bytes_are_those_of_the_file(kind: str, dimension: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, dimension)).astype(np.float32)
    identity = EncoderIdentity(model="m", revision=None, weights="w", dimension=dimension)
    ids = [str(row) for row in range(len(vectors))]
    settings = config.Retrieval.model_validate({"index": kind})
    index = build_index(Embeddings(chunk_ids=ids, vectors=vectors, encoder=identity), settings)
    assert len(faiss.serialize_index(index.index)) == pytest.approx(index.choice.bytes, rel=0.02)
