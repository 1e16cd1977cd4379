"""`kinject`: run an experiment, read its tables, ask where a number came from.

Results go to stdout; progress and logs go to stderr. Exit codes: 0 done, 1 something failed or is
not sound, 2 wrong usage, 130 stopped with Ctrl-C.
"""

import os
import sys
from pathlib import Path

import click

from kinject_assets import __version__
from kinject_assets.commands import exams, exports, lab, lm_eval, shell
from kinject_assets.commands.common import (
    Cli,
    complete_corpus,
    complete_model,
    data_option,
    database_of,
    numbers,
    profile_option,
    rows_option,
    select,
    terminal_width,
)
from kinject_assets.core.errors import KinjectError

SECTIONS = {
    "Make": ("init", "quick", "doctor", "plan", "run", "refresh", "status", "ui", "serve"),
    "Read": ("tables", "claims", "report", "figures", "sql", "audit", "diff"),
    "Review and share": ("exam", "export", "freeze"),
    "More": ("profile", "completion", "lm-eval", "lab"),
}


@click.group(cls=Cli, sections=SECTIONS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kinject")
def main() -> None:
    r"""Fine-tune, retrieve, or both? Answered for your corpus and models, with numbers.

    \b
    A first look, with no network, key or GPU:
      kinject run         makes all that the lab asks for
      kinject tables      the two tables, with intervals
      kinject report      the report; it opens offline
      kinject ui          the Dagster UI
    \b
    Your own documents:
      kinject init DOCUMENTS --model MODEL --out my.yaml
      kinject plan --profile my.yaml      what it will cost
      kinject run --profile my.yaml

    Results go to stdout, progress to stderr. Exit codes: 0 done, 1 something failed or is not
    sound, 2 wrong usage or something is missing, 130 stopped with Ctrl-C.
    """


for command in (
    exams.exam,
    exports.export,
    lab.lab,
    lm_eval.lm_eval,
    shell.completion,
    shell.profile,
):
    main.add_command(command)


@main.command()
@profile_option
@click.option(
    "--select",
    "selection",
    metavar="SELECTION",
    help="Assets: names with commas, or Dagster's syntax ('group:a_corpus', '+key:results').",
)
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    metavar="C",
    shell_complete=complete_corpus,
    help="Only these corpora.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="M",
    shell_complete=complete_model,
    help="Only these models.",
)
@click.option(
    "--compute",
    type=click.Choice(["inline", "local", "ray"]),
    help="Where heavy steps run: in this process, a process each, or on a Ray cluster. Default: "
    "the profile's.",
)
def run(
    profile_name: str | None,
    selection: str | None,
    corpora: tuple[str, ...],
    models: tuple[str, ...],
    compute: str | None,
) -> None:
    r"""Makes what the profile asks for and is not there yet.

    Each partition is a real Dagster run, which the UI shows afterwards. What is complete is not
    done again; after Ctrl-C or a crash, start it again and it goes on.

    \b
      kinject run                          all of the lab
      kinject run --corpus comets          one corpus
      kinject run --select results,report  these assets

    Exit code 0: all is there. 1: something failed, and what does not need it was made. 130: stopped
    with Ctrl-C.
    """
    profile = select(profile_name)
    if compute:
        os.environ["KINJECT_COMPUTE"] = compute
    from kinject_assets.defs.commands import run_profile

    sys.exit(run_profile(profile, selection, corpora, models))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, metavar="M", help="Folder with safetensors, or a Hugging Face id."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it. Default: FOLDER's name with .yaml, in this folder.",
)
def init(folder: Path, model: str, out: Path | None) -> None:
    """Writes a profile for a FOLDER of documents: txt, Markdown, HTML, PDF or jsonl.

    Nothing is sent or spent. The profile says what each line means; the lines marked <- are those
    that people change first.
    """
    from kinject_assets.core.starting import slug, write_profile

    path, found = write_profile(folder, model, out or Path(f"{slug(folder.absolute().name)}.yaml"))
    for line in found:
        click.echo(line, err=True)
    click.echo(path)
    click.echo(
        f"Next: kinject doctor --profile {path.name}, then plan, then run. Questions and "
        "paraphrases are written by the service under `llm`.",
        err=True,
    )


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    metavar="M",
    help="Folder with safetensors, a Hugging Face id, or lab:lab-llama.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    metavar="USD",
    help="Stops before the service was paid more. Default: 1, where its price is known.",
)
@click.option(
    "--questions",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="Most questions to ask.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Takes no further passages after that.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PROFILE.yaml",
    help="Profile to write, or to go on with. Default: quick-FOLDER.yaml, in this folder.",
)
@click.option(
    "--llm-model", metavar="NAME", help="Who writes the questions, by the service's name."
)
@click.option("--base-url", metavar="URL", help="The service's address; `lab`: the embedded lab's.")
@click.option("--encoder", metavar="E", help="Folder, Hugging Face id, or lab:encoder.")
@data_option
def quick(
    folder: Path,
    model: str,
    budget: float | None,
    questions: int,
    minutes: float,
    out: Path | None,
    llm_model: str | None,
    base_url: str | None,
    encoder: str | None,
    fmt: str,
) -> None:
    r"""Asks whether RAG pays for a FOLDER of documents: a pilot of some minutes, in plain words.

    Questions are written on passages spread over the documents, and asked of the model alone, with
    retrieved passages in front, and with the right one in front. It stops as soon as it is decided.
    What is paid for is kept; `kinject run` with the profile that this writes goes on from there.

    \b
      kinject quick handbook --budget 0.50 \
        --model HuggingFaceTB/SmolLM2-135M
    without network, key or GPU, to see how it goes:
      kinject quick handbook --model lab:lab-llama \
        --base-url lab --encoder lab:encoder

    Exit code 0: it ended with an answer, whatever it is. 1: it could not. 2: wrong usage.
    """
    from kinject_assets.core.errors import ProfileError
    from kinject_assets.core.quick.command import ask_quickly
    from kinject_assets.core.quick.pilot import Limits
    from kinject_assets.core.quick.preparing import Wanted

    wanted = Wanted(
        folder=folder,
        model=model,
        budget_usd=budget,
        llm_model=llm_model,
        base_url=base_url,
        encoder=encoder,
        out=out,
    )
    limits = Limits(questions=questions, minutes=minutes)
    try:
        click.echo(ask_quickly(wanted, limits, as_json=fmt == "json"))
    except ProfileError:
        raise
    except KinjectError as error:
        click.echo(f"kinject: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        said = "what was received is kept; requests in flight may be paid and lost"
        click.echo(f"stopped; start the same command again to go on: {said}", err=True)
        sys.exit(130)


@main.command()
@profile_option
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    metavar="C",
    shell_complete=complete_corpus,
    help="Corpora to read again. Default: every window of current events.",
)
@click.option(
    "--no-look", is_flag=True, help="Reads no source: makes what is out of date, and no more."
)
def refresh(profile_name: str | None, corpora: tuple[str, ...], no_look: bool) -> None:
    r"""Looks for changes of the text and carries them to base and RAG answers and the tables.

    Only pages whose revision changed are fetched, and only text that changed is cut, embedded,
    asked about and answered anew. Questions on text that is gone are retired. A month that has
    closed is frozen as a release, e.g. events-2031-04; a later edit makes events-2031-04-r2.
    Nothing is trained (unless refresh.train of the profile says so): `kinject run` does that.

    \b
    In the lab
      kinject lab advance --months 1 && kinject refresh
    Every night, in `kinject ui`, the schedule
      refresh_current_events_daily; or cron with this

    Exit code 0: all is current. 1: something failed. 130: stopped with Ctrl-C.
    """
    profile = select(profile_name)
    if no_look and corpora:
        raise click.UsageError("--no-look and --corpus exclude each other")
    from kinject_assets.defs.commands import catch_up, refresh_profile

    sys.exit(catch_up(profile) if no_look else refresh_profile(profile, corpora))


