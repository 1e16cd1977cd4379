"""The review of an exam: out to a table, back into decisions, and onto the exam."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kinject_assets.cli import main
from kinject_assets.core.errors import BrokenArtefact, ReviewError
from kinject_assets.core.exams.review import (
    Decision,
    Reviewable,
    apply_reviews,
    decisions_version,
    defused,
    journal_path,
    read_decisions,
    read_review,
    record,
    restored,
    write_review,
)
from kinject_assets.core.exams.writing import Written
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Article, Chunk, Question, Rejection
from kinject_assets.core.store import Cell, Store, write_rows

NOW = datetime(2031, 5, 1, tzinfo=UTC)
CORPUS = "events-current"


def _question(n: int, **changes: Any) -> Question:
    stem, options, gold = f"Who led event {n}?", [f"Ann {n}", "Bea", "Cid", "Dan"], 0
    row = Question(
        question_id=content_hash("llm", stem, options, gold),
        origin="llm",
        stem=stem,
        options=options,
        gold=gold,
        chunk_id=f"chunk {n // 2}",
        generator="model",
        generation_id=f"g{n}",
        triage="",
        split="test",
        retired=False,
    )
    return replace(row, **changes)


def _chunk(n: int) -> Chunk:
    return Chunk(
        chunk_id=f"chunk {n}",
        article_id=f"article {n}",
        revision_id="1",
        ordinal=n,
        title=f"Title {n}",
        section="",
        n_tokens=9,
        small=False,
        text=f"=Passage {n},\nwith “two” lines",
    )


def _article(n: int) -> Article:
    return Article(
        article_id=f"article {n}",
        revision_id="1",
        source="files",
        title=f"Title {n}",
        revised_at=None,
        fetched_at=NOW,
        url=f"https://wiki.example/{n}",
        licence="",
        text_sha256="",
        n_chars=9,
        headings=[""],
        bodies=[""],
    )


QUESTIONS = [_question(n) for n in range(6)]
TURNED_AWAY = Rejection(
    rejection_id="r",
    kind="question",
    chunk_id="chunk 0",
    reason="options are not distinct",
    text="",
)


def _publish(store: Store, exam: Written) -> None:
    files: dict[str, dict[str, tuple[type, Iterable[Any]]]] = {
        "articles": {"articles": (Article, [_article(n) for n in range(3)])},
        "chunks": {"chunks": (Chunk, [_chunk(n) for n in range(3)])},
        "questions": {
            "questions": (Question, exam.questions),
            "rejections": (Rejection, exam.rejections),
        },
    }
    for asset, tables in files.items():
        cell = Cell(asset, (CORPUS,))
        with store.draft(cell) as draft:
            for name, (row_type, rows) in tables.items():
                write_rows(draft / f"{name}.parquet", rows, row_type)
            store.publish(
                cell,
                draft,
                partition=CORPUS,
                logical_version="v",
                fingerprint="f",
                code_version="1",
                inputs={},
                config={},
                started_at=NOW,
            )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "lab")
    _publish(store, Written([*QUESTIONS, _question(9, retired=True)], [TURNED_AWAY]))
    return store


Filled = Callable[[Callable[[list[dict[str, str]]], object]], list[Decision]]


@pytest.fixture
def fill(store: Store, tmp_path: Path) -> Filled:
    """Writes the table, has it filled in, reads it back and records what it decides."""

    def filled(change: Callable[[list[dict[str, str]]], object]) -> list[Decision]:
        path = tmp_path / "review.csv"
        path.unlink(missing_ok=True)
        write_review(path, Reviewable.load(store, CORPUS))
        rows = _table(path)
        change(rows)
        _save(path, rows)
        decisions = read_review(path, Reviewable.load(store, CORPUS), NOW)
        record(store.lake, CORPUS, decisions)
        return decisions

    return filled


def _table(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _save(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _applied(store: Store) -> Written:
    before = Written([*QUESTIONS, _question(9, retired=True)], [TURNED_AWAY])
    return apply_reviews(before, read_decisions(store.lake, CORPUS))


def _ids(exam: Written) -> set[str]:
    return {row.question_id for row in exam.questions}


def test_the_table_holds_what_a_reviewer_needs(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "review.csv"
    assert write_review(path, Reviewable.load(store, CORPUS)) == 6
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    row = _table(path)[3]
    assert row["question_id"] == QUESTIONS[3].question_id
    assert (row["verdict"], row["reason"], row["stem"]) == ("", "", "Who led event 3?")
    assert [row[letter] for letter in "ABCDE"] == ["Ann 3", "Bea", "Cid", "Dan", ""]
    assert (row["gold"], row["title"], row["split"]) == ("A", "Title 1", "test")
    assert row["url"] == "https://wiki.example/1"
    assert row["passage"] == "'=Passage 1,\nwith “two” lines"
    with pytest.raises(ReviewError, match="is there already"):
        write_review(path, Reviewable.load(store, CORPUS))


def test_an_untouched_table_decides_nothing(store: Store, fill: Filled) -> None:
    assert fill(lambda rows: None) == []
    assert decisions_version(read_decisions(store.lake, CORPUS)) == ""


def _decide(rows: list[dict[str, str]]) -> None:
    rows[0] |= {"verdict": "accept"}
    rows[1] |= {"verdict": " Reject ", "reason": "two answers"}
    rows[2] |= {"verdict": "edit", "reason": "key", "stem": "Who led the 2nd?", "gold": "b"}


def test_decisions_change_the_exam(store: Store, fill: Filled) -> None:
    decisions = fill(_decide)
    assert [decision.verdict for decision in decisions] == ["accept", "reject", "edit"]
    exam = _applied(store)
    edited = exam.questions[1]
    assert (edited.stem, edited.gold, edited.options) == (
        "Who led the 2nd?",
        1,
        QUESTIONS[2].options,
    )
    assert edited.question_id == content_hash("llm", edited.stem, edited.options, 1)
    assert (edited.generator, edited.generation_id) == ("model+review", "g2")
    assert edited.chunk_id == QUESTIONS[2].chunk_id
    assert exam.questions == [QUESTIONS[0], edited, *QUESTIONS[3:], _question(9, retired=True)]
    assert [row.reason for row in exam.rejections] == [
        "options are not distinct",
        "review: two answers",
    ]
    assert exam.rejections[1].text == "Who led event 1? | Ann 1 | Bea | Cid | Dan"
    assert exam.counts["reviewed"] == {"accepted": 1, "edited": 1, "rejected": 1, "open": 3}
    assert apply_reviews(exam, decisions) == exam


def test_the_same_table_can_be_read_again_and_filled_in_further(
    store: Store, tmp_path: Path, fill: Filled
) -> None:
    fill(_decide)
    version = decisions_version(read_decisions(store.lake, CORPUS))
    path = tmp_path / "review.csv"
    assert read_review(path, Reviewable.load(store, CORPUS), NOW) == []
    rows = _table(path)
    rows[3]["verdict"] = "accept"
    _save(path, rows)
    (more,) = read_review(path, Reviewable.load(store, CORPUS), NOW)
    record(store.lake, CORPUS, [more])
    assert more.question_id == QUESTIONS[3].question_id
    assert decisions_version(read_decisions(store.lake, CORPUS)) not in {version, ""}
    # The lake's exam has met the decisions, too.
    _publish(store, _applied(store))
    assert read_review(path, Reviewable.load(store, CORPUS), NOW) == []
    assert Reviewable.load(store, CORPUS).counts == {
        "accepted": 2,
        "edited": 1,
        "rejected": 1,
        "open": 2,
    }


def test_a_new_table_shows_what_was_decided_and_can_take_it_back(
    store: Store, fill: Filled
) -> None:
    fill(_decide)
    seen: list[dict[str, str]] = []

    def look(rows: list[dict[str, str]]) -> None:
        seen.extend(dict(row) for row in rows)
        rows[-1]["verdict"] = "accept"  # the rejected one
        rows[1]["verdict"], rows[1]["reason"] = "reject", "still wrong"  # the edited one

    decisions = fill(look)
    assert [row["verdict"] for row in seen] == ["accept", "accept", "", "", "", "reject"]
    assert seen[1]["stem"] == "Who led the 2nd?"
    assert [decision.verdict for decision in decisions] == ["reject", "accept"]
    everything = read_decisions(store.lake, CORPUS)
    for exam in (_applied(store), apply_reviews(_applied(store), everything)):
        assert QUESTIONS[1] in exam.questions
        assert [row.reason for row in exam.rejections][1:] == ["review: still wrong"]
        assert exam.counts["reviewed"] == {"accepted": 2, "edited": 0, "rejected": 1, "open": 3}


def test_an_exam_that_met_some_decisions_meets_later_ones(store: Store, fill: Filled) -> None:
    first = fill(lambda rows: rows[0].update(verdict="edit", reason="a", gold="B"))
    half = apply_reviews(Written(QUESTIONS, []), first)
    fill(lambda rows: rows[0].update(verdict="edit", reason="b", gold="C"))
    fill(lambda rows: rows[1].update(verdict="reject", reason="c"))
    decisions = read_decisions(store.lake, CORPUS)
    assert apply_reviews(half, decisions) == apply_reviews(Written(QUESTIONS, []), decisions)
    assert apply_reviews(half, decisions).questions[0].gold == 2
    # Back to how it was written.
    fill(lambda rows: rows[0].update(verdict="edit", reason="d", gold="A"))
    last = apply_reviews(half, read_decisions(store.lake, CORPUS)).questions[0]
    assert last.question_id == QUESTIONS[0].question_id


def test_decisions_on_what_is_gone_change_nothing(store: Store, fill: Filled) -> None:
    fill(_decide)
    decisions = read_decisions(store.lake, CORPUS)
    retired = [replace(row, retired=True) for row in QUESTIONS[:3]]
    exam = apply_reviews(Written([*QUESTIONS[3:], *retired], [TURNED_AWAY]), decisions)
    assert exam.questions == [*QUESTIONS[3:], *retired]
    assert exam.rejections == [TURNED_AWAY]
    assert exam.counts["reviewed"] == {"accepted": 0, "edited": 0, "rejected": 0, "open": 3}


def test_restored_questions_join_the_split_of_their_chunk(store: Store, fill: Filled) -> None:
    fill(lambda rows: rows[1].update(verdict="reject", reason="x"))
    before = apply_reviews(Written(QUESTIONS, []), read_decisions(store.lake, CORPUS))
    moved = Written([replace(q, split="shots") for q in before.questions], before.rejections)
    fill(lambda rows: rows[-1].update(verdict="accept"))
    after = apply_reviews(moved, read_decisions(store.lake, CORPUS))
    assert [q.split for q in after.questions if q.question_id == QUESTIONS[1].question_id] == [
        "shots"
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"question_id": "nope"}, "question_id: `nope` is no question of events-current"),
        ({"verdict": "acept"}, "verdict: `acept`; allowed: accept, reject, edit, or nothing"),
        ({"verdict": "reject"}, "reason: empty; `reject` needs one"),
        ({"verdict": "edit", "gold": "B"}, "reason: empty; `edit` needs one"),
        ({"verdict": "edit", "reason": "x"}, "verdict: `edit`, but nothing was changed"),
        ({"verdict": "accept", "B": "Bob"}, "verdict: `accept`, but the question was changed"),
        ({"stem": "Why?"}, "verdict: empty, but the question was changed"),
        ({"reason": "bad"}, "verdict: empty, but there is a reason"),
        ({"verdict": "edit", "reason": "x", "gold": "E"}, "gold: `E`; allowed: A, B, C, D"),
        ({"verdict": "edit", "reason": "x", "gold": ""}, "gold: ``; allowed: A, B, C, D"),
        ({"verdict": "edit", "reason": "x", "gold": "AB"}, "gold: `AB`; allowed: A, B, C, D"),
        ({"verdict": "edit", "reason": "x", "stem": " "}, "stem: empty"),
        ({"verdict": "edit", "reason": "x", "C": ""}, "C: empty; the question has 4 options"),
        ({"verdict": "edit", "reason": "x", "D": ""}, "D: empty; the question has 4 options"),
        ({"verdict": "edit", "reason": "x", "E": "Eve"}, "E: the question has 4 options"),
        ({"verdict": "edit", "reason": "x", "D": "bea"}, "D: the same as another option"),
        (
            {"verdict": "edit", "reason": "x", "stem": "Who led event 0?", "A": "Ann 0"},
            "stem: the edited question is in the exam already",
        ),
    ],
)
def test_a_wrong_cell_is_named_and_nothing_is_recorded(
    store: Store, tmp_path: Path, fill: Filled, change: dict[str, str], problem: str
) -> None:
    def filled(rows: list[dict[str, str]]) -> None:
        rows[0]["verdict"] = "accept"
        rows[4].update(change)

    with pytest.raises(ReviewError) as caught:
        fill(filled)
    assert str(tmp_path / "review.csv") in str(caught.value)
    assert f"row 6, {problem}" in str(caught.value)
    assert read_decisions(store.lake, CORPUS) == []


def test_all_problems_are_told_at_once(fill: Filled) -> None:
    def filled(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["verdict"] = "yes"
        rows += [dict(rows[0], verdict="accept"), dict(rows[0], verdict="accept")]

    with pytest.raises(ReviewError, match=r"row 2, (.|\n)*row 7, (.|\n)*row 9, .*row 8 decides"):
        fill(filled)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"question_id,stem\r\n", "row 1: no column verdict, reason, A, B"),
        (b"", "row 1: no column question_id"),
        ("question_id;ü".encode("latin-1"), "is not text in UTF-8. In Excel choose `CSV UTF-8"),
        (b"PK\x03\x04\xff\xfe", "is not text in UTF-8"),
    ],
)
def test_other_files_are_refused(
    store: Store, tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ReviewError, match=problem):
        read_review(path, Reviewable.load(store, CORPUS), NOW)
    with pytest.raises(ReviewError, match="cannot be read"):
        read_review(tmp_path / "absent.csv", Reviewable.load(store, CORPUS), NOW)


def test_spreadsheets_with_semicolons_and_more_columns_are_read(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "x.csv"
    write_review(path, Reviewable.load(store, CORPUS))
    rows = [row | {"my notes": "; well"} for row in _table(path)[:2]]
    rows[1]["verdict"] = "accept"
    _save(path, [*rows, dict.fromkeys(rows[0], "")], delimiter=";")
    (decision,) = read_review(path, Reviewable.load(store, CORPUS), NOW)
    assert decision.question_id == QUESTIONS[1].question_id


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-5 °C",
        "@x",
        "1/2",
        "54%",
        "9 November 1989",
        "May 1990",
        "007",
        "1E5",
        "TRUE",
        " =1+1",
        "＝1+1",
        "9. November 1989",
        "3 März",
        "9 de noviembre de 1989",
        "3 août 1990",
        "5 мая 1990",
        "1989年11月9日",
        "WAHR",
    ],
)
def test_what_a_spreadsheet_would_change_is_defused(text: str) -> None:
    assert defused(text) == f"'{text}"
    assert restored(defused(text)) == text


@pytest.mark.parametrize(
    "text",
    ["1903", "Bea", "'tis", "in May", "", "'", "8376 m", "0", "12 rooms", "Apollo 11", "Setúbal"],
)
def test_other_cells_are_as_they_are(text: str) -> None:
    assert defused(text) == restored(text) == text


@given(st.text(max_size=40))
def test_every_cell_comes_back(text: str) -> None:
    assert restored(defused(text)) == text


def test_a_damaged_journal_is_named(store: Store, fill: Filled) -> None:
    fill(_decide)
    path = journal_path(store.lake, CORPUS)
    assert path == store.lake / "reviews" / f"{CORPUS}.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # torn by a crash
    assert len(read_decisions(store.lake, CORPUS)) == 2
    path.write_bytes(whole.replace(b'"verdict"', b'"verdikt"', 1))
    with pytest.raises(BrokenArtefact, match="decision 1: not one of this version"):
        read_decisions(store.lake, CORPUS)


def test_the_command(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))

    def kinject(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["exam", "review", "--profile", "lab", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    path = tmp_path / "review.csv"
    here = ("--corpus", CORPUS)
    assert "0 accepted, 0 edited, 0 rejected, 6 open" in kinject(*here, "--status")
    said = kinject(*here, "--write", str(path))
    assert f"kinject exam review --profile lab --corpus {CORPUS} --read {path}" in said
    rows = _table(path)
    _decide(rows)
    _save(path, rows)
    said = kinject(*here, "--read", str(path))
    assert "1 accepted, 1 edited, 1 rejected, 3 open" in said
    assert f"kinject run --profile lab --corpus {CORPUS}" in said
    assert "nothing that was not decided before" in kinject(*here, "--read", str(path))
    assert "give one of" in kinject(*here, code=2)
    assert "give one of" in kinject(*here, "--status", "--read", str(path), code=2)
    assert "no such corpus; to review: " in kinject("--corpus", "x", "--status", code=2)
    assert "\b" not in kinject("--help")
