"""Each gate on questions made for it, its look-alikes, and any text at all.

How well the gates do on real passages is measured by `kinject_assets_tests.bench.gates`.
"""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject_assets.core.exams import gates
from kinject_assets.core.exams.gates import GATES, Asked, Item, ask_the_same, gate, says_the_same
from kinject_assets.lab.grammar import tell
from kinject_assets.lab.things import draw_things
from kinject_assets.lab.writer import write_questions

PASSAGE = (
    "Marie Curie won the prize in 1903. She was born in Warsaw, Poland, and worked in Paris. "
    "The cat Pilchard (now called Herring) and the dog Rex lived with her. "
    "Her laboratory had 12 rooms, at 22 °C, and cost $1.5 million."
)


def item(stem: str, gold: str, *wrong: str, passage: str = PASSAGE) -> Item:
    return Item(stem, (gold, *(wrong or ("Vienna", "Prague", "Rome"))), 0, passage, "Marie Curie")


BORN = item("Where was Marie Curie born?", "Warsaw")


def test_a_sound_question_passes() -> None:
    assert gate(BORN, 4) is None


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (replace(BORN, stem=" \n"), "empty question"),
        (replace(BORN, stem="why " * 500), "question is longer than 1200 characters"),
        (replace(BORN, options=("Warsaw", "Rome")), "wrong number of options: 2, not 4"),
        (replace(BORN, answer=4), "answer index out of range: 4"),
        (replace(BORN, answer=-1), "answer index out of range: -1"),
        (item(BORN.stem, "Warsaw", "Rome", "  ", "Prague"), "empty option"),
        (item(BORN.stem, "Warsaw", "…", "Rome", "Prague"), "empty option"),
        (item(BORN.stem, "Warsaw", "x" * 401, "Rome", "Prague"), "option is longer than"),
    ],
)
def test_what_is_no_question_is_turned_away(question: Item, reason: str) -> None:
    assert (gate(question, 4) or "").startswith(reason)


@pytest.mark.parametrize(
    ("gate_name", "question"),
    [
        ("distinct", item(BORN.stem, "Warsaw", "Rome", "rome.", "Prague")),
        ("distinct", item(BORN.stem, "Warsaw", "5 km", "five kilometres", "Prague")),
        ("single", item("How many rooms?", "12", "twelve", "13", "14")),
        ("single", item("How many rooms?", "12 rooms", "a dozen rooms", "13", "14")),
        ("single", item("How warm?", "22 °C", "22 degrees Celsius", "1 °C", "2 °C")),
        ("single", item("What cost?", "$1.5 million", "1,500,000 dollars", "$1", "$2")),
        ("single", item("When?", "3 May 1903", "May 3rd, 1903", "4 May 1903", "1904")),
        ("single", item("When?", "1903", "the 1900s", "1911", "1867")),
        ("single", item("When?", "1903", "in the 20th century", "1811", "1867")),
        ("single", item("Who?", "Marie Curie", "Curie", "Meitner", "Noether")),
        ("single", item(BORN.stem, "Warsaw", "Warsaw, Poland", "Rome", "Prague")),
        ("single", item("Who?", "cats and dogs", "dogs and cats", "cows", "hens")),
        ("single", item("Which?", "Wal-Mart", "Walmart", "Aldi", "Lidl")),
        ("standing", item(BORN.stem, "Warsaw", "Rome", "Prague", "None of the above")),
        ("standing", item(BORN.stem, "Warsaw", "Rome", "Prague", "Both A and B")),
        ("standing", item(BORN.stem, "Warsaw", "Rome", "Prague", "All of these")),
        ("standing", item(BORN.stem, "Warsaw", "Rome", "Prague", "A, B and C only")),
        ("reference", item("According to the passage, where was she born?", "Warsaw")),
        ("reference", item("Where does the author say that Curie was born?", "Warsaw")),
        ("reference", item("Which town is mentioned above?", "Warsaw")),
        ("supported", item(BORN.stem, "Budapest")),
        ("supported", item("How many rooms had her laboratory?", "1903", "12", "7", "9")),
        ("alone", item("Who lived with Marie Curie?", "Pilchard", "Rex", "Bello", "Tom")),
        ("alone", item("What was her cat called?", "Pilchard", "Herring", "Sprat", "Cod")),
        ("leak", item("Where in Warsaw was Marie Curie born?", "Warsaw")),
        ("leak", item("What is a rat trainer's animal?", "rats", "cats", "dogs", "hens")),
        (
            "longest",
            item(
                "Why?",
                "because her laboratory had 12 rooms and cost a lot",
                "fun",
                "fame",
                "no idea",
            ),
        ),
    ],
)
def test_each_gate_turns_its_question_away(gate_name: str, question: Item) -> None:
    assert GATES[gate_name](question) is not None


