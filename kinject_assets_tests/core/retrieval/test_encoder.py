import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file
from sentence_transformers import SentenceTransformer

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, ModelError
from kinject_assets.core.retrieval.encoder import (
    VECTORS,
    EncoderIdentity,
    VectorFile,
    embed_chunks,
    encode,
    identify,
    load_embeddings,
    load_encoder,
    query_text,
    rows_of,
    text_lengths,
)
from kinject_assets.core.retrieval.steps import EmbedRequest, embed
from kinject_assets.core.schema import Chunk, Question
from kinject_assets.core.store import write_rows
from kinject_assets_tests.tiny import random_bert

WORDS = "one two three four five six seven"
OLD_FIELDS = ("model", "revision", "weights", "dimension")


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


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bert(tmp_path_factory.mktemp("bert"), [*(c.text for c in CHUNKS), WORDS])


def test_vectors_are_the_encoders_own_in_the_order_given(encoder: SentenceTransformer) -> None:
    texts = [c.text for c in CHUNKS]
    vectors = encode(encoder, texts, batch_size=2)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(encoder.encode(text, normalize_embeddings=True), abs=1e-6)
    prefixed = encode(encoder, texts[:1], 1, prefix="Eldost Fair ")
    assert prefixed[0] == pytest.approx(encoder.encode("Eldost Fair " + texts[0]), abs=1e-6)


def test_known_vectors_of_the_same_encoder_are_reused(
    encoder: SentenceTransformer, settings: config.Encoder, tmp_path: Path
) -> None:
    first = embed_chunks(encoder, CHUNKS[:2], settings, tmp_path / "first")
    marked = replace(first, vectors=first.vectors[:, ::-1].copy(), cut=["c1"])
    again = embed_chunks(encoder, [CHUNKS[2], CHUNKS[1]], settings, tmp_path / "again", [marked])
    assert (again.chunk_ids, again.cut) == (["c2", "c1"], ["c1"])
    assert np.array_equal(again.vectors[1], marked.vectors[1])
    assert again.vectors[0] == pytest.approx(encoder.encode(CHUNKS[2].text), abs=1e-6)
    other = replace(marked, encoder=replace(marked.encoder, weights="another"))
    fresh = embed_chunks(encoder, CHUNKS[:2], settings, tmp_path / "fresh", [other])
    assert np.array_equal(fresh.vectors, first.vectors)