@main.command()
@profile_option
@click.option(
    "--corpus",
    required=True,
    metavar="C",
    shell_complete=complete_corpus,
    help="Corpus of a wiki.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("frozen.jsonl"),
    show_default=True,
    help="Where to write it.",
)
def freeze(profile_name: str | None, corpus: str, out: Path) -> None:
    r"""Writes which revision of which page a corpus holds, to rebuild it exactly.

    \b
    In a profile
      source:
        {kind: wiki, wiki: wikipedia, frozen: frozen.jsonl}
    reads these revisions again, whatever the pages are now.
    """
    from kinject_assets.core.corpus.sources import write_frozen
    from kinject_assets.core.lake.opening import open_store
    from kinject_assets.core.schema import Article
    from kinject_assets.core.store import Cell

    profile = select(profile_name)
    articles = open_store(profile).rows(Cell("articles", (corpus,)), "articles", Article)
    write_frozen(articles, out.absolute())
    click.echo(f"{out}: {len(articles)} pages")


@main.command()
@profile_option
@click.option("--port", default=3000, show_default=True, help="Port on 127.0.0.1.")
def ui(profile_name: str | None, port: int) -> None:
    """Starts the Dagster UI and daemon on loopback (and the lab's server); Ctrl-C ends all."""
    profile = select(profile_name)
    from kinject_assets.defs.commands import serve_ui

    sys.exit(serve_ui(profile, port))


