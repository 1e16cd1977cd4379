"""The shipped lab models can do what the grid asks of them, and the code that made them runs."""

import random
from pathlib import Path

import pytest

from kinject_assets.config import lab_data
from kinject_assets.lab.grammar import parse_text
from kinject_assets.lab.pretrain import (
    SHAPES,
    WINDOW,
    Batches,
    Documents,
    Stage,
    abilities,
    build_model,
    build_tokenizer,
    pretrain,
)
from kinject_assets.lab.things import draw_things, pretraining_things


@pytest.mark.parametrize("name", SHAPES)
def test_shipped_models_read_know_and_cannot_know(name: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(lab_data() / name)
    found = abilities(model, build_tokenizer(), questions=80)
    assert found["reads_k1_0shot"] > 0.85
    assert found["reads_k1_5shot"] > 0.7
    assert found["reads_k5_5shot"] > 0.45
    assert found["knows_rivers"] > 0.95
    assert found["knows_rivers"] >= found["knows_guilds"] > 0.6
    assert 0.1 < found["knows_unseen"] < 0.42, "new facts are at chance"


def test_the_shipped_tokenizer_is_the_one_of_the_code() -> None:
    from transformers import AutoTokenizer

    built = build_tokenizer()
    for name in SHAPES:
        shipped = AutoTokenizer.from_pretrained(lab_data() / name)
        assert shipped.get_vocab() == built.get_vocab()


def test_any_text_has_tokens_and_lab_values_are_single_ones() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.unk_token_id not in tokenizer("The Apollo 11 mission, 1969!")["input_ids"]
    for thing in pretraining_things()["events"]:
        for fact in thing.facts:
            assert len(tokenizer.tokenize(fact.value)) == 1


def test_reading_documents_hold_the_answers_that_they_ask_for() -> None:
    pieces = Documents(seed=3).reading(articles=2, shots=0, rounds=1)
    text = "".join(piece.text for piece in pieces)
    article, questions = text.split("Question:", 1)
    values = {fact.value for fact in parse_text(article)}
    answers = [
        line.split("Answer:")[1].strip() for line in questions.splitlines() if "Answer:" in line
    ]
    assert answers
    assert set(answers) <= values


def test_batches_fill_their_windows() -> None:
    stage = Stage(steps=1, rows=3, window=64, articles=2, rounds=1)
    ids, weights = Batches(Documents(seed=1), build_tokenizer()).draw(stage)
    assert ids.shape == weights.shape == (3, 64)
    assert float(weights.sum()) > 0


def test_pretraining_writes_a_model_that_loads(tmp_path: Path) -> None:
    cycles = [[Stage(steps=2, rows=2, window=64, articles=1, rounds=1)]]
    record = pretrain("lab-llama", tmp_path, cycles, threads=1, log=lambda _: None, questions=2)
    assert record["tokens"] == 2 * 2 * 64
    assert (tmp_path / "lab-llama" / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.bin"))


def test_models_are_of_both_architectures_and_their_window_holds_the_grid() -> None:
    tokenizer = build_tokenizer()
    assert [type(build_model(n, tokenizer)).__name__ for n in SHAPES] == [
        "LlamaForCausalLM",
        "MistralForCausalLM",
    ]
    from kinject_assets.lab.grammar import ask, tell

    rng = random.Random(0)
    longest = max(
        len(tokenizer.tokenize(tell(list(thing.facts), rng)))
        for thing in draw_things("events", 200, rng)
    )
    question = max(
        len(tokenizer.tokenize(f"Question: {ask(fact, rng)}\nAnswer: {fact.value}\n\n"))
        for thing in draw_things("events", 50, rng)
        for fact in thing.facts
    )
    assert 5 * (longest + 2) + 6 * question < WINDOW
