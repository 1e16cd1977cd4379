"""Chunks ranked by the words that they share with a question: BM25, through bm25s."""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import groupby

from kinject_assets import config
from kinject_assets.core.corpus.chunking import spaceless
from kinject_assets.core.retrieval.search import Ranked, best


class _Words(dict[int, str]):
    """For `str.translate`: letters, digits and the marks on them as they are, all else a blank."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        part = character.isalnum() or unicodedata.category(character).startswith("M")
        return self.setdefault(code, character if part else " ")


_WORDS = _Words()


def words(text: str) -> list[str]:
    """Words of a text in any language, without case and other differences of form (NFKC).

    Words of scripts that write no spaces between them (see `spaceless`) come as overlapping pairs
    of characters, as Lucene's analysers cut them: where they end takes a dictionary to say. Other
    letters and digits among them are words of their own.
    """
    found: list[str] = []
    plain = unicodedata.normalize("NFKC", text).casefold()
    for word in plain.translate(_WORDS).split():
        if word.isascii():
            found.append(word)
            continue
        for paired, characters in groupby(word, _paired):
            part = "".join(characters)
            if paired and len(part) > 2:
                found += (part[at : at + 2] for at in range(len(part) - 1))
            else:
                found.append(part)
    return found


def _paired(character: str) -> bool:
    """Whether a character belongs to a script without spaces, its rare signs among them."""
    # The marks 々, 〆 and 〇, and the ideographs beyond Unicode's first plane.
    return spaceless(character) or "\u3005" <= character <= "\u3007" or character >= "\U00020000"


class LexicalIndex:
    """BM25 as Lucene computes it over the chunks of a corpus.

    A word that is in n of N chunks and f times in one of length l (mean m, in words) gives it
    ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * l / m)); a question's words add
    up, repeated ones each time. Source: C. Kamphuis, A. P. de Vries, L. Boytsov and J. Lin, Which
    BM25 do you mean?, ECIR 2020.
    """

    def __init__(self, texts: Sequence[str], settings: config.Lexical) -> None:
        import bm25s

        self._size = len(texts)
        self._stem = _stemmer(settings.stemmer)
        ids: dict[str, int] = {}
        tokens = [[ids.setdefault(word, len(ids)) for word in self._terms(text)] for text in texts]
        self._bm25 = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
        # Without any word the mean length is 0, and no question can match.
        self._empty = not ids
        if not self._empty:
            self._bm25.index((tokens, ids), show_progress=False)

    def rank(self, query: str, depth: int) -> Ranked:
        """The best chunks for a question.

        Returns:
            As many as the smaller of `depth` and the corpus; those that share no word with the
            question have score 0 and come last, in the order of the corpus.
        """
        import numpy as np

        known = [] if self._empty else self._bm25.get_tokens_ids(self._terms(query))
        if not known:
            return best(np.zeros(self._size, dtype=np.float32), depth)
        return best(self._bm25.get_scores_from_ids(known), depth)

    def _terms(self, text: str) -> list[str]:
        return [self._stem(word) for word in words(text)]


def _stemmer(language: str | None) -> Callable[[str], str]:
    if language is None:
        return str
    from functools import cache

    from nltk.stem.snowball import SnowballStemmer

    return cache(SnowballStemmer(language).stem)
