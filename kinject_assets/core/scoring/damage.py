"""What training cost elsewhere: the same questions before and after it."""

from collections.abc import Iterable

from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.schema import Answer, Damage


def damage_of(
    checkpoint_id: str, probe: str, before: Iterable[Answer], after: Iterable[Answer]
) -> Damage:
    """Compares the answers of a base model and of its checkpoint, question by question.

    Args:
        checkpoint_id: The checkpoint.
        probe: Name of the probe.
        before: Answers of the base model under one condition.
        after: Answers of the checkpoint under the same condition.

    Raises:
        BrokenArtefact: If they are not of the same questions.
    """
    was = {answer.question_id: answer.correct for answer in before}
    now = {answer.question_id: answer.correct for answer in after}
    if was.keys() != now.keys() or not was:
        raise BrokenArtefact(
            f"{probe}: {len(was)} questions were answered before training and {len(now)} after, "
            "not the same ones. Run `kinject run` to answer the exam of this probe again."
        )
    return Damage(
        checkpoint_id=checkpoint_id,
        probe=probe,
        before=sum(was.values()) / len(was),
        after=sum(now.values()) / len(now),
        n=len(was),
        lost=sum(was[q] and not now[q] for q in was),
        won=sum(now[q] and not was[q] for q in was),
    )
