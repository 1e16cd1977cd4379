import random
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from kinject_assets.config import lab_data
from kinject_assets.core.manifest import file_sha256
from kinject_assets.lab.encoder import (
    COARSE_DIMENSION,
    DIMENSION,
    build_encoder,
    build_encoders,
    word_weights,
)
from kinject_assets.lab.grammar import ask, tell
from kinject_assets.lab.things import draw_things


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder")
    build_encoder(out)
    return out


def test_small_without_pickle_and_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    build_encoder(tmp_path)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert sum((folder / name).stat().st_size for name in files) < 1_000_000
    assert {name.suffix for name in files} == {".json", ".safetensors"}
    assert [file_sha256(folder / n) for n in files] == [file_sha256(tmp_path / n) for n in files]


def test_names_outweigh_the_words_of_sentences() -> None:
    weights = word_weights()
    assert weights["Accord"] == weights["Balan"] == weights["Ashwick"] == weights["12"] == 1.0
    assert "the" not in weights
    assert weights["of"] < weights["watch"] < 0.5


def test_finds_the_article_of_a_question_among_its_neighbours(folder: Path) -> None:
    rng = random.Random(5)
    things = draw_things("events", 60, rng)
    encoder = SentenceTransformer(str(folder), device="cpu")
    articles = encoder.encode([tell(list(thing.facts), rng) for thing in things])
    queries = encoder.encode([ask(thing.facts[1], rng) for thing in things])
    assert articles.shape == (60, DIMENSION)
    assert np.linalg.norm(articles, axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    found = (queries @ articles.T).argmax(axis=1)
    assert (found == np.arange(60)).mean() > 0.9


def test_the_shipped_encoders_are_those_that_are_built(tmp_path: Path) -> None:
    build_encoders(tmp_path)
    for name in ("encoder", "encoder-coarse"):
        weights = f"{name}/model.safetensors"
        assert file_sha256(tmp_path / weights) == file_sha256(lab_data() / weights)


def test_the_coarse_encoder_errs(tmp_path: Path) -> None:
    build_encoder(tmp_path, COARSE_DIMENSION)
    rng = random.Random(5)
    things = draw_things("events", 60, rng)
    encoder = SentenceTransformer(str(tmp_path), device="cpu")
    articles = encoder.encode([tell(list(thing.facts), rng) for thing in things])
    queries = encoder.encode([ask(thing.facts[1], rng) for thing in things])
    found = (queries @ articles.T).argmax(axis=1)
    assert 0.4 < (found == np.arange(60)).mean() < 0.9