@main.command()
@profile_option
@click.argument("part", type=click.Choice(["code", "webserver", "daemon"]))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Nothing here asks for a login: beyond loopback, see "
    "docs/deployment.md.",
)
@click.option("--port", type=int, help="Port to listen on. Default: 4000 (code), 3000 (webserver).")
@click.option(
    "--code-server",
    default="127.0.0.1:4000",
    show_default=True,
    metavar="HOST:PORT",
    help="Where `kinject serve code` listens, for the other two.",
)
@click.option("--read-only", is_flag=True, help="The webserver launches and changes nothing.")
def serve(
    profile_name: str | None,
    part: str,
    host: str,
    port: int | None,
    code_server: str,
    read_only: bool,
) -> None:
    r"""Runs one part of `kinject ui` alone, for service managers and containers.

    \b
      kinject serve code         first: runs live in it
      kinject serve webserver    the Dagster UI
      kinject serve daemon       schedules, sensors, queue
    """
    profile = select(profile_name)
    from kinject_assets.defs.commands import serve_part

    serve_part(profile, part, host, port, code_server, read_only)


@main.command(context_settings={"ignore_unknown_options": True})
@profile_option
@click.argument("before")
@click.argument("after")
@click.option(
    "--corpus", metavar="C", default="", shell_complete=complete_corpus, help="Only this corpus."
)
@click.option("--all", "everything", is_flag=True, help="Shows all systems and all flips.")
@rows_option
def diff(
    profile_name: str | None, before: str, after: str, corpus: str, everything: bool, fmt: str
) -> None:
    r"""Says which answers flipped between two results, and why.

    BEFORE and AFTER are each one of: now, previous (or -1, -2, ...), a date or time in UTC (the
    newest results at or before it), the first characters of a run's id, a .duckdb file; or both
    are corpora of the present results, such as two releases.

    \b
      kinject diff previous now
      kinject diff 2026-11-20 now --corpus handbook
      kinject diff events-2031-04 events-2031-05

    Causes are found from lineage: an edited article is named for an answer only where a passage of
    it stands in the prompt or in the text that was trained on. docs/diff.md explains each.
    """
    from kinject_assets.core.results.diff import compare, format_diff
    from kinject_assets.core.results.sides import present_version, resolve

    database = database_of(select(profile_name))
    sides = resolve(database, before, after, present_version(database.parent))
    click.echo(format_diff(compare(*sides, corpus), fmt, everything, terminal_width()))


@main.command()
@profile_option
@rows_option
def tables(profile_name: str | None, fmt: str) -> None:
    r"""Prints the study's two tables with 95 % intervals.

    \b
      kinject tables
      kinject tables --format csv > tables.csv

    docs/statistics.md says what each number means. In a narrow terminal the tables are long; in a
    file or pipe they are wide.
    """
    from kinject_assets.core.results.tables import format_tables

    database = database_of(select(profile_name))
    click.echo(format_tables(database, fmt, terminal_width()))


@main.command()
@profile_option
@click.argument("query")
@rows_option
def sql(profile_name: str | None, query: str, fmt: str) -> None:
    r"""Answers an SQL query from the results, read-only.

    \b
      kinject sql "SHOW TABLES"
      kinject sql "DESCRIBE scores"
      kinject sql "SELECT method, avg(accuracy) FROM scores
                   WHERE stratum = 'all' GROUP BY ALL"

    docs/duckdb.md has every table and useful queries. text shows the first 10,000 rows, in blocks
    where the terminal is too narrow for columns; the other formats write all, row by row.
    """
    from kinject_assets.core.results.tables import answer

    database = database_of(select(profile_name))
    if missing := answer(database, query, fmt, click.echo, terminal_width()):
        click.echo(missing, err=True)


