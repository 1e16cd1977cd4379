"""`hf-prefix` against stock lm-eval and against one request at a time."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForConditionalGeneration

from kinject_assets.config import MMLUExam
from kinject_assets.core.errors import ModelError
from kinject_assets.core.exams.mmlu import load_mmlu
from kinject_assets.core.scoring import hf_prefix, register
from kinject_assets.core.scoring.hf_prefix import PrefixLM
from kinject_assets.core.scoring.prompts import build
from kinject_assets.core.scoring.tasks import option_logliks
from kinject_assets_tests.tiny import byte_level_tokenizer

REALDATA = Path(os.environ.get("KINJECT_REALDATA", "../shared/realdata"))
WINDOW = 64

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "max_position_embeddings": WINDOW},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8, "max_position_embeddings": WINDOW},
    "qwen2": {"num_key_value_heads": 4, "max_position_embeddings": WINDOW},
    "gemma3_text": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 8,
        "max_position_embeddings": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": WINDOW},
}
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 320,
}
OWN_NAMES = {"gpt2": {"vocab_size": 320}}
TEXTS = ["The heart pumps blood. Which of the following is a bone? A. femur B. liver " * 4]


def random_model(kind: str, **changes: Any) -> Any:
    """A model of an architecture with random weights."""
    torch.manual_seed(0)
    shape = {**OWN_NAMES.get(kind, COMMON), **SHAPES.get(kind, {}), **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).float().eval()


@cache
def tokenizer() -> Any:
    return byte_level_tokenizer(TEXTS, 320)


def stock_and_ours(model: Any, **options: Any) -> tuple[Any, Any]:
    fields = {"tokenizer": tokenizer(), "batch_size": 4, **options}
    stock: Any = HFLM
    return stock(pretrained=model, **fields), PrefixLM(pretrained=model, **fields)


@cache
def pair(kind: str) -> tuple[Any, Any]:
    return stock_and_ours(random_model(kind), max_length=WINDOW)


def one_at_a_time(lm: Any, requests: list[Any]) -> list[tuple[float, bool]]:
    """Each by itself; of no tokens the probability is 1, which stock lm-eval does not answer."""
    return [
        lm._loglikelihood_tokens([request], True)[0] if request[2] else (0.0, True)
        for request in requests
    ]


@st.composite
def request_sets(draw: st.DrawFn) -> list[tuple[None, list[int], list[int]]]:
    """Contexts that branch off each other anywhere, some over the window, some twice."""
    token = st.integers(3, 12)
    grown: list[list[int]] = [draw(st.lists(token, min_size=1, max_size=WINDOW + 10))]
    requests = []
    for _ in range(draw(st.integers(1, 12))):
        parent = draw(st.sampled_from(grown))
        kept = draw(st.integers(0, len(parent)))
        context = parent[:kept] + draw(st.lists(token, max_size=8))
        context = context or [draw(token)]
        grown.append(context)
        for _ in range(draw(st.integers(1, 4))):
            requests.append((None, context, draw(st.lists(token, max_size=5))))
    requests += draw(st.lists(st.sampled_from(requests), max_size=3))
    return draw(st.permutations(requests))


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in {"llama", "gemma3_text"} else pytest.param(kind, marks=pytest.mark.slow)
        for kind in SHAPES
    ],
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=request_sets(), tokens=st.integers(1, 40))
def test_any_requests_give_what_each_gives_alone(
    kind: str, requests: list[Any], tokens: int
) -> None:
    stock, ours = pair(kind)
    ours._most_tokens = tokens
    found = ours._loglikelihood_tokens(requests, True)
    assert ours.unshared == ""
    for (mine, greedy), (alone, alone_greedy) in zip(
        found, one_at_a_time(stock, requests), strict=True
    ):
        assert mine == pytest.approx(alone, abs=1e-4)
        assert greedy == alone_greedy


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=request_sets(), order=st.randoms(use_true_random=False))
def test_order_and_company_do_not_matter(requests: list[Any], order: Any) -> None:
    _, ours = pair("llama")
    ours._most_tokens = 2048
    found = ours._loglikelihood_tokens(requests, True)
    places = list(range(len(requests)))
    order.shuffle(places)
    half = places[: len(places) // 2 + 1]
    again = ours._loglikelihood_tokens([requests[i] for i in half], True)
    for i, (value, greedy) in zip(half, again, strict=True):
        assert value == pytest.approx(found[i][0], abs=1e-4)
        assert greedy == found[i][1]


def test_texts_go_through_lm_evals_own_encoding() -> None:
    stock, ours = pair("qwen2")
    texts = [
        ("The heart pumps", " blood"),
        ("The heart pumps", " blood. Which of"),
        ("The heart pumps ", "blood"),  # the space moves to the option
        ("", "The heart"),  # begins with the begin token
        ("<s>The heart", " pumps"),  # has its begin token spelled out
        ("The heart pumps", " blood"),
    ]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in texts
    ]
    expected = stock.loglikelihood(requests, disable_tqdm=True)
    assert [v for v, _ in ours.loglikelihood(requests, disable_tqdm=True)] == pytest.approx(
        [v for v, _ in expected], abs=1e-4
    )
    rolling = [Instance("loglikelihood_rolling", {}, (text * 9,), 0) for text in TEXTS]
    assert ours.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        stock.loglikelihood_rolling(rolling, disable_tqdm=True), rel=1e-5
    )


def test_an_empty_option_is_certain() -> None:
    stock, ours = pair("llama")
    requests = [
        Instance("loglikelihood", {}, pair, 0)
        for pair in (("The heart", ""), ("The heart", " pumps"), ("", ""), ("The heart ", ""))
    ]
    first, second, third, space = ours.loglikelihood(requests, disable_tqdm=True)
    assert first == third == (0.0, True)
    assert second[0] < 0
    # The space at a context's end belongs to the option.
    (expected,) = stock.loglikelihood(requests[3:], disable_tqdm=True)
    assert space[0] == pytest.approx(expected[0], abs=1e-4)


def test_an_option_without_a_token_of_its_own_is_an_error() -> None:
    # " blood" is one token and " b" is another: after " b", "lood" has none of its own.
    _, ours = pair("llama")
    whole, context = (len(ours.tok_encode(text)) for text in (" blood", " blo"))
    assert whole <= context
    request = Instance("loglikelihood", {}, (" blo", "od"), 0)
    with pytest.raises(ModelError, match="no token of its own"):
        ours.loglikelihood([request], disable_tqdm=True)


def test_an_option_over_the_window_is_an_error() -> None:
    _, ours = pair("llama")
    with pytest.raises(ModelError, match="65 tokens and the model's window 64"):
        ours._loglikelihood_tokens([(None, [5], [5] * 65)], True)


def test_what_is_held_is_not_read_again_and_changes_no_bit() -> None:
    _, ours = stock_and_ours(random_model("mistral"), max_length=WINDOW)
    beginning = [*range(5, 25)]
    units = [[(None, [*beginning, 30 + i, j], [40]) for j in range(5)] for i in range(3)]
    ours.hold(beginning)
    whole = [ours._loglikelihood_tokens(unit, True) for unit in units]
    read = ours.counts["read"]
    assert read == len(beginning) + 3 * (1 + 5)
    for skipped in range(3):
        fresh = stock_and_ours(random_model("mistral"), max_length=WINDOW)[1]
        for i, unit in enumerate(units):
            if i != skipped:
                fresh.hold(beginning)
                assert fresh._loglikelihood_tokens(unit, True) == whole[i]
    # More than the window holds is not held, and does no harm.
    ours.hold([*range(5, 5 + WINDOW), 6])
    for (a, _), (b, _) in zip(ours._loglikelihood_tokens(units[0], True), whole[0], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    # Inputs that begin with something else do not build on it, and do not disturb later ones.
    other = [(None, [7, 8, 9], [10])]
    ours._loglikelihood_tokens(other, True)
    ours.hold(beginning)
    assert ours._loglikelihood_tokens(units[0], True) == whole[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_are_part_of_what_is_read(kind: str) -> None:
    base = random_model(kind)
    adapted = get_peft_model(
        random_model(kind),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    ).eval()
    stock, ours = stock_and_ours(adapted, max_length=WINDOW)
    requests = [(None, [5, 6, 7, i], [9, 8]) for i in range(10, 16)]
    found = ours._loglikelihood_tokens(requests, True)
    assert ours.unshared == ""
    assert [v for v, _ in found] == pytest.approx(
        [v for v, _ in stock._loglikelihood_tokens(requests, True)], abs=1e-4
    )
    plain = stock_and_ours(base, max_length=WINDOW)[1]._loglikelihood_tokens(requests, True)
    assert all(abs(a - b) > 1e-4 for (a, _), (b, _) in zip(found, plain, strict=True))


def test_bfloat16_stays_near_the_stock_class() -> None:
    stock, ours = stock_and_ours(
        random_model("llama").to(torch.bfloat16), max_length=WINDOW, softmax_dtype="float32"
    )
    requests = [(None, [*range(5, 25), i], [9, 8]) for i in range(30, 36)]
    found = ours._loglikelihood_tokens(requests, True)
    assert ours.unshared == ""
    assert [v for v, _ in found] == pytest.approx(
        [v for v, _ in stock._loglikelihood_tokens(requests, True)], abs=0.1
    )


class _Unwilling:
    """Runs out of memory for more than so many tokens."""

    def __init__(self, lm: Any, most: int) -> None:
        self.forward, self.most = lm._forward, most

    def __call__(self, arrangement: Any, begin: int, end: int, scored: Any) -> Any:
        if end - begin > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return self.forward(arrangement, begin, end, scored)


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, ours = stock_and_ours(random_model("llama"), max_length=WINDOW)
    requests = [(None, [*range(5, 45), i], [9]) for i in range(50, 90)]
    expected = stock._loglikelihood_tokens(requests, True)
    ours._shares()
    monkeypatch.setattr(ours, "_forward", _Unwilling(ours, 20))
    assert [v for v, _ in ours._loglikelihood_tokens(requests, True)] == pytest.approx(
        [v for v, _ in expected], abs=1e-4
    )
    halved = ours.counts["halved"]
    assert halved >= 1
    ours._loglikelihood_tokens(requests, True)
    assert ours.counts["halved"] == halved
    monkeypatch.setattr(ours, "_forward", _Unwilling(ours, 0))
    with pytest.raises(torch.OutOfMemoryError):
        ours._loglikelihood_tokens(requests, True)


def test_memory_that_runs_out_where_nothing_is_scored_leaves_rows_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ours = stock_and_ours(random_model("llama"), max_length=WINDOW)
    ours._shares()
    real = ours._forward
    monkeypatch.setattr(ours, "_forward", _Unwilling(ours, 30))
    ours.hold([*range(5, 55)])
    monkeypatch.setattr(ours, "_forward", real)
    assert ours.counts["halved"] == 1
    before = ours.counts["batches"]
    ours._loglikelihood_tokens([(None, [*range(5, 55), i], [9]) for i in range(60, 80)], True)
    assert ours.counts["batches"] == before + 1


def test_the_stock_code_halves_its_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, ours = stock_and_ours(random_model("mamba", state_size=4), max_length=WINDOW)
    requests = [(None, [*range(5, 25), i], [9, 8]) for i in range(30, 38)]
    expected = stock._loglikelihood_tokens(requests, True)
    real, sizes = ours._model_call, []

    def unwilling(inputs: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return real(inputs, *rest, **options)

    monkeypatch.setattr(ours, "_model_call", unwilling)
    found = ours._loglikelihood_tokens(requests, True)
    assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert sizes[0] == 4 and sizes[-1] == 2
    assert ours.batch_size == 2


def test_each_part_of_a_model_gets_its_attention_back() -> None:
    model = random_model("llama")
    model.set_attn_implementation("eager")
    _, ours = stock_and_ours(model, max_length=WINDOW)
    ours._loglikelihood_tokens([(None, [5, 6], [7])], True)
    assert ours.unshared == "" and model.config._attn_implementation == "eager"
    parts = {"text_config": "eager", "vision_config": "sdpa"}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = {**small, **SHAPES["gemma3_text"], "num_attention_heads": 4, "vocab_size": 320}
    vision = {**small, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    config: Any = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    both: Any = Gemma3ForConditionalGeneration(config).eval()
    both.set_attn_implementation(parts)
    _, ours = stock_and_ours(both, max_length=WINDOW)
    ours._loglikelihood_tokens([(None, [5, 6], [7])], True)
    assert ours.unshared == ""
    assert {name: getattr(both.config, name)._attn_implementation for name in parts} == parts


UNSHARED = {
    "a recurrent model": lambda: random_model(
        "mamba", hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "position biases": lambda: random_model("bloom", hidden_size=32, n_layer=2, n_head=4),
    "soft caps": lambda: random_model(
        "gemma2", head_dim=8, num_key_value_heads=2, attn_logit_softcapping=5.0
    ),
    "a window in the mask alone": lambda: random_model(
        "phimoe", num_key_value_heads=2, sliding_window=40, num_local_experts=2
    ),
    "layers used twice": lambda: random_model("diffllama", num_key_value_heads=2),
    "layers used twice, bfloat16": lambda: random_model("diffllama", num_key_value_heads=2).to(
        torch.bfloat16
    ),
    "positions of its own": lambda: random_model(
        "roberta", is_decoder=True, max_position_embeddings=200
    ),
    "positions of its own, bfloat16": lambda: random_model(
        "roberta", is_decoder=True, max_position_embeddings=200
    ).to(torch.bfloat16),
    "activated adapter": lambda: get_peft_model(
        random_model("llama"),
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=4,
            target_modules=["q_proj"],
            init_lora_weights=False,
            alora_invocation_tokens=[6, 7],
        ),
    ).eval(),
    "positions by length": lambda: random_model(
        "llama",
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        num_key_value_heads=2,
    ),
    "virtual tokens": lambda: get_peft_model(
        random_model("llama"),
        PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3),
    ).eval(),
}


@pytest.mark.parametrize("name", UNSHARED)
def test_what_cannot_be_shared_is_left_to_the_stock_code_and_said(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    stock, ours = stock_and_ours(UNSHARED[name](), max_length=WINDOW)
    requests = [(None, [*range(5, 25), i], [9, 8]) for i in range(30, 33)]
    with caplog.at_level(logging.WARNING):
        found = ours._loglikelihood_tokens(requests, True)
    assert found == stock._loglikelihood_tokens(requests, True)
    assert ours.unshared
    assert f"are not shared, because {ours.unshared}" in caplog.text


def test_a_wrong_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hf_prefix._attend
    monkeypatch.setattr(hf_prefix, "_attend", lambda *a: real(*a) * 1.5)
    _, ours = stock_and_ours(random_model("llama"), max_length=WINDOW)
    ours._loglikelihood_tokens([(None, [5, 6], [7])], True)
    assert ours.unshared.startswith("a trial gave other numbers")


def test_impossible_tokens_do_not_hide_a_wrong_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    real_head = model.lm_head.forward

    def masked(hidden: Any) -> Any:
        logits = real_head(hidden)
        logits[..., 100:] = float("-inf")
        return logits

    monkeypatch.setattr(model.lm_head, "forward", masked)
    _, ours = stock_and_ours(model, max_length=WINDOW)
    ours._loglikelihood_tokens([(None, [5, 6], [7])], True)
    assert ours.unshared == ""
    real = hf_prefix._attend
    monkeypatch.setattr(hf_prefix, "_attend", lambda *a: real(*a) * 1.5)
    _, ours = stock_and_ours(model, max_length=WINDOW)
    ours._loglikelihood_tokens([(None, [5, 6], [7])], True)
    assert ours.unshared.startswith("a trial gave other numbers")


def test_the_name_is_known_to_lm_eval() -> None:
    from lm_eval.api.registry import get_model

    register()
    assert get_model("hf-prefix") is PrefixLM
    assert get_model("hf") is HFLM


@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_batch_sizes_that_lm_eval_takes(batch_size: Any) -> None:
    stock, ours = stock_and_ours(random_model("llama"), max_length=WINDOW, batch_size=batch_size)
    requests = [(None, [*range(5, 25), i], [9, 8]) for i in range(30, 36)]
    assert [v for v, _ in ours._loglikelihood_tokens(requests, True)] == pytest.approx(
        [v for v, _ in one_at_a_time(stock_and_ours(stock.model)[0], requests)], abs=1e-4
    )


PARITY = {
    "llama": {"num_key_value_heads": 2, "max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 256, "max_position_embeddings": 2048},
    "qwen2": {"num_key_value_heads": 2, "max_position_embeddings": 2048},
    "gpt2": {"n_positions": 2048, "n_embd": 32, "n_layer": 2, "n_head": 4},
}


@pytest.mark.skipif(not (REALDATA / "mmlu").is_dir(), reason="no real MMLU files here")
@pytest.mark.parametrize(
    ("choice_format", "kind"),
    [
        *(("letter", kind) for kind in PARITY),
        # Both formats share the engine; that of all kinds again takes its time.
        *(pytest.param("text", kind, marks=pytest.mark.slow) for kind in PARITY),
    ],
)
def test_parity_on_real_mmlu(kind: str, choice_format: str) -> None:
    """Same choices as stock lm-eval on every question, log-likelihoods within 1e-4."""
    for subject in ("anatomy", "astronomy", "college_chemistry"):
        exam = MMLUExam(kind="mmlu", subject=subject, folder=REALDATA.resolve() / "mmlu")
        questions = load_mmlu(exam, Path())
        test = [q for q in questions if q.split == "test"]
        solved = [q for q in questions if q.split == "shots"]
        words = byte_level_tokenizer([q.stem for q in questions], 1024)
        model = random_model(kind, **PARITY[kind], vocab_size=len(words))
        if subject == "astronomy":
            model = get_peft_model(
                model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            ).eval()
        stock, ours = stock_and_ours(model, tokenizer=words, batch_size=16)
        exams = [
            [build(q, choice_format, solved[:shots], (), subject) for q in test] for shots in (0, 5)
        ]
        expected = option_logliks(stock, exams)
        found = option_logliks(ours, exams)
        assert ours.unshared == ""
        assert ours.counts["read"] < ours.counts["tokens"] / 3
        for mine, theirs in zip(found, expected, strict=True):
            for values, stock_values in zip(mine, theirs, strict=True):
                assert values == pytest.approx(stock_values, abs=1e-4)
                assert values.index(max(values)) == stock_values.index(max(stock_values))
