"""The report in a real browser: the memo, the explorer, challenges, and that nothing leaves it."""

import csv
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from kinject_assets.core.report import html
from kinject_assets.core.report.costs import read_operations
from kinject_assets.core.report.evidence import FAMILIES, read_evidence
from kinject_assets.core.report.memo import judge_all, read_damage
from kinject_assets.core.results.loader import DATABASE, build_database
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Answer
from kinject_assets.core.statistics.decision import accuracy, assign, decide, holm_levels
from kinject_assets.core.statistics.intervals import paired_difference, wilson
from kinject_assets.core.statistics.tests import mcnemar
from kinject_assets.core.store import Cell, Store, read_rows
from kinject_assets_tests.core.results import synthetic
from kinject_assets_tests.e2e.browsing import keep, needs_chromium
from kinject_assets_tests.e2e.conftest import command, environment

pytestmark = [needs_chromium, pytest.mark.slow]

COPIES = 84
"""So often is each of the synthetic lake's 2 x 60 scored questions in the large database."""

HOSTILE = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    '<img src=x onerror="window.pwned = 3">',
)
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on 10,080 questions, some of them hostile, as a file."""
    folder = tmp_path_factory.mktemp("large")
    return _without_figures(_large_database(folder), folder / "report.html")


def _large_database(folder: Path) -> Path:
    store = synthetic.write_rich_lake(folder)
    build_database(store, synthetic.profile(), generations=synthetic.GENERATIONS)
    database = store.root / DATABASE
    copies = f"(SELECT unnest(range(1, {COPIES})) AS copy)"
    renamed = "question_id || '-' || copy AS question_id"
    scored = "SEMI JOIN corpus_questions c ON c.question_id = x.question_id AND c.split = 'test' " \
        "AND NOT c.retired"  # fmt: skip
    with duckdb.connect(str(database)) as connection:
        for table, more in (
            ("answers", ", answer_id || '-' || copy AS answer_id"),
            ("retrieved", ""),
            ("questions", ", 'Copy ' || copy || ' of: ' || stem AS stem"),
            ("corpus_questions", ""),
        ):
            connection.execute(
                f"INSERT INTO {table} SELECT * EXCLUDE (copy) REPLACE ({renamed}{more}) FROM "
                f"(SELECT * FROM {table} x {scored}), {copies}"
            )
        first, second, third = HOSTILE
        connection.execute("UPDATE questions SET stem = ? WHERE question_id LIKE '%-7'", [first])
        connection.execute("UPDATE questions SET options = list_concat([?], options[2:])", [third])
        connection.execute("UPDATE articles SET title = ?, url = 'javascript:alert(1)'", [second])
        connection.execute("UPDATE articles SET permalink = url")
        connection.execute("UPDATE chunks SET text = ?, section = ?", [second + third, first])
    return database


def _without_figures(database: Path, path: Path) -> Path:
    """Writes a report without the study's figures, which take long and are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "FIGURES", {})
        html.write_report(database, synthetic.profile(), path)
    return path


@contextmanager
def watched(page: Page) -> Iterator[None]:
    """Fails on any error of the page, and on any request but for the page itself."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("dialog", lambda dialog: found.append(f"dialog: {dialog.message}"))
    page.on("console", lambda m: found.append(m.text) if m.type in {"error", "warning"} else None)
    page.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else found.append(r.url),
    )
    yield
    assert found == []


def opened(page: Page, path: Path, hash_: str = "") -> Page:
    page.goto(path.as_uri() + hash_)
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    return page


def hits(page: Page) -> int:
    return int((page.locator("#hits").text_content() or "").split()[0].replace(",", ""))


def serious(page: Page) -> list[Any]:
    """axe-core's serious and critical findings."""
    found = Axe().run(page)
    return [
        (v["id"], v["impact"], [n["html"][:200] for n in v["nodes"]][:3])
        for v in found.response["violations"]
        if v["impact"] in SERIOUS
    ]


# -- The report of a real small study --------------------------------------------------------------


@pytest.fixture
def report(study: tuple[Path, Path, str]) -> Path:
    return study[1] / "small" / "report.html"


