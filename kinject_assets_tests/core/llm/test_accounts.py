"""Bad weather at the language model service: what comes is complete, and the accounts are exact."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from kinject_assets import config
from kinject_assets.core.augmentation.paraphrases import write_paraphrases
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.sources import fetch_articles
from kinject_assets.core.exams.writing import write_exam
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.schema import Chunk
from kinject_assets.lab.server import running
from kinject_assets.lab.writer import MODEL

LAB = config.Lab(seed=7, months=1, events_per_month=10, things=12)
KINDS = ["429", "500", "timeout", "cut", "malformed", "wrong_schema"]


def chunks_of(address: str) -> list[Chunk]:
    source = config.WikiPages(kind="wiki", wiki="w", categories=("Comets of the lab",), depth=0)
    articles = fetch_articles(
        config.Corpus(source=source),
        wikis={"w": config.Wiki(api_url=f"{address}/w/api.php")},
        cleaning=config.Cleaning(),
        contact="tests@localhost",
        now=datetime(2031, 1, 31, tzinfo=UTC),
        base_folder=Path(),
    ).articles
    return chunk_articles(articles, config.Chunking(), token_counter("words"))


@pytest.mark.parametrize("verify", [False, True])
def test_received_answers_are_those_used_and_those_rejected(tmp_path: Path, verify: bool) -> None:
    with running(LAB) as address:
        chunks = chunks_of(address)
        exams = config.Exams(verify=verify)
        settings = config.LLM(
            model=MODEL, timeout=1, attempts=12, concurrency=8, prices={MODEL: (0, 0)}
        )
        augmentation = config.Augmentation()

        def write(ledger: str) -> tuple[list[str], list[str], Counter[str], Ledger]:
            client = LLMClient(settings, base_url=f"{address}/v1", ledger=Ledger(tmp_path / ledger))
            exam = write_exam(chunks, corpus="c", client=client, settings=exams)
            texts = write_paraphrases(
                chunks, per_chunk=2, purpose="train", client=client, settings=augmentation
            )
            reasons = Counter(
                row.reason.partition(":")[0] for row in (*exam.rejections, *texts.rejections)
            )
            questions = [row.question_id for row in exam.questions]
            return questions, [row.text for row in texts.paraphrases], reasons, client.ledger

        fair = write("fair")
        httpx.post(
            f"{address}/lab/faults",
            json={"rate": 0.3, "kinds": KINDS, "retry_after": 0.05, "delay": 5, "seed": 3},
        ).raise_for_status()
        questions, texts, reasons, ledger = write("rough")
    assert len(questions) == len(fair[0])
    assert len(texts) == len(fair[1]) == 2 * len(chunks)
    states = Counter(row.state for row in ledger.generations())
    assert states["in flight"] == 0
    assert states["failed"] > 10
    # Used: of each chunk an answer with questions, one that selects (or verifies), two paraphrases;
    # and what the gates of the paraphrases turned away is a rejection each.
    used = Counter(row.state for row in fair[3].generations())["received"]
    useless = reasons["answer asked for again"]
    assert useless > 5
    turned_away = {
        name: count - fair[2][name]
        for name, count in reasons.items()
        if name.startswith(("drops", "copy", "near-copy", "not in the chunk"))
    }
    assert states["received"] == used + useless + sum(turned_away.values())
