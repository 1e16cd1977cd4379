"""What a pilot found, and the declared rules by which it says so."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kinject_assets.core.statistics.intervals import wilson
from kinject_assets.core.statistics.sequential import (
    ConfidenceSequence,
    Decision,
    decide,
    more_questions,
)

FEWEST = 30
"""Questions before which nothing counts as decided, nor the model as the bottleneck."""

HELD_BACK = 0.05
"""Wrong answers with retrieval, as a share, below which nothing is called a bottleneck."""

Stopped = Literal["decided", "questions", "passages", "time", "budget"]
"""Why no further question was asked: decided, as many as were wanted, no passage left, ..."""

Bottleneck = Literal["retrieval", "reading", "neither", "model", "unknown"]
"""What holds RAG back: see `bottleneck`."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and whether it was answered correctly: alone, with RAG, with its own passage.

    Attributes:
        hit: Its own passage was among those retrieved.
        chance: 1 / number of its options.
    """

    question_id: str
    chunk_id: str
    base: bool
    rag: bool
    oracle: bool
    hit: bool
    chance: float


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A difference of accuracies on the same questions.

    Attributes:
        low: Lower limit of the 95 % interval, which holds however often one looked.
        high: Upper limit.
    """

    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What fine-tuning by a recipe would take, as `kinject plan` reckons.

    Attributes:
        paraphrases: Texts beside each passage that it trains on.
        seconds: Of training on one GPU of `hardware`; `None` where the model's size is unknown.
        requests: To the language model service, for paraphrases.
        usd: What these cost; `None` where the price is unknown.
    """

    recipe: str
    paraphrases: int
    seconds: float | None
    requests: int
    usd: float | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What was asked, of what, about what.

    Attributes:
        writer: Model that wrote the questions.
        lab_writer: It is the lab's, which works by rule.
        lab_model: The model is the lab's, of an invented world.
        k: Passages in front of each question.
        hardware: Machine that fine-tuning is reckoned for.
    """

    profile: str
    profile_path: str
    corpus: str
    model: str
    writer: str
    lab_writer: bool
    lab_model: bool
    encoder: str
    retriever: str
    k: int
    hardware: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a pilot found.

    Attributes:
        documents: Read.
        passages: They were cut into, all of which are searched.
        asked_passages: Passages that questions were wanted of.
        questions: Asked.
        rejections: Why questions were turned away -> how many.
        accuracy: `base`, `rag`, `oracle`; empty without questions.
        decision: On RAG against the model alone.
        gain: RAG - base.
        gap: Oracle RAG - RAG: what perfect retrieval would add.
        more_questions: About how many more would decide; `None` where it is decided or too many.
        recipes: What fine-tuning would take.
        spent_usd: In all, by the ledger; `None` where the price is unknown.
        seconds: This call took.
    """

    setting: Setting
    documents: int
    passages: int
    asked_passages: int
    questions: int
    rejections: dict[str, int]
    stopped: Stopped
    accuracy: dict[str, float] = field(default_factory=dict)
    chance: float = 0.0
    hit_rate: float = 0.0
    decision: Decision = "undecided"
    gain: Gain | None = None
    gap: Gain | None = None
    bottleneck: Bottleneck = "unknown"
    more_questions: int | None = None
    recipes: Sequence[Recipe] = ()
    spent_usd: float | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return asdict(self)


@dataclass
class Tally:
    """The questions so far, and the intervals after them.

    Args:
        most: Questions that a passage has at most.

    Attributes:
        rows: In the order in which they were asked.
        gain: RAG - base.
        gap: Oracle RAG - RAG.
    """

    most: int
    rows: list[Asked] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gain = ConfidenceSequence(self.most)
        self.gap = ConfidenceSequence(self.most)

    def add(self, group: Sequence[Asked]) -> None:
        """Counts the questions of one passage."""
        self.rows += group
        self.groups.append([row.rag - row.base for row in group])
        self.gain.add(self.groups[-1])
        self.gap.add([row.oracle - row.rag for row in group])

    @property
    def decision(self) -> Decision:
        """What RAG against the model alone has come to."""
        return decide(self.gain.interval)

    def findings(self) -> dict[str, Any]:
        """Fields of `Outcome` that follow from the questions."""
        n = len(self.rows)
        if not n:
            return {}
        accuracy = {
            name: sum(getattr(row, name) for row in self.rows) / n
            for name in ("base", "rag", "oracle")
        }
        chance = sum(row.chance for row in self.rows) / n
        undecided = self.decision == "undecided"
        return {
            "accuracy": accuracy,
            "chance": chance,
            "hit_rate": sum(row.hit for row in self.rows) / n,
            "decision": self.decision,
            "gain": _gain(self.gain),
            "gap": _gain(self.gap),
            "bottleneck": bottleneck(accuracy["rag"], accuracy["oracle"], n, chance),
            "more_questions": more_questions(self.groups, self.most) if undecided else None,
        }


def _gain(found: ConfidenceSequence) -> Gain:
    return Gain(difference=found.mean, low=found.interval.low, high=found.interval.high)


def bottleneck(rag: float, oracle: float, n: int, chance: float) -> Bottleneck:
    """What holds RAG back.

    The model itself (`model`) where even with the right passage in front it may be at chance: the
    95 % interval of its accuracy reaches down to it. On less than `FEWEST` questions that says
    little: `unknown`. Neither where RAG gets less than `HELD_BACK` wrong. Else retrieval where
    perfect retrieval would mend at least half of what RAG gets wrong, and reading where it would
    not.

    Args:
        rag: Accuracy with the retrieved passages.
        oracle: Accuracy with the right passage first among as many.
        n: Questions.
        chance: Accuracy of guessing.
    """
    if wilson(oracle * n, n).low <= chance:
        return "model" if n >= FEWEST else "unknown"
    if 1 - rag < HELD_BACK:
        return "neither"
    return "retrieval" if oracle - rag >= 1 - oracle else "reading"
