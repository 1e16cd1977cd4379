"""`kinject`: run an experiment, read its tables, ask where a number came from.

Results go to stdout; progress and logs go to stderr. Exit codes: 0 done, 1 something failed or is
not sound, 2 wrong usage, 130 stopped with Ctrl-C.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kinject_assets import __version__
from kinject_assets.core.errors import KinjectError

if TYPE_CHECKING:
    from datetime import datetime

    from kinject_assets.config import Profile

FORMATS = click.Choice(["text", "csv", "json", "markdown"])

profile_option = click.option(
    "--profile",
    "profile_name",
    metavar="P",
    help="Name of a shipped profile (lab, paper, own-corpus) or path of a YAML file. "
    "Default: $KINJECT_PROFILE, then lab.",
)


def _unwrapped(text: str | None) -> str | None:
    r"""Help in which `\b` keeps the lines below it: click looks for the character, not its name."""
    return text and text.replace("\\b\n", "\b\n")


class _Cli(click.Group):
    """Turns errors meant for the user into one message and exit code 2."""

    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _unwrapped(self.help)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.help = _unwrapped(cmd.help)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KinjectError as error:
            click.echo(f"kinject: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kinject")
def main() -> None:
    r"""Fine-tune, retrieve, or both? Answered for your corpus and models, with numbers.

    \b
    A first look, with no network, key or GPU:
      kinject run            make all that the lab profile asks for (goes on where it stopped)
      kinject tables         the study's two tables with 95 % intervals
      kinject sql "SELECT * FROM scores LIMIT 5"
      kinject ui             the Dagster UI: lineage, runs, metadata
    \b
    Your own corpus:
      kinject init DOCUMENTS --model MODEL     writes an annotated profile
      kinject plan --profile documents.yaml    requests, USD and hours before anything is spent
      kinject run --profile documents.yaml
    """


def _select(profile_name: str | None) -> "Profile":
    """Reads a profile and makes it this process's, for the Dagster definitions."""
    from kinject_assets.config import load_profile

    profile = load_profile(profile_name)
    os.environ["KINJECT_PROFILE"] = str(profile.path)
    return profile


@main.command()
@profile_option
@click.option(
    "--select",
    "selection",
    metavar="SELECTION",
    help="Assets: names with commas, or Dagster's syntax ('group:a_corpus', '+key:results').",
)
@click.option("--corpus", "corpora", multiple=True, metavar="C", help="Only these corpora.")
@click.option("--model", "models", multiple=True, metavar="M", help="Only these models.")
@click.option(
    "--compute",
    type=click.Choice(["inline", "local"]),
    help="Where heavy steps run: in this process, or a process each. Default: the profile's.",
)
def run(
    profile_name: str | None,
    selection: str | None,
    corpora: tuple[str, ...],
    models: tuple[str, ...],
    compute: str | None,
) -> None:
    """Makes what the profile asks for and is not there yet.

    Each partition is a real Dagster run, which the UI shows afterwards. What is complete is not
    done again; after Ctrl-C or a crash, start it again and it goes on.
    """
    profile = _select(profile_name)
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
@profile_option
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    metavar="C",
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
    In the lab:  kinject lab advance --months 1 && kinject refresh
    Every night: the schedule refresh_current_events_daily in `kinject ui`, or cron with this.
    """
    profile = _select(profile_name)
    if no_look and corpora:
        raise click.UsageError("--no-look and --corpus exclude each other")
    from kinject_assets.defs.commands import catch_up, refresh_profile

    sys.exit(catch_up(profile) if no_look else refresh_profile(profile, corpora))


@main.command()
@profile_option
@click.option("--corpus", required=True, metavar="C", help="Corpus of a wiki.")
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
    In a profile:  source: {kind: wiki, wiki: wikipedia, frozen: frozen.jsonl}
    reads these revisions again, whatever the pages have become.
    """
    from kinject_assets.config import home
    from kinject_assets.core.corpus.sources import write_frozen
    from kinject_assets.core.schema import Article
    from kinject_assets.core.store import Cell, Store

    profile = _select(profile_name)
    articles = Store(home(profile)).rows(Cell("articles", (corpus,)), "articles", Article)
    write_frozen(articles, out.absolute())
    click.echo(f"{out}: {len(articles)} pages")


@main.command()
@profile_option
@click.option("--port", default=3000, show_default=True, help="Port on 127.0.0.1.")
def ui(profile_name: str | None, port: int) -> None:
    """Starts the Dagster UI and daemon on loopback (and the lab's server); Ctrl-C ends all."""
    profile = _select(profile_name)
    from kinject_assets.defs.commands import serve_ui

    sys.exit(serve_ui(profile, port))


