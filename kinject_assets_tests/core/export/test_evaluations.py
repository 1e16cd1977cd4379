"""lm-eval's layout, on the synthetic lake."""

import json
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.export.evaluations import NOT_REBUILT, export_evaluations, task_name
from kinject_assets.core.export.folders import ExportError
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Condition
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic


@pytest.fixture(scope="module")
def exported(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    export_evaluations(synthetic.profile(), built, out)
    return out


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("results_*.json")
    return json.loads(path.read_text())


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"samples_{task}_[0-9]*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_for_each_model(exported: Path) -> None:
    checkpoints = {
        f"{corpus}__tiny.{recipe}"
        for corpus, recipes in synthetic.RECIPES.items()
        for recipe in recipes
    }
    assert {path.name for path in exported.iterdir()} == {"tiny"} | checkpoints


def test_accuracies_are_those_of_the_database(built: Store, exported: Path) -> None:
    rows = fetch(built.root / DATABASE, "SELECT * FROM scores WHERE k_rule = 'fixed'").dicts()
    expected = {row["condition_id"]: row for row in rows if row["stratum"] == "all"}
    seen = set()
    for folder in exported.iterdir():
        found = results(folder)
        for task, config in found["configs"].items():
            row = expected[config["metadata"]["condition_id"]]
            assert found["results"][task]["acc,none"] == pytest.approx(row["accuracy"])
            assert found["n-samples"][task] == {"original": row["n"], "effective": row["n"]}
            assert found["n-shot"][task] == row["shots"]
            seen.add(row["condition_id"])
    assert seen == set(expected)


def test_samples_agree_with_results(exported: Path) -> None:
    folder = exported / "tiny"
    found = results(folder)
    for task, row in found["results"].items():
        lines = samples(folder, task)
        correct = [line["acc"] for line in lines]
        assert len(lines) == row["sample_len"] == synthetic.QUESTIONS
        assert sum(correct) / len(correct) == pytest.approx(row["acc,none"])
        mean = row["acc,none"]
        spread = sum((value - mean) ** 2 for value in correct) / (len(correct) - 1)
        assert row["acc_stderr,none"] == pytest.approx((spread / len(correct)) ** 0.5)
        assert [line["doc_id"] for line in lines] == list(range(len(lines)))
        assert set(found["task_hashes"][task]) <= set("0123456789abcdef")


def test_a_checkpoint_is_what_its_arguments_name(built: Store, exported: Path) -> None:
    arguments = results(exported / "rivers__tiny.full.p00")["config"]["model_args"]
    assert arguments["pretrained"].startswith(str(built.lake / "checkpoint"))
    assert results(exported / "tiny")["config"]["model_args"]["pretrained"] == "somewhere/tiny"


def test_a_prompt_that_cannot_be_told_is_not_made_up(exported: Path) -> None:
    # The synthetic lake's answers are of another code version.
    (first, *_) = samples(exported / "tiny", "rivers_0shot_k1_dense")
    assert first["arguments"]["gen_args_0"] == {"arg_0": NOT_REBUILT, "arg_1": " A"}
    assert results(exported / "tiny")["kinject"]["prompts_rebuilt"] is False


def test_conditions_that_differ_have_tasks_that_differ() -> None:
    fields: dict[str, Any] = {
        "corpus": "c", "model": "m", "recipe": "", "seed": 0, "method": "rag", "shots": 5, "k": 3,
        "retriever": "dense", "query": "question", "choice_format": "letter", "rotation": False,
        "engine": "hf-prefix",
    }  # fmt: skip
    assert task_name(Condition.of(**fields)) == "c_5shot_k3_dense"
    changes = (
        {"query": "question_and_options"}, {"choice_format": "text"}, {"rotation": True},
        {"chat_template": True}, {"retriever": "lexical"}, {"shots": 0}, {"k": 1},
    )  # fmt: skip
    names = {task_name(Condition.of(**fields | change)) for change in ({}, *changes)}
    assert len(names) == 1 + len(changes)


def test_without_answers_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="no answers yet"):
        export_evaluations(synthetic.profile(), Store(tmp_path / "empty"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(built: Store, exported: Path) -> None:
    with pytest.raises(ExportError, match="overwrites nothing"):
        export_evaluations(synthetic.profile(), built, exported)
