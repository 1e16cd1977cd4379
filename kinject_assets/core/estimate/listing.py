"""Asks wikis how long their pages are, and keeps the answer: no page is fetched."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kinject_assets.config import Corpus, Files, Profile, Wiki, WikiEvents, WikiPages
from kinject_assets.core.corpus.sources import month_categories, window_months
from kinject_assets.core.corpus.wiki import Page, WikiClient
from kinject_assets.core.manifest import content_hash, write_atomically
from kinject_assets.core.plan import Plan, now
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.store import Cell, Store

LISTING = "listing.json"
"""File in the profile's folder that keeps what wikis said."""

Pages = list[tuple[str, int]]
"""Title and bytes of wikitext of each page."""


def list_wikis(
    profile: Profile, store: Store, wikis: Mapping[str, Wiki], report: Report = silent
) -> None:
    """Lists the pages of every corpus of a wiki that is not there yet.

    Args:
        profile: The experiment.
        store: Its lake; the listing is kept beside it.
        wikis: Name -> settings, with real web addresses.
        report: Told what is listed.

    Raises:
        SourceError: If a wiki cannot be read.
    """
    plan = Plan(profile, store)
    kept = _read(store)
    for corpus in dict.fromkeys(cell.parts[0] for cell in plan.cells if cell.parts):
        source = plan.profile.corpora[corpus].source
        if isinstance(source, Files) or store.manifest(Cell("articles", (corpus,))):
            continue
        if isinstance(source, WikiPages) and source.frozen:
            continue  # its pages are known by revision, and are what they are
        settings = wikis[source.wiki]
        with WikiClient(settings, settings.api_url, profile.contact, report) as client:
            kept[corpus] = {
                "asked_for": _asked_for(plan.profile, plan.profile.corpora[corpus]),
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "pages": _pages(client, source, profile),
            }
    write_atomically(store.root / LISTING, json.dumps(kept, ensure_ascii=False) + "\n")


def _pages(client: WikiClient, source: WikiPages | WikiEvents, profile: Profile) -> Pages:
    if isinstance(source, WikiEvents):
        months = window_months(source.until, source.window_months, now(profile))
        found = dict(
            client.list_pages(month_categories(source.categories, months), source.depth).found
        )
    else:
        found = dict(client.list_pages(source.categories, source.depth).found)
        found |= client.resolve([title for title in source.titles if title not in found])
    pages = {page.page_id: page for page in found.values() if isinstance(page, Page)}
    return [
        (page.title, page.length)
        for page in pages.values()
        if page.length and page.model == "wikitext" and not page.disambiguation
    ]


def listed_pages(profile: Profile, store: Store) -> dict[str, Pages]:
    """What wikis said of corpora whose settings are still the same; sends no request."""
    found: dict[str, Pages] = {}
    for corpus, kept in _read(store).items():
        settings = profile.corpora.get(corpus)
        try:
            if settings is not None and kept["asked_for"] == _asked_for(profile, settings):
                found[corpus] = [(str(title), int(length)) for title, length in kept["pages"]]
        except (KeyError, TypeError, ValueError):
            continue  # damaged: as if it had not been asked for
    return found


def _asked_for(profile: Profile, settings: Corpus) -> str:
    source = settings.source
    months: list[str] = []
    if isinstance(source, WikiEvents):
        months = window_months(source.until, source.window_months, now(profile))
    return content_hash(source.model_dump(mode="json"), months)


def _read(store: Store) -> dict[str, dict[str, Any]]:
    """What is kept; nothing where the file is not there or damaged."""
    try:
        kept = json.loads((store.root / LISTING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
