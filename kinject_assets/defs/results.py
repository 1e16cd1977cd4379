"""From answers to a database, verdicts on the study's claims, and a report."""

import json
import shutil
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from kinject_assets.config import REFERENCES
from kinject_assets.core.augmentation.overlap import overlaps
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.html import table_points, write_report
from kinject_assets.core.report.plots import table_bars
from kinject_assets.core.results.diff import last_change
from kinject_assets.core.results.digests import ROWS, content_version
from kinject_assets.core.results.history import keep, version_of
from kinject_assets.core.results.loader import build_database
from kinject_assets.core.results.tables import fetch, format_tables, query
from kinject_assets.core.statistics.claims import judge
from kinject_assets.core.statistics.published import facts, published
from kinject_assets.defs import checks
from kinject_assets.defs.damage import damage
from kinject_assets.defs.io import Step, image, making, one_maker
from kinject_assets.defs.policy import OWNERS, RESULTS_GROUP
from kinject_assets.defs.resources import Study
from kinject_assets.defs.scores import answers_base, answers_ft, answers_ft_rag, answers_rag
from kinject_assets.defs.triage import triage

COLLAPSED = """
    SELECT DISTINCT corpus, model, method, recipe, shots, k, collapse
    FROM letter_bias JOIN conditions USING (condition_id) WHERE collapsed ORDER BY ALL
"""
"""Conditions whose letters have collapsed."""


@dg.asset(
    deps=[answers_base, answers_rag, answers_ft, answers_ft_rag, damage, triage],
    group_name=RESULTS_GROUP,
    kinds={"duckdb", "sql"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["results"],
    check_specs=checks.specs("results"),
    pool="duckdb",
)
@one_maker
def results(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """Everything that is in the lake as one DuckDB file, with scores, intervals and comparisons.

    A pure function of the lake: a new file is built beside the old one and takes its place, so that
    readers never wait. Answers that are not there yet are left out; materialise again to add them.
    """
    with making(context, study) as step:
        counts = build_database(
            study.store,
            study.profile,
            generations=study.generations(),
            references=REFERENCES,
            scratch=step.draft,
            digests=step.draft / ROWS,
            report=step.report,
        )
        (step.draft / "summary.json").write_text(json.dumps(counts, indent=2) + "\n")
        database = study.database
        # Settings change numbers without changing inputs; what is built on these shall follow.
        version = content_hash(step.inputs, counts, content_version(step.draft / ROWS))
        return step.finish(
            version,
            counts={f"rows_{table}": n for table, n in counts.items()},
            metadata={
                "tables": dg.MetadataValue.md(format_tables(database, "markdown")),
                **{
                    f"table{number}_plot": image(table_bars(points), f"table {number}")
                    for number in (1, 2)
                    if (
                        points := table_points(
                            number, fetch(database, f"SELECT * FROM table{number}").dicts()
                        )
                    )
                },
                "database": dg.MetadataValue.path(database),
                **_remember(step, version),
            },
            checks=checks.results(
                counts,
                fetch(database, COLLAPSED).dicts(),
                overlaps(study.store, study.profile.augmentation.near_duplicate),
            ),
            libraries=("duckdb", "statsmodels", "scipy"),
        )


def _remember(step: Step, version: str) -> dict[str, Any]:
    """Keeps a copy of new results, and says what changed since those before.

    Neither may stand in their way: what goes wrong is told in the log.
    """
    study, shown = step.study, dict[str, Any]()
    try:
        if changes := last_change(study.database):
            shown["changes_since_the_last_results"] = dg.MetadataValue.md(changes)
    except Exception as error:  # whatever it is: the new results are there already
        step.context.log.warning("results: not compared with those before: %r", error)
    try:
        keep(
            study.database,
            version=version_of(version, step.fingerprint),
            run_id=step.context.run_id,
            at=datetime.now(UTC),
            most=study.profile.results.history,
        )
    except Exception as error:
        step.context.log.warning("results: no copy was kept for `kinject diff`: %r", error)
    return shown


@dg.asset(
    deps=[results],
    group_name=RESULTS_GROUP,
    kinds={"python"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["claims"],
    check_specs=checks.specs("claims"),
)
@one_maker
def claims(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """Each claim of the study with its verdict on these results, and the evidence."""
    with making(context, study) as step:
        statement = "SELECT claim, statement, verdict, evidence FROM claims ORDER BY claim"
        rows = json.loads(query(study.database, statement, "json"))
        (step.draft / "claims.json").write_text(json.dumps(rows, indent=2) + "\n")
        return step.finish(
            content_hash(rows),
            counts={"claims": len(rows)},
            metadata={
                "verdicts": dg.MetadataValue.md(query(study.database, statement, "markdown")),
                "published": dg.MetadataValue.md(
                    "\n".join(f"- {line}" for line in facts(REFERENCES).lines())
                ),
            },
            checks=checks.claims(judge(published(REFERENCES))),
        )


@dg.asset(
    deps=[results, claims],
    group_name=RESULTS_GROUP,
    kinds={"html"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["report"],
    check_specs=checks.specs("report"),
)
@one_maker
def report(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """One HTML file that opens offline, for someone who must decide.

    The decision memo comes first, then what each method cost, both tables, comparisons and plots;
    single questions can be filtered, looked into and challenged. Everything is in the file.
    """
    with making(context, study) as step:
        path = step.draft / "report.html"
        write_report(study.database, study.profile, path, REFERENCES)
        shutil.copyfile(path, study.store.root / "report.html")
        return step.finish(
            content_hash(step.inputs),
            metadata={"report": dg.MetadataValue.path(study.store.root / "report.html")},
            checks=checks.report(path),
            libraries=("matplotlib", "jinja2"),
        )
