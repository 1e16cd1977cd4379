import json
from pathlib import Path

import numpy as np
import pytest

from kinject_assets import config
from kinject_assets.core.retrieval.encoder import encode, identify, load_encoder
from kinject_assets.core.retrieval.encoders import Prefixes, known_prefixes, prefixes_of
from kinject_assets_tests.tiny import random_bert

BGE = "Represent this sentence for searching relevant passages: "
TASK = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("BAAI/bge-large-en", Prefixes(BGE)),
        ("BAAI/bge-small-en-v1.5", Prefixes(BGE)),
        ("/models/bge-base-en-v1.5/", Prefixes(BGE)),
        ("intfloat/e5-large-v2", Prefixes("query: ", "passage: ")),
        ("intfloat/multilingual-e5-small", Prefixes("query: ", "passage: ")),
        ("intfloat/multilingual-e5-large-instruct", Prefixes(TASK)),
        ("intfloat/e5-mistral-7b-instruct", Prefixes(TASK)),
        ("sentence-transformers/all-MiniLM-L6-v2", Prefixes()),
        ("sentence-transformers/multi-qa-mpnet-base-dot-v1", Prefixes()),
        ("thenlper/gte-large", Prefixes()),
        ("BAAI/bge-m3", Prefixes()),
        ("BAAI/bge-reranker-large", None),
        ("someone/e5-large-v2-tuned", None),
        ("lab:encoder", None),
    ],
)
def test_prefixes_by_name(model: str, expected: Prefixes | None) -> None:
    assert known_prefixes(model) == expected


def test_the_profile_comes_before_the_name_and_the_name_before_the_files(tmp_path: Path) -> None:
    folder = random_bert(tmp_path, ["one two three"], prompts={"query": "ask ", "passage": "say "})
    said = config.Encoder(model=str(folder))
    encoder = load_encoder(said, "cpu")
    assert prefixes_of(encoder, said) == Prefixes("ask ", "say ")
    named = config.Encoder(model="intfloat/e5-small")
    assert prefixes_of(encoder, named) == Prefixes("query: ", "passage: ")
    given = config.Encoder(model="intfloat/e5-small", query_prefix="", passage_prefix="text ")
    assert prefixes_of(encoder, given) == Prefixes("", "text ")
    assert identify(encoder, given).passage_prefix == "text "


def test_a_default_prompt_of_the_encoder_is_not_put_in_front_as_well(tmp_path: Path) -> None:
    folder = random_bert(tmp_path, ["one two three"], prompts={"query": "one two "})
    plain = load_encoder(config.Encoder(model=str(folder)), "cpu")
    path = folder / "config_sentence_transformers.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "default_prompt_name": "query"}))
    eager = load_encoder(config.Encoder(model=str(folder)), "cpu")
    assert np.abs(eager.encode(["three"]) - plain.encode(["three"])).max() > 1e-3
    assert np.array_equal(encode(eager, ["three"], 1), encode(plain, ["three"], 1))
    expected = plain.encode(["one two three"], normalize_embeddings=True)
    assert encode(eager, ["three"], 1, "one two ") == pytest.approx(expected, abs=1e-6)
