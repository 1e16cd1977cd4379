"""What is checked of every artefact, and what to do when it does not hold."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from kinject_assets.config import Chunking
from kinject_assets.core.exams.novelty import Novelty
from kinject_assets.core.exams.writing import right_is_longest
from kinject_assets.core.lineage.audit import Audit
from kinject_assets.core.retrieval.index import ChunkIndex
from kinject_assets.core.schema import (
    Answer,
    Article,
    Checkpoint,
    Chunk,
    Damage,
    Question,
    Triage,
)
from kinject_assets.core.statistics.claims import Claim
from kinject_assets.core.statistics.letters import collapse, places
from kinject_assets.defs.io import check

PUBLISHED_VERDICTS = {
    "rag_above_base": "replicated",
    "rag_not_below_ft": "replicated",
    "ft_adds_nothing_to_rag": "replicated",
    "par_above_reg": "replicated",
    "rises_with_paraphrases": "not tested",
    "shots_help": "replicated",
    "no_best_k": "replicated",
}
"""What the published tables say of each claim, by their point estimates."""

SAMPLE = 1000
"""Vectors that are searched to check an index."""

OUTSIDE = re.compile(
    r"""(?:src|href)=["'](?:https?:)?//[^"']+["'](?=[^>]*\bas=)|@import[^;]+|"""
    r"""<(?:script|img|link|iframe)[^>]+(?:src|href)=["'](?:https?:)?//[^"']+"""
)
"""What a browser would fetch from elsewhere; plain links to articles are not fetched."""

if TYPE_CHECKING:
    import numpy as np

CHECKS: dict[str, dict[str, str]] = {
    "articles": {
        "no_markup_left": "Plain text holds no wiki markup.",
        "has_articles": "The corpus is not empty.",
        "facts_are_new": "Facts that the profile calls new are younger than every model.",
    },
    "chunks": {
        "within_budget": "No chunk is longer than chunking.max_tokens.",
        "enough_to_ask": "Some chunks are long enough to write questions from.",
    },
    "questions": {
        "gold_balanced": "The right option stands at each place about equally often.",
        "enough_shots": "There are as many few-shot examples as scoring.shots asks for.",
        "length_says_nothing": "The right option is not the longest one more often than by chance.",
    },
    "paraphrases": {"complete": "Every chunk has the texts that were asked for."},
    "validation_paraphrases": {"complete": "Every drawn chunk has its paraphrases."},
    "embeddings": {"normalised": "Every vector has length 1."},
    "faiss_index": {"finds_itself": "Each chunk's own vector is its nearest neighbour."},
    "retrieved": {"recall": "The chunk that a question was written from is among those found."},
    "checkpoint": {"learned": "Loss on validation paraphrases fell below the base model's first."},
    "answers_base": {
        "complete": "Every test question is answered under every condition.",
        "no_collapse": "No condition is below chance or gives one letter throughout.",
        "nothing_cut": "No prompt lost text to fit the window.",
    },
    "triage": {
        "few_broken": "Few questions look as if their key were wrong.",
        "new_to_the_models": "Where the profile says so, the facts are new to the models.",
    },
    "damage": {"still_reads": "Retrieved text is read about as well as before training."},
    "results": {
        "has_scores": "The database holds scores.",
        "letters_not_collapsed": "No condition gives one letter throughout or is below chance.",
    },
    "claims": {"self_test": "The claims' code finds what the published tables are known to show."},
    "report": {"offline": "The report asks for nothing from outside."},
    "lineage_audit": {"sound": "Manifests, files, inputs and Dagster's event log agree."},
}
for _method in ("rag", "ft", "ft_rag"):
    CHECKS[f"answers_{_method}"] = CHECKS["answers_base"]


def specs(asset: str) -> list[dg.AssetCheckSpec]:
    """Check specifications of an asset."""
    return [
        dg.AssetCheckSpec(name, asset=asset, description=description)
        for name, description in CHECKS[asset].items()
    ]


def articles(rows: Sequence[Article], facts: Novelty) -> list[dg.AssetCheckResult]:
    """Checks of articles; facts that are older than a model are not let pass for new."""
    marks = ("[[", "{{", "<ref", "{|")
    marked = sorted({a.title for a in rows for b in a.bodies if any(m in b for m in marks)})
    return [
        check(
            "no_markup_left",
            not marked,
            f"{len(marked)} articles hold markup, e.g. {marked[:3]}; report the pages as a bug"
            if marked
            else "no markup",
            warn=True,
        ),
        check("has_articles", bool(rows), f"{len(rows)} articles"),
        check(
            "facts_are_new",
            facts.new or facts.since is None,
            str(facts)
            + (
                ". Set new_facts_since (or the window) later than the cut-off, leave the model "
                "out, or remove new_facts_since: the facts are then not called new"
                if facts.older
                else "; add models.NAME.knowledge_cutoff"
                if facts.unknown
                else ""
            ),
            warn=not facts.older,
        ),
    ]


