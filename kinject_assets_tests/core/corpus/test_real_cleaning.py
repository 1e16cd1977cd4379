"""Cleaning measured on real articles, with a real MediaWiki as the oracle of what a page says.

The oracle is MediaWiki's own parser: a page's wikitext goes through `action=parse`, and the HTML
becomes text as the extension TextExtracts makes it (which a test here compares). The machine holds
no templates of Wikipedia, so the oracle is corrected, in these ways and no others:

- A template call is a hole: something may stand there or nothing, up to `HOLE_LENGTH` signs, with
  the brackets and commas around it. Calls in `TRUE_STUBS` print what Wikipedia prints and stay.
- Formulas and timelines are holes: the extensions that draw them are not there.
- What it prints of pictures that are not there is left out.
- Sections that the profile drops are dropped.
- Blanks, quotation marks, dashes and superscripts are compared by their meaning, not their form.
"""

import bz2
import functools
import json
import os
import re
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import lxml.html
import mwparserfromhell
import pytest
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode

from kinject_assets.config import Chunking, Cleaning
from kinject_assets.core.corpus.articles import Section, make_article
from kinject_assets.core.corpus.chunking import chunk_articles, sentences, token_counter
from kinject_assets.core.corpus.cleaning import clean
from kinject_assets_tests.conftest import REPOSITORY

DEFAULT = Cleaning()
EVERYTHING = Cleaning(keep_tables=True, keep_references=True, keep_templates=True, drop_sections=())

LEFTOVER = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|^\s*[|!]|''|==|&(?:[a-z]+|#\w+);|</?(?!http)[a-z][^<>\n]*>|<ref"
    r"|\bthumb\||__[A-Z]+__|\b(?:File|Image|Datei|Fichier):|\N{WORD JOINER}|#REDIRECT",
    re.MULTILINE,
)
"""Anything that looks like markup; the articles hold nothing that looks so and is none."""

HOLE = "\N{LATIN EPIGRAPHIC LETTER REVERSED F}"
HOLE_LENGTH = 400
HEADING = "§"
SAME = str.maketrans("“”„«»‘’–—−‑⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", '"""""\'\'----0123456789+-()ni')
TRUE_STUBS = {"lang", "nowrap", "quote", "'", "=", "flag"}

REMOVED = "|".join(
    [
        *("//table", "//script", "//input", "//style", "//div[not(@class='mw-parser-output')]"),
        *(
            f"//{tag}[contains(concat(' ', normalize-space(@class), ' '), ' {name} ')]"
            for tag, name in (
                *(("ul", "gallery"), ("sup", "reference"), ("ol", "references")),
                *(("*", name) for name in ("mw-editsection", "error", "nomobile", "noprint")),
                *(("*", "noexcerpt"), ("*", "sortkey")),
            )
        ),
    ]
)
"""What TextExtracts leaves out, by its setting `ExtractsRemoveClasses`."""

MISSING_PICTURES = "//a[starts-with(@title, 'File:')]"
LINES = "//p|//blockquote|//li|//dd|//dt|//pre"


@dataclass(frozen=True)
class Source:
    """A page and its wikitext."""

    title: str
    wikitext: str


