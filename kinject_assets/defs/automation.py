"""Jobs named after what people want, and the sensor that keeps partition keys in step."""

import dagster as dg

from kinject_assets.defs.partitions import CORPUS, PROFILE

JOBS = [
    dg.define_asset_job(
        "prepare_corpus",
        selection=[
            "articles",
            "chunks",
            "questions",
            "paraphrases",
            "validation_paraphrases",
            "embeddings",
            "faiss_index",
            "retrieved",
        ],
        description="From articles to an exam and an index, for one corpus.",
    ),
    dg.define_asset_job(
        "score_base_and_rag",
        selection=["answers_base", "answers_rag"],
        description="Answers of a base model without and with retrieval.",
    ),
    dg.define_asset_job(
        "train_and_score",
        selection=["checkpoint", "answers_ft", "answers_ft_rag"],
        description="Fine-tunes one recipe and answers with it, without and with retrieval.",
    ),
    dg.define_asset_job(
        "rebuild_results",
        selection=["results", "claims", "report", "lineage_audit"],
        description="Loads the answers that are there into DuckDB; renews claims, report, audit.",
    ),
]


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Gives a fresh instance the profile's corpora as partition keys.",
)
def corpus_keys(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Adds the corpora of the profile that the instance does not know yet."""
    known = set(context.instance.get_dynamic_partitions("corpus"))
    new = [key for key in PROFILE.corpora if key not in known]
    return dg.SensorResult(
        dynamic_partitions_requests=[CORPUS.build_add_request(new)] if new else [],
        skip_reason=None if new else "all corpora of the profile are known",
    )
