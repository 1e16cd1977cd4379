"""Cards show the words of strangers letter by letter."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kinject_assets.core.export.cards import (
    code,
    escaped,
    front_matter,
    licence_fields,
    link,
    table,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/a.png)",
    "https://evil.example and www.evil.example",
    "a | b | c",
    "**bold** _it_ `code` ~~s~~ # h",
    "line\n\n# heading\n- item",
    "&lt;b&gt; &#60;",
    "\\[x](y)",
    "@everyone",
)


def shown(markdown: str) -> tuple[str, list[str]]:
    """Text of a rendered line, and the kinds of marks in it."""
    # Addresses become links by these marks, where a reader of Markdown makes them so.
    assert "://" not in markdown
    assert "www." not in markdown
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(f"| a |\n| --- |\n| {markdown} |")
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 2, "the text left its cell"
    inside = cells[1].children or []
    return "".join(token.content for token in inside), [token.type for token in inside]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_stay_words(text: str) -> None:
    found, kinds = shown(escaped(text))
    assert set(kinds) <= {"text", "text_special"}
    assert found == " ".join(text.split())


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40))
def test_any_words_stay_words(text: str) -> None:
    found, kinds = shown(f"x{escaped(text)}x")
    assert set(kinds) <= {"text", "text_special"}
    assert found == f"x{' '.join(text.split())}x"


def test_control_characters_and_turned_text_are_left_out() -> None:
    assert escaped("a\x1b[31mb\u202ecod\u2066") == "a\\[31mbcod"


def test_only_addresses_of_the_web_are_links() -> None:
    assert link("Ex (a)", "https://e.org/w/index.php?oldid=1&x=(2)|3") == (
        "[Ex \\(a\\)](https://e.org/w/index.php?oldid=1&x=%282%29%7C3)"
    )
    for url in ("javascript:alert(1)", "data:text/html,x", "notes/a.txt", "http://[broken"):
        assert link("title", url) == "title"


def test_code_cannot_end_itself() -> None:
    assert code("a`b\nc") == "`a'b c`"


def test_front_matter_is_read_back_whatever_is_in_it() -> None:
    fields = {"a": "x: y\n---\n# b", "b": ["- c"], "c": None, "d": "", "e": "é"}
    text = front_matter(fields)
    assert text.startswith("---\n")
    assert text.endswith("---\n")
    read = yaml.safe_load(text.removeprefix("---\n").removesuffix("---\n"))
    assert read == {"a": "x: y\n---\n# b", "b": ["- c"], "e": "é"}


def test_licences_are_named_as_the_hub_does() -> None:
    assert licence_fields(["CC BY-SA 4.0"] * 2) == {"license": "cc-by-sa-4.0"}
    assert licence_fields(["CC0", "own"]) == {"license": "other", "license_name": "CC0; own"}
    assert licence_fields([])["license_name"] == "not stated"


def test_a_table() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
