"""The sensor that keeps partition keys in step with the profile."""

import dagster as dg

from kinject_assets.defs.partitions import CORPUS, PROFILE


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Gives a fresh instance the profile's corpora as partition keys.",
)
def corpus_keys(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Adds the corpora of the profile that the instance does not know yet."""
    known = set(context.instance.get_dynamic_partitions("corpus"))
    new = [key for key in PROFILE.corpora if key not in known]
    return dg.SensorResult(
        dynamic_partitions_requests=[CORPUS.build_add_request(new)] if new else [],
        skip_reason=None if new else "all corpora of the profile are known",
    )
