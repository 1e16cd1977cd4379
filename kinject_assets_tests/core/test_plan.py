"""The plan: what a grid asks for, from what each cell is made, and what makes it stale."""

from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Profile, load_profile
from kinject_assets.core.plan import NotAsked, Plan
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.made import make

TEXTS = {"kind": "files", "folder": "texts"}


def plan(root: Path, **changes: object) -> Plan:
    profile = Profile(
        **{
            "name": "mine",
            "corpora": {
                "docs": {"source": {"kind": "files", "folder": "texts"}},
                "more": {"source": {"kind": "files", "folder": "more"}},
            },
            "models": {"small": {"source": "a"}, "large": {"source": "b"}},
            "recipes": {"full.p00": None, "full.p02": None, "full.r02": None},
            "grid": [
                {
                    "corpora": ["docs"],
                    "models": ["small"],
                    "recipes": ["full.r02", "full.p00", "full.p02"],
                },
                {"corpora": ["more"], "models": ["large"], "methods": ["base"]},
            ],
            **changes,
        }  # pyright: ignore[reportArgumentType]
    )
    return Plan(profile, Store(root))


def test_the_grid_asks_for_its_cells_and_no_others(tmp_path: Path) -> None:
    cells = {str(cell) for cell in plan(tmp_path).cells}
    assert "checkpoint/docs/small.full.p02" in cells
    assert "answers_base/more/large" in cells
    assert not any(name.startswith(("embeddings/more", "paraphrases/more")) for name in cells)
    assert "answers_base/docs/large" not in cells


def test_inputs_come_before_what_is_made_from_them(tmp_path: Path) -> None:
    for grid in (plan(tmp_path), Plan(load_profile("lab"), Store(tmp_path))):
        seen: set[Cell] = set()
        for cell in grid.cells:
            assert {upstream for upstream, _ in grid.inputs(cell)} <= seen, cell
            seen.add(cell)


def test_a_cell_that_was_not_asked_for_is_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(NotAsked) as caught:
        plan(tmp_path).require(Cell("checkpoint", ("docs", "large.full.p00")))
    assert "corpora: [docs]" in str(caught.value)
    assert "models: [large]" in str(caught.value)
    assert "recipes: [full.p00]" in str(caught.value)


