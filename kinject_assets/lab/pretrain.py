"""Trains the lab's two base models from scratch: `kinject lab pretrain`.

What they learn on purpose: to read (answer a question about a document in front of it, in a world
that they never saw), to copy (random strings that repeat), and the facts of one fixed world. What
they cannot know: anything of the worlds that experiments draw later.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.lab.grammar import KINDS, NAME_STEMS, POOLS, Fact, ask, tell, vocabulary
from kinject_assets.lab.things import (
    PRETRAINING_WEIGHTS,
    Thing,
    draw_facts,
    draw_things,
    pretraining_things,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WINDOW = 512
"""Longest prompt of the lab models, in tokens."""

MOST_QUESTIONS = 20
"""Questions on one pre-training document, at most."""

SHAPES: dict[str, dict[str, Any]] = {
    "lab-llama": {"type": "llama", "intermediate_size": 256, "num_key_value_heads": 4, "seed": 1},
    "lab-mistral": {
        "type": "mistral",
        "intermediate_size": 288,
        "num_key_value_heads": 2,
        "seed": 2,
    },
}


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Builds the tokenizer: one token a word of the lab, single characters for all else."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [chr(code) for code in range(33, 127)]
    pieces = characters + ["##" + c for c in characters] + ["\n"]
    words = [word for word in vocabulary() if word not in set(pieces)]
    order = {token: index for index, token in enumerate(special + pieces + words)}
    backend = Tokenizer(models.WordPiece(order, unk_token="<unk>", max_input_chars_per_word=100))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "isolated"),
        ]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", order["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def build_model(name: str, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """Builds one of `SHAPES` with random weights from its seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    shape = dict(SHAPES[name])
    kind, seed = shape.pop("type"), shape.pop("seed")
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": WINDOW,
        "tie_word_embeddings": True,
        # The usual 0.02 is meant for widths of thousands: at 128 attention starts almost flat.
        "initializer_range": 0.08,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **shape,
    }
    torch.manual_seed(seed)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**common))
    return MistralForCausalLM(MistralConfig(sliding_window=None, **common))


@dataclass(frozen=True)
class Stage:
    """What is drawn in a part of pre-training.

    Attributes:
        steps: Optimiser steps.
        rows: Windows a step.
        window: Tokens in a window.
        articles: Most articles of a document.
        rounds: How often each fact is asked.
    """

    steps: int
    rows: int
    window: int
    articles: int
    rounds: int


CYCLES = (
    # An answer that stands in an earlier pair is easy to copy, and copying is how reading begins:
    # with single articles and facts that are asked again it emerges several times sooner.
    (
        Stage(steps=442, rows=28, window=176, articles=1, rounds=3),
        Stage(steps=1088, rows=20, window=256, articles=2, rounds=1),
        Stage(steps=1870, rows=12, window=416, articles=6, rounds=1),
    ),
    # Each type of value (town, number, ...) is learned at a stroke, or not yet: after the first
    # cycle a model reads some types perfectly and others by chance. A second cycle at the full
    # learning rate brings the rest.
    (
        Stage(steps=500, rows=28, window=176, articles=1, rounds=2),
        Stage(steps=300, rows=20, window=256, articles=2, rounds=1),
        Stage(steps=900, rows=12, window=416, articles=6, rounds=1),
    ),
)
"""The learning rate rises to its peak and falls to near zero in each cycle."""

PEAK_RATE = 3e-3


@dataclass(frozen=True)
class Piece:
    """Text with the weight of its tokens in the loss."""

    text: str
    weight: float


def _pairs(facts: list[Fact], rng: random.Random, answer_weight: float) -> list[Piece]:
    out: list[Piece] = []
    for fact in facts:
        out.append(Piece(f"Question: {ask(fact, rng)}\nAnswer:", 0.3))
        out.append(Piece(f" {fact.value}", answer_weight))
        out.append(Piece("\n\n", 0.1))
    return out


