"""`hf-prefix`: lm-evaluation-harness's Hugging Face model, reading each shared beginning once.

The new tokens of many inputs (see `sharing`) lie in one row without padding. Everything in a
transformer but attention treats a token by itself, so it does not matter whose they are. In
attention, each piece's keys and values are written behind those of its path and its queries look at
exactly these. Logits are computed where an option's tokens are predicted and nowhere else.

This module imports torch and lm_eval: import it inside functions, or let `register` name it.
"""

import inspect
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import clear_torch_cache
from torch import Tensor
from tqdm import tqdm
from transformers import AttentionInterface

from kinject_assets.core.errors import ModelError
from kinject_assets.core.scoring.sharing import Arrangement, Piece, arrange, shared_length

NAME = "hf-prefix"
"""Name of the model in lm-eval."""

ATTENTION = "kinject_path"
"""Name of the attention function in transformers."""

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}
"""More tokens in a forward pass bring no more speed: the matrix products are at the limit."""

AUTO_MEMORY = {"cpu": 2 << 30, "cuda": 0.5}
"""Memory of a batch under `batch_size=auto`: bytes, or the share of what is free on the card."""

_MASK_ENTRIES = 1 << 24
_MASKS_KEPT = 1 << 26
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1
"""Largest error of the trial's log-probabilities at a token, as a part of their spread there."""

_PROBE_TOKENS = 7
"""Tokens a batch in the trial: it takes several, as real calls do."""

_LAYERS = {"full_attention", "sliding_attention"}
_UNSHARED_ROPE = {"dynamic", "longrope"}
_UNKNOWN_ARGUMENTS = ("softcap", "s_aux", "position_bias", "alibi_bias", "score_mod")

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]

_Stock: Any = HFLM
"""lm-eval has no type hints that a checker could follow."""

logger = logging.getLogger(__name__)


class UnsharedError(Exception):
    """A model whose prefixes cannot be shared, with the reason."""


class Path:
    """Keys and values of the input read last, from its first token on: two buffers a layer."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._capacity = 0

    def reserve(self, length: int) -> None:
        """Makes room for inputs of so many tokens."""
        self._capacity = max(self._capacity, length)

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers of a layer, of the shape and kind of its new keys and values."""
        kept = self._layers.get(index)
        if kept is None or kept[0].shape[2] < self._capacity:
            grown = tuple(
                new.new_empty((1, new.shape[1], self._capacity, new.shape[3]))
                for new in (key, value)
            )
            if kept is not None:
                for new, old in zip(grown, kept, strict=True):
                    new[:, :, : old.shape[2]] = old
            self._layers[index] = kept = (grown[0], grown[1])
        return kept


@dataclass
class _Reading:
    """A forward pass: what attention has to know of the tokens in its row."""

    pieces: Sequence[Piece]
    path: Path
    masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    mask_entries: int = 0
    layers: set[int] = field(default_factory=set)

    def enter(self, layer: int) -> None:
        """Notes a layer; each may attend once a pass, or it would overwrite its own path."""
        if layer in self.layers:
            raise UnsharedError("it uses a layer several times")
        self.layers.add(layer)

    def mask(self, first: int, length: int, low: int, window: int | None, like: Tensor) -> Tensor:
        """Additive mask of queries at first..first+length-1 on keys from `low` to the last query.

        All layers of a forward pass ask for the same ones; large ones are not kept.
        """
        key = (first, length, low, window, like.dtype, like.device)
        if key in self.masks:
            return self.masks[key]
        places = torch.arange(low, first + length, device=like.device)
        queries = places[first - low :, None]
        hidden = places > queries
        if window:
            hidden |= places <= queries - window
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        mask.masked_fill_(hidden, float("-inf"))
        if self.mask_entries + mask.numel() <= _MASKS_KEPT:
            self.mask_entries += mask.numel()
            self.masks[key] = mask
        return mask


_reading: ContextVar[_Reading] = ContextVar("kinject_reading")


