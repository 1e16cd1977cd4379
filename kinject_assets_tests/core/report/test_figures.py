"""The study's figures: what they show is what the database holds, and nothing of it is cut off."""

import csv
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from kinject_assets.config import Profile, RecipeSpec
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.report import plots
from kinject_assets.core.report.figures import (
    FIGURES,
    PANELS,
    Source,
    StudyFigure,
    study_figures,
    write_figure,
)
from kinject_assets.core.report.plots import CurvePanel, LossPanel, Page, StackPanel, draw_page
from kinject_assets.core.results.loader import DATABASE, build_database
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic
from kinject_assets_tests.core.results.fixtures import REFERENCES

EVENTS = "events-2031-04"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with seeds and with another augmentation beside paraphrases; read it only."""
    store = synthetic.write_lake(tmp_path_factory.mktemp("figures"))
    synthetic.add_seeds(store, EVENTS, ("full.p04.s1", "full.p04.s2"))
    synthetic.add_augmented(store, EVENTS)
    build_database(store, synthetic.profile())
    return store.root / DATABASE


@pytest.fixture
def changed(database: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copyfile(database, tmp_path / DATABASE))


def change(database: Path, *statements: str) -> None:
    import duckdb

    with duckdb.connect(str(database)) as connection:
        for statement in statements:
            connection.execute(statement)


def figure(name: str, database: Path, references: Path | None = None) -> StudyFigure:
    return FIGURES[name](Source(database, synthetic.profile(), references))


def panels(found: StudyFigure, kind: type, corpus: str = EVENTS) -> list[Any]:
    mine = [page for page in found.pages if page.name.split(".")[1] == corpus]
    return [panel for page in mine for panel in page.panels if isinstance(panel, kind)]


def with_lines(lines: Sequence[str]) -> Profile:
    """The profile with lines that a figure asks for."""
    extra = yaml.safe_load("\n".join(lines))
    profile = synthetic.profile().model_dump(mode="json", exclude={"path"})
    profile["recipes"] |= extra.get("recipes", {})
    profile["grid"] += extra["grid"]
    return Profile.model_validate(profile)


# --- paraphrases


def test_paraphrases_stand_beside_their_controls(database: Path) -> None:
    found = figure("figure_paraphrases", database)
    closed = panels(found, CurvePanel)[0]
    assert closed.title == "tiny, 0-shot, 60 questions"
    curves = {curve.name: curve for curve in closed.curves}
    texts, control = (
        curves["paraphrases"],
        curves["as many steps, no texts: control of paraphrases"],
    )
    assert [x for x, _ in texts.points] == [0, 2, 4]
    assert [x for x, _ in control.points] == [0, 4]
    assert texts.points[0] == control.points[0], "both begin at the text alone"
    assert control.twin and not texts.twin and texts.style == control.style
    asked = curves["question_answer"]
    assert [x for x, _ in asked.points] == [2] and asked.style != texts.style
    assert curves["as many steps, no texts: control of question_answer"].style == asked.style
    levels = fetch(
        database,
        "SELECT accuracy FROM scores WHERE main AND corpus = ? AND shots = 0 AND stratum = 'all' "
        "AND k_rule = 'cross_fitted' AND method IN ('base', 'rag') ORDER BY method",
        (EVENTS,),
    ).rows
    assert [value for _, value in closed.levels] == [value for (value,) in levels]


def test_a_recipe_with_seeds_is_their_mean(database: Path) -> None:
    rows = {r.recipe: r for r in figure("figure_paraphrases", database).tables[
        "figure_paraphrases"][1] if r.shots == 0 and r.corpus == EVENTS}  # fmt: skip
    seeds = fetch(
        database,
        "SELECT accuracy FROM scores WHERE method = 'ft' AND recipe LIKE 'full.p04%' AND shots = 0 "
        "AND k_rule = 'fixed' AND stratum = 'all' AND corpus = ? ORDER BY seed",
        (EVENTS,),
    ).rows
    assert rows["full.p04"].by_seed == [value for (value,) in seeds] and len(seeds) == 3
    assert rows["full.p04"].accuracy == pytest.approx(sum(v for (v,) in seeds) / 3)
    assert rows["full.p02"].by_seed == []
    assert rows["full.p02.qa"].augmentation == "question_answer"


def test_the_verdict_is_that_of_the_comparison(database: Path) -> None:
    verdicts = fetch(
        database,
        "SELECT c.difference, c.verdict FROM comparisons c JOIN conditions a "
        "ON a.condition_id = c.condition_a WHERE family = 'par_vs_control' AND stratum = 'all' "
        "AND a.method = 'ft' AND a.shots = 5",
    ).rows
    lines = panels(figure("figure_paraphrases", database), CurvePanel)[1].lines
    assert len(lines) == len(verdicts) == 1
    assert lines[0].startswith(f"full.p04 - full.r04: {verdicts[0][0]:+.3f} [")
    assert lines[0].endswith(verdicts[0][1])


def test_a_line_below_a_mean_over_seeds_says_which_seed_it_compares(database: Path) -> None:
    ((difference,),) = fetch(
        database,
        "SELECT c.difference FROM comparisons c JOIN conditions a "
        "ON a.condition_id = c.condition_a WHERE family = 'par_vs_control' AND stratum = 'all' "
        "AND a.method = 'ft' AND a.shots = 0 AND a.seed = 0",
    ).rows
    found = figure("figure_paraphrases", database)
    closed, shown = panels(found, CurvePanel)
    (line,) = (line for line in closed.lines if line.startswith("full.p04 "))
    assert line.startswith(f"full.p04 - full.r04 (seed 0 alone): {difference:+.3f} [")
    # Recipes of one seed are compared as they are drawn.
    others = [other for other in (*closed.lines, *shown.lines) if other != line]
    assert others and not any("alone" in other for other in others)
    rows = {r.recipe: r for r in found.tables["figure_paraphrases"][1] if r.shots == 0}
    drawn = rows["full.p04"].accuracy - rows["full.r04"].accuracy
    assert drawn != pytest.approx(difference), "the mean is another difference"


def test_variants_of_one_augmentation_are_told_apart(changed: Path) -> None:
    for table, key in (("scores", "condition_id"), ("checkpoints", "checkpoint_id")):
        other = f"recipe || '-hot' AS recipe, {key} || 'hot' AS {key}"
        change(
            changed,
            f"INSERT INTO {table} SELECT * REPLACE ({other}) FROM {table} WHERE recipe LIKE '%.qa'",
        )
    names = {curve.name for curve in panels(figure("figure_paraphrases", changed), CurvePanel)[0]
        .curves}  # fmt: skip
    assert {"paraphrases", "question_answer, qa", "question_answer, qa-hot"} < names
    assert "question_answer" not in names


def test_a_variant_begins_at_the_text_alone_unless_it_is_trained_otherwise(database: Path) -> None:
    profile = synthetic.profile().model_dump(mode="json", exclude={"path"})
    asked = {"augmentation": "question_answer"}
    for settings, xs in ((asked, [0, 2]), ({**asked, "epochs": 9}, [2])):
        recipes = {**profile["recipes"], "full.p02.qa": settings}
        changed = Profile.model_validate({**profile, "recipes": recipes})
        found = FIGURES["figure_paraphrases"](Source(database, changed))
        curves = {curve.name: curve for curve in panels(found, CurvePanel)[0].curves}
        assert [x for x, _ in curves["question_answer"].points] == xs


def test_what_is_missing_is_said_with_lines_that_would_add_it(
    database: Path, changed: Path
) -> None:
    (whole,) = figure("figure_paraphrases", database).missing
    assert "implications" in whole.what and "question_answer" not in whole.what
    asked = with_lines(whole.lines)
    assert {asked.recipe_augmentation(r) for r in asked.grid[-1].recipes} == {"implications"}
    # Once the profile asks for it, the figure says so instead.
    (later,) = FIGURES["figure_paraphrases"](Source(database, asked)).missing
    assert "kinject run" in later.what and later.lines == ()

    change(changed, "DELETE FROM scores WHERE recipe LIKE '%.r%' OR method = 'rag'")
    found = figure("figure_paraphrases", changed)
    said = {m.what.split(":")[0]: m for m in found.missing}
    assert "No control" in said
    assert any("No line for rag" in what for what in said)
    for page in found.pages:
        draw_page(page)
    profile = Profile.model_validate(
        synthetic.profile().model_dump(mode="json", exclude={"path"})
        | {"recipes": {"full.p04": None}, "grid": [{"corpora": ["rivers"], "models": ["tiny"],
            "recipes": ["full.p04"]}]}
    )  # fmt: skip
    (control, *_) = FIGURES["figure_paraphrases"](Source(changed, profile)).missing
    added = with_lines(control.lines)
    assert added.grid[-1].recipes == ("full.p04", "full.r04")
    assert RecipeSpec.parse("full.r04").control_of == "full.p04"


# --- studies of other seeds or of variants alone

RENAMED = ("scores", "conditions", "checkpoints")


def with_seed(seed: str) -> Profile:
    """The profile with one seed of each recipe, the variant among them."""
    recipes = {f"{name}{seed}": None for name in synthetic.RECIPES[EVENTS]} | {
        f"full.p02.qa{seed}": {"augmentation": "question_answer"}
    }
    profile = synthetic.profile().model_dump(mode="json", exclude={"path"})
    cells = {"corpora": [EVENTS], "models": ["tiny"], "recipes": list(recipes)}
    return Profile.model_validate({**profile, "recipes": recipes, "grid": [cells]})


def test_a_study_of_another_seed_alone_is_drawn_like_that_of_seed_0(changed: Path) -> None:
    change(
        changed,
        "DELETE FROM scores WHERE seed > 0 OR method IN ('base', 'rag')",
        "DELETE FROM pooled",
        "DELETE FROM checkpoints WHERE recipe LIKE '%.s_'",
    )
    names = ("figure_paraphrases", "figure_k", "figure_rag_errors")
    before = {name: FIGURES[name](Source(changed, with_seed(""))) for name in names}
    change(
        changed,
        *(
            f"UPDATE {table} SET recipe = recipe || '.s3', seed = 3 WHERE recipe <> ''"
            for table in RENAMED
        ),
        "UPDATE scores SET main = false",
    )
    for name in names:
        found = FIGURES[name](Source(changed, with_seed(".s3")))
        assert found.rows == before[name].rows > 0
        assert found.tables == before[name].tables
        assert [page.panels for page in found.pages] == [page.panels for page in before[name].pages]


def test_variants_that_are_not_drawn_are_named(database: Path, changed: Path) -> None:
    for name in ("figure_k", "figure_rag_errors"):
        assert not any("qa" in row.recipe for row in figure(name, database).tables[name][1])
        (missing,) = figure(name, database).missing
        assert missing.what.startswith("Left out: full.p02.qa, full.r02.qa. ")
    change(
        changed,
        "DELETE FROM scores WHERE seed > 0 OR method IN ('base', 'rag') OR recipe LIKE '%.qa'",
        *(
            f"UPDATE {table} SET recipe = recipe || '.hot' WHERE recipe <> '' AND seed = 0"
            for table in RENAMED
        ),
        "UPDATE scores SET main = false",
    )
    for name in ("figure_k", "figure_rag_errors"):
        found = figure(name, changed)
        assert found.tables[name][1] == []
        (missing,) = found.missing
        assert "full.p04.hot" in missing.what and "kinject run" not in missing.what
        draw_page(found.pages[0])
    curves = panels(figure("figure_paraphrases", changed), CurvePanel)[0].curves
    assert {curve.name for curve in curves if not curve.twin} == {"paraphrases, hot"}


def test_what_was_scored_is_not_asked_of_a_run_again(changed: Path) -> None:
    change(changed, "DELETE FROM scores WHERE recipe <> 'full.p04'")
    profile = synthetic.profile().model_dump(mode="json", exclude={"path"})
    cells = {"corpora": [EVENTS], "models": ["tiny"], "methods": ["ft"], "recipes": ["full.p04"]}
    for more, run in (({}, False), ({"recipes": ["full.p00", "full.p04"]}, True)):
        asked = Profile.model_validate({**profile, "grid": [{**cells, **more}]})
        (missing,) = FIGURES["figure_paraphrases"](Source(changed, asked)).missing
        assert "two numbers of texts" in missing.what
        assert ("kinject run" in missing.what) == run == (not missing.lines)


# --- loss


def test_every_trial_is_there_and_the_kept_one_is_bold(changed: Path) -> None:
    change(
        changed,
        "INSERT INTO trials SELECT checkpoint_id, 1, 0.5, epoch, 900.0, 1000.0, false FROM trials",
    )
    found = figure("figure_training_loss", changed)
    count = fetch(changed, "SELECT count(*) FROM trials").rows[0][0]
    rows = found.tables["figure_training_loss"][1]
    assert len(rows) == count > 0
    assert {(r.trial, r.best_trial) for r in rows} == {(0, True), (1, False)}
    panel = panels(found, LossPanel)[0]
    assert (panel.kept, panel.epoch) == (0, 2)
    assert panel.lines == ("kept: learning rate 0.0001 (tried: 0.0001, 0.5), epoch 2",)
    # The trial that ran away does not flatten the one that was kept.
    axes = plots._laid_out(found.pages[0]).axes[0]
    assert axes.get_ylim()[1] < 10


# --- K


def test_k_is_that_of_both_rules_and_zero_is_without_retrieval(database: Path) -> None:
    rows = figure("figure_k", database).tables["figure_k"][1]
    for gap in fetch(database, "SELECT * FROM optimism WHERE main AND stratum = 'all'").dicts():
        key = (gap["corpus"], gap["model"], gap["shots"], gap["method"], gap["recipe"])
        mine = {r.k: r for r in rows if (r.corpus, r.model, r.shots, r.method, r.recipe) == key}
        assert sorted(mine) == [0, *synthetic.KS]
        assert [k for k, r in mine.items() if r.cross_fitted] == [gap["k_cross_fitted"]]
        assert [k for k, r in mine.items() if r.test_best] == [gap["k_test_best"]]
        assert {r.gap for r in mine.values()} == {gap["gap"]}
        (without,) = fetch(
            database,
            "SELECT accuracy FROM scores WHERE (corpus, model, shots, method, recipe, seed) = "
            "(?, ?, ?, ?, ?, 0) AND k_rule = 'fixed' AND stratum = 'all'",
            (*key[:3], "base" if gap["method"] == "rag" else "ft", key[4]),
        ).rows
        assert (mine[0].accuracy,) == without


def test_k_marks_and_sentences(database: Path) -> None:
    drawn = panels(figure("figure_k", database), CurvePanel)
    assert len(drawn) == 4, "five methods at two numbers of shots: two panels each"
    first = drawn[0].curves[0]
    rows = figure("figure_k", database).tables["figure_k"][1]
    mine = [r for r in rows if r.corpus == EVENTS and r.shots == 0 and r.method == "rag"]
    assert (first.ringed, first.starred) == (
        next(r.k for r in mine if r.cross_fitted),
        next(r.k for r in mine if r.test_best),
    )
    assert drawn[0].lines[0].startswith(f"base + RAG: cross-fitted K {first.ringed}, best K")
    assert f"gap {mine[0].gap:+.3f}" in drawn[0].lines[0]


def test_the_published_curve_stands_beside_ones_own(changed: Path) -> None:
    name = "UPDATE scores SET corpus = 'anatomy', model = 'mistral-7b' WHERE corpus = 'rivers'"
    change(changed, name)
    found = figure("figure_k", changed, REFERENCES)
    closed = panels(found, CurvePanel, "anatomy")[0]
    theirs = next(curve for curve in closed.curves if curve.plain)
    with (REFERENCES / "paper_table3_k.csv").open() as file:
        printed = [
            (int(r["k"]), float(r["accuracy"]))
            for r in csv.DictReader(file)
            if (r["task"], r["shots"], r["model"]) == ("anatomy", "0", "mistral-7b")
        ]
    assert [(x, p.value) for x, p in theirs.points] == printed and len(printed) == 5
    assert not any(curve.plain for panel in panels(found, CurvePanel) for curve in panel.curves)
    written = figure("figure_k", changed).tables["figure_k"][1]
    assert not any(row.method == "published" for row in written)


# --- errors of retrieval


def test_errors_are_those_of_the_view(changed: Path) -> None:
    change(changed, "UPDATE retrieved SET hit = false WHERE question_id LIKE '%-7'")
    found = figure("figure_rag_errors", changed)
    rows = found.tables["figure_rag_errors"][1]
    view = fetch(changed, "SELECT sum(hit_wrong), sum(miss_wrong) FROM rag_errors").rows[0]
    mine = [r for r in rows if r.recipe in synthetic.RECIPES[r.corpus] or not r.recipe]
    assert rows == mine, "no seeds, no variants"
    assert all(r.n == r.hit_right + r.miss_right + r.hit_wrong + r.miss_wrong for r in rows)
    assert sum(r.hit_wrong for r in rows) <= view[0] and sum(r.miss_wrong for r in rows) <= view[1]
    assert any(r.miss_wrong or r.miss_right for r in rows)
    for panel in panels(found, StackPanel):
        for _, bars in panel.groups:
            assert [k for k, _ in bars] == list(synthetic.KS)
            assert all(sum(shares) == pytest.approx(1) for _, shares in bars)
    recall = panels(found, CurvePanel)[0]
    (at_one,) = fetch(
        changed, "SELECT recall FROM retrieval_quality WHERE corpus = ? AND k = 1", (EVENTS,)
    ).rows
    assert recall.curves[0].points[0][1].value == at_one[0] < 1


def test_exams_that_name_no_chunk_are_left_out_with_a_note(changed: Path) -> None:
    change(changed, "UPDATE questions SET chunk_id = NULL WHERE question_id LIKE 'q-rivers%'")
    found = figure("figure_rag_errors", changed)
    assert not panels(found, StackPanel, "rivers") and panels(found, StackPanel)
    (missing,) = (m for m in found.missing if "MMLU" in m.what)
    assert "Left out: rivers." in missing.what
    assert missing.what in found.pages[0].notes


# --- all of them


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a study that has not begun."""
    root = tmp_path_factory.mktemp("empty")
    build_database(Store(root), synthetic.profile())
    return root / DATABASE


