"""Answers of every model to every exam, without and with retrieval."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from kinject_assets.config import RecipeSpec, Scoring
from kinject_assets.core.plan import CODE_VERSIONS, METHODS
from kinject_assets.core.report.plots import Point, accuracy_by_k, bars
from kinject_assets.core.schema import Answer, Checkpoint, Condition, Question, logical_version
from kinject_assets.core.scoring.pace import SECONDS, seconds_per_answer
from kinject_assets.core.scoring.prompts import LETTERS
from kinject_assets.core.statistics.intervals import wilson
from kinject_assets.core.store import Cell, read_rows
from kinject_assets.defs import checks
from kinject_assets.defs.compute import run_worker
from kinject_assets.defs.exams import questions
from kinject_assets.defs.io import Step, image, making, one_maker
from kinject_assets.defs.launch import ScoringSettings
from kinject_assets.defs.partitions import CORPUS_MODEL, CORPUS_RECIPE
from kinject_assets.defs.policy import ANSWERS_GROUP, OWNERS
from kinject_assets.defs.resources import Study
from kinject_assets.defs.retrieval import retrieved
from kinject_assets.defs.training import checkpoint

KINDS = {"pytorch", "parquet"}
METHOD_OF = {asset: method for method, asset in METHODS.items()}


@dg.asset(
    deps=[questions],
    partitions_def=CORPUS_MODEL,
    group_name=ANSWERS_GROUP,
    kinds=KINDS,
    owners=OWNERS,
    code_version=CODE_VERSIONS["answers_base"],
    check_specs=checks.specs("answers_base"),
    pool="gpu",
)
@one_maker
def answers_base(
    context: dg.AssetExecutionContext, config: ScoringSettings, study: Study
) -> dg.MaterializeResult:
    """What the base model knows by itself: log-likelihoods of every option of every question.

    The floor that everything else is held against. On facts that are newer than the model it should
    be near chance; where it is not, the facts are not new to it, or the questions can be guessed.
    """
    with making(context, study) as step:
        return _answers(step, config)


@dg.asset(
    deps=[questions, retrieved],
    partitions_def=CORPUS_MODEL,
    group_name=ANSWERS_GROUP,
    kinds=KINDS,
    owners=OWNERS,
    code_version=CODE_VERSIONS["answers_rag"],
    check_specs=checks.specs("answers_rag"),
    pool="gpu",
)
@one_maker
def answers_rag(
    context: dg.AssetExecutionContext, config: ScoringSettings, study: Study
) -> dg.MaterializeResult:
    """The base model with K chunks in front of each question, for every K and retriever asked for.

    What it lacks to 1 is either not retrieved (see `retrieved`) or retrieved and not read.
    """
    with making(context, study) as step:
        return _answers(step, config)


@dg.asset(
    deps=[questions, checkpoint],
    partitions_def=CORPUS_RECIPE,
    group_name=ANSWERS_GROUP,
    kinds=KINDS,
    owners=OWNERS,
    code_version=CODE_VERSIONS["answers_ft"],
    check_specs=checks.specs("answers_ft"),
    pool="gpu",
)
@one_maker
def answers_ft(
    context: dg.AssetExecutionContext, config: ScoringSettings, study: Study
) -> dg.MaterializeResult:
    """What the fine-tuned model knows by itself, with nothing in front of the question.

    Compared with `answers_base`: what training brought. Compared with the control of its recipe:
    what the paraphrases brought beyond repetition.
    """
    with making(context, study) as step:
        return _answers(step, config)


@dg.asset(
    deps=[questions, retrieved, checkpoint],
    partitions_def=CORPUS_RECIPE,
    group_name=ANSWERS_GROUP,
    kinds=KINDS,
    owners=OWNERS,
    code_version=CODE_VERSIONS["answers_ft_rag"],
    check_specs=checks.specs("answers_ft_rag"),
    pool="gpu",
)
@one_maker
def answers_ft_rag(
    context: dg.AssetExecutionContext, config: ScoringSettings, study: Study
) -> dg.MaterializeResult:
    """The fine-tuned model with K chunks in front of each question, by every retriever asked for.

    Compared with `answers_rag`: whether training helps or harms a model that retrieves.
    """
    with making(context, study) as step:
        return _answers(step, config)


def score_request(
    step: Step, corpus: str, method: str, scoring: Scoring, retrievers: Sequence[str]
) -> dict[str, Any]:
    """A request to answer a corpus's exam with the model of a cell.

    Args:
        step: A cell of a corpus and a model or a recipe.
        corpus: Whose exam; not always the cell's own.
        method: One of `METHODS`; `ft` and `ft_rag` take the checkpoint of the cell's partition.
        scoring: How; its `k` counts for the methods that retrieve.
        retrievers: Whose chunks these methods answer with.
    """
    profile, store = step.study.profile, step.study.store
    key = step.cell.parts[1]
    model, _, recipe = key.partition(".") if key not in profile.models else (key, "", "")
    exam = profile.corpora[corpus].exam
    request = {
        "corpus": corpus,
        "model": model,
        "method": method,
        "base": step.study.located(profile.models[model].source),
        "revision": profile.models[model].revision,
        "dtype": profile.models[model].dtype,
        "questions": store.reference(Cell("questions", (corpus,)), "questions.parquet"),
        "shots": list(scoring.shots),
        "k": [0],
        "choice_format": scoring.choice_format,
        "subject": exam.subject if exam.kind == "mmlu" else "",
        "rotation": scoring.rotation,
        "chat_template": scoring.chat_template,
        "add_bos": scoring.add_bos,
        "engine": scoring.engine,
        "batch_size": scoring.batch_size,
        "device": scoring.device,
        "run_id": step.context.run_id,
        "work": str(step.work),
        "out": str(step.draft),
    }
    if method in {"rag", "ft_rag"}:
        request |= {
            "k": list(scoring.k),
            "chunks": store.reference(Cell("chunks", (corpus,)), "chunks.parquet"),
            "retrieved": store.reference(Cell("retrieved", (corpus,)), "retrieved.parquet"),
            "retrievers": list(retrievers),
            "query": profile.retrieval.query,
        }
    if recipe:
        made = Cell("checkpoint", step.cell.parts)
        request |= {
            "recipe": recipe,
            "seed": RecipeSpec.parse(recipe).seed,
            "checkpoint": store.reference(made, "model"),
            "checkpoint_id": store.rows(made, "checkpoint", Checkpoint)[0].checkpoint_id,
            "adapter": RecipeSpec.parse(recipe).method != "full",
        }
    return request


def _answers(step: Step, config: ScoringSettings) -> dg.MaterializeResult:
    profile, corpus = step.study.profile, step.cell.parts[0]
    scoring = config.over(profile.scoring)
    method = METHOD_OF[step.cell.asset]
    retrievers = profile.retrieval.answering(profile.corpora[corpus].exam.kind)
    request = score_request(step, corpus, method, scoring, retrievers)
    # An answer is to a prompt, whichever retriever brought what is in it.
    earlier = step.previous("retrievers")
    request["previous"] = [step.study.store.reference(cell, ".") for cell, _ in earlier]
    done = run_worker(step, "score", request)
    rows = read_rows(step.draft / "answers.parquet", Answer)
    conditions = read_rows(step.draft / "conditions.parquet", Condition)
    tested = sum(q.split == "test" and not q.retired for q in step.rows("questions", Question))
    accuracy = _accuracy(rows, conditions)
    first = next(iter(retrievers), "")
    options = max(len(row.logliks) for row in rows)
    # Another cell's may be of this very run; what a stopped run had kept took none of this time.
    fresh = sum(row.run_id == step.context.run_id for row in rows)
    asked = min(fresh, len(rows) - done["reused"])
    pace = seconds_per_answer(step.seconds, asked, len(rows), [m for _, m in earlier])
    return step.finish(
        logical_version(rows),
        rows=rows,
        row_type=Answer,
        counts={
            "questions": tested,
            "conditions": len(conditions),
            "answers_taken_over": done["reused"],
            **({} if pace is None else {SECONDS: pace}),
            **{
                f"accuracy_{c.shots}shot_k{c.k}{_named(c, first, '_')}": value
                for c, value in accuracy.items()
            },
        },
        metadata={
            "accuracy": image(_plot(accuracy, first, tested, options), "accuracy by K"),
            "letters": image(_letters(rows), "how often each place is right and is chosen"),
            **_reading(done),
        },
        checks=checks.answers(rows, tested * len(conditions)),
        libraries=("torch", "transformers", "peft", "lm-eval"),
    )


def _reading(done: Mapping[str, Any]) -> dict[str, Any]:
    """What the model had to read, and what sharing saved; nothing if all answers were there."""
    counts = done["counts"]
    if done["unshared"]:
        return {"shared_beginnings": f"none: {done['unshared']}"}
    if not counts.get("tokens"):
        return {}
    return {
        "tokens_of_all_prompts": counts["tokens"],
        "tokens_read": counts["read"],
        "shared_beginnings": f"{1 - counts['read'] / counts['tokens']:.0%} of the tokens saved",
    }


def _named(condition: Condition, first: str, before: str) -> str:
    """The retriever of a condition where it is not the study's."""
    return before + condition.retriever if condition.retriever not in {"", first} else ""


