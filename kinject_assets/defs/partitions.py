"""The three axes of the grid: corpus, model, recipe."""

from pathlib import Path

import dagster as dg

from kinject_assets.config import load_profile

PROFILE = load_profile()
"""The profile of this process: `$KINJECT_PROFILE`, default `lab`."""

REFERENCES = Path(__file__).parents[2] / "data" / "reference"
"""The study's published tables."""

CORPUS = dg.DynamicPartitionsDefinition(name="corpus")
MODEL = dg.StaticPartitionsDefinition(list(PROFILE.models))
RECIPE = dg.StaticPartitionsDefinition(
    [f"{model}.{recipe}" for model in PROFILE.models for recipe in PROFILE.recipes] or ["none"]
)
CORPUS_MODEL = dg.MultiPartitionsDefinition({"corpus": CORPUS, "model": MODEL})
CORPUS_RECIPE = dg.MultiPartitionsDefinition({"corpus": CORPUS, "recipe": RECIPE})


def add_corpus_keys(instance: dg.DagsterInstance) -> list[str]:
    """Gives the instance the profile's corpora as partition keys; returns those that were new."""
    name = "corpus"
    new = [key for key in PROFILE.corpora if not instance.has_dynamic_partition(name, key)]
    if new:
        instance.add_dynamic_partitions(name, new)
    return new


def partition_key(parts: tuple[str, ...]) -> str | dg.MultiPartitionKey | None:
    """Dagster's key of a cell's parts."""
    if len(parts) < 2:
        return parts[0] if parts else None
    second = "recipe" if "." in parts[1] and parts[1] not in PROFILE.models else "model"
    return dg.MultiPartitionKey({"corpus": parts[0], second: parts[1]})


def cell_parts(key: str | None) -> tuple[str, ...]:
    """A cell's parts of Dagster's key."""
    if isinstance(key, dg.MultiPartitionKey):
        dimensions = key.keys_by_dimension
        return (dimensions["corpus"], dimensions.get("model") or dimensions["recipe"])
    return (key,) if key else ()