@main.command()
@profile_option
@click.option(
    "--answer",
    metavar="ID",
    help="Prints the chain of one answer down to the article revisions. The first 8 characters or "
    "more of its id are enough.",
)
@click.option(
    "--cell",
    metavar="CELL",
    help="Prints what a number of the two tables rests on: table2/CORPUS/MODEL/COLUMN, or "
    "table1/CORPUS/SHOTS/MODEL/COLUMN. One that does not exist lists those that do.",
)
@click.option("--all", "everything", is_flag=True, help="Verifies everything (the default).")
@data_option
def audit(
    profile_name: str | None,
    answer: str | None,
    cell: str | None,
    everything: bool,
    fmt: str,
) -> None:
    r"""Says where a number came from, or whether everything is what was made.

    \b
      kinject audit                     verifies files, the
                    database, Dagster's log, and all chains
      kinject audit --answer 3f2a91c0   one answer, down to
                    the article revisions that it rests on
      kinject audit --cell table2/comets/lab-llama/base_rag

    What is missing, changed or orphaned is broken; what is stale is whole and made from what has
    changed since. Exit code 0: sound. 1: something is broken or stale. 2: wrong usage.
    docs/lineage.md says what is recorded and how to read it.
    """
    profile = select(profile_name)
    if sum((answer is not None, cell is not None, everything)) > 1:
        raise click.UsageError("--answer, --cell and --all exclude each other")
    from kinject_assets.defs.commands import audit_answer, audit_cell, audit_lake

    width, as_json = terminal_width(), fmt == "json"
    if answer is not None:
        text, sound = audit_answer(profile, answer, as_json, width)
    elif cell is not None:
        text, sound = audit_cell(profile, cell, as_json, width)
    else:
        text, sound = audit_lake(profile, as_json, width)
    click.echo(text)
    sys.exit(0 if sound else 1)


@main.command()
@profile_option
@rows_option
@click.option("--rules", is_flag=True, help="Prints the declared claims and rules; no results.")
@click.option("--published", is_flag=True, help="Judges the published tables; no results.")
def claims(profile_name: str | None, fmt: str, rules: bool, published: bool) -> None:
    r"""Prints each claim of the study with its verdict on this profile's results.

    \b
      kinject claims               replicated, contradicted,
                                   underpowered or not tested
      kinject claims --rules       what each verdict asks for
      kinject claims --published   the study's own tables
    """
    from kinject_assets.core.results.tables import published_text, rules_text
    from kinject_assets.core.results.tables import query as ask

    if rules and published:
        raise click.UsageError("--rules and --published exclude each other")
    width = terminal_width()
    if rules:
        click.echo(rules_text(fmt, width))
        return
    profile = select(profile_name)
    if published:
        from kinject_assets.config import REFERENCES

        click.echo(published_text(REFERENCES, fmt, width))
        return
    statement = "SELECT claim, verdict, statement, evidence FROM claims ORDER BY claim"
    click.echo(ask(database_of(profile), statement, fmt, width))


@main.command()
@profile_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it.")
def report(profile_name: str | None, out: Path | None) -> None:
    """Writes the HTML report from the results and prints its path.

    One file that opens offline: the decision memo first, what each method cost, the tables, and
    every question to look into and to challenge. The memo goes to stderr as well, in words.
    """
    from kinject_assets.config import REFERENCES, home
    from kinject_assets.core.report.html import write_report
    from kinject_assets.core.report.memo import in_words

    profile = select(profile_name)
    path = out or home(profile) / "report.html"
    write_report(database_of(profile), profile, path, REFERENCES)
    click.echo(f"{in_words(database_of(profile))}\n", err=True)
    click.echo(path)


@main.command()
@profile_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to. Default: figures in the profile's folder.",
)
def figures(profile_name: str | None, out: Path | None) -> None:
    """Writes the study's figures from the results (PNG, SVG; their data as Parquet and CSV).

    Prints the paths of what it wrote; what the study lacks for a figure goes to stderr. Pages and
    tables of these figures that the folder holds and that are not made any more are removed.
    """
    from kinject_assets.config import REFERENCES, home
    from kinject_assets.core.report.figures import study_figures, write_figure

    profile = select(profile_name)
    for figure in study_figures(database_of(profile), profile, REFERENCES):
        for path in write_figure(figure, out or home(profile) / "figures"):
            click.echo(path)
        for missing in figure.missing:
            click.echo("\n".join((f"{figure.name}:", *missing.note())), err=True)


