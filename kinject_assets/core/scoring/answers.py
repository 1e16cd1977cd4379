"""An answer to every question under every condition, through lm-evaluation-harness.

A condition is one lm-eval task of type `multiple_choice` whose prompts are ours to the character.
Its answers are written as soon as they are there, and found again after a crash.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.core.errors import BrokenArtefact, KinjectError, MissingArtefact
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Answer, Chunk, Condition, Question, Retrieved
from kinject_assets.core.scoring.lm import ENGINE, load_lm, quiet
from kinject_assets.core.scoring.prompts import Prompt, build, fit
from kinject_assets.core.store import read_rows, write_rows

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

_REPORT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Conditions under which one model answers one exam: every shots with every k.

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
        retriever: Name of the retriever whose rows are read.
        query: What it was asked: `question` or `question_and_options`.
        shots: Numbers of solved examples.
        k: Numbers of chunks: exactly 0 for `base` and `ft`, at least 1 for the others.
        choice_format: `letter` or `text`.
        subject: MMLU subject for lm-eval's description line; empty for other exams.
        run_id: Goes into every answer.
        work: Folder for finished conditions; it belongs to these inputs alone.
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
    retriever: str = ""
    query: str = ""
    subject: str = ""
    batch_size: int = 16
    device: str = "auto"
    run_id: str = ""


@dataclass(frozen=True)
class Exam:
    """What a request reads from its files.

    Attributes:
        test: Questions to answer.
        shots: Questions to solve in front of them.
        chunks: Question id -> texts of its retrieved chunks, best first.
    """

    test: list[Question]
    shots: list[Question]
    chunks: dict[str, list[str]]


def conditions(request: ScoreRequest) -> list[Condition]:
    """The conditions of a request: every shots with every k, in that order.

    Raises:
        KinjectError: If k does not go with the method.
    """
    retrieves = request.method in {"rag", "ft_rag"}
    if any((k > 0) != retrieves for k in request.k):
        raise KinjectError(
            f"scoring.k: {list(request.k)} does not go with `{request.method}`: base and ft take "
            "[0], rag and ft_rag numbers from 1."
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
            retriever=request.retriever if k else "",
            query=request.query if k else "",
            choice_format=request.choice_format,
            rotation=False,
            engine=ENGINE,
        )
        for shots in request.shots
        for k in request.k
    ]


def score(request: ScoreRequest, report: Report = silent) -> tuple[list[Condition], list[Answer]]:
    """Answers an exam under every condition and writes the rows to `request.out`.

    Conditions that an earlier call with the same work folder finished are not answered again.

    Raises:
        ModelError: If the model cannot be loaded.
        MissingArtefact: If there are no questions, or too few shots or retrieved chunks.
        KinjectError: If k does not go with the method, or an option is longer than the window.
    """
    wanted = conditions(request)
    exam = read_exam(request)
    label = f"{request.corpus} {request.model}{'.' if request.recipe else ''}{request.recipe}"
    answers: list[Answer] = []
    for number, condition in enumerate(wanted):
        what = f"{label} {condition.method}: {condition.shots} shots, k {condition.k}"
        report(what, number, len(wanted))
        done = _finished(request, condition, exam)
        if done is None:
            lm: Any = _lm(request)
            lm.on_inputs = _teller(what, number, len(wanted), report)
            done = _answer(lm, request, condition, exam)
            path = _record(request, condition)
            partial = path.with_suffix(".partial")
            write_rows(partial, done, Answer)
            partial.replace(path)
        answers += done
    out = Path(request.out)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "answers.parquet", answers, Answer)
    write_rows(out / "conditions.parquet", wanted, Condition)
    report(f"{label} {request.method}: answered", len(wanted), len(wanted))
    return wanted, answers


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


def _retrieved_texts(request: ScoreRequest, test: Sequence[Question]) -> dict[str, list[str]]:
    text_of = {chunk.chunk_id: chunk.text for chunk in read_rows(Path(request.chunks), Chunk)}
    ranked: defaultdict[str, list[Retrieved]] = defaultdict(list)
    for row in read_rows(Path(request.retrieved), Retrieved):
        if row.retriever == request.retriever:
            ranked[row.question_id].append(row)
    texts: dict[str, list[str]] = {}
    for question in test:
        rows = sorted(ranked[question.question_id], key=lambda row: row.rank)
        missing = [row.chunk_id for row in rows if row.chunk_id not in text_of]
        # A corpus smaller than k has all of its chunks in every prompt.
        if missing or len(rows) < min(max(request.k), len(text_of)):
            raise MissingArtefact(
                f"{request.retrieved}: `{request.retriever}` has {len(rows)} chunks for question "
                f"{question.question_id}, {len(missing)} of them not in this corpus; k is "
                f"{max(request.k)}. Set retrieval.depth to at least that and materialise "
                "`retrieved` again."
            )
        texts[question.question_id] = [text_of[row.chunk_id] for row in rows]
    return texts


def _lm(request: ScoreRequest) -> "HFLM":
    return load_lm(
        request.base,
        revision=request.revision,
        dtype=request.dtype,
        device=request.device,
        batch_size=request.batch_size,
        checkpoint=request.checkpoint,
        adapter=request.adapter,
    )


def _teller(what: str, number: int, total: int, report: Report) -> Callable[[int], None]:
    """Reports inputs read, not more often than a person reads."""
    told_at = time.monotonic()

    def tell(inputs: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _REPORT_SECONDS:
            told_at = time.monotonic()
            report(f"{what}, {inputs} inputs read", number, total)

    return tell


def _record(request: ScoreRequest, condition: Condition) -> Path:
    folder = Path(request.work)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{condition.condition_id}.parquet"


def _finished(request: ScoreRequest, condition: Condition, exam: Exam) -> list[Answer] | None:
    """Answers of an earlier call, or `None` if there are none for exactly these questions."""
    path = _record(request, condition)
    if not path.is_file():
        return None
    try:
        rows = read_rows(path, Answer)
    except BrokenArtefact:
        return None
    found = [(row.question_id, row.checkpoint_id) for row in rows]
    expected = [(question.question_id, request.checkpoint_id) for question in exam.test]
    return rows if found == expected else None


def _answer(lm: Any, request: ScoreRequest, condition: Condition, exam: Exam) -> list[Answer]:
    prompts = [
        build(
            question,
            condition.choice_format,
            exam.shots[: condition.shots],
            exam.chunks[question.question_id][: condition.k] if condition.k else (),
            request.subject,
        )
        for question in exam.test
    ]
    fitted = _fitted(lm, prompts)
    golds = [question.gold for question in exam.test]
    logliks = option_logliks(lm, [prompt for prompt, _ in fitted], golds)
    lm.encodings.clear()
    return [
        _row(request, condition, question, values, truncated)
        for question, values, (_, truncated) in zip(exam.test, logliks, fitted, strict=True)
    ]


def _fitted(lm: Any, prompts: Sequence[Prompt]) -> list[tuple[Prompt, int]]:
    lm.encode_all(text for prompt in prompts for text in (prompt.text, *_with_options(prompt)))
    return [fit(prompt, lm.max_length, lambda text: len(lm.tok_encode(text))) for prompt in prompts]


def _with_options(prompt: Prompt) -> list[str]:
    text = prompt.text
    return [text + option for option in prompt.options]


def _row(
    request: ScoreRequest,
    condition: Condition,
    question: Question,
    logliks: list[float],
    truncated: int,
) -> Answer:
    choice = logliks.index(max(logliks))
    return Answer(
        condition_id=condition.condition_id,
        question_id=question.question_id,
        answer_id=content_hash(
            "answer", condition.condition_id, question.question_id, request.checkpoint_id
        ),
        choice=choice,
        gold=question.gold,
        correct=choice == question.gold,
        logliks=logliks,
        truncated_tokens=truncated,
        checkpoint_id=request.checkpoint_id,
        run_id=request.run_id,
    )


def option_logliks(lm: Any, prompts: Sequence[Prompt], golds: Sequence[int]) -> list[list[float]]:
    """Log-likelihood in nats of every option of every prompt, as lm-eval computes it.

    Raises:
        KinjectError: If one is not a number: the model is damaged or its dtype overflows.
    """
    with quiet():
        from lm_eval.evaluator import evaluate

        task = _exam_task(prompts, golds)
        results: Any = evaluate(lm, {"exam": task}, bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"]["exam"], key=lambda sample: sample["doc_id"])
    logliks = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
    if any(value != value for values in logliks for value in values):
        raise KinjectError(
            "models: the model gives log-likelihoods that are not numbers. Its weights are "
            "damaged, or its `dtype` overflows: try float32 or bfloat16, or train with a smaller "
            "learning rate."
        )
    return logliks


def _exam_task(prompts: Sequence[Prompt], golds: Sequence[int]) -> Any:
    from datasets import Dataset

    rows = [
        {"prompt": prompt.text, "options": list(prompt.options), "gold": gold}
        for prompt, gold in zip(prompts, golds, strict=True)
    ]
    return _task_class()(
        config={
            "task": "exam",
            "custom_dataset": lambda: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "options",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )


@cache
def _task_class() -> Any:
    from lm_eval.api.task import ConfigurableTask

    stock: Any = ConfigurableTask

    class ExamTask(stock):
        """A task whose prompts are ready, so that there is no context to build around them."""

        def build_all_requests(self, **_: Any) -> None:
            self._instances = [
                instance
                for row, doc in enumerate(self.eval_docs)
                for instance in self.construct_requests(
                    doc=doc, ctx=self.doc_to_text(doc), metadata=("exam", row, 1)
                )
            ]

    return ExamTask
