"""A corpus from its source: which pages, at which revision, and why some were left out."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from kinject_assets.config import Cleaning, Corpus, Files, Wiki, WikiEvents, WikiPages
from kinject_assets.core.corpus.articles import make_article
from kinject_assets.core.corpus.cleaning import clean
from kinject_assets.core.corpus.files import read_files
from kinject_assets.core.corpus.kept import KeptTexts
from kinject_assets.core.corpus.wiki import Page, Revision, WikiClient
from kinject_assets.core.errors import SourceError
from kinject_assets.core.manifest import content_hash, write_atomically
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Article, Exclusion

MONTH_NAMES = tuple(
    "January February March April May June July August September October November December".split()
)
"""English, whatever the computer's language: they are parts of category names."""

REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a source gave.

    Attributes:
        articles: Sorted by title, then id.
        exclusions: Pages that were listed and are no articles, sorted by title.
        requests: Requests sent to the wiki; 0 for files.
        bodies: Page texts that the wiki sent; 0 for files.
    """

    articles: list[Article]
    exclusions: list[Exclusion]
    requests: int = 0
    bodies: int = 0


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A line of a frozen list: one revision of one page.

    Attributes:
        article_id: The article that it has to be; empty when the list does not say.
        page_id: The wiki's page id; `None` when the list does not say.
    """

    revision_id: int
    title: str
    article_id: str = ""
    page_id: int | None = None


def window_months(until: str, n: int, now: datetime) -> list[str]:
    """The `n` months that end with `until`, as `YYYY-MM`, oldest first.

    Args:
        until: A month, or `now` for the month of `now`.
        n: Months, the last one included.
        now: What "now" is; its month is taken in UTC.
    """
    last = f"{now.astimezone(UTC):%Y-%m}" if until == "now" else until
    year, month = (int(part) for part in last.split("-"))
    counted = [year * 12 + month - 1 - back for back in reversed(range(n))]
    return [f"{months // 12:04d}-{months % 12 + 1:02d}" for months in counted]


def month_categories(templates: Iterable[str], months: Iterable[str]) -> list[str]:
    """Names of the categories of months, from templates with `{year}`, `{month}`, `{month_name}`.

    Raises:
        SourceError: If a template holds another field.
    """
    found: list[str] = []
    for key in months:
        year, month = key.split("-")
        for template in templates:
            try:
                found.append(
                    template.format(year=year, month=month, month_name=MONTH_NAMES[int(month) - 1])
                )
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise SourceError(
                    f"categories: {template!r} cannot be filled in ({error}). Allowed fields: "
                    "{year}, {month}, {month_name}."
                ) from error
    return list(dict.fromkeys(found))


