"""Recipes of every augmentation, trained by the worker on texts that the lab's writer wrote."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinject_assets import config
from kinject_assets.core.augmentation.plugin import Task
from kinject_assets.core.augmentation.registry import PLUGINS
from kinject_assets.core.schema import Checkpoint, Chunk, Paraphrase
from kinject_assets.core.store import read_rows, write_rows
from kinject_assets.core.training.models import load_model, load_tokenizer
from kinject_assets.core.training.packing import cut, encode_texts
from kinject_assets.core.training.trainer import TrainRequest
from kinject_assets.core.training.trial import mean_loss
from kinject_assets.lab import writer
from kinject_assets.workers import train

TEXTS = 2
RECIPES = {"question_answer": "full.p02.qa", "implications": "full.p02.imp"}


def _written(name: str, chunk: Chunk, ordinal: int) -> Paraphrase:
    plugin, task = PLUGINS[name], Task(chunk, ordinal, config.Augmentation())
    said: dict[str, Any] | None = writer.answer(plugin.prompt(task), ordinal)
    written = plugin.answer.model_validate(said)
    assert plugin.gate(written, task) is None
    return Paraphrase(
        paraphrase_id=f"{name}-{chunk.chunk_id}-{ordinal}",
        chunk_id=chunk.chunk_id,
        augmentation=name,
        purpose="train",
        ordinal=ordinal,
        seed=ordinal,
        generator=writer.MODEL,
        generation_id="",
        text=plugin.render(written),
    )


@pytest.fixture(scope="module")
def written(texts: Path) -> list[Paraphrase]:
    """Two texts of every augmentation on each chunk."""
    chunks = read_rows(texts / "chunks.parquet", Chunk)
    return [_written(name, chunk, n) for chunk in chunks for name in PLUGINS for n in range(TEXTS)]


@pytest.mark.slow
def test_each_recipe_is_trained_on_the_texts_of_its_augmentation(
    request_of: Callable[..., TrainRequest],
    texts: Path,
    written: list[Paraphrase],
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "paraphrases.parquet", written, Paraphrase)
    tokenizer = load_tokenizer(request_of().base)
    originals = [chunk.text for chunk in read_rows(texts / "chunks.parquet", Chunk)]
    own = {
        name: encode_texts(tokenizer, [r.text for r in written if r.augmentation == name])
        for name in RECIPES
    }
    losses: dict[tuple[str, str], float] = {}
    for name, recipe in RECIPES.items():
        request = request_of(
            recipe=recipe,
            augmentation=name,
            n_paraphrases=TEXTS,
            paraphrases=str(tmp_path / "paraphrases.parquet"),
            validation="",
            training={"learning_rates": [3e-3], "epochs": 8},
            work=str(tmp_path / recipe / "work"),
            out=str(tmp_path / recipe / "out"),
        )
        row = Checkpoint(**train.run(json.loads(json.dumps(asdict(request))))["checkpoint"])
        trained_on = [*encode_texts(tokenizer, originals), *own[name]]
        assert row.packed_tokens == 8 * sum(map(len, trained_on))
        assert (row.recipe, row.n_paraphrases) == (recipe, TEXTS)
        model = load_model(str(tmp_path / recipe / "out" / "model"))
        for other, tokens in own.items():
            losses[name, other] = mean_loss(model, cut(np.concatenate(tokens), 64), 4)
    # Whichever texts: who was trained on them predicts them better than who was not.
    for name in RECIPES:
        others = [losses[other, name] for other in RECIPES if other != name]
        assert losses[name, name] < min(others) - 0.3, losses