class Documents:
    """Draws pre-training documents. One instance a run, seeded."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.known = pretraining_things()
        self._kinds = list(PRETRAINING_WEIGHTS)
        self._weights = [PRETRAINING_WEIGHTS[kind] * len(self.known[kind]) for kind in self._kinds]

    def known_thing(self) -> Thing:
        """A thing of the pre-training world, often-met kinds more often."""
        kind = self.rng.choices(self._kinds, self._weights)[0]
        return self.rng.choice(self.known[kind])

    def _fresh_things(self, count: int) -> list[Thing]:
        # Neighbours that share half a name or a kind are what a retriever brings: learn to tell
        # them apart.
        rng = self.rng
        kind = rng.choice(self._kinds)
        stem, head = rng.choice(NAME_STEMS), rng.choice(KINDS[kind].heads)
        things: dict[str, Thing] = {}
        while len(things) < count:
            this_kind = kind if rng.random() < 0.8 else rng.choice(self._kinds)
            heads = KINDS[this_kind].heads
            kin = rng.random()
            name_stem = stem if kin < 0.35 else rng.choice(NAME_STEMS)
            name_head = head if 0.35 <= kin < 0.6 and this_kind == kind else rng.choice(heads)
            name = f"{name_stem} {name_head}"
            things[name] = Thing(this_kind, name, draw_facts(this_kind, name, rng))
        return list(things.values())

    def reading(self, articles: int, shots: int, rounds: int) -> list[Piece]:
        """Articles of fresh things, then questions on them, as a prompt with retrieval has it.

        Args:
            articles: Number of articles.
            shots: Solved questions on other things in front of them.
            rounds: How often each fact is asked, in other words each time.
        """
        rng = self.rng
        pieces = _pairs(
            [rng.choice(self.known_thing().facts) for _ in range(shots)], rng, answer_weight=1.0
        )
        things = self._fresh_things(articles)
        tellings = [(thing, 0.1) for thing in things]
        if articles <= 2 and rng.random() < 0.3:
            tellings += [(thing, 1.0) for thing in things]
        for thing, weight in tellings:
            pieces.append(Piece(tell(list(thing.facts), rng) + "\n\n", weight))
        facts = [fact for thing in things for fact in thing.facts] * rounds
        rng.shuffle(facts)
        return pieces + _pairs(facts[:MOST_QUESTIONS], rng, answer_weight=5.0)

    def known_articles(self) -> list[Piece]:
        """Articles of the pre-training world."""
        things = [self.known_thing() for _ in range(4)]
        return [Piece(tell(list(thing.facts), self.rng) + "\n\n", 1.0) for thing in things]

    def known_pairs(self) -> list[Piece]:
        """Questions and answers of the pre-training world, with nothing to read."""
        facts = [self.rng.choice(self.known_thing().facts) for _ in range(16)]
        return _pairs(facts, self.rng, answer_weight=2.0)


class Batches:
    """Turns documents into fixed windows of token ids and loss weights."""

    def __init__(self, documents: Documents, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.begin, self.end = vocabulary["<s>"], vocabulary["</s>"]
        self.words = [i for t, i in tokenizer.get_vocab().items() if t.isalnum() and len(t) > 1]

    def _encode(self, pieces: list[Piece], window: int) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        if self.documents.rng.random() < 0.5:
            ids, weights = [self.begin], [0.0]
        for encoded, piece in zip(
            self.tokenizer([p.text for p in pieces], add_special_tokens=False)["input_ids"],
            pieces,
            strict=True,
        ):
            ids += encoded
            weights += [piece.weight] * len(encoded)
        ids.append(self.end)
        weights.append(0.1)
        return ids[:window], weights[:window]

    def _row(self, stage: Stage) -> tuple[list[int], list[float]]:
        rng, docs, window = self.documents.rng, self.documents, stage.window
        ids: list[int] = []
        weights: list[float] = []
        draw = rng.random()
        while len(ids) < window:
            if draw < 0.08:
                length = rng.randint(8, window // 3)
                string = [rng.choice(self.words) for _ in range(length)]
                more, w = string * 3, [0.0] * length + [1.0] * length * 2
            elif draw < 0.80:
                shots = rng.choice((0, 0, 1, 2, 5)) if stage.articles > 2 else 0
                articles = rng.randint(1, stage.articles)
                more, w = self._encode(docs.reading(articles, shots, stage.rounds), window)
            elif draw < 0.92:
                more, w = self._encode(docs.known_articles(), window)
            else:
                more, w = self._encode(docs.known_pairs(), window)
            ids += more
            weights += w
        return ids[:window], weights[:window]

    def draw(self, stage: Stage) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Token ids and loss weights, each of shape (rows, window)."""
        import torch

        drawn = [self._row(stage) for _ in range(stage.rows)]
        return torch.tensor([r[0] for r in drawn]), torch.tensor([r[1] for r in drawn])


def exam_accuracy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: list[tuple[str, Fact]],
    rng: random.Random,
) -> float:
    """Share of questions whose answer is likelier than three others of its type, as a fraction."""
    import torch

    right = 0
    model.eval()
    with torch.inference_mode():
        for text, fact in prompts:
            others = [v for v in POOLS[fact.spec.pool] if v != fact.value]
            options = [fact.value, *rng.sample(others, 3)]
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            scores = model(ids[:, -WINDOW:], logits_to_keep=1).logits[0, -1]
            right += int(scores[tokenizer.convert_tokens_to_ids(options)].argmax() == 0)
    model.train()
    return right / len(prompts)


