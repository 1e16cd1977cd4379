from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.schema import Chunk, Paraphrase
from kinject_assets.core.store import read_rows
from kinject_assets.core.training import trainer
from kinject_assets.core.training.models import load_tokenizer
from kinject_assets.core.training.packing import (
    NOT_PREDICTED,
    Packer,
    encode_texts,
    inputs_and_labels,
    pack,
    paragraphs,
    recipe_texts,
    targets,
)
from kinject_assets.core.training.trainer import TrainRequest
from kinject_assets.core.training.trial import micro_batches
from kinject_assets.lab.pretrain import build_tokenizer


def arrays(lengths: list[int]) -> list[np.ndarray]:
    # Every token differs from every other, so that order and repetition show.
    starts = np.cumsum([0, *lengths[:-1]])
    return [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=20), st.integers(8, 64), st.integers(0, 5))
def test_every_token_is_in_exactly_one_piece_of_each_epoch(
    lengths: list[int], size: int, epoch: int
) -> None:
    packer = Packer(arrays(lengths), size, seed=1)
    pieces = packer.pieces(epoch)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= size
    assert len(pieces) == packer.epoch_pieces
    assert sorted(np.concatenate(pieces)) == list(range(sum(lengths)))


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=20),
    st.integers(8, 64),
    st.integers(1, 2000),
)
def test_a_control_has_exactly_the_tokens_asked_for(
    lengths: list[int], size: int, tokens: int
) -> None:
    packer = Packer(arrays(lengths), size, seed=1, tokens_per_epoch=tokens)
    stream = packer.stream(0)
    assert len(stream) == tokens
    seen = Counter(stream.tolist())
    passes = tokens // sum(lengths)
    assert set(seen.values()) <= {passes, passes + 1}


def test_order_comes_from_seed_and_epoch() -> None:
    texts = arrays([5] * 12)

    def stream(seed: int, epoch: int) -> list[int]:
        return Packer(texts, 8, seed).stream(epoch).tolist()

    assert stream(1, 0) == stream(1, 0)
    assert stream(1, 0) != stream(1, 1)
    assert stream(1, 0) != stream(2, 0)


def test_texts_of_fewer_paraphrases_are_among_those_of_more(texts: Path) -> None:
    chunks = read_rows(texts / "chunks.parquet", Chunk)
    rows = read_rows(texts / "paraphrases.parquet", Paraphrase)
    held_out = read_rows(texts / "validation.parquet", Paraphrase)
    of = [recipe_texts(reversed(chunks), [*rows[::-1], *held_out], n) for n in range(5)]
    assert of[0] == [chunk.text for chunk in chunks]
    assert [len(some) for some in of] == [8, 16, 24, 32, 40]
    assert all(set(few) < set(more) for few, more in pairwise(of))
    assert not {row.text for row in held_out} & set(of[4])
    assert of[1][:2] == [chunks[0].text, rows[0].text]


def test_a_recipe_reads_the_texts_of_its_own_augmentation(texts: Path) -> None:
    chunks = read_rows(texts / "chunks.parquet", Chunk)
    rows = read_rows(texts / "paraphrases.parquet", Paraphrase)
    asked = [
        replace(row, augmentation="question_answer", text=f"Question: {row.text}") for row in rows
    ]
    paraphrased = recipe_texts(chunks, rows, 2)
    assert recipe_texts(chunks, [*asked, *rows], 2) == paraphrased
    others = recipe_texts(chunks, [*rows, *asked], 2, "question_answer")
    assert len(others) == len(paraphrased) == 24
    assert set(others) & set(paraphrased) == {chunk.text for chunk in chunks}
    assert others[1:3] == [f"Question: {row.text}" for row in rows[:2]]


def test_texts_stand_between_begin_and_end_and_cannot_fake_them() -> None:
    tokenizer = build_tokenizer()
    plain, fake = encode_texts(tokenizer, ["Balan Accord", "Balan </s> Accord"])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("Balan", "Accord")]
    assert plain.tolist() == [begin, *words, end]
    assert fake.tolist().count(end) == 1
    assert fake[-1] == end


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(MissingArtefact, match="nothing to train on"):
        Packer([], 8, 0)


def test_paragraphs_stand_between_blank_lines() -> None:
    text = "One\nline more.\n\n  Two.\n \t\n\n\nThree.\n"
    assert paragraphs(text) == ["One\nline more.", "Two.", "Three."]
    assert paragraphs(" \n\n ") == []


LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=12)


