"""Questions on passages of a folder, asked until it is decided whether retrieval helps a model."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path

from kinject_assets.config import LLM, Encoder, Files, Profile, RecipeSpec, local_or_hub
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.files import read_files
from kinject_assets.core.errors import BudgetExceeded, ProfileError
from kinject_assets.core.estimate.reckoning import by, estimate, keep_estimate, total_usd
from kinject_assets.core.estimate.spent import read_spent
from kinject_assets.core.exams.writing import Written, write_exam
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.manifest import content_hash, write_atomically
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.quick.outcome import (
    FEWEST,
    Asked,
    Outcome,
    Recipe,
    Setting,
    Stopped,
    Tally,
)
from kinject_assets.core.quick.preparing import K, model_named
from kinject_assets.core.retrieval.encoder import identify, load_embeddings, load_encoder
from kinject_assets.core.retrieval.index import build_index, save_index
from kinject_assets.core.retrieval.retrievers import BOUNDS
from kinject_assets.core.retrieval.search import hits_at
from kinject_assets.core.retrieval.steps import (
    RETRIEVED,
    EmbedRequest,
    RetrieveRequest,
    embed,
    find,
    located,
)
from kinject_assets.core.schema import Chunk, Question, Rejection, Retrieved
from kinject_assets.core.scoring.answers import ScoreRequest, score
from kinject_assets.core.starting import LAB
from kinject_assets.core.store import Store, read_rows, write_rows
from kinject_assets.core.training.models import weights_identity

PASSAGES_AT_ONCE = 10
"""Passages that questions are written on before it is looked whether that is enough."""

FEWER_AT_ONCE, FEWEST_AT_ONCE = 5, 1
"""The same where the budget does not reach for that many: what was paid already is free."""

FOLDER = "pilot"
"""Below the study's folder: passages, vectors and answers of the pilot."""

INDEXED_BY = ("index", "index_memory_gb", "index_parameters")
"""Settings of `retrieval`, beside the encoder, that decide an index."""

ANSWERED_BY = ("choice_format", "rotation", "chat_template", "add_bos", "engine")
"""Settings of `scoring` that decide an answer."""

READING_SECONDS = 3.0
"""Seconds that documents are read for, to reckon what fine-tuning would cost."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop at the latest.

    Attributes:
        questions: Asked at most.
        minutes: After which no further passages are taken.
    """

    questions: int = 100
    minutes: float = 10.0


@dataclass(frozen=True)
class Studied:
    """The one corpus and the one model of a pilot's profile."""

    profile: Profile
    corpus: str
    model: str
    source: Files

    @classmethod
    def of(cls, profile: Profile, model: str) -> "Studied":
        """The first corpus of files with a written exam, and the model of a source.

        Args:
            profile: From `prepare`.
            model: Folder, hub id or `lab:NAME`, as it was given to `prepare`.

        Raises:
            ProfileError: If the profile has no such corpus, or no such model.
        """
        name = model_named(profile, model)
        for corpus, settings in profile.corpora.items():
            if isinstance(settings.source, Files) and settings.exam.kind == "generated":
                return cls(profile, corpus, name, settings.source)
        raise ProfileError(
            f"{profile.path}: corpora: none is a folder of documents with a generated exam, which "
            "`kinject quick` needs. Use `kinject run`."
        )

    @property
    def retriever(self) -> str:
        """The study's first retriever that does not know the answer."""
        answering = self.profile.retrieval.answering("generated")
        return next((name for name in answering if name not in BOUNDS), "dense")

    @property
    def setting(self) -> Setting:
        """What was asked, of what, about what."""
        profile = self.profile
        return Setting(
            profile=profile.name,
            profile_path=str(profile.path or ""),
            corpus=self.corpus,
            model=profile.models[self.model].source,
            writer=profile.llm.model,
            lab_writer=profile.llm.base_url == LAB,
            lab_model=profile.models[self.model].source.startswith("lab:"),
            encoder=profile.retrieval.encoder.model,
            retriever=self.retriever,
            k=K,
            hardware=profile.hardware.name,
        )