def asked(api: str, **params: str | int) -> dict:
    query = {"format": "json", "formatversion": 2, **params}
    data = urllib.parse.urlencode(query).encode()
    for wait in (1, 2, 4, 8, 0):
        try:
            with urllib.request.urlopen(api, data, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # Another test may have switched the wiki's faults on.
            if error.code not in {429, 500, 503} or not wait:
                raise
            time.sleep(wait)
    raise AssertionError("not reached")


@pytest.fixture(scope="module")
def dump() -> list[Source]:
    """The articles of the XML dump, without redirects and categories."""
    folder = Path(os.environ.get("KINJECT_REALDATA") or REPOSITORY.parent / "shared" / "realdata")
    path = folder / "wikipedia" / "enwiki-2021-minidump.xml.bz2"
    if not path.is_file():
        pytest.skip(f"no XML dump: {path} is absent (KINJECT_REALDATA names its folder)")
    found: list[Source] = []
    with bz2.open(path) as file:
        for _, element in ElementTree.iterparse(file):
            namespace, _, name = element.tag.rpartition("}")
            if name != "page":
                continue
            inside = namespace + "}" if namespace else ""
            text = element.findtext(f"{inside}revision/{inside}text")
            redirect = element.find(f"{inside}redirect") is not None
            if element.findtext(f"{inside}ns") == "0" and text and not redirect:
                found.append(Source(element.findtext(f"{inside}title") or "", text))
            element.clear()
    return found


@pytest.fixture(scope="module")
def pages(real_wiki: str) -> list[Source]:
    """All articles of the real MediaWiki."""
    found: list[Source] = []
    following: dict[str, str] | None = {}
    while following is not None:
        answer = asked(
            real_wiki,
            action="query",
            generator="allpages",
            gapfilterredir="nonredirects",
            gaplimit=50,
            prop="revisions",
            rvprop="content",
            rvslots="main",
            **following,
        )
        for page in answer["query"]["pages"]:
            revision = page["revisions"][0]
            found.append(Source(page["title"], revision["slots"]["main"]["content"]))
        following = answer.get("continue")
    return found


def hole(node: object) -> bool:
    """Whether the oracle cannot know what a part of a page shows."""
    if isinstance(node, nodes.Template):
        return " ".join(str(node.name).split()).lower() not in TRUE_STUBS
    return isinstance(node, nodes.Tag) and str(node.tag).lower() in {"math", "timeline"}


def put_holes(code: Wikicode) -> None:
    for at, node in enumerate(code.nodes):
        if hole(node):
            code.nodes[at] = nodes.Text(HOLE)
            continue
        for part in ("title", "text", "contents"):
            inner = getattr(node, part, None)
            if isinstance(inner, Wikicode):
                put_holes(inner)


@functools.cache
def with_holes(wikitext: str) -> str:
    code = mwparserfromhell.parse(wikitext, skip_style_tags=True)
    put_holes(code)
    return str(code)


def shown_lines(html: str, dropped: frozenset[str] = frozenset()) -> list[str]:
    """Lines of a page as readers see them, as TextExtracts makes them, without headings."""
    if not html.strip():
        return []
    tree = lxml.html.fromstring(html)
    for element in tree.xpath(f"{REMOVED}|{MISSING_PICTURES}"):
        element.drop_tree()
    for element in tree.xpath("//br"):
        element.tail = "\n" + (element.tail or "")
    for element in tree.xpath(LINES):
        element.text, element.tail = f"\n{element.text or ''}", f"\n{element.tail or ''}"
    for level in range(1, 7):
        for heading in tree.xpath(f"//h{level}"):
            title = " ".join(heading.text_content().split())
            heading[:] = []
            heading.text = f"\n{HEADING}{level}{title}\n"
    lines: list[str] = []
    dropping = 7
    for line in map(str.strip, tree.text_content().splitlines()):
        if line.startswith(HEADING):
            level, title = int(line[1]), line[2:]
            if level <= dropping:
                dropping = level if title.casefold() in dropped else 7
        elif line and dropping == 7:
            lines.append(line)
    return lines


def oracle(api: str, source: Source) -> list[str]:
    """Lines of a page as the wiki shows them, with holes, without dropped sections."""
    answer = asked(
        api,
        action="parse",
        title=source.title,
        text=with_holes(source.wikitext),
        contentmodel="wikitext",
        prop="text",
        disablelimitreport=1,
        disableeditsection=1,
        disabletoc=1,
    )
    dropped = frozenset(name.casefold() for name in DEFAULT.drop_sections)
    return shown_lines(answer["parse"]["text"], dropped)


def alike(text: str) -> str:
    """A text without what two texts of one meaning may differ in."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub("[\u00ad\u200b\u200e\u200f\u2060\ufeff]", "", text)
    text = text.translate(SAME)
    text = text.replace("[[", "")  # Half a link: MediaWiki shows it, the cleaner takes it out.
    return re.sub(r" ([.,;:)])|(\() ", r"\1\2", " ".join(text.split()))


def oracle_sentences(lines: list[str]) -> Iterator[str]:
    for line in lines:
        # A footnote's hole stands between a full stop and the blank after it.
        opened = re.sub(rf"([.!?…][\"'”’»)\]]*)({HOLE}+)(?=\s|$)", r"\1 \2", line)
        for sentence in sentences(opened):
            if any(map(str.isalnum, sentence.replace(HOLE, ""))):
                yield sentence


def is_kept(sentence: str, text: str) -> bool:
    """Whether a text holds a sentence of the oracle; both as `alike` makes them."""
    around = re.sub(rf"\s*\(?[\s;,]*{HOLE}[\s;,{HOLE}]*\)?", HOLE, sentence).strip(HOLE)
    if HOLE not in around:
        return around.strip() in text
    parts = [re.escape(part.strip()) for part in around.split(HOLE)]
    return re.search(f".{{0,{HOLE_LENGTH}}}?".join(parts), text) is not None


@functools.cache
def cleaned_once(wikitext: str, settings: str) -> list[Section]:
    return clean(wikitext, Cleaning.model_validate_json(settings))


def cleaned(source: Source, settings: Cleaning) -> list[Section]:
    return cleaned_once(source.wikitext, settings.model_dump_json())


def chunk_texts(source: Source, settings: Cleaning) -> list[str]:
    """Headings and texts of the chunks of an article."""
    article = make_article(
        cleaned(source, settings),
        article_id="a",
        revision_id="1",
        source="s",
        title=source.title,
        revised_at=None,
        fetched_at=datetime(2031, 1, 1, tzinfo=UTC),
        url="u",
        licence="l",
    )
    chunks = chunk_articles([article], Chunking(), token_counter("words"))
    return [f"{chunk.section}\n{chunk.text}" for chunk in chunks]


def leftovers(sources: list[Source], settings: Cleaning) -> list[str]:
    return [
        f"{source.title}: {text[max(0, match.start() - 40) : match.end() + 40]!r}"
        for source in sources
        for text in chunk_texts(source, settings)
        for match in LEFTOVER.finditer(text)
    ]


def n_chars(sources: list[Source], settings: Cleaning) -> int:
    return sum(len(body) for source in sources for _, body in cleaned(source, settings))


def report(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n{line}")


@pytest.mark.parametrize("settings", [DEFAULT, EVERYTHING], ids=["default", "everything"])
def test_no_markup_is_left_in_the_articles_of_the_dump(dump: list[Source], settings: Cleaning):
    assert len(dump) == 24
    assert leftovers(dump, settings) == []


@pytest.mark.parametrize("settings", [DEFAULT, EVERYTHING], ids=["default", "everything"])
def test_no_markup_is_left_in_the_pages_of_a_wiki(pages: list[Source], settings: Cleaning):
    assert len(pages) >= 30
    assert leftovers(pages, settings) == []


@pytest.mark.parametrize("what", ["keep_tables", "keep_references", "keep_templates"])
def test_each_setting_keeps_more(dump: list[Source], what: str, capsys: pytest.CaptureFixture[str]):
    before = n_chars(dump, DEFAULT)
    after = n_chars(dump, DEFAULT.model_copy(update={what: True}))
    report(capsys, f"{what}: {after:,} characters instead of {before:,}")
    assert after > before * 1.01


def test_the_oracle_reads_pages_as_the_wikis_own_extracts(real_wiki: str, pages: list[Source]):
    lost: list[str] = []
    n = 0
    for source in pages:
        extract = asked(
            real_wiki, action="query", prop="extracts", explaintext=1, titles=source.title
        )["query"]["pages"][0]["extract"]
        html = asked(real_wiki, action="parse", page=source.title, prop="text")["parse"]["text"]
        text = "".join(alike(" ".join(shown_lines(html))).split())
        for line in extract.splitlines():
            for sentence in [] if line.startswith("==") else sentences(line):
                n += 1
                if "".join(alike(sentence).split()) not in text:
                    lost.append(f"{source.title}: {sentence}")
    assert n > 5000
    # Captions of pictures that are not there, the one thing that this test leaves out beyond them.
    assert len(lost) <= 3, lost


@pytest.mark.parametrize("where", ["dump", "pages"])
def test_sentences_are_kept_and_none_is_added(
    real_wiki: str,
    where: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
):
    sources: list[Source] = request.getfixturevalue(where)
    n_shown = n_said = n_holes = 0
    lost: list[str] = []
    added: list[str] = []
    for source in sources:
        lines = oracle(real_wiki, source)
        text = alike("\n".join(body for _, body in cleaned(source, DEFAULT)))
        for sentence in oracle_sentences(lines):
            n_shown += 1
            n_holes += HOLE in sentence
            if not is_kept(alike(sentence), text):
                lost.append(f"{source.title}: {sentence}")
        shown = "".join(alike(" ".join(lines)).replace(HOLE, "").split())
        for _, body in clean(with_holes(source.wikitext), DEFAULT):
            for line in body.splitlines():
                for sentence in sentences(line):
                    n_said += 1
                    if "".join(alike(sentence).replace(HOLE, "").split()) not in shown:
                        added.append(f"{source.title}: {sentence}")
    kept = 1 - len(lost) / n_shown
    report(
        capsys,
        f"{where}: {len(sources)} articles, {n_shown:,} sentences, {kept:.2%} kept "
        f"({n_holes:,} with holes, {len(lost)} lost); {n_said:,} sentences said, "
        f"{len(added)} of them not shown by the wiki",
    )
    assert kept >= 0.99, lost
    assert len(added) <= 0.005 * n_said, added
