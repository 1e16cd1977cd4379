"""Disk: what training really needs for a while, and what checkpoints take."""

from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Profile
from kinject_assets.core.estimate.assumptions import Assumed
from kinject_assets.core.estimate.compute import Reckoner
from kinject_assets.core.estimate.corpora import measure
from kinject_assets.core.estimate.disk import DiskReckoner
from kinject_assets.core.plan import Plan
from kinject_assets.core.schema import Chunk, Paraphrase
from kinject_assets.core.store import Store, write_rows
from kinject_assets_tests.core.estimate.conftest import ProfileOf, chunks_of


def disk(profile: Profile, store: Store) -> DiskReckoner:
    assume, plan = Assumed(), Plan(profile, store)
    materials = measure(plan, assume, within=5)
    return DiskReckoner(plan, materials, Reckoner(plan, materials, assume), [], assume)


def test_checkpoints_take_their_parameters(profile_of: ProfileOf, store: Store) -> None:
    recipes = {"full.p00": None, "lora.p00": {"lora_rank": 16}}
    cells = {"corpora": ["docs"], "models": ["small"], "recipes": list(recipes)}
    models = {"small": {"source": "some/model-100m", "dtype": "bfloat16"}}
    found = disk(profile_of(recipes=recipes, grid=[cells], models=models), store).space()
    size = {row.cell: row.bytes for row in found}
    assert size["checkpoint/docs/small.full.p00"] == 200_000_000
    adapter = size["checkpoint/docs/small.lora.p00"]
    assert 0.001 < adapter / size["checkpoint/docs/small.full.p00"] < 0.05


def test_vectors_have_the_encoders_dimension(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    _, chunks = chunks_of(profile)
    size = {row.cell: row.bytes for row in disk(profile, store).space()}
    assert size["embeddings/docs"] == pytest.approx(len(chunks) * (384 * 4 + 36))
    assert size["faiss_index/docs"] == size["embeddings/docs"]
    encoder = {"model": "BAAI/bge-small-en-v1.5"}
    graph = profile_of(retrieval={"encoder": encoder, "index": "hnsw"})
    larger = {row.cell: row.bytes for row in disk(graph, store).space()}
    assert larger["embeddings/docs"] == size["embeddings/docs"] < larger["faiss_index/docs"]
    unknown = profile_of(retrieval={"encoder": {"model": "somebody/encoder"}})
    assert "embeddings/docs" not in {row.cell for row in disk(unknown, store).space()}


def test_each_retriever_has_its_rows_and_answers(profile_of: ProfileOf, store: Store) -> None:
    def size(**retrieval: list[str]) -> dict[str, float]:
        profile = profile_of(
            retrieval={"encoder": {"model": "BAAI/bge-small-en-v1.5"}, **retrieval}
        )
        return {row.cell: row.bytes for row in disk(profile, store).space()}

    one, ranked = size(), size(also_ranked=["lexical"])
    answered = size(retrievers=["dense", "lexical"])
    assert ranked["retrieved/docs"] > 1.7 * one["retrieved/docs"]
    assert ranked["retrieved/docs"] == answered["retrieved/docs"]
    cell = next(name for name in one if name.startswith("answers_rag/docs"))
    assert ranked[cell] == one[cell] < answered[cell]


def test_downloads_are_of_models_that_are_not_here(profile_of: ProfileOf, store: Store) -> None:
    found = disk(profile_of(), store).downloads()
    assert found == {"some/model-100m": 200_000_000, "BAAI/bge-small-en-v1.5": 66_720_000}


def test_training_needs_no_more_than_is_said_and_not_much_less(
    profile_of: ProfileOf, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watches the folders of a real training of two learning rates while it goes on."""
    from kinject_assets.core.training import trial
    from kinject_assets.core.training.trainer import TrainRequest, train
    from kinject_assets_tests.tiny import random_llama

    training = {
        "piece_tokens": 64,
        "epochs": 3,
        "batch_pieces": 8,
        "micro_batch": 8,
        "learning_rates": [1e-3, 2e-3],
    }
    profile = profile_of(
        training=training,
        models={"small": {"source": "weights"}},
        recipes={"full.p00": None},
        grid=[{"corpora": ["docs"], "models": ["small"], "recipes": ["full.p00"]}],
    )
    _, chunks = chunks_of(profile)
    base = random_llama(profile.folder / "weights", [chunk.text for chunk in chunks])
    write_rows(tmp_path / "chunks.parquet", chunks[:20], Chunk)
    validation = [
        Paraphrase(
            paraphrase_id=chunk.chunk_id,
            chunk_id=chunk.chunk_id,
            augmentation="paraphrase",
            purpose="validation",
            ordinal=0,
            seed=0,
            generator="g",
            generation_id="",
            text=chunk.text,
        )
        for chunk in chunks[20:24]
    ]
    write_rows(tmp_path / "validation.parquet", validation, Paraphrase)
    request = TrainRequest(
        checkpoint_id="id",
        corpus="docs",
        model="small",
        recipe="full.p00",
        seed=0,
        method="full",
        base=str(base),
        chunks=str(tmp_path / "chunks.parquet"),
        validation=str(tmp_path / "validation.parquet"),
        training=training,
        work=str(tmp_path / "work"),
        out=str(tmp_path / "out"),
        device="cpu",
        # The state is saved at every step, as it is every so often where a step takes long.
        resume_seconds=0.0,
    )
    monkeypatch.setattr(trial, "MOST_SAVING", 1e9)
    most = 0
    trainer = trial._packed_trainer()
    named = trainer._name_checkpoint

    def watching(self: Any) -> None:
        # Now the older state and the newer one are both there.
        nonlocal most
        files = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
        most = max(most, sum(path.stat().st_size for path in files))
        named(self)

    monkeypatch.setattr(trainer, "_name_checkpoint", watching)
    train(request)
    said = disk(profile, store).while_training()
    assert 0.8 * said <= most <= 1.1 * said
