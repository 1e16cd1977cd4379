"""General text that is mixed in: as much as asked for, and none that damage is measured on."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinject_assets.core.errors import MissingArtefact, ProfileError
from kinject_assets.core.schema import Chunk
from kinject_assets.core.store import read_rows
from kinject_assets.core.training.models import load_tokenizer
from kinject_assets.core.training.packing import (
    Packer,
    data_hash,
    encode_texts,
    paragraphs,
    replay_tokens,
)
from kinject_assets.core.training.trainer import TrainRequest, train
from kinject_assets.lab.general import general_text, replay_text
from kinject_assets.lab.things import pretraining_things

RequestOf = Callable[..., TrainRequest]
LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=12)


def numbered(lengths: list[int], first: int) -> list[np.ndarray]:
    """Texts whose tokens all differ, so that each says what it is."""
    starts = first + np.cumsum([0, *lengths[:-1]])
    return [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]


@given(LENGTHS, LENGTHS, st.floats(0.01, 0.9), st.integers(0, 99), st.booleans())
def test_the_share_is_exact_to_a_token_and_the_corpus_is_whole(
    own: list[int], general: list[int], share: float, seed: int, isolated: bool
) -> None:
    mixed_in = replay_tokens(sum(own), share)
    packer = Packer(numbered(own, 0), 16, seed, None, isolated, numbered(general, 10_000), mixed_in)
    for epoch in range(3):
        tokens = packer.stream(epoch)
        assert len(tokens) == packer.epoch_tokens
        assert sorted(tokens[tokens < 10_000]) == list(range(sum(own)))
        count = int((tokens >= 10_000).sum())
        assert count == mixed_in
        assert abs(count - share * len(tokens)) <= 1
        pieces = packer.pieces(epoch)
        ids = [piece["id"] for piece in pieces] if isolated else pieces
        assert np.concatenate(ids).tolist() == tokens.tolist()


@given(LENGTHS, st.integers(1, 200), st.integers(0, 99))
def test_no_text_comes_again_before_all_were_used(
    general: list[int], mixed_in: int, seed: int
) -> None:
    replay = numbered(general, 10_000)
    packer = Packer(numbered([30], 0), 16, seed, None, False, replay, mixed_in)
    firsts = {int(text[0]): number for number, text in enumerate(replay)}
    drawn: list[int] = []
    for epoch in range(5):
        cut_short = 0
        for text in packer.epoch_texts(epoch):
            if text[0] >= 10_000:
                number = firsts[int(text[0])]
                assert replay[number][: len(text)].tolist() == text.tolist()
                cut_short += len(text) < len(replay[number])
                drawn.append(number)
        assert cut_short <= 1
        counts = [drawn.count(number) for number in range(len(replay))]
        assert max(counts) - min(counts) <= 1


def test_the_same_texts_are_mixed_in_whatever_is_trained_on_beside_them() -> None:
    replay = numbered([9] * 40, 10_000)

    def mixed(own: list[int], tokens: int | None = None, seed: int = 4) -> list[list[int]]:
        packer = Packer(numbered(own, 0), 16, seed, tokens, False, replay, 50)
        found = [packer.stream(epoch) for epoch in range(3)]
        return [sorted(tokens[tokens >= 10_000].tolist()) for tokens in found]

    recipe = mixed([20, 30, 40, 50])
    assert recipe == mixed([20, 30], 190), "its control"
    assert recipe == mixed([7] * 9)
    assert recipe != mixed([20, 30, 40, 50], seed=5)
    assert len({tuple(epoch) for epoch in recipe}) == 3


def test_the_corpus_keeps_its_order_and_the_replay_is_all_over_it() -> None:
    own, replay = numbered([8] * 60, 0), numbered([8] * 60, 10_000)
    plain = Packer(own, 16, 3)
    mixed = Packer(own, 16, 3, None, False, replay, 8 * 30)
    for epoch in range(2):
        tokens = mixed.stream(epoch)
        assert tokens[tokens < 10_000].tolist() == plain.stream(epoch).tolist()
        places = np.flatnonzero(tokens >= 10_000) / len(tokens)
        thirds = np.histogram(places, bins=3, range=(0, 1))[0]
        assert thirds.min() > 0.15 * len(places)


@pytest.fixture
def general(tmp_path: Path) -> dict[str, str]:
    """The lab's text that is measured, and the one to mix in."""
    found: dict[str, str] = {}
    for name, text in (("general_text", general_text()), ("replay_text", replay_text())):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        found[name] = str(tmp_path / f"{name}.txt")
    return found


