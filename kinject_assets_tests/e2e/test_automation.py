"""The refresh as it happens by itself: webserver and daemon, a click, and no command after it."""

import time
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Page

from kinject_assets.config import load_profile
from kinject_assets.core.plan import TABLES, Plan
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.e2e.browsing import keep, needs_chromium, pick, serving_ui
from kinject_assets_tests.e2e.test_refresh import kinject, window

pytestmark = [pytest.mark.slow, needs_chromium]

RELEASE = "events-2031-03"


def test_the_schedule_ticks_and_looks_at_the_window(tmp_path: Path, page: Page) -> None:
    profile, home = window(tmp_path), tmp_path / "home"
    content = yaml.safe_load(profile.read_text())
    content["refresh"] = {"automatic": True, "cron": "* * * * *"}
    profile.write_text(yaml.safe_dump(content))
    kinject(profile, home, "refresh")
    with serving_ui(profile, home) as url:
        page.goto(f"{url}/locations/kinject/schedules/refresh_current_events_daily")
        page.get_by_text("1 run requested").or_(page.get_by_text("1 requested")).first.wait_for(
            timeout=180_000
        )
        page.wait_for_timeout(1_500)
        keep(page, "dagster-tick")
        page.goto(f"{url}/runs")
        page.get_by_text("refresh_current_events").first.wait_for(timeout=60_000)


def test_a_refresh_is_carried_on_to_answers_and_tables(tmp_path: Path, page: Page) -> None:
    profile, home = window(tmp_path), tmp_path / "home"
    kinject(profile, home, "refresh")
    kinject(profile, home, "lab", "advance", "--months", "1")
    store = Store(home / "window")
    results = store.manifest(Cell("results"))
    assert results is not None
    with serving_ui(profile, home) as url:
        page.goto(f"{url}/automation")
        for name in ("carry_changes", "refresh_current_events_daily", "nightly_catch_up"):
            page.get_by_text(name).first.wait_for(timeout=60_000)
        page.wait_for_timeout(1_500)
        keep(page, "dagster-automation")

        page.goto(f"{url}/locations/kinject/jobs/refresh_current_events")
        page.get_by_role("button", name="Materialize").first.click(timeout=60_000)
        pick(page, "events-current")
        page.get_by_role("button", name="Launch 1 run").click()
        page.get_by_text("Launched run").wait_for(timeout=60_000)

        # From here on nobody does anything.
        until = time.monotonic() + 420
        waiting = [Cell("answers_rag", (key, "lab-llama")) for key in ("events-current", RELEASE)]
        while True:
            plan = Plan(load_profile(str(profile)), store)
            current = store.manifest(Cell("results"))
            if (
                all(cell in plan.cells and plan.state(cell) == "complete" for cell in waiting)
                and current is not None
                and current.logical_version != results.logical_version
                and all(plan.state(Cell(name)) == "complete" for name in TABLES)
            ):
                break
            assert time.monotonic() < until, [f"{plan.state(cell)} {cell}" for cell in plan.cells]
            time.sleep(5)
        page.goto(f"{url}/runs")
        page.get_by_text("carry_changes").first.wait_for(timeout=60_000)
        page.wait_for_timeout(1_500)
        keep(page, "dagster-carried")
    assert "sound" in kinject(profile, home, "audit")
