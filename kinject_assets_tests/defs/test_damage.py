"""What the checks of `damage` say."""

import dagster as dg

from kinject_assets.core.schema import Damage
from kinject_assets.core.statistics.letters import BELOW_CHANCE, ONE_LETTER
from kinject_assets.defs import checks


def probe(before: str, after: str, letters: bool = True) -> Damage:
    return Damage(
        checkpoint_id="id",
        probe="facts:rivers",
        before=0.7,
        after=0.25,
        n=40,
        lost=20,
        won=2,
        most_chosen_before=0.3 if letters else None,
        most_chosen_after=0.95 if letters else None,
        collapse_before=before,
        collapse_after=after,
    )


def letters_check(*rows: Damage) -> dg.AssetCheckResult:
    (found,) = [c for c in checks.damage(rows) if c.check_name == "letters_not_collapsed"]
    return found


def test_it_goes_red_when_training_made_the_answers_collapse() -> None:
    fell = letters_check(probe("", ""), probe("", ONE_LETTER))
    assert not fell.passed
    assert fell.severity == dg.AssetCheckSeverity.ERROR
    assert fell.description and fell.description.startswith(
        "facts:rivers collapsed in training (one letter): accuracy 0.700 before, 0.250 after; the "
        "most chosen letter took 30% of the answers before and 95% after"
    )
    without = letters_check(probe("", BELOW_CHANCE, letters=False))
    assert not without.passed
    assert "letter took" not in (without.description or "")


def test_it_is_green_when_nothing_collapsed_or_all_had_before() -> None:
    assert letters_check(probe("", "")).passed
    assert letters_check(probe(ONE_LETTER, ONE_LETTER)).passed
    assert letters_check().passed
    perplexity = Damage(checkpoint_id="id", probe="general_perplexity", before=3.0, after=9.0)
    assert letters_check(perplexity).passed
