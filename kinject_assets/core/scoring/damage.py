"""What training cost elsewhere: the same questions before and after it, and the bill."""

from collections.abc import Iterable, Sequence

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.schema import Answer, Damage
from kinject_assets.core.statistics.intervals import paired_difference
from kinject_assets.core.statistics.letters import collapse, entropy, places
from kinject_assets.core.training.trainer import GENERAL_PERPLEXITY


def damage_of(
    checkpoint_id: str,
    probe: str,
    before: Iterable[Answer],
    after: Iterable[Answer],
    letters: bool = True,
) -> Damage:
    """Compares the answers of a base model and of its checkpoint, question by question.

    Args:
        checkpoint_id: The checkpoint.
        probe: Name of the probe.
        before: Answers of the base model under one condition.
        after: Answers of the checkpoint under the same condition.
        letters: Whether options were shown as letters. Where they were not, a place is no thing
            that a model could choose, and only accuracy below chance counts as collapse.

    Raises:
        BrokenArtefact: If they are not of the same questions.
    """
    was = {answer.question_id: answer for answer in before}
    now = {answer.question_id: answer for answer in after}
    if was.keys() != now.keys() or not was:
        raise BrokenArtefact(
            f"{probe}: {len(was)} questions were answered before training and {len(now)} after, "
            "not the same ones. Run `kinject run` to answer the exam of this probe again."
        )
    n = len(was)
    places_before = places(was.values()) if letters else []
    places_after = places(now.values()) if letters else []
    right_before = sum(answer.correct for answer in was.values())
    right_after = sum(answer.correct for answer in now.values())
    chance = sum(1 / len(answer.logliks) for answer in was.values()) / n
    return Damage(
        checkpoint_id=checkpoint_id,
        probe=probe,
        before=right_before / n,
        after=right_after / n,
        n=n,
        lost=sum(was[q].correct and not now[q].correct for q in was),
        won=sum(now[q].correct and not was[q].correct for q in was),
        most_chosen_before=max((place.chosen for place in places_before), default=None),
        most_chosen_after=max((place.chosen for place in places_after), default=None),
        entropy_before=entropy(places_before) if letters else None,
        entropy_after=entropy(places_after) if letters else None,
        collapse_before=collapse(right_before, n, chance, places_before),
        collapse_after=collapse(right_after, n, chance, places_after),
    )


_KINDS = {
    GENERAL_PERPLEXITY: (
        "Perplexity on general text",
        "not measured: training.general_text names no text",
    ),
    "facts": (
        "Other facts: accuracy on {}, closed-book",
        "not measured: damage.facts names no other corpus",
    ),
    "reading": (
        "Reading: accuracy on {}, FT + RAG against RAG",
        "not measured: damage.reading names no other corpus",
    ),
}
"""Kind of probe -> what it is for people, and why it may be missing."""


def bill(rows: Sequence[Damage]) -> str:
    """The damage of one checkpoint as a Markdown table, with what was not measured and why.

    The interval is Tango's 95 % interval of a paired difference.
    """
    lines = [
        "| Probe | Before | After | Difference | 95 % interval | Questions | Lost | Won "
        "| Most chosen letter | Entropy of letters, bits | Collapsed |",
        "|" + " --- |" * 11,
    ]
    for kind, (name, missing) in _KINDS.items():
        found = [row for row in rows if row.probe.split(":")[0] == kind]
        lines += [_line(name, row) for row in found]
        if not found:
            lines.append(f"| {name.format('another corpus')} | {missing} |" + " |" * 9)
    return "\n".join(lines)


def _line(name: str, row: Damage) -> str:
    cells = [
        name.format(row.probe.partition(":")[2]),
        f"{row.before:.3f}",
        f"{row.after:.3f}",
        f"{row.after - row.before:+.3f}",
    ]
    if row.n is None or row.lost is None or row.won is None:
        cells += ["-"] * 7
    else:
        low, high = paired_difference(row.won, row.lost, row.n)
        cells += [f"{low:+.3f} to {high:+.3f}", str(row.n), str(row.lost), str(row.won)]
        cells += [
            _change(row.most_chosen_before, row.most_chosen_after, ".0%"),
            _change(row.entropy_before, row.entropy_after, ".2f"),
            f"{row.collapse_before or 'no'}, then {row.collapse_after or 'no'}",
        ]
    return "| " + " | ".join(cells) + " |"


def _change(before: float | None, after: float | None, form: str) -> str:
    if before is None or after is None:
        return "no letters shown"
    return f"{before:{form}}, then {after:{form}}"
