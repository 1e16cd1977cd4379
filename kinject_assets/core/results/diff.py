"""Which answers flipped between two results, and why: `kinject diff`, and the asset `results`."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.results.causes import Cause, Given, Investigation, Recorded
from kinject_assets.core.results.history import history
from kinject_assets.core.results.rendering import dumped
from kinject_assets.core.results.sides import NoSuchResults, Side, present_version, resolve
from kinject_assets.core.results.tables import Format, Result, opened, render
from kinject_assets.core.schema import Condition
from kinject_assets.core.scoring.prompts import LETTERS

FIELDS = tuple(
    name for name in Condition.__dataclass_fields__ if name not in {"condition_id", "corpus"}
)
"""What makes a condition the same one, but for the corpus."""

WIDTH = 100
"""Characters of a line of prose where no terminal says another number."""

SHOWN, BRIEF = 20, 10
"""Rows of a table that are shown unless all are asked for: in general, and in the UI."""

NAMED = 5
"""Systems that only one of two results has that are named unless all are asked for."""

_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "<>&[]"}

Outcome = Literal["won", "lost", "still wrong"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A condition that both results have.

    Attributes:
        system: Model, method, recipe, shots, K and retriever in words.
        n: Questions that both have an answer to.
        before: Accuracy on these before.
        after: And after.
        n_before: All questions that were answered before.
        n_after: And after.
        won: Questions that turned right; `lost`: wrong; `still_wrong`: another wrong option.
    """

    corpus: str
    system: str
    n: int
    before: float
    after: float
    n_before: int
    n_after: int
    won: int
    lost: int
    still_wrong: int


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An answer that is another one than before.

    Attributes:
        before: Letter of the option that was chosen; `after` likewise.
        causes: Why, one at least.
    """

    corpus: str
    system: str
    question_id: str
    stem: str
    outcome: Outcome
    before: str
    after: str
    causes: tuple[Cause, ...]


@dataclass(frozen=True, kw_only=True)
class Turnover:
    """A question that only one of the two exams has."""

    corpus: str
    question_id: str
    stem: str
    cause: Cause


@dataclass(kw_only=True)
class Diff:
    """What is otherwise in one database than in another.

    Attributes:
        retired: Questions that are not asked any more.
        new: Questions that were not asked before.
        only_before: Conditions that are not answered any more; `only_after`: those that were not.
    """

    before: str
    after: str
    lines: list[Line] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    retired: list[Turnover] = field(default_factory=list)
    new: list[Turnover] = field(default_factory=list)
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)

    @property
    def by_cause(self) -> list[tuple[Cause, int]]:
        """Causes with the number of flips that each is named for, the largest first."""
        counts = Counter(cause for flip in self.flips for cause in flip.causes)
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

    @property
    def headline(self) -> str:
        """The whole of it in a sentence."""
        answers = sum(line.n for line in self.lines)
        outcomes = Counter(flip.outcome for flip in self.flips)
        said = f"{len(self.flips)} of {answers} answers to the same questions flipped"
        if self.flips:
            said += (
                f": {outcomes['won']} won, {outcomes['lost']} lost, "
                f"{outcomes['still wrong']} wrong in another way"
            )
        return f"{said}. {len(self.retired)} questions retired, {len(self.new)} new."

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {
            **asdict(self),
            "headline": self.headline,
            "causes": [{**asdict(cause), "flips": n} for cause, n in self.by_cause],
        }


def compare(before: Side, after: Side, corpus: str = "") -> Diff:
    """Compares two results, or two corpora of the same ones.

    Args:
        before: One of them.
        after: The other.
        corpus: Only this corpus, where no side names one.

    Raises:
        MissingArtefact: If a database is not there.
        BrokenArtefact: If one cannot be read.
        QueryError: If one lacks a table or column: it was made by a version too old to compare.
    """
    found = Diff(before=before.label, after=after.label)
    with opened(before.database) as old_one, opened(after.database) as new_one:
        then, now = Recorded(old_one), Recorded(new_one)
        for old, new in _corpora(then, now, before, after, corpus):
            _compare_corpus(found, Investigation(then, now, old, new))
    return found


def _corpora(
    then: Recorded, now: Recorded, before: Side, after: Side, corpus: str
) -> list[tuple[str, str]]:
    """Pairs of corpora to compare."""
    if before.corpus:
        return [(before.corpus, after.corpus)]
    names = sorted({c["corpus"] for side in (then, now) for c in side.conditions})
    return [(name, name) for name in names if corpus in ("", name)]


def _key(condition: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(condition.get(name, False) for name in FIELDS)


def _compare_corpus(found: Diff, case: Investigation) -> None:
    old, new = (
        {_key(c): c for c in side.conditions if c["corpus"] == corpus}
        for side, corpus in zip((case.before, case.after), case.corpora, strict=True)
    )
    found.only_before += [f"{c['corpus']} {_system(c)}" for k, c in old.items() if k not in new]
    found.only_after += [f"{c['corpus']} {_system(c)}" for k, c in new.items() if k not in old]
    pairs = [(old[key], new[key]) for key in old if key in new]
    pairs.sort(key=lambda pair: _order(pair[0]))
    then, now = (
        side.answers(corpus)
        for side, corpus in zip((case.before, case.after), case.corpora, strict=True)
    )
    flipped = [
        _flipped(
            case,
            condition,
            then.get(earlier["condition_id"], {}),
            now.get(condition["condition_id"], {}),
        )
        for earlier, condition in pairs
    ]
    found.lines += [line for line, _ in flipped]
    questions = {question for _, flips in flipped for question in flips}
    most = max((c["k"] for c, _ in pairs), default=0)
    brought = tuple(
        side.retrieved(corpus, questions, most) if questions and most else {}
        for side, corpus in zip((case.before, case.after), case.corpora, strict=True)
    )
    for (condition, _), (line, flips) in zip(pairs, flipped, strict=True):
        for question, answers in flips.items():
            key, k = (condition["retriever"], question), condition["k"]
            retrieved = (brought[0].get(key, [])[:k], brought[1].get(key, [])[:k])
            found.flips.append(
                Flip(
                    corpus=line.corpus,
                    system=line.system,
                    question_id=question,
                    stem=_stem(case, question),
                    outcome=_outcome(*answers),
                    before=LETTERS[answers[0].choice],
                    after=LETTERS[answers[1].choice],
                    causes=case.of_answer(condition, question, answers, retrieved),
                )
            )
    _turnover(found, case)


def _stem(case: Investigation, question: str) -> str:
    """Words of a question; one that a review has rejected since is in the earlier results alone."""
    for side in (case.after, case.before):
        if question in side.questions:
            return side.questions[question][0]
    return question


def _flipped(
    case: Investigation,
    condition: Mapping[str, Any],
    then: Mapping[str, Given],
    now: Mapping[str, Given],
) -> tuple[Line, dict[str, tuple[Given, Given]]]:
    """The answers of a condition side by side, and those that differ by question."""
    both = sorted(then.keys() & now.keys())
    flips = {q: (then[q], now[q]) for q in both if then[q].choice != now[q].choice}
    outcomes = Counter(_outcome(*pair) for pair in flips.values())
    corpus = " → ".join(dict.fromkeys(case.corpora))
    line = Line(
        corpus=corpus,
        system=_system(condition),
        n=len(both),
        before=sum(then[q].correct for q in both) / max(1, len(both)),
        after=sum(now[q].correct for q in both) / max(1, len(both)),
        n_before=len(then),
        n_after=len(now),
        won=outcomes["won"],
        lost=outcomes["lost"],
        still_wrong=outcomes["still wrong"],
    )
    return line, flips


def _outcome(then: Given, now: Given) -> Outcome:
    if now.correct:
        return "won"
    return "lost" if then.correct else "still wrong"


def _turnover(found: Diff, case: Investigation) -> None:
    """Questions of one of the two exams."""
    then, now = case.before.exam(case.corpora[0]), case.after.exam(case.corpora[1])
    corpus = " → ".join(dict.fromkeys(case.corpora))
    for here, there, side, target in (
        (then, now, case.before, found.retired),
        (now, then, case.after, found.new),
    ):
        other = set(there)
        target += [
            Turnover(
                corpus=corpus,
                question_id=question,
                stem=side.questions[question][0],
                cause=case.of_question(question, gone=side is case.before),
            )
            for question in here
            if question not in other
        ]


def _system(condition: Mapping[str, Any]) -> str:
    parts = [condition["model"], condition["method"], condition["recipe"]]
    parts.append(f"{condition['shots']}-shot")
    if condition["k"]:
        parts += [f"k={condition['k']}", condition["retriever"]]
    return " ".join(filter(None, parts))


def _order(condition: Mapping[str, Any]) -> tuple[Any, ...]:
    methods = ("base", "rag", "ft", "ft_rag")
    names = ("model", "recipe", "shots", "retriever", "k")
    return (methods.index(condition["method"]), *(condition[name] for name in names))


# -- for people and programs ---------------------------------------------------------------------


def summary(before: Side, after: Side) -> dict[str, Any]:
    """What changed, as plain rows: for the report and the UI.

    Returns:
        `before`, `after` and `headline` are texts; `accuracy`, `causes` and `questions` lists of
        mappings, ready to be a table each. `accuracy` has the conditions with a flip alone.
    """
    found = compare(before, after)
    return {
        "before": found.before,
        "after": found.after,
        "headline": found.headline,
        "accuracy": _accuracy(found, everything=False).dicts(),
        "causes": _causes(found).dicts(),
        "questions": _questions(found).dicts(),
    }


def since_last(database: Path) -> dict[str, Any] | None:
    """`summary` of what changed since the results before the present ones; `None` without such.

    Args:
        database: The present results of a study.
    """
    try:
        before, after = resolve(database, "previous", "now", present_version(database.parent))
    except NoSuchResults:
        return None
    try:
        return summary(before, after)
    except KinjectError as error:
        # The report is whole without it.
        said = f"Not compared: {error}"
        empty = {"accuracy": [], "causes": [], "questions": []}
        return {"before": before.label, "after": after.label, "headline": said, **empty}


def last_change(database: Path) -> str:
    """What changed since the results before these, as Markdown; empty where there were none.

    Args:
        database: New results, of which no copy has been kept yet.
    """
    kept = history(database.parent)
    if not kept:
        return ""
    before = Side(kept[0].path, kept[0].label)
    return markdown(compare(before, Side(database, "now")), brief=True)


def format_diff(
    found: Diff, fmt: Format | str, everything: bool = False, width: int | None = None
) -> str:
    """A diff as text, Markdown, JSON, or CSV with a line for each flip.

    Args:
        found: The diff.
        fmt: One of `Format`. JSON and CSV always hold all of it.
        everything: Show all conditions and flips, not the first.
        width: Columns of the terminal that text shall fit; `None`: as wide as it gets.
    """
    if fmt == "json":
        return dumped(found.to_dict())
    if fmt == "csv":
        return render(_flips(found.flips), "csv")
    if fmt == "markdown":
        return markdown(found, everything=everything)
    return "\n\n".join(
        render(part, "text", width)
        if isinstance(part, Result)
        else textwrap.fill(part, width or WIDTH, break_on_hyphens=False)
        for part in _parts(found, everything)
    )


def markdown(found: Diff, *, everything: bool = False, brief: bool = False) -> str:
    """A diff as Markdown.

    Args:
        found: The diff.
        everything: Show all conditions and flips, not the first.
        brief: Only what fits on a page of the UI: no single flips.
    """
    parts = _parts(found, everything, brief)
    return "\n\n".join(
        render(_inert(part), "markdown") if isinstance(part, Result) else part for part in parts
    )


def _inert(table: Result) -> Result:
    """A table in whose texts, titles of strangers among them, nothing is HTML or a link."""
    return Result(
        table.columns,
        [
            tuple(v.translate(_MARKS) if isinstance(v, str) else v for v in row)
            for row in table.rows
        ],
    )


def _parts(found: Diff, everything: bool, brief: bool = False) -> list[str | Result]:
    """Sentences and tables, the summary first."""
    most = None if everything else BRIEF if brief else SHOWN
    headline = found.headline
    if unchanged := sum(not _changed(line) for line in found.lines):
        headline += f" {unchanged} of {len(found.lines)} systems answer as before."
    parts: list[str | Result] = [f"From {found.before} to {found.after}.", headline]
    titled = {
        "Accuracy on the questions that both have:": _accuracy(found, everything),
        "Why, with the flips that each cause is named for:": _causes(found),
        "Questions that came and went:": _questions(found),
    }
    if not brief:
        titled["Flips:"] = _flips(found.flips)
    for title, table in titled.items():
        if table.rows:
            parts += [title, Result(table.columns, table.rows[:most])]
            left = len(table.rows[most:]) if most else 0
            parts += [f"{left} more: `kinject diff` with --all shows them."] if left else []
    for name, systems in (("before", found.only_before), ("after", found.only_after)):
        if systems:
            shown = systems if everything else systems[:NAMED]
            left = len(systems) - len(shown)
            more = f" and {left} more" if left else ""
            parts.append(f"Answered only {name}: {'; '.join(shown)}{more}.")
    return parts


def _changed(line: Line) -> int:
    return line.won + line.lost + line.still_wrong


def _accuracy(found: Diff, everything: bool) -> Result:
    columns = ("corpus", "system", "n", "before", "after", "won", "lost", "still wrong")
    return Result(
        columns,
        [
            (
                line.corpus,
                line.system,
                line.n,
                round(line.before, 3),
                round(line.after, 3),
                line.won,
                line.lost,
                line.still_wrong,
            )
            for line in found.lines
            if everything or _changed(line)
        ],
    )


def _causes(found: Diff) -> Result:
    rows = [(n, cause.kind, cause.subject, cause.detail) for cause, n in found.by_cause]
    return Result(("flips", "cause", "what", "how"), rows)


def _questions(found: Diff) -> Result:
    counts = Counter(
        (kind, row.corpus, row.cause)
        for kind, rows in (("retired", found.retired), ("new", found.new))
        for row in rows
    )
    return Result(
        ("questions", "n", "corpus", "cause"),
        [
            (kind, n, corpus, str(cause))
            for (kind, corpus, cause), n in sorted(
                counts.items(), key=lambda item: (item[0][1], item[0][0] == "new", -item[1])
            )
        ],
    )


def _flips(flips: Sequence[Flip]) -> Result:
    return Result(
        ("corpus", "system", "question_id", "question", "outcome", "before", "after", "causes"),
        [
            (
                flip.corpus,
                flip.system,
                flip.question_id,
                flip.stem,
                flip.outcome,
                flip.before,
                flip.after,
                "; ".join(map(str, flip.causes)),
            )
            for flip in flips
        ],
    )
