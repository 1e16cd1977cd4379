"""One document is edited: `kinject diff` names the edit as the cause of each flip, and no more."""

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinject_assets.core.results.history import history
from kinject_assets.lab.grammar import tell
from kinject_assets.lab.things import draw_facts, draw_things
from kinject_assets_tests.e2e.conftest import command, environment

EDITED = "comet-00"


def study(folder: Path) -> Path:
    """A profile of a dozen documents on comets of the lab, with base and RAG answers."""
    documents = folder / "comets"
    documents.mkdir(parents=True)
    rng = random.Random(12)
    for number, thing in enumerate(draw_things("comets", 12, rng)):
        (documents / f"comet-{number:02d}.txt").write_text(tell(list(thing.facts), rng))
    profile = {
        "name": "edited",
        "lab": {"seed": 1},
        "corpora": {"comets": {"source": {"kind": "files", "folder": "comets"}}},
        "chunking": {"tokenizer": "lab:lab-llama", "max_tokens": 128, "min_tokens": 20},
        "llm": {"model": "lab-writer-by-rule", "base_url": "lab"},
        "exams": {"shots_share": 0.0, "triage": False},
        "retrieval": {"encoder": {"model": "lab:encoder"}},
        "models": {"lab-llama": {"source": "lab:lab-llama"}},
        "grid": [{"corpora": ["comets"], "models": ["lab-llama"], "methods": ["base", "rag"]}],
        "scoring": {"choice_format": "text", "shots": [0], "k": [1, 2, 3]},
        "compute": "inline",
    }
    path = folder / "edited.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path


def edit(folder: Path) -> None:
    """Document 0 now also says of the comets of documents 1 and 2 what these do not say."""
    rng = random.Random(12)
    things = draw_things("comets", 12, rng)
    other = random.Random(99)
    path = folder / "comets" / f"{EDITED}.txt"
    wrong = [tell(list(draw_facts("comets", t.name, other)), other) for t in things[1:3]]
    path.write_text("\n\n".join([path.read_text(), *wrong]))


def kinject(folder: Path, *words: str) -> str:
    profile = ("--profile", str(folder / "edited.yaml"))
    done = subprocess.run(
        command(words[0], *profile, *words[1:]),
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run, of which a document was edited, and that was refreshed."""
    folder = tmp_path_factory.mktemp("edited")
    study(folder)
    kinject(folder, "run")
    edit(folder)
    kinject(folder, "refresh", "--corpus", "comets")
    return folder


@pytest.mark.slow
def test_the_edit_is_the_cause_and_nothing_else(edited: Path) -> None:
    found: dict[str, Any] = json.loads(
        kinject(edited, "diff", "previous", "now", "--format", "json")
    )
    assert found["flips"], "an edit that contradicts two documents flips answers"
    causes = {(cause["kind"], cause["subject"]) for cause in found["causes"]}
    assert causes == {("article edited", EDITED)}
    for flip in found["flips"]:
        assert {cause["kind"] for cause in flip["causes"]} == {"article edited"}
        assert " rag " in flip["system"], "without retrieval nothing has changed"
    for row in (*found["retired"], *found["new"]):
        assert (row["cause"]["kind"], row["cause"]["subject"]) == ("article edited", EDITED)
    assert sum(line["won"] + line["lost"] + line["still_wrong"] for line in found["lines"]) == len(
        found["flips"]
    )


@pytest.mark.slow
def test_in_words_by_date_and_by_run(edited: Path) -> None:
    text = kinject(edited, "diff", "previous", "now")
    assert "article edited" in text
    assert EDITED in text
    first, second = reversed(history(edited / "home" / "edited"))
    assert first.version != second.version
    for word in (f"{first.at:%Y-%m-%dT%H:%M:%S}", first.run, "-1", str(first.path)):
        again = kinject(edited, "diff", word, "now", "--format", "json")
        assert json.loads(again)["headline"] in " ".join(text.split())
    assert json.loads(kinject(edited, "diff", "now", "now", "--format", "json"))["flips"] == []


@pytest.mark.slow
def test_the_ui_shows_it(edited: Path) -> None:
    import dagster as dg

    home = edited / "home" / "edited" / "dagster"
    with dg.DagsterInstance.from_config(str(home)) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("results"))
    assert event is not None
    assert event.asset_materialization is not None
    shown = event.asset_materialization.metadata["changes_since_the_last_results"].value
    assert isinstance(shown, str)
    assert "article edited" in shown
    assert EDITED in shown


@pytest.mark.slow
def test_nothing_changed_keeps_nothing(edited: Path) -> None:
    before = history(edited / "home" / "edited")
    kinject(edited, "run")
    assert history(edited / "home" / "edited") == before
