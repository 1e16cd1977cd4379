"""A pilot's outcome in plain words."""

import textwrap
from pathlib import Path

from kinject_assets.core.estimate.sections import in_hours, in_usd
from kinject_assets.core.quick.outcome import FEWEST, Gain, Outcome, Recipe
from kinject_assets.core.statistics.sequential import MARGIN, MOST_MORE

WIDTH = 80
"""Characters of a line."""

SHOWN_REASONS = 3
"""Reasons for turned-away questions that are named."""


def sentences(found: Outcome) -> list[str]:
    """What was found, the answer first."""
    if not found.questions:
        return [_nothing_asked(found)]
    return [
        answer(found),
        *_more(found),
        _held_back(found),
        *_fine_tuning(found),
    ]


def answer(found: Outcome) -> str:
    """The one sentence that a pilot ends with."""
    gain, accuracy = found.gain, found.accuracy
    if gain is None:
        return _nothing_asked(found)
    went = f"({accuracy['base']:.2f} → {accuracy['rag']:.2f} on {found.questions} questions)"
    number = f"{_interval(gain)} {went}"
    match found.decision:
        case "better":
            return f"RAG gives {number}."
        case "worse":
            return f"RAG does harm: {number}."
        case "no difference":
            return f"RAG makes no difference of {100 * MARGIN:.0f} points or more: {number}."
        case "undecided":
            return f"Not decided: RAG gives {number}."


def _nothing_asked(found: Outcome) -> str:
    if found.stopped == "budget":
        return (
            "No question was asked: none was complete when the budget was reached. What was paid "
            "for is kept."
        )
    if found.stopped == "time" and not found.asked_passages:
        return "No question was asked: the time was up before one was written."
    if not found.asked_passages:
        return (
            "No question was asked: no passage of the documents is long enough to ask about "
            "(chunking.min_tokens)."
        )
    reasons = [f"{reason} ({n})" for reason, n in found.rejections.items()][:SHOWN_REASONS]
    return (
        f"No question could be written on {found.asked_passages} passages. What was turned away, "
        f"and why: {'; '.join(reasons) or 'nothing came back'}."
    )


def _more(found: Outcome) -> list[str]:
    why = {
        "questions": "as many questions were asked as were wanted",
        "passages": "no passage is left to ask about",
        "time": "the time was up",
        "budget": "the budget was reached",
    }.get(found.stopped)
    if found.decision != "undecided":
        return []
    stopped = f"It stopped because {why}." if why else ""
    if found.more_questions is None:
        more = f"More than {MOST_MORE:,} further questions would be needed to settle it."
    else:
        more = f"About {found.more_questions:,} more questions would settle it."
    return [f"{more} {stopped}".strip()]


def _held_back(found: Outcome) -> str:
    gap, oracle = found.gap, found.accuracy["oracle"]
    assert gap is not None, "there are questions"
    hits = f"the right passage was found for {100 * found.hit_rate:.0f} % of the questions"
    match found.bottleneck:
        case "model":
            return (
                f"The model seems to be the bottleneck: even with the right passage in front it "
                f"answers {oracle:.2f}, which is not shown to be better than chance "
                f"({found.chance:.2f}). A larger model, or training, has to come first."
            )
        case "neither":
            return f"Nothing much is left to mend: {hits}, and what RAG gets wrong is under 5 %."
        case "retrieval":
            seems = "is" if gap.low > 0 else "seems to be"
            return (
                f"Retrieval {seems} the bottleneck: {hits}; with it in front the model would gain "
                f"a further {_interval(gap)}, to {oracle:.2f}."
            )
        case "unknown":
            return (
                f"On {found.questions} questions it cannot be told what holds RAG back: {hits}, "
                f"and with it in front of each the model answers {oracle:.2f}, where chance is "
                f"{found.chance:.2f}. That takes {FEWEST} questions at least."
            )
        case "reading":
            return (
                f"Reading is the bottleneck: {hits}, and with it in front of each the model "
                f"answers {oracle:.2f}, {_interval(gap)} against RAG. Better retrieval would not "
                "mend the rest."
            )


