"""The whole provenance for other tools: OpenLineage events, and a W3C PROV-JSON document.

Both are pure functions of the database: what was made, from what, by which code, run and models,
down to article revisions. Rows (questions, chunks, answers) stay in the database.
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from kinject_assets import __version__
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.results.tables import fetch

Row = Mapping[str, Any]
Document = dict[str, Any]

SPECIFICATION = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
"""Version of the OpenLineage specification that the events follow."""

FACETS = {
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "documentation": "1-1-0/DocumentationDatasetFacet",
    "parent": "1-2-0/ParentRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
    "tags": "1-0-0/TagsRunFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
}
"""Facet -> version and name of its specification."""

PRODUCER = f"urn:kinject:{__version__}"

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:kinject")
"""Ids of runs are derived in it: the same artefact gets the same id in each export."""

_ARTEFACTS = "SELECT * FROM artefacts ORDER BY started_at, artefact"

_REVISIONS = """
    SELECT l.parent_id AS artefact, a.* FROM lineage l
        JOIN articles a ON l.child_id = concat(a.article_id, '@', a.revision_id)
    WHERE l.child_kind = 'article' AND l.parent_kind = 'artefact'
    ORDER BY l.parent_id, a.article_id, a.revision_id
"""
"""Article revisions that each artefact of articles holds; chunks may be of earlier ones."""

_WRITERS = """
    SELECT DISTINCT l.parent_id AS artefact, g.model FROM lineage l
        JOIN lineage w ON w.child_kind = l.child_kind AND w.child_id = l.child_id
            AND w.parent_kind = 'generation'
        JOIN generations g ON g.generation_id = w.parent_id
    WHERE l.parent_kind = 'artefact' AND l.child_kind IN ('question', 'paraphrase') ORDER BY ALL
"""
"""Language models that wrote an artefact's texts."""


@dataclass(frozen=True)
class _Provenance:
    """What the database says of how it came about.

    Attributes:
        profile: Name of the experiment.
        revisions: Artefact of articles -> the revisions that it holds.
        writers: Artefact -> language models that wrote its texts.
        models: Model under study -> its row.
    """

    profile: str
    artefacts: Sequence[Row]
    revisions: Mapping[str, Sequence[Row]]
    writers: Mapping[str, Sequence[str]]
    models: Mapping[str, Row]


def _read(database: Path, profile: str) -> _Provenance:
    artefacts = fetch(database, _ARTEFACTS).dicts()
    articles = fetch(database, _REVISIONS).dicts()
    nameless = not articles and fetch(database, "SELECT 1 FROM articles LIMIT 1").rows
    if nameless or (artefacts and "inputs" not in artefacts[0]):
        raise MissingArtefact(
            f"{database} was built by an older version, without what its artefacts were made from; "
            "`kinject run --select results` builds it again"
        )
    revisions: defaultdict[str, list[Row]] = defaultdict(list)
    for row in articles:
        revisions[row["artefact"]].append(row)
    writers: defaultdict[str, list[str]] = defaultdict(list)
    for row in fetch(database, _WRITERS).dicts():
        writers[row["artefact"]].append(row["model"])
    models = {row["model"]: row for row in fetch(database, "SELECT * FROM models").dicts()}
    return _Provenance(profile or database.parent.name, artefacts, revisions, writers, models)


def _moment(moment: datetime | None) -> str:
    """A time of the database, which holds UTC without saying so."""
    return (moment or datetime(1970, 1, 1)).replace(tzinfo=UTC).isoformat()


def _inputs(row: Row) -> dict[str, str]:
    """Artefacts that one was made from, whole, with the version that was read."""
    return {key.partition("#")[0]: v for key, v in sorted(json.loads(row["inputs"]).items())}


def _model(row: Row) -> str:
    """Model under study of an artefact of a model or recipe; empty for others."""
    parts = row["artefact"].split("/")
    return parts[2].split(".", 1)[0] if len(parts) > 2 else ""


# --- OpenLineage ---


