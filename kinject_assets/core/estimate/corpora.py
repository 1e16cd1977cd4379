"""How large each corpus is, or will be, from the best knowledge there is, without the network."""

import glob
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from kinject_assets.config import Chunking, Corpus, Files, Profile, WikiEvents, WikiPages
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.files import list_files, read_files
from kinject_assets.core.corpus.sources import read_frozen, window_months
from kinject_assets.core.errors import KinjectError, SourceError
from kinject_assets.core.estimate.assumptions import MMLU_SIZES, Assumed
from kinject_assets.core.exams.mmlu import load_mmlu
from kinject_assets.core.plan import Plan, now
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Article, Chunk, Question
from kinject_assets.core.store import Cell

Item = TypeVar("Item")

Source = Literal["made", "read", "listed", "expected", "known", "computed", "unknown"]
"""Where a number comes from.

made: the artefact is in the lake. read: documents were read and cut just now. listed: from the
lengths of pages or files. expected: the profile's `expected_chunks`. known: MMLU's published size.
computed: from the number of chunks and the settings of the exam. unknown: nobody can say yet.
"""

SAMPLE = 100
"""Chunks or questions of a corpus, at most, whose texts are looked at."""

BYTES_A_SECOND = 2_000_000
"""Documents larger than what can be read and cut in the time there is are not opened at all."""


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from."""

    value: int | None
    source: Source


UNKNOWN = Figure(None, "unknown")


class Unknown(Exception):
    """A number that is needed is not known."""


def value(figure: Figure) -> int:
    """The number of a figure.

    Raises:
        Unknown: If it has none.
    """
    if figure.value is None:
        raise Unknown
    return figure.value


@dataclass(frozen=True, kw_only=True)
class CorpusSize:
    """How large a corpus and its exam are.

    Attributes:
        askable: Chunks that are long enough to be asked about.
        tokens: Of all chunks, by the profile's chunking tokenizer.
        characters: Of all chunks.
        test: Questions that will be scored.
        shots: Questions set aside for few-shot examples.
        questions: All, whatever their split.
        arithmetic: How the number of test questions follows, where it was computed: chunks that are
            asked about x questions kept of each x articles that are no few-shot examples.
        note: What was done, or what to do about what is not known.
    """

    corpus: str
    articles: Figure = UNKNOWN
    chunks: Figure = UNKNOWN
    askable: Figure = UNKNOWN
    tokens: Figure = UNKNOWN
    characters: Figure = UNKNOWN
    test: Figure = UNKNOWN
    shots: Figure = UNKNOWN
    questions: Figure = UNKNOWN
    arithmetic: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Material:
    """A corpus as far as it is known, for whoever reckons with it.

    Attributes:
        sample: Some of its chunks, evenly spread; a chunk of average length where none is there.
        ids: Of all chunks and of those asked about; `None` where there are none yet.
        months: The months of a window of events, each with the category that it is read from.
        stem: Mean characters of a question without its options.
        option: Mean characters of an option.
        options: Options of a question.
    """

    size: CorpusSize
    sample: Sequence[Chunk]
    ids: frozenset[str] | None
    askable_ids: frozenset[str] | None
    months: frozenset[str]
    stem: float
    option: float
    options: int


@dataclass(frozen=True, kw_only=True)
class _Text:
    articles: Figure = UNKNOWN
    chunks: Figure = UNKNOWN
    askable: Figure = UNKNOWN
    tokens: Figure = UNKNOWN
    characters: Figure = UNKNOWN
    sample: Sequence[Chunk] = ()
    ids: frozenset[str] | None = None
    askable_ids: frozenset[str] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Exam:
    test: Figure = UNKNOWN
    shots: Figure = UNKNOWN
    questions: Figure = UNKNOWN
    stem: float = 0.0
    option: float = 0.0
    arithmetic: str = ""
    note: str = ""


def measure(
    plan: Plan,
    assume: Assumed,
    *,
    within: float,
    pages: Mapping[str, Sequence[tuple[str, int]]] | None = None,
    report: Report = silent,
) -> dict[str, Material]:
    """Looks at every corpus that the grid asks for.

    Args:
        plan: The profile and its lake.
        assume: Gives what is not known.
        within: Seconds that reading documents may take for each corpus; what is left unread then is
            taken to be like what was read.
        pages: Corpus -> title and bytes of wikitext of its pages, where they were listed.
        report: Told which documents are read.
    """
    asked = dict.fromkeys(cell.parts[0] for cell in plan.cells if cell.parts)
    return {
        corpus: _material(plan, corpus, assume, within, (pages or {}).get(corpus), report)
        for corpus in asked
    }


def _material(
    plan: Plan,
    corpus: str,
    assume: Assumed,
    within: float,
    pages: Sequence[tuple[str, int]] | None,
    report: Report,
) -> Material:
    profile = plan.profile
    settings = profile.corpora[corpus]
    text = _text(plan, corpus, assume, within, pages, report)
    exam = _exam(plan, corpus, text)
    options = profile.exams.options if settings.exam.kind == "generated" else 4
    return Material(
        size=CorpusSize(
            corpus=corpus,
            articles=text.articles,
            chunks=text.chunks,
            askable=text.askable,
            tokens=text.tokens,
            characters=text.characters,
            test=exam.test,
            shots=exam.shots,
            questions=exam.questions,
            arithmetic=exam.arithmetic,
            note=" ".join(filter(None, (text.note, exam.note))),
        ),
        sample=_spread(text.sample),
        ids=text.ids,
        askable_ids=text.askable_ids,
        months=_months(profile, settings),
        stem=exam.stem or assume("stem_characters"),
        option=exam.option or assume("option_characters"),
        options=options,
    )


def _months(profile: Profile, settings: Corpus) -> frozenset[str]:
    source = settings.source
    if not isinstance(source, WikiEvents):
        return frozenset()
    of = f"{source.wiki} {source.categories} {source.depth}"
    months = window_months(source.until, source.window_months, now(profile))
    return frozenset(f"{of} {month}" for month in months)


def _spread(rows: Sequence[Item]) -> Sequence[Item]:
    """At most `SAMPLE` rows, evenly spread."""
    return rows[:: max(1, math.ceil(len(rows) / SAMPLE))]


# --- text


def _text(
    plan: Plan,
    corpus: str,
    assume: Assumed,
    within: float,
    pages: Sequence[tuple[str, int]] | None,
    report: Report,
) -> _Text:
    profile = plan.profile
    settings = profile.corpora[corpus]
    problem = ""
    try:
        if found := _made(plan, corpus, assume, within):
            return found
        if isinstance(settings.source, Files):
            return _read(corpus, settings.source, profile, assume, within, report)
    except KinjectError as error:
        problem = str(error)
    if pages is not None:
        return listed(pages, profile.chunking, assume)
    articles = UNKNOWN
    if isinstance(settings.source, WikiPages) and settings.source.frozen:
        try:
            frozen = read_frozen(profile.folder / settings.source.frozen)
            articles = Figure(len(frozen), "listed")
        except SourceError as error:
            problem = problem or str(error)
    if settings.expected_chunks:
        return replace(_expected(settings, profile, assume), articles=articles, note=problem)
    mend = f"Set corpora.{corpus}.expected_chunks in the profile"
    if not isinstance(settings.source, Files):
        mend += ", or ask the wiki with `kinject plan --list`"
    return _Text(articles=articles, note=" ".join(filter(None, (problem, f"{mend}."))))


def _made(plan: Plan, corpus: str, assume: Assumed, within: float) -> _Text | None:
    store = plan.store
    articles, chunks = Cell("articles", (corpus,)), Cell("chunks", (corpus,))
    fetched, cut = store.manifest(articles), store.manifest(chunks)
    if fetched is None:
        return None
    count = Figure(int(fetched.counts["articles"]), "made")
    if cut is None or not plan.same_config(chunks, cut):
        rows = store.rows(articles, "articles", Article)
        chunking = plan.profile.chunking
        text = _cut(rows, lambda row: row.n_chars, lambda row: [row], chunking, assume, within)
        return replace(text, articles=count)
    rows = store.rows(chunks, "chunks", Chunk)
    return _counted(rows, 1.0, "made", count)


def _counted(rows: Sequence[Chunk], scale: float, source: Source, articles: Figure) -> _Text:
    """The size of a corpus from chunks of it.

    Args:
        rows: The chunks.
        scale: Text of the whole corpus to theirs; 1 when they are all.
        source: Where they come from.
        articles: Number of articles.
    """

    def figure(value: float) -> Figure:
        return Figure(round(value * scale), source)

    whole = scale == 1.0
    return _Text(
        articles=articles,
        chunks=figure(len(rows)),
        askable=figure(sum(not row.small for row in rows)),
        tokens=figure(sum(row.n_tokens for row in rows)),
        characters=figure(sum(len(row.text) for row in rows)),
        sample=rows,
        ids=frozenset(row.chunk_id for row in rows) if whole else None,
        askable_ids=frozenset(row.chunk_id for row in rows if not row.small) if whole else None,
    )


def _counter(settings: Chunking, assume: Assumed) -> Callable[[str], int]:
    """Counts tokens without loading a tokenizer, which would take seconds or the network."""
    if settings.tokenizer == "words":
        return token_counter("words")
    length = assume("characters_per_token")
    return lambda text: math.ceil(len(text) / length)


def _cut(
    items: Sequence[Item],
    size: Callable[[Item], float],
    load: Callable[[Item], Sequence[Article]],
    settings: Chunking,
    assume: Assumed,
    within: float,
    largest: float = math.inf,
) -> _Text:
    """Cuts as many documents into chunks as time allows, drawn evenly; the rest goes by size.

    Args:
        items: The documents.
        size: Length of one, in any unit.
        load: Reads one: its articles.
        settings: How to cut.
        assume: Gives the length of a token.
        within: Seconds that it may take.
        largest: Longer ones are not read.
    """
    count = _counter(settings, assume)
    order = [place for place, item in enumerate(items) if size(item) <= largest]
    random.Random(0).shuffle(order)
    end = time.monotonic() + within
    found: dict[int, tuple[int, list[Chunk]]] = {}
    for place in order:
        if found and time.monotonic() > end:
            break
        articles = load(items[place])
        found[place] = (len(articles), chunk_articles(articles, settings, count))
    rows = [chunk for place in sorted(found) for chunk in found[place][1]]
    whole, part = sum(map(size, items)), sum(size(items[place]) for place in found)
    notes: list[str] = []
    if len(found) < len(items):
        notes.append(f"{len(found)} of {len(items)} documents were cut, the rest goes by size.")
    if settings.tokenizer != "words":
        notes.append("Tokens by characters: the tokenizer was not loaded.")
    scale = 1.0 if len(found) == len(items) else whole / max(1.0, part)
    articles = round(sum(n for n, _ in found.values()) * len(items) / max(1, len(found)))
    text = _counted(rows, scale, "read", Figure(articles, "read"))
    return replace(text, note=" ".join(notes))


def _read(
    corpus: str,
    source: Files,
    profile: Profile,
    assume: Assumed,
    within: float,
    report: Report,
) -> _Text:
    folder, today = profile.folder / source.folder, datetime.now(UTC)
    paths = list_files(source, profile.folder)
    if not paths:
        read_files(source, profile.folder, today)  # says that the patterns find nothing
    largest = within * BYTES_A_SECOND
    if min(path.stat().st_size for path in paths) > largest:
        sizes = [(path.name, round(path.stat().st_size * _prose(path, assume))) for path in paths]
        text = listed(sizes, profile.chunking, assume, prose=1.0)
        return replace(text, note="Too large to be read for an estimate: by the files' sizes.")
    report(f"{corpus}: reading some of {len(paths)} documents, {within:g} s at most")
    problems: list[str] = []

    def load(path: Path) -> Sequence[Article]:
        name = glob.escape(path.relative_to(folder).as_posix())
        try:
            one = source.model_copy(update={"patterns": (name,)})
            return read_files(one, profile.folder, today)[0]
        except SourceError as error:
            problems.append(str(error))
            return []

    text = _cut(
        paths,
        lambda path: path.stat().st_size,
        load,
        profile.chunking,
        assume,
        within,
        largest,
    )
    if problems and not text.chunks.value:
        raise SourceError(problems[0])
    skipped = f"{len(problems)} documents give no text: {problems[0]}" if problems else ""
    return replace(text, note=" ".join(filter(None, (text.note, skipped))))


def _prose(path: Path, assume: Assumed) -> float:
    """Part of a file that is text."""
    match path.suffix.lower():
        case ".pdf":
            return assume("pdf_text_share")
        case ".html" | ".htm":
            return assume("html_text_share")
    return 1.0


def listed(
    pages: Sequence[tuple[str, int]],
    settings: Chunking,
    assume: Assumed,
    prose: float | None = None,
) -> _Text:
    """The size of a corpus from the lengths of its pages alone.

    Args:
        pages: Title and length of each, in bytes of wikitext.
        settings: How they will be cut.
        assume: Gives the rest.
        prose: Part of a page that is plain text; `None` for that of wikitext.
    """
    prose = assume("prose_share") if prose is None else prose
    characters = [length * prose for _, length in pages]
    per_chunk = _chunk_length(settings, assume)
    chunks = round(sum(max(1.0, n / per_chunk) for n in characters if n >= 1))
    askable = round(chunks * assume("askable_share"))
    total = round(sum(characters))
    return _Text(
        articles=Figure(len(pages), "listed"),
        chunks=Figure(chunks, "listed"),
        askable=Figure(askable, "listed"),
        tokens=Figure(round(total / _token_length(settings, assume)), "listed"),
        characters=Figure(total, "listed"),
        sample=[_average(total / max(1, chunks))],
    )


def _expected(settings: Corpus, profile: Profile, assume: Assumed) -> _Text:
    count = settings.expected_chunks or 0
    if isinstance(settings.source, WikiEvents):
        count *= settings.source.window_months
    # Those that are not expected are short: the others are longer than the mean of all.
    characters = count * _chunk_length(profile.chunking, assume) / assume("askable_share")
    tokens = characters / _token_length(profile.chunking, assume)
    return _Text(
        chunks=Figure(count, "expected"),
        askable=Figure(count, "expected"),
        tokens=Figure(round(tokens), "expected"),
        characters=Figure(round(characters), "expected"),
        sample=[_average(characters / count)],
    )


def _chunk_length(settings: Chunking, assume: Assumed) -> float:
    """Characters of a chunk: most are nearly full, and each section ends with a short one."""
    full = settings.max_tokens * _token_length(settings, assume)
    each = assume("chunks_per_full_chunk") / full + 1 / assume("characters_per_short_chunk")
    return 1 / each


def _token_length(settings: Chunking, assume: Assumed) -> float:
    """Characters of a token of the chunking tokenizer."""
    words = settings.tokenizer == "words"
    return assume("characters_per_word" if words else "characters_per_token")


def _average(characters: float) -> Chunk:
    """A chunk of so many characters, to build prompts on."""
    text = ("average " * math.ceil(characters / 8))[: round(characters)]
    return Chunk(
        chunk_id="",
        article_id="",
        revision_id="",
        ordinal=0,
        title="A title of usual length",
        section="",
        n_tokens=0,
        small=False,
        text=text,
    )


# --- exams


def _exam(plan: Plan, corpus: str, text: _Text) -> _Exam:
    exam, cell = plan.profile.corpora[corpus].exam, Cell("questions", (corpus,))
    before = _Exam()
    try:
        if made := plan.store.manifest(cell):
            before = _questions(plan.store.rows(cell, "questions", Question), "made")
            if plan.same_config(cell, made):
                return before
        if exam.kind == "mmlu" and exam.folder is not None:
            return _questions(load_mmlu(exam, plan.profile.folder), "read")
    except KinjectError as error:
        return _Exam(note=str(error))
    if exam.kind == "generated":
        # Written by other settings, they still tell how long questions are here.
        written = _written(plan.profile, corpus, text)
        return replace(written, stem=before.stem, option=before.option)
    sizes = MMLU_SIZES.get(exam.subject)
    if sizes is None:
        return _Exam(note=f"Set exam.folder to count the questions of {exam.subject}.")
    test, shots, _ = sizes
    return _Exam(
        test=Figure(test, "known"),
        shots=Figure(shots, "known"),
        questions=Figure(sum(sizes), "known"),
    )


def _questions(rows: Sequence[Question], source: Source) -> _Exam:
    kept = [row for row in rows if not row.retired]
    some = _spread(kept)
    options = [option for row in some for option in row.options]
    return _Exam(
        test=Figure(sum(row.split == "test" for row in kept), source),
        shots=Figure(sum(row.split == "shots" for row in kept), source),
        questions=Figure(len(kept), source),
        stem=sum(len(row.stem) for row in some) / max(1, len(some)),
        option=sum(map(len, options)) / max(1, len(options)),
    )


def _written(profile: Profile, corpus: str, text: _Text) -> _Exam:
    """An exam that will be written: as many questions of each chunk as are kept."""
    if text.askable.value is None:
        return _Exam()
    exams = profile.exams
    total = text.askable.value * exams.keep
    test = round(total * (1 - exams.shots_share))
    settings = profile.corpora[corpus]
    chunks = f"{text.askable.value} chunks"
    if text.askable.source == "expected" and isinstance(settings.source, WikiEvents):
        months = settings.source.window_months
        chunks = f"{months} months x {settings.expected_chunks} chunks"
    return _Exam(
        test=Figure(test, "computed"),
        shots=Figure(total - test, "computed"),
        questions=Figure(total, "computed"),
        arithmetic=f"{chunks} x {exams.keep} x {1 - exams.shots_share:g} = {test:,}",
    )