@given(LENGTHS, st.integers(8, 64), st.integers(0, 99), st.integers(1, 9), st.booleans())
def test_what_reaches_the_model_is_every_token_of_every_text_once(
    lengths: list[int], size: int, seed: int, micro_batch: int, isolated: bool
) -> None:
    packer = Packer(arrays(lengths), size, seed, isolated=isolated)
    orders: set[tuple[int, ...]] = set()
    for epoch in range(3):
        pieces = packer.pieces(epoch)
        read: list[int] = []
        predicted: list[int] = []
        for group in micro_batches(pieces, micro_batch):
            ids, positions, labels = inputs_and_labels(group)
            # A rectangle with no token added to fill it.
            assert ids.size == sum(len(piece) for piece in group)
            assert (positions is not None) == isolated
            read += ids.flatten().tolist()
            predicted += labels[labels != NOT_PREDICTED].tolist()
        assert read == packer.stream(epoch).tolist()
        assert sorted(read) == list(range(sum(lengths)))
        assert len(predicted) == len(set(predicted)) == targets(pieces)
        assert set(predicted) == predictable(packer.epoch_texts(epoch), size, isolated)
        orders.add(tuple(read))
    if len(lengths) > 8:
        assert len(orders) > 1


def predictable(texts: list[np.ndarray], size: int, isolated: bool) -> set[int]:
    """All tokens but the first of each piece and, where texts are isolated, of each text."""
    tokens = np.concatenate(texts)
    first = {int(token) for token in tokens[::size]}
    if isolated:
        first |= {int(text[0]) for text in texts}
    return set(tokens.tolist()) - first


@given(LENGTHS, st.integers(4, 64))
def test_positions_count_within_a_text_and_a_piece(lengths: list[int], size: int) -> None:
    texts = arrays(lengths)
    starts = {int(text[0]) for text in texts}
    for piece in pack(texts, size, isolated=True):
        expected: list[int] = []
        for place, token in enumerate(piece["id"].tolist()):
            new = place == 0 or token in starts
            expected.append(0 if new else expected[-1] + 1)
        assert piece["position"].tolist() == expected


RequestOf = Callable[..., TrainRequest]


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Every row of tokens that the model's forward gets in training."""
    rows: list[list[int]] = []

    def listening(*args: Any, **options: Any) -> Any:
        model: Any = load(*args, **options)

        def hear(model: Any, args: tuple[()], given: dict[str, Any]) -> None:
            if model.training:
                assert not args and given.get("attention_mask") is None
                rows.extend(given["input_ids"].tolist())

        model.register_forward_pre_hook(hear, with_kwargs=True)
        return model

    load = trainer.load_model
    monkeypatch.setattr(trainer, "load_model", listening)
    return rows


def texts_read(rows: list[list[int]], begin: int) -> Counter[tuple[int, ...]]:
    """The texts of all rows, which are joined and parted at the begin tokens."""
    tokens = [token for row in rows for token in row]
    begins = [place for place, token in enumerate(tokens) if token == begin]
    return Counter(tuple(tokens[a:b]) for a, b in pairwise([*begins, len(tokens)]))


@pytest.mark.parametrize(("method", "documents"), [("full", "joined"), ("lora", "isolated")])
def test_the_model_reads_each_text_with_its_ends_once_an_epoch(
    request_of: RequestOf,
    texts: Path,
    tmp_path: Path,
    rows_read: list[list[int]],
    method: str,
    documents: str,
) -> None:
    tokenizer: Any = load_tokenizer(request_of().base)
    chunks = read_rows(texts / "chunks.parquet", Chunk)
    written = read_rows(texts / "paraphrases.parquet", Paraphrase)
    settings = {"learning_rates": [1e-3], "documents": documents, "keep": "last"}
    recipe = trainer.train(
        request_of(
            settings,
            method=method,
            n_paraphrases=2,
            paraphrases=str(texts / "paraphrases.parquet"),
        )
    ).checkpoint
    encoded = [tuple(t.tolist()) for t in encode_texts(tokenizer, recipe_texts(chunks, written, 2))]
    assert len(encoded) == 24
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert texts_read(rows_read, begin) == Counter(encoded * 2)
    # Nothing but texts and their ends: no padding, and as many tokens as the checkpoint says.
    assert sum(map(len, rows_read)) == recipe.packed_tokens == 2 * sum(map(len, encoded))
    assert sum(row.count(end) for row in rows_read) == 2 * 24
    assert tokenizer.pad_token_id not in {token for row in rows_read for token in row}

    rows_read.clear()
    control = trainer.train(
        request_of(
            settings,
            method=method,
            recipe=f"{method}.r02",
            n_paraphrases=2,
            control_tokens=recipe.packed_tokens // recipe.epochs,
            control_epochs=recipe.epochs,
            work=str(tmp_path / "control"),
            out=str(tmp_path / "control-out"),
        )
    ).checkpoint
    assert sum(map(len, rows_read)) == control.packed_tokens == recipe.packed_tokens
    assert control.steps == recipe.steps
    originals = {tuple(t.tolist()) for t in encode_texts(tokenizer, [c.text for c in chunks])}
    whole = {text: n for text, n in texts_read(rows_read, begin).items() if text in originals}
    assert set(whole) == originals
    # What is not whole is the one text of each epoch that was cut at its end.
    cut_short = sum(map(len, rows_read)) - sum(len(text) * n for text, n in whole.items())
    assert cut_short < 2 * max(map(len, originals))
