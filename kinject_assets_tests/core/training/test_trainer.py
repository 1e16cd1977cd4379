import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from kinject_assets.config import Profile, Training, load_profile
from kinject_assets.core.errors import ModelError, ProfileError
from kinject_assets.core.schema import Checkpoint, Damage, Paraphrase, Trial
from kinject_assets.core.store import read_rows
from kinject_assets.core.training import trial
from kinject_assets.core.training.models import load_model, load_tokenizer, weights_identity
from kinject_assets.core.training.packing import cut, encode_texts
from kinject_assets.core.training.trainer import TrainRequest, TrainResult, speed_of, train
from kinject_assets.core.training.trial import Speed, TrialRecord, mean_loss, micro_batches

RequestOf = Callable[..., TrainRequest]


def rows_without_times(result: TrainResult) -> tuple[Checkpoint, list[Trial], list[dict[str, Any]]]:
    return replace(result.checkpoint, seconds=0.0), result.trials, result.losses


def test_keeps_the_best_epoch_of_the_best_learning_rate(request_of: RequestOf, texts: Path) -> None:
    # The last rate is too large to learn anything with: it must lose.
    request = request_of(
        general_text=str(texts / "general.txt"), training={"learning_rates": [3e-3, 3.0]}
    )
    result = train(request)
    losses = {
        (t.trial, t.epoch): t.validation_loss
        for t in result.trials
        if t.validation_loss is not None
    }
    assert set(losses) == {(0, 1), (0, 2), (1, 1), (1, 2)}
    best = min(losses, key=lambda key: (losses[key], key))
    assert [(t.trial, t.epoch) for t in result.trials if t.kept] == [best]
    assert result.checkpoint.learning_rate == 3e-3
    assert result.checkpoint.epochs == best[1]
    assert result.losses[-1]["loss"] > result.losses[0]["loss"]
    first = [entry["loss"] for entry in result.losses if entry["trial"] == 0]
    assert first[-1] < first[0] - 0.5

    # The saved weights are those of the kept epoch.
    out = Path(request.out)
    tokenizer = load_tokenizer(str(out / "model"))
    held_out = [row.text for row in read_rows(texts / "validation.parquet", Paraphrase)]
    pieces = cut(np.concatenate(encode_texts(tokenizer, held_out)), 64)
    again = mean_loss(load_model(str(out / "model")), pieces, 4)
    assert again == pytest.approx(losses[best], abs=1e-4)
    assert result.checkpoint.validation_loss == losses[best]

    (damage,) = result.damage
    general = encode_texts(tokenizer, [(texts / "general.txt").read_text()])[0]
    untouched = mean_loss(load_model(request.base), cut(general, 64), 4)
    assert damage.before == pytest.approx(math.exp(untouched), rel=1e-3)
    assert damage.after < damage.before
    assert read_rows(out / "checkpoint.parquet", Checkpoint) == [result.checkpoint]
    assert read_rows(out / "trials.parquet", Trial) == result.trials
    assert read_rows(out / "damage.parquet", Damage) == result.damage
    assert json.loads((out / "loss.json").read_text()) == result.losses


def test_the_last_epoch_is_kept_where_that_is_asked_for(request_of: RequestOf) -> None:
    result = train(request_of({"keep": "last"}))
    assert result.checkpoint.epochs == 2
    measured = {(t.trial, t.epoch): t.validation_loss for t in result.trials}
    assert measured[0, 1] is None, "validation is measured once, at the end"
    rates = {trial: loss for (trial, epoch), loss in measured.items() if epoch == 2}
    best = min(rates, key=lambda trial: (rates[trial], trial))
    assert [(t.trial, t.epoch) for t in result.trials if t.kept] == [(best, 2)]


def test_a_control_has_the_tokens_and_steps_of_its_recipe(
    request_of: RequestOf, texts: Path
) -> None:
    paraphrased = train(
        request_of(
            recipe="full.p02",
            n_paraphrases=2,
            paraphrases=str(texts / "paraphrases.parquet"),
            training={"learning_rates": [1e-3]},
        )
    ).checkpoint
    control = train(
        request_of(
            recipe="full.r02",
            n_paraphrases=2,
            control_tokens=paraphrased.packed_tokens // paraphrased.epochs,
            control_epochs=paraphrased.epochs,
            training={"learning_rates": [paraphrased.learning_rate]},
            work=str(texts / "control-work"),
            out=str(texts / "control"),
        )
    )
    assert control.checkpoint.packed_tokens == paraphrased.packed_tokens
    assert control.checkpoint.steps == paraphrased.steps == len(control.losses)
    assert control.checkpoint.repeats == 2
    assert control.checkpoint.n_paraphrases == 0
    measured = [trial.validation_loss is not None for trial in control.trials]
    assert measured == [False] * (paraphrased.epochs - 1) + [True]


class Crash(Exception):
    pass


