"""Retrieval: vectors of chunks, their index, and what it brings for each question."""

import dagster as dg

from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.plots import bars, histogram
from kinject_assets.core.retrieval.encoder import load_embeddings
from kinject_assets.core.retrieval.index import build_index, save_index
from kinject_assets.core.retrieval.search import (
    mean_reciprocal_rank,
    nearest_likeness,
    recall_at,
)
from kinject_assets.core.schema import Retrieved, logical_version
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

RETRIEVER = "dense"
"""Name of the retriever that ranks by the encoder's inner product."""


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

    Chunks that the same encoder embedded before keep their vectors.
    """
    with making(context, study) as step:
        encoder = config.over(study.profile.retrieval.encoder)
        made = run_worker(
            step,
            "embed",
            {
                "task": "embed",
                "chunks": str(study.store.path(step.upstream("chunks"), "chunks.parquet")),
                "encoder": {**encoder.model_dump(), "model": study.located(encoder.model)},
                "out": str(step.draft),
                "previous": step.previous_folders(),
                "work": str(step.work),
                "device": study.profile.scoring.device,
            },
        )
        vectors = load_embeddings(step.draft).vectors
        return step.finish(
            content_hash(step.inputs, made["encoder"]),
            counts=made,
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
            checks=checks.embeddings(vectors),
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
    """A FAISS index of the chunks' vectors: flat, inner product, exact."""
    with making(context, study) as step:
        vectors = load_embeddings(study.store.path(step.upstream("embeddings"), "."))
        index = build_index(vectors)
        save_index(step.draft, index)
        return step.finish(
            content_hash(step.inputs, step.config),
            counts={
                "vectors": len(vectors.chunk_ids),
                "dimension": vectors.encoder.dimension,
                "index": study.profile.retrieval.index,
            },
            checks=checks.faiss_index(index, vectors.vectors),
            libraries=("faiss-cpu",),
        )


@dg.asset(
    deps=[questions, faiss_index],
    partitions_def=CORPUS,
    group_name=RETRIEVAL_GROUP,
    kinds={"faiss", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["retrieved"],
    check_specs=checks.specs("retrieved"),
)
@one_maker
def retrieved(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """The nearest chunks of every question, flagged where it is the one it was written from.

    So that "was not retrieved" and "was retrieved and not used" can be told apart.
    """
    with making(context, study) as step:
        settings = study.profile.retrieval
        encoder = {**settings.encoder.model_dump(), "model": study.located(settings.encoder.model)}
        run_worker(
            step,
            "embed",
            {
                "task": "retrieve",
                "corpus": step.cell.parts[0],
                "questions": str(study.store.path(step.upstream("questions"), "questions.parquet")),
                "index": str(study.store.path(step.upstream("faiss_index"), ".")),
                "retrieval": {**settings.model_dump(), "encoder": encoder},
                "retriever": RETRIEVER,
                "out": str(step.draft),
                "device": study.profile.scoring.device,
            },
        )
        rows = read_rows(step.draft / "retrieved.parquet", Retrieved)
        written = study.profile.corpora[step.cell.parts[0]].exam.kind == "generated"
        recall = {f"recall_at_{k}": recall_at(rows, k) for k in (1, 5, 10)} if written else {}
        if written:
            recall["mean_reciprocal_rank"] = mean_reciprocal_rank(rows)
        return step.finish(
            logical_version(rows),
            rows=rows,
            row_type=Retrieved,
            counts=recall,
            metadata={
                "recall": image(
                    bars(
                        {
                            "recall": {
                                str(k): recall_at(rows, k) for k in range(1, settings.depth + 1)
                            }
                        },
                        y_label="share of the questions",
                        title="Questions whose own chunk is among the first K",
                    ),
                    "recall at K",
                )
            }
            if written
            else {},
            checks=checks.retrieved(recall),
            libraries=("sentence-transformers", "faiss-cpu"),
        )
