"""The lab's wiki: as much of MediaWiki's `api.php` as a reader of articles needs.

Answers have the shape of `formatversion=2`. Nothing depends on the clock of the computer: "now" is
the world's. Addresses inside answers are those of `SERVER`, whatever port the wiki is reached by,
so that articles keep their identity from one start to the next.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from kinject_assets.lab.world import (
    ARTICLE,
    CATEGORY,
    DISAMBIGUATION,
    PageRevision,
    World,
    WorldPage,
)

SERVER = "http://lab.localhost:8471"
"""Canonical address of the lab's wiki. It answers where the lab is served on that port."""

MOST_VALUES = 50
"""Titles or ids in one request, at most."""

Params = dict[str, str]


class ApiError(Exception):
    """An answer of failure in MediaWiki's shape."""

    def __init__(self, code: str, info: str) -> None:
        super().__init__(info)
        self.code = code


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _moment(params: Params, name: str) -> datetime | None:
    text = params.get(name)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is not None:
            return moment
    except ValueError:
        pass
    raise ApiError("badtimestamp", f'Invalid value "{text}" for timestamp parameter "{name}".')


def _values(params: Params, name: str, default: str = "") -> list[str]:
    text = params.get(name, default)
    if text.startswith("\x1f"):
        return text[1:].split("\x1f")
    return text.split("|") if text else []


def _limit(params: Params, name: str, default: int = 10, most: int = 500) -> int:
    text = params.get(name, str(default))
    if text == "max":
        return most
    if not text.isdecimal() or int(text) < 1:
        raise ApiError("badinteger", f'Invalid value "{text}" for integer parameter "{name}".')
    return min(int(text), most)


def _normal(title: str) -> str:
    """A title as MediaWiki spells it."""
    title = " ".join(title.replace("_", " ").partition("#")[0].split())
    prefix, colon, rest = title.partition(":")
    if colon and prefix.strip().lower() == "category":
        rest = rest.strip()
        return f"Category:{rest[:1].upper()}{rest[1:]}"
    return title[:1].upper() + title[1:]


def _invalid(title: str) -> bool:
    return not title or len(title.encode()) > 255 or any(mark in title for mark in "[]{}|<>")


@dataclass
class _Asked:
    """Pages that a query is about, each with the revisions to show."""

    pages: list[tuple[WorldPage, Sequence[PageRevision]]]
    absent: list[dict[str, Any]]
    head: dict[str, Any]