@pytest.mark.parametrize("change", [{"passage_prefix": "passage: "}, {"max_tokens": 12}])
def test_vectors_of_another_prefix_or_length_are_not_reused(
    bert: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = config.Encoder.model_validate({"model": str(bert), "batch_size": 2})
    before = embed_chunks(load_encoder(settings, "cpu"), CHUNKS, settings, tmp_path / "before")
    other = settings.model_copy(update=change)
    after = embed_chunks(load_encoder(other, "cpu"), CHUNKS, other, tmp_path / "after", [before])
    assert not after.encoder.same_as(before.encoder)
    assert np.abs(after.vectors[1] - before.vectors[1]).max() > 1e-3
    back = embed_chunks(
        load_encoder(settings, "cpu"), CHUNKS, settings, tmp_path / "back", [before, after]
    )
    assert np.array_equal(back.vectors, before.vectors)


def test_vectors_of_a_file_without_the_newer_fields_are_reused(
    encoder: SentenceTransformer, settings: config.Encoder, tmp_path: Path
) -> None:
    made = embed_chunks(encoder, CHUNKS, settings, tmp_path)
    path = tmp_path / "encoder.json"
    old = {name: json.loads(path.read_text())[name] for name in OLD_FIELDS}
    path.write_text(json.dumps(old))
    (tmp_path / "cut.json").unlink()
    (tmp_path / VECTORS).unlink()
    save_file({"vectors": np.array(made.vectors[:, ::-1])}, tmp_path / VECTORS)
    before = load_embeddings(tmp_path)
    again = embed_chunks(encoder, CHUNKS, settings, tmp_path / "again", [before])
    assert np.array_equal(again.vectors, before.vectors)


def test_rows_of_a_stopped_run_are_used_again_and_take_no_room_twice(
    encoder: SentenceTransformer,
    settings: config.Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kinject_assets.core.retrieval.encoder.TEXTS_A_BLOCK", 1)
    settings = settings.model_copy(update={"batch_size": 1})
    work, out = tmp_path / "work", tmp_path / "out"

    def stop_after_one(message: str, done: int | None = None, total: int | None = None) -> None:
        if message == "embedding texts":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_chunks(encoder, CHUNKS, settings, out, report=stop_after_one, work=work)
    (rows,) = work.glob("rows-*")
    said: list[str] = []

    def listen(message: str, done: int | None = None, total: int | None = None) -> None:
        said.append(message)

    kept = shutil.copytree(rows, tmp_path / "kept")
    again = embed_chunks(encoder, CHUNKS, settings, out, report=listen, work=work)
    assert said[0] == f"1 chunks already embedded, {len(CHUNKS) - 1} to embed"
    assert list(work.iterdir()) == []
    undisturbed = embed_chunks(encoder, CHUNKS, settings, tmp_path / "undisturbed")
    assert np.array_equal(again.vectors, undisturbed.vectors)

    for damage in ("vectors.safetensors", "kept.json"):
        torn = shutil.copytree(kept, rows)
        (torn / damage).write_bytes(b"torn")
        mended = embed_chunks(encoder, CHUNKS, settings, out, report=listen, work=work)
        assert said.pop(-1 - len(CHUNKS)) == f"0 chunks already embedded, {len(CHUNKS)} to embed"
        assert np.array_equal(mended.vectors, undisturbed.vectors)

    shutil.copytree(kept, work / "rows-of-other-chunks")
    embed_chunks(encoder, CHUNKS, settings, out, work=work)
    assert list(work.iterdir()) == []


def test_the_file_is_plain_safetensors_and_read_memory_mapped(
    encoder: SentenceTransformer, settings: config.Encoder, tmp_path: Path
) -> None:
    made = embed_chunks(encoder, CHUNKS, settings, tmp_path)
    loaded = load_embeddings(tmp_path)
    assert (loaded.chunk_ids, loaded.encoder) == (["c0", "c1", "c2"], made.encoder)
    assert isinstance(loaded.vectors, np.memmap)
    assert np.array_equal(loaded.vectors, encode(encoder, [c.text for c in CHUNKS], 2))
    (plain,) = load_file(tmp_path / VECTORS).values()
    assert plain.dtype == np.float32
    assert np.array_equal(plain, loaded.vectors)
    empty = embed_chunks(encoder, [], settings, tmp_path / "empty")
    assert empty.vectors.shape == (0, made.encoder.dimension)
    assert load_file(tmp_path / "empty" / VECTORS)["vectors"].shape == empty.vectors.shape


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x00" * 40, "not readable"),
        (None, "not readable"),
        (save({"vectors": np.zeros((2, 256), np.float32)}), r"holds \(2, 256\) numbers"),
        (save({"vectors": np.zeros((3, 256), np.float16)}), r"holds .* \(F16\) for 3 chunks"),
        (save({"others": np.zeros((3, 256), np.float32)}), "not readable"),
    ],
)
def test_damage_is_named(
    encoder: SentenceTransformer,
    settings: config.Encoder,
    tmp_path: Path,
    content: bytes | None,
    problem: str,
) -> None:
    embed_chunks(encoder, CHUNKS, settings, tmp_path)
    (tmp_path / VECTORS).unlink()
    if content is not None:
        (tmp_path / VECTORS).write_bytes(content)
    with pytest.raises(BrokenArtefact, match=rf"vectors\.safetensors: {problem}"):
        load_embeddings(tmp_path)


@settings_of(deadline=None, max_examples=80)
@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=12),
    st.lists(st.sampled_from("abcdefghij"), max_size=8, unique=True),
)
def test_rows_are_found_by_their_ids(wanted: list[str], held: list[str]) -> None:
    expected = [held.index(name) if name in held else -1 for name in wanted]
    assert rows_of(wanted, held).tolist() == expected


