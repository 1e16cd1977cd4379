"""Paired comparisons of two ways to answer the same questions, within declared families.

Which pairs are compared, and what they are corrected together with, is fixed in `FAMILIES` before
any data is seen.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from kinject_assets.config import RecipeSpec
from kinject_assets.core.augmentation.registry import PARAPHRASE
from kinject_assets.core.schema import Condition
from kinject_assets.core.statistics.intervals import paired_difference
from kinject_assets.core.statistics.power import (
    ALPHA,
    WORTHWHILE,
    detectable_difference,
    questions_needed,
)
from kinject_assets.core.statistics.selection import KRule
from kinject_assets.core.statistics.tests import holm, mcnemar

ALL = "all"
"""The stratum of all questions."""


@dataclass(frozen=True)
class Trained:
    """What the name of a recipe does not say.

    Attributes:
        augmentation: Who wrote what it reads beside the text; empty where it reads the text alone.
        settings: Hash of its training settings.
    """

    augmentation: str = PARAPHRASE
    settings: str = ""


AS_NAMED = Trained()
"""For recipes of which nothing but the name is known."""


@dataclass(frozen=True)
class System:
    """A condition with the rule that chose its K, and what it answered correctly.

    Attributes:
        condition: Under `cross_fitted`, the one with the K that most folds chose.
        outcomes: Question id -> answered correctly.
        trained: How its recipe was trained.
        studied: It retrieves nothing, or with the study's retriever, the profile's first.
    """

    condition: Condition
    k_rule: KRule
    outcomes: Mapping[str, bool]
    trained: Trained = AS_NAMED
    studied: bool = True

    def within(self, questions: Container[str]) -> "System":
        """The same on some of the questions; K stays as it was chosen on all."""
        return replace(self, outcomes={q: o for q, o in self.outcomes.items() if q in questions})

    @property
    def recipe(self) -> RecipeSpec | None:
        """What the recipe's name means; `None` without fine-tuning."""
        return RecipeSpec.parse(self.condition.recipe) if self.condition.recipe else None

    @property
    def adds(self) -> str:
        """The augmentation that it was trained on beside the text; empty for none."""
        spec = self.recipe
        alone = spec is None or spec.control_of or not spec.n_paraphrases
        return "" if alone else self.trained.augmentation


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A against B on the questions that both answered.

    Attributes:
        condition_a: First condition.
        condition_b: Second condition.
        only_a: Questions that only A answers correctly.
        difference: accuracy(A) - accuracy(B), with its 95 % score interval.
        p_value: McNemar's exact test.
        p_adjusted: The same after Holm's adjustment within the family.
        detectable_difference: What would have been found with 80 % power at this n and
            discordance, at the strictest level that Holm's procedure applies in the family;
            `None` when nothing could have been.
        more_questions: Further questions that would show a difference of `WORTHWHILE` with the
            same power at the same level; 0 when there are enough, `None` when it would take too
            many to say.
        verdict: About A, by `p_adjusted` at 5 %.
    """

    condition_a: str
    condition_b: str
    stratum: str
    family: str
    k_rule: KRule
    n: int
    only_a: int
    only_b: int
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    p_adjusted: float
    detectable_difference: float | None
    more_questions: int | None
    verdict: str


def _same_retrieval(a: System, b: System) -> bool:
    return (a.condition.retriever, a.condition.query) == (b.condition.retriever, b.condition.query)


def _same_shots(a: System, b: System) -> bool:
    return a.condition.shots == b.condition.shots


def _methods(a: System, b: System, first: str, second: str) -> bool:
    return (a.condition.method, b.condition.method) == (first, second) and _same_shots(a, b)


def is_control(system: System) -> bool:
    """It was trained on repeated text, to be compared with the recipe that it is one of alone."""
    return system.recipe is not None and system.recipe.control_of is not None


def _recipes_match(a: System, b: System) -> bool:
    """The same method with and without retrieval, kind of training and seed."""
    if a.recipe is None or b.recipe is None:
        return False
    return (
        a.condition.method == b.condition.method
        and (a.recipe.method, a.recipe.seed) == (b.recipe.method, b.recipe.seed)
        and _same_shots(a, b)
        and _same_retrieval(a, b)
    )


def _variants_match(a: System, b: System) -> bool:
    return _recipes_match(a, b) and a.recipe is not None and a.recipe.variant == _variant(b)


def _variant(system: System) -> str:
    return system.recipe.variant if system.recipe else ""


def _trained_alike(a: System, b: System) -> bool:
    """Recipes that match and have the same training settings, whatever their variants are called.

    An augmentation is chosen by a variant, and what it is compared with has another one or none.
    """
    return _recipes_match(a, b) and a.trained.settings == b.trained.settings


def _text_alone(system: System) -> bool:
    return system.recipe is not None and not system.adds and not is_control(system)


def _is_control_of(b: System, a: System) -> bool:
    return b.recipe is not None and b.recipe.control_of == a.condition.recipe


def _par_vs_reg(a: System, b: System) -> bool:
    return a.adds == PARAPHRASE and _text_alone(b) and _variants_match(a, b)


def _par_vs_control(a: System, b: System) -> bool:
    return a.adds == PARAPHRASE and _is_control_of(b, a) and _variants_match(a, b)


def _augmented(a: System) -> bool:
    """It was trained on the texts of another augmentation than paraphrases."""
    return a.adds not in {"", PARAPHRASE}


def _aug_vs_reg(a: System, b: System) -> bool:
    return _augmented(a) and _text_alone(b) and _trained_alike(a, b)


def _aug_vs_control(a: System, b: System) -> bool:
    return _augmented(a) and _is_control_of(b, a) and _variants_match(a, b)


def _aug_vs_par(a: System, b: System) -> bool:
    if a.recipe is None or b.recipe is None or not _augmented(a) or b.adds != PARAPHRASE:
        return False
    return _trained_alike(a, b) and a.recipe.n_paraphrases == b.recipe.n_paraphrases


def _more_shots(a: System, b: System) -> bool:
    mine, other = a.condition, b.condition
    return (
        (mine.method, mine.recipe) == (other.method, other.recipe)
        and _same_retrieval(a, b)
        and mine.shots > other.shots == 0
        and not is_control(a)
    )


def _larger_k(a: System, b: System) -> bool:
    return _methods(a, b, "rag", "rag") and _same_retrieval(a, b) and a.condition.k > b.condition.k


def _other_retriever(a: System, b: System) -> bool:
    """The same model and question to the retriever, answered from the chunks of another one."""
    mine, other = a.condition, b.condition
    return (
        not a.studied
        and b.studied
        and other.k > 0
        and (mine.method, mine.recipe, mine.query) == (other.method, other.recipe, other.query)
        and _same_shots(a, b)
        and not is_control(a)
    )


@dataclass(frozen=True)
class Family:
    """Comparisons that answer one question and are adjusted together.

    Attributes:
        name: Name in the table `comparisons`.
        question: What it asks.
        pairs: Whether A and B are compared; what `setting` names is always the same.
        k_rule: Whose answers stand for the conditions that retrieve.
        strata: Also asked of each stratum of the questions. Only where both sides were trained
            from a base model, as long as each other: base models sort, so their lucky guesses are
            `known`, their unlucky ones `new` and what they misread `broken`, and the less a model
            was trained since, the more it leans the same way.
        retrievers: Asked of every retriever that answers were given with, not of the study's alone.
    """

    name: str
    question: str
    pairs: Callable[[System, System], bool]
    k_rule: KRule = "cross_fitted"
    strata: bool = False
    retrievers: bool = False


FAMILIES: tuple[Family, ...] = (
    Family("rag_vs_base", "Does retrieval help?", lambda a, b: _methods(a, b, "rag", "base")),
    Family(
        "ft_vs_base",
        "Does fine-tuning help?",
        lambda a, b: _methods(a, b, "ft", "base") and not is_control(a),
    ),
    Family(
        "rag_vs_ft",
        "Is retrieval better than fine-tuning?",
        lambda a, b: _methods(a, b, "rag", "ft") and not is_control(b),
    ),
    Family(
        "ft_rag_vs_rag",
        "Does fine-tuning help where retrieval is used?",
        lambda a, b: (
            _methods(a, b, "ft_rag", "rag") and _same_retrieval(a, b) and not is_control(a)
        ),
    ),
    Family(
        "ft_rag_vs_ft",
        "Does retrieval help a fine-tuned model?",
        lambda a, b: (
            _methods(a, b, "ft_rag", "ft")
            and a.condition.recipe == b.condition.recipe
            and not is_control(a)
        ),
    ),
    Family("par_vs_reg", "Does training on paraphrases help?", _par_vs_reg),
    Family(
        "par_vs_control",
        "Do paraphrases help beyond repeating the text as often?",
        _par_vs_control,
        strata=True,
    ),
    Family(
        "aug_vs_reg",
        "Does training on the texts of another augmentation help?",
        _aug_vs_reg,
    ),
    Family(
        "aug_vs_control",
        "Do the texts of another augmentation help beyond repeating the text as often?",
        _aug_vs_control,
        strata=True,
    ),
    Family(
        "aug_vs_par",
        "Are the texts of another augmentation better than as many paraphrases?",
        _aug_vs_par,
    ),
    Family("shots", "Do few-shot examples help?", _more_shots),
    Family("k", "Does it matter how many chunks are retrieved?", _larger_k, "fixed"),
    Family(
        "retriever",
        "Is another retriever better than the study's?",
        _other_retriever,
        retrievers=True,
    ),
)


def compare(a: System, b: System, family: str, stratum: str) -> Comparison | None:
    """One comparison, not yet adjusted or judged; `None` if both answered no question."""
    shared = a.outcomes.keys() & b.outcomes.keys()
    if not shared:
        return None
    n = len(shared)
    only_a = sum(a.outcomes[q] and not b.outcomes[q] for q in shared)
    only_b = sum(b.outcomes[q] and not a.outcomes[q] for q in shared)
    interval = paired_difference(only_a, only_b, n)
    p_value = mcnemar(only_a, only_b)
    return Comparison(
        condition_a=a.condition.condition_id,
        condition_b=b.condition.condition_id,
        stratum=stratum,
        family=family,
        k_rule=a.k_rule,
        n=n,
        only_a=only_a,
        only_b=only_b,
        difference=(only_a - only_b) / n,
        ci_low=interval.low,
        ci_high=interval.high,
        p_value=p_value,
        p_adjusted=p_value,
        detectable_difference=None,
        more_questions=None,
        verdict="",
    )


def verdict_text(comparison: Comparison) -> str:
    """`better`, `worse`, or `no difference shown (could have shown ...)`."""
    if comparison.p_adjusted < ALPHA and comparison.difference != 0:
        return "better" if comparison.difference > 0 else "worse"
    return no_difference(comparison.detectable_difference)


def no_difference(could: float | None) -> str:
    """The verdict where none was shown, with what could have been."""
    shown = "no difference at this n" if could is None else f"{could:.3f}"
    return f"no difference shown (could have shown {shown})"


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons of one family with adjusted p-values, what they could have shown, and verdicts.

    What could have been shown is asked at the level of Holm's first step: a difference found there
    is found whatever the other comparisons of the family give.
    """
    p_values = holm([c.p_value for c in comparisons])
    found: list[Comparison] = []
    for c, p_value in zip(comparisons, p_values, strict=True):
        alpha, discordant = ALPHA / len(comparisons), c.only_a + c.only_b
        needed = questions_needed(discordant / c.n, WORTHWHILE, alpha=alpha)
        judged = replace(
            c,
            p_adjusted=p_value,
            detectable_difference=detectable_difference(c.n, discordant, alpha=alpha),
            more_questions=None if needed is None else max(0, needed - c.n),
        )
        found.append(replace(judged, verdict=verdict_text(judged)))
    return found


def setting(condition: Condition) -> tuple[object, ...]:
    """What two conditions must share to be compared at all."""
    c = condition
    return (
        c.corpus,
        c.model,
        c.choice_format,
        c.rotation,
        c.engine,
        c.chat_template,
        c.bos,
    )


def _takes_part(system: System, family: Family) -> bool:
    return system.k_rule == family.k_rule and (system.studied or family.retrievers)


def compare_all(systems: Iterable[System], stratum: str = ALL) -> list[Comparison]:
    """Every comparison that the families declare, in the families' order.

    Args:
        systems: Conditions with their outcomes, of the questions of one stratum.
        stratum: Its name.
    """
    groups: dict[tuple[object, ...], list[System]] = defaultdict(list)
    for system in systems:
        groups[setting(system.condition)].append(system)
    found: list[Comparison] = []
    for family in FAMILIES:
        if stratum != ALL and not family.strata:
            continue
        members = [
            comparison
            for group in groups.values()
            for a, b in permutations((s for s in group if _takes_part(s, family)), 2)
            if family.pairs(a, b) and (comparison := compare(a, b, family.name, stratum))
        ]
        members.sort(key=lambda c: (c.condition_a, c.condition_b))
        found += adjusted(members)
    return found
