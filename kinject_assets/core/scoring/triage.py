"""Which generated questions measure what they should: probes by the base models.

A question that a model answers without the text is no measure of what the text taught it. Four
probes are asked of every base model, and a rule that was fixed before any data sorts the questions.

| probe | what the model is shown |
|---|---|
| closed-book | question and options, as in the exam |
| options-only | the options, no question |
| question-only | the question; the options' texts are scored, none is shown |
| open-book | the chunk that the question was written from, question and options |

A share is the gold option's part of the probability of all options. Where options are shown it is
the mean over their cyclic orders, so that a favourite letter gains nothing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Chunk, Question, Triage
from kinject_assets.core.scoring.lm import fit_all, load_lm
from kinject_assets.core.scoring.prompts import Prompt, Wrap, build, chat_wrap, plain, turned
from kinject_assets.core.scoring.tasks import option_logliks
from kinject_assets.core.store import keep_rows, read_rows, write_rows
from kinject_assets.core.training.models import weights_identity

MAJORITY = 0.5
"""A share from which on an option counts as picked: more than all others together."""

PROBES = ("closed_book", "options_only", "question_only", "open_book")

BLOCK = 64
"""Questions that are asked, and whose shares are kept, at once."""


SOURCE = "source.json"
"""File beside the rows: which models probed, and which chunk each question is on."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A model that is probed."""

    name: str
    base: str
    revision: str | None = None
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class TriageRequest:
    """Base models probe the questions of one corpus.

    Attributes:
        models: Fields of `BaseModel`, one mapping a model.
        questions: Parquet file of `Question` rows; retired ones are left out.
        chunks: Parquet file of `Chunk` rows.
        choice_format: `letter` or `text`: how the exam asks.
        previous: Folders with earlier rows under the same settings: a question on the same chunk is
            not probed again, if the models are the same.
        work: Folder for finished blocks; it belongs to these inputs alone.
        out: Folder that gets `triage.parquet`.
    """

    corpus: str
    models: tuple[dict[str, Any], ...]
    questions: str
    chunks: str
    choice_format: str
    work: str
    out: str
    engine: str = "hf-prefix"
    chat_template: bool = False
    add_bos: bool | None = None
    batch_size: int = 16
    device: str = "auto"
    previous: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What one model makes of a question: the gold option's share in each probe.

    Attributes:
        rival: Share of the likeliest wrong option in the open-book probe; 0 if the chunk did not
            fit the window, as it was not read then.
        rival_option: Which one that is.
    """

    question_id: str
    closed_book: float
    options_only: float
    question_only: float
    open_book: float
    rival: float
    rival_option: int


def stratum(of_models: Sequence[Shares]) -> str:
    """The rule, in this order, on means over the base models.

    - `broken`: with the source text in front, every model picks one and the same wrong option.
    - `inferable`: the right option is picked without the question.
    - `known`: it is picked without the source text, shown the options or not.
    - `new`: none of these.
    """
    if (
        min(s.rival for s in of_models) >= MAJORITY
        and len({s.rival_option for s in of_models}) == 1
    ):
        return "broken"
    if _mean(of_models, "options_only") >= MAJORITY:
        return "inferable"
    if max(_mean(of_models, "closed_book"), _mean(of_models, "question_only")) >= MAJORITY:
        return "known"
    return "new"


def _mean(of_models: Sequence[Shares], name: str) -> float:
    return sum(getattr(shares, name) for shares in of_models) / len(of_models)


def triage(request: TriageRequest, report: Report = silent) -> list[Triage]:
    """Probes every question with every base model and writes the rows to `request.out`.

    Blocks that an earlier call with the same work folder finished are not asked again.

    Raises:
        MissingArtefact: If a question's chunk is not there.
        ModelError: If a model cannot be loaded.
    """
    questions = [q for q in read_rows(Path(request.questions), Question) if not q.retired]
    texts = {chunk.chunk_id: chunk.text for chunk in read_rows(Path(request.chunks), Chunk)}
    lost = [q.question_id for q in questions if q.chunk_id not in texts]
    if lost:
        raise MissingArtefact(
            f"{request.chunks}: the chunks of {len(lost)} questions of {request.corpus} are not "
            f"there, e.g. of {lost[0]}. Materialise `questions` again."
        )
    chunk_of = {question.question_id: question.chunk_id for question in questions}
    source = {
        "models": {
            model["name"]: weights_identity(model["base"], model.get("revision"))
            for model in request.models
        },
        "chunks": chunk_of,
    }
    known = _known(request, source)
    order = [question.question_id for question in questions]
    questions = [question for question in questions if question.question_id not in known]
    models = [BaseModel(**fields) for fields in request.models]
    total = len(models) * len(questions)
    found: dict[str, list[Shares]] = {q.question_id: [] for q in questions}
    for number, model in enumerate(models):
        for begin in range(0, len(questions), BLOCK):
            block = questions[begin : begin + BLOCK]
            report(
                f"{request.corpus} {model.name}: probing questions without their text",
                number * len(questions) + begin,
                total,
            )
            for shares in _block(request, model, block, texts):
                found[shares.question_id].append(shares)
    probed = {question_id: _row(question_id, shares) for question_id, shares in found.items()}
    rows = [known.get(question_id) or probed[question_id] for question_id in order]
    out = Path(request.out)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "triage.parquet", rows, Triage)
    (out / SOURCE).write_text(json.dumps(source), encoding="utf-8")
    report(f"{request.corpus}: probed", total, total)
    return rows


def _known(request: TriageRequest, source: Mapping[str, Any]) -> dict[str, Triage]:
    """Earlier rows by question, of the same models on the same chunks.

    None from a folder that is damaged.
    """
    known: dict[str, Triage] = {}
    for folder in map(Path, request.previous):
        with suppress(BrokenArtefact, OSError, ValueError):
            before = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
            if before["models"] != source["models"]:
                continue
            known |= {
                row.question_id: row
                for row in read_rows(folder / "triage.parquet", Triage)
                if before["chunks"].get(row.question_id) == source["chunks"].get(row.question_id)
            }
    return known


def _row(question_id: str, of_models: Sequence[Shares]) -> Triage:
    names = (*PROBES, "rival")
    return Triage(
        question_id=question_id,
        stratum=stratum(of_models),
        models=len(of_models),
        **{name: _mean(of_models, name) for name in names},
    )


def _block(
    request: TriageRequest, model: BaseModel, block: Sequence[Question], texts: dict[str, str]
) -> list[Shares]:
    ids = [question.question_id for question in block]
    path = Path(request.work) / f"{content_hash(model.name, ids)}.parquet"
    if path.is_file():
        try:
            kept = read_rows(path, Shares)
        except BrokenArtefact:
            kept = []
        if [row.question_id for row in kept] == ids:
            return kept
    rows = _ask(request, model, block, texts)
    keep_rows(path, rows, Shares)
    return rows


def _ask(
    request: TriageRequest, model: BaseModel, block: Sequence[Question], texts: dict[str, str]
) -> list[Shares]:
    lm = load_lm(
        model.base,
        revision=model.revision,
        dtype=model.dtype,
        device=request.device,
        batch_size=request.batch_size,
        engine=request.engine,
        add_bos=request.add_bos,
    )
    wrap = chat_wrap(lm.tokenizer, model.base) if request.chat_template else plain
    asked = [
        [
            probe_prompts(q, probe, request.choice_format, texts[q.chunk_id or ""], wrap)
            for q in block
        ]
        for probe in PROBES
    ]
    fitted = fit_all(lm, [[prompt for prompts in found for prompt in prompts] for found in asked])
    exams = [[prompt for prompt, _ in found] for found in fitted]
    cut = iter(fitted[PROBES.index("open_book")])
    # Of each question, whether any of its prompts lost the chunk.
    unread = [
        max(next(cut)[1] for _ in prompts) > 0 for prompts in asked[PROBES.index("open_book")]
    ]
    by_probe: list[list[list[float]]] = []
    for of_probe, logliks in zip(asked, option_logliks(lm, exams), strict=True):
        values = iter(logliks)
        by_probe.append([option_shares([next(values) for _ in prompts]) for prompts in of_probe])
    return [
        _shares(question, [shares[place] for shares in by_probe], unread[place])
        for place, question in enumerate(block)
    ]


def _shares(question: Question, by_probe: Sequence[Sequence[float]], unread: bool) -> Shares:
    open_book = by_probe[PROBES.index("open_book")]
    wrong = [option for option in range(len(open_book)) if option != question.gold]
    rival = max(wrong, key=lambda option: open_book[option])
    return Shares(
        question_id=question.question_id,
        rival=0.0 if unread else open_book[rival],
        rival_option=rival,
        **{probe: shares[question.gold] for probe, shares in zip(PROBES, by_probe, strict=True)},
    )


def probe_prompts(
    question: Question, probe: str, choice_format: str, chunk: str, wrap: Wrap = plain
) -> list[Prompt]:
    """The prompts of a probe: one, or one for each cyclic order of options that are shown."""
    if probe == "question_only":
        return [build(question, "text", wrap=wrap)]
    shown = replace(question, stem="") if probe == "options_only" else question
    chunks = (chunk,) if probe == "open_book" else ()
    orders = range(len(question.options)) if choice_format == "letter" else range(1)
    return [build(turned(shown, r), choice_format, (), chunks, wrap=wrap) for r in orders]


def option_shares(by_order: Sequence[Sequence[float]]) -> list[float]:
    """Each option's part of the probability of all, averaged over the orders shown.

    Args:
        by_order: For each cyclic order, the log-likelihood of the option at each place.
    """
    n = len(by_order[0])
    shares = [0.0] * n
    for order, logliks in enumerate(by_order):
        top = max(logliks)
        weights = [math.exp(value - top) for value in logliks]
        for place, weight in enumerate(weights):
            shares[(place + order) % n] += weight / sum(weights) / len(by_order)
    return shares
