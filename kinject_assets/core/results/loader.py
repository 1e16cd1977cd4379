"""Builds `results.duckdb` from the lake: a pure function, swapped in whole."""

import json
import math
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kinject_assets.config import Corpus, Profile
from kinject_assets.core import schema
from kinject_assets.core.augmentation.registry import of_prefix
from kinject_assets.core.corpus.articles import permalink
from kinject_assets.core.corpus.releases import read_releases
from kinject_assets.core.exams.novelty import novelty
from kinject_assets.core.manifest import Manifest, content_hash
from kinject_assets.core.plan import now
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.results import ancestry
from kinject_assets.core.results.catalogue import (
    OPTIMISM,
    RAG_ERRORS,
    RETRIEVAL_QUALITY,
    Table,
    tables,
    view_ddl,
)
from kinject_assets.core.results.digests import write_digests
from kinject_assets.core.results.evidence import gather
from kinject_assets.core.results.scores import (
    Exam,
    Scored,
    by_stratum,
    letter_rows,
    score_all,
    score_rows,
)
from kinject_assets.core.statistics.claims import RULES, judge
from kinject_assets.core.statistics.comparisons import System, Trained, compare_all
from kinject_assets.core.statistics.pooling import pool_all
from kinject_assets.core.statistics.published import published
from kinject_assets.core.statistics.selection import fold_of
from kinject_assets.core.store import Cell, Store
from kinject_assets.core.training.models import tensor_shapes

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Row = TypeVar("Row")
Rows = list[dict[str, Any]]

DATABASE = "results.duckdb"
"""Name of the database below the profile's folder."""

ANSWERS = ("answers_base", "answers_rag", "answers_ft", "answers_ft_rag")


@dataclass
class Lake:
    """Everything that the published artefacts hold, by corpus where corpora share rows."""

    published: list[tuple[Cell, Manifest]]
    articles: list[schema.Article] = field(default_factory=list)
    chunks: dict[str, list[schema.Chunk]] = field(default_factory=dict)
    retired: list[schema.Chunk] = field(default_factory=list)
    releases: dict[str, str] = field(default_factory=dict)
    questions: dict[str, list[schema.Question]] = field(default_factory=dict)
    triage: dict[str, schema.Triage] = field(default_factory=dict)
    paraphrases: dict[str, list[schema.Paraphrase]] = field(
        default_factory=lambda: defaultdict(list)
    )
    rejections: list[schema.Rejection] = field(default_factory=list)
    retrieved: list[schema.Retrieved] = field(default_factory=list)
    checkpoints: list[schema.Checkpoint] = field(default_factory=list)
    trained: dict[tuple[str, str, str], Trained] = field(default_factory=dict)
    trials: list[schema.Trial] = field(default_factory=list)
    damage: list[schema.Damage] = field(default_factory=list)
    conditions: dict[str, schema.Condition] = field(default_factory=dict)
    answers: list[schema.Answer] = field(default_factory=list)
    sizes: dict[str, tuple[str | None, int | None]] = field(default_factory=dict)
    makers: list[ancestry.Edge] = field(default_factory=list)


def read_lake(store: Store, report: Report = silent) -> Lake:
    """Reads every published artefact; what is not there is left empty."""
    lake = Lake([(c, m) for c, m in store.published() if c.parts])
    lake.releases = {release.key: release.corpus for release in read_releases(store.lake)}
    for done, (cell, manifest) in enumerate(lake.published, 1):
        _read_cell(store, lake, cell, manifest)
        report(f"read {cell}", done, len(lake.published))
    return lake


