"""The model that answers: lm-evaluation-harness's own Hugging Face model, kept between calls."""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.core.training.models import load_model, load_tokenizer, resolve_device

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

ENGINE = "lm-eval hf"

_loaded: dict[tuple[Any, ...], "HFLM"] = {}


def load_lm(
    base: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    batch_size: int = 16,
    checkpoint: str = "",
    adapter: bool = False,
) -> "HFLM":
    """Loads a model for scoring, or gives the one that this process loaded last.

    One model is kept: base and rag answers, or ft and ft_rag answers, load it once between them.

    Args:
        base: Folder or hub id of the base model.
        revision: Revision of a hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:0`, ...
        batch_size: Inputs a forward pass.
        checkpoint: Folder of a trained model; empty for the base model.
        adapter: The checkpoint is an adapter on the base model.

    Raises:
        ModelError: If it cannot be loaded.
    """
    target = resolve_device(device)
    source = checkpoint if checkpoint and not adapter else base
    key = (source, checkpoint, adapter, revision, dtype, str(target), _stamp(source, checkpoint))
    if key not in _loaded:
        release()
        model = load_model(
            source,
            revision=revision if source == base else None,
            dtype=dtype,
            device=str(target),
            adapter=checkpoint if adapter else "",
        )
        tokenizer = load_tokenizer(source, revision if source == base else None)
        with quiet():
            # Scores of half-precision models are summed in full precision.
            _loaded[key] = _exam_lm()(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                softmax_dtype="float32",
            )
    lm: Any = _loaded[key]
    lm.batch_size_per_gpu = batch_size
    return lm


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's notes on its own defaults out of the log."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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


@cache
def _exam_lm() -> Any:
    """HFLM that tokenises a condition's texts together and draws no progress bars."""
    from lm_eval.models.huggingface import HFLM

    stock: Any = HFLM

    class ExamLM(stock):
        """HFLM with a memory for encodings.

        lm-eval encodes a prompt once for each option, one text at a time. All of them are handed to
        the tokenizer at once here, with the same result.

        Attributes:
            on_inputs: Called before each batch with the number of inputs given to the model so far.
        """

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.encodings: dict[str, list[int]] = {}
            self.on_inputs: Callable[[int], None] = lambda count: None
            self._inputs = 0

        def encode_all(self, texts: Iterable[str]) -> None:
            """Encodes texts that the next calls will ask for."""
            begin = self.tokenizer.bos_token
            # A text that starts with the begin token's own spelling gets none in front: that case
            # is left to lm-eval.
            new = [
                text
                for text in dict.fromkeys(texts)
                if text not in self.encodings and not (begin and text.startswith(begin))
            ]
            if new:
                ids = self.tokenizer(new, verbose=False)["input_ids"]
                self.encodings |= dict(zip(new, ids, strict=True))

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **options: Any
        ) -> list[int]:
            if add_special_tokens is None and not options and string in self.encodings:
                return self.encodings[string]
            return super().tok_encode(string, add_special_tokens, **options)

        def _model_call(self, inps: Any, *rest: Any, **options: Any) -> Any:
            self._inputs += len(inps)
            self.on_inputs(self._inputs)
            return super()._model_call(inps, *rest, **options)

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = True
        ) -> list[tuple[float, bool]]:
            self._inputs = 0
            pairs = [request.args for request in requests]
            self.encode_all(text for a, b in pairs for text in (a.rstrip(), a, a + b))
            return super().loglikelihood(requests, disable_tqdm=True)

    return ExamLM
