"""Whether a model answers the question or the letter.

A model whose answers have collapsed onto a letter, or lie below chance, has lost the format of the
exam: its accuracy says nothing of what it knows.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

from kinject_assets.core.schema import Answer
from kinject_assets.core.statistics.intervals import wilson

CHOSEN = 0.9
"""A place with a larger share of the choices takes them all, for our purpose."""

RIGHT = 0.5
"""Unless it holds the right option in at least this share of the orders."""

BELOW_CHANCE = "below chance"
ONE_LETTER = "one letter"


@dataclass(frozen=True)
class Place:
    """One place of the options under one condition.

    Attributes:
        place: From 0.
        letter: A for the first.
        shown: Orders of options that were shown, over all questions.
        gold: Share of them in which the place held the right option.
        chosen: Share of them in which it was chosen.
    """

    place: int
    letter: str
    shown: int
    gold: float
    chosen: float


def places(answers: Iterable[Answer]) -> list[Place]:
    """How often each place was right and chosen, from all answers under one condition.

    Order r shows option (place + r) mod n at a place. An answer that does not say what was chosen
    in each order counts as one, in the exam's own order.
    """
    gold: Counter[int] = Counter()
    chosen: Counter[int] = Counter()
    options = 0
    for answer in answers:
        n = len(answer.logliks)
        options = max(options, n)
        for order, place in enumerate(answer.places or [answer.choice]):
            gold[(answer.gold - order) % n] += 1
            chosen[place] += 1
    shown = chosen.total()
    return [
        Place(place, chr(ord("A") + place), shown, gold[place] / shown, chosen[place] / shown)
        for place in range(options)
    ]


def entropy(found: Iterable[Place]) -> float:
    """Entropy of the chosen places in bits: 2 if each of four is chosen alike, 0 if always one."""
    return sum(-place.chosen * log2(place.chosen) for place in found if place.chosen)


def collapse(correct: int, n: int, chance: float, found: Iterable[Place]) -> str:
    """Why a condition's answers count as collapsed; empty when they do not.

    Args:
        correct: Questions answered correctly.
        n: Questions.
        chance: Accuracy of guessing.
        found: Its places.
    """
    reasons: list[str] = []
    if wilson(correct, n).high < chance:
        reasons.append(BELOW_CHANCE)
    if any(place.chosen > CHOSEN and place.gold < RIGHT for place in found):
        reasons.append(ONE_LETTER)
    return ", ".join(reasons)