def path_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of pieces along their paths, in transformers' `AttentionInterface`.

    Args:
        module: The attention layer.
        query: Shape (1, heads, tokens, width).
        key: Shape (1, key heads, tokens, width).
        value: Shape (1, key heads, tokens, value width).
        attention_mask: None: paths say all.
        scaling: Of the scores; default 1 / sqrt(width).
        sliding_window: A token sees this many tokens, itself among them.
        others: What else a model hands over.

    Returns:
        Shape (1, tokens, heads, value width), and no weights.

    Raises:
        UnsharedError: If the layer attends in a way that this function does not know.
    """
    _refuse_unknown(module, attention_mask, sliding_window, others)
    reading = _reading.get()
    layer = int(getattr(module, "layer_idx"))  # noqa: B009
    reading.enter(layer)
    keys, values = reading.path.layer(layer, key, value)
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    out = query.new_empty((1, query.shape[2], heads, value.shape[3]))
    base = reading.pieces[0].first
    for piece in reading.pieces:
        rows = slice(piece.first - base, piece.first - base + piece.length)
        path = slice(piece.start, piece.start + piece.length)
        keys[:, :, path] = key[:, :, rows]
        values[:, :, path] = value[:, :, rows]
        for part in _blocks(piece, groups):
            low = 0
            if sliding_window:
                low = max(0, part.start - sliding_window + 1)
            end = part.start + part.length
            window = sliding_window if sliding_window and end - low > sliding_window else None
            mask = None
            if part.length > 1 or window:
                mask = reading.mask(part.start, part.length, low, window, query)
            rows = slice(part.first - base, part.first - base + part.length)
            out[:, rows] = _attend(
                query[:, :, rows], keys[:, :, low:end], values[:, :, low:end], mask, scaling
            )
    return out, None


def _blocks(piece: Piece, groups: int) -> Iterator[Piece]:
    """Cuts a piece so that no mask is larger than a few dozen megabytes."""
    most = max(1, _MASK_ENTRIES // (groups * (piece.start + piece.length)))
    for begin in range(piece.first, piece.first + piece.length, most):
        yield piece.part(begin, begin + most)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention of one piece; the heads that share keys are queries of one head."""
    _, heads, length, width = query.shape
    key_heads = key.shape[1]
    groups = heads // key_heads
    if groups > 1:
        query = query.reshape(1, key_heads, groups * length, width)
        mask = None if mask is None else mask.repeat(groups, 1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(1, heads, length, -1).transpose(1, 2)


def _refuse_unknown(
    module: torch.nn.Module,
    mask: Tensor | None,
    sliding_window: int | None,
    others: dict[str, Any],
) -> None:
    unknown = [name for name in _UNKNOWN_ARGUMENTS if others.get(name) is not None]
    if unknown:
        raise UnsharedError(f"its attention uses {', '.join(unknown)}")
    if mask is not None:
        raise UnsharedError("its attention takes a mask of the model's own")
    if not getattr(module, "is_causal", True) or not hasattr(module, "layer_idx"):
        raise UnsharedError("it has attention that is not causal")
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        slides = kinds[getattr(module, "layer_idx")] == "sliding_attention"  # noqa: B009
    else:
        slides = bool(getattr(config, "sliding_window", None))
        slides &= getattr(config, "use_sliding_window", True) is not False
    if slides and not sliding_window:
        raise UnsharedError("its sliding window is not told to the attention function")


AttentionInterface.register(ATTENTION, path_attention)


class PrefixLM(_Stock):
    """HFLM that reads every token that inputs share once; the same constructor arguments.

    `batch_size` is a promise on memory: no more than the stock class would take for so many inputs
    of full length; `auto` takes half of what is free on a card. Where a model cannot be shared the
    stock code answers, and `unshared` says why.

    Attributes:
        unshared: Why the stock code answers; empty while prefixes are shared.
        counts: Since the start: `requests`, `tokens` (of all distinct inputs: what the stock class
            reads of them), `read` (tokens that went through the model), `rows` (positions whose
            logits were computed), `batches`, `halved` (batches that ran out of memory).
        on_tokens: Called after each batch with the tokens read so far and in all.
        bars: Draw progress bars.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        try:
            self.unshared: str = self._obstacle()
        except AttributeError as error:
            self.unshared = f"it is unlike transformers' models ({error})"
        self.counts: Counter[str] = Counter()
        self.on_tokens: Callable[[int, int], None] = lambda done, total: None
        self.bars = True
        self._encodings: dict[str, list[int]] = {}
        self._path = Path()
        self._held: list[int] = []
        self._most_tokens = TOKENS_AT_ONCE.get(self.device.type, TOKENS_AT_ONCE["cuda"])
        self._most_rows: int | None = None
        self._probed = False
        self._told = False

    # -- encoding ----------------------------------------------------------------------------

    def encode_all(self, texts: Iterable[str]) -> None:
        """Encodes texts together that the next answers ask for, with the same result."""
        # A text that starts with the begin token's own spelling gets none in front: that case is
        # left to lm-eval.
        spelled = self.tokenizer.decode(self.prefix_token_id)
        new = [
            text
            for text in dict.fromkeys(texts)
            if text not in self._encodings and not text.startswith(spelled)
        ]
        if new:
            options = {}
            if self.add_bos_token is not None:
                options["add_special_tokens"] = self.add_bos_token
            ids = self.tokenizer(new, verbose=False, **options)["input_ids"]
            self._encodings |= dict(zip(new, ids, strict=True))

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, *rest: Any, **options: Any
    ) -> list[int]:
        """Encodes a text as the stock class does, from memory where it is there."""
        plain = add_special_tokens is None and not rest and not options
        if plain and string in self._encodings:
            return self._encodings[string]
        return super().tok_encode(string, add_special_tokens, *rest, **options)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it, as lm-eval divides them.

        Raises:
            ModelError: If one of the two has no token of its own.
        """
        parts = super()._encode_pair(context, continuation)
        if not all(parts):
            raise ModelError(
                f"`{continuation[:60]}` after `...{context[-60:]}`: one of them has no token of "
                "its own, so that there is nothing to score. Begin the option with a space."
            )
        return parts

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Log-likelihoods of continuations; an empty one has 0.

        A context's trailing space belongs to what follows it, so that something is left to score.
        """
        scored = [
            bool(option) or context != context.rstrip()
            for context, option in (request.args for request in requests)
        ]
        asked = [request for request, some in zip(requests, scored, strict=True) if some]
        self.encode_all(
            text
            for context, option in (request.args for request in asked)
            if context
            for text in (context.rstrip(), context + option)
        )
        silent = disable_tqdm or not self.bars
        answers = iter(super().loglikelihood(asked, disable_tqdm=silent))
        self._encodings.clear()
        return [next(answers) if some else (0.0, True) for some in scored]

    # -- sharing -----------------------------------------------------------------------------

    def hold(self, tokens: Sequence[int]) -> None:
        """Reads tokens that the inputs of the next calls begin with, and keeps them.

        What is computed for them does not depend on what is asked later, so that an answer is the
        same to the last bit whichever calls came before it. More than fits the window is not held.
        """
        if not self._shares() or list(tokens) == self._held:
            return
        self._held = []
        if 0 < len(tokens) <= self.max_length:
            self._score([list(tokens)], [[]], 0)
            self._held = list(tokens)

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Answer]:
        if not self._shares():
            return self._stock(requests, disable_tqdm, override_bs)
        with tqdm(
            total=len(requests),
            disable=disable_tqdm or self.rank != 0,
            desc="Running loglikelihood requests",
        ) as bar:
            inputs = [self._cut(context, option) for _, context, option in requests]
            targets = [option for _, _, option in requests]
            distinct = set(map(tuple, inputs))
            self.counts.update(requests=len(requests), tokens=sum(map(len, distinct)))
            answers = self._score(inputs, targets, self._usable(inputs, targets), bar.update)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _stock(
        self, requests: list[Request], disable_tqdm: bool, override_bs: int | None
    ) -> list[Answer]:
        """lm-eval's own code; out of memory, with half the batch from then on."""
        while True:
            try:
                return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            except RuntimeError as error:
                size = self.batch_size
                if not should_reduce_batch_size(error) or size == "auto" or int(size) <= 1:
                    raise
                clear_torch_cache()
                self.batch_size_per_gpu = int(size) // 2
                self.counts["halved"] += 1
                logger.warning("Out of memory: going on with %d inputs a batch.", int(size) // 2)

    def _cut(self, context: list[int], option: list[int]) -> list[int]:
        """What the model reads: all but the last token, from the left as much as it can hold.

        Raises:
            ModelError: If the option alone does not fit.
        """
        if len(option) > self.max_length:
            raise ModelError(
                f"an option has {len(option)} tokens and the model's window {self.max_length}. "
                "Shorten the option or raise max_length."
            )
        whole = context + option
        if len(whole) > self.max_length + 1:
            logger.warning(
                "A request of %d tokens is longer than the model's window of %d; %d are left out "
                "on the left.",
                len(whole) - 1,
                self.max_length,
                len(whole) - 1 - self.max_length,
            )
        return whole[-(self.max_length + 1) :][:-1]

    def _usable(self, inputs: list[list[int]], targets: list[list[int]]) -> int:
        """How many held tokens these inputs can build on: all of them or none."""
        held = self._held
        shared = all(
            len(tokens) - len(option) >= len(held) and shared_length(tokens, held) == len(held)
            for tokens, option in zip(inputs, targets, strict=True)
        )
        if not shared:
            self._held = []
        return len(self._held)

    def _score(
        self,
        inputs: list[list[int]],
        targets: list[list[int]],
        held: int,
        tell: Callable[[int], Any] = lambda done: None,
    ) -> list[Answer]:
        """Log-likelihood of targets, each predicted by the last tokens of its input."""
        arrangement = arrange(inputs, [len(option) for option in targets], held)
        self._path.reserve(arrangement.longest)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for request, (rows, option) in enumerate(zip(arrangement.rows, targets, strict=True)):
            for row, token in zip(rows, option, strict=True):
                wanted.setdefault(row, []).append((request, token))
        missing = [len(option) for option in targets]
        sums, greedy = [0.0] * len(inputs), [True] * len(inputs)
        with self._path_attention():
            for rows, log_probs in self._passes(arrangement):
                asked = [(at, *pair) for at, row in enumerate(rows) for pair in wanted[row]]
                if not asked:
                    continue
                places, requests, tokens = zip(*asked, strict=True)
                picked = log_probs[list(places), list(tokens)].double().tolist()
                best = log_probs.argmax(dim=-1).tolist()
                for place, request, token, value in zip(
                    places, requests, tokens, picked, strict=True
                ):
                    sums[request] += value
                    greedy[request] &= best[place] == token
                    missing[request] -= 1
                tell(sum(missing[request] == 0 for request in set(requests)))
        return list(zip(sums, greedy, strict=True))

    def _passes(self, arrangement: Arrangement) -> Iterator[tuple[list[int], Tensor]]:
        """Reads all new tokens; gives scored rows with their log-probabilities (rows, vocabulary).

        A batch that runs out of memory is read again in halves, and later ones are as small.
        """
        tokens, rows = self._limits(arrangement.longest)
        begin, total = 0, len(arrangement.tokens)
        while begin < total:
            end, scored = arrangement.batch(begin, tokens, rows)
            try:
                log_probs = self._forward(arrangement, begin, end, scored)
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or end - begin == 1:
                    raise
                clear_torch_cache()
                tokens = self._most_tokens = (end - begin) // 2
                if len(scored) > 1:
                    rows = self._most_rows = len(scored) // 2
                self.counts["halved"] += 1
                logger.warning("Out of memory: going on with %d tokens a batch.", tokens)
                continue
            self.counts.update(read=end - begin, rows=len(scored), batches=1)
            yield scored, log_probs
            begin = end
            self.on_tokens(begin, total)

    def _forward(self, arrangement: Arrangement, begin: int, end: int, scored: list[int]) -> Tensor:
        pieces = arrangement.between(begin, end)
        positions = [place for p in pieces for place in range(p.start, p.start + p.length)]
        token = _reading.set(_Reading(pieces, self._path))
        try:
            with (
                torch.no_grad(),
                torch.autocast(
                    device_type=self.device.type,
                    dtype=self.mixed_precision_dtype,
                    enabled=self.mixed_precision_dtype is not None,
                ),
            ):
                logits = self.model(
                    input_ids=torch.tensor([arrangement.tokens[begin:end]], device=self.device),
                    position_ids=torch.tensor([positions], device=self.device),
                    # With none to score, one is computed and not used. An index on the processor
                    # suits a model whose last layers are on another card than its first.
                    logits_to_keep=torch.tensor([row - begin for row in scored] or [0]),
                    use_cache=False,
                ).logits[0]
                return F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        finally:
            _reading.reset(token)

    def _limits(self, longest: int) -> tuple[int, int]:
        """Most tokens and most scored rows of a batch.

        The memory is that of the stock class, which keeps logits and their logarithms for every
        token of `batch_size` inputs.
        """
        config: Any = self._inner().config.get_text_config()
        size = torch.finfo(self._inner().dtype).bits // 8
        hidden = config.hidden_size
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        token = size * (8 * hidden + 3 * inner)
        row = config.vocab_size * (size + 8)
        if self.batch_size == "auto":
            kind = "cuda" if self.device.type == "cuda" else "cpu"
            memory = AUTO_MEMORY[kind]
            if kind == "cuda":
                memory *= torch.cuda.mem_get_info(self.device)[0]
        else:
            memory = int(self.batch_size) * longest * (token + row)
        tokens = max(1, min(self._most_tokens, int(memory / 2 / token)))
        rows = max(1, int((memory - tokens * token) / row))
        return tokens, min(rows, self._most_rows or rows)

    # -- what cannot be shared -----------------------------------------------------------------

    def _inner(self) -> Any:
        """The transformers model, inside its adapter if it has one."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @contextmanager
    def _path_attention(self) -> Iterator[None]:
        inner = self._inner()
        parts = {name: getattr(inner.config, name, None) for name in inner.config.sub_configs}
        before = {"": inner.config._attn_implementation} | {
            name: part._attn_implementation for name, part in parts.items() if part is not None
        }
        inner.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            inner.set_attn_implementation(before)

    def _obstacle(self) -> str:
        """Why this model's prefixes cannot be shared, as far as its configuration says."""
        inner = self._inner()
        if self.backend != "causal" or inner.config.is_encoder_decoder:
            return "it is no causal language model"
        if not inner._can_set_attn_implementation():
            return "its attention cannot be replaced"
        if "logits_to_keep" not in inspect.signature(inner.forward).parameters:
            return "it computes logits of every token"
        adapters = list(getattr(self.model, "peft_config", {}).values())
        if any(adapter.is_prompt_learning for adapter in adapters):
            return "its adapter puts virtual tokens in front"
        if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters):
            return "its adapter wakes at certain tokens of an input"
        config = inner.config.get_text_config()
        others = set(getattr(config, "layer_types", None) or ()) - _LAYERS
        if others:
            return f"it has layers of the kind {', '.join(sorted(others))}"
        rope = str(getattr(config, "rope_parameters", None) or "")
        found = [kind for kind in _UNSHARED_ROPE if f"'{kind}'" in rope]
        if found:
            return f"its positions ({found[0]}) depend on the length of the whole input"
        return ""

    def _shares(self) -> bool:
        """Whether prefixes are shared; the first call tries it on a few random tokens."""
        if not self._probed and not self.unshared:
            self._probed = True
            most, counts = self._most_tokens, self.counts.copy()
            self._most_tokens = _PROBE_TOKENS
            try:
                self.unshared = self._probe()
            except UnsharedError as error:
                self.unshared = str(error)
            except Exception as error:
                # Whatever a model does with an unusual call, lm-eval's own code may answer.
                self.unshared = f"a trial failed ({type(error).__name__}: {error})"
            self._most_tokens, self.counts = most, counts
        if self.unshared and not self._told:
            self._told = True
            logger.warning(
                "%s: beginnings are not shared, because %s; lm-eval's own code answers.",
                type(self._inner()).__name__,
                self.unshared,
            )
        return not self.unshared

    def _probe(self) -> str:
        """Compares all log-probabilities of random inputs that share beginnings with the model's.

        An error is measured against the spread of a token's log-probabilities: another context
        moves them by much of it, rounding in half precision by some percent.
        """
        draw = random.Random(0)
        size = min(32, self.max_length)
        words = self._inner().config.get_text_config().vocab_size
        trunk = [draw.randrange(words) for _ in range(size)]
        inputs = [
            [*trunk[:kept], *(draw.randrange(words) for _ in range(size - kept))]
            for kept in (size, size // 2, size // 2, size // 4, 0)
        ]
        arrangement = arrange(inputs, [size] * len(inputs))
        self._path.reserve(size)
        mine: dict[int, Tensor] = {}
        with self._path_attention():
            for rows, log_probs in self._passes(arrangement):
                mine |= dict(zip(rows, log_probs, strict=True))
        worst = 0.0
        for tokens, rows in zip(inputs, arrangement.rows, strict=True):
            logits = self._model_call(torch.tensor([tokens], device=self.device))[0]
            alone = F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype).float()
            shared = torch.stack([mine[row] for row in rows]).to(alone.device).float()
            possible = alone.isfinite()
            if not possible.any() or not torch.equal(possible, shared.isfinite()):
                return "a trial gave numbers that cannot be compared"
            for one, other, kept in zip(alone, shared, possible, strict=True):
                spread = float(one[kept].std(correction=0))
                error = float((one[kept] - other[kept]).abs().mean())
                worst = max(worst, error / spread if spread else error)
        allowed = _PROBE_TOLERANCE.get(self._inner().dtype, _HALF_TOLERANCE)
        return f"a trial gave other numbers (by {worst:.2g})" if worst > allowed else ""


model_registry.register(NAME)(PrefixLM)
