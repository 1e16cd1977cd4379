import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from kinject_assets.core.errors import KinjectError, MissingArtefact, ModelError
from kinject_assets.core.schema import Answer, Chunk, Condition, Question, Retrieved
from kinject_assets.core.scoring import answers as module
from kinject_assets.core.scoring.answers import ScoreRequest, score
from kinject_assets.core.scoring.lm import load_lm, release
from kinject_assets.core.scoring.prompts import LETTERS, turned
from kinject_assets.core.store import read_rows, write_rows
from kinject_assets.core.training.models import load_model, load_tokenizer
from kinject_assets.lab.pretrain import build_tokenizer
from kinject_assets_tests.tiny import random_llama

RequestOf = Callable[..., ScoreRequest]


def by_hand(request: ScoreRequest, shots: int, k: int) -> dict[str, list[float]]:
    """Log-likelihoods with nothing but a model, a tokenizer and the definition."""
    questions = [q for q in read_rows(Path(request.questions), Question) if not q.retired]
    solved = [q for q in questions if q.split == "shots"][:shots]
    chunks = {c.chunk_id: c.text for c in read_rows(Path(request.chunks), Chunk)}
    ranked = sorted(read_rows(Path(request.retrieved), Retrieved), key=lambda row: row.rank)
    model, tokenizer = load_model(request.base), load_tokenizer(request.base)

    def shown(question: Question) -> str:
        if request.choice_format == "text":
            return f"Question: {question.stem}\nAnswer:"
        lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(question.options)]
        return "\n".join([question.stem, *lines, "Answer:"])

    def options(question: Question) -> list[str]:
        names = question.options if request.choice_format == "text" else LETTERS[:4]
        return [f" {name}" for name in names]

    found: dict[str, list[float]] = {}
    for question in questions:
        if question.split != "test":
            continue
        head = [shown(q) + options(q)[q.gold] for q in solved]
        head += [chunks[r.chunk_id] for r in ranked if r.question_id == question.question_id][:k]
        prompt = "\n\n".join([*head, shown(question)])
        start = len(tokenizer(prompt)["input_ids"])
        found[question.question_id] = []
        for option in options(question):
            ids = torch.tensor([tokenizer(prompt + option)["input_ids"]])
            with torch.inference_mode():
                logs = torch.log_softmax(model(ids).logits[0].double(), -1)
            picked = [logs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
            found[question.question_id].append(sum(picked))
    return found


@pytest.mark.parametrize(
    ("choice_format", "k"),
    [
        ("letter", 2),
        ("text", 0),
        pytest.param("letter", 0, marks=pytest.mark.slow),
        pytest.param("text", 2, marks=pytest.mark.slow),
    ],
)
def test_logliks_are_those_of_the_definition(
    request_of: RequestOf, choice_format: str, k: int
) -> None:
    request = request_of(
        method="rag" if k else "base", shots=(0, 2), k=(k,), choice_format=choice_format
    )
    conditions, answers, *_ = score(request)
    assert [(c.shots, c.k) for c in conditions] == [(0, k), (2, k)]
    for condition in conditions:
        mine = {a.question_id: a for a in answers if a.condition_id == condition.condition_id}
        expected = by_hand(request, condition.shots, k)
        assert list(mine) == list(expected)
        for question_id, values in expected.items():
            answer = mine[question_id]
            assert answer.logliks == pytest.approx(values, abs=1e-4)
            assert answer.choice == int(np.argmax(answer.logliks))
            assert answer.correct == (answer.choice == answer.gold)
            assert answer.truncated_tokens == 0


def test_rows_are_written_and_name_their_condition(request_of: RequestOf) -> None:
    request = request_of(method="rag", k=(1, 2), run_id="run", shots=(0, 2))
    conditions, answers, *_ = score(request)
    out = Path(request.out)
    assert read_rows(out / "answers.parquet", Answer) == answers
    assert read_rows(out / "conditions.parquet", Condition) == conditions
    assert len({c.condition_id for c in conditions}) == 4
    assert len({a.answer_id for a in answers}) == len(answers) == 4 * 12
    assert {a.run_id for a in answers} == {"run"}
    (base,) = score(request_of(work=request.work))[0]
    assert (base.retriever, base.query, base.engine) == ("", "", "hf-prefix")
    assert base.bos and not base.chat_template


def test_batches_do_not_change_answers(request_of: RequestOf, tmp_path: Path) -> None:
    fields = {"method": "rag", "k": (2,), "shots": (2,)}
    alone = score(request_of(**fields, batch_size=1))[1]
    together = score(request_of(**fields, batch_size=64, work=str(tmp_path / "other")))[1]
    for one, other in zip(alone, together, strict=True):
        assert one.logliks == pytest.approx(other.logliks, abs=1e-4)


class Crash(Exception):
    pass


def test_answered_questions_are_not_asked_again_after_a_crash(
    request_of: RequestOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields = {"method": "rag", "k": (1, 2), "shots": (0, 2)}
    request = request_of(**fields)
    monkeypatch.setattr(module, "UNIT_CHARACTERS", 1500)
    real, asked = module.option_logliks, []

    def dying(lm: Any, exams: Any) -> Any:
        asked.append([prompt for prompts in exams for prompt in prompts])
        if len(asked) == 3:
            raise Crash
        return real(lm, exams)

    monkeypatch.setattr(module, "option_logliks", dying)
    with pytest.raises(Crash):
        score(request)
    release()
    resumed = score(request)[1]
    prompts = [prompt for unit in (*asked[:2], *asked[3:]) for prompt in unit]
    assert len(asked) > 6
    assert len(prompts) == len(set(prompts)) == 4 * 12
    release()
    whole = score(request_of(**fields, work=str(tmp_path / "fresh")))[1]
    # Units, threads and checkpoint are the same: so is every bit.
    assert resumed == whole


def test_answers_to_other_questions_are_not_used(request_of: RequestOf, tmp_path: Path) -> None:
    request = request_of()
    score(request)
    fewer = read_rows(Path(request.questions), Question)[1:]
    write_rows(tmp_path / "fewer.parquet", fewer, Question)
    again = score(request_of(questions=str(tmp_path / "fewer.parquet")))[1]
    assert [a.question_id for a in again] == [
        q.question_id for q in fewer if q.split == "test" and not q.retired
    ]


def test_prompts_over_the_window_lose_text_and_say_so(
    request_of: RequestOf, tmp_path: Path
) -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    small = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=120,
        )
    )
    tokenizer.model_max_length = 120
    small.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    request = request_of(base=str(tmp_path / "small"), method="rag", k=(1, 4), shots=(2,))
    conditions, answers, *_ = score(request)
    one, four = (
        [a for a in answers if a.condition_id == condition.condition_id] for condition in conditions
    )
    assert all(a.truncated_tokens > 0 for a in four)
    assert sum(a.truncated_tokens for a in one) < sum(a.truncated_tokens for a in four)
    # With both shots and three chunks gone, what is left is one chunk and no shot.
    bare = score(
        request_of(
            base=str(tmp_path / "small"),
            method="rag",
            k=(1,),
            shots=(0,),
            work=str(tmp_path / "bare"),
        )
    )[1]
    same = [
        a.logliks == pytest.approx(b.logliks, abs=1e-4) for a, b in zip(four, bare, strict=True)
    ]
    assert any(same)


