"""`kinject lab`: the embedded world, its server, its clock, its models and its study."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kinject_assets.commands.common import Cli, profile_option, select
from kinject_assets.core.errors import KinjectError

if TYPE_CHECKING:
    from datetime import datetime


@click.group(cls=Cli)
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
    profile = select(profile_name)
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

    profile = select(profile_name)
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
