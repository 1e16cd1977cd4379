"""Things of the lab's world with their facts, drawn from a seed."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from kinject_assets.lab.grammar import KINDS, NAME_STEMS, POOLS, Fact

PRETRAINING_SEED = 20231201
"""Seed of the world whose articles and facts the lab's base models met in pre-training."""

PRETRAINING_COUNTS = {"rivers": 40, "guilds": 40, "events": 60, "comets": 20}
"""Things of each kind in the pre-training world."""

PRETRAINING_WEIGHTS = {"rivers": 8.0, "guilds": 1.0, "events": 4.0, "comets": 4.0}
"""How often a thing of each kind is drawn in pre-training, relative to a guild (met seldom)."""


@dataclass(frozen=True)
class Thing:
    """Something that an article is about.

    Attributes:
        kind: Key of `grammar.KINDS`.
        name: Name without article, e.g. `Balan Accord`; unique in its world.
        facts: One fact per attribute of the kind.
    """

    kind: str
    name: str
    facts: tuple[Fact, ...]


def draw_facts(kind: str, name: str, rng: random.Random) -> tuple[Fact, ...]:
    """Draws a value for each attribute of a thing."""
    return tuple(
        Fact(kind, name, attribute, rng.choice(POOLS[spec.pool]))
        for attribute, spec in KINDS[kind].attributes.items()
    )


def draw_things(
    kind: str, count: int, rng: random.Random, avoid: Iterable[str] = ()
) -> list[Thing]:
    """Draws `count` things of one kind with names that are in none of `avoid`.

    Raises:
        ValueError: If the kind has fewer free names than `count`.
    """
    taken = set(avoid)
    free = [
        f"{stem} {head}"
        for stem in NAME_STEMS
        for head in KINDS[kind].heads
        if f"{stem} {head}" not in taken
    ]
    if count > len(free):
        raise ValueError(f"{count} things of kind {kind} asked for, {len(free)} names are free")
    return [Thing(kind, name, draw_facts(kind, name, rng)) for name in rng.sample(free, count)]


def pretraining_things() -> dict[str, list[Thing]]:
    """The things that the lab's base models met in pre-training, by kind. Always the same."""
    rng = random.Random(PRETRAINING_SEED)
    return {kind: draw_things(kind, n, rng) for kind, n in PRETRAINING_COUNTS.items()}
