"""Retrievers by name: each ranks the chunks of a corpus for every question of an exam.

`dense` ranks by the encoder's inner products, `lexical` by BM25, `fused` by reciprocal rank fusion
of both, `reranked` by a cross-encoder over the first chunks of another one. Two bounds stand beside
them: `oracle` has the chunk that the question was written from first, `random` knows nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.retrieval.encoder import (
    as_made,
    encode,
    identify,
    load_encoder,
    query_text,
    read_identity,
)
from kinject_assets.core.retrieval.encoders import prefixes_of
from kinject_assets.core.retrieval.fusion import FUSED_DEPTH, fuse
from kinject_assets.core.retrieval.index import load_index
from kinject_assets.core.retrieval.lexical import LexicalIndex
from kinject_assets.core.retrieval.rerank import load_cross_encoder, rerank
from kinject_assets.core.retrieval.search import LEAST, Ranked, filled, nearest
from kinject_assets.core.schema import Chunk, Question

BOUNDS = ("oracle", "random")
"""Retrievers that say how good or bad retrieval could be, by what no retriever can know."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The questions of an exam and the corpus in which their chunks are looked for.

    Rankings hold rows of `chunks`. What several retrievers build on is computed once.

    Attributes:
        chunks: In the corpus's order, at least one.
        settings: `model`s of encoder and cross-encoder are folders or hub ids.
        index: Folder of the index; read only where vectors are needed.
    """

    corpus: str
    questions: Sequence[Question]
    chunks: Sequence[Chunk]
    settings: config.Retrieval
    index: Path
    device: str = "auto"
    report: Report = silent

    def rank(self, name: str, depth: int | None = None) -> list[Ranked]:
        """The chunks that a retriever ranks first, for each question.

        Args:
            name: One of `config.RetrieverName`.
            depth: Chunks a question, or all if there are fewer; default `settings.depth`.

        Raises:
            ModelError: If an encoder cannot be loaded.
            BrokenArtefact: If the index is damaged, another encoder's, or of other chunks.
            MissingArtefact: If the oracle is asked for a chunk that is not there.
        """
        depth = self.settings.depth if depth is None else depth
        match name:
            case "dense":
                return [ranked[:depth] for ranked in self._dense]
            case "lexical":
                return [ranked[:depth] for ranked in self._lexical]
            case "fused":
                return self._fused(depth)
            case "reranked":
                return [ranked[:depth] for ranked in self._reranked]
            case "oracle":
                return self._oracle(depth)
            case "random":
                return [self._random(question, depth) for question in self.questions]
        raise ValueError(f"no retriever is called {name}")

    @cached_property
    def _reach(self) -> int:
        """Ranks that the settings' retrievers need of `dense` and `lexical`."""
        settings = self.settings
        names = {*settings.retrievers, *settings.also_ranked}
        found = settings.depth
        if "reranked" in names and settings.rerank:
            names.add(settings.rerank.over)
            found = max(found, settings.rerank.depth)
        return max(found, FUSED_DEPTH) if "fused" in names else found

    @cached_property
    def _queries(self) -> list[str]:
        return [query_text(question, self.settings) for question in self.questions]

    @cached_property
    def _dense(self) -> list[Ranked]:
        # What `auto` means depends on the machine, and the index may have been made on another.
        settings = as_made(self.settings.encoder, read_identity(self.index)[1].dtype)
        encoder = load_encoder(settings, self.device)
        index = load_index(self.index, identify(encoder, settings))
        row_of = {chunk.chunk_id: row for row, chunk in enumerate(self.chunks)}
        if row_of.keys() != set(index.chunk_ids):
            raise BrokenArtefact(
                f"{self.index}: the index has {len(index.chunk_ids)} chunks and the corpus "
                f"{len(row_of)}, and they are not the same. Materialise `embeddings` and "
                f"`faiss_index` of {self.corpus} again."
            )
        prefix = prefixes_of(encoder, settings).query
        queries = encode(encoder, self._queries, settings.batch_size, prefix, self.report)
        rows = [row_of[chunk_id] for chunk_id in index.chunk_ids]
        return [
            [(rows[row], score) for row, score in ranked]
            for ranked in nearest(index, queries, self._reach)
        ]

    @cached_property
    def _lexical(self) -> list[Ranked]:
        index = LexicalIndex([chunk.text for chunk in self.chunks], self.settings.lexical)
        return [index.rank(query, self._reach) for query in self._queries]

    def _fused(self, depth: int) -> list[Ranked]:
        reach, wanted = max(FUSED_DEPTH, depth), min(depth, len(self.chunks))

        def ranked(rows: Ranked, least: float) -> list[int]:
            return [row for row, score in rows[:reach] if score > least]

        return [
            # Chunks that the index left out, or without a word of the question, have no rank but a
            # place.
            filled(fuse([ranked(d, LEAST), ranked(w, 0)], depth), wanted, 0.0)
            for d, w in zip(self._dense, self._lexical, strict=True)
        ]

    @cached_property
    def _reranked(self) -> list[Ranked]:
        settings = self.settings.rerank
        assert settings is not None, "the profile's check asks for it"
        return rerank(
            load_cross_encoder(settings, self.device),
            self._queries,
            self.rank(settings.over, settings.depth),
            [chunk.text for chunk in self.chunks],
            settings.batch_size,
            self.report,
        )

    def _oracle(self, depth: int) -> list[Ranked]:
        names = (*self.settings.retrievers, *self.settings.also_ranked, "dense")
        behind = self.rank(next(name for name in names if name not in BOUNDS), depth)
        row_of = {chunk.chunk_id: row for row, chunk in enumerate(self.chunks)}
        found: list[Ranked] = []
        for question, others in zip(self.questions, behind, strict=True):
            own = row_of.get(question.chunk_id or "")
            if own is None:
                raise MissingArtefact(
                    f"retrieval.retrievers: `oracle` cannot find chunk {question.chunk_id}, which "
                    f"question {question.question_id} was written from, in {self.corpus}. "
                    "Materialise `questions` of this corpus again, or take `oracle` out."
                )
            found.append(_by_place([own, *(row for row, _ in others if row != own)][:depth]))
        return found

    def _random(self, question: Question, depth: int) -> Ranked:
        draw = random.Random(content_hash("random retriever", self.corpus, question.question_id))
        return _by_place(draw.sample(range(len(self.chunks)), min(depth, len(self.chunks))))


def _by_place(rows: Sequence[int]) -> Ranked:
    """Rows without scores of their own, with 1 / rank in their place."""
    return [(row, 1 / rank) for rank, row in enumerate(rows, start=1)]
