"""A rolling window of the lab's world over time: what is read, what is kept, what is frozen."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette

from kinject_assets.config import Cleaning, Corpus, Wiki, WikiEvents, load_profile
from kinject_assets.core.corpus.releases import (
    Release,
    family,
    freeze_closed,
    frozen_list,
    read_releases,
    verify,
    with_releases,
)
from kinject_assets.core.corpus.sources import (
    Before,
    Fetched,
    fetch_articles,
    month_of,
    months_to_visit,
    read_frozen,
)
from kinject_assets.core.errors import BrokenArtefact, SourceError
from kinject_assets.core.schema import Listed, logical_version
from kinject_assets.lab.wiki import wiki_routes
from kinject_assets.lab.world import World
from kinject_assets_tests.core.corpus.conftest import SMALL

SOURCE = WikiEvents(
    kind="events",
    wiki="w",
    categories=("{month_name} {year} events in the lab",),
    depth=0,
    window_months=3,
)
START = datetime(2031, 3, 20, tzinfo=UTC)


class Window:
    """A rolling corpus whose world can be moved and edited."""

    def __init__(self, serve: Callable[[Starlette], str], lake: Path) -> None:
        self.world = World(SMALL, START)
        self.api = f"{serve(Starlette(routes=wiki_routes(self.world)))}/w/api.php"
        self.lake = lake
        self.before = Before()

    def look(self, source: WikiEvents = SOURCE) -> Fetched:
        """Reads what has changed since the last look."""
        fetched = fetch_articles(
            Corpus(source=source),
            wikis={"w": Wiki(api_url=self.api)},
            cleaning=Cleaning(),
            contact="tests@localhost",
            now=self.world.now,
            base_folder=Path(),
            before=self.before,
        )
        self.released = freeze_closed(
            self.lake,
            "events-current",
            source,
            fetched.listed,
            open_before=self.before.month,
            now=self.world.now,
        )
        self.before = Before(
            articles=[*fetched.articles, *fetched.left],
            listed=fetched.listed,
            month=month_of(self.world.now),
        )
        return fetched

    def afresh(self, source: WikiEvents = SOURCE) -> Fetched:
        """Reads everything."""
        return fetch_articles(
            Corpus(source=source),
            wikis={"w": Wiki(api_url=self.api)},
            cleaning=Cleaning(),
            contact="tests@localhost",
            now=self.world.now,
            base_folder=Path(),
        )


@pytest.fixture
def window(serve, tmp_path: Path) -> Window:
    return Window(serve, tmp_path)


def test_a_second_look_lists_two_months_and_fetches_what_changed(window: Window):
    first = window.look()
    assert first.visited == ("2031-01", "2031-02", "2031-03")
    assert first.bodies == len(first.articles)
    again = window.look()
    assert again.visited == ("2031-02", "2031-03")
    assert (again.requests, again.bodies) == (3, 0)
    assert again.articles == first.articles
    assert again.listed == first.listed

    changes = window.world.edit(4)
    of = {page.title: month for month in window.world.months for page in window.world.events(month)}
    seen = [change.title for change in changes if of[change.title] != "2031-01"]
    third = window.look()
    assert third.bodies == len(seen) < 4, "some edits are of a month that is no longer looked at"
    old = {a.article_id: a.revision_id for a in first.articles}
    renewed = [a.title for a in third.articles if old[a.article_id] != a.revision_id]
    assert sorted(renewed) == sorted(seen)


def test_the_window_slides_and_is_what_reading_afresh_would_give(window: Window):
    window.look()
    for days in (5, 7, 20, 35):
        window.world.now += timedelta(days=days)
        kept = window.look()
        fresh = window.afresh()
        visited = {row for row in fresh.listed if row.month in kept.visited}
        assert visited <= set(kept.listed)
        assert {a.article_id for a in kept.articles} == {a.article_id for a in fresh.articles}
        same = {a.article_id: a.text_sha256 for a in fresh.articles}
        untouched = {r.article_id for r in kept.listed if r.month not in kept.visited}
        for article in kept.articles:
            if article.article_id not in untouched:
                assert article.text_sha256 == same[article.article_id]


def test_a_month_that_closes_is_frozen_once(window: Window):
    window.look()
    assert window.released == []
    window.world.now = datetime(2031, 4, 2, tzinfo=UTC)
    fetched = window.look()
    (release,) = window.released
    assert (release.key, release.first_month, release.number) == ("events-2031-03", "2031-01", 1)
    frozen = read_frozen(frozen_list(window.lake, release.key))
    january = {p.title for p in window.world.events("2031-01")}
    assert january <= {page.title for page in frozen}
    assert {a.title for a in fetched.left} == january
    assert not january & {a.title for a in fetched.articles}
    assert len(frozen) == release.pages
    window.look()
    assert window.released == []
    assert read_releases(window.lake) == [release]


def test_a_later_edit_makes_another_release_and_changes_none(window: Window):
    window.look()
    window.world.now = datetime(2031, 4, 2, tzinfo=UTC)
    window.look()
    path = frozen_list(window.lake, "events-2031-03")
    before = path.read_bytes()
    march = {page.title for page in window.world.events("2031-03")}
    number = 1
    for seed in range(40):
        edited = {change.title for change in window.world.edit(1, seed)}
        window.look()
        if edited & march:
            number += 1
            assert [r.key for r in window.released] == [f"events-2031-03-r{number}"]
        else:
            assert window.released == []
        if number == 3:
            break
    assert number == 3
    assert path.read_bytes() == before
    one, two = (
        {(page.article_id, page.revision_id) for page in read_frozen(frozen_list(window.lake, key))}
        for key in ("events-2031-03", "events-2031-03-r2")
    )
    assert len(one - two) == len(two - one) == 1


def test_after_an_absence_the_months_that_closed_are_frozen_as_they_are_then(window: Window):
    window.look()
    window.world.now = datetime(2031, 6, 10, tzinfo=UTC)
    fetched = window.look()
    assert fetched.visited == ("2031-03", "2031-04", "2031-05", "2031-06")
    assert [r.key for r in window.released] == [f"events-2031-0{month}" for month in (3, 4, 5)]
    source = SOURCE.model_copy(update={"until": "2031-05"})
    now = {(a.article_id, a.revision_id) for a in window.afresh(source).articles}
    frozen = read_frozen(frozen_list(window.lake, "events-2031-05"))
    assert {(page.article_id, str(page.revision_id)) for page in frozen} == now
    assert {a.article_id for a in fetched.articles} == {
        a.article_id for a in window.afresh().articles
    }


def test_reading_everything_again_freezes_a_month_that_has_closed(window: Window):
    window.look()
    window.world.now = datetime(2031, 4, 2, tzinfo=UTC)
    window.before = Before(month=window.before.month)
    fetched = window.look()
    assert fetched.visited == ("2031-01", "2031-02", "2031-03", "2031-04")
    assert [release.key for release in window.released] == ["events-2031-03"]


def test_a_reverted_edit_and_another_cleaning_make_no_release(window: Window):
    window.look()
    window.world.now = datetime(2031, 4, 2, tzinfo=UTC)
    window.look()
    (first,) = read_releases(window.lake)
    listed = window.before.listed

    def freeze(rows: Sequence[Listed]) -> list[str]:
        new = freeze_closed(
            window.lake,
            "events-current",
            SOURCE,
            rows,
            open_before="2031-04",
            now=window.world.now,
        )
        return [release.key for release in new]

    cleaned = [replace(row, text_sha256=f"{row.text_sha256}x") for row in listed]
    assert freeze(cleaned) == []
    touched = [replace(row, revision_id=f"{row.revision_id}1") for row in listed]
    assert freeze(touched) == [], "new revisions with the same text"
    march = next(row for row in listed if row.month == "2031-03" and row.article_id)
    other = replace(march, revision_id="77", text_sha256="other")
    edited = [other if row == march else row for row in listed]
    assert freeze(edited) == [f"{first.key}-r2"]
    assert freeze(listed) == [], "the edit was reverted"


def test_a_category_that_vanishes_is_no_empty_month(window: Window, monkeypatch):
    window.look()
    pages = World.pages.fget
    assert pages is not None
    monkeypatch.setattr(
        World,
        "pages",
        property(
            lambda self: [
                p
                for p in pages(self)
                if "March 2031 events in the lab" not in (*p.categories, p.title.partition(":")[2])
            ]
        ),
    )
    monkeypatch.setattr(
        World, "page", lambda self, title: {p.title: p for p in self.pages}.get(title)
    )
    with pytest.raises(SourceError, match=r"held \d+ articles the last time.*fetch_all"):
        window.look()


def test_a_list_that_was_changed_is_refused(window: Window):
    window.look()
    window.world.now = datetime(2031, 4, 2, tzinfo=UTC)
    window.look()
    verify(window.lake, "events-2031-03")
    path = frozen_list(window.lake, "events-2031-03")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))
    with pytest.raises(BrokenArtefact, match="not the list of revisions that was frozen"):
        verify(window.lake, "events-2031-03")
    verify(window.lake, "events-current")


def test_a_window_with_a_fixed_end_is_pinned_once_its_month_has_closed(window: Window):
    source = SOURCE.model_copy(update={"until": "2031-03"})
    window.look(source)
    window.world.now = datetime(2031, 4, 3, tzinfo=UTC)
    closed = window.look(source)
    assert closed.visited == ("2031-03",)
    window.world.edit(10)
    again = window.look(source)
    assert (again.visited, again.bodies) == ((), 0)
    assert logical_version(again.articles) == logical_version(closed.articles)
    # Without the texts of the last time the pinned revisions are fetched, not the current ones.
    window.before = Before(listed=window.before.listed, month=window.before.month)
    fetched = window.look(source)
    assert fetched.bodies == len(closed.articles)
    assert logical_version(fetched.articles) == logical_version(closed.articles)


def test_what_is_visited_follows_from_what_was_open():
    def visit(source: WikiEvents, now: datetime, month: str, *known: str) -> tuple[str, ...]:
        rows = [
            Listed(month=m, title="", article_id="", revision_id="", text_sha256="", reason="x")
            for m in known
        ]
        return months_to_visit(source, now, Before(listed=rows, month=month))

    now = datetime(2031, 5, 1, tzinfo=UTC)
    known = ("2031-03", "2031-04")
    assert visit(SOURCE, now, "2031-04", *known) == ("2031-04", "2031-05")
    assert visit(SOURCE, now, "2031-03", *known) == ("2031-03", "2031-04", "2031-05")
    one = SOURCE.model_copy(update={"revisit_months": 1})
    assert visit(one, now, "2031-05", *known, "2031-05") == ("2031-05",)


def test_releases_are_corpora_asked_for_as_their_window_is(tmp_path: Path):
    profile = load_profile("lab")
    rows = [
        Listed(
            month=month,
            title=f"{month} page",
            article_id=month * 4,
            revision_id="7",
            text_sha256="t",
            reason="",
        )
        for month in ("2031-04", "2031-05", "2031-06")
    ]
    source = profile.corpora["events-current"].source
    assert isinstance(source, WikiEvents)
    now = datetime(2031, 6, 2, tzinfo=UTC)

    def freeze(taken: tuple[str, ...] = ()) -> list[Release]:
        return freeze_closed(
            tmp_path, "events-current", source, rows, open_before="2031-05", now=now, taken=taken
        )

    assert with_releases(profile, tmp_path) is profile
    assert freeze(taken=("events-2031-05",)) == []
    assert [release.key for release in freeze()] == ["events-2031-05"]
    grown = with_releases(profile, tmp_path)
    release = grown.corpora["events-2031-05"]
    assert release.source.kind == "wiki"
    assert release.exam == profile.corpora["events-current"].exam
    asked = [cells for cells in grown.grid if "events-2031-05" in cells.corpora]
    assert [cells.methods for cells in asked] == [("base", "rag")]
    assert family(grown, tmp_path, "events-2031-05") == ["events-current"]
    assert family(grown, tmp_path, "events-current") == ["events-2031-05"]
    assert family(grown, tmp_path, "comets") == []

    (tmp_path / "releases" / "events-2031-05" / "release.json").write_text("{}")
    with pytest.raises(BrokenArtefact, match="not the record of a release"):
        read_releases(tmp_path)