def write_openlineage(database: Path, out: Path, profile: str = "") -> Path:
    """Writes OpenLineage run events as JSON lines: a start and an end for each artefact.

    Each making of an artefact is a run of its own; the Dagster run, which may have made several, is
    its parent. The article revisions that `articles` holds are its inputs. The first texts of each
    chunk, which checkpoints read, are datasets of their own: `paraphrases/CORPUS#p04`.

    Args:
        database: `results.duckdb`.
        out: File to write.
        profile: Name of the experiment; by default that of the database's folder.

    Raises:
        MissingArtefact: If there is no database, or an old one.
    """
    found = _read(database, profile)
    lines = [
        json.dumps(event, ensure_ascii=False, sort_keys=True)
        for row in found.artefacts
        for event in _events(found, row)
    ]
    write_atomically(out, "".join(f"{line}\n" for line in lines))
    return out


def _facet(facet: str, /, **fields: Any) -> Document:
    place = FACETS[facet]
    kind = place.partition("/")[2]
    return {
        "_producer": PRODUCER,
        "_schemaURL": f"https://openlineage.io/spec/facets/{place}.json#/$defs/{kind}",
        **fields,
    }


def _events(found: _Provenance, row: Row) -> Iterator[Document]:
    namespace = f"kinject/{found.profile}"
    made = f"{row['artefact']} {row['logical_version']} {row['run_id']} {row['finished_at']}"
    facets = {
        "processing_engine": _facet("processing_engine", name="kinject", version=_engine(row)),
        "tags": _facet("tags", tags=list(_tags(row))),
    }
    if parent := _as_uuid(row["run_id"]):
        job = {"namespace": namespace, "name": "dagster"}
        facets["parent"] = _facet("parent", run={"runId": parent}, job=job)
    event = {
        "producer": PRODUCER,
        "schemaURL": SPECIFICATION,
        "run": {"runId": str(uuid.uuid5(NAMESPACE, made)), "facets": facets},
        "job": {
            "namespace": namespace,
            "name": row["artefact"],
            "facets": {
                "jobType": _facet(
                    "jobType", processingType="BATCH", integration="DAGSTER", jobType="ASSET"
                )
            },
        },
        "inputs": [
            *(
                _dataset(namespace, name, version)
                for name, version in sorted(json.loads(row["inputs"]).items())
            ),
            *(_article(article) for article in found.revisions.get(row["artefact"], ())),
        ],
        "outputs": [
            _dataset(namespace, row["artefact"], row["logical_version"]),
            *(
                _dataset(namespace, f"{row['artefact']}#{part}", version)
                for part, version in sorted(json.loads(row["counts"]).get("prefixes", {}).items())
            ),
        ],
    }
    yield {**event, "eventType": "START", "eventTime": _moment(row["started_at"])}
    yield {**event, "eventType": "COMPLETE", "eventTime": _moment(row["finished_at"])}


def _engine(row: Row) -> str:
    return json.loads(row["libraries"]).get("kinject", __version__)


def _tags(row: Row) -> Iterator[Document]:
    """What has no facet of its own: code version, seeds, libraries, seal."""
    values = {
        "code_version": row["code_version"],
        "fingerprint": row["fingerprint"],
        "seal": row["seal"],
        **{f"seed.{name}": seed for name, seed in json.loads(row["seeds"]).items()},
        **{f"library.{name}": v for name, v in json.loads(row["libraries"]).items()},
    }
    for key, value in values.items():
        if value != "":
            yield {"key": key, "value": str(value), "source": "kinject"}


def _dataset(namespace: str, name: str, version: str) -> Document:
    facets = {"version": _facet("version", datasetVersion=version)}
    return {"namespace": namespace, "name": name, "facets": facets}


def _article(row: Row) -> Document:
    said = f"{row['title']}. {row['licence']}. {row['permalink']}"
    facets = {
        "version": _facet("version", datasetVersion=row["revision_id"]),
        "documentation": _facet("documentation", description=said),
    }
    return {"namespace": row["source"], "name": row["article_id"], "facets": facets}


