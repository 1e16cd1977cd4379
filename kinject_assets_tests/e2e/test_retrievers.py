"""A study with several retrievers, as a user runs it, and a further one added to it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.core.schema import Answer
from kinject_assets.core.store import read_rows
from kinject_assets_tests.core.retrieval.test_retrievers import cross_encoder
from kinject_assets_tests.e2e.conftest import command, environment, small_lab

pytestmark = pytest.mark.slow

GRID = [
    {"corpora": ["comets"], "models": ["lab-llama"], "methods": ["base", "rag"]},
    {"corpora": ["events"], "models": ["lab-llama"], "recipes": ["full.p00"]},
]


def run(folder: Path, *words: str, **retrieval: Any) -> str:
    """Runs a command on the profile with these settings and gives what it printed."""
    encoder = {"encoder": {"model": "lab:encoder-coarse"}}
    changes: dict[str, Any] = {"recipes": {"full.p00": None}, "grid": GRID}
    profile = small_lab(folder, retrieval=encoder | retrieval, **changes)
    done = subprocess.run(
        command(words[0], "--profile", str(profile), *words[1:]),
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder: Path, query: str, **retrieval: Any) -> list[dict[str, Any]]:
    return json.loads(run(folder, "sql", query, "--format", "json", **retrieval))


def test_an_exam_that_no_retriever_answers_is_answered_without(tmp_path: Path) -> None:
    row = '"What is a mill?",one,two,three,four,A\n'
    for split in ("dev", "test"):
        (tmp_path / f"milling_{split}.csv").write_text(row)
    exam = {"kind": "mmlu", "subject": "milling", "folder": str(tmp_path)}
    source = {"kind": "files", "folder": str(tmp_path)}
    profile = small_lab(
        tmp_path,
        retrieval={"encoder": {"model": "lab:encoder"}, "retrievers": ["oracle"]},
        corpora={"mills": {"source": source, "exam": exam}},
        grid=[{"corpora": ["mills"], "models": ["lab-llama"], "methods": ["base"]}],
        recipes={},
        damage={},
    )
    done = subprocess.run(
        command("run", "--profile", str(profile), "--select", "+answers_base"),
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (answers,) = (tmp_path / "home").glob("**/answers_base/**/answers.parquet")
    assert len(read_rows(answers, Answer)) == 1


def test_a_study_with_several_retrievers(tmp_path: Path) -> None:
    reranker = str(cross_encoder(tmp_path / "reranker"))
    settings: dict[str, Any] = {
        "retrievers": ["lexical", "dense"],
        "also_ranked": ["fused", "reranked", "random"],
        "rerank": {"model": reranker, "depth": 10},
    }
    run(tmp_path, "run", **settings)
    ranked = rows(tmp_path, "SELECT DISTINCT retriever FROM retrieval_quality ORDER BY 1")
    names = ["dense", "fused", "lexical", "random", "reranked"]
    assert [row["retriever"] for row in ranked] == names
    recall = {
        row["retriever"]: row["recall"]
        for row in rows(
            tmp_path,
            "SELECT * FROM retrieval_quality WHERE k = 1 AND corpus = 'events'",
        )
    }
    assert recall["random"] < recall["dense"] < recall["lexical"]
    errors = rows(tmp_path, "SELECT * FROM rag_errors")
    assert {row["retriever"] for row in errors} == {"lexical", "dense"}
    assert all(
        row["hit_right"] + row["hit_wrong"] + row["miss_right"] + row["miss_wrong"] == row["n"]
        for row in errors
    )
    compared = rows(
        tmp_path,
        "SELECT DISTINCT a.retriever AS a, b.retriever AS b FROM comparisons "
        "JOIN conditions a ON condition_a = a.condition_id "
        "JOIN conditions b ON condition_b = b.condition_id WHERE family = 'retriever'",
    )
    assert compared == [{"a": "dense", "b": "lexical"}]
    main = rows(tmp_path, "SELECT DISTINCT retriever FROM scores WHERE main AND k > 0")
    assert main == [{"retriever": "lexical"}]

    asked = (
        "SELECT answer_id, run_id FROM answers JOIN conditions USING (condition_id) "
        "WHERE retriever IN ('lexical', 'dense')"
    )
    before = {row["answer_id"]: row["run_id"] for row in rows(tmp_path, asked)}
    more = settings | {"retrievers": ["lexical", "dense", "oracle"]}
    run(tmp_path, "run", **more)
    # What was answered before was not asked again: it names the run that asked.
    assert {row["answer_id"]: row["run_id"] for row in rows(tmp_path, asked)} == before
    oracle = rows(tmp_path, "SELECT * FROM rag_errors WHERE retriever = 'oracle'")
    assert oracle and all(row["miss_right"] + row["miss_wrong"] == 0 for row in oracle)