def write_frozen(articles: Iterable[Article], path: Path) -> None:
    """Writes which revision of which article a corpus holds, to be read again as `frozen`."""
    lines = [
        json.dumps(
            {
                "article_id": article.article_id,
                "revision_id": int(article.revision_id),
                "title": article.title,
            },
            ensure_ascii=False,
        )
        for article in articles
    ]
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def read_frozen(path: Path) -> list[Frozen]:
    """Reads a frozen list: jsonl with `revision_id` and `title`, and `article_id` or `page_id`.

    Raises:
        SourceError: If it cannot be read, is empty or has a wrong line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path}: not readable ({error}). Set `frozen` in the profile."
        ) from error
    found: dict[int, Frozen] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            page_id = row.get("page_id")
            frozen = Frozen(
                revision_id=int(row["revision_id"]),
                title=str(row["title"]),
                article_id=str(row.get("article_id", "")),
                page_id=None if page_id is None else int(page_id),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{path}, line {number}: not a frozen page ({error!r}). Write e.g. "
                '{"page_id": 1, "revision_id": 2, "title": "Albedo"}'
            ) from error
        found.setdefault(frozen.revision_id, frozen)
    if not found:
        raise SourceError(f"{path}: no pages in it. Remove `frozen` to list the pages anew.")
    return list(found.values())


class _WikiReader:
    """Collects the articles of one wiki."""

    def __init__(
        self,
        client: WikiClient,
        *,
        licence: str,
        cleaning: Cleaning,
        now: datetime,
        previous: Sequence[Article],
    ) -> None:
        self.client = client
        self.licence = licence
        self.cleaning = cleaning
        self.now = now
        self.known = {
            (article.article_id, article.revision_id): article
            for article in previous
            if article.source == client.site.api_url
        }
        self.articles: list[Article] = []
        self.exclusions: list[Exclusion] = []

    def exclude(self, title: str, reason: str) -> None:
        self.exclusions.append(Exclusion(title=title, reason=reason))

    def _article_id(self, page_id: int) -> str:
        return content_hash(self.client.site.api_url, page_id)

    def _add_known(self, article_id: str, revision_id: int, title: str) -> bool:
        known = self.known.get((article_id, str(revision_id)))
        if known is None:
            return False
        url = self.client.site.url(title)
        self.articles.append(replace(known, title=title, url=url, licence=self.licence))
        return True

    def _add(self, revision: Revision, title: str) -> None:
        if revision.text is None:
            self.exclude(title, "its text is hidden by the wiki")
            return
        if REDIRECT.match(revision.text):
            self.exclude(title, "a redirect at this revision")
            return
        sections = clean(revision.text, self.cleaning)
        if not sections:
            self.exclude(title, "blank after cleaning")
            return
        self.articles.append(
            make_article(
                sections,
                article_id=self._article_id(revision.page_id),
                revision_id=str(revision.revision_id),
                source=self.client.site.api_url,
                title=title,
                revised_at=revision.revised_at,
                fetched_at=self.now,
                url=self.client.site.url(title),
                licence=self.licence,
            )
        )

    def read_titles(self, titles: Sequence[str]) -> None:
        """Reads the current revisions of the pages that titles lead to, each page once."""
        pages: dict[int, Page] = {}
        for title, page in self.client.resolve(titles).items():
            if isinstance(page, Page):
                pages[page.page_id] = page
            else:
                self.exclude(title, page)
        wanted: list[Page] = []
        for page in pages.values():
            if page.disambiguation:
                self.exclude(page.title, "disambiguation page")
            elif page.model != "wikitext":
                self.exclude(page.title, f"not wikitext but {page.model}")
            elif page.length == 0:
                self.exclude(page.title, "blank")
            elif not self._add_known(self._article_id(page.page_id), page.revision_id, page.title):
                wanted.append(page)
        texts = self.client.texts([page.revision_id for page in wanted])
        for page in wanted:
            if revision := texts.get(page.revision_id):
                self._add(revision, page.title)
            else:
                self.exclude(page.title, "missing or deleted")

    def read_frozen(self, pages: Sequence[Frozen]) -> None:
        """Reads revisions of a frozen list under the titles that it gives them."""
        wanted: list[Frozen] = []
        for page in pages:
            article_id = page.article_id
            if page.page_id is not None:
                article_id = self._article_id(page.page_id)
            if not self._add_known(article_id, page.revision_id, page.title):
                wanted.append(page)
        texts = self.client.texts([page.revision_id for page in wanted])
        for page in wanted:
            revision = texts.get(page.revision_id)
            if revision is None:
                self.exclude(page.title, f"revision {page.revision_id} is missing or deleted")
            elif page.page_id not in (None, revision.page_id) or page.article_id not in (
                "",
                self._article_id(revision.page_id),
            ):
                self.exclude(
                    page.title,
                    f"revision {page.revision_id} is one of another page here "
                    f"({revision.title}); the list may be of another wiki",
                )
            else:
                self._add(revision, page.title)


def _read_pages(reader: _WikiReader, source: WikiPages, base_folder: Path) -> None:
    if source.frozen is not None:
        reader.read_frozen(read_frozen(base_folder / source.frozen))
        return
    listing = reader.client.list_categories(source.categories, source.depth)
    if listing.unknown:
        raise SourceError(
            f"{reader.client.api_url}: no category named {', '.join(listing.unknown)}: it has no "
            "members and no page. Check the spelling of `categories` in the profile."
        )
    reader.read_titles(sorted({*listing.titles, *source.titles}))


def _read_events(reader: _WikiReader, source: WikiEvents) -> None:
    months = window_months(source.until, source.window_months, reader.now)
    categories = month_categories(source.categories, months)
    listing = reader.client.list_categories(categories, source.depth)
    if len(listing.unknown) == len(categories):
        raise SourceError(
            f"{reader.client.api_url}: none of the categories of the window exists: "
            f"{', '.join(categories[:3])}, ... Check `categories` and `until` in the profile."
        )
    # The category of a month that has just begun may not be there yet.
    for name in listing.unknown:
        reader.exclude(f"Category:{name}", "no such category (yet)")
    reader.read_titles(listing.titles)


def fetch_articles(
    corpus: Corpus,
    *,
    wikis: Mapping[str, Wiki],
    cleaning: Cleaning,
    contact: str,
    now: datetime,
    base_folder: Path,
    previous: Sequence[Article] = (),
    work: Path | None = None,
    report: Report = silent,
) -> Fetched:
    """Reads the articles of a corpus.

    Args:
        corpus: What to read.
        wikis: Name -> settings, with real web addresses.
        cleaning: How wikitext becomes plain text.
        contact: Who asks, for the User-Agent.
        now: Time that new articles carry; ends a window whose `until` is `now`.
        base_folder: Where relative paths start from.
        previous: Articles of the last time, cleaned with the same settings: texts of revisions
            among them are not fetched again.
        work: Folder where texts are kept as they come, for the next try after a crash.
        report: Told what is being done.

    Raises:
        SourceError: If the source cannot be read or gives no article.
    """
    source = corpus.source
    if isinstance(source, Files):
        articles, exclusions = read_files(source, base_folder, now, report)
        return _sorted(articles, exclusions)
    settings = wikis[source.wiki]
    kept = KeptTexts(work) if work else None
    with WikiClient(settings, settings.api_url, contact, report, kept=kept) as client:
        reader = _WikiReader(
            client, licence=settings.licence, cleaning=cleaning, now=now, previous=previous
        )
        if isinstance(source, WikiPages):
            _read_pages(reader, source, base_folder)
        else:
            _read_events(reader, source)
        if not reader.articles:
            first = "; ".join(f"{e.title}: {e.reason}" for e in reader.exclusions[:3])
            raise SourceError(
                f"{client.api_url}: no articles{f' ({first})' if first else ''}. Check "
                "`categories`, `titles` and `depth` of the source in the profile."
            )
        return _sorted(reader.articles, reader.exclusions, client.requests, client.bodies)


def _sorted(
    articles: list[Article], exclusions: list[Exclusion], requests: int = 0, bodies: int = 0
) -> Fetched:
    return Fetched(
        articles=sorted(articles, key=lambda article: (article.title, article.article_id)),
        exclusions=sorted(exclusions, key=lambda exclusion: (exclusion.title, exclusion.reason)),
        requests=requests,
        bodies=bodies,
    )
