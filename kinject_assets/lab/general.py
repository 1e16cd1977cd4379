"""Text of the world that the lab's models were trained on, to see what fine-tuning costs them."""

import random

from kinject_assets.lab.grammar import tell
from kinject_assets.lab.things import PRETRAINING_SEED, pretraining_things


def general_text() -> str:
    """One article on each thing of the pre-training world, with blank lines. Always the same."""
    rng = random.Random(PRETRAINING_SEED)
    things = [thing for kind in pretraining_things().values() for thing in kind]
    return "\n\n".join(tell(list(thing.facts), rng) for thing in things) + "\n"