def test_rows_may_come_in_any_order_but_none_may_be_missing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    identity = EncoderIdentity(model="m", revision=None, weights="w", dimension=5)
    wanted = rng.standard_normal((50, 5)).astype(np.float32)
    file = VectorFile(tmp_path, [f"c{row}" for row in range(50)], identity)
    order = rng.permutation(50)
    for rows in np.split(order, [7, 8, 30]):
        with pytest.raises(ValueError, match="rows are missing"):
            file.finish(tmp_path)
        file.write(rows, wanted[rows])
    file.finish(tmp_path)
    assert np.array_equal(load_embeddings(tmp_path).vectors, wanted)


def test_texts_longer_than_the_encoder_reads_are_counted(bert: Path, tmp_path: Path) -> None:
    settings = config.Encoder.model_validate({"model": str(bert), "max_tokens": 8})
    encoder = load_encoder(settings, "cpu")
    texts = ["one two three", "one two three four five six", "one two three four five six seven"]
    lengths, cut = text_lengths(encoder, texts)
    # With [CLS] and [SEP].
    assert (lengths.tolist(), cut.tolist()) == ([5, 8, 8], [False, False, True])
    vectors = encode(encoder, texts, batch_size=2)
    assert vectors[1] == pytest.approx(vectors[2], abs=1e-6)
    lengths, cut = text_lengths(encoder, texts, "one ")
    assert (lengths.tolist(), cut.tolist()) == ([6, 8, 8], [False, True, True])
    write_rows(tmp_path / "chunks.parquet", [chunk(n, t) for n, t in enumerate(texts)], Chunk)
    request = EmbedRequest(
        chunks=str(tmp_path / "chunks.parquet"),
        encoder=settings.model_dump(mode="json"),
        out=str(tmp_path / "first"),
    )
    assert embed(request)["cut"] == 1
    # Those that are not embedded again are counted, too.
    again = replace(request, out=str(tmp_path / "second"), previous=(request.out,))
    assert (embed(again)["cut"], embed(again)["reused"]) == (1, 3)


def test_an_encoder_without_a_limit_cannot_be_given_one(encoder_folder: Path) -> None:
    settings = config.Encoder.model_validate({"model": str(encoder_folder), "max_tokens": 8})
    with pytest.raises(ModelError, match=r"retrieval\.encoder\.max_tokens"):
        load_encoder(settings, "cpu")


def test_half_precision_gives_vectors_of_length_one_and_another_identity(bert: Path) -> None:
    plain = config.Encoder.model_validate({"model": str(bert)})
    half = plain.model_copy(update={"dtype": "bfloat16"})
    first, second = load_encoder(plain, "cpu"), load_encoder(half, "cpu")
    texts = [c.text for c in CHUNKS]
    vectors = encode(second, texts, 2)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert vectors == pytest.approx(encode(first, texts, 2), abs=0.02)
    assert (identify(first, plain).dtype, identify(second, half).dtype) == ("float32", "bfloat16")
    assert not identify(first, plain).same_as(identify(second, half))


def test_identity_is_the_weights_not_the_folder(
    encoder: SentenceTransformer, settings: config.Encoder
) -> None:
    elsewhere = settings.model_copy(update={"model": "elsewhere"})
    mine = identify(encoder, settings)
    assert mine.same_as(identify(encoder, elsewhere))
    changed = load_encoder(settings, "cpu")
    next(changed.parameters()).data[0, 0] += 1
    assert not mine.same_as(identify(changed, settings))


