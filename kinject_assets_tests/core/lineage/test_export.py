"""The exports are read by the standards' own tools."""

import json
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import prov.tests
import pytest
from jsonschema.validators import validator_for
from openlineage.client import event_v2, facet_v2
from openlineage.client.serde import Serde
from prov.model import ProvDocument, ProvEntity

from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.lineage.export import write_openlineage, write_prov
from kinject_assets.core.results.loader import DATABASE, build_database
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Article, Exclusion
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results import synthetic

FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {
            "_producer": {"type": "string", "format": "uri"},
            "_schemaURL": {"type": "string", "format": "uri"},
        },
    },
}
DATASET = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {
        "namespace": {"type": "string", "minLength": 1},
        "name": {"type": "string", "minLength": 1},
        "facets": FACETS,
    },
}
RUN_EVENT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "additionalProperties": False,
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {"type": "string", "format": "uri"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS},
        },
        "job": DATASET,
        "inputs": {"type": "array", "items": DATASET},
        "outputs": {"type": "array", "items": DATASET},
    },
}
"""What the core of the OpenLineage specification asks of a run event (2-0-2). The package brings
classes that are generated from it, not the schema itself."""

CLASSES: dict[str, Any] = {
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "documentation": facet_v2.documentation_dataset.DocumentationDatasetFacet,
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
}


