"""What the language model is asked when a chunk is paraphrased."""

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


def paraphrase(chunk: Chunk) -> list[Message]:
    """Asks for a paraphrase of a chunk."""
    title = f"{chunk.title}: {chunk.section}" if chunk.section else chunk.title
    return [
        {"role": "system", "content": PARAPHRASE},
        {"role": "user", "content": quote("title", title) + "\n" + quote("passage", chunk.text)},
    ]
