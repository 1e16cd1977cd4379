"""A small study of documents on this disk, of which parts can be made without any service."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinject_assets.config import Profile, load_profile
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.files import read_files
from kinject_assets.core.manifest import fingerprint
from kinject_assets.core.plan import CODE_VERSIONS, Plan
from kinject_assets.core.schema import Article, Chunk, Question
from kinject_assets.core.store import Cell, Store, write_rows

SENTENCE = "The mill of {place} was built in {year} by {n} workers from the valley below it. "


def write_documents(folder: Path, count: int = 6, sentences: int = 40) -> None:
    """Documents of like length, each with sentences of its own."""
    folder.mkdir(parents=True)
    for number in range(count):
        text = "".join(
            SENTENCE.format(place=f"Place{number}x{line}", year=1500 + line, n=line)
            for line in range(sentences)
        )
        (folder / f"doc{number}.txt").write_text(text)


ProfileOf = Callable[..., Profile]


@pytest.fixture
def profile_of(tmp_path: Path) -> ProfileOf:
    """A profile with one corpus of documents; arguments override its parts."""
    write_documents(tmp_path / "docs")

    def build(**changes: Any) -> Profile:
        content = {
            "name": "mine",
            "corpora": {"docs": {"source": {"kind": "files", "folder": "docs"}}},
            "chunking": {"max_tokens": 60, "min_tokens": 20},
            "llm": {"model": "gpt-4o-mini"},
            "retrieval": {"encoder": {"model": "BAAI/bge-small-en-v1.5"}},
            "models": {"small": {"source": "some/model-100m"}},
            "recipes": {"full.p00": None, "full.p02": None, "full.r02": None},
            "grid": [
                {
                    "corpora": ["docs"],
                    "models": ["small"],
                    "recipes": ["full.p00", "full.p02", "full.r02"],
                }
            ],
            "scoring": {"shots": [0], "k": [1, 2]},
            **changes,
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(content))))
        return load_profile(str(path))

    return build


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty lake."""
    return Store(tmp_path / "home" / "mine")


def chunks_of(profile: Profile) -> tuple[list[Article], list[Chunk]]:
    """The articles and chunks that a run would make of the documents."""
    source = profile.corpora["docs"].source
    assert source.kind == "files"
    articles, _ = read_files(source, profile.folder, datetime(2031, 1, 1, tzinfo=UTC))
    return articles, chunk_articles(articles, profile.chunking, token_counter("words"))


def publish(
    profile: Profile, store: Store, cell: Cell, rows: list[Any], row_type: type, **counts: Any
) -> None:
    """Publishes an artefact with rows as a run would."""
    plan = Plan(profile, store)
    inputs, _ = plan.input_versions(cell)
    with store.draft(cell) as draft:
        write_rows(draft / f"{cell.asset}.parquet", rows, row_type)
        store.publish(
            cell,
            draft,
            partition="/".join(cell.parts),
            logical_version="v",
            fingerprint=fingerprint(CODE_VERSIONS[cell.asset], plan.config(cell), inputs),
            code_version=CODE_VERSIONS[cell.asset],
            inputs=inputs,
            config=plan.config(cell),
            started_at=datetime.now(UTC),
            counts=counts,
        )


def make_text(profile: Profile, store: Store) -> tuple[list[Article], list[Chunk]]:
    """Makes articles and chunks of the documents."""
    articles, chunks = chunks_of(profile)
    characters = sum(row.n_chars for row in articles)
    counts = {"articles": len(articles), "characters": characters}
    publish(profile, store, Cell("articles", ("docs",)), articles, Article, **counts)
    publish(profile, store, Cell("chunks", ("docs",)), chunks, Chunk, chunks=len(chunks))
    return articles, chunks


def question(number: int, split: str, chunk_id: str, **changes: Any) -> Question:
    """A question on a chunk."""
    fields: dict[str, Any] = {
        "question_id": f"q{number}",
        "origin": "llm",
        "stem": f"When was the mill of Place{number} built, of all mills?",
        "options": ["1500", "1501", "1502", "1503"],
        "gold": 0,
        "chunk_id": chunk_id,
        "generator": "g",
        "generation_id": "",
        "triage": "",
        "split": split,
        "retired": False,
    }
    return Question(**fields | changes)
