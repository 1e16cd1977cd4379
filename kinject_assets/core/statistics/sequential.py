"""Intervals that stay valid however often one looks: questions may stop when it is decided.

A confidence sequence for the mean of bounded differences, by betting: I. Waudby-Smith and A.
Ramdas, Estimating means of bounded random variables by betting, Journal of the Royal Statistical
Society B 86 (2024) 1-27: the hedged capital process, with a mixture of constant bets in place of
their plug-in ones. For each mean that could be the true one, a gambler bets that the differences
are larger, another one that they are smaller. Under the true mean neither can expect to win, so
that by Ville's inequality their capital ever passes 1 / alpha with a chance of at most alpha,
whenever one looks and whyever one stops. The means at which it has not are the interval.

Questions that were written from the same passage are not independent: they are bet on as one group.
"""

import random
from collections.abc import Iterable, Sequence
from math import pi, sin
from typing import TYPE_CHECKING, Literal

from kinject_assets.core.statistics.intervals import LEVEL, Interval

if TYPE_CHECKING:
    import numpy as np

MARGIN = 0.10
"""Differences smaller than this count as none: 10 points."""

POINTS = 2001
"""Means that are looked at, evenly between -1 and 1; limits are rounded outwards to them."""

ROUGH_POINTS = 201
"""The same where how many questions it takes is only drawn."""

BETS = tuple(sin(pi * (bet + 0.5) / 24) ** 2 for bet in range(12))
"""Shares of the most that may be staked; the capital is the mean over gamblers with each. They lie
as the quantiles of a Beta(1/2, 1/2) do: close to 0 for small differences, and close to all, without
which questions that all agree would not show before the hundredth that there is no difference."""

MOST_MORE = 2000
"""Further questions beyond which it is not said how many would settle it."""

DRAWS = 11
"""Continuations of a pilot that are drawn to say that; odd, so that one is the median."""

Decision = Literal["better", "worse", "no difference", "undecided"]


class ConfidenceSequence:
    """The interval of the mean of paired differences, renewed with each group of questions.

    The intervals are intersected: one never takes back what an earlier one has excluded.

    Args:
        most: Questions that a group has at most.
        level: Probability with which all intervals ever given hold the true mean together.
        points: Means that are looked at.

    Attributes:
        n: Differences so far.
        total: Their sum.
        interval: Of their mean, as far as is known.
    """

    def __init__(self, most: int = 1, level: float = LEVEL, points: int = POINTS) -> None:
        import numpy as np

        self.n = 0
        self.total = 0
        self.interval = Interval(-1.0, 1.0)
        self._most = most
        self._passed = np.log(2 / (1 - level))
        # Differences and means are moved to the range from 0 to 1. At 0 and 1 itself nothing could
        # be staked: a hair inside, the same is found.
        self._means = np.linspace(0.0, 1.0, points).clip(1e-9, 1 - 1e-9)
        self._bets = np.asarray(BETS)[:, None]
        self._larger = np.zeros((len(BETS), points))
        self._smaller = np.zeros((len(BETS), points))

    def add(self, group: Sequence[int]) -> Interval:
        """Takes the differences of a group of questions, and gives the interval after it.

        Args:
            group: Each -1, 0 or 1; none is as if there were no such group.

        Raises:
            ValueError: If the group is larger than was said, or a difference is none.
        """
        import numpy as np

        if len(group) > self._most or not set(group) <= {-1, 0, 1}:
            raise ValueError(f"{list(group)}: at most {self._most} differences of -1, 0 and 1")
        self.n += len(group)
        self.total += sum(group)
        # What the group brings beyond the mean, as a share of the most that it could lose.
        beyond = sum((x + 1) / 2 for x in group) - len(group) * self._means
        gain = beyond / self._most
        self._larger += np.log1p(self._bets * gain / self._means)
        self._smaller += np.log1p(-self._bets * gain / (1 - self._means))
        excluded = np.maximum(_mixed(self._larger), _mixed(self._smaller)) >= self._passed
        left = np.flatnonzero(~excluded)
        if len(left):
            step = 2 / (len(self._means) - 1)
            low = 2 * self._means[left[0]] - 1 - step
            high = 2 * self._means[left[-1]] - 1 + step
            low, high = max(self.interval.low, float(low)), min(self.interval.high, float(high))
            # Apart from what was left before, one of the two has missed: the earlier one stays.
            if low <= high:
                self.interval = Interval(low, high)
        return self.interval

    @property
    def mean(self) -> float:
        """Mean of the differences so far; 0 where there are none."""
        return self.total / self.n if self.n else 0.0


def _mixed(capital: "np.ndarray") -> "np.ndarray":
    """Logarithm of the mean capital over all bets."""
    import numpy as np

    return np.logaddexp.reduce(capital, axis=0) - np.log(len(capital))


def decide(interval: Interval, margin: float = MARGIN) -> Decision:
    """What an interval of a difference says.

    Args:
        interval: Of A - B.
        margin: Differences up to this count as none.

    Returns:
        `better` or `worse` where 0 is outside it, `no difference` where all of it is within the
        margin, else `undecided`. One that leaves out 0 by less than the margin is `better`, too.
    """
    if interval.low > 0:
        return "better"
    if interval.high < 0:
        return "worse"
    if -margin <= interval.low and interval.high <= margin:
        return "no difference"
    return "undecided"


def sequence_of(
    groups: Iterable[Sequence[int]], most: int = 1, points: int = POINTS
) -> ConfidenceSequence:
    """The confidence sequence after some groups, in their order."""
    found = ConfidenceSequence(most, points=points)
    for group in groups:
        found.add(group)
    return found


def more_questions(groups: Sequence[Sequence[int]], most: int, seed: int = 0) -> int | None:
    """How many further questions would decide, if they came out as those so far did.

    Groups are drawn anew from those that there are, with replacement, until it is decided; the
    median over `DRAWS` such continuations. A rough number: it takes what was seen for the truth.

    Args:
        groups: Differences so far, in groups.
        most: Questions that a group has at most.
        seed: Of the draws.

    Returns:
        The number of questions, or `None` where it is over `MOST_MORE` or nothing is known.
    """
    drawn = [list(group) for group in groups if group]
    if not drawn:
        return None
    needed: list[float] = []
    for draw in range(DRAWS):
        chance = random.Random(f"{seed}/{draw}")
        found = sequence_of(drawn, most, ROUGH_POINTS)
        before = found.n
        while decide(found.interval) == "undecided" and found.n - before <= MOST_MORE:
            found.add(chance.choice(drawn))
        needed.append(found.n - before)
        if sum(n > MOST_MORE for n in needed) > DRAWS // 2:
            return None
    middle = sorted(needed)[DRAWS // 2]
    return int(middle) if middle <= MOST_MORE else None