@pytest.mark.parametrize("part", ["pooling", "limit", "tokenizer"])
def test_identity_is_also_what_the_weights_do_not_say(
    bert: Path, tmp_path: Path, part: str
) -> None:
    changed = Path(shutil.copytree(bert, tmp_path / "changed"))
    if part == "tokenizer":
        path = changed / "tokenizer.json"
        said = json.loads(path.read_text())
        said["model"]["vocab"]["Balan"], said["model"]["vocab"]["Accord"] = (
            said["model"]["vocab"]["Accord"],
            said["model"]["vocab"]["Balan"],
        )
        path.write_text(json.dumps(said))
    elif part == "pooling":
        (path,) = changed.glob("*_Pooling/config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "pooling_mode": "cls"}))
    else:
        path = changed / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 8}))
    same = config.Encoder(model=str(bert))
    copied = config.Encoder(model=str(shutil.copytree(bert, tmp_path / "copied")))
    other = config.Encoder(model=str(changed))
    first, twin, second = (load_encoder(s, "cpu") for s in (same, copied, other))
    mine, theirs = identify(first, same), identify(second, other)
    assert mine.same_as(identify(twin, copied)) and mine.weights == theirs.weights
    texts = [c.text for c in CHUNKS]
    assert np.abs(encode(first, texts, 2) - encode(second, texts, 2)).max() > 1e-3
    assert not mine.same_as(theirs) and mine.version != theirs.version
    assert str(mine) != str(theirs).replace(str(changed), str(bert))
    # What texts leave behind in the tokenizer, and older records, count for nothing.
    assert identify(first, same) == mine
    unrecorded = replace(theirs, made_by="")
    assert mine.same_as(unrecorded) and unrecorded.same_as(mine)
    assert not mine.same_as(replace(unrecorded, weights="other"))


def test_auto_keeps_the_numbers_of_vectors_that_are_there(bert: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "chunks.parquet", CHUNKS, Chunk)

    def made(out: str, dtype: str = "auto", *previous: str) -> dict[str, Any]:
        settings = config.Encoder.model_validate({"model": str(bert), "dtype": dtype})
        request = EmbedRequest(
            chunks=str(tmp_path / "chunks.parquet"),
            encoder=settings.model_dump(mode="json"),
            out=str(tmp_path / out),
            previous=tuple(str(tmp_path / name) for name in previous),
            device="cpu",
        )
        found = embed(request)
        return {name: found[name] for name in ("dtype", "reused")}

    # As on a GPU.
    assert made("half", "float16") == {"dtype": "float16", "reused": 0}
    assert made("kept", "auto", "half") == {"dtype": "float16", "reused": 3}
    assert made("asked", "float32", "half") == {"dtype": "float32", "reused": 0}
    assert made("alone") == {"dtype": "float32", "reused": 0}
    # Vectors of other weights decide nothing.
    path = tmp_path / "half" / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": "other"}))
    assert made("other", "auto", "half") == {"dtype": "float32", "reused": 0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "int8"}))
    with pytest.raises(BrokenArtefact, match=r"encoder\.json is not readable \(dtype 'int8'"):
        load_embeddings(path.parent)


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
    (Path(first) / VECTORS).unlink()
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


def test_parts_embed_each_new_chunk_once_and_together_the_same(
    settings: config.Encoder, tmp_path: Path
) -> None:
    chunks = [
        chunk(number, f"The fair of year {number} drew {number} guests.") for number in range(7)
    ]
    write_rows(tmp_path / "known.parquet", chunks[:2], Chunk)
    write_rows(tmp_path / "chunks.parquet", chunks, Chunk)

    def request(out: str, **more: Any) -> EmbedRequest:
        given = {"chunks": str(tmp_path / "chunks.parquet"), **more}
        return EmbedRequest(encoder=settings.model_dump(), out=str(tmp_path / out), **given)

    embed(request("known", chunks=str(tmp_path / "known.parquet")))
    previous = (str(tmp_path / "known"),)
    alone = embed(request("alone", previous=previous))
    shares = [embed(request(f"part{i}", part=(i, 2), previous=previous)) for i in range(2)]
    assert [share["chunks"] for share in shares] == [2, 3]
    parts = tuple(str(tmp_path / f"part{i}") for i in range(2))
    whole = embed(request("whole", previous=previous, parts=parts))
    assert whole == alone, "what parts made counts as new"
    made, expected = (load_embeddings(tmp_path / name) for name in ("whole", "alone"))
    assert list(made.chunk_ids) == list(expected.chunk_ids)
    np.testing.assert_allclose(made.vectors, expected.vectors, atol=1e-6)
    held = np.concatenate([load_embeddings(Path(part)).vectors for part in parts])
    np.testing.assert_array_equal(made.vectors[2:], held)
