"""The code location: its assets, what each says of itself, and how light it is to load."""

import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.definitions import defs
from kinject_assets.defs.checks import CHECKS

ASSETS = [
    "answers_base",
    "answers_ft",
    "answers_ft_rag",
    "answers_rag",
    "articles",
    "checkpoint",
    "chunks",
    "claims",
    "damage",
    "embeddings",
    "faiss_index",
    "figure_k",
    "figure_paraphrases",
    "figure_rag_errors",
    "figure_training_loss",
    "lineage_audit",
    "paraphrases",
    "questions",
    "report",
    "results",
    "retrieved",
    "triage",
    "validation_paraphrases",
]

HEAVY = (
    "torch", "transformers", "lm_eval", "faiss", "sentence_transformers", "datasets",
    "pyarrow", "numpy", "pandas", "matplotlib", "scipy", "duckdb", "openai",
)  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> AssetGraph:
    return defs.resolve_asset_graph()


def test_asset_keys(graph: AssetGraph) -> None:
    assert sorted(k.to_user_string() for k in graph.materializable_asset_keys) == ASSETS
    assert sorted(CODE_VERSIONS) == ASSETS


def test_every_asset_says_what_it_is(graph: AssetGraph) -> None:
    for key in graph.materializable_asset_keys:
        spec = defs.resolve_assets_def(key).specs_by_key[key]
        assert spec.owners, key
        assert spec.kinds, key
        assert spec.code_version, key
        assert spec.description and len(spec.description) > 40, key
        assert spec.group_name and spec.group_name != "default", key
        assert "dagster/code_references" in spec.metadata, key


def test_every_asset_is_checked(graph: AssetGraph) -> None:
    assert sorted(CHECKS) == ASSETS
    named = {(c.asset_key.to_user_string(), c.name) for c in graph.asset_check_keys}
    assert named == {(asset, name) for asset, checks in CHECKS.items() for name in checks}


def test_definitions_are_valid() -> None:
    dg.Definitions.validate_loadable(defs)


def test_every_partitioned_edge_resolves(graph: AssetGraph) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["rivers"])
        keys = {
            1: "rivers",
            "model": dg.MultiPartitionKey({"corpus": "rivers", "model": "lab-llama"}),
            "recipe": dg.MultiPartitionKey({"corpus": "rivers", "recipe": "lab-llama.full.p00"}),
        }
        for child in graph.materializable_asset_keys:
            partitions = graph.get(child).partitions_def
            if partitions is None:
                continue
            if isinstance(partitions, dg.MultiPartitionsDefinition):
                names = partitions.partition_dimension_names
                key = keys["model" if "model" in names else "recipe"]
            else:
                key = keys[1]
            for parent in graph.get(child).parent_keys:
                mapping = graph.get_partition_mapping(child, parent)
                upstream = graph.get(parent).partitions_def
                assert upstream is not None, (child, parent)
                result = mapping.get_upstream_mapped_partitions_result_for_partitions(
                    partitions.subset_with_partition_keys([key]),
                    partitions,
                    upstream,
                    dynamic_partitions_store=instance,
                )
                found = set(result.partitions_subset.get_partition_keys())
                if isinstance(mapping, dg.AllPartitionMapping):
                    # Damage is measured with the exams of other corpora.
                    assert child == dg.AssetKey("damage")
                    continue
                assert found == {key if isinstance(upstream, type(partitions)) else "rivers"}


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    code = (
        f"import sys, kinject_assets.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_the_core_imports_no_dagster() -> None:
    code = (
        "import sys, pkgutil, importlib, kinject_assets.core as c\n"
        "for m in pkgutil.walk_packages(c.__path__, 'kinject_assets.core.'):\n"
        # A subclass of lm-eval's model: what uses it imports it inside functions.
        "    m.name.endswith('.hf_prefix') or importlib.import_module(m.name)\n"
        f"print([m for m in ('dagster', *{HEAVY!r}) if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