@pytest.mark.parametrize(
    ("gate_name", "question"),
    [
        ("distinct", item("Which language?", "C", "C++", "C#", "D")),
        ("distinct", item("Which charge?", "+1", "-1", "1", "0")),
        ("distinct", item("Which word?", "हिन्दी", "हन्द", "עברית", "中文")),
        ("distinct", item("Which mark?", "+", "-", "=", "%")),
        ("distinct", item("Which?", "I and III", "III", "II", "I")),
        ("distinct", item("Which rate?", "r = k", "r = k [A]", "r = k [A]^2", "r = k ln[A]")),
        ("distinct", item("In which order?", "x, y, z", "y, x, z", "z, x, y", "z, y, x")),
        ("single", item("What is seen?", "a band with lines", "a band only", "lines", "dots")),
        ("single", item("How many?", "12", "12 km", "12 %", "13")),
        ("single", item("Who?", "the vice president", "the president", "a king", "a duke")),
        ("single", item("What?", "carbon dioxide", "carbon", "oxygen", "iron")),
        ("single", item("Which?", "cats and dogs", "dogs", "cats and hens", "hens")),
        ("single", item("Where?", "Berlin", "East Berlin", "Potsdam", "Bonn")),
        ("single", item("Where?", "Warsaw", "Warsaw, Indiana", "Rome", "Prague")),
        ("single", item("What?", "metals", "non-metals", "gases", "acids")),
        ("single", item("Which year?", "1903", "1904", "1803", "2003")),
        ("standing", item("How many?", "none", "one", "two", "three")),
        ("standing", item("Which vitamin?", "A", "B", "C", "D")),
        ("standing", item("Which group?", "the Other Ones", "All Saints", "Both Sides", "Them")),
        ("reference", item("What does the text of the treaty grant?", "peace")),
        ("reference", item("Which paragraph of Article 5 names collective defence?", "one")),
        ("reference", item("Who opposed the passage of the bill?", "Whigs")),
        ("reference", item("Who was the author of Hamlet?", "Shakespeare")),
        ("reference", item("Which explorer sailed the passage through the strait?", "Cook")),
        ("reference", item("Which tower stands 55 m above ground?", "this")),
        ("reference", item("According to Marie Curie, what glows?", "radium")),
        ("reference", item("Which town is first mentioned in 1237?", "Cölln")),
        ("reference", item("Which of the following metals melts first?", "tin")),
        ("reference", item("What was the author Stephen King's first novel?", "Carrie")),
        ("supported", item("Who?", "She worked hard in Paris", "a", "b", "c")),
        ("supported", item("How many rooms?", "twelve rooms", "ten", "six", "two")),
        ("alone", item("Which of her animals was a cat?", "Pilchard", "Tom", "Bello", "Cod")),
        ("alone", item("Who lived with her first?", "Pilchard", "Rex", "Bello", "Cod")),
        ("leak", item("Which is it: Vienna, Warsaw, Prague or Rome?", "Warsaw")),
        ("leak", item("Which is larger, Warsaw or Rome?", "Warsaw")),
        ("leak", item("Which Curie was born in Warsaw?", "Marie Curie", "Eve Curie", "x", "y")),
        ("longest", item("Where?", "in Konstantinopolitania", "in Rome", "Kiel", "Bonn")),
        ("longest", item("Who?", "a man who was very tall", "a man who was short", "x", "y")),
    ],
)
def test_gates_leave_look_alikes_alone(gate_name: str, question: Item) -> None:
    assert GATES[gate_name](question) is None


