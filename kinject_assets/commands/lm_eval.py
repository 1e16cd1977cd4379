"""`kinject lm-eval`: lm-evaluation-harness's own command line with our model."""

import sys
from pathlib import Path

import click


def names_a_model(arguments: list[str]) -> bool:
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


@click.command(
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
      kinject lm-eval --model_args pretrained=MODEL \
        --tasks mmlu_anatomy --num_fewshot 5
      kinject lm-eval run --help   all of lm-eval's options
      kinject lm-eval ls tasks     its tasks
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
        given = ["run", *([] if names_a_model(given) else ["--model", "hf-prefix"]), *given]
    sys.argv = ["kinject lm-eval", *given]
    cli_evaluate()
