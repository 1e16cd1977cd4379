"""Loading causal language models and tokenizers: safetensors only, no code from outside."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.core.errors import ModelError
from kinject_assets.core.manifest import content_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def resolve_device(device: str) -> "torch.device":
    """The torch device of `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        ModelError: If it is not the name of a device, or CUDA is asked for and not there.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(
            f"scoring.device: `{device}` is no device; allowed: auto, cpu, cuda, cuda:0, ..."
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"scoring.device: `{device}` was asked for, but torch sees no CUDA device. Set it to "
            "`auto` or `cpu`, or install a torch built for this machine's driver."
        )
    return chosen


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a saved model, from the headers of its safetensors files alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        shapes |= {
            name: tuple(tensor["shape"])
            for name, tensor in header.items()
            if name != "__metadata__"
        }
    return shapes


def load_tokenizer(
    source: str, revision: str | None = None, add_bos: bool | None = None
) -> "PreTrainedTokenizerFast":
    """Loads a fast tokenizer from a folder or the hub.

    Args:
        source: Folder or hub id.
        revision: Revision of a hub id.
        add_bos: Whether it puts a begin-of-text token first; `None`: as it is made.

    Raises:
        ModelError: If there is none or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=Path(source).is_dir(),
            **({} if add_bos is None else {"add_bos_token": add_bos}),
        )
    except Exception as error:
        raise _unloadable(source, "tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"models: the tokenizer of `{source}` has no end-of-text token; texts could not be "
            "told apart in training. Use a causal language model with one."
        )
    return tokenizer


def load_model(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    adapter: str = "",
    **options: Any,
) -> "PreTrainedModel":
    """Loads a causal language model in evaluation mode.

    Args:
        source: Folder or hub id.
        revision: Revision of a hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:0`, ...
        adapter: Folder of a PEFT adapter to put on it; empty for none. It is not merged.
        options: Passed on to `from_pretrained`, e.g. a quantisation.

    Raises:
        ModelError: If it cannot be loaded, or has weights other than safetensors only.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    target = resolve_device(device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision or "main",
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=Path(source).is_dir(),
            **options,
        )
        if not options:
            model.to(target)
    except Exception as error:
        raise _unloadable(source, "model", error) from error
    if adapter:
        model = _with_adapter(model, adapter)
    return model.eval()


def logits_of(
    model: Any, ids: "torch.Tensor", positions: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Logits of the token after each one.

    Args:
        model: A causal language model, on the device of `ids`.
        ids: Token ids, rows x tokens, without padding.
        positions: Place of each token in its text, where the texts of a row are to be read as if
            each stood alone: transformers keeps attention within what counts up by ones.

    Returns:
        Rows x tokens x vocabulary.
    """
    if positions is None:
        return model(input_ids=ids, use_cache=False).logits
    rows = len(ids)
    config = getattr(model, "module", model).config
    if "flash" in (config._attn_implementation or ""):
        # Its kernels take texts apart in a single row only. Each row begins with a text's begin.
        ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits.reshape(rows, -1, logits.shape[-1])


MOST_LEAK = 0.1
"""Part of what a text in front changes that it may change where texts are isolated. Rounding to
bfloat16 stays below; a model with masks of its own lets all of it through."""


def check_isolation(model: "PreTrainedModel") -> None:
    """Makes sure that a model reads each text of a piece as if it stood alone.

    It reads random tokens: two texts in a row, isolated and joined, and the second one alone. Not
    every class of model looks at the positions when it makes its mask.

    Raises:
        ModelError: If what stands in front of a text changes how it is read.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    vocabulary = len(embeddings.weight)
    ids = torch.randint(vocabulary, (2, 32), generator=draw).to(model.device)
    firsts = (12, 20)
    positions = torch.stack([torch.cat([torch.arange(n), torch.arange(32 - n)]) for n in firsts])
    leaked = mixed = 0.0
    with torch.inference_mode():
        try:
            isolated = logits_of(model, ids, positions.to(model.device))
        except TypeError as error:
            raise _not_isolating(model, "takes no position_ids") from error
        joined = logits_of(model, ids)
        for row, first in enumerate(firsts):
            alone = logits_of(model, ids[row : row + 1, first:])[0]
            leaked = max(leaked, float((isolated[row, first:] - alone).abs().max()))
            mixed = max(mixed, float((joined[row, first:] - alone).abs().max()))
    if leaked > MOST_LEAK * mixed:
        raise _not_isolating(model, "reads a text otherwise when another stands in front")


def _not_isolating(model: Any, why: str) -> ModelError:
    return ModelError(
        f"training.documents: `isolated` does not work with this model: {type(model).__name__} "
        f"{why}, with the attention `{model.config._attn_implementation}`. Set it to `joined`."
    )


def _with_adapter(model: "PreTrainedModel", adapter: str) -> Any:
    from peft import PeftModel

    if not (Path(adapter) / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{adapter}: no adapter_model.safetensors in there. Materialise its `checkpoint` again."
        )
    try:
        return PeftModel.from_pretrained(model, adapter)
    except Exception as error:
        raise ModelError(
            f"{adapter}: the adapter does not fit its base model ({error}). Materialise its "
            "`checkpoint` again."
        ) from error


def _unloadable(source: str, part: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"models: the {part} of `{source}` cannot be loaded ({reason}). Its `source` must be a "
        "folder with config.json, tokenizer and *.safetensors weights, or a hub id that this "
        "machine can reach (gated ones need a login: `hf auth login`). Models with pickled "
        "weights (*.bin) alone, or with code of their own, are refused: name a `revision` that "
        "has safetensors."
    )


SAMPLE_BYTES = 65_536
"""Bytes at the begin, middle and end of each file of weights that tell one model from another."""


def weights_identity(source: str, revision: str | None = None) -> str:
    """Tells a model from another one under the same name.

    Of a model of the hub it is the commit; of a folder a hash of its settings, and of the sizes and
    samples of its files of weights: hashing all of a large model would take minutes.

    Args:
        source: Folder or hub id.
        revision: Revision of a hub id.

    Raises:
        ModelError: If it cannot be found.
    """
    from transformers.utils.hub import cached_file

    try:
        config = cached_file(source, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source}: its config.json cannot be read ({error}). Check models.NAME.source in the "
            "profile."
        ) from error
    folder = Path(str(config)).parent
    if folder.parent.name == "snapshots" and not Path(source).is_dir():
        return folder.name
    parts: list[object] = [Path(str(config)).read_text(encoding="utf-8")]
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as handle:
            for place in (0, size // 2, max(0, size - SAMPLE_BYTES)):
                handle.seek(place)
                parts.append(hashlib.sha256(handle.read(SAMPLE_BYTES)).hexdigest())
        parts += [path.name, size]
    return content_hash("weights", parts)


def tokenizer_identity(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Tells a tokenizer from another one: a hash of its vocabulary, rules and special tokens.

    To be taken when it has just been loaded: the state of a tokenizer that was used also holds how
    it last padded.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return content_hash("tokenizer", tokenizer.backend_tokenizer.to_str(), special)