@pytest.mark.parametrize("name", FIGURES)
def test_a_study_without_results_says_what_it_needs(empty: Path, name: str) -> None:
    unasked = synthetic.profile().model_dump(mode="json", exclude={"path"})
    unasked["grid"] = [{"corpora": ["rivers"], "models": ["tiny"], "methods": ["base"]}]
    found = FIGURES[name](Source(empty, Profile.model_validate(unasked)))
    assert found.rows == 0
    (page,) = found.pages
    assert not page.panels and page.notes
    (missing,) = found.missing
    cells = with_lines(missing.lines).grid[-1]
    assert cells.recipes or "rag" in cells.methods
    assert Image.open(io.BytesIO(draw_page(page))).size[0] > 500
    # The synthetic profile asks for everything.
    (asked,) = figure(name, empty).missing
    assert asked.lines == () and "kinject run" in asked.what


def test_no_database_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="kinject run"):
        next(study_figures(tmp_path / DATABASE, synthetic.profile()))


def test_files_hold_every_page_and_row(database: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    found = figure("figure_rag_errors", database)
    written = write_figure(found, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert len(written) == 2 * len(found.pages) + 2 * len(found.tables)
    for name, (row_type, rows) in found.tables.items():
        table = pq.read_table(tmp_path / f"{name}.parquet")
        assert [row_type(**row) for row in table.to_pylist()] == list(rows)
        with (tmp_path / f"{name}.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert [int(line["k"]) for line in lines] == [row.k for row in rows]
    for path in tmp_path.glob("*.png"):
        assert Image.open(path).format == "PNG"
    for path in tmp_path.glob("*.svg"):
        assert path.read_text().startswith("<?xml")


def test_pages_that_are_gone_do_not_stay(database: Path, tmp_path: Path) -> None:
    gone = [f"figure_k.gone{end}" for end in (".png", ".2.svg", ".parquet", ".csv")]
    kept = ["figure_k.notes.txt", "figure_k2.png", "figure_kk.rivers.png", "figure_rag_errors.csv"]
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    written = write_figure(figure("figure_k", database), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in written} | set(kept)


def test_the_same_numbers_give_the_same_bytes(database: Path) -> None:
    page = figure("figure_k", database).pages[0]
    for fmt in ("png", "svg"):
        first = draw_page(page, fmt)
        draw_page.cache_clear()
        plots._laid_out.cache_clear()
        assert draw_page(page, fmt) == first


LONG = "a-model-with-a-long-name-of-70-billion-parameters-instruct-v0.3"


def pages_of(database: Path) -> Iterator[Page]:
    for found in study_figures(database, synthetic.profile(), REFERENCES):
        yield from found.pages


@pytest.mark.parametrize("model", ["tiny", LONG])
def test_no_text_is_cut_off_or_hides_another(changed: Path, model: str) -> None:
    from matplotlib.text import Text

    for table in ("scores", "checkpoints", "conditions"):
        change(changed, f"UPDATE {table} SET model = '{model}'")
    for page in pages_of(changed):
        drawn = plots._laid_out(page)
        plots._bytes(drawn, "png", plots.DOTS)  # a legend finds its place when it is drawn
        renderer = drawn.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
        unseen = {
            id(tick.label1)
            for axes in drawn.axes
            for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
            for tick in axis.get_major_ticks()
            if not min(limits) <= tick.get_loc() <= max(limits)
        }
        texts = [
            (text.get_text(), text.get_window_extent(renderer))
            for text in drawn.findobj(Text)
            if text.get_text().strip() and text.get_visible() and id(text) not in unseen
        ]
        assert len(texts) > 10
        for words, box in texts:
            assert box.x0 >= -1 and box.y0 >= -1, (page.name, words)
            assert box.x1 <= drawn.bbox.width + 1 and box.y1 <= drawn.bbox.height + 1, words
        for number, (words, box) in enumerate(texts):
            for other, over in texts[number + 1 :]:
                width = min(box.x1, over.x1) - max(box.x0, over.x0)
                height = min(box.y1, over.y1) - max(box.y0, over.y0)
                assert not (width > 1 and height > 3), (page.name, words, other)


def test_many_cells_go_to_several_pages(changed: Path) -> None:
    change(
        changed,
        f"""INSERT INTO checkpoints BY NAME SELECT * EXCLUDE (i) REPLACE (
                checkpoint_id || i AS checkpoint_id, 'model' || i AS model)
            FROM checkpoints, range(10) t(i) WHERE corpus = '{EVENTS}' AND recipe = 'full.p00'""",
        f"""INSERT INTO trials BY NAME SELECT * EXCLUDE (i) REPLACE (
                checkpoint_id || i AS checkpoint_id)
            FROM trials, range(10) t(i) WHERE checkpoint_id = 'ck-{EVENTS}-full.p00'""",
    )
    found = figure("figure_training_loss", changed)
    assert len(panels(found, LossPanel)) == 16
    names = [page.name for page in found.pages]
    assert names[:3] == [f"figure_training_loss.{EVENTS}{n}" for n in ("", ".2", ".3")]
    assert max(len(page.panels) for page in found.pages) <= PANELS
    assert sum(len(page.notes) > 0 for page in found.pages) <= 1


def test_curves_of_a_page_are_told_apart_without_colour(database: Path) -> None:
    for page in pages_of(database):
        marks: dict[str, tuple[int, bool, bool]] = {}
        for panel in page.panels:
            for curve in panel.curves if isinstance(panel, CurvePanel) else ():
                marks[curve.name] = (curve.style, curve.twin, curve.plain)
        assert len(set(marks.values())) == len(marks)
        shapes = {(style % 7, sum(divmod(style, 7)) % 7) for style, _, _ in marks.values()}
        assert len(shapes) == len({style for style, _, _ in marks.values()})