class _Api:
    def __init__(self, world: World) -> None:
        self.world = world
        self.modules: dict[str, Callable[[Params], tuple[dict[str, Any], dict[str, str]]]] = {
            "categorymembers": self._category_members,
            "recentchanges": self._recent_changes,
        }

    def answer(self, params: Params) -> dict[str, Any]:
        """The answer to one request."""
        action = params.get("action", "help")
        if action != "query":
            raise ApiError("badvalue", f'Unrecognized value for parameter "action": {action}.')
        if params.get("format") != "json" or params.get("formatversion") != "2":
            raise ApiError("badvalue", "The lab's wiki speaks format=json, formatversion=2 only.")
        query: dict[str, Any] = {}
        following: dict[str, str] = {}
        if "meta" in params:
            query |= self._meta(params)
        for name in _values(params, "list"):
            if name not in self.modules:
                raise ApiError("badvalue", f'Unrecognized value for parameter "list": {name}.')
            part, more = self.modules[name](params)
            query |= part
            following |= more
        if "generator" in params:
            part, more = self._generated(params)
            query |= part
            following |= more
        elif any(key in params for key in ("titles", "pageids", "revids")):
            part, more = self._pages(params)
            query |= part
            following |= more
        if following:
            return {"continue": {**following, "continue": "-||"}, "query": query}
        return {"batchcomplete": True, "query": query}

    def _meta(self, params: Params) -> dict[str, Any]:
        if params["meta"] != "siteinfo":
            raise ApiError(
                "badvalue", f'Unrecognized value for parameter "meta": {params["meta"]}.'
            )
        wanted = _values(params, "siprop", "general")
        found: dict[str, Any] = {}
        if "general" in wanted:
            found["general"] = {
                "mainpage": "Category:Lab topics",
                "base": f"{SERVER}/wiki/Category:Lab_topics",
                "sitename": "Wiki of the lab",
                "generator": "MediaWiki 1.45.0 (as the kinject lab speaks it)",
                "lang": "en",
                "articlepath": "/wiki/$1",
                "scriptpath": "/w",
                "script": "/w/index.php",
                "server": SERVER,
                "wikiid": "kinjectlab",
                "time": _stamp(self.world.now),
            }
        if "extensions" in wanted:
            found["extensions"] = [{"type": "other", "name": "Disambiguator"}]
        return found

    # --- lists

    def _category_members(self, params: Params) -> tuple[dict[str, Any], dict[str, str]]:
        if "cmtitle" not in params:
            raise ApiError("missingparam", 'The "cmtitle" parameter must be set.')
        title = _normal(params["cmtitle"])
        if not title.startswith("Category:") or _invalid(title):
            raise ApiError("invalidcategory", "The category name you entered is not valid.")
        kinds = {ARTICLE: "page", CATEGORY: "subcat"}
        wanted = _values(params, "cmtype", "page|subcat|file")
        members = sorted(
            (kinds[page.namespace], page.title, page.page_id, page.namespace)
            for page in self.world.pages
            if title.removeprefix("Category:") in page.categories
            and kinds[page.namespace] in wanted
        )
        start = params.get("cmcontinue")
        if start is not None:
            keys = [self._member_key(kind, name) for kind, name, _, _ in members]
            if start not in keys:
                raise ApiError("badcontinue", "Invalid continue param.")
            members = members[keys.index(start) :]
        limit = _limit(params, "cmlimit")
        shown = _values(params, "cmprop", "ids|title")
        found: list[dict[str, Any]] = []
        for kind, name, page_id, namespace in members[:limit]:
            member: dict[str, Any] = {}
            if "ids" in shown:
                member["pageid"] = page_id
            if "title" in shown:
                member |= {"ns": namespace, "title": name}
            if "type" in shown:
                member["type"] = kind
            found.append(member)
        rest = members[limit:]
        following = {"cmcontinue": self._member_key(*rest[0][:2])} if rest else {}
        return {"categorymembers": found}, following

    @staticmethod
    def _member_key(kind: str, title: str) -> str:
        return f"{kind}|{title.encode().hex()}"

    def _recent_changes(self, params: Params) -> tuple[dict[str, Any], dict[str, str]]:
        newer = params.get("rcdir", "older") == "newer"
        start, end = _moment(params, "rcstart"), _moment(params, "rcend")
        first, last = (start, end) if newer else (end, start)
        spaces = {int(n) for n in _values(params, "rcnamespace") if n.isdecimal()}
        changes = sorted(
            (
                (revision.timestamp, revision.revision_id, page, number)
                for page in self.world.pages
                if not spaces or page.namespace in spaces
                for number, revision in enumerate(page.revisions)
                if (first is None or revision.timestamp >= first)
                and (last is None or revision.timestamp <= last)
            ),
            key=lambda change: change[:2],
            reverse=not newer,
        )
        keys = [f"{stamp:%Y%m%d%H%M%S}|{number}" for stamp, number, _, _ in changes]
        begin = 0
        if token := params.get("rccontinue"):
            if token not in keys:
                raise ApiError("badcontinue", "Invalid continue param.")
            begin = keys.index(token)
        limit = _limit(params, "rclimit")
        found: list[dict[str, Any]] = []
        for stamp, number, page, place in changes[begin : begin + limit]:
            found.append(
                {
                    "type": "edit" if place else "new",
                    "ns": page.namespace,
                    "title": page.title,
                    "pageid": page.page_id,
                    "revid": number,
                    "old_revid": page.revisions[place - 1].revision_id if place else 0,
                    "rcid": number,
                    "timestamp": _stamp(stamp),
                }
            )
        rest = keys[begin + limit :]
        return {"recentchanges": found}, {"rccontinue": rest[0]} if rest else {}

    # --- pages

    def _generated(self, params: Params) -> tuple[dict[str, Any], dict[str, str]]:
        """Pages that a list gives, with what is asked of pages."""
        name = params["generator"]
        if name != "categorymembers":
            raise ApiError("badvalue", f'Unrecognized value for parameter "generator": {name}.')
        of_list = {k.removeprefix("g"): v for k, v in params.items() if k.startswith("gcm")}
        members, rest = self._category_members({**of_list, "cmprop": "title"})
        titles = [member["title"] for member in members["categorymembers"]]
        if not titles:
            return {}, {}
        pages = [page for title in titles if (page := self.world.page(title)) is not None]
        part, more = self._shown(_Asked([(p, [p.current]) for p in pages], [], {}), params)
        if more:
            # These pages are not finished: the list stays where it is.
            return part, more | {k: v for k, v in params.items() if k == "gcmcontinue"}
        return part, {f"g{key}": value for key, value in rest.items()}

    def _pages(self, params: Params) -> tuple[dict[str, Any], dict[str, str]]:
        given = [key for key in ("titles", "pageids", "revids") if key in params]
        if len(given) > 1:
            raise ApiError("invalidparammix", f"The parameters {given} can not be used together.")
        values = _values(params, given[0])
        if len(values) > MOST_VALUES:
            raise ApiError(
                "toomanyvalues",
                f'Too many values supplied for parameter "{given[0]}". The limit is {MOST_VALUES}.',
            )
        asked = (
            self._by_titles(values, "redirects" in params)
            if given == ["titles"]
            else (self._by_ids(given[0], values, "redirects" in params))
        )
        return self._shown(asked, params)

    def _shown(self, asked: _Asked, params: Params) -> tuple[dict[str, Any], dict[str, str]]:
        """The pages that are asked for, with what `prop` names, and where to continue."""
        wanted = _values(params, "prop")
        found = [
            {"pageid": page.page_id, "ns": page.namespace, "title": page.title}
            for page, _ in asked.pages
        ]
        for (page, revisions), raw in zip(asked.pages, found, strict=True):
            if "revisions" in wanted:
                raw["revisions"] = [self._revision(r, page, params) for r in revisions]
            if "info" in wanted:
                raw |= self._info(page, params)
            if "pageprops" in wanted and DISAMBIGUATION in page.categories:
                raw["pageprops"] = {"disambiguation": ""}
        following: dict[str, str] = {}
        if "categories" in wanted:
            following = self._categories([page for page, _ in asked.pages], found, params)
        return {**asked.head, "pages": [*asked.absent, *found]}, following

    def _by_titles(self, titles: Iterable[str], redirects: bool) -> _Asked:
        asked = _Asked([], [], {})
        steps: dict[str, str] = {}
        absent: dict[str, dict[str, Any]] = {}
        pages: dict[str, WorldPage] = {}
        for given in titles:
            title = _normal(given)
            if _invalid(title):
                absent[given] = {"title": given, "invalid": True, "invalidreason": "Bad title."}
                continue
            if title != given:
                steps[given] = title
            page = self.world.page(title)
            page = self._follow(page, asked, redirects)
            if page is None:
                space = CATEGORY if title.startswith("Category:") else ARTICLE
                absent[title] = {"ns": space, "title": title, "missing": True}
            else:
                pages[page.title] = page
        if steps:
            asked.head["normalized"] = [
                {"fromencoded": False, "from": old, "to": new} for old, new in steps.items()
            ]
        asked.pages = [(page, [page.current]) for page in pages.values()]
        asked.absent = list(absent.values())
        return asked

    def _follow(self, page: WorldPage | None, asked: _Asked, redirects: bool) -> WorldPage | None:
        while page is not None and page.redirect and redirects:
            step = {"from": page.title, "to": page.redirect}
            known = asked.head.setdefault("redirects", [])
            if step not in known:
                known.append(step)
            page = self.world.page(page.redirect)
        return page

    def _by_ids(self, kind: str, values: Iterable[str], redirects: bool) -> _Asked:
        asked = _Asked([], [], {})
        numbers: list[int] = []
        for value in values:
            if not value.isdecimal():
                raise ApiError(
                    "badinteger", f'Invalid value "{value}" for integer parameter "{kind}".'
                )
            numbers.append(int(value))
        if kind == "pageids":
            by_id = {page.page_id: page for page in self.world.pages}
            met: dict[str, WorldPage] = {}
            for number in dict.fromkeys(numbers):
                page = self._follow(by_id.get(number), asked, redirects)
                if page is None:
                    asked.absent.append({"pageid": number, "missing": True})
                else:
                    met[page.title] = page
            asked.pages = [(page, [page.current]) for page in met.values()]
            return asked
        wanted = set(numbers)
        for page in self.world.pages:
            if revisions := [r for r in page.revisions if r.revision_id in wanted]:
                asked.pages.append((page, revisions))
                wanted -= {revision.revision_id for revision in revisions}
        if wanted:
            asked.head["badrevids"] = {
                str(number): {"revid": number, "missing": True} for number in sorted(wanted)
            }
        return asked

    @staticmethod
    def _revision(revision: PageRevision, page: WorldPage, params: Params) -> dict[str, Any]:
        shown = _values(params, "rvprop", "ids|timestamp|flags|comment|user")
        place = page.revisions.index(revision)
        raw: dict[str, Any] = {}
        if "ids" in shown:
            parent = page.revisions[place - 1].revision_id if place else 0
            raw |= {"revid": revision.revision_id, "parentid": parent}
        if "timestamp" in shown:
            raw["timestamp"] = _stamp(revision.timestamp)
        if "size" in shown:
            raw["size"] = len(revision.wikitext.encode())
        if "sha1" in shown:
            # What MediaWiki's API calls sha1; it protects nothing.
            digest = hashlib.sha1(revision.wikitext.encode(), usedforsecurity=False)
            raw["sha1"] = digest.hexdigest()
        if "content" in shown:
            content = {"contentmodel": "wikitext", "contentformat": "text/x-wiki"}
            content["content"] = revision.wikitext
            raw |= {"slots": {"main": content}} if params.get("rvslots") else content
        return raw

    def _info(self, page: WorldPage, params: Params) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "contentmodel": "wikitext",
            "pagelanguage": "en",
            "touched": _stamp(page.current.timestamp),
            "lastrevid": page.current.revision_id,
            "length": len(page.current.wikitext.encode()),
        }
        if page.redirect:
            raw["redirect"] = True
        if len(page.revisions) == 1:
            raw["new"] = True
        if "url" in _values(params, "inprop"):
            path = quote(page.title.replace(" ", "_"), safe=";@$!*(),/~:")
            raw |= {
                "fullurl": f"{SERVER}/wiki/{path}",
                "editurl": f"{SERVER}/w/index.php?title={path}&action=edit",
                "canonicalurl": f"{SERVER}/wiki/{path}",
            }
        return raw

    @staticmethod
    def _categories(
        pages: Sequence[WorldPage], raw: Sequence[dict[str, Any]], params: Params
    ) -> dict[str, str]:
        """Adds categories up to the limit; gives where to continue."""
        every = sorted(
            (page.page_id, category, place)
            for place, page in enumerate(pages)
            for category in page.categories
        )
        keys = [f"{page_id}|{category.replace(' ', '_')}" for page_id, category, _ in every]
        begin = 0
        if token := params.get("clcontinue"):
            if token not in keys:
                raise ApiError("badcontinue", "Invalid continue param.")
            begin = keys.index(token)
        limit = _limit(params, "cllimit")
        for _, category, place in every[begin : begin + limit]:
            raw[place].setdefault("categories", []).append(
                {"ns": CATEGORY, "title": f"Category:{category}"}
            )
        rest = keys[begin + limit :]
        return {"clcontinue": rest[0]} if rest else {}


