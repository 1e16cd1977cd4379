"""`kinject export`: what was found, for other tools."""

from pathlib import Path

import click

from kinject_assets.commands.common import (
    Cli,
    complete_corpus,
    complete_model,
    complete_recipe,
    database_of,
    out_folder,
    profile_option,
    select,
)

NEW_FOLDER = "New folder; nothing is overwritten."


@click.group(cls=Cli)
def export() -> None:
    """Results, data sets, checkpoints and provenance for other tools.

    Nothing is overwritten and nothing is sent anywhere. docs/exports.md says what is in each.
    """


@export.command("lm-eval")
@profile_option
@out_folder(NEW_FOLDER)
def lm_eval(profile_name: str | None, out: Path) -> None:
    r"""Writes all answers as lm-evaluation-harness would have.

    A folder for each model, with results_TIME.json and a samples_TASK_TIME.jsonl for each corpus,
    number of shots and number of chunks.

    \b
      kinject export lm-eval --out lm-eval-results
    """
    from kinject_assets.core.export.evaluations import export_evaluations
    from kinject_assets.core.lake.opening import open_store

    profile = select(profile_name)
    tasks = export_evaluations(profile, open_store(profile), out)
    for model, number in tasks.items():
        click.echo(f"{model}: {number} tasks", err=True)
    click.echo(out)


@export.command("dataset")
@profile_option
@click.option(
    "--corpus", required=True, metavar="C", shell_complete=complete_corpus, help="Whose exam."
)
@out_folder(NEW_FOLDER)
def dataset(profile_name: str | None, corpus: str, out: Path) -> None:
    r"""Writes a corpus's questions, paraphrases and chunks as a data set with its card.

    \b
      kinject export dataset --corpus comets --out comets
      python -c "import datasets; \
        print(datasets.load_dataset('comets', 'questions'))"

    The card has the licences, and ATTRIBUTION.md names every article at its revision. Look at both
    before you publish it: the licences of the sources apply.
    """
    from kinject_assets.core.export.datasets import export_dataset
    from kinject_assets.core.lake.opening import open_store

    profile = select(profile_name)
    rows = export_dataset(profile, open_store(profile), corpus, out)
    click.echo(", ".join(f"{number} {name}" for name, number in rows.items()), err=True)
    click.echo(out)


@export.command("checkpoint")
@profile_option
@click.option(
    "--corpus", required=True, metavar="C", shell_complete=complete_corpus, help="Trained on it."
)
@click.option(
    "--model", required=True, metavar="M", shell_complete=complete_model, help="Base model."
)
@click.option(
    "--recipe", required=True, metavar="R", shell_complete=complete_recipe, help="Trained by it."
)
@out_folder(NEW_FOLDER)
def checkpoint(profile_name: str | None, corpus: str, model: str, recipe: str, out: Path) -> None:
    r"""Copies a trained model, with a card: data, settings, scores, what training cost.

    \b
      kinject export checkpoint --corpus comets \
        --model lab-llama --recipe full.p00 --out comets-llama

    transformers loads it; adapters (lora, qlora) are loaded by peft on top of the base model.
    """
    from kinject_assets.core.export.checkpoints import export_checkpoint
    from kinject_assets.core.lake.opening import open_store

    profile = select(profile_name)
    export_checkpoint(profile, open_store(profile), corpus, model, recipe, out)
    click.echo(out)


@export.command("provenance")
@profile_option
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["openlineage", "prov"]),
    default="openlineage",
    show_default=True,
    help="OpenLineage run events, one a line; or one document of W3C PROV-JSON.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="New file; nothing is overwritten.",
)
def provenance(profile_name: str | None, fmt: str, out: Path) -> None:
    r"""Writes what was made from what, by which run, in a standard's words.

    \b
      kinject export provenance --out events.jsonl
      kinject export provenance --format prov --out prov.json
    """
    from kinject_assets.core.export.folders import refuse_existing
    from kinject_assets.core.lineage.export import write_openlineage, write_prov

    database = database_of(select(profile_name))
    refuse_existing(out)
    write = write_openlineage if fmt == "openlineage" else write_prov
    click.echo(write(database, out))
