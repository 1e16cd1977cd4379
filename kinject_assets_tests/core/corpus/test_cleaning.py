import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject_assets.config import Cleaning
from kinject_assets.core.corpus.cleaning import clean

PLAIN = Cleaning()
MARKS = ("[[", "]]", "{{", "}}", "<ref", "{|", "'''")


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''A''' ''b'' [[c]] [[d|e]] [http://x.y f] [http://x.y]", "A b c e f"),
        ("a{{cite|b [[c]] {{d}}}}<ref>e [[f]]</ref><ref name=g/>.<!-- h -->", "a."),
        ("[[File:x.jpg|thumb|A [[b]] ''c'']]d[[Category:e]][[de:F]][[:Category:g]]", "dCategory:g"),
        ("<gallery>\nFile:a.jpg|b\n</gallery>c <math>x^{{2}}</math>", "c x^{ {2} }"),
        ("{| class=x\n! a\n|-\n| {{b}} || c\n|}\nd", "d"),
        ("* a\n* b\n** c\n# d\n: e", "a\nb\nc\nd\ne"),
        ("a&nbsp;b &amp; &lt;c&gt; &eacute;", "a b & <c> é"),
        ("a <nowiki>''b''</nowiki> <br/> c<small>d</small>", "a b\ncd"),
        ("{{lang|la|albus}} ( {{x}}) {{convert|5|km|mi}} __NOTOC__", "albus 5 km"),
        ("a<span style='display: none'>b</span> [[x", "a x"),
        ("a {{b <ref>c '''d {| e ]] }}", "a b c d e"),
        ("", ""),
    ],
)
def test_markup_becomes_text(wikitext, text):
    assert "\n".join(body for _, body in clean(wikitext, PLAIN)) == text


def test_sections_without_prose_go_with_all_below_them():
    wikitext = (
        "lead\n== ''History'' ==\na\n=== Early ===\nb\n== see also ==\nc\n=== More ===\nd\n"
        "== Use ==\n{{x}}\n=== Now ===\ne\n== References ==\n<references/>"
    )
    assert clean(wikitext, PLAIN) == [
        ("", "lead"),
        ("History", "a"),
        ("Early", "b"),
        ("Now", "e"),
    ]


def test_tables_and_infoboxes_are_kept_on_request():
    wikitext = "{{Infobox river\n| length_km = [[5]]\n| x =\n}}\n{|\n! a !! b\n|-\n| c || {{d}}\n|}"
    assert clean(wikitext, PLAIN) == []
    assert clean(wikitext, Cleaning(keep_tables=True)) == [("", "length km: 5\n\na | b\nc")]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "[[",
                "]]",
                "{{",
                "}}",
                "'''",
                "''",
                "{|",
                "|}",
                "|-",
                "|",
                "<ref>",
                "</ref>",
                "<ref",
                "\n",
                "==",
                " ",
                "a",
                "B.",
                "&lt;",
                "&#91;",
                "<!--",
                "-->",
                "<nowiki>",
                "</nowiki>",
            ]
        ),
        max_size=25,
    ).map("".join)
)
def test_no_markup_is_left_however_broken(wikitext):
    text = "\n".join(body for _, body in clean(wikitext, PLAIN))
    assert not [mark for mark in MARKS if mark in text]
