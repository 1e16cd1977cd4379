"""The Dagster UI in a real browser, on a finished study's copy.

`KINJECT_SCREENSHOTS=docs/images` keeps the pictures that the README shows.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.e2e.browsing import keep, needs_chromium, pick, serving_ui

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def home(study: tuple[Path, Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished study's KINJECT_HOME."""
    return shutil.copytree(study[1], tmp_path_factory.mktemp("ui") / "home")


@pytest.fixture(scope="module")
def ui(study: tuple[Path, Path, str], home: Path) -> Iterator[str]:
    with serving_ui(study[0], home) as url:
        yield url


def materialise(page: Page, ui: str, asset: str, *keys: str) -> None:
    """Launches one partition by clicking, and goes to the run's page."""
    page.goto(f"{ui}/assets/{asset}?view=partitions")
    page.get_by_role("button", name="Materialize").first.click(timeout=60_000)
    for key in keys:
        pick(page, key)
    keep(page, f"dagster-launch-{asset}")
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text("Launched run").wait_for(timeout=60_000)
    page.get_by_text("View", exact=True).locator("visible=true").last.click()
    page.wait_for_url("**/runs/*", timeout=60_000)


def test_the_graph_shows_every_group(ui: str, page: Page) -> None:
    page.goto(f"{ui}/asset-groups")
    groups = ["a_corpus", "b_exams", "c_augmentation", "d_retrieval", "e_training", "f_answers"]
    for group in [*groups, "g_results"]:
        page.get_by_text(group).first.wait_for(timeout=60_000)
    assert page.get_by_role("dialog").count() == 0, "a dialog covers the first visit"
    page.goto(f"{ui}/assets/report?view=lineage&lineageScope=upstream&lineageDepth=9")
    for asset in ("articles", "questions", "retrieved", "checkpoint", "answers_ft_rag", "results"):
        page.get_by_text(asset, exact=True).first.wait_for(timeout=60_000)
    page.wait_for_timeout(2_000)
    keep(page, "dagster-lineage")


def test_partitions_are_there_and_metadata_has_a_plot(ui: str, page: Page) -> None:
    page.goto(f"{ui}/assets/checkpoint?view=partitions&partition=events%7Clab-llama.full.p01")
    page.get_by_text("validation_loss").first.wait_for(timeout=60_000)
    keep(page, "dagster-checkpoint")
    page.get_by_role("row", name="loss [Show Markdown]", exact=True).get_by_text(
        "[Show Markdown]"
    ).click()
    plot = page.get_by_role("dialog").locator("img[src^='data:image/png']")
    plot.wait_for(timeout=30_000)
    assert plot.evaluate("image => image.naturalWidth") > 300
    keep(page, "dagster-plot")


def test_a_partition_is_materialised_by_clicking(ui: str, page: Page) -> None:
    materialise(page, ui, "answers_base", "events", "lab-llama")
    page.get_by_text("RUN_SUCCESS").first.wait_for(timeout=240_000)
    page.wait_for_timeout(1_000)
    keep(page, "dagster-run")
    page.goto(f"{ui}/assets/answers_base?view=partitions&partition=events%7Clab-llama")
    page.get_by_text("accuracy_0shot_k0").first.wait_for(timeout=60_000)
    page.get_by_role("row", name="letters [Show Markdown]").get_by_text("[Show Markdown]").click()
    page.get_by_role("dialog").locator("img[src^='data:image/png']").wait_for(timeout=30_000)


def test_a_cell_that_was_not_asked_for_refuses_with_the_line_that_would(
    ui: str, page: Page
) -> None:
    materialise(page, ui, "checkpoint", "comets", "lab-llama.full.p01")
    page.get_by_text("RUN_FAILURE").first.wait_for(timeout=240_000)
    said = page.get_by_text("does not ask for checkpoint/comets/lab-llama.full.p01").first
    said.wait_for(timeout=60_000)
    said.scroll_into_view_if_needed()
    page.get_by_text("recipes: [full.p01]").first.wait_for(timeout=60_000)
    keep(page, "dagster-refused")


def test_the_launchpad_documents_its_fields(ui: str, page: Page) -> None:
    page.goto(f"{ui}/locations/kinject/jobs")
    for job in ("full_study", "score_new_questions", "rebuild_results"):
        page.get_by_text(job, exact=True).first.wait_for(timeout=60_000)
    page.goto(f"{ui}/locations/kinject/jobs/full_study/playground")
    page.get_by_text("make_study").last.wait_for(timeout=60_000)
    page.locator(".CodeMirror-line", has_text="corpora").click()
    page.get_by_text("Only these corpora, of: comets, events.").wait_for(timeout=30_000)
    keep(page, "dagster-launchpad")
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*", timeout=60_000)
    page.get_by_text("RUN_SUCCESS").first.wait_for(timeout=240_000)
    page.get_by_text("were complete, 0 failed").first.wait_for(timeout=60_000)


def test_a_failed_audit_is_red_and_says_the_mend(ui: str, home: Path, page: Page) -> None:
    store, cell = Store(home / "small"), Cell("chunks", ("comets",))
    path = store.path(cell, "chunks.parquet")
    sound = path.read_bytes()
    path.write_bytes(sound[:50] + bytes([sound[50] ^ 1]) + sound[51:])
    try:
        page.goto(f"{ui}/assets/lineage_audit")
        page.get_by_role("button", name="Materialize").first.click(timeout=60_000)
        page.get_by_text("Launched run").wait_for(timeout=60_000)
        page.get_by_text("View", exact=True).locator("visible=true").last.click()
        page.wait_for_url("**/runs/*", timeout=60_000)
        page.get_by_text("RUN_SUCCESS").first.wait_for(timeout=240_000)
        page.goto(f"{ui}/assets/lineage_audit?view=checks&checkDetail=nothing_changed")
        page.get_by_text("Failed").first.wait_for(timeout=60_000)
        page.get_by_text("bytes of").first.wait_for(timeout=60_000)
        shown = page.locator("body").inner_text()
        assert path.name in shown
        assert f"delete {store.folder(cell)}" in shown
        page.wait_for_timeout(1_000)
        keep(page, "dagster-audit")
    finally:
        path.write_bytes(sound)


def test_runs_of_the_command_line_are_shown(ui: str, page: Page) -> None:
    page.goto(f"{ui}/runs")
    page.get_by_text("Success").first.wait_for(timeout=60_000)
    keep(page, "dagster-runs")
