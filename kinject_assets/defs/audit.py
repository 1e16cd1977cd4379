"""Whether every artefact is what was made, and made from what is there now."""

from collections import Counter
from functools import partial

import dagster as dg

from kinject_assets.core.lineage.audit import audit
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.defs import checks
from kinject_assets.defs.instance import logged
from kinject_assets.defs.io import making, one_maker
from kinject_assets.defs.policy import OWNERS, RESULTS_GROUP
from kinject_assets.defs.resources import Study
from kinject_assets.defs.results import claims, report, results


@dg.asset(
    deps=[results, claims, report],
    group_name=RESULTS_GROUP,
    kinds={"python"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["lineage_audit"],
    check_specs=checks.specs("lineage_audit"),
)
@one_maker
def lineage_audit(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """Verifies the lake and the database against manifests, hashes, inputs and Dagster's log.

    What is missing, changed, orphaned or stale is told apart and named, with what rests on it.
    Nothing is mended.
    """
    with making(context, study) as step:
        events = partial(logged, context.instance, study.store)
        verdict = audit(study.store, study.profile, events, step.report)
        text = verdict.to_json()
        (step.draft / "audit.json").write_text(text, encoding="utf-8")
        return step.finish(
            content_hash(text),
            counts={
                "artefacts": verdict.checked,
                "files": verdict.files,
                "rows": verdict.rows,
                "answers": verdict.answers,
                "whole_chains": verdict.whole,
                **Counter(finding.kind for finding in verdict.findings),
            },
            metadata={
                "verdict": verdict.verdict,
                "findings": dg.MetadataValue.md(
                    # Names of files may hold anything.
                    "```\n" + str(verdict).replace("```", "` ` `") + "\n```"
                ),
            },
            checks=checks.lineage_audit(verdict),
        )
