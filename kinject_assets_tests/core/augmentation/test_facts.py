import bz2
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject_assets import config
from kinject_assets.core.augmentation.facts import (
    dropped_facts,
    facts,
    foreign_words,
    invented_facts,
    likeness,
    names,
    normalised,
)
from kinject_assets.core.corpus.chunking import chunk_articles, sentences, token_counter
from kinject_assets.core.corpus.cleaning import clean
from kinject_assets.core.exams.wording import terms
from kinject_assets.core.schema import Article, Chunk

REALDATA = Path(
    os.environ.get("KINJECT_REALDATA") or Path(__file__).parents[4] / "shared" / "realdata"
)
DUMP = REALDATA / "wikipedia" / "enwiki-2021-minidump.xml.bz2"


DROPPED = [
    ("Wool was given to all.", "All were given linen.", []),
    ("Wool was sold. The Wool was good.", "It was good.", ["Wool"]),
    ("Marie Curie won.", "Curie won.", ["Marie"]),
    ("On Monday, 4 July it closed.", "It closed on 4 July.", ["Monday"]),
    ("On 3 March 2021 the plant opened.", "It was opened in early March.", ["3", "2021"]),
    ("On 3 March 2021 the plant opened.", "It was opened on 3 April 2021.", ["March"]),
    ("She came in May 2019.", "She may have come in 2019.", ["May"]),
    ("Born in 1914–18, they fled.", "Born from 1914 on, they fled.", ["1918"]),
    ("The 2nd and the 3rd left.", "The 2nd left.", ["3"]),
    ("In the 20th century it fell.", "In the last century it fell.", ["20"]),
    ("The third son died.", "A son died.", ["third"]),
    ("Five people died.", "Several people died.", ["Five"]),
    ("Twenty-one died, two hundred fled.", "20 died, 100 fled.", ["Twenty one", "two hundred"]),
    ("It cost 3.5 pounds.", "It cost 3 pounds.", ["3.5"]),
    ("45% of voters agreed.", "45 voters agreed.", ["%"]),
    ("45 per cent of voters agreed.", "45 voters agreed.", ["per cent"]),
    ("The river is 346 km long.", "It is 346 miles long.", ["km"]),
    ("The river is 346 km long.", "It is very long.", ["346"]),
    ("It covers 12 square miles.", "It covers 12 hectares.", ["miles"]),
    ("It fell to 30 °C.", "It fell to 30.", ["°C"]),
    ("It fell to 30 °C.", "It fell to 30 °F.", ["°C"]),
    ("It fell to 30 °C.", "It fell to 30 degrees.", ["°C"]),
    ("It fell to -5 °C.", "It fell to 5 °C.", ["-5"]),
    ("It rose to 5 °C.", "It rose to −5 °C.", ["5"]),
    ("It fell by minus five points.", "It fell by five points.", ["-five"]),
    ("The account stood at -$40.", "The account stood at $40.", ["-40"]),
    ("It draws 5 mA at 110 kV.", "It draws 5 A at 110 V.", ["mA", "kV"]),
    ("It makes 5 mW.", "It makes 5 MW.", ["mW"]),
    ("It holds 16 GB.", "It holds 16 MB.", ["GB"]),
    ("It holds 16 GB.", "It holds 16.", ["GB"]),
    ("It took 3 hours and 20 minutes.", "It took 20 hours and 3 minutes.", ["hours", "minutes"]),
    ("It lasted 3 hours.", "It lasted 3.", ["hours"]),
    ("It lasted five days.", "It lasted five weeks.", ["days"]),
    ("He is 22 years older.", "He is 22 months older.", ["years"]),
    ("Of 45% of voters, 30 left; 20% stayed.", "Of 45 voters, 30 left; 20% stayed.", ["%"]),
    ("It rose by 5 percentage points.", "It rose by 5%.", ["percentage points"]),
    ("Python 3.10 came.", "Python 3.1 came.", ["3.10"]),
    ("Python 3.1 came.", "Python 3.10 came.", ["3.1"]),
    ("It needs version 2.20 of it.", "It needs version 2.2 of it.", ["2.20"]),
    ("Linux 2.6.32 came.", "Linux 2.6.3 came.", ["2.6.32"]),
    ("It cost $2.5 million.", "It cost 2.5 million euros.", ["$"]),
    ("It cost $2.5 million.", "It cost 2.5 billion dollars.", ["million"]),
    ("He paid €40.", "He paid 40.", ["€"]),
    ("He left the United States.", "He left the country.", ["United", "States"]),
]

