"""A small lake with everything in it, written through the store as the assets write it."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinject_assets.config import Profile, RecipeSpec
from kinject_assets.core import schema
from kinject_assets.core.augmentation.registry import prefix
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.store import Cell, Store, write_rows

NOW = datetime(2031, 5, 1, tzinfo=UTC)
CORPORA = ("rivers", "events-2031-04")
MODEL = "tiny"
RECIPES = {
    "rivers": ("full.p00",),
    "events-2031-04": ("full.p00", "full.p02", "full.p04", "full.r04"),
}
KS = (1, 2, 3)
QUESTIONS = 60
TRIAGE = {"new": 30, "inferable": 15, "known": 10, "broken": 5}
"""Stratum -> how many of the test questions of the events it holds."""
SKILL = {"base": 0.3, "rag": 0.8, "ft": 0.45, "ft_rag": 0.75}


def profile() -> Profile:
    """The experiment of the synthetic lake."""
    files = {"kind": "files", "folder": "texts"}
    return Profile.model_validate(
        {
            "name": "synthetic",
            "corpora": {
                "rivers": {"title": "Rivers & <b>lakes</b>", "source": files, "table": 1},
                "events-2031-04": {"source": files, "table": 2},
            },
            "models": {MODEL: {"source": "somewhere/tiny", "knowledge_cutoff": "2030-12-31"}},
            "recipes": dict.fromkeys(RECIPES["events-2031-04"]),
            "grid": [
                {"corpora": [corpus], "models": [MODEL], "recipes": list(recipes)}
                for corpus, recipes in RECIPES.items()
            ],
            "scoring": {"k": list(KS)},
        }
    )


def publish(
    store: Store,
    cell: Cell,
    files: Mapping[str, tuple[type, Sequence[Any]]],
    inputs: Iterable[Cell] = (),
    version: str = "",
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Publishes rows as an artefact; its version is that of its first file's rows."""
    first = next(iter(files.values()))[1]
    with store.draft(cell) as draft:
        for name, (row_type, rows) in files.items():
            write_rows(draft / f"{name}.parquet", rows, row_type)
        store.publish(
            cell,
            draft,
            partition="|".join(cell.parts),
            logical_version=version or content_hash([asdict(r) for r in first]),
            fingerprint="f",
            code_version="1",
            inputs={str(c): store.input_version(str(c)) or "" for c in inputs},
            config={},
            started_at=NOW,
            libraries={"kinject": "0.1"},
            counts=counts,
        )


def article(number: int, revision: str = "1") -> schema.Article:
    """An article; the third is in both corpora."""
    return schema.Article(
        article_id=f"article{number}",
        revision_id=revision,
        source="files",
        title=f"Article {number} <script>",
        revised_at=NOW,
        fetched_at=NOW,
        url=f"https://example.org/{number}",
        licence="CC0",
        text_sha256=content_hash(number, revision),
        n_chars=20,
        headings=[""],
        bodies=["body"],
    )


def chunk(number: int) -> schema.Chunk:
    """The only chunk of an article."""
    return schema.Chunk(
        chunk_id=f"chunk{number}",
        article_id=f"article{number}",
        revision_id="1",
        ordinal=number,
        title=f"Article {number}",
        section="",
        n_tokens=4,
        small=False,
        text=f"text of chunk {number}",
    )


def question(corpus: str, number: int, chunks: Sequence[schema.Chunk]) -> schema.Question:
    """A question; the last two are a few-shot example and a retired one."""
    return schema.Question(
        question_id=f"q-{corpus}-{number}",
        origin="llm",
        stem=f"What is {number}?",
        options=["a", "b", "c", "d"],
        gold=number % 4,
        chunk_id=chunks[number % len(chunks)].chunk_id,
        generator="writer",
        generation_id="g1",
        triage="",
        split="shots" if number == QUESTIONS else "test",
        retired=number == QUESTIONS + 1,
    )


def condition(corpus: str, method: str, k: int, shots: int, recipe: str) -> schema.Condition:
    """A condition of the synthetic grid."""
    return schema.Condition.of(
        corpus=corpus,
        model=MODEL,
        recipe=recipe,
        seed=RecipeSpec.parse(recipe).seed if recipe else 0,
        method=method,
        shots=shots,
        k=k,
        retriever="dense" if k else "",
        query="question" if k else "",
        choice_format="letter",
        rotation=False,
        engine="test",
    )


