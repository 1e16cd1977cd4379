"""Exams: what a model that knows the corpus can answer."""

from collections import Counter

import dagster as dg

from kinject_assets.core.exams.mmlu import load_mmlu
from kinject_assets.core.exams.writing import write_exam
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.plots import bars
from kinject_assets.core.schema import Chunk, Question, Rejection, logical_version
from kinject_assets.core.scoring.prompts import LETTERS
from kinject_assets.defs import checks
from kinject_assets.defs.corpus import chunks
from kinject_assets.defs.io import image, making, preview
from kinject_assets.defs.launch import RequestSettings
from kinject_assets.defs.partitions import CORPUS
from kinject_assets.defs.policy import EXAMS_GROUP, OWNERS
from kinject_assets.defs.resources import Study


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
def questions(
    context: dg.AssetExecutionContext, config: RequestSettings, study: Study
) -> dg.MaterializeResult:
    """The exam of a corpus: MMLU's questions of a subject, or questions written from the chunks.

    For a written exam the language model gets each chunk and writes several specific questions, a
    second request keeps the best two, and gates turn away those that are unsupported, ambiguous or
    give their answer away; what was turned away is kept with the reason. Every answer of the
    service is in the ledger before it is used: nothing is paid twice.
    """
    with making(context, study) as step:
        profile = study.profile
        corpus = step.cell.parts[0]
        exam = profile.corpora[corpus].exam
        rejections: list[Rejection] = []
        if exam.kind == "mmlu":
            rows = load_mmlu(exam, profile.folder)
        else:
            written = write_exam(
                step.rows("chunks", Chunk),
                corpus=corpus,
                client=study.llm(config.over(profile.llm), step.report),
                settings=profile.exams,
                report=step.report,
            )
            rows, rejections = written.questions, written.rejections
        step.write("questions", rows, Question)
        step.write("rejections", rejections, Rejection)
        splits = Counter(row.split for row in rows)
        return step.finish(
            logical_version(rows),
            rows=rows,
            row_type=Question,
            counts={
                "questions": len(rows),
                **{f"split_{name}": n for name, n in sorted(splits.items())},
                "rejected": len(rejections),
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
