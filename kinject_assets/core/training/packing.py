"""Texts of a recipe, and their cut into training pieces.

Each text is put between the tokenizer's begin and end tokens. The texts of an epoch, in an order
drawn from seed and epoch, are joined and cut into pieces of exactly `piece_tokens`. What is left
over at the end is a shorter piece of its own: every token is in exactly one piece of each epoch,
and no piece holds padding.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True)
class Packer:
    """Packs encoded texts into the pieces of any epoch.

    Attributes:
        texts: Encoded texts, from `encode_texts`.
        piece_tokens: Tokens in a piece.
        seed: Orders the texts, together with the epoch.
        tokens_per_epoch: For a control, the tokens of its recipe's epoch: the texts are repeated,
            in a new order each time, and the stream is cut at exactly this count. `None`: each
            text once.
    """

    texts: "list[np.ndarray]"
    piece_tokens: int
    seed: int
    tokens_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise MissingArtefact(
                "there is nothing to train on: the corpus has no chunks. Materialise `chunks` "
                "again and look at the exclusions of `articles`."
            )

    @property
    def own_tokens(self) -> int:
        """Tokens of all texts, each once."""
        return sum(len(text) for text in self.texts)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of an epoch, the same in every epoch."""
        return self.own_tokens if self.tokens_per_epoch is None else self.tokens_per_epoch

    @property
    def epoch_pieces(self) -> int:
        """Pieces of an epoch."""
        return -(-self.epoch_tokens // self.piece_tokens)

    @property
    def repeats(self) -> int:
        """How often each text is seen per epoch beyond once, rounded."""
        return max(0, round(self.epoch_tokens / self.own_tokens) - 1)

    def stream(self, epoch: int) -> "np.ndarray":
        """All tokens of an epoch in training order. Epochs count from 0."""
        import numpy as np

        rng = random.Random(f"{self.seed}:{epoch}")
        parts: list[np.ndarray] = []
        missing = self.epoch_tokens
        while missing > 0:
            order = list(range(len(self.texts)))
            rng.shuffle(order)
            parts += [self.texts[row] for row in order]
            missing -= self.own_tokens
        return np.concatenate(parts)[: self.epoch_tokens]

    def pieces(self, epoch: int) -> "list[np.ndarray]":
        """Pieces of an epoch in training order."""
        return cut(self.stream(epoch), self.piece_tokens)
