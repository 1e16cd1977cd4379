"""What models have to compute: tokens from the counts that the code implies, FLOPs, hours.

A token costs a transformer of N parameters about 2 N floating-point operations forward and 4 N
backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; attention's own part, small for inputs
of some thousand tokens, is left out). An adapter spares the gradients of the frozen weights: 4 N a
token. Quantised training (`qlora`) computes activations twice to save memory: 6 N again.
"""

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kinject_assets.config import Profile, RecipeSpec, local_or_hub
from kinject_assets.core.augmentation.registry import PARAPHRASE
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.estimate.assumptions import CROSS_ENCODERS, ENCODERS, Assumed
from kinject_assets.core.estimate.corpora import Material, Unknown, value
from kinject_assets.core.plan import METHODS, Plan
from kinject_assets.core.store import Cell
from kinject_assets.core.training.models import tensor_shapes

FORWARD = 2
"""Operations for each parameter and token that is read."""

TRAINING = {"full": 6, "lora": 4, "qlora": 6}
"""Method -> operations for each parameter and token that is trained on."""

STAGES = {
    "embeddings": "embed",
    "retrieved": "embed",
    "checkpoint": "train",
    **dict.fromkeys(METHODS.values(), "score"),
    "triage": "triage",
    "damage": "damage",
}
"""Asset -> stage, of those that run a model."""

SCORING = "scoring"

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_BILLIONS = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
_NOT_LINEAR = ("embed", "lm_head", "wte", "wpe")


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """How large a model is.

    Attributes:
        parameters: `None` when nobody says.
        source: `files`, `profile`, `name`, `known` (a well-known encoder or cross-encoder) or
            `unknown`.
        linear: Rows and columns of its linear layers together: an adapter's parameters for each
            rank; `None` when the files are not there.
        dimension: Length of an encoder's vectors; `None` when not known.
    """

    parameters: int | None
    source: str
    linear: int | None = None
    dimension: int | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one artefact has a model compute.

    Attributes:
        trained: Tokens read and learnt from, over all epochs and learning rates.
        forward: Tokens read only.
        flops: Floating-point operations; `None` when the model's size is unknown.
        seconds: On one GPU of the profile's hardware.
    """

    cell: str
    stage: str
    model: str
    trained: int
    forward: int
    flops: float | None
    seconds: float | None


def model_size(
    source: str, *, profile: Profile, revision: str | None = None, given: int | None = None
) -> ModelSize:
    """The size of a model, from its files where they are on this disk; nothing is downloaded.

    Args:
        source: Hub id, folder, or `lab:NAME`.
        profile: Gives the folder that relative paths start from.
        revision: Revision of a hub id.
        given: What the profile says.
    """
    where = local_or_hub(profile, source)
    folder = Path(where) if Path(where).is_dir() else _in_cache(where, revision)
    shapes = tensor_shapes(folder) if folder else {}
    if shapes:
        linear = sum(
            sum(shape)
            for name, shape in shapes.items()
            if len(shape) == 2 and not any(word in name for word in _NOT_LINEAR)
        )
        vectors = [s[1] for name, s in shapes.items() if len(s) == 2 and "embed" in name]
        return ModelSize(
            parameters=sum(math.prod(shape) for shape in shapes.values()),
            source="files",
            linear=linear,
            dimension=max(vectors, default=None),
        )
    if given:
        return ModelSize(parameters=given, source="profile")
    if source in ENCODERS:
        parameters, dimension = ENCODERS[source]
        return ModelSize(parameters=parameters, source="known", dimension=dimension)
    if source in CROSS_ENCODERS:
        return ModelSize(parameters=CROSS_ENCODERS[source], source="known")
    if found := _BILLIONS.search(source.rsplit("/", 1)[-1]):
        scale = 1e9 if found[2].lower() == "b" else 1e6
        return ModelSize(parameters=round(float(found[1]) * scale), source="name")
    return ModelSize(parameters=None, source="unknown")


def _in_cache(name: str, revision: str | None) -> Path | None:
    """Folder of a hub model that was downloaded before."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = cache / f"models--{name.replace('/', '--')}"
    main = folder / "refs" / (revision or "main")
    snapshot = main.read_text().strip() if main.is_file() else revision or ""
    return folder / "snapshots" / snapshot if snapshot else None


