"""What an augmentation is: a way to have further texts on a chunk written, to train on.

An augmentation says what the language model is asked, what form its answer has, how the answer
becomes text, and when it is turned away. All else is the same for every augmentation and is in
`core.augmentation.paraphrases`: one request a text with a seed of its own, asking again for what
was turned away, copies, and lists of which a recipe reads a beginning.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel

from kinject_assets import config
from kinject_assets.core.llm.quoting import Message
from kinject_assets.core.schema import Chunk

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class Task:
    """A text that is to be written.

    Attributes:
        ordinal: Its place among the texts of this augmentation on the chunk, from 0.
        settings: The profile's `augmentation`.
    """

    chunk: Chunk
    ordinal: int
    settings: config.Augmentation

    @property
    def given(self) -> str:
        """All that the language model was shown of the chunk: title, section and text."""
        return "\n".join((self.chunk.title, self.chunk.section, self.chunk.text))


class Plugin(ABC, Generic[A]):
    """One augmentation. It depends on the task alone, so that a text can be asked for again.

    Attributes:
        name: As recipes choose it; also the purpose of its requests in the ledger.
        texts: What it writes, in a few words.
        answer: What the language model's answer must fit.
    """

    name: ClassVar[str]
    texts: ClassVar[str]
    answer: type[A]

    @abstractmethod
    def prompt(self, task: Task) -> list[Message]:
        """What the language model is asked."""

    @abstractmethod
    def render(self, written: A) -> str:
        """The text that is trained on."""

    @abstractmethod
    def gate(self, written: A, task: Task) -> str | None:
        """Why an answer is turned away; `None` if nothing is wrong with it.

        That it is empty, or a copy of a text with a lower ordinal, is found without it.
        """


def mentions_passage(text: str, source: str) -> bool:
    """Whether a text speaks of the passage that it was written from, and not as its source does."""
    # Needs a stemmer, and whoever reads a profile reads this module.
    from kinject_assets.core.exams.gates import Item, reference

    said, given = (reference(Item(stem, (), 0)) for stem in (text, source))
    return said is not None and given is None
