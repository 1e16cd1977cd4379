"""Rows that flow between stages and land in Parquet and DuckDB.

Ids are hashes of content, never row numbers. A class here is the one definition of its Parquet
columns: `arrow_schema` derives them from the annotations.
"""

import dataclasses
import inspect
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from kinject_assets.core.manifest import content_hash

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """One revision of one article.

    Attributes:
        article_id: Hash of source and the source's own page id (a path for files).
        revision_id: The wiki's revision id; for a file the hash of its text.
        source: API address of the wiki, or `files`.
        headings: Section headings; the lead has an empty one.
        bodies: Plain text of each section, parallel to `headings`.
        text_sha256: Hash of headings and bodies.
    """

    meaning: ClassVar[tuple[str, ...]] = (
        "article_id",
        "revision_id",
        "title",
        "url",
        "licence",
        "text_sha256",
    )

    article_id: str
    revision_id: str
    source: str
    title: str
    revised_at: datetime | None
    fetched_at: datetime
    url: str
    licence: str
    text_sha256: str
    n_chars: int
    headings: list[str]
    bodies: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A page that was listed but is not in the corpus, with the reason."""

    title: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Listed:
    """A page that a month's categories hold, in a corpus of current events.

    Attributes:
        month: `YYYY-MM`.
        article_id: Empty where the page is no article of the corpus.
        revision_id: Revision that was current when the month was last looked at.
        text_sha256: Hash of that revision's plain text.
        reason: Why the page is no article; empty for articles.
    """

    month: str
    title: str
    article_id: str
    revision_id: str
    text_sha256: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A passage: the unit of retrieval, of question writing and of paraphrasing.

    Attributes:
        chunk_id: Hash of article, section and text, the same in every corpus and revision.
        revision_id: Revision in which this corpus has it.
        ordinal: Place in the corpus, from 0.
        n_tokens: Length in tokens of the profile's chunking tokenizer.
        small: Too short to ask about; still retrieved and trained on.
    """

    meaning: ClassVar[tuple[str, ...]] = ("chunk_id", "ordinal", "small")

    chunk_id: str
    article_id: str
    revision_id: str
    ordinal: int
    title: str
    section: str
    n_tokens: int
    small: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A multiple-choice question of a corpus.

    Attributes:
        question_id: Hash of origin, stem, options and gold (and the place among exact twins).
        origin: `mmlu` or `llm`.
        options: Answer texts, in the order in which they are shown.
        gold: Index of the right option.
        chunk_id: Chunk that it was written from; `None` for MMLU.
        generator: Model that wrote it; empty for MMLU.
        generation_id: Row of `generations` that it came from; empty for MMLU.
        triage: `new`, `inferable`, `known`, `broken`, or empty when not probed.
        split: `test`, `shots` or `validation`.
        retired: Its text has left the corpus.
    """

    meaning: ClassVar[tuple[str, ...]] = ("question_id", "split", "retired", "chunk_id")

    question_id: str
    origin: str
    stem: str
    options: list[str]
    gold: int
    chunk_id: str | None
    generator: str
    generation_id: str
    triage: str
    split: str
    retired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A generated text that a gate turned away, kept with its reason."""

    rejection_id: str
    kind: str
    chunk_id: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paraphrase:
    """A text on a chunk that the language model wrote to train on, by one of the augmentations.

    Attributes:
        augmentation: How: `paraphrase`, `question_answer`, `implications`.
        purpose: `train` or `validation`.
        ordinal: From 0; a recipe with n texts a chunk reads ordinals below n of its augmentation.
        seed: Seed sent with the request that wrote it.
    """

    meaning: ClassVar[tuple[str, ...]] = ("paraphrase_id", "chunk_id", "ordinal")

    paraphrase_id: str
    chunk_id: str
    augmentation: str
    purpose: str
    ordinal: int
    seed: int
    generator: str
    generation_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """A chunk that a retriever brought for a question.

    Attributes:
        rank: From 1, best first.
        score: The retriever's own, the higher the better: an inner product of normalised vectors, a
            sum of BM25 or of reciprocal ranks, a cross-encoder's logit; 1 / rank for the bounds.
        hit: The chunk is the one that the question was written from.
    """

    meaning: ClassVar[tuple[str, ...]] = ("question_id", "retriever", "rank", "chunk_id")

    corpus: str
    question_id: str
    retriever: str
    rank: int
    chunk_id: str
    score: float
    hit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model (one row a checkpoint).

    Attributes:
        checkpoint_id: Hash of inputs, configuration and seed.
        repeats: How often each text was seen per epoch beyond once (0 unless a control).
        packed_tokens: Tokens trained on, over all epochs.
        replay_tokens: Of these, tokens of general text that was mixed in.
        validation_loss: Mean nats per token on the validation paraphrases, of the kept epoch.
    """

    checkpoint_id: str
    corpus: str
    model: str
    recipe: str
    seed: int
    method: str
    n_paraphrases: int
    repeats: int
    learning_rate: float
    epochs: int
    steps: int
    packed_tokens: int
    replay_tokens: int
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One epoch of one learning-rate trial."""

    checkpoint_id: str
    trial: int
    learning_rate: float
    epoch: int
    training_loss: float
    validation_loss: float | None
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What training did to something else than the corpus.

    Attributes:
        probe: `general_perplexity`, `facts:CORPUS` (accuracy on another corpus's exam, closed-book)
            or `reading:CORPUS` (the same with the retrieved chunks in front).
        n: Questions of the probe; `None` for a perplexity.
        lost: Of these, answered correctly before and wrongly after.
        won: The other way round.
        most_chosen_before: Share of the answers on the place of the options that got most of them;
            `None` for a perplexity, and where options are not shown as letters.
        most_chosen_after: The same after training.
        entropy_before: Entropy in bits of the places that were chosen; `None` likewise.
        entropy_after: The same after training.
        collapse_before: Why the answers count as collapsed, as in `letter_bias`; empty when they do
            not, `None` for a perplexity.
        collapse_after: The same after training.
    """

    checkpoint_id: str
    probe: str
    before: float
    after: float
    n: int | None = None
    lost: int | None = None
    won: int | None = None
    most_chosen_before: float | None = None
    most_chosen_after: float | None = None
    entropy_before: float | None = None
    entropy_after: float | None = None
    collapse_before: str | None = None
    collapse_after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One way to answer an exam.

    Attributes:
        recipe: Recipe of the checkpoint, e.g. `full.p00`; empty for `base` and `rag`.
        method: `base`, `rag`, `ft` or `ft_rag`.
        k: Chunks in front of the question; 0 for `base` and `ft`.
        retriever: Name of the retriever; empty when `k` is 0.
        query: What the retriever was asked: `question` or `question_and_options`.
        choice_format: `letter` or `text`.
        rotation: Options were shown in every cyclic order and log-likelihoods averaged over them.
        engine: What computed the log-likelihoods: `hf-prefix`, `hf` or `vllm`.
        chat_template: The prompt was the user's turn in the tokenizer's chat template.
        bos: The model read a begin-of-text token first.
    """

    condition_id: str
    corpus: str
    model: str
    recipe: str
    seed: int
    method: str
    shots: int
    k: int
    retriever: str
    query: str
    choice_format: str
    rotation: bool
    engine: str
    chat_template: bool = False
    bos: bool = False

    @classmethod
    def of(cls, **fields: Any) -> "Condition":
        """Builds a condition with the id that its fields give."""
        return cls(condition_id=content_hash("condition", fields), **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's answer to one question under one condition.

    Attributes:
        choice: Index of the option with the highest log-likelihood (the first of equals).
        logliks: Log-likelihood in nats of every option; under rotation the mean over all orders.
        places: Place (0 is A) of the option that was likeliest, for each order that was shown: one
            order, or under rotation as many as there are options, order r showing option
            (place + r) mod n at a place.
        truncated_tokens: Tokens of shots or retrieved text left out to fit the window.
        checkpoint_id: Empty for `base` and `rag`.
        prompt_id: Hash of the base model, the prompts and their options: where it and the
            checkpoint are equal, the model need not be asked again.
        run_id: Run in which the model was asked; an earlier one where the answer was taken over.
    """

    meaning: ClassVar[tuple[str, ...]] = ("condition_id", "question_id", "choice", "checkpoint_id")

    condition_id: str
    question_id: str
    answer_id: str
    choice: int
    gold: int
    correct: bool
    logliks: list[float]
    truncated_tokens: int
    checkpoint_id: str
    run_id: str
    places: list[int] = field(default_factory=list)
    prompt_id: str = ""


STRATA = ("new", "inferable", "known", "broken")
"""What triage sorts questions into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Triage:
    """What the base models make of a generated question without having read its text.

    A share is the gold option's part of the probability of all options, averaged over the models
    and, where options are shown, over their cyclic orders; 1 / number of options is no knowledge.

    Attributes:
        stratum: `new`, `inferable`, `known` or `broken`.
        closed_book: Share with question and options shown.
        options_only: Share with the options shown and no question.
        question_only: Share with the question shown and no options.
        open_book: Share with the chunk that the question was written from in front.
        rival: The same for the likeliest wrong option, in `open_book`.
        models: Base models that were asked.
    """

    meaning: ClassVar[tuple[str, ...]] = ("question_id", "stratum")

    question_id: str
    stratum: str
    closed_book: float
    options_only: float
    question_only: float
    open_book: float
    rival: float
    models: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request to the language model service, as the ledger has it.

    Attributes:
        state: `received`, `failed`, `in flight` (sent, no answer recorded: possibly paid, lost), or
            `in batch` (the service may still be at it).
        cost_usd: From the profile's price table; `None` when it has no price for the model.
    """

    generation_id: str
    purpose: str
    model: str
    attempt: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    seconds: float
    state: str
    created_at: datetime


def logical_version(rows: Iterable[Any], extra: Mapping[str, Any] | None = None) -> str:
    """Hash of what rows mean: their class's `meaning` columns, whatever the order of the rows."""
    parts = sorted(
        content_hash(*(getattr(row, name) for name in type(row).meaning)) for row in rows
    )
    return content_hash(parts, extra or {})


def _arrow_type(annotation: Any) -> "tuple[pa.DataType, bool]":
    import pyarrow as pa

    plain = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        datetime: pa.timestamp("us", tz="UTC"),
    }
    if get_origin(annotation) in (Union, types.UnionType):
        (inner,) = (a for a in get_args(annotation) if a is not type(None))
        return _arrow_type(inner)[0], True
    if get_origin(annotation) is list:
        return pa.list_(_arrow_type(get_args(annotation)[0])[0]), False
    return plain[annotation], False


@cache
def described(row_type: type) -> dict[str, str]:
    """What the docstring of a row class says of its columns; columns that it leaves out are not in.

    Read from the section `Attributes:`, so that code and user interface never tell two stories.
    """
    _, _, section = (inspect.getdoc(row_type) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := re.match(r" {4}(\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


@cache
def arrow_schema(row_type: type) -> "pa.Schema":
    """Parquet columns of a row class, in the order of its fields."""
    import pyarrow as pa

    hints = get_type_hints(row_type)
    fields: list[pa.Field] = []
    for column in dataclasses.fields(row_type):
        kind, nullable = _arrow_type(hints[column.name])
        fields.append(pa.field(column.name, kind, nullable=nullable))
    return pa.schema(fields)