def _database(profile: "Profile") -> Path:
    from kinject_assets.config import home

    return home(profile) / "results.duckdb"


@main.command()
@profile_option
@click.option("--format", "fmt", type=FORMATS, default="text", show_default=True)
def tables(profile_name: str | None, fmt: str) -> None:
    """Prints the study's two tables with 95 % intervals."""
    from kinject_assets.core.results.tables import format_tables

    click.echo(format_tables(_database(_select(profile_name)), fmt))


@main.command()
@profile_option
@click.argument("query")
@click.option("--format", "fmt", type=FORMATS, default="text", show_default=True)
def sql(profile_name: str | None, query: str, fmt: str) -> None:
    r"""Answers an SQL query from the results, read-only.

    \b
    kinject sql "SHOW TABLES"
    kinject sql "SELECT method, avg(accuracy) FROM scores WHERE stratum = 'all' GROUP BY ALL"
    """
    from kinject_assets.core.results.tables import query as ask

    click.echo(ask(_database(_select(profile_name)), query, fmt))


@main.command()
@profile_option
@click.option("--answer", metavar="ID", help="Prints the chain of one answer down to the article.")
@click.option("--all", "everything", is_flag=True, help="Verifies every artefact (the default).")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def audit(profile_name: str | None, answer: str | None, everything: bool, as_json: bool) -> None:
    """Says where a number came from, or whether every artefact is what its manifest says.

    Exit code 0: sound. 1: something is missing, changed, orphaned or stale. 2: wrong usage.
    """
    profile = _select(profile_name)
    if answer and everything:
        raise click.UsageError("--answer and --all exclude each other")
    from kinject_assets.defs.commands import audit_answer, audit_lake

    text, sound = audit_answer(profile, answer, as_json) if answer else audit_lake(profile, as_json)
    click.echo(text)
    sys.exit(0 if sound else 1)


@main.command()
@profile_option
@click.option("--format", "fmt", type=FORMATS, default="text", show_default=True)
@click.option("--rules", is_flag=True, help="Prints the declared claims and rules; no results.")
@click.option("--published", is_flag=True, help="Judges the published tables; no results.")
def claims(profile_name: str | None, fmt: str, rules: bool, published: bool) -> None:
    """Prints each claim of the study with its verdict on this profile's results."""
    from kinject_assets.core.results.tables import published_text, rules_text
    from kinject_assets.core.results.tables import query as ask

    if rules and published:
        raise click.UsageError("--rules and --published exclude each other")
    if rules:
        click.echo(rules_text(fmt))
        return
    profile = _select(profile_name)
    if published:
        from kinject_assets.defs.partitions import REFERENCES

        click.echo(published_text(REFERENCES, fmt))
        return
    statement = "SELECT claim, verdict, statement, evidence FROM claims ORDER BY claim"
    click.echo(ask(_database(profile), statement, fmt))


def _names_a_model(arguments: list[str]) -> bool:
    """Whether arguments of lm-eval choose a model, themselves or in a configuration file."""
    import yaml

    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in {"--model", "-M"}:
            return True
        if option in {"--config", "-C"}:
            try:
                text = Path(value if equals else following).read_text(encoding="utf-8")
                content = yaml.safe_load(text)
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                return True  # lm-eval says what is wrong with it
            return isinstance(content, dict) and "model" in content
    return False


