"""The lab's world over time: topics that stay, news every month, and facts that change."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from kinject_assets.config import Lab
from kinject_assets.core.corpus.templates import MONTHS
from kinject_assets.core.errors import ProfileError
from kinject_assets.core.manifest import content_hash
from kinject_assets.lab.grammar import POOLS, Fact, parse, tell
from kinject_assets.lab.things import Thing, draw_things, pretraining_things

CHANGED_SHARE = 0.06
"""Share of the events of earlier months that change a fact each month."""

ARTICLE, CATEGORY = 0, 14
"""MediaWiki's numbers of the namespaces."""

TOPICS = ("rivers", "guilds", "comets")
PARENT = "Lab topics"
DISAMBIGUATION = "Disambiguation pages"


def topic_category(kind: str) -> str:
    """Category of a topic, e.g. `Rivers of the lab`."""
    return f"{kind.capitalize()} of the lab"


def month_category(key: str) -> str:
    """Category of a month's events, e.g. `January 2031 events in the lab` for `2031-01`."""
    year, month = key.split("-")
    return f"{MONTHS[int(month) - 1]} {year} events in the lab"


@dataclass(frozen=True, kw_only=True)
class PageRevision:
    """One state of a page.

    Attributes:
        revision_id: Changes with seed, title, time and text, and with nothing else.
        facts: What the text states.
    """

    revision_id: int
    timestamp: datetime
    wikitext: str
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WorldPage:
    """A page of the lab's wiki.

    Attributes:
        namespace: `ARTICLE` or `CATEGORY`.
        title: With its namespace, e.g. `Category:Lab topics`.
        categories: Names without namespace, sorted.
        revisions: Oldest first; at least one.
        redirect: Title that it leads to; empty for other pages.
    """

    page_id: int
    namespace: int
    title: str
    categories: tuple[str, ...]
    revisions: tuple[PageRevision, ...]
    redirect: str = ""

    @property
    def current(self) -> PageRevision:
        """The newest revision."""
        return self.revisions[-1]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A fact of an event that became another."""

    title: str
    timestamp: datetime
    before: Fact
    after: Fact


def _number(*parts: object) -> int:
    """A stable whole number that a JSON reader of any language can hold."""
    return int(content_hash(*parts)[:12], 16)


def _month_start(first: str, index: int) -> datetime:
    year, month = (int(part) for part in first.split("-"))
    counted = year * 12 + month - 1 + index
    return datetime(counted // 12, counted % 12 + 1, 1, tzinfo=UTC)


def last_moment(settings: Lab) -> datetime:
    """An hour before the end of the world's months, in UTC."""
    return _month_start(settings.first_month, settings.months) - timedelta(hours=1)


