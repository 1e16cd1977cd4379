"""An answer to every question under every condition, through lm-evaluation-harness.

A condition is one lm-eval task of type `multiple_choice`. Questions are answered unit by unit, a
unit being a few questions under all conditions with the same shots that lack their answers,
whatever their retriever and k, so that what their prompts share is read once. A unit's answers are
written as soon as they are there, and a call that starts after a crash goes on with the missing
ones.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from kinject_assets.core.errors import BrokenArtefact, KinjectError, MissingArtefact, ModelError
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Answer, Chunk, Condition, Question, Retrieved
from kinject_assets.core.scoring.lm import fit_all, load_lm, source_of
from kinject_assets.core.scoring.prompts import Prompt, Wrap, build, chat_wrap, plain, turned
from kinject_assets.core.scoring.sharing import common_beginning
from kinject_assets.core.scoring.tasks import option_logliks
from kinject_assets.core.store import keep_rows, read_rows, write_rows
from kinject_assets.core.training.models import load_tokenizer, weights_identity

_REPORT_SECONDS = 1.0

UNIT_CHARACTERS = 60_000
"""Text that the prompts of a unit add to their shots: about 15,000 tokens, a few forward passes."""

HELD_TOKENS = 32
"""A beginning that all prompts share is kept from unit to unit if it is at least so long."""

_BEGINNINGS = ("A", "1", "(", "\u00e9", "\u4e00")
"""What may follow the shots: how a tokenizer cuts the end of a text depends on what comes next."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Conditions under which one model answers one exam: shots, retriever and k, each with each.

    Attributes:
        model: Name of the model under study.
        recipe: Recipe of the checkpoint, e.g. `full.p00`; empty for `base` and `rag`.
        seed: Seed of the checkpoint; 0 for `base` and `rag`.
        method: `base`, `rag`, `ft` or `ft_rag`.
        base: Folder or hub id of the base model.
        revision: Revision of a hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        checkpoint: Folder `model/` of the checkpoint; empty for `base` and `rag`.
        checkpoint_id: Its id; empty for `base` and `rag`.
        adapter: The checkpoint is an adapter (LoRA).
        questions: Parquet file of `Question` rows. Those of split `test` that are not retired are
            answered; the first of split `shots` are the shots, in the file's order.
        chunks: Parquet file of `Chunk` rows; empty when every k is 0.
        retrieved: Parquet file of `Retrieved` rows; empty when every k is 0.
        retrievers: Names of the retrievers whose rows are read, the study's first; empty when every
            k is 0.
        query: What they were asked: `question` or `question_and_options`.
        shots: Numbers of solved examples.
        k: Numbers of chunks: exactly 0 for `base` and `ft`, at least 1 for the others.
        choice_format: `letter` or `text`.
        subject: MMLU subject for lm-eval's description line; empty for other exams.
        rotation: Show the options in every cyclic order and average; `letter` only.
        chat_template: Put the prompt into the tokenizer's chat template.
        add_bos: A begin-of-text token first; `None`: as the tokenizer does.
        engine: `hf-prefix`, `hf` or `vllm`.
        run_id: Goes into every answer.
        previous: Folders with earlier answers of the same model under the same settings, of this
            exam or of others: what was asked with the very same prompts is not asked again.
        work: Folder for finished conditions; it belongs to these inputs alone.
        part: Number and count of the processes that share the work: this one answers every
            `count`-th unit into its work folder, and writes no rows.
        parts: Work folders of such processes, whose answers are taken from there.
        out: Folder that gets `answers.parquet` and `conditions.parquet`.
    """

    corpus: str
    model: str
    method: str
    base: str
    questions: str
    shots: tuple[int, ...]
    k: tuple[int, ...]
    choice_format: str
    work: str
    out: str
    recipe: str = ""
    seed: int = 0
    revision: str | None = None
    dtype: str = "float32"
    checkpoint: str = ""
    checkpoint_id: str = ""
    adapter: bool = False
    chunks: str = ""
    retrieved: str = ""
    retrievers: tuple[str, ...] = ()
    query: str = ""
    subject: str = ""
    rotation: bool = False
    chat_template: bool = False
    add_bos: bool | None = None
    engine: str = "hf-prefix"
    batch_size: int = 16
    device: str = "auto"
    run_id: str = ""
    previous: tuple[str, ...] = ()
    part: tuple[int, int] = (0, 1)
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exam:
    """What a request reads from its files.

    Attributes:
        test: Questions to answer.
        shots: Questions to solve in front of them.
        chunks: Retriever -> question id -> texts of the chunks that it brought, best first.
    """

    test: list[Question]
    shots: list[Question]
    chunks: dict[str, dict[str, list[str]]]

    def of(self, question: Question, condition: Condition) -> Sequence[str]:
        """Texts of the chunks in front of a question, best first; none for k = 0."""
        if not condition.k:
            return ()
        return self.chunks[condition.retriever][question.question_id][: condition.k]


class Scored(NamedTuple):
    """What `score` found.

    Attributes:
        unshared: Why beginnings that prompts share were read each time; empty if they were not.
        counts: Of this call alone: tokens of all prompts, tokens read, and so on; see `PrefixLM`.
        reused: Answers that were taken over from earlier ones.
    """

    conditions: list[Condition]
    answers: list[Answer]
    unshared: str
    counts: dict[str, int]
    reused: int


def conditions(request: ScoreRequest, bos: bool = False) -> list[Condition]:
    """The conditions of a request: shots, retriever and k, each with each, in that order.

    Args:
        request: What is asked for.
        bos: The model reads a begin-of-text token first.

    Raises:
        KinjectError: If k does not go with the method, or rotation with the format.
    """
    if request.rotation and request.choice_format != "letter":
        raise KinjectError(
            "scoring.rotation changes the order in which options are shown, and the format "
            f"`{request.choice_format}` shows none. Set scoring.choice_format to `letter`."
        )
    retrieves = request.method in {"rag", "ft_rag"}
    if any((k > 0) != retrieves for k in request.k):
        raise KinjectError(
            f"scoring.k: {list(request.k)} does not go with `{request.method}`: base and ft take "
            "[0], rag and ft_rag numbers from 1."
        )
    if retrieves and not request.retrievers:
        raise KinjectError(
            f"retrieval.retrievers: `{request.method}` answers with retrieved chunks and needs one "
            "at least, e.g. [dense]."
        )
    return [
        Condition.of(
            corpus=request.corpus,
            model=request.model,
            recipe=request.recipe,
            seed=request.seed,
            method=request.method,
            shots=shots,
            k=k,
            retriever=retriever,
            query=request.query if k else "",
            choice_format=request.choice_format,
            rotation=request.rotation,
            engine=request.engine,
            chat_template=request.chat_template,
            bos=bos,
        )
        for shots in request.shots
        for retriever in (request.retrievers if retrieves else ("",))
        for k in request.k
    ]


@dataclass(frozen=True)
class Unit:
    """Questions that are answered together, under all conditions that lack their answers.

    Attributes:
        conditions: They have the same shots and differ in retriever and k.
        questions: Those of the unit, in the exam's order.
    """

    conditions: Sequence[Condition]
    questions: Sequence[Question]

    def path(self, request: ScoreRequest, folder: str = "") -> Path:
        """File in a folder, the work folder by default, that its answers are kept in."""
        name = content_hash(
            [c.condition_id for c in self.conditions],
            [q.question_id for q in self.questions],
            request.checkpoint_id,
        )
        return Path(folder or request.work) / f"{name}.parquet"

    def kept(self, request: ScoreRequest) -> list[Answer] | None:
        """Answers of earlier calls, or `None` if there are none for exactly these questions."""
        for folder in (request.work, *request.parts):
            path = self.path(request, folder)
            if path.is_file() and (rows := self._rows(path, request)):
                return rows
        return None

    def _rows(self, path: Path, request: ScoreRequest) -> list[Answer] | None:
        try:
            rows = read_rows(path, Answer)
        except BrokenArtefact:
            return None
        found = [(row.condition_id, row.question_id, row.checkpoint_id) for row in rows]
        expected = [
            (condition.condition_id, question.question_id, request.checkpoint_id)
            for condition in self.conditions
            for question in self.questions
        ]
        return rows if found == expected else None


def score(request: ScoreRequest, report: Report = silent) -> Scored:
    """Answers an exam under every condition and writes the rows to `request.out`.

    One of several parts answers its share into its work folder, and that is all. Questions that an
    earlier call with the same work folder answered are not asked again.

    Raises:
        ModelError: If the model cannot be loaded.
        MissingArtefact: If there are no questions, or too few shots or retrieved chunks.
        KinjectError: If k does not go with the method, or an option is longer than the window.
    """
    conditions(request)
    scorer = _Scorer(request, read_exam(request))
    wanted = conditions(request, scorer.begins_with_bos)
    label = f"{request.corpus} {request.model}{'.' if request.recipe else ''}{request.recipe}"
    total = len(wanted) * len(scorer.exam.test)
    known = scorer.known(wanted)
    answers = dict(known)
    number, parts = request.part
    place = 0
    for shots in request.shots:
        same_shots = [condition for condition in wanted if condition.shots == shots]
        what = f"{label} {request.method}: {shots} shots, {_k_text(request.k)}"
        # Each question under those conditions alone that lack its answer.
        open_under: defaultdict[tuple[Condition, ...], list[Question]] = defaultdict(list)
        for question in scorer.exam.test:
            key = question.question_id
            if lack := tuple(c for c in same_shots if (c.condition_id, key) not in answers):
                open_under[lack].append(question)
        units = (unit for asked, some in open_under.items() for unit in scorer.units(asked, some))
        for unit in units:
            place += 1
            if place % parts != number:
                continue
            report(what, len(answers), total)
            done = unit.kept(request)
            if done is None:
                done = scorer.answer(unit, _teller(what, len(answers), total, report))
                keep_rows(unit.path(request), done, Answer)
            answers |= {(row.condition_id, row.question_id): row for row in done}
    if parts > 1:
        mine = [row for key, row in answers.items() if key not in known]
        return Scored(wanted, mine, scorer.unshared, scorer.counts, 0)
    rows = [
        answers[condition.condition_id, question.question_id]
        for condition in wanted
        for question in scorer.exam.test
    ]
    out = Path(request.out)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "answers.parquet", rows, Answer)
    write_rows(out / "conditions.parquet", wanted, Condition)
    report(f"{label} {request.method}: answered", total, total)
    reused = sum(answers[key] is row for key, row in known.items())
    return Scored(wanted, rows, scorer.unshared, scorer.counts, reused)


def _earlier(folder: str) -> Iterator[tuple[tuple[int, int, str, str], Answer]]:
    """Answers of a folder by shots, k, question and prompt; none from one that is damaged."""
    try:
        conditions_of = {
            row.condition_id: row
            for row in read_rows(Path(folder) / "conditions.parquet", Condition)
        }
        rows = read_rows(Path(folder) / "answers.parquet", Answer)
    except BrokenArtefact:
        return
    for row in rows:
        condition = conditions_of.get(row.condition_id)
        if condition is not None:
            yield (condition.shots, condition.k, row.question_id, row.prompt_id), row


def _k_text(ks: Sequence[int]) -> str:
    return f"k {ks[0]}" if len(ks) == 1 else f"k {min(ks)}..{max(ks)}"


def _teller(what: str, done: int, total: int, report: Report) -> Callable[[int, int], None]:
    """Reports tokens read, not more often than a person reads."""
    told_at = time.monotonic()

    def tell(read: int, of: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _REPORT_SECONDS:
            told_at = time.monotonic()
            report(f"{what}, {read} of {of} tokens of the next questions read", done, total)

    return tell


def read_exam(request: ScoreRequest) -> Exam:
    """Reads questions, shots and retrieved chunks.

    Raises:
        MissingArtefact: If there are no questions, or too few shots or retrieved chunks.
    """
    questions = [q for q in read_rows(Path(request.questions), Question) if not q.retired]
    test = [q for q in questions if q.split == "test"]
    shots = [q for q in questions if q.split == "shots"]
    if not test:
        raise MissingArtefact(
            f"{request.questions}: no question of {request.corpus} is in the split `test`. Look at "
            "the rejections of `questions` and materialise it again."
        )
    if len(shots) < max(request.shots):
        raise MissingArtefact(
            f"scoring.shots: {max(request.shots)} are asked for, but {request.corpus} has "
            f"{len(shots)} questions in the split `shots`. Raise exams.shots_share, or ask for "
            "fewer."
        )
    chunks = _retrieved_texts(request, test) if max(request.k) else {}
    return Exam(test=test, shots=shots, chunks=chunks)


def _retrieved_texts(
    request: ScoreRequest, test: Sequence[Question]
) -> dict[str, dict[str, list[str]]]:
    text_of = {chunk.chunk_id: chunk.text for chunk in read_rows(Path(request.chunks), Chunk)}
    ranked: defaultdict[tuple[str, str], list[Retrieved]] = defaultdict(list)
    for row in read_rows(Path(request.retrieved), Retrieved):
        ranked[row.retriever, row.question_id].append(row)
    texts: dict[str, dict[str, list[str]]] = {}
    for retriever in request.retrievers:
        texts[retriever] = {}
        for question in test:
            rows = sorted(ranked[retriever, question.question_id], key=lambda row: row.rank)
            missing = [row.chunk_id for row in rows if row.chunk_id not in text_of]
            # A corpus smaller than k has all of its chunks in every prompt.
            if missing or len(rows) < min(max(request.k), len(text_of)):
                raise MissingArtefact(
                    f"{request.retrieved}: `{retriever}` has {len(rows)} chunks for question "
                    f"{question.question_id}, {len(missing)} of them not in this corpus; k is "
                    f"{max(request.k)}. Set retrieval.depth to at least that and materialise "
                    "`retrieved` again."
                )
            texts[retriever][question.question_id] = [text_of[row.chunk_id] for row in rows]
    return texts


@dataclass
class _Scorer:
    """A request with what was read and loaded for it."""

    request: ScoreRequest
    exam: Exam
    _held: dict[int, list[int]] = field(default_factory=dict)
    _counted: dict[str, int] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; the model itself is loaded when there is something to answer."""
        request = self.request
        source = source_of(request.base, request.checkpoint, request.adapter)
        pinned = request.revision if source == request.base else None
        return load_tokenizer(source, pinned, request.add_bos)

    @cached_property
    def weights(self) -> str:
        """Tells the base model from another one in the same place."""
        return weights_identity(self.request.base, self.request.revision)

    @cached_property
    def wrap(self) -> Wrap:
        """The chat template, if it is asked for.

        Raises:
            ModelError: If the tokenizer has none.
        """
        if not self.request.chat_template:
            return plain
        return chat_wrap(self.tokenizer, self.request.base)

    @cached_property
    def begins_with_bos(self) -> bool:
        """Whether the first token of a prompt is the tokenizer's begin-of-text token.

        Raises:
            ModelError: If it should be and is not.
        """
        found = begins_with_bos(self.tokenizer, self.wrap("A"), self.request.add_bos)
        if self.request.add_bos and not found:
            raise ModelError(
                f"scoring.add_bos: the tokenizer of `{self.request.base}` has no begin-of-text "
                "token, or cannot put one first. Set it to null."
            )
        return found

    @cached_property
    def lm(self) -> Any:
        """The model."""
        request = self.request
        lm = load_lm(
            request.base,
            revision=request.revision,
            dtype=request.dtype,
            device=request.device,
            batch_size=request.batch_size,
            checkpoint=request.checkpoint,
            adapter=request.adapter,
            engine=request.engine,
            add_bos=request.add_bos,
        )
        self._counted = dict(getattr(lm, "counts", {}))
        return lm

    @property
    def unshared(self) -> str:
        """Why shared beginnings were read each time; empty if they were not, or nothing was."""
        return getattr(self.lm, "unshared", "") if "lm" in self.__dict__ else ""

    @property
    def counts(self) -> dict[str, int]:
        """What the model counted since it was taken."""
        if "lm" not in self.__dict__:
            return {}
        now: Mapping[str, int] = getattr(self.lm, "counts", {})
        return {name: count - self._counted.get(name, 0) for name, count in now.items()}

    def known(self, wanted: Sequence[Condition]) -> dict[tuple[str, str], Answer]:
        """Earlier answers to the very same prompts, by condition and question."""
        earlier = dict(row for folder in self.request.previous for row in _earlier(folder))
        if not earlier:
            return {}
        found: dict[tuple[str, str], Answer] = {}
        for condition in wanted:
            for question in self.exam.test:
                key = (condition.shots, condition.k, question.question_id)
                row = earlier.get((*key, self._prompt_id(question, condition)))
                if row is not None and row.checkpoint_id == self.request.checkpoint_id:
                    found[condition.condition_id, question.question_id] = replace(
                        row,
                        condition_id=condition.condition_id,
                        answer_id=self._answer_id(condition, question),
                    )
        return found

    def units(
        self, same_shots: Sequence[Condition], questions: Sequence[Question]
    ) -> Iterator[Unit]:
        """Cuts questions of the exam, those with the same best chunks side by side."""
        exam = self.exam
        order = {question.question_id: place for place, question in enumerate(exam.test)}
        # With the largest k of each retriever, the study's first.
        deepest = list({c.retriever: c for c in sorted(same_shots, key=lambda c: c.k)}.values())
        test = sorted(
            questions, key=lambda q: ([exam.of(q, c) for c in deepest], order[q.question_id])
        )
        found: list[Question] = []
        size = 0
        for question in test:
            size += sum(len(text) for c in deepest for text in exam.of(question, c))
            size += len(same_shots) * (len(question.stem) + sum(map(len, question.options)))
            found.append(question)
            if size >= UNIT_CHARACTERS:
                yield Unit(same_shots, sorted(found, key=lambda q: order[q.question_id]))
                found, size = [], 0
        if found:
            yield Unit(same_shots, sorted(found, key=lambda q: order[q.question_id]))

    def answer(self, unit: Unit, tell: Callable[[int, int], None]) -> list[Answer]:
        """Asks the questions of a unit, condition by condition."""
        lm = self.lm
        sharing = hasattr(lm, "hold")
        exams = [
            [
                self._prompt(question, condition, order)
                for question in unit.questions
                for order in self._orders(question)
            ]
            for condition in unit.conditions
        ]
        fitted = fit_all(lm, exams)
        if sharing:
            lm.hold(self._beginning(exams[0][0], unit.conditions[0].shots))
            lm.on_tokens = tell
        logliks = option_logliks(lm, [[prompt for prompt, _ in prompts] for prompts in fitted])
        if sharing:
            lm.on_tokens = lambda read, of: None
        found: list[Answer] = []
        for condition, prompts, values in zip(unit.conditions, fitted, logliks, strict=True):
            at = 0
            for question in unit.questions:
                orders = len(self._orders(question))
                cut = max(truncated for _, truncated in prompts[at : at + orders])
                found.append(self._row(condition, question, values[at : at + orders], cut))
                at += orders
        return found

    def _orders(self, question: Question) -> range:
        return range(len(question.options) if self.request.rotation else 1)

    def _prompt(self, question: Question, condition: Condition, order: int) -> Prompt:
        return build(
            turned(question, order) if order else question,
            condition.choice_format,
            self.exam.shots[: condition.shots],
            self.exam.of(question, condition),
            self.request.subject,
            self.wrap,
        )

    def _prompt_id(self, question: Question, condition: Condition) -> str:
        """Hash of the model and of all that it is shown and scored on, before it is made to fit."""
        prompts = [self._prompt(question, condition, order) for order in self._orders(question)]
        shown = [(prompt.text, prompt.options) for prompt in prompts]
        return content_hash("prompt", self.weights, shown)

    def _answer_id(self, condition: Condition, question: Question) -> str:
        return content_hash(
            "answer", condition.condition_id, question.question_id, self.request.checkpoint_id
        )

    def _beginning(self, prompt: Prompt, shots: int) -> list[int]:
        """Tokens that all prompts with these shots begin with, whatever is asked."""
        if shots not in self._held:
            texts = [
                prompt.wrap(prompt.head + text).partition(prompt.head + text)[0]
                + prompt.head
                + text
                for text in _BEGINNINGS
            ]
            tokens = common_beginning([self.lm.tok_encode(text) for text in texts])
            self._held[shots] = tokens if len(tokens) >= HELD_TOKENS else []
        return self._held[shots]

    def _row(
        self,
        condition: Condition,
        question: Question,
        by_order: Sequence[Sequence[float]],
        truncated: int,
    ) -> Answer:
        n = len(question.options)
        logliks = [
            sum(values[(option - order) % n] for order, values in enumerate(by_order))
            / len(by_order)
            for option in range(n)
        ]
        choice = logliks.index(max(logliks))
        return Answer(
            condition_id=condition.condition_id,
            question_id=question.question_id,
            answer_id=self._answer_id(condition, question),
            choice=choice,
            gold=question.gold,
            correct=choice == question.gold,
            logliks=logliks,
            truncated_tokens=truncated,
            checkpoint_id=self.request.checkpoint_id,
            run_id=self.request.run_id,
            places=[list(values).index(max(values)) for values in by_order],
            prompt_id=self._prompt_id(question, condition),
        )


def begins_with_bos(tokenizer: Any, text: str, add_bos: bool | None) -> bool:
    """Whether the first token that a model reads of a text is the begin-of-text token."""
    begin = tokenizer.bos_token
    if begin is None:
        return False
    if text.startswith(begin):
        return True
    options = {} if add_bos is None else {"add_special_tokens": add_bos}
    return tokenizer(text, **options)["input_ids"][:1] == [tokenizer.bos_token_id]