def _read_cell(store: Store, lake: Lake, cell: Cell, manifest: Manifest) -> None:
    def rows(name: str, row_type: type[Row]) -> list[Row]:
        return store.rows(cell, name, row_type)

    def made(kind: str, ids: Iterable[str]) -> None:
        lake.makers.extend(ancestry.of_makers(kind, ids, cell))

    corpus = cell.parts[0]
    match cell.asset:
        case "articles":
            articles = rows("articles", schema.Article)
            lake.articles += articles
            made("article", (ancestry.article_key(a.article_id, a.revision_id) for a in articles))
        case "chunks":
            lake.chunks[corpus] = rows("chunks", schema.Chunk)
            made("chunk", (c.chunk_id for c in lake.chunks[corpus]))
            if any(name.endswith("/retired.parquet") for name in manifest.files):
                retired = rows("retired", schema.Chunk)
                lake.retired += retired
                made("chunk", (c.chunk_id for c in retired))
        case "questions":
            lake.questions[corpus] = rows("questions", schema.Question)
            made("question", (q.question_id for q in lake.questions[corpus]))
            lake.rejections += rows("rejections", schema.Rejection)
        case "triage":
            for row in rows("triage", schema.Triage):
                lake.triage.setdefault(row.question_id, row)
        case "paraphrases" | "validation_paraphrases":
            paraphrases = rows("paraphrases", schema.Paraphrase)
            lake.paraphrases[corpus] += paraphrases
            made("paraphrase", (p.paraphrase_id for p in paraphrases))
            lake.rejections += rows("rejections", schema.Rejection)
        case "retrieved":
            lake.retrieved += rows("retrieved", schema.Retrieved)
        case "checkpoint":
            found = rows("checkpoint", schema.Checkpoint)
            lake.checkpoints += found
            made("checkpoint", (c.checkpoint_id for c in found))
            lake.trials += rows("trials", schema.Trial)
            lake.damage += rows("damage", schema.Damage)
            for checkpoint in found:
                lake.trained[_recipe_of(checkpoint)] = _trained(manifest)
                # Answers say it, too, and come before; a model may have to be brought from afar.
                if checkpoint.method == "full" and checkpoint.model not in lake.sizes:
                    lake.sizes[checkpoint.model] = _size(store.path(cell, "model"))
        case "damage":
            lake.damage += rows("damage", schema.Damage)
        case asset if asset in ANSWERS:
            lake.conditions |= {c.condition_id: c for c in rows("conditions", schema.Condition)}
            answers = rows("answers", schema.Answer)
            lake.answers += answers
            made("answer", (a.answer_id for a in answers))
            counts = manifest.counts
            if counts.get("parameters"):
                model = cell.parts[1] if len(cell.parts) > 1 else ""
                if asset in {"answers_base", "answers_rag"}:
                    lake.sizes[model] = (counts.get("architecture"), counts["parameters"])


def _recipe_of(checkpoint: schema.Checkpoint) -> tuple[str, str, str]:
    return checkpoint.corpus, checkpoint.model, checkpoint.recipe


def _trained(manifest: Manifest) -> Trained:
    """How a checkpoint was trained, as its manifest has it: by what it read and its settings."""
    parts = [k.partition("#")[2] for k in manifest.inputs if k.startswith("paraphrases/")]
    return Trained(
        augmentation=of_prefix(parts[0]) if parts else "",
        settings=content_hash(manifest.config.get("training")),
    )


def _size(folder: Path) -> tuple[str | None, int | None]:
    """Architecture and number of parameters of a saved full model, from its headers alone."""
    config = folder / "config.json"
    names = json.loads(config.read_text()).get("architectures") if config.exists() else None
    total = sum(math.prod(shape) for shape in tensor_shapes(folder).values())
    return (names[0] if names else None), total or None


def corpus_settings(profile: Profile, corpus: str) -> Corpus | None:
    """A corpus's settings; those of its rolling window for a frozen release of it."""
    if corpus in profile.corpora:
        return profile.corpora[corpus]
    stem = corpus.split("-", 1)[0]
    return profile.corpora.get(f"{stem}-current") or profile.corpora.get(stem)


def _novelty(profile: Profile, corpus: str, lake: Lake) -> dict[str, Any]:
    """Since when a corpus's facts are, and the models that they are not new to."""
    if corpus not in profile.corpora:
        return {"facts_since": None, "not_new_to": []}
    models = sorted({c.model for c in lake.conditions.values() if c.corpus == corpus})
    known = [model for model in models if model in profile.models]
    found = novelty(profile, corpus, known, now(profile))
    return {"facts_since": found.since, "not_new_to": sorted([*found.older, *found.unknown])}


