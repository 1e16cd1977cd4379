"""A reader of MediaWiki's `api.php` that is polite, patient and complete.

Answers are what another machine says: every title that was asked for is accounted for, and an
answer that cannot be understood is an error, never an empty corpus.
"""

import random
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from kinject_assets import __version__
from kinject_assets.config import Wiki
from kinject_assets.core.corpus.kept import KeptTexts
from kinject_assets.core.errors import SourceError
from kinject_assets.core.progress import Report, silent

if TYPE_CHECKING:
    import httpx

Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_WAIT = 60.0
"""Seconds that are waited between two tries at most, whatever the server asks for."""

LONGEST_URL = 1800
"""Characters of parameters from which a request is sent as POST: some servers refuse long URLs."""

ARTICLES, CATEGORIES = 0, 14
"""MediaWiki's numbers of the namespaces."""

MOST_BODIES = 50
"""Page bodies that MediaWiki gives in one answer."""

TRANSIENT = ("maxlag", "ratelimited", "readonly")
"""API errors that pass; so do those that start with `internal_api_error`."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a wiki says about itself.

    Attributes:
        api_url: Its canonical API address, the same whatever name or port it was reached by.
        article_url: Canonical address of a page, with `$1` for the title.
        names_disambiguation: Pages carry the property `disambiguation`.
    """

    api_url: str
    article_url: str
    names_disambiguation: bool

    def url(self, title: str) -> str:
        """Canonical address of a page."""
        return self.article_url.replace("$1", quote(title.replace(" ", "_"), safe=";@$!*(),/~:"))


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page and its current revision.

    Attributes:
        length: Bytes of its wikitext.
        model: MediaWiki's content model; articles are `wikitext`.
    """

    page_id: int
    title: str
    revision_id: int
    revised_at: datetime
    length: int
    model: str
    disambiguation: bool


@dataclass(frozen=True, kw_only=True)
class Revision:
    """The text of one revision; `text` is `None` where the wiki hides it."""

    revision_id: int
    page_id: int
    title: str
    revised_at: datetime
    text: str | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Pages of a category tree, as the wiki lists them.

    Attributes:
        found: Title -> page at its current revision, or why there is none; sorted by title. Pages
            of the main namespace, each once; redirects stand under their own title.
        unknown: Categories that were asked for, have no members and no page.
    """

    found: dict[str, "Page | str"]
    unknown: list[str]


class _Again(Exception):
    """A try failed in a way that may pass.

    Args:
        said: What the server answered.
        wait: Seconds that it asks to wait, if it does.
    """

    def __init__(self, said: str, wait: float | None = None) -> None:
        super().__init__(said)
        self.wait = wait


def moment(text: str) -> datetime:
    """Reads a time of the API (ISO 8601, UTC)."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def category_name(name: str) -> str:
    """A category's name as MediaWiki spells it, without its namespace."""
    name = unicodedata.normalize("NFC", " ".join(name.replace("_", " ").split()))
    prefix, colon, rest = name.partition(":")
    name = rest.strip() if colon and prefix.strip().lower() == "category" else name
    return name[:1].upper() + name[1:]