@pytest.fixture(scope="module")
def events(built: Store, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("openlineage") / "events.jsonl"
    assert write_openlineage(built.root / DATABASE, path, "synthetic") == path
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def document(built: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prov") / "prov.json"
    assert write_prov(built.root / DATABASE, path, "synthetic") == path
    return path.read_text()


def _artefacts(store: Store) -> list[str]:
    rows = fetch(store.root / DATABASE, "SELECT artefact FROM artefacts ORDER BY ALL").rows
    return [row[0] for row in rows]


def test_events_have_what_the_specification_asks_for(events: list[dict[str, Any]]) -> None:
    checker = jsonschema.Draft202012Validator(RUN_EVENT, format_checker=jsonschema.FormatChecker())
    for event in events:
        checker.validate(event)
    with pytest.raises(jsonschema.ValidationError):
        checker.validate({**events[0], "run": {"runId": "no uuid"}})


def _facets(given: dict[str, Any]) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for name, fields in given.items():
        fields = dict(fields)
        schema = fields.pop("_schemaURL")
        by: dict[str, Any] = {"producer": fields.pop("_producer")}
        if name == "tags":
            tags = [facet_v2.tags_run.TagsRunFacetFields(**tag) for tag in fields["tags"]]
            facet = facet_v2.tags_run.TagsRunFacet(tags=tags, **by)
        elif name == "parent":
            facet = facet_v2.parent_run.ParentRunFacet(
                run=facet_v2.parent_run.Run(**fields["run"]),
                job=facet_v2.parent_run.Job(**fields["job"]),
                **by,
            )
        else:
            facet = CLASSES[name](**fields, **by)
        assert facet._schemaURL == schema, "the version that the official class is of"
        built[name] = facet
    return built


def _datasets(kind: Any, given: list[dict[str, Any]]) -> list[Any]:
    return [kind(d["namespace"], d["name"], facets=_facets(d["facets"])) for d in given]


def test_the_official_client_builds_and_writes_the_same_events(
    events: list[dict[str, Any]],
) -> None:
    for event in events:
        run, job = event["run"], event["job"]
        official = event_v2.RunEvent(
            eventType=event_v2.RunState[event["eventType"]],
            eventTime=event["eventTime"],
            run=event_v2.Run(runId=run["runId"], facets=_facets(run["facets"])),
            job=event_v2.Job(job["namespace"], job["name"], facets=_facets(job["facets"])),
            producer=event["producer"],
            inputs=_datasets(event_v2.InputDataset, event["inputs"]),
            outputs=_datasets(event_v2.OutputDataset, event["outputs"]),
        )
        written = json.loads(Serde.to_json(official))
        for dataset in (*written["inputs"], *written["outputs"]):
            # The client writes these though they are empty; they are optional.
            assert [dataset.pop(k) for k in ("inputFacets", "outputFacets") if k in dataset] == [{}]
        assert written == event


def test_each_artefact_starts_and_completes_once(
    built: Store, events: list[dict[str, Any]]
) -> None:
    runs = Counter((e["job"]["name"], e["run"]["runId"], e["eventType"]) for e in events)
    assert set(runs.values()) == {1}
    assert sorted({name for name, _, _ in runs}) == _artefacts(built)
    assert len({run for _, run, _ in runs}) == len(_artefacts(built))


def test_events_name_inputs_with_the_versions_that_were_read(
    built: Store, events: list[dict[str, Any]]
) -> None:
    by_name = {e["job"]["name"]: e for e in events if e["eventType"] == "COMPLETE"}
    answers = by_name["answers_ft/rivers/tiny.full.p00"]["inputs"]
    versions = {d["name"]: d["facets"]["version"]["datasetVersion"] for d in answers}
    names = ("questions/rivers", "checkpoint/rivers/tiny.full.p00")
    assert versions == {name: built.input_version(name) for name in names}
    articles = by_name["articles/rivers"]["inputs"]
    assert {(d["namespace"], d["facets"]["version"]["datasetVersion"]) for d in articles} == {
        ("files", "1")
    }
    assert len(articles) == 10
    assert "https://example.org/0" in articles[0]["facets"]["documentation"]["description"]


@pytest.mark.parametrize("write", [write_openlineage, write_prov])
def test_inputs_of_articles_are_what_it_holds_itself(
    lake: Store, tmp_path: Path, write: Any
) -> None:
    """Chunks are of the revisions before, and of one article there are none."""
    fetched = [synthetic.article(n, "2" if n == 4 else "1") for n in range(11)]
    files = {"articles": (Article, fetched), "exclusions": (Exclusion, [])}
    synthetic.publish(lake, Cell("articles", ("rivers",)), files)
    build_database(lake, synthetic.profile(), generations=synthetic.GENERATIONS)
    path = write(lake.root / DATABASE, tmp_path / "out", "synthetic")
    if write is write_openlineage:
        found = {
            (d["name"], d["facets"]["version"]["datasetVersion"])
            for e in map(json.loads, path.read_text().splitlines())
            for d in e["inputs"]
            if e["job"]["name"] == "articles/rivers"
        }
    else:
        found = {
            tuple(r["prov:entity"].removeprefix("revision:").split("@"))
            for r in json.loads(path.read_text())["used"].values()
            if r["prov:activity"] == "making:articles/rivers"
        }
    assert found == {(a.article_id, a.revision_id) for a in fetched}


def test_a_database_that_does_not_say_what_articles_hold_is_refused(
    lake: Store, tmp_path: Path
) -> None:
    import duckdb

    with duckdb.connect(str(lake.root / DATABASE)) as connection:
        connection.execute("DELETE FROM lineage WHERE child_kind = 'article'")
    with pytest.raises(MissingArtefact, match="built by an older version"):
        write_prov(lake.root / DATABASE, tmp_path / "prov.json")


def test_runs_keep_their_ids_and_dagsters_run_is_their_parent(
    built: Store, events: list[dict[str, Any]], lake: Store, tmp_path: Path
) -> None:
    import duckdb

    run = str(uuid.uuid4())
    with duckdb.connect(str(lake.root / DATABASE)) as connection:
        connection.execute("UPDATE artefacts SET run_id = ? WHERE asset = 'chunks'", [run])
    path = write_openlineage(lake.root / DATABASE, tmp_path / "events.jsonl", "synthetic")
    again = [json.loads(line) for line in path.read_text().splitlines()]
    parents = {
        e["job"]["name"]: e["run"]["facets"]["parent"]["run"]["runId"]
        for e in again
        if "parent" in e["run"]["facets"]
    }
    assert parents == {name: run for name in _artefacts(built) if name.startswith("chunks/")}
    same = {e["run"]["runId"] for e in again} & {e["run"]["runId"] for e in events}
    assert len(same) == len(_artefacts(built)) - len(parents)


def test_prov_json_is_valid(document: str) -> None:
    schema = json.loads(
        (Path(prov.tests.__file__).parent / "schemas" / "prov-json.schema.json").read_text()
    )
    validator = validator_for(schema)
    errors = list(validator(schema).iter_errors(json.loads(document)))
    assert not errors


def test_prov_is_read_and_written_again_without_loss(built: Store, document: str) -> None:
    read = ProvDocument.deserialize(content=document, format="json")
    assert ProvDocument.deserialize(content=read.serialize(), format="json") == read
    kinds = Counter(type(record).__name__ for record in read.get_records())
    artefacts = _artefacts(built)
    assert kinds["ProvActivity"] == len(artefacts) == kinds["ProvGeneration"]
    assert kinds["ProvEntity"] == len(artefacts) + 14 + 1, "14 article revisions and one model"
    labels = {str(entity.label) for entity in read.get_records(ProvEntity)}
    assert set(artefacts) | {"Article 0 <script>", "model tiny"} <= labels
    # Every end of a relation is a thing of the document.
    known = {str(record.identifier) for record in read.get_records() if not record.is_relation()}
    for record in read.get_records():
        if record.is_relation():
            assert {str(value) for _, value in record.formal_attributes if value} <= known


def test_prov_says_who_wrote_and_what_it_was_derived_from(document: str) -> None:
    read = json.loads(document)
    authors = {(r["prov:entity"], r["prov:agent"]) for r in read["wasAttributedTo"].values()}
    assert ("artefact:questions/rivers", "agent:writer") in authors
    assert ("artefact:chunks/rivers", "agent:writer") not in authors
    sources = {
        (r["prov:generatedEntity"], r["prov:usedEntity"]) for r in read["wasDerivedFrom"].values()
    }
    assert ("artefact:articles/rivers", "revision:article0@1") in sources
    assert ("artefact:answers_base/rivers/tiny", "model:tiny") in sources
    assert ("artefact:chunks/rivers", "artefact:articles/rivers") in sources


@pytest.mark.parametrize("write", [write_openlineage, write_prov])
def test_without_results_there_is_nothing_to_export(tmp_path: Path, write: Any) -> None:
    with pytest.raises(MissingArtefact, match="kinject run"):
        write(tmp_path / DATABASE, tmp_path / "out")


def test_every_input_is_an_output_in_the_same_version(events: list[dict[str, Any]]) -> None:
    def named(side: str) -> set[tuple[str, str]]:
        return {
            (d["name"], d["facets"]["version"]["datasetVersion"])
            for event in events
            for d in event[side]
            if d["namespace"].startswith("kinject/")
        }

    assert ("paraphrases/events-2031-04#p04", "first 4") in named("inputs")
    assert named("inputs") <= named("outputs")
