"""How large corpora are said to be, and from which source."""

import bz2
import json
import os
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kinject_assets.config import Chunking, Cleaning, load_profile
from kinject_assets.core.corpus.articles import make_article
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.cleaning import clean
from kinject_assets.core.estimate import corpora
from kinject_assets.core.estimate.assumptions import Assumed
from kinject_assets.core.estimate.corpora import Figure, Material, listed, measure, value
from kinject_assets.core.plan import Plan
from kinject_assets.core.schema import Article, Question
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.estimate.conftest import (
    ProfileOf,
    chunks_of,
    make_text,
    publish,
    question,
    write_documents,
)

REPOSITORY = Path(__file__).parents[3]


def look(profile, store: Store, within: float = 10.0, **pages: list[tuple[str, int]]) -> Material:
    return measure(Plan(profile, store), Assumed(), within=within, pages=pages)["docs"]


def test_documents_are_counted_as_a_run_will_cut_them(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    articles, chunks = chunks_of(profile)
    found = look(profile, store)
    assert found.size.articles == Figure(len(articles), "read")
    assert found.size.chunks == Figure(len(chunks), "read")
    assert found.size.askable.value == sum(not chunk.small for chunk in chunks)
    assert found.size.tokens.value == sum(chunk.n_tokens for chunk in chunks)
    assert found.ids == {chunk.chunk_id for chunk in chunks}
    assert not store.root.exists(), "looking leaves nothing behind"


def test_without_time_some_documents_stand_for_all(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    write_documents(profile.folder / "docs" / "more", count=200)
    whole = look(profile, store).size
    # So short that not all can be read, and long enough for one as large as these.
    part = look(profile, store, within=0.002)
    assert part.size.chunks.source == "read"
    assert "of 206 documents were cut" in part.size.note
    assert part.ids is None, "what was not read has no ids"
    assert part.size.articles == whole.articles
    for name in ("chunks", "tokens", "characters"):
        said, true = (value(getattr(size, name)) for size in (part.size, whole))
        assert said == pytest.approx(true, rel=0.1), name


def test_documents_too_large_to_read_go_by_their_sizes(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    whole = look(profile, store).size
    found = look(profile, store, within=1e-6).size
    assert found.chunks.source == "listed"
    assert "by the files' sizes" in found.note
    assert value(found.characters) == pytest.approx(value(whole.characters), rel=0.05)
    assert value(found.chunks) == pytest.approx(value(whole.chunks), rel=0.25)


def test_what_is_made_is_counted_there(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of()
    _, chunks = make_text(profile, store)
    for document in (profile.folder / "docs").glob("*.txt"):
        document.unlink()
    found = look(profile, store)
    assert found.size.chunks == Figure(len(chunks), "made")
    rows = [question(n, "shots" if n == 0 else "test", chunks[n].chunk_id) for n in range(5)]
    rows.append(question(9, "test", chunks[0].chunk_id, retired=True))
    publish(profile, store, Cell("questions", ("docs",)), rows, Question)
    found = look(profile, store)
    assert found.size.test == Figure(4, "made")
    assert found.size.shots == Figure(1, "made")
    assert (found.stem, found.option) == (len(rows[0].stem), 4)


def test_other_settings_cut_the_made_articles_anew(profile_of: ProfileOf, store: Store) -> None:
    _, before = make_text(profile_of(), store)
    changed = profile_of(chunking={"max_tokens": 30, "min_tokens": 5})
    found = look(changed, store).size
    assert found.articles.source == "made"
    anew = chunks_of(changed)[1]
    assert found.chunks == Figure(len(anew), "read")
    assert len(anew) > len(before)


def test_a_tokenizer_is_not_loaded_for_an_estimate(profile_of: ProfileOf, store: Store) -> None:
    profile = profile_of(
        chunking={"tokenizer": "nobody/has-it", "max_tokens": 60, "min_tokens": 20}
    )
    found = look(profile, store).size
    assert "the tokenizer was not loaded" in found.note
    assert value(found.tokens) == pytest.approx(value(found.characters) / 4, rel=0.02)


def test_the_papers_window_gives_the_studys_questions(tmp_path: Path) -> None:
    profile = load_profile("paper")
    found = measure(Plan(profile, Store(tmp_path)), Assumed(), within=0.1)
    events = found["events-2023-11"].size
    assert events.arithmetic == "4 months x 120 chunks x 2 x 0.95 = 912"
    assert events.test == Figure(912, "computed")
    assert abs(value(events.test) - 910) <= 5
    exams = {name: found[name].size.test for name in profile.corpora if name != "events-2023-11"}
    assert [figure.value for figure in exams.values()] == [135, 152, 144, 100, 324]
    assert {figure.source for figure in exams.values()} == {"known"}
    assert found["anatomy"].size.chunks.source == "expected"


def test_what_nobody_knows_is_said_with_its_mend(profile_of: ProfileOf, store: Store) -> None:
    wiki = {
        "contact": "me@localhost",
        "corpora": {"docs": {"source": {"kind": "wiki", "categories": ["Mills"]}}},
    }
    size = look(profile_of(**wiki), store).size
    assert size.chunks == Figure(None, "unknown")
    assert "Set corpora.docs.expected_chunks" in size.note
    assert "kinject plan --list" in size.note
    missing = {"docs": {"source": {"kind": "files", "folder": "nowhere"}}}
    size = look(profile_of(corpora=missing), store).size
    assert "nowhere: no such folder" in size.note
    assert size.chunks.value is None


def test_a_frozen_list_tells_its_articles(profile_of: ProfileOf, store: Store) -> None:
    lines = [{"page_id": n, "revision_id": n, "title": f"P{n}"} for n in range(1, 8)]
    profile = profile_of(
        contact="me@localhost",
        corpora={
            "docs": {
                "source": {"kind": "wiki", "frozen": "frozen.jsonl"},
                "expected_chunks": 70,
            }
        },
    )
    (profile.folder / "frozen.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    size = look(profile, store).size
    assert size.articles == Figure(7, "listed")
    assert size.chunks == Figure(70, "expected")


def test_an_exam_in_a_folder_is_counted(profile_of: ProfileOf, store: Store) -> None:
    source = {"kind": "files", "folder": "docs"}
    exam = {"kind": "mmlu", "subject": "milling", "folder": "exam"}
    profile = profile_of(corpora={"docs": {"source": source, "exam": exam}})
    assert "Set exam.folder" not in look(profile, store).size.note
    (profile.folder / "exam").mkdir()
    row = '"What is a mill?",A1,B2,C3,D4,A\n'
    (profile.folder / "exam" / "milling_test.csv").write_text(row * 3)
    (profile.folder / "exam" / "milling_dev.csv").write_text(row * 2)
    found = look(profile, store)
    assert found.size.test == Figure(3, "read")
    assert found.size.shots == Figure(2, "read")
    assert (found.stem, found.option) == (15, 2)
    away = profile_of(corpora={"docs": {"source": source, "exam": {**exam, "folder": None}}})
    size = look(away, store).size
    assert size.test.value is None
    assert "Set exam.folder to count the questions of milling" in size.note


@pytest.fixture(scope="module")
def real_pages() -> dict[str, str]:
    """Title -> wikitext of real articles."""
    folder = Path(os.environ.get("KINJECT_REALDATA") or REPOSITORY.parent / "shared" / "realdata")
    dump = folder / "wikipedia" / "enwiki-2021-minidump.xml.bz2"
    if not dump.is_file():
        pytest.skip(f"no real articles: {dump} is absent (KINJECT_REALDATA names its folder)")
    root = ET.fromstring(bz2.decompress(dump.read_bytes()))
    tag = root.tag.partition("}")[0] + "}"
    return {
        page.findtext(f"{tag}title") or "": page.findtext(f"{tag}revision/{tag}text") or ""
        for page in root.iter(f"{tag}page")
        if page.find(f"{tag}redirect") is None
    }


@pytest.fixture(scope="module")
def real_articles(real_pages: dict[str, str]) -> list[Article]:
    """The same, cleaned."""
    return [
        make_article(
            sections,
            article_id=title,
            revision_id="1",
            source="x",
            title=title,
            revised_at=None,
            fetched_at=datetime.now(UTC),
            url="",
            licence="",
        )
        for title, text in real_pages.items()
        if (sections := clean(text, Cleaning()))
    ]


@pytest.mark.parametrize("tokens", [128, 256, 512])
def test_lengths_of_real_pages_tell_the_size_of_their_corpus(
    real_pages: dict[str, str], real_articles: list[Article], tokens: int
) -> None:
    """Some constants were measured on these very articles: this holds them to it."""
    settings = Chunking(max_tokens=tokens, min_tokens=40)
    chunks = chunk_articles(real_articles, settings, token_counter("words"))
    pages = [(title, len(text.encode())) for title, text in real_pages.items()]
    found = listed(pages, settings, Assumed())
    assert found.articles == Figure(len(pages), "listed")
    assert found.chunks.value == pytest.approx(len(chunks), rel=0.2)
    assert found.askable.value == pytest.approx(sum(not c.small for c in chunks), rel=0.2)
    assert found.tokens.value == pytest.approx(sum(c.n_tokens for c in chunks), rel=0.2)


def test_samples_are_spread_evenly() -> None:
    rows = list(range(10 * corpora.SAMPLE + 3))
    some = corpora._spread(rows)
    assert len(some) <= corpora.SAMPLE
    assert some[0] == 0
    assert some[-1] > 9 * corpora.SAMPLE
