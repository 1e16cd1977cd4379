"""Results in the layout of lm-evaluation-harness's EvaluationTracker (0.4.13).

A folder for each model: the base models, and each checkpoint. In it `results_TIME.json`, and for
each task `samples_TASK_TIME.jsonl`. A task is a condition: a corpus's exam with so many shots and
so many chunks in front. All is read from the lake; no model is loaded.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from kinject_assets import __version__
from kinject_assets.config import Profile, local_or_hub
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.export.folders import new_folder
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.plan import CODE_VERSIONS, METHODS, Plan
from kinject_assets.core.schema import Answer, Chunk, Condition, Question, Retrieved
from kinject_assets.core.scoring.prompts import Prompt, build
from kinject_assets.core.store import Cell, Store

FILTER = "none"
METRIC = "acc"

NOT_REBUILT = "(this prompt cannot be told any more: what it was made of has changed since)"
CHAT = "(this prompt was put into the chat template of the model's tokenizer)"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _dumped(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False)


@dataclass(frozen=True)
class _Exam:
    """What prompts are made of, as the lake has it now.

    Attributes:
        questions: Those that are not retired, by id, in the exam's order.
        chunks: Retriever -> question id -> texts, best first.
    """

    questions: dict[str, Question]
    chunks: Mapping[tuple[str, str], list[str]]
    subject: str

    @classmethod
    def read(cls, store: Store, profile: Profile, corpus: str, retrieves: bool) -> "_Exam":
        rows = store.rows(Cell("questions", (corpus,)), "questions", Question)
        chunks: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        if retrieves:
            texts = store.rows(Cell("chunks", (corpus,)), "chunks", Chunk)
            text_of = {chunk.chunk_id: chunk.text for chunk in texts}
            found = store.rows(Cell("retrieved", (corpus,)), "retrieved", Retrieved)
            for row in sorted(found, key=lambda row: row.rank):
                chunks[row.retriever, row.question_id].append(text_of.get(row.chunk_id, ""))
        exam = profile.corpora[corpus].exam
        return cls(
            {row.question_id: row for row in rows if not row.retired},
            chunks,
            exam.subject if exam.kind == "mmlu" else "",
        )

    @cached_property
    def shots(self) -> list[Question]:
        return [row for row in self.questions.values() if row.split == "shots"]

    def prompt(self, question: Question, condition: Condition) -> Prompt:
        """What the model was shown, before it was made to fit its window."""
        chunks = self.chunks.get((condition.retriever, question.question_id), [])
        return build(
            question,
            condition.choice_format,
            self.shots[: condition.shots],
            chunks[: condition.k],
            self.subject,
        )


@dataclass(frozen=True)
class _Answers:
    """One artefact of answers: all conditions of a corpus with a model."""

    cell: Cell
    manifest: Manifest
    conditions: list[Condition]
    answers: dict[str, dict[str, Answer]]
    exam: _Exam
    current: bool

    @classmethod
    def read(cls, plan: Plan, cell: Cell, manifest: Manifest) -> "_Answers":
        store = plan.store
        answers: defaultdict[str, dict[str, Answer]] = defaultdict(dict)
        for row in store.rows(cell, "answers", Answer):
            answers[row.condition_id][row.question_id] = row
        inputs = manifest.inputs.items()
        return cls(
            cell,
            manifest,
            store.rows(cell, "conditions", Condition),
            dict(answers),
            _Exam.read(store, plan.profile, cell.parts[0], cell.asset.endswith("_rag")),
            manifest.code_version == CODE_VERSIONS[cell.asset]
            and all(store.input_version(key) == version for key, version in inputs),
        )

    def scored(self, condition: Condition) -> list[tuple[Question, Answer]]:
        """Answers to the questions that count, in the exam's order."""
        found = self.answers.get(condition.condition_id, {})
        return [
            (question, found[key])
            for key, question in self.exam.questions.items()
            if question.split == "test" and key in found
        ]

    def prompt(self, question: Question, condition: Condition) -> tuple[str, tuple[str, ...]]:
        """Text in front of the options, and the options as they were scored."""
        prompt = self.exam.prompt(question, condition)
        if not self.current:
            return NOT_REBUILT, prompt.options
        if condition.chat_template:
            return CHAT, tuple(option.strip() for option in prompt.options)
        return prompt.text, prompt.options


