"""What the language model is asked when an exam is written."""

from collections.abc import Sequence

from kinject_assets.core.llm.quoting import DATA_NOTE, Message, quote
from kinject_assets.core.schema import Chunk

WRITING = f"""\
You write multiple-choice questions for an exam on the facts that a passage states.
Rules:
- Ask for specific facts (who, what, where, when, how many) that the passage itself states.
- Each question has exactly one right option. The others are wrong, distinct, and of the same kind \
and length as the right one.
- Take the right option's words from the passage. Do not put them into the question.
- Each question stands alone: name what it is about in full, and never mention the passage, the \
text or the article. Whoever takes the exam does not see them.
- No "all of the above", no "none of the above", no two questions on the same fact.
{DATA_NOTE}"""

SELECTION = f"""\
You select exam questions. From numbered questions on a passage you keep the most specific ones: \
those that can be answered only by someone who knows the very facts of the passage, neither by \
general knowledge nor by elimination.
{DATA_NOTE}"""

VERIFICATION = f"""\
You check exam questions against a passage. For every numbered question you list the numbers of \
all its options that the passage makes right: none, one or several.
Rules:
- Judge by the passage alone, whatever you know beside it.
- An option is right if the passage states it as the answer to the question, in these or in other \
words, be it more or less precisely.
- List an option that is right beside another one, too.
{DATA_NOTE}"""


def _passage(chunk: Chunk) -> str:
    title = f"{chunk.title}: {chunk.section}" if chunk.section else chunk.title
    return quote("title", title) + "\n" + quote("passage", chunk.text)


def writing(chunk: Chunk, *, questions: int, options: int) -> list[Message]:
    """Asks for questions on a chunk."""
    return [
        {"role": "system", "content": WRITING},
        {
            "role": "user",
            "content": f"Questions to write: {questions}\nOptions per question: {options}\n"
            + _passage(chunk),
        },
    ]


def selection(chunk: Chunk, stems: Sequence[str], *, keep: int) -> list[Message]:
    """Asks which questions on a chunk are the most specific; they are numbered from 0."""
    numbered = "\n".join(f"{number}. {' '.join(stem.split())}" for number, stem in enumerate(stems))
    return [
        {"role": "system", "content": SELECTION},
        {
            "role": "user",
            "content": f"Questions to keep: {keep}\n"
            + _passage(chunk)
            + "\n"
            + quote("questions", numbered),
        },
    ]


def verification(chunk: Chunk, questions: Sequence[tuple[str, Sequence[str]]]) -> list[Message]:
    """Asks which options a chunk makes right; the key is not shown.

    Args:
        chunk: The passage.
        questions: Stems with their options; both are numbered from 0.
    """
    lines: list[str] = []
    for number, (stem, options) in enumerate(questions):
        lines.append(f"{number}. {' '.join(stem.split())}")
        lines += [f"   {place}) {' '.join(text.split())}" for place, text in enumerate(options)]
    return [
        {"role": "system", "content": VERIFICATION},
        {
            "role": "user",
            "content": _passage(chunk) + "\n" + quote("questions", "\n".join(lines)),
        },
    ]
