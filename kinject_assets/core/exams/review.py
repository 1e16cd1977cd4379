"""The review of an exam by people: a table out, their decisions in, and what becomes of them.

Decisions are kept beside the lake's artefacts, in an append-only journal per corpus, so that they
outlive every re-making of the exam. The asset `questions` applies them; the last one that was made
on a question, or on what became of it, counts.
"""

import csv
import io
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kinject_assets.config import PROFILES, Profile
from kinject_assets.core import journal
from kinject_assets.core.corpus.releases import with_releases
from kinject_assets.core.errors import BrokenArtefact, ReviewError
from kinject_assets.core.exams.wording import plain, terms
from kinject_assets.core.exams.writing import Written, right_is_longest
from kinject_assets.core.manifest import content_hash, write_atomically
from kinject_assets.core.schema import Article, Chunk, Question, Rejection
from kinject_assets.core.store import Cell, Store

FOLDER = "reviews"
"""Folder of the lake with the journals."""

VERDICTS = ("accept", "reject", "edit")

LETTERS = string.ascii_uppercase[:8]
"""Columns of the options: as many as `exams.options` may be."""

COLUMNS = (
    *("question_id", "verdict", "reason", "stem"),
    *LETTERS,
    *("gold", "passage", "title", "url", "split"),
)

NEEDED = ("question_id", "verdict", "reason", "stem", *LETTERS, "gold")
"""Columns that a file must have to be read."""

BY_REVIEW = "+review"
"""What the generator of a question that a reviewer wrote anew ends with."""

LONGEST_CELL = 32_000
"""Characters of a cell; Excel cuts at 32,767."""

SHOWN_PROBLEMS = 20
"""Problems of a file that are told at once."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a reviewer decided about a question.

    Attributes:
        question_id: The question as it was shown.
        verdict: `accept`, `reject` or `edit`.
        reason: Why; may be empty for `accept`.
        stem: The question as it shall be; as it was, unless it is edited.
        options: Its options, in the order in which they are shown.
        gold: Index of the right one.
        at: When the file was read (ISO 8601).
        was: The question as it was shown.
    """

    question_id: str
    verdict: str
    reason: str
    stem: str
    options: list[str]
    gold: int
    at: str
    was: Question

    @property
    def becomes(self) -> str:
        """Id of the question as it shall be."""
        if self.verdict != "edit":
            return self.question_id
        return _written_id(self.stem, self.options, self.gold)

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What makes two decisions the same."""
        return (self.question_id, self.verdict, self.reason, self.stem, self.options, self.gold)


def _written_id(stem: str, options: Sequence[str], gold: int) -> str:
    return content_hash("llm", stem, list(options), gold)


# -- The journal -----------------------------------------------------------------------------------


def journal_path(lake: Path, corpus: str) -> Path:
    """Where the decisions on a corpus's questions are kept."""
    return lake / FOLDER / f"{corpus}.jsonl"


def read_decisions(lake: Path, corpus: str) -> list[Decision]:
    """All decisions on a corpus's questions, in the order in which they were made.

    Raises:
        BrokenArtefact: If the journal is damaged.
    """
    path = journal_path(lake, corpus)
    if not path.exists():
        return []
    mend = "Restore it from a backup, or take that line out: the decision is then lost."
    found: list[Decision] = []
    for number, row in enumerate(journal.read(path, mend), 1):
        try:
            was = Question(**row.pop("was"))
            found.append(Decision(**row, was=was))
        except (AttributeError, KeyError, TypeError) as error:
            raise BrokenArtefact(
                f"{path}, decision {number}: not one of this version ({error}). {mend}"
            ) from error
    return found


def record(lake: Path, corpus: str, decisions: Sequence[Decision]) -> None:
    """Adds decisions to a corpus's journal, all of them or none."""
    if decisions:
        path = journal_path(lake, corpus)
        path.parent.mkdir(parents=True, exist_ok=True)
        journal.append(path, *(asdict(decision) for decision in decisions))


def decisions_version(decisions: Sequence[Decision]) -> str:
    """Hash of what counts among decisions; empty where there are none."""
    last = sorted(content_hash(*decision.meaning) for _, decision in _last(decisions))
    return content_hash(last) if last else ""


def rejected(decisions: Sequence[Decision]) -> set[str]:
    """Ids of the questions that reviewers turned away."""
    return {
        question_id
        for ids, decision in _last(decisions)
        if decision.verdict == "reject"
        for question_id in ids
    }


