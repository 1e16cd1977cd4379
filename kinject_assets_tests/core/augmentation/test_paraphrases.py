import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kinject_assets import config
from kinject_assets.core.augmentation.facts import normalised
from kinject_assets.core.augmentation.paraphrase import ParaphrasePlugin, WrittenParaphrase
from kinject_assets.core.augmentation.paraphrases import (
    Paraphrased,
    draw_validation_chunks,
    gate,
    write_paraphrases,
)
from kinject_assets.core.augmentation.plugin import Task
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Chunk
from kinject_assets.lab.grammar import parse_text, tell
from kinject_assets.lab.server import serving
from kinject_assets.lab.things import draw_things

SOURCE = "In 1903 Marie Curie won a prize of 1,000 francs. She lived in Paris with two daughters."
OTHER = "Marie Curie, who lived in Paris with 2 daughters, got 1000 francs for a prize in 1903."


def _chunks(count: int) -> list[Chunk]:
    return [
        Chunk(
            chunk_id=content_hash("chunk", thing.name),
            article_id=content_hash("article", thing.name),
            revision_id="1",
            ordinal=ordinal,
            title=f"The {thing.name}",
            section="",
            n_tokens=60,
            small=False,
            text=tell(list(thing.facts), random.Random(thing.name)),
        )
        for ordinal, thing in enumerate(draw_things("rivers", count, random.Random(3)))
    ]


def _write(
    client: LLMClient, chunks: list[Chunk], n: int, purpose: str = "train", **settings: float
) -> Paraphrased:
    return write_paraphrases(
        chunks,
        per_chunk=n,
        purpose=purpose,
        client=client,
        settings=config.Augmentation(**settings),  # pyright: ignore[reportArgumentType]
    )


def test_paraphrases_say_the_same_in_other_words(client_on: Callable[[str], LLMClient]) -> None:
    chunks = _chunks(4)
    result = _write(client_on("a"), chunks, 3)
    assert len(result.paraphrases) == 12
    assert result.given_up == 0
    assert len({row.paraphrase_id for row in result.paraphrases}) == 12
    assert len({row.seed for row in result.paraphrases}) == 12
    by_id = {chunk.chunk_id: chunk for chunk in chunks}
    for row in result.paraphrases:
        source = by_id[row.chunk_id].text
        assert set(parse_text(row.text)) == set(parse_text(source))
        assert normalised(row.text) != normalised(source)


def test_more_paraphrases_leave_the_first_ones(client_on: Callable[[str], LLMClient]) -> None:
    # A chunk with a single fact runs out of ways to say it: copies occur and are asked again.
    chunks = [replace(_chunks(1)[0], text="Abric built the bridge over the Balan River.")]
    few = _write(client_on("a"), chunks, 4)
    many = _write(client_on("b"), chunks, 16)
    assert many.rejections
    assert any(row.reason == "copy of another paraphrase" for row in many.rejections)
    first = [row for row in many.paraphrases if row.ordinal < 4]
    assert [(row.ordinal, row.text) for row in first] == [
        (row.ordinal, row.text) for row in few.paraphrases
    ]
    texts = [normalised(row.text) for row in many.paraphrases]
    assert len(set(texts)) == len(texts)
    assert len(many.paraphrases) + many.given_up == 16


def test_validation_paraphrases_have_seeds_of_their_own(
    client_on: Callable[[str], LLMClient],
) -> None:
    client = client_on("a")
    train = _write(client, _chunks(2), 2)
    validation = _write(client, _chunks(2), 2, "validation")
    assert not {row.seed for row in train.paraphrases} & {
        row.seed for row in validation.paraphrases
    }
    assert {row.purpose for row in validation.paraphrases} == {"validation"}


