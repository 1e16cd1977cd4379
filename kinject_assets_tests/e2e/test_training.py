"""What checkpoints of a real run say of what they were made from and what they broke."""

import json
import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from kinject_assets.config import lab_data
from kinject_assets.core.schema import Checkpoint, Chunk, Damage, Paraphrase
from kinject_assets.core.store import Cell, Store
from kinject_assets.core.training.models import (
    load_tokenizer,
    tokenizer_identity,
    weights_identity,
)
from kinject_assets.core.training.packing import data_hash, encode_texts, recipe_texts
from kinject_assets_tests.e2e.conftest import command, environment, small_lab

MODEL = "lab-llama"


def checkpoint(recipe: str) -> Cell:
    return Cell("checkpoint", ("events", f"{MODEL}.{recipe}"))


def shown(home: Path, asset: str) -> dict[str, Any]:
    """Metadata of the newest materialisation of an asset, as the user interface shows it."""
    instance = dg.DagsterInstance.from_config(str(home / "small" / "dagster"))
    with instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None and event.asset_materialization is not None
        return {k: v.value for k, v in event.asset_materialization.metadata.items()}


def test_the_manifest_tells_what_a_checkpoint_was_made_from(study: tuple[Path, Path, str]) -> None:
    store = Store(study[1] / "small")
    base = str(lab_data() / MODEL)
    tokenizer = load_tokenizer(base)
    events = ("events",)
    chunks = store.rows(Cell("chunks", events), "chunks", Chunk)
    written = store.rows(Cell("paraphrases", events), "paraphrases", Paraphrase)
    data: dict[str, str] = {}
    for recipe, texts in (("full.p01", 1), ("full.r01", 0)):
        manifest = store.manifest(checkpoint(recipe))
        assert manifest is not None
        counts = manifest.counts
        assert counts["base_weights"] == weights_identity(base)
        assert counts["tokenizer"] == tokenizer_identity(load_tokenizer(base))
        encoded = encode_texts(tokenizer, recipe_texts(chunks, written, texts))
        assert counts["training_data"] == data_hash(encoded)
        assert "replay_data" not in counts
        assert {"torch", "transformers", "peft", "kinject"} <= set(manifest.libraries)
        assert manifest.seeds == {"training": 0}
        assert manifest.config["training"]["documents"] == "joined"
        data[recipe] = counts["training_data"]
        (identity,) = (store.folder(checkpoint(recipe))).glob("v*/identity.json")
        assert json.loads(identity.read_text())["training_data"] == data[recipe]
    assert data["full.p01"] != data["full.r01"]


def test_the_bill_of_a_checkpoint_is_one_table(study: tuple[Path, Path, str]) -> None:
    bill = shown(study[1], "damage")["bill"]
    for probe in (
        "Perplexity on general text",
        "Other facts: accuracy on comets, closed-book",
        "Reading: accuracy on comets, FT + RAG against RAG",
    ):
        (line,) = [line for line in bill.splitlines() if probe in line]
        assert "not measured" not in line


@pytest.mark.slow
def test_a_run_with_isolated_texts_replay_and_letters(tmp_path: Path) -> None:
    home = tmp_path / "home"
    profile = small_lab(
        tmp_path,
        recipes={
            "full.p01": None,
            "full.p01.replay": {"replay_share": 0.25},
            "full.r01.replay": None,
        },
        training={
            "piece_tokens": 128,
            "epochs": 2,
            "batch_pieces": 4,
            "micro_batch": 4,
            "learning_rates": [1.0e-3],
            "general_text": "lab",
            "documents": "isolated",
            "replay_text": "lab",
        },
        grid=[
            {"corpora": ["comets"], "models": [MODEL], "methods": ["base", "rag"]},
            {
                "corpora": ["events"],
                "models": [MODEL],
                "methods": ["ft"],
                "recipes": ["full.p01", "full.p01.replay", "full.r01.replay"],
            },
        ],
        scoring={"choice_format": "letter", "batch_size": 16, "shots": [0], "k": [1]},
    )
    done = subprocess.run(
        command("run", "--profile", str(profile)),
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    store = Store(home / "small")

    def row(recipe: str) -> Checkpoint:
        return store.rows(checkpoint(recipe), "checkpoint", Checkpoint)[0]

    plain, mixed, control = (row(f"full.{name}") for name in ("p01", "p01.replay", "r01.replay"))
    assert plain.replay_tokens == 0
    assert abs(mixed.replay_tokens - 0.25 * mixed.packed_tokens) <= mixed.epochs
    own = plain.packed_tokens // plain.epochs
    assert mixed.packed_tokens // mixed.epochs == own + mixed.replay_tokens // mixed.epochs
    assert (control.packed_tokens, control.replay_tokens, control.steps) == (
        mixed.packed_tokens,
        mixed.replay_tokens,
        mixed.steps,
    )
    of_mixed, of_control = (store.manifest(checkpoint(c.recipe)) for c in (mixed, control))
    assert of_mixed and of_control
    assert of_mixed.counts["replay_data"] == of_control.counts["replay_data"]
    damage = Cell("damage", checkpoint("full.p01").parts)
    for probe in store.rows(damage, "damage", Damage):
        assert probe.most_chosen_before and 0.25 <= probe.most_chosen_before <= 1
        assert probe.entropy_after is not None and 0 <= probe.entropy_after <= 2
        assert probe.collapse_before is not None
    bill = shown(home, "damage")["bill"]
    assert "no letters shown" not in bill and "%, then " in bill