@dataclass(frozen=True)
class Reckoner:
    """Reckons what the cells of a plan have models compute.

    Args:
        plan: The cells.
        materials: Corpus -> what is known of it.
        assume: Gives what is not known.
    """

    plan: Plan
    materials: Mapping[str, Material]
    assume: Assumed

    def work(self) -> list[Work]:
        """The work of every cell that runs a model; cells of corpora of unknown size are left out.

        Triage has a piece of work for each model, retrieval one for encoder and cross-encoder.
        """
        found: list[Work] = []
        for cell in self.plan.cells:
            if cell.asset in STAGES:
                with contextlib.suppress(Unknown):
                    found += self._of(cell)
        return found

    @cached_property
    def encoder(self) -> ModelSize:
        """The encoder's size."""
        encoder = self.plan.profile.retrieval.encoder
        return model_size(encoder.model, profile=self.plan.profile, revision=encoder.revision)

    @cached_property
    def cross_encoder(self) -> ModelSize | None:
        """The size of the cross-encoder, where a retriever is `reranked`."""
        settings = self.plan.profile.retrieval
        if settings.rerank is None or "reranked" not in settings.ranking("generated"):
            return None
        rerank = settings.rerank
        return model_size(rerank.model, profile=self.plan.profile, revision=rerank.revision)

    @cached_property
    def sizes(self) -> dict[str, ModelSize]:
        """Each model's size."""
        profile = self.plan.profile
        return {
            name: model_size(
                model.source,
                profile=profile,
                revision=model.revision,
                given=model.parameters,
            )
            for name, model in profile.models.items()
        }

    def adapter(self, model: str, rank: int) -> int | None:
        """Parameters of an adapter on all linear layers."""
        size = self.sizes[model]
        if size.linear is not None:
            return size.linear * rank
        if size.parameters is None:
            return None
        return round(size.parameters * rank * self.assume("lora_share"))

    def _of(self, cell: Cell) -> list[Work]:
        profile, corpus = self.plan.profile, cell.parts[0]
        match cell.asset:
            case "embeddings":
                return [self._piece(cell, self.encoder, 0, self.text_tokens(corpus))]
            case "retrieved":
                asked = value(self.materials[corpus].size.questions)
                stem = self.materials[corpus].stem / self._length(corpus)
                found = [self._piece(cell, self.encoder, 0, asked * stem)]
                if self.cross_encoder and profile.retrieval.rerank:
                    chunks = value(self.materials[corpus].size.chunks)
                    pairs = asked * min(profile.retrieval.rerank.depth, chunks)
                    read = pairs * (stem + self.chunk_tokens(corpus))
                    found.append(self._piece(cell, self.cross_encoder, 0, read))
                return found
            case "triage":
                read = self.probing(corpus)
                models = self.plan.probed(corpus)
                return [self._piece(cell, self.sizes[name], 0, read, name) for name in models]
        model = self.plan.model_of(cell)
        trained, method = 0.0, "full"
        if cell.asset == "checkpoint":
            method = RecipeSpec.parse(cell.parts[1].split(".", 1)[1]).method
            trained, read = self.training(cell)
        elif cell.asset == "damage":
            damage = profile.damage
            read = sum(
                self.answering(name, (damage.shots,), (damage.k if kind == "reading" else 0,))
                for kind, names in self.plan.probes(corpus).items()
                for name in names
            )
        else:
            scoring = profile.scoring
            if cell.asset in {METHODS["rag"], METHODS["ft_rag"]}:
                retrievers = profile.retrieval.answering(profile.corpora[corpus].exam.kind)
                read = self.answering(corpus, scoring.shots, scoring.k, len(retrievers))
            else:
                read = self.answering(corpus, scoring.shots, (0,))
        return [self._piece(cell, self.sizes[model], trained, read, model, method)]

    def _piece(
        self,
        cell: Cell,
        size: ModelSize,
        trained: float,
        read: float,
        model: str = "",
        method: str = "full",
    ) -> Work:
        hardware = self.plan.profile.hardware
        # Held-out pieces are read between epochs, at the speed of training.
        reached = hardware.utilisation_training if trained else hardware.utilisation_scoring
        flops = seconds = None
        if size.parameters is not None:
            flops = size.parameters * (TRAINING[method] * trained + FORWARD * read)
            seconds = flops / (hardware.tflops * 1e12 * reached)
        return Work(
            cell=str(cell),
            stage=STAGES[cell.asset],
            model=model,
            trained=round(trained),
            forward=round(read),
            flops=flops,
            seconds=seconds,
        )

    # --- text

    def _length(self, corpus: str) -> float:
        """Characters of a token of the models' tokenizers, in a corpus."""
        size = self.materials[corpus].size
        own = self.plan.profile.chunking.tokenizer != "words" and size.tokens.source == "made"
        if own and size.characters.value and size.tokens.value:
            return size.characters.value / size.tokens.value
        return self.assume("characters_per_token")

    def text_tokens(self, corpus: str) -> float:
        """Tokens of all chunks of a corpus, each once."""
        return value(self.materials[corpus].size.characters) / self._length(corpus)

    def chunk_tokens(self, corpus: str) -> float:
        """Tokens of a chunk."""
        return self.text_tokens(corpus) / max(1, value(self.materials[corpus].size.chunks))

    # --- training

    def epoch_tokens(self, corpus: str, model: str, recipe: str) -> float:
        """Packed tokens of an epoch; a control has its recipe's."""
        spec = RecipeSpec.parse(recipe)
        if made := self._checkpoint(corpus, model, recipe):
            return made["packed_tokens"] / made["epochs"]
        if spec.control_of:
            return self.epoch_tokens(corpus, model, spec.control_of)
        chunks = value(self.materials[corpus].size.chunks)
        text, ends = self.text_tokens(corpus), 2 * chunks
        written = 0.0
        if augmentation := self.plan.profile.recipe_augmentation(recipe):
            each = text * self.assume.text_length(augmentation) + ends
            written = spec.n_paraphrases * each
        share = self.plan.profile.recipe_training(recipe).replay_share
        return (text + ends + written) / (1 - share)

    def _checkpoint(self, corpus: str, model: str, recipe: str) -> Mapping[str, Any] | None:
        """What the manifest of a checkpoint counts, where it was made."""
        try:
            manifest = self.plan.store.manifest(Cell("checkpoint", (corpus, f"{model}.{recipe}")))
        except BrokenArtefact:
            return None
        return manifest.counts if manifest and manifest.counts.get("epochs") else None

    def training(self, cell: Cell) -> tuple[float, float]:
        """Tokens trained on and tokens only read by a checkpoint's search and training.

        A control is trained once, to the epoch that its recipe kept; until that is known, to the
        last one.
        """
        profile, corpus = self.plan.profile, cell.parts[0]
        model, recipe = cell.parts[1].split(".", 1)
        spec, training = RecipeSpec.parse(recipe), profile.recipe_training(recipe)
        epochs, trials = training.epochs, len(training.learning_rates)
        if spec.control_of:
            twin = self._checkpoint(corpus, model, spec.control_of)
            epochs, trials = (twin["epochs"] if twin else epochs), 1
        looks = trials * (epochs if training.keep == "best" and not spec.control_of else 1)
        read = looks * self._held_out(corpus) + 2 * self._general
        return self.epoch_tokens(corpus, model, recipe) * epochs * trials, read

    def _held_out(self, corpus: str) -> float:
        """Tokens of the validation paraphrases."""
        settings = self.plan.profile.augmentation
        chunks = min(settings.validation_chunks, value(self.materials[corpus].size.askable))
        one = self.chunk_tokens(corpus) * self.assume.text_length(PARAPHRASE) + 2
        return chunks * settings.validation_per_chunk * one

    @cached_property
    def _general(self) -> float:
        """Tokens of the text whose perplexity is measured before and after."""
        setting = self.plan.profile.training.general_text
        if setting is None:
            return 0.0
        if setting == "lab":
            from kinject_assets.lab.general import general_text

            size = len(general_text())
        else:
            path = self.plan.profile.folder / setting
            size = path.stat().st_size if path.is_file() else 0
        return size / self.assume("characters_per_token")

    # --- scoring

    @property
    def _letters(self) -> bool:
        return self.plan.profile.scoring.choice_format == "letter"

    @property
    def _shares(self) -> bool:
        """Whether beginnings that prompts have in common are read once."""
        return self.plan.profile.scoring.engine != "hf"

    def _stem(self, corpus: str) -> float:
        """Tokens of a question up to its options."""
        return self.materials[corpus].stem / self._length(corpus)

    def _ending(self, corpus: str, letters: bool) -> float:
        """Tokens of a question beside its stem: options are shown where letters are scored."""
        found = self.materials[corpus]
        characters = float(len("\nAnswer:"))
        if letters:
            characters += found.options * (found.option + len("\nA. "))
        elif not self._shares:
            characters += len("Question: ")
        return characters / self._length(corpus)

    def _scored(self, corpus: str, letters: bool) -> float:
        """Tokens of all options that are read; each one's last is only predicted."""
        found = self.materials[corpus]
        return 0.0 if letters else found.options * max(0.0, found.option / self._length(corpus) - 1)

    def _first_chunk(self, corpus: str) -> float:
        """Part of the best chunk that a question has to itself."""
        size = self.materials[corpus].size
        if self.plan.profile.corpora[corpus].exam.kind != "generated":
            return 1.0
        return min(1.0, value(size.askable) / max(1, value(size.questions)))

    def answering(
        self, corpus: str, shots: Sequence[int], k: Sequence[int], retrievers: int = 1
    ) -> float:
        """Tokens read to answer an exam under every shots with every k of every retriever.

        With `hf-prefix` and `vllm` the shots are read once, each question's chunks once for all k,
        its stem once for all orders of its options, and the chunk that questions were written on
        once for all of these, as if it came first for each; what else they have in common, also
        chunks that several retrievers bring, counts for each. With `hf` every prompt is read, for
        each option that differs in what is read.
        """
        found, letters = self.materials[corpus], self._letters
        tests = value(found.size.test)
        orders = found.options if self.plan.profile.scoring.rotation else 1
        chunk = self.chunk_tokens(corpus) if max(k) else 0.0
        stem, ending = self._stem(corpus), self._ending(corpus, letters)
        scored = self._scored(corpus, letters)
        solved = stem + ending + (1.0 if letters else found.option / self._length(corpus))
        total = 0.0
        for n in shots:
            if self._shares:
                chunks = max(k) - 1 + self._first_chunk(corpus) if max(k) else 0.0
                each = chunks * chunk + len(k) * (stem + orders * (ending + scored))
                total += n * solved + tests * each * retrievers
            else:
                inputs = 1 if letters else found.options
                prompts = (n * solved + chunks * chunk + stem + ending for chunks in k)
                each = sum(orders * (inputs * prompt + scored) for prompt in prompts)
                total += tests * each * retrievers
        return total

    def probing(self, corpus: str) -> float:
        """Tokens that one model reads to probe the questions of an exam.

        Where option texts are scored, the question alone is what the exam asks anyway.
        """
        found, letters = self.materials[corpus], self._letters
        orders = found.options if letters else 1
        chunk, stem = self.chunk_tokens(corpus), self._stem(corpus)
        ending, scored = self._ending(corpus, letters), self._scored(corpus, letters)
        bare = orders * (ending + scored)
        alone = stem + self._ending(corpus, letters=False) + self._scored(corpus, letters=False)
        if self._shares:
            closed, opened = stem + bare, self._first_chunk(corpus) * chunk + stem + bare
        else:
            inputs = orders if letters else found.options
            bare = inputs * ending + orders * scored
            closed, opened = inputs * stem + bare, inputs * (chunk + stem) + bare
            alone = found.options * (alone - self._scored(corpus, letters=False))
            alone += self._scored(corpus, letters=False)
        each = closed + bare + opened + (alone if letters else 0.0)
        return value(found.size.questions) * each


def memory_needed(size: ModelSize, way: str, dtype: str) -> float | None:
    """Bytes of GPU memory that a model takes, without activations; `None` if not known.

    Full fine-tuning keeps weights, gradients and the two moments of AdamW in float32; adapters
    leave the weights in the model's dtype, or in 4 bits.

    Args:
        size: The model's.
        way: `full`, `lora` or `qlora` training, or `SCORING`.
        dtype: The model's.
    """
    if size.parameters is None:
        return None
    weights = float(DTYPE_BYTES[dtype])
    each = {"full": 16.0, "lora": weights, "qlora": 0.6, SCORING: weights}
    return size.parameters * each[way]