def answers(
    conditions: Sequence[schema.Condition],
    questions: Sequence[schema.Question],
    checkpoint_id: str,
) -> list[schema.Answer]:
    """Answers drawn by a seed of the condition; more skill with K = 2 and with paraphrases."""
    found: list[schema.Answer] = []
    for c in conditions:
        draw = random.Random(f"{c.corpus}{c.method}{c.k}{c.shots}{c.recipe}")
        paraphrases = RecipeSpec.parse(c.recipe).n_paraphrases if c.recipe else 0
        skill = SKILL[c.method] + 0.1 * (c.k == 2) + 0.02 * paraphrases
        for q in questions:
            correct = draw.random() < skill
            choice = q.gold if correct else (q.gold + 1) % 4
            found.append(
                schema.Answer(
                    condition_id=c.condition_id,
                    question_id=q.question_id,
                    answer_id=content_hash(c.condition_id, q.question_id),
                    choice=choice,
                    gold=q.gold,
                    correct=correct,
                    logliks=[0.0, -1.0, -2.0, -3.0],
                    truncated_tokens=0,
                    checkpoint_id=checkpoint_id,
                    run_id="run",
                    places=[choice],
                )
            )
    return found


def checkpoint(corpus: str, recipe: str) -> schema.Checkpoint:
    """A checkpoint's row."""
    return schema.Checkpoint(
        checkpoint_id=f"ck-{corpus}-{recipe}",
        corpus=corpus,
        model=MODEL,
        recipe=recipe,
        seed=0,
        method="full",
        n_paraphrases=RecipeSpec.parse(recipe).n_paraphrases,
        repeats=4 if ".r" in recipe else 0,
        learning_rate=1e-4,
        epochs=2,
        steps=10,
        packed_tokens=1000,
        replay_tokens=0,
        validation_loss=1.5,
        seconds=3.0,
    )


def paraphrase(
    corpus: str, purpose: str, number: int, ordinal: int, augmentation: str = "paraphrase"
) -> schema.Paraphrase:
    """A text on a chunk."""
    return schema.Paraphrase(
        paraphrase_id=f"{augmentation[0]}-{corpus}-{purpose}-{number}-{ordinal}",
        chunk_id=f"chunk{number}",
        augmentation=augmentation,
        purpose=purpose,
        ordinal=ordinal,
        seed=ordinal,
        generator="writer",
        generation_id="g2",
        text="other words",
    )


def generation(name: str, cost: float | None = 0.01) -> schema.Generation:
    """A request of the ledger."""
    return schema.Generation(
        generation_id=name,
        purpose="questions",
        model="writer",
        attempt=0,
        input_tokens=10,
        output_tokens=5,
        cost_usd=cost,
        seconds=1.0,
        state="received",
        created_at=NOW,
    )


GENERATIONS = (generation("g1"), generation("g2", None))


def _write_texts(store: Store, corpus: str, numbers: Sequence[int]) -> list[schema.Chunk]:
    chunks = [chunk(n) for n in numbers]
    at = (corpus,)
    publish(
        store,
        Cell("articles", at),
        {
            "articles": (schema.Article, [article(n) for n in numbers]),
            "exclusions": (schema.Exclusion, []),
        },
    )
    texts = {"chunks": (schema.Chunk, chunks), "retired": (schema.Chunk, [])}
    publish(store, Cell("chunks", at), texts, [Cell("articles", at)])
    for asset, purpose, count in (
        ("paraphrases", "train", 4),
        ("validation_paraphrases", "validation", 1),
    ):
        rows = [paraphrase(corpus, purpose, n, i) for n in numbers for i in range(count)]
        publish(
            store,
            Cell(asset, at),
            {"paraphrases": (schema.Paraphrase, rows), "rejections": (schema.Rejection, [])},
            [Cell("chunks", at)],
            counts={"prefixes": {f"p{n:02d}": f"first {n}" for n in range(1, count + 1)}},
        )
    return chunks


