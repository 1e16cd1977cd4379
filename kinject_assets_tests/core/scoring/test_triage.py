import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.schema import Chunk, Question, Triage
from kinject_assets.core.scoring import lm as lm_module
from kinject_assets.core.scoring import triage as module
from kinject_assets.core.scoring.lm import load_lm
from kinject_assets.core.scoring.triage import (
    Shares,
    TriageRequest,
    option_shares,
    probe_prompts,
    stratum,
    triage,
)
from kinject_assets.core.store import read_rows, write_rows
from kinject_assets.core.training.models import load_model, load_tokenizer

QUESTION = Question(
    question_id="q",
    origin="llm",
    stem="Which bone is the longest?",
    options=["femur", "tibia", "ulna"],
    gold=1,
    chunk_id="c",
    generator="g",
    generation_id="",
    triage="",
    split="test",
    retired=False,
)


def shares(**changes: Any) -> Shares:
    fields: dict[str, Any] = dict.fromkeys(
        ("closed_book", "options_only", "question_only", "open_book", "rival"), 0.3
    )
    return Shares(**{**fields, "question_id": "q", "rival_option": 2, **changes})


@pytest.mark.parametrize(
    ("of_models", "expected"),
    [
        ([shares()], "new"),
        ([shares(closed_book=0.5)], "known"),
        ([shares(question_only=0.9)], "known"),
        ([shares(closed_book=0.9), shares(closed_book=0.05)], "new"),
        ([shares(closed_book=0.9), shares(closed_book=0.2)], "known"),
        ([shares(closed_book=0.9, options_only=0.6)], "inferable"),
        ([shares(rival=0.6), shares(rival=0.9)], "broken"),
        ([shares(rival=0.6), shares(rival=0.4)], "new"),
        ([shares(rival=0.6), shares(rival=0.6, rival_option=0)], "new"),
        ([shares(rival=0.6, options_only=0.9)], "broken"),
    ],
)
def test_the_rule(of_models: list[Shares], expected: str) -> None:
    assert stratum(of_models) == expected


def test_a_favourite_letter_gains_nothing() -> None:
    always_a = [[0.0, -50.0, -50.0, -50.0]] * 4
    assert option_shares(always_a) == pytest.approx([0.25] * 4)
    # The second option, wherever it is shown: order r shows option (place + r) mod 4.
    finds_it = [[0.0 if (p + r) % 4 == 1 else -50.0 for p in range(4)] for r in range(4)]
    assert option_shares(finds_it) == pytest.approx([0, 1, 0, 0])
    assert option_shares([[math.log(3), 0.0]]) == pytest.approx([0.75, 0.25])


def test_probes_show_what_they_say() -> None:
    closed = probe_prompts(QUESTION, "closed_book", "letter", "text of the chunk")
    assert [p.text.splitlines()[1:4] for p in closed] == [
        ["A. femur", "B. tibia", "C. ulna"],
        ["A. tibia", "B. ulna", "C. femur"],
        ["A. ulna", "B. femur", "C. tibia"],
    ]
    assert all(p.text.startswith(QUESTION.stem) and p.options == (" A", " B", " C") for p in closed)
    (alone,) = probe_prompts(QUESTION, "question_only", "letter", "text of the chunk")
    assert "femur" not in alone.text and alone.options == (" femur", " tibia", " ulna")
    for prompt in probe_prompts(QUESTION, "options_only", "letter", "text of the chunk"):
        assert "longest" not in prompt.text and "femur" in prompt.text
    for prompt in probe_prompts(QUESTION, "open_book", "letter", "text of the chunk"):
        assert prompt.text.startswith(f"text of the chunk\n\n{QUESTION.stem}")
    (bare,) = probe_prompts(QUESTION, "options_only", "text", "text of the chunk")
    assert "longest" not in bare.text and bare.options == (" femur", " tibia", " ulna")


