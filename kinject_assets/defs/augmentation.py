"""Paraphrases: the same facts in other words, to train on and to validate with.

The texts of all augmentations are rows of the asset `paraphrases`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from kinject_assets.core.augmentation.paraphrases import (
    draw_validation_chunks,
    likenesses,
    write_paraphrases,
)
from kinject_assets.core.augmentation.registry import PARAPHRASE, prefix
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.plots import histogram
from kinject_assets.core.schema import Chunk, Paraphrase, Rejection, logical_version
from kinject_assets.defs import checks
from kinject_assets.defs.corpus import chunks
from kinject_assets.defs.io import Step, image, making, one_maker, preview
from kinject_assets.defs.launch import RequestSettings
from kinject_assets.defs.partitions import CORPUS
from kinject_assets.defs.policy import AUGMENTATION_GROUP, OWNERS
from kinject_assets.defs.resources import Study

DECIDED_BY = ("augmentation", "llm")
"""Parts of the configuration that decide what a text says; how many there are is another."""


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
@one_maker
def paraphrases(
    context: dg.AssetExecutionContext, config: RequestSettings, study: Study
) -> dg.MaterializeResult:
    """Texts on every chunk to train on, as many as the largest recipe of the corpus reads.

    Paraphrases, and the texts of other augmentations where a recipe chooses one. One request each,
    with its own seed. Copies, and texts that drop or invent a number or a name, are turned away and
    asked again. A recipe with n texts a chunk reads the first n of its augmentation. What was
    written for a chunk before is kept as long as the chunk's own text stays the same.
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
@one_maker
def validation_paraphrases(
    context: dg.AssetExecutionContext, config: RequestSettings, study: Study
) -> dg.MaterializeResult:
    """Rewritings of randomly drawn chunks that choose learning rate and epoch, and nothing else.

    240 chunks with two each, as in the study; all chunks where a corpus has fewer.
    """
    with making(context, study) as step:
        settings = study.profile.augmentation
        drawn = draw_validation_chunks(step.rows("chunks", Chunk), settings)
        per_chunk = {PARAPHRASE: settings.validation_per_chunk}
        return _paraphrases(step, config, drawn, per_chunk, "validation")


def _paraphrases(
    step: Step,
    config: RequestSettings,
    chunk_rows: list[Chunk],
    per_chunk: Mapping[str, int],
    purpose: str,
) -> dg.MaterializeResult:
    profile = step.study.profile
    settings = profile.augmentation
    client = step.study.llm(config.over(profile.llm), step.report)
    previous, previous_rejections = _previous(step)
    written = [
        write_paraphrases(
            chunk_rows,
            per_chunk=count,
            purpose=purpose,
            client=client,
            settings=settings,
            augmentation=augmentation,
            previous=previous,
            previous_rejections=previous_rejections,
            report=step.report,
        )
        for augmentation, count in per_chunk.items()
    ]
    rows = [row for part in written for row in part.paraphrases]
    rejections = [rejection for part in written for rejection in part.rejections]
    step.write("paraphrases", rows, Paraphrase)
    step.write("rejections", rejections, Rejection)
    wanted = {augmentation: n * len(chunk_rows) for augmentation, n in per_chunk.items()}
    return step.finish(
        logical_version(rows),
        rows=rows,
        row_type=Paraphrase,
        counts={
            "paraphrases": len(rows),
            "chunks": len(chunk_rows),
            "wanted": sum(wanted.values()),
            "kept": sum(part.kept for part in written),
            "rejected": len(rejections),
            "given_up": sum(part.given_up for part in written),
            "prefixes": _prefix_versions(rows, per_chunk),
        },
        metadata={
            **_likeness_plots(rows, chunk_rows, settings.near_duplicate),
            **({"rejected_paraphrases": preview(rejections)} if rejections else {}),
            **step.bill(),
        },
        checks=checks.paraphrases(Counter(row.augmentation for row in rows), wanted),
        libraries=("openai", "rapidfuzz"),
        seeds={"augmentation": settings.seed},
    )


def _previous(step: Step) -> tuple[list[Paraphrase], list[Rejection]]:
    """Texts that were written by the same settings, and what was turned away with them.

    Those of a chunk come from one version: this corpus's last one, or that of one that shares pages
    with it.
    """
    rows: list[Paraphrase] = []
    rejections: list[Rejection] = []
    known: set[tuple[str, str]] = set()
    for cell in (step.cell, *step.family()):
        more = [
            row
            for row in step.previous_rows("paraphrases", Paraphrase, *DECIDED_BY, of=cell)
            if (row.chunk_id, row.augmentation) not in known
        ]
        turned_away = [
            row
            for row in step.previous_rows("rejections", Rejection, *DECIDED_BY, of=cell)
            if (row.chunk_id, row.kind) not in known
        ]
        known |= {(row.chunk_id, row.augmentation) for row in more}
        known |= {(row.chunk_id, row.kind) for row in turned_away}
        rows += more
        rejections += turned_away
    return rows, rejections


def _likeness_plots(
    rows: Sequence[Paraphrase], chunk_rows: Sequence[Chunk], limit: float
) -> dict[str, Any]:
    """How close the texts of each augmentation are to their chunks."""
    found: dict[str, Any] = {}
    for augmentation in dict.fromkeys(row.augmentation for row in rows):
        plain = augmentation == PARAPHRASE
        name = "paraphrases" if plain else f"texts of {augmentation}"
        found["likeness" if plain else f"likeness_{augmentation}"] = image(
            histogram(
                likenesses([row for row in rows if row.augmentation == augmentation], chunk_rows),
                x_label="likeness to the chunk, 1 for a copy",
                y_label=name,
                title=f"How close {name} are to their chunks",
                limit=limit,
            ),
            f"likeness of {name} to their chunks",
        )
    return found


def _prefix_versions(rows: Sequence[Paraphrase], per_chunk: Mapping[str, int]) -> dict[str, str]:
    """Version of the first n texts of each chunk, for every augmentation and every n.

    A recipe's manifest names the prefix that it read, so that neither an eleventh paraphrase nor
    another augmentation makes a recipe with ten stale.
    """
    return {
        prefix(augmentation, n): content_hash(
            sorted(
                row.paraphrase_id
                for row in rows
                if row.augmentation == augmentation and row.ordinal < n
            )
        )
        for augmentation, most in per_chunk.items()
        for n in range(1, most + 1)
    }
