"""A checkpoint's folder and card, on the synthetic lake."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import yaml

from kinject_assets.config import Profile
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.export.checkpoints import export_checkpoint
from kinject_assets.core.export.folders import ExportError
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Checkpoint
from kinject_assets.core.store import Cell, Store, write_rows
from kinject_assets_tests.core.results import synthetic

EVENTS = "events-2031-04"


@pytest.fixture(scope="module")
def card(built: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("checkpoint") / "out"
    export_checkpoint(synthetic.profile(), built, EVENTS, "tiny", "full.p04", out)
    assert {path.name for path in out.iterdir()} == {
        "README.md", "ATTRIBUTION.md", "config.json", "model.safetensors",
    }  # fmt: skip
    return (out / "README.md").read_text()


def test_scores_stand_beside_the_base_models(built: Store, card: str) -> None:
    sql = """
        SELECT method, accuracy, ci_low, ci_high FROM scores
        WHERE corpus = ? AND shots = 5 AND k_rule = 'cross_fitted' AND stratum = 'all'
            AND recipe IN ('', 'full.p04')
    """
    rows = {r[0]: r[1:] for r in fetch(built.root / DATABASE, sql, (EVENTS,)).rows}
    shown = {method: f"{a:.3f} [{low:.2f}, {high:.2f}]" for method, (a, low, high) in rows.items()}
    assert f"| {EVENTS} | alone | 5 | 60 | {shown['ft']} | {shown['base']} |" in card
    assert f"| {EVENTS} | with retrieval | 5 | 60 | {shown['ft_rag']} | {shown['rag']} |" in card


def test_the_card_says_what_it_is(card: str) -> None:
    _, head, body = card.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["base_model"] == "somewhere/tiny"
    assert fields["base_model_relation"] == "finetune"
    assert fields["library_name"] == "transformers"
    assert "the text and 4 further texts on each chunk (paraphrase)." in body
    assert "`ck-events-2031-04-full.p04`" in body
    assert "| `perplexity` | 10.000 | 11.000 |" in body
    assert "licence: CC0" in body
    assert "changed since" not in body
    assert "synthetic" not in fields["tags"]


def test_a_control_says_so(built: Store, tmp_path: Path) -> None:
    export_checkpoint(synthetic.profile(), built, EVENTS, "tiny", "full.r04", tmp_path / "out")
    body = (tmp_path / "out" / "README.md").read_text()
    assert "as many steps and tokens as `full.p04` has (its control)" in body


def adapted(folder: str) -> Profile:
    """A profile with an adapter as its only recipe, of a model in a folder."""
    fields = synthetic.profile().model_dump(mode="json")
    fields["models"]["tiny"]["source"] = folder
    fields["recipes"] = {"lora.p00": None}
    fields["grid"] = [{"corpora": ["rivers"], "models": ["tiny"], "recipes": ["lora.p00"]}]
    return Profile.model_validate(fields)


def test_an_adapter_names_no_path_of_this_machine(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    profile, store = adapted(str(base)), synthetic.write_lake(tmp_path / "root")
    cell = Cell("checkpoint", ("rivers", "tiny.lora.p00"))
    row = replace(synthetic.checkpoint("rivers", "full.p00"), recipe="lora.p00", method="lora")
    with store.draft(cell) as draft:
        model = draft / "model"
        model.mkdir()
        settings = {"base_model_name_or_path": str(base), "r": 8}
        (model / "adapter_config.json").write_text(json.dumps(settings))
        write_rows(draft / "checkpoint.parquet", [row], Checkpoint)
        store.publish(
            cell, draft, partition="p", logical_version="v", fingerprint="f", code_version="1",
            inputs={"chunks/rivers": "another version"}, config={}, started_at=synthetic.NOW,
        )  # fmt: skip
    export_checkpoint(profile, store, "rivers", "tiny", "lora.p00", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings == {"base_model_name_or_path": None, "r": 8}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:" not in card
    assert "PeftModel.from_pretrained(base, FOLDER)" in card
    for text in (card, (tmp_path / "out" / "ATTRIBUTION.md").read_text()):
        assert "**Texts of the corpus have changed since it was trained.**" in text
    assert "Not scored yet" in card
    assert "Not measured." in card


def test_what_is_not_there_is_named(built: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"--corpus rivers --model tiny --recipe full\.p00"):
        export_checkpoint(synthetic.profile(), built, "rivers", "tiny", "full.p04", out)
    empty = Store(tmp_path / "empty")
    with pytest.raises(MissingArtefact, match="kinject run"):
        export_checkpoint(synthetic.profile(), empty, "rivers", "tiny", "full.p00", out)
    assert not out.exists()


def test_several_retrievers_are_told_apart(built: Store, tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    shutil.copytree(built.root, store.root)
    with duckdb.connect(str(store.root / DATABASE)) as connection:
        connection.execute(
            "INSERT INTO scores SELECT * REPLACE ('lexical' AS retriever, false AS main, "
            "condition_id || 'l' AS condition_id) FROM scores WHERE method IN ('rag', 'ft_rag')"
        )
    export_checkpoint(synthetic.profile(), store, EVENTS, "tiny", "full.p04", tmp_path / "out")
    rows = [
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in (tmp_path / "out" / "README.md").read_text().splitlines()
        if "with retrieval" in line
    ]
    assert [row[:2] for row in rows] == [
        [f"with retrieval, by {name}", shots]
        for shots in ("0", "5")
        for name in ("dense", "lexical")
    ]
    assert all(row[-1] for row in rows), "what the base model scores by the same retriever"
