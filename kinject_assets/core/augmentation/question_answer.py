"""The augmentation `question_answer`: the facts of a chunk as questions with their answers."""

from math import ceil

from pydantic import BaseModel, ConfigDict

from kinject_assets.core.augmentation import prompts
from kinject_assets.core.augmentation.facts import (
    dropped_facts,
    facts,
    foreign_words,
    invented_facts,
    normalised,
)
from kinject_assets.core.augmentation.plugin import Plugin, Task, mentions_passage
from kinject_assets.core.corpus.chunking import sentences, spaceless
from kinject_assets.core.llm.quoting import Message

LEFT_OUT = 0.3
"""Share of a chunk's numbers and names that the pairs may leave out."""

SHOWN = 60
"""Characters of an answer that a reason quotes."""


class WrittenPair(BaseModel):
    """A question with its answer as the language model writes it."""

    model_config = ConfigDict(extra="forbid")

    question: str
    answer: str


class WrittenPairs(BaseModel):
    """All pairs on a chunk."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[WrittenPair]


class QuestionAnswerPlugin(Plugin[WrittenPairs]):
    """The facts of a chunk as questions with their answers."""

    name = "question_answer"
    texts = "the chunk's facts as questions with their answers"
    answer = WrittenPairs

    def prompt(self, task: Task) -> list[Message]:
        """Asks for the pairs."""
        return prompts.question_answer(task.chunk)

    def render(self, written: WrittenPairs) -> str:
        """`Question: ...` and `Answer: ...` on a line each, a blank line between pairs."""
        return "\n\n".join(
            f"Question: {_line(pair.question)}\nAnswer: {_line(pair.answer)}"
            for pair in written.pairs
        )

    def gate(self, written: WrittenPairs, task: Task) -> str | None:
        """Turns away too few pairs, answers and facts from elsewhere, and what drops too much."""
        pairs, source = written.pairs, task.chunk.text
        least = fewest(source)
        if len(pairs) < least:
            return f"too few pairs: {len(pairs)}, not {least}"
        if not all(normalised(p.question) and normalised(p.answer) for p in pairs):
            return "a question or an answer is empty"
        if len({normalised(p.question) for p in pairs}) < len(pairs):
            return "a question stands twice"
        if any(mentions_passage(p.question, source) for p in pairs):
            return "a question refers to the text"
        for pair in pairs:
            verbatim = spaceless(pair.answer) and _line(pair.answer) in _line(task.given)
            if not verbatim and foreign_words(pair.answer, task.given):
                return f"answer is not in the chunk: {_line(pair.answer)[:SHOWN]}"
        said = "\n".join(f"{_line(p.question)}\n{_line(p.answer)}" for p in pairs)
        if invented := invented_facts(said, task.given):
            return f"not in the chunk: {', '.join(invented)}"
        lost = dropped_facts(source, said)
        if len(lost) > LEFT_OUT * len(facts(source)):
            return f"drops {', '.join(lost)}"
        return None


def fewest(text: str) -> int:
    """The fewest pairs for a text: half as many as it has sentences, one at least."""
    return max(1, ceil(sum(len(sentences(line)) for line in text.splitlines()) / 2))


def _line(text: str) -> str:
    return " ".join(text.split())
