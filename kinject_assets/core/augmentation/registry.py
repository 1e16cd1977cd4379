"""The augmentations that a recipe can choose from. A new one is an entry in `PLUGINS`."""

from typing import Any

from kinject_assets.core.augmentation.implications import ImplicationsPlugin
from kinject_assets.core.augmentation.paraphrase import ParaphrasePlugin
from kinject_assets.core.augmentation.plugin import Plugin
from kinject_assets.core.augmentation.question_answer import QuestionAnswerPlugin

PARAPHRASE = ParaphrasePlugin.name
"""The augmentation of recipes that choose none, and of the validation set."""

PLUGINS: dict[str, Plugin[Any]] = {
    plugin.name: plugin
    for plugin in (ParaphrasePlugin(), QuestionAnswerPlugin(), ImplicationsPlugin())
}
"""Name -> augmentation."""


def prefix(augmentation: str, n: int) -> str:
    """Name of the first n texts of each chunk: `p04`, or `question_answer.p04`.

    A manifest of paraphrases has the version of each under `counts.prefixes`, and one of a
    checkpoint names the one that was read.
    """
    return f"p{n:02d}" if augmentation == PARAPHRASE else f"{augmentation}.p{n:02d}"


def of_prefix(name: str) -> str:
    """The augmentation whose texts a `prefix` names."""
    augmentation, _, _ = name.rpartition(".")
    return augmentation or PARAPHRASE
