"""Tokens held against what packing and scoring really do; sizes of models; FLOPs and hours."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Profile
from kinject_assets.core.estimate.assumptions import ASSUMPTIONS, Assumed, Assumption
from kinject_assets.core.estimate.compute import ModelSize, Reckoner, memory_needed, model_size
from kinject_assets.core.estimate.corpora import measure, value
from kinject_assets.core.plan import Plan
from kinject_assets.core.schema import Checkpoint, Question
from kinject_assets.core.scoring.prompts import Prompt, build, turned
from kinject_assets.core.scoring.sharing import arrange
from kinject_assets.core.scoring.triage import PROBES, probe_prompts
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.estimate.conftest import (
    ProfileOf,
    chunks_of,
    make_text,
    publish,
    question,
)


def reckon(profile: Profile, store: Store) -> Reckoner:
    assume, plan = Assumed(), Plan(profile, store)
    return Reckoner(plan, measure(plan, assume, within=5), assume)


@pytest.fixture
def one_token_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that texts can be counted without a tokenizer."""
    monkeypatch.setitem(ASSUMPTIONS, "characters_per_token", Assumption(1.0, "for this test"))


# --- training


def test_an_epoch_has_the_tokens_that_are_packed(profile_of: ProfileOf, store: Store) -> None:
    from kinject_assets.core.training.packing import Packer, encode_texts
    from kinject_assets_tests.tiny import byte_level_tokenizer

    profile = profile_of()
    _, chunks = make_text(profile, store)
    tokenizer = byte_level_tokenizer([chunk.text for chunk in chunks], vocabulary=600)
    own = [
        replace(c, n_tokens=len(tokenizer(c.text, add_special_tokens=False)["input_ids"]))
        for c in chunks
    ]
    publish(profile, store, Cell("chunks", ("docs",)), own, type(own[0]), chunks=len(own))
    # The chunks' own tokens count where they are of a model's tokenizer.
    settings = {"tokenizer": "some/model-100m", "max_tokens": 60, "min_tokens": 20}
    profile = profile_of(chunking=settings)
    reckoner = reckon(profile, store)
    publish(profile, store, Cell("chunks", ("docs",)), own, type(own[0]), chunks=len(own))
    reckoner = reckon(profile, store)

    def packed(n: int) -> int:
        texts = [chunk.text for chunk in own for _ in range(1 + n)]
        return Packer(encode_texts(tokenizer, texts), 64, 0).epoch_tokens

    assert round(reckoner.epoch_tokens("docs", "small", "full.p00")) == packed(0)
    assert round(reckoner.epoch_tokens("docs", "small", "full.p02")) == packed(2)
    assert reckoner.epoch_tokens("docs", "small", "full.r02") == packed(2)


def test_training_is_epochs_times_rates_and_a_control_is_trained_once(
    profile_of: ProfileOf, store: Store
) -> None:
    profile = profile_of(training={"epochs": 3, "learning_rates": [1e-4, 2e-4]})
    reckoner = reckon(profile, store)
    epoch = reckoner.epoch_tokens("docs", "small", "full.p02")

    def cost(recipe: str) -> tuple[float, float]:
        return reckoner.training(Cell("checkpoint", ("docs", f"small.{recipe}")))

    trained, held_out = cost("full.p02")
    assert trained == 6 * epoch
    control, held_out_once = cost("full.r02")
    assert control == 3 * epoch
    assert held_out == pytest.approx(6 * held_out_once)

    kept = profile_of(training={"epochs": 3, "learning_rates": [1e-4, 2e-4], "keep": "last"})
    assert reckon(kept, store).training(Cell("checkpoint", ("docs", "small.full.p02"))) == (
        trained,
        pytest.approx(2 * held_out_once),
    )


def test_replay_comes_on_top_of_the_corpus(profile_of: ProfileOf, store: Store) -> None:
    plain = reckon(profile_of(), store)
    mixed = reckon(profile_of(training={"replay_text": "a.txt", "replay_share": 0.2}), store)
    for recipe in ("full.p00", "full.p02", "full.r02"):
        own = plain.epoch_tokens("docs", "small", recipe)
        assert mixed.epoch_tokens("docs", "small", recipe) == pytest.approx(own / 0.8)