def test_an_adapter_answers_in_place_of_its_base(request_of: RequestOf, tmp_path: Path) -> None:
    request = request_of()
    torch.manual_seed(0)
    adapted = get_peft_model(
        load_model(request.base),  # pyright: ignore[reportArgumentType]
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    load_tokenizer(request.base).save_pretrained(tmp_path / "adapter")
    trained = request_of(
        method="ft",
        recipe="lora.p00",
        checkpoint=str(tmp_path / "adapter"),
        checkpoint_id="id",
        adapter=True,
        work=str(tmp_path / "ft"),
    )
    plain, with_adapter = score(request)[1], score(trained)[1]
    assert {a.checkpoint_id for a in with_adapter} == {"id"}
    gaps = [
        abs(a - b)
        for one, other in zip(plain, with_adapter, strict=True)
        for a, b in zip(one.logliks, other.logliks, strict=True)
    ]
    assert min(gaps) > 1e-4


def test_one_model_is_kept_until_another_is_asked_for(base: Path, tmp_path: Path) -> None:
    release()
    first: Any = load_lm(str(base), device="cpu", batch_size=3)
    assert load_lm(str(base), device="cpu", batch_size=7) is first
    assert first.batch_size == 7
    load_model(str(base)).save_pretrained(tmp_path)
    load_tokenizer(str(base)).save_pretrained(tmp_path)
    assert load_lm(str(base), device="cpu", checkpoint=str(tmp_path)) is not first


def test_requests_that_cannot_be_answered_say_why(request_of: RequestOf, tmp_path: Path) -> None:
    with pytest.raises(KinjectError, match=r"scoring\.k"):
        score(request_of(method="base", k=(1,)))
    with pytest.raises(MissingArtefact, match=r"scoring\.shots: 9"):
        score(request_of(shots=(9,)))
    with pytest.raises(MissingArtefact, match="has 4 chunks"):
        score(request_of(method="rag", k=(5,)))
    with pytest.raises(ModelError, match=r"\*\.safetensors"):
        score(request_of(base=str(tmp_path)))


def test_all_orders_of_the_options_are_averaged(request_of: RequestOf, tmp_path: Path) -> None:
    request = request_of(choice_format="letter", rotation=True, method="rag", k=(1,), shots=(2,))
    asked = [q for q in read_rows(Path(request.questions), Question) if not q.retired]
    few = [q for q in asked if q.split != "test"] + [q for q in asked if q.split == "test"][:4]
    request = replace(request, questions=str(tmp_path / "few.parquet"))
    write_rows(tmp_path / "few.parquet", few, Question)
    (condition,), answers, *_ = score(request)
    assert condition.rotation
    assert len(answers) == 4
    by_order: list[dict[str, list[float]]] = []
    for order in range(4):
        turned_questions = [turned(q, order) if q.split == "test" else q for q in few]
        path = Path(request.out) / f"{order}.parquet"
        write_rows(path, turned_questions, Question)
        by_order.append(by_hand(replace(request, questions=str(path)), 2, 1))
    for answer in answers:
        shown = [found[answer.question_id] for found in by_order]
        # Order r shows option (place + r) mod 4 at a place.
        mean = [sum(shown[r][(o - r) % 4] for r in range(4)) / 4 for o in range(4)]
        assert answer.logliks == pytest.approx(mean, abs=1e-4)
        assert answer.places == [int(np.argmax(values)) for values in shown]
        assert answer.choice == int(np.argmax(answer.logliks))


def test_rotation_of_options_that_are_not_shown_is_refused(request_of: RequestOf) -> None:
    with pytest.raises(KinjectError, match=r"scoring\.rotation"):
        score(request_of(rotation=True))


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_template_goes_round_the_prompt(
    request_of: RequestOf, base: Path, tmp_path: Path
) -> None:
    load_model(str(base)).save_pretrained(tmp_path / "chat")
    tokenizer = load_tokenizer(str(base))
    with pytest.raises(ModelError, match=r"scoring\.chat_template"):
        score(request_of(chat_template=True))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chat")
    request = request_of(
        base=str(tmp_path / "chat"), chat_template=True, method="rag", k=(1, 2), shots=(2,)
    )
    (first, _), answers, *_ = score(request)
    assert first.chat_template and first.bos
    question = next(q for q in read_rows(Path(request.questions), Question) if q.split == "test")
    solved = [q for q in read_rows(Path(request.questions), Question) if q.split == "shots"][:2]
    chunks = {c.chunk_id: c.text for c in read_rows(Path(request.chunks), Chunk)}
    best = next(
        chunks[r.chunk_id]
        for r in read_rows(Path(request.retrieved), Retrieved)
        if r.question_id == question.question_id and r.rank == 1
    )
    parts = [f"Question: {q.stem}\nAnswer: {q.options[q.gold]}" for q in solved]
    content = "\n\n".join([*parts, best, f"Question: {question.stem}\nAnswer:"])
    prompt = f"{tokenizer.bos_token}[user] {content}\n[assistant]"
    model = load_model(request.base)
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    expected = []
    for option in question.options:
        ids = torch.tensor([tokenizer(prompt + option, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logs = torch.log_softmax(model(ids).logits[0].double(), -1)
        expected.append(sum(logs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
    mine = next(
        a
        for a in answers
        if (a.condition_id, a.question_id) == (first.condition_id, question.question_id)
    )
    assert mine.logliks == pytest.approx(expected, abs=1e-4)


def test_a_begin_token_is_put_first_where_the_tokenizer_does_not(
    request_of: RequestOf, tmp_path: Path
) -> None:
    texts = [q.stem for q in read_rows(Path(request_of().questions), Question)]
    folder = random_llama(tmp_path / "bare", texts)
    usual = score(request_of(base=str(folder), work=str(tmp_path / "usual")))
    begun = score(request_of(base=str(folder), add_bos=True, work=str(tmp_path / "begun")))
    assert (usual.conditions[0].bos, begun.conditions[0].bos) == (False, True)
    pairs = zip(usual.answers, begun.answers, strict=True)
    assert all(a.logliks != pytest.approx(b.logliks, abs=1e-4) for a, b in pairs)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"scoring\.add_bos"):
        score(request_of(base=str(folder), add_bos=True, work=str(tmp_path / "none")))


@pytest.mark.parametrize(("add_bos", "recorded"), [(None, True), (True, True), (False, False)])
def test_the_begin_token_is_recorded(
    request_of: RequestOf, add_bos: bool | None, recorded: bool
) -> None:
    request = request_of(add_bos=add_bos)
    (condition,), answers, *_ = score(request)
    assert condition.bos is recorded
    usual = score(request_of(work=f"{request.work}-usual"))[1]
    same = [a.logliks == b.logliks for a, b in zip(answers, usual, strict=True)]
    assert all(same) if recorded else not any(same)


def test_the_stock_engine_gives_the_same_answers(request_of: RequestOf, tmp_path: Path) -> None:
    fields = {"method": "rag", "k": (1, 3), "shots": (0, 2)}
    ours = score(request_of(**fields))
    stock = score(request_of(**fields, engine="hf", work=str(tmp_path / "stock")))
    assert (ours.unshared, stock.unshared) == ("", "the engine `hf` was chosen")
    assert ours.counts["read"] < ours.counts["tokens"] / 2
    for one, other in zip(ours.answers, stock.answers, strict=True):
        assert (one.question_id, one.choice) == (other.question_id, other.choice)
        assert one.logliks == pytest.approx(other.logliks, abs=1e-4)


SCRIPT = """
import json, sys, time
from kinject_assets.core.scoring import answers
from kinject_assets.workers.entry import read_request
fields = json.loads(sys.argv[1])
request = read_request(answers.ScoreRequest, fields)
answers.UNIT_CHARACTERS = 1500
real = answers.option_logliks
def slow(*arguments):
    time.sleep(0.3)
    return real(*arguments)
answers.option_logliks = slow
answers.score(request)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_changes_no_bit(request_of: RequestOf, tmp_path: Path) -> None:
    request = request_of(method="rag", k=(1, 2), shots=(0, 2))

    def start(name: str) -> subprocess.Popen[bytes]:
        fields = asdict(request) | {"work": str(tmp_path / name), "out": str(tmp_path / "o" / name)}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(fields)])

    assert start("whole").wait(120) == 0
    parts = len(list((tmp_path / "whole").glob("*.parquet")))
    killed = start("killed")
    while len(list((tmp_path / "killed").glob("*.parquet"))) < parts // 2:
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(10) == -signal.SIGKILL
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("*.parquet")}
    assert 0 < len(kept) < parts
    assert not (tmp_path / "o" / "killed" / "answers.parquet").exists()
    assert start("killed").wait(120) == 0
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    whole, resumed = (
        read_rows(tmp_path / "o" / name / "answers.parquet", Answer) for name in ("whole", "killed")
    )
    assert resumed == whole


def test_what_was_asked_before_is_taken_over_and_nothing_else(
    request_of: RequestOf, base: Path, exam: Path, tmp_path: Path
) -> None:
    fields = {"method": "rag", "k": (1, 2), "shots": (0, 2)}
    first = score(request_of(**fields, run_id="first"))
    questions = read_rows(exam / "questions.parquet", Question)
    changed = [
        replace(q, stem=f"{q.stem} Say.") if q.question_id == "q0-0" else q for q in questions
    ]
    write_rows(tmp_path / "changed.parquet", changed, Question)

    def again(**changes: Any) -> module.Scored:
        return score(
            request_of(
                **fields
                | {"run_id": "again", "previous": (str(tmp_path / "out"),)}
                | {"out": str(tmp_path / "again"), "work": str(tmp_path / "other")}
                | changes
            )
        )

    same = again(corpus="a release")
    assert same.reused == len(first.answers)
    assert {a.run_id for a in same.answers} == {"first"}
    assert [a.logliks for a in same.answers] == [a.logliks for a in first.answers]
    assert not {a.answer_id for a in same.answers} & {a.answer_id for a in first.answers}

    part = again(questions=str(tmp_path / "changed.parquet"))
    asked = {a.question_id for a in part.answers if a.run_id == "again"}
    assert asked == {"q0-0"}
    assert part.reused == len(first.answers) - 4

    # Other weights in the same place, or another checkpoint, have answered nothing yet.
    swapped = tmp_path / "swapped"
    shutil.copytree(base, swapped)
    other = load_model(str(swapped))
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    other.save_pretrained(swapped)
    release()
    assert again(base=str(swapped), work=str(tmp_path / "third")).reused == 0


def test_parts_answer_each_unit_once_and_together_the_same(
    request_of: RequestOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNIT_CHARACTERS", 1)
    alone = score(
        request_of(out=str(tmp_path / "alone"), work=str(tmp_path / "w"), method="rag", k=(1, 2))
    )
    parts = [
        request_of(
            out=str(tmp_path / "none"),
            work=str(tmp_path / f"part{i}"),
            method="rag",
            k=(1, 2),
            part=(i, 2),
        )
        for i in range(2)
    ]
    shares = [score(part).answers for part in parts]
    assert all(shares), "each has something to do"
    assert not (tmp_path / "none").exists()
    seen = [(row.condition_id, row.question_id) for rows in shares for row in rows]
    assert len(seen) == len(set(seen)) == len(alone.answers)

    whole = request_of(
        out=str(tmp_path / "whole"),
        work=str(tmp_path / "rest"),
        method="rag",
        k=(1, 2),
        parts=tuple(part.work for part in parts),
    )
    done = score(whole)
    assert done.answers == alone.answers
    assert not done.counts.get("read"), "what parts answered is not asked again"
