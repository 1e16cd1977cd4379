from html import escape

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from kinject_assets.config import Lab
from kinject_assets.lab.wiki import wiki_routes
from kinject_assets.lab.world import World

WORLD = World(Lab(seed=3, months=3, events_per_month=30, things=4))
EVENTS = "Category:February 2031 events in the lab"


@pytest.fixture(scope="module")
def http() -> TestClient:
    return TestClient(Starlette(routes=wiki_routes(WORLD)), follow_redirects=False)


def ask(http: TestClient, **params: str) -> dict:
    query = {"action": "query", "format": "json", "formatversion": "2"} | params
    got, posted = http.get("/w/api.php", params=query), http.post("/w/api.php", data=query)
    assert got.status_code == 200
    assert got.json() == posted.json()
    return got.json()


def everything(http: TestClient, name: str, **params: str) -> list[dict]:
    found: list[dict] = []
    rest: dict[str, str] = {}
    while True:
        answer = ask(http, list=name, **params, **rest)
        found += answer["query"][name]
        rest = answer.get("continue", {})
        assert ("batchcomplete" in answer) is not bool(rest)
        if not rest:
            return found


def test_members_are_listed_by_type_over_continuations(http):
    pages = everything(
        http, "categorymembers", cmtitle=EVENTS, cmlimit="7", cmprop="ids|title|type"
    )
    assert [p["title"] for p in pages] == [p.title for p in WORLD.events("2031-02")]
    topics = everything(http, "categorymembers", cmtitle="Category:Lab topics", cmtype="subcat")
    assert [p["ns"] for p in topics] == [14, 14, 14]
    assert everything(http, "categorymembers", cmtitle="Category:Lab topics", cmtype="page") == []


def test_revisions_and_categories_of_pages(http):
    changed = next(page for page in WORLD.pages if len(page.revisions) > 1)
    old, new = changed.revisions[:2]
    answer = ask(
        http,
        revids=f"{old.revision_id}|{new.revision_id}|99",
        prop="revisions|info",
        rvprop="ids|timestamp|content|sha1|size",
        rvslots="main",
        inprop="url",
    )["query"]
    (page,) = answer["pages"]
    assert [r["slots"]["main"]["content"] for r in page["revisions"]] == [
        old.wikitext,
        new.wikitext,
    ]
    assert page["revisions"][1]["parentid"] == old.revision_id
    assert page["lastrevid"] == changed.current.revision_id
    assert list(answer["badrevids"]) == ["99"]
    part = ask(http, titles="Water (disambiguation)", prop="categories|pageprops", cllimit="1")
    assert part["query"]["pages"][0]["pageprops"] == {"disambiguation": ""}
    rest = ask(http, titles="Water (disambiguation)", prop="categories", **part["continue"])
    assert rest["query"]["pages"][0]["categories"] == [
        {"ns": 14, "title": "Category:Rivers of the lab"}
    ]


def test_titles_are_normalised_followed_or_missing(http):
    redirect = next(page for page in WORLD.pages if page.redirect)
    given = redirect.title.replace(" ", "_")
    target = WORLD.page(redirect.redirect)
    assert target is not None
    query = ask(http, titles=f"{given}|Nothing|a[b", redirects="1")["query"]
    assert query["normalized"][0] == {"fromencoded": False, "from": given, "to": redirect.title}
    assert query["redirects"] == [{"from": redirect.title, "to": redirect.redirect}]
    assert [p.get("missing", p.get("invalid", p.get("pageid"))) for p in query["pages"]] == [
        True,
        True,
        target.page_id,
    ]
    plain = ask(http, pageids=str(redirect.page_id), prop="info")["query"]["pages"][0]
    assert plain["redirect"] is True


def test_recent_changes_by_date_and_direction(http):
    fields = {"rcnamespace": "0", "rclimit": "9", "rcstart": "2031-02-01T00:00:00Z"}
    found = everything(http, "recentchanges", rcdir="newer", **fields)
    expected = sorted(
        r.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ")
        for page in WORLD.pages
        if page.namespace == 0
        for r in page.revisions
        if r.timestamp.strftime("%Y-%m") >= "2031-02"
    )
    assert [change["timestamp"] for change in found] == expected
    assert {c["title"] for c in found if c["type"] == "edit"} == {
        c.title for c in WORLD.changes if f"{c.timestamp:%Y-%m}" >= "2031-02"
    }
    assert everything(http, "recentchanges", rclimit="1")[0]["timestamp"] == expected[-1]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"action": "nosuch"}, "badvalue"),
        ({"list": "categorymembers"}, "missingparam"),
        ({"list": "categorymembers", "cmtitle": "Rivers"}, "invalidcategory"),
        ({"list": "categorymembers", "cmtitle": EVENTS, "cmcontinue": "x"}, "badcontinue"),
        ({"titles": "|".join(map(str, range(51)))}, "toomanyvalues"),
        ({"titles": "a", "pageids": "1"}, "invalidparammix"),
        ({"revids": "x"}, "badinteger"),
        ({"list": "recentchanges", "rcstart": "soon"}, "badtimestamp"),
    ],
)
def test_errors_have_mediawikis_shape(http, params, code):
    query = {"action": "query", "format": "json", "formatversion": "2"} | params
    answer = http.get("/w/api.php", params=query)
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == answer.headers["MediaWiki-API-Error"] == code


def test_pages_for_people(http):
    redirect = next(page for page in WORLD.pages if page.redirect)
    name = redirect.redirect.replace(" ", "_")
    page = http.get(f"/wiki/{name}")
    assert page.status_code == 200
    assert "&lt;ref name=lab&gt;" in page.text
    assert http.get(f"/wiki/{redirect.title}").headers["Location"] == f"/wiki/{name}"
    missing = http.get("/wiki/<script>")
    assert missing.status_code == 404
    assert "<script>" not in missing.text


def test_every_revision_has_its_own_address(http):
    page = max(WORLD.pages, key=lambda page: len(page.revisions))
    assert len(page.revisions) > 1
    for revision in page.revisions:
        shown = http.get("/w/index.php", params={"oldid": revision.revision_id})
        assert shown.status_code == 200
        assert f"revision {revision.revision_id} of" in shown.text
        assert escape(revision.wikitext) in shown.text
    missing = http.get("/w/index.php", params={"oldid": "<script>"})
    assert missing.status_code == 404
    assert "<script>" not in missing.text
