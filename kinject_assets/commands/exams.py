"""`kinject exam`: exams and their review by people."""

from pathlib import Path

import click

from kinject_assets.commands.common import Cli, complete_corpus, profile_option, select


@click.group(cls=Cli)
def exam() -> None:
    """The exams that the language model wrote: their review by people."""


@exam.command("review")
@profile_option
@click.option(
    "--corpus", required=True, metavar="C", shell_complete=complete_corpus, help="Whose exam."
)
@click.option(
    "--write",
    "written",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Writes the table to fill in: a question a row, with its passage.",
)
@click.option(
    "--read",
    "filled_in",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Reads it back and records what was decided, all of it or nothing.",
)
@click.option("--status", is_flag=True, help="Says how much is decided.")
def exam_review(
    profile_name: str | None,
    corpus: str,
    written: Path | None,
    filled_in: Path | None,
    status: bool,
) -> None:
    r"""Lets people verify an exam in a spreadsheet.

    \b
      kinject exam review --corpus C --write review.csv
      ... open it, and write into the column `verdict`:
            accept   the question is sound
            reject   it is not; say why in `reason`
            edit     it is now, after you changed stem,
                     A to H or gold; say why in `reason`
            nothing  not decided yet
      kinject exam review --corpus C --read review.csv
      kinject run     applies it: only what depends on
                      the exam is made again

    Decisions are kept in lake/reviews/C.jsonl and outlive every re-making of the exam. Read the
    same file as often as you like; to take a decision back, decide anew in a new table.
    """
    given = [value for value in (written, filled_in, status or None) if value is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --write FILE, --read FILE and --status")
    from kinject_assets.core.exams.review import review_exam
    from kinject_assets.core.lake.opening import open_store

    profile = select(profile_name)
    store = open_store(profile)
    said = review_exam(profile, store, corpus, write=written, read=filled_in)
    store.push()
    click.echo(said)