def test_the_memo_is_above_the_fold_and_nothing_is_asked(report: Path, page: Page) -> None:
    assert report.stat().st_size < 10_000_000
    with watched(page):
        opened(page, report)
        expect(page.get_by_role("heading", name="Decision memo")).to_be_in_viewport()
        expect(page.locator(".card .badge").first).to_be_in_viewport()
        expect(page.locator(".card", has_text="What turns it").first).to_be_visible()
        keep(page, "report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, report: Path, scheme: Any) -> None:
    page = browser.new_page(viewport={"width": 1500, "height": 950}, color_scheme=scheme)
    opened(page, report)
    page.locator("#rows a").first.click()
    page.get_by_label("wrong: its key").check()
    expect(page.locator("#challenges")).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()
    assert serious(page) == []
    if scheme == "dark":
        page.evaluate("window.scrollTo(0, 0)")
        page.get_by_role("button", name="Remove all").click()
        page.evaluate("window.scrollTo(0, 0)")
        keep(page, "report-dark")
    # The toggle wins over what the system asks for, and stays.
    page.locator("#theme").click()
    other = "dark" if scheme == "light" else "light"
    opened(page, report)
    assert page.evaluate("document.documentElement.dataset.theme") == other
    assert serious(page) == []
    page.close()


def test_without_a_script_memo_and_tables_are_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    expect(page.get_by_role("heading", name="Decision memo")).to_be_visible()
    assert page.locator("tr[data-costs] [data-break-even]").first.text_content()
    expect(page.locator("#filters")).to_be_hidden()
    context.close()


def test_in_print_there_are_memo_and_tables_alone(report: Path, page: Page) -> None:
    opened(page, report)
    page.emulate_media(media="print")
    expect(page.get_by_role("heading", name="Decision memo")).to_be_visible()
    expect(page.get_by_role("heading", name="Table 2: new facts")).to_be_visible()
    for hidden in ("#explorer", "nav", "#theme"):
        expect(page.locator(hidden)).to_be_hidden()


def test_a_question_shows_where_everything_came_from(report: Path, page: Page) -> None:
    with watched(page):
        opened(page, report)
        page.locator("select[name=corpus]").select_option(label="events")
        page.locator("select[name=preset]").select_option(label="RAG right, FT wrong")
        assert 0 < hits(page) < 50
        expect(page.locator("#rows td.right").first).to_be_visible()
        page.evaluate("document.getElementById('explorer').scrollIntoView()")
        keep(page, "report-explorer")
        page.locator("#rows a").first.click()
        question = page.locator("#question")
        expect(question.get_by_text("(counted as right)")).to_be_visible()
        expect(question.get_by_text("a hit: the passage it was written from")).to_be_visible()
        assert "oldid=" in (question.locator(".passage a").first.get_attribute("href") or "")
        expect(question.get_by_text("invented text, CC0").first).to_be_visible()
        answer = question.locator("tbody tr").first.locator("code").text_content() or ""
        assert len(answer) == 32
        database = report.parent / DATABASE
        assert fetch(database, "SELECT 1 FROM answers WHERE answer_id = ?", [answer]).rows


def test_costs_follow_volume_updates_and_price(
    study: tuple[Path, Path, str], report: Path, page: Page
) -> None:
    from kinject_assets.config import load_profile

    database = report.parent / DATABASE
    corpora = fetch(database, "SELECT * FROM corpora").dicts()
    judged = judge_all(read_evidence(database), corpora, read_damage(database))
    operations = read_operations(database, load_profile(str(study[0])), judged)
    opened(page, report)
    page.get_by_label("Questions a month").fill("250000")
    page.get_by_label("Updates of the text a month").fill("30")
    page.get_by_label("USD an hour of the machine").fill("4.5")
    rows = page.locator("tr[data-costs]")
    assert rows.count() == len(operations)
    for row, operation in zip(rows.all(), operations, strict=True):
        said = operation.break_even(250_000, 30, 4.5)
        assert row.locator("[data-break-even]").text_content() == said
        for method, cost in operation.costs.items():
            usd = cost.monthly(250_000, 30, 4.5)
            assert usd is not None
            assert row.locator(f"[data-method={method}]").text_content() == f"{usd:,.2f}"


# -- Ten thousand questions, some of them hostile --------------------------------------------------


def test_ten_thousand_questions_are_filtered_in_a_tenth_of_a_second(
    large: Path, page: Page
) -> None:
    with watched(page):
        opened(page, large)
        assert hits(page) == 120 * COPIES > 10_000
        took: dict[str, float] = {}

        def measure(name: str, act: Any) -> None:
            # Done, then done again: the shortest, since other processes take their turns.
            act()
            took[name] = page.evaluate(
                """() => Math.min(...Array.from({ length: 5 }, () => {
                    window.kinject.explorer.filter();
                    return Number(document.getElementById("hits").dataset.ms);
                }))"""
            )

        preset = page.locator("select[name=preset]")
        search = page.locator("input[name=text]")
        measure("preset", lambda: preset.select_option(label="RAG right, FT wrong"))
        some = hits(page)
        assert 0 < some < 120 * COPIES
        measure("corpus", lambda: page.locator("select[name=corpus]").select_option(label="rivers"))
        assert 0 < hits(page) < some
        measure("reset", lambda: page.get_by_role("button", name="Reset").click())
        page.wait_for_function("document.getElementById('hits').textContent.startsWith('10,080')")
        measure("search", lambda: search.fill("what RIVERS-3-"))
        assert hits(page) == COPIES - 2, "the copies of one question but the hostile one"
        search.fill("")
        for column in ("Question", "Passage"):
            head = page.get_by_role("columnheader", name=column).get_by_role("button")
            measure(f"sorted by {column}", head.click)
        measure("sorted by margin", page.locator("#head-a").click)
        assert 0 < max(took.values()) < 100, took
        print(took)
        assert page.locator("#rows tr").count() == 50, "one page of them"
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#pages")).to_have_text("Page 2 of 202")


def test_sorting_is_said_and_done(large: Path, page: Page) -> None:
    opened(page, large)
    head = page.locator("th[data-sort=a]")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator("th[data-sort=place]").get_attribute("aria-sort") is None
    margins = "[...document.querySelectorAll('#rows td:nth-child(3) .soft')]" \
        ".map((cell) => Number(cell.textContent))"  # fmt: skip
    up = page.evaluate(margins)
    assert up == sorted(up) and len(up) == 50
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = page.evaluate(margins)
    assert down == sorted(down, reverse=True) and down[0] > up[0]


def test_a_deep_link_survives_reloading_and_going_back(large: Path, page: Page) -> None:
    with watched(page):
        opened(page, large, "#q=q-rivers-3-12")
        stem = page.locator("#stem")
        expect(stem).to_have_text("Copy 12 of: What is 3?")
        expect(stem).to_be_focused()
        page.reload()
        page.wait_for_selector("html[data-ready]")
        expect(stem).to_have_text("Copy 12 of: What is 3?")
        page.get_by_role("button", name="Back to the list").click()
        expect(page.locator("#question")).to_be_hidden()
        page.locator("#rows a").nth(1).click()
        expect(page.locator("#question")).to_be_visible()
        second = stem.text_content()
        page.go_back()
        expect(page.locator("#question")).to_be_hidden()
        page.go_back()
        expect(stem).to_have_text("Copy 12 of: What is 3?")
        page.go_forward()
        page.go_forward()
        expect(stem).to_have_text(second or "")
        opened(page, large, "#q=nonsense")
        expect(stem).to_have_text("No such question")


def test_hostile_text_is_text(large: Path, page: Page) -> None:
    with watched(page):
        opened(page, large, "#q=q-rivers-7")
        expect(page.locator("#stem")).to_have_text(HOSTILE[0])
        expect(page.locator("ol.options li").first).to_contain_text(HOSTILE[2])
        page.locator(".passages summary").first.click()
        expect(page.locator(".passages blockquote").first).to_have_text(HOSTILE[1] + HOSTILE[2])
        expect(page.locator(".passage").first).to_contain_text(HOSTILE[1])
        assert page.locator("#question img, #question script").count() == 0
        assert page.locator(".passage a").count() == 0, "javascript: is no address to follow"
        assert page.evaluate("window.pwned") is None


def test_keys_alone_filter_open_and_challenge(large: Path, page: Page) -> None:
    opened(page, large)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.locator("input[name=text]").focus()
    page.keyboard.type("q-rivers-11-30")
    assert hits(page) == 1
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#rows a')"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#stem")).to_be_focused()
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "mark":
            break
    page.keyboard.press("ArrowDown")
    expect(page.locator("#challenged")).to_have_text("1 challenged: 1 wrong, 0 ambiguous.")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#challenged")).to_have_text("1 challenged: 0 wrong, 1 ambiguous.")
    page.keyboard.press("Tab")
    page.keyboard.type("two rivers have that name")
    page.keyboard.press("Tab")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#challenged")).to_have_text("1 challenged: 0 wrong, 1 ambiguous.")
    page.locator("input[name=marked]").check()
    assert hits(page) == 1
    expect(page.get_by_label("Reason")).to_have_value("two rivers have that name")
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#challenges")).to_be_hidden()
    assert hits(page) == 0


def test_the_page_works_where_nothing_can_be_kept(browser: Browser, large: Path) -> None:
    page = browser.new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('off'); } });"
    )
    with watched(page):
        opened(page, large, "#q=q-rivers-3")
        page.get_by_label("ambiguous: several").check()
        expect(page.locator("#challenges")).to_be_visible()
        page.locator("#theme").click()
    page.close()