class World:
    """A world that is a function of its settings: any two of them agree, at every moment.

    Months are drawn when they are needed, each from its own seed: a later month never alters what
    was there before.

    Args:
        settings: Seed and sizes.
        now: The moment at which the world is seen; by default 23:00 UTC of the last day of
            `settings.months` months. Can be set later, to move time.
    """

    def __init__(self, settings: Lab, now: datetime | None = None) -> None:
        self.settings = settings
        self._things = self._topics()
        self._before = {thing.name for things in pretraining_things().values() for thing in things}
        self._events: list[list[WorldPage]] = []
        self._changes: list[Change] = []
        self._fixed = self._fixed_pages()
        self.now = now or last_moment(settings)

    @property
    def now(self) -> datetime:
        """The moment at which the world is seen, in UTC."""
        return self._now

    @now.setter
    def now(self, moment: datetime) -> None:
        self._now = moment.astimezone(UTC)
        while self._start(len(self._events)) <= self._now:
            self._add_month()
        pages = [*self._fixed, *self._month_pages(), *(p for m in self._events for p in m)]
        visible = [page for page in map(self._seen, pages) if page is not None]
        self._pages = {page.title: page for page in sorted(visible, key=lambda p: p.title)}

    def _start(self, index: int) -> datetime:
        return _month_start(self.settings.first_month, index)

    def _rng(self, *purpose: object) -> random.Random:
        return random.Random(content_hash("lab", self.settings.seed, *purpose))

    def _seen(self, page: WorldPage) -> WorldPage | None:
        """A page as it is now, or `None` if it is not there yet."""
        count = bisect_right([revision.timestamp for revision in page.revisions], self._now)
        return replace(page, revisions=page.revisions[:count]) if count else None

    # --- what can be asked

    @property
    def pages(self) -> list[WorldPage]:
        """Every page that is there now, with its revisions so far, sorted by title."""
        return list(self._pages.values())

    def page(self, title: str) -> WorldPage | None:
        """The page of a title, if it is there now."""
        return self._pages.get(title)

    @property
    def months(self) -> list[str]:
        """Months that have begun, e.g. `2031-01`, oldest first."""
        return [f"{self._start(index):%Y-%m}" for index in range(self._begun())]

    def _begun(self) -> int:
        return sum(self._start(index) <= self._now for index in range(len(self._events)))

    def events(self, month: str) -> list[WorldPage]:
        """Pages of the events of a month that are there now, sorted by title."""
        category = month_category(month)
        return [
            page for page in self.pages if page.namespace == ARTICLE and category in page.categories
        ]

    @property
    def changes(self) -> list[Change]:
        """Facts that have changed so far, oldest first."""
        return [change for change in self._changes if change.timestamp <= self._now]

    # --- how it is drawn

    def _topics(self) -> dict[str, list[Thing]]:
        known = pretraining_things()
        count = self.settings.things
        comets = draw_things(
            "comets", count, self._rng("comets"), avoid=[t.name for t in known["comets"]]
        )
        return {
            "rivers": known["rivers"][:count],
            "guilds": known["guilds"][:count],
            "comets": comets,
        }

    def _revision(
        self, title: str, timestamp: datetime, wikitext: str, facts: tuple[Fact, ...] = ()
    ) -> PageRevision:
        number = _number("revision", self.settings.seed, title, timestamp, wikitext)
        return PageRevision(revision_id=number, timestamp=timestamp, wikitext=wikitext, facts=facts)

    def _page(
        self,
        title: str,
        revision: PageRevision,
        categories: Iterable[str],
        namespace: int = ARTICLE,
        redirect: str = "",
    ) -> WorldPage:
        return WorldPage(
            page_id=_number("page", self.settings.seed, title),
            namespace=namespace,
            title=title,
            categories=tuple(sorted(categories)),
            revisions=(revision,),
            redirect=redirect,
        )

    def _article(self, thing: Thing, timestamp: datetime, category: str) -> WorldPage:
        revision = self._told(thing, timestamp, category)
        return self._page(thing.name, revision, [category])

    def _told(self, thing: Thing, timestamp: datetime, category: str) -> PageRevision:
        # The same seed for every revision: only the sentence of a changed fact becomes another.
        text = write_wikitext(thing, [category], self._rng("text", thing.name))
        return self._revision(thing.name, timestamp, text, thing.facts)

    def _plain(
        self,
        title: str,
        text: str,
        categories: Iterable[str],
        timestamp: datetime,
        namespace: int = ARTICLE,
        redirect: str = "",
    ) -> WorldPage:
        names = sorted(categories)
        marks = "".join(f"[[Category:{name}]]\n" for name in names)
        revision = self._revision(title, timestamp, f"{text}\n{marks}".lstrip("\n"))
        return self._page(title, revision, names, namespace, redirect)

    def _category(self, name: str, parents: Iterable[str], timestamp: datetime) -> WorldPage:
        text = "Pages of the lab's invented world."
        return self._plain(f"Category:{name}", text, parents, timestamp, CATEGORY)

    def _fixed_pages(self) -> list[WorldPage]:
        """Topics, their categories, and pages that a reader has to know how to leave out."""
        written = self._start(-1)
        pages = [self._category(PARENT, [], written), self._category(DISAMBIGUATION, [], written)]
        for kind in TOPICS:
            category = topic_category(kind)
            pages.append(self._category(category, [PARENT], written))
            for index, thing in enumerate(self._things[kind]):
                pages.append(self._article(thing, written + timedelta(hours=index), category))
        rivers = topic_category("rivers")
        first, second = (thing.name for thing in self._things["rivers"][:2])
        pages.append(
            self._plain(
                f"{first} (river)", f"#REDIRECT [[{first}]]", [rivers], written, redirect=first
            )
        )
        pages.append(
            self._plain(
                "Water (disambiguation)",
                f"'''Water''' may be:\n* [[{first}]]\n* [[{second}]]",
                [DISAMBIGUATION, rivers],
                written,
            )
        )
        pages.append(self._plain("Dry bed", "", [rivers], written))
        return pages

    def _month_pages(self) -> list[WorldPage]:
        return [
            self._category(month_category(f"{start:%Y-%m}"), [], start)
            for start in map(self._start, range(len(self._events)))
        ]

    def _add_month(self) -> None:
        index = len(self._events)
        start, following = self._start(index), self._start(index + 1)
        rng = self._rng("month", index)
        hours = int((following - start).total_seconds()) // 3600
        self._change_earlier(start, hours, rng)
        taken = {page.title for month in self._events for page in month}
        try:
            things = draw_things(
                "events", self.settings.events_per_month, rng, avoid=self._before | taken
            )
        except ValueError as error:
            raise ProfileError(
                f"lab: the names for events are used up in {start:%Y-%m} ({error}). Lower "
                "lab.events_per_month or lab.months."
            ) from error
        category = month_category(f"{start:%Y-%m}")
        self._events.append(
            [
                self._article(thing, start + timedelta(hours=rng.randrange(hours - 1)), category)
                for thing in things
            ]
        )

    def _change_earlier(self, start: datetime, hours: int, rng: random.Random) -> None:
        places = [(m, p) for m, month in enumerate(self._events) for p in range(len(month))]
        made = [
            self._change(
                month, place, lambda: start + timedelta(hours=rng.randrange(hours - 1)), rng
            )
            for month, place in sorted(rng.sample(places, round(CHANGED_SHARE * len(places))))
        ]
        self._changes += sorted(made, key=lambda change: (change.timestamp, change.title))

    def _change(
        self, month: int, place: int, moment: Callable[[], datetime], rng: random.Random
    ) -> Change:
        """Gives an event another fact at a moment, which is drawn last."""
        page = self._events[month][place]
        before = rng.choice(page.current.facts)
        value = rng.choice([v for v in POOLS[before.spec.pool] if v != before.value])
        after = replace(before, value=value)
        facts = tuple(after if fact == before else fact for fact in page.current.facts)
        timestamp = moment()
        revision = self._told(Thing("events", page.title, facts), timestamp, page.categories[0])
        self._events[month][place] = replace(page, revisions=(*page.revisions, revision))
        return Change(title=page.title, timestamp=timestamp, before=before, after=after)

    def edit(self, count: int, seed: int = 0) -> list[Change]:
        """Edits events out of turn, a minute from now, and moves the clock there.

        Args:
            count: Events to edit, each in one fact.
            seed: Draws them.
        """
        rng = self._rng("edit", seed)
        moment = self._now + timedelta(minutes=1)
        places = [
            (m, p)
            for m, month in enumerate(self._events)
            for p, page in enumerate(month)
            if page.current.timestamp <= self._now
        ]
        made = [
            self._change(month, place, lambda: moment, rng)
            for month, place in sorted(rng.sample(places, count))
        ]
        self._changes += sorted(made, key=lambda change: change.title)
        self.now = moment
        return made


