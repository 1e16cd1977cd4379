"""A checkpoint as a folder that transformers or peft load, with a model card."""

import json
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject_assets import __version__
from kinject_assets.config import Model, Profile, RecipeSpec
from kinject_assets.core.export.cards import (
    as_read,
    attribution,
    code,
    front_matter,
    plain,
    sources,
    table,
)
from kinject_assets.core.export.folders import ExportError, new_folder
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.plan import Plan
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import Result, fetch
from kinject_assets.core.schema import Article, Checkpoint, Chunk
from kinject_assets.core.store import Cell, Store

SCORES = """
    SELECT s.corpus, s.method, s.shots, s.k, s.retriever, s.query, s.choice_format, s.rotation,
        s.chat_template, s.n, s.accuracy, s.ci_low, s.ci_high,
        b.accuracy AS base, b.ci_low AS base_low, b.ci_high AS base_high
    FROM scores s LEFT JOIN scores b ON b.corpus = s.corpus AND b.model = s.model
        AND b.shots = s.shots AND b.k_rule = s.k_rule AND b.stratum = s.stratum
        AND b.method = CASE s.method WHEN 'ft' THEN 'base' ELSE 'rag' END
        AND (b.retriever, b.query, b.choice_format, b.rotation, b.chat_template, b.engine, b.bos)
            = (s.retriever, s.query, s.choice_format, s.rotation, s.chat_template, s.engine, s.bos)
    WHERE s.corpus = ? AND s.model = ? AND s.recipe = ? AND s.k_rule = 'cross_fitted'
        AND s.stratum = 'all'
    ORDER BY s.method, s.shots, s.retriever, s.query, s.choice_format, s.rotation, s.chat_template
"""

DAMAGE = """
    SELECT probe, before, after, n, lost, won FROM damage WHERE checkpoint_id = ? ORDER BY probe
"""


