"""Lengths of pages from a wiki: asked for once, without a page, and kept."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinject_assets.config import Profile, Wiki, WikiPages, load_profile
from kinject_assets.core.estimate import estimate, listing
from kinject_assets.core.estimate.listing import LISTING, list_wikis, listed_pages
from kinject_assets.core.estimate.spent import read_spent
from kinject_assets.core.store import Store
from kinject_assets.lab.server import running


@pytest.fixture(scope="module")
def lab() -> Profile:
    """The lab's profile."""
    return load_profile("lab")


@pytest.fixture(scope="module")
def wikis(lab: Profile) -> Iterator[dict[str, Wiki]]:
    """Its wiki, served."""
    assert lab.lab is not None
    with running(lab.lab) as url:
        yield {"lab": lab.wikis["lab"].model_copy(update={"api_url": f"{url}/w/api.php"})}


def test_the_labs_pages_are_listed_and_none_is_fetched(
    lab: Profile, wikis: dict[str, Wiki], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[listing.WikiClient] = []

    class Noted(listing.WikiClient):
        def __enter__(self) -> listing.WikiClient:
            clients.append(self)
            return super().__enter__()

    monkeypatch.setattr(listing, "WikiClient", Noted)
    store = Store(tmp_path / "lab")
    list_wikis(lab, store, wikis)
    assert sum(client.bodies for client in clients) == 0
    assert 0 < sum(client.requests for client in clients) < 40
    found = listed_pages(lab, store)
    assert {corpus: len(pages) for corpus, pages in found.items()} == {
        "rivers": 41,
        "guilds": 40,
        "comets": 40,
        "events-2031-04": 120,
        "events-current": 60,
    }
    sizes = {size.corpus: size for size in estimate(lab, store, read_spent(store)[0]).corpora}
    assert sizes["events-2031-04"].chunks.source == "listed"
    assert sizes["events-2031-04"].chunks.value == 120


def test_a_listing_is_of_its_settings(lab: Profile, wikis: dict[str, Wiki], tmp_path: Path) -> None:
    store = Store(tmp_path / "lab")
    list_wikis(lab, store, wikis)
    source = lab.corpora["rivers"].source.model_copy(update={"depth": 3})
    rivers = lab.corpora["rivers"].model_copy(update={"source": source})
    changed = lab.model_copy(update={"corpora": {**lab.corpora, "rivers": rivers}})
    assert set(listed_pages(lab, store)) - set(listed_pages(changed, store)) == {"rivers"}


@pytest.mark.parametrize("content", ["", "[1]", '{"rivers": 1}', '{"rivers": {"pages": 3}}'])
def test_a_damaged_listing_is_none(lab: Profile, tmp_path: Path, content: str) -> None:
    (tmp_path / LISTING).write_text(content)
    assert listed_pages(lab, Store(tmp_path)) == {}


def test_a_damaged_part_spoils_no_other(
    lab: Profile, wikis: dict[str, Wiki], tmp_path: Path
) -> None:
    store = Store(tmp_path / "lab")
    list_wikis(lab, store, wikis)
    kept = json.loads((store.root / LISTING).read_text())
    kept["rivers"]["pages"] = ["not a page"]
    (store.root / LISTING).write_text(json.dumps(kept))
    assert set(kept) - set(listed_pages(lab, store)) == {"rivers"}


def test_a_real_wiki_tells_the_lengths_of_its_articles(
    lab: Profile, real_wiki: str, tmp_path: Path
) -> None:
    titles = ("Albedo", "Blank page", "Food (disambiguation)", "No such page at all")
    source = WikiPages(kind="wiki", wiki="lab", titles=titles)
    rivers = lab.corpora["rivers"].model_copy(update={"source": source})
    cells = lab.grid[0].model_copy(update={"corpora": ("rivers",)})
    profile = lab.model_copy(update={"corpora": {"rivers": rivers}, "grid": (cells,)})
    store = Store(tmp_path / "lab")
    list_wikis(profile, store, {"lab": Wiki(api_url=real_wiki)})
    ((title, length),) = listed_pages(profile, store)["rivers"]
    assert title == "Albedo"
    assert length > 1000
