"""The report: one HTML file with everything inside, made from the database alone."""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets.config import PROFILES, Profile, RecipeSpec
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.report import explorer, plots
from kinject_assets.core.report.costs import (
    QUESTIONS_A_MONTH,
    UPDATES_A_MONTH,
    USD_AN_HOUR,
    read_operations,
    read_spent,
)
from kinject_assets.core.report.evidence import Answering, read_evidence
from kinject_assets.core.report.figures import FIGURES, Source, drawn_before
from kinject_assets.core.report.memo import judge_all, overall, read_damage
from kinject_assets.core.results.catalogue import METHOD_COLUMNS
from kinject_assets.core.results.diff import since_last
from kinject_assets.core.results.tables import QueryError, fetch, with_interval
from kinject_assets.core.schema import STRATA
from kinject_assets.core.statistics.comparisons import ALL, FAMILIES
from kinject_assets.core.statistics.power import MOST_QUESTIONS, WORTHWHILE
from kinject_assets.core.statistics.published import printed
from kinject_assets.core.store import Store

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
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
            made = make(source)
            before = drawn_before(made, Store(database.parent))
            # What is missing is said in words, not in a picture of words.
            drawn = [
                (page, (before.get(page.name) or plots.draw_page(page)) if page.panels else None)
                for page in made.pages
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
    counts = " UNION ALL ".join(f"SELECT '{name}', count(*) FROM \"{name}\"" for (name,) in names)
    return [(name, n) for name, n in fetch(database, f"{counts} ORDER BY 1").rows]


def _number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _p_value(value: float | None) -> str:
    """A p-value; what rounds to nothing is not nothing."""
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _duration(seconds: float) -> str:
    """`12.3 s`, `4.5 min` or `6.7 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _usd(value: float | None) -> str:
    """Money as the page's script writes it."""
    if value is None:
        return "-"
    return "< 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


@dataclass(frozen=True)
class _Cell:
    """What stands beside an accuracy of a table.

    Attributes:
        system: Its place among the systems of the page's data; `None` for none.
        printed: The published value of the same cell; `None` for none.
    """

    system: int | None
    printed: float | None


class Cells:
    """Finds the system and the published value of a table's cell."""

    def __init__(self, systems: Sequence[Answering], references: Path | None) -> None:
        self._systems = systems
        self._printed = printed(references) if references else {}

    def __call__(self, number: int, row: Mapping[str, Any], column: str) -> _Cell:
        """What stands beside the accuracy in a column of a row of table 1 or 2."""
        corpus = row["task"] if number == 1 else row["corpus"]
        shots = row["shots"] if number == 1 else 0
        theirs = self._printed.get((corpus, row["model"], shots), {}).get(column)
        return _Cell(self._system(corpus, row["model"], shots, column), theirs)

    def _system(self, corpus: str, model: str, shots: int, column: str) -> int | None:
        """The system that the views `table1` and `table2` show in a column."""
        here = {
            i: s
            for i, s in enumerate(self._systems)
            if s.main and (s.corpus, s.model, s.shots) == (corpus, model, shots)
        }
        specs = {i: RecipeSpec.parse(s.recipe) for i, s in here.items() if s.recipe}
        training = min((spec.method for spec in specs.values()), default="")
        shown = [spec for spec in specs.values() if spec.method == training]
        most = max((s.n_paraphrases for s in shown if not s.control_of), default=0)
        wanted = {
            "base": ("base", ""),
            "base_rag": ("rag", ""),
            "ft": ("ft", f"{training}.p00"),
            "ft_rag": ("ft_rag", f"{training}.p00"),
            "ft_reg": ("ft", f"{training}.p00"),
            "ft_par": ("ft", f"{training}.p{most:02d}" if most else "none"),
            "ft_ctl": ("ft", f"{training}.r{most:02d}"),
            "ft_reg_rag": ("ft_rag", f"{training}.p00"),
            "ft_par_rag": ("ft_rag", f"{training}.p{most:02d}" if most else "none"),
            "ft_ctl_rag": ("ft_rag", f"{training}.r{most:02d}"),
        }[column]
        return next((i for i, s in here.items() if (s.method, s.recipe) == wanted), None)


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kinject_assets.core.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "p_value": _p_value,
        "duration": _duration,
        "usd": _usd,
    }
    return environment


