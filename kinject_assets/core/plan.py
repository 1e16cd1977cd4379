"""Which artefacts a profile asks for, what each is made from, and whether it has to be made again.

This is the experiment's dependency graph at the level of partitions. Dagster draws and runs the
assets; this module decides, for `kinject run`, for the assets themselves and for the audit, what a
cell's inputs and configuration are. A cell is complete when its manifest's fingerprint (code
version, configuration, versions of inputs) is the one that it would get now.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kinject_assets.config import Cells, Encoder, Profile, RecipeSpec, Retrieval
from kinject_assets.core.augmentation.registry import PLUGINS, prefix
from kinject_assets.core.corpus.releases import with_releases
from kinject_assets.core.corpus.sources import month_of
from kinject_assets.core.errors import BrokenArtefact, KinjectError
from kinject_assets.core.exams.review import decisions_version, read_decisions
from kinject_assets.core.manifest import Manifest, file_sha256, fingerprint
from kinject_assets.core.retrieval.encoders import known_prefixes
from kinject_assets.core.store import Cell, Store

SPEED_ALONE = (
    "micro_batch",
    "processes",
    "sharding",
    "gradient_checkpointing",
    "attention",
    "compile",
)
"""Fields of `training` that decide how fast and on what a checkpoint is made, not what it is."""

CODE_VERSIONS: dict[str, str] = {
    "articles": "2",
    "chunks": "2",
    "questions": "3",
    "paraphrases": "3",
    "validation_paraphrases": "3",
    "embeddings": "2",
    "faiss_index": "2",
    "retrieved": "2",
    "checkpoint": "2",
    "answers_base": "3",
    "answers_rag": "3",
    "answers_ft": "3",
    "answers_ft_rag": "3",
    "damage": "3",
    "triage": "1",
    "results": "7",
    "claims": "2",
    "figure_paraphrases": "1",
    "figure_training_loss": "1",
    "figure_k": "1",
    "figure_rag_errors": "1",
    "report": "7",
    "lineage_audit": "2",
}
"""Raised by hand when an asset's code would make something else from the same inputs."""

METHODS: dict[str, str] = {
    "base": "answers_base",
    "rag": "answers_rag",
    "ft": "answers_ft",
    "ft_rag": "answers_ft_rag",
}
"""Method -> asset that holds its answers."""

FIGURES = ("figure_paraphrases", "figure_training_loss", "figure_k", "figure_rag_errors")
"""The figures of the study."""

TABLES = ("results", "claims", *FIGURES, "report", "lineage_audit")
"""Assets of the whole study, in the order in which they are made."""

OUTPUTS = {"results": "results.duckdb", "report": "report.html"}
"""What an asset writes for people beside the lake; without it the asset is missing."""

State = Literal["complete", "missing", "stale", "broken"]


class NotAsked(KinjectError):
    """A cell was asked for that the profile's grid does not have."""


def now(profile: Profile) -> datetime:
    """The profile's "now", in UTC."""
    if profile.clock.mode == "fixed" and profile.clock.now:
        return profile.clock.now.astimezone(UTC)
    if profile.clock.mode == "lab" and profile.lab:
        from kinject_assets.lab.clock import lab_now

        return lab_now(profile)
    return datetime.now(UTC)


