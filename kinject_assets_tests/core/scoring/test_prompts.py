from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.schema import Question
from kinject_assets.core.scoring.prompts import Prompt, build, fit

TASKS = Path(lm_eval.__file__).parent / "tasks" / "mmlu"


def question(stem: str, options: list[str], gold: int) -> Question:
    return Question(
        question_id=stem,
        origin="mmlu",
        stem=stem,
        options=options,
        gold=gold,
        chunk_id=None,
        generator="",
        generation_id="",
        triage="",
        split="test",
        retired=False,
    )


EXAM = [
    question(" Which bone is longest?\n", ["Femur", "Rib", "Ulna", "{{ 7*7 }}"], 0),
    question("What is 2 + 2?", ["1", "2", "3", "4"], 3),
    question("Which is blue?\nI. Sky\nII. Grass", ["I", "II", "both", "none"], 1),
]


def lm_evals_own(choice_format: str, shots: int) -> tuple[str, list[str]]:
    """Prompt and continuations of lm-eval's task for college biology, on our questions."""
    name = {"letter": "default", "text": "continuation"}[choice_format]
    template = {"letter": "_default", "text": "_continuation"}[choice_format] + "_template_yaml"
    config: dict[str, Any] = yaml.safe_load((TASKS / name / template).read_text())
    subject = yaml.safe_load((TASKS / name / "mmlu_college_biology.yaml").read_text())
    config |= {key: subject[key] for key in ("description", "task")}
    del config["dataset_path"], config["metadata"]
    rows = [{"question": q.stem, "choices": q.options, "answer": q.gold} for q in EXAM]
    splits = {"test": Dataset.from_list(rows[:1]), "dev": Dataset.from_list(rows[1:])}
    config["custom_dataset"] = lambda: splits
    task = ConfigurableTask(config=config)
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1)
    doc = task.eval_docs[0]
    context: Any = task.fewshot_context(doc, num_fewshot=shots)
    requests: Any = task.construct_requests(doc, context, metadata=("t", 0, 1))
    return context, [request.args[1] for request in requests]


@pytest.mark.parametrize("choice_format", ["letter", "text"])
@pytest.mark.parametrize("shots", [0, 2])
def test_prompts_are_lm_evals_to_the_character(choice_format: str, shots: int) -> None:
    prompt = build(EXAM[0], choice_format, EXAM[1 : 1 + shots], subject="college_biology")
    context, continuations = lm_evals_own(choice_format, shots)
    assert prompt.text == context
    assert list(prompt.options) == continuations


def test_chunks_stand_between_shots_and_question_best_first() -> None:
    prompt = build(EXAM[1], "text", [EXAM[2]], ["The best chunk.\n", "The next."])
    assert prompt.text == (
        "Question: Which is blue?\nI. Sky\nII. Grass\nAnswer: II\n\n"
        "The best chunk.\n\nThe next.\n\n"
        "Question: What is 2 + 2?\nAnswer:"
    )


def words(text: str) -> int:
    return len(text.split())


PROMPT = Prompt(
    description="",
    shots=("s1 s1 s1", "s2 s2 s2"),
    chunks=("c1 c1 c1 c1", "c2 c2 c2 c2"),
    question="q q q",
    options=(" a", " b b"),
)


@pytest.mark.parametrize(
    ("window", "shots", "chunks", "truncated"),
    [
        (19, 2, 2, 0),  # 6 of shots, 8 of chunks, 3 of the question, 2 of the longest option
        (18, 1, 2, 3),
        (15, 0, 2, 6),
        (12, 0, 1, 10),
        (8, 0, 0, 14),
        (4, 0, 0, 15),  # the question itself loses a token
    ],
)
def test_shots_go_before_chunks_and_the_last_of_each_first(
    window: int, shots: int, chunks: int, truncated: int
) -> None:
    fitted, missing = fit(PROMPT, window, words)
    assert fitted.shots == PROMPT.shots[:shots]
    assert fitted.chunks == PROMPT.chunks[:chunks]
    assert missing == truncated


def test_an_option_longer_than_the_window_is_an_error() -> None:
    with pytest.raises(KinjectError, match="window of 2"):
        fit(PROMPT, 2, words)
