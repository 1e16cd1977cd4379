import re
from datetime import UTC, datetime

import pytest

from kinject_assets.config import Cleaning, Lab
from kinject_assets.core.corpus.cleaning import clean
from kinject_assets.core.errors import ProfileError
from kinject_assets.lab.grammar import parse, parse_text
from kinject_assets.lab.things import pretraining_things
from kinject_assets.lab.world import World, topic_category

LAB = Lab(seed=4, months=4, events_per_month=30, things=6)


@pytest.fixture(scope="module")
def world() -> World:
    return World(LAB)


def names(world: World, category: str) -> set[str]:
    return {p.title for p in world.pages if category in p.categories and p.current.facts}


def test_every_text_is_sentences_of_the_grammar_and_states_every_fact(world):
    for page in world.pages:
        for revision in page.revisions:
            if not revision.facts:
                continue
            assert all(part in revision.wikitext for part in ("{{Infobox", "'''", "<ref", "[[Cat"))
            ((heading, body),) = clean(revision.wikitext, Cleaning())
            assert heading == ""
            said = [parse(sentence) for sentence in re.split(r"(?<=\.)\s+", body)]
            assert None not in said
            assert len(said) == 5
            assert set(parse_text(body)) == set(revision.facts)


def test_what_the_models_met_and_what_they_never_met(world):
    known = {
        kind: {thing.name for thing in things} for kind, things in pretraining_things().items()
    }
    assert len(names(world, topic_category("rivers"))) == LAB.things
    assert names(world, topic_category("rivers")) <= known["rivers"]
    assert names(world, topic_category("guilds")) <= known["guilds"]
    assert not names(world, topic_category("comets")) & known["comets"]
    events = [p.title for month in world.months for p in world.events(month)]
    assert len(events) == len(set(events)) == LAB.months * LAB.events_per_month
    assert not set(events) & known["events"]
    assert any("[[" in p.current.wikitext.split("[[Category")[0] for p in world.events("2031-01"))


def test_time_adds_months_and_revisions_and_never_alters_what_was(world):
    assert world.now == datetime(2031, 4, 30, 23, tzinfo=UTC)
    assert world.months == ["2031-01", "2031-02", "2031-03", "2031-04"]
    later = World(LAB, now=datetime(2031, 9, 1, 12, tzinfo=UTC))
    assert later.months[-1] == "2031-09"
    for page in world.pages:
        same = later.page(page.title)
        assert same is not None
        assert same.page_id == page.page_id
        assert same.revisions[: len(page.revisions)] == page.revisions
    assert len(later.changes) > len(world.changes) > 0
    assert later.changes[: len(world.changes)] == world.changes
    later.now = world.now
    assert later.pages == world.pages
    later.now = datetime(2030, 12, 31, tzinfo=UTC)
    assert later.months == []


def test_a_change_is_one_fact_and_one_sentence(world):
    for change in world.changes:
        page = world.page(change.title)
        assert page is not None
        number = next(n for n, r in enumerate(page.revisions) if r.timestamp == change.timestamp)
        before, after = page.revisions[number - 1], page.revisions[number]
        assert set(before.facts) - set(after.facts) == {change.before}
        assert set(after.facts) - set(before.facts) == {change.after}
        assert change.before.value != change.after.value
        old, new = (clean(r.wikitext, Cleaning())[0][1].split(". ") for r in (before, after))
        assert sum(a != b for a, b in zip(old, new, strict=True)) == 1


def test_ids_are_unique_and_belong_to_their_seed(world):
    pages = [page.page_id for page in world.pages]
    revisions = [r.revision_id for page in world.pages for r in page.revisions]
    assert len(set(pages)) == len(pages)
    assert len(set(revisions)) == len(revisions)
    other = World(LAB.model_copy(update={"seed": 5}))
    assert not {r.revision_id for p in other.pages for r in p.revisions} & set(revisions)
    assert World(LAB).pages == world.pages


def test_used_up_names_are_an_error_that_names_the_field():
    with pytest.raises(ProfileError, match="events_per_month"):
        World(Lab(events_per_month=300, months=6))
