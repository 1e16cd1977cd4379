"""Markdown of cards. Titles, texts and addresses come from strangers: they stay plain text."""

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

from kinject_assets.core.corpus.articles import permalink
from kinject_assets.core.schema import Article, Chunk

_MARKS = {ord(mark): f"\\{mark}" for mark in string.punctuation if mark not in ",-;'\""}
_MARKS |= {ord("<"): "&lt;", ord(">"): "&gt;", ord("&"): "&amp;"}

_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of text, so that it reads as something else."""

LICENCES = {
    "CC0": "cc0-1.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "MIT": "mit",
    "Apache-2.0": "apache-2.0",
}
"""Licences as profiles spell them -> as the Hugging Face hub does."""


def plain(text: str) -> str:
    """A text on one line, without control characters and changes of direction."""
    kept = " ".join(text.split())
    return "".join(c for c in kept if unicodedata.category(c) != "Cc" and c not in _TURNING)


def escaped(text: str) -> str:
    """A text that Markdown shows letter by letter, on one line: no markup, links or mentions."""
    return plain(text).translate(_MARKS)


def code(text: str) -> str:
    """A name or address as code, on one line; never a link."""
    return f"`{plain(text).replace('`', chr(39))}`"


def link(text: str, url: str) -> str:
    """A link with a text of strangers; the text alone if the address is none of the web."""
    try:
        web = urlsplit(url).scheme in {"http", "https"}
    except ValueError:
        web = False
    if not web:
        return escaped(text)
    return f"[{escaped(text)}]({quote(plain(url), safe='/:?=&%#;,~+@!$*._-')})"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def front_matter(fields: Mapping[str, Any]) -> str:
    """The part in YAML that a card begins with; fields without a value are left out."""
    import yaml

    given = {name: value for name, value in fields.items() if value not in (None, "", [])}
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def licence_fields(licences: Iterable[str]) -> dict[str, str]:
    """Fields of a card for the licences of its texts."""
    found = sorted(set(licences))
    if len(found) == 1 and found[0] in LICENCES:
        return {"license": LICENCES[found[0]]}
    return {"license": "other", "license_name": "; ".join(map(plain, found)) or "not stated"}


def permanent_url(article: Article) -> str:
    """Address of an article at its very revision; its plain address if it is no page of a wiki."""
    return permalink(article.source, article.url, article.revision_id)


def as_read(articles: Iterable[Article], chunks: Iterable[Chunk]) -> list[Article]:
    """Articles at the revisions that chunks were cut from; those without chunks as they are.

    Where an article has been fetched again since, its date is not known of the earlier revision.
    """
    revisions: dict[str, set[str]] = {}
    for chunk in chunks:
        revisions.setdefault(chunk.article_id, set()).add(chunk.revision_id)
    return [
        article
        if revision == article.revision_id
        else replace(article, revision_id=revision, revised_at=None)
        for article in articles
        for revision in sorted(revisions.get(article.article_id, {article.revision_id}))
    ]


def attribution(articles: Sequence[Article]) -> str:
    """Every article with its revision, address and licence, as a Markdown table."""
    return table(
        ("article", "revision", "of", "licence"),
        [
            (
                link(article.title, permanent_url(article)),
                escaped(article.revision_id),
                f"{article.revised_at:%Y-%m-%d}" if article.revised_at else "",
                escaped(article.licence),
            )
            for article in sorted(articles, key=lambda a: (a.title, a.article_id))
        ],
    )


def sources(articles: Sequence[Article]) -> str:
    """How many articles came from where, under which licence, as a Markdown list."""
    counted = Counter((article.source, article.licence) for article in articles)
    return "\n".join(
        f"- {number} from {code(source)}, licence: {escaped(licence)}"
        for (source, licence), number in sorted(counted.items())
    )