APART = [
    # Versions, flags, code.
    ("3.10", "3.1"),
    ("version 2.20", "version 2.2"),
    ("v1.20", "v1.2"),
    ("3.10.1", "3.1.01"),
    ("-v", "-V"),
    ("--all", "-all"),
    ("-r", "r"),
    ("Foo()", "foo()"),
    ("x_y", "xy"),
    (".git", "git"),
    ("!=", "="),
    ("\\n", "n"),
    # Formulae, symbols, prefixes of units.
    ("CO", "Co"),
    ("Hf", "HF"),
    ("the CO molecule", "the Co molecule"),
    ("k", "K"),
    ("5 mW", "5 MW"),
    ("5 mA", "5 kA"),
    ("2 GB", "2 Gb"),
    ("5 AUD", "5 USD"),
    ("10⁵", "105"),
    # Signs, ranges, bounds.
    ("-5", "5"),
    ("–5 °C", "5 °C"),
    ("minus five", "5"),
    ("-$5", "$5"),
    ("+5", "5"),
    ("±5", "5"),
    ("<5", "5"),
    ("-5 to 5", "5"),
    ("10–20", "20"),
    ("10-20 years", "10 years"),
    ("over 18", "under 18"),
    ("at least 5", "at most 5"),
]

ALIKE = [
    ("The Hague", "the hague"),
    ("ROME", "Rome"),
    ("McDonald's", "Mcdonalds"),
    ("AC/DC", "ac/dc"),
    ("Group A", "group a"),
    ("U.S.", "US"),
    ("Foo()", "`Foo`"),
    ("(Rome)", "Rome."),
    ("0.50", "0.5"),
    ("$3.50", "$3.5"),
    ("2.50 m", "2.5 metres"),
    ("1.50 million", "1,500,000"),
    ("3.0", "3"),
    ("-5", "minus five"),
    ("−5 °C", "-5 degrees Celsius"),
    ("-$5", "minus 5 dollars"),
    ("5–10", "5 to 10"),
    ("-10--5", "-10 to -5"),
    ("over 50", "50"),
    ("5 MW", "5,000 kilowatts"),
    ("16 GB", "16 gigabytes"),
    ("100 KB", "100 kB"),
    ("300 minutes", "5 hours"),
    ("20th century", "twentieth century"),
]


@pytest.mark.parametrize(("one", "other"), APART)
def test_case_signs_and_dots_tell_options_apart_where_they_mean_something(
    one: str, other: str
) -> None:
    for first, second in ((one, other), (other, one)):
        assert not says_the_same(first, second)
        assert GATES["distinct"](item("Which?", "Rome", first, second, "Prague")) is None
        assert GATES["single"](item("Which?", first, second, "Kiel", "Prague")) is None


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_case_signs_and_dots_of_prose_are_no_difference(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        assert GATES["distinct"](item("Which?", "Rome?", first, second, "Prague")) is not None
        assert GATES["single"](item("Which?", first, second, "Kiel", "Prague")) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [("1990-1995", "1990–95"), ("World War II", "World War 2"), ("No", "NO")],
)
def test_numerals_and_years_are_the_same_in_another_spelling(one: str, other: str) -> None:
    assert says_the_same(one, other)
    assert says_the_same(other, one)


def test_other_numerals_and_years_are_other_options() -> None:
    assert not says_the_same("World War II", "World War III")
    assert not says_the_same("Louis XIV", "Louis 15")
    assert not says_the_same("1990–95", "1990-1996")