# -- Challenges ------------------------------------------------------------------------------------


def recounted(database: Path, gone: dict[str, set[str]]) -> dict[str, Any]:
    """What the page shall say without some questions of each corpus, reckoned in Python."""
    evidence = read_evidence(database)
    left = {
        s.condition_id: {q: o for q, o in s.outcomes.items() if q not in gone.get(s.corpus, set())}
        for s in evidence.systems
    }
    levels: dict[tuple[str, str], float] = {}
    for group in evidence.groups:
        pairs = [(row["condition_a"], row["condition_b"]) for row in group.rows]
        tallies = [
            (
                sum(left[a][q] > left[b][q] for q in left[a]),
                sum(left[a][q] < left[b][q] for q in left[a]),
            )
            for a, b in pairs
        ]
        p_values = [mcnemar(*tally) for tally in tallies]
        levels |= dict(zip(pairs, holm_levels(p_values), strict=True))
    assert {g.family for g in evidence.groups} == set(FAMILIES)
    verdicts: dict[str, str] = {}
    for j in judge_all(evidence, fetch(database, "SELECT * FROM corpora").dicts(), []):
        names = {f"{s.method} {s.recipe}".strip(): s.condition_id for s in j.candidates}

        def level(a: str, b: str, names: dict[str, str] = names) -> float:
            pair = names[a], names[b]
            return levels.get(pair, levels.get((pair[1], pair[0]), 0.05))

        of = {(s.method, s.recipe): left[s.condition_id] for s in j.candidates}
        cast = assign(
            of.get(("base", "")),
            of.get(("rag", "")),
            {recipe: o for (method, recipe), o in of.items() if method == "ft"},
            {recipe: o for (method, recipe), o in of.items() if method == "ft_rag"},
            level,
        )
        verdicts[j.key] = decide(cast)
    return {
        "accuracies": [accuracy(left[s.condition_id]) for s in evidence.systems],
        "intervals": [
            list(wilson(sum(o.values()), len(o))) for o in (left[s.condition_id] for s in
            evidence.systems)
        ],
        "verdicts": verdicts,
    }  # fmt: skip