KEPT = [
    ("On 3 March 2021 the plant opened.", "The plant opened on March 3, 2021."),
    ("On March 3rd, 2021 it opened.", "It opened on 3 March 2021."),
    ("It opened on 1 March.", "It opened on the first of March."),
    ("It opened on March 1st.", "It opened on 1 March."),
    ("It opened on 2021-03-03.", "It opened on 3 March 2021."),
    ("It opened on Sept. 11, 2001.", "11 September 2001 saw it open."),
    ("It closed in the 1990s.", "In the 1990's it was closed."),
    ("The war of 1914–18 ended.", "The war from 1914 to 1918 ended."),
    ("In 44 BC he died.", "He died in 44 BCE."),
    ("In the 20th century it fell.", "It fell in the twentieth century."),
    ("In the twenty-first century it rose.", "It rose in the 21st century."),
    ("It cost 1,000 francs.", "Its cost was 1000 francs."),
    ("It has 1\u202f500 seats.", "It has 1,500 seats."),
    ("About 0.50 of it was lost.", "Some 0.5 of it was lost."),
    ("Five people died.", "5 people died."),
    ("He met 7 others.", "He met seven others."),
    ("Two hundred and six people came.", "206 people came."),
    ("Three million people live there.", "3,000,000 people live there."),
    ("It holds 2 to 3 million litres.", "It holds from 2 million to 3 million liters."),
    ("She has two sons.", "Both of her sons live."),
    ("12 eggs were sold.", "A dozen eggs were sold."),
    ("It grew by 45%.", "It grew by 45 per cent."),
    ("It grew by 45 percent.", "It grew 45 %."),
    ("50% of them left.", "Half of them left."),
    ("The river is 346 km long.", "Its length is 346 kilometres."),
    ("It covers 12.5 km².", "It covers 12.5 square kilometers."),
    ("A 6-foot wall stood.", "A wall of 6 feet stood."),
    ("60 mph is the limit.", "The limit is 60 miles per hour."),
    ("It weighs 70 kg.", "Its weight is 70 kilograms."),
    ("It makes 165 MW.", "165 megawatts are made."),
    ("It holds 16 GB.", "It has 16 gigabytes."),
    ("It took 3 hours and 5 minutes.", "It took 3 hrs 5 min."),
    ("A three-day fair was held.", "A fair of 3 days was held."),
    ("On day 3 it rained.", "It rained on the third day."),
    ("45%, 50% and 60% agreed.", "45, 50 and 60 per cent agreed."),
    ("It costs between $5 and $10.", "It costs $5 to 10."),
    ("It is 5 km to 10 km long.", "It is 5–10 km long."),
    ("The percentages were 45% and 30%.", "In percentages it was 45 and 30."),
    ("He has lived for 3 decades.", "For 3 decades he has lived."),
    ("It fell to −5 °C.", "It fell to minus five degrees Celsius."),
    ("It fell to -5 °C.", "It fell to 5 °C below zero."),
    ("It fell to 5 degrees Fahrenheit.", "It fell to 5 °F."),
    ("The clock shows UTC−5.", "The clock shows UTC -5."),
    ("The years 1914-1918 and COVID-19", "COVID 19 and the years 1914 – 1918"),
    ("Python 3.10 came.", "They made 3.10 of Python."),
    ("It needs Linux 2.6.32.", "Linux 2.6.32 is needed."),
    ("It fell to -5 °C.", "It fell to -5 degrees Celsius."),
    ("He was aged 45 years.", "He was 45."),
    ("It cost US$5 billion.", "It cost $5bn."),
    ("It cost $2.5m.", "It cost 2,500,000 dollars."),
    ("He paid £1,250 for it.", "1250 pounds is what he paid."),
    ("The Second World War began.", "World War II began."),
    ("She was queen Elizabeth II.", "She was queen Elizabeth the Second."),
    ("He led the United States.", "He was the U.S. leader, the head of the US."),
    ("They asked NATO to help.", "They asked the North Atlantic Treaty Organization."),
    ("He is from America.", "He is American."),
    ("He met J. Smith in São Paulo.", "In Sao Paulo he met Smith."),
    ("The McDonald's in Rome’s centre", "Rome: in its centre is a McDonald"),
    ("Consequently, Marie Curie left.", "So Marie Curie left."),
    ("However Marie Curie left.", "But Marie Curie left."),
]


