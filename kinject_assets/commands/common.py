"""What the commands of `kinject` share: options, errors, help, the width of the terminal."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from kinject_assets.core.errors import KinjectError

if TYPE_CHECKING:
    from kinject_assets.config import Profile

Function = TypeVar("Function", bound=Callable[..., Any])

FORMATS = click.Choice(["text", "csv", "json", "markdown"])

INTERRUPTED = 130


def _unwrapped(text: str | None) -> str | None:
    r"""Help in which `\b` keeps the lines below it: click looks for the character, not its name."""
    return text and text.replace("\\b\n", "\b\n")


def _first_sentence(command: click.Command) -> str:
    """What a list of commands says of one: all of its first sentence, however long."""
    first = (command.short_help or command.help or "").split("\n\n", 1)[0]
    return " ".join(first.split()).removesuffix(".")


class Cli(click.Group):
    """Turns errors meant for the user into one message and exit code 2.

    Args:
        sections: Heading -> commands, in the order in which help lists them; those that no section
            names come last.
    """

    group_class = type

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.help = _unwrapped(self.help)
        self.sections = dict(sections or {})

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Takes a command in."""
        cmd.help = _unwrapped(cmd.help)
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists commands under their headings; nothing is cut off."""
        named = {name for names in self.sections.values() for name in names}
        rest = [name for name in self.list_commands(ctx) if name not in named]
        for heading, names in {**self.sections, "Commands": rest}.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name, _first_sentence(c)) for name, c in commands if c and not c.hidden]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except KinjectError as error:
            click.echo(f"kinject: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("kinject: stopped", err=True)
            sys.exit(INTERRUPTED)


def terminal_width() -> int | None:
    """Columns of the terminal that results are shown in; `None` if they go to a file or pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def select(profile_name: str | None) -> "Profile":
    """Reads a profile and makes it this process's, for the Dagster definitions."""
    from kinject_assets.config import load_profile

    profile = load_profile(profile_name)
    os.environ["KINJECT_PROFILE"] = str(profile.path)
    return profile


def database_of(profile: "Profile") -> Path:
    """Where the results of a profile are, or will be."""
    from kinject_assets.core.lake.opening import open_store
    from kinject_assets.core.results.loader import DATABASE

    return open_store(profile).root / DATABASE


# -- Completion ------------------------------------------------------------------------------------


def _profiles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped profiles, and files that may be one."""
    from kinject_assets.config import shipped

    names = [CompletionItem(name) for name in shipped() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


def _of_profile(what: str) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """Completes names that the chosen profile defines: `corpora`, `models` or `recipes`."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from kinject_assets.config import home, load_profile
        from kinject_assets.core.corpus.releases import with_releases

        try:
            profile = load_profile(ctx.params.get("profile_name"))
            known = with_releases(profile, home(profile) / "lake")
        except KinjectError:
            return []
        return [name for name in getattr(known, what) if name.startswith(incomplete)]

    return complete


complete_corpus = _of_profile("corpora")
complete_model = _of_profile("models")
complete_recipe = _of_profile("recipes")


def numbers(ctx: click.Context, param: click.Parameter, given: str | None) -> tuple[int, ...]:
    """Reads numbers from 1 to 1000 with commas between them; none where nothing is given."""
    try:
        found = tuple(int(word) for word in given.split(",")) if given else ()
    except ValueError:
        found = (0,)
    if not all(1 <= number <= 1000 for number in found):
        raise click.BadParameter(f"`{given}` is not of the form 1,2,4 (each from 1 to 1000)")
    return found


# -- Options that several commands have ------------------------------------------------------------


profile_option = click.option(
    "--profile",
    "profile_name",
    metavar="P",
    shell_complete=_profiles,
    help="Name of a shipped profile (lab, paper, own-corpus) or path of a YAML file. "
    "Default: $KINJECT_PROFILE, then lab.",
)

rows_option = click.option(
    "--format",
    "fmt",
    type=FORMATS,
    default="text",
    show_default=True,
    help="text fits the terminal; the others are for programs and pages.",
)


def data_option(function: Function) -> Function:
    """Output that is no table: `--format json`, or `--json` for short."""
    choice = click.option(
        "--format",
        "fmt",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="json is for programs.",
    )
    short = click.option("--json", "fmt", flag_value="json", help="The same as --format json.")
    return choice(short(function))


def out_folder(help_text: str) -> Callable[[Function], Function]:
    """Option of a command that writes a new folder."""
    return click.option(
        "--out",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help=help_text,
    )
