"""What the page's explorer of single questions is fed with: columns, packed small.

Questions stand corpus by corpus; every other column is in their order. The whole is JSON, gzipped
and in base64, which the page unpacks. What would make the page too large is left out step by step,
and said.
"""

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any

from kinject_assets.core.manifest import content_hash
from kinject_assets.core.report.evidence import STANDING, Answering, Evidence
from kinject_assets.core.report.memo import Judged
from kinject_assets.core.results.ancestry import ANSWERED_IN, CHANGED
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.decision import RULE
from kinject_assets.core.statistics.intervals import critical_value
from kinject_assets.core.statistics.power import ALPHA, WORTHWHILE

LIMIT = 60_000_000
"""Characters that the explorer's data may take in the page."""

SHORT = 300
"""Characters that are left of a passage where whole ones are too many."""

QUESTIONS = """
    SELECT c.corpus, c.question_id, c.fold, q.stem, q.options, q.gold, q.triage, q.chunk_id
    FROM corpus_questions c JOIN questions q USING (question_id)
        LEFT JOIN corpus_chunks t ON t.corpus = c.corpus AND t.chunk_id = q.chunk_id
    WHERE c.split = 'test' AND NOT c.retired AND c.corpus IN (SELECT corpus FROM conditions)
    ORDER BY c.corpus, t.ordinal NULLS LAST, c.question_id
"""

ANSWERS = f"""
    SELECT c.condition_id, len(q.options) AS options, a.choice, a.logliks, a.answer_id
    FROM conditions c JOIN (SELECT *, row_number() OVER () AS place FROM ({QUESTIONS})) q
        USING (corpus)
        LEFT JOIN answers a ON a.condition_id = c.condition_id AND a.question_id = q.question_id
    ORDER BY c.condition_id, place
"""
"""Each condition's answers in the order of `QUESTIONS`; nothing but options where one lacks."""

CONDITIONS = """
    SELECT c.*, coalesce(bool_or(s.main), false) AS main
    FROM conditions c LEFT JOIN scores s ON s.condition_id = c.condition_id
        AND s.k_rule = 'fixed' AND s.stratum = 'all'
    GROUP BY ALL ORDER BY corpus, model, shots, method, recipe, retriever, k
"""

OVERTAKEN = f"""
    SELECT c.* FROM conditions c JOIN ({CHANGED}) r ON r.artefact = {ANSWERED_IN}
        AND r.input = concat('retrieved/', c.corpus)
    WHERE c.k > 0 ORDER BY corpus, retriever, model, method, recipe, shots, k
"""
"""Conditions whose answers read other passages than those that are retrieved now."""

RETRIEVED = f"""
    WITH asked AS (SELECT *, row_number() OVER () AS place FROM ({QUESTIONS})),
    depth AS (
        SELECT corpus, retriever, max(k) AS k FROM conditions
        WHERE k > 0 AND condition_id NOT IN (SELECT condition_id FROM ({OVERTAKEN}))
        GROUP BY ALL
    )
    SELECT r.corpus, r.retriever, r.question_id, list(r.chunk_id ORDER BY r.rank) AS chunk_ids,
        list(round(r.score, 4) ORDER BY r.rank) AS scores
    FROM retrieved r JOIN depth d ON d.corpus = r.corpus AND d.retriever = r.retriever
        JOIN asked q ON q.corpus = r.corpus AND q.question_id = r.question_id
    WHERE r.rank <= d.k
    GROUP BY r.corpus, r.retriever, r.question_id
"""
"""What was in front of each question, up to the largest K; of conditions that read it alone."""

CHUNKS = """
    SELECT c.chunk_id, c.section, c.text, a.title, a.permalink, a.url, a.licence, a.revision_id,
        a.revised_at
    FROM chunks c LEFT JOIN articles a ON a.article_id = c.article_id AND a.revision_id = (
        SELECT max(m.revision_id) FROM corpus_chunks m JOIN articles b
            ON b.article_id = c.article_id AND b.revision_id = m.revision_id
        WHERE m.chunk_id = c.chunk_id)
    ORDER BY c.chunk_id
"""
"""Chunks with the article revision that they were read in."""