async def _params(request: Request) -> Params:
    params = dict(request.query_params)
    if request.method == "POST":
        body = (await request.body()).decode("utf-8", errors="replace")
        params |= dict(parse_qsl(body, keep_blank_values=True))
    return params


def _error(error: ApiError) -> Response:
    docref = f"See {SERVER}/w/api.php for API usage."
    return JSONResponse(
        {"error": {"code": error.code, "info": str(error), "docref": docref}, "servedby": "lab"},
        headers={"MediaWiki-API-Error": error.code},
    )


def _html(page: WorldPage, revision: PageRevision) -> Response:
    links = "".join(
        f'<li><a href="/wiki/{quote(f"Category:{name}".replace(" ", "_"))}">{escape(name)}</a></li>'
        for name in page.categories
    )
    return HTMLResponse(
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{escape(page.title)}</title>"
        f"<h1>{escape(page.title)}</h1><p>Invented text of the lab's wiki, revision "
        f"{revision.revision_id} of {_stamp(revision.timestamp)}.</p>"
        f"<pre>{escape(revision.wikitext)}</pre><ul>{links}</ul></html>"
    )


def wiki_routes(world: World, clock: Callable[[], datetime] | None = None) -> list[Route]:
    """Routes of the lab's wiki: `/w/api.php`, `/wiki/{title}` and `/w/index.php?oldid=REVISION`.

    They show the world as it is at its `now`; when that is moved, so are they.

    Args:
        world: What they show.
        clock: Looked at before each answer, to move the world's `now`.
    """
    api = _Api(world)

    def turn() -> None:
        if clock is not None and (moment := clock()) != world.now:
            world.now = moment

    async def api_php(request: Request) -> Response:
        turn()
        try:
            return JSONResponse(
                api.answer(await _params(request)),
                headers={"Cache-Control": "private, must-revalidate, max-age=0"},
            )
        except ApiError as error:
            return _error(error)

    async def wiki_page(request: Request) -> Response:
        turn()
        title = _normal(request.path_params["title"])
        page = world.page(title)
        if page is None:
            text = f"<!DOCTYPE html><title>Missing</title><p>No page named {escape(title)}.</p>"
            return HTMLResponse(text, status_code=404)
        if page.redirect:
            return RedirectResponse(f"/wiki/{quote(page.redirect.replace(' ', '_'))}", 302)
        return _html(page, page.current)

    async def index_php(request: Request) -> Response:
        turn()
        wanted = request.query_params.get("oldid", "")
        for page in world.pages:
            for revision in page.revisions:
                if str(revision.revision_id) == wanted:
                    return _html(page, revision)
        text = f"<!DOCTYPE html><title>Missing</title><p>No revision {escape(wanted)}.</p>"
        return HTMLResponse(text, status_code=404)

    return [
        Route("/w/api.php", api_php, methods=["GET", "POST"]),
        Route("/w/index.php", index_php, methods=["GET"]),
        Route("/wiki/{title:path}", wiki_page, methods=["GET"]),
    ]
