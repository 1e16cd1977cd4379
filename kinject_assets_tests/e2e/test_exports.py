"""Exports of a real study, read by the tools that they are for, without the network."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kinject_assets.config import lab_data
from kinject_assets.core.export.evaluations import CHAT, NOT_REBUILT
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.results.tables import fetch
from kinject_assets_tests.documents import PAGES, blocks, calls
from kinject_assets_tests.e2e.conftest import command, environment

Export = Callable[..., subprocess.CompletedProcess[str]]

(PAGE,) = (page for page in PAGES if page.name == "exports.md")

# The page's commands are those of the lab; this study is smaller.
SMALLER = {"events-2031-04": "events", "full.p04": "full.p01"}


@pytest.fixture(scope="module")
def exported(study: tuple[Path, Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of docs/exports.md was run."""
    folder = tmp_path_factory.mktemp("exports")
    for call in calls(PAGE):
        words = [SMALLER.get(word, word) for word in call.words]
        done = subprocess.run(
            command(*words, "--profile", str(study[0])),
            env=environment(study[1]),
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{call}: {done.stderr}"
        assert (folder / done.stdout.strip()).exists()
    return folder


def offline(folder: Path, code: str) -> str:
    """What Python code prints in a folder, where nothing can be had from the hub."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        },
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lm_evals_own_printer_shows_the_results(exported: Path) -> None:
    (code,) = (block for block in blocks(PAGE, "python") if "make_table" in block)
    shown = offline(exported, code)
    rows = [line for line in shown.splitlines() if line.startswith("|events_")]
    assert len(rows) == 3
    (found,) = (exported / "lm-eval-results" / "lab-llama").glob("results_*.json")
    results = json.loads(found.read_text())["results"]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        expected = results[cells[0]]
        assert f"{expected['acc,none']:.4f}" in cells
        assert f"{expected['acc_stderr,none']:.4f}" in cells


def test_prompts_are_those_that_the_model_was_shown(
    exported: Path, study: tuple[Path, Path, str]
) -> None:
    """The id of a prompt is a hash of the model and all that it was shown."""
    from kinject_assets.core.training.models import weights_identity

    weights = weights_identity(str(lab_data() / "lab-llama"))
    database = study[1] / "small" / "results.duckdb"
    rows = fetch(database, "SELECT answer_id, prompt_id FROM answers").rows
    prompt_of = dict(rows)
    seen = 0
    for path in (exported / "lm-eval-results").rglob("samples_*.jsonl"):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            arguments = sample["arguments"].values()
            (context,) = {argument["arg_0"] for argument in arguments}
            options = tuple(argument["arg_1"] for argument in arguments)
            assert context not in {CHAT, NOT_REBUILT}
            assert (
                content_hash("prompt", weights, [(context, options)])
                == (prompt_of[sample["answer_id"]])
            )
            logliks = [float(value) for value, _ in sample["filtered_resps"]]
            assert all(math.isfinite(value) for value in logliks)
            best = logliks.index(max(logliks))
            assert sample["acc"] == float(best == int(sample["target"]))
            seen += 1
    assert seen == len(rows)


def test_datasets_loads_the_folder_offline(exported: Path) -> None:
    (code,) = (block for block in blocks(PAGE, "python") if "load_dataset" in block)
    code += (
        "print(exam['test'].num_rows, exam['shots'].num_rows, texts['train'].num_rows, "
        "chunks.num_rows, articles.num_rows, set(chunks['licence']))\n"
        "row = exam['test'][0]\n"
        "print(row['choices'][row['answer']] in "
        "{c['chunk_id']: c['text'] for c in chunks}[row['chunk_id']])"
    )
    counts, right = offline(exported, code).splitlines()[-2:]
    assert counts == "42 6 24 24 24 {'invented text, CC0'}"
    assert right == "True"
    card = (exported / "events-exam" / "README.md").read_text()
    assert "**All of it is synthetic**" in card


def test_transformers_loads_the_checkpoint(exported: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exported / "events-llama"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    shown = tokenizer("The leader of", return_tensors="pt")
    assert model(input_ids=shown["input_ids"]).logits.shape[-1] == len(tokenizer)
    card = (folder / "README.md").read_text()
    for said in ("validation loss", "facts:comets", "[0.", "invented text, CC0", "full.p01"):
        assert said in card
    assert "index.php?oldid=" in (folder / "ATTRIBUTION.md").read_text()


def test_provenance_names_what_was_made(exported: Path) -> None:
    events = [json.loads(line) for line in (exported / "events.jsonl").read_text().splitlines()]
    named = {output["name"] for event in events for output in event["outputs"]}
    assert any("checkpoint/events/lab-llama.full.p01" in name for name in named)
    assert "entity" in json.loads((exported / "prov.json").read_text())