def test_after_a_crash_the_rows_are_those_of_an_uninterrupted_run(
    request_of: RequestOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"training": {"epochs": 3}, "resume_seconds": 0.0}
    whole = train(
        request_of(**fields, work=str(tmp_path / "whole"), out=str(tmp_path / "whole-out"))
    )
    request = request_of(**fields)

    # Dies in the third epoch of the second trial: what is on disk is all that the next call has.
    real, calls = trial.summed_loss, 0

    def dying(model: Any, pieces: Any) -> Any:
        nonlocal calls
        calls += model.training
        if calls > calls_of_five_epochs + 1:
            raise Crash
        return real(model, pieces)

    calls_of_five_epochs = 5 * _forwards_of_an_epoch(whole)
    monkeypatch.setattr(trial, "summed_loss", dying)
    with pytest.raises(Crash):
        train(request)
    monkeypatch.setattr(trial, "summed_loss", real)
    assert (Path(request.work) / "trial-0" / "trial.json").is_file()
    assert list((Path(request.work) / "trial-1").glob("checkpoint-*"))

    messages: list[str] = []
    resumed = train(request, lambda message, done=None, total=None: messages.append(message))
    mine, theirs = rows_without_times(resumed), rows_without_times(whole)
    assert mine[0] == theirs[0]
    assert mine[1] == theirs[1]
    assert mine[2] == theirs[2]
    assert not [message for message in messages if "trial 1/2" in message]


def _forwards_of_an_epoch(result: TrainResult) -> int:
    """Micro-batches of an epoch, from its tokens: 64 a piece, 4 pieces a step, 2 a micro-batch."""
    tokens = result.checkpoint.packed_tokens // result.checkpoint.epochs
    pieces = [np.zeros(64)] * (tokens // 64) + ([np.zeros(tokens % 64)] if tokens % 64 else [])
    steps = [pieces[start : start + 4] for start in range(0, len(pieces), 4)]
    return sum(len(list(micro_batches(step, 2))) for step in steps)


def test_lora_leaves_the_base_model_as_it_was(request_of: RequestOf) -> None:
    request = request_of(
        method="lora",
        recipe="lora.p00",
        training={"learning_rates": [5e-3], "lora_rank": 4, "lora_alpha": 8},
    )
    result = train(request)
    folder = Path(request.out) / "model"
    assert (folder / "adapter_model.safetensors").stat().st_size < 500_000
    base = load_model(request.base)
    adapted: Any = load_model(request.base, adapter=str(folder))
    ids = torch.arange(1, 30)[None]
    with torch.inference_mode():
        expected = base(ids).logits
        trained = adapted(ids).logits
        with adapted.disable_adapter():
            switched_off = adapted(ids).logits
    assert torch.equal(switched_off, expected)
    assert (trained - expected).abs().max() > 0.01
    assert result.checkpoint.method == "lora"


def test_without_validation_texts_the_first_rate_and_the_last_epoch(request_of: RequestOf) -> None:
    result = train(request_of(validation=""))
    assert [trial.kept for trial in result.trials] == [False, True]
    assert result.checkpoint.validation_loss is None
    assert result.checkpoint.learning_rate == 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_perplexity_is_measured_in_one_type_before_and_after(
    request_of: RequestOf, texts: Path, dtype: str
) -> None:
    training = {"epochs": 1, "learning_rates": [1e-12]}
    request = request_of(training, dtype=dtype, general_text=str(texts / "general.txt"))
    (damage,) = train(request).damage
    assert damage.after == pytest.approx(damage.before, rel=1e-4)


def test_a_control_is_not_cut_short_in_silence(request_of: RequestOf) -> None:
    with pytest.raises(ProfileError, match=r"training\.epochs: .* for 3 epochs.* after 2"):
        train(request_of(recipe="full.r01", control_tokens=500, control_epochs=3))


def test_running_out_of_memory_halves_the_micro_batch(
    request_of: RequestOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trial.summed_loss
    fields = {"training": {"epochs": 1, "learning_rates": [1e-3], "micro_batch": 4}}
    roomy = train(request_of(**fields))

    def tight(model: Any, pieces: Any) -> Any:
        if len(pieces) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, pieces)

    monkeypatch.setattr(trial, "summed_loss", tight)
    messages: list[str] = []
    result = train(
        request_of(**fields, work=str(tmp_path / "w"), out=str(tmp_path / "o")),
        lambda message, done=None, total=None: messages.append(message),
    )
    # So few tokens a pass keep no GPU busy: other ways to save memory come first.
    said = [m.split("out of GPU memory, ")[1] for m in messages if "out of GPU memory" in m]
    assert said == [
        "activations are computed twice from now on",
        "micro-batch is now 2",
        "micro-batch is now 1",
    ]
    assert (result.speed["micro_batch"], result.speed["gradient_checkpointing"]) == (1, True)
    assert (roomy.speed["micro_batch"], roomy.speed["gradient_checkpointing"]) == (4, False)
    assert [e["loss"] for e in result.losses] == pytest.approx(
        [e["loss"] for e in roomy.losses], abs=1e-4
    )


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="set keep to `best` or patience to null"):
        Training(patience=1, keep="last")
    with pytest.raises(ValidationError, match="there is one: set processes"):
        Training(sharding="fsdp")
    paper = load_profile("paper").model_dump()
    paper["training"] |= {"processes": 8, "sharding": "fsdp"}
    paper["recipes"] |= {
        "full.p00": {"keep": "last"},
        "lora.p00": {"processes": 1},
        "qlora.p00": {"processes": 1},
    }
    profile = Profile.model_validate(paper)
    assert profile.recipe_training("full.p01").patience == 2
    assert profile.recipe_training("full.p00").patience is None
    assert profile.recipe_training("lora.p00").sharding == "none"
    paper["recipes"]["qlora.p00"] = None
    with pytest.raises(ValidationError, match=r"qlora\.p00\.sharding: 4-bit weights cannot"):
        Profile.model_validate(paper)
    paper["recipes"] = {"full.p00": {"keep": "last", "patience": 3}}
    with pytest.raises(ValidationError, match=r"recipes\.full\.p00: patience looks at"):
        Profile.model_validate(paper)


