"""Checkpoints: the models after they were trained on the corpus."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import dagster as dg

from kinject_assets.config import RecipeSpec
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.plots import loss_by_rate, loss_curves, smoothed
from kinject_assets.core.schema import Checkpoint, Damage, Trial
from kinject_assets.core.store import Cell, read_rows
from kinject_assets.core.training.trainer import IDENTITY, LOSSES, SPEED
from kinject_assets.defs import checks
from kinject_assets.defs.augmentation import paraphrases, validation_paraphrases
from kinject_assets.defs.compute import run_training
from kinject_assets.defs.corpus import chunks
from kinject_assets.defs.io import Step, image, making, one_maker, preview
from kinject_assets.defs.launch import TrainingSettings
from kinject_assets.defs.partitions import CORPUS_RECIPE
from kinject_assets.defs.policy import OWNERS, TRAINING_GROUP
from kinject_assets.defs.resources import Study

TRIAL_ROWS = 60
"""Epochs of all trials that the metadata shows."""


@dg.asset(
    deps=[chunks, paraphrases, validation_paraphrases],
    partitions_def=CORPUS_RECIPE,
    group_name=TRAINING_GROUP,
    kinds={"pytorch", "huggingface"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["checkpoint"],
    check_specs=checks.specs("checkpoint"),
    pool="gpu",
)
@one_maker
def checkpoint(
    context: dg.AssetExecutionContext, config: TrainingSettings, study: Study
) -> dg.MaterializeResult:
    """A model after continued pre-training on the corpus by one recipe.

    `MODEL.full.p00` trains on the text alone (the study's FT-reg), `.p10` on the text and ten
    paraphrases of each chunk (FT-par), `.r10` is the control of p10: the text alone, repeated to
    the same optimiser steps and packed tokens. `lora` in place of `full` trains an adapter. A
    variant (`.p10.qa`) may train on the texts of another augmentation than paraphrases.
    Learning rate and epoch are chosen on validation paraphrases; a control takes its recipe's.
    """
    with making(context, study) as step:
        run_training(step, _request(step, config))
        row = read_rows(step.draft / "checkpoint.parquet", Checkpoint)[0]
        trials = read_rows(step.draft / "trials.parquet", Trial)
        damage = read_rows(step.draft / "damage.parquet", Damage)
        identity, speed, losses = (
            json.loads((step.draft / name).read_text(encoding="utf-8"))
            for name in (IDENTITY, SPEED, LOSSES)
        )
        first = min((t for t in trials if t.epoch == 1), key=lambda t: t.trial, default=None)
        return step.finish(
            row.checkpoint_id,
            counts={
                "checkpoint_id": row.checkpoint_id,
                "learning_rate": row.learning_rate,
                "epochs": row.epochs,
                "steps": row.steps,
                "packed_tokens": row.packed_tokens,
                "replay_tokens": row.replay_tokens,
                "training_seconds": row.seconds,
                **identity,
            },
            metadata={
                **(
                    {}
                    if row.validation_loss is None
                    else {"validation_loss": round(row.validation_loss, 4)}
                ),
                "trials": preview(trials, TRIAL_ROWS, leave_out=("checkpoint_id",)),
                "loss": image(loss_curves(_curves(trials)), "loss by epoch"),
                "loss_by_step": image(
                    loss_curves(_by_step(losses, trials), x_label="optimiser step"),
                    "training loss by optimiser step",
                ),
                "loss_by_rate": image(loss_by_rate(_by_rate(trials)), "validation loss by rate"),
                **speed,
                **{
                    f"damage_{d.probe}": f"{d.before:.3f} before, {d.after:.3f} after"
                    for d in damage
                },
            },
            checks=checks.checkpoint(row, first.validation_loss if first else None),
            libraries=("torch", "transformers", "peft", "accelerate"),
            seeds={"training": row.seed},
        )


def _curves(trials: Sequence[Trial]) -> dict[str, list[tuple[float, float]]]:
    """Loss by epoch, on training pieces and on validation paraphrases, of each learning rate."""
    curves: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in trials:
        curves[f"{row.learning_rate:g} training"].append((row.epoch, row.training_loss))
        if row.validation_loss is not None:
            curves[f"{row.learning_rate:g} validation"].append((row.epoch, row.validation_loss))
    return dict(curves)


def _by_step(
    losses: Sequence[dict[str, float]], trials: Sequence[Trial]
) -> dict[str, list[tuple[float, float]]]:
    """Training loss by optimiser step, of each trial."""
    rates = {row.trial: row.learning_rate for row in trials}
    steps: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for entry in losses:
        steps[int(entry["trial"])].append((entry["step"], entry["loss"]))
    return {f"{rates[trial]:g}": smoothed(points) for trial, points in steps.items()}


def _by_rate(trials: Sequence[Trial]) -> list[tuple[float, list[tuple[int, float]]]]:
    """Validation loss by epoch, of each learning rate."""
    found: defaultdict[float, list[tuple[int, float]]] = defaultdict(list)
    for row in trials:
        if row.validation_loss is not None:
            found[row.learning_rate].append((row.epoch, row.validation_loss))
    return list(found.items())


def _request(step: Step, config: TrainingSettings) -> dict[str, Any]:
    profile, store = step.study.profile, step.study.store
    corpus, key = step.cell.parts
    model, recipe = key.split(".", 1)
    spec = RecipeSpec.parse(recipe)
    settings = config.over(profile.recipe_training(recipe))
    training = settings.model_dump(mode="json", exclude={"general_text", "replay_text"})
    request: dict[str, Any] = {
        "checkpoint_id": step.fingerprint,
        "corpus": corpus,
        "model": model,
        "recipe": recipe,
        "seed": spec.seed,
        "method": spec.method,
        "base": step.study.located(profile.models[model].source),
        "revision": profile.models[model].revision,
        "dtype": profile.models[model].dtype,
        "chunks": store.reference(step.upstream("chunks"), "chunks.parquet"),
        "validation": store.reference(
            step.upstream("validation_paraphrases"), "paraphrases.parquet"
        ),
        "training": training,
        "general_text": _text_file(step, "general_text"),
        "replay_text": _text_file(step, "replay_text") if settings.replay_share else "",
        "work": str(step.work),
        "out": str(step.draft),
        "device": profile.scoring.device,
        "peak_tflops": profile.hardware.tflops,
    }
    if spec.control_of:
        twin = store.rows(
            Cell("checkpoint", (corpus, f"{model}.{spec.control_of}")), "checkpoint", Checkpoint
        )[0]
        training["learning_rates"] = [twin.learning_rate]
        request["control_tokens"] = twin.packed_tokens // twin.epochs
        request["control_replay"] = twin.replay_tokens // twin.epochs
        request["control_epochs"] = twin.epochs
    elif spec.n_paraphrases:
        request["n_paraphrases"] = spec.n_paraphrases
        request["augmentation"] = profile.recipe_augmentation(recipe)
        request["paraphrases"] = store.reference(
            step.upstream("paraphrases"), "paraphrases.parquet"
        )
    return request


def _text_file(step: Step, name: Literal["general_text", "replay_text"]) -> str:
    """Path of a text that `training` names; empty for none. The lab's is written first."""
    training = step.study.profile.training
    setting = training.general_text if name == "general_text" else training.replay_text
    if setting is None:
        return ""
    if setting != "lab":
        return str(step.study.profile.folder / setting)
    from kinject_assets.lab import general

    path = step.work / f"{name}.txt"
    text = general.general_text() if name == "general_text" else general.replay_text()
    path.write_text(text, encoding="utf-8")
    return str(path)