def chunks(rows: Sequence[Chunk], settings: Chunking) -> list[dg.AssetCheckResult]:
    """Checks of chunks."""
    longest = max((row.n_tokens for row in rows), default=0)
    askable = sum(not row.small for row in rows)
    return [
        check("within_budget", longest <= settings.max_tokens, f"longest: {longest} tokens"),
        check(
            "enough_to_ask",
            askable > 0,
            f"{askable} of {len(rows)} chunks have at least {settings.min_tokens} tokens"
            + ("" if askable else "; lower chunking.min_tokens"),
        ),
    ]


def questions(rows: Sequence[Question], shots: Sequence[int]) -> list[dg.AssetCheckResult]:
    """Checks of an exam's questions, without retired ones."""
    test = [row for row in rows if row.split == "test"]
    counts = Counter(row.gold for row in test)
    most = max(counts.values(), default=0)
    options = max((len(row.options) for row in test), default=1)
    # Three standard deviations above an even share.
    even = len(test) / options
    limit = even + 3 * (even * (1 - 1 / options)) ** 0.5
    ready = sum(row.split == "shots" for row in rows)
    longest = right_is_longest(test)
    share, chance = longest["share"], longest["chance"]
    # Three standard deviations above what length would do by chance.
    noise = 3 * (chance * (1 - chance) / max(1, len(test))) ** 0.5
    return [
        check(
            "gold_balanced",
            most <= limit,
            f"right options by place: {dict(sorted(counts.items()))}"
            + ("" if most <= limit else "; another exams.seed shuffles anew"),
            warn=True,
        ),
        check(
            "enough_shots",
            ready >= max(shots),
            f"{ready} few-shot examples, {max(shots)} asked for"
            + ("" if ready >= max(shots) else "; raise exams.shots_share"),
            warn=True,
        ),
        check(
            "length_says_nothing",
            share <= chance + noise,
            f"the right option is the longest in {share:.0%} of the questions, by chance "
            f"{chance:.0%}"
            + (
                ""
                if share <= chance + noise
                else "; models can guess by length: review with `kinject exam review`, or ask "
                "another llm.model"
            ),
            warn=True,
        ),
    ]


def paraphrases(there: Mapping[str, int], wanted: Mapping[str, int]) -> list[dg.AssetCheckResult]:
    """Checks of the texts to train on: how many of those that each augmentation was to write."""
    missing = any(there.get(name, 0) < count for name, count in wanted.items())
    counts = ", ".join(f"{there.get(name, 0)} of {n} {name} texts" for name, n in wanted.items())
    return [
        check(
            "complete",
            not missing,
            counts + ("; see the rejections, or raise augmentation.attempts" if missing else ""),
            warn=True,
        )
    ]


def embeddings(vectors: "np.ndarray") -> list[dg.AssetCheckResult]:
    """Checks of vectors."""
    lengths = (vectors**2).sum(axis=1) ** 0.5
    worst = float(abs(lengths - 1).max()) if len(lengths) else 0.0
    return [
        check(
            "normalised",
            worst < 1e-3,
            f"lengths differ from 1 by at most {worst:.1e}"
            + ("" if worst < 1e-3 else "; some chunk has no vector: is its text empty?"),
        )
    ]


def faiss_index(index: ChunkIndex, vectors: "np.ndarray") -> list[dg.AssetCheckResult]:
    """Checks of an index, on its first vectors."""
    some = vectors[:SAMPLE]
    scores, _ = index.index.search(some, 1)  # pyright: ignore[reportCallIssue]
    own = (some**2).sum(axis=1)
    good = bool((scores[:, 0] >= own - 1e-4).all())
    return [
        check(
            "finds_itself",
            good,
            f"{len(some)} vectors searched"
            + ("" if good else "; the index is not of these vectors: materialise embeddings again"),
        )
    ]


def retrieved(recall: Mapping[str, float]) -> list[dg.AssetCheckResult]:
    """Checks of retrieval."""
    found = recall.get("recall_at_5")
    if found is None:
        return [check("recall", True, "not written from chunks: nothing to recall", warn=True)]
    return [
        check(
            "recall",
            found >= 0.5,
            f"{found:.0%} of questions have their own chunk among the first 5"
            + ("" if found >= 0.5 else "; try another encoder or smaller chunks"),
            warn=True,
        )
    ]


def checkpoint(row: Checkpoint, first_validation_loss: float | None) -> list[dg.AssetCheckResult]:
    """Checks of a checkpoint."""
    if row.validation_loss is None or first_validation_loss is None:
        return [check("learned", True, "no validation paraphrases to measure with", warn=True)]
    better = row.validation_loss < first_validation_loss
    return [
        check(
            "learned",
            better,
            f"validation loss {first_validation_loss:.3f} before, {row.validation_loss:.3f} after"
            + ("" if better else "; try other training.learning_rates"),
            warn=True,
        )
    ]