def test_what_needs_less_memory_is_tried_in_order() -> None:
    tries = [Training(piece_tokens=256, micro_batch=16)]
    while less := trial.leaner(tries[-1]):
        tries.append(less)
    seen = [(s.micro_batch, s.gradient_checkpointing) for s in tries]
    assert seen == [(16, None), (8, None), (4, None), (4, True), (2, True), (1, True)]
    never = Training(piece_tokens=256, micro_batch=1, gradient_checkpointing=False)
    assert trial.leaner(never) is None


def test_the_optimiser_is_fused_and_decides_nothing_of_the_speed(
    request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trial._packed_trainer()
    real, seen = trainer.training_step, []

    def looking(self: Any, *given: Any, **more: Any) -> Any:
        seen.append(self.optimizer.optimizer.defaults["fused"])
        return real(self, *given, **more)

    monkeypatch.setattr(trainer, "training_step", looking)
    result = train(request_of({"epochs": 1, "learning_rates": [1e-3]}))
    assert seen == [True] * result.checkpoint.steps
    assert "mfu" not in result.speed, "there is no GPU"
    assert result.speed["tokens_per_second"] > 0


def test_the_share_of_the_peak_that_is_reached() -> None:
    def record(tokens: int, seconds: float, peak: int) -> TrialRecord:
        speed = Speed(
            tokens=tokens,
            seconds=seconds,
            flops_per_token=4e10,
            micro_batch=tokens // 100,
            gradient_checkpointing=False,
            peak_bytes=peak,
        )
        return TrialRecord(learning_rate=1e-5, epochs=[], kept_epoch=0, speed=speed)

    found = speed_of([record(1000, 0.1, 7), record(3000, 0.1, 5)], 2, peak_tflops=1000.0)
    assert found["tokens_per_second"] == pytest.approx(20_000)
    assert found["mfu"] == pytest.approx(20_000 * 4e10 / 2e15)
    assert (found["micro_batch"], found["peak_memory_bytes"]) == (10, 7)


def test_attention_by_name(request_of: RequestOf, tmp_path: Path) -> None:
    losses = []
    for attention in ("sdpa", "eager"):
        request = request_of(
            {"epochs": 1, "learning_rates": [1e-3], "attention": attention},
            work=str(tmp_path / attention / "work"),
            out=str(tmp_path / attention / "out"),
        )
        losses.append([entry["loss"] for entry in train(request).losses])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    with pytest.raises(ModelError, match=r"training\.attention: .*`pip install flash-attn"):
        train(request_of({"attention": "flash_attention_2"}, dtype="bfloat16"))
    with pytest.raises(ModelError, match=r"training\.attention: .* dtype is float32"):
        train(request_of({"attention": "flash_attention_2"}))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_compiled_layers_give_the_same(request_of: RequestOf, tmp_path: Path, method: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results, names = [], []
    for compiled in (False, True):
        assert not torch._dynamo.utils.counters["frames"]
        request = request_of(
            {"epochs": 1, "learning_rates": [1e-3], "compile": compiled},
            method=method,
            validation="",
            recipe=f"{method}.p00",
            work=str(tmp_path / str(compiled) / "work"),
            out=str(tmp_path / str(compiled) / "out"),
        )
        results.append([entry["loss"] for entry in train(request).losses])
        (weights,) = (Path(request.out) / "model").glob("*.safetensors")
        names.append(sorted(load_file(weights)))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert results[1] == pytest.approx(results[0], abs=1e-4)
    assert names[1] == names[0]


def test_a_folder_called_snapshots_is_no_commit_of_the_hub(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "mine"
    shutil.copytree(base, folder)
    before = weights_identity(str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert before != weights_identity(str(folder)) != folder.name


def test_models_that_cannot_be_used_are_refused_with_the_mend(
    request_of: RequestOf, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="bitsandbytes"):
        train(request_of(method="qlora"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"safetensors"):
        train(request_of(base=str(tmp_path / "empty")))
    with pytest.raises(ModelError, match="allowed: auto, cpu"):
        train(request_of(device="gpu"))
