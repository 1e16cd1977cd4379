"""The three axes of the grid: corpus, model, recipe."""

from pathlib import Path

import dagster as dg

from kinject_assets.config import load_profile
from kinject_assets.core.corpus.releases import with_releases
from kinject_assets.core.lake.opening import open_store

PROFILE = load_profile()
"""The profile of this process: `$KINJECT_PROFILE`, default `lab`."""

CORPUS = dg.DynamicPartitionsDefinition(name="corpus")
MODEL = dg.StaticPartitionsDefinition(list(PROFILE.models))
RECIPE = dg.StaticPartitionsDefinition(
    [f"{model}.{recipe}" for model in PROFILE.models for recipe in PROFILE.recipes] or ["none"]
)
CORPUS_MODEL = dg.MultiPartitionsDefinition({"corpus": CORPUS, "model": MODEL})
CORPUS_RECIPE = dg.MultiPartitionsDefinition({"corpus": CORPUS, "recipe": RECIPE})


def corpus_keys(lake: Path) -> list[str]:
    """Keys of all corpora: the profile's and the releases of its lake."""
    return list(with_releases(PROFILE, lake).corpora)


def add_corpus_keys(instance: dg.DagsterInstance) -> list[str]:
    """Gives the instance all corpora as partition keys; returns those that were new."""
    name = "corpus"
    known = set(instance.get_dynamic_partitions(name))
    new = [key for key in corpus_keys(open_store(PROFILE, refresh=False).lake) if key not in known]
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