def task_name(condition: Condition) -> str:
    """Name of a condition's task, e.g. `comets_5shot_k3_dense`: slugs, so it may be a file."""
    parts = [condition.corpus, f"{condition.shots}shot"]
    if condition.k:
        parts += [f"k{condition.k}", condition.retriever]
    if condition.query == "question_and_options":
        parts.append("options")
    parts += [condition.choice_format] * (condition.choice_format != "letter")
    parts += ["rotated"] * condition.rotation + ["chat"] * condition.chat_template
    return "_".join(parts)


def _sample(
    number: int, question: Question, answer: Answer, context: str, options: Sequence[str]
) -> dict[str, Any]:
    """A line of `samples_*.jsonl`."""
    doc = {
        "question_id": question.question_id,
        "question": question.stem,
        "choices": question.options,
        "answer": question.gold,
        "chunk_id": question.chunk_id,
    }
    # lm-eval's `is_greedy` was not kept: whether an option was the likeliest text of all.
    responses = [[str(value), "None"] for value in answer.logliks]
    return {
        "doc_id": number,
        "doc": doc,
        "target": str(question.gold),
        "arguments": {
            f"gen_args_{i}": {"arg_0": context, "arg_1": option} for i, option in enumerate(options)
        },
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": FILTER,
        "metrics": [METRIC],
        "doc_hash": _sha256(_dumped(doc, 2)),
        "prompt_hash": _sha256(context),
        "target_hash": _sha256(str(question.gold)),
        METRIC: float(answer.correct),
        "answer_id": answer.answer_id,
        "truncated_tokens": answer.truncated_tokens,
    }


def _metrics(name: str, correct: Sequence[bool]) -> dict[str, Any]:
    n = len(correct)
    accuracy = sum(correct) / n
    # The standard error of a mean, as lm-eval has it; one question has none.
    error = math.sqrt(accuracy * (1 - accuracy) / (n - 1)) if n > 1 else "N/A"
    return {
        "name": name,
        "alias": name,
        "sample_len": n,
        f"{METRIC},{FILTER}": accuracy,
        f"{METRIC}_stderr,{FILTER}": error,
    }


def _config(name: str, condition: Condition, of: _Answers) -> dict[str, Any]:
    """A task's configuration: what lm-eval's tasks say of themselves, and all of the condition."""
    return {
        "task": name,
        "dataset_path": "kinject",
        "dataset_name": condition.corpus,
        "test_split": "test",
        "fewshot_split": "shots",
        "doc_to_text": "",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "num_fewshot": condition.shots,
        "output_type": "multiple_choice",
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "repeats": 1,
        "metadata": {
            "version": of.manifest.code_version,
            "condition_id": condition.condition_id,
            "method": condition.method,
            "k": condition.k,
            "retriever": condition.retriever,
            "query": condition.query,
            "choice_format": condition.choice_format,
            "rotation": condition.rotation,
            "chat_template": condition.chat_template,
            "bos": condition.bos,
            "artefact": str(of.cell),
            "logical_version": of.manifest.logical_version,
            "run_id": of.manifest.run_id,
        },
    }


@dataclass(frozen=True)
class _Model:
    """A base model or a checkpoint, with all of its answers."""

    name: str
    pretrained: str
    peft: str
    settings: Any
    answers: list[_Answers]

    @property
    def folder(self) -> str:
        """lm-eval's way to make a name a folder; the parts are slugs."""
        return self.name.replace("/", "__")

    @property
    def arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = {"pretrained": self.pretrained, "dtype": self.settings.dtype}
        if self.settings.revision:
            found["revision"] = self.settings.revision
        return found | ({"peft": self.peft} if self.peft else {})

    @property
    def finished(self) -> datetime:
        return max(datetime.fromisoformat(part.manifest.finished_at) for part in self.answers)

    @property
    def seconds(self) -> float:
        spans = (
            datetime.fromisoformat(part.manifest.finished_at)
            - datetime.fromisoformat(part.manifest.started_at)
            for part in self.answers
        )
        return sum(span.total_seconds() for span in spans)

    def tasks(self) -> Iterator[tuple[str, Condition, _Answers]]:
        """Every condition with its task's name."""
        taken: set[str] = set()
        for part in self.answers:
            for condition in part.conditions:
                name = task_name(condition)
                if name in taken:
                    name = f"{name}_{condition.condition_id[:8]}"
                taken.add(name)
                yield name, condition, part