def _write_corpus(store: Store, corpus: str, numbers: Sequence[int]) -> None:
    at = (corpus,)
    chunks = _write_texts(store, corpus, numbers)
    questions = [question(corpus, n, chunks) for n in range(QUESTIONS + 2)]
    rejection = schema.Rejection(
        rejection_id=f"r-{corpus}", kind="question", chunk_id="chunk0", reason="vague", text="?"
    )
    publish(
        store,
        Cell("questions", at),
        {
            "questions": (schema.Question, questions),
            "rejections": (schema.Rejection, [rejection]),
        },
        [Cell("chunks", at)],
    )
    found = [
        schema.Retrieved(
            corpus=corpus,
            question_id=q.question_id,
            retriever="dense",
            rank=rank,
            chunk_id=chunks[(i + rank - 1) % len(chunks)].chunk_id,
            score=1 / rank,
            hit=rank == 1,
        )
        for i, q in enumerate(questions)
        for rank in range(1, 5)
    ]
    publish(
        store,
        Cell("retrieved", at),
        {"retrieved": (schema.Retrieved, found)},
        [Cell("questions", at)],
    )
    _write_answers(store, corpus, questions)


def _write_answers(store: Store, corpus: str, questions: Sequence[schema.Question]) -> None:
    upstream = [Cell("questions", (corpus,))]
    for method, ks in (("base", (0,)), ("rag", KS)):
        conditions = [condition(corpus, method, k, s, "") for k in ks for s in (0, 5)]
        publish(
            store,
            Cell(f"answers_{method}", (corpus, MODEL)),
            {
                "answers": (schema.Answer, answers(conditions, questions, "")),
                "conditions": (schema.Condition, conditions),
            },
            upstream,
        )
    for recipe in RECIPES[corpus]:
        cell = Cell("checkpoint", (corpus, f"{MODEL}.{recipe}"))
        row = checkpoint(corpus, recipe)
        publish_checkpoint(store, cell, row)
        for method, ks in (("ft", (0,)), ("ft_rag", KS)):
            conditions = [condition(corpus, method, k, s, recipe) for k in ks for s in (0, 5)]
            publish(
                store,
                Cell(f"answers_{method}", cell.parts),
                {
                    "answers": (
                        schema.Answer,
                        answers(conditions, questions, row.checkpoint_id),
                    ),
                    "conditions": (schema.Condition, conditions),
                },
                [*upstream, cell],
            )