def test_the_page_reckons_as_the_study_does(tmp_path: Path, page: Page) -> None:
    store = synthetic.write_rich_lake(tmp_path / "lake")
    build_database(store, synthetic.profile())
    database = store.root / DATABASE
    opened(page, _without_figures(database, tmp_path / "report.html"))
    evidence = read_evidence(database)
    some = next(s for s in evidence.systems if s.corpus == "rivers" and s.method == "rag")
    base = next(s for s in evidence.systems if s.corpus == "rivers" and s.method == "base")
    favouring = sorted(q for q in some.outcomes if some.outcomes[q] and not base.outcomes[q])
    seen: set[str] = set()
    for count in (0, 3, len(favouring) // 2, len(favouring)):
        gone = {"rivers": set(favouring[:count])}
        page.evaluate(
            """(ids) => {
                window.kinject.marks.clear();
                for (const id of ids) {
                    window.kinject.marks.set("rivers", id, { verdict: "wrong", reason: "x" });
                }
            }""",
            sorted(gone["rivers"]),
        )
        found = page.evaluate(
            """() => {
                const recount = window.kinject.recount(), { data } = window.kinject.study;
                return {
                    accuracies: data.systems.map((_, i) => recount.accuracy(i).accuracy),
                    intervals: data.systems.map((_, i) => {
                        const { low, high } = recount.accuracy(i);
                        return [low, high];
                    }),
                    verdicts: Object.fromEntries(
                        data.decisions.map((d) => [d.key, recount.verdict(d)])),
                };
            }"""
        )
        wanted = recounted(database, gone)
        assert found["verdicts"] == wanted["verdicts"]
        assert found["accuracies"] == pytest.approx(wanted["accuracies"])
        for mine, theirs in zip(found["intervals"], wanted["intervals"], strict=True):
            assert mine == pytest.approx(theirs)
        seen |= set(found["verdicts"].values())
    assert len(seen) > 1, "some verdict turned"
    a, b = some.outcomes, base.outcomes
    tally = sum(a[q] > b[q] for q in a), sum(a[q] < b[q] for q in a), len(a)
    page.evaluate("window.kinject.marks.clear()")
    at = [s.condition_id for s in evidence.systems]
    pair = [at.index(some.condition_id), at.index(base.condition_id)]
    found = page.evaluate("([a, b]) => window.kinject.recount().difference(a, b)", pair)
    assert [found["low"], found["high"]] == pytest.approx(list(paired_difference(*tally)))


def test_passages_that_have_been_replaced_since_are_not_shown(tmp_path: Path, page: Page) -> None:
    store = synthetic.write_lake(tmp_path / "lake")
    build_database(store, synthetic.profile())
    database = store.root / DATABASE
    read = 'json_merge_patch(inputs, \'{"retrieved/rivers": "as it was then"}\')'
    note, passages = page.locator("#question p.overtaken"), page.locator("#question ol.passages li")
    for artefact, others in (("answers_rag/rivers/tiny", 3), ("answers_ft_rag/rivers/%", 0)):
        with duckdb.connect(str(database)) as connection:
            connection.execute(
                f"UPDATE artefacts SET inputs = {read} WHERE artefact LIKE ?", [artefact]
            )
        path = _without_figures(database, tmp_path / f"{others}.html")
        with watched(page):
            opened(page, path, "#q=q-rivers-7")
            expect(note).to_contain_text("RAG of tiny is no longer there: retrieved/rivers has")
            expect(note).to_contain_text("changed since it was read. kinject run asks again.")
            expect(passages).to_have_count(others)
            assert ("in front of the others" in note.inner_text()) == bool(others)
            assert not serious(page)
    # Whether the passage was retrieved is not known either; of other corpora it is.
    rank = page.locator("#rows td:nth-child(5)").first
    page.locator("select[name=corpus]").select_option(label="rivers")
    expect(rank).to_have_text("-")
    page.locator("select[name=corpus]").select_option(label="events-2031-04")
    expect(rank).to_have_text("1")
    page.evaluate("location.hash = '#q=q-events-2031-04-7'")
    expect(passages).to_have_count(3)
    expect(note).to_have_count(0)


def test_only_pairs_that_are_there_can_be_chosen(tmp_path: Path, page: Page) -> None:
    """Of one corpus no trained model is in the tables: FT is not offered, nor kept."""
    store = synthetic.write_rich_lake(tmp_path / "lake")
    build_database(store, synthetic.profile())
    database = store.root / DATABASE
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "UPDATE scores SET main = false WHERE corpus = 'rivers' AND method IN ('ft', 'ft_rag')"
        )
    opened(page, _without_figures(database, tmp_path / "report.html"))
    preset, corpus = page.locator("select[name=preset]"), page.locator("select[name=corpus]")
    offered = "(box) => [...box.options].filter((o) => !o.disabled && !o.hidden).length"
    assert preset.evaluate(offered) == 10
    preset.select_option(label="RAG right, FT wrong")
    corpus.select_option(label="rivers")
    assert preset.evaluate(offered) == 3, "none, and RAG and base either way"
    assert [preset.input_value(), page.locator("select[name=a_is]").input_value()] == ["", "any"]
    preset.select_option(label="RAG right, base wrong")
    assert page.locator("select[name=b]").input_value().startswith("base")
    corpus.select_option(label="all")
    assert preset.evaluate(offered) == 10
    assert preset.input_value() == "2", "what is still there stays chosen"