def write_wikitext(thing: Thing, categories: Iterable[str], rng: random.Random) -> str:
    """Writes a thing's article with the markup that real articles have.

    Without its markup it is exactly what `grammar.tell` says: a sentence for each fact.
    """
    sentences = tell(list(thing.facts), rng).replace(". ", ".\n").split("\n")
    noted = rng.randrange(len(sentences))
    marked: list[str] = []
    for number, sentence in enumerate(sentences):
        fact = parse(sentence)
        if fact is not None and not fact.value.isdigit() and rng.random() < 0.5:
            sentence = _linked(sentence, fact.value)
        if number == 0:
            sentence = sentence.replace(thing.name, f"'''{thing.name}'''", 1)
        if number == noted:
            sentence += f"<ref name=lab>''The Lab Gazette'', on the {thing.name}.</ref>"
        marked.append(sentence)
    box = f"{{{{Infobox {thing.kind}\n| name = {thing.name}\n| world = the lab\n}}}}"
    marks = "\n".join(f"[[Category:{name}]]" for name in categories)
    return f"{box}\n{' '.join(marked)}\n\n{marks}\n"


def _linked(sentence: str, value: str) -> str:
    """Makes the value of a sentence a link; it may carry a capital at the sentence's start."""
    for shown in (value, value.capitalize()):
        head, found, tail = sentence.partition(shown)
        if found and not (head[-1:].isalpha() or tail[:1].isalpha()):
            link = f"[[{shown}]]" if shown == value else f"[[{value}|{shown}]]"
            return f"{head}{link}{tail}"
    return sentence
