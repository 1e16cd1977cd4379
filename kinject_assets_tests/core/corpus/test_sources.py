from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.applications import Starlette

from kinject_assets.config import Cleaning, Corpus, Files, Wiki, WikiEvents, WikiPages
from kinject_assets.core.corpus.sources import (
    Before,
    fetch_articles,
    month_categories,
    read_frozen,
    window_months,
    write_frozen,
)
from kinject_assets.core.errors import SourceError
from kinject_assets.core.schema import logical_version
from kinject_assets.lab.wiki import SERVER, wiki_routes
from kinject_assets.lab.world import World
from kinject_assets_tests.core.corpus.conftest import SMALL

EVENTS = ("{month_name} {year} events in the lab",)


def fetch(api: str, source, now=datetime(2031, 3, 31, tzinfo=UTC), folder=Path(), **changes):
    wikis = {"w": Wiki(api_url=api, listing=2, batch=4, licence="CC0")}
    return fetch_articles(
        Corpus(source=source),
        wikis=wikis,
        cleaning=Cleaning(),
        contact="tests@localhost",
        now=now,
        base_folder=folder,
        **changes,
    )


def pages(**fields) -> WikiPages:
    return WikiPages(**{"kind": "wiki", "wiki": "w", "depth": 0, **fields})


def events(**fields) -> WikiEvents:
    return WikiEvents(**{"kind": "events", "wiki": "w", "categories": EVENTS, "depth": 0, **fields})


def test_a_topic_with_what_was_left_out_and_why(lab_api: str, world: World):
    source = pages(categories=("Rivers of the lab",), titles=("Nothing", "Dry bed"))
    fetched = fetch(lab_api, source)
    rivers = [p for p in world.pages if "Rivers of the lab" in p.categories and p.current.facts]
    assert [a.title for a in fetched.articles] == [p.title for p in rivers]
    assert {e.title: e.reason for e in fetched.exclusions} == {
        "Dry bed": "blank after cleaning",
        "Nothing": "missing or deleted",
        "Water (disambiguation)": "disambiguation page",
    }
    first = fetched.articles[0]
    assert first.revision_id == str(rivers[0].current.revision_id)
    assert first.revised_at == rivers[0].current.timestamp
    assert first.source == f"{SERVER}/w/api.php"
    assert first.url == f"{SERVER}/wiki/{first.title.replace(' ', '_')}"
    assert first.licence == "CC0"
    assert fetched.bodies == len(rivers) + 1


def test_the_address_that_a_wiki_is_reached_by_changes_no_identity(lab_api, world, serve):
    other = f"{serve(Starlette(routes=wiki_routes(world)))}/w/api.php"
    source = pages(categories=("Comets of the lab",))
    assert other != lab_api
    assert fetch(other, source).articles == fetch(lab_api, source).articles


def test_only_new_revisions_are_fetched_again(serve):
    moving = World(SMALL)
    api = f"{serve(Starlette(routes=wiki_routes(moving)))}/w/api.php"
    source = events(until="2031-03", window_months=3)
    first = fetch(api, source)
    again = fetch(api, source, now=moving.now, before=Before(articles=first.articles))
    assert again.bodies == 0
    assert again.articles == first.articles
    moving.now = datetime(2031, 6, 30, tzinfo=UTC)
    later = fetch(api, source, now=moving.now, before=Before(articles=first.articles))
    changed = set(map(str, later.articles)) - set(map(str, first.articles))
    assert later.bodies == len(changed) > 0
    fresh = fetch(api, source, now=moving.now)
    assert logical_version(later.articles) == logical_version(fresh.articles)
    assert logical_version(later.articles) != logical_version(first.articles)


def test_a_rolling_window_and_a_month_that_is_not_there_yet(lab_api: str, world: World):
    fetched = fetch(lab_api, events(window_months=2), now=datetime(2031, 4, 1, tzinfo=UTC))
    assert [a.title for a in fetched.articles] == [p.title for p in world.events("2031-03")]
    assert [(e.title, e.reason) for e in fetched.exclusions] == [
        ("Category:April 2031 events in the lab", "no such category (yet)")
    ]
    with pytest.raises(SourceError, match="none of the categories"):
        fetch(lab_api, events(until="2020-01"))


