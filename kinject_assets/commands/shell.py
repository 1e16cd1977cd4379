"""`kinject profile` and `kinject completion`: help for editors and shells."""

import click
from click.shell_completion import get_completion_class

from kinject_assets.commands.common import profile_option, select


@click.command("profile")
@profile_option
@click.option("--reference", is_flag=True, help="Prints every field with its default, in Markdown.")
@click.option("--schema", is_flag=True, help="Prints the JSON schema, for editors.")
def profile(profile_name: str | None, reference: bool, schema: bool) -> None:
    r"""Prints a profile with all of its defaults, or what a profile may say.

    \b
      kinject profile --profile my.yaml   all that holds
      kinject profile --reference         docs/profile.md
      kinject profile --schema > schema.json
    with that, editors complete a profile that begins with
      # yaml-language-server: $schema=schema.json
    """
    from kinject_assets.core.reference import reference_page, schema_json, whole_profile

    if reference and schema:
        raise click.UsageError("--reference and --schema exclude each other")
    if reference:
        click.echo(reference_page(), nl=False)
    elif schema:
        click.echo(schema_json())
    else:
        click.echo(whole_profile(select(profile_name)), nl=False)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    r"""Prints the script that completes commands, options and names in a SHELL.

    \b
    bash  kinject completion bash > ~/.kinject-completion
          echo '. ~/.kinject-completion' >> ~/.bashrc
    zsh   kinject completion zsh > ~/.kinject-completion
          echo '. ~/.kinject-completion' >> ~/.zshrc
    fish  kinject completion fish \
            > ~/.config/fish/completions/kinject.fish

    `kinject` must be on the PATH (with a virtual environment: when that is active).
    """
    found = get_completion_class(shell)
    assert found is not None, "click knows these three"
    main = ctx.find_root().command
    click.echo(found(main, {}, "kinject", "_KINJECT_COMPLETE").source())
