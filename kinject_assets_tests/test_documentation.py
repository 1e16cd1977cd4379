"""The pages hold: links lead somewhere, commands are real, the reference is the model's."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
import yaml
from jsonschema import Draft202012Validator

from kinject_assets.cli import main
from kinject_assets.config import Profile
from kinject_assets.core.reference import reference_page, schema_json
from kinject_assets_tests.documents import (
    PAGES,
    REPOSITORY,
    anchors,
    blocks,
    calls,
    command_of,
    mentions,
    name_of,
    targets,
)

EVERY = pytest.mark.parametrize("page", PAGES, ids=name_of)
INDEX = REPOSITORY / "docs" / "README.md"


def wrong_link(page: Path, target: str) -> str:
    """What is wrong with a relative link; empty if nothing is."""
    path, _, anchor = unquote(target).partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_relative_to(REPOSITORY) or not file.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(file):
        return f"{target}: no such heading; there are {sorted(anchors(file))}"
    return ""


@EVERY
def test_links_and_images_lead_somewhere(page: Path) -> None:
    relative = [t for t in targets(page) if not t.startswith(("http://", "https://"))]
    assert [wrong for t in relative if (wrong := wrong_link(page, t))] == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    readme = REPOSITORY / "README.md"
    assert "no such file" in wrong_link(readme, "docs/nothing.md")
    assert "no such heading" in wrong_link(readme, "docs/statistics.md#nothing")
    assert wrong_link(readme, "docs/statistics.md#strata") == ""


def test_the_index_names_every_page() -> None:
    named = {(INDEX.parent / target).resolve() for target in targets(INDEX)}
    pages = {page for page in PAGES if page.parent == INDEX.parent and page != INDEX}
    assert sorted(map(name_of, pages - named)) == []


@EVERY
def test_commands_are_real(page: Path) -> None:
    wrong: list[str] = []
    for call in calls(page):
        if call.words and call.words[0].startswith("-"):
            continue  # --help, --version
        try:
            command, words = command_of(main, call.words)
            if command.name != "lm-eval" and "--help" not in words:
                command.make_context(command.name, list(words))
        except (LookupError, click.ClickException) as error:
            said = error.format_message() if isinstance(error, click.ClickException) else error
            wrong.append(f"{call}: {said}")
    assert wrong == []


@EVERY
def test_commands_in_passing_are_real(page: Path) -> None:
    wrong: list[str] = []
    for call in mentions(page):
        command: click.Command = main
        for word in call.words:
            inner = command.commands.get(word) if isinstance(command, click.Group) else None
            command = inner or command
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        unknown = [w for w in call.words if w.startswith("--") and w.split("=")[0] not in known]
        if command is main or (unknown and command.name != "lm-eval"):
            wrong.append(f"{call}: {unknown or 'no such command'}")
    assert wrong == []


def test_pages_with_commands_were_looked_at() -> None:
    assert sum(len(calls(page)) for page in PAGES) > 40
    assert sum(len(mentions(page)) for page in PAGES) > 40


def without_needs(schema: Any) -> Any:
    """A schema for parts of a profile: nothing has to be there."""
    if isinstance(schema, list):
        return [without_needs(inner) for inner in schema]
    if isinstance(schema, dict):
        return {k: without_needs(v) for k, v in schema.items() if k not in {"required", "minItems"}}
    return schema


@EVERY
def test_pieces_of_profiles_fit_the_model(page: Path) -> None:
    validator = Draft202012Validator(without_needs(json.loads(schema_json())))
    for text in blocks(page, "yaml"):
        piece = json.loads(json.dumps(yaml.safe_load(text), default=str))
        if set(piece) <= set(Profile.model_fields):
            assert [error.message for error in validator.iter_errors(piece)] == [], text


def test_the_reference_is_the_models() -> None:
    page = REPOSITORY / "docs" / "profile.md"
    assert page.read_text(encoding="utf-8") == reference_page(), (
        "the profile has changed: .venv/bin/kinject profile --reference > docs/profile.md"
    )


def test_every_field_is_explained() -> None:
    def unexplained(schema: dict[str, Any]) -> list[str]:
        parts = {"profile": schema, **schema["$defs"]}
        return [
            f"{part}.{name}"
            for part, content in parts.items()
            for name, field in content.get("properties", {}).items()
            if not field.get("description") and "$ref" not in json.dumps(field)
        ]

    assert unexplained(json.loads(schema_json())) == []