def _models(plan: Plan) -> list[_Model]:
    """All models that have answered something that the profile asks for."""
    profile, store = plan.profile, plan.store
    found: defaultdict[str, list[_Answers]] = defaultdict(list)
    for cell in plan.cells:
        manifest = store.manifest(cell) if cell.asset in METHODS.values() else None
        if manifest:
            corpus, key = cell.parts
            name = key if key in profile.models else f"{corpus}/{key}"
            found[name].append(_Answers.read(plan, cell, manifest))
    models: list[_Model] = []
    for name, answers in found.items():
        cell = answers[0].cell
        settings = profile.models[plan.model_of(cell)]
        pretrained, peft = local_or_hub(profile, settings.source), ""
        if "/" in name:
            trained = store.reference(Cell("checkpoint", cell.parts), "model")
            adapter = not cell.parts[1].partition(".")[2].startswith("full")
            pretrained, peft = (pretrained, trained) if adapter else (trained, "")
        models.append(_Model(name, pretrained, peft, settings, answers))
    return models


def _write_samples(path: Path, condition: Condition, of: _Answers) -> str:
    """Writes a task's answers; returns lm-eval's hash of the task."""
    hashes: list[str] = []
    with path.open("x", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(of.scored(condition)):
            sample = _sample(number, question, answer, *of.prompt(question, condition))
            hashes.append(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"])
            file.write(_dumped(sample) + "\n")
    return _sha256("".join(hashes))


def _written(model: _Model, folder: Path, stamp: str) -> dict[str, Any]:
    """Writes a model's answers, and gives the parts of its results that go by task."""
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, condition, part in model.tasks():
        correct = [answer.correct for _, answer in part.scored(condition)]
        if not correct:
            continue
        found["results"][name] = _metrics(name, correct)
        found["group_subtasks"][name] = []
        found["configs"][name] = _config(name, condition, part)
        found["versions"][name] = part.manifest.code_version
        found["n-shot"][name] = condition.shots
        found["higher_is_better"][name] = {METRIC: True}
        found["n-samples"][name] = {"original": len(correct), "effective": len(correct)}
        path = folder / f"samples_{name}_{stamp}.jsonl"
        found["task_hashes"][name] = _write_samples(path, condition, part)
    return dict(found)


def _write_model(model: _Model, profile: Profile, folder: Path) -> int:
    """Writes a model's folder; returns the number of its tasks."""
    folder.mkdir()
    stamp = model.finished.replace(tzinfo=None).isoformat().replace(":", "-")
    by_task = _written(model, folder, stamp)
    libraries = model.answers[0].manifest.libraries
    about = by_task | {
        "config": {
            "model": profile.scoring.engine,
            "model_args": model.arguments,
            "model_dtype": model.settings.dtype,
            "model_revision": model.settings.revision or "main",
            "batch_size": str(profile.scoring.batch_size),
            "batch_sizes": [],
            "device": profile.scoring.device,
            "limit": None,
            "bootstrap_iters": 0,
            "gen_kwargs": None,
        },
        "date": model.finished.timestamp(),
        "transformers_version": libraries.get("transformers"),
        "lm_eval_version": libraries.get("lm-eval"),
        "model_source": profile.scoring.engine,
        "model_name": model.name,
        "model_name_sanitized": model.folder,
        "total_evaluation_time_seconds": str(model.seconds),
        "kinject": {
            "version": __version__,
            "profile": profile.name,
            "synthetic": profile.lab is not None,
            "prompts_rebuilt": all(part.current for part in model.answers),
        },
    }
    (folder / f"results_{stamp}.json").write_text(_dumped(about, 2), encoding="utf-8")
    return len(by_task.get("results", {}))


def export_evaluations(profile: Profile, store: Store, out: Path) -> dict[str, int]:
    """Writes all answers that the profile asks for as lm-eval would have.

    Args:
        profile: The experiment.
        store: Its lake.
        out: New folder.

    Returns:
        Tasks of each model.

    Raises:
        MissingArtefact: If nothing has been answered.
        ExportError: If there is something at `out` already.
    """
    plan = Plan(profile, store)
    models = _models(plan)
    if not models:
        raise MissingArtefact(
            f"{store.lake}: holds no answers yet, so there is nothing to export; `kinject run` "
            "makes them"
        )
    with new_folder(out) as folder:
        return {
            model.name: _write_model(model, plan.profile, folder / model.folder) for model in models
        }