Payload = dict[str, Any]


def version_of(database: Path) -> str:
    """Tells one state of a study's data from another: marks belong to one."""
    rows = fetch(database, "SELECT artefact, logical_version FROM artefacts ORDER BY ALL").rows
    return content_hash([list(row) for row in rows])


@dataclass
class _Numbers:
    """Ids -> places, in the order in which they were first asked for."""

    places: dict[str, int] = field(default_factory=dict)

    def of(self, key: str) -> int:
        return self.places.setdefault(key, len(self.places))


def name_of(method: str, recipe: str, k: int | None, retriever: str, several: bool) -> str:
    """A way to answer, for people: `FT full.p04 + RAG, K = 2`."""
    name = "RAG" if method == "rag" else "base" if method == "base" else f"FT {recipe}"
    if method == "ft_rag":
        name += " + RAG"
    if several and retriever:
        name += f" ({retriever})"
    return name if k is None else f"{name}, K = {k}" if k else name


def build(database: Path, study: str, evidence: Evidence, judged: Sequence[Judged]) -> Payload:
    """Everything that the page shows of single questions.

    Args:
        database: `results.duckdb`.
        study: Name of the profile.
        evidence: What `read_evidence` gives; its order is that of `systems`.
        judged: The decisions, in the page's order.
    """
    questions = fetch(database, QUESTIONS).dicts()
    corpora = fetch(database, "SELECT corpus, title, exam FROM corpora ORDER BY corpus").dicts()
    asked = {row["corpus"] for row in questions}
    corpora = [row for row in corpora if row["corpus"] in asked]
    corpus_at = {row["corpus"]: i for i, row in enumerate(corpora)}
    chunks = _Numbers()
    own = [chunks.of(q["chunk_id"]) if q["chunk_id"] else -1 for q in questions]
    retrieved = _retrieved(database, questions, chunks)
    conditions = _conditions(database, corpus_at)
    return {
        "study": study,
        "version": version_of(database),
        "alpha": ALPHA,
        "worthwhile": WORTHWHILE,
        "critical": critical_value(),
        "rule": [
            {"verdict": verdict, "winner": winner, "needs": sorted(needs), "clauses": clauses}
            for verdict, (winner, needs, clauses) in RULE.items()
        ],
        "corpora": [
            {
                "name": row["corpus"],
                "title": row["title"],
                "written": row["exam"] == "generated",
            }
            for row in corpora
        ],
        "questions": {
            "corpus": [corpus_at[q["corpus"]] for q in questions],
            "id": [q["question_id"] for q in questions],
            "stem": [q["stem"] for q in questions],
            "options": [q["options"] for q in questions],
            "gold": [q["gold"] for q in questions],
            "stratum": [q["triage"] for q in questions],
            "fold": [q["fold"] for q in questions],
            "chunk": own,
        },
        "conditions": conditions,
        "systems": _systems(database, evidence.systems, conditions, corpus_at),
        "families": [
            [_pair(evidence.systems, row) for row in group.rows] for group in evidence.groups
        ],
        "decisions": [_decision(evidence.systems, j) for j in judged],
        "retrieved": retrieved,
        "overtaken": _overtaken(database, corpus_at),
        "chunks": _chunks(database, chunks),
        "left_out": [],
    }


def _conditions(database: Path, corpus_at: Mapping[str, int]) -> list[Payload]:
    rows = fetch(database, CONDITIONS).dicts()
    several = _several_retrievers((row["corpus"], row["retriever"]) for row in rows)
    answers = _answers(database)
    return [
        {
            "id": row["condition_id"],
            "corpus": corpus_at[row["corpus"]],
            "model": row["model"],
            "shots": row["shots"],
            "main": row["main"],
            "name": name_of(
                row["method"], row["recipe"], row["k"], row["retriever"], row["corpus"] in several
            ),
            "retriever": row["retriever"],
            "k": row["k"],
            **answers[row["condition_id"]],
        }
        for row in rows
        if row["corpus"] in corpus_at and row["condition_id"] in answers
    ]


