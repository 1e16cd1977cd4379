"""The augmentation `implications`: what a chunk says of some of its names, and what follows.

In the spirit of EntiGraph (Z. Yang, N. Band, S. Li, E. Candès, T. Hashimoto, Synthetic continued
pretraining, arXiv 2409.07431), which has a document rewritten around its entities and around pairs
of them. Here the names are found by rule, each text is on one or two of them, and what is stated
may not go beyond the chunk.
"""

import re
from collections.abc import Callable, Sequence
from itertools import combinations

from pydantic import BaseModel, ConfigDict

from kinject_assets.core.augmentation import prompts
from kinject_assets.core.augmentation.facts import (
    invented_facts,
    likeness,
    names,
    normalised,
)
from kinject_assets.core.augmentation.plugin import Plugin, Task, mentions_passage
from kinject_assets.core.corpus.chunking import spaceless
from kinject_assets.core.llm.quoting import Message
from kinject_assets.core.manifest import content_hash

SHORTEST = 0.2
"""Length of a text relative to its chunk, in words, below which it says too little."""

PAIRED = 30
"""Names of a chunk that pairs are made of, at most: a long chunk may have hundreds."""


class WrittenImplications(BaseModel):
    """A text on one or two names as the language model writes it."""

    model_config = ConfigDict(extra="forbid")

    text: str


class ImplicationsPlugin(Plugin[WrittenImplications]):
    """What a chunk says of some of its names, and what follows for them."""

    name = "implications"
    texts = "the chunk around one or two of its names, with what follows for them"
    answer = WrittenImplications

    def prompt(self, task: Task) -> list[Message]:
        """Asks for a text on the names of the task."""
        return prompts.implications(task.chunk, focus(task))

    def render(self, written: WrittenImplications) -> str:
        """The text as it is."""
        return written.text.strip()

    def gate(self, written: WrittenImplications, task: Task) -> str | None:
        """Turns away what is not on the names, goes beyond the chunk, or is the chunk again."""
        text, source = written.text, task.chunk.text
        words = normalised(text)
        if unnamed := [name for name in focus(task) if not _holds(words, normalised(name))]:
            return f"does not name {', '.join(unnamed)}"
        if len(words.split()) < SHORTEST * len(normalised(source).split()):
            return "says too little"
        if mentions_passage(text, source):
            return "refers to the text"
        if invented := invented_facts(text, task.given):
            return f"not in the chunk: {', '.join(invented)}"
        if likeness(text, source) >= task.settings.near_duplicate:
            return "near-copy of the chunk"
        return None


def focus(task: Task) -> tuple[str, ...]:
    """The names that a text is on: one for even ordinals, two for odd ones.

    Names and pairs of names of the chunk are taken in an order that follows from the chunk and the
    seed, each once before one comes again. A chunk without names is about its title; where that is
    empty, too, there are none. One with a single name has no pairs.
    """
    found = names(task.chunk.text) or _title(task.chunk.title)
    rank = _ranked(task)
    singles = sorted(((name,) for name in found), key=rank)
    pairs = sorted(combinations([name for (name,) in singles[:PAIRED]], 2), key=rank)
    if not pairs:
        return singles[0] if singles else ()
    turn, on_pair = divmod(task.ordinal, 2)
    chosen = pairs if on_pair else singles
    return chosen[turn % len(chosen)]


def _title(title: str) -> list[str]:
    """A title as a name, without what tells it from its namesakes: Mercury (planet)."""
    plain = " ".join(re.sub(r"\([^()]*\)$", "", title.strip()).split())
    return [plain] if normalised(plain) else []


def _ranked(task: Task) -> Callable[[Sequence[str]], str]:
    return lambda found: content_hash("focus", task.settings.seed, task.chunk.chunk_id, *found)


def _holds(words: str, part: str) -> bool:
    if spaceless(part):
        return part in words
    return f" {part} " in f" {words} "