def abilities(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", questions: int = 100
) -> dict[str, float]:
    """What a lab model can do, as accuracy of four options (0.25 is chance).

    `reads_k{K}_{S}shot` puts K articles of an unseen world (neighbours that share half a name among
    them) and S shots in front of the question; `knows_{kind}` asks with nothing to read.
    """
    rng = random.Random(77)
    documents = Documents(seed=78)
    report: dict[str, float] = {}

    def question(fact: Fact) -> str:
        return f"Question: {ask(fact, rng)}\nAnswer:"

    def shot(fact: Fact) -> str:
        return f"{question(fact)} {fact.value}\n\n"

    for articles, shots in ((1, 0), (5, 0), (1, 5), (5, 5)):
        prompts: list[tuple[str, Fact]] = []
        for _ in range(questions):
            things = documents._fresh_things(articles)
            fact = rng.choice(things[0].facts)
            rng.shuffle(things)
            head = "".join(shot(rng.choice(t.facts)) for t in draw_things(fact.kind, shots, rng))
            read = "".join(tell(list(t.facts), rng) + "\n\n" for t in things)
            prompts.append((head + read + question(fact), fact))
        report[f"reads_k{articles}_{shots}shot"] = exam_accuracy(model, tokenizer, prompts, rng)
    for kind, things in documents.known.items():
        facts = [rng.choice(rng.choice(things).facts) for _ in range(questions)]
        prompts = [(question(f), f) for f in facts]
        report[f"knows_{kind}"] = exam_accuracy(model, tokenizer, prompts, rng)
    known = [thing.name for things in documents.known.values() for thing in things]
    unseen = [rng.choice(t.facts) for t in draw_things("events", questions, rng, avoid=known)]
    report["knows_unseen"] = exam_accuracy(
        model, tokenizer, [(question(f), f) for f in unseen], rng
    )
    return report


def pretrain(
    name: str,
    out: Path,
    cycles: Sequence[Sequence[Stage]] = CYCLES,
    threads: int = 2,
    log: Callable[[str], None] = print,
    questions: int = 400,
) -> dict[str, Any]:
    """Trains one lab model and writes weights, tokenizer and `training.json` to `out/name`.

    Args:
        name: Key of `SHAPES`.
        out: Folder that gets a sub-folder of that name.
        cycles: What is drawn, in turn; after each cycle weights are written.
        threads: CPU threads.
        log: Called with progress lines.
        questions: Questions for each of the `abilities` that are recorded.

    Returns:
        What was written to `training.json`: settings, seconds, tokens and `abilities`.
    """
    import torch

    torch.set_num_threads(threads)
    tokenizer = build_tokenizer()
    model = build_model(name, tokenizer)
    folder = out / name
    started, tokens = time.monotonic(), 0
    for number, stages in enumerate(cycles):
        tokens += _cycle(model, tokenizer, stages, SHAPES[name]["seed"] + 1000 * number, name, log)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    record = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "steps": sum(stage.steps for stages in cycles for stage in stages),
        "tokens": tokens,
        "seconds": round(time.monotonic() - started),
        "abilities": abilities(model, tokenizer, questions),
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _cycle(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    stages: Sequence[Stage],
    seed: int,
    name: str,
    log: Callable[[str], None],
) -> int:
    """One rise and fall of the learning rate; returns the tokens that were read."""
    import torch
    from torch.nn.functional import cross_entropy

    model.train()
    batches = Batches(Documents(seed), tokenizer)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    steps = sum(stage.steps for stage in stages)
    warmup = min(100, max(1, steps // 10))
    started, tokens = time.monotonic(), 0
    plan = [stage for stage in stages for _ in range(stage.steps)]
    for step, stage in enumerate(plan):
        share = max(0.0, (step - warmup) / max(1, steps - warmup))
        cosine = (1 + math.cos(math.pi * share)) / 2
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * cosine)
        ids, weights = batches.draw(stage)
        logits = model(ids[:, :-1]).logits
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        flat = weights[:, 1:].flatten()
        loss = (losses * flat).sum() / flat.sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        tokens += ids.numel()
        if step % 200 == 199 or step + 1 == steps:
            seconds = time.monotonic() - started
            log(
                f"{name} step {step + 1}/{steps} loss {loss.item():.3f} "
                f"{tokens / seconds:,.0f} tokens/s {seconds:.0f} s "
                + json.dumps(abilities(model, tokenizer, 100))
            )
    return tokens