def _as_uuid(run_id: str) -> str:
    """A Dagster run's id, which is a UUID; empty where no run is known."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return ""


# --- PROV ---


def write_prov(database: Path, out: Path, profile: str = "") -> Path:
    """Writes a W3C PROV-JSON document.

    Entities are artefacts, article revisions and the models as they were given; activities the
    makings of artefacts; agents this program, and the language models that wrote texts.

    Args:
        database: `results.duckdb`.
        out: File to write.
        profile: Name of the experiment; by default that of the database's folder.

    Raises:
        MissingArtefact: If there is no database, or an old one.
    """
    found = _read(database, profile)
    document: defaultdict[str, Document] = defaultdict(dict)
    document["prefix"] = {
        "kinject": "urn:kinject:terms:",
        "artefact": f"urn:kinject:{quote(found.profile)}:artefact:",
        "making": f"urn:kinject:{quote(found.profile)}:making:",
        "revision": "urn:kinject:revision:",
        "model": "urn:kinject:model:",
        "agent": "urn:kinject:agent:",
    }
    known = {row["artefact"] for row in found.artefacts}
    for row in found.artefacts:
        _add_making(document, found, row, known)
    write_atomically(out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return out


def _name(prefix: str, *parts: str) -> str:
    """A qualified name; whatever would not stand in one is percent-encoded."""
    return f"{prefix}:{quote('@'.join(parts), safe='@').replace('%2F', '/')}"


def _typed(name: str) -> Document:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}


def _relate(document: Document, relation: str, **roles: str) -> None:
    """Adds a relation under an id that its ends give, so that each is in once."""
    name = f"_:{relation}-{uuid.uuid5(NAMESPACE, ' '.join(roles.values())).hex[:16]}"
    document[relation][name] = {f"prov:{role}": value for role, value in roles.items()}


def _add_making(document: Document, found: _Provenance, row: Row, known: set[str]) -> None:
    artefact, making = _name("artefact", row["artefact"]), _name("making", row["artefact"])
    document["entity"][artefact] = {
        "prov:label": row["artefact"],
        "prov:type": _typed(f"kinject:{row['asset']}"),
        "kinject:version": row["logical_version"],
        "kinject:seal": row["seal"],
    }
    document["activity"][making] = {
        "prov:startTime": _moment(row["started_at"]),
        "prov:endTime": _moment(row["finished_at"]),
        "prov:label": f"making {row['artefact']}",
        "kinject:run": row["run_id"],
        "kinject:code_version": row["code_version"],
        "kinject:seeds": row["seeds"],
        "kinject:libraries": row["libraries"],
        "kinject:config": row["config"],
    }
    program = _name("agent", f"kinject-{_engine(row)}")
    document["agent"][program] = {
        "prov:type": _typed("prov:SoftwareAgent"),
        "prov:label": f"kinject {_engine(row)}",
    }
    _relate(document, "wasGeneratedBy", entity=artefact, activity=making)
    _relate(document, "wasAssociatedWith", activity=making, agent=program)
    _relate(document, "wasAttributedTo", entity=artefact, agent=program)
    for writer in found.writers.get(row["artefact"], ()):
        agent = _name("agent", writer)
        document["agent"][agent] = {
            "prov:type": _typed("prov:SoftwareAgent"),
            "prov:label": f"language model {writer}",
        }
        _relate(document, "wasAssociatedWith", activity=making, agent=agent)
        _relate(document, "wasAttributedTo", entity=artefact, agent=agent)
    sources = [_name("artefact", name) for name in _inputs(row) if name in known]
    revisions = found.revisions.get(row["artefact"], ())
    sources += [_add_revision(document, article) for article in revisions]
    if (model := _model(row)) in found.models:
        sources.append(_add_model(document, found.models[model]))
    for source in sources:
        _relate(document, "used", activity=making, entity=source)
        _relate(document, "wasDerivedFrom", generatedEntity=artefact, usedEntity=source)


def _add_revision(document: Document, row: Row) -> str:
    name = _name("revision", row["article_id"], row["revision_id"])
    entity: Document = {
        "prov:label": row["title"],
        "prov:type": _typed("kinject:article_revision"),
        "kinject:revision": row["revision_id"],
        "kinject:licence": row["licence"],
        "kinject:sha256": row["text_sha256"],
    }
    link = row["permalink"]
    # A file's address is a path, which is no URI.
    entity["prov:location"] = (
        {"$": link, "type": "xsd:anyURI"} if urlsplit(link).scheme in {"http", "https"} else link
    )
    document["entity"][name] = entity
    return name


def _add_model(document: Document, row: Row) -> str:
    name = _name("model", row["model"])
    document["entity"][name] = {
        "prov:label": f"model {row['model']}",
        "prov:type": _typed("kinject:model"),
        "kinject:source": row["source"],
        "kinject:revision": row["revision"] or "",
    }
    return name
