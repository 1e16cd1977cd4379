"""The code location: `dagster`, `dg` and `workspace.yaml` load `defs` from here."""

import dagster as dg

from kinject_assets.defs import (
    audit,
    augmentation,
    automation,
    corpus,
    damage,
    exams,
    figures,
    jobs,
    results,
    retrieval,
    scores,
    training,
    triage,
)
from kinject_assets.defs.resources import Study

STAGES = (
    corpus,
    exams,
    augmentation,
    retrieval,
    training,
    scores,
    triage,
    damage,
    results,
    figures,
    audit,
)

ASSETS = [
    asset for asset in dg.load_assets_from_modules(STAGES) if isinstance(asset, dg.AssetsDefinition)
]

defs = dg.Definitions(
    assets=dg.with_source_code_references(
        dg.map_asset_specs(automation.with_condition, ASSETS),
    ),
    # Nothing passes from step to step but by the lake; Dagster's default would offer pickles.
    resources={"study": Study(), "io_manager": dg.mem_io_manager},
    jobs=[*jobs.JOBS, *automation.AUTOMATION_JOBS],
    sensors=automation.SENSOR_DEFINITIONS,
    schedules=automation.SCHEDULE_DEFINITIONS,
    executor=dg.in_process_executor,
)
