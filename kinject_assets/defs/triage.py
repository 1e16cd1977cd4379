"""What the base models make of generated questions before they have read anything."""

from collections import Counter
from collections.abc import Sequence

import dagster as dg

from kinject_assets.core.exams.novelty import novelty
from kinject_assets.core.plan import CODE_VERSIONS, now
from kinject_assets.core.report.plots import bars
from kinject_assets.core.schema import STRATA, Triage, logical_version
from kinject_assets.core.scoring.triage import PROBES
from kinject_assets.core.store import read_rows
from kinject_assets.defs import checks
from kinject_assets.defs.compute import run_worker
from kinject_assets.defs.corpus import chunks
from kinject_assets.defs.exams import questions
from kinject_assets.defs.io import image, making, one_maker
from kinject_assets.defs.launch import ScoringSettings
from kinject_assets.defs.partitions import CORPUS
from kinject_assets.defs.policy import ANSWERS_GROUP, OWNERS
from kinject_assets.defs.resources import Study


@dg.asset(
    deps=[questions, chunks],
    partitions_def=CORPUS,
    group_name=ANSWERS_GROUP,
    kinds={"pytorch", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["triage"],
    check_specs=checks.specs("triage"),
    pool="gpu",
)
@one_maker
def triage(
    context: dg.AssetExecutionContext, config: ScoringSettings, study: Study
) -> dg.MaterializeResult:
    """Generated questions sorted by what the base models can do without the text.

    `new`: they cannot; `known`: they answer without it; `inferable`: they pick the right option
    without the question; `broken`: with the text in front they all pick the same other option.
    Scores can be had for each; see `scores.stratum`.
    """
    with making(context, study) as step:
        profile, corpus = study.profile, step.cell.parts[0]
        scoring = config.over(profile.scoring)
        models = [profile.models[name] for name in study.plan.probed(corpus)]
        request = {
            "corpus": corpus,
            "models": [
                {
                    "name": name,
                    "base": study.located(model.source),
                    "revision": model.revision,
                    "dtype": model.dtype,
                }
                for name, model in zip(study.plan.probed(corpus), models, strict=True)
            ],
            "questions": study.store.reference(step.upstream("questions"), "questions.parquet"),
            "chunks": study.store.reference(step.upstream("chunks"), "chunks.parquet"),
            "choice_format": scoring.choice_format,
            "engine": scoring.engine,
            "chat_template": scoring.chat_template,
            "add_bos": scoring.add_bos,
            "batch_size": scoring.batch_size,
            "device": scoring.device,
            "previous": step.previous_folders(),
            "work": str(step.work),
            "out": str(step.draft),
        }
        run_worker(step, "triage", request)
        rows = read_rows(step.draft / "triage.parquet", Triage)
        strata = Counter(row.stratum for row in rows)
        facts = novelty(profile, corpus, study.plan.models(corpus), now(profile))
        return step.finish(
            logical_version(rows),
            rows=rows,
            row_type=Triage,
            counts={"questions": len(rows), **{name: strata[name] for name in STRATA}},
            metadata={"probes": image(_plot(rows), "gold option's share by probe and stratum")},
            checks=checks.triage(rows, facts.since is not None),
            libraries=("torch", "transformers", "lm-eval"),
        )


def _plot(rows: Sequence[Triage]) -> bytes:
    """The gold option's mean share in each probe, by stratum."""
    by_stratum = {name: [row for row in rows if row.stratum == name] for name in STRATA}
    return bars(
        {
            f"{name} ({len(found)})": {
                probe.replace("_", "-"): sum(getattr(row, probe) for row in found) / len(found)
                for probe in PROBES
            }
            for name, found in by_stratum.items()
            if found
        },
        y_label="share of the right option",
        title="What base models make of the questions",
    )
