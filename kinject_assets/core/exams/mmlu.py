"""MMLU (Hendrycks et al., 2021), from local files or the Hugging Face hub. No row is lost."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kinject_assets import config
from kinject_assets.core.errors import SourceError
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.schema import Question

HUB_DATASET = "cais/mmlu"
SPLITS = {"dev": "shots", "val": "validation", "test": "test"}
"""MMLU's name of a split -> ours."""

_HUB_NAMES = {"dev": "dev", "val": "validation", "test": "test"}
_ENDINGS = ("csv", "jsonl", "parquet")
_LETTERS = "ABCD"

Row = tuple[str, list[str], int]
"""Stem, options, index of the right option."""


def load_mmlu(exam: config.MMLUExam, base_folder: Path) -> list[Question]:
    """Loads a subject: its test questions, and those for few-shot examples and validation.

    Local files are `folder/SPLIT/SUBJECT_SPLIT.ext` or `folder/SUBJECT_SPLIT.ext` with SPLIT one of
    dev, val, test: csv without header (question, A, B, C, D, letter), or jsonl or parquet with
    `question`, `choices` and `answer` (index or letter).

    Args:
        exam: Subject, and folder if it is local.
        base_folder: Folder that a relative `exam.folder` is taken from.

    Raises:
        SourceError: If there is no test split, or a row is not of the form above.
    """
    if exam.folder is None:
        rows = {split: list(_hub_rows(exam.subject, split)) for split in SPLITS}
    else:
        rows = _local_rows(base_folder / exam.folder, exam.subject)
    return [
        question for split, found in rows.items() for question in _name(exam.subject, split, found)
    ]


def _name(subject: str, split: str, rows: Iterable[Row]) -> Iterator[Question]:
    # Real subjects hold rows that differ in their options alone, and may hold exact twins.
    twins: Counter[str] = Counter()
    for stem, options, gold in rows:
        content = ("mmlu", subject, SPLITS[split], stem, options, gold)
        nth = twins[content_hash(*content)]
        twins[content_hash(*content)] += 1
        yield Question(
            question_id=content_hash(*content, nth),
            origin="mmlu",
            stem=stem,
            options=options,
            gold=gold,
            chunk_id=None,
            generator="",
            generation_id="",
            triage="",
            split=SPLITS[split],
            retired=False,
        )


def _local_rows(folder: Path, subject: str) -> dict[str, list[Row]]:
    if Path(subject).name != subject:
        raise SourceError(f"exam.subject: `{subject}` is not the name of a subject, e.g. anatomy")
    readers = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
    rows: dict[str, list[Row]] = {}
    for split in SPLITS:
        path = _find(folder, subject, split)
        if path is not None:
            rows[split] = list(readers[path.suffix[1:]](path))
    if not rows.get("test"):
        raise SourceError(
            f"{folder}: no test questions of `{subject}`. Looked for "
            f"test/{subject}_test.{{{','.join(_ENDINGS)}}} and {subject}_test.* in that folder; "
            "set exam.folder, or leave it out to load from the Hugging Face hub."
        )
    return rows


def _find(folder: Path, subject: str, split: str) -> Path | None:
    for parent in (folder / split, folder):
        for ending in _ENDINGS:
            path = parent / f"{subject}_{split}.{ending}"
            if path.is_file():
                return path
    return None


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        line = 1
        try:
            for fields in reader:
                where, line = f"{path}, line {line}", reader.line_num + 1
                if not fields:
                    continue
                if len(fields) != 6:
                    raise SourceError(
                        f"{where}: {len(fields)} fields; a row holds six: question, the options "
                        "A, B, C, D, and the letter of the right one, without a header"
                    )
                yield _row(where, fields[0], fields[1:5], fields[5])
        except (csv.Error, UnicodeDecodeError) as error:
            raise SourceError(
                f"{path}, line {line}: not readable as CSV in UTF-8 ({error}). Save it so."
            ) from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # Split by bytes: a JSON string may hold characters that `splitlines` takes for line ends.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{where}: not JSON ({error}); each line is one object") from error
        yield _mapping_row(where, row)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path}: not readable as Parquet ({error})") from error
    for number, row in enumerate(rows, 1):
        yield _mapping_row(f"{path}, row {number}", row)


def _hub_rows(subject: str, split: str) -> Iterator[Row]:
    from datasets import load_dataset

    name = _HUB_NAMES[split]
    try:
        rows: Any = load_dataset(HUB_DATASET, subject, split=name)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{HUB_DATASET}, {subject}, {name}: cannot be loaded from the Hugging Face hub "
            f"({error}). Check exam.subject and the network, or name a local copy as exam.folder."
        ) from error
    for number, row in enumerate(rows, 1):
        yield _mapping_row(f"{HUB_DATASET}, {subject}, {name}, row {number}", row)


def _mapping_row(where: str, row: Any) -> Row:
    missing = (
        [name for name in ("question", "choices", "answer") if name not in row]
        if isinstance(row, dict)
        else ["question", "choices", "answer"]
    )
    if missing:
        raise SourceError(
            f"{where}: no {', '.join(f'`{name}`' for name in missing)}; a row holds `question`, "
            "`choices` (four texts) and `answer` (index from 0, or letter)"
        )
    return _row(where, row["question"], row["choices"], row["answer"])


def _row(where: str, stem: Any, options: Any, answer: Any) -> Row:
    if not isinstance(stem, str) or not stem.strip():
        raise SourceError(f"{where}: the question is empty or not text")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise SourceError(f"{where}: the options are not a list of texts")
    if len(options) != len(_LETTERS):
        raise SourceError(f"{where}: {len(options)} options; MMLU's questions have four")
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip() in _LETTERS:
        return stem, options, _LETTERS.index(answer.strip())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(_LETTERS):
        return stem, options, answer
    raise SourceError(
        f"{where}: the answer is {answer!r}; allowed: A, B, C, D, or an index from 0 to 3"
    )