def run_pilot(
    profile: Profile,
    model: str,
    store: Store,
    connect: Callable[[LLM], LLMClient],
    limits: Limits,
    report: Report = silent,
) -> Outcome:
    """Asks questions until it is decided whether RAG helps, or the limits are reached.

    What was written and answered before is found again and costs nothing.

    Args:
        profile: From `prepare`.
        model: Source of the model to ask, as it was given to `prepare`.
        store: The study's lake: its ledger is used, nothing else of it.
        connect: Gives the language model service.
        limits: When to stop at the latest.
        report: Told what is being done.

    Raises:
        ProfileError: If the profile has no folder of documents with a written exam, or another
            model.
        LLMError: If the service fails for good; what it answered is in the ledger.
        ModelError: If the model or the encoder cannot be loaded.
    """
    began = time.monotonic()
    studied = Studied.of(profile, model)
    keep_estimate(profile, store)
    report("reading documents")
    articles, _ = read_files(studied.source, profile.folder, datetime.now(UTC), report)
    report("cutting documents into passages")
    counter = token_counter(local_or_hub(profile, profile.chunking.tokenizer))
    chunks = chunk_articles(articles, profile.chunking, counter)
    bench = Bench(studied, store.root / FOLDER, chunks, report)
    exam = Exam(studied, spread(chunks, profile.exams.seed), connect(profile.llm), report)
    tally = Tally(profile.exams.keep)
    stopped = _ask(exam, bench, tally, limits, began, report)
    report("reckoning what fine-tuning would cost")
    spent = read_spent(store, profile.llm.prices)[0].bills.values()
    costs = [bill.usd for bill in spent]
    return Outcome(
        setting=studied.setting,
        documents=len(articles),
        passages=len(chunks),
        asked_passages=exam.passages,
        questions=len(tally.rows),
        rejections=exam.rejections,
        stopped=stopped,
        recipes=fine_tuning(studied, store),
        spent_usd=None if None in costs else sum(usd or 0.0 for usd in costs),
        seconds=round(time.monotonic() - began, 1),
        **tally.findings(),
    )


def _ask(
    exam: "Exam",
    bench: "Bench",
    tally: Tally,
    limits: Limits,
    began: float,
    report: Report,
) -> Stopped:
    """Asks passage after passage, and says why it stopped."""
    while True:
        n = len(tally.rows)
        report(f"{n} questions asked", n, limits.questions)
        if n >= FEWEST and tally.decision != "undecided":
            return "decided"
        if n >= limits.questions:
            return "questions"
        if time.monotonic() - began > 60 * limits.minutes:
            return "time"
        if not exam.left:
            return "passages"
        try:
            fresh = exam.write()
        except BudgetExceeded:
            return "budget"
        for group in bench.answer(fresh[: limits.questions - n]):
            tally.add(group)


def spread(chunks: Sequence[Chunk], seed: int) -> list[Chunk]:
    """Passages to ask about, in a drawn order that takes one of each document in turn.

    So that the first questions are spread over the documents. Short passages are left out.
    """
    drawn = sorted(
        (chunk for chunk in chunks if not chunk.small),
        key=lambda chunk: content_hash("pilot", seed, chunk.chunk_id),
    )
    turn: Counter[str] = Counter()
    places: dict[str, tuple[int, str]] = {}
    for chunk in drawn:
        document = content_hash("pilot", seed, chunk.article_id)
        places[chunk.chunk_id] = (turn[chunk.article_id], document)
        turn[chunk.article_id] += 1
    return sorted(drawn, key=lambda chunk: places[chunk.chunk_id])