def _inlined(name: str) -> dict[str, Any]:
    """A script or style of ours with its hash for the page's content security policy."""
    from markupsafe import Markup

    text = (TEMPLATES / f"report.{name}").read_text(encoding="utf-8")
    kind = {"js": "script", "css": "style"}[name]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {kind: Markup(text), f"{kind}_hash": digest}  # noqa: S704 (a file of this package)


def _defaults(profile: Profile) -> dict[str, Any]:
    """Volume and price that the page starts from."""
    price = profile.hardware.usd_per_hour
    said = "profile: hardware.usd_per_hour"
    if not price:
        why = "has no price" if price is None else "gives a price of 0"
        said = f"assumed: the profile {why}"
    return {
        "questions": QUESTIONS_A_MONTH,
        "updates": UPDATES_A_MONTH,
        "price": price or USD_AN_HOUR,
        "price_from": said,
    }


def _profile_argument(profile: Profile) -> str:
    """What `--profile` takes; of a file of one's own its name alone, wherever it lies."""
    shipped = profile.path is None or profile.path.parent == PROFILES
    return profile.name if shipped or profile.path is None else profile.path.name


def render_report(
    database: Path,
    profile: Profile,
    references: Path | None = None,
    limit: int = explorer.LIMIT,
) -> str:
    """The report as HTML.

    Args:
        database: `results.duckdb`.
        profile: The experiment.
        references: Folder of the published tables, whose values stand beside one's own.
        limit: Characters that the data of single questions may take.

    Raises:
        MissingArtefact: If there is no database.
    """
    import json

    data = {name: fetch(database, sql).dicts() for name, sql in _QUERIES.items()}
    data["damage"] = read_damage(database)
    evidence = read_evidence(database)
    judged = judge_all(evidence, data["corpora"], data["damage"])
    payload = explorer.build(database, profile.name, evidence, judged)
    packed, left_out = explorer.fitted(payload, limit)
    libraries: dict[str, str] = {}
    for artefact in data["artefacts"]:
        libraries |= json.loads(artefact["libraries"])
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            **data,
            **_inlined("css"),
            **_inlined("js"),
            profile=profile,
            profile_file=_profile_argument(profile),
            overall=overall(judged),
            judged=judged,
            spent=read_spent(database),
            operations=read_operations(database, profile, judged),
            defaults=_defaults(profile),
            data=packed if payload["questions"]["id"] else "",
            left_out=left_out,
            limit=limit,
            families=[
                {"name": f.name, "question": f.question, "rows": rows}
                for f in FAMILIES
                if f.name != "k"
                and (rows := [c for c in data["comparisons"] if c["family"] == f.name])
            ],
            k_pairs=[c for c in data["comparisons"] if c["family"] == "k"],
            by_kind=_by_kind(data["strata"]),
            kinds=(ALL, *STRATA),
            points=f"{100 * WORTHWHILE:.0f}",
            most_questions=MOST_QUESTIONS,
            columns={n: [(m, METHODS[m]) for m, _ in METHOD_COLUMNS[n]] for n in (1, 2)},
            cells=Cells(evidence.systems, references),
            with_interval=with_interval,
            figures=_figures(data, database, profile, references),
            counts=_counts(database),
            changes=since_last(database),
            libraries=sorted(libraries.items()),
        )
    )


def write_report(
    database: Path, profile: Profile, out: Path, references: Path | None = None
) -> None:
    """Writes the report; readers see the old or the new one, never a part.

    Raises:
        MissingArtefact: If there is no database.
        BrokenArtefact: If it is one of another version of kinject.
    """
    try:
        write_atomically(out, render_report(database, profile, references))
    except QueryError as error:
        raise BrokenArtefact(
            f"{database} was built by another version of kinject: "
            f"{str(error).splitlines()[0]}. `kinject run --select results` builds it again."
        ) from error
