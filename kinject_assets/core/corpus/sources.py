"""A corpus from its source: which pages, at which revision, and why some were left out."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from kinject_assets.config import Cleaning, Corpus, Files, Wiki, WikiEvents, WikiPages
from kinject_assets.core.corpus.articles import make_article
from kinject_assets.core.corpus.cleaning import clean
from kinject_assets.core.corpus.files import read_files
from kinject_assets.core.corpus.kept import KeptTexts
from kinject_assets.core.corpus.templates import MONTHS
from kinject_assets.core.corpus.wiki import Page, Revision, WikiClient
from kinject_assets.core.errors import SourceError
from kinject_assets.core.manifest import content_hash, write_atomically
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Article, Exclusion, Listed

REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a source gave.

    Attributes:
        articles: Sorted by title, then id.
        exclusions: Pages that were listed and are no articles, sorted by title.
        listed: Current events only: what each month's categories hold, sorted.
        visited: Current events only: months that were listed anew, oldest first.
        left: Current events only: articles of the month that has just left the window, as far as
            they are known: the release of the month that has closed still holds them.
        requests: Requests sent to the wiki; 0 for files.
        bodies: Page texts that the wiki sent; 0 for files.
    """

    articles: list[Article]
    exclusions: list[Exclusion]
    listed: list[Listed] = field(default_factory=list)
    visited: tuple[str, ...] = ()
    left: list[Article] = field(default_factory=list)
    requests: int = 0
    bodies: int = 0


@dataclass(frozen=True, kw_only=True)
class Before:
    """What was read of a corpus the last time, so that only changes are fetched.

    Attributes:
        articles: Cleaned with the same settings: their revisions are not fetched again. Those of
            another corpus of the same wiki do as well.
        listed: Current events only: what each month held, and the settings of the source were the
            same.
        month: The month that was open then; empty where there is no last time.
    """

    articles: Sequence[Article] = ()
    listed: Sequence[Listed] = ()
    month: str = ""


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


NOTHING_BEFORE = Before()

LONGEST_ABSENCE = 12
"""Months without a look after which months that closed in between are not frozen any more."""


def month_of(moment: datetime) -> str:
    """Month of a moment in UTC, as `YYYY-MM`."""
    return f"{moment.astimezone(UTC):%Y-%m}"


def window_months(until: str, n: int, now: datetime) -> list[str]:
    """The `n` months that end with `until`, as `YYYY-MM`, oldest first.

    Args:
        until: A month, or `now` for the month of `now`.
        n: Months, the last one included.
        now: What "now" is; its month is taken in UTC.
    """
    last = _counted(month_of(now) if until == "now" else until)
    counted = [last - back for back in reversed(range(n))]
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
                    template.format(year=year, month=month, month_name=MONTHS[int(month) - 1])
                )
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise SourceError(
                    f"categories: {template!r} cannot be filled in ({error}). Allowed fields: "
                    "{year}, {month}, {month_name}."
                ) from error
    return list(dict.fromkeys(found))


