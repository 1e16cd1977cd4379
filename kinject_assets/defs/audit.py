"""Whether every artefact is what its manifest says, and made from what is there now."""

from collections import Counter

import dagster as dg

from kinject_assets.core.lineage.audit import audit
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.defs import checks
from kinject_assets.defs.instance import logged_versions
from kinject_assets.defs.io import making, one_maker
from kinject_assets.defs.policy import OWNERS, RESULTS_GROUP
from kinject_assets.defs.resources import Study
from kinject_assets.defs.results import results


@dg.asset(
    deps=[results],
    group_name=RESULTS_GROUP,
    kinds={"python"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["lineage_audit"],
    check_specs=checks.specs("lineage_audit"),
)
@one_maker
def lineage_audit(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """Verifies the lake: hashes of all files, versions of all inputs, Dagster's event log.

    What is missing, changed, orphaned or stale is told apart and named. Nothing is mended.
    """
    with making(context, study) as step:
        verdict = audit(
            study.store, study.profile, events=logged_versions(context.instance, study.store)
        )
        text = verdict.to_json()
        (step.draft / "audit.json").write_text(text)
        return step.finish(
            content_hash(text),
            counts={
                "artefacts": verdict.checked,
                "files": verdict.files,
                **Counter(finding.kind for finding in verdict.findings),
            },
            metadata={"findings": dg.MetadataValue.md(f"```\n{verdict}\n```")},
            checks=checks.lineage_audit(verdict),
        )
