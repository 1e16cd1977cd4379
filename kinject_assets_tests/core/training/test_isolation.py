"""A text in a piece of isolated texts is read, predicted and learned as if it stood alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kinject_assets.core.errors import ModelError
from kinject_assets.core.schema import Paraphrase
from kinject_assets.core.store import read_rows
from kinject_assets.core.training.models import check_isolation, load_model, load_tokenizer
from kinject_assets.core.training.packing import encode_texts, pack
from kinject_assets.core.training.trainer import TrainRequest, train
from kinject_assets.core.training.trial import mean_loss, micro_batches, summed_loss, targets

WIDTHS: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = LlamaConfig(**WIDTHS, intermediate_size=48)
MISTRAL = MistralConfig(**WIDTHS, intermediate_size=48, num_key_value_heads=2, sliding_window=7)
GPT2 = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)
LENGTHS = (5, 23, 2, 17, 40, 9)

MODELS = [
    pytest.param(LLAMA, "eager", id="llama-eager"),
    pytest.param(LLAMA, "sdpa", id="llama-sdpa"),
    pytest.param(MISTRAL, "eager", id="mistral-eager"),
    pytest.param(MISTRAL, "sdpa", id="mistral-sdpa"),
    pytest.param(GPT2, "sdpa", id="gpt2-learned-positions"),
]


def made(shape: PretrainedConfig, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
    with torch.no_grad():
        # The usual spread of 0.02 leaves attention almost flat at these widths.
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


def drawn(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, 97, length) for length in lengths]


def parts(texts: list[np.ndarray], size: int) -> list[np.ndarray]:
    """The texts cut where pieces of `size` cut them."""
    ends = np.cumsum([len(text) for text in texts])
    cuts = sorted({*range(0, int(ends[-1]), size), *ends.tolist()} - {0})
    return np.split(np.concatenate(texts), cuts[:-1])


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize(("shape", "attention"), MODELS)
def test_logits_are_those_of_the_text_alone(shape: PretrainedConfig, attention: str) -> None:
    model, texts = made(shape, attention), drawn()
    whole = np.concatenate(texts)
    (piece,) = pack(texts, len(whole), isolated=True)
    ids, positions = (torch.from_numpy(piece[name].copy())[None] for name in ("id", "position"))
    with torch.inference_mode():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        joined = model(input_ids=ids, use_cache=False).logits[0]
        start = 0
        for number, text in enumerate(texts):
            alone = model(input_ids=torch.from_numpy(text)[None], use_cache=False).logits[0]
            mine = slice(start, start + len(text))
            start += len(text)
            torch.testing.assert_close(packed[mine], alone, atol=1e-5, rtol=0)
            if number:
                assert (joined[mine] - alone).abs().max() > 1e-2, "joined texts would pass too"


@pytest.mark.parametrize("size", [96, 40, 11])
@pytest.mark.parametrize(("shape", "attention"), MODELS)
def test_loss_and_gradient_are_the_sums_over_texts_alone(
    shape: PretrainedConfig, attention: str, size: int
) -> None:
    model, texts = made(shape, attention), drawn()
    pieces = pack(texts, size, isolated=True)
    alone = [part for part in parts(texts, size) if len(part) > 1]
    count = targets(pieces)
    assert count == targets(alone)
    expected = torch.stack([summed_loss(model, [part]) for part in alone]).sum() / count
    wanted = gradients(model, expected)
    for micro_batch in (1, 3):
        groups = list(micro_batches(pieces, micro_batch))
        if size == 11 and micro_batch == 3:
            assert max(map(len, groups)) == 3, "rows with starts of their own"
        loss = torch.stack([summed_loss(model, group) for group in groups]).sum() / count
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients(model, loss), wanted, atol=1e-5, rtol=1e-4)
        mean = mean_loss(model, pieces, micro_batch)
        assert mean == pytest.approx(expected.item(), abs=1e-5)
    joined = mean_loss(model, pack(texts, size), 1)
    assert abs(joined - expected.item()) > 1e-3


def test_attention_that_looks_at_a_single_row_gets_one() -> None:
    # Flash attention takes texts apart in a single row only. Its kernels need a GPU; an attention
    # of that name with the same limit stands for them.
    def limited(*args: Any, position_ids: Any = None, **options: Any) -> Any:
        rows.append(len(args[1]))
        return sdpa_attention_forward(*args, position_ids=position_ids, **options)

    rows: list[int] = []
    ALL_ATTENTION_FUNCTIONS.register("flash_of_the_test", limited)
    ALL_MASK_ATTENTION_FUNCTIONS.register("flash_of_the_test", sdpa_mask)
    model, texts = made(LLAMA, "sdpa"), drawn()
    pieces = pack(texts, 24, isolated=True)
    expected = summed_loss(model, pieces[:3])
    model.config._attn_implementation = "flash_of_the_test"
    loss = summed_loss(model, pieces[:3])
    assert set(rows) == {1}
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "attention"), MODELS)
def test_models_that_isolate_pass_the_check(
    shape: PretrainedConfig, attention: str, dtype: torch.dtype
) -> None:
    check_isolation(made(shape, attention).to(dtype))


REFUSED = [
    BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
    OPTConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
]


@pytest.mark.parametrize("shape", REFUSED, ids=["bloom", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_with_masks_of_their_own_are_refused(
    shape: PretrainedConfig, dtype: torch.dtype
) -> None:
    with pytest.raises(ModelError, match=r"training\.documents: `isolated` does not work with"):
        check_isolation(made(shape, "eager").to(dtype))


RequestOf = Callable[..., TrainRequest]


def test_such_a_model_is_not_trained(request_of: RequestOf, base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    folder = tmp_path / "bloom"
    shape = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)
    made(shape, "eager").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"BloomForCausalLM reads .* Set it to `joined`"):
        train(request_of({"documents": "isolated"}, base=str(folder)))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_and_validation_are_isolated_alike(
    request_of: RequestOf, texts: Path, method: str
) -> None:
    request = request_of(
        {"documents": "isolated", "learning_rates": [3e-3], "lora_rank": 4}, method=method
    )
    result = train(request)
    assert result.losses[-1]["loss"] < result.losses[0]["loss"] - 0.3

    folder = Path(request.out) / "model"
    tokenizer = load_tokenizer(str(folder))
    adapted = {"adapter": str(folder)} if method == "lora" else {}
    model = load_model(request.base if adapted else str(folder), **adapted)
    held_out = read_rows(texts / "validation.parquet", Paraphrase)
    encoded = encode_texts(
        tokenizer,
        [row.text for row in sorted(held_out, key=lambda row: (row.chunk_id, row.ordinal))],
    )
    alone = [part for part in parts(encoded, 64) if len(part) > 1]
    with torch.inference_mode():
        expected = sum(float(summed_loss(model, [part])) for part in alone) / targets(alone)
    assert result.checkpoint.validation_loss == pytest.approx(expected, abs=1e-5)
    assert abs(mean_loss(model, pack(encoded, 64), 4) - expected) > 1e-3
