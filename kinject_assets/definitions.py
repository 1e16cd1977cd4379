"""The code location: `dagster`, `dg` and `workspace.yaml` load `defs` from here."""

import warnings

import dagster as dg

from kinject_assets.defs import (
    audit,
    augmentation,
    automation,
    corpus,
    damage,
    exams,
    jobs,
    results,
    retrieval,
    scores,
    training,
    triage,
)
from kinject_assets.defs.resources import Study

# Links to the source code are beta in Dagster, and Pipes reads a preview property of its own: it
# would say so once an asset and once a worker.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

STAGES = (corpus, exams, augmentation, retrieval, training, scores, triage, damage, results, audit)

defs = dg.Definitions(
    assets=dg.with_source_code_references(dg.load_assets_from_modules(STAGES)),
    # Nothing passes from step to step but by the lake; Dagster's default would offer pickles.
    resources={"study": Study(), "io_manager": dg.mem_io_manager},
    jobs=jobs.JOBS,
    sensors=[automation.corpus_keys],
    executor=dg.in_process_executor,
)