def _answers(database: Path) -> dict[str, Payload]:
    """Condition -> its answers as columns; log-likelihoods are in hundredths of a nat."""
    found: dict[str, Payload] = {}
    rows = fetch(database, ANSWERS).rows
    for condition, group in groupby(rows, key=lambda row: row[0]):
        choices: list[str] = []
        logliks: list[int | None] = []
        ids: list[str] = []
        for _, options, choice, values, answer_id in group:
            choices.append("." if choice is None else str(choice))
            logliks += (
                [round(100 * x) if isfinite(x) else None for x in values]
                if values and len(values) == options
                else [None] * options
            )
            ids.append(answer_id or "")
        found[condition] = {
            "choices": "".join(choices),
            "logliks": logliks,
            "answers": ",".join(ids),
        }
    return found


def _several_retrievers(pairs: Iterable[tuple[str, str]]) -> set[str]:
    """Corpora that were answered with more than one retriever: there it is named."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for corpus, retriever in pairs:
        if retriever:
            found[corpus].add(retriever)
    return {corpus for corpus, names in found.items() if len(names) > 1}


def _systems(
    database: Path,
    systems: Sequence[Answering],
    conditions: Sequence[Payload],
    corpus_at: Mapping[str, int],
) -> list[Payload]:
    at = {row["id"]: i for i, row in enumerate(conditions)}
    standing: defaultdict[str, dict[int | None, int]] = defaultdict(dict)
    for condition, fold, answered in fetch(database, STANDING).rows:
        if answered in at:
            standing[condition][fold] = at[answered]
    several = _several_retrievers((s.corpus, s.retriever) for s in systems)
    found: list[Payload] = []
    for s in systems:
        folds = standing[s.condition_id]
        # One condition without retrieval; with it, the one that stands for each fold.
        stands = [folds[None]] if None in folds else _by_fold(folds)
        found.append(
            {
                "corpus": corpus_at[s.corpus],
                "model": s.model,
                "shots": s.shots,
                "method": s.method,
                "recipe": s.recipe,
                "main": s.main,
                "name": name_of(s.method, s.recipe, None, s.retriever, s.corpus in several),
                "k": s.k,
                "standing": stands,
            }
        )
    return found


def _by_fold(folds: Mapping[int | None, int]) -> list[int]:
    numbered = {fold: at for fold, at in folds.items() if fold is not None}
    return [numbered.get(fold, -1) for fold in range(max(numbered, default=-1) + 1)]


def _pair(systems: Sequence[Answering], row: Mapping[str, Any]) -> list[int]:
    at = {s.condition_id: i for i, s in enumerate(systems)}
    return [at[row["condition_a"]], at[row["condition_b"]]]


def _decision(systems: Sequence[Answering], judged: Judged) -> Payload:
    at = {s.condition_id: i for i, s in enumerate(systems)}
    mine = {(s.method, s.recipe): at[s.condition_id] for s in judged.candidates}
    return {
        "key": judged.key,
        "verdict": judged.verdict,
        "base": mine.get(("base", "")),
        "rag": mine.get(("rag", "")),
        # In the order that breaks ties.
        "ft": [[recipe, i] for (method, recipe), i in mine.items() if method == "ft"],
        "ft_rag": [[recipe, i] for (method, recipe), i in mine.items() if method == "ft_rag"],
    }


def _retrieved(
    database: Path, questions: Sequence[Mapping[str, Any]], chunks: _Numbers
) -> dict[str, Payload]:
    """Retriever -> chunks and scores of each question, in their order."""
    place = {(q["corpus"], q["question_id"]): i for i, q in enumerate(questions)}
    found: dict[str, Payload] = {}
    for row in fetch(database, RETRIEVED).dicts():
        if row["retriever"] not in found:
            found[row["retriever"]] = {
                "chunks": [[] for _ in questions],
                "scores": [[] for _ in questions],
            }
        columns = found[row["retriever"]]
        at = place[row["corpus"], row["question_id"]]
        columns["chunks"][at] = [chunks.of(chunk_id) for chunk_id in row["chunk_ids"]]
        columns["scores"][at] = row["scores"]
    return found


def _overtaken(database: Path, corpus_at: Mapping[str, int]) -> list[Payload]:
    """By corpus and retriever the ways to answer whose passages are no longer there."""
    ways: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in fetch(database, OVERTAKEN).dicts():
        way = name_of(row["method"], row["recipe"], None, row["retriever"], several=False)
        ways[row["corpus"], row["retriever"]][f"{way} of {row['model']}"] = None
    return [
        {"corpus": corpus_at[corpus], "retriever": retriever, "ways": list(names)}
        for (corpus, retriever), names in ways.items()
        if corpus in corpus_at
    ]


def _chunks(database: Path, numbers: _Numbers) -> Payload:
    rows = {row["chunk_id"]: row for row in fetch(database, CHUNKS).dicts()}
    articles: dict[tuple[Any, ...], int] = {}
    found: Payload = {"section": [], "text": [], "article": []}
    for chunk_id in numbers.places:
        row = rows.get(chunk_id)
        key = (
            (row["title"], row["permalink"] or row["url"], row["licence"], row["revision_id"])
            if row and row["title"]
            else ("", "", "", "")
        )
        found["section"].append(row["section"] if row else "")
        found["text"].append(row["text"] if row else "")
        found["article"].append(articles.setdefault(key, len(articles)))
    names = ("title", "url", "licence", "revision")
    return found | {
        "articles": {name: [key[i] for key in articles] for i, name in enumerate(names)}
    }


# -- Packing ---------------------------------------------------------------------------------------


def packed(payload: Payload) -> str:
    """The payload as the page carries it."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _without_logliks(main: bool) -> Callable[[Payload], Payload]:
    def change(payload: Payload) -> Payload:
        conditions = [
            row if row["main"] and not main else {**row, "logliks": None}
            for row in payload["conditions"]
        ]
        return {**payload, "conditions": conditions}

    return change


