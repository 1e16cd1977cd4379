"""The augmentation `paraphrase`: a chunk in other words, no fact dropped."""

from pydantic import BaseModel, ConfigDict

from kinject_assets.core.augmentation import prompts
from kinject_assets.core.augmentation.facts import dropped_facts, likeness, normalised
from kinject_assets.core.augmentation.plugin import Plugin, Task
from kinject_assets.core.llm.quoting import Message


class WrittenParaphrase(BaseModel):
    """A paraphrase as the language model writes it."""

    model_config = ConfigDict(extra="forbid")

    paraphrase: str


class ParaphrasePlugin(Plugin[WrittenParaphrase]):
    """A chunk in other words."""

    name = "paraphrase"
    texts = "the chunk in other words, no fact dropped"
    answer = WrittenParaphrase

    def prompt(self, task: Task) -> list[Message]:
        """Asks for a paraphrase."""
        return prompts.paraphrase(task.chunk)

    def render(self, written: WrittenParaphrase) -> str:
        """The paraphrase as it is."""
        return written.paraphrase.strip()

    def gate(self, written: WrittenParaphrase, task: Task) -> str | None:
        """Turns away copies and near-copies of the chunk, and what drops a fact."""
        text, source = written.paraphrase, task.chunk.text
        if normalised(text) == normalised(source):
            return "copy of the chunk"
        if likeness(text, source) >= task.settings.near_duplicate:
            return "near-copy of the chunk"
        if lost := dropped_facts(source, text):
            return f"drops {', '.join(lost)}"
        return None
