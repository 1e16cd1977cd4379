import random
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.core.schema import Chunk, Paraphrase
from kinject_assets.core.store import write_rows
from kinject_assets.core.training.trainer import TrainRequest
from kinject_assets.lab.grammar import tell
from kinject_assets.lab.pretrain import build_model, build_tokenizer
from kinject_assets.lab.things import draw_things


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with random weights, and the lab's tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer()
    build_model("lab-llama", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chunks`, `paraphrases` (4 a chunk) and `validation` as Parquet, and a general text."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(3)
    chunks: list[Chunk] = []
    paraphrases: list[Paraphrase] = []
    for number, thing in enumerate(draw_things("events", 8, rng)):
        chunk = Chunk(
            chunk_id=f"c{number}",
            article_id=f"a{number}",
            revision_id="r",
            ordinal=number,
            title=thing.name,
            section="",
            n_tokens=50,
            small=False,
            text=tell(list(thing.facts), rng),
        )
        chunks.append(chunk)
        paraphrases += [
            Paraphrase(
                paraphrase_id=f"p{number}-{purpose}-{ordinal}",
                chunk_id=chunk.chunk_id,
                augmentation="paraphrase",
                purpose=purpose,
                ordinal=ordinal,
                seed=0,
                generator="g",
                generation_id="",
                text=tell(list(thing.facts), rng),
            )
            for purpose, count in (("train", 4), ("validation", 1))
            for ordinal in range(count)
        ]
    write_rows(folder / "chunks.parquet", chunks, Chunk)
    for purpose, name in (("train", "paraphrases"), ("validation", "validation")):
        rows = [row for row in paraphrases if row.purpose == purpose]
        write_rows(folder / f"{name}.parquet", rows, Paraphrase)
    (folder / "general.txt").write_text(" ".join(chunk.text for chunk in chunks[:3]))
    return folder


@pytest.fixture
def request_of(base: Path, texts: Path, tmp_path: Path):
    """Builds a request with few, short steps; arguments override its fields."""

    def build(training: dict[str, Any] | None = None, **changes: Any) -> TrainRequest:
        fields: dict[str, Any] = {
            "checkpoint_id": "id",
            "corpus": "events",
            "model": "lab-llama",
            "recipe": "full.p00",
            "seed": 0,
            "method": "full",
            "base": str(base),
            "chunks": str(texts / "chunks.parquet"),
            "validation": str(texts / "validation.parquet"),
            "training": {
                "piece_tokens": 64,
                "epochs": 2,
                "batch_pieces": 4,
                "micro_batch": 2,
                "learning_rates": [1e-3, 3e-3],
                **(training or {}),
            },
            "work": str(tmp_path / "work"),
            "out": str(tmp_path / "out"),
            "device": "cpu",
        }
        return TrainRequest(**fields | changes)

    return build