@contextmanager
def _parrot(tmp_path: Path, text: str) -> Iterator[LLMClient]:
    async def chat(request: Request) -> Response:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        return JSONResponse({**body, "choices": [choice]})

    route = Route("/v1/chat/completions", chat, methods=["POST"])
    with serving(Starlette(routes=[route])) as address:
        settings = config.LLM(model="m", attempts=2)
        yield LLMClient(settings, base_url=f"{address}/v1", ledger=Ledger(tmp_path / "l"))


def test_what_never_passes_is_given_up_and_counted(tmp_path: Path) -> None:
    chunk = replace(_chunks(1)[0], text=SOURCE)
    with _parrot(tmp_path, '{"paraphrase": "Marie Curie won something in 1903."}') as client:
        result = _write(client, [chunk], 2, attempts=3)
        assert len(client.ledger.generations()) == 6
    assert result.paraphrases == []
    assert result.given_up == 2
    assert [row.reason for row in result.rejections] == ["drops 1000, Paris, two"] * 6
    assert len({row.rejection_id for row in result.rejections}) == 6


def test_a_service_without_usable_answers_is_given_up_at_once(tmp_path: Path) -> None:
    with _parrot(tmp_path, "I would rather not.") as client:
        result = _write(client, _chunks(1), 1)
        assert len(client.ledger.generations()) == 2
    assert result.given_up == 1
    # Each answer that was received, and why it was of no use.
    assert len(result.rejections) == 2
    assert "no usable answer: not JSON" in result.rejections[-1].reason


def _reason(text: str, siblings: list[str], **settings: float) -> str | None:
    chunk = replace(_chunks(1)[0], text=SOURCE)
    task = Task(chunk, 0, config.Augmentation(**settings))  # pyright: ignore[reportArgumentType]
    return gate(WrittenParaphrase(paraphrase=text), task, ParaphrasePlugin(), siblings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ... ", "empty"),
        (SOURCE.upper(), "copy of the chunk"),
        (SOURCE.replace("She", "And she"), "near-copy of the chunk"),
        ("one has it: Already!", "copy of another paraphrase"),
        (f"{OTHER} Indeed.", "near-copy of another paraphrase"),
        ("A prize of 1000 francs and two daughters: Marie Curie of Paris.", "drops 1903"),
        ("In 1903 Marie Curie of Paris had a prize of 1000 francs and a child.", "drops two"),
    ],
)
def test_each_gate_turns_its_paraphrase_away(text: str, reason: str) -> None:
    assert _reason(text, ["One has it already", OTHER]) == reason


def test_a_real_paraphrase_passes() -> None:
    assert _reason(OTHER, []) is None
    assert _reason(f"{OTHER} Indeed.", [OTHER], near_duplicate=1.0) is None


def test_a_chunk_that_is_drawn_is_drawn_from_every_part_of_the_corpus() -> None:
    chunks, settings = _chunks(60), config.Augmentation(validation_chunks=10)
    drawn = {c.chunk_id for c in draw_validation_chunks(chunks, settings)}
    for release in (chunks[:40], chunks[20:], chunks[::2]):
        again = {c.chunk_id for c in draw_validation_chunks(release, settings)}
        assert len(again) == 10
        assert drawn & {c.chunk_id for c in release} <= again
    other = config.Augmentation(validation_chunks=10, seed=1)
    assert {c.chunk_id for c in draw_validation_chunks(chunks, other)} != drawn


def test_validation_chunks_stay_drawn_as_a_corpus_grows() -> None:
    chunks = _chunks(60)
    chunks[0] = replace(chunks[0], small=True)
    settings = config.Augmentation(validation_chunks=10)
    few, more = (
        draw_validation_chunks(chunks[:50], settings),
        draw_validation_chunks(chunks, settings),
    )
    assert len(few) == len(more) == 10
    assert len({c.chunk_id for c in few} & {c.chunk_id for c in more}) >= 5
    assert [c.ordinal for c in more] == sorted(c.ordinal for c in more)
    everything = draw_validation_chunks(chunks, config.Augmentation(validation_chunks=100))
    assert everything == chunks[1:]