@pytest.mark.slow
def test_a_recipe_and_its_control_train_on_the_same_replay(
    request_of: RequestOf, texts: Path, tmp_path: Path, general: dict[str, str]
) -> None:
    settings = {"learning_rates": [1e-3], "replay_share": 0.25}
    # A heading that both texts have does no harm.
    for name, text in (("general_text", general_text()), ("replay_text", replay_text())):
        some = ["Notes", *paragraphs(text)[:40]]
        Path(general[name]).write_text("\n\n".join(some), encoding="utf-8")
    recipe = train(
        request_of(
            settings,
            recipe="full.p02",
            n_paraphrases=2,
            paraphrases=str(texts / "paraphrases.parquet"),
            **general,
        )
    )
    row = recipe.checkpoint
    assert abs(row.replay_tokens - 0.25 * row.packed_tokens) <= row.epochs
    control = train(
        request_of(
            settings,
            recipe="full.r02",
            n_paraphrases=2,
            control_tokens=row.packed_tokens // row.epochs,
            control_replay=row.replay_tokens // row.epochs,
            control_epochs=row.epochs,
            work=str(tmp_path / "control"),
            out=str(tmp_path / "control-out"),
            **general,
        )
    )
    again = control.checkpoint
    assert (again.packed_tokens, again.replay_tokens, again.steps) == (
        row.packed_tokens,
        row.replay_tokens,
        row.steps,
    )
    assert again.repeats == 2
    assert control.identity["replay_data"] == recipe.identity["replay_data"]
    assert control.identity["training_data"] != recipe.identity["training_data"]

    tokenizer = load_tokenizer(request_of().base)
    originals = [chunk.text for chunk in read_rows(texts / "chunks.parquet", Chunk)]
    assert control.identity["training_data"] == data_hash(encode_texts(tokenizer, originals))
    mixed_in = encode_texts(tokenizer, ["Notes", *paragraphs(replay_text())[:40]])
    assert recipe.identity["replay_data"] == data_hash(mixed_in)


def test_without_a_share_nothing_is_mixed_in(
    request_of: RequestOf, general: dict[str, str], tmp_path: Path
) -> None:
    settings = {"learning_rates": [1e-3], "epochs": 1}
    plain = train(request_of(settings))
    offered = train(
        request_of(
            settings,
            replay_text=general["replay_text"],
            work=str(tmp_path / "w"),
            out=str(tmp_path / "o"),
        )
    )
    assert plain.checkpoint.replay_tokens == offered.checkpoint.replay_tokens == 0
    assert plain.losses == offered.losses
    assert "replay_data" not in offered.identity


def test_text_that_cannot_be_mixed_in_is_refused(
    request_of: RequestOf, general: dict[str, str], tmp_path: Path
) -> None:
    share = {"replay_share": 0.2}
    with pytest.raises(ProfileError, match=r"training\.replay_text names no text"):
        train(request_of(share))
    with pytest.raises(MissingArtefact, match=r"training\.replay_text: .*nowhere"):
        train(request_of(share, replay_text=str(tmp_path / "nowhere.txt")))
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(MissingArtefact, match="holds no paragraph"):
        train(request_of(share, replay_text=str(tmp_path / "empty.txt")))
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(MissingArtefact, match="cannot be read as UTF-8"):
        train(request_of(share, replay_text=str(tmp_path / "latin.txt")))


def test_text_that_damage_is_measured_on_is_not_trained_on(
    request_of: RequestOf, general: dict[str, str], tmp_path: Path
) -> None:
    share = {"replay_share": 0.2}
    measured = general["general_text"]
    with pytest.raises(ProfileError, match=r"holds paragraphs of training\.general_text"):
        train(request_of(share, general_text=measured, replay_text=measured))
    # The same words in another file, among others and broken otherwise.
    some = list(islice(paragraphs(general_text()), 10))
    disguised = [*paragraphs(replay_text()), *(text.replace(" ", "\n  ", 3) for text in some)]
    (tmp_path / "copy.txt").write_text("\r\n\r\n".join(disguised), encoding="utf-8")
    with pytest.raises(ProfileError, match="would be measured on text that was trained on"):
        train(request_of(share, general_text=measured, replay_text=str(tmp_path / "copy.txt")))


def test_the_labs_replay_is_of_nothing_that_is_asked_or_measured() -> None:
    names = {thing.name for things in pretraining_things().values() for thing in things}
    replayed = replay_text()
    assert replayed == replay_text()
    assert len(paragraphs(replayed)) == 400
    assert not [name for name in names if name in replayed]
    assert not set(paragraphs(replayed)) & set(paragraphs(general_text()))
