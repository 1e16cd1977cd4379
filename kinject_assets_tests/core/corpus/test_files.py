import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kinject_assets.config import Files
from kinject_assets.core.corpus.files import read_files
from kinject_assets.core.errors import SourceError

NOW = datetime(2031, 5, 1, tzinfo=UTC)


def read(folder: Path, **settings):
    articles, exclusions = read_files(
        Files(kind="files", folder=Path("docs"), **settings), folder, NOW
    )
    return {a.url: a for a in articles}, {e.title: e.reason for e in exclusions}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    return tmp_path / "docs"


def pdf(text: str) -> bytes:
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    page[NameObject("/Resources")] = DictionaryObject(
        {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
    )
    stream = DecodedStreamObject()
    stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode() if text else b"")
    page[NameObject("/Contents")] = writer._add_object(stream)
    writer.add_metadata({"/Title": "A printed page"})
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_text_is_unwrapped_and_lists_are_kept(docs: Path):
    (docs / "deep" / "a.txt").write_text(
        "This line was wrapped by hand after sixty characters, a hyphen-\nated word too.\r\n"
        "- one\n- two\n\nNext paragraph."
    )
    articles, _ = read(docs.parent)
    article = articles["deep/a.txt"]
    assert (article.title, article.source, article.headings) == ("a", "files", [""])
    assert article.bodies == [
        "This line was wrapped by hand after sixty characters, a hyphenated word too.\n"
        "- one\n- two\n\nNext paragraph."
    ]
    assert (article.fetched_at, article.revised_at) == (NOW, None)


def test_markdown_headings_become_sections(docs: Path):
    (docs / "a.md").write_text(
        "---\nx: y\n---\n# Manual\n\nlead\n\n## First #\n*one*\n```\n# code\n```\n\n"
        "Under\n-----\ntwo"
    )
    articles, _ = read(docs.parent)
    article = articles["a.md"]
    assert article.title == "Manual"
    assert article.headings == ["", "First", "Under"]
    assert article.bodies == ["lead", "*one*\n```\n# code\n```", "two"]


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_html_is_read_in_its_encoding(docs: Path, encoding: str):
    html = (
        f"<html><head><meta charset={encoding}><title> T &amp; t</title><style>x</style></head>"
        "<body><p>Ä <b>b</b><script>evil()</script> c</p><!-- no --><h2>H <i>i</i></h2>"
        "<ul><li>d<li>e</ul><table><tr><td>f</td><td>g</td></tr></table></body></html>"
    )
    (docs / "a.html").write_bytes(html.encode(encoding))
    articles, _ = read(docs.parent)
    article = articles["a.html"]
    assert article.title == "T & t"
    assert article.headings == ["", "H i"]
    assert article.bodies == ["Ä b c", "d\ne\nf g"]


def test_pdf(docs: Path):
    (docs / "a.pdf").write_bytes(pdf("Abric led the Balan Accord."))
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7\nnonsense")
    (docs / "scan.pdf").write_bytes(pdf(""))
    articles, exclusions = read(docs.parent)
    assert articles["a.pdf"].title == "A printed page"
    assert articles["a.pdf"].bodies == ["Abric led the Balan Accord."]
    assert "not readable as PDF" in exclusions["broken.pdf"]
    assert "text recognition" in exclusions["scan.pdf"]


def test_jsonl_has_an_article_a_line(docs: Path):
    rows = [
        {"id": 7, "title": "Seven", "text": "x", "url": "http://u", "revised_at": "2030-01-02"},
        {"text": "y"},
        {"text": " "},
    ]
    (docs / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    articles, exclusions = read(docs.parent)
    assert articles["http://u"].title == "Seven"
    assert articles["http://u"].revised_at == datetime(2030, 1, 2, tzinfo=UTC)
    assert articles["a.jsonl"].title == "a line 3"
    assert exclusions == {"a.jsonl (line 5)": "empty"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": ', "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"title": "x"}', "no field `text`"),
        ('{"text": 3}', "`text` is not a string"),
        ('{"text": "x", "revised_at": "soon"}', "revised_at"),
        ('{"text": "x", "id": 1}', "line 1 too"),
    ],
)
def test_a_wrong_line_is_named(docs: Path, line: str, says: str):
    (docs / "a.jsonl").write_text('{"text": "x", "id": "1"}\n' + line)
    with pytest.raises(SourceError, match=says) as caught:
        read(docs.parent)
    assert "a.jsonl, line 2" in str(caught.value)


def test_identity_is_the_path_and_a_revision_is_the_text(docs: Path):
    path = docs / "a.txt"
    path.write_text("one")
    first = read(docs.parent)[0]["a.txt"]
    path.write_text("two")
    second = read(docs.parent)[0]["a.txt"]
    assert first.article_id == second.article_id
    assert first.revision_id != second.revision_id


def test_what_cannot_be_used_is_left_out_with_a_reason(docs: Path):
    (docs / "good.txt").write_text("good")
    (docs / "empty.txt").write_text(" \n")
    (docs / "latin.txt").write_bytes("é".encode("latin-1"))
    (docs / "binary.txt").write_bytes(b"a\0b")
    (docs / "odd.xyz").write_text("x")
    (docs.parent / "secret.txt").write_text("secret")
    os.symlink(docs.parent / "secret.txt", docs / "link.txt")
    articles, exclusions = read(docs.parent, patterns=("**/*",))
    assert list(articles) == ["good.txt"]
    for name, reason in {
        "empty.txt": "empty",
        "latin.txt": "UTF-8",
        "binary.txt": "binary",
        "odd.xyz": "unknown type",
        "link.txt": "leads out",
    }.items():
        assert reason in exclusions[name]


def test_nothing_found_names_folder_and_patterns(docs: Path, tmp_path: Path):
    with pytest.raises(SourceError, match=r"docs.*\*\.txt"):
        read(docs.parent, patterns=("*.txt",))
    with pytest.raises(SourceError, match="no such folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "out.txt").write_text("x")
    with pytest.raises(SourceError, match="leaves the folder"):
        read(docs.parent, patterns=("../*.txt",))
