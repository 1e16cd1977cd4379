"""What each method has cost, and from how many questions on another one is cheaper.

Everything here was recorded: requests in the ledger, seconds of artefacts in their manifests. An
artefact that was made again counts with its last making. What a method costs is split into what an
*update* of the text costs (train, embed, have paraphrases written) and what a *question* costs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from kinject_assets.config import Profile, RecipeSpec
from kinject_assets.core.augmentation.registry import PARAPHRASE
from kinject_assets.core.report.memo import Judged
from kinject_assets.core.results.ancestry import ANSWERED_IN
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.scoring import pace

QUESTIONS_A_MONTH = 10_000
UPDATES_A_MONTH = 1
USD_AN_HOUR = 3.0
"""What the page starts from; readers change it. The price is assumed where the profile has none."""

PURPOSES: Mapping[str, tuple[str, str]] = {
    "question": ("Writing questions", "the exam: every method"),
    "question_selection": ("Choosing questions", "the exam: every method"),
    "question_verification": ("Verifying questions", "the exam: every method"),
    "paraphrase": ("Paraphrases to train on", "FT on paraphrases alone"),
    "validation_paraphrase": ("Paraphrases to validate on", "FT: choice of rate and epoch"),
}
"""Purpose of a request -> what it is, and which methods need it."""

STEPS: Mapping[str, tuple[str, str]] = {
    "articles": ("Fetching and cleaning", "every method"),
    "chunks": ("Cutting into chunks", "every method"),
    "embeddings": ("Embedding the chunks", "RAG, FT + RAG"),
    "faiss_index": ("Building the index", "RAG, FT + RAG"),
    "retrieved": ("Searching for the exam", "RAG, FT + RAG"),
    "checkpoint": ("Training", "FT, FT + RAG"),
    "controls": ("... of it, controls", "none: they tell variety from repetition"),
    "answers_base": ("Answering: base", "base"),
    "answers_rag": ("Answering: RAG", "RAG"),
    "answers_ft": ("Answering: FT", "FT"),
    "answers_ft_rag": ("Answering: FT + RAG", "FT + RAG"),
    "triage": ("Sorting questions by what base models know", "the exam"),
    "damage": ("Measuring damage", "FT, FT + RAG"),
}
"""Asset, or `controls` -> what it is, and which methods need it."""

ANSWERING = f"""
    SELECT c.method, c.corpus, c.model, c.recipe,
        any_value(TRY_CAST(json_extract_string(t.counts, '$.{pace.SECONDS}') AS DOUBLE)) AS kept,
        count(*) AS answers, count(*) FILTER (a.run_id = t.run_id) AS asked,
        any_value(epoch(t.finished_at) - epoch(t.started_at)) AS seconds
    FROM answers a JOIN conditions c USING (condition_id)
        JOIN artefacts t ON t.artefact = {ANSWERED_IN}
    GROUP BY ALL ORDER BY ALL
"""
"""Of each artefact of answers the seconds of an answer as it keeps them, the seconds that it took,
and how many answers the model was asked for in it."""

SECONDS = """
    SELECT artefact, asset, epoch(finished_at) - epoch(started_at) AS seconds FROM artefacts
    WHERE finished_at IS NOT NULL AND started_at IS NOT NULL
"""

REQUESTS = """
    SELECT purpose, count(*) AS requests, sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens, sum(cost_usd) AS cost_usd,
        count(*) - count(cost_usd) AS unpriced
    FROM generations GROUP BY purpose ORDER BY purpose
"""

TEXTS = """
    WITH mine AS (
        SELECT DISTINCT c.corpus, p.purpose, p.augmentation, p.ordinal, p.generation_id
        FROM paraphrases p JOIN corpus_chunks c USING (chunk_id)
    )
    SELECT m.corpus, m.purpose, m.augmentation, m.ordinal,
        CASE WHEN count(g.cost_usd) = count(*) THEN sum(g.cost_usd) END AS usd
    FROM mine m JOIN generations g USING (generation_id) GROUP BY ALL