def test_a_made_checkpoint_says_what_its_epoch_was(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(training={"epochs": 5, "learning_rates": [1e-4]})
    counts: dict[str, Any] = {"packed_tokens": 3000, "epochs": 3, "training_seconds": 2.0}
    cell = Cell("checkpoint", ("docs", "small.full.p02"))
    publish(profile, store, cell, [], Checkpoint, **counts)
    reckoner = reckon(profile, store)
    assert reckoner.training(cell)[0] == 5 * 1000
    # The control stops at the epoch that its recipe kept.
    assert reckoner.training(Cell("checkpoint", ("docs", "small.full.r02")))[0] == 3 * 1000


def test_flops_follow_the_method_and_hours_the_hardware(
    profile_of: ProfileOf, store: Store
) -> None:
    recipes = {"full.p00": None, "lora.p00": None, "qlora.p00": None}
    cells = {"corpora": ["docs"], "models": ["small"], "recipes": list(recipes), "methods": ["ft"]}
    hardware = {"tflops": 2.0, "utilisation_training": 0.5, "utilisation_scoring": 0.25}
    profile = profile_of(recipes=recipes, grid=[cells], hardware=hardware)
    work = {row.cell: row for row in reckon(profile, store).work()}
    full, lora, qlora = (
        work[f"checkpoint/docs/small.{method}.p00"] for method in ("full", "lora", "qlora")
    )
    size = 100e6
    assert full.flops == pytest.approx(size * (6 * full.trained + 2 * full.forward), rel=1e-6)
    assert lora.flops == pytest.approx(size * (4 * lora.trained + 2 * lora.forward), rel=1e-6)
    assert qlora.flops == full.flops
    assert full.flops is not None
    assert full.seconds == pytest.approx(full.flops / 1e12)
    answers = work["answers_ft/docs/small.full.p00"]
    assert (answers.trained, answers.stage) == (0, "score")
    assert answers.flops is not None
    assert answers.seconds == pytest.approx(answers.flops / 0.5e12)


# --- scoring


def make_exam(profile: Profile, store: Store) -> tuple[list[Question], list[str]]:
    """Two questions on each of some chunks, five of them shots, options of unlike length."""
    _, chunks = make_text(profile, store)
    texts = [chunk.text for chunk in chunks if not chunk.small]
    asked = [chunk.chunk_id for chunk in chunks if not chunk.small]
    rows = [
        question(
            n,
            "shots" if n < 5 else "test",
            asked[n // 2],
            stem=f"{n} is the number of this question, which asks for what?",
            options=[f"{word} {n} {place}" for place, word in enumerate("abcd")],
        )
        for n in range(2 * len(asked))
    ]
    publish(profile, store, Cell("questions", ("docs",)), rows, Question)
    return rows, texts


def read_shared(prompts: list[Prompt]) -> int:
    """Tokens that are read when beginnings are shared, a token a character."""
    inputs = [[ord(c) for c in text] for text in read_texts(prompts)]
    return len(arrange(inputs, [1] * len(inputs)).tokens)


def read_alone(prompts: list[Prompt]) -> int:
    """The same when every distinct input is read from its beginning."""
    return sum(map(len, read_texts(prompts)))


def read_texts(prompts: list[Prompt]) -> set[str]:
    """What is read of prompts with their options: the last token is only predicted.

    A letter with its space counts for one token.
    """
    return {
        prompt.text if len(option) == 2 else (prompt.text + option)[:-1]
        for prompt in prompts
        for option in prompt.options
    }


@pytest.mark.usefixtures("one_token_a_character")
@pytest.mark.parametrize("engine", ["hf-prefix", "hf"])
@pytest.mark.parametrize(
    ("choice_format", "rotation"), [("letter", False), ("letter", True), ("text", False)]
)
def test_answering_reads_what_prompts_have(
    profile_of: ProfileOf, store: Store, engine: str, choice_format: str, rotation: bool
) -> None:
    scoring = {
        "shots": [0, 3],
        "k": [1, 2, 4],
        "choice_format": choice_format,
        "rotation": rotation,
        "engine": engine,
    }
    profile = profile_of(scoring=scoring, chunking={"max_tokens": 60, "min_tokens": 20})
    rows, texts = make_exam(profile, store)
    shots = [row for row in rows if row.split == "shots"]
    test = [row for row in rows if row.split == "test"]
    total = 0
    for n in (0, 3):
        found: list[Prompt] = []
        for row in test:
            first = int(row.question_id[1:]) // 2
            # Each question's own chunk comes first, then chunks that differ by question.
            place = int(row.question_id[1:])
            others = [texts[(first + 1 + 7 * place + step) % len(texts)] for step in range(4)]
            for k in (1, 2, 4):
                chunks = [texts[first], *others][:k]
                for order in range(4 if rotation else 1):
                    shown = turned(row, order)
                    found.append(build(shown, choice_format, shots[:n], chunks))
        total += read_shared(found) if engine == "hf-prefix" else read_alone(found)
    said = reckon(profile, store).answering("docs", (0, 3), (1, 2, 4))
    assert said == pytest.approx(total, rel=0.1)


@pytest.mark.usefixtures("one_token_a_character")
@pytest.mark.parametrize("engine", ["hf-prefix", "hf"])
@pytest.mark.parametrize("choice_format", ["letter", "text"])
def test_probing_reads_what_probes_have(
    profile_of: ProfileOf, store: Store, engine: str, choice_format: str
) -> None:
    profile = profile_of(scoring={"choice_format": choice_format, "engine": engine})
    rows, texts = make_exam(profile, store)
    found = [
        prompt
        for probe in PROBES
        for n, row in enumerate(rows)
        for prompt in probe_prompts(row, probe, choice_format, texts[n // 2])
    ]
    total = read_shared(found) if engine == "hf-prefix" else read_alone(found)
    assert reckon(profile, store).probing("docs") == pytest.approx(total, rel=0.1)


def test_more_shots_and_chunks_cost_more(profile_of: ProfileOf, store: Store) -> None:
    reckoner = reckon(profile_of(), store)
    costs = [reckoner.answering("docs", (5,), k) for k in ((0,), (1,), (1, 2), (1, 2, 3))]
    assert all(less < more for less, more in pairwise(costs))


def test_each_further_retriever_costs_its_chunks_again(profile_of: ProfileOf, store: Store) -> None:
    def read(engine: str, retrievers: int) -> float:
        reckoner = reckon(profile_of(scoring={"engine": engine}), store)
        return reckoner.answering("docs", (5,), (1, 2), retrievers)

    assert read("hf", 2) == pytest.approx(2 * read("hf", 1))
    # The shots are read once for both.
    assert 1.5 * read("hf-prefix", 1) < read("hf-prefix", 2) < 2 * read("hf-prefix", 1)
    profile = profile_of(
        retrieval={
            "encoder": {"model": "BAAI/bge-small-en-v1.5"},
            "retrievers": ["dense", "lexical"],
        }
    )
    one, two = (
        {work.cell: work.forward for work in reckon(p, store).work()}
        for p in (profile_of(), profile)
    )
    assert {cell.split("/")[0] for cell in one if two[cell] > one[cell]} == {
        "answers_rag",
        "answers_ft_rag",
    }


def test_a_cross_encoder_reads_each_pair(profile_of: ProfileOf, store: Store) -> None:
    retrieval = {"encoder": {"model": "BAAI/bge-small-en-v1.5"}, "retrievers": ["reranked"]}

    def read(depth: int, chunks: int) -> float:
        rerank = {"model": "BAAI/bge-reranker-base", "depth": depth}
        reckoner = reckon(profile_of(retrieval=retrieval | {"depth": 1, "rerank": rerank}), store)
        assert value(reckoner.materials["docs"].size.chunks) == chunks
        work = [row for row in reckoner.work() if row.cell == "retrieved/docs"]
        assert len(work) == 2
        assert work[1].flops == pytest.approx(2 * 278e6 * work[1].forward, rel=1e-4)
        return work[1].forward

    _, chunks = chunks_of(profile_of())
    assert len(chunks) > 2
    assert read(2, len(chunks)) == pytest.approx(2 * read(1, len(chunks)), abs=2)
    # No more chunks than there are.
    assert read(1000, len(chunks)) == pytest.approx(len(chunks) * read(1, len(chunks)), rel=0.01)


# --- models


def save_weights(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file(
        {
            "model.embed_tokens.weight": np.zeros((50, 8), np.float16),
            "model.layers.0.mlp.up_proj.weight": np.zeros((16, 8), np.float16),
            "model.layers.0.norm.weight": np.zeros(8, np.float16),
            "lm_head.weight": np.zeros((50, 8), np.float16),
        },
        folder / "model.safetensors",
    )


def test_a_models_size_comes_from_its_files_first(
    profile_of: ProfileOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profile = profile_of()
    save_weights(profile.folder / "weights-7b")
    size = model_size("weights-7b", profile=profile, given=5)
    assert (size.parameters, size.source) == (50 * 8 * 2 + 16 * 8 + 8, "files")
    assert size.linear == 16 + 8, "adapters are put on linear layers, not on tables of tokens"
    assert size.dimension == 8

    cache = tmp_path / "hub" / "models--some--thing-7b"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    save_weights(cache / "snapshots" / "abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = model_size("some/thing-7b", profile=profile)
    assert (found.source, found.parameters) == ("files", size.parameters)


@pytest.mark.parametrize(
    ("name", "given", "parameters", "source"),
    [
        ("mistralai/Mistral-7B-v0.1", None, 7e9, "name"),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096, 7_241_732_096, "profile"),
        ("HuggingFaceTB/SmolLM2-135M", None, 135e6, "name"),
        ("Qwen/Qwen2.5-0.5B", None, 0.5e9, "name"),
        ("mistralai/Mixtral-8x7B-v0.1", None, None, "unknown"),
        ("org/model-v2b3", None, None, "unknown"),
        ("gpt2", None, None, "unknown"),
        ("BAAI/bge-large-en", None, 335_141_888, "known"),
    ],
)
def test_a_models_size_without_its_files(
    profile_of: ProfileOf,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    given: int | None,
    parameters: float | None,
    source: str,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = model_size(name, profile=profile_of(), given=given)
    assert (found.parameters, found.source) == (parameters, source)


def test_what_training_takes_of_a_gpu() -> None:
    size = ModelSize(parameters=7_000_000_000, source="name")
    assert memory_needed(size, "full", "bfloat16") == 112e9
    assert memory_needed(size, "lora", "bfloat16") == 14e9
    assert (memory_needed(size, "qlora", "bfloat16") or 0) < 5e9
    assert memory_needed(ModelSize(parameters=None, source="unknown"), "full", "float32") is None