def publish_checkpoint(
    store: Store, cell: Cell, row: schema.Checkpoint, augmentation: str = "paraphrase"
) -> None:
    """Publishes a checkpoint with two epochs of one trial and one probe; no weights."""
    trials = [
        schema.Trial(
            checkpoint_id=row.checkpoint_id,
            trial=0,
            learning_rate=1e-4,
            epoch=epoch,
            training_loss=2.0 - epoch / 2,
            validation_loss=2.5 - epoch / 2,
            kept=epoch == 2,
        )
        for epoch in (1, 2)
    ]
    damage = schema.Damage(
        checkpoint_id=row.checkpoint_id, probe="perplexity", before=10.0, after=11.0
    )
    weights = {"weight": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
    with store.draft(cell) as draft:
        _save_model(draft / "model", weights)
        write_rows(draft / "checkpoint.parquet", [row], schema.Checkpoint)
        write_rows(draft / "trials.parquet", trials, schema.Trial)
        write_rows(draft / "damage.parquet", [damage], schema.Damage)
        store.publish(
            cell,
            draft,
            partition="|".join(cell.parts),
            logical_version=row.checkpoint_id,
            fingerprint="f",
            code_version="1",
            inputs={key: store.input_version(key) or "" for key in _read_by(row, augmentation)},
            config={},
            started_at=NOW,
        )


def _read_by(row: schema.Checkpoint, augmentation: str) -> list[str]:
    """What a checkpoint was made from, as manifests spell it."""
    spec = RecipeSpec.parse(row.recipe)
    part = f"paraphrases/{row.corpus}#{prefix(augmentation, spec.n_paraphrases)}"
    alone = spec.control_of or not spec.n_paraphrases
    return [f"chunks/{row.corpus}", *([] if alone else [part])]


def _save_model(folder: Path, weights: Mapping[str, Any]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["TinyForCausalLM"]}')
    save_file(
        {name: np.array(rows, dtype=np.float32) for name, rows in weights.items()},
        folder / "model.safetensors",
    )


def write_lake(root: Path) -> Store:
    """The whole lake; article 2 and its chunk are in both corpora."""
    store = Store(root)
    for corpus, numbers in zip(CORPORA, (range(0, 10), range(2, 14)), strict=True):
        _write_corpus(store, corpus, list(numbers))
    return store


def add_seeds(store: Store, corpus: str, recipes: Sequence[str]) -> None:
    """Answers of checkpoints that differ from a recipe of the lake in their seed."""
    questions = store.rows(Cell("questions", (corpus,)), "questions", schema.Question)
    for recipe in recipes:
        for method, ks in (("ft", (0,)), ("ft_rag", KS)):
            conditions = [condition(corpus, method, k, 0, recipe) for k in ks]
            publish(
                store,
                Cell(f"answers_{method}", (corpus, f"{MODEL}.{recipe}")),
                {
                    "answers": (schema.Answer, answers(conditions, questions, f"ck-{recipe}")),
                    "conditions": (schema.Condition, conditions),
                },
            )


def add_augmented(store: Store, corpus: str) -> None:
    """Question/answer texts, `full.p02.qa` trained on them, its control, and 0-shot answers."""
    cell = Cell("paraphrases", (corpus,))
    rows = store.rows(cell, "paraphrases", schema.Paraphrase)
    numbers = sorted({int(row.chunk_id.removeprefix("chunk")) for row in rows})
    asked = [
        paraphrase(corpus, "train", n, ordinal, "question_answer")
        for n in numbers
        for ordinal in range(2)
    ]
    prefixes = {f"p{n:02d}": f"first {n}" for n in range(1, 5)}
    prefixes |= {prefix("question_answer", n): f"first {n} asked" for n in (1, 2)}
    publish(
        store,
        cell,
        {
            "paraphrases": (schema.Paraphrase, [*rows, *asked]),
            "rejections": (schema.Rejection, []),
        },
        counts={"prefixes": prefixes},
    )
    for recipe in ("full.p02.qa", "full.r02.qa"):
        at = Cell("checkpoint", (corpus, f"{MODEL}.{recipe}"))
        publish_checkpoint(store, at, checkpoint(corpus, recipe), "question_answer")
    add_seeds(store, corpus, ("full.p02.qa", "full.r02.qa"))


def add_triage(store: Store, corpus: str) -> None:
    """What triage found of a corpus's questions, in the order of `TRIAGE`."""
    strata = [name for name, count in TRIAGE.items() for _ in range(count)]
    rows = [
        schema.Triage(
            question_id=f"q-{corpus}-{number}",
            stratum=stratum,
            closed_book=0.3,
            options_only=0.25,
            question_only=0.2,
            open_book=0.9,
            rival=0.05,
            models=1,
        )
        for number, stratum in enumerate(strata)
    ]
    publish(store, Cell("triage", (corpus,)), {"triage": (schema.Triage, rows)})


def add_stuck_model(store: Store, corpus: str) -> None:
    """A model that answers A whatever the order of the options is."""
    questions = store.rows(Cell("questions", (corpus,)), "questions", schema.Question)
    stuck = schema.Condition.of(
        corpus=corpus,
        model="stuck",
        recipe="",
        seed=0,
        method="base",
        shots=0,
        k=0,
        retriever="",
        query="",
        choice_format="letter",
        rotation=True,
        engine="test",
    )
    rows = [
        schema.Answer(
            condition_id=stuck.condition_id,
            question_id=q.question_id,
            answer_id=content_hash(stuck.condition_id, q.question_id),
            choice=0,
            gold=q.gold,
            correct=q.gold == 0,
            logliks=[-1.0] * 4,
            truncated_tokens=0,
            checkpoint_id="",
            run_id="run",
            places=[0] * 4,
        )
        for q in questions
    ]
    publish(
        store,
        Cell("answers_base", (corpus, "stuck")),
        {"answers": (schema.Answer, rows), "conditions": (schema.Condition, [stuck])},
    )


def write_rich_lake(root: Path) -> Store:
    """The lake with two more seeds, triage, and a model that is stuck on a letter."""
    store = write_lake(root)
    add_seeds(store, "events-2031-04", ("full.p04.s1", "full.p04.s2", "full.r04.s1"))
    add_triage(store, "events-2031-04")
    add_stuck_model(store, "rivers")
    return store
