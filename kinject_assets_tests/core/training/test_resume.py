"""Training that is killed goes on in the middle of the epoch, and ends the same to the last bit."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.schema import Paraphrase
from kinject_assets.core.store import read_rows
from kinject_assets.core.training import trial
from kinject_assets.core.training.models import load_model, load_tokenizer
from kinject_assets.core.training.packing import encode_texts, pack
from kinject_assets.core.training.trainer import TrainRequest, train
from kinject_assets_tests.core.training.launching import (
    STEPS,
    finish,
    kill_in_the_middle,
    many_steps,
    rows,
    saved_steps,
    start,
)

RequestOf = Callable[..., TrainRequest]


def test_after_kill_9_in_the_middle_of_an_epoch_all_is_the_same(
    request_of: RequestOf, texts: Path, tmp_path: Path
) -> None:
    undisturbed = many_steps(request_of, texts, tmp_path / "undisturbed")
    whole = start(undisturbed)
    request = many_steps(request_of, texts, tmp_path / "killed")
    killed = start(request)
    step = kill_in_the_middle(killed, request)
    finish(whole)
    assert STEPS < step < 3 * STEPS
    assert step % STEPS != 0, "not at the end of an epoch"

    # What was being written when it was killed is not taken for a saved state.
    half = Path(request.work) / "trial-0" / "saving" / "checkpoint-90"
    half.mkdir(parents=True, exist_ok=True)
    (half / "trainer_state.json").write_text('{"global_step": 90')
    finish(start(request))

    checkpoint, trials, losses = rows(request)
    assert checkpoint.steps == 3 * STEPS == len(losses)
    assert (checkpoint, trials, losses) == rows(undisturbed)
    hashes = [
        hashlib.sha256((Path(r.out) / "model" / "model.safetensors").read_bytes()).hexdigest()
        for r in (request, undisturbed)
    ]
    assert hashes[0] == hashes[1]
    assert not saved_steps(request), "no state is left behind"


class Crash(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_state_that_was_half_written_is_not_used(
    request_of: RequestOf,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    fields = {"method": method, "recipe": f"{method}.p04", "training": {"epochs": 1}}
    whole = many_steps(request_of, texts, tmp_path / "whole", **fields)
    expected = train(whole)

    # The second save ends before the last of its files is there.
    trainer, saves = trial._packed_trainer(), 0
    real = trainer._save_rng_state

    def dying(self: Any, folder: str) -> None:
        nonlocal saves
        saves += 1
        if saves == 2:
            raise Crash
        real(self, folder)

    request = many_steps(request_of, texts, tmp_path / "crashed", **fields)
    monkeypatch.setattr(trainer, "_save_rng_state", dying)
    with pytest.raises(Crash):
        train(request)
    monkeypatch.setattr(trainer, "_save_rng_state", real)
    (first,) = saved_steps(request)
    assert list((Path(request.work) / "trial-0" / "saving").glob("checkpoint-*"))

    trained: list[int] = []
    step = trainer.training_step

    def counting(self: Any, *given: Any, **more: Any) -> Any:
        trained.append(self.state.global_step)
        return step(self, *given, **more)

    monkeypatch.setattr(trainer, "training_step", counting)
    result = train(request)
    assert trained[0] == first, "it went on from the whole state"
    assert replace(result.checkpoint, seconds=0) == replace(expected.checkpoint, seconds=0)
    assert (result.trials, result.losses) == (expected.trials, expected.losses)
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    mine, theirs = (load_file(Path(r.out) / "model" / name) for r in (request, whole))
    assert all((mine[key] == theirs[key]).all() for key in theirs)


@pytest.mark.slow
def test_a_mixture_of_experts_goes_on_with_its_experts(
    request_of: RequestOf, base: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = load_tokenizer(str(base))
    torch.manual_seed(0)
    mixture = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            tie_word_embeddings=True,
        )
    )
    mixture.save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    fields = {
        "base": str(tmp_path / "mixture"),
        "training": {"epochs": 2, "learning_rates": [1e-2]},
    }
    whole = many_steps(request_of, texts, tmp_path / "whole", **fields)
    expected = train(whole)

    request = many_steps(request_of, texts, tmp_path / "killed", **fields)
    trainer = trial._packed_trainer()
    real = trainer.training_step

    def dying(self: Any, *given: Any, **more: Any) -> Any:
        if saved_steps(request) and self.state.global_step > STEPS + 5:
            raise Crash
        return real(self, *given, **more)

    monkeypatch.setattr(trainer, "training_step", dying)
    with pytest.raises(Crash):
        train(request)
    monkeypatch.setattr(trainer, "training_step", real)
    assert saved_steps(request)
    result = train(request)
    assert (result.trials, result.losses) == (expected.trials, expected.losses)
    mine, theirs = (
        load_file(Path(r.out) / "model" / "model.safetensors") for r in (request, whole)
    )
    assert all((mine[key] == theirs[key]).all() for key in theirs)


def test_the_saved_weights_are_of_the_epoch_that_the_rows_name(
    request_of: RequestOf, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = many_steps(request_of, texts, tmp_path, resume_seconds=0.0)
    trainer = trial._packed_trainer()
    save, step, measure = trainer._save_checkpoint, trainer.training_step, trial.mean_loss
    monkeypatch.setattr(trial, "MOST_SAVING", 1e9)

    def until_the_second_epoch(self: Any, *given: Any) -> None:
        if self.state.global_step <= STEPS + 1:
            save(self, *given)

    def dying(self: Any, *given: Any, **more: Any) -> Any:
        if self.state.global_step == 2 * STEPS:
            raise Crash
        return step(self, *given, **more)

    monkeypatch.setattr(trainer, "_save_checkpoint", until_the_second_epoch)
    monkeypatch.setattr(trainer, "training_step", dying)
    with pytest.raises(Crash):
        train(request)
    folder = Path(request.work) / "trial-0"
    kept = {path.name for path in folder.glob("kept-*")}
    assert kept == {"kept-1.safetensors", "kept-2.safetensors"}, "the second epoch was better"

    # What goes on behind the first epoch computes otherwise, and gets no better than that.
    monkeypatch.setattr(trainer, "_save_checkpoint", save)
    monkeypatch.setattr(trainer, "training_step", step)
    monkeypatch.setattr(trial, "mean_loss", lambda *given: measure(*given) + 10)
    result = train(request)
    assert [t.epoch for t in result.trials if t.kept] == [1]
    assert [path.name for path in folder.glob("kept-*")] == ["kept-1.safetensors"]
    tokenizer = load_tokenizer(request.base)
    held_out = [row.text for row in read_rows(texts / "validation.parquet", Paraphrase)]
    pieces = pack(encode_texts(tokenizer, held_out), 16, False)
    saved = load_model(str(Path(request.out) / "model"))
    assert measure(saved, pieces, 2) == pytest.approx(result.checkpoint.validation_loss, abs=1e-5)


def test_saving_takes_a_small_part_of_the_time(
    request_of: RequestOf, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, saves = trial._packed_trainer(), 0
    real = trainer._save_checkpoint

    def counting(self: Any, *given: Any) -> None:
        nonlocal saves
        saves += 1
        real(self, *given)

    monkeypatch.setattr(trainer, "_save_checkpoint", counting)
    short = {"training": {"epochs": 1}, "validation": ""}
    train(many_steps(request_of, texts, tmp_path / "seldom", resume_seconds=1000.0, **short))
    assert saves == 0
    train(many_steps(request_of, texts, tmp_path / "often", resume_seconds=0.0, **short))
    assert 1 <= saves < STEPS / 4, "after a save it waits twenty times as long as that took"


def test_a_trial_ends_when_it_does_not_get_better(request_of: RequestOf) -> None:
    result = train(request_of({"epochs": 60, "learning_rates": [1e-2, 2e-2], "patience": 2}))
    losses = [math.inf if t.validation_loss is None else t.validation_loss for t in result.trials]
    first = [loss for t, loss in zip(result.trials, losses, strict=True) if t.trial == 0]
    best = first.index(min(first)) + 1
    assert len(first) == best + 2 < 60
    # Every trial is kept in the record, and is ended by itself.
    assert {t.trial for t in result.trials} == {0, 1}
    assert sum(t.kept for t in result.trials) == 1


def test_a_loss_that_is_no_number_ends_its_trial_alone(
    request_of: RequestOf, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = trial.summed_loss, 0

    def breaking(model: Any, pieces: Any) -> Any:
        nonlocal steps
        steps += model.training
        return real(model, pieces) * (math.nan if steps == 150 else 1)

    monkeypatch.setattr(trial, "summed_loss", breaking)
    training = {"learning_rates": [1e-3, 2e-3], "micro_batch": 4}
    result = train(many_steps(request_of, texts, tmp_path, training=training))
    first = [t for t in result.trials if t.trial == 0]
    # Some 60 passes an epoch: two a step of five pieces.
    assert [t.epoch for t in first] == [1, 2, 3]
    assert math.isnan(first[2].training_loss)
    assert first[2].validation_loss is None
    assert len([e for e in result.losses if e["trial"] == 0]) < 3 * STEPS
    assert max(t.epoch for t in result.trials if t.trial == 1) == 3
    (kept,) = [t for t in result.trials if t.kept]
    assert kept.trial == 1 or kept.epoch < 3


def test_when_nothing_is_a_number_it_says_so(
    request_of: RequestOf, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trial.summed_loss
    monkeypatch.setattr(trial, "summed_loss", lambda *given: real(*given) * math.nan)
    for changes in ({}, {"validation": ""}):
        request = many_steps(request_of, texts, tmp_path / str(len(changes)), **changes)
        with pytest.raises(KinjectError, match=r"training\.learning_rates: .* diverged"):
            train(request)