def _ran(profile: Path, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words, "--profile", str(profile)),
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_challenge_is_applied_without_asking_a_model(
    study: tuple[Path, Path, str], tmp_path: Path, page: Page
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study[1], folder / "home")
    profile = Path(shutil.copy(study[0], folder))
    home, root = folder / "home", folder / "home" / "small"
    before = folder / "before.duckdb"
    shutil.copy(root / DATABASE, before)
    chosen = {
        corpus: [
            row[0]
            for row in fetch(
                before,
                "SELECT question_id FROM corpus_questions WHERE corpus = ? AND split = 'test' "
                "AND NOT retired ORDER BY question_id LIMIT ?",
                [corpus, n],
            ).rows
        ]
        for corpus, n in (("comets", 2), ("events", 3))
    }

    # Marked in the page, as a reader does.
    opened(page, root / "report.html")
    for corpus, ids in chosen.items():
        for number, question_id in enumerate(ids):
            page.evaluate("(id) => { location.hash = `#q=${id}`; }", question_id)
            expect(page.locator("#detail")).to_contain_text(question_id)
            page.get_by_label("wrong: its key" if number else "ambiguous: several").check()
            page.get_by_label("Reason").fill(f'=1+1, "{corpus}"' if number else "")
            page.get_by_label("Reason").blur()
    expect(page.locator("#challenged")).to_have_text("5 challenged: 3 wrong, 2 ambiguous.")
    shown = page.locator(".card p.without").all_text_contents()
    assert len(shown) == 1 and "With your 3 challenged questions left out" in shown[0]
    cells = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-system]")].map((cell) => [
            window.kinject.study.data.systems[cell.dataset.system].corpus + " " +
            window.kinject.study.data.systems[cell.dataset.system].name,
            cell.querySelector(".without").textContent]))"""
    )
    page.evaluate("document.querySelector('.cards').scrollIntoView()")
    keep(page, "report-challenge")
    files: dict[str, Path] = {}
    for corpus in chosen:
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download challenges-{corpus}.csv").click()
        assert download.value.suggested_filename == f"challenges-{corpus}.csv"
        files[corpus] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[corpus])

    # Applied as the page says.
    for corpus, path in files.items():
        said = _ran(profile, home, "exam", "review", "--corpus", corpus, "--read", str(path))
        assert f"{len(chosen[corpus])} rejected" in said.stdout
    _ran(profile, home, "run")

    # No request, no answer, no checkpoint anew.
    after = root / DATABASE
    for table in ("generations", "checkpoints"):
        assert fetch(after, f"SELECT * FROM {table} ORDER BY ALL").rows == (
            fetch(before, f"SELECT * FROM {table} ORDER BY ALL").rows
        )
    key = "SELECT condition_id, question_id, answer_id, logliks, run_id FROM answers ORDER BY ALL"
    gone = {q for ids in chosen.values() for q in ids}
    assert fetch(after, key).rows == [r for r in fetch(before, key).rows if r[1] not in gone]
    for recipe in ("full.p00", "full.p01", "full.r01"):
        cell = Cell("damage", ("events", f"lab-llama.{recipe}"))
        for probe in ("facts-comets", "reading-comets"):
            old, new = (
                read_rows(Store(at).path(cell, f"{probe}/answers.parquet"), Answer)
                for at in (study[1] / "small", root)
            )
            runs = {row.question_id: row.run_id for row in old}
            assert {row.question_id for row in new} == runs.keys() - gone
            assert all(row.run_id == runs[row.question_id] for row in new)

    # The numbers are those that the page had shown.
    evidence = read_evidence(after)
    corpora = fetch(after, "SELECT * FROM corpora").dicts()
    (judged,) = [
        j for j in judge_all(evidence, corpora, read_damage(after)) if j.corpus == "events"
    ]
    assert f"left out: {judged.verdict};" in shown[0]
    gain = judged.differences["rag", "base"]
    assert f"RAG {gain.value:+.3f} [{gain.low:+.2f}, {gain.high:+.2f}]" in shown[0]
    opened(page, root / "report.html")
    expect(page.locator("#challenges")).to_be_hidden()
    now = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-system]")].map((cell) => [
            window.kinject.study.data.systems[cell.dataset.system].corpus + " " +
            window.kinject.study.data.systems[cell.dataset.system].name, cell.textContent]))"""
    )
    assert {name: f"without: {text}" for name, text in now.items()} == cells


def test_what_the_page_writes_is_what_was_marked(large: Path, page: Page, tmp_path: Path) -> None:
    opened(page, large, "#q=q-rivers-7")
    page.get_by_label("wrong: its key").check()
    page.get_by_label("Reason").fill('=cmd|"/c calc"!A1')
    page.get_by_label("Reason").blur()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download challenges-rivers.csv").click()
    path = tmp_path / "challenges.csv"
    download.value.save_as(path)
    (row,) = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
    assert row["question_id"] == "q-rivers-7" and row["verdict"] == "reject"
    assert row["reason"] == 'wrong: =cmd|"/c calc"!A1'
    assert row["stem"] == HOSTILE[0] and row["A"] == HOSTILE[2] and row["gold"] == "D"
    assert row["E"] == ""
