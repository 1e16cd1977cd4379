"""Exams: what a model that knows the corpus can answer."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import dagster as dg

from kinject_assets.core.exams.mmlu import load_mmlu
from kinject_assets.core.exams.review import apply_reviews, read_decisions, rejected
from kinject_assets.core.exams.writing import Written, write_exam
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.plots import bars
from kinject_assets.core.schema import Chunk, Question, Rejection, logical_version
from kinject_assets.core.scoring.prompts import LETTERS
from kinject_assets.core.store import Cell
from kinject_assets.defs import checks
from kinject_assets.defs.corpus import chunks
from kinject_assets.defs.io import Step, image, making, one_maker, preview
from kinject_assets.defs.launch import RequestSettings
from kinject_assets.defs.partitions import CORPUS
from kinject_assets.defs.policy import EXAMS_GROUP, OWNERS
from kinject_assets.defs.resources import Study

Row = TypeVar("Row")


@dg.asset(
    deps=[chunks],
    partitions_def=CORPUS,
    group_name=EXAMS_GROUP,
    kinds={"openai", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["questions"],
    check_specs=checks.specs("questions"),
    pool="llm",
)
@one_maker
def questions(
    context: dg.AssetExecutionContext, config: RequestSettings, study: Study
) -> dg.MaterializeResult:
    """The exam of a corpus: MMLU's questions of a subject, or questions written from the chunks.

    For a written exam the language model gets each chunk and writes several specific questions, a
    second request keeps the best two, and gates turn away those that are unsupported, ambiguous or
    give their answer away; what was turned away is kept with the reason. Every answer of the
    service is in the ledger before it is used: nothing is paid twice. Chunks that were asked about
    before keep their questions, and questions whose text is gone are retired. People review the
    exam with `kinject exam review`; their decisions are applied here.
    """
    with making(context, study) as step:
        profile = study.profile
        corpus = step.cell.parts[0]
        exam = profile.corpora[corpus].exam
        if exam.kind == "mmlu":
            written = Written(load_mmlu(exam, profile.folder), [])
        else:
            family = step.family()
            turned_away = {
                question_id
                for cell in family
                for question_id in rejected(read_decisions(study.store.lake, cell.parts[0]))
            }
            siblings = _earlier(step, "questions", Question, family)
            written = write_exam(
                step.rows("chunks", Chunk),
                corpus=corpus,
                client=study.llm(config.over(profile.llm), step.report),
                settings=profile.exams,
                report=step.report,
                previous=_earlier(step, "questions", Question, [step.cell]),
                previous_rejections=_earlier(step, "rejections", Rejection, [step.cell]),
                siblings=[q for q in siblings if q.question_id not in turned_away],
                sibling_rejections=_earlier(step, "rejections", Rejection, family),
                earlier_chunks=_earlier_chunks(step, family),
            )
        decisions = read_decisions(study.store.lake, corpus)
        written = apply_reviews(written, decisions)
        reviewed = written.counts["reviewed"]
        questions, rejections = written.questions, written.rejections
        rows = [row for row in questions if not row.retired]
        step.write("questions", questions, Question)
        step.write("rejections", rejections, Rejection)
        splits = Counter(row.split for row in rows)
        return step.finish(
            logical_version(questions),
            rows=questions,
            row_type=Question,
            counts={
                "questions": len(rows),
                **{f"split_{name}": n for name, n in sorted(splits.items())},
                "rejected": len(rejections),
                **written.counts,
                **({f"review_{name}": n for name, n in reviewed.items()} if decisions else {}),
            },
            metadata={
                "right_options": image(
                    bars(
                        {
                            split: {
                                LETTERS[gold]: n
                                for gold, n in sorted(
                                    Counter(r.gold for r in rows if r.split == split).items()
                                )
                            }
                            for split in sorted(splits)
                        },
                        y_label="questions",
                        title="Place of the right option",
                    ),
                    "how often each place holds the right option",
                ),
                **({"rejected_questions": preview(rejections)} if rejections else {}),
                **(step.bill() if exam.kind == "generated" else {}),
            },
            checks=checks.questions(rows, profile.scoring.shots),
            libraries=("openai", "datasets"),
            seeds={"exam": profile.exams.seed},
        )


def _earlier(step: Step, name: str, row_type: type[Row], cells: Sequence[Cell]) -> list[Row]:
    """Rows that earlier exams have on chunks, written under the same settings."""
    return [
        row
        for cell in cells
        for row in step.previous_rows(name, row_type, "exam", "exams", "llm", of=cell)
    ]


def _earlier_chunks(step: Step, family: Sequence[Cell]) -> list[Chunk]:
    """Chunks that have left the corpus, and those of corpora that share pages with it."""
    store = step.study.store
    cells = [Cell("chunks", cell.parts) for cell in (step.cell, *family)]
    return [
        row
        for cell in cells
        if store.manifest(cell) is not None
        for name in ("retired", "chunks")
        for row in store.rows(cell, name, Chunk)
    ]
