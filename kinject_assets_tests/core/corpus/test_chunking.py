import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject_assets.config import Chunking
from kinject_assets.core.corpus.articles import make_article
from kinject_assets.core.corpus.chunking import chunk_articles, sentences, token_counter
from kinject_assets.core.errors import ModelError

WORDS = token_counter("words")


def article(*bodies: str, name: str = "a"):
    return make_article(
        [(f"h{number}", body) for number, body in enumerate(bodies)],
        article_id=name,
        revision_id="1",
        source="files",
        title=name,
        revised_at=None,
        fetched_at=datetime(2031, 1, 1, tzinfo=UTC),
        url="",
        licence="",
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("One is. Two are! Three?", ["One is.", "Two are!", "Three?"]),
        (
            "Dr. No of the U.S. Navy met J. Smith. He left.",
            ["Dr. No of the U.S. Navy met J. Smith.", "He left."],
        ),
        ("It is 3.5 m long, e.g. The rest.", ["It is 3.5 m long, e.g. The rest."]),
        (
            'He said "Go." Then he went. 64 guests came.',
            ['He said "Go."', "Then he went.", "64 guests came."],
        ),
        ("水是。火也是。", ["水是。", "火也是。"]),
        ("  ", []),
    ],
)
def test_sentences(line, expected):
    assert sentences(line) == expected


def test_whole_sentences_of_one_section_are_packed():
    found = chunk_articles(
        [article("One two three. Four five six. Seven eight nine.", "Ten eleven.")],
        Chunking(max_tokens=8, min_tokens=4),
        WORDS,
    )
    assert [(c.section, c.text, c.n_tokens, c.small, c.ordinal) for c in found] == [
        ("h0", "One two three. Four five six.", 8, False, 0),
        ("h0", "Seven eight nine.", 4, False, 1),
        ("h1", "Ten eleven.", 3, True, 2),
    ]


def test_ids_come_from_content_and_twins_are_kept_once():
    settings_ = Chunking(max_tokens=8, min_tokens=1)
    same = "One two three four five six seven."
    first = chunk_articles([article(f"{same}\n{same}")], settings_, WORDS)
    later = chunk_articles([article("New.", name="b"), article(same)], settings_, WORDS)
    assert len(first) == 1
    assert first[0].chunk_id == later[1].chunk_id
    assert later[1].ordinal == 1


TEXT = st.text(alphabet=st.sampled_from("ab Z.!?\n,1é。"), max_size=200)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=3), st.integers(8, 30), st.sampled_from([WORDS, len]))
def test_chunks_fit_the_budget_and_lose_no_word(bodies, limit, count):
    found = chunk_articles([article(*bodies)], Chunking(max_tokens=limit, min_tokens=4), count)
    assert all(c.n_tokens == count(c.text) <= limit for c in found)
    assert [c.ordinal for c in found] == list(range(len(found)))
    assert len({c.chunk_id for c in found}) == len(found)
    squeezed = ["".join(c.text.split()) for c in found]
    for number, body in enumerate(bodies):
        whole = "".join(body.split())
        own = [t for c, t in zip(found, squeezed, strict=True) if c.section == f"h{number}"]
        assert set(re.findall(r"\S", "".join(own))) == set(whole)
        if len(set(own)) == len(own) and len("".join(own)) == len(whole):
            assert "".join(own) == whole


def test_a_tokenizer_that_cannot_be_loaded_names_the_field(tmp_path):
    with pytest.raises(ModelError, match=r"chunking\.tokenizer"):
        token_counter(str(tmp_path))


def test_a_models_tokenizer_counts_without_marks_of_begin_and_end(tmp_path):
    from kinject_assets.lab.pretrain import build_tokenizer

    build_tokenizer().save_pretrained(tmp_path)
    count = token_counter(str(tmp_path))
    assert count("The Balan Accord was led by Abric.") == 8