def test_a_frozen_list_gives_old_revisions_with_the_same_meaning(serve, tmp_path: Path):
    moving = World(SMALL)
    api = f"{serve(Starlette(routes=wiki_routes(moving)))}/w/api.php"
    before = fetch(api, events(until="2031-03", window_months=3))
    write_frozen(before.articles, tmp_path / "frozen.jsonl")
    moving.now = datetime(2031, 9, 30, tzinfo=UTC)
    source = pages(frozen=Path("frozen.jsonl"))
    frozen = fetch(api, source, folder=tmp_path)
    assert logical_version(frozen.articles) == logical_version(before.articles)
    assert fetch(api, source, folder=tmp_path, before=Before(articles=frozen.articles)).bodies == 0
    gone = replace(before.articles[0], revision_id="12345")
    alien = replace(before.articles[1], article_id="f" * 32)
    write_frozen([gone, alien, before.articles[2]], tmp_path / "frozen.jsonl")
    part = fetch(api, source, folder=tmp_path)
    assert part.articles == [before.articles[2]]
    reasons = {e.title: e.reason for e in part.exclusions}
    assert "missing or deleted" in reasons[gone.title]
    assert "another page" in reasons[alien.title]


def test_a_frozen_list_may_name_page_ids(lab_api: str, world: World, tmp_path: Path):
    page = world.events("2031-01")[0]
    line = f'{{"page_id": {page.page_id}, "revision_id": {page.revisions[0].revision_id}, '
    (tmp_path / "f.jsonl").write_text(line + '"title": "Given"}\n')
    fetched = fetch(lab_api, pages(frozen=Path("f.jsonl")), folder=tmp_path)
    assert [a.title for a in fetched.articles] == ["Given"]
    (tmp_path / "f.jsonl").write_text('{"title": "x"}')
    with pytest.raises(SourceError, match="line 1"):
        read_frozen(tmp_path / "f.jsonl")


def test_an_unknown_category_is_named(lab_api: str):
    with pytest.raises(SourceError, match="Rivers of the lap"):
        fetch(lab_api, pages(categories=("Rivers of the lab", "Rivers of the lap")))
    with pytest.raises(SourceError, match="no articles"):
        fetch(lab_api, pages(categories=("Lab topics",)))


def test_files_go_the_same_way(tmp_path: Path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.txt").write_text("")
    fetched = fetch("unused", Files(kind="files", folder=Path(".")), folder=tmp_path)
    assert [a.title for a in fetched.articles] == ["a", "b"]
    assert [e.title for e in fetched.exclusions] == ["c.txt"]
    assert (fetched.requests, fetched.bodies) == (0, 0)


def test_months_of_a_window_cross_years():
    now = datetime(2024, 1, 31, 23, 59, tzinfo=UTC)
    assert window_months("now", 3, now) == ["2023-11", "2023-12", "2024-01"]
    assert window_months("2023-11", 1, now) == ["2023-11"]
    assert month_categories(("{month_name} {year}", "{year}/{month}"), ["2023-08"]) == [
        "August 2023",
        "2023/08",
    ]
    with pytest.raises(SourceError, match="day"):
        month_categories(("{day}",), ["2023-08"])


def test_texts_of_a_stopped_run_are_not_fetched_again(lab_api: str, tmp_path: Path) -> None:
    source = pages(categories=("Rivers of the lab", "Comets of the lab"))

    def stop(message: str, done: int | None = None, total: int | None = None) -> None:
        if message == "fetching texts" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(lab_api, source, work=tmp_path, report=stop)
    undisturbed = fetch(lab_api, source)
    again = fetch(lab_api, source, work=tmp_path)
    assert again.articles == undisturbed.articles
    assert again.bodies <= undisturbed.bodies - 4, "at least one batch of four had arrived"

    # A line that a crash tore off is no text.
    kept = tmp_path / "texts.jsonl"
    kept.write_bytes(kept.read_bytes()[:-20])
    torn = fetch(lab_api, source, work=tmp_path)
    assert (torn.articles, torn.bodies) == (undisturbed.articles, 1)
    once_more = fetch(lab_api, source, work=tmp_path)
    assert (once_more.articles, once_more.bodies) == (undisturbed.articles, 0)