def write_frozen(articles: Iterable[Article | Listed], path: Path) -> None:
    """Writes which revision of which article a corpus holds, to be read again as `frozen`.

    Args:
        articles: Articles of a wiki, or what is listed of them.
        path: The file.

    Raises:
        SourceError: If an article is none of a wiki: files have no revisions to go back to.
    """
    articles = list(articles)
    if strange := [a.title for a in articles if not a.revision_id.isdecimal()]:
        raise SourceError(
            f"{strange[0]}: not a page of a wiki. Only pages of a wiki can be frozen by revision; "
            "of files keep a copy."
        )
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

    def article_id(self, page_id: int) -> str:
        """Id of the article that a page of this wiki is."""
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
                article_id=self.article_id(revision.page_id),
                revision_id=str(revision.revision_id),
                source=self.client.site.api_url,
                title=title,
                revised_at=revision.revised_at,
                fetched_at=self.now,
                url=self.client.site.url(title),
                licence=self.licence,
            )
        )

    def read_pages(self, found: Mapping[str, Page | str]) -> None:
        """Reads pages at the revision that was found for their titles, each page once."""
        pages: dict[int, Page] = {}
        for title, page in found.items():
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
            elif not self._add_known(self.article_id(page.page_id), page.revision_id, page.title):
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
                article_id = self.article_id(page.page_id)
            if not self._add_known(article_id, page.revision_id, page.title):
                wanted.append(page)
        texts = self.client.texts([page.revision_id for page in wanted])
        for page in wanted:
            revision = texts.get(page.revision_id)
            if revision is None:
                self.exclude(page.title, f"revision {page.revision_id} is missing or deleted")
            elif page.page_id not in (None, revision.page_id) or page.article_id not in (
                "",
                self.article_id(revision.page_id),
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
    listing = reader.client.list_pages(source.categories, source.depth)
    if listing.unknown:
        raise SourceError(
            f"{reader.client.api_url}: no category named {', '.join(listing.unknown)}: it has no "
            "members and no page. Check the spelling of `categories` in the profile."
        )
    named = [title for title in source.titles if title not in listing.found]
    reader.read_pages(listing.found | reader.client.resolve(named))


def months_to_visit(source: WikiEvents, now: datetime, before: Before) -> tuple[str, ...]:
    """Months that are listed anew: those that may have changed since the last time.

    They are those that were open the last time and all after; of a rolling window also its last
    `revisit_months`, and the month that has just left it if it was open the last time. A window
    with a fixed end is therefore pinned to its revisions once it has been read after its last month
    closed. Without a last time it is every month of the window.
    """
    window = window_months(source.until, source.window_months, now)
    known = {row.month for row in before.listed}
    first = before.month
    if source.until == "now" and before.month:
        first = min(first, *window[-source.revisit_months :])
        # Months that have left are not read for themselves, but for releases that hold them.
        left = [month for month in months_kept(source, now, before) if month not in window]
        if known:
            known.update(left)
        if known or before.month < window[-1]:
            window = [*left, *window]
    return tuple(month for month in window if month >= first or month not in known)


def months_kept(source: WikiEvents, now: datetime, before: Before) -> list[str]:
    """Months of which it is kept what they hold: the window, and those that releases need.

    A month that has closed since the last time, or may still be edited, ends a release whose window
    begins before the window of now. Of a long absence no more than `LONGEST_ABSENCE` months are
    kept.
    """
    if source.until != "now":
        return window_months(source.until, source.window_months, now)
    absent = 1
    if before.month:
        absent = min(max(1, _counted(month_of(now)) - _counted(before.month)), LONGEST_ABSENCE)
    extra = max(absent, source.revisit_months - 1)
    return window_months("now", source.window_months + extra, now)


def _counted(month: str) -> int:
    """Months since the year 0."""
    year, number = (int(part) for part in month.split("-"))
    return year * 12 + number - 1


def _read_events(
    reader: _WikiReader, source: WikiEvents, before: Before
) -> tuple[list[Listed], tuple[str, ...], list[Article]]:
    """Reads the months of a window.

    Months that were not visited keep what they held. Beside the window, the month that has just
    left it is kept: the release of the month that has closed begins with it.

    Returns:
        What every known month holds, the months visited, and articles of the month that has left.
    """
    window = window_months(source.until, source.window_months, reader.now)
    kept = months_kept(source, reader.now, before)
    visited = months_to_visit(source, reader.now, before)
    found: dict[str, dict[str, Page | str]] = {}
    unknown = 0
    for month in visited:
        categories = month_categories(source.categories, [month])
        listing = reader.client.list_pages(categories, source.depth)
        found[month] = dict(listing.found)
        if len(listing.unknown) == len(categories):
            _require_no_pages_before(reader, month, categories, before)
        # The category of a month that has just begun may not be there yet.
        found[month] |= {f"Category:{name}": "no such category (yet)" for name in listing.unknown}
        if not found[month]:
            found[month] = {f"Category:{categories[0]}": "a category without pages"}
        unknown += len(listing.unknown) == len(categories)
    if unknown == len(visited) and not before.listed:
        names = ", ".join(month_categories(source.categories, window)[:3])
        raise SourceError(
            f"{reader.client.api_url}: none of the categories of the window exists: {names}, ... "
            "Check `categories` and `until` in the profile."
        )
    reader.read_pages({title: page for pages in found.values() for title, page in pages.items()})
    by_id = {article.article_id: article for article in reader.articles}
    reasons = {exclusion.title: exclusion.reason for exclusion in reader.exclusions}
    listed: set[Listed] = set()
    for month, pages in found.items():
        for title, page in pages.items():
            article = None
            if isinstance(page, Page):
                article = by_id.get(reader.article_id(page.page_id))
                title = page.title
            listed.add(_listed(month, title, article, reasons.get(title, "")))
    pinned: dict[str, Frozen] = {}
    for row in before.listed:
        if row.month not in kept or row.month in visited:
            continue
        # A page of two months has one revision: the one that was seen last.
        newer = by_id.get(row.article_id)
        if newer is None and row.title in reasons:
            listed.add(_listed(row.month, row.title, None, reasons[row.title]))
        elif newer is not None:
            listed.add(_listed(row.month, row.title, newer, ""))
        else:
            listed.add(row)
            if row.month in window and row.article_id:
                pinned[row.article_id] = Frozen(
                    revision_id=int(row.revision_id), title=row.title, article_id=row.article_id
                )
            elif row.month in window:
                reader.exclude(row.title, row.reason)
                reasons[row.title] = row.reason
    reader.read_frozen(list(pinned.values()))
    inside = {row.article_id for row in listed if row.month in window}
    left = {a.article_id: a for a in reader.articles if a.article_id not in inside}
    reader.articles = [a for a in reader.articles if a.article_id in inside]
    known = {(article.article_id, article.revision_id): article for article in before.articles}
    for row in listed:
        article = known.get((row.article_id, row.revision_id))
        if article is not None and row.article_id not in inside:
            left.setdefault(row.article_id, article)
    return sorted(listed), visited, _by_title(list(left.values()))


def _require_no_pages_before(
    reader: _WikiReader, month: str, categories: Sequence[str], before: Before
) -> None:
    """Refuses a month that had articles the last time and whose categories are gone.

    Raises:
        SourceError: A renamed category would retire every question of the month.
    """
    held = sum(row.month == month and bool(row.article_id) for row in before.listed)
    if held:
        raise SourceError(
            f"{reader.client.api_url}: {', '.join(categories)} held {held} articles the last time, "
            "and now has neither members nor a page. If it was renamed, change `categories` in the "
            "profile; if it is empty for good, materialise `articles` once with `fetch_all`."
        )


def _listed(month: str, title: str, article: Article | None, reason: str) -> Listed:
    return Listed(
        month=month,
        title=article.title if article else title,
        article_id=article.article_id if article else "",
        revision_id=article.revision_id if article else "",
        text_sha256=article.text_sha256 if article else "",
        reason="" if article else reason,
    )


def fetch_articles(
    corpus: Corpus,
    *,
    wikis: Mapping[str, Wiki],
    cleaning: Cleaning,
    contact: str,
    now: datetime,
    base_folder: Path,
    before: Before = NOTHING_BEFORE,
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
        before: What was read the last time.
        work: Folder where texts are kept as they come, for the next try after a crash.
        report: Told what is being done.

    Raises:
        SourceError: If the source cannot be read or gives no article.
    """
    source = corpus.source
    if isinstance(source, Files):
        articles, exclusions = read_files(source, base_folder, now, report)
        return Fetched(articles=_by_title(articles), exclusions=_by_reason(exclusions))
    settings = wikis[source.wiki]
    kept = KeptTexts(work) if work else None
    with WikiClient(settings, settings.api_url, contact, report, kept=kept) as client:
        reader = _WikiReader(
            client, licence=settings.licence, cleaning=cleaning, now=now, previous=before.articles
        )
        listed: list[Listed] = []
        visited: tuple[str, ...] = ()
        left: list[Article] = []
        if isinstance(source, WikiPages):
            _read_pages(reader, source, base_folder)
        else:
            listed, visited, left = _read_events(reader, source, before)
        if not reader.articles:
            first = "; ".join(f"{e.title}: {e.reason}" for e in reader.exclusions[:3])
            raise SourceError(
                f"{client.api_url}: no articles{f' ({first})' if first else ''}. Check "
                "`categories`, `titles` and `depth` of the source in the profile."
            )
        return Fetched(
            articles=_by_title(reader.articles),
            exclusions=_by_reason(reader.exclusions),
            listed=listed,
            visited=visited,
            left=left,
            requests=client.requests,
            bodies=client.bodies,
        )


def _by_title(articles: list[Article]) -> list[Article]:
    return sorted(articles, key=lambda article: (article.title, article.article_id))


def _by_reason(exclusions: list[Exclusion]) -> list[Exclusion]:
    return sorted(exclusions, key=lambda exclusion: (exclusion.title, exclusion.reason))
