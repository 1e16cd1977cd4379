"""Retrieval: vectors of chunks, their index, and what it brings for each question."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.plots import histogram, recall_by_k
from kinject_assets.core.retrieval.encoder import load_embeddings
from kinject_assets.core.retrieval.index import build_index, load_index, save_index
from kinject_assets.core.retrieval.search import (
    hit_ranks,
    hits_at,
    mean_reciprocal_rank,
    nearest_likeness,
    recall_at,
    recall_curve,
)
from kinject_assets.core.retrieval.steps import located
from kinject_assets.core.schema import Retrieved, logical_version
from kinject_assets.core.statistics.intervals import wilson
from kinject_assets.core.store import read_rows
from kinject_assets.defs import checks
from kinject_assets.defs.compute import run_worker
from kinject_assets.defs.corpus import chunks
from kinject_assets.defs.exams import questions
from kinject_assets.defs.io import image, making, one_maker
from kinject_assets.defs.launch import EmbeddingSettings
from kinject_assets.defs.partitions import CORPUS
from kinject_assets.defs.policy import OWNERS, RETRIEVAL_GROUP
from kinject_assets.defs.resources import Study

SHOWN_KS = (1, 5, 10)
"""Recall is counted at these numbers of chunks, as far as so many are brought."""


@dg.asset(
    deps=[chunks],
    partitions_def=CORPUS,
    group_name=RETRIEVAL_GROUP,
    kinds={"pytorch", "huggingface"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["embeddings"],
    check_specs=checks.specs("embeddings"),
    pool="gpu",
)
@one_maker
def embeddings(
    context: dg.AssetExecutionContext, config: EmbeddingSettings, study: Study
) -> dg.MaterializeResult:
    """A normalised vector for each chunk, by a sentence-transformers encoder.

    Chunks that the same encoder embedded before keep their vectors. The file is written as they
    come and read memory-mapped.
    """
    with making(context, study) as step:
        encoder = config.over(study.profile.retrieval.encoder)
        made = run_worker(
            step,
            "embed",
            {
                "task": "embed",
                "chunks": study.store.reference(step.upstream("chunks"), "chunks.parquet"),
                "encoder": {**encoder.model_dump(), "model": study.located(encoder.model)},
                "out": str(step.draft),
                "previous": step.previous_folders(),
                "work": str(step.work),
                "device": study.profile.scoring.device,
            },
        )
        vectors = load_embeddings(step.draft).vectors
        cut_share = made["cut"] / max(1, made["chunks"])
        return step.finish(
            content_hash(step.inputs, made["encoder"]),
            counts={**made, "cut_share": cut_share},
            metadata={
                "neighbours": image(
                    histogram(
                        nearest_likeness(vectors),
                        x_label="inner product with the nearest other chunk",
                        y_label="chunks",
                        title="How alike chunks are (1 for a copy)",
                    ),
                    "likeness of each chunk to its nearest neighbour",
                )
            },
            checks=checks.embeddings(vectors, cut_share),
            libraries=("sentence-transformers", "torch"),
        )


@dg.asset(
    deps=[embeddings],
    partitions_def=CORPUS,
    group_name=RETRIEVAL_GROUP,
    kinds={"faiss"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["faiss_index"],
    check_specs=checks.specs("faiss_index"),
)
@one_maker
def faiss_index(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """A FAISS index of the chunks' vectors, inner product: flat and exact unless there are many.

    Then HNSW or IVF-PQ, by a rule on their number and the memory. Its choice is shown.
    """
    with making(context, study) as step:
        vectors = load_embeddings(study.store.path(step.upstream("embeddings"), "."))
        save_index(step.draft, build_index(vectors, study.profile.retrieval, step.report))
        # What is published is checked, memory-mapped as it will be searched.
        index = load_index(step.draft)
        choice = index.choice
        made = {"index": choice.kind} | (
            {"parameters": choice.parameters} if choice.parameters else {}
        )
        return step.finish(
            content_hash(step.inputs, made),
            counts={
                "vectors": len(vectors.chunk_ids),
                "dimension": vectors.encoder.dimension,
                "index": choice.kind,
                "reason": choice.reason,
                **choice.parameters,
            },
            checks=checks.faiss_index(index, vectors.vectors),
            libraries=("faiss-cpu",),
        )


@dg.asset(
    deps=[questions, faiss_index, chunks],
    partitions_def=CORPUS,
    group_name=RETRIEVAL_GROUP,
    kinds={"faiss", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["retrieved"],
    check_specs=checks.specs("retrieved"),
)
@one_maker
def retrieved(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """The first chunks of every question by each retriever of the profile, its own one flagged.

    So that "was not retrieved" and "was retrieved and not used" can be told apart. Ranked by the
    encoder, by shared words, by both, by a cross-encoder, and by two that know what no retriever
    can: `oracle` and `random`.
    """
    with making(context, study) as step:
        settings, corpus = study.profile.retrieval, step.cell.parts[0]
        exam = study.profile.corpora[corpus].exam.kind
        names, answering = settings.ranking(exam), settings.answering(exam)
        first = next(iter(answering), "")
        run_worker(
            step,
            "embed",
            {
                "task": "retrieve",
                "corpus": corpus,
                "questions": study.store.reference(step.upstream("questions"), "questions.parquet"),
                "chunks": study.store.reference(step.upstream("chunks"), "chunks.parquet"),
                "index": study.store.reference(step.upstream("faiss_index"), "."),
                "retrieval": located(study.profile),
                "retrievers": list(names),
                "out": str(step.draft),
                "device": study.profile.scoring.device,
            },
        )
        rows = read_rows(step.draft / "retrieved.parquet", Retrieved)
        by_name = {name: [row for row in rows if row.retriever == name] for name in names}
        written = exam == "generated" and bool(rows)
        left_out = {*settings.retrievers, *settings.also_ranked} - {*names}
        return step.finish(
            logical_version(rows),
            rows=rows,
            row_type=Retrieved,
            counts=_recalls(by_name, first, settings.depth) if written else {},
            metadata=(_quality(by_name, answering, settings.depth) if written else {})
            | ({"left_out": f"{', '.join(left_out)}: questions of {exam}"} if left_out else {}),
            checks=checks.retrieved(by_name, first, written),
            libraries=("sentence-transformers", "faiss-cpu", "bm25s"),
        )


def _shown(depth: int) -> list[int]:
    """Numbers of chunks to count recall at, none beyond those that are brought."""
    return list(dict.fromkeys(min(k, depth) for k in SHOWN_KS))


def _recalls(rows: Mapping[str, Sequence[Retrieved]], first: str, depth: int) -> dict[str, float]:
    """Recall and mean reciprocal rank of each retriever; those of the study's without its name."""
    found: dict[str, float] = {}
    for name, mine in rows.items():
        ending = "" if name == first else f"_{name}"
        found |= {f"recall_at_{k}{ending}": recall_at(mine, k) for k in _shown(depth)}
        found[f"mean_reciprocal_rank{ending}"] = mean_reciprocal_rank(mine)
    return found


def _quality(
    rows: Mapping[str, Sequence[Retrieved]], answering: Sequence[str], depth: int
) -> dict[str, Any]:
    """The retrievers side by side: a table with 95 % intervals, and recall at every K."""
    shown = _shown(depth)
    lines = [
        "| retriever | " + " | ".join(f"recall@{k}" for k in shown) + " | MRR | answers |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for name, mine in rows.items():
        n = len(hit_ranks(mine))
        recalls = [
            f"{hits / n:.3f} [{wilson(hits, n).low:.2f}, {wilson(hits, n).high:.2f}]"
            for hits in (len(hits_at(mine, k)) for k in shown)
        ]
        used = "yes" if name in answering else "no"
        lines.append(
            f"| {name} | {' | '.join(recalls)} | {mean_reciprocal_rank(mine):.3f} | {used} |"
        )
    curves = {name: recall_curve(mine, depth) for name, mine in rows.items()}
    return {
        "retrievers": dg.MetadataValue.md("\n".join(lines)),
        "recall": image(recall_by_k(curves), "recall at K"),
    }