def _last(decisions: Sequence[Decision]) -> list[tuple[frozenset[str], Decision]]:
    """For each question that was decided on, all ids that it had, and the last decision."""
    root: dict[str, str] = {}
    last: dict[str, Decision] = {}
    for decision in decisions:
        first = root.setdefault(decision.question_id, decision.question_id)
        root.setdefault(decision.becomes, first)
        last[first] = decision
    ids: dict[str, set[str]] = {}
    for question_id, first in root.items():
        ids.setdefault(first, set()).add(question_id)
    return [(frozenset(ids[first]), decision) for first, decision in last.items()]


# -- What becomes of an exam -----------------------------------------------------------------------


def apply_reviews(written: Written, decisions: Sequence[Decision]) -> Written:
    """An exam as reviewers want it. Applied twice, it gives the same.

    Rejected questions become rejections with the reason `review: ...`; edited ones become questions
    of their own, whose chain to the generation stays; accepted ones are counted. Decisions on
    questions that are not there, or retired, change nothing.

    Args:
        written: The exam, with or without earlier reviews in it.
        decisions: All decisions of the corpus, in order.

    Returns:
        The exam, with `reviewed` among its counts: how many questions are `accepted`, `edited`,
        `rejected` and `open`.
    """
    questions = {row.question_id: row for row in written.questions}
    rejections = {row.rejection_id: row for row in written.rejections}
    rejected: list[str] = []
    for ids, decision in _last(decisions):
        turned_away = {_rejection_id(question_id) for question_id in ids} & set(rejections)
        there = [row for row in questions.values() if row.question_id in ids and not row.retired]
        if not there and not turned_away:
            continue
        base = there[0] if there else _restored(decision.was, questions.values())
        for key in turned_away:
            del rejections[key]
        if decision.verdict == "reject":
            questions = {k: v for k, v in questions.items() if v.retired or k not in ids}
            rejection = _rejection(base, decision)
            rejections[rejection.rejection_id] = rejection
            rejected.append(decision.question_id)
        else:
            questions = _put(questions, ids, _decided(base, decision))
    active = [row for row in questions.values() if not row.retired]
    counts = {
        **written.counts,
        "right_is_longest": right_is_longest(active),
        "reviewed": standing([*(row.question_id for row in active), *rejected], decisions),
    }
    return Written(list(questions.values()), list(rejections.values()), counts)


def _restored(row: Question, questions: Iterable[Question]) -> Question:
    """A question that a review had taken out, in the split that its chunk's others are in."""
    splits = (other.split for other in questions if other.chunk_id == row.chunk_id)
    return replace(row, split=next(splits, row.split), retired=False)


def _rejection_id(question_id: str) -> str:
    return content_hash("review", question_id)


def _rejection(base: Question, decision: Decision) -> Rejection:
    return Rejection(
        rejection_id=_rejection_id(decision.question_id),
        kind="question",
        chunk_id=base.chunk_id or "",
        reason=f"review: {decision.reason}",
        text=" | ".join((decision.stem, *decision.options)),
    )


def _decided(base: Question, decision: Decision) -> Question:
    """The question as a reviewer accepted it or wrote it anew."""
    generator = decision.was.generator
    if decision.verdict == "edit" and not generator.endswith(BY_REVIEW):
        generator += BY_REVIEW
    return replace(
        base,
        question_id=decision.becomes,
        stem=decision.stem,
        options=list(decision.options),
        gold=decision.gold,
        generator=generator,
        triage=base.triage if base.question_id == decision.becomes else "",
    )


def _put(
    questions: Mapping[str, Question], ids: frozenset[str], decided: Question
) -> dict[str, Question]:
    """Questions with one in the place of those that it comes from, or else at its chunk's end."""
    found: dict[str, Question] = {}
    after = ""
    for key, row in questions.items():
        if key in ids and not row.retired:
            found.setdefault(decided.question_id, decided)
        else:
            found.setdefault(key, row)
            if row.chunk_id == decided.chunk_id and not row.retired:
                after = key
    if decided.question_id in found:
        return found
    rows: dict[str, Question] = {} if after else {decided.question_id: decided}
    for key, row in found.items():
        rows[key] = row
        if key == after:
            rows[decided.question_id] = decided
    return rows


