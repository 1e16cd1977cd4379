"""What a study takes on disk: artefacts, and what training needs for a while."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kinject_assets.config import RecipeSpec
from kinject_assets.core.estimate.assumptions import Assumed
from kinject_assets.core.estimate.compute import DTYPE_BYTES, Reckoner
from kinject_assets.core.estimate.corpora import Material, Unknown, value
from kinject_assets.core.estimate.requests import Requests
from kinject_assets.core.estimate.spent import LEDGER, LOG, stage_of
from kinject_assets.core.plan import FIGURES, METHODS, Plan
from kinject_assets.core.retrieval.rule import choose_index
from kinject_assets.core.store import Cell

FLOAT32 = 4
ADAM = 2 * FLOAT32
"""Bytes of AdamW's moments for each trained parameter."""

CHUNK_ID_BYTES = 36
RETRIEVED_BYTES = 12
"""A row of `retrieved` in Parquet: measured on the lab."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What one artefact takes on disk; `ledger` and `log` stand for what is no artefact."""

    cell: str
    stage: str
    bytes: int


@dataclass(frozen=True)
class DiskReckoner:
    """Reckons what the artefacts of a plan take on disk.

    Args:
        plan: The cells.
        materials: Corpus -> what is known of it.
        reckoner: Knows the sizes of models.
        requests: What is asked of the language model.
        assume: Gives what is not known.
    """

    plan: Plan
    materials: Mapping[str, Material]
    reckoner: Reckoner
    requests: Sequence[Requests]
    assume: Assumed

    def space(self) -> list[Space]:
        """What every cell takes; those whose size nobody can tell are left out."""
        found: list[Space] = []
        for cell in self.plan.cells:
            try:
                size = self._of(cell)
            except Unknown:
                continue
            found.append(Space(cell=str(cell), stage=stage_of(cell.asset), bytes=round(size)))
        asked = sum(row.count + row.again for row in self.requests)
        # Each answer stands there as text.
        answers = sum(row.output_tokens for row in self.requests)
        ledger = asked * self.assume("ledger_bytes")
        ledger += answers * self.assume("characters_per_token")
        log = len(self.plan.cells) * self.assume("log_bytes")
        return [
            *found,
            Space(cell=LEDGER, stage=LEDGER, bytes=round(ledger)),
            Space(cell=LOG, stage=LOG, bytes=round(log)),
        ]

    def _of(self, cell: Cell) -> float:
        rows = self.assume("artefact_bytes")
        match cell.asset:
            case "results":
                answers = sum(self._answers(other) for other in self.plan.cells)
                each = self.assume("database_answer_bytes")
                return self.assume("database_bytes") + answers * each
            case "report":
                # One copy in the lake, one beside it.
                return 2 * len(self.plan.cells) * self.assume("report_bytes")
            case "claims" | "lineage_audit":
                return 0.0
            case asset if asset in FIGURES:
                # The report holds its pictures, too, and weighs about three times as much.
                return len(self.plan.cells) * self.assume("report_bytes") / 3
            case "checkpoint":
                return self._checkpoint(cell)
            case "damage":
                probes = sum(map(len, self.plan.probes(cell.parts[0]).values()))
                return rows * (1 + probes) + self._answers(cell) * self.assume("answer_bytes")
            case "answers_base" | "answers_rag" | "answers_ft" | "answers_ft_rag":
                return rows + self._answers(cell) * self.assume("answer_bytes")
        material = self.materials[cell.parts[0]]
        size, text = material.size, self.assume("text_bytes")
        match cell.asset:
            case "articles" | "chunks":
                return rows + value(size.characters) * text
            case "questions":
                one = material.stem + material.options * material.option
                return rows + value(size.questions) * one * text
            case "paraphrases" | "validation_paraphrases":
                asked = sum(row.count for row in self.requests if row.cell == str(cell))
                chunk = value(size.characters) / max(1, value(size.chunks))
                return rows + asked * chunk * text
            case "embeddings" | "faiss_index":
                dimension, chunks = self.reckoner.encoder.dimension, value(size.chunks)
                if dimension is None:
                    raise Unknown
                vectors = chunks * dimension * FLOAT32
                if cell.asset == "faiss_index":
                    settings = self.plan.profile.retrieval
                    vectors = choose_index(
                        chunks,
                        dimension,
                        settings.index_memory_gb,
                        settings.index,
                        settings.index_parameters,
                    ).bytes
                return vectors + chunks * CHUNK_ID_BYTES
            case "retrieved":
                retrieval = self.plan.profile.retrieval
                exam = self.plan.profile.corpora[cell.parts[0]].exam.kind
                found = value(size.questions) * retrieval.depth * len(retrieval.ranking(exam))
                return rows + found * RETRIEVED_BYTES
            case _:
                return rows + value(size.questions) * self.assume("answer_bytes")

    def _answers(self, cell: Cell) -> int:
        """Answers that an artefact holds."""
        profile = self.plan.profile
        methods = {asset: method for method, asset in METHODS.items()}
        if cell.asset == "damage":
            probed = self.plan.probes(cell.parts[0])
            return sum(
                self.materials[name].size.test.value or 0
                for names in probed.values()
                for name in names
            )
        if cell.asset not in methods:
            return 0
        k = 1
        if "rag" in methods[cell.asset]:
            exam = profile.corpora[cell.parts[0]].exam.kind
            k = len(profile.scoring.k) * len(profile.retrieval.answering(exam))
        tests = self.materials[cell.parts[0]].size.test.value or 0
        return tests * k * len(profile.scoring.shots)

    def _checkpoint(self, cell: Cell) -> float:
        model, recipe = cell.parts[1].split(".", 1)
        spec = RecipeSpec.parse(recipe)
        parameters = self._trained(model, recipe)
        if spec.method == "full":
            return parameters * DTYPE_BYTES[self.plan.profile.models[model].dtype]
        return parameters * FLOAT32

    def _trained(self, model: str, recipe: str) -> int:
        """Parameters that a recipe changes."""
        full = RecipeSpec.parse(recipe).method == "full"
        rank = self.plan.profile.recipe_training(recipe).lora_rank
        found = (
            self.reckoner.sizes[model].parameters if full else self.reckoner.adapter(model, rank)
        )
        if found is None:
            raise Unknown
        return found

    def while_training(self) -> int:
        """Bytes that the most demanding checkpoint needs beside itself while it is made.

        The trainer keeps the best weights so far in float32, those that the saved state names and
        those of the best learning rate before as well, and every so often weights with AdamW's
        moments, to go on from after a crash: twice while one takes the place of the other.
        """
        most = 0
        for cell in self.plan.cells:
            if cell.asset != "checkpoint":
                continue
            model, recipe = cell.parts[1].split(".", 1)
            training = self.plan.profile.recipe_training(recipe)
            control = RecipeSpec.parse(recipe).control_of is not None
            trials = 1 if control else len(training.learning_rates)
            states = 2 * (FLOAT32 + ADAM)
            kept = (2 if training.epochs > 1 else 1) + (1 if trials > 1 else 0)
            try:
                each = states + FLOAT32 * kept
                most = max(most, self._trained(model, recipe) * each)
            except Unknown:
                continue
        return most

    def downloads(self) -> Counter[str]:
        """Models and encoder that are not on this disk -> bytes, at two for each parameter."""
        found: Counter[str] = Counter()
        sizes = {
            model.source: self.reckoner.sizes[name]
            for name, model in self.plan.profile.models.items()
        }
        retrieval = self.plan.profile.retrieval
        sizes[retrieval.encoder.model] = self.reckoner.encoder
        if self.reckoner.cross_encoder and retrieval.rerank:
            sizes[retrieval.rerank.model] = self.reckoner.cross_encoder
        for source, size in sizes.items():
            if size.source != "files" and size.parameters:
                found[source] = 2 * size.parameters
        return found