def _without_answer_ids(payload: Payload) -> Payload:
    return {**payload, "conditions": [{**row, "answers": ""} for row in payload["conditions"]]}


def _with_short_texts(payload: Payload) -> Payload:
    texts = [t if len(t) <= SHORT else t[:SHORT] + " …" for t in payload["chunks"]["text"]]
    return {**payload, "chunks": {**payload["chunks"], "text": texts}}


def _without_texts(payload: Payload) -> Payload:
    nothing = [""] * len(payload["chunks"]["text"])
    return {**payload, "chunks": {**payload["chunks"], "text": nothing}}


def _without_questions(payload: Payload) -> Payload:
    """No explorer: verdicts and tables stay, single questions are in the database."""
    nothing: Payload = {name: [] for name in payload["questions"]}
    return {
        **payload,
        "questions": nothing,
        "conditions": [],
        "systems": [],
        "families": [],
        "decisions": [],
        "retrieved": {},
        "overtaken": [],
    }


STEPS: tuple[tuple[str, Callable[[Payload], Payload]], ...] = (
    ("log-likelihoods of ways to answer that are not in the tables", _without_logliks(False)),
    ("all log-likelihoods", _without_logliks(True)),
    ("ids of answers", _without_answer_ids),
    (f"what passages hold beyond {SHORT} characters", _with_short_texts),
    ("texts of passages", _without_texts),
    ("all single questions", _without_questions),
)
"""What is left out where a page would be too large, first things first."""


def fitted(payload: Payload, limit: int = LIMIT) -> tuple[str, list[str]]:
    """The packed payload within a limit, and what was left out for it."""
    text, left_out = packed(payload), []
    for what, change in STEPS:
        if len(text) <= limit:
            break
        left_out.append(what)
        payload = change(payload) | {"left_out": list(left_out)}
        text = packed(payload)
    return text, left_out
