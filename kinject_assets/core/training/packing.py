"""Texts of a recipe, and their cut into training pieces.

Each text is put between the tokenizer's begin and end tokens. The texts of an epoch, in an order
drawn from seed and epoch, are joined and cut into pieces of exactly `piece_tokens`. What is left
over at the end is a shorter piece of its own: every token is in exactly one piece of each epoch,
and no piece holds padding.

Where texts are isolated, a piece also says where in its text each token stands: the model then
reads each text of the piece as if it stood alone, and no text's begin is predicted from the text
before it. General text that is mixed in (replay) is packed together with the corpus.
"""

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinject_assets.core.augmentation.registry import PARAPHRASE
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.schema import Chunk, Paraphrase

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast


def recipe_texts(
    chunks: Iterable[Chunk],
    paraphrases: Iterable[Paraphrase],
    n_paraphrases: int,
    augmentation: str = PARAPHRASE,
) -> list[str]:
    """Texts that a recipe trains on, in the order of the corpus.

    Each chunk's original, then its texts by the augmentation with ordinals below `n_paraphrases`:
    the texts of a smaller number are always among those of a larger one.

    Args:
        chunks: In any order.
        paraphrases: Rows of any purpose and augmentation; others than asked for are left out.
        n_paraphrases: Texts on each chunk; those that were never written are left out.
        augmentation: Whose texts; no two are ever mixed.
    """
    of_chunk: defaultdict[str, list[Paraphrase]] = defaultdict(list)
    for paraphrase in paraphrases:
        mine = (paraphrase.purpose, paraphrase.augmentation) == ("train", augmentation)
        if mine and paraphrase.ordinal < n_paraphrases:
            of_chunk[paraphrase.chunk_id].append(paraphrase)
    texts: list[str] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.ordinal):
        texts.append(chunk.text)
        rewritten = sorted(of_chunk[chunk.chunk_id], key=lambda paraphrase: paraphrase.ordinal)
        texts += [paraphrase.text for paraphrase in rewritten]
    return texts


def encode_texts(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> "list[np.ndarray]":
    """Token ids of each text with its begin and end tokens, as int64 arrays.

    A tokenizer without a begin token gets its end token there. Special tokens that a text spells
    out are read as plain characters.
    """
    import numpy as np

    if not texts:
        return []
    end = tokenizer.eos_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )["input_ids"]
    return [np.array([begin, *ids, end], dtype=np.int64) for ids in encoded]


def cut(tokens: "np.ndarray", piece_tokens: int) -> "list[np.ndarray]":
    """Consecutive pieces of `piece_tokens`; the last one may be shorter."""
    return [tokens[i : i + piece_tokens] for i in range(0, len(tokens), piece_tokens)]


ISOLATED = [("id", "i8"), ("position", "i8")]
"""Fields of a token in a piece of isolated texts: its id, and its place in its text, from 0. What
continues a text from the piece before begins at 0 again: the model does not see what was before."""


def pack(
    texts: "Sequence[np.ndarray]", piece_tokens: int, isolated: bool = False
) -> "list[np.ndarray]":
    """Joins encoded texts in the order given and cuts them into pieces.

    Args:
        texts: Token ids, each text an array.
        piece_tokens: Tokens in a piece; the last one may be shorter.
        isolated: Whether the pieces say where each text begins.

    Returns:
        Pieces as arrays of token ids, or of `ISOLATED` where texts are isolated.
    """
    import numpy as np

    if not texts:
        return []
    ids = np.concatenate(texts)
    if not isolated:
        return cut(ids, piece_tokens)
    places = np.arange(len(ids))
    begins = places % piece_tokens == 0
    begins[np.cumsum([0, *(len(text) for text in texts[:-1])])] = True
    tokens = np.empty(len(ids), dtype=ISOLATED)
    tokens["id"] = ids
    tokens["position"] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return cut(tokens, piece_tokens)


NOT_PREDICTED = -100
"""Stands for a token that is not predicted; torch's losses leave it out."""


def inputs_and_labels(
    pieces: "Sequence[np.ndarray]",
) -> "tuple[np.ndarray, np.ndarray | None, np.ndarray]":
    """What the model reads of pieces of one length, and what it predicts.

    Returns:
        ids: Token ids, pieces x tokens.
        positions: Places of the tokens in their texts, of the same shape; `None` where texts are
            joined.
        labels: The token after each one but the last of a piece: pieces x (tokens - 1).
            `NOT_PREDICTED` where the token after is an isolated text's first.
    """
    import numpy as np

    batch = np.stack(pieces)
    if batch.dtype.names is None:
        return batch, None, batch[:, 1:]
    ids, positions = batch["id"], batch["position"]
    return ids, positions, np.where(positions[:, 1:] == 0, NOT_PREDICTED, ids[:, 1:])


def targets(pieces: "Iterable[np.ndarray]") -> int:
    """Tokens that pieces predict: all but the first of each, and of each isolated text."""
    return sum(
        len(piece) - 1 if piece.dtype.names is None else int((piece["position"] > 0).sum())
        for piece in pieces
    )


