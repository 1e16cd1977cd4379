"""Against a real MediaWiki with real pages of Wikipedia."""

import json
import threading
import time
import unicodedata
import urllib.parse
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kinject_assets.config import Cleaning, Corpus, Wiki, WikiPages
from kinject_assets.core.corpus.sources import Before, Fetched, fetch_articles
from kinject_assets.core.corpus.wiki import WikiClient
from kinject_assets.core.schema import Article

TITLES = (
    "Ameboid stage",
    "Redirect loop A",
    "Astronomy scientists",
    "Ranma ½",
    "? (film)",
    "天文学",
    unicodedata.normalize("NFD", "Ångström"),
    "Page to be moved",
    "Page to be deleted",
    "Bad[title",
    "Lunar landing of 1969",
    "Food (disambiguation)",
    "Blank page",
    "Special:Version",
)
MARKS = ("[[", "]]", "{{", "}}", "<ref", "{|", "|}", "'''", "&nbsp;", "__TOC", "Category:")


def fetch(api: str, articles: Sequence[Article] = (), **settings) -> Fetched:
    source = WikiPages(
        kind="wiki",
        wiki="w",
        categories=("Astronomy", "Anatomy", "Chemistry"),
        depth=2,
        titles=TITLES,
    )
    return fetch_articles(
        Corpus(source=source),
        wikis={"w": Wiki(api_url=api, **settings)},
        cleaning=Cleaning(),
        contact="tests@localhost",
        now=datetime(2031, 1, 1, tzinfo=UTC),
        base_folder=Path(),
        before=Before(articles=articles),
    )


@pytest.fixture(scope="module")
def fetched(real_wiki: str) -> Fetched:
    return fetch(real_wiki, listing=2, batch=5)


def asked(api: str, **params: str):
    query = urllib.parse.urlencode(
        {"action": "query", "format": "json", "formatversion": 2} | params
    )
    with urllib.request.urlopen(f"{api}?{query}") as answer:
        return json.load(answer)["query"]


def test_a_category_tree_with_a_loop_is_read_whole_and_once(real_wiki: str):
    with WikiClient(Wiki(listing=2), real_wiki, "tests@localhost") as client:
        listing = client.list_pages(["Astronomy"], 9)
    titles: set[str] = set()
    waiting, met = ["Category:Astronomy"], {"Category:Astronomy"}
    while waiting:
        members = asked(real_wiki, list="categorymembers", cmtitle=waiting.pop(), cmlimit="max")
        for member in members["categorymembers"]:
            if member["ns"] == 0:
                titles.add(member["title"])
            elif member["ns"] == 14 and member["title"] not in met:
                met.add(member["title"])
                waiting.append(member["title"])
    assert "Category:Physical sciences" in met
    assert list(listing.found) == sorted(titles)


def test_titles_lead_to_their_pages_or_to_a_reason(fetched: Fetched):
    assert {e.title: e.reason for e in fetched.exclusions} == {
        "Ameboid stage": "redirect to Amoeba, which does not exist",
        "Bad[title": "invalid title",
        "Blank page": "blank",
        "Food (disambiguation)": "disambiguation page",
        "Page to be deleted": "missing or deleted",
        "Redirect loop A": "redirect loop",
        "Special:Version": "a special page, without text",
    }
    found = {a.title for a in fetched.articles}
    assert {
        "Ranma ½",
        "? (film)",
        "Ångström",
        "Page that was moved",
        "Apollo 11",
        "Astronomer",
        "Albedo",
        "Alkali metal",
        "Anatomy",
        "Acid",
    } <= found
    assert len({a.article_id for a in fetched.articles}) == len(found) == len(fetched.articles)


def test_no_markup_is_left_and_no_text_is_lost(fetched: Fetched):
    for article in fetched.articles:
        text = "\n".join(article.bodies)
        assert not [mark for mark in MARKS if mark in text], article.title
        assert not {"References", "External links"} & set(article.headings)
    albedo = next(a for a in fetched.articles if a.title == "Albedo")
    assert "is the diffuse reflectivity or reflecting power of a surface." in albedo.bodies[0]
    assert "Aerosol effects" in albedo.headings


def test_addresses_and_revisions_are_the_wikis_own(real_wiki: str, fetched: Fetched):
    pages = asked(
        real_wiki,
        prop="info|revisions",
        inprop="url",
        rvprop="ids",
        titles="|".join(a.title for a in fetched.articles),
    )["pages"]
    own = {p["title"]: (p["canonicalurl"], str(p["revisions"][0]["revid"])) for p in pages}
    assert {a.title: (a.url, a.revision_id) for a in fetched.articles} == own


def test_nothing_new_costs_no_text(real_wiki: str, fetched: Fetched):
    again = fetch(real_wiki, articles=fetched.articles, concurrency=2)
    assert again.bodies == 0
    assert again.articles == fetched.articles


def test_lag_and_refusals_while_reading_cost_a_wait_and_nothing_else(
    real_wiki: str, fetched: Fetched, wiki_switch: Path
):
    calm = fetch(real_wiki, listing=2, batch=5)
    (wiki_switch / "fault").write_text("429 1 3")

    def weather() -> None:
        time.sleep(1.5)
        (wiki_switch / "lag").write_text("7")
        time.sleep(1.5)
        (wiki_switch / "lag").unlink()
        (wiki_switch / "fault").write_text("503 1 2")

    thread = threading.Thread(target=weather)
    thread.start()
    rough = fetch(real_wiki, listing=2, batch=5)
    thread.join()
    assert rough.articles == calm.articles
    assert rough.exclusions == calm.exclusions
    assert rough.bodies == calm.bodies
    # Every refused try is one more request: three, two, and what met the lag.
    assert calm.requests + 3 < rough.requests <= calm.requests + 3 + 2 + 3
