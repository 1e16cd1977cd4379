"""How an article is put together, whatever it was read from."""

from collections.abc import Sequence
from datetime import datetime

from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Article

Section = tuple[str, str]
"""Heading (empty for the lead) and plain text."""


def make_article(
    sections: Sequence[Section],
    *,
    article_id: str,
    revision_id: str,
    source: str,
    title: str,
    revised_at: datetime | None,
    fetched_at: datetime,
    url: str,
    licence: str,
) -> Article:
    """Builds an article from its sections, with the hash and the length of its text."""
    headings = [heading for heading, _ in sections]
    bodies = [body for _, body in sections]
    return Article(
        article_id=article_id,
        revision_id=revision_id,
        source=source,
        title=title,
        revised_at=revised_at,
        fetched_at=fetched_at,
        url=url,
        licence=licence,
        text_sha256=content_hash(headings, bodies),
        n_chars=sum(len(body) for body in bodies),
        headings=headings,
        bodies=bodies,
    )


def permalink(source: str, url: str, revision_id: str) -> str:
    """Address that shows one revision of an article, whatever the page has become.

    Args:
        source: The article's: the address of a wiki's `api.php`, or `files`.
        url: Its page; given back where the source keeps no revisions.
        revision_id: The revision.
    """
    folder, slash, script = source.rpartition("/")
    if script != "api.php" or not revision_id.isdecimal():
        return url
    return f"{folder}{slash}index.php?oldid={revision_id}"