def answers(rows: Sequence[Answer], wanted: int) -> list[dg.AssetCheckResult]:
    """Checks of answers."""
    cut = sum(row.truncated_tokens > 0 for row in rows)
    by_condition: defaultdict[str, list[Answer]] = defaultdict(list)
    for row in rows:
        by_condition[row.condition_id].append(row)
    reasons = Counter(
        reason
        for found in by_condition.values()
        if (
            reason := collapse(
                sum(row.correct for row in found),
                len(found),
                sum(1 / len(row.logliks) for row in found) / len(found),
                places(found),
            )
        )
    )
    chosen = ", ".join(f"{place.letter} {place.chosen:.0%}" for place in places(rows))
    collapsed = ", ".join(f"{reason} in {n}" for reason, n in reasons.items())
    return [
        check("complete", len(rows) == wanted, f"{len(rows)} of {wanted} answers"),
        check(
            "no_collapse",
            not collapsed,
            f"chosen: {chosen}"
            + (
                f"; {collapsed} of {len(by_condition)} conditions: see the table letter_bias, and "
                "compare with base"
                if collapsed
                else ""
            ),
            warn=True,
        ),
        check(
            "nothing_cut",
            cut == 0,
            f"{cut} prompts lost shots or chunks to fit the window"
            + ("; use fewer shots, a smaller K or shorter chunks" if cut else ""),
            warn=True,
        ),
    ]


def triage(rows: Sequence[Triage], said_to_be_new: bool) -> list[dg.AssetCheckResult]:
    """Checks of what the base models make of an exam."""
    strata = Counter(row.stratum for row in rows)
    n = max(1, len(rows))
    broken, new = strata["broken"] / n, strata["new"] / n
    return [
        check(
            "few_broken",
            broken <= 0.1,
            f"{broken:.0%} of the questions look as if another option were right"
            + ("; read some of them in the table `triage` beside their chunks" if broken else ""),
            warn=True,
        ),
        check(
            "new_to_the_models",
            not said_to_be_new or new >= 0.5,
            f"{new:.0%} of the questions are new to the base models"
            + (
                "; are the facts younger than the models' knowledge_cutoff? Look at the strata"
                if said_to_be_new and new < 0.5
                else ""
            ),
            warn=True,
        ),
    ]


def damage(rows: Sequence[Damage]) -> list[dg.AssetCheckResult]:
    """Checks of what training cost: readers that read clearly worse are pointed out."""
    worse = [
        f"{row.probe} fell from {row.before:.3f} to {row.after:.3f}"
        for row in rows
        if row.probe.startswith("reading:") and row.after < row.before - 0.1
    ]
    return [
        check(
            "still_reads",
            not worse,
            ("; ".join(worse) + "; fewer epochs, a smaller learning rate or lora cost less")
            if worse
            else "no reading probe fell by more than 0.1",
            warn=True,
        )
    ]


def results(
    counts: Mapping[str, int], collapsed: Sequence[Mapping[str, Any]]
) -> list[dg.AssetCheckResult]:
    """Checks of the database, with the conditions whose letters have collapsed."""
    scores = counts.get("scores", 0)
    named = [
        f"{c['corpus']} {c['model']} {c['method']} {c['recipe']} {c['shots']}-shot K={c['k']} "
        f"({c['collapse']})".replace("  ", " ")
        for c in collapsed
    ]
    return [
        check(
            "has_scores",
            scores > 0,
            f"{scores} scores" + ("" if scores else "; materialise answers first"),
        ),
        check(
            "letters_not_collapsed",
            not named,
            (
                "; ".join(named) + ". Their accuracy says little of what the model knows: compare "
                "with base, or score with rotation"
            )
            if named
            else "no condition has collapsed",
            warn=True,
        ),
    ]


def claims(of_the_paper: Sequence[Claim]) -> list[dg.AssetCheckResult]:
    """Checks of the claims: their code, run over the published tables, finds what they show."""
    wrong = [
        f"{claim.claim}: {claim.verdict}, expected {PUBLISHED_VERDICTS[claim.claim]}"
        for claim in of_the_paper
        if claim.verdict != PUBLISHED_VERDICTS[claim.claim]
    ]
    return [
        check(
            "self_test",
            not wrong,
            "; ".join(wrong) or "the published tables give the verdicts that they are known for",
        )
    ]


def report(path: Path) -> list[dg.AssetCheckResult]:
    """Checks of the report."""
    text = path.read_text(encoding="utf-8")
    outside = sorted(set(OUTSIDE.findall(text)))
    return [
        check(
            "offline",
            not outside,
            f"asks for {outside[:3]}; report this as a bug" if outside else "one file, no requests",
        )
    ]


def lineage_audit(verdict: Audit) -> list[dg.AssetCheckResult]:
    """Checks of the audit."""
    return [
        check(
            "sound",
            verdict.ok,
            str(verdict)
            if verdict.ok
            else f"{verdict}\nDelete what is broken and run `kinject run`: only that is made anew.",
        )
    ]
