"""A small study end to end: what it leaves, what it says, and that nothing is done twice."""

import json
import re
from pathlib import Path

import pytest

from kinject_assets_tests.e2e.conftest import Kinject

TABLES = [
    "answers", "articles", "checkpoints", "chunks", "claims", "comparisons", "conditions",
    "corpus_chunks", "corpus_questions", "damage", "generations", "letter_bias",
    "lineage", "models", "optimism", "paraphrases", "questions", "rejections", "retrieved",
    "scores", "triage", "trials",
]  # fmt: skip


def rows(kinject: Kinject, query: str) -> list[dict]:
    done = kinject("sql", query, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_answers_and_has_rows(kinject: Kinject, table: str) -> None:
    assert rows(kinject, f"SELECT count(*) AS n FROM {table}")[0]["n"] > 0


def test_tables_have_the_studys_layout_and_intervals(kinject: Kinject) -> None:
    (row,) = rows(kinject, "SELECT * FROM table2")
    for column in ("base", "base_rag", "ft_reg", "ft_par", "ft_reg_rag", "ft_par_rag"):
        assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
    printed = kinject("tables")
    assert printed.returncode == 0
    assert "lab-llama" in printed.stdout
    assert re.search(r"0\.\d{3} \[0\.\d\d, [01]\.\d\d\]", printed.stdout)


def test_every_test_question_is_answered_under_every_condition(kinject: Kinject) -> None:
    uneven = rows(
        kinject,
        """
        WITH wanted AS (
            SELECT corpus, count(*) AS n FROM corpus_questions
            WHERE split = 'test' AND NOT retired GROUP BY corpus
        ), answered AS (
            SELECT condition_id, c.corpus, count(question_id) AS n
            FROM conditions c LEFT JOIN answers USING (condition_id) GROUP BY ALL
        )
        SELECT condition_id FROM answered JOIN wanted USING (corpus) WHERE answered.n <> wanted.n
        """,
    )
    assert uneven == []


def test_the_control_saw_as_many_tokens_in_as_many_steps(kinject: Kinject) -> None:
    found = {
        row["recipe"]: (row["steps"], row["packed_tokens"], row["learning_rate"])
        for row in rows(kinject, "SELECT * FROM checkpoints WHERE recipe <> 'full.p00'")
    }
    assert found["full.p01"] == found["full.r01"]


def test_few_shot_articles_are_not_tested(kinject: Kinject) -> None:
    both = rows(
        kinject,
        """
        SELECT corpus, article_id FROM corpus_questions JOIN questions USING (question_id)
        JOIN chunks USING (chunk_id) GROUP BY ALL HAVING count(DISTINCT split) > 1
        """,
    )
    assert both == []


def test_sql_cannot_write_or_read_elsewhere(kinject: Kinject) -> None:
    assert kinject("sql", "DELETE FROM scores").returncode == 2
    assert kinject("sql", "SELECT * FROM read_text('/etc/hostname')").returncode == 2
    assert "no_such_table" in kinject("sql", "SELECT * FROM no_such_table").stderr


def test_the_audit_finds_every_artefact_sound(kinject: Kinject) -> None:
    done = kinject("audit", "--all")
    assert done.returncode == 0, done.stdout


def test_an_answer_is_traced_to_its_article(kinject: Kinject) -> None:
    (answer,) = rows(
        kinject,
        "SELECT answer_id FROM answers JOIN conditions USING (condition_id) "
        "WHERE method = 'ft_rag' ORDER BY answer_id LIMIT 1",
    )
    done = kinject("audit", "--answer", answer["answer_id"])
    assert done.returncode == 0, done.stderr
    for word in ("question", "chunk", "checkpoint", "article", "index.php?oldid="):
        assert word in done.stdout


def test_the_audit_names_a_flipped_byte(kinject: Kinject, study: tuple[Path, Path, str]) -> None:
    (path,) = (study[1] / "small" / "lake" / "faiss_index" / "comets").glob("v*/index.faiss")
    sound = path.read_bytes()
    try:
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        done = kinject("audit")
        assert done.returncode == 1
        assert "faiss_index/comets" in done.stdout
    finally:
        path.write_bytes(sound)


def test_started_again_nothing_is_done_again(kinject: Kinject) -> None:
    done = kinject("run")
    assert done.returncode == 0, done.stderr
    assert "0 made" in done.stderr
    assert "loading heavy" not in done.stderr


def test_the_report_is_there_and_asks_for_nothing(study: tuple[Path, Path, str]) -> None:
    text = (study[1] / "small" / "report.html").read_text()
    assert not re.search(r"""<(script|img|link|iframe)[^>]+(src|href)=["'](https?:)?//""", text)
    assert "synthetic" in text


def test_the_run_says_what_it_made_and_where_time_went(study: tuple[Path, Path, str]) -> None:
    assert "heavy imports" in study[2]
    assert "report: " in study[2]
    assert re.search(r"\d+ made, 0 were complete, 0 failed", study[2])


def test_no_key_is_stored(study: tuple[Path, Path, str]) -> None:
    for path in study[1].rglob("*"):
        if path.is_file() and path.suffix in {".json", ".jsonl", ".html", ".yaml"}:
            assert "sk-" not in path.read_text(errors="replace"), path
