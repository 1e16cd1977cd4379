import json

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kinject_assets.config import Wiki
from kinject_assets.core.corpus.wiki import Page, WikiClient
from kinject_assets.core.errors import SourceError
from kinject_assets.lab.world import World

CONTACT = "tests@localhost"


def scripted(answers: list[Response], seen: list[dict[str, str]] | None = None) -> Starlette:
    """An api.php that gives these answers in turn, then its siteinfo."""
    good = {
        "query": {
            "general": {"server": "//wiki.test", "scriptpath": "/w", "articlepath": "/wiki/$1"}
        }
    }

    async def api(request):
        if seen is not None:
            seen.append(dict(request.headers) | dict(request.query_params))
        return answers.pop(0) if answers else JSONResponse(good)

    return Starlette(routes=[Route("/w/api.php", api, methods=["GET", "POST"])])


def client_of(address: str, waits: list[float], **settings) -> WikiClient:
    wiki = Wiki(**{"attempts": 4, **settings})
    return WikiClient(wiki, f"{address}/w/api.php", CONTACT, sleep=waits.append)


def error(code: str) -> Response:
    return JSONResponse({"error": {"code": code, "info": "no"}}, headers={"Retry-After": "5"})


@pytest.mark.parametrize(
    ("failure", "wait"),
    [
        (Response(status_code=429, headers={"Retry-After": "7"}), 7.0),
        (Response(status_code=503, headers={"Retry-After": "900"}), 60.0),
        (error("maxlag"), 5.0),
        (error("readonly"), 5.0),
        (error("internal_api_error_DBQueryError"), 5.0),
        (Response(b'{"query": {"gene', media_type="application/json"), None),
        (Response(b"[]", media_type="application/json"), None),
        (Response(status_code=500), None),
    ],
)
def test_passing_failures_are_tried_again_after_the_wait_asked_for(serve, failure, wait):
    waits: list[float] = []
    with client_of(serve(scripted([failure])), waits) as client:
        assert client.site.api_url == "https://wiki.test/w/api.php"
    assert client.requests == 2
    assert len(waits) == 1
    if wait is not None:
        assert waits == [wait]
    else:
        assert 0.5 <= waits[0] <= 1.0


def test_waits_grow_and_tries_end_with_what_was_asked_and_answered(serve):
    waits: list[float] = []
    address = serve(scripted([Response(status_code=502) for _ in range(9)]))
    with client_of(address, waits) as client, pytest.raises(SourceError) as caught:
        client.ask(titles="Albedo")
    message = str(caught.value)
    assert client.requests == 4
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 <= waits[2] <= 4
    for part in (address, "titles=Albedo", "HTTP 502", "4 tries", "attempts"):
        assert part in message


def test_nobody_there_is_an_error_after_all_tries():
    waits: list[float] = []
    with client_of("http://127.0.0.1:9", waits) as client, pytest.raises(SourceError) as caught:
        client.ask(meta="siteinfo")
    assert len(waits) == 3
    assert "no connection" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error("badvalue"), "API error badvalue"),
        (Response(status_code=403), "HTTP 403"),
        (Response(status_code=301, headers={"Location": "https://else.test/"}), "else.test"),
    ],
)
def test_refusals_are_not_tried_again(serve, answer, says):
    waits: list[float] = []
    client = client_of(serve(scripted([answer])), waits)
    with client, pytest.raises(SourceError, match=says):
        client.ask(meta="siteinfo")
    assert waits == []
    assert client.requests == 1


def test_requests_say_who_asks_and_what_lag_is_allowed(serve):
    seen: list[dict[str, str]] = []
    with client_of(serve(scripted([], seen)), [], maxlag=3) as client:
        client.ask(meta="siteinfo")
    assert seen[0]["user-agent"].startswith("kinject/")
    assert seen[0]["user-agent"].endswith(f"({CONTACT})")
    assert (seen[0]["maxlag"], seen[0]["formatversion"]) == ("3", "2")


@pytest.mark.parametrize("contact", ["", "you@example.org", "näme@uni.test\n"])
def test_wikis_of_others_are_not_read_without_a_contact(contact):
    with pytest.raises(SourceError, match="contact"):
        WikiClient(Wiki(), "https://en.wikipedia.org/w/api.php", contact)


def test_a_continuation_without_end_is_an_error(serve):
    page = json.dumps({"query": {}, "continue": {"cmcontinue": "x", "continue": "-||"}})
    answers = [Response(page, media_type="application/json") for _ in range(5)]
    with client_of(serve(scripted(answers)), []) as client, pytest.raises(SourceError) as caught:
        list(client.query(list="categorymembers"))
    assert "for ever" in str(caught.value)


def test_a_listing_is_complete_over_continuations_and_levels(lab_api: str, world: World):
    settings = Wiki(listing=2, batch=3, concurrency=2)
    with WikiClient(settings, lab_api, CONTACT) as client:
        parent = client.list_pages(["lab_topics"], 0)
        tree = client.list_pages(["Category:Lab topics", "Rivers of the lab"], 1)
        unknown = client.list_pages(["Rivers of the lab", "No such"], 0).unknown
    assert parent.found == {}
    assert parent.unknown == []
    assert unknown == ["No such"]
    topics = {f"{kind} of the lab" for kind in ("Rivers", "Guilds", "Comets")}
    expected = {
        p.title: world.page(p.redirect or p.title)
        for p in world.pages
        if p.namespace == 0 and topics & set(p.categories)
    }
    assert list(tree.found) == sorted(expected)
    assert len(tree.found) == 3 * 5 + 3
    for title, page in tree.found.items():
        known = expected[title]
        assert isinstance(page, Page)
        assert known is not None
        assert (page.title, page.page_id) == (known.title, known.page_id)
        assert page.revision_id == known.current.revision_id
        assert page.length == len(known.current.wikitext.encode())


def test_a_listing_costs_a_request_for_each_part_of_it(lab_api: str, world: World):
    with WikiClient(Wiki(listing=4), lab_api, CONTACT) as client:
        assert client.site
        before = client.requests
        found = client.list_pages(["Comets of the lab"], 0).found
    assert len(found) == 5
    assert client.requests - before == 2


def test_titles_are_resolved_whatever_their_spelling(lab_api: str, world: World):
    river = next(page for page in world.pages if page.redirect).redirect
    with WikiClient(Wiki(batch=2), lab_api, CONTACT) as client:
        found = client.resolve(
            [river, river.replace(" ", "_"), f"{river} (river)", "Nothing", "a|b", "[x", ""]
        )
    pages = [page for page in found.values() if isinstance(page, Page)]
    assert {page.title for page in pages} == {river}
    assert len(pages) == 3
    assert found["Nothing"] == "missing or deleted"
    assert found["a|b"] == found["[x"] == found[""] == "invalid title"
    known = world.page(river)
    assert known is not None
    assert pages[0].revision_id == known.current.revision_id


def test_long_requests_are_posted_and_texts_are_counted(lab_api: str, world: World):
    pages = [page for page in world.pages if page.namespace == 0]
    revisions = [revision for page in pages for revision in page.revisions]
    with WikiClient(Wiki(batch=50), lab_api, CONTACT) as client:
        resolved = client.resolve([page.title + "_" * 40 for page in pages])
        texts = client.texts([r.revision_id for r in revisions] + [12345])
    assert all(isinstance(page, Page) for page in resolved.values())
    assert {n: t.text for n, t in texts.items()} == {r.revision_id: r.wikitext for r in revisions}
    assert client.bodies == len(revisions)
