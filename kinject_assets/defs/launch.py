"""What can be set for one run in Dagster's launchpad: speed and money, never results.

Whatever decides a result is in the profile. These settings win over the profile's for the run that
they are given to, and are part of no fingerprint.
"""

import dagster as dg
from pydantic import Field

from kinject_assets.config import LLM, Encoder, Scoring, Training
from kinject_assets.defs.partitions import PROFILE


def _or(given: int | float | str | None, otherwise: object) -> object:
    return otherwise if given is None else given


class FetchSettings(dg.Config):
    """How a source is read in this run."""

    fetch_all: bool = Field(
        default=False,
        description="Fetch every page again, also those whose revision is known. Needed only when "
        "the wiki's text and its revision ids may disagree.",
    )


class RequestSettings(dg.Config):
    """How the language model service is asked in this run."""

    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description=f"Requests at once. Empty: the profile's llm.concurrency "
        f"({PROFILE.llm.concurrency}). Lower it when the service answers 429.",
    )
    batch: bool | None = Field(
        default=None,
        description="Send requests through the service's Batch API: half the price, answers within "
        f"a day. Empty: the profile's llm.batch ({PROFILE.llm.batch}). A run that is stopped "
        "leaves its batch at the service; the next one collects it.",
    )
    budget_usd: float | None = Field(
        default=None,
        ge=0,
        description="Stop before the sum of all requests of this profile crosses so many USD. "
        f"Empty: the profile's llm.budget_usd ({PROFILE.llm.budget_usd or 'no limit'}).",
    )

    def over(self, settings: LLM) -> LLM:
        """The profile's settings with those of this run."""
        return settings.model_copy(
            update={
                "concurrency": _or(self.concurrency, settings.concurrency),
                "batch": _or(self.batch, settings.batch),
                "budget_usd": _or(self.budget_usd, settings.budget_usd),
            }
        )


class EmbeddingSettings(dg.Config):
    """How texts are embedded in this run."""

    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Texts a forward pass. Empty: the profile's retrieval.encoder.batch_size "
        f"({PROFILE.retrieval.encoder.batch_size}). Lower it when memory runs out.",
    )

    def over(self, settings: Encoder) -> Encoder:
        """The profile's settings with those of this run."""
        return settings.model_copy(update={"batch_size": _or(self.batch_size, settings.batch_size)})


class TrainingSettings(dg.Config):
    """How a checkpoint is trained in this run."""

    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="Pieces a forward pass; the optimiser's batch stays as it is. Empty: the "
        f"profile's training.micro_batch ({PROFILE.training.micro_batch}). Lower it when memory "
        "runs out.",
    )

    def over(self, settings: Training) -> Training:
        """The profile's settings with those of this run."""
        return settings.model_copy(
            update={"micro_batch": _or(self.micro_batch, settings.micro_batch)}
        )


class ScoringSettings(dg.Config):
    """How exams are answered in this run."""

    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Memory of a batch, in prompts of full length. Empty: the profile's "
        "scoring.batch_size "
        f"({PROFILE.scoring.batch_size}). Lower it when memory runs out.",
    )

    def over(self, settings: Scoring) -> Scoring:
        """The profile's settings with those of this run."""
        return settings.model_copy(update={"batch_size": _or(self.batch_size, settings.batch_size)})
