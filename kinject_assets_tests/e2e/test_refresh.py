"""Keeping a corpus current, as a user does it: the lab's months, and one edit of a real wiki."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Answer, Article, Chunk, Question
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.e2e.conftest import command, environment, small_lab

Refresh = Callable[..., str]

SCORING = {"choice_format": "text", "batch_size": 16, "shots": [0], "k": [1, 2]}


def window(folder: Path) -> Path:
    """The small lab with one rolling window of events."""
    profile = yaml.safe_load(small_lab(folder).read_text())
    lab = yaml.safe_load(
        (Path(__file__).parents[2] / "kinject_assets/profiles/lab.yaml").read_text()
    )
    return small_lab(
        folder,
        name="window",
        lab={**profile["lab"], "months": 3},
        corpora={"events-current": lab["corpora"]["events-current"]},
        recipes={},
        grid=[{"corpora": ["events-current"], "models": ["lab-llama"], "methods": ["base", "rag"]}],
        scoring=SCORING,
        damage={},
    )


def kinject(profile: Path, home: Path, *words: str) -> str:
    done = subprocess.run(
        command(*words, "--profile", str(profile)),
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def counts(store: Store, asset: str, *parts: str) -> dict[str, Any]:
    manifest = store.manifest(Cell(asset, parts))
    assert manifest is not None, asset
    return manifest.counts


def paid(store: Store) -> list[dict[str, Any]]:
    """Rows of the ledger."""
    return [
        json.loads(line)
        for path in sorted((store.lake / "llm_ledger").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Store]:
    """A window that was made in March and looked at again in April and May."""
    folder = tmp_path_factory.mktemp("window")
    profile, home = window(folder), folder / "home"
    kinject(profile, home, "refresh")
    for _ in range(2):
        kinject(profile, home, "lab", "advance", "--months", "1")
        kinject(profile, home, "refresh")
    return profile, home, Store(home / "window")


def test_months_that_closed_are_corpora_with_answers(
    months: tuple[Path, Path, Store],
) -> None:
    _, _, store = months
    frozen = sorted(path.parent.name for path in store.lake.glob("releases/*/release.json"))
    assert frozen == ["events-2031-03", "events-2031-04"]
    scored = fetch(
        store.root / "results.duckdb",
        "SELECT DISTINCT corpus, method FROM scores WHERE stratum = 'all' ORDER BY ALL",
    ).rows
    assert {tuple(row) for row in scored} == {
        (corpus, method) for corpus in ("events-current", *frozen) for method in ("base", "rag")
    }


def test_what_did_not_change_was_neither_embedded_nor_asked_about_nor_answered(
    months: tuple[Path, Path, Store],
) -> None:
    _, _, store = months
    now = counts(store, "chunks", "events-current")
    embedded = counts(store, "embeddings", "events-current")
    assert 0 < now["new"] < now["chunks"]
    assert embedded["chunks"] - embedded["reused"] == now["new"]
    assert counts(store, "questions", "events-current")["chunks_asked"] <= now["new"]
    # April is in the window of May still: its release is made of what was there.
    for asset in ("articles", "embeddings", "questions"):
        found = counts(store, asset, "events-2031-04")
        fresh = {
            "articles": found.get("bodies_fetched"),
            "embeddings": found.get("chunks", 0) - found.get("reused", 0),
            "questions": found.get("chunks_asked"),
        }[asset]
        assert fresh == 0, (asset, found)
    base = store.rows(Cell("answers_base", ("events-current", "lab-llama")), "answers", Answer)
    assert len({row.run_id for row in base}) > 1, "some answers are those of an earlier run"
    for asset in ("answers_base", "answers_rag"):
        found = counts(store, asset, "events-2031-04", "lab-llama")
        asked = found["questions"] * found["conditions"] - found["answers_taken_over"]
        assert asked < found["answers_taken_over"], asset
        assert found["seconds_per_answer"] > 0, "those of the making that asked"
    keys = [row["key"] for row in paid(store) if row["row"] == "intent"]
    assert len(keys) == len(set(keys)), "nothing was asked for twice"


def test_questions_on_text_that_is_gone_are_kept_and_retired(
    months: tuple[Path, Path, Store],
) -> None:
    _, _, store = months
    questions = store.rows(Cell("questions", ("events-current",)), "questions", Question)
    there = {c.chunk_id for c in store.rows(Cell("chunks", ("events-current",)), "chunks", Chunk)}
    assert {q.retired for q in questions} == {True, False}
    assert all(q.retired == (q.chunk_id not in there) for q in questions)
    base = store.rows(Cell("answers_base", ("events-current", "lab-llama")), "answers", Answer)
    answered = {row.question_id for row in base}
    assert answered == {q.question_id for q in questions if not q.retired and q.split == "test"}
    split = {q.question_id: q.split for q in questions}
    release = store.rows(Cell("questions", ("events-2031-04",)), "questions", Question)
    assert all(split.get(q.question_id, q.split) == q.split for q in release)


def test_the_audit_is_sound_and_a_second_look_makes_nothing(
    months: tuple[Path, Path, Store],
) -> None:
    profile, home, store = months
    before = len(paid(store))
    said = kinject(profile, home, "refresh")
    assert "no text has changed" in said
    assert "1 made" in said
    assert len(paid(store)) == before
    assert "sound" in kinject(profile, home, "audit")
    assert "nothing" not in kinject(profile, home, "refresh", "--no-look")


def test_a_frozen_list_is_written_for_people(months: tuple[Path, Path, Store]) -> None:
    profile, home, store = months
    out = home / "frozen.jsonl"
    kinject(profile, home, "freeze", "--corpus", "events-current", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    articles = store.rows(Cell("articles", ("events-current",)), "articles", Article)
    assert [(r["article_id"], str(r["revision_id"])) for r in rows] == [
        (a.article_id, a.revision_id) for a in articles
    ]


# --- a real wiki


def api(url: str, **params: str) -> dict[str, Any]:
    body = urllib.parse.urlencode({"format": "json", "formatversion": "2"} | params).encode()
    with urllib.request.urlopen(url, data=body) as answer:
        return json.load(answer)


def text_of(url: str, title: str) -> str:
    found = api(
        url, action="query", prop="revisions", rvprop="content", rvslots="main", titles=title
    )
    return found["query"]["pages"][0]["revisions"][0]["slots"]["main"]["content"]


def edit(url: str, title: str, text: str) -> None:
    token = api(url, action="query", meta="tokens")["query"]["tokens"]["csrftoken"]
    done = api(url, action="edit", title=title, text=text, token=token)
    assert done["edit"]["result"] == "Success", done


@pytest.fixture
def page(real_wiki: str) -> Iterator[tuple[str, str]]:
    """A page of the real wiki and its text, which is put back afterwards."""
    title = "Amateur astronomy"
    text = text_of(real_wiki, title)
    yield title, text
    edit(real_wiki, title, text)


@pytest.mark.slow
def test_one_edit_of_a_real_page_costs_one_page(
    real_wiki: str, page: tuple[str, str], tmp_path: Path
) -> None:
    title, text = page
    profile = small_lab(
        tmp_path,
        name="wiki",
        wikis={"real": {"api_url": real_wiki, "licence": "CC BY-SA 3.0"}},
        corpora={
            "astronomy": {
                "source": {"kind": "wiki", "wiki": "real", "categories": ["Astronomy"], "depth": 1}
            }
        },
        chunking={"tokenizer": "words", "max_tokens": 120, "min_tokens": 30},
        recipes={},
        grid=[{"corpora": ["astronomy"], "models": ["lab-llama"], "methods": ["rag"]}],
        scoring={**SCORING, "k": [1]},
        exams={"shots_share": 0.1, "triage": False},
        damage={},
    )
    home = tmp_path / "home"
    store = Store(home / "wiki")
    kinject(profile, home, "run")
    first = {
        "articles": store.rows(Cell("articles", ("astronomy",)), "articles", Article),
        "questions": store.rows(Cell("questions", ("astronomy",)), "questions", Question),
    }
    requests = len(paid(store))
    place = text.index("\n==")
    edit(real_wiki, title, text[:place] + "\nThe Kinject comet was seen in 2031.\n" + text[place:])
    said = kinject(profile, home, "refresh", "--corpus", "astronomy")
    print(said)

    found = counts(store, "articles", "astronomy")
    assert found["bodies_fetched"] == 1
    second = store.rows(Cell("articles", ("astronomy",)), "articles", Article)
    old = {a.article_id: a.revision_id for a in first["articles"]}
    assert [a.title for a in second if old[a.article_id] != a.revision_id] == [title]
    chunks = counts(store, "chunks", "astronomy")
    assert 1 <= chunks["new"] <= 2
    embedded = counts(store, "embeddings", "astronomy")
    assert embedded["chunks"] - embedded["reused"] == chunks["new"]
    asked = counts(store, "questions", "astronomy")["chunks_asked"]
    assert asked <= chunks["new"]
    assert len([r for r in paid(store)[requests:] if r["row"] == "intent"]) <= 2 * asked
    questions = store.rows(Cell("questions", ("astronomy",)), "questions", Question)
    kept = {q.question_id for q in questions if not q.retired}
    there = {c.chunk_id for c in store.rows(Cell("chunks", ("astronomy",)), "chunks", Chunk)}
    untouched = {q.question_id for q in first["questions"] if q.chunk_id in there}
    assert untouched <= kept
    gone = {q.question_id for q in first["questions"]} - untouched
    assert gone == {q.question_id for q in questions if q.retired}
