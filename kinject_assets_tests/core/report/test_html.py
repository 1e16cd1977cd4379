import base64
import hashlib
import re
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest

from kinject_assets.config import Lab, Profile
from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report import html
from kinject_assets.core.report.evidence import Answering
from kinject_assets.core.report.figures import FIGURES, Source, figure_version
from kinject_assets.core.report.html import render_report, write_report
from kinject_assets.core.results.diff import since_last
from kinject_assets.core.results.history import keep
from kinject_assets.core.results.loader import DATABASE, build_database
from kinject_assets.core.results.tables import QueryError, fetch
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results import synthetic
from kinject_assets_tests.core.results.fixtures import REFERENCES
from kinject_assets_tests.core.results.test_retrievers import add_lexical
from kinject_assets_tests.core.results.test_retrievers import profile as profile_with

VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Page(HTMLParser):
    """Reads tags, checks that they nest, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.text += data


@pytest.fixture
def unillustrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the study's figures, which take long to draw: for tests that do not look at them."""
    monkeypatch.setattr(html, "FIGURES", {})


@pytest.fixture(scope="module")
def page(built: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(built.root / DATABASE, synthetic.profile(), out)
    return out.read_text(encoding="utf-8")


def test_tags_nest_and_tables_are_accessible(page: str) -> None:
    found = _Page(page)
    assert found.open == []
    names = [tag for tag, _ in found.tags]
    assert names.count("table") == names.count("caption") >= 10
    assert all(attrs.get("scope") in {"col", "row"} for tag, attrs in found.tags if tag == "th")
    assert all(attrs.get("alt") for tag, attrs in found.tags if tag == "img")
    targets = {attrs.get("id") for _, attrs in found.tags}
    links = [attrs["href"] for tag, attrs in found.tags if tag == "a"]
    assert links and all((link or "")[1:] in targets for link in links)


def test_nothing_is_asked_from_outside(page: str) -> None:
    found = _Page(page)
    assert not [tag for tag, _ in found.tags if tag in {"link", "iframe", "object"}]
    for _, attrs in found.tags:
        assert (attrs.get("src") or "data:").startswith("data:")
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    assert "url(" not in page and "@import" not in page


def test_the_policy_names_the_script_and_the_style_of_the_page(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_numbers_are_those_of_the_database(page: str, built: Store) -> None:
    for number in (1, 2):
        rows = fetch(built.root / DATABASE, f"SELECT * FROM table{number}").dicts()
        for row in rows:
            shown = f"{row['base_rag']:.3f} [{row['base_rag_low']:.2f}, {row['base_rag_high']:.2f}]"
            assert shown in page
    claims = fetch(built.root / DATABASE, "SELECT statement, verdict FROM claims").rows
    text = _Page(page).text
    for statement, _ in claims:
        assert statement in text
    assert "On new facts, retrieve: " in text and "(events-2031-04, tiny)" in text
    assert "On known topics, retrieve: " in text and "(rivers, tiny)" in text
    assert "perplexity" in text and "in flight" in text.lower()


def test_sections_have_their_plots(page: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert any("K = 0 is the base model" in c for c in captions)
    assert any("The control (dashed) repeats" in c for c in captions)
    assert any("Loss by epoch" in c for c in captions)
    assert any("was the chunk that the question was written from" in c.lower() for c in captions)
    assert len(captions) == len(set(captions))


@pytest.mark.usefixtures("unillustrated")
def test_the_lab_says_that_it_is_one(built: Store, tmp_path: Path, page: str) -> None:
    assert "This is the lab" not in page
    lab = synthetic.profile().model_copy(update={"lab": Lab(), "description": "<i>x</i>"})
    write_report(built.root / DATABASE, lab, tmp_path / "lab.html")
    text = (tmp_path / "lab.html").read_text(encoding="utf-8")
    assert "This is the lab" in text
    assert "synthetic" in text and "tiny" in text
    assert "<i>x</i>" not in text and "&lt;i&gt;x" in text


def test_a_report_without_answers(tmp_path: Path) -> None:
    profile: Profile = synthetic.profile()
    build_database(Store(tmp_path), profile)
    write_report(tmp_path / DATABASE, profile, tmp_path / "report.html")
    found = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Nothing can be said yet" in found.text
    assert "No corpus of Table 1 has been scored" in found.text
    assert "Nothing was answered with retrieved text." in found.text


def test_a_figure_that_fails_leaves_the_rest_of_the_report(
    built: Store, tmp_path: Path, page: str
) -> None:
    database = Path(shutil.copy(built.root / DATABASE, tmp_path))
    with duckdb.connect(str(database)) as connection:
        connection.execute("DROP VIEW rag_errors")
    profile = synthetic.profile()
    with pytest.raises(QueryError, match="rag_errors"):
        FIGURES["figure_rag_errors"](Source(database, profile))
    write_report(database, profile, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = _Page(text)
    assert "figure_rag_errors could not be drawn. QueryError: " in found.text
    assert found.open == []
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    left = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert left == [c for c in captions if not c.startswith("Answers on ")] != captions


def test_what_the_figures_assets_drew_is_not_drawn_again(
    built: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Path(shutil.copy(built.root / DATABASE, tmp_path))
    store, profile = Store(tmp_path), synthetic.profile()
    made = FIGURES["figure_k"](Source(database, profile))
    cell = Cell(made.name)
    with store.draft(cell) as draft:
        for page in made.pages:
            (draft / f"{page.name}.png").write_bytes(f"drawn {page.name}".encode())
        store.publish(
            cell,
            draft,
            partition="",
            logical_version=figure_version(made),
            fingerprint="f",
            code_version=CODE_VERSIONS[made.name],
            inputs={},
            config={},
            started_at=synthetic.NOW,
        )
    monkeypatch.setattr(html.plots, "draw_page", lambda page: f"anew {page.name}".encode())

    monkeypatch.setattr(html, "FIGURES", {"figure_k": FIGURES["figure_k"]})

    def shown() -> set[str]:
        text = html.render_report(database, profile)
        uri = html.plots.data_uri
        return {
            how
            for how in ("drawn", "anew")
            if all(uri(f"{how} {page.name}".encode()) in text for page in made.pages)
        }

    assert shown() == {"drawn"}
    # Where a file is damaged, the figure is drawn.
    store.path(cell, f"{made.pages[0].name}.png").write_bytes(b"x")
    assert shown() == {"anew"}


def test_a_database_of_another_version_is_said(built: Store, tmp_path: Path) -> None:
    database = Path(shutil.copy(built.root / DATABASE, tmp_path))
    with duckdb.connect(str(database)) as connection:
        connection.execute("ALTER TABLE corpora DROP COLUMN release_of")
    with pytest.raises(BrokenArtefact, match="was built by another version of kinject"):
        write_report(database, synthetic.profile(), tmp_path / "report.html")


def test_no_database_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="kinject run"):
        write_report(tmp_path / DATABASE, synthetic.profile(), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def rich_page(rich: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("rich") / "report.html"
    write_report(rich.root / DATABASE, synthetic.profile(), out)
    return out.read_text(encoding="utf-8")


def _section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', page, re.S)
    return found[1] if found else ""


def test_accuracy_by_kind_of_question(rich: Store, rich_page: str, page: str) -> None:
    section = _section(rich_page, "kinds")
    scores = fetch(
        rich.root / DATABASE,
        "SELECT * FROM scores WHERE k_rule = 'cross_fitted' AND main AND shots = 0 "
        "AND corpus = 'events-2031-04' AND method IN ('base', 'rag')",
    ).dicts()
    assert {s["stratum"] for s in scores} == {"all", *synthetic.TRIAGE}
    for s in scores:
        assert f"{s['accuracy']:.3f} [{s['ci_low']:.2f}, {s['ci_high']:.2f}] of {s['n']}" in section
    assert "rivers" not in section
    assert not _section(page, "kinds") and "#kinds" not in page
    assert _Page(rich_page).open == []


def test_seeds_are_shown_where_there_are_any(rich: Store, rich_page: str, page: str) -> None:
    section = _section(rich_page, "seeds")
    rows = fetch(
        rich.root / DATABASE,
        "SELECT * FROM pooled WHERE stratum = 'all' AND k_rule = 'cross_fitted'",
    ).dicts()
    assert rows
    for row in rows:
        assert f"{row['accuracy']:.3f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]" in section
        assert ", ".join(f"{accuracy:.3f}" for accuracy in row["accuracies"]) in section
        assert (row["verdict"] or "not tested") in section
    assert not _section(page, "seeds") and "#seeds" not in page


@pytest.mark.usefixtures("unillustrated")
def test_seeds_are_those_of_the_studys_retriever(
    rich: Store, rich_page: str, tmp_path: Path
) -> None:
    database = Path(shutil.copy(rich.root / DATABASE, tmp_path))
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "INSERT INTO pooled SELECT * REPLACE ('lexical' AS retriever) FROM pooled "
            "WHERE retriever = 'dense'"
        )
        added = connection.execute("SELECT count(*) FROM pooled WHERE retriever = 'lexical'")
        assert (added.fetchone() or [0])[0] > 0
    write_report(database, synthetic.profile(), tmp_path / "report.html")
    again = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert _section(again, "seeds") == _section(rich_page, "seeds")


@pytest.mark.usefixtures("unillustrated")
def test_retrievers_that_are_compared_are_named(tmp_path: Path) -> None:
    store = synthetic.write_lake(tmp_path / "lake")
    add_lexical(store)
    both = profile_with("dense", "lexical")
    build_database(store, both)
    write_report(store.root / DATABASE, both, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    of_retrievers = _section(page, "comparisons").partition("Is another retriever better")[2]
    assert "rag lexical 0-shot" in of_retrievers and "rag dense 0-shot" in of_retrievers
    assert "rag dense" not in page.replace(of_retrievers, "")


def test_collapsed_letters_are_named(rich_page: str, page: str) -> None:
    section = _section(rich_page, "letters")
    assert "1 of " in section and "stuck" in section and "one letter" in section
    assert ">100 %<" in section and ">25 %<" in section
    section = _section(page, "letters")
    assert "None of 56 conditions has collapsed" in section
    assert "<table>" not in section


def test_comparisons_say_how_many_questions_are_missing(rich: Store, rich_page: str) -> None:
    section = _section(rich_page, "comparisons")
    assert "Questions to see 5 points" in section
    rows = fetch(
        rich.root / DATABASE,
        "SELECT more_questions FROM comparisons WHERE stratum = 'all' AND family <> 'k' "
        "AND verdict NOT IN ('better', 'worse')",
    ).rows
    # Where a difference was shown, no further questions are asked for.
    assert section.count(" more<") == sum(bool(more) for (more,) in rows) > 0
    for (more,) in rows:
        assert f"{more} more<" in section
    assert ">0.0000<" not in section and "&lt; 0.0001" in section


@pytest.mark.usefixtures("unillustrated")
def test_published_values_stand_beside_ones_own(built: Store, tmp_path: Path, page: str) -> None:
    assert "published" not in _section(page, "table1")
    database = Path(shutil.copy(built.root / DATABASE, tmp_path))
    with duckdb.connect(str(database)) as connection:
        for table in ("scores", "conditions", "corpora", "corpus_questions", "retrieved"):
            for ours, theirs in (("rivers", "anatomy"), ("events-2031-04", "events-2023-11")):
                connection.execute(
                    f"UPDATE {table} SET corpus = ? WHERE corpus = ?", [theirs, ours]
                )
        for table in ("scores", "conditions"):
            connection.execute(f"UPDATE {table} SET model = 'mistral-7b'")
    beside = render_report(database, synthetic.profile(), REFERENCES)
    one, two = (_section(beside, f"table{number}") for number in (1, 2))
    # Base, RAG, FT and FT + RAG of anatomy for this model, as printed, for 0 and 5 examples.
    for value in ("0.556", "0.681", "0.570", "0.659", "0.600", "0.622", "0.674"):
        assert f"published {value}<" in one
    for value in ("0.481", "0.875", "0.504", "0.588", "0.810", "0.830"):
        assert f"published {value}<" in two
    assert one.count("published") == 8 and two.count("published") == 6, "no control was published"
    assert "published" not in _section(render_report(database, synthetic.profile()), "table1")


@pytest.mark.usefixtures("unillustrated")
def test_what_changed_since_the_results_before(built: Store, tmp_path: Path, page: str) -> None:
    assert not _section(page, "changes") and "#changes" not in page
    database = Path(shutil.copy(built.root / DATABASE, tmp_path))
    keep(database, version="a" * 8, run_id="first", at=datetime(2031, 5, 1, tzinfo=UTC), most=5)
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "UPDATE answers SET correct = NOT correct, choice = 3 - choice "
            "WHERE question_id = 'q-rivers-1'"
        )
    keep(database, version="b" * 8, run_id="other", at=datetime(2031, 5, 2, tzinfo=UTC), most=5)
    text = html.render_report(database, synthetic.profile())
    assert "#changes" in text and _Page(text).open == []
    section = _section(text, "changes")
    assert since_last(database) is not None
    assert "2031-05-01" in section and "rivers" in section


@pytest.mark.usefixtures("unillustrated")
@pytest.mark.parametrize(
    ("price", "said"),
    [
        (2.0, "2 USD an hour (profile: hardware.usd_per_hour)"),
        (None, "3 USD an hour (assumed: the profile has no price)"),
        (0.0, "3 USD an hour (assumed: the profile gives a price of 0)"),
    ],
)
def test_where_the_price_comes_from(built: Store, price: float | None, said: str) -> None:
    profile = synthetic.profile()
    hardware = profile.hardware.model_copy(update={"usd_per_hour": price})
    page = render_report(built.root / DATABASE, profile.model_copy(update={"hardware": hardware}))
    assert said in page
    assert "only kept texts are counted" in page


def test_a_cell_shows_the_most_paraphrases_of_its_own_training() -> None:
    def system(method: str, recipe: str) -> Answering:
        return Answering(
            condition_id="id",
            corpus="c",
            model="m",
            recipe=recipe,
            seed=0,
            method=method,
            shots=0,
            k=0,
            retriever="",
            n=1,
            accuracy=1.0,
            ci_low=0.0,
            ci_high=1.0,
            main=True,
            outcomes={},
        )

    systems = [
        system(method, recipe)
        for method in ("ft", "ft_rag")
        for recipe in ("full.p00", "full.p02", "full.r02", "lora.p04", "lora.r04")
    ]
    cells = html.Cells(systems, None)
    shown = {
        column: cells(2, {"corpus": "c", "model": "m"}, column).system
        for column in ("ft_par", "ft_ctl", "ft_par_rag")
    }
    assert shown == {"ft_par": 1, "ft_ctl": 2, "ft_par_rag": 6}


def test_optimism_is_a_number(rich: Store, rich_page: str) -> None:
    gaps = fetch(
        rich.root / DATABASE, "SELECT gap FROM optimism WHERE main AND stratum = 'all'"
    ).rows
    mean = sum(gap for (gap,) in gaps) / len(gaps)
    section = _section(rich_page, "k")
    assert f"<strong>{mean:+.3f}</strong> in accuracy over {len(gaps)} rows" in section