def standing(question_ids: Iterable[str], decisions: Sequence[Decision]) -> dict[str, int]:
    """How many of some questions are accepted, edited, rejected and open, by what counts now."""
    verdict = {i: decision.verdict for ids, decision in _last(decisions) for i in ids}
    found = Counter(verdict.get(question_id, "open") for question_id in question_ids)
    names = {"accepted": "accept", "edited": "edit", "rejected": "reject", "open": "open"}
    return {name: found[key] for name, key in names.items()}


# -- The table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reviewable:
    """An exam with what a reviewer needs to judge it.

    Attributes:
        questions: As all decisions want them, retired ones left out; those that were rejected last.
        decisions: All that were made so far.
    """

    corpus: str
    questions: list[Question]
    chunks: dict[str, Chunk]
    articles: dict[str, Article]
    decisions: list[Decision]

    @classmethod
    def load(cls, store: Store, corpus: str) -> "Reviewable":
        """Reads it from the lake; decisions that the lake's exam has not met are in it.

        Raises:
            MissingArtefact: If the corpus has no questions yet.
        """
        parts = (corpus,)
        exam = Written(
            store.rows(Cell("questions", parts), "questions", Question),
            store.rows(Cell("questions", parts), "rejections", Rejection),
        )
        decisions = read_decisions(store.lake, corpus)
        exam = apply_reviews(exam, decisions)
        turned_away = {row.rejection_id for row in exam.rejections}
        rejected = [
            decision.was
            for _, decision in _last(decisions)
            if _rejection_id(decision.question_id) in turned_away
        ]
        return cls(
            corpus,
            [*(row for row in exam.questions if not row.retired), *rejected],
            {c.chunk_id: c for c in store.rows(Cell("chunks", parts), "chunks", Chunk)},
            {a.article_id: a for a in store.rows(Cell("articles", parts), "articles", Article)},
            decisions,
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many questions are accepted, edited, rejected and open."""
        return standing((row.question_id for row in self.questions), self.decisions)


def write_review(path: Path, exam: Reviewable) -> int:
    """Writes the table of an exam for review: CSV in UTF-8 that spreadsheets open.

    Cells that a spreadsheet would take for a formula, a date or a number other than it is written
    have an apostrophe in front, which reading takes off again.

    Returns:
        How many questions it holds.

    Raises:
        ReviewError: If the file is there already: it may hold a review.
    """
    if path.exists():
        raise ReviewError(
            f"{path}: is there already, and may hold a review. Read it with --read, or name "
            "another file."
        )
    last = {i: decision for ids, decision in _last(exam.decisions) for i in ids}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    for row in exam.questions:
        chunk = exam.chunks.get(row.chunk_id or "")
        article = exam.articles.get(chunk.article_id) if chunk else None
        decision = last.get(row.question_id)
        cells = {
            "question_id": row.question_id,
            # One that a reviewer wrote anew has been seen by a person.
            "verdict": decision.verdict.replace("edit", "accept") if decision else "",
            "reason": decision.reason if decision else "",
            "stem": row.stem,
            **dict(zip(LETTERS, row.options, strict=False)),
            "gold": LETTERS[row.gold],
            "passage": chunk.text if chunk else "",
            "title": chunk.title if chunk else "",
            "url": article.url if article else "",
            "split": row.split,
        }
        writer.writerow({name: defused(text) for name, text in cells.items()})
    write_atomically(path, "\ufeff" + buffer.getvalue())
    return len(exam.questions)


_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
"""What begins a formula, whatever language the spreadsheet speaks."""

_MONTH = (
    "jan jän gennaio enero feb fev fév mar mär mrz maart apr avr abr may mai maj mei maggio jun "
    "juin giugno jul juil luglio aug aoû ago sep settembre setembro oct okt ottobre outubro nov "
    "dec déc dez dicembre diciembre desember янв фев мар апр мая май июн июл авг сен окт ноя дек"
).replace(" ", "|")
"""Beginnings of months in the languages that spreadsheets are used in most."""

_VALUE = re.compile(
    r"(?=.*\d)(?!(?:0|[1-9]\d{0,14})$)[\s\d.,:/%$£€()+\-eE]+$"
    rf"|(?=.*\d)\d{{0,4}}[\s./-]*(?:de\s+)?(?:{_MONTH})[^\W\d_]*\.?(?:\s+de\b)?[\s.,/\d-]*$"
    r"|(?:\d+\s*[年月日년월일]\s*)+$|\d[\d:.]*\s*[ap]m$"
    r"|(?:true|false|wahr|falsch|vrai|faux|verdadero|verdadeiro|falso|vero|waar|onwaar|prawda|fałsz|"
    r"sant|falskt|истина|ложь)$",
    re.IGNORECASE,
)
"""A number, date, time or truth value that a spreadsheet may write in another way."""


def _touchy(text: str) -> bool:
    return bool(_FORMULA.match(text) or _VALUE.match(text))


def defused(text: str) -> str:
    """A cell's text such that a spreadsheet takes it for text, and at most its longest cell."""
    if len(text) > LONGEST_CELL:
        text = text[:LONGEST_CELL] + " ..."
    return f"'{text}" if _touchy(text) or (text[:1] == "'" and _touchy(text.lstrip("'"))) else text


def restored(text: str) -> str:
    """What `defused` was given; texts that it would not change are left as they are."""
    return text[1:] if text[:1] == "'" and _touchy(text.lstrip("'")) else text


def read_review(path: Path, exam: Reviewable, at: datetime) -> list[Decision]:
    """Reads a table back: the decisions in it that are not made yet. Nothing is recorded.

    Args:
        path: The file.
        exam: What it is a review of.
        at: When it is read.

    Raises:
        ReviewError: Naming every row and field that cannot be used, with the mend.
    """
    known = {row.question_id: row for row in exam.questions}
    last: dict[str, Decision] = {}
    family: dict[str, frozenset[str]] = {}
    for ids, decision in _last(exam.decisions):
        last |= dict.fromkeys(ids, decision)
        family |= dict.fromkeys(ids, ids)
    # A table that was read before may hold questions as they were before that.
    for decision in exam.decisions:
        if family[decision.question_id] & known.keys():
            known.setdefault(decision.question_id, decision.was)
    problems: list[str] = []
    decisions: list[Decision] = []
    rows_of: dict[str, int] = {}
    for number, cells in _rows(path):
        try:
            if not any(cells.values()):
                continue
            question_id = cells["question_id"].strip()
            if question_id not in known:
                raise _Wrong(
                    "question_id",
                    f"`{question_id}` is no question of {exam.corpus}; it may have changed since "
                    "the table was written. Write it again with --write",
                )
            decision = _decision(known[question_id], cells, at)
            if decision is None:
                continue
            if question_id in rows_of:
                raise _Wrong(
                    "question_id", f"row {rows_of[question_id]} decides on it, too; keep one row"
                )
            rows_of[question_id] = number
            own = family.get(question_id, frozenset((question_id,)))
            if decision.becomes in known.keys() - own:
                raise _Wrong("stem", "the edited question is in the exam already; reject this one")
            if not _made(decision, last.get(question_id)):
                decisions.append(decision)
        except _Wrong as wrong:
            problems.append(f"row {number}, {wrong}")
    if problems:
        shown = problems[:SHOWN_PROBLEMS]
        more = len(problems) - len(shown)
        raise ReviewError(
            f"{path}: nothing was recorded; mend and read it again:\n  "
            + "\n  ".join([*shown, *([f"and {more} more"] if more else [])])
        )
    return decisions


def _made(decision: Decision, made: Decision | None) -> bool:
    """Whether an earlier decision says as much: one that a reviewer edited is accepted so."""
    if made is None:
        return False
    if decision.verdict == "accept":
        return made.verdict != "reject" and made.becomes == decision.question_id
    return made.meaning == decision.meaning


class _Wrong(Exception):
    """What is wrong with a cell."""

    def __init__(self, column: str, why: str) -> None:
        super().__init__(f"{column}: {why}")


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """The table's rows with their numbers as a spreadsheet counts them."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ReviewError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ReviewError(
            f"{path}: is not text in UTF-8. In Excel choose `CSV UTF-8 (comma delimited)` when you "
            "save it."
        ) from error
    # Where a decimal is written with a comma, spreadsheets separate cells by semicolons.
    mark = re.match(r"\s*\"?question_id\"?([,;\t])", text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark[1] if mark else ",")
    try:
        header = next(reader, [])
        missing = [name for name in NEEDED if name not in header]
        if missing:
            raise ReviewError(
                f"{path}, row 1: no column {', '.join(missing)}. Keep the first row as "
                "`kinject exam review --write` wrote it."
            )
        for number, row in enumerate(reader, 2):
            cells = dict(zip(header, row, strict=False))
            yield number, {name: restored(cells.get(name, "")) for name in NEEDED}
    except csv.Error as error:
        raise ReviewError(
            f"{path}, line {reader.line_num}: not readable as CSV ({error}). Save it so."
        ) from error


def _decision(row: Question, cells: Mapping[str, str], at: datetime) -> Decision | None:
    """What a row of the table decides; `None` for a row that is still open.

    Raises:
        _Wrong: If a cell cannot be used.
    """
    verdict = cells["verdict"].strip().casefold()
    reason = plain(cells["reason"])
    if verdict and verdict not in VERDICTS:
        raise _Wrong("verdict", f"`{verdict}`; allowed: {', '.join(VERDICTS)}, or nothing")
    stem = plain(cells["stem"])
    options = [plain(cells[letter]) for letter in LETTERS]
    while options and not options[-1]:
        options.pop()
    letter = cells["gold"].strip().upper()
    shown = (plain(row.stem), [plain(option) for option in row.options], LETTERS[row.gold])
    changed = (stem, options, letter) != shown
    if not verdict:
        if changed or reason:
            what = "the question was changed" if changed else "there is a reason"
            raise _Wrong("verdict", f"empty, but {what}; write `edit`, or what you decided")
        return None
    if verdict in {"reject", "edit"} and not reason:
        raise _Wrong("reason", f"empty; `{verdict}` needs one, which stays with the question")
    if verdict == "accept" and changed:
        raise _Wrong("verdict", "`accept`, but the question was changed; write `edit`")
    if verdict == "edit":
        if not changed:
            raise _Wrong("verdict", "`edit`, but nothing was changed; write `accept` or `reject`")
        _check_edited(row, stem, options, letter)
        shown = (stem, options, letter)
    else:
        shown = (row.stem, list(row.options), LETTERS[row.gold])
    return Decision(
        question_id=row.question_id,
        verdict=verdict,
        reason=reason,
        stem=shown[0],
        options=shown[1],
        gold=LETTERS.index(shown[2]),
        at=at.astimezone(UTC).isoformat(timespec="seconds"),
        was=row,
    )


def _check_edited(row: Question, stem: str, options: list[str], letter: str) -> None:
    if not stem:
        raise _Wrong("stem", "empty")
    n = len(row.options)
    if len(options) > n:
        raise _Wrong(LETTERS[n], f"the question has {n} options; empty this cell")
    for place, name in enumerate(LETTERS[:n]):
        if place >= len(options) or not terms(options[place]):
            raise _Wrong(name, f"empty; the question has {n} options")
        twin = [plain(option).casefold() for option in options[:place]]
        if options[place].casefold() in twin:
            raise _Wrong(name, "the same as another option; each has to be another answer")
    if len(letter) != 1 or letter not in LETTERS[:n]:
        raise _Wrong("gold", f"`{letter}`; allowed: {', '.join(LETTERS[:n])}")


def review_exam(
    profile: Profile, store: Store, corpus: str, *, write: Path | None, read: Path | None
) -> str:
    """Writes a table, or reads one and records it, or neither; says how the review stands.

    Raises:
        ReviewError: If the corpus has no exam to review, or the file cannot be used.
        MissingArtefact: If the exam has not been written yet.
    """
    corpora = with_releases(profile, store.lake).corpora
    written = [name for name, found in corpora.items() if found.exam.kind == "generated"]
    if corpus not in written:
        problem = "its exam is published, not written" if corpus in corpora else "no such corpus"
        raise ReviewError(f"--corpus {corpus}: {problem}; to review: {', '.join(written) or '-'}")
    exam = Reviewable.load(store, corpus)
    shipped = profile.path is None or profile.path.parent == PROFILES
    named = f"--profile {profile.name if shipped else profile.path} --corpus {corpus}"
    if write is not None:
        n = write_review(write, exam)
        return (
            f"{write}: {n} questions. Fill in `verdict` (accept, reject, edit) and `reason`, then\n"
            f"  kinject exam review {named} --read {write}"
        )
    decisions = read_review(read, exam, datetime.now(UTC)) if read is not None else []
    record(store.lake, corpus, decisions)
    counts = Reviewable.load(store, corpus).counts if decisions else exam.counts
    stands = f"{corpus}: " + ", ".join(f"{n} {name}" for name, n in counts.items())
    if read is None:
        return stands
    if not decisions:
        return f"{stands}\n{read} decides nothing that was not decided before."
    return (
        f"{stands}\n{len(decisions)} decisions were recorded in "
        f"{journal_path(store.lake, corpus)}. To apply them:\n"
        f"  kinject run {named}"
    )