@dataclass(frozen=True)
class _Trained:
    """A checkpoint with all that its card tells."""

    plan: Plan
    cell: Cell
    model: Model
    row: Checkpoint
    manifest: Manifest
    articles: list[Article]
    chunks: list[Chunk]
    results: Path | None

    @property
    def spec(self) -> RecipeSpec:
        return RecipeSpec.parse(self.row.recipe)

    @property
    def hub_id(self) -> str | None:
        """Name of the base model on the hub; none for a folder."""
        source, folder = self.model.source, self.plan.profile.folder / self.model.source
        return None if source.startswith("lab:") or folder.is_dir() else source

    def _rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        found: Result | None = fetch(self.results, sql, parameters) if self.results else None
        return found.dicts() if found else []

    @property
    def read(self) -> list[Article]:
        """The articles at the revisions that the corpus's chunks were cut from."""
        return as_read(self.articles, self.chunks)

    @property
    def behind(self) -> str:
        """Says that the corpus has moved on since training; empty where it has not."""
        if not self._outdated:
            return ""
        return (
            "**Texts of the corpus have changed since it was trained.** The articles and revisions "
            "named here are those of the corpus now; it was trained on an older text, of which "
            "some are others or in other revisions."
        )

    @property
    def _outdated(self) -> bool:
        """Whether the corpus has other chunks now than those that it was trained on."""
        store = self.plan.store
        inputs = self.manifest.inputs.items()
        return any(store.input_version(k) != v for k, v in inputs if k.startswith("chunks/"))

    def card(self) -> str:
        """The model card."""
        adapter = self.spec.method != "full"
        lab = self.plan.profile.lab is not None
        head = front_matter(
            {
                "library_name": "peft" if adapter else "transformers",
                "pipeline_tag": "text-generation",
                "base_model": self.hub_id,
                "base_model_relation": ("adapter" if adapter else "finetune") * bool(self.hub_id),
                "tags": ["kinject", *(["synthetic"] if lab else [])],
            }
        )
        title = f"# {self.row.model}, {self.row.recipe}, on {self.row.corpus}"
        return "\n\n".join((f"{head}\n{title}", *self._body()))

    def _body(self) -> Iterator[str]:
        yield (
            f"A checkpoint of the kinject profile `{self.plan.profile.name}`: the base model "
            f"{code(self.model.source)} (revision {code(self.model.revision or 'not pinned')}), "
            f"trained further on the text of the corpus `{self.row.corpus}` by the recipe "
            f"`{self.row.recipe}`: {self._recipe()}"
        )
        if self.plan.profile.lab:
            yield (
                "**A toy**: a tiny model, trained on invented text. It shows how kinject works and "
                "knows nothing of the world."
            )
        yield "## Loading"
        yield self._loading()
        yield "## Training"
        yield table(("what", "value"), self._settings())
        yield "## What it scores"
        yield self._scores()
        yield "## What training cost elsewhere"
        yield self._damage()
        yield "## Limits"
        yield (
            "It was trained to answer one study's question and checked by that study alone. What "
            "it says may be wrong; the questions were multiple choice, so nothing was measured of "
            "what it writes freely."
        )
        yield "## Data and licences"
        if self.behind:
            yield self.behind
        yield (
            f"{sources(self.read)}\n\n[ATTRIBUTION.md](ATTRIBUTION.md) names every article "
            "with a link to its revision, and its licence. The licence of the base model applies, "
            "too; it is not stated here."
        )
        yield "## Ids"
        ids = [
            ("checkpoint_id", self.row.checkpoint_id),
            ("artefact", str(self.cell)),
            ("run_id", self.manifest.run_id or "none"),
            ("finished", self.manifest.finished_at),
            ("kinject", f"{self.manifest.libraries.get('kinject', '?')}, card by {__version__}"),
            ("base weights", str(self.manifest.counts.get("base_weights", "not recorded"))),
            *((f"input {code(key)}", version) for key, version in self.manifest.inputs.items()),
            *(("library", f"{n} {v}") for n, v in self.manifest.libraries.items()),
        ]
        yield table(("what", "id"), [(name, code(value)) for name, value in ids])

    def _recipe(self) -> str:
        spec = self.spec
        if spec.control_of:
            return (
                f"the text alone, repeated to as many steps and tokens as `{spec.control_of}` has "
                "(its control)."
            )
        if not spec.n_paraphrases:
            return "the text alone."
        how = self.plan.profile.recipe_augmentation(spec.name)
        texts = f"{spec.n_paraphrases} further text{'s' * (spec.n_paraphrases > 1)}"
        return f"the text and {texts} on each chunk ({how})."

    def _loading(self) -> str:
        if self.spec.method == "full":
            body = (
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                "model = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
                "tokenizer = AutoTokenizer.from_pretrained(FOLDER)"
            )
        else:
            body = (
                "from peft import PeftModel\n"
                "from transformers import AutoModelForCausalLM\n\n"
                "base = AutoModelForCausalLM.from_pretrained(BASE_MODEL)\n"
                "model = PeftModel.from_pretrained(base, FOLDER)"
            )
        return f"```python\n{body}\n```"

    def _settings(self) -> list[tuple[str, str]]:
        row, training = self.row, self.manifest.config.get("training", {})
        loss = "not measured" if row.validation_loss is None else f"{row.validation_loss:.4f}"
        return [
            ("method", row.method),
            ("objective", f"next token, on pieces of {training.get('piece_tokens', '?')} tokens"),
            ("learning rate", f"{row.learning_rate:g}"),
            ("epochs, of the kept weights", str(row.epochs)),
            ("optimiser steps", str(row.steps)),
            ("pieces a step", str(training.get("batch_pieces", "?"))),
            ("tokens trained on", f"{row.packed_tokens:,}"),
            ("of these general text", f"{row.replay_tokens:,}"),
            ("weight decay, warm-up share",
             f"{training.get('weight_decay', '?')}, {training.get('warmup_share', '?')}"),
            *(
                [("rank, alpha", f"{training.get('lora_rank')}, {training.get('lora_alpha')}")]
                if row.method != "full"
                else []
            ),
            ("seed", str(row.seed)),
            ("numbers", self.model.dtype),
            ("validation loss, nats a token", loss),
            ("seconds", f"{row.seconds:.0f}"),
        ]  # fmt: skip

    def _scores(self) -> str:
        rows = self._rows(SCORES, self.row.corpus, self.row.model, self.row.recipe)
        if not rows:
            return "Not scored yet, or the results were not built."
        several = {
            name
            for name in ("retriever", "query", "choice_format", "rotation", "chat_template")
            if len({row[name] for row in rows if name not in _OF_RETRIEVAL or row["k"]}) > 1
        }
        return (
            table(
                ("exam", "how", "shots", "questions", "this model", "base model likewise"),
                [
                    (
                        r["corpus"],
                        _how(r, several),
                        str(r["shots"]),
                        str(r["n"]),
                        _interval(r["accuracy"], r["ci_low"], r["ci_high"]),
                        _interval(r["base"], r["base_low"], r["base_high"]),
                    )
                    for r in rows
                ],
            )
            + "\n\nAccuracy with Wilson's 95 % interval on multiple-choice questions. The number "
            "of retrieved chunks is cross-fitted: never chosen on the questions that are scored."
        )

    def _damage(self) -> str:
        rows = self._rows(DAMAGE, self.row.checkpoint_id)
        if not rows:
            return "Not measured."
        return table(
            ("probe", "before", "after", "questions", "lost", "won"),
            [
                (
                    code(r["probe"]),
                    f"{r['before']:.3f}",
                    f"{r['after']:.3f}",
                    *("" if r[name] is None else str(r[name]) for name in ("n", "lost", "won")),
                )
                for r in rows
            ],
        )


