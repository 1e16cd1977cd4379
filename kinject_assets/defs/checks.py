"""What is checked of every artefact, and what to do when it does not hold."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from kinject_assets.config import Chunking
from kinject_assets.core.augmentation.overlap import Met, Overlap
from kinject_assets.core.exams.novelty import Novelty
from kinject_assets.core.exams.writing import right_is_longest
from kinject_assets.core.lineage.findings import Audit, Finding
from kinject_assets.core.plan import FIGURES
from kinject_assets.core.report.figures import StudyFigure
from kinject_assets.core.retrieval.index import BLOCK, ChunkIndex
from kinject_assets.core.retrieval.rule import RECALL
from kinject_assets.core.retrieval.search import hit_ranks, hits_at, recall_at
from kinject_assets.core.schema import (
    Answer,
    Article,
    Checkpoint,
    Chunk,
    Damage,
    Question,
    Retrieved,
    Triage,
)
from kinject_assets.core.statistics.claims import Claim
from kinject_assets.core.statistics.intervals import paired_difference
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
"""Vectors that are searched to check an index, at most."""

SHOWN_FINDINGS = 10
"""Findings of the audit that a check names."""

SHOWN = 100
"""Characters of a text that a check quotes."""

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
    "embeddings": {
        "normalised": "Every vector has length 1.",
        "nothing_cut": "The encoder read every chunk to its end.",
    },
    "faiss_index": {"finds_itself": "Each chunk's own vector is its nearest neighbour."},
    "retrieved": {
        "recall": "The chunk that a question was written from is among those found.",
        "not_below_lexical": "The first retriever finds it at least as often as shared words do.",
    },
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
    "damage": {
        "still_reads": "Retrieved text is read about as well as before training.",
        "letters_not_collapsed": "Training did not make the answers collapse onto a letter or "
        "below chance.",
    },
    "results": {
        "has_scores": "The database holds scores.",
        "letters_not_collapsed": "No condition gives one letter throughout or is below chance.",
        "questions_not_trained_on": "No scored question is asked in a text that is trained on.",
        "validation_not_trained_on": "No validation text is a copy of one that is trained on.",
    },
    **{
        figure: {
            "has_data": "The study has what the figure shows.",
            "is_whole": "Every page is there as PNG and SVG, and every table holds all its rows.",
        }
        for figure in FIGURES
    },
    "claims": {"self_test": "The claims' code finds what the published tables are known to show."},
    "report": {"offline": "The report asks for nothing from outside."},
    "lineage_audit": {
        "nothing_missing": "Every artefact and file that something names is there.",
        "nothing_changed": "Files, manifests and Dagster's log say the same.",
        "nothing_orphaned": "The lake holds nothing that no manifest names.",
        "rows_agree": "The database holds the rows that were written to it, and no others.",
        "chains_resolve": "Every answer leads to its question, text, checkpoint and articles.",
        "nothing_stale": "Nothing was made from what has changed since.",
    },
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


def embeddings(vectors: "np.ndarray", cut_share: float) -> list[dg.AssetCheckResult]:
    """Checks of vectors, which are read block by block.

    Args:
        vectors: One a row.
        cut_share: Share of chunks that are longer than the encoder reads.
    """
    worst = 0.0
    for start in range(0, len(vectors), BLOCK):
        lengths = (vectors[start : start + BLOCK] ** 2).sum(axis=1) ** 0.5
        worst = max(worst, float(abs(lengths - 1).max()))
    return [
        check(
            "normalised",
            worst < 1e-3,
            f"lengths differ from 1 by at most {worst:.1e}"
            + ("" if worst < 1e-3 else "; some chunk has no vector: is its text empty?"),
        ),
        check(
            "nothing_cut",
            not cut_share,
            f"{cut_share:.1%} of the chunks are longer than the encoder reads"
            + (
                "; what comes after is not found: lower chunking.max_tokens, or take an encoder "
                "that reads more"
                if cut_share
                else ""
            ),
            warn=True,
        ),
    ]


def faiss_index(index: ChunkIndex, vectors: "np.ndarray") -> list[dg.AssetCheckResult]:
    """Checks of an index, on vectors from all over the corpus."""
    some = vectors[:: -(-len(vectors) // SAMPLE)]
    scores, _ = index.search(some, 1)
    own = (some**2).sum(axis=1)
    found = int((scores[:, 0] >= own - 1e-4).sum())
    # An approximate index may miss some.
    least = len(some) if index.choice.kind == "flat" else RECALL * len(some)
    good = found >= least
    return [
        check(
            "finds_itself",
            good,
            f"{len(some)} vectors searched, {found} found"
            + (
                ""
                if good
                else "; the index is not of these vectors: materialise embeddings again, or it is "
                "too coarse: raise ef_search or nprobe under retrieval.index_parameters"
            ),
        )
    ]


def retrieved(
    rows: Mapping[str, Sequence[Retrieved]], first: str, written: bool
) -> list[dg.AssetCheckResult]:
    """Checks of retrieval.

    Args:
        rows: Retriever -> what it brought.
        first: The study's retriever.
        written: The questions were written from chunks, so that there is something to recall.
    """
    if not written or not rows[first]:
        nothing = "not written from chunks: nothing to recall"
        return [check(name, True, nothing, warn=True) for name in CHECKS["retrieved"]]
    depth = _checked_at(rows[first])
    found = recall_at(rows[first], depth)
    return [
        check(
            "recall",
            found >= 0.5,
            f"{found:.0%} of questions have their own chunk among the first {depth}"
            + ("" if found >= 0.5 else "; try another encoder or smaller chunks"),
            warn=True,
        ),
        _not_below_lexical(rows, first),
    ]


def _checked_at(rows: Sequence[Retrieved]) -> int:
    """At how many chunks recall is judged: 5, or as many as are brought."""
    return min(5, max(row.rank for row in rows))


def _not_below_lexical(rows: Mapping[str, Sequence[Retrieved]], first: str) -> dg.AssetCheckResult:
    name = "not_below_lexical"
    if first == "lexical":
        return check(name, True, "`lexical` is the first retriever", warn=True)
    if "lexical" not in rows:
        return check(
            name, True, "not compared; retrieval.also_ranked: [lexical] would do so", warn=True
        )
    depth = _checked_at(rows[first])
    mine, other = hits_at(rows[first], depth), hits_at(rows["lexical"], depth)
    gap = paired_difference(len(mine - other), len(other - mine), len(hit_ranks(rows[first])))
    worse = gap.high < 0
    return check(
        name,
        not worse,
        f"`{first}` finds the own chunk of {len(mine - other)} questions that `lexical` does not "
        f"among the first {depth}, and misses {len(other - mine)} that it does (difference in "
        f"recall from {gap.low:.3f} to {gap.high:.3f})"
        + ("; try `fused`, or another encoder, its query instruction among it" if worse else ""),
        warn=True,
    )


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
    """Checks of what training cost: worse readers, and checkpoints that answer the letter."""
    worse = [
        f"{row.probe} fell from {row.before:.3f} to {row.after:.3f}"
        for row in rows
        if row.probe.startswith("reading:") and row.after < row.before - 0.1
    ]
    collapsed = [
        f"{row.probe} collapsed in training ({row.collapse_after}): accuracy {row.before:.3f} "
        f"before, {row.after:.3f} after"
        + (
            ""
            if row.most_chosen_before is None or row.most_chosen_after is None
            else f"; the most chosen letter took {row.most_chosen_before:.0%} of the answers "
            f"before and {row.most_chosen_after:.0%} after"
        )
        for row in rows
        if row.collapse_after and not row.collapse_before
    ]
    return [
        check(
            "still_reads",
            not worse,
            ("; ".join(worse) + "; fewer epochs, a smaller learning rate or lora cost less")
            if worse
            else "no reading probe fell by more than 0.1",
            warn=True,
        ),
        check(
            "letters_not_collapsed",
            not collapsed,
            (
                "; ".join(collapsed)
                + ". Its accuracy says little of what it knows: fewer epochs, a smaller learning "
                "rate, lora or training.replay_share cost less"
            )
            if collapsed
            else "no probe collapsed that had not collapsed before training",
        ),
    ]


def results(
    counts: Mapping[str, int],
    collapsed: Sequence[Mapping[str, Any]],
    overlaps: Sequence[Overlap] = (),
) -> list[dg.AssetCheckResult]:
    """Checks of the database.

    Args:
        counts: Rows by table.
        collapsed: Conditions whose letters have collapsed.
        overlaps: What the texts to train on have of exam and validation, by corpus.
    """
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
        _not_trained_on(
            "questions_not_trained_on",
            {o.corpus: (o.questions, o.scored) for o in overlaps},
            "scored questions",
            "A lead of what is trained on them may be memory of the question: choose another "
            "augmentation, or say so",
        ),
        _not_trained_on(
            "validation_not_trained_on",
            {o.corpus: (o.texts, o.validation) for o in overlaps},
            "validation texts",
            "They make the validation loss too low, and the more so the longer training goes on: "
            "another augmentation.seed draws anew",
        ),
    ]


def _not_trained_on(
    name: str, found: Mapping[str, tuple[Sequence[Met], int]], what: str, mend: str
) -> dg.AssetCheckResult:
    """Check that training has met nothing of what it is measured with, by corpus."""
    lines = [
        f"{corpus}: {len(met)} of {of} {what} are in texts that are trained on "
        f"({sum(m.exact for m in met)} word for word; "
        f"{', '.join(sorted({m.augmentation for m in met}))}), e.g. "
        + "; ".join(f"“{m.text[:SHOWN]}”" for m in met[:3])
        for corpus, (met, of) in found.items()
        if met
    ]
    return check(
        name,
        not lines,
        f"{'. '.join(lines)}. {mend}" if lines else f"no {what} are in texts that are trained on",
        warn=True,
        met=sum(len(met) for met, _ in found.values()),
        of=sum(of for _, of in found.values()),
    )


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


def figure(found: StudyFigure, folder: Path) -> list[dg.AssetCheckResult]:
    """Checks of a figure as it was written to a folder."""
    import pyarrow.parquet as pq

    pages = [folder / f"{page.name}.{kind}" for page in found.pages for kind in ("png", "svg")]
    absent = [path.name for path in pages if not path.is_file() or not path.stat().st_size]
    short = [
        name
        for name, (_, rows) in found.tables.items()
        if pq.read_metadata(folder / f"{name}.parquet").num_rows != len(rows)
    ]
    return [
        check(
            "has_data",
            found.rows > 0,
            f"{found.rows} rows" if found.rows else " ".join(map(str, found.missing)),
            warn=True,
        ),
        check(
            "is_whole",
            not (absent or short),
            f"{', '.join(absent + short)}: not written whole; materialise again"
            if absent or short
            else f"{len(found.pages)} pages, {len(found.tables)} tables",
        ),
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
    """Checks of the audit: what is broken is an error, what is stale a warning."""
    stale = verdict.stale
    broken = {
        name: [f for f in verdict.broken if f.area == area and kind in {f.kind, ""}]
        for name, area, kind in (
            ("nothing_missing", "lake", "missing"),
            ("nothing_changed", "lake", "changed"),
            ("nothing_orphaned", "lake", "orphaned"),
            ("rows_agree", "rows", ""),
            ("chains_resolve", "chains", ""),
        )
    }
    return [
        *(_audited(name, found, verdict) for name, found in broken.items()),
        _audited("nothing_stale", stale, verdict, warn=True),
    ]


def _audited(
    name: str, found: Sequence[Finding], verdict: Audit, warn: bool = False
) -> dg.AssetCheckResult:
    said = [f"{f.artefact}: {f.detail}. Mend: {f.mend}" for f in found[:SHOWN_FINDINGS]]
    more = len(found) - len(said)
    if more > 0:
        said.append(f"and {more} more: `kinject audit --all` names them")
    return check(
        name,
        not found,
        "\n".join(said) if found else verdict.extent,
        warn=warn,
        findings=len(found),
    )
