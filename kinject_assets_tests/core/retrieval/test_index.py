import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from safetensors.numpy import save

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.manifest import file_sha256
from kinject_assets.core.retrieval.encoder import (
    VECTORS,
    Embeddings,
    EncoderIdentity,
    VectorFile,
    load_embeddings,
)
from kinject_assets.core.retrieval.index import (
    ABOUT,
    INDEX,
    ChunkIndex,
    build_index,
    load_index,
    save_index,
)

DIMENSION = 32
COUNT = 12_000
KINDS = ("flat", "hnsw", "ivfpq")


def identity(weights: str = "w", dimension: int = DIMENSION) -> EncoderIdentity:
    return EncoderIdentity(model="m", revision=None, weights=weights, dimension=dimension)


def structured(count: int, seed: int) -> np.ndarray:
    """Vectors in clusters, each a few directions wide, as those of texts are."""
    rng = np.random.default_rng(seed)
    shape = np.random.default_rng(0)
    centres = shape.standard_normal((40, DIMENSION))
    directions = shape.standard_normal((40, 6, DIMENSION)) / 2
    chosen = rng.integers(0, 40, count)
    rows = centres[chosen] + np.einsum(
        "nk,nkd->nd", rng.standard_normal((count, 6)), directions[chosen]
    )
    rows += 0.1 * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write(folder: Path, vectors: np.ndarray, encoder: EncoderIdentity | None = None) -> Embeddings:
    ids = [f"c{row}" for row in range(len(vectors))]
    file = VectorFile(folder, ids, encoder or identity())
    file.write(np.arange(len(vectors)), vectors)
    file.finish(folder)
    return load_embeddings(folder)


def settings_of(kind: str, **parameters: int) -> config.Retrieval:
    return config.Retrieval.model_validate({"index": kind, "index_parameters": parameters})


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return write(tmp_path_factory.mktemp("embeddings"), structured(COUNT, 1))


@pytest.fixture(scope="module")
def indexes(embeddings: Embeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexes")
    for kind in KINDS:
        save_index(folder / kind, build_index(embeddings, settings_of(kind)))
    return folder


@pytest.fixture
def copy(indexes: Path, tmp_path: Path):
    """A copy of an index that may be damaged."""

    def of(kind: str) -> Path:
        out = tmp_path / kind
        out.mkdir()
        for path in (indexes / kind).iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        return out

    return of


def by_hand(vectors: np.ndarray, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-products, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(products, rows, axis=1), rows


def test_flat_is_exact(embeddings: Embeddings, indexes: Path) -> None:
    queries = structured(200, 2)
    scores, rows = load_index(indexes / "flat").search(queries, 10)
    expected, brute = by_hand(embeddings.vectors, queries, 10)
    assert scores == pytest.approx(expected, abs=1e-6)
    differing = rows != brute
    # Only what scores the same may stand in another order.
    found = np.einsum("qd,qkd->qk", queries, embeddings.vectors[rows])
    assert np.abs(found[differing] - expected[differing]).max(initial=0) < 1e-6
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_approximate_indexes_find_most_and_score_exactly(
    embeddings: Embeddings, indexes: Path, kind: str
) -> None:
    queries = structured(200, 3)
    scores, rows = load_index(indexes / kind).search(queries, 10)
    _, brute = by_hand(embeddings.vectors, queries, 10)
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(rows, brute, strict=True)])
    assert recall >= 0.95
    exact = np.einsum("qd,qkd->qk", queries, embeddings.vectors[rows])
    assert scores == pytest.approx(exact, abs=1e-6)
    assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_refining_is_what_makes_ivfpq_good(embeddings: Embeddings, indexes: Path) -> None:
    queries = structured(200, 3)
    whole = load_index(indexes / "ivfpq")
    parameters = whole.choice.parameters
    bare = replace(whole, choice=replace(whole.choice, parameters={**parameters, "refine": 1}))
    _, brute = by_hand(embeddings.vectors, queries, 10)
    recalls = [
        np.mean(
            [len({*a} & {*b}) / 10 for a, b in zip(i.search(queries, 10)[1], brute, strict=True)]
        )
        for i in (bare, whole)
    ]
    assert recalls[0] < recalls[1] - 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_is_leaves_places_empty(tmp_path: Path, kind: str) -> None:
    vectors = structured(7, 4)
    made = build_index(write(tmp_path, vectors), settings_of(kind))
    scores, rows = made.search(structured(3, 5), 10)
    assert scores.shape == rows.shape == (3, 10)
    assert [sorted(row) for row in rows.tolist()] == [[-1, -1, -1, *range(7)]] * 3
    # Too few to train IVF-PQ.
    assert made.choice.kind == ("flat" if kind == "ivfpq" else kind)


