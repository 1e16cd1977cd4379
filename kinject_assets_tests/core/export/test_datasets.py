"""The folder of a corpus: what is in it, and that strangers' words stay words."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from kinject_assets.config import Profile
from kinject_assets.core import schema
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.export.datasets import export_dataset
from kinject_assets.core.export.folders import ExportError
from kinject_assets.core.plan import Plan
from kinject_assets.core.store import Cell, Store, write_rows

NOW = datetime(2031, 5, 1, tzinfo=UTC)
WIKI = "https://wiki.example.org/w/api.php"
HOSTILE = "Bob | <script>alert(1)</script>\n# [x](javascript:alert(1))"


def profile(exam: dict[str, Any]) -> Profile:
    return Profile.model_validate(
        {
            "name": "texts",
            "corpora": {
                "notes": {
                    "title": "Notes <b>",
                    "source": {"kind": "files", "folder": "texts"},
                    "exam": exam,
                }
            },
            "models": {"tiny": {"source": "somewhere/tiny"}},
            "grid": [{"corpora": ["notes"], "models": ["tiny"], "methods": ["base"]}],
        }
    )


def publish(plan: Plan, asset: str, **files: tuple[type, list[Any]]) -> None:
    cell = Cell(asset, ("notes",))
    with plan.store.draft(cell) as draft:
        for name, (row_type, rows) in files.items():
            write_rows(draft / f"{name}.parquet", rows, row_type)
        plan.store.publish(
            cell, draft, partition="notes", logical_version="v", fingerprint="f",
            code_version="1", inputs={}, config=plan.config(cell), started_at=NOW,
        )  # fmt: skip


def articles() -> list[schema.Article]:
    shared: dict[str, Any] = {
        "revised_at": NOW, "fetched_at": NOW, "text_sha256": "t", "n_chars": 1,
        "headings": [""], "bodies": ["b"],
    }  # fmt: skip
    return [
        schema.Article(
            article_id="a1", revision_id="77", source=WIKI, title=HOSTILE,
            url="https://wiki.example.org/wiki/Bob", licence="CC BY-SA 4.0", **shared,
        ),
        schema.Article(
            article_id="a2", revision_id="hash", source="files", title="Plain",
            url="javascript:alert(1)", licence="CC0", **shared,
        ),
    ]  # fmt: skip


def question(number: int, split: str, *, retired: bool = False) -> schema.Question:
    return schema.Question(
        question_id=f"q{number}", origin="llm", stem=HOSTILE, options=["a", "b"], gold=1,
        chunk_id="c1", generator="writer`", generation_id="g", triage="", split=split,
        retired=retired,
    )  # fmt: skip


def lake(root: Path, exam: dict[str, Any]) -> Plan:
    plan = Plan(profile(exam), Store(root))
    chunk = schema.Chunk(
        chunk_id="c1", article_id="a1", revision_id="77", ordinal=0, title=HOSTILE, section="",
        n_tokens=3, small=False, text=HOSTILE,
    )  # fmt: skip
    text = schema.Paraphrase(
        paraphrase_id="p1", chunk_id="c1", augmentation="paraphrase", purpose="train", ordinal=0,
        seed=0, generator="writer", generation_id="g", text="other words",
    )  # fmt: skip
    away = schema.Rejection(
        rejection_id="r", kind="question", chunk_id="c1", reason="<i>vague</i>", text="?"
    )
    publish(
        plan,
        "articles",
        articles=(schema.Article, articles()),
        exclusions=(schema.Exclusion, []),
    )
    publish(plan, "chunks", chunks=(schema.Chunk, [chunk]), retired=(schema.Chunk, []))
    rows = [question(1, "test"), question(2, "shots"), question(3, "test", retired=True)]
    publish(
        plan,
        "questions",
        questions=(schema.Question, rows),
        rejections=(schema.Rejection, [away]),
    )
    publish(
        plan,
        "paraphrases",
        paraphrases=(schema.Paraphrase, [text]),
        rejections=(schema.Rejection, []),
    )
    return plan


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    plan = lake(folder / "root", {"kind": "generated"})
    out = folder / "out"
    counts = export_dataset(plan.profile, plan.store, "notes", out)
    assert counts == {"questions": 2, "paraphrases": 1, "chunks": 1, "articles": 2}
    return out


def test_files_have_no_name_from_a_title(exported: Path) -> None:
    names = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert names == {
        "README.md", "ATTRIBUTION.md", "questions/test.parquet", "questions/shots.parquet",
        "paraphrases/train.parquet", "chunks/corpus.parquet", "articles/corpus.parquet",
    }  # fmt: skip


def test_a_question_names_its_source_at_its_revision(exported: Path) -> None:
    (row,) = pq.read_table(exported / "questions" / "test.parquet").to_pylist()
    assert (row["question"], row["choices"], row["answer"]) == (HOSTILE, ["a", "b"], 1)
    assert row["url"] == "https://wiki.example.org/w/index.php?oldid=77"
    assert row["licence"] == "CC BY-SA 4.0"
    assert row["revision_id"] == "77"


def test_the_card_names_what_is_there_and_keeps_words_as_words(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    fields = yaml.safe_load(head)
    for config in fields["configs"]:
        for file in config["data_files"]:
            assert (exported / file["path"]).is_file()
    assert fields["license_name"] == "CC BY-SA 4.0; CC0"
    assert "synthetic" not in fields["tags"]
    whole = body + (exported / "ATTRIBUTION.md").read_text()
    assert "<script" not in whole
    assert "<b>" not in whole
    assert "<i>" not in whole
    assert "](javascript" not in whole
    assert "`writer'` wrote 4 questions a chunk" in body
    assert "1 questions were turned away" in body
    assert "People looked at 0 of 2" in body


def test_every_article_is_attributed(exported: Path) -> None:
    text = (exported / "ATTRIBUTION.md").read_text()
    assert "(https://wiki.example.org/w/index.php?oldid=77) | 77 | 2031-05-01 | CC BY" in text
    assert "| Plain | hash | 2031-05-01 | CC0 |" in text


def test_mmlu_is_attributed(tmp_path: Path) -> None:
    plan = lake(tmp_path / "root", {"kind": "mmlu", "subject": "anatomy"})
    export_dataset(plan.profile, plan.store, "notes", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "MIT licence" in card
    assert "license_name: CC BY-SA 4.0; CC0; MIT" in card
    assert "The questions are those of MMLU, as published." in card
    assert "second request" not in card


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    empty = Store(tmp_path / "empty")
    with pytest.raises(ExportError, match="no corpus is called `other`; there are: notes"):
        export_dataset(profile({"kind": "generated"}), empty, "other", tmp_path / "out")
    with pytest.raises(MissingArtefact, match="kinject run"):
        export_dataset(profile({"kind": "generated"}), empty, "notes", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_moved_on_is_attributed_as_it_was_read(tmp_path: Path) -> None:
    plan = lake(tmp_path / "root", {"kind": "generated"})
    newer = [replace(articles()[0], revision_id="88"), articles()[1]]
    publish(plan, "articles", articles=(schema.Article, newer), exclusions=(schema.Exclusion, []))
    out = tmp_path / "out"
    export_dataset(plan.profile, plan.store, "notes", out)
    (row,) = pq.read_table(out / "questions" / "test.parquet").to_pylist()
    assert (row["revision_id"], row["url"]) == (
        "77",
        "https://wiki.example.org/w/index.php?oldid=77",
    )
    whole = (out / "ATTRIBUTION.md").read_text()
    assert "(https://wiki.example.org/w/index.php?oldid=77) | 77 |  | CC BY" in whole
    assert "oldid=88" not in whole
    for text in (whole, (out / "README.md").read_text()):
        assert "older than the corpus is now: 1 of its articles have other revisions now" in text