class Exam:
    """Writes questions on one handful of passages after the other.

    Attributes:
        passages: That questions were wanted of.
    """

    def __init__(
        self, studied: Studied, order: Sequence[Chunk], client: LLMClient, report: Report
    ) -> None:
        self.passages = 0
        self._studied = studied
        self._order = order
        self._client = client
        self._report = report
        self._written = Written([], [])
        # No examples are shown, so that no article is set aside for them.
        self._settings = studied.profile.exams.model_copy(update={"shots_share": 0.0})

    @property
    def left(self) -> bool:
        """Whether there is a passage that was not asked about."""
        return self.passages < len(self._order)

    @property
    def rejections(self) -> dict[str, int]:
        """Why questions were turned away -> how many, the most frequent reason first."""
        reasons = Counter(row.reason.partition(":")[0] for row in self._written.rejections)
        return dict(reasons.most_common())

    def write(self) -> list[Question]:
        """The questions on the next passages, those of one passage side by side.

        Of fewer passages where the budget does not reach for all: what it was spent on is used.

        Raises:
            BudgetExceeded: Before the budget is crossed, if it does not reach for one passage.
            LLMError: If the service fails for good.
        """
        for count in (PASSAGES_AT_ONCE, FEWER_AT_ONCE):
            with suppress(BudgetExceeded):
                return self._write(count)
        return self._write(FEWEST_AT_ONCE)

    def _write(self, count: int) -> list[Question]:
        reached = min(self.passages + count, len(self._order))
        known: Sequence[Question] = self._written.questions
        rejected: Sequence[Rejection] = self._written.rejections
        self._written = write_exam(
            self._order[:reached],
            corpus=self._studied.corpus,
            client=self._client,
            settings=self._settings,
            report=self._report,
            previous=known,
            previous_rejections=rejected,
        )
        self.passages = reached
        there = {row.question_id for row in known}
        return [row for row in self._written.questions if row.question_id not in there]


