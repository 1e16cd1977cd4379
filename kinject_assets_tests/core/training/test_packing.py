from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.schema import Chunk, Paraphrase
from kinject_assets.core.store import read_rows
from kinject_assets.core.training.packing import Packer, encode_texts, recipe_texts
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