@main.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def lm_eval(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    r"""Runs lm-evaluation-harness's own command line with the model `hf-prefix`.

    `hf-prefix` takes the arguments of `hf` and gives the same numbers; what prompts have in common
    (few-shot examples above all) is read once. It is the default; `--model hf` is the stock class.

    \b
      kinject lm-eval --model_args pretrained=MODEL --tasks mmlu_anatomy --num_fewshot 5
      kinject lm-eval run --help        all of lm-eval's options
      kinject lm-eval ls tasks          its tasks
    """
    if arguments in {(), ("-h",), ("--help",)}:
        click.echo(ctx.get_help())
        return
    from lm_eval.__main__ import cli_evaluate

    from kinject_assets.core.scoring import register

    register()
    given = list(arguments)
    if given[0] not in {"ls", "validate"} and not {"-h", "--help"} & set(given):
        given = given[1:] if given[0] == "run" else given
        given = ["run", *([] if _names_a_model(given) else ["--model", "hf-prefix"]), *given]
    sys.argv = ["kinject lm-eval", *given]
    cli_evaluate()


@main.command()
@profile_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it.")
def report(profile_name: str | None, out: Path | None) -> None:
    """Writes the HTML report from the results and prints its path."""
    from kinject_assets.config import home
    from kinject_assets.core.report.html import write_report

    profile = _select(profile_name)
    from kinject_assets.defs.partitions import REFERENCES

    path = out or home(profile) / "report.html"
    write_report(_database(profile), profile, path, REFERENCES)
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
    from kinject_assets.config import home
    from kinject_assets.core.report.figures import study_figures, write_figure

    profile = _select(profile_name)
    from kinject_assets.defs.partitions import REFERENCES

    for figure in study_figures(_database(profile), profile, REFERENCES):
        for path in write_figure(figure, out or home(profile) / "figures"):
            click.echo(path)
        for missing in figure.missing:
            click.echo("\n".join((f"{figure.name}:", *missing.note())), err=True)


@main.command()
@profile_option
@click.option("--format", "fmt", type=FORMATS, default="text", show_default=True)
@click.option("--cells", is_flag=True, help="Lists the artefacts with their states instead.")
@click.option(
    "--list",
    "listing",
    is_flag=True,
    help="First asks the wikis for the lengths of their pages: sends requests, fetches no page.",
)
def plan(profile_name: str | None, fmt: str, cells: bool, listing: bool) -> None:
    r"""Estimates what a profile costs, before anything is spent, and what it did cost.

    Requests, tokens and USD of the language model; tokens, FLOPs and hours of the models on the
    profile's `hardware`; disk. For a study from nothing, with what is still open beside it. Nothing
    is asked of any service, but for wikis with --list.

    Sizes of corpora come from the best source there is, and each number says from which:

    \b
      made      the artefact is in the lake: exact
      read      folders of documents: read and cut now, costs nothing
      listed    wikis: from the lengths of their pages, which --list asks for
      expected  corpora.NAME.expected_chunks (for events: of each month)
      known     exams of MMLU: their published sizes
      computed  questions: chunks x exams.keep x (1 - exams.shots_share)

    `kinject run` keeps the estimate from before its first request; after that, this command shows
    it beside what was spent. docs/planning.md lists every assumption with its reason.
    """
    from kinject_assets.config import home
    from kinject_assets.core.estimate.text import format_cells, format_plan
    from kinject_assets.core.store import Store

    def report(message: str, done: int | None = None, total: int | None = None) -> None:
        click.echo(f"{message} {done}/{total}" if total else message, err=True)

    profile = _select(profile_name)
    store = Store(home(profile))
    if cells:
        text, complete = format_cells(profile, store, fmt)
        click.echo(text)
        click.echo(complete, err=True)
        return
    if listing:
        from kinject_assets.core.estimate.listing import list_wikis
        from kinject_assets.defs.resources import Study

        list_wikis(profile, store, Study().wikis(), report)
    click.echo(format_plan(profile, store, fmt, report))


@main.command()
@profile_option
def status(profile_name: str | None) -> None:
    """Shows how far the study is, and what is being made now, by whatever process."""
    profile = _select(profile_name)
    from kinject_assets.defs.commands import show_status

    click.echo(show_status(profile))


@main.command()
@profile_option
def doctor(profile_name: str | None) -> None:
    """Checks that this machine can run the profile, and says what to mend."""
    from kinject_assets.defs.commands import examine

    lines, healthy = examine(_select(profile_name))
    click.echo("\n".join(lines))
    sys.exit(0 if healthy else 1)


@main.group()
def exam() -> None:
    """The exams that the language model wrote: their review by people."""


@exam.command("review")
@profile_option
@click.option("--corpus", required=True, metavar="C", help="Whose exam.")
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
            edit     it is now, after you changed stem, A to H or gold; say why in `reason`
            nothing  not decided yet
      kinject exam review --corpus C --read review.csv
      kinject run              applies it: only what depends on the exam is made again

    Decisions are kept in lake/reviews/C.jsonl and outlive every re-making of the exam. Read the
    same file as often as you like; to take a decision back, decide anew in a new table.
    """
    given = [value for value in (written, filled_in, status or None) if value is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --write FILE, --read FILE and --status")
    from kinject_assets.config import home
    from kinject_assets.core.exams.review import review_exam
    from kinject_assets.core.store import Store

    profile = _select(profile_name)
    store = Store(home(profile))
    click.echo(review_exam(profile, store, corpus, write=written, read=filled_in))


@main.group()
def lab() -> None:
    """The embedded lab: a synthetic world, its server and its two tiny models."""


@lab.command("serve")
@profile_option
@click.option("--port", default=8471, show_default=True, help="Port on 127.0.0.1; 0: a free one.")
@click.option(
    "--faults",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of requests that go wrong: to see a study go through bad weather.",
)
@click.option(
    "--fault",
    "kinds",
    multiple=True,
    help="Which: 429, 500, timeout, cut, malformed, wrong_schema, maxlag. Default: all.",
)
@click.option("--retry-after", default=0.2, show_default=True, help="Seconds that 429 asks for.")
@click.option("--latency", default=0.0, help="Seconds that every answer takes.")
def lab_serve(
    profile_name: str | None,
    port: int,
    faults: float,
    kinds: tuple[str, ...],
    retry_after: float,
    latency: float,
) -> None:
    r"""Serves the lab's MediaWiki and chat API on loopback until Ctrl-C.

    \b
    kinject lab serve --faults 0.3 &
    KINJECT_LAB_URL=http://127.0.0.1:8471 kinject run
    """
    profile = _select(profile_name)
    if profile.lab is None:
        raise KinjectError(f"{profile.path}: has no part `lab:`, so there is no world to serve")
    from kinject_assets.lab.clock import lab_now
    from kinject_assets.lab.server import FAULT_KINDS, Faults
    from kinject_assets.lab.server import main as serve

    if unknown := set(kinds) - set(FAULT_KINDS):
        raise click.UsageError(f"no fault {sorted(unknown)}; there are {', '.join(FAULT_KINDS)}")
    settings = Faults(
        rate=faults,
        kinds=[kind for kind in FAULT_KINDS if not kinds or kind in kinds],
        retry_after=retry_after,
        latency=latency,
    )
    serve(profile.lab, port=port, clock=lambda: lab_now(profile), faults=settings)


@lab.command("advance")
@profile_option
@click.option("--days", type=click.IntRange(1, 3660), help="Days to move on.")
@click.option("--months", type=click.IntRange(1, 120), help="Months to move on.")
@click.option("--to", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"]), help="UTC.")
def lab_advance(
    profile_name: str | None, days: int | None, months: int | None, to: "datetime | None"
) -> None:
    r"""Moves the lab's clock on: its wiki then has later events and edits. Nothing else moves it.

    \b
    kinject lab advance --months 1 && kinject refresh
    """
    from datetime import UTC, timedelta

    from kinject_assets.lab.clock import advance, lab_now

    profile = _select(profile_name)
    given = [value for value in (days, months, to) if value is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --days, --months and --to")
    moment = lab_now(profile)
    if to is not None:
        moment = to.replace(tzinfo=UTC)
    elif days is not None:
        moment += timedelta(days=days)
    else:
        for _ in range(months or 0):
            # The same day of the next month, or its last one.
            following = (moment.replace(day=1) + timedelta(days=32)).replace(day=1)
            last = (following + timedelta(days=32)).replace(day=1) - timedelta(days=1)
            moment = following.replace(day=min(moment.day, last.day))
    click.echo(f"the lab's clock: {advance(profile, moment):%Y-%m-%d %H:%M} UTC")


@lab.command("pretrain")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Default: data/lab.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--model", "names", multiple=True, help="lab-llama, lab-mistral; default: both.")
def lab_pretrain(out: Path | None, threads: int, names: tuple[str, ...]) -> None:
    """Makes the lab's models and encoders again, from random weights (an hour on 2 cores)."""
    from kinject_assets.config import lab_data
    from kinject_assets.lab.encoder import build_encoders
    from kinject_assets.lab.pretrain import SHAPES, pretrain

    unknown = set(names) - set(SHAPES)
    if unknown:
        raise click.UsageError(f"no lab model {sorted(unknown)}; there are {list(SHAPES)}")
    folder = out or lab_data()
    build_encoders(folder)
    for name in names or SHAPES:
        record = pretrain(
            name,
            folder,
            threads=threads,
            log=lambda line: click.echo(line, err=True),
        )
        click.echo(record)


@lab.command("study")
@click.option(
    "--world", "worlds", multiple=True, type=int, help="World seeds; default: docs/lab.md's."
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Worlds at once; cores are shared out.",
)
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("docs/lab.md"),
    show_default=True,
    help="Page whose results are renewed; raw figures and plots go to a folder beside it.",
)
@click.option("--collect", is_flag=True, help="Pools the results that are there; runs nothing.")
def lab_study(worlds: tuple[int, ...], jobs: int, page: Path, collect: bool) -> None:
    """Runs the study of docs/lab.md on all its worlds and pools them (some 80 minutes on 2 cores).

    Each world is a profile of its own below KINJECT_HOME. Stopped and started again, it goes on.
    """
    from kinject_assets.config import base_folder
    from kinject_assets.lab.study import PROFILE, WORLDS, run_worlds
    from kinject_assets.lab.study import collect as pool

    chosen = worlds or WORLDS
    folder = base_folder() / PROFILE
    if not collect:
        run_worlds(chosen, folder, jobs, lambda line: click.echo(line, err=True))
    study = pool(chosen, folder, page)
    click.echo(f"{page}: {len(study.worlds)} worlds, {len(study.checkpoints)} checkpoints")


if __name__ == "__main__":
    main()
