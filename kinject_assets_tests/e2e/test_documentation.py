"""Commands of the pages that take moments, really run on a finished study."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from kinject_assets.cli import main
from kinject_assets_tests.documents import PAGES, Call, calls
from kinject_assets_tests.e2e.conftest import Kinject

QUICK = {"tables", "claims", "sql", "status", "plan", "profile", "completion", "doctor"}
"""They print, send nothing, write nothing and need no Dagster."""


def quick_calls() -> list[Call]:
    """Each of them once, without the page's own profile."""
    found: dict[tuple[str, ...], Call] = {}
    for page in PAGES:
        for call in calls(page):
            if call.words[0] not in QUICK or {"--help", "--list", "paper"} & set(call.words):
                continue
            words = list(call.words)
            if "--profile" in words:
                at = words.index("--profile")
                del words[at : at + 2]
            found.setdefault(tuple(words), Call(call.page, tuple(words)))
    return list(found.values())


@pytest.fixture
def on_study(study: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_PROFILE", str(study[0]))
    monkeypatch.setenv("KINJECT_HOME", str(study[1]))


@pytest.mark.usefixtures("on_study")
@pytest.mark.parametrize("call", quick_calls(), ids=lambda call: " ".join(str(call).split())[:60])
def test_quick_commands_of_the_pages_run(call: Call) -> None:
    done = CliRunner().invoke(main, list(call.words))
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()


def test_there_are_such_commands() -> None:
    assert {call.words[0] for call in quick_calls()} == QUICK


def test_the_pages_audit_runs(kinject: Kinject) -> None:
    done: subprocess.CompletedProcess[str] = kinject("audit", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ artefacts", done.stdout)