@pytest.fixture
def request_of(base: Path, exam: Path, tmp_path: Path):
    def build(**changes: Any) -> TriageRequest:
        fields: dict[str, Any] = {
            "corpus": "events",
            "models": ({"name": "one", "base": str(base)}, {"name": "two", "base": str(base)}),
            "questions": str(exam / "questions.parquet"),
            "chunks": str(exam / "chunks.parquet"),
            "choice_format": "letter",
            "work": str(tmp_path / "work"),
            "out": str(tmp_path / "out"),
            "device": "cpu",
            **changes,
        }
        return TriageRequest(**fields)

    return build


def by_hand(base: Path, prompts: list[Any]) -> list[list[float]]:
    model, tokenizer = load_model(str(base)), load_tokenizer(str(base))
    found = []
    for prompt in prompts:
        start = len(tokenizer(prompt.text)["input_ids"])
        found.append([])
        for option in prompt.options:
            ids = torch.tensor([tokenizer(prompt.text + option)["input_ids"]])
            with torch.inference_mode():
                logs = torch.log_softmax(model(ids).logits[0].double(), -1)
            found[-1].append(sum(logs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
    return found


@pytest.mark.parametrize("choice_format", ["letter", "text"])
def test_every_question_gets_its_shares(request_of: Any, base: Path, choice_format: str) -> None:
    request = request_of(choice_format=choice_format)
    rows = triage(request)
    questions = {q.question_id: q for q in read_rows(Path(request.questions), Question)}
    chunks = {c.chunk_id: c.text for c in read_rows(Path(request.chunks), Chunk)}
    assert [r.question_id for r in rows] == [q for q in questions if not questions[q].retired]
    assert read_rows(Path(request.out) / "triage.parquet", Triage) == rows
    row = rows[3]
    question = questions[row.question_id]
    text = chunks[question.chunk_id or ""]
    for probe in ("closed_book", "options_only", "question_only", "open_book"):
        logliks = by_hand(base, probe_prompts(question, probe, choice_format, text))
        expected = option_shares(logliks)
        assert getattr(row, probe) == pytest.approx(expected[question.gold], abs=1e-4)
        if probe == "open_book":
            wrong = [s for o, s in enumerate(expected) if o != question.gold]
            assert row.rival == pytest.approx(max(wrong), abs=1e-4)
    assert row.models == 2


def test_a_chunk_that_was_not_read_breaks_no_question(
    request_of: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_lm(str(base), device="cpu")
    rows = triage(request_of())
    monkeypatch.setattr(lm_module, "room", lambda lm: 60)
    short = triage(request_of(work=request_of().work + "-short"))
    assert all(row.rival > 0 for row in rows)
    assert any(row.rival == 0 for row in short)
    assert all(row.stratum != "broken" for row in short if row.rival == 0)
    assert lm is load_lm(str(base), device="cpu")


def test_chat_models_are_probed_in_their_template() -> None:
    def wrap(text: str) -> str:
        return f"[user] {text} [assistant]"

    for probe in module.PROBES:
        for prompt in probe_prompts(QUESTION, probe, "letter", "text", wrap):
            assert prompt.text.startswith("[user] ") and prompt.text.endswith(" [assistant]")
            assert not any(option.startswith(" ") for option in prompt.options)


def test_finished_blocks_are_not_asked_again(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of()
    monkeypatch.setattr(module, "BLOCK", 5)
    real, blocks = module.option_logliks, []

    def dying(lm: Any, exams: Any) -> Any:
        blocks.append(exams)
        if len(blocks) == 3:
            raise InterruptedError
        return real(lm, exams)

    monkeypatch.setattr(module, "option_logliks", dying)
    with pytest.raises(InterruptedError):
        triage(request)
    rows = triage(request)
    # 18 questions in blocks of 5, by two models: 8 blocks, of which one was asked twice.
    assert len(blocks) == 9
    assert len(rows) == 18


def test_a_question_without_its_chunk_is_an_error(request_of: Any, tmp_path: Path) -> None:
    request = request_of()
    kept = read_rows(Path(request.chunks), Chunk)[1:]
    write_rows(tmp_path / "fewer.parquet", kept, Chunk)
    with pytest.raises(MissingArtefact, match="Materialise `questions` again"):
        triage(replace(request, chunks=str(tmp_path / "fewer.parquet")))
