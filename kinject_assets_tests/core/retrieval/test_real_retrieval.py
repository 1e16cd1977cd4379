"""Retrievers on passages of real articles; `pytest -s` shows the table that docs/retrieval.md has.

A query is the heading of a section and its first sentence, and a passage of that section is what it
asks for. The first sentence stands in no passage (`held out`), so that it is not found by itself;
with it left in its place (`in place`), the same is easy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kinject_assets import config
from kinject_assets.core.corpus.chunking import chunk_articles, sentences, token_counter
from kinject_assets.core.retrieval.encoder import embed_chunks, load_encoder
from kinject_assets.core.retrieval.index import build_index, save_index
from kinject_assets.core.retrieval.retrievers import Search
from kinject_assets.core.schema import Article, Chunk, Question
from kinject_assets.core.statistics.intervals import wilson
from kinject_assets_tests.bench.gates import DUMP, articles
from kinject_assets_tests.tiny import svd_encoder

KS = (1, 5, 10)
FEWEST_WORDS = 5
"""A shorter first sentence, e.g. `Main article: ...`, asks for nothing."""


@dataclass(frozen=True)
class Asked:
    """Queries and the passages that they are put to.

    Attributes:
        sections: Article and heading that each query comes from.
    """

    queries: list[str]
    sections: list[tuple[str, str]]
    chunks: list[Chunk]


def asked(found: Sequence[Article], held_out: bool) -> Asked:
    queries: dict[tuple[str, str], str] = {}
    cut: list[Article] = []
    for article in found:
        bodies: list[str] = []
        for heading, body in zip(article.headings, article.bodies, strict=True):
            first = next(iter(sentences(body.splitlines()[0] if body else "")), "")
            rest = body.removeprefix(first).strip()
            asks = heading and len(first.split()) >= FEWEST_WORDS and rest
            if asks:
                queries[article.article_id, heading] = f"{heading}. {first}"
            bodies.append(rest if asks and held_out else body)
        cut.append(replace(article, bodies=bodies))
    chunks = chunk_articles(cut, config.Chunking(), token_counter("words"))
    there = {(chunk.article_id, chunk.section) for chunk in chunks}
    kept = {section: query for section, query in queries.items() if section in there}
    return Asked(list(kept.values()), list(kept), chunks)


def measured(case: Asked, name: str, search: Search) -> dict[str, float]:
    """Recall at each K and the mean reciprocal rank, by the first passage of the section."""
    ranks: list[int | None] = []
    for section, ranked in zip(case.sections, search.rank(name), strict=True):
        places = (
            rank
            for rank, (row, _) in enumerate(ranked, start=1)
            if (case.chunks[row].article_id, case.chunks[row].section) == section
        )
        ranks.append(next(places, None))
    found = {f"recall@{k}": sum(r is not None and r <= k for r in ranks) / len(ranks) for k in KS}
    return found | {"MRR": sum(1 / r for r in ranks if r) / len(ranks)}


def search_of(case: Asked, encoder: str, folder: Path) -> Search:
    settings = config.Retrieval.model_validate(
        {
            "encoder": {"model": encoder},
            "depth": max(KS),
            "retrievers": ["dense", "lexical", "fused", "random"],
        }
    )
    loaded = load_encoder(settings.encoder, "cpu")
    made = embed_chunks(loaded, case.chunks, settings.encoder, folder / "embeddings")
    save_index(folder, build_index(made))
    return Search(
        corpus="real",
        questions=[
            Question(
                question_id=f"q{number}",
                origin="section",
                stem=query,
                options=[],
                gold=0,
                chunk_id=None,
                generator="",
                generation_id="",
                triage="",
                split="test",
                retired=False,
            )
            for number, query in enumerate(case.queries)
        ],
        chunks=case.chunks,
        settings=settings,
        index=folder,
        device="cpu",
    )


def test_retrievers_on_real_articles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not DUMP.is_file():
        pytest.skip(f"no XML dump: {DUMP} is absent (KINJECT_REALDATA names its folder)")
    lines = [f"| first sentence | retriever | {' | '.join(f'recall@{k}' for k in KS)} | MRR |"]
    lines.append("|---" * (len(KS) + 3) + "|")
    found: dict[tuple[str, str], dict[str, float]] = {}
    real = articles()
    for what, held_out in (("held out", True), ("in place", False)):
        case = asked(real, held_out)
        texts = [chunk.text for chunk in case.chunks]
        n = len(case.queries)
        local = search_of(case, str(svd_encoder(tmp_path / what, texts)), tmp_path / f"{what} a")
        lab = search_of(case, str(config.lab_data() / "encoder"), tmp_path / f"{what} b")
        stems = config.Lexical(stemmer="english")
        stemmed = replace(local, settings=local.settings.model_copy(update={"lexical": stems}))
        lines.insert(0, f"{what}: {n} queries, {len(texts)} passages")
        for label, name, search in (
            ("`lexical`", "lexical", local),
            ("`lexical`, English stems", "lexical", stemmed),
            ("`dense`, encoder made of the articles", "dense", local),
            ("`fused` with that encoder", "fused", local),
            ("`dense`, encoder of the lab", "dense", lab),
            ("`fused` with that one", "fused", lab),
            ("`random`", "random", local),
        ):
            scores = found[what, label] = measured(case, name, search)
            cells = [
                f"{share:.3f} [{low:.2f}, {high:.2f}]"
                for share in (scores[f"recall@{k}"] for k in KS)
                for low, high in (wilson(round(share * n), n),)
            ]
            lines.append(f"| {what} | {label} | {' | '.join(cells)} | {scores['MRR']:.3f} |")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    for label in ("`lexical`", "`dense`, encoder made of the articles"):
        held, easy = found["held out", label], found["in place", label]
        assert held["recall@10"] > 5 * found["held out", "`random`"]["recall@10"]
        assert easy["recall@1"] > held["recall@1"]
    # Words alone must find a sentence that stands there, or nothing works.
    assert found["in place", "`lexical`"]["recall@1"] > 0.9