def _exams(lake: Lake, profile: Profile) -> dict[str, Exam]:
    article_of = {c.chunk_id: c.article_id for chunks in lake.chunks.values() for c in chunks}
    retrievers: dict[str, set[str]] = defaultdict(set)
    for c in lake.conditions.values():
        retrievers[c.corpus].add(c.retriever)
    exams: dict[str, Exam] = {}
    corpora = {c.corpus for c in lake.conditions.values()} | set(lake.questions)
    for corpus in sorted(corpora):
        settings = corpus_settings(profile, corpus)
        questions = lake.questions.get(corpus, [])
        scored = [q for q in questions if q.split == "test" and not q.retired]
        fold = {q.question_id: _fold(q, article_of, profile.scoring.folds) for q in scored}
        chance = {q.question_id: 1 / len(q.options) for q in scored}
        stratum = {q.question_id: _stratum(lake, q) for q in scored}
        exams[corpus] = Exam(
            settings.table if settings else 2,
            fold,
            chance,
            stratum,
            lake.releases.get(corpus, ""),
            next((r for r in profile.retrieval.retrievers if r in retrievers[corpus]), ""),
        )
    return exams


def _by_release(systems: Sequence[System], exams: Mapping[str, Exam]) -> list[list[System]]:
    """Systems of corpora that are no releases, then those of each release.

    So that Holm's adjustment of a study does not grow with every month that closes.
    """
    groups: defaultdict[str, list[System]] = defaultdict(list)
    for system in systems:
        corpus = system.condition.corpus
        groups[corpus if exams[corpus].release_of else ""].append(system)
    return [groups[key] for key in sorted(groups)]


def _stratum(lake: Lake, question: schema.Question) -> str:
    found = lake.triage.get(question.question_id)
    return found.stratum if found else question.triage


def _fold(question: schema.Question, article_of: Mapping[str, str], folds: int) -> int:
    key = question.chunk_id and article_of.get(question.chunk_id, question.chunk_id)
    return fold_of(key or question.question_id, folds)


def _merged(rows: Iterable[Any], *leave_out: str) -> Rows:
    return [{k: v for k, v in asdict(row).items() if k not in leave_out} for row in rows]


