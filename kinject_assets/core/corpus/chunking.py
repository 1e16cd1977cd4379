"""Articles to chunks: whole sentences of one section, up to a budget of tokens."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kinject_assets.config import Chunking
from kinject_assets.core.errors import ModelError
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Article, Chunk

WORD = re.compile(r"\w+|[^\w\s]")

ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st gen col lt sgt capt rev hon sr jr vs etc e.g i.e cf ca c no nos vol vols "
    "pp p fig figs eq ed eds al inc ltd co corp dept est approx jan feb mar apr jun jul aug sep "
    "sept oct nov dec mt ft u.s u.k u.n d.c a.m p.m b.c a.d viz op cit".split()
)
"""Words after which a full stop seldom ends a sentence, without that stop."""

SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s+["'“‘«(\[]*[^\W_a-z])|[。！？]+[」』”]*""")


_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)


def spaceless(text: str) -> bool:
    """Whether a text has letters of scripts that do not part words by spaces alone.

    Thai, Lao, Burmese, Khmer, Chinese, Japanese, and Korean with its endings.
    """
    return _SPACELESS.search(text) is not None


def sentences(line: str) -> list[str]:
    """Splits a line of text at the ends of its sentences."""
    found: list[str] = []
    start = 0
    for match in SENTENCE_END.finditer(line):
        before = line[start : match.start()].rsplit(None, 1)
        word = before[-1].lower().lstrip("\"'“‘«([") if before else ""
        initial = len(word) == 1 and word.isalpha() and word != "i"
        if match[0] == "." and (word in ABBREVIATIONS or initial):
            continue
        found.append(line[start : match.end()].strip())
        start = match.end()
    found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


@dataclass(frozen=True)
class _Unit:
    """What is packed as a whole: a sentence, or a part of one that is too long."""

    glue: str
    text: str
    tokens: int


def _parts(text: str, limit: int, count: Callable[[str], int]) -> Iterator[str]:
    """A text in parts of at most `limit` tokens, cut between words, or inside a word too long."""
    words = text.split()
    if len(words) == 1:
        pieces, glue = list(text), ""
    else:
        pieces, glue = words, " "
    start = 0
    while start < len(pieces):
        # The most pieces that fit, by bisection; one at least, so that the work ends.
        low, high = 1, len(pieces) - start
        while low < high:
            middle = (low + high + 1) // 2
            fits = count(glue.join(pieces[start : start + middle])) <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        part = glue.join(pieces[start : start + low])
        if low == 1 and len(part) > 1 and count(part) > limit:
            yield from _parts(part, limit, count)
        else:
            yield part
        start += low


def _units(body: str, limit: int, count: Callable[[str], int]) -> Iterator[_Unit]:
    for line in body.splitlines():
        glue = "\n"
        for sentence in sentences(line):
            tokens = count(sentence)
            parts = [sentence] if tokens <= limit else list(_parts(sentence, limit, count))
            for part in parts:
                yield _Unit(glue, part, tokens if part == sentence else count(part))
                glue = " "


def _joined(units: list[_Unit]) -> str:
    return "".join(unit.glue + unit.text for unit in units)[1:]


def _pack(body: str, limit: int, count: Callable[[str], int]) -> Iterator[tuple[str, int]]:
    """Texts of at most `limit` tokens, with their tokens."""
    waiting = list(_units(body, limit, count))
    start = 0
    while start < len(waiting):
        end, total = start, 0
        while end < len(waiting) and (end == start or total + waiting[end].tokens <= limit):
            total += waiting[end].tokens
            end += 1
        text = _joined(waiting[start:end])
        tokens = count(text)
        # Joining can cost a tokenizer more tokens than the parts had.
        while tokens > limit and end - start > 1:
            end -= 1
            text = _joined(waiting[start:end])
            tokens = count(text)
        yield text, tokens
        start = end


def chunk_articles(
    articles: Iterable[Article], settings: Chunking, count_tokens: Callable[[str], int]
) -> list[Chunk]:
    """Cuts articles into chunks, in the order of the articles.

    A chunk holds whole sentences of one section, at most `settings.max_tokens` tokens. A longer
    sentence is cut between words, a longer word inside. Equal texts of one section are kept once.

    Args:
        articles: What to cut.
        settings: Longest chunk, and the length below which one is `small`.
        count_tokens: Length of a text in tokens, see `token_counter`.
    """
    chunks: dict[str, Chunk] = {}
    for article in articles:
        for section, body in zip(article.headings, article.bodies, strict=True):
            for text, tokens in _pack(body, settings.max_tokens, count_tokens):
                chunk_id = content_hash("chunk", article.article_id, section, text)
                if chunk_id in chunks:
                    continue
                chunks[chunk_id] = Chunk(
                    chunk_id=chunk_id,
                    article_id=article.article_id,
                    revision_id=article.revision_id,
                    ordinal=len(chunks),
                    title=article.title,
                    section=section,
                    n_tokens=tokens,
                    small=tokens < settings.min_tokens,
                    text=text,
                )
    return list(chunks.values())


def token_counter(tokenizer: str) -> Callable[[str], int]:
    """What counts the tokens of a text, without tokens that mark beginning and end.

    Args:
        tokenizer: `words` (words and marks), or a folder or hub id of a tokenizer.

    Raises:
        ModelError: If the tokenizer cannot be loaded.
    """
    if tokenizer == "words":
        return lambda text: len(WORD.findall(text))
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except Exception as error:  # transformers raises many types, also of libraries below it
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"chunking.tokenizer: no tokenizer could be loaded from {tokenizer!r} ({reason[0]}). "
            "Give `words`, a folder with tokenizer.json, or a hub id that you may read."
        ) from error
    return lambda text: len(
        loaded(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    )