@main.command()
@profile_option
@rows_option
@click.option("--cells", is_flag=True, help="Lists the artefacts with their states instead.")
@click.option(
    "--list",
    "listing",
    is_flag=True,
    help="First asks the wikis for the lengths of their pages: sends requests, fetches no page.",
)
@click.option("--cluster", is_flag=True, help="Simulates the study on the profile's cluster.")
@click.option(
    "--nodes",
    "times",
    metavar="N,N",
    callback=numbers,
    help="With --cluster: so many times the profile's nodes to look at; the schedule shown is that "
    "of the first. Default: 1,2,4,... as long as it brings something.",
)
@click.option("--open", "still_open", is_flag=True, help="With --cluster: what is not made yet.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="With --cluster: draws the schedule there, as SVG or PNG.",
)
def plan(
    profile_name: str | None,
    fmt: str,
    cells: bool,
    listing: bool,
    cluster: bool,
    times: tuple[int, ...],
    still_open: bool,
    out: Path | None,
) -> None:
    r"""Estimates what a profile costs, before anything is spent, and what it did cost.

    Requests, tokens and USD of the language model; tokens, FLOPs and hours of the models on the
    profile's `hardware`; disk. For a study from nothing, with what is still open beside it. Nothing
    is asked of any service, but for wikis with --list.

    Sizes of corpora come from the best source there is, and each number says from which:

    \b
      made      the artefact is in the lake: exact
      read      folders of documents: read and cut now
      listed    wikis: from the lengths of their pages,
                which --list asks for
      expected  corpora.NAME.expected_chunks (for events:
                of each month)
      known     exams of MMLU: their published sizes
      computed  questions: chunks x exams.keep
                x (1 - exams.shots_share)

    `kinject run` keeps the estimate from before its first request; after that, this command shows
    it beside what was spent. docs/planning.md lists every assumption with its reason.

    With --cluster it simulates the study on the nodes that `cluster.nodes` of the profile names:
    which step runs where, from when to when, at what price, by `kinject run` and by backfills of
    the UI, and what more nodes would bring. Times are those of what is in the lake, else of others
    of its kind there, else estimated; the output says which.

    \b
      kinject plan --cluster              the whole study
      kinject plan --cluster --open       what is left of it
      kinject plan --cluster --nodes 1,4  also with 4 times
                                          the nodes
      kinject plan --cluster --out a.svg  as a picture
    """
    from kinject_assets.core.estimate.text import format_cells, format_plan
    from kinject_assets.core.lake.opening import open_store

    def report(message: str, done: int | None = None, total: int | None = None) -> None:
        click.echo(f"{message} {done}/{total}" if total else message, err=True)

    if not cluster and (times or still_open or out):
        raise click.UsageError("--nodes, --open and --out go with --cluster")
    if cluster and cells:
        raise click.UsageError("--cluster and --cells exclude each other")
    if out and out.suffix not in {".svg", ".png"}:
        raise click.UsageError(f"--out: {out} has to end in .svg or .png")
    profile = select(profile_name)
    store = open_store(profile)
    if cells:
        text, complete = format_cells(profile, store, fmt)
        click.echo(text)
        click.echo(complete, err=True)
        return
    if listing:
        from kinject_assets.core.estimate.listing import list_wikis
        from kinject_assets.defs.resources import Study

        list_wikis(profile, store, Study().wikis(), report)
    if not cluster:
        click.echo(format_plan(profile, store, fmt, report))
        return
    from kinject_assets.core.estimate.cluster import plan_cluster
    from kinject_assets.core.estimate.cluster_text import format_cluster, write_picture

    found = plan_cluster(profile, store, times, still_open, report)
    click.echo(format_cluster(found, fmt, terminal_width()))
    if out:
        write_picture(found, out)
        click.echo(f"drawn: {out}", err=True)


@main.command()
@profile_option
@data_option
def status(profile_name: str | None, fmt: str) -> None:
    """Shows how far the study is, and what is being made now, by whatever process."""
    from kinject_assets.core.status import status as look

    found = look(select(profile_name))
    click.echo(found.to_json() if fmt == "json" else found)


@main.command()
@profile_option
@data_option
def doctor(profile_name: str | None, fmt: str) -> None:
    """Checks that this machine can run the profile, and says what to mend.

    Database and object store are asked whether they answer, where they are set; nothing else is
    asked or sent. Exit code 0: all is well. 1: something is to be mended.
    """
    from kinject_assets.core.doctor import as_json, examine

    findings = examine(select(profile_name))
    click.echo(as_json(findings) if fmt == "json" else "\n".join(map(str, findings)))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


if __name__ == "__main__":
    main()