def _moment(text: str) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _content(
    lake: Lake,
    profile: Profile,
    generations: Sequence[schema.Generation],
    references: Path | None,
    report: Report,
) -> dict[str, Iterable[Mapping[str, Any]]]:
    """Rows of every table."""
    exams = _exams(lake, profile)
    folds = profile.scoring.folds
    article_of = {c.chunk_id: c.article_id for chunks in lake.chunks.values() for c in chunks}
    report("scoring")
    scored = score_all(list(lake.conditions.values()), lake.answers, exams, folds, lake.trained)
    strata = by_stratum(scored.systems, exams)
    scores = [
        row
        for stratum, systems in strata.items()
        for row in score_rows(Scored(systems, scored.choices), exams, profile, stratum)
    ]
    report("comparing")
    groups = [
        (name, group) for name, systems in strata.items() for group in _by_release(systems, exams)
    ]
    comparisons = [c for name, group in groups for c in compare_all(group, name)]
    # Releases share questions with their window: for claims they would count them twice.
    numbers = {corpus: exam.table for corpus, exam in exams.items() if not exam.release_of}
    known = {c.claim: c for c in judge(published(references))} if references else {}
    rules = {rule.claim: rule for rule in RULES}
    return {
        "corpora": [
            {
                "corpus": corpus,
                "title": settings.title if settings else "",
                "table_number": settings.table if settings else 2,
                "exam": settings.exam.kind if settings else "generated",
                "release_of": lake.releases.get(corpus, ""),
                **_novelty(profile, corpus, lake),
            }
            for corpus in sorted({*profile.corpora, *exams, *lake.chunks})
            for settings in (corpus_settings(profile, corpus),)
        ],
        "models": [
            {
                "model": name,
                "source": model.source,
                "revision": model.revision,
                "architecture": lake.sizes.get(name, (None, None))[0],
                "parameters": lake.sizes.get(name, (None, None))[1],
                "knowledge_cutoff": model.knowledge_cutoff,
            }
            for name, model in profile.models.items()
        ],
        "articles": [
            {**row, "permalink": permalink(row["source"], row["url"], row["revision_id"])}
            for row in _merged(lake.articles, "headings", "bodies")
        ],
        "chunks": [
            row
            for chunks in (*lake.chunks.values(), lake.retired)
            for row in _merged(chunks, "revision_id", "ordinal")
        ],
        "corpus_chunks": [
            {
                "corpus": corpus,
                "chunk_id": c.chunk_id,
                "revision_id": c.revision_id,
                "ordinal": c.ordinal,
            }
            for corpus, chunks in lake.chunks.items()
            for c in chunks
        ],
        "questions": [
            {**row, "triage": _stratum(lake, q)}
            for questions in lake.questions.values()
            for q, row in zip(questions, _merged(questions, "split", "retired"), strict=True)
        ],
        "triage": _merged(lake.triage.values()),
        "corpus_questions": [
            {
                "corpus": corpus,
                "question_id": q.question_id,
                "split": q.split,
                "retired": q.retired,
                "fold": _fold(q, article_of, folds),
            }
            for corpus, questions in lake.questions.items()
            for q in questions
        ],
        "rejections": _merged(lake.rejections),
        "paraphrases": [row for found in lake.paraphrases.values() for row in _merged(found)],
        "retrieved": _merged(lake.retrieved),
        "checkpoints": [
            {**row, "augmentation": lake.trained[_recipe_of(checkpoint)].augmentation}
            for checkpoint, row in zip(lake.checkpoints, _merged(lake.checkpoints), strict=True)
        ],
        "trials": _merged(lake.trials),
        "damage": _merged(lake.damage),
        "conditions": _merged(lake.conditions.values()),
        "answers": _merged(lake.answers),
        "k_choices": [
            {"condition_id": condition, "fold": fold, "k": k}
            for condition, choice in scored.choices.items()
            for fold, k in choice.by_fold.items()
        ],
        "scores": scores,
        "letter_bias": letter_rows(lake.answers, lake.conditions, exams),
        "comparisons": _merged(comparisons),
        "pooled": _merged(row for name, group in groups for row in pool_all(group, name)),
        "claims": [
            {
                **asdict(claim),
                "family": rules[claim.claim].family,
                "aggregation": rules[claim.claim].aggregation,
                "rule": rules[claim.claim].rule,
                "published_verdict": known[claim.claim].verdict if known else None,
                "published_evidence": known[claim.claim].evidence if known else None,
            }
            for claim in judge(
                gather([s for s in scores if s["corpus"] in numbers], comparisons, numbers)
            )
        ],
        "generations": _merged(generations),
        "lineage": _lineage(lake),
        "artefacts": [
            {
                "artefact": str(cell),
                "asset": cell.asset,
                "partition": m.partition,
                "logical_version": m.logical_version,
                "fingerprint": m.fingerprint,
                "code_version": m.code_version,
                "seal": m.seal,
                "run_id": m.run_id,
                "started_at": _moment(m.started_at),
                "finished_at": _moment(m.finished_at),
                **{
                    name: json.dumps(getattr(m, name), sort_keys=True)
                    for name in ("libraries", "inputs", "config", "seeds", "counts")
                },
            }
            for cell, m in lake.published
        ],
    }


def _lineage(lake: Lake) -> Rows:
    changed = ancestry.changed_inputs(lake.published)
    edges = [
        edge
        for found in (
            *(ancestry.of_chunks(chunks) for chunks in lake.chunks.values()),
            *(ancestry.of_texts("question", q, "question_id") for q in lake.questions.values()),
            *(
                ancestry.of_texts("paraphrase", p, "paraphrase_id")
                for p in lake.paraphrases.values()
            ),
            ancestry.of_checkpoints(
                [(c, lake.trained[_recipe_of(c)].augmentation) for c in lake.checkpoints],
                lake.chunks,
                lake.paraphrases,
                changed,
            ),
            ancestry.of_answers(lake.answers, lake.conditions, lake.retrieved, changed),
            ancestry.of_artefacts(lake.published),
            lake.makers,
        )
        for edge in found
    ]
    names = ("child_kind", "child_id", "parent_kind", "parent_id")
    return [dict(zip(names, edge, strict=True)) for edge in edges]


