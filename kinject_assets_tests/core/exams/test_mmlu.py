import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinject_assets import config
from kinject_assets.core.errors import SourceError
from kinject_assets.core.exams.mmlu import load_mmlu

REAL = Path(os.environ.get("KINJECT_REALDATA", "../shared/realdata")) / "mmlu"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real MMLU at {REAL}")

CSV = 'What is 1?,a,b,"c, or\nmore",d,C\n"Two ""lines""\nhere",a,b,c,d,A\n'


def _load(folder: Path, subject: str = "birds") -> list:
    exam = config.MMLUExam(kind="mmlu", subject=subject, folder=folder)
    return load_mmlu(exam, Path("/nowhere"))


@needs_real
@pytest.mark.parametrize(
    ("subject", "test", "validation"),
    [("anatomy", 135, 14), ("astronomy", 152, 16), ("college_chemistry", 100, 8)],
)
def test_real_subjects_lose_no_row(subject: str, test: int, validation: int) -> None:
    rows = _load(REAL.absolute(), subject)
    splits = Counter(row.split for row in rows)
    assert splits == {"test": test, "validation": validation, "shots": 5}
    assert len({row.question_id for row in rows}) == len(rows)
    assert {row.gold for row in rows} <= {0, 1, 2, 3}


def test_csv_jsonl_and_parquet_say_the_same(tmp_path: Path) -> None:
    for name in ("csv", "jsonl", "parquet"):
        (tmp_path / name / "test").mkdir(parents=True)
    (tmp_path / "csv/test/birds_test.csv").write_text("\ufeff" + CSV, encoding="utf-8")
    expected = _load(tmp_path / "csv")
    assert [(row.stem, row.options[2], row.gold) for row in expected] == [
        ("What is 1?", "c, or\nmore", 2),
        ('Two "lines"\nhere', "c", 0),
    ]
    rows = [{"question": r.stem, "choices": r.options, "answer": r.gold} for r in expected]
    rows[0]["answer"] = "C"
    (tmp_path / "jsonl/birds_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows[0]["answer"] = 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet/birds_test.parquet")
    assert _load(tmp_path / "jsonl") == expected
    assert _load(tmp_path / "parquet") == expected


def test_exact_twins_and_rows_with_other_options_all_stay(tmp_path: Path) -> None:
    rows = "Q,a,b,c,d,A\nQ,a,b,c,d,A\nQ,a,b,c,e,A\n"
    (tmp_path / "birds_test.csv").write_text(rows)
    first = _load(tmp_path)
    assert len({row.question_id for row in first}) == 3
    (tmp_path / "birds_test.csv").write_text("New,a,b,c,d,B\n" + rows)
    assert [row.question_id for row in _load(tmp_path)[1:]] == [row.question_id for row in first]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("Q,a,b,c,A\n", "line 3: 5 fields; a row holds six"),
        ("Q,a,b,c,d,E\n", "line 3: the answer is 'E'; allowed: A, B, C, D"),
        (",a,b,c,d,A\n", "line 3: the question is empty"),
        ('"Q,a,b', "line 3: not readable as CSV"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "birds_test.csv").write_text('"Q\nin two lines",a,b,c,d,A\n' + row)
    with pytest.raises(SourceError, match="birds_test.csv, " + said):
        _load(tmp_path)


def test_a_jsonl_row_without_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "birds_test.jsonl").write_text('{"question": "Q", "choices": []}\n')
    with pytest.raises(SourceError, match="line 1: no `answer`"):
        _load(tmp_path)


def test_a_missing_subject_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no test questions of `birds`.*birds_test"):
        _load(tmp_path)
    with pytest.raises(SourceError, match="not the name of a subject"):
        _load(tmp_path, "../birds")