def _plot(accuracy: Mapping[Condition, float], first: str, questions: int, options: int) -> bytes:
    """Accuracy against K with 95 % intervals, a curve for each number of shots and retriever."""
    curves: defaultdict[str, dict[int, Point]] = defaultdict(dict)
    for c, value in accuracy.items():
        low, high = wilson(round(value * questions), questions)
        curves[f"{c.shots} shots{_named(c, first, ', ')}"][c.k] = Point(value, low, high)
    return accuracy_by_k(curves, chance=1 / options)


def _letters(rows: Sequence[Answer]) -> bytes:
    """How often each place holds the right option, and how often it is chosen."""
    names = LETTERS[: max(len(row.logliks) for row in rows)]
    right, chosen = Counter[int](), Counter[int]()
    for row in rows:
        for order, place in enumerate(row.places):
            right[(row.gold - order) % len(row.logliks)] += 1
            chosen[place] += 1
    return bars(
        {
            "right": {name: right[p] / right.total() for p, name in enumerate(names)},
            "chosen": {name: chosen[p] / chosen.total() for p, name in enumerate(names)},
        },
        y_label="share of the answers",
        title="Letters: right and chosen",
    )


def _accuracy(rows: Sequence[Answer], conditions: Sequence[Condition]) -> dict[Condition, float]:
    """Share of right answers under each condition."""
    right: dict[str, list[bool]] = {c.condition_id: [] for c in conditions}
    for row in rows:
        right[row.condition_id].append(row.correct)
    return {c: sum(right[c.condition_id]) / max(1, len(right[c.condition_id])) for c in conditions}