_OF_RETRIEVAL = {"retriever", "query"}


def _how(row: Mapping[str, Any], several: Container[str]) -> str:
    """How an exam was answered; of settings those alone that other rows have otherwise."""
    parts = ["with retrieval" if row["method"] == "ft_rag" else "alone"]
    if row["method"] == "ft_rag":
        words = {"retriever": f"by {row['retriever']}", "query": f"query: {row['query']}"}
        parts += [said for name, said in words.items() if name in several]
    if "choice_format" in several:
        parts.append(f"{row['choice_format']} choices")
    flags = {"rotation": "options rotated", "chat_template": "chat template"}
    parts += [said for name, said in flags.items() if name in several and row[name]]
    return ", ".join(parts)


def _interval(value: float | None, low: float, high: float) -> str:
    return "" if value is None else f"{value:.3f} [{low:.2f}, {high:.2f}]"


def _without_path(config: Path) -> None:
    """Takes this machine's path of the base model out of an adapter's settings."""
    if config.exists():
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = None
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _trained(plan: Plan, corpus: str, model: str, recipe: str) -> _Trained:
    profile, store = plan.profile, plan.store
    cells = [cell for cell in plan.cells if cell.asset == "checkpoint"]
    cell = Cell("checkpoint", (corpus, f"{model}.{recipe}"))
    if cell not in cells:
        raise ExportError(
            f"{profile.path}: no checkpoint {cell.parts[1]} on {corpus} is asked for; there are: "
            f"{_listed(cells)}"
        )
    row = store.rows(cell, "checkpoint", Checkpoint)[0]
    manifest = store.manifest(cell)
    assert manifest is not None, "its rows were read just now"
    database = store.root / DATABASE
    return _Trained(
        plan,
        cell,
        profile.models[model],
        row,
        manifest,
        store.rows(Cell("articles", (corpus,)), "articles", Article),
        store.rows(Cell("chunks", (corpus,)), "chunks", Chunk),
        database if database.exists() else None,
    )


def _listed(cells: Sequence[Cell]) -> str:
    return (
        "; ".join(
            f"--corpus {cell.parts[0]} --model {model} --recipe {recipe}"
            for cell in cells
            for model, _, recipe in [cell.parts[1].partition(".")]
        )
        or "none, for the grid has no recipe"
    )


def export_checkpoint(
    profile: Profile, store: Store, corpus: str, model: str, recipe: str, out: Path
) -> None:
    """Copies a checkpoint's weights, settings and tokenizer, and writes its card.

    Args:
        profile: The experiment.
        store: Its lake; scores and damage are read from the results beside it, if they are there.
        corpus: What it was trained on.
        model: Name of the base model in the profile.
        recipe: How it was trained.
        out: New folder.

    Raises:
        ExportError: If the profile asks for no such checkpoint, or there is something at `out`.
        MissingArtefact: If it has not been trained.
    """
    found = _trained(Plan(profile, store), corpus, model, recipe)
    weights = store.path(found.cell, "model")
    with new_folder(out) as folder:
        shutil.copytree(weights, folder, dirs_exist_ok=True)
        if found.hub_id is None:
            _without_path(folder / "adapter_config.json")
        (folder / "README.md").write_text(found.card() + "\n", encoding="utf-8")
        title = f"# Texts that {plain(model)} was trained on"
        (folder / "ATTRIBUTION.md").write_text(
            "\n\n".join(filter(None, (title, found.behind, attribution(found.read)))) + "\n",
            encoding="utf-8",
        )