def _arrow(rows: Iterable[Mapping[str, Any]], table: Table) -> "pa.Table":
    """Rows without repetitions of a key (the first is kept), sorted by it."""
    import pyarrow as pa

    kinds = {
        "VARCHAR": pa.string(),
        "BIGINT": pa.int64(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "DATE": pa.date32(),
        "TIMESTAMP": pa.timestamp("us", tz="UTC"),
        "VARCHAR[]": pa.list_(pa.string()),
        "BIGINT[]": pa.list_(pa.int64()),
        "DOUBLE[]": pa.list_(pa.float64()),
    }
    unique: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        unique.setdefault(tuple(row[column] for column in table.key), row)
    return pa.Table.from_pylist(
        [dict(unique[key]) for key in sorted(unique)],
        schema=pa.schema([(column, kinds[kind]) for column, kind in table.columns.items()]),
    )


def _fill(
    connection: "duckdb.DuckDBPyConnection",
    content: Mapping[str, Iterable[Mapping[str, Any]]],
    report: Report,
) -> dict[str, int]:
    counts: dict[str, int] = {}
    catalogue = tables()
    # Arrow's times carry their zone; a session in UTC keeps them as they are.
    connection.execute("SET TimeZone = 'UTC'")
    for done, (name, table) in enumerate(catalogue.items(), 1):
        connection.execute(table.ddl(name))
        rows = _arrow(content[name], table)
        connection.register("incoming", rows)
        connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM incoming')
        connection.unregister("incoming")
        text = f"{table.comment} Empty when: {table.empty}".replace("'", "''")
        connection.execute(f"COMMENT ON TABLE \"{name}\" IS '{text}'")
        counts[name] = rows.num_rows
        report(f"table {name}", done, len(catalogue))
    for statement in (view_ddl(1), view_ddl(2), OPTIMISM, RETRIEVAL_QUALITY, RAG_ERRORS):
        connection.execute(statement)
    return counts


def _verify(database: Path, counts: Mapping[str, int]) -> None:
    """Reads a new database back before it takes the old one's place.

    Raises:
        OSError: If a table is not there or holds fewer rows than were written.
    """
    import duckdb

    with closing(duckdb.connect(str(database), read_only=True)) as connection:
        for name, n in counts.items():
            found = connection.execute(f'SELECT count(*) FROM "{name}"').fetchall()[0][0]
            if found != n:
                raise OSError(f"{database}: {name} has {found} rows of {n}; the disk lost some")


def build_database(
    store: Store,
    profile: Profile,
    *,
    generations: Sequence[schema.Generation] = (),
    references: Path | None = None,
    scratch: Path | None = None,
    digests: Path | None = None,
    report: Report = silent,
) -> dict[str, int]:
    """Builds the database anew beside the old one and swaps it in.

    Args:
        store: The lake; whatever of it has been published is read.
        profile: The experiment.
        generations: The ledger of requests to the language model service.
        references: Folder of the published tables, for the claims' self-test.
        scratch: Folder on the same disk that the new file is built in; default beside the old one.
        digests: File to write a digest of every row to, for the audit; none by default.
        report: Told how far it is.

    Returns:
        Rows of each table.

    Raises:
        BrokenArtefact: If a published file is gone or unreadable. The old database stays.
    """
    import duckdb

    lake = read_lake(store, report)
    content = _content(lake, profile, generations, references, report)
    store.root.mkdir(parents=True, exist_ok=True)
    partial = (scratch or store.root) / f".{DATABASE}.{uuid.uuid4().hex}"
    try:
        with closing(duckdb.connect(str(partial))) as connection:
            counts = _fill(connection, content, report)
            if digests:
                write_digests(connection, digests)
            # Closing would write as well, and keep a full disk to itself.
            connection.execute("CHECKPOINT")
        _verify(partial, counts)
        partial.replace(store.root / DATABASE)
    finally:
        for leftover in (partial, partial.with_name(f"{partial.name}.wal")):
            leftover.unlink(missing_ok=True)
    return counts