UNITS_FOUND = (104, 102)
"""Real passages with a unit behind a number changed, and those where that is found."""

UNITS_SPELT = 83
"""Real passages with a unit behind a number in another spelling."""


@pytest.mark.parametrize(("source", "text", "lost"), DROPPED)
def test_what_is_dropped_is_found(source: str, text: str, lost: list[str]) -> None:
    assert dropped_facts(source, text) == lost


@pytest.mark.parametrize(("source", "text"), KEPT)
def test_usual_rewordings_drop_nothing(source: str, text: str) -> None:
    assert dropped_facts(source, text) == []


def test_invented_facts_are_those_of_the_text_alone() -> None:
    source = "Marie Curie won a prize in 1903. She was born in Warsaw and had 2 daughters."
    text = (
        "Additionally, Marie Curie, mother of two, knew Einstein. The three won in 1911. Therefore "
        "she had 70% of it."
    )
    assert invented_facts(text, source) == ["Einstein", "1911", "70"]
    assert invented_facts("Two were hers. Thirteen were his.", source) == ["Thirteen"]


def test_foreign_words_are_not_in_the_source() -> None:
    source = "She won the Nobel Prize of 1,000 francs within twenty days."
    assert foreign_words("the Nobel prizes: 1000 francs in 20 days", source) == []
    assert foreign_words("a medal in 21 days", source) == ["medal", "21"]


def test_names_are_runs_of_capitals_each_once() -> None:
    text = (
        "Marie Curie was born in Warsaw. Curie won the Nobel Prize in March. Officials of the Bank "
        "of England met J. R. R. Tolkien on Monday. Poland was her home: she loved Poland. After "
        "Einstein left, Ludwig van Beethoven came. Berlin Mitte is a part of Berlin. Nobody knows. "
        "The US$5 were spent."
    )
    assert names(text) == [
        "Marie Curie",
        "Warsaw",
        "Nobel Prize",
        "Bank of England",
        "J. R. R. Tolkien",
        "Poland",
        "Einstein",
        "Ludwig van Beethoven",
        "Berlin Mitte",
        "Berlin",
    ]
    assert names("nothing has a name here. Or does it?") == []


@pytest.mark.parametrize(
    "text", ["9" * 5000, "ä" * 100_000, f"{'9' * 400} million", "³", "½ °", "$", "of", "A."]
)
def test_odd_texts_do_no_harm(text: str) -> None:
    assert dropped_facts(text, text) == []
    assert invented_facts(text, text) == []
    assert names(text) == []


_PARTS = st.one_of(
    st.sampled_from(
        "➀ ፩ ² ٣ ½ 5 2.5 1990 95 000 second minute half dozen hundred million and minus five "
        "twenty third th s st k m sq $ € US$ % per cent ° C in - – . of to by May 2021 II 日本 "
        "ก".split()
    ),
    st.sampled_from(["9" * 400, "9" * 5000]),
    st.characters(categories=("Nd", "Nl", "No")),
    st.text(max_size=6),
)
_ANY = st.lists(st.tuples(_PARTS, st.sampled_from(["", " ", "-", ", ", ". "])), max_size=8).map(
    lambda parts: "".join(part + gap for part, gap in parts)
)


@settings(max_examples=500, deadline=None)
@given(_ANY, _ANY)
def test_no_text_is_too_odd_to_read(text: str, other: str) -> None:
    facts(text)
    terms(text)
    names(text)
    dropped_facts(text, other)
    invented_facts(text, other)
    foreign_words(text, other)


@pytest.mark.parametrize(
    "text", ["step ➀ of the plan", "፩ of them", "5 second", "9" * 5000 + "th place"]
)
def test_odd_numbers_are_read(text: str) -> None:
    assert dropped_facts(text, text) == []
    assert terms(text)