def _retry_after(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _shown(params: dict[str, str]) -> str:
    text = ", ".join(
        f"{key}={value}"
        for key, value in params.items()
        if key not in {"action", "format", "formatversion", "maxlag"}
    )
    return text if len(text) <= 300 else f"{text[:300]}..."


def _batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _merge(pages: dict[Any, dict[str, Any]], more: Sequence[dict[str, Any]]) -> None:
    """Adds the pages of a continued answer to those that came before."""
    for page in more:
        known = pages.setdefault(page.get("pageid") or page["title"], {})
        for key, value in page.items():
            if isinstance(value, list) and isinstance(known.get(key), list):
                known[key] = known[key] + [item for item in value if item not in known[key]]
            else:
                known[key] = value


class WikiClient:
    """Reads one MediaWiki. Close it, or use it in a `with` statement.

    Args:
        settings: How to ask: batch sizes, lag, time-out, tries.
        api_url: Address of `api.php`.
        contact: E-mail or address of whoever runs this, for the User-Agent.
        report: Told what is being read.
        sleep: Waits between tries.
        kept: Where texts are kept as they come, to be used again after a crash.

    Attributes:
        requests: Requests sent so far, every try included.
        bodies: Page texts received so far.

    Raises:
        SourceError: From every method, when the wiki cannot be read; and at once when the contact
            is missing or only an example.
    """

    def __init__(
        self,
        settings: Wiki,
        api_url: str,
        contact: str,
        report: Report = silent,
        sleep: Callable[[float], None] = time.sleep,
        kept: KeptTexts | None = None,
    ) -> None:
        import httpx

        address = urlsplit(api_url)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise SourceError(
                f"api_url {api_url!r} is no web address. Set it to the wiki's api.php, e.g. "
                "https://en.wikipedia.org/w/api.php"
            )
        local = address.hostname in {"127.0.0.1", "::1", "localhost"}
        if not local and (not contact.strip() or "@example." in contact):
            raise SourceError(
                f"{api_url}: not read, because contact is {contact!r}. Set `contact` in the "
                "profile to your own e-mail or page: Wikimedia's User-Agent policy asks for it."
            )
        if not (contact.isascii() and contact.isprintable()):
            raise SourceError(f"contact {contact!r} cannot be sent: use plain ASCII characters.")
        self.settings = settings
        self.api_url = api_url
        self.report = report
        self.requests = 0
        self.bodies = 0
        self._sleep = sleep
        self._kept = kept
        self._lock = Lock()
        self._jitter = random.Random()
        self._http = httpx.Client(
            headers={"User-Agent": f"kinject/{__version__} ({contact})"},
            timeout=settings.timeout,
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not local,
        )

    def __enter__(self) -> "WikiClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # --- one request

    def ask(self, **params: str) -> dict[str, Any]:
        """Sends one request, as often as it takes, and returns the answer's JSON object.

        Raises:
            SourceError: If the wiki refuses, or no try of `settings.attempts` succeeds.
        """
        everything = {
            "action": "query",
            "format": "json",
            "formatversion": "2",
            "maxlag": str(self.settings.maxlag),
            **params,
        }
        said = ""
        for attempt in range(1, self.settings.attempts + 1):
            try:
                return self._try(everything)
            except _Again as failure:
                said = str(failure)
                if attempt < self.settings.attempts:
                    wait = failure.wait
                    if wait is None:
                        wait = 2.0 ** (attempt - 1) * self._jitter.uniform(0.5, 1.0)
                    wait = min(wait, LONGEST_WAIT)
                    self.report(f"{self.api_url}: {said}; trying again in {wait:.0f} s")
                    self._sleep(wait)
        raise SourceError(
            f"{self.api_url}: no usable answer in {self.settings.attempts} tries. Asked for: "
            f"{_shown(everything)}. Last answer: {said}. Check the address and the network and run "
            "again later, or raise `attempts` or `timeout` of the wiki in the profile."
        )

    def _try(self, params: dict[str, str]) -> dict[str, Any]:
        import httpx

        with self._lock:
            self.requests += 1
        try:
            if sum(len(quote(value)) for value in params.values()) > LONGEST_URL:
                answer = self._http.post(self.api_url, data=params)
            else:
                answer = self._http.get(self.api_url, params=params)
        except httpx.TimeoutException as error:
            raise _Again(f"none within {self.settings.timeout:g} s") from error
        except httpx.TransportError as error:
            raise _Again(f"no connection ({error})") from error
        except httpx.HTTPError as error:
            raise _Again(f"unreadable ({error})") from error
        return self._understood(answer, params)

    def _understood(self, answer: "httpx.Response", params: dict[str, str]) -> dict[str, Any]:
        wait = _retry_after(answer.headers.get("Retry-After"))
        status = f"HTTP {answer.status_code}"
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _Again(status, wait)
        if answer.status_code != 200:
            location = answer.headers.get("Location", "")
            mend = (
                f"It points to {location}: set `api_url` to the address that answers."
                if location
                else "Check that `api_url` is the address of the wiki's api.php and may be read."
            )
            raise SourceError(f"{self.api_url}: {status} on asking for {_shown(params)}. {mend}")
        try:
            found = answer.json()
        except ValueError as error:
            raise _Again(f"{status} with something else than JSON", wait) from error
        if not isinstance(found, dict):
            raise _Again(f"{status} with JSON that is no object", wait)
        if problem := found.get("error"):
            problem = problem if isinstance(problem, dict) else {"info": problem}
            code = str(problem.get("code", ""))
            said = f"API error {code}: {problem.get('info', '')}"
            if code in TRANSIENT or code.startswith("internal_api_error"):
                raise _Again(said, wait)
            raise SourceError(
                f"{self.api_url}: {said} (asked for: {_shown(params)}). Check the categories, "
                "titles and `batch` of the wiki in the profile."
            )
        return found

    def query(self, **params: str) -> Iterator[dict[str, Any]]:
        """Sends a query and all its continuations; gives the part `query` of each answer."""
        rest: dict[str, str] = {}
        while True:
            answer = self.ask(**{**params, **rest})
            yield answer.get("query", {})
            following = {str(k): str(v) for k, v in answer.get("continue", {}).items()}
            if not following:
                return
            if following == rest:
                raise SourceError(
                    f"{self.api_url}: the wiki continues with the same {following} for ever "
                    f"(asked for: {_shown(params)}). This is a fault of the wiki; report it there."
                )
            rest = following

    def _each(
        self, what: str, batches: list[Sequence[Item]], read: Callable[[Sequence[Item]], Result]
    ) -> list[Result]:
        """Reads batches, `settings.concurrency` at once, in their order."""
        total = sum(len(batch) for batch in batches)
        results: list[Result] = []
        done = 0
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            for batch, result in zip(batches, pool.map(read, batches), strict=True):
                results.append(result)
                done += len(batch)
                self.report(what, done, total)
        return results

    # --- what can be asked for

    @cached_property
    def site(self) -> Site:
        """What the wiki says about itself."""
        found = self.ask(meta="siteinfo", siprop="general|extensions").get("query", {})
        try:
            general = found["general"]
            server = str(general["server"])
            server = f"https:{server}" if server.startswith("//") else server
            return Site(
                api_url=f"{server}{general['scriptpath']}/api.php",
                article_url=f"{server}{general['articlepath']}",
                names_disambiguation=any(
                    extension.get("name") == "Disambiguator"
                    for extension in found.get("extensions", [])
                ),
            )
        except (KeyError, TypeError) as error:
            raise SourceError(
                f"{self.api_url}: this is no MediaWiki that we understand (siteinfo lacks "
                f"{error}). Check `api_url`."
            ) from error

    def _members(self, category: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Pages of a category with what `_page` reads, and names of its sub-categories."""
        members: dict[Any, dict[str, Any]] = {}
        for part in self.query(
            generator="categorymembers",
            gcmtitle=f"Category:{category}",
            gcmtype="page|subcat",
            gcmlimit=str(self.settings.listing),
            rvprop="ids|timestamp",
            **self._page_params,
        ):
            _merge(members, part.get("pages", []))
        pages = [member for member in members.values() if member["ns"] == ARTICLES]
        # The namespace has the wiki's own language.
        below = [m["title"].partition(":")[2] for m in members.values() if m["ns"] == CATEGORIES]
        return pages, below

    def list_pages(self, categories: Sequence[str], depth: int) -> Listing:
        """Lists the pages of categories and of `depth` levels of sub-categories below them.

        Pages come with their current revision, `settings.listing` of them a request. A category
        that is met again, also through a loop, is read once.
        """
        level = list(dict.fromkeys(category_name(name) for name in categories))
        seen = set(level)
        pages: dict[str, dict[str, Any]] = {}
        empty: list[str] = []
        for below in range(depth + 1):
            found: list[str] = []
            for category in level:
                self.report(f"listing Category:{category}")
                members, categories_below = self._members(category)
                pages |= {member["title"]: member for member in members}
                found += categories_below
                if below == 0 and not members and not categories_below:
                    empty.append(category)
            level = sorted(set(found) - seen)
            seen.update(level)
        redirects = [title for title, page in pages.items() if page.get("redirect")]
        led = self.resolve(redirects)
        return Listing(
            found={
                title: led[title] if title in led else self._page(page, "missing or deleted")
                for title, page in sorted(pages.items())
            },
            unknown=self._without_page(empty),
        )

    @cached_property
    def _page_params(self) -> dict[str, str]:
        """What is asked of each page: its current revision, and whether it disambiguates."""
        if self.site.names_disambiguation:
            return {"prop": "revisions|info|pageprops", "ppprop": "disambiguation"}
        return {"prop": "revisions|info|categories", "cllimit": "max"}

    def _without_page(self, categories: list[str]) -> list[str]:
        names = {f"Category:{name}": name for name in categories}
        found = self.resolve(list(names))
        return [name for title, name in names.items() if not isinstance(found[title], Page)]

    def resolve(self, titles: Sequence[str]) -> dict[str, Page | str]:
        """Finds the page that each title leads to, over redirects, at its current revision.

        Returns:
            Title as given -> its page, or why there is none.
        """
        spelled = {title: unicodedata.normalize("NFC", " ".join(title.split())) for title in titles}
        # A bar would part the title in two; MediaWiki has no title with one.
        usable = list(dict.fromkeys(t for t in spelled.values() if t and "|" not in t))
        found: dict[str, Page | str] = {}
        batches = _batches(usable, self.settings.batch)
        for part in self._each("looking up pages", batches, self._resolve_batch):
            found |= part
        return {title: found.get(name, "invalid title") for title, name in spelled.items()}

    def _resolve_batch(self, titles: Sequence[str]) -> dict[str, Page | str]:
        steps: dict[str, str] = {}
        redirects: dict[str, str] = {}
        elsewhere: set[str] = set()
        pages: dict[Any, dict[str, Any]] = {}
        for part in self.query(
            titles="|".join(titles), redirects="1", rvprop="ids|timestamp", **self._page_params
        ):
            steps |= {step["from"]: step["to"] for step in part.get("normalized", [])}
            redirects |= {step["from"]: step["to"] for step in part.get("redirects", [])}
            elsewhere |= {link["title"] for link in part.get("interwiki", [])}
            elsewhere |= {
                step["to"] for step in part.get("redirects", []) if step.get("tointerwiki")
            }
            _merge(pages, part.get("pages", []))
        by_title = {page["title"]: page for page in pages.values()}

        def target(title: str) -> Page | str:
            name = steps.get(title, title)
            met: set[str] = set()
            while name in redirects:
                if name in met:
                    return "redirect loop"
                met.add(name)
                name = redirects[name]
            if name in elsewhere:
                return "a page of another wiki"
            if name not in by_title:
                raise SourceError(
                    f"{self.api_url}: no answer for the title {title!r}, though it was asked for. "
                    "Lower `batch` of the wiki in the profile."
                )
            absent = f"redirect to {name}, which does not exist" if met else "missing or deleted"
            return self._page(by_title[name], absent)

        return {title: target(title) for title in titles}

    def _page(self, raw: dict[str, Any], absent: str) -> Page | str:
        if raw.get("invalid"):
            return "invalid title"
        if raw.get("special"):
            return "a special page, without text"
        if raw.get("missing") or not raw.get("revisions"):
            return absent
        return Page(
            page_id=raw["pageid"],
            title=raw["title"],
            revision_id=raw["revisions"][0]["revid"],
            revised_at=moment(raw["revisions"][0]["timestamp"]),
            length=raw.get("length", 0),
            model=raw.get("contentmodel", "wikitext"),
            disambiguation="disambiguation" in raw.get("pageprops", {})
            or any(
                "disambiguation pages" in category["title"].lower()
                for category in raw.get("categories", [])
            ),
        )

    def texts(self, revision_ids: Sequence[int]) -> dict[int, Revision]:
        """Fetches the texts of revisions; those that the wiki no longer has are left out."""
        found: dict[int, Revision] = {}
        ids = list(dict.fromkeys(revision_ids))
        if self._kept is not None:
            found = {i: text for i in ids if (text := self._kept.get(i)) is not None}
            if found:
                self.report(f"{len(found)} texts were fetched before a stop and are used again")
        missing = [i for i in ids if i not in found]
        batches = _batches(missing, min(self.settings.batch, MOST_BODIES))
        for part in self._each("fetching texts", batches, self._texts_batch):
            found |= part
            self.bodies += len(part)
        return found

    def _texts_batch(self, revision_ids: Sequence[int]) -> dict[int, Revision]:
        pages: dict[Any, dict[str, Any]] = {}
        gone: set[int] = set()
        for part in self.query(
            revids="|".join(str(number) for number in revision_ids),
            prop="revisions",
            rvprop="ids|timestamp|content",
            rvslots="main",
        ):
            gone |= {int(number) for number in part.get("badrevids", {})}
            _merge(pages, part.get("pages", []))
        found = {
            raw["revid"]: Revision(
                revision_id=raw["revid"],
                page_id=page["pageid"],
                title=page["title"],
                revised_at=moment(raw["timestamp"]),
                text=raw.get("slots", {}).get("main", {}).get("content"),
            )
            for page in pages.values()
            for raw in page.get("revisions", [])
        }
        if lost := set(revision_ids) - set(found) - gone:
            raise SourceError(
                f"{self.api_url}: no answer for revision {min(lost)}, though it was asked for. "
                "Lower `batch` of the wiki in the profile."
            )
        if self._kept is not None:
            self._kept.add(found.values())
        return found
