"""What fine-tuning cost: other facts and open-book reading, before and after."""

import dagster as dg

from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS, METHODS
from kinject_assets.core.report.plots import Point, table_bars
from kinject_assets.core.schema import Answer, Checkpoint, Condition, Damage
from kinject_assets.core.scoring.damage import bill, damage_of
from kinject_assets.core.statistics.intervals import wilson
from kinject_assets.core.store import Cell, read_rows
from kinject_assets.defs import checks
from kinject_assets.defs.compute import run_worker
from kinject_assets.defs.io import Step, image, making, one_maker
from kinject_assets.defs.launch import ScoringSettings
from kinject_assets.defs.partitions import CORPUS_RECIPE
from kinject_assets.defs.policy import ANSWERS_GROUP, OWNERS
from kinject_assets.defs.resources import Study
from kinject_assets.defs.scores import answers_base, answers_rag, score_request
from kinject_assets.defs.training import checkpoint

PROBES = {"facts": ("base", "ft"), "reading": ("rag", "ft_rag")}
"""Kind of probe -> method of the base model's answers, and of the checkpoint's."""


@dg.asset(
    # The answers are those of other corpora than the partition's own; the manifest names them.
    deps=[
        checkpoint,
        dg.AssetDep(answers_base, partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep(answers_rag, partition_mapping=dg.AllPartitionMapping()),
    ],
    partitions_def=CORPUS_RECIPE,
    group_name=ANSWERS_GROUP,
    kinds={"pytorch", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["damage"],
    check_specs=checks.specs("damage"),
    pool="gpu",
)
@one_maker
def damage(
    context: dg.AssetExecutionContext, config: ScoringSettings, study: Study
) -> dg.MaterializeResult:
    """What training on a corpus cost: exams of *other* corpora, answered before and after it.

    `facts` probes are answered closed-book and show what was forgotten; `reading` probes have the
    retrieved chunks in front and show whether the model still reads. Named in the profile's
    `damage`; the answers of the base model are those of `answers_base` and `answers_rag`. The bill
    shows them beside the perplexity on general text, which `checkpoint` measures, and says whether
    the answers have collapsed onto a letter.
    """
    with making(context, study) as step:
        rows = [
            _probe(step, config, kind, name)
            for kind, names in study.plan.probes(step.cell.parts[0]).items()
            for name in names
        ]
        step.write("damage", rows, Damage)
        measured = study.store.rows(Cell("checkpoint", step.cell.parts), "damage", Damage)
        return step.finish(
            content_hash(
                [
                    (row.checkpoint_id, row.probe, row.lost, row.won, row.collapse_after)
                    for row in rows
                ]
            ),
            rows=rows,
            row_type=Damage,
            counts={row.probe: row.after - row.before for row in rows},
            metadata={
                "bill": dg.MetadataValue.md(bill([*measured, *rows])),
                "damage": image(_plot(rows), "accuracy before and after"),
            },
            checks=checks.damage(rows),
            libraries=("torch", "transformers", "peft", "lm-eval"),
        )


def _probe(step: Step, config: ScoringSettings, kind: str, corpus: str) -> Damage:
    store, settings = step.study.store, step.study.profile.damage
    scoring = config.over(step.study.profile.scoring)
    asked = scoring.model_copy(update={"shots": (settings.shots,), "k": (settings.k,)})
    before, after = PROBES[kind]
    profile = step.study.profile
    retriever = next(iter(profile.retrieval.answering(profile.corpora[corpus].exam.kind)), "")
    request = score_request(step, corpus, after, asked, (retriever,))
    name = f"{kind}-{corpus}"
    out = step.draft / name
    # Answers are to prompts: those to questions that stay in an exam stay, too.
    request["previous"] = [
        store.reference(cell, name)
        for cell, manifest in step.previous("damage")
        if any(file.split("/")[1] == name for file in manifest.files)
    ]
    run_worker(step, "score", {**request, "out": str(out)})
    base = Cell(METHODS[before], (corpus, step.study.plan.model_of(step.cell)))
    k = settings.k if kind == "reading" else 0
    (wanted,) = [
        condition
        for condition in store.rows(base, "conditions", Condition)
        if (condition.shots, condition.k) == (settings.shots, k)
        and condition.retriever in {"", retriever}
    ]
    was = [a for a in store.rows(base, "answers", Answer) if a.condition_id == wanted.condition_id]
    row = store.rows(Cell("checkpoint", step.cell.parts), "checkpoint", Checkpoint)[0]
    answers = read_rows(out / "answers.parquet", Answer)
    letters = wanted.choice_format == "letter"
    return damage_of(row.checkpoint_id, f"{kind}:{corpus}", was, answers, letters)


def _plot(rows: list[Damage]) -> bytes:
    def point(accuracy: float, n: int) -> Point:
        return Point(accuracy, *wilson(round(accuracy * n), n))

    bars = {
        row.probe: {"before": point(row.before, row.n or 0), "after": point(row.after, row.n or 0)}
        for row in rows
    }
    return table_bars(bars, title="Other exams before and after training")