def test_options_that_differ_in_case_alone_are_told_apart_by_it() -> None:
    cased = item("Which is the constant?", "True", "TRUE", "true", "1")
    assert GATES["distinct"](cased) is None
    assert GATES["single"](cased) is None
    again = item("Which is the constant?", "True", "TRUE", "TRUE", "true")
    assert GATES["distinct"](again) is not None
    spelt = item("How many?", "12", "twelve", "a dozen", "13")
    assert GATES["single"](spelt) is not None


def test_answers_that_a_sign_tells_apart_are_no_near_duplicates() -> None:
    verbose = item("Which flag makes the tool print more of its work?", "-v", "-q", "-h", "-x")
    shown = item("Which flag makes the tool print more on its version?", "-V", "-q", "-h", "-x")
    assert not ask_the_same(verbose, shown)
    assert ask_the_same(verbose, replace(shown, options=("-v", "-q", "-h", "-x")))


CIRCUMSTANCES = [
    ("The final was won by Smith and Jones.", "Who won the final?"),
    ("The first film was directed by Smith and Jones.", "Who directed the first film?"),
    ("In the final match, Smith and Jones scored.", "Who scored in the final match?"),
    ("After the war, Smith and Jones led it.", "Who led it after the war?"),
    ("Smith and Jones fought in the First World War.", "Who fought in the First World War?"),
    ("Smith and Jones sold at least 40 of them.", "Who sold at least 40 of them?"),
    ("Most of it was built by Smith and Jones.", "Who built most of it?"),
    ("Smith and Jones kept two-year-old horses.", "Who kept two-year-old horses?"),
]

CHOICES = [
    ("The first owner, Smith, and Jones were rich.", "Who was the first owner?"),
    ("They are Jones and Smith, the second largest owner.", "Who is the second largest owner?"),
    ("It belonged to Smith and Jones.", "Who owned it first?"),
    ("The largest owners were Smith and Jones.", "Who was the largest owner?"),
    ("It was owned by Jones and Smith.", "Who owned it after Jones?"),
    ("In the first race, Smith and Jones rode.", "Who finished first?"),
    ("Smith and Jones were its owners.", "Which of the two owners was older?"),
]


@pytest.mark.parametrize(("passage", "stem"), CIRCUMSTANCES)
def test_a_word_that_chooses_nothing_saves_no_question(passage: str, stem: str) -> None:
    assert GATES["alone"](item(stem, "Smith", "Jones", "Kiel", "Bonn", passage=passage)) is not None


@pytest.mark.parametrize(("passage", "stem"), CHOICES)
def test_a_question_that_chooses_among_what_is_named_together_stands(
    passage: str, stem: str
) -> None:
    assert GATES["alone"](item(stem, "Smith", "Jones", "Kiel", "Bonn", passage=passage)) is None