@dataclass(frozen=True)
class Plan:
    """The cells of a profile.

    Args:
        profile: The experiment; the releases that its lake holds are added to its corpora.
        store: Its lake.
    """

    profile: Profile
    store: Store
    _written: Profile = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_written", self.profile)
        object.__setattr__(self, "profile", with_releases(self.profile, self.store.lake))

    def renewed(self) -> "Plan":
        """The plan as it is now: a release may have come meanwhile."""
        return Plan(self._written, self.store)

    def _asking(self, corpus: str) -> list[Cells]:
        return [cells for cells in self.profile.grid if corpus in cells.corpora]

    def recipes(self, corpus: str) -> dict[str, list[str]]:
        """Recipes asked for in a corpus, for each model, plain ones before controls."""
        found: dict[str, list[str]] = {}
        for cells in self._asking(corpus):
            if {"ft", "ft_rag"} & set(cells.methods):
                for model in cells.models:
                    names = found.setdefault(model, [])
                    names += [r for r in cells.recipes if r not in names]
        for names in found.values():
            names.sort(key=lambda r: RecipeSpec.parse(r).control_of is not None)
        return found

    def paraphrases_per_chunk(self, corpus: str) -> dict[str, int]:
        """Augmentation -> the most of its texts that a recipe of the corpus reads; none with 0."""
        counts: dict[str, int] = {}
        for recipe in (name for names in self.recipes(corpus).values() for name in names):
            if augmentation := self.profile.recipe_augmentation(recipe):
                most = max(counts.get(augmentation, 0), RecipeSpec.parse(recipe).n_paraphrases)
                counts[augmentation] = most
        return {name: counts[name] for name in PLUGINS if name in counts}

    def probes(self, corpus: str) -> dict[str, tuple[str, ...]]:
        """Corpora whose exams show what training on one cost: `facts` and `reading`, none empty."""
        damage = self.profile.damage
        found = {
            kind: tuple(name for name in getattr(damage, kind) if name != corpus)
            for kind in ("facts", "reading")
        }
        return {kind: names for kind, names in found.items() if names}

    def models(self, corpus: str) -> tuple[str, ...]:
        """Models that answer the exam of a corpus."""
        asked = {model for cells in self._asking(corpus) for model in cells.models}
        return tuple(model for model in self.profile.models if model in asked)

    def probed(self, corpus: str) -> tuple[str, ...]:
        """Base models that probe the questions of a corpus; none where they are not generated."""
        exam = self.profile.corpora[corpus].exam
        if exam.kind != "generated" or not self.profile.exams.triage:
            return ()
        return self.models(corpus)

    def _methods(self, corpus: str) -> set[str]:
        return {method for cells in self._asking(corpus) for method in cells.methods}

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell that the grid asks for, inputs before what is made from them."""
        corpora = [key for key in self.profile.corpora if self._asking(key)]
        found: list[Cell] = []
        for corpus in corpora:
            methods, recipes = self._methods(corpus), self.recipes(corpus)
            assets = ["articles", "chunks", "questions"]
            if self.paraphrases_per_chunk(corpus):
                assets.append("paraphrases")
            if recipes:
                assets.append("validation_paraphrases")
            if {"rag", "ft_rag"} & methods:
                assets += ["embeddings", "faiss_index", "retrieved"]
            found += [Cell(asset, (corpus,)) for asset in assets]
        for corpus in corpora:
            for model in self.profile.models:
                for method in ("base", "rag"):
                    if any(
                        model in cells.models and method in cells.methods
                        for cells in self._asking(corpus)
                    ):
                        found.append(Cell(METHODS[method], (corpus, model)))
            if self.probed(corpus):
                found.append(Cell("triage", (corpus,)))
        for corpus in corpora:
            for model, recipes in self.recipes(corpus).items():
                for recipe in recipes:
                    found.append(Cell("checkpoint", (corpus, f"{model}.{recipe}")))
                    for method in ("ft", "ft_rag"):
                        if any(
                            model in cells.models
                            and recipe in cells.recipes
                            and method in cells.methods
                            for cells in self._asking(corpus)
                        ):
                            found.append(Cell(METHODS[method], (corpus, f"{model}.{recipe}")))
                    if self.probes(corpus):
                        found.append(Cell("damage", (corpus, f"{model}.{recipe}")))
        return (*found, *(Cell(asset) for asset in TABLES))

    def require(self, cell: Cell) -> None:
        """Refuses a cell that the grid does not have.

        Raises:
            NotAsked: The message holds the lines of the profile that would ask for it.
        """
        if cell in self.cells:
            return
        where = self.profile.path or "the profile"
        corpus = cell.parts[0] if cell.parts else ""
        lines = [f"  - corpora: [{corpus}]"]
        if cell.asset == "damage" and not self.probes(corpus):
            raise NotAsked(
                f"{where} names no exam to measure damage with. Add e.g.\n"
                "damage: {facts: [OTHER_CORPUS], reading: [OTHER_CORPUS]}"
            )
        if cell.asset == "triage" and not self.probed(corpus):
            raise NotAsked(
                f"{where}: only generated questions of a corpus in `grid` are probed, with "
                f"exams.triage on; the questions of {corpus} are not."
            )
        if cell.asset in {"checkpoint", "answers_ft", "answers_ft_rag", "damage"}:
            model, recipe = cell.parts[1].split(".", 1)
            lines += [f"    models: [{model}]", f"    recipes: [{recipe}]"]
        elif len(cell.parts) == 2:
            lines += [f"    models: [{cell.parts[1]}]", "    methods: [base, rag]"]
        elif cell.asset == "paraphrases":
            lines += ["    models: [MODEL]", "    recipes: [full.p10]"]
        else:
            lines += ["    models: [MODEL]"]
        raise NotAsked(
            f"{where} does not ask for {cell}. To ask for it, add to `grid:`\n" + "\n".join(lines)
        )

    def inputs(self, cell: Cell) -> list[tuple[Cell, str]]:
        """The cells that one is made from, each with the part of it that is read.

        The part is empty for the whole, or the first texts of each chunk by one augmentation, as
        `augmentation.registry.prefix` names them: `p04`, `question_answer.p04`.
        """
        if not cell.parts:
            if cell.asset == "results":
                return [(c, "") for c in self.cells if c.parts]
            return [(Cell("results"), "")]
        corpus = cell.parts[0]

        def here(*assets: str) -> list[tuple[Cell, str]]:
            return [(Cell(asset, (corpus,)), "") for asset in assets]

        match cell.asset:
            case "articles":
                return []
            case "chunks":
                return here("articles")
            case "questions":
                generated = self.profile.corpora[corpus].exam.kind == "generated"
                return here("chunks") if generated else []
            case "paraphrases" | "validation_paraphrases" | "embeddings":
                return here("chunks")
            case "faiss_index":
                return here("embeddings")
            case "retrieved":
                return here("questions", "faiss_index", "chunks")
            case "answers_base":
                return here("questions")
            case "triage":
                return here("questions", "chunks")
            case "answers_rag":
                return here("questions", "retrieved", "chunks")
            case "answers_ft":
                return [*here("questions"), (Cell("checkpoint", cell.parts), "")]
            case "answers_ft_rag":
                return [
                    *here("questions", "retrieved", "chunks"),
                    (Cell("checkpoint", cell.parts), ""),
                ]
            case "damage":
                model = self.model_of(cell)
                found = [(Cell("checkpoint", cell.parts), "")]
                for kind, names in self.probes(corpus).items():
                    for name in names:
                        assets = ("questions",)
                        if kind == "reading":
                            assets = ("questions", "retrieved", "chunks")
                        found += [(Cell(asset, (name,)), "") for asset in assets]
                        before = METHODS["base" if kind == "facts" else "rag"]
                        found.append((Cell(before, (name, model)), ""))
                return list(dict.fromkeys(found))
            case "checkpoint":
                model, recipe = cell.parts[1].split(".", 1)
                spec = RecipeSpec.parse(recipe)
                found = here("chunks", "validation_paraphrases")
                if spec.control_of:
                    found.append((Cell("checkpoint", (corpus, f"{model}.{spec.control_of}")), ""))
                elif augmentation := self.profile.recipe_augmentation(recipe):
                    part = prefix(augmentation, spec.n_paraphrases)
                    found.append((Cell("paraphrases", (corpus,)), part))
                return found
        raise KinjectError(f"no asset is called {cell.asset}")

    def config(self, cell: Cell) -> dict[str, Any]:
        """The part of the profile that decides what a cell will be."""
        profile = self.profile

        def of(part: Any, *leave_out: str) -> Any:
            return part.model_dump(mode="json", exclude=set(leave_out))

        def studied(model: str) -> Any:
            return of(profile.models[model], "knowledge_cutoff", "parameters")

        llm = of(
            profile.llm,
            "batch",
            "batch_poll",
            "batch_discount",
            "batch_requests",
            "concurrency",
            "timeout",
            "attempts",
            "budget_usd",
            "prices",
            "base_url",
        )
        corpus = profile.corpora[cell.parts[0]] if cell.parts else None
        match cell.asset:
            case "articles" if corpus:
                found = {"source": of(corpus.source), "cleaning": of(profile.cleaning)}
                if corpus.source.kind == "events" and corpus.source.until != "now":
                    found["source"] = of(corpus.source, "revisit_months")
                if corpus.source.kind != "files":
                    wiki = profile.wikis[corpus.source.wiki]
                    found["api_url"] = wiki.api_url
                    if wiki.api_url == "lab" and profile.lab:
                        found["lab"] = of(profile.lab)
                if corpus.source.kind == "events" and corpus.source.until == "now":
                    found["month"] = month_of(now(profile))
                if corpus.source.kind == "wiki" and corpus.source.frozen:
                    # What the list says decides, wherever it lies.
                    found["source"] = of(corpus.source, "frozen")
                    path = profile.folder / corpus.source.frozen
                    found["frozen_sha256"] = file_sha256(path) if path.is_file() else ""
                return found
            case "chunks":
                return of(profile.chunking)
            case "questions" if corpus:
                found = {"exam": of(corpus.exam)}
                if corpus.exam.kind == "generated":
                    found |= {"exams": of(profile.exams, "triage"), "llm": llm}
                reviewed = decisions_version(read_decisions(self.store.lake, cell.parts[0]))
                return found | ({"reviews": reviewed} if reviewed else {})
            case "paraphrases":
                return {
                    "per_chunk": self.paraphrases_per_chunk(cell.parts[0]),
                    "augmentation": of(
                        profile.augmentation, "validation_chunks", "validation_per_chunk"
                    ),
                    "llm": llm,
                }
            case "validation_paraphrases":
                return {
                    "chunks": profile.augmentation.validation_chunks,
                    "per_chunk": profile.augmentation.validation_per_chunk,
                    "augmentation": of(
                        profile.augmentation, "validation_chunks", "validation_per_chunk"
                    ),
                    "llm": llm,
                }
            case "embeddings":
                return _of_vectors(profile.retrieval.encoder)
            case "faiss_index":
                return _of_index(profile.retrieval)
            case "retrieved":
                return of(profile.retrieval)
            case "checkpoint":
                model, recipe = cell.parts[1].split(".", 1)
                training = profile.recipe_training(recipe)
                # A text that is not mixed in decides nothing.
                unused = () if training.replay_share else ("replay_text",)
                found = {
                    "model": studied(model),
                    "recipe": of(RecipeSpec.parse(recipe)),
                    "training": of(training, *SPEED_ALONE, *unused),
                }
                read = {"general": training.general_text}
                if training.replay_share:
                    read["replay"] = training.replay_text
                for name, text in read.items():
                    if isinstance(text, Path):
                        path = profile.folder / text
                        found[f"{name}_sha256"] = file_sha256(path) if path.is_file() else ""
                return found
            case "answers_base" | "answers_ft":
                return {
                    "model": studied(self.model_of(cell)),
                    "scoring": of(profile.scoring, "k", "device", "batch_size", "folds"),
                }
            case "answers_rag" | "answers_ft_rag" if corpus:
                return {
                    "model": studied(self.model_of(cell)),
                    "scoring": of(profile.scoring, "device", "batch_size", "folds"),
                    "query": profile.retrieval.query,
                    "retrievers": list(profile.retrieval.answering(corpus.exam.kind)),
                }
            case "triage":
                return {
                    "models": {model: studied(model) for model in self.probed(cell.parts[0])},
                    "choice_format": profile.scoring.choice_format,
                    "chat_template": profile.scoring.chat_template,
                    "add_bos": profile.scoring.add_bos,
                    "engine": profile.scoring.engine,
                }
            case "damage":
                return {
                    "damage": of(profile.damage),
                    "model": studied(self.model_of(cell)),
                    "scoring": of(profile.scoring, "shots", "k", "device", "batch_size", "folds"),
                    "query": profile.retrieval.query,
                    "retriever": profile.retrieval.retrievers[0],
                }
            case _:
                return {
                    "profile": profile.name,
                    "folds": profile.scoring.folds,
                    "retrievers": list(profile.retrieval.retrievers),
                    **self._shown(cell.asset),
                }

    def _shown(self, asset: str) -> dict[str, Any]:
        """What tables, figures and report say of the profile itself.

        As a person wrote it: a release that a refresh adds, or a window that moves on with time, is
        no change of settings.
        """
        profile = self._written
        scoring = profile.scoring.model_dump(
            mode="json", include={"choice_format", "rotation", "chat_template"}
        )
        chosen = {"scoring": scoring, "query": profile.retrieval.query}
        if asset == "results":
            return {
                **chosen,
                "corpora": {
                    name: {
                        "title": corpus.title,
                        "table": corpus.table,
                        "exam": corpus.exam.kind,
                        "new_facts_since": str(corpus.new_facts_since or ""),
                    }
                    for name, corpus in profile.corpora.items()
                },
                "models": {
                    name: model.model_dump(
                        mode="json", include={"source", "revision", "knowledge_cutoff"}
                    )
                    for name, model in profile.models.items()
                },
                "prices": profile.llm.model_dump(mode="json")["prices"],
            }
        if asset != "report" and asset not in FIGURES:
            return {}
        found = {
            **chosen,
            "grid": [cells.model_dump(mode="json") for cells in profile.grid],
            "recipes": {
                name: {
                    "augmentation": profile.recipe_augmentation(name),
                    "training": profile.recipe_training(name).model_dump(
                        mode="json", exclude={*SPEED_ALONE}
                    ),
                }
                for name in profile.recipes
            },
        }
        if asset == "report":
            found["usd_per_hour"] = profile.hardware.usd_per_hour
        return found

    @staticmethod
    def model_of(cell: Cell) -> str:
        """Model of a cell of answers or checkpoints."""
        return cell.parts[1].split(".", 1)[0]

    def input_versions(self, cell: Cell) -> tuple[dict[str, str], list[Cell]]:
        """Versions of a cell's inputs as they are now, and the inputs that are not there."""
        versions: dict[str, str] = {}
        missing: list[Cell] = []
        for upstream, part in self.inputs(cell):
            try:
                version = self.store.input_version(f"{upstream}#{part}" if part else str(upstream))
            except BrokenArtefact:
                version = None
            if version is None:
                missing.append(upstream)
            else:
                versions[f"{upstream}#{part}" if part else str(upstream)] = version
        return versions, missing

    def fingerprint(self, cell: Cell) -> str:
        """What the manifest of a cell would say if it were made now."""
        versions, _ = self.input_versions(cell)
        return fingerprint(CODE_VERSIONS[cell.asset], self.config(cell), versions)

    def same_config(self, cell: Cell, manifest: Manifest, *but: str) -> bool:
        """Whether an artefact was made with the configuration that it would be made with now.

        Args:
            cell: Where it stands.
            manifest: The artefact's.
            *but: Parts of the configuration that may differ.
        """
        then, now_ = manifest.config, json.loads(json.dumps(self.config(cell)))
        return all(then.get(part) == now_.get(part) for part in {*then, *now_} - {*but})

    def state(self, cell: Cell) -> State:
        """Whether a cell is there and whole, and what making it again would give."""
        try:
            manifest = self.store.manifest(cell)
        except BrokenArtefact:
            return "broken"
        output = OUTPUTS.get(cell.asset)
        if manifest is None or (output and not (self.store.root / output).exists()):
            return "missing"
        if manifest.fingerprint != self.fingerprint(cell):
            return "stale"
        return "broken" if self.store.problem(cell, manifest) else "complete"

    def problem(self, cell: Cell) -> str:
        """What is wrong with a cell whose state is `broken`, and the mend."""
        try:
            manifest = self.store.manifest(cell)
        except BrokenArtefact as error:
            return str(error)
        return self.store.problem(cell, manifest) if manifest else ""


def _of_vectors(encoder: Encoder) -> dict[str, Any]:
    """What decides the vectors of chunks. Fields at their defaults are not named."""
    known = known_prefixes(encoder.model)
    usual = "" if known else None
    prefix = encoder.passage_prefix
    if prefix is None and known:
        prefix = known.passage
    found: dict[str, Any] = {"model": encoder.model, "revision": encoder.revision}
    found |= {"passage_prefix": prefix} if prefix != usual else {}
    found |= {"dtype": encoder.dtype} if encoder.dtype != "auto" else {}
    return found | ({"max_tokens": encoder.max_tokens} if encoder.max_tokens else {})


def _of_index(retrieval: Retrieval) -> dict[str, Any]:
    """What decides an index. Fields that decide nothing are not named."""
    found: dict[str, Any] = {"index": retrieval.index}
    if retrieval.index in {"auto", "ivfpq"}:
        found["memory_gb"] = retrieval.index_memory_gb
    given = retrieval.index_parameters.model_dump(exclude_none=True)
    return found | ({"parameters": given} if given else {})
