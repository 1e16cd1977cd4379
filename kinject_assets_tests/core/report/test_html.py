import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest

from kinject_assets.config import Lab, Profile
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.report.figures import FIGURES, Source
from kinject_assets.core.report.html import verdict_sentence, write_report
from kinject_assets.core.results.loader import DATABASE, build_database
from kinject_assets.core.results.tables import QueryError, fetch
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic
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
        if self.open and self.open[-1] != "style":
            self.text += data


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
    assert not [tag for tag, _ in found.tags if tag in {"script", "link", "iframe", "object"}]
    for _, attrs in found.tags:
        assert (attrs.get("src") or "data:").startswith("data:")
    assert "url(" not in page and "@import" not in page


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
    assert "Retrieval injected knowledge better than fine-tuning did." in text
    assert "In 8 paired comparisons retrieval was better in 8" in text
    assert "perplexity" in text and "in flight" in text.lower()


def test_sections_have_their_plots(page: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert any("K = 0 is the base model" in c for c in captions)
    assert any("The control (dashed) repeats" in c for c in captions)
    assert any("Loss by epoch" in c for c in captions)
    assert any("was the chunk that the question was written from" in c.lower() for c in captions)
    assert len(captions) == len(set(captions))


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
    assert "cannot be compared yet" in found.text
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


def test_no_database_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="kinject run"):
        write_report(tmp_path / DATABASE, synthetic.profile(), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("verdicts", "lead"),
    [
        (["better", "better"], "Retrieval injected knowledge better than fine-tuning did."),
        (["better", "no"], "better than fine-tuning did where a difference could be shown."),
        (["worse", "worse"], "Fine-tuning injected knowledge better than retrieval did."),
        (["better", "worse"], "Neither retrieval nor fine-tuning was better throughout."),
        (["no"], "No difference between retrieval and fine-tuning was shown."),
    ],
)
def test_verdict_sentence(verdicts: list[str], lead: str) -> None:
    rows = [{"family": "rag_vs_ft", "verdict": v, "difference": 0.1} for v in verdicts]
    assert lead in verdict_sentence(rows)


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


def test_optimism_is_a_number(rich: Store, rich_page: str) -> None:
    gaps = fetch(
        rich.root / DATABASE, "SELECT gap FROM optimism WHERE main AND stratum = 'all'"
    ).rows
    mean = sum(gap for (gap,) in gaps) / len(gaps)
    section = _section(rich_page, "k")
    assert f"<strong>{mean:+.3f}</strong> in accuracy over {len(gaps)} rows" in section
