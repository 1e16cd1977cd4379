"""A study so small that every flip in it is known: articles of two passages, answers by a hash.

The "model" chooses by a hash of what it is shown, so that an answer is another one exactly where
its prompt or its checkpoint is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kinject_assets.config import Profile
from kinject_assets.core import schema
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.results.loader import build_database
from kinject_assets.core.store import Cell, Store, write_rows
from kinject_assets_tests.core.results.synthetic import NOW

MODEL, RECIPE = "tiny", "full.p01"
BRILL = "Brill | <script>"
ARTICLES: dict[str, str] = dict.fromkeys(("Ashwick", BRILL, "Corve", "Dunmere", "Eyot"), "1")
KS = (1, 3)


@dataclass(frozen=True)
class World:
    """What a study was made of.

    Attributes:
        articles: Title -> revision. The second passage of an article is another one in each
            revision, the first one never changes; questions are on first passages.
        encoder: Another one ranks otherwise.
        learning_rate: Of training.
        paraphrases: Another version of them has other texts.
        libraries: Of the answers.
        shots: Solved examples in front of each question.
        nudge: Part of the "model"'s numbers.
    """

    articles: Mapping[str, str] = field(default_factory=lambda: dict(ARTICLES))
    encoder: str = "encoder-a"
    learning_rate: float = 1e-4
    paraphrases: str = "1"
    libraries: Mapping[str, str] = field(default_factory=lambda: {"torch": "2.8.0"})
    shots: int = 0
    nudge: str = ""
    corpus: str = "handbook"
    retriever: str = "dense"

    def chunks(self) -> list[schema.Chunk]:
        """Two passages of each article."""
        return [
            schema.Chunk(
                chunk_id=content_hash(title, part if part == "first" else revision),
                article_id=title.lower(),
                revision_id=revision,
                ordinal=2 * place + (part != "first"),
                title=title,
                section="",
                n_tokens=4,
                small=False,
                text=f"{title} {part} {revision if part == 'second' else ''}",
            )
            for place, (title, revision) in enumerate(sorted(self.articles.items()))
            for part in ("first", "second")
        ]

    def questions(self) -> list[schema.Question]:
        """One on each first passage; that of Eyot is the solved example."""
        return [
            schema.Question(
                question_id=f"q-{chunk.title}",
                origin="llm",
                stem=f"What of {chunk.title}?",
                options=["a", "b", "c", "d"],
                gold=place % 4,
                chunk_id=chunk.chunk_id,
                generator="writer",
                generation_id="",
                triage="",
                split="shots" if chunk.title == "Eyot" else "test",
                retired=False,
            )
            for place, chunk in enumerate(self.chunks()[::2])
        ]

    def retrieved(self) -> list[schema.Retrieved]:
        """The own passage of the question first, then those behind it in the corpus.

        With another encoder, those before it.
        """
        chunks = self.chunks()
        step = 1 if self.encoder == "encoder-a" else -1
        found: list[schema.Retrieved] = []
        for place, question in enumerate(self.questions()):
            order = [(2 * place + n * step) % len(chunks) for n in range(max(KS))]
            found += [
                schema.Retrieved(
                    corpus=self.corpus,
                    question_id=question.question_id,
                    retriever=self.retriever,
                    rank=rank,
                    chunk_id=chunks[at].chunk_id,
                    score=1 / rank,
                    hit=chunks[at].chunk_id == question.chunk_id,
                )
                for rank, at in enumerate(order, start=1)
            ]
        return found

    @property
    def checkpoint_id(self) -> str:
        """Changes with all that it was trained on and by."""
        chunks = [chunk.chunk_id for chunk in self.chunks()]
        return content_hash(chunks, self.learning_rate, self.paraphrases)

    def texts(self) -> list[schema.Paraphrase]:
        """A paraphrase of each passage."""
        return [
            schema.Paraphrase(
                paraphrase_id=content_hash("p", chunk.chunk_id, self.paraphrases),
                chunk_id=chunk.chunk_id,
                augmentation="paraphrase",
                purpose="train",
                ordinal=0,
                seed=0,
                generator="writer",
                generation_id="",
                text=f"other words {self.paraphrases}",
            )
            for chunk in self.chunks()
        ]

    def answers(self, condition: schema.Condition, checkpoint_id: str) -> list[schema.Answer]:
        """By a hash of what stands in front of the question, and of the checkpoint."""
        questions = self.questions()
        shots = [q.question_id for q in questions if q.split == "shots"][: condition.shots]
        ranked: dict[str, list[str]] = {}
        for row in self.retrieved():
            if row.rank <= condition.k:
                ranked.setdefault(row.question_id, []).append(row.chunk_id)
        found: list[schema.Answer] = []
        for q in questions:
            if q.split != "test":
                continue
            prompt_id = content_hash(q.question_id, shots, ranked.get(q.question_id, []))
            choice = int(content_hash(prompt_id, checkpoint_id, self.nudge)[:8], 16) % 4
            found.append(
                schema.Answer(
                    condition_id=condition.condition_id,
                    question_id=q.question_id,
                    answer_id=content_hash(condition.condition_id, q.question_id, checkpoint_id),
                    choice=choice,
                    gold=q.gold,
                    correct=choice == q.gold,
                    logliks=[0.0, -1.0, -2.0, -3.0],
                    truncated_tokens=0,
                    checkpoint_id=checkpoint_id,
                    run_id="run-of-answers",
                    places=[choice],
                    prompt_id=prompt_id,
                )
            )
        return found

    def conditions(self, method: str) -> list[schema.Condition]:
        """A condition for each K."""
        retrieves = method in {"rag", "ft_rag"}
        return [
            schema.Condition.of(
                corpus=self.corpus,
                model=MODEL,
                recipe=RECIPE if method.startswith("ft") else "",
                seed=0,
                method=method,
                shots=self.shots,
                k=k,
                retriever=self.retriever if k else "",
                query="question" if k else "",
                choice_format="letter",
                rotation=False,
                engine="test",
            )
            for k in (KS if retrieves else (0,))
        ]

    def write(self, root: Path) -> Path:
        """Writes the lake and builds the database; the database."""
        store, at = Store(root), (self.corpus,)
        articles = [_article(title, revision) for title, revision in self.articles.items()]
        _publish(store, "articles", at, articles=articles, exclusions=[])
        _publish(store, "chunks", at, chunks=self.chunks(), retired=[])
        _publish(store, "questions", at, questions=self.questions(), rejections=[])
        encoder = {"model": self.encoder}
        _publish(store, "embeddings", at, config=encoder, articles=articles)
        _publish(store, "faiss_index", at, config={"index": "auto"}, articles=articles)
        config = {"encoder": encoder, "depth": 10}
        _publish(store, "retrieved", at, config=config, retrieved=self.retrieved())
        _publish(
            store,
            "paraphrases",
            at,
            counts={"prefixes": {"p01": content_hash(self.paraphrases, self.articles)}},
            paraphrases=self.texts(),
            rejections=[],
        )
        trained = (self.corpus, f"{MODEL}.{RECIPE}")
        self._publish_checkpoint(store, trained)
        for method in ("base", "rag", "ft", "ft_rag"):
            tuned = method.startswith("ft")
            conditions = self.conditions(method)
            checkpoint = self.checkpoint_id if tuned else ""
            _publish(
                store,
                f"answers_{method}",
                trained if tuned else (self.corpus, MODEL),
                libraries=self.libraries,
                config={"scoring": {"choice_format": "letter"}},
                answers=[row for c in conditions for row in self.answers(c, checkpoint)],
                conditions=conditions,
            )
        build_database(store, self.profile())
        return root / "results.duckdb"

    def profile(self) -> Profile:
        """The experiment."""
        return Profile.model_validate(
            {
                "name": "world",
                "corpora": {self.corpus: {"source": {"kind": "files", "folder": "texts"}}},
                "models": {MODEL: {"source": "somewhere/tiny"}},
                "recipes": {RECIPE: None},
                "grid": [{"corpora": [self.corpus], "models": [MODEL], "recipes": [RECIPE]}],
                "scoring": {"k": list(KS), "shots": [self.shots]},
            }
        )

    def _publish_checkpoint(self, store: Store, parts: tuple[str, ...]) -> None:
        row = schema.Checkpoint(
            checkpoint_id=self.checkpoint_id,
            corpus=self.corpus,
            model=MODEL,
            recipe=RECIPE,
            seed=0,
            method="lora",
            n_paraphrases=1,
            repeats=0,
            learning_rate=self.learning_rate,
            epochs=1,
            steps=1,
            packed_tokens=10,
            replay_tokens=0,
            validation_loss=1.0,
            seconds=1.0,
        )
        _publish(
            store,
            "checkpoint",
            parts,
            config={"training": {"learning_rates": [self.learning_rate]}},
            inputs={
                key: store.input_version(key) or ""
                for key in (f"chunks/{self.corpus}", f"paraphrases/{self.corpus}#p01")
            },
            checkpoint=[row],
            trials=[],
            damage=[],
        )


TYPES = {
    "articles": schema.Article,
    "exclusions": schema.Exclusion,
    "chunks": schema.Chunk,
    "retired": schema.Chunk,
    "questions": schema.Question,
    "rejections": schema.Rejection,
    "retrieved": schema.Retrieved,
    "paraphrases": schema.Paraphrase,
    "checkpoint": schema.Checkpoint,
    "trials": schema.Trial,
    "damage": schema.Damage,
    "answers": schema.Answer,
    "conditions": schema.Condition,
}


def _article(title: str, revision: str) -> schema.Article:
    return schema.Article(
        article_id=title.lower(),
        revision_id=revision,
        source="files",
        title=title,
        revised_at=NOW,
        fetched_at=NOW,
        url=f"{title}.txt",
        licence="CC0",
        text_sha256=content_hash(title, revision),
        n_chars=20,
        headings=[""],
        bodies=["body"],
    )


def _publish(
    store: Store,
    asset: str,
    parts: tuple[str, ...],
    *,
    config: Mapping[str, object] | None = None,
    libraries: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
    counts: Mapping[str, object] | None = None,
    **files: list,
) -> None:
    cell = Cell(asset, parts)
    with store.draft(cell) as draft:
        for name, rows in files.items():
            write_rows(draft / f"{name}.parquet", rows, TYPES[name])
        store.publish(
            cell,
            draft,
            partition="|".join(parts),
            logical_version=content_hash(asset, str(files)),
            fingerprint="f",
            code_version="1",
            inputs=inputs or {},
            config=config or {},
            started_at=NOW,
            run_id=f"run-of-{asset}",
            libraries=libraries or {},
            counts=counts,
        )