@dataclass(frozen=True)
class Packer:
    """Packs encoded texts into the pieces of any epoch.

    Attributes:
        texts: Encoded texts, from `encode_texts`.
        piece_tokens: Tokens in a piece.
        seed: Orders the texts, together with the epoch, and draws what is mixed in.
        tokens_per_epoch: For a control, the tokens of its recipe's epoch: the texts are repeated,
            in a new order each time, and cut so that with the replay it is exactly this count.
            `None`: each text once.
        isolated: Whether the pieces say where each text begins, see `ISOLATED`.
        replay: Encoded general texts to mix in.
        replay_per_epoch: Tokens of them in each epoch. They are drawn without repeating until all
            were used, by seed alone: whatever the corpus's texts, the same ones are mixed in.
    """

    texts: "list[np.ndarray]"
    piece_tokens: int
    seed: int
    tokens_per_epoch: int | None = None
    isolated: bool = False
    replay: "Sequence[np.ndarray]" = ()
    replay_per_epoch: int = 0

    def __post_init__(self) -> None:
        if not self.texts:
            raise MissingArtefact(
                "there is nothing to train on: the corpus has no chunks. Materialise `chunks` "
                "again and look at the exclusions of `articles`."
            )
        if self.replay_per_epoch and not self.replay:
            raise MissingArtefact(
                "training.replay_share: there is no text to mix in: training.replay_text holds no "
                "paragraph."
            )

    @property
    def own_tokens(self) -> int:
        """Tokens of all texts of the corpus, each once."""
        return sum(len(text) for text in self.texts)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of an epoch, the same in every epoch."""
        if self.tokens_per_epoch is None:
            return self.own_tokens + self.replay_per_epoch
        return self.tokens_per_epoch

    @property
    def epoch_pieces(self) -> int:
        """Pieces of an epoch."""
        return -(-self.epoch_tokens // self.piece_tokens)

    @property
    def repeats(self) -> int:
        """How often each text of the corpus is seen per epoch beyond once, rounded."""
        return max(0, round((self.epoch_tokens - self.replay_per_epoch) / self.own_tokens) - 1)

    def epoch_texts(self, epoch: int) -> "list[np.ndarray]":
        """Texts of an epoch in training order, cut to exactly its tokens. Epochs count from 0."""
        own = self._own_texts(epoch)
        mixed_in = self._replayed(epoch)
        if not mixed_in:
            return own
        # The corpus's texts keep their order, so that recipes with and without replay compare.
        turns = [False] * len(own) + [True] * len(mixed_in)
        random.Random(f"{self.seed}:{epoch}:mix").shuffle(turns)
        of_corpus, of_replay = iter(own), iter(mixed_in)
        return [next(of_replay if turn else of_corpus) for turn in turns]

    def _own_texts(self, epoch: int) -> "list[np.ndarray]":
        rng = random.Random(f"{self.seed}:{epoch}")
        tokens = self.epoch_tokens - self.replay_per_epoch
        parts: list[np.ndarray] = []
        missing = tokens
        while missing > 0:
            order = list(range(len(self.texts)))
            rng.shuffle(order)
            parts += [self.texts[row] for row in order]
            missing -= self.own_tokens
        return _limited(parts, tokens)

    def _replayed(self, epoch: int) -> "list[np.ndarray]":
        """General texts of an epoch; at most one of them, cut, is not whole."""
        deck = self._deck()
        found: list[np.ndarray] = []
        for _ in range(epoch + 1):
            found, missing = [], self.replay_per_epoch
            while missing > 0:
                found.append(next(deck))
                missing -= len(found[-1])
        return _limited(found, self.replay_per_epoch)

    def _deck(self) -> "Iterator[np.ndarray]":
        """General texts without end, all of them before one comes again."""
        rng = random.Random(f"{self.seed}:replay")
        order = list(range(len(self.replay)))
        while True:
            rng.shuffle(order)
            yield from (self.replay[row] for row in order)

    def stream(self, epoch: int) -> "np.ndarray":
        """All tokens of an epoch in training order. Epochs count from 0."""
        import numpy as np

        return np.concatenate(self.epoch_texts(epoch))

    def pieces(self, epoch: int) -> "list[np.ndarray]":
        """Pieces of an epoch in training order."""
        return pack(self.epoch_texts(epoch), self.piece_tokens, self.isolated)


def _limited(texts: "list[np.ndarray]", tokens: int) -> "list[np.ndarray]":
    """The first texts, as many tokens of them as asked for: the last one may be cut."""
    kept: list[np.ndarray] = []
    for text in texts:
        if tokens <= 0:
            break
        kept.append(text[:tokens])
        tokens -= len(text)
    return kept


def data_hash(texts: "Sequence[np.ndarray]") -> str:
    """Hash of encoded texts in their order: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.tobytes())
    return digest.hexdigest()[:32]


def replay_tokens(own_tokens: int, share: float) -> int:
    """Tokens of general text to add to an epoch of the corpus, so that they are `share` of all."""
    return round(own_tokens * share / (1 - share))


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a plain text: what stands between blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
