"""The report: one HTML file with everything inside, made from the database alone."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinject_assets.config import Profile
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.report import plots
from kinject_assets.core.report.figures import FIGURES, Source
from kinject_assets.core.results.catalogue import METHOD_COLUMNS
from kinject_assets.core.results.tables import fetch, with_interval
from kinject_assets.core.schema import STRATA
from kinject_assets.core.statistics.comparisons import ALL, FAMILIES
from kinject_assets.core.statistics.power import MOST_QUESTIONS, WORTHWHILE

TEMPLATE = "report.html.j2"

METHODS = {
    "base": "Base",
    "base_rag": "Base + RAG",
    "ft": "FT",
    "ft_rag": "FT + RAG",
    "ft_reg": "FT-reg",
    "ft_par": "FT-par",
    "ft_ctl": "FT control",
    "ft_reg_rag": "FT-reg + RAG",
    "ft_par_rag": "FT-par + RAG",
    "ft_ctl_rag": "FT control + RAG",
}
"""Column of the views -> name for people."""

Rows = list[dict[str, Any]]

_QUERIES: Mapping[str, str] = {
    "corpora": "SELECT * FROM corpora ORDER BY corpus",
    "table1": "SELECT * FROM table1",
    "table2": "SELECT * FROM table2",
    "comparisons": """
        SELECT c.*, a.corpus, a.model, a.shots, a.method AS method_a, b.method AS method_b,
            a.recipe AS recipe_a, b.recipe AS recipe_b, a.k AS k_a, b.k AS k_b,
            b.shots AS shots_b, a.retriever AS retriever_a, b.retriever AS retriever_b
        FROM comparisons c JOIN conditions a ON a.condition_id = c.condition_a
            JOIN conditions b ON b.condition_id = c.condition_b
        WHERE stratum = 'all'
        ORDER BY family, corpus, model, a.shots, recipe_a, recipe_b, k_a, k_b""",
    "gaps": """
        SELECT * FROM optimism WHERE main AND stratum = 'all'
        ORDER BY corpus, model, shots, method, recipe""",
    "chance": """
        SELECT DISTINCT chance FROM scores
        WHERE k_rule = 'fixed' AND main AND stratum = 'all' AND chance IS NOT NULL""",
    "strata": """
        SELECT * FROM scores WHERE k_rule = 'cross_fitted' AND main
            AND corpus IN (SELECT corpus FROM scores WHERE stratum <> 'all')
        ORDER BY corpus, model, shots, method, recipe, stratum""",
    "seeds": """
        SELECT * FROM pooled WHERE k_rule = 'cross_fitted' AND stratum = 'all'
            AND (corpus, method, retriever, query)
                IN (SELECT (corpus, method, retriever, query) FROM scores WHERE main)
        ORDER BY corpus, model, shots, method, recipe""",
    "collapsed": """
        SELECT corpus, model, method, recipe, shots, k, any_value(collapse) AS collapse,
            any_value(accuracy) AS accuracy, any_value(chance) AS chance,
            arg_max(letter, chosen) AS letter, max(chosen) AS chosen,
            arg_max(gold, chosen) AS gold
        FROM letter_bias JOIN scores USING (condition_id)
        WHERE collapsed AND k_rule = 'fixed' AND stratum = 'all'
        GROUP BY condition_id, corpus, model, method, recipe, shots, k ORDER BY ALL""",
    "letters": """
        SELECT count(DISTINCT condition_id) AS conditions, max(chosen) AS chosen
        FROM letter_bias""",
    "damage": """
        SELECT corpus, model, recipe, probe, before, after, after - before AS change, n, lost, won,
            most_chosen_before, most_chosen_after, collapse_before, collapse_after
        FROM damage JOIN checkpoints USING (checkpoint_id)
        ORDER BY corpus, model, recipe, probe""",
    "checkpoints": "SELECT * FROM checkpoints ORDER BY corpus, model, recipe",
    "cost": """
        SELECT purpose, model, state, count(*) AS requests, sum(input_tokens) AS input_tokens,
            sum(output_tokens) AS output_tokens, sum(cost_usd) AS cost_usd,
            count(*) - count(cost_usd) AS unpriced, sum(seconds) AS seconds
        FROM generations GROUP BY ALL ORDER BY ALL""",
    "claims": "SELECT * FROM claims ORDER BY claim",
    "models": "SELECT * FROM models ORDER BY model",
    "gains": """
        SELECT method, recipe, avg(relative_gain) AS gain, count(*) AS n FROM scores
        WHERE k_rule = 'cross_fitted' AND stratum = 'all' AND main
            AND relative_gain IS NOT NULL
        GROUP BY ALL ORDER BY ALL""",
    "artefacts": "SELECT * FROM artefacts ORDER BY artefact",
    "truncated": """
        SELECT count(*) AS n, count(*) FILTER (truncated_tokens > 0) AS cut FROM answers""",
    "sources": """
        SELECT source, licence, count(*) AS revisions, count(DISTINCT article_id) AS articles
        FROM articles GROUP BY ALL ORDER BY ALL""",
}


def verdict_sentence(comparisons: Rows) -> str:
    """What the paired comparisons of retrieval and fine-tuning show, in a sentence."""
    rows = [c for c in comparisons if c["family"] == "rag_vs_ft"]
    if not rows:
        return (
            "Retrieval and fine-tuning cannot be compared yet: no question has been answered by "
            "both."
        )
    better = sum(c["verdict"] == "better" for c in rows)
    worse = sum(c["verdict"] == "worse" for c in rows)
    mean = sum(c["difference"] for c in rows) / len(rows)
    counts = (
        f"In {len(rows)} paired comparisons retrieval was better in {better}, worse in {worse}, "
        f"and no difference was shown in {len(rows) - better - worse} (mean difference in "
        f"accuracy {mean:+.3f}; exact McNemar tests, Holm-adjusted)."
    )
    if better and not worse:
        lead = "Retrieval injected knowledge better than fine-tuning did"
        lead += "." if better == len(rows) else " where a difference could be shown."
    elif worse and not better:
        lead = "Fine-tuning injected knowledge better than retrieval did"
        lead += "." if worse == len(rows) else " where a difference could be shown."
    elif better and worse:
        lead = "Neither retrieval nor fine-tuning was better throughout."
    else:
        lead = "No difference between retrieval and fine-tuning was shown."
    return f"{lead} {counts}"


def _point(row: Mapping[str, Any], name: str = "accuracy") -> plots.Point:
    if name == "accuracy":
        return plots.Point(row["accuracy"], row["ci_low"], row["ci_high"])
    return plots.Point(row[name], row[f"{name}_low"], row[f"{name}_high"])


def table_points(number: int, rows: Rows) -> dict[str, dict[str, plots.Point]]:
    """Row -> method -> accuracy, of table 1 or 2 as read from the database."""
    names = [name for name, _ in METHOD_COLUMNS[number]]
    return {
        " ".join(str(r[key]) for key in ("task", "corpus", "model") if key in r)
        + (f" {r['shots']}-shot" if "shots" in r else ""): {
            METHODS[name]: _point(r, name) for name in names if r[name] is not None
        }
        for r in rows
    }


def _by_kind(scores: Rows) -> list[dict[str, Any]]:
    """A row a method of each triaged corpus, with its score on each kind of question."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for score in scores:
        key = tuple(score[name] for name in ("corpus", "model", "shots", "method", "recipe"))
        found.setdefault(key, {})[score["stratum"]] = score
    return [
        {"corpus": corpus, "model": model, "shots": shots, "method": method, "recipe": recipe}
        | {"by_stratum": by_stratum}
        for (corpus, model, shots, method, recipe), by_stratum in found.items()
    ]


