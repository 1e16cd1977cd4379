from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, ModelError
from kinject_assets.core.retrieval.encoder import (
    VECTORS,
    embed_chunks,
    encode,
    identify,
    load_embeddings,
    load_encoder,
    query_text,
    save_embeddings,
)
from kinject_assets.core.retrieval.steps import EmbedRequest, embed
from kinject_assets.core.schema import Chunk, Question
from kinject_assets.core.store import write_rows


def chunk(number: int, text: str) -> Chunk:
    return Chunk(
        chunk_id=f"c{number}",
        article_id="a",
        revision_id="r",
        ordinal=number,
        title="",
        section="",
        n_tokens=5,
        small=False,
        text=text,
    )


CHUNKS = [
    chunk(0, "The Balan Accord was led by Abric."),
    chunk(1, "Corath Storm drew 40 guests. It took place in Ashwick, and people remember it."),
    chunk(2, "Eldost Fair"),
]


@pytest.fixture(scope="module")
def settings(encoder_folder: Path) -> config.Encoder:
    return config.Encoder.model_validate({"model": str(encoder_folder), "batch_size": 2})


@pytest.fixture(scope="module")
def encoder(settings: config.Encoder) -> SentenceTransformer:
    return load_encoder(settings, "cpu")


def test_vectors_are_the_encoders_own_in_the_order_given(encoder: SentenceTransformer) -> None:
    texts = [c.text for c in CHUNKS]
    vectors = encode(encoder, texts, batch_size=2)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(encoder.encode(text, normalize_embeddings=True), abs=1e-6)
    prefixed = encode(encoder, texts[:1], 1, prefix="Eldost Fair ")
    assert prefixed[0] == pytest.approx(encoder.encode("Eldost Fair " + texts[0]), abs=1e-6)


def test_known_vectors_of_the_same_encoder_are_reused(
    encoder: SentenceTransformer, settings: config.Encoder
) -> None:
    first = embed_chunks(encoder, CHUNKS[:2], settings)
    marked = replace(first, vectors=first.vectors[:, ::-1].copy())
    again = embed_chunks(encoder, [CHUNKS[2], CHUNKS[1]], settings, [marked])
    assert again.chunk_ids == ["c2", "c1"]
    assert np.array_equal(again.vectors[1], marked.vectors[1])
    assert again.vectors[0] == pytest.approx(encoder.encode(CHUNKS[2].text), abs=1e-6)
    other = replace(marked, encoder=replace(marked.encoder, weights="another"))
    fresh = embed_chunks(encoder, CHUNKS[:2], settings, [other])
    assert np.array_equal(fresh.vectors, first.vectors)


def test_blocks_of_a_stopped_run_are_used_again(
    encoder: SentenceTransformer,
    settings: config.Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kinject_assets.core.retrieval.encoder.TEXTS_A_BLOCK", 1)

    def stop_after_one(message: str, done: int | None = None, total: int | None = None) -> None:
        if message == "embedding texts":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_chunks(encoder, CHUNKS, settings, report=stop_after_one, work=tmp_path)
    (block,) = tmp_path.glob("block-*")
    said: list[str] = []

    def listen(message: str, done: int | None = None, total: int | None = None) -> None:
        said.append(message)

    again = embed_chunks(encoder, CHUNKS, settings, report=listen, work=tmp_path)
    assert said[0] == f"1 chunks already embedded, {len(CHUNKS) - 1} to embed"
    assert again.vectors == pytest.approx(embed_chunks(encoder, CHUNKS, settings).vectors, abs=1e-6)

    (block / VECTORS).write_bytes(b"torn")
    embed_chunks(encoder, CHUNKS, settings, report=listen, work=tmp_path)
    assert f"{len(CHUNKS) - 1} chunks already embedded, 1 to embed" in said


def test_embeddings_survive_the_disk_and_damage_is_named(
    encoder: SentenceTransformer, settings: config.Encoder, tmp_path: Path
) -> None:
    embeddings = embed_chunks(encoder, CHUNKS, settings)
    save_embeddings(tmp_path, embeddings)
    loaded = load_embeddings(tmp_path)
    assert (loaded.chunk_ids, loaded.encoder) == (embeddings.chunk_ids, embeddings.encoder)
    assert np.array_equal(loaded.vectors, embeddings.vectors)
    (tmp_path / VECTORS).write_bytes(b"\x00" * 40)
    with pytest.raises(BrokenArtefact, match=r"vectors\.safetensors: not readable"):
        load_embeddings(tmp_path)


def test_identity_is_the_weights_not_the_folder(
    encoder: SentenceTransformer, settings: config.Encoder
) -> None:
    elsewhere = settings.model_copy(update={"model": "elsewhere"})
    mine = identify(encoder, settings)
    assert mine.same_as(identify(encoder, elsewhere))
    changed = load_encoder(settings, "cpu")
    next(changed.parameters()).data[0, 0] += 1
    assert not mine.same_as(identify(changed, settings))


def test_the_embed_step_counts_what_it_reused(settings: config.Encoder, tmp_path: Path) -> None:
    write_rows(tmp_path / "two.parquet", CHUNKS[:2], Chunk)
    write_rows(tmp_path / "three.parquet", CHUNKS[::-1], Chunk)
    fields = settings.model_dump(mode="json")
    first = str(tmp_path / "first")
    embed(EmbedRequest(chunks=str(tmp_path / "two.parquet"), encoder=fields, out=first))
    again = embed(
        EmbedRequest(
            chunks=str(tmp_path / "three.parquet"),
            encoder=fields,
            out=str(tmp_path / "second"),
            previous=(first,),
        )
    )
    assert (again["chunks"], again["reused"]) == (3, 2)
    assert load_embeddings(tmp_path / "second").chunk_ids == ["c0", "c1", "c2"]
    (Path(first) / VECTORS).write_bytes(b"damaged")
    mended = EmbedRequest(
        chunks=str(tmp_path / "two.parquet"), encoder=fields, out=first, previous=(first,)
    )
    assert embed(mended)["reused"] == 0
    assert load_embeddings(Path(first)).chunk_ids == ["c0", "c1"]


def test_query_text_follows_the_profile() -> None:
    question = Question(
        question_id="q",
        origin="llm",
        stem="Who led it?",
        options=["Abric", "Breton"],
        gold=0,
        chunk_id="c0",
        generator="",
        generation_id="",
        triage="",
        split="test",
        retired=False,
    )
    assert query_text(question, config.Retrieval.model_validate({})) == "Who led it?"
    both = config.Retrieval.model_validate({"query": "question_and_options"})
    assert query_text(question, both) == "Who led it?\nAbric\nBreton"


def test_an_unloadable_encoder_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"retrieval\.encoder\.model"):
        load_encoder(config.Encoder.model_validate({"model": str(tmp_path)}), "cpu")
