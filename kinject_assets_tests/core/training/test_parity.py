"""Training against a plain loop over the same pieces, and against itself in other portions."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from kinject_assets.core.schema import Chunk, Paraphrase
from kinject_assets.core.store import read_rows
from kinject_assets.core.training import trial
from kinject_assets.core.training.models import load_model, load_tokenizer
from kinject_assets.core.training.packing import Packer, encode_texts, recipe_texts
from kinject_assets.core.training.trainer import TrainRequest, train

RequestOf = Callable[..., TrainRequest]

RATE = 1e-3
EPOCHS = 5
BATCH = 4


def request_for(request_of: RequestOf, texts: Path, method: str, **training: Any) -> TrainRequest:
    return request_of(
        {"epochs": EPOCHS, "learning_rates": [RATE], "lora_rank": 4, "lora_alpha": 8, **training},
        method=method,
        recipe=f"{method}.p04",
        n_paraphrases=4,
        paraphrases=str(texts / "paraphrases.parquet"),
        validation="",
        seed=3,
    )


def plain_losses(request: TrainRequest) -> list[float]:
    """Loss of each step of a loop that knows of no Trainer."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(request.seed)
    model: Any = load_model(request.base)
    if request.method == "lora":
        model = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    chunks = read_rows(Path(request.chunks), Chunk)
    written = read_rows(Path(request.paraphrases), Paraphrase)
    encoded = encode_texts(load_tokenizer(request.base), recipe_texts(chunks, written, 4))
    packer = Packer(encoded, request.training["piece_tokens"], request.seed)
    steps = EPOCHS * math.ceil(packer.epoch_pieces / BATCH)
    warmup = math.ceil(0.03 * steps)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    model.train()
    losses: list[float] = []
    for epoch in range(EPOCHS):
        pieces = packer.pieces(epoch)
        for start in range(0, len(pieces), BATCH):
            done = len(losses)
            progress = (done - warmup) / (steps - warmup)
            share = done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * progress))
            optimiser.param_groups[0]["lr"] = RATE * share
            logits, wanted = [], []
            for piece in pieces[start : start + BATCH]:
                ids = torch.from_numpy(piece)[None]
                logits.append(model(input_ids=ids).logits[0, :-1])
                wanted.append(ids[0, 1:])
            loss = cross_entropy(torch.cat(logits), torch.cat(wanted))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", ["full", "lora"])
def test_losses_are_those_of_a_plain_loop(request_of: RequestOf, texts: Path, method: str) -> None:
    request = request_for(request_of, texts, method)
    mine = [entry["loss"] for entry in train(request).losses]
    theirs = plain_losses(request)
    assert len(mine) == len(theirs) >= 50
    assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) < 1e-5
    assert mine[-1] < mine[0] - 1, "it learns, so that the steps matter"


@pytest.mark.slow
def test_portions_do_not_matter(request_of: RequestOf, texts: Path, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for micro_batch, more in (
        (1, {}),
        (4, {}),
        (64, {}),
        (4, {"gradient_checkpointing": True}),
    ):
        request = request_for(
            request_of, texts, "full", epochs=2, batch_pieces=64, micro_batch=micro_batch, **more
        )
        folder = tmp_path / f"{micro_batch}{len(more)}"
        request = replace(request, work=str(folder / "work"), out=str(folder / "out"))
        losses.append([entry["loss"] for entry in train(request).losses])
    assert len(losses[0]) == 2
    for others in losses[1:]:
        assert others == pytest.approx(losses[0], abs=1e-5)


def test_the_loss_of_many_logits_is_taken_in_slices(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(base))
    vocabulary = model.config.vocab_size
    draw = np.random.default_rng(0)
    pieces = [draw.integers(0, vocabulary, 24) for _ in range(5)]

    def gradients() -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = trial.summed_loss(model, pieces)
        loss.backward()
        return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, expected = gradients()
    monkeypatch.setattr(trial, "LOGITS_AT_ONCE", 2 * 24 * vocabulary)
    held: list[int] = []
    real = torch.nn.functional.cross_entropy

    def counted(logits: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        held.append(len(logits))
        return real(logits, *given, **more)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", counted)
    sliced, found = gradients()
    assert max(held) == 2 * 23, "never more than two pieces at once"
    assert sliced == pytest.approx(whole, rel=1e-6)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    with torch.inference_mode():
        assert trial.summed_loss(model, pieces).item() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_base_model_on_disk_stays_as_it_is(
    request_of: RequestOf, texts: Path, method: str
) -> None:
    request = request_for(request_of, texts, method, epochs=1)

    def hashes() -> dict[str, str]:
        files = sorted(path for path in Path(request.base).rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = hashes()
    train(request)
    assert any(name.endswith(".safetensors") for name in before)
    assert hashes() == before


def test_operations_of_a_token(base: Path) -> None:
    model = load_model(str(base))
    config: Any = model.config
    weights = sum(p.numel() for p in model.parameters())
    head: Any = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    working = weights - (0 if tied else config.vocab_size * config.hidden_size)
    attention = 12 * config.num_hidden_layers * config.hidden_size * 64
    assert trial.flops_per_token(model, 64) == 6 * working + attention
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    adapter = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trial.flops_per_token(adapted, 64) == 4 * working + 6 * adapter + attention


def test_operations_of_a_token_without_attention() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2))
    assert trial.flops_per_token(model, 64) == 6 * model.num_parameters()


def test_logits_in_16_bits_are_widened_slice_by_slice(
    request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()
    real = trial.logits_of

    def noted(model: Any, *given: Any) -> torch.Tensor:
        logits = real(model, *given)
        seen.add((model.training, logits.dtype))
        return logits

    monkeypatch.setattr(trial, "logits_of", noted)
    train(request_of({"epochs": 1, "learning_rates": [1e-3]}, dtype="bfloat16"))
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}
