import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject_assets.config import Cleaning
from kinject_assets.core.corpus.cleaning import clean

PLAIN = Cleaning()
EVERYTHING = Cleaning(keep_tables=True, keep_references=True, keep_templates=True, drop_sections=())
MARKS = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|<ref|\{\||\|\}|''|&nbsp;|^\s*[|!]|^==|==$"
    r"|[\x00\ud800-\udfff\N{WORD JOINER}\N{OBJECT REPLACEMENT CHARACTER}]",
    re.MULTILINE,
)


def text_of(wikitext: str, settings: Cleaning = PLAIN) -> str:
    return "\n".join(body for _, body in clean(wikitext, settings))


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
        # Apostrophes, as MediaWiki tells them from marks of italics.
        ("l'''idée''", "l'idée"),
        ("the ''Brady Bunch Kids''' song", "the Brady Bunch Kids' song"),
        ("''Eagle''{{'}}s and ''Eagle''{{'}}s", "Eagle's and Eagle's"),
        ("''θ''<sub>''i''</sub> ''''a''''", "θi 'a'"),
        # A mark without its twin hides nothing after it.
        ("{{x|<small>a''</small>\n|b={{y}}}}c [[d|e]]", "c e"),
        ("10<sup>24</sup> km<sup>2</sup>, Na<sup>+</sup>, 19<sup>th</sup>", "10²⁴ km², Na⁺, 19th"),
        ("<math>|x| = f''(x)</math>", "{}|x| = f' '(x)"),
        ("a (<!-- x -->{{IPA|b}}; {{x}}) c ({{x}}, d) e ({{x}} f, {{x}})", "a c (d) e (f)"),
        ("a ({{age|1969|7|20}} years ago), b", "a, b"),
        ("[[File:x.jpg|thumb|a [[b]] c\nd", "a b c\nd"),
        ("[[a{{!}}b]] [[c d]] [[:de:e]]", "b c d de:e"),
        ("a\x00b\ud800c&#55296;", "abc"),
        ("<nowiki><br></nowiki> x == y", "<br> x == y"),
    ],
)
def test_markup_becomes_text(wikitext, text):
    assert text_of(wikitext) == text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{convert|5|-|10|km|mi|abbr=on}}", "5–10 km"),
        ("{{convert|6|ft|2|in|m|1}}", "6 ft 2 in"),
        ("{{Cvt|21.6|e6km2|sqmi}} {{convert|2|C}}", "21.6 million km² 2 °C"),
        ("{{convert|100|km|mi|-1}} {{convert|3|x|4|m}}", "100 km 3 × 4 m"),
        ("{{frac|2}} {{frac|1|2}} {{sfrac|8|1|2}}", "1/2 1/2 8 1/2"),
        ("{{val|1.00794|(7)}} {{val|5.98|0.2|e=24|u=kg}}", "1.00794(7) 5.98±0.2×10²⁴ kg"),
        ("{{As of|2012|June}} {{as of|2014|03|1|lc=y}}", "As of June 2012 as of 1 March 2014"),
        ("{{circa|1066}} {{circa|1066|1080}} {{née|'''K'''}}", "c. 1066 c. 1066 – c. 1080 née K"),
        ("{{birth date|1788|2|22|df=y}}", "22 February 1788"),
        ("{{lang-de|Haus}} {{langx|ko|삼성}} {{lang-xyz|a}}", "German: Haus Korean: 삼성 a"),
        ("{{transl|ar|b}} {{transliteration|ru|ISO|c}} {{linktext|三|星}}", "b c 三星"),
        (
            "{{nihongo|A|呪|J|extra=e}} {{nihongo||東|T}} {{nihongo3|A|呪|J}}",
            "A (呪, J, e) T (東) J (呪, A)",
        ),
        ("{{zh|c=中|p=zhōng}} {{zh|labels=no|c=中|l=m}}", "Chinese: 中; pinyin: zhōng 中; m"),
        ("1990{{ndash}}91{{snd}}a{{mdash}}b{{nbsp}}c", "1990–91 – a—b c"),
        ("{{US$|15 million|link=yes}} {{currency|2|KRW}} {{£|3}}", "US$15 million ₩2 £3"),
        ("promoted {{sic}} {{sic|moder|ate}} {{sic|x|hide=y}}", "promoted [sic] moderate [sic] x"),
        ("{{Coord|13|19|N|169|9|W|type:event}} {{coord|-1.5|2}}", "13°19′N 169°9′W 1.5°S 2°E"),
        ("{{coord|1|N|2|E|display=title}}a", "a"),
        ("a\n{{Quote|text=b|author=c|source=d}}\ne", "a\n\nb\n— c, d\n\ne"),
        ("{{plainlist|\n* a\n* b\n}}{{hlist|c|d}}", "a\nbc, d"),
        ("{{columns-list|3|\n* a\n* b}}", "a\nb"),
        ("{{ill|A|de|lt=b}} {{abbr|c|d}} {{Template:nowrap|e}} {{subst:small|f}}", "b c e f"),
        (
            "{{USS|Hornet|CV-12|6}} {{sclass|Nimitz|carrier}}",
            "USS Hornet (CV-12) Nimitz-class carrier",
        ),
        ("{{chem|CH|3|COO|−}} {{SimpleNuclide2|lithium|7}}", "CH3COO− lithium-7"),
        ("{{#if: x|a|b}}{{#if: |a|b}}{{#ifeq:a|a|c|d}}{{#switch:b|a=1|b=e|f}}", "abce"),
        ("{{formatnum:1234567}} {{lc:ABC}} {{uc:d}} {{ucfirst:ef}}", "1,234,567 abc D Ef"),
        ("{{main|a}}{{efn|b}}{{sfn|C|1999}}{{rp|5}}d{{citation needed|date=May 2017}}", "d"),
        ("{{harvtxt|Smith|Doe|1999}}", "Smith & Doe (1999)"),
    ],
)
def test_templates_show_what_their_documentation_says(wikitext, text):
    assert text_of(wikitext) == text


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
    wikitext = (
        "{{Infobox river\n| image = a.jpg\n| width = 250px\n| length_km = [[5]]\n| x =\n"
        "| mouths = {{plainlist|\n* a\n* b\n}}\n}}\n"
        "{|\n|+Cap\n! a !! b\n|-\n| +c || {{d}}\n|}"
    )
    assert clean(wikitext, PLAIN) == []
    assert clean(wikitext, Cleaning(keep_tables=True)) == [
        ("", "length km: 5\nmouths: a; b\n\nCap\na | b\n+c")
    ]