def _fine_tuning(found: Outcome) -> list[str]:
    if not found.recipes:
        return []
    parts = [_recipe(row) for row in found.recipes]
    return [
        "Fine-tuning was not tried. On all documents it would cost, on "
        f"{found.setting.hardware}: {'; '.join(parts)}."
    ]


def _recipe(row: Recipe) -> str:
    read = f"text and {row.paraphrases} paraphrases" if row.paraphrases else "text alone"
    time = "an unknown time" if row.seconds is None else f"about {in_hours(row.seconds)}"
    if row.seconds is not None and row.seconds < 1:
        time = "under a second"
    kind = "paraphrases" if row.paraphrases else "validation paraphrases"
    paid = "an unknown sum" if row.usd is None else f"{in_usd(row.usd)} USD"
    return f"{row.recipe} ({read}) {time}, and {paid} for {kind} ({row.requests:,} requests)"


def caveats(found: Outcome) -> list[str]:
    """What a reader must know before acting on it."""
    setting = found.setting
    writer = "the lab's rule-based writer" if setting.lab_writer else setting.writer
    known = [
        f"The questions were written by {writer} from the same passages that are searched, "
        "and nobody has looked at them: they are easier to find passages for than questions that "
        "people ask.",
        f"Asked was {setting.model}: 0 examples, {setting.k} passages in front; the bound is the "
        f"passage that the question was written from, first among {setting.k}.",
        "Intervals are 95 % confidence sequences: they hold whenever one stops. They are about "
        "these documents, not others like them.",
    ]
    if setting.lab_writer:
        known.append(
            "The lab's writer is no language model: outside the lab's world it writes gaps to "
            "fill. This shows how the tool works, and says nothing about your documents."
        )
    if setting.lab_model:
        known.append(
            "The lab's models are tiny and were trained on an invented world: their accuracy says "
            "nothing about real models."
        )
    return known


def next_steps(found: Outcome) -> list[str]:
    """Commands that go on from here."""
    path = Path(found.setting.profile_path)
    where = path.name if path.parent == Path.cwd() else str(path)
    steps = []
    if found.decision == "undecided" and found.stopped == "passages":
        steps.append("# no passage is left to ask about: add documents, or raise exams.keep")
    elif found.decision == "undecided" and found.questions:
        steps.append("# the same command with more --questions (--minutes, --budget) goes on")
    return [
        *steps,
        f"kinject plan --profile {where}   # the whole study: requests, USD, hours",
        f"kinject run --profile {where}    # base, RAG, fine-tuning; what was paid is used",
    ]


def text(found: Outcome) -> str:
    """The outcome for a terminal: sentences, what to mind, what to run next."""
    parts = [*(_wrapped(line) for line in sentences(found)), ""]
    parts += [_wrapped(line, "- ") for line in caveats(found)]
    if found.spent_usd is not None:
        parts.append(_wrapped(_effort(found), "- "))
    parts += ["", "Next:", *(f"  {line}" for line in next_steps(found))]
    return "\n".join(parts)


def _effort(found: Outcome) -> str:
    return (
        f"{found.documents} documents, {found.passages} passages, {found.asked_passages} of them "
        f"asked about; {found.seconds:.0f} s, {in_usd(found.spent_usd)} USD so far."
    )


def _wrapped(line: str, mark: str = "") -> str:
    return textwrap.fill(
        line,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _interval(gain: Gain) -> str:
    """E.g. `+0.31 [+0.18, +0.44]`."""
    return f"{_signed(gain.difference)} [{_signed(gain.low)}, {_signed(gain.high)}]"


def _signed(value: float) -> str:
    # Nothing is neither more nor less.
    shown = f"{value:+.2f}"
    return shown.replace("-", "−") if float(shown) else "0.00"
