"""Recipes on the texts of other augmentations, and what a longer list asks for, end to end."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kinject_assets.core.manifest import file_sha256
from kinject_assets_tests.e2e.conftest import command, environment, small_lab

pytestmark = pytest.mark.slow

QA = {"augmentation": "question_answer"}
IMPLICATIONS = {"augmentation": "implications"}
FIRST = {
    "full.p02": None,
    "full.p02.qa": QA,
    "full.r02.qa": None,
    "full.p02.imp": IMPLICATIONS,
}
LONGER = {**FIRST, "full.p03.qa": QA}


def profile(folder: Path, recipes: dict[str, Any]) -> Path:
    """A small world, one corpus, answered closed-book alone."""
    events = {
        "corpora": ["events"],
        "models": ["lab-llama"],
        "methods": ["base", "ft"],
        "recipes": list(recipes),
    }
    return small_lab(folder, recipes=recipes, grid=[events], damage={})


def kinject(folder: Path, *words: str) -> str:
    done = subprocess.run(
        command(words[0], "--profile", str(folder / "small.yaml"), *words[1:]),
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout if words[0] == "sql" else done.stderr


def rows(folder: Path, query: str) -> list[dict[str, Any]]:
    return json.loads(kinject(folder, "sql", query, "--format", "json"))


def manifest(folder: Path, cell: str) -> dict[str, Any]:
    return json.loads((folder / f"home/small/lake/{cell}/manifest.json").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    profile(folder, FIRST)
    kinject(folder, "run")
    return folder


def test_each_recipe_was_trained_on_its_own_texts(study: Path) -> None:
    chunks = rows(study, "SELECT count(*) AS n FROM corpus_chunks")[0]["n"]
    read = rows(
        study,
        "SELECT recipe, p.augmentation, count(*) AS n FROM lineage "
        "JOIN checkpoints ON child_id = checkpoint_id JOIN paraphrases p "
        "ON parent_id = paraphrase_id WHERE parent_kind = 'paraphrase' AND purpose = 'train' "
        "GROUP BY ALL ORDER BY recipe",
    )
    assert [tuple(row.values()) for row in read] == [
        ("full.p02", "paraphrase", 2 * chunks),
        ("full.p02.imp", "implications", 2 * chunks),
        ("full.p02.qa", "question_answer", 2 * chunks),
    ]
    tokens = {
        row["recipe"]: (row["steps"], row["packed_tokens"])
        for row in rows(study, "SELECT * FROM checkpoints")
    }
    assert tokens["full.p02.qa"] == tokens["full.r02.qa"]
    assert len({tokens[recipe] for recipe in FIRST}) == 3
    purposes = rows(study, "SELECT purpose FROM generations GROUP BY ALL")
    names = {row["purpose"] for row in purposes}
    assert {"paraphrase", "validation_paraphrase", "question_answer", "implications"} <= names


def test_they_are_compared_with_their_control_and_with_paraphrases(study: Path) -> None:
    found = rows(
        study,
        "SELECT family, a.recipe AS a, b.recipe AS b FROM comparisons "
        "JOIN conditions a ON condition_a = a.condition_id "
        "JOIN conditions b ON condition_b = b.condition_id "
        "WHERE stratum = 'all' AND (family LIKE 'aug%' OR family LIKE 'par%') ORDER BY ALL",
    )
    assert [tuple(row.values()) for row in found] == [
        ("aug_vs_control", "full.p02.qa", "full.r02.qa"),
        ("aug_vs_par", "full.p02.imp", "full.p02"),
        ("aug_vs_par", "full.p02.qa", "full.p02"),
    ]


def test_a_longer_list_asks_for_what_is_new_and_trains_what_reads_it(study: Path) -> None:
    chunks = rows(study, "SELECT count(*) AS n FROM corpus_chunks")[0]["n"]
    asked = rows(study, "SELECT count(*) AS n FROM generations")[0]["n"]
    texts = rows(study, "SELECT * FROM paraphrases ORDER BY paraphrase_id")
    versions = {r: manifest(study, f"checkpoint/events/lab-llama.{r}")["run_id"] for r in FIRST}

    profile(study, LONGER)
    said = kinject(study, "run")
    assert "0 failed" in said
    after = manifest(study, "paraphrases/events")["counts"]
    assert (after["kept"], after["paraphrases"]) == (6 * chunks, 7 * chunks)
    known = {row["paraphrase_id"] for row in texts}
    new = [
        row
        for row in rows(study, "SELECT * FROM paraphrases ORDER BY paraphrase_id")
        if row["paraphrase_id"] not in known
    ]
    assert len(new) == chunks
    assert {(row["augmentation"], row["ordinal"]) for row in new} == {("question_answer", 2)}
    requests = rows(study, "SELECT count(*) AS n FROM generations")[0]["n"]
    again = rows(study, "SELECT count(*) AS n FROM rejections WHERE kind = 'question_answer'")
    assert chunks <= requests - asked <= chunks + again[0]["n"]
    assert versions == {
        r: manifest(study, f"checkpoint/events/lab-llama.{r}")["run_id"] for r in FIRST
    }


def test_a_lake_from_before_there_were_augmentations_is_mended_from_the_ledger(study: Path) -> None:
    requests = rows(study, "SELECT count(*) AS n FROM generations")[0]["n"]
    texts = rows(study, "SELECT paraphrase_id, text FROM paraphrases ORDER BY ALL")
    trained = manifest(study, "checkpoint/events/lab-llama.full.p02")["run_id"]
    for asset in ("paraphrases", "validation_paraphrases"):
        path = study / f"home/small/lake/{asset}/events/manifest.json"
        old: dict[str, Any] = {
            **manifest(study, f"{asset}/events"),
            "code_version": "1",
            "fingerprint": "old",
        }
        (name,) = (n for n in old["files"] if n.endswith("/paraphrases.parquet"))
        file = path.parent / name
        pq.write_table(pq.read_table(file).drop_columns(["augmentation"]), file)
        old["files"][name] = {"sha256": file_sha256(file), "bytes": file.stat().st_size}
        path.write_text(json.dumps(old))
    said = kinject(study, "run")
    assert "2 made" in said and "0 failed" in said
    assert rows(study, "SELECT count(*) AS n FROM generations")[0]["n"] == requests
    assert rows(study, "SELECT paraphrase_id, text FROM paraphrases ORDER BY ALL") == texts
    assert manifest(study, "paraphrases/events")["counts"]["kept"] == 0
    assert manifest(study, "checkpoint/events/lab-llama.full.p02")["run_id"] == trained
