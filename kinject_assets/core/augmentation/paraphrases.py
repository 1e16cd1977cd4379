"""Writes paraphrases of chunks, and asks again for copies and for those that drop facts.

The n-th paraphrase of a chunk depends on the chunk and on the paraphrases before it, never on how
many are asked for: recipes with more paraphrases read a longer prefix of the same list.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from kinject_assets import config
from kinject_assets.core.augmentation import prompts
from kinject_assets.core.llm.client import Ask, Failure, LLMClient, Received, Reply, seed_of
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Chunk, Paraphrase, Rejection


class WrittenParaphrase(BaseModel):
    """A paraphrase as the language model writes it."""

    model_config = ConfigDict(extra="forbid")

    paraphrase: str


@dataclass(frozen=True)
class Paraphrased:
    """Paraphrases by chunk and ordinal, and what was turned away.

    Attributes:
        given_up: Paraphrases that are left out after all attempts.
    """

    paraphrases: list[Paraphrase]
    rejections: list[Rejection]
    given_up: int


@dataclass
class _Slot:
    """One paraphrase that is wanted, and all that was received for it."""

    chunk: Chunk
    ordinal: int
    replies: list[Reply[WrittenParaphrase]] = field(default_factory=list)

    def open(self, attempts: int) -> bool:
        failed = bool(self.replies) and isinstance(self.replies[-1], Failure)
        return not failed and len(self.replies) < attempts


@dataclass(frozen=True)
class _Resolved:
    """What a slot's replies come to: a paraphrase, or none so far."""

    slot: _Slot
    taken: Received[WrittenParaphrase] | None
    turned_away: list[tuple[str, str]]


def draw_validation_chunks(chunks: Sequence[Chunk], settings: config.Augmentation) -> list[Chunk]:
    """Draws the chunks whose paraphrases validate training, in the corpus's order.

    A chunk's hash decides: releases of a corpus that share chunks share most of the draw. All
    chunks that are not small are taken where there are no more than asked for.
    """
    candidates = [chunk for chunk in chunks if not chunk.small]
    ranked = sorted(
        candidates, key=lambda chunk: content_hash("validation", settings.seed, chunk.chunk_id)
    )
    drawn = {chunk.chunk_id for chunk in ranked[: settings.validation_chunks]}
    return [chunk for chunk in candidates if chunk.chunk_id in drawn]


def write_paraphrases(
    chunks: Sequence[Chunk],
    *,
    per_chunk: int,
    purpose: str,
    client: LLMClient,
    settings: config.Augmentation,
    report: Report = silent,
) -> Paraphrased:
    """Writes `per_chunk` paraphrases of each chunk, one request each.

    Args:
        chunks: What to paraphrase, small chunks included.
        per_chunk: Paraphrases of each; their ordinals are 0 to `per_chunk` - 1.
        purpose: `train` or `validation`.
        client: The language model.
        settings: Seed, number of requests per paraphrase, and what counts as a copy.
        report: Told how many paraphrases are still missing in each round.

    Raises:
        LLMError: If the service fails for good; received answers are in the client's ledger.
    """
    slots = {
        chunk.chunk_id: [_Slot(chunk, ordinal) for ordinal in range(per_chunk)] for chunk in chunks
    }
    resolved: dict[str, list[_Resolved]] = {key: _resolve(s, settings) for key, s in slots.items()}
    while pending := [
        r.slot
        for rows in resolved.values()
        for r in rows
        if r.taken is None and r.slot.open(settings.attempts)
    ]:
        report(f"{purpose} paraphrases: {len(pending)} to write")
        replies = client.ask_many([_ask(slot, purpose, settings) for slot in pending])
        for slot, reply in zip(pending, replies, strict=True):
            slot.replies.append(reply)
        for key in {slot.chunk.chunk_id for slot in pending}:
            resolved[key] = _resolve(slots[key], settings)
    rows = [row for rows in resolved.values() for row in rows]
    written = [
        _paraphrase(row.slot, row.taken, purpose, client.settings.model)
        for row in rows
        if row.taken is not None
    ]
    given_up = len(rows) - len(written)
    report(f"{purpose} paraphrases: {len(written)} written, {given_up} given up")
    return Paraphrased(written, _rejections(rows, purpose), given_up)


def _ask(slot: _Slot, purpose: str, settings: config.Augmentation) -> Ask[WrittenParaphrase]:
    return Ask(
        purpose="paraphrase" if purpose == "train" else "validation_paraphrase",
        messages=prompts.paraphrase(slot.chunk),
        answer=WrittenParaphrase,
        seed=seed_of(settings.seed, purpose, slot.chunk.chunk_id, slot.ordinal),
        attempt=slot.replies[-1].attempt + 1 if slot.replies else 0,
    )