@pytest.mark.parametrize(
    "unit", ["Smith and Jones and ", "Smith, Jones, ", "Smith, ", "a, ", "and ", "(Smith (Jones "]
)
def test_lists_without_end_are_compared_in_bounded_work(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    compare = gates._coordinated

    def counted(pieces: list[str], end: int, start: int, stop: int) -> bool:
        seen.append(start - end)
        return compare(pieces, end, start, stop) and False

    monkeypatch.setattr(gates, "_coordinated", counted)
    for size in (1_000, 10_000, 100_000):
        passage = unit * (size // len(unit))
        seen.clear()
        question = item("Who?", "Smith", "Jones", "Smith Jones", "Smith and", passage=passage)
        assert GATES["alone"](question) is None
        # Every stretch between two options is looked at once for each wrong option, at most.
        assert len(seen) <= 3 * 2 * gates.MOST_PLACES
        assert sum(seen) <= 3 * len(passage)


def test_two_questions_on_one_fact_are_found_whichever_way_they_are_put() -> None:
    assert ask_the_same(
        BORN, item("What is the birthplace of Marie Curie, born in Poland?", "Warsaw")
    )
    assert ask_the_same(
        BORN, item("In which town was the physicist Curie born?", "the town of Warsaw")
    )
    assert ask_the_same(BORN, item("Who was born in Warsaw?", "Marie Curie"))
    assert not ask_the_same(BORN, item("Where did Marie Curie die?", "Passy"))
    passage = f"{PASSAGE} Bolesław Prus studied in Warsaw."
    assert not ask_the_same(BORN, item("Where did Prus study?", "Warsaw", passage=passage))
    assert not ask_the_same(
        item("When did Marie Curie win the prize?", "1903"),
        item("When did Marie Curie become a doctor?", "1903"),
    )


def test_an_exam_says_why_a_question_may_not_stand_beside_the_others() -> None:
    asked = Asked()
    asked.add(BORN)
    again = item("In what town was Marie Curie born?", "Warsaw", "Lodz", "Lublin", "Gdynia")
    assert (asked.objection(again) or "").startswith("near-duplicate")
    other = item("Where was Marie Curie born?", "Paris")
    assert (asked.objection(other) or "").startswith("same words as another question")
    assert asked.objection(item("When did Curie win the prize?", "1903")) is None


@pytest.mark.parametrize("kind", ["events", "guilds"])
def test_articles_of_one_mould_are_asked_about_alike(kind: str) -> None:
    asked = Asked()
    for thing in draw_things(kind, 100, random.Random(3)):
        passage = tell(list(thing.facts), random.Random(thing.name))
        for written in write_questions(passage, 4, 4, random.Random(thing.name)):
            options, answer = tuple(written["options"]), written["answer"]
            question = Item(written["question"], options, answer, passage, f"The {thing.name}")
            assert gate(question, 4) is None
            assert asked.objection(question) is None
            asked.add(question)


text = st.text(max_size=200)


@given(text, st.lists(text, min_size=4, max_size=4), st.integers(-1, 4), text, text)
@settings(max_examples=150, deadline=None)
def test_any_text_is_judged(
    stem: str, options: list[str], answer: int, passage: str, title: str
) -> None:
    question = Item(stem, tuple(options), answer, passage, title)
    reason = gate(question, 4)
    assert reason is None or reason
    if reason is None:
        asked = Asked()
        asked.add(question)
        assert asked.objection(replace(question, stem=f"{stem} ")) is not None


@pytest.mark.parametrize(
    "odd",
    [
        "<script>alert(1)</script>",
        "مرحبا بالعالم ١٢٣",
        "‮ reversed ‬",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ½ ² ₂ Ⅻ",
        "e\u0301" * 50,
        "\x00\x07",
        "a, " * 200,
        "((" * 200,
        "and or and " * 50,
        "9" * 400,
        "the given " * 60,
    ],
)
def test_odd_texts_are_judged_quickly(odd: str) -> None:
    start = time.perf_counter()
    for stem, options, passage in (
        (odd, ("Warsaw", "Rome", "Kiel", "Bonn"), PASSAGE),
        ("Where?", (odd[:200], odd[:100] + "x", "Kiel", "Bonn"), f"{odd} {PASSAGE}"),
        (odd, ("Warsaw", "Rome", "Kiel", "Bonn"), f"Warsaw, {odd * 50} and Rome."),
    ):
        gate(Item(stem, options, 0, passage, odd), 4)
        for check in GATES.values():
            check(Item(stem, options, 0, passage, odd))
    assert time.perf_counter() - start < 5


def test_the_page_says_how_many_pairs_are_tested() -> None:
    page = " ".join((Path(__file__).parents[3] / "docs" / "exams.md").read_text("utf-8").split())
    assert f"The tests have {len(APART)} pairs of options" in page
    assert f"apart, {len(ALIKE)} that those do not" in page
    assert f"{len(CIRCUMSTANCES)} questions with a choosing word" in page
    assert f"and {len(CHOICES)} that choose" in page