class Bench:
    """Passages with their index, and the model that answers.

    Embeds and indexes all passages when the first questions come; what is there is used again.
    """

    def __init__(
        self, studied: Studied, folder: Path, chunks: Sequence[Chunk], report: Report
    ) -> None:
        self._studied = studied
        self._report = report
        self._chunks = chunks
        self._pilots = folder

    def answer(self, questions: Sequence[Question]) -> Iterator[list[Asked]]:
        """Asks questions in all three ways and gives what came of those of each passage."""
        if not questions:
            return
        self._index()
        batch = self.folder / self.batch(questions)
        batch.mkdir(exist_ok=True)
        write_rows(batch / "questions.parquet", questions, Question)
        retriever = self._studied.retriever
        find(
            RetrieveRequest(
                corpus=self._studied.corpus,
                questions=str(batch / "questions.parquet"),
                chunks=str(self.folder / "chunks.parquet"),
                index=str(self.folder / "index"),
                retrieval=located(self._studied.profile),
                retrievers=(retriever, "oracle"),
                out=str(batch),
                device=self._studied.profile.scoring.device,
            ),
            self._report,
        )
        base = self._score(batch, "base")
        with_passages = self._score(batch, "rag")
        brought = read_rows(batch / RETRIEVED, Retrieved)
        hits = hits_at([row for row in brought if row.retriever == retriever], K)
        for chunk_id, rows in groupby(questions, key=lambda row: row.chunk_id or ""):
            yield [
                Asked(
                    question_id=row.question_id,
                    chunk_id=chunk_id,
                    base=base["", row.question_id],
                    rag=with_passages[retriever, row.question_id],
                    oracle=with_passages["oracle", row.question_id],
                    hit=row.question_id in hits,
                    chance=1 / len(row.options),
                )
                for row in rows
            ]

    # Names of folders tell apart whatever decides what is in them: weights that were replaced in
    # place, and settings that were changed, are others.

    @cached_property
    def folder(self) -> Path:
        """Where passages, vectors and index lie."""
        settings = located(self._studied.profile)
        encoder = Encoder(**settings["encoder"])
        device = self._studied.profile.scoring.device
        made_by = identify(load_encoder(encoder, device), encoder).version
        indexed = {name: settings[name] for name in INDEXED_BY}
        ids = [chunk.chunk_id for chunk in self._chunks]
        return self._pilots / content_hash(ids, settings["encoder"], made_by, indexed)[:16]

    def batch(self, questions: Sequence[Question]) -> str:
        """Name of the folder with the answers to some questions."""
        return content_hash([row.question_id for row in questions], self._asked_how)[:16]

    @cached_property
    def _asked_how(self) -> tuple[object, ...]:
        """What decides an answer beside question and passages."""
        studied, profile = self._studied, self._studied.profile
        model, retrieval = profile.models[studied.model], located(profile)
        base = local_or_hub(profile, model.source)
        ranks_again = retrieval["rerank"] if studied.retriever == "reranked" else None
        return (
            (studied.model, base, model.revision, model.dtype),
            weights_identity(base, model.revision),
            weights_identity(ranks_again["model"], ranks_again["revision"]) if ranks_again else "",
            (studied.retriever, retrieval, K),
            profile.scoring.model_dump(include=set(ANSWERED_BY)),
        )

    def _index(self) -> None:
        """Embeds and indexes the passages, unless that was done."""
        ready = self.folder / "ready"
        if ready.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self.folder / "chunks.parquet", self._chunks, Chunk)
        profile = self._studied.profile
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        embed(
            EmbedRequest(
                chunks=str(self.folder / "chunks.parquet"),
                encoder=located(profile)["encoder"],
                out=str(self.folder),
                work=str(work),
                device=profile.scoring.device,
            ),
            self._report,
        )
        vectors = load_embeddings(self.folder)
        save_index(self.folder / "index", build_index(vectors, profile.retrieval, self._report))
        write_atomically(ready, "")

    def _score(self, batch: Path, method: str) -> dict[tuple[str, str], bool]:
        """Right or wrong by retriever (empty for none) and question."""
        profile, model = self._studied.profile, self._studied.model
        settings, scoring = profile.models[model], profile.scoring
        retrieves = method == "rag"
        request = ScoreRequest(
            corpus=self._studied.corpus,
            model=model,
            method=method,
            base=local_or_hub(profile, settings.source),
            revision=settings.revision,
            dtype=settings.dtype,
            questions=str(batch / "questions.parquet"),
            shots=(0,),
            k=(K,) if retrieves else (0,),
            chunks=str(self.folder / "chunks.parquet") if retrieves else "",
            retrieved=str(batch / RETRIEVED) if retrieves else "",
            retrievers=(self._studied.retriever, "oracle") if retrieves else (),
            query=profile.retrieval.query if retrieves else "",
            choice_format=scoring.choice_format,
            rotation=scoring.rotation,
            chat_template=scoring.chat_template,
            add_bos=scoring.add_bos,
            engine=scoring.engine,
            batch_size=scoring.batch_size,
            device=scoring.device,
            work=str(batch / "work" / method),
            out=str(batch / method),
        )
        found = score(request, self._report)
        retriever = {row.condition_id: row.retriever for row in found.conditions}
        return {
            (retriever[row.condition_id], row.question_id): row.correct for row in found.answers
        }


def fine_tuning(studied: Studied, store: Store) -> list[Recipe]:
    """What each recipe that is no control would take, by the numbers of `kinject plan`."""
    profile = studied.profile
    spent, _ = read_spent(store, profile.llm.prices)
    found = estimate(profile, store, spent, within=READING_SECONDS)
    work = by(found.work, lambda row: row.cell)
    found_requests = by(found.requests, lambda row: row.purpose.removeprefix("validation_"))
    recipes: list[Recipe] = []
    for cells in profile.grid:
        for name in cells.recipes:
            spec = RecipeSpec.parse(name)
            rows = work.get(f"checkpoint/{studied.corpus}/{studied.model}.{name}")
            if spec.control_of or not rows:
                continue
            # Whatever it trains on, its learning rate is chosen on validation paraphrases.
            needed = [
                row
                for row in found_requests.get("paraphrase", ())
                if spec.n_paraphrases or row.purpose.startswith("validation_")
            ]
            seconds = [row.seconds for row in rows]
            recipes.append(
                Recipe(
                    recipe=name,
                    paraphrases=spec.n_paraphrases,
                    seconds=None if None in seconds else sum(s or 0.0 for s in seconds),
                    requests=sum(row.count + row.again for row in needed),
                    usd=total_usd(needed),
                )
            )
    return recipes
