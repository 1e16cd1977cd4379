"""What the language model is asked when texts to train on are written."""

from collections.abc import Sequence

from kinject_assets.core.llm.quoting import DATA_NOTE, Message, quote
from kinject_assets.core.schema import Chunk

PARAPHRASE = f"""\
You rewrite a passage in other words.
Rules:
- Keep every fact. Keep every name, number, date and unit exactly as it is written.
- Add nothing that the passage does not state.
- Change the order of the sentences, their structure and their wording as far as the facts allow.
- Write plain prose of about the same length, and nothing beside it.
{DATA_NOTE}"""

QUESTION_ANSWER = f"""\
You write down what a passage states as questions with their answers.
Rules:
- One pair for each fact: who, what, where, when, how many. Leave no fact out.
- Take the answer's words from the passage, no more than answer the question. Keep every name, \
number, date and unit exactly as it is written.
- Each question stands alone: name what it is about in full, and never mention the passage, the \
text or the article. Whoever reads it does not see them.
- Neither ask for nor state anything that the passage does not state.
- Put the pairs in another order than the passage has, and word the questions in your own way.
{DATA_NOTE}"""

IMPLICATIONS = f"""\
You rewrite a passage around one or two names, and say what follows from it for them.
Rules:
- First say what the passage states of each name, and of how they hang together: in your own \
words, each fact complete. Spell out each name in full.
- Then say what follows from that for them: only what nobody can doubt who believes the passage.
- Keep every name, number, date and unit exactly as it is written. Use no name and no number that \
neither title nor passage has, work out none, and add nothing that you know from elsewhere.
- Never mention the passage, the text or the article: whoever reads yours does not see them.
- Write plain prose without headings or lists, and nothing beside it.
{DATA_NOTE}
What stands between <names> tags comes from the same passage."""


def _passage(chunk: Chunk) -> str:
    title = f"{chunk.title}: {chunk.section}" if chunk.section else chunk.title
    return quote("title", title) + "\n" + quote("passage", chunk.text)


def paraphrase(chunk: Chunk) -> list[Message]:
    """Asks for a paraphrase of a chunk."""
    return [
        {"role": "system", "content": PARAPHRASE},
        {"role": "user", "content": _passage(chunk)},
    ]


def question_answer(chunk: Chunk) -> list[Message]:
    """Asks for the facts of a chunk as questions with their answers."""
    return [
        {"role": "system", "content": QUESTION_ANSWER},
        {"role": "user", "content": _passage(chunk)},
    ]


def implications(chunk: Chunk, names: Sequence[str]) -> list[Message]:
    """Asks what a chunk says of some names, and what follows from it for them."""
    return [
        {"role": "system", "content": IMPLICATIONS},
        # In front, so that nothing in the passage can pass for them.
        {"role": "user", "content": quote("names", "\n".join(names)) + "\n" + _passage(chunk)},
    ]
