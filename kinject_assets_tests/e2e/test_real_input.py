"""The same graph on real input: a real MediaWiki's pages and the real MMLU questions.

The model is a Llama of random weights: it tends to answer one letter, so that its accuracy is held
against what its letters and the right letters predict, not against 0.25.
"""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from kinject_assets_tests.e2e.conftest import command, environment
from kinject_assets_tests.tiny import random_encoder, random_llama

REALDATA = Path(
    os.environ.get("KINJECT_REALDATA") or Path(__file__).parents[3] / "shared" / "realdata"
)
MMLU = REALDATA / "mmlu"
SUBJECTS = {
    "anatomy": ("Anatomy", 135),
    "astronomy": ("Astronomy", 152),
    "college_chemistry": ("Chemistry", 100),
}

pytestmark = pytest.mark.skipif(not MMLU.is_dir(), reason=f"no real MMLU questions at {MMLU}")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, real_wiki: str) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("real")
    texts = [path.read_text() for path in sorted(MMLU.glob("*/*.csv"))]
    random_llama(folder / "llama", texts)
    random_encoder(folder / "encoder", texts)
    profile = {
        "name": "real",
        "contact": "kinject tests",
        "wikis": {"local": {"api_url": real_wiki, "licence": "CC BY-SA 3.0"}},
        "corpora": {
            subject: {
                "source": {"kind": "wiki", "wiki": "local", "categories": [category], "depth": 2},
                "exam": {"kind": "mmlu", "subject": subject, "folder": str(MMLU)},
                "table": 1,
            }
            for subject, (category, _) in SUBJECTS.items()
        },
        "chunking": {"tokenizer": "llama", "max_tokens": 160, "min_tokens": 20},
        "retrieval": {"encoder": {"model": "encoder"}},
        "models": {"random": {"source": "llama"}},
        "grid": [{"corpora": list(SUBJECTS), "models": ["random"], "methods": ["base", "rag"]}],
        "scoring": {"choice_format": "letter", "shots": [0, 5], "k": [1, 3], "batch_size": 16},
        "compute": "inline",
    }
    path = folder / "real.yaml"
    path.write_text(yaml.safe_dump(profile))
    done = subprocess.run(
        command("run", "--profile", str(path)),
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    return path, folder / "home"


def rows(study: tuple[Path, Path], query: str) -> list[dict]:
    done = subprocess.run(
        command("sql", "--profile", str(study[0]), query, "--format", "json"),
        env=environment(study[1]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_question_is_lost(study: tuple[Path, Path]) -> None:
    counts = rows(
        study,
        """
        SELECT corpus, method, shots, k, count(*) AS n
        FROM answers JOIN conditions USING (condition_id) GROUP BY ALL
        """,
    )
    assert len(counts) == len(SUBJECTS) * 2 * (1 + 2)
    assert {(row["corpus"], row["n"]) for row in counts} == {
        (subject, n) for subject, (_, n) in SUBJECTS.items()
    }


def test_articles_come_with_revisions_and_without_markup(study: tuple[Path, Path]) -> None:
    articles = rows(study, "SELECT * FROM articles")
    assert len({row["article_id"] for row in articles}) >= 10
    assert all(row["revision_id"].isdigit() and row["url"] for row in articles)
    marked = rows(
        study,
        r"SELECT chunk_id FROM chunks WHERE text LIKE '%[[%' OR text LIKE '%{{%' "
        "OR text LIKE '%<ref%'",
    )
    assert marked == []


def test_accuracy_is_what_letters_predict(study: tuple[Path, Path]) -> None:
    answered = rows(
        study,
        "SELECT condition_id, choice, gold, correct FROM answers ORDER BY condition_id",
    )
    for condition in {row["condition_id"] for row in answered}:
        mine = [row for row in answered if row["condition_id"] == condition]
        n = len(mine)
        chosen, gold = (Counter(row[k] for row in mine) for k in ("choice", "gold"))
        expected = sum(chosen[letter] * gold[letter] for letter in range(4)) / n**2
        accuracy = sum(row["correct"] for row in mine) / n
        spread = max(0.02, (expected * (1 - expected) / n) ** 0.5)
        assert abs(accuracy - expected) < 4 * spread, (condition, chosen, gold)


def test_every_question_got_chunks(study: tuple[Path, Path]) -> None:
    found = rows(
        study, "SELECT corpus, count(DISTINCT question_id) AS n FROM retrieved GROUP BY ALL"
    )
    wanted = rows(study, "SELECT corpus, count(*) AS n FROM corpus_questions GROUP BY ALL")
    assert sorted(map(str, found)) == sorted(map(str, wanted))
