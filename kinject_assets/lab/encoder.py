"""The lab's sentence encoder: built, not trained.

One seeded random vector a word, scaled by how much the word tells: names and values count fully,
words of the grammar's sentences by how few sentences hold them, marks next to nothing. A text is
the normalised mean of its words' vectors, so that inner products measure shared rare words.
"""

import math
import re
from collections import Counter
from pathlib import Path

from kinject_assets.lab.grammar import KINDS, NAME_STEMS, OPENERS, POOLS
from kinject_assets.lab.pretrain import build_tokenizer

DIMENSION = 256
COARSE_DIMENSION = 5
"""So few numbers a vector that unlike words look alike: a retriever that errs."""

SEED = 20231203

_MARK_WEIGHT = 0.01
_SENTENCE_WEIGHT = 0.25


def word_weights() -> dict[str, float]:
    """Weight of every word that the lab's texts hold, between 0 and 1."""
    sentences = [
        sentence
        for kind in KINDS.values()
        for attribute in kind.attributes.values()
        for sentence in attribute.statements + attribute.questions
    ]
    holders = Counter(
        word
        for sentence in [*(s.format(s="the", v="") for s in sentences), *OPENERS]
        for word in set(re.findall(r"[a-z]+", sentence.lower()))
    )
    rarest = math.log(len(sentences))
    weights = {
        word: _SENTENCE_WEIGHT * math.log(len(sentences) / count) / rarest
        for word, count in holders.items()
        if count < len(sentences)
    }
    weights |= {word.capitalize(): weight for word, weight in weights.items()}
    heads = [head for kind in KINDS.values() for head in kind.heads]
    values = [value for pool in POOLS.values() for value in pool]
    telling = [*NAME_STEMS, *heads, *values, *(value.capitalize() for value in values)]
    return weights | dict.fromkeys(telling, 1.0)


def build_encoders(folder: Path) -> None:
    """Writes the lab's two encoders: `encoder`, and `encoder-coarse`, which errs."""
    build_encoder(folder / "encoder")
    build_encoder(folder / "encoder-coarse", COARSE_DIMENSION)


def build_encoder(out: Path, dimension: int = DIMENSION) -> None:
    """Writes an encoder as a sentence-transformers folder with safetensors weights.

    The same on every machine, below 1 MB, and loaded by plain `SentenceTransformer(folder)`.

    Args:
        out: Folder to write; made when missing.
        dimension: Numbers a vector. The fewer, the more often unlike texts look alike.
    """
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    backend = build_tokenizer().backend_tokenizer
    vocabulary = backend.get_vocab()
    weights = word_weights()
    # A word and its capitalised form share a vector: a sentence may start with any word.
    spellings = sorted({token.lower() for token in vocabulary})
    directions = np.random.default_rng(SEED).standard_normal(
        (len(spellings), dimension), dtype=np.float32
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    direction_of = dict(zip(spellings, directions, strict=True))
    vectors = np.zeros((len(vocabulary), dimension), dtype=np.float32)
    for token, row in vocabulary.items():
        vectors[row] = weights.get(token, _MARK_WEIGHT) * direction_of[token.lower()]
    model = SentenceTransformer(
        modules=[StaticEmbedding(backend, embedding_weights=vectors), Normalize()], device="cpu"
    )
    model.save(str(out), create_model_card=False)
