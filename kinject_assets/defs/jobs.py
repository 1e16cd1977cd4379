"""Jobs named after what people want."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import dagster as dg
import psutil
from pydantic import Field

from kinject_assets.core.plan import METHODS, TABLES
from kinject_assets.defs.liveness import PARENT_RUN, note_process
from kinject_assets.defs.partitions import PROFILE

TAIL = 12
"""Last lines of a failed command that go into the error."""

DAMAGE = ("damage",) if PROFILE.damage.facts or PROFILE.damage.reading else ()
"""Measured where the profile names exams to measure it with."""

TRIAGE = (
    ("triage",)
    if PROFILE.exams.triage
    and any(corpus.exam.kind == "generated" for corpus in PROFILE.corpora.values())
    else ()
)
"""Generated questions are probed unless the profile says otherwise."""

ANSWERS = (*METHODS.values(), *TRIAGE, *DAMAGE)


class StudyConfig(dg.Config):
    """Which part of the profile to make. Empty lists: all of it."""

    corpora: list[str] = Field(
        default=[], description=f"Only these corpora, of: {', '.join(PROFILE.corpora)}."
    )
    models: list[str] = Field(
        default=[], description=f"Only these models, of: {', '.join(PROFILE.models)}."
    )


def _run(context: dg.OpExecutionContext, config: StudyConfig, assets: Sequence[str]) -> None:
    words = ["run", *(["--select", ",".join(assets)] if assets else [])]
    for option, names in (("--corpus", config.corpora), ("--model", config.models)):
        for name in names:
            words += [option, name]
    follow(context, words)


def follow(context: dg.OpExecutionContext, words: Sequence[str]) -> None:
    """Runs a kinject command as a child: each partition becomes a run of its own, beside this one.

    Args:
        context: Of the op; its log gets the command's lines.
        words: The command and its options, without the profile.

    Raises:
        dagster.Failure: With the command's last lines, if it did not complete.
    """
    command = [sys.executable, "-m", "kinject_assets.cli", *words, "--profile", str(PROFILE.path)]
    lines: list[str] = []
    note_process(context.instance, context.run)
    with subprocess.Popen(
        command,
        env={**os.environ, PARENT_RUN: context.run_id},
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line.rstrip())
                context.log.info(lines[-1])
        except BaseException:
            # Cancelled in the UI: the child stops as on Ctrl-C, and nothing is left behind.
            process.send_signal(signal.SIGINT)
            family = psutil.Process(process.pid).children(recursive=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, rest = process.communicate(timeout=30)
                for line in rest.splitlines():
                    context.log.info(line)
            process.kill()
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            raise
    if process.returncode:
        said = "\n".join(lines[-TAIL:]).removeprefix("kinject: ")
        raise dg.Failure(description=said or f"exit code {process.returncode}")


@dg.op
def make_study(context: dg.OpExecutionContext, config: StudyConfig) -> None:
    """Makes all that the profile asks for and is not there yet, inputs first."""
    _run(context, config, ())


@dg.op
def answer_exams(context: dg.OpExecutionContext, config: StudyConfig) -> None:
    """Answers what has no answer yet, and renews tables, report and audit."""
    _run(context, config, ("questions", "retrieved", *ANSWERS, *TABLES))


@dg.job(
    description="Makes all that the profile asks for and is not there yet: what `kinject run` "
    "does. Every partition becomes a run of its own; what is complete is not done again. Stopped "
    "and launched again, it goes on.",
)
def full_study() -> None:
    """The whole study."""
    make_study()


@dg.job(
    description="After an exam has changed: answers it again with every model and checkpoint that "
    "is there, then renews tables, claims, report and audit. Trains nothing. Exams whose answers "
    "are complete are left alone.",
)
def score_new_questions() -> None:
    """New answers."""
    answer_exams()


JOBS = [
    full_study,
    score_new_questions,
    dg.define_asset_job(
        "rebuild_results",
        selection=list(TABLES),
        description="Loads the answers that are there into DuckDB; renews claims, figures, report, "
        "audit. "
        "A matter of seconds: no model is asked.",
    ),
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
        description="From articles to an exam, paraphrases and an index, for one corpus. Asks the "
        "language model service: costs money where that does.",
    ),
    dg.define_asset_job(
        "score_base_and_rag",
        selection=["answers_base", "answers_rag"],
        description="Answers of one base model to one exam, without and with retrieval.",
    ),
    dg.define_asset_job(
        "train_and_score",
        selection=["checkpoint", "answers_ft", "answers_ft_rag", *DAMAGE],
        description="Fine-tunes one recipe on one corpus, answers its exam without and with "
        "retrieval, and measures what that cost elsewhere (where the profile has `damage`).",
    ),
]
