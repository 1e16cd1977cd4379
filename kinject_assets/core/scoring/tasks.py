"""Exams as tasks of lm-evaluation-harness: in memory, with prompts ours to the character."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.scoring.prompts import Prompt


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's notes on its own defaults out of the log."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def option_logliks(lm: Any, exams: Sequence[Sequence[Prompt]]) -> list[list[list[float]]]:
    """Log-likelihood in nats of every option of every prompt, as lm-eval computes it.

    All exams are handed to the model together, so that it can share what they have in common.

    Args:
        lm: A model of lm-eval.
        exams: Prompts, a list for each task.

    Raises:
        KinjectError: If one is not a number: the model is damaged or its dtype overflows.
    """
    with quiet():
        from lm_eval.evaluator import evaluate

        tasks = {f"exam_{i}": _exam_task(f"exam_{i}", prompts) for i, prompts in enumerate(exams)}
        results: Any = evaluate(lm, tasks, bootstrap_iters=0, log_samples=True)
    found: list[list[list[float]]] = []
    for name in tasks:
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        found.append(
            [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
        )
    if any(value != value for logliks in found for values in logliks for value in values):
        raise KinjectError(
            "models: the model gives log-likelihoods that are not numbers. Its weights are "
            "damaged, or its `dtype` overflows: try float32 or bfloat16, or train with a smaller "
            "learning rate."
        )
    return found


def _exam_task(name: str, prompts: Sequence[Prompt]) -> Any:
    from datasets import Dataset

    rows = [{"prompt": prompt.text, "options": list(prompt.options)} for prompt in prompts]
    return _task_class()(
        config={
            "task": name,
            "custom_dataset": lambda: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "options",
            # Which option is right is read from the answers, where rotation is undone.
            "doc_to_target": 0,
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
                    doc=doc, ctx=self.doc_to_text(doc), metadata=(self.config.task, row, 1)
                )
            ]

    return ExamTask