def _resolve(slots: Sequence[_Slot], settings: config.Augmentation) -> list[_Resolved]:
    """Takes, in the order of ordinals, each slot's first answer that passes.

    It runs anew whenever answers came in: a lower ordinal that was asked again has the first claim
    on a text, even if a higher one had it before.
    """
    siblings: set[str] = set()
    resolved: list[_Resolved] = []
    for slot in slots:
        turned_away: list[tuple[str, str]] = []
        taken = None
        for reply in slot.replies:
            if isinstance(reply, Failure):
                turned_away.append((f"no usable answer: {reply.reason}", ""))
                break
            text = reply.value.paraphrase
            reason = gate(text, slot.chunk.text, siblings, settings.near_duplicate)
            if reason is None:
                taken = reply
                siblings.add(normalised(text))
                break
            turned_away.append((reason, text))
        resolved.append(_Resolved(slot, taken, turned_away))
    return resolved


def gate(text: str, source: str, siblings: set[str], near_duplicate: float) -> str | None:
    """Why a paraphrase is turned away; `None` if nothing is wrong with it.

    Args:
        text: The paraphrase.
        source: The chunk's text.
        siblings: Paraphrases of the chunk with lower ordinals, `normalised`.
        near_duplicate: Share of common words in common order from which it counts as a copy.
    """
    plain = normalised(text)
    if not plain:
        return "empty"
    if plain == normalised(source):
        return "copy of the chunk"
    if plain in siblings:
        return "copy of another paraphrase"
    if _likeness(text, source) >= near_duplicate:
        return "near-copy of the chunk"
    lost = dropped_facts(source, text)
    if lost:
        return f"drops {', '.join(lost)}"
    return None


def _likeness(text: str, source: str) -> float:
    """Share of common words in common order, 1 for a copy."""
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(normalised(text).split(), normalised(source).split())


def likeness(paraphrases: Sequence[Paraphrase], chunks: Sequence[Chunk]) -> list[float]:
    """How close each paraphrase is to its chunk: the share of common words in common order."""
    text_of = {chunk.chunk_id: chunk.text for chunk in chunks}
    return [_likeness(row.text, text_of[row.chunk_id]) for row in paraphrases]


def normalised(text: str) -> str:
    """Words and numbers alone, case folded: equal for texts that differ in layout only."""
    return " ".join(re.findall(r"\w+", text.casefold()))


_UP_TO_TWELVE = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {str(n): word for n, word in enumerate(_UP_TO_TWELVE.split())}

_OFTEN_FIRST_TEXT = (
    "a after all although an and as at because before both but by during each every for from he "
    "her here his how however i if in into it its many most no not of on once one or our over she "
    "since so some such that the their then there these they this those through to under until "
    "was we were what when where which while who with"
)
_OFTEN_FIRST = frozenset(_OFTEN_FIRST_TEXT.split())


def dropped_facts(source: str, paraphrase: str) -> list[str]:
    """Numbers and names of a text that a paraphrase lacks, in order of appearance.

    A capital alone makes no name at the start of a sentence: there the word counts if it also
    stands capitalised within a sentence, or if the next word is capitalised too. Case, endings
    (America, American), grouped digits and number words up to twelve are no difference. Initials
    are not held against a paraphrase.
    """
    there = set(_tokens(paraphrase.casefold()))
    stems = {word[:size] for word in there for size in range(3, len(word) + 1)}
    lost: list[str] = []
    for fact in dict.fromkeys(_facts(source)):
        low = fact.casefold()
        if fact[0].isdigit():
            kept = low in there or _NUMBER_WORDS.get(low) in there
        else:
            kept = low in there or (len(low) > 4 and low[: max(4, len(low) - 3)] in stems)
        if not kept:
            lost.append(fact)
    return lost


def _tokens(text: str) -> list[str]:
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", text)


def _facts(source: str) -> list[str]:
    within: list[str] = []
    facts: list[tuple[str, bool]] = []
    for sentence in re.split(r"(?<=[.!?:])\s+|\n+", source):
        words = _tokens(sentence)
        for place, word in enumerate(words):
            if word[0].isdigit():
                facts.append((word, True))
            elif word[0].isupper() and len(word) > 1 and word.casefold() not in _OFTEN_FIRST:
                pair = place + 1 < len(words) and words[place + 1][0].isupper()
                if place > 0:
                    within.append(word)
                facts.append((word, place > 0 or pair))
    return [word for word, sure in facts if sure or word in within]


def _paraphrase(
    slot: _Slot, taken: Received[WrittenParaphrase], purpose: str, generator: str
) -> Paraphrase:
    text = taken.value.paraphrase.strip()
    return Paraphrase(
        paraphrase_id=content_hash("paraphrase", purpose, slot.chunk.chunk_id, slot.ordinal, text),
        chunk_id=slot.chunk.chunk_id,
        purpose=purpose,
        ordinal=slot.ordinal,
        seed=taken.seed,
        generator=generator,
        generation_id=taken.generation_id,
        text=text,
    )


def _rejections(rows: Sequence[_Resolved], purpose: str) -> list[Rejection]:
    return [
        Rejection(
            rejection_id=content_hash(
                "paraphrase", purpose, row.slot.chunk.chunk_id, row.slot.ordinal, nth, reason, text
            ),
            kind="paraphrase",
            chunk_id=row.slot.chunk.chunk_id,
            reason=reason,
            text=text,
        )
        for row in rows
        for nth, (reason, text) in enumerate(row.turned_away)
    ]
