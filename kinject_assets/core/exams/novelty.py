"""Whether facts may be called new to a model: they must be younger than its knowledge cut-off."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from kinject_assets.config import Corpus, Profile, WikiEvents
from kinject_assets.core.corpus.sources import window_months


@dataclass(frozen=True)
class Novelty:
    """What cut-offs say of a corpus's facts.

    Attributes:
        since: Date of the oldest fact; `None` where the corpus does not claim to hold new ones.
        older: Models that may have read such facts, with their cut-offs.
        unknown: Models without a cut-off in the profile.
    """

    since: date | None
    older: dict[str, date]
    unknown: tuple[str, ...]

    @property
    def new(self) -> bool:
        """Whether the facts may be called new to every model."""
        return self.since is not None and not self.older and not self.unknown

    def __str__(self) -> str:
        if self.since is None:
            return "the corpus does not claim to hold new facts"
        parts = [
            f"{model} has read texts up to {cutoff}, and the oldest fact is of {self.since}"
            for model, cutoff in self.older.items()
        ]
        if self.unknown:
            parts.append(f"the knowledge_cutoff of {', '.join(self.unknown)} is not stated")
        return "; ".join(parts) or f"facts since {self.since}: after every model's cut-off"


def facts_since(corpus: Corpus, now: datetime) -> date | None:
    """Date of a corpus's oldest fact, as far as it claims to hold new ones.

    It is what the profile states; for current events without a statement, the first day of the
    window.
    """
    if corpus.new_facts_since is not None or not isinstance(corpus.source, WikiEvents):
        return corpus.new_facts_since
    first = window_months(corpus.source.until, corpus.source.window_months, now)[0]
    year, month = (int(part) for part in first.split("-"))
    return date(year, month, 1)


def novelty(profile: Profile, corpus: str, models: Iterable[str], now: datetime) -> Novelty:
    """Holds a corpus's facts against the knowledge cut-offs of models.

    Args:
        profile: Names the models' cut-offs.
        corpus: Key of the corpus.
        models: Those that answer its exam.
        now: The profile's clock.
    """
    since = facts_since(profile.corpora[corpus], now)
    cutoffs = {model: profile.models[model].knowledge_cutoff for model in models}
    if since is None:
        return Novelty(None, {}, ())
    return Novelty(
        since,
        older={model: cutoff for model, cutoff in cutoffs.items() if cutoff and cutoff >= since},
        unknown=tuple(model for model, cutoff in cutoffs.items() if cutoff is None),
    )