def _figures(
    data: Mapping[str, Rows], database: Path, profile: Profile, references: Path | None
) -> dict[str, list[dict[str, str]]]:
    """Figure -> its pictures; `tables` are both tables as bars."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)

    def add(where: str, image: bytes | None, caption: str, notes: str = "") -> None:
        uri = plots.data_uri(image) if image else ""
        found[where].append({"uri": uri, "caption": caption, "notes": notes})

    chances = {row["chance"] for row in data["chance"]}
    for number in (1, 2):
        if rows := data[f"table{number}"]:
            image = plots.table_bars(
                table_points(number, rows),
                chance=chances.copy().pop() if len(chances) == 1 else None,
                title=f"Table {number}",
            )
            add("tables", image, f"Table {number} as bars with 95 % Wilson intervals.")
    source = Source(database, profile, references)
    for name, make in FIGURES.items():
        try:
            # What is missing is said in words, not in a picture of words.
            drawn = [
                (page, plots.draw_page(page) if page.panels else None)
                for page in make(source).pages
            ]
        except Exception as error:  # the rest of the report is whole; the figure's asset fails
            said = f"{type(error).__name__}: {error}"
            add(name, None, "", f"{name} could not be drawn. {said}")
            continue
        for page, picture in drawn:
            add(name, picture, page.caption, "" if picture else "\n".join(page.notes))
    return found


def _counts(database: Path) -> list[tuple[str, int]]:
    names = fetch(
        database,
        "SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY table_name",
    ).rows
    return [
        (name, fetch(database, f'SELECT count(*) FROM "{name}"').rows[0][0]) for (name,) in names
    ]


def _number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _p_value(value: float | None) -> str:
    """A p-value; what rounds to nothing is not nothing."""
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def render_report(database: Path, profile: Profile, references: Path | None = None) -> str:
    """The report as HTML; the published tables are drawn beside one's own where they are given.

    Raises:
        MissingArtefact: If there is no database.
    """
    import json

    from jinja2 import Environment, PackageLoader, StrictUndefined

    data = {name: fetch(database, sql).dicts() for name, sql in _QUERIES.items()}
    environment = Environment(
        loader=PackageLoader("kinject_assets.core.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["p_value"] = _p_value
    libraries: dict[str, str] = {}
    for artefact in data["artefacts"]:
        libraries |= json.loads(artefact["libraries"])
    return environment.get_template(TEMPLATE).render(
        **data,
        profile=profile,
        verdict=verdict_sentence(data["comparisons"]),
        families=[
            {"name": f.name, "question": f.question, "rows": rows}
            for f in FAMILIES
            if f.name != "k" and (rows := [c for c in data["comparisons"] if c["family"] == f.name])
        ],
        k_pairs=[c for c in data["comparisons"] if c["family"] == "k"],
        by_kind=_by_kind(data["strata"]),
        kinds=(ALL, *STRATA),
        points=f"{100 * WORTHWHILE:.0f}",
        most_questions=MOST_QUESTIONS,
        columns={n: [(m, METHODS[m]) for m, _ in METHOD_COLUMNS[n]] for n in (1, 2)},
        with_interval=with_interval,
        figures=_figures(data, database, profile, references),
        counts=_counts(database),
        libraries=sorted(libraries.items()),
    )


def write_report(
    database: Path, profile: Profile, out: Path, references: Path | None = None
) -> None:
    """Writes the report; readers see the old or the new one, never a part.

    Raises:
        MissingArtefact: If there is no database.
    """
    write_atomically(out, render_report(database, profile, references))