def test_scripts_without_spaces_are_compared_letter_by_letter() -> None:
    text = "居里夫人于一八六七年出生在波兰的华沙,后来在巴黎大学学习物理和数学"
    other = "居里夫人于一八六七年出生在波兰的华沙,后来在柏林大学学习物理和数学"
    assert likeness(text, other) == pytest.approx(1 - 2 / (len(text) - 1))
    assert likeness(text, f"{text[:10]} {text[10:]}。") == 1
    assert likeness(text, "他在一九零三年和丈夫一起获得诺贝尔奖") < 0.5
    assert normalised("iPhone手机 in 2024年") == "iphone 手 机 in 2024 年"
    assert normalised("A b-c, ärger 1,000") == "a b c ärger 1 000"


def _real_chunks() -> Iterator[Chunk]:
    root = ElementTree.fromstring(bz2.decompress(DUMP.read_bytes()))
    tag = root.tag.removesuffix("mediawiki")
    articles: list[Article] = []
    for page in root.iter(f"{tag}page"):
        wikitext = page.findtext(f"{tag}revision/{tag}text") or ""
        found = clean(wikitext, config.Cleaning())
        articles.append(
            Article(
                article_id=page.findtext(f"{tag}id") or "",
                revision_id="1",
                source="dump",
                title=page.findtext(f"{tag}title") or "",
                revised_at=None,
                fetched_at=datetime(2031, 1, 1, tzinfo=UTC),
                url="",
                licence="",
                text_sha256="",
                n_chars=len(wikitext),
                headings=[heading for heading, _ in found],
                bodies=[body for _, body in found],
            )
        )
    yield from chunk_articles(articles, config.Chunking(), token_counter("words"))


@pytest.mark.skipif(not DUMP.is_file(), reason=f"no real articles at {DUMP}")
def test_real_passages_keep_their_facts_in_any_order_and_lose_those_that_are_left_out() -> None:
    chunks = list(_real_chunks())[::3]
    assert len(chunks) > 200
    stated = missed = 0
    for chunk in chunks:
        told = [s for line in chunk.text.splitlines() for s in sentences(line)]
        backwards = "\n".join(reversed(told))
        assert dropped_facts(chunk.text, backwards) == []
        assert invented_facts(backwards, chunk.text) == []
        assert foreign_words(backwards, chunk.text) == []
        # A fact that only the last sentence has is missed without it.
        stated += len(set(facts(chunk.text)) - set(facts(" ".join(told[:-1]))))
        missed += len(dropped_facts(chunk.text, " ".join(told[:-1])))
    assert missed > 0.85 * stated > 500


OTHER_UNITS = {
    "km": "miles",
    "°C": "°F",
    "hours": "minutes",
    "minutes": "hours",
    "days": "weeks",
    "MW": "kW",
    "kV": "V",
    "years": "months",
    "%": "",
}
OTHER_SPELLINGS = {
    "km": "kilometres",
    "°C": "degrees Celsius",
    "hours": "hrs",
    "minutes": "min",
    "MW": "megawatts",
    "kV": "kilovolts",
    "%": "per cent",
}


def _changed(chunks: list[Chunk], spellings: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Texts with one unit behind numbers written otherwise, beside the texts as they are."""
    for unit, other in spellings.items():
        pattern = re.compile(rf"(?<=\d)[ \u00a0]?{unit}(?![\w/])")
        for chunk in chunks:
            text = pattern.sub(f" {other}", chunk.text)
            if text != chunk.text:
                yield chunk.text, text


@pytest.mark.skipif(not DUMP.is_file(), reason=f"no real articles at {DUMP}")
def test_units_of_real_passages_are_missed_where_another_stands_and_not_in_another_spelling() -> (
    None
):
    chunks = list(_real_chunks())
    other = [bool(dropped_facts(a, b)) for a, b in _changed(chunks, OTHER_UNITS)]
    assert (len(other), sum(other)) == UNITS_FOUND
    spelt = list(_changed(chunks, OTHER_SPELLINGS))
    assert len(spelt) == UNITS_SPELT
    for text, again in spelt:
        assert dropped_facts(text, again) == dropped_facts(again, text) == []
