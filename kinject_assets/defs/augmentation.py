"""Paraphrases: the same facts in other words, to train on and to validate with."""

import dagster as dg

from kinject_assets.core.augmentation.paraphrases import (
    draw_validation_chunks,
    likeness,
    write_paraphrases,
)
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.plots import histogram
from kinject_assets.core.schema import Chunk, Paraphrase, Rejection, logical_version
from kinject_assets.defs import checks
from kinject_assets.defs.corpus import chunks
from kinject_assets.defs.io import Step, image, making, preview
from kinject_assets.defs.launch import RequestSettings
from kinject_assets.defs.partitions import CORPUS
from kinject_assets.defs.policy import AUGMENTATION_GROUP, OWNERS
from kinject_assets.defs.resources import Study


@dg.asset(
    deps=[chunks],
    partitions_def=CORPUS,
    group_name=AUGMENTATION_GROUP,
    kinds={"openai", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["paraphrases"],
    check_specs=checks.specs("paraphrases"),
    pool="llm",
)
def paraphrases(
    context: dg.AssetExecutionContext, config: RequestSettings, study: Study
) -> dg.MaterializeResult:
    """Rewritings of every chunk to train on, as many as the largest recipe of the corpus reads.

    One request each, with its own seed. Copies, and rewritings that drop a number or a name, are
    turned away and asked again. A recipe with n paraphrases reads the first n of each chunk.
    """
    with making(context, study) as step:
        per_chunk = study.plan.paraphrases_per_chunk(step.cell.parts[0])
        return _paraphrases(step, config, step.rows("chunks", Chunk), per_chunk, "train")


@dg.asset(
    deps=[chunks],
    partitions_def=CORPUS,
    group_name=AUGMENTATION_GROUP,
    kinds={"openai", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["validation_paraphrases"],
    check_specs=checks.specs("validation_paraphrases"),
    pool="llm",
)
def validation_paraphrases(
    context: dg.AssetExecutionContext, config: RequestSettings, study: Study
) -> dg.MaterializeResult:
    """Rewritings of randomly drawn chunks that choose learning rate and epoch, and nothing else.

    240 chunks with two each, as in the study; all chunks where a corpus has fewer.
    """
    with making(context, study) as step:
        settings = study.profile.augmentation
        drawn = draw_validation_chunks(step.rows("chunks", Chunk), settings)
        return _paraphrases(step, config, drawn, settings.validation_per_chunk, "validation")


def _paraphrases(
    step: Step, config: RequestSettings, chunk_rows: list[Chunk], per_chunk: int, purpose: str
) -> dg.MaterializeResult:
    profile = step.study.profile
    settings = profile.augmentation
    written = write_paraphrases(
        chunk_rows,
        per_chunk=per_chunk,
        purpose=purpose,
        client=step.study.llm(config.over(profile.llm), step.report),
        settings=settings,
        report=step.report,
    )
    rows, rejections = written.paraphrases, written.rejections
    step.write("paraphrases", rows, Paraphrase)
    step.write("rejections", rejections, Rejection)
    return step.finish(
        logical_version(rows),
        rows=rows,
        row_type=Paraphrase,
        counts={
            "paraphrases": len(rows),
            "chunks": len(chunk_rows),
            "wanted": per_chunk * len(chunk_rows),
            "rejected": len(rejections),
            "given_up": written.given_up,
            "prefixes": _prefix_versions(rows, per_chunk),
        },
        metadata={
            "likeness": image(
                histogram(
                    likeness(rows, chunk_rows),
                    x_label="likeness to the chunk, 1 for a copy",
                    y_label="paraphrases",
                    title="How close paraphrases are to their chunks",
                    limit=settings.near_duplicate,
                ),
                "likeness of paraphrases to their chunks",
            ),
            **({"rejected_paraphrases": preview(rejections)} if rejections else {}),
            **step.bill(),
        },
        checks=checks.paraphrases(step.cell.asset, rows, per_chunk * len(chunk_rows)),
        libraries=("openai", "rapidfuzz"),
        seeds={"augmentation": settings.seed},
    )


def _prefix_versions(rows: list[Paraphrase], per_chunk: int) -> dict[str, str]:
    """Version of the first n paraphrases of each chunk, for every n.

    A recipe's manifest names the prefix that it read, so that an eleventh paraphrase does not make
    a recipe with ten stale.
    """
    return {
        f"p{n:02d}": content_hash(sorted(row.paraphrase_id for row in rows if row.ordinal < n))
        for n in range(1, per_chunk + 1)
    }
