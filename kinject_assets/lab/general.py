"""Text of the world that the lab's models were trained on, to see what fine-tuning costs them."""

import random

from kinject_assets.lab.grammar import tell
from kinject_assets.lab.things import PRETRAINING_SEED, draw_things, pretraining_things

REPLAY_SEED = 20231202
REPLAY_THINGS = 200
"""Seed of the things of the replay text, and how many of each kind."""


def general_text() -> str:
    """One article on each thing of the pre-training world, with blank lines. Always the same."""
    rng = random.Random(PRETRAINING_SEED)
    things = [thing for kind in pretraining_things().values() for thing in kind]
    return "\n\n".join(tell(list(thing.facts), rng) for thing in things) + "\n"


def replay_text() -> str:
    """One article on each of some rivers and guilds, with blank lines. Always the same.

    They are written as the general text is, but of things that are in no corpus, no exam and not in
    the general text: the lab's rivers and guilds are those of pre-training, and none of them is
    here. So replay can keep up the language, not the facts that damage is measured on.
    """
    rng = random.Random(REPLAY_SEED)
    known = pretraining_things()
    things = [
        thing
        for kind in ("rivers", "guilds")
        for thing in draw_things(kind, REPLAY_THINGS, rng, avoid=[t.name for t in known[kind]])
    ]
    return "\n\n".join(tell(list(thing.facts), rng) for thing in things) + "\n"