def test_states_follow_content(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    articles, chunks = Cell("articles", ("docs",)), Cell("chunks", ("docs",))
    assert grid.state(chunks) == "missing"
    make(grid, articles)
    make(grid, chunks)
    assert grid.state(chunks) == "complete"
    make(grid, articles, version="v")
    assert grid.state(chunks) == "complete", "the same content again changes nothing"
    make(grid, articles, version="w")
    assert grid.state(chunks) == "stale"


def test_configuration_makes_stale_only_what_it_decides(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    articles, chunks = Cell("articles", ("docs",)), Cell("chunks", ("docs",))
    make(grid, articles)
    make(grid, chunks)
    changed = plan(tmp_path, chunking={"max_tokens": 99})
    assert (changed.state(articles), changed.state(chunks)) == ("complete", "stale")
    faster = plan(tmp_path, llm={"concurrency": 2}, scoring={"batch_size": 1})
    assert faster.state(chunks) == "complete"


def test_another_paraphrase_does_not_make_a_smaller_recipe_stale(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    for asset in ("articles", "chunks", "validation_paraphrases"):
        make(grid, Cell(asset, ("docs",)))
    paraphrases = Cell("paraphrases", ("docs",))
    make(grid, paraphrases, version="two", prefixes={"p01": "a", "p02": "b"})
    checkpoint = Cell("checkpoint", ("docs", "small.full.p02"))
    make(grid, checkpoint)
    make(grid, paraphrases, version="three", prefixes={"p01": "a", "p02": "b", "p03": "c"})
    assert grid.state(checkpoint) == "complete"
    make(grid, paraphrases, version="other", prefixes={"p01": "a", "p02": "x", "p03": "c"})
    assert grid.state(checkpoint) == "stale"


QA = {"augmentation": "question_answer"}
AUGMENTED = {
    "recipes": {
        "full.p00": None,
        "full.p02": None,
        "full.r02": None,
        "full.p04.qa": QA,
        "full.r04.qa": None,
        "full.p01.qa": QA,
    },
    "grid": [
        {
            "corpora": ["docs"],
            "models": ["small"],
            "recipes": ["full.p00", "full.p02", "full.p01.qa", "full.p04.qa", "full.r04.qa"],
        },
        {"corpora": ["more"], "models": ["small"], "recipes": ["full.p01.qa"]},
    ],
}


def test_each_augmentation_is_written_as_far_as_a_recipe_reads_it(tmp_path: Path) -> None:
    grid = plan(tmp_path, **AUGMENTED)
    assert grid.paraphrases_per_chunk("docs") == {"paraphrase": 2, "question_answer": 4}
    assert grid.paraphrases_per_chunk("more") == {"question_answer": 1}
    assert Cell("paraphrases", ("more",)) in grid.cells
    paraphrases = Cell("paraphrases", ("docs",))
    read = {
        recipe: [part for cell, part in grid.inputs(checkpoint) if cell == paraphrases]
        for recipe in ("full.p00", "full.p02", "full.p04.qa", "full.r04.qa")
        for checkpoint in (Cell("checkpoint", ("docs", f"small.{recipe}")),)
    }
    assert read == {
        "full.p00": [],
        "full.p02": ["p02"],
        "full.p04.qa": ["question_answer.p04"],
        "full.r04.qa": [],
    }


def test_another_augmentation_makes_no_other_recipe_stale(tmp_path: Path) -> None:
    plain, augmented = plan(tmp_path), plan(tmp_path, **AUGMENTED)
    for asset in ("articles", "chunks", "validation_paraphrases"):
        make(plain, Cell(asset, ("docs",)))
    paraphrases = Cell("paraphrases", ("docs",))
    make(plain, paraphrases, version="two", prefixes={"p01": "a", "p02": "b"})
    checkpoint = Cell("checkpoint", ("docs", "small.full.p02"))
    make(plain, checkpoint)
    assert augmented.state(paraphrases) == "stale"
    prefixes = {"p01": "a", "p02": "b", "question_answer.p01": "c", "question_answer.p04": "d"}
    make(augmented, paraphrases, version="more", prefixes=prefixes)
    assert augmented.state(checkpoint) == "complete"
    asked = Cell("checkpoint", ("docs", "small.full.p01.qa"))
    make(augmented, asked)
    make(augmented, paraphrases, version="x", prefixes={**prefixes, "p02": "y"})
    assert (augmented.state(checkpoint), augmented.state(asked)) == ("stale", "complete")
    make(augmented, paraphrases, version="x", prefixes={**prefixes, "question_answer.p01": "z"})
    assert (augmented.state(checkpoint), augmented.state(asked)) == ("complete", "stale")


def test_the_number_of_texts_is_apart_from_what_decides_what_they_say(tmp_path: Path) -> None:
    grid, augmented = plan(tmp_path), plan(tmp_path, **AUGMENTED)
    larger = plan(tmp_path, augmentation={"validation_chunks": 9, "validation_per_chunk": 3})
    for asset in ("paraphrases", "validation_paraphrases"):
        cell = Cell(asset, ("docs",))
        for other in (augmented, larger):
            for part in ("augmentation", "llm"):
                assert other.config(cell)[part] == grid.config(cell)[part]
    validation = Cell("validation_paraphrases", ("docs",))
    assert larger.config(validation) != grid.config(validation) == augmented.config(validation)


REPLAYED = {
    "recipes": {
        "full.p02": None,
        "full.p02.replay": {"replay_share": 0.25},
        "full.r02.replay": None,
    },
    "training": {"replay_text": "general.txt"},
    "grid": [
        {
            "corpora": ["docs"],
            "models": ["small"],
            "recipes": ["full.p02", "full.p02.replay", "full.r02.replay"],
        }
    ],
}


def test_a_checkpoint_is_stale_when_the_text_that_damage_is_measured_on_changes(
    tmp_path: Path,
) -> None:
    grid = REPLAYED | {"training": {"general_text": "measured.txt", "replay_text": "general.txt"}}
    measured = plan(tmp_path, **grid, path=tmp_path / "mine.yaml")
    cell = Cell("checkpoint", ("docs", "small.full.p02"))
    (tmp_path / "measured.txt").write_text("Some text.")
    before = measured.config(cell)
    (tmp_path / "measured.txt").write_text("Another text.")
    assert measured.config(cell) != before
    assert "general_sha256" not in plan(tmp_path).config(cell)


def test_replay_decides_only_what_it_is_mixed_into(tmp_path: Path) -> None:
    plain = plan(tmp_path)
    replayed = plan(tmp_path, **REPLAYED, path=tmp_path / "mine.yaml")
    text = tmp_path / "general.txt"

    def cell(recipe: str) -> Cell:
        return Cell("checkpoint", ("docs", f"small.{recipe}"))

    assert replayed.config(cell("full.p02")) == plain.config(cell("full.p02"))
    mixed, control = (cell(f"full.{kind}02.replay") for kind in "pr")
    assert replayed.config(mixed)["training"]["replay_share"] == 0.25
    assert replayed.config(control)["training"] == replayed.config(mixed)["training"]
    text.write_text("Some text.")
    before = replayed.config(mixed)
    text.write_text("Another text.")
    assert replayed.config(mixed) != before
    assert replayed.config(cell("full.p02")) == plain.config(cell("full.p02"))


def test_results_can_be_made_from_what_is_there(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    assert grid.input_versions(Cell("results"))[0] == {}


def test_results_without_their_database_are_missing(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    make(grid, Cell("results"))
    assert grid.state(Cell("results")) == "missing"
    (tmp_path / "results.duckdb").touch()
    assert grid.state(Cell("results")) == "complete"


DAMAGED = {
    "damage": {"facts": ["more"], "reading": ["more", "docs"]},
    "grid": [
        {"corpora": ["docs"], "models": ["small"], "recipes": ["full.p00"]},
        {"corpora": ["more"], "models": ["small"], "methods": ["base", "rag"]},
    ],
}


def test_damage_is_measured_on_other_corpora_than_the_trained_one(tmp_path: Path) -> None:
    grid = plan(tmp_path, scoring={"shots": [0], "k": [1]}, **DAMAGED)
    cell = Cell("damage", ("docs", "small.full.p00"))
    assert cell in grid.cells
    assert grid.probes("docs") == {"facts": ("more",), "reading": ("more",)}
    assert [str(upstream) for upstream, _ in grid.inputs(cell)] == [
        "checkpoint/docs/small.full.p00",
        "questions/more",
        "answers_base/more/small",
        "retrieved/more",
        "chunks/more",
        "answers_rag/more/small",
    ]
    assert grid.cells.index(Cell("answers_rag", ("more", "small"))) < grid.cells.index(cell)
    with pytest.raises(NotAsked, match="names no exam to measure damage with"):
        plan(tmp_path).require(cell)


def test_a_cut_file_makes_its_cell_broken_and_nothing_else(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    articles, chunks = Cell("articles", ("docs",)), Cell("chunks", ("docs",))
    make(grid, articles)
    make(grid, chunks)
    path = grid.store.path(articles, "a.json")
    path.write_text("{")
    assert (grid.state(articles), grid.state(chunks)) == ("broken", "complete")
    assert "it was cut off or changed. Delete the folder" in grid.problem(articles)
    (grid.store.folder(articles) / "manifest.json").write_text("{")
    assert (grid.state(articles), grid.state(chunks)) == ("broken", "stale")
    assert "not a manifest" in grid.problem(articles)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ({"model": "lab:encoder"}, {}),
        ({"model": "lab:encoder", "batch_size": 3, "query_prefix": "ask "}, {}),
        ({"model": "lab:encoder", "passage_prefix": ""}, {"passage_prefix": ""}),
        ({"model": "BAAI/bge-large-en"}, {}),
        ({"model": "intfloat/e5-large"}, {"passage_prefix": "passage: "}),
        ({"model": "intfloat/e5-large", "passage_prefix": ""}, {}),
        ({"model": "lab:encoder", "dtype": "float16"}, {"dtype": "float16"}),
        ({"model": "lab:encoder", "max_tokens": 99}, {"max_tokens": 99}),
    ],
)
def test_what_decides_vectors(
    tmp_path: Path, encoder: dict[str, Any], expected: dict[str, Any]
) -> None:
    made = plan(tmp_path, retrieval={"encoder": encoder}).config(Cell("embeddings", ("docs",)))
    assert made == {"model": encoder["model"], "revision": None, **expected}


@pytest.mark.parametrize(
    ("retrieval", "expected"),
    [
        ({}, {"index": "auto", "memory_gb": 8.0}),
        ({"index": "flat", "index_memory_gb": 3}, {"index": "flat"}),
        (
            {"index": "hnsw", "index_parameters": {"hnsw_m": 9}},
            {"index": "hnsw", "parameters": {"hnsw_m": 9}},
        ),
        ({"index": "ivfpq", "index_memory_gb": 3}, {"index": "ivfpq", "memory_gb": 3.0}),
    ],
)
def test_what_decides_an_index(
    tmp_path: Path, retrieval: dict[str, Any], expected: dict[str, Any]
) -> None:
    made = plan(tmp_path, retrieval=retrieval).config(Cell("faiss_index", ("docs",)))
    assert made == expected


CHANGES: dict[str, dict[str, Any]] = {
    "cutoff": {"models": {"small": {"source": "a", "knowledge_cutoff": "2030-01-01"}}},
    "table": {"corpora": {"docs": {"source": TEXTS, "table": 1}}},
    "title": {"corpora": {"docs": {"source": TEXTS, "title": "Handbook"}}},
    "facts": {"corpora": {"docs": {"source": TEXTS, "new_facts_since": "2030-01-01"}}},
    "prices": {"llm": {"prices": {"writer": [1.0, 2.0]}}},
    "format": {"scoring": {"choice_format": "text"}},
    "rotation": {"scoring": {"rotation": True}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_the_results_say_of_the_profile_makes_them_stale(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    few = {
        "corpora": {"docs": {"source": TEXTS}},
        "models": {"small": {"source": "a"}},
        "grid": [{"corpora": ["docs"], "models": ["small"], "methods": ["base"]}],
    }
    grid, changed = plan(tmp_path, **few), plan(tmp_path, **few | change)
    (tmp_path / "results.duckdb").touch()
    make(grid, Cell("results"))
    assert grid.state(Cell("results")) == "complete"
    assert changed.state(Cell("results")) == "stale"


def test_the_price_of_hardware_is_the_reports_alone(tmp_path: Path) -> None:
    grid = plan(tmp_path)
    dear = plan(tmp_path, hardware={"usd_per_hour": 9.0}, training={"micro_batch": 3})
    assert dear.config(Cell("report")) != grid.config(Cell("report"))
    assert dear.config(Cell("report"))["recipes"] == grid.config(Cell("report"))["recipes"]
    assert dear.config(Cell("results")) == grid.config(Cell("results"))
