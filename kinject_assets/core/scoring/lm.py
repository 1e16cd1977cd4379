"""The model that answers, kept between calls: one of lm-evaluation-harness's classes, or ours."""

import gc
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinject_assets.core.errors import ModelError
from kinject_assets.core.scoring.prompts import Prompt, fit
from kinject_assets.core.scoring.tasks import quiet
from kinject_assets.core.training.models import load_model, load_tokenizer, resolve_device

ENGINES = ("hf-prefix", "hf", "vllm")

_loaded: dict[tuple[Any, ...], Any] = {}


def load_lm(
    base: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    batch_size: int = 16,
    checkpoint: str = "",
    adapter: bool = False,
    engine: str = "hf-prefix",
    add_bos: bool | None = None,
) -> Any:
    """Loads a model for scoring, or gives the one that this process loaded last.

    One model is kept: base and rag answers, or ft and ft_rag answers, load it once between them.

    Args:
        base: Folder or hub id of the base model.
        revision: Revision of a hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:0`, ...
        batch_size: Memory of a batch, in inputs of full length.
        checkpoint: Folder of a trained model; empty for the base model.
        adapter: The checkpoint is an adapter on the base model.
        engine: `hf-prefix`, `hf` or `vllm`.
        add_bos: A begin-of-text token first; `None`: as the tokenizer does.

    Returns:
        A model of lm-eval: `PrefixLM`, or its own `VLLM`.

    Raises:
        ModelError: If it cannot be loaded.
    """
    source = source_of(base, checkpoint, adapter)
    key = (source, checkpoint, adapter, revision, dtype, device, engine, add_bos)
    key = (*key, _stamp(source, checkpoint))
    if key not in _loaded:
        release()
        pinned = revision if source == base else None
        loader = _vllm if engine == "vllm" else _hugging_face
        _loaded[key] = loader(
            source, pinned, dtype, device, checkpoint if adapter else "", engine, add_bos
        )
    lm = _loaded[key]
    if engine != "vllm":
        lm.batch_size_per_gpu = batch_size
    return lm


def room(lm: Any) -> int:
    """Most tokens that a prompt and an option may have together without being cut.

    The Hugging Face classes read all but an option's last token, which is only predicted. lm-eval's
    vLLM class keeps a token less than the window, and generates one.
    """
    return lm.max_length + (1 if hasattr(lm, "hold") else -1)


def fit_all(lm: Any, exams: Sequence[Sequence[Prompt]]) -> list[list[tuple[Prompt, int]]]:
    """Makes every prompt fit what a model reads; see `fit` for what is left out.

    A model that can encode texts together does so here, and keeps them for the next answers.
    """
    if hasattr(lm, "encode_all"):
        lm.encode_all(
            text
            for prompts in exams
            for prompt in prompts
            for text in (prompt.text, *(prompt.text + option for option in prompt.options))
        )
    return [
        [fit(prompt, room(lm), lambda text: len(lm.tok_encode(text))) for prompt in prompts]
        for prompts in exams
    ]


def source_of(base: str, checkpoint: str, adapter: bool) -> str:
    """Folder or hub id of the full model and its tokenizer."""
    return checkpoint if checkpoint and not adapter else base


def _hugging_face(
    source: str,
    revision: str | None,
    dtype: str,
    device: str,
    adapter: str,
    engine: str,
    add_bos: bool | None,
) -> Any:
    from kinject_assets.core.scoring.hf_prefix import PrefixLM

    model = load_model(
        source, revision=revision, dtype=dtype, device=str(resolve_device(device)), adapter=adapter
    )
    with quiet():
        # Scores of half-precision models are summed in full precision.
        lm = PrefixLM(
            pretrained=model,
            tokenizer=load_tokenizer(source, revision, add_bos),
            softmax_dtype="float32",
            add_bos_token=add_bos,
        )
    lm.bars = False
    if engine == "hf":
        lm.unshared = "the engine `hf` was chosen"
    return lm


def vllm_arguments(
    source: str, revision: str | None, dtype: str, adapter: str, add_bos: bool | None
) -> dict[str, Any]:
    """What lm-eval's `VLLM` is constructed with: shared prefixes are kept by vLLM itself."""
    lora: dict[str, Any] = {}
    if adapter:
        rank = json.loads((Path(adapter) / "adapter_config.json").read_text())["r"]
        lora = {"lora_local_path": adapter, "max_lora_rank": rank}
    return {
        "pretrained": source,
        "revision": revision,
        "tokenizer_revision": revision,
        "dtype": dtype,
        "trust_remote_code": False,
        "enable_prefix_caching": True,
        "add_bos_token": add_bos,
        **lora,
    }


def _vllm(
    source: str,
    revision: str | None,
    dtype: str,
    device: str,
    adapter: str,
    engine: str,
    add_bos: bool | None,
) -> Any:
    if importlib.util.find_spec("vllm") is None:
        raise ModelError(
            f"scoring.engine: `{engine}` needs vLLM, which is not installed. Install it on a "
            "machine with CUDA (`pip install kinject[vllm]`), or set scoring.engine to `hf-prefix`."
        )
    if resolve_device(device).type != "cuda":
        raise ModelError(
            f"scoring.engine: `{engine}` runs on CUDA alone, and scoring.device is `{device}` "
            "here. Set scoring.engine to `hf-prefix`."
        )
    from lm_eval.models.vllm_causallms import VLLM

    with quiet():
        return VLLM(**vllm_arguments(source, revision, dtype, adapter, add_bos))


def release() -> None:
    """Frees the kept model's memory."""
    import torch

    _loaded.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _stamp(*folders: str) -> tuple[int, ...]:
    """Changes when weights are written anew to the same folder."""
    return tuple(
        path.stat().st_mtime_ns
        for folder in folders
        if folder and Path(folder).is_dir()
        for path in sorted(Path(folder).glob("*.safetensors"))
    )