"""
"""What the texts of each corpus to train on cost, by ordinal; NULL where a price is unknown."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One line of what was spent.

    Attributes:
        serves: Methods that need it.
        seconds: Machine time; `None` for requests alone.
        usd: Paid to the language model service; `None` where a price is not known.
    """

    what: str
    serves: str
    seconds: float | None = None
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one method costs in operation.

    Attributes:
        update_seconds: Machine time to follow a change of the text.
        update_usd: Paid to the language model service to follow it; `None` where a price is
            unknown.
        question_seconds: Measured machine time of an answer; `None` where none was measured.
    """

    update_seconds: float
    update_usd: float | None
    question_seconds: float | None

    def monthly(self, questions: float, updates: float, usd_an_hour: float) -> float | None:
        """USD a month; `None` where a time was not measured, or a price that counts is unknown."""
        if self.question_seconds is None or (self.update_usd is None and updates):
            return None
        seconds = updates * self.update_seconds + questions * self.question_seconds
        return updates * (self.update_usd or 0.0) + seconds / 3600 * usd_an_hour


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What the methods cost on one corpus and model.

    Attributes:
        costs: `rag`, `ft`, `ft_rag` -> cost; those that were not tried are not in it.
    """

    corpus: str
    model: str
    recipe: str
    costs: Mapping[str, Cost]

    def break_even(
        self,
        questions: float = QUESTIONS_A_MONTH,
        updates: float = UPDATES_A_MONTH,
        usd_an_hour: float = USD_AN_HOUR,
    ) -> str:
        """Which of RAG and FT is cheaper, and from how many questions a month on the other is.

        Args:
            questions: A month.
            updates: Of the text, a month.
            usd_an_hour: Price of the machine.
        """
        rag, ft = self.costs.get("rag"), self.costs.get("ft")
        if rag is None or ft is None:
            return "needs RAG and FT"
        if rag.question_seconds is None or ft.question_seconds is None:
            return "no answer's time was measured"
        of_ft, of_rag = (cost.monthly(0, updates, usd_an_hour) for cost in (ft, rag))
        if of_ft is None or of_rag is None:
            return "no price"
        slope = (rag.question_seconds - ft.question_seconds) / 3600 * usd_an_hour
        more = of_ft - of_rag
        if more * slope <= 0:
            # Dearer in one and not cheaper in the other.
            dear = more if more else -slope
            return "equal" if not dear else f"{'RAG' if dear > 0 else 'FT'} at any volume"
        at = more / slope
        return f"{'FT' if slope > 0 else 'RAG'} above {at:,.0f} questions" if isfinite(at) else "-"

    def data(self) -> dict[str, dict[str, float | None]]:
        """For the page."""
        return {method: asdict(cost) for method, cost in self.costs.items()}


def read_spent(database: Path) -> list[Spent]:
    """Machine time by step, and requests by purpose."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for row in fetch(database, SECONDS).dicts():
        seconds[row["asset"]] += row["seconds"]
    seconds["controls"] = _control_seconds(database)
    steps = [
        Spent(what=what, serves=serves, seconds=seconds[step])
        for step, (what, serves) in STEPS.items()
        if seconds[step]
    ]
    return steps + [
        Spent(
            what=PURPOSES.get(row["purpose"], (row["purpose"], ""))[0],
            serves=PURPOSES.get(row["purpose"], ("", "FT on its texts"))[1],
            requests=row["requests"],
            input_tokens=row["input_tokens"] or 0,
            output_tokens=row["output_tokens"] or 0,
            usd=None if row["unpriced"] else row["cost_usd"],
        )
        for row in fetch(database, REQUESTS).dicts()
    ]


def _control_seconds(database: Path) -> float:
    rows = fetch(database, "SELECT recipe, seconds FROM checkpoints").rows
    return sum(seconds for recipe, seconds in rows if RecipeSpec.parse(recipe).control_of)


@dataclass(frozen=True)
class _Recorded:
    """What was recorded, for looking up.

    Attributes:
        seconds: Artefact -> seconds.
        trained: Corpus, model and recipe -> seconds of training.
        asked: Method, corpus, model and recipe -> seconds of an answer, of the last making in which
            most of the answers were asked for anew.
    """

    seconds: Mapping[str, float]
    trained: Mapping[tuple[str, str, str], float]
    asked: Mapping[tuple[str, str, str, str], float]

    @classmethod
    def read(cls, database: Path) -> "_Recorded":
        """Reads it from the database."""
        checkpoints = fetch(database, "SELECT corpus, model, recipe, seconds FROM checkpoints").rows
        return cls(
            {row["artefact"]: row["seconds"] for row in fetch(database, SECONDS).dicts()},
            {(corpus, model, recipe): seconds for corpus, model, recipe, seconds in checkpoints},
            {
                (row["method"], row["corpus"], row["model"], row["recipe"]): seconds
                for row in fetch(database, ANSWERING).dicts()
                if (seconds := _of_an_answer(row)) is not None
            },
        )

    def index(self, corpus: str) -> float:
        """Seconds to embed a corpus and to index it."""
        return sum(
            self.seconds.get(f"{name}/{corpus}", 0.0) for name in ("embeddings", "faiss_index")
        )


def _of_an_answer(row: Mapping[str, Any]) -> float | None:
    """Seconds of an answer of an artefact; what it took tells where it keeps none."""
    if row["kept"] is not None or row["seconds"] is None:
        return row["kept"]
    return pace.seconds_per_answer(row["seconds"], row["asked"], row["answers"], ())


def read_operations(database: Path, profile: Profile, judged: Sequence[Judged]) -> list[Operation]:
    """What the methods of each decision cost an update and a question."""
    recorded = _Recorded.read(database)
    every = fetch(database, TEXTS).dicts()
    found: list[Operation] = []
    for j in judged:
        texts = [row for row in every if row["corpus"] == j.corpus]
        costs = {
            method: _cost(recorded, profile, j, method, recipe, texts)
            for method, recipe in (
                ("rag", ""),
                ("ft", j.cast.recipe),
                ("ft_rag", j.cast.recipe_of_both),
            )
            if method in j.systems
        }
        if costs:
            found.append(
                Operation(corpus=j.corpus, model=j.model, recipe=j.cast.recipe, costs=costs)
            )
    return found


def _cost(
    recorded: _Recorded,
    profile: Profile,
    j: Judged,
    method: str,
    recipe: str,
    texts: Sequence[Mapping[str, Any]],
) -> Cost:
    index = recorded.index(j.corpus) if method != "ft" else 0.0
    return Cost(
        update_seconds=recorded.trained.get((j.corpus, j.model, recipe), 0.0) + index,
        update_usd=_texts_usd(profile, recipe, texts) if recipe else 0.0,
        question_seconds=recorded.asked.get((method, j.corpus, j.model, recipe)),
    )


def _texts_usd(profile: Profile, recipe: str, texts: Sequence[Mapping[str, Any]]) -> float | None:
    """USD for what a recipe reads beside the text, and for what it is validated with.

    `None` if the price of any of it is unknown.
    """
    spec = RecipeSpec.parse(recipe)
    augmentation = profile.recipe_augmentation(recipe) if recipe in profile.recipes else ""
    paid = [
        row["usd"]
        for row in texts
        if row["purpose"] == "validation"
        or (
            row["augmentation"] == (augmentation or PARAPHRASE)
            and row["ordinal"] < spec.n_paraphrases
            and not spec.control_of
        )
    ]
    return None if None in paid else sum(paid, start=0.0)
