"""Writes texts on chunks by an augmentation, and asks again for those that are turned away.

Whatever the augmentation, the rows are called paraphrases. The n-th text on a chunk depends on the
chunk and on the texts before it, never on how many are asked for: recipes with more texts read a
longer prefix of the same list.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kinject_assets import config
from kinject_assets.core.augmentation.facts import likeness, normalised
from kinject_assets.core.augmentation.plugin import Plugin, Task
from kinject_assets.core.augmentation.registry import PARAPHRASE, PLUGINS
from kinject_assets.core.llm.client import Ask, Failure, LLMClient, Received, Reply, seed_of
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Chunk, Paraphrase, Rejection


@dataclass(frozen=True)
class Paraphrased:
    """Texts by chunk and ordinal, and what was turned away.

    Attributes:
        given_up: Texts that are left out after all attempts.
        kept: Texts that were taken over as they were.
    """

    paraphrases: list[Paraphrase]
    rejections: list[Rejection]
    given_up: int
    kept: int


def draw_validation_chunks(chunks: Sequence[Chunk], settings: config.Augmentation) -> list[Chunk]:
    """Draws the chunks whose paraphrases validate training, in the corpus's order.

    Those with the smallest hashes are drawn: a chunk that is drawn from a corpus is drawn from
    every part of it, too. All chunks that are not small are taken where there are no more than
    asked for.
    """
    candidates = [chunk for chunk in chunks if not chunk.small]
    ranked = sorted(
        candidates, key=lambda chunk: content_hash("validation", settings.seed, chunk.chunk_id)
    )
    drawn = {chunk.chunk_id for chunk in ranked[: settings.validation_chunks]}
    return [chunk for chunk in candidates if chunk.chunk_id in drawn]


@dataclass
class _Slot:
    """A text that is wanted, and all that is known of it.

    Attributes:
        row: Taken over from before, or written.
        old: Rejections from before; with them and no row the text was given up then.
        replies: What was received, the last one last.
    """

    task: Task
    row: Paraphrase | None = None
    old: list[Rejection] = field(default_factory=list)
    replies: list[Reply[Any]] = field(default_factory=list)

    def open(self, attempts: int) -> bool:
        failed = bool(self.replies) and isinstance(self.replies[-1], Failure)
        return not failed and not self.old and len(self.replies) < attempts


@dataclass(frozen=True)
class _Resolved:
    """What a slot comes to: a text, or none so far."""

    slot: _Slot
    row: Paraphrase | None
    turned_away: list[Rejection]


@dataclass(frozen=True)
class _Work:
    """What all texts of one call have in common."""

    plugin: Plugin[Any]
    purpose: str
    generator: str

    @property
    def label(self) -> str:
        """Purpose in the ledger."""
        return self.plugin.name if self.purpose == "train" else f"validation_{self.plugin.name}"

    @property
    def seeds(self) -> str:
        """What tells the seeds of one kind of text from those of another."""
        return self.purpose if self.plugin.name == PARAPHRASE else self.label


def write_paraphrases(
    chunks: Sequence[Chunk],
    *,
    per_chunk: int,
    purpose: str,
    client: LLMClient,
    settings: config.Augmentation,
    augmentation: str = PARAPHRASE,
    previous: Iterable[Paraphrase] = (),
    previous_rejections: Iterable[Rejection] = (),
    report: Report = silent,
) -> Paraphrased:
    """Writes `per_chunk` texts on each chunk, one request each.

    Args:
        chunks: What to write on, small chunks included.
        per_chunk: Texts on each; their ordinals are 0 to `per_chunk` - 1.
        purpose: `train` or `validation`.
        client: The language model.
        settings: Seed, number of requests per text, and what counts as a copy.
        augmentation: Name in `registry.PLUGINS`.
        previous: Rows that were written before by the same settings, of any kind and any chunks.
            They are taken over as they are and not asked for again, whatever the chunk's title
            has become; the first row wins where there are two.
        previous_rejections: What was turned away then. A text that has rejections and no row was
            given up, and stays so.
        report: Told how many texts are still missing in each round.

    Raises:
        LLMError: If the service fails for good; received answers are in the client's ledger.
    """
    work = _Work(PLUGINS[augmentation], purpose, client.settings.model)
    slots = {
        chunk.chunk_id: [_Slot(Task(chunk, ordinal, settings)) for ordinal in range(per_chunk)]
        for chunk in chunks
    }
    _take_over(slots, work, previous, previous_rejections)
    resolved = {key: _resolve(of_chunk, work) for key, of_chunk in slots.items()}
    kept = sum(row.row is not None for rows in resolved.values() for row in rows)
    while pending := [
        r.slot
        for rows in resolved.values()
        for r in rows
        if r.row is None and r.slot.open(settings.attempts)
    ]:
        report(f"{work.label}: {len(pending)} to write")
        replies = client.ask_many([_ask(slot, work) for slot in pending])
        for slot, reply in zip(pending, replies, strict=True):
            slot.replies.append(reply)
        for key in {slot.task.chunk.chunk_id for slot in pending}:
            resolved[key] = _resolve(slots[key], work)
    every = [row for rows in resolved.values() for row in rows]
    written = [row.row for row in every if row.row is not None]
    given_up = len(every) - len(written)
    report(f"{work.label}: {len(written)} written, {given_up} given up")
    rejections = [rejection for row in every for rejection in row.turned_away]
    return Paraphrased(written, rejections, given_up, kept)


def _take_over(
    slots: dict[str, list[_Slot]],
    work: _Work,
    rows: Iterable[Paraphrase],
    rejections: Iterable[Rejection],
) -> None:
    """Gives slots what was written, turned away or given up for them before."""
    for row in rows:
        of_chunk = slots.get(row.chunk_id, ())
        mine = (row.augmentation, row.purpose) == (work.plugin.name, work.purpose)
        if mine and row.ordinal < len(of_chunk) and of_chunk[row.ordinal].row is None:
            of_chunk[row.ordinal].row = row
    by_chunk: defaultdict[str, dict[str, Rejection]] = defaultdict(dict)
    for rejection in rejections:
        if rejection.kind == work.plugin.name and rejection.chunk_id in slots:
            by_chunk[rejection.chunk_id][rejection.rejection_id] = rejection
    for key, found in by_chunk.items():
        for slot in slots[key]:
            slot.old = _of_slot(slot, found.values(), work)


def _of_slot(slot: _Slot, rejections: Iterable[Rejection], work: _Work) -> list[Rejection]:
    """Those rejections of a chunk that a slot had, in their order: their ids tell."""
    found: list[tuple[int, Rejection]] = []
    for nth in range(slot.task.settings.attempts):
        for rejection in rejections:
            if rejection == _rejection(slot, work, nth, rejection.reason, rejection.text):
                found.append((nth, rejection))
    return [rejection for _, rejection in found]


def _ask(slot: _Slot, work: _Work) -> Ask[Any]:
    task = slot.task
    return Ask(
        purpose=work.label,
        messages=work.plugin.prompt(task),
        answer=work.plugin.answer,
        seed=seed_of(task.settings.seed, work.seeds, task.chunk.chunk_id, task.ordinal),
        attempt=slot.replies[-1].attempt + 1 if slot.replies else 0,
    )


def _resolve(slots: Sequence[_Slot], work: _Work) -> list[_Resolved]:
    """Takes, in the order of ordinals, each slot's first answer that passes.

    It runs anew whenever answers came in: a lower ordinal that was asked again has the first claim
    on a text, even if a higher one had it before.
    """
    siblings: list[str] = []
    resolved: list[_Resolved] = []
    for slot in slots:
        taken, reasons = slot.row, list[tuple[str, str]]()
        for reply in slot.replies:
            reasons += [(f"answer asked for again: {reason}", "") for reason in reply.useless]
            if isinstance(reply, Failure):
                reasons.append((f"no usable answer: {reply.reason}", ""))
                break
            text = work.plugin.render(reply.value)
            reason = gate(reply.value, slot.task, work.plugin, siblings)
            if reason is None:
                taken = _row(slot, text, reply, work)
                break
            reasons.append((reason, text))
        if taken is not None:
            siblings.append(taken.text)
        new = [_rejection(slot, work, nth, *found) for nth, found in enumerate(reasons)]
        resolved.append(_Resolved(slot, taken, [*slot.old, *new]))
    return resolved


def gate(written: Any, task: Task, plugin: Plugin[Any], siblings: Sequence[str]) -> str | None:
    """Why an answer is turned away; `None` if nothing is wrong with it.

    Args:
        written: The answer, of the plug-in's form.
        task: What was asked for.
        plugin: The augmentation.
        siblings: Texts of the same augmentation on the chunk that have lower ordinals.
    """
    text = plugin.render(written)
    plain = normalised(text)
    if not plain:
        return "empty"
    if plain in map(normalised, siblings):
        return f"copy of another {plugin.name}"
    if any(likeness(text, other) >= task.settings.near_duplicate for other in siblings):
        return f"near-copy of another {plugin.name}"
    return plugin.gate(written, task)


def likenesses(paraphrases: Sequence[Paraphrase], chunks: Sequence[Chunk]) -> list[float]:
    """How close each text is to its chunk: the share of common words in common order."""
    text_of = {chunk.chunk_id: chunk.text for chunk in chunks}
    return [likeness(row.text, text_of[row.chunk_id]) for row in paraphrases]


def _row(slot: _Slot, text: str, taken: Received[Any], work: _Work) -> Paraphrase:
    chunk_id, ordinal = slot.task.chunk.chunk_id, slot.task.ordinal
    return Paraphrase(
        paraphrase_id=content_hash(work.plugin.name, work.purpose, chunk_id, ordinal, text),
        chunk_id=chunk_id,
        augmentation=work.plugin.name,
        purpose=work.purpose,
        ordinal=ordinal,
        seed=taken.seed,
        generator=work.generator,
        generation_id=taken.generation_id,
        text=text,
    )


def _rejection(slot: _Slot, work: _Work, nth: int, reason: str, text: str) -> Rejection:
    kind, chunk_id = work.plugin.name, slot.task.chunk.chunk_id
    return Rejection(
        rejection_id=content_hash(
            kind, work.purpose, chunk_id, slot.task.ordinal, nth, reason, text
        ),
        kind=kind,
        chunk_id=chunk_id,
        reason=reason,
        text=text,
    )
