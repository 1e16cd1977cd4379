import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.core.schema import Chunk, Question, Retrieved
from kinject_assets.core.scoring.answers import ScoreRequest
from kinject_assets.core.store import write_rows
from kinject_assets.lab.grammar import POOLS, ask, tell
from kinject_assets.lab.pretrain import build_model, build_tokenizer
from kinject_assets.lab.things import draw_things


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mistral with random weights, and the lab's tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer()
    build_model("lab-mistral", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`questions` (12 test, 6 shots, 1 retired), `chunks` (6) and `retrieved` as Parquet."""
    folder = tmp_path_factory.mktemp("exam")
    rng = random.Random(3)
    questions: list[Question] = []
    chunks: list[Chunk] = []
    retrieved: list[Retrieved] = []
    for number, thing in enumerate(draw_things("events", 6, rng)):
        chunks.append(
            Chunk(
                chunk_id=f"c{number}",
                article_id="a",
                revision_id="r",
                ordinal=number,
                title=thing.name,
                section="",
                n_tokens=50,
                small=False,
                text=tell(list(thing.facts), rng),
            )
        )
        for place, fact in enumerate(thing.facts[:3]):
            split = "test" if place < 2 else "shots"
            # One option has words that the tokenizer does not know: more than one token.
            wrong = rng.sample([v for v in POOLS[fact.spec.pool] if v != fact.value], 2)
            options = [fact.value, *wrong, "none of these, surely"]
            rng.shuffle(options)
            questions.append(
                Question(
                    question_id=f"q{number}-{place}",
                    origin="llm",
                    stem=ask(fact, rng),
                    options=options,
                    gold=options.index(fact.value),
                    chunk_id=f"c{number}",
                    generator="g",
                    generation_id="",
                    triage="new",
                    split=split,
                    retired=False,
                )
            )
    questions.append(replace(questions[0], question_id="old", retired=True))
    for question in questions:
        order = rng.sample(range(6), 4)
        retrieved += [
            Retrieved(
                corpus="events",
                question_id=question.question_id,
                retriever="dense",
                rank=rank,
                chunk_id=f"c{row}",
                score=1 / rank,
                hit=False,
            )
            for rank, row in enumerate(order, start=1)
        ]
    rng.shuffle(retrieved)
    write_rows(folder / "questions.parquet", questions, Question)
    write_rows(folder / "chunks.parquet", chunks, Chunk)
    write_rows(folder / "retrieved.parquet", retrieved, Retrieved)
    return folder


@pytest.fixture
def request_of(base: Path, exam: Path, tmp_path: Path):
    """Builds a request; arguments override its fields."""

    def build(**changes: Any) -> ScoreRequest:
        fields: dict[str, Any] = {
            "corpus": "events",
            "model": "lab-mistral",
            "method": "base",
            "base": str(base),
            "questions": str(exam / "questions.parquet"),
            "chunks": str(exam / "chunks.parquet"),
            "retrieved": str(exam / "retrieved.parquet"),
            "retrievers": ("dense",),
            "query": "question",
            "shots": (0,),
            "k": (0,),
            "choice_format": "text",
            "work": str(tmp_path / "work"),
            "out": str(tmp_path / "out"),
            "batch_size": 5,
            "device": "cpu",
            **changes,
        }
        return ScoreRequest(**fields)

    return build
