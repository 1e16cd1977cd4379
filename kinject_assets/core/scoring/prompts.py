"""What a model is shown: the layout of prompts, and how one is made to fit the model's window.

The formats are those of lm-evaluation-harness: `letter` is `mmlu_*` (options are shown, the letter
is scored), `text` is `mmlu_continuation_*` (the option's text is scored). The parts of a prompt
stand in the order description, shots, retrieved chunks (best first), question, a blank line between
any two. With a chat template all of it is the user's turn, and the option is how the answer begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from kinject_assets.core.errors import KinjectError, ModelError
from kinject_assets.core.schema import Question

LETTERS = "ABCDEFGH"
BETWEEN = "\n\n"

Wrap = Callable[[str], str]
"""Puts a prompt into a chat template."""


def plain(text: str) -> str:
    """No chat template."""
    return text


def chat_wrap(tokenizer: Any, name: str) -> Wrap:
    """Puts a text as the user's turn into a tokenizer's chat template.

    Raises:
        ModelError: If the tokenizer has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"scoring.chat_template: the tokenizer of `{name}` has no chat template. Set it to "
            "false, or use the chat version of the model."
        )

    def wrap(text: str) -> str:
        turns = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    return wrap


@dataclass(frozen=True)
class Prompt:
    """A question as a model is shown it.

    Attributes:
        shots: Solved examples.
        chunks: Retrieved texts, best first.
        options: Continuations that are scored, each with its leading space.
        wrap: Chat template around all but the option.
    """

    description: str
    shots: tuple[str, ...]
    chunks: tuple[str, ...]
    question: str
    options: tuple[str, ...]
    wrap: Wrap = plain

    @cached_property
    def text(self) -> str:
        """All in front of an option."""
        parts = [*self.shots, *self.chunks, self.question]
        return self.wrap(self.description + BETWEEN.join(parts))

    @property
    def head(self) -> str:
        """What it has in common with every question that is asked with the same shots."""
        return self.description + "".join(f"{shot}{BETWEEN}" for shot in self.shots)


def describe(subject: str, choice_format: str) -> str:
    """The line in front of the questions of an MMLU subject, as lm-eval's tasks have it."""
    kind = "multiple choice questions" if choice_format == "letter" else "questions"
    return f"The following are {kind} (with answers) about {subject.replace('_', ' ')}.{BETWEEN}"


def ask(question: Question, choice_format: str) -> str:
    """A question up to and with `Answer:`."""
    stem = question.stem.strip()
    if choice_format == "text":
        return f"Question: {stem}\nAnswer:"
    options = "".join(
        f"\n{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)
    )
    return f"{stem}{options}\nAnswer:"


def continuations(question: Question, choice_format: str) -> tuple[str, ...]:
    """What is scored for each option."""
    if choice_format == "text":
        return tuple(f" {option}" for option in question.options)
    return tuple(f" {letter}" for letter in LETTERS[: len(question.options)])


def turned(question: Question, order: int) -> Question:
    """The question with its options in another cyclic order.

    Order r shows option (place + r) mod n at a place; order 0 is the question as it is.
    """
    n = len(question.options)
    return replace(
        question,
        options=[question.options[(place + order) % n] for place in range(n)],
        gold=(question.gold - order) % n,
    )


def solve(question: Question, choice_format: str) -> str:
    """A question with its right answer: a shot."""
    return ask(question, choice_format) + continuations(question, choice_format)[question.gold]


def build(
    question: Question,
    choice_format: str,
    shots: Sequence[Question] = (),
    chunks: Sequence[str] = (),
    subject: str = "",
    wrap: Wrap = plain,
) -> Prompt:
    """The full prompt of a question.

    Args:
        question: The one to answer.
        choice_format: `letter` or `text`.
        shots: Solved in this order.
        chunks: Best first.
        subject: MMLU subject for the description; empty for none.
        wrap: Chat template; an option then has no leading space, as in lm-eval.
    """
    options = continuations(question, choice_format)
    return Prompt(
        description=describe(subject, choice_format) if subject else "",
        shots=tuple(solve(shot, choice_format) for shot in shots),
        chunks=tuple(chunk.strip() for chunk in chunks),
        question=ask(question, choice_format),
        options=options if wrap is plain else tuple(option.strip() for option in options),
        wrap=wrap,
    )


def fit(prompt: Prompt, window: int, count: Callable[[str], int]) -> tuple[Prompt, int]:
    """Leaves out what does not fit into the window together with the longest option.

    Shots go first, the last of them first; then chunks, the worst first. What is too long even so
    (a description and a question alone) stays as it is: the model then reads the end of it.

    Args:
        prompt: All that one would like to show.
        window: Longest input of the model, in tokens.
        count: Tokens of a text.

    Returns:
        The prompt to use, and how many of the full prompt's tokens the model does not see.

    Raises:
        KinjectError: If an option alone is as long as the window.
    """
    full = max(count(prompt.text + option) for option in prompt.options)
    if full <= window:
        return prompt, 0
    longest = max(prompt.options, key=lambda option: count(prompt.text + option))
    fitted, length = prompt, full
    while length > window and (fitted.shots or fitted.chunks):
        if fitted.shots:
            fitted = replace(fitted, shots=fitted.shots[:-1])
        else:
            fitted = replace(fitted, chunks=fitted.chunks[:-1])
        length = count(fitted.text + longest)
    if length - count(fitted.text) >= window:
        raise KinjectError(
            f"questions: an option has more tokens than the model's window of {window}: "
            f"`{longest.strip()[:80]}...`. Retire the question, or set scoring.choice_format to "
            "`letter`."
        )
    return fitted, full - min(length, window)