def test_footnotes_are_kept_on_request_where_they_are_first_cited():
    wikitext = (
        "a<ref name=x>First, ''p''. 3</ref> b{{sfn|Smith|Doe|1999|p=3}}<ref name=y />\n"
        '== B ==\nc<ref name="x"/>{{efn|Note.<ref>{{cite book|last=Roe|first=J.|title=T|year=2001'
        "|publisher=P|url=http://x.y}}</ref>}}\n"
        "== References ==\n<references><ref name='y'>{{harvnb|Poe|1840}}: d</ref></references>"
    )
    assert clean(wikitext, PLAIN) == [("", "a b"), ("B", "c")]
    assert clean(wikitext, Cleaning(keep_references=True)) == [
        ("", "a b\n\nFirst, p. 3\nSmith & Doe 1999, p. 3\nPoe 1840: d"),
        ("B", "c\n\nRoe, J. 2001. T. P.\nNote."),
    ]


def test_a_footnote_that_cites_itself_ends():
    wikitext = "a<ref name=x>b<ref name=x/></ref>{{efn|{{efn|c}}}}"
    assert text_of(wikitext, Cleaning(keep_references=True)) == "a\nb\nc"


def test_unknown_templates_are_kept_on_request():
    wikitext = (
        "a {{Some thing|b|c_d=[[e]]|date=May 2017|style=x|url=http://f.g}} h{{cn|date=May 2017}}\n"
        "{{Player\n| name = i\n| no = 7\n}}{{IPA|j}}{{cite web|title=k}}{{Infobox|l=m}}"
    )
    assert text_of(wikitext) == "a h"
    kept = text_of(wikitext, Cleaning(keep_templates=True))
    assert kept == "a b, c d: e h\n\nname: i\nno: 7"


MARKUP = (
    "[[ ]] {{ }} ''' '' {| |} |- | ! <ref> </ref> <ref == [[File: thumb| {{efn| {{lang|la| {{age}} "
    "a B. ( ; ) &lt; &#91; &#39; &nbsp; &amp;nbsp; <!-- --> <nowiki> </nowiki> <math> </math> "
    "<sup> {{Infobox {{#if: {{convert|1| <ref/> [http://a # : \u200b \0 \ud800"
).split(" ")


@settings(max_examples=600, deadline=None)
@given(
    st.lists(
        st.sampled_from([*MARKUP, "\n", " ", "<ref name=a>", "<ref name=a />"]), max_size=25
    ).map("".join)
    | st.text(max_size=60)
)
def test_no_markup_is_left_however_broken(wikitext):
    for settings_ in (PLAIN, EVERYTHING):
        for heading, body in clean(wikitext, settings_):
            assert not MARKS.search(heading)
            assert not MARKS.search(body)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("<ref name=a>b", "</ref>"), ("[[a|", "]]"), ("{{small|a", "}}"), ("{|\n|\n", "|}\n")],
)
def test_deep_nesting_does_not_exhaust_the_stack(opening, closing):
    wikitext = f"c {opening * 120} {closing * 120}"

    def called(depth: int) -> str:
        return called(depth - 1) if depth else text_of(wikitext, EVERYTHING)

    assert "c" in called(300)


@pytest.mark.parametrize(
    "unit", ["{{a|", "[[a|", "{|\n|\n", "<b>", "<ref", "<!--", "[http://a ", "{[[", "*", "{{age}}("]
)
def test_pages_that_never_close_what_they_open_take_seconds(unit):
    started = time.monotonic()
    clean(unit * (60_000 // len(unit)), EVERYTHING)
    # The parser alone takes minutes for the first of them.
    assert time.monotonic() - started < 20