def test_candidates_may_run_out(indexes: Path) -> None:
    whole = load_index(indexes / "ivfpq")
    parameters = {**whole.choice.parameters, "nprobe": 1, "refine": 1}
    coarse = replace(whole, choice=replace(whole.choice, parameters=parameters))
    _, rows = coarse.search(structured(3, 5), 5000)
    assert (rows[:, -1] == -1).all()
    assert (rows[:, 0] >= 0).all()


def test_refining_needs_little_memory(indexes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, queries = load_index(indexes / "ivfpq"), structured(50, 3)
    scores, rows = whole.search(queries, 10)
    for limit in (1, 100_000):
        monkeypatch.setattr("kinject_assets.core.retrieval.index.REFINED_BYTES", limit)
        again = whole.search(queries, 10)
        assert again[0] == pytest.approx(scores, abs=1e-6)
        assert np.array_equal(again[1], rows)


@pytest.mark.parametrize("kind", KINDS)
def test_built_again_it_is_the_same(embeddings: Embeddings, kind: str) -> None:
    some = embeddings
    if kind == "hnsw":
        some = replace(some, chunk_ids=some.chunk_ids[:2000], vectors=some.vectors[:2000])
    settings = settings_of(kind, **({"build_threads": 1} if kind == "hnsw" else {"nlist": 32}))
    first, second = (faiss.serialize_index(build_index(some, settings).index) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_vectors_of_ivfpq_are_linked_not_copied(embeddings: Embeddings, indexes: Path) -> None:
    assert embeddings.path is not None
    assert (indexes / "ivfpq" / VECTORS).samefile(embeddings.path)
    assert not (indexes / "hnsw" / VECTORS).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_stands_beside_it(indexes: Path, kind: str) -> None:
    about = json.loads((indexes / kind / ABOUT).read_text())
    loaded = load_index(indexes / kind, identity())
    assert {**about, **asdict(loaded.choice)} == about
    assert about["faiss"] == faiss.__version__
    assert about["sha256"] == file_sha256(indexes / kind / INDEX)
    assert about["bytes"] == pytest.approx((indexes / kind / INDEX).stat().st_size, rel=0.02)


MEMORY = """
import sys
import faiss, numpy as np
from pathlib import Path
from kinject_assets.core.retrieval import index as module
from kinject_assets.core.retrieval.index import load_index

# Exact vectors of candidates, which are read in parts.
module.REFINED_BYTES = 2**20

def own():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])

queries = np.load(sys.argv[2])
index = faiss.IndexFlatIP(queries.shape[1]); index.add(queries); index.search(queries, 3)
before = own()
load_index(Path(sys.argv[1])).search(queries, 10)
print(own() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", ["flat", "hnsw", pytest.param("ivfpq", marks=pytest.mark.slow)])
def test_a_loaded_index_stays_on_the_disk(tmp_path: Path, kind: str) -> None:
    wide = np.tile(structured(10_000, 6), 16)
    encoder = identity(dimension=wide.shape[1])
    made = write(tmp_path, wide / 4, encoder)
    small = {"hnsw": {"hnsw_m": 4, "ef_construction": 4}, "ivfpq": {"nlist": 16, "pq_m": 64}}
    save_index(tmp_path / kind, build_index(made, settings_of(kind, **small.get(kind, {}))))
    np.save(tmp_path / "queries.npy", wide[:50] / 4)
    words = [sys.executable, "-c", MEMORY, str(tmp_path / kind), str(tmp_path / "queries.npy")]
    grown = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    files = [tmp_path / kind / INDEX, tmp_path / kind / VECTORS]
    size = sum(path.stat().st_size for path in files if path.exists()) / 1024
    assert size > 20_000
    assert grown < size / 5


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), max(1, len(content) // 50)):
        content[at] ^= 0xFF
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize("name", [INDEX, ABOUT, "chunks.json", "encoder.json"])
def test_damage_is_named_before_faiss_reads_it(
    copy: Any, kind: str, damage: Any, name: str
) -> None:
    folder = copy(kind)
    damage(folder / name)
    with pytest.raises(BrokenArtefact) as raised:
        load_index(folder)
    said = str(raised.value)
    assert name in said
    assert "Materialise `embeddings` and `faiss_index` of this corpus again" in said


def test_faiss_reads_nothing_that_has_other_bytes(
    copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("hnsw")
    flip(folder / INDEX)

    def read(*_: Any) -> None:
        raise AssertionError("FAISS was given damaged bytes")

    monkeypatch.setattr(faiss, "read_index", read)
    with pytest.raises(BrokenArtefact, match=r"index\.faiss: does not hold the bytes"):
        load_index(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "not readable"),
        (b"torn", "does not hold the bytes"),
        (save({"vectors": np.zeros((COUNT, DIMENSION), np.float32)}), "does not hold the bytes"),
    ],
)
def test_the_exact_vectors_must_be_there(copy: Any, content: bytes | None, problem: str) -> None:
    folder = copy("ivfpq")
    (folder / VECTORS).unlink()
    if content:
        (folder / VECTORS).write_bytes(content)
    with pytest.raises(BrokenArtefact, match=rf"vectors\.safetensors: {problem}.*Materialise"):
        load_index(folder)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("hnsw", {}),
        ("hnsw", {"hnsw_m": 32, "ef_construction": 200}),
        ("hnsw", {"hnsw_m": 32, "ef_construction": 200, "ef_search": 0}),
        ("hnsw", {"hnsw_m": 32, "ef_construction": 200, "ef_search": True}),
        ("ivfpq", {"nlist": 256, "nprobe": "16", "pq_m": 4, "refine": 20}),
        ("ivfpq", {"nlist": 256, "nprobe": 16, "pq_m": 4}),
        ("ivfpq", [16]),
        ("flat", "nothing"),
    ],
)
def test_parameters_that_are_missing_or_no_numbers_are_named(
    copy: Any, kind: str, parameters: Any
) -> None:
    folder = copy(kind)
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, "parameters": parameters}))
    with pytest.raises(BrokenArtefact, match=r"index\.json: not readable.*Materialise"):
        load_index(folder)


def replaced(folder: Path, index: Any) -> None:
    """Another index in place of the one that was written, with its checksum."""
    faiss.write_index(index, str(folder / INDEX))
    about = json.loads((folder / ABOUT).read_text())
    about["sha256"] = file_sha256(folder / INDEX)
    (folder / ABOUT).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("kind", "other", "problem"),
    [
        ("flat", faiss.IndexFlatIP(DIMENSION + 1), "holds 0 vectors of 33 numbers"),
        ("flat", faiss.IndexFlatL2(DIMENSION), "not a flat index of inner products"),
        ("hnsw", faiss.IndexFlatIP(DIMENSION), "not a hnsw index"),
        ("ivfpq", faiss.IndexHNSWFlat(DIMENSION, 8), "not a ivfpq index"),
    ],
)
def test_an_index_of_another_kind_or_size_is_refused(
    copy: Any, kind: str, other: Any, problem: str
) -> None:
    folder = copy(kind)
    replaced(folder, other)
    with pytest.raises(BrokenArtefact, match=problem):
        load_index(folder)


def test_another_encoder_is_refused_with_what_differs(indexes: Path) -> None:
    folder = indexes / "flat"
    with pytest.raises(BrokenArtefact, match=r"weights other[\s\S]*faiss_index"):
        load_index(folder, identity("other"))
    with pytest.raises(
        BrokenArtefact, match=r"passage_prefix 'passage: '[\s\S]*retrieval\.encoder"
    ):
        load_index(folder, replace(identity(), passage_prefix="passage: "))
    with pytest.raises(BrokenArtefact, match="64 numbers"):
        load_index(folder, identity(dimension=64))


@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_another_dimension_are_refused(indexes: Path, kind: str) -> None:
    with pytest.raises(BrokenArtefact, match=r"vectors of 32 numbers.*queries have 5"):
        load_index(indexes / kind).search(np.zeros((1, 5), np.float32), 3)


def test_an_empty_corpus_has_no_index(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="no chunks to search"):
        build_index(write(tmp_path, np.zeros((0, DIMENSION), np.float32)))


def test_an_index_can_be_searched_before_it_is_saved(embeddings: Embeddings) -> None:
    made = build_index(embeddings)
    assert isinstance(made, ChunkIndex)
    assert made.choice.kind == "flat"
    assert made.search(embeddings.vectors[:3], 1)[1].ravel().tolist() == [0, 1, 2]
