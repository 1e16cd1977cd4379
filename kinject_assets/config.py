"""The experiment as one validated model: `Profile`, read from `profiles/*.yaml`.

Everything that decides a result is a field here. Unknown or wrong fields are refused with the file,
the field, what is allowed and the nearest name.
"""

import difflib
import os
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from kinject_assets.core.errors import ProfileError

PROFILES = Path(__file__).parent / "profiles"

REFERENCES = Path(__file__).parents[1] / "data" / "reference"
"""The study's published tables."""

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""A name that may become a partition key and a folder: lower-case letters, digits, `._-`."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""A slug without dots: `MODEL.RECIPE` is a partition key."""

MonthKey = Annotated[str, StringConstraints(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]

RECIPE = re.compile(
    r"^(?P<method>full|lora|qlora)\.(?P<kind>[pr])(?P<n>\d\d)"
    r"(?:\.(?P<variant>(?!s\d)[a-z][a-z0-9-]*))?(?:\.s(?P<seed>\d+))?$"
)


class Settings(BaseModel):
    """Base of all parts of a profile: no unknown fields, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Clock(Settings):
    """What "now" is."""

    mode: Literal["wall", "fixed", "lab"] = Field(
        default="wall", description="wall: the computer's; fixed: `now` below; lab: the lab's own"
    )
    now: datetime | None = Field(default=None, description="the fixed time, with its zone")

    @model_validator(mode="after")
    def _fixed_needs_now(self) -> "Clock":
        if self.mode == "fixed" and self.now is None:
            raise ValueError("mode `fixed` needs `now`, e.g. now: 2023-12-01T00:00:00Z")
        return self


class Lab(Settings):
    """The embedded lab: a synthetic world behind a loopback server."""

    seed: int = Field(default=1, ge=0, description="seed of the world; another seed, another world")
    first_month: MonthKey = Field(default="2031-01", description="first month with news")
    months: int = Field(default=4, ge=1, le=36, description="months of news up to the lab's now")
    events_per_month: int = Field(default=40, ge=1, le=300, description="new events each month")
    things: int = Field(
        default=36, ge=4, le=40, description="pages of each topic; pre-training met 40 of each"
    )


class Wiki(Settings):
    """A MediaWiki to read from."""

    api_url: str = Field(
        default="https://en.wikipedia.org/w/api.php",
        description="address of its api.php; `lab` is the embedded lab's",
    )
    licence: str = Field(default="CC BY-SA 4.0", description="licence of its text, for attribution")
    maxlag: int = Field(
        default=5, ge=0, description="seconds of lag at which the wiki may refuse us"
    )
    batch: int = Field(default=50, ge=1, le=500, description="pages a request")
    listing: int = Field(default=500, ge=1, le=500, description="category members a request")
    concurrency: int = Field(default=1, ge=1, le=4, description="requests at once")
    timeout: float = Field(default=60.0, gt=0, description="seconds to wait for an answer")
    attempts: int = Field(
        default=8, ge=1, le=20, description="tries of one request before giving up"
    )


class WikiPages(Settings):
    """Pages of a wiki by category or title."""

    kind: Literal["wiki"] = Field(description="chooses this part")
    wiki: str = Field(default="wikipedia", description="a name under `wikis`")
    categories: tuple[str, ...] = Field(default=(), description="categories, without `Category:`")
    depth: int = Field(default=1, ge=0, le=10, description="levels of sub-categories below them")
    titles: tuple[str, ...] = Field(
        default=(), description="page titles, beside or instead of categories"
    )
    frozen: Path | None = Field(
        default=None,
        description="a frozen.jsonl of page and revision ids to read in place of a listing",
    )

    @model_validator(mode="after")
    def _something(self) -> "WikiPages":
        if not (self.categories or self.titles or self.frozen):
            raise ValueError("one of `categories`, `titles` or `frozen` is needed")
        return self


class WikiEvents(Settings):
    """Current events: one category a month."""

    kind: Literal["events"] = Field(description="chooses this part")
    wiki: str = Field(default="wikipedia", description="a name under `wikis`")
    categories: tuple[str, ...] = Field(
        default=("{month_name} {year} events in the United States",),
        min_length=1,
        description="category of a month; {year}, {month} (01..12) and {month_name} are filled in",
    )
    depth: int = Field(default=1, ge=0, le=10, description="levels of sub-categories below them")
    until: Literal["now"] | MonthKey = Field(
        default="now", description="last month; `now` makes the corpus a rolling window"
    )
    window_months: int = Field(default=4, ge=1, le=60, description="months, the last one included")
    revisit_months: int = Field(
        default=2,
        ge=1,
        le=60,
        description="last months of a rolling window that a refresh looks at again: the open one "
        "and those before, which late edits may still change",
    )


class Files(Settings):
    """Local files, one article each (one a line for jsonl)."""

    kind: Literal["files"] = Field(description="chooses this part")
    folder: Path = Field(description="folder, relative to the profile's file")
    patterns: tuple[str, ...] = Field(
        default=("**/*.txt", "**/*.md", "**/*.html", "**/*.htm", "**/*.pdf", "**/*.jsonl"),
        description="which files, as glob patterns below the folder",
    )
    licence: str = Field(default="not stated", description="licence of the texts, for attribution")


class MMLUExam(Settings):
    """A subject of MMLU."""

    kind: Literal["mmlu"] = Field(description="chooses this part")
    subject: str = Field(description="e.g. anatomy")
    folder: Path | None = Field(
        default=None,
        description="folder with {dev,val,test}/SUBJECT_{split}.csv, .jsonl or .parquet; "
        "without it `cais/mmlu` is loaded from the Hugging Face hub",
    )


class GeneratedExam(Settings):
    """An exam that the language model writes from the corpus's chunks."""

    kind: Literal["generated"] = Field(description="chooses this part")


class Corpus(Settings):
    """A body of text and its exam."""

    title: str = Field(default="", description="name for people")
    source: WikiPages | WikiEvents | Files = Field(discriminator="kind")
    exam: MMLUExam | GeneratedExam = Field(
        default=GeneratedExam(kind="generated"), discriminator="kind"
    )
    table: Literal[1, 2] = Field(
        default=2, description="which of the study's tables: 1 known topics, 2 new facts"
    )
    new_facts_since: date | None = Field(
        default=None,
        description="date of the oldest fact, held against each model's knowledge cut-off",
    )
    expected_chunks: int | None = Field(
        default=None,
        ge=1,
        description="chunks to plan with until the corpus is there, all long enough to be asked "
        "about; for events: of each month",
    )


class Cleaning(Settings):
    """How wikitext becomes plain text."""

    keep_tables: bool = Field(default=False, description="keep tables and infoboxes as text")
    keep_references: bool = Field(
        default=False, description="keep footnotes, as lines at the end of their section"
    )
    keep_templates: bool = Field(
        default=False, description="keep unknown templates as the text of their arguments"
    )
    drop_sections: tuple[str, ...] = Field(
        default=(
            "See also",
            "References",
            "External links",
            "Further reading",
            "Notes",
            "Bibliography",
            "Sources",
            "Citations",
            "Gallery",
            "Footnotes",
            "Notes and references",
            "References and notes",
            "Works cited",
        ),
        description="sections without prose, left out with what is below them",
    )


class Chunking(Settings):
    """How articles become chunks."""

    tokenizer: str = Field(
        default="words",
        description="what counts tokens: `words`, or a tokenizer: folder, hub id or `lab:NAME`",
    )
    max_tokens: int = Field(default=256, ge=8, le=8192, description="longest chunk")
    min_tokens: int = Field(default=40, ge=1, description="shorter chunks are not asked about")


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""USD per million tokens."""


class LLM(Settings):
    """The service that writes questions and paraphrases. The key is read from OPENAI_API_KEY."""

    model: str = Field(default="gpt-4o-2024-08-06", description="model name of the service")
    base_url: str | None = Field(
        default=None,
        description="address; default OPENAI_BASE_URL, then OpenAI; `lab` is the lab's",
    )
    structure: Literal["json_schema", "json_object", "json_object_schema", "prompt"] = Field(
        default="json_schema",
        description="how structured answers are asked for; all are validated. json_object_schema "
        "puts the schema beside json_object, as llama.cpp's server takes it",
    )
    temperature: float = Field(
        default=1.0, ge=0, le=2, description="spread of the service's words; 0: the likeliest"
    )
    max_output_tokens: int = Field(
        default=1500, ge=16, description="longest answer; one that is cut off is asked for again"
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="requests at once")
    batch: bool = Field(
        default=False,
        description="send requests through the service's Batch API: half the price, answers "
        "within a day; can be stopped and resumed",
    )
    batch_poll: float = Field(
        default=30.0, gt=0, le=3600, description="most seconds between two looks at a batch"
    )
    batch_discount: float = Field(
        default=0.5, ge=0, le=1, description="part of the price that requests in batches save"
    )
    batch_requests: int = Field(
        default=50_000, ge=1, le=50_000, description="most requests in one batch"
    )
    timeout: float = Field(default=120.0, gt=0, description="seconds to wait for an answer")
    attempts: int = Field(
        default=5, ge=1, le=20, description="tries of one request before giving up"
    )
    budget_usd: float | None = Field(
        default=None, ge=0, description="stop before this sum is crossed; none: no limit"
    )
    prices: dict[str, tuple[Price, Price]] = Field(
        default={}, description="model -> USD per million input and output tokens; over our table"
    )


class Exams(Settings):
    """How exams are written."""

    per_chunk: int = Field(default=4, ge=1, le=12, description="questions asked for per chunk")
    keep: int = Field(default=2, ge=1, le=12, description="questions kept by the second request")
    options: int = Field(default=4, ge=2, le=8, description="options per question")
    shots_share: float = Field(
        default=0.05, ge=0, lt=0.5, description="share of articles set aside for few-shot examples"
    )
    seed: int = Field(default=0, description="shuffles options and splits articles")
    verify: bool = Field(
        default=False,
        description="a further request per chunk, without the key, asks which options the passage "
        "makes right; questions with another answer than the key's are turned away",
    )
    triage: bool = Field(
        default=True,
        description="the base models probe generated questions: scores of those that are new, "
        "inferable, known or broken can then be told apart",
    )

    @model_validator(mode="after")
    def _keep_fits(self) -> "Exams":
        if self.keep > self.per_chunk:
            raise ValueError(f"keep ({self.keep}) is more than per_chunk ({self.per_chunk})")
        return self


class Augmentation(Settings):
    """How paraphrases, and the texts of other augmentations, are written."""

    attempts: int = Field(default=4, ge=1, le=10, description="requests per text before giving up")
    validation_chunks: int = Field(
        default=240, ge=1, description="chunks with validation paraphrases"
    )
    validation_per_chunk: int = Field(default=2, ge=1, description="validation paraphrases of each")
    near_duplicate: float = Field(
        default=0.9, gt=0, le=1, description="similarity from which a text counts as a copy"
    )
    seed: int = Field(default=0, description="draws validation chunks; base of request seeds")


class Encoder(Settings):
    """What turns text into vectors."""

    model: str = Field(default="BAAI/bge-large-en", description="hub id, folder, or `lab:NAME`")
    revision: str | None = Field(default=None, description="revision of a hub id")
    query_prefix: str | None = Field(
        default=None,
        description="instruction in front of each query; null: what its authors give, if that is "
        "known, or its own files say, else none",
    )
    passage_prefix: str | None = Field(
        default=None, description="text in front of each chunk; null as for query_prefix"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="numbers it computes with. auto: float32 on a CPU; on a GPU float16, or "
        "bfloat16 if its weights are stored so",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens of a text that it reads, at most its own limit, which null means",
    )
    batch_size: int = Field(default=64, ge=1, description="texts a forward pass")


RetrieverName = Literal["dense", "lexical", "fused", "reranked", "oracle", "random"]
"""A way to rank chunks."""


class Lexical(Settings):
    """BM25 as Lucene computes it, over words of any language."""

    k1: float = Field(default=1.2, ge=0, description="how soon a repeated word stops counting")
    b: float = Field(default=0.75, ge=0, le=1, description="how much long chunks are marked down")
    stemmer: (
        Literal[
            "arabic",
            "danish",
            "dutch",
            "english",
            "finnish",
            "french",
            "german",
            "hungarian",
            "italian",
            "norwegian",
            "portuguese",
            "romanian",
            "russian",
            "spanish",
            "swedish",
        ]
        | None
    ) = Field(
        default=None, description="language whose words are cut to their stems; null: as they stand"
    )


class Rerank(Settings):
    """A cross-encoder that ranks the first chunks of another retriever again."""

    model: str = Field(
        description="hub id, folder or `lab:NAME` of a sentence-transformers CrossEncoder"
    )
    revision: str | None = Field(default=None, description="revision of a hub id")
    over: Literal["dense", "lexical", "fused"] = Field(
        default="fused", description="whose first chunks it reads"
    )
    depth: int = Field(
        default=50, ge=1, le=1000, description="how many of them; at least retrieval.depth"
    )
    batch_size: int = Field(default=32, ge=1, description="pairs a forward pass")


class IndexParameters(Settings):
    """Parameters of approximate indexes; null: as the rule of docs/retrieval.md says."""

    hnsw_m: int | None = Field(
        default=None, ge=2, le=256, description="HNSW: neighbours of each vector"
    )
    ef_construction: int | None = Field(
        default=None, ge=4, description="HNSW: candidates looked at when it is built"
    )
    ef_search: int | None = Field(
        default=None, ge=1, description="HNSW: candidates looked at in a search"
    )
    build_threads: int | None = Field(
        default=None,
        ge=1,
        description="HNSW: threads that build it, null: all; only one builds the same graph again",
    )
    nlist: int | None = Field(default=None, ge=1, description="IVF-PQ: lists of vectors")
    nprobe: int | None = Field(default=None, ge=1, description="IVF-PQ: lists read in a search")
    pq_m: int | None = Field(
        default=None, ge=1, description="IVF-PQ: bytes a vector; must divide its dimension"
    )
    refine: int | None = Field(
        default=None,
        ge=1,
        description="IVF-PQ: candidates for each chunk wanted, ranked by their exact vectors",
    )


class Retrieval(Settings):
    """How chunks are found for a question."""

    encoder: Encoder = Encoder()
    index: Literal["auto", "flat", "hnsw", "ivfpq"] = Field(
        default="auto",
        description="flat: exact; hnsw and ivfpq: approximate, for very many chunks; auto: flat "
        "until it is too slow or too large",
    )
    index_memory_gb: float = Field(
        default=8.0, gt=0, description="GB of memory that an index chosen by `auto` may take"
    )
    index_parameters: IndexParameters = IndexParameters()
    query: Literal["question", "question_and_options"] = Field(
        default="question", description="what is searched with"
    )
    depth: int = Field(default=10, ge=1, le=1000, description="ranks kept per question")
    retrievers: tuple[RetrieverName, ...] = Field(
        default=("dense",),
        min_length=1,
        description="whose chunks rag and ft_rag answer with; the first is the study's: tables and "
        "claims use it alone",
    )
    also_ranked: tuple[RetrieverName, ...] = Field(
        default=(), description="further ones whose recall is measured, without answers"
    )
    lexical: Lexical = Lexical()
    rerank: Rerank | None = Field(default=None, description="needed for `reranked`")

    @model_validator(mode="after")
    def _retrievers_fit(self) -> "Retrieval":
        names = (*self.retrievers, *self.also_ranked)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{', '.join(twice)} stands twice in `retrievers` and `also_ranked`: name it once"
            )
        if "reranked" in names and self.rerank is None:
            raise ValueError(
                "`reranked` needs the part `rerank`, e.g. rerank: {model: "
                "cross-encoder/ms-marco-MiniLM-L6-v2}"
            )
        if self.rerank and self.rerank.depth < self.depth:
            raise ValueError(
                f"rerank.depth ({self.rerank.depth}) is less than depth ({self.depth}): not all "
                "that is kept would be reranked; raise rerank.depth or lower depth"
            )
        return self

    def ranking(self, exam: str) -> tuple[RetrieverName, ...]:
        """Retrievers that apply to an exam, those that answer first, in the profile's order.

        Args:
            exam: Its kind. Questions of `mmlu` were written from no chunk: no oracle knows it.
        """
        names = (*self.retrievers, *self.also_ranked)
        return tuple(name for name in names if name != "oracle" or exam != "mmlu")

    def answering(self, exam: str) -> tuple[RetrieverName, ...]:
        """Those of `ranking` that rag and ft_rag answer with; the first is the study's."""
        return tuple(name for name in self.ranking(exam) if name in self.retrievers)


class Model(Settings):
    """A language model under study."""

    source: str = Field(description="hub id, folder, or `lab:NAME`")
    revision: str | None = Field(default=None, description="revision of a hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="numbers it computes with; bfloat16 on today's GPUs"
    )
    knowledge_cutoff: date | None = Field(
        default=None, description="date of the newest text it was trained on"
    )
    parameters: int | None = Field(
        default=None,
        ge=1,
        description="number of its parameters, for `kinject plan`; null: as its files or its name "
        "say",
    )


class Training(Settings):
    """How checkpoints are made. A recipe may override those that `RecipeOverrides` names."""

    piece_tokens: int = Field(default=256, ge=8, description="tokens in a training piece")
    epochs: int = Field(default=5, ge=1, le=1000, description="at most")
    batch_pieces: int = Field(default=64, ge=1, description="pieces per optimiser step")
    micro_batch: int = Field(default=8, ge=1, description="pieces per forward pass")
    learning_rates: tuple[float, ...] = Field(
        default=(1e-6, 3e-6, 1e-5, 3e-5, 5e-5),
        min_length=1,
        description="tried in turn; the lowest loss on validation paraphrases wins",
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="epoch that is kept: best on the validation paraphrases, or the last one",
    )
    warmup_share: float = Field(
        default=0.03, ge=0, le=1, description="share of the steps in which the learning rate rises"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW")
    lora_rank: int = Field(default=16, ge=1, description="rank of adapters (lora, qlora)")
    lora_alpha: int = Field(
        default=32, ge=1, description="adapters are scaled by lora_alpha / lora_rank"
    )
    general_text: Path | Literal["lab"] | None = Field(
        default=None, description="text file whose perplexity before and after training is measured"
    )
    documents: Literal["joined", "isolated"] = Field(
        default="joined",
        description="joined: attention and prediction go on from one text of a piece into the "
        "next; isolated: each text is read and predicted as if it stood alone",
    )
    replay_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of an epoch's tokens that comes from replay_text, against forgetting",
    )
    replay_text: Path | Literal["lab"] | None = Field(
        default=None,
        description="UTF-8 text of general language, with blank lines between paragraphs, that is "
        "mixed in; none of it may be in general_text",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="epochs in a row without a lower validation loss after which a trial ends; "
        "null: none ends early",
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="GPUs, or on a machine without one processes, that one checkpoint is trained "
        "on, by torchrun",
    )
    sharding: Literal["none", "fsdp"] = Field(
        default="none",
        description="none: each process holds the whole model; fsdp: weights, gradients and "
        "optimiser state are spread over the processes",
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="compute activations twice instead of keeping them; null: when memory runs "
        "out in spite of a small micro-batch",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa",
        description="kernel; sdpa is torch's, eager where a model has none; flash_attention_2 "
        "needs CUDA and the package flash-attn",
    )
    compile: bool = Field(
        default=False, description="compile the layers by torch.compile: minutes first, then faster"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "Training":
        if self.patience is not None and self.keep == "last":
            raise ValueError(
                "patience looks at the validation loss of each epoch, and with keep `last` it is "
                "measured once: set keep to `best` or patience to null"
            )
        if self.sharding == "fsdp" and self.processes == 1:
            raise ValueError(
                "sharding `fsdp` spreads a model over processes, and there is one: set processes "
                "to the number of GPUs, or sharding to `none`"
            )
        return self


OVERRIDES = "in place of that of `training`; null: that one"


class RecipeOverrides(Settings):
    """What a recipe does otherwise than `training`, and what it trains on beside the text."""

    augmentation: str | None = Field(
        default=None,
        description="who writes the NN texts of pNN: paraphrase (the default), question_answer or "
        "implications; another one than paraphrase needs a variant, e.g. full.p04.qa",
    )
    epochs: int | None = Field(default=None, ge=1, le=1000, description=OVERRIDES)
    learning_rates: tuple[float, ...] | None = Field(
        default=None, min_length=1, description=OVERRIDES
    )
    keep: Literal["best", "last"] | None = Field(default=None, description=OVERRIDES)
    replay_share: float | None = Field(default=None, ge=0, lt=1, description=OVERRIDES)
    lora_rank: int | None = Field(default=None, ge=1, description=OVERRIDES)
    lora_alpha: int | None = Field(default=None, ge=1, description=OVERRIDES)
    patience: int | None = Field(default=None, ge=1, description=OVERRIDES)
    processes: int | None = Field(default=None, ge=1, le=64, description=OVERRIDES)
    sharding: Literal["none", "fsdp"] | None = Field(default=None, description=OVERRIDES)


AS_ITS_RECIPE = ("epochs", "replay_share", "lora_rank", "lora_alpha")
"""Settings of a control that are always those of its recipe. The learning rate and the kept epoch
are, too, but come from its checkpoint."""


class Cells(Settings):
    """Cells of the grid that are asked for: every named corpus with every named model."""

    corpora: tuple[Slug, ...] = Field(min_length=1, description="names under `corpora`")
    models: tuple[Slug, ...] = Field(min_length=1, description="names under `models`")
    methods: tuple[Literal["base", "rag", "ft", "ft_rag"], ...] = Field(
        default=("base", "rag", "ft", "ft_rag"),
        description="base: the model alone; rag: with retrieved chunks; ft: fine-tuned; ft_rag: "
        "both",
    )
    recipes: tuple[Slug, ...] = Field(default=(), description="recipes trained for ft and ft_rag")


class Scoring(Settings):
    """How exams are answered."""

    shots: tuple[int, ...] = Field(
        default=(0, 5), min_length=1, description="solved examples in front, each number"
    )
    k: tuple[int, ...] = Field(
        default=(1, 2, 3, 4, 5), min_length=1, description="chunks for rag, each"
    )
    choice_format: Literal["letter", "text"] = Field(
        default="letter",
        description="letter: options are shown, the letter is scored; text: option texts",
    )
    rotation: bool = Field(
        default=False,
        description="show the options in every cyclic order and average over them (letter only)",
    )
    chat_template: bool = Field(
        default=False, description="put the prompt as the user's turn into the chat template"
    )
    add_bos: bool | None = Field(
        default=None, description="a begin-of-text token first; null: as the tokenizer does"
    )
    engine: Literal["hf-prefix", "hf", "vllm"] = Field(
        default="hf-prefix",
        description="hf-prefix: each shared beginning is computed once; hf: lm-eval's own, every "
        "prompt in full; vllm: lm-eval's vLLM class, CUDA only, needs `pip install kinject[vllm]`",
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        description="memory of a batch: as much as so many inputs of full length would take",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:0, ...")
    folds: int = Field(default=5, ge=2, le=50, description="folds of the cross-fitted choice of K")

    @field_validator("k")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in value) or len(set(value)) != len(value):
            raise ValueError("each K is at least 1 and stands once (0 is what `base` answers)")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _options_are_shown(self) -> "Scoring":
        if self.rotation and self.choice_format != "letter":
            raise ValueError(
                "rotation changes the order in which options are shown, and choice_format `text` "
                "shows none: set choice_format to `letter` or rotation to false"
            )
        return self


class Refresh(Settings):
    """How corpora of current events are kept current, and what follows by itself."""

    automatic: bool = Field(
        default=False,
        description="schedules and conditions run as soon as the daemon does; otherwise they are "
        "switched on in the UI, under Automation",
    )
    cron: str = Field(default="0 3 * * *", description="when the window is looked at, in UTC")
    catch_up: str = Field(
        default="0 5 * * *", description="when what was lost or failed is tried again, in UTC"
    )
    train: Literal["never", "releases", "always"] = Field(
        default="never",
        description="fine-tuning after a change: never waits for a person (`kinject run`), "
        "releases trains on each new release, always also on each change of a corpus",
    )
    stale_hours: int = Field(
        default=36, ge=2, description="hours without a look after which the window counts as stale"
    )

    @field_validator("cron", "catch_up")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError(f"`{value}` is not of the form `minute hour day month weekday`")
        return value


class DamageProbes(Settings):
    """What training may have cost: exams of other corpora, answered before and after it."""

    facts: tuple[Slug, ...] = Field(
        default=(),
        description="corpora that the base models know something of: answered closed-book",
    )
    reading: tuple[Slug, ...] = Field(
        default=(), description="corpora to read: answered with the retrieved chunks in front"
    )
    shots: int = Field(default=0, ge=0, description="one of scoring.shots")
    k: int = Field(default=1, ge=1, description="chunks in front for `reading`; one of scoring.k")


class Hardware(Settings):
    """The machine that `kinject plan` reckons with. It decides no result."""

    name: str = Field(default="one NVIDIA H100 80GB, bfloat16", description="for people")
    tflops: float = Field(
        default=989.0, gt=0, description="peak of one GPU at the models' dtype, dense, in TFLOPS"
    )
    utilisation_training: float = Field(
        default=0.35, gt=0, le=1, description="part of the peak that training reaches; assumed"
    )
    utilisation_scoring: float = Field(
        default=0.25, gt=0, le=1, description="part of the peak that scoring reaches; assumed"
    )
    memory_gb: float = Field(default=80.0, gt=0, description="memory of one GPU, in 10^9 bytes")
    gpus: int = Field(default=1, ge=1, description="GPUs that cells are spread over")
    usd_per_hour: float | None = Field(
        default=3.0, ge=0, description="USD for one GPU for an hour; null: unknown"
    )
    price_as_of: date | None = Field(
        default=date(2025, 6, 1), description="date of that price; prices change"
    )


class Need(Settings):
    """What one process of a heavy step needs from the node of a cluster that it is put on."""

    cpus: float = Field(default=1, ge=0, description="CPU cores")
    gpus: float = Field(default=0, ge=0, description="GPUs; several processes may share one: 0.5")
    memory_gb: float = Field(default=0, ge=0, description="memory in 10^9 bytes; 0: not asked for")
    accelerator: str = Field(
        default="", description="Ray's name of a kind of GPU, e.g. H100 or A100-80G; empty: any"
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="other resources that nodes were started with, e.g. {fast_disk: 1}"
    )

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("a part of one GPU, or whole ones; e.g. 0.5 or 2")
        return gpus


class Spread(Need):
    """As `Need`, and over how many processes the work on one partition is spread."""

    parts: int = Field(
        default=1, ge=1, le=1024, description="processes that share the work on one partition"
    )


class Node(Settings):
    """Nodes of a cluster that are alike, for `kinject plan --cluster`. It decides no result."""

    count: int = Field(default=1, ge=1, description="how many")
    cpus: float = Field(default=8, ge=0, description="CPU cores of one")
    gpus: int = Field(default=0, ge=0, description="GPUs of one")
    memory_gb: float = Field(default=64, gt=0, description="memory of one, in 10^9 bytes")
    accelerator: str = Field(default="", description="Ray's name of its kind of GPU")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="other resources that it is started with"
    )
    speed: float = Field(
        default=1.0, gt=0, description="its speed; 1 is that of the machine under `hardware`"
    )
    usd_per_hour: float | None = Field(
        default=None, ge=0, description="USD for one node for an hour; null: unknown"
    )


class Cluster(Settings):
    """Where heavy steps run with `compute: ray`. It decides no result."""

    embed: Spread = Field(default=Spread(), description="embeddings and retrieval")
    train: Need = Field(
        default=Need(),
        description="one process of a training; training.processes says how many there are",
    )
    score: Spread = Field(default=Spread(), description="answers and damage probes")
    triage: Need = Need()
    retries: int = Field(
        default=3, ge=0, description="how often a process is started again whose node was lost"
    )
    wait_minutes: float = Field(
        default=15, ge=0, description="how long a step waits for a node that has what it needs"
    )
    python: str = Field(
        default="python", min_length=1, description="interpreter on the nodes that has kinject"
    )
    nodes: dict[Slug, Node] = Field(
        default={}, description="kinds of nodes that `kinject plan --cluster` reckons with"
    )


class Pools(Settings):
    """How many steps of a kind run at once, over all runs of a profile."""

    gpu: int = Field(default=1, ge=1, le=1000, description="heavy steps: embed, train, score")
    llm: int = Field(
        default=1, ge=1, le=1000, description="steps that ask the language model service"
    )
    wiki: int = Field(default=1, ge=1, le=1000, description="steps that read a wiki")
    duckdb: int = Field(default=1, ge=1, le=1, description="the loader of results; it is alone")


class Results(Settings):
    """What is kept of results."""

    history: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="earlier results to keep a copy of, for `kinject diff`; 0: none",
    )


class RecipeSpec(Settings):
    """A recipe's meaning, read from its name.

    `full.p10` trains on the original and 10 paraphrases of each chunk; `full.r10` is its control:
    the original alone, repeated to the same optimiser steps and packed tokens. A word after it
    names a variant with settings of its own (`full.p10.common`), and `.s1` is a seed.
    """

    name: str
    method: Literal["full", "lora", "qlora"]
    n_paraphrases: int
    control_of: str | None
    variant: str
    seed: int

    @classmethod
    def parse(cls, name: str) -> "RecipeSpec":
        """Reads a recipe's name.

        Raises:
            ValueError: If it is not of the form METHOD.pNN or METHOD.rNN, with an optional
                .VARIANT and .sSEED.
        """
        match = RECIPE.match(name)
        if match is None:
            raise ValueError(
                f"recipe `{name}` is not METHOD.pNN or METHOD.rNN[.VARIANT][.sSEED], "
                "e.g. full.p00, lora.p10, full.r10, full.p10.s1 (METHOD: full, lora, qlora)"
            )
        variant = f".{match['variant']}" if match["variant"] else ""
        seed = f".s{match['seed']}" if match["seed"] else ""
        control = match["kind"] == "r"
        return cls(
            name=name,
            method=match["method"],  # pyright: ignore[reportArgumentType] (one of the regex's three)
            n_paraphrases=int(match["n"]),
            control_of=f"{match['method']}.p{match['n']}{variant}{seed}" if control else None,
            variant=match["variant"] or "",
            seed=int(match["seed"] or 0),
        )


class Profile(Settings):
    """A whole experiment."""

    name: Slug = Field(description="also the folder below KINJECT_HOME")
    description: str = Field(default="", description="for people")
    contact: str = Field(
        default="",
        description="e-mail or address in the User-Agent, as Wikimedia asks; needed for wikis",
    )
    clock: Clock = Clock()
    lab: Lab | None = Field(default=None, description="the embedded lab, for profiles that use it")
    wikis: dict[Slug, Wiki] = {"wikipedia": Wiki()}
    corpora: dict[Slug, Corpus] = Field(min_length=1)
    cleaning: Cleaning = Cleaning()
    chunking: Chunking = Chunking()
    llm: LLM = LLM()
    exams: Exams = Exams()
    augmentation: Augmentation = Augmentation()
    retrieval: Retrieval = Retrieval()
    models: dict[ModelName, Model] = Field(min_length=1)
    training: Training = Training()
    recipes: dict[Slug, RecipeOverrides | None] = Field(
        default={},
        description="name (full.p00, lora.p10, full.r10, ...) -> overrides of `training`",
    )
    grid: tuple[Cells, ...] = Field(min_length=1, description="what is asked for")
    scoring: Scoring = Scoring()
    damage: DamageProbes = DamageProbes()
    hardware: Hardware = Hardware()
    refresh: Refresh = Refresh()
    results: Results = Results()
    compute: Literal["inline", "local", "ray"] = Field(
        default="local",
        description="inline: in this process; local: a process per heavy step; ray: jobs on the "
        "Ray cluster at RAY_ADDRESS, or on one that is started for the command",
    )
    cluster: Cluster = Cluster()
    pools: Pools = Pools()
    lake: Annotated[str, StringConstraints(pattern=r"^[a-z0-9+]+://\S+$")] | None = Field(
        default=None,
        description="URL of the lake: file:///a/shared/folder, s3://bucket/prefix or any other "
        "that fsspec knows; null: a folder of this machine. Keys come from the environment alone",
    )
    cache_gb: float = Field(
        default=100,
        gt=0,
        description="disk that copies of a lake elsewhere may take on this machine, in 10^9 bytes",
    )
    path: Path | None = Field(
        default=None, exclude=True, description="file it was read from; set by us"
    )

    @model_validator(mode="after")
    def _references(self) -> "Profile":
        problems: list[str] = []

        def known(where: str, name: str, allowed: Any) -> None:
            if name not in allowed:
                problems.append(
                    f"{where}: `{name}` is not defined; {_nearest(name, list(allowed))}"
                )

        for key, corpus in self.corpora.items():
            source = corpus.source
            if source.kind != "files":
                known(f"corpora.{key}.source.wiki", source.wiki, self.wikis)
                wiki = self.wikis.get(source.wiki)
                if wiki and wiki.api_url == "lab" and self.lab is None:
                    problems.append(f"wikis.{source.wiki}.api_url: `lab` needs the part `lab:`")
                if wiki and wiki.api_url != "lab" and not self.contact:
                    problems.append(
                        "contact: needed when a wiki is read, e.g. contact: you@example.org "
                        "(Wikimedia's User-Agent policy)"
                    )
        stems: dict[str, str] = {}
        for key, corpus in self.corpora.items():
            if corpus.source.kind == "events" and corpus.source.until == "now":
                stem = key.removesuffix("-current")
                if (other := stems.setdefault(stem, key)) != key:
                    problems.append(
                        f"corpora.{key}: its releases would be called as those of `{other}`; "
                        "rename one of them"
                    )
        if self.llm.base_url == "lab" and self.lab is None:
            problems.append("llm.base_url: `lab` needs the part `lab:`, e.g. lab: {seed: 1}")
        for name in self.recipes:
            try:
                spec = RecipeSpec.parse(name)
            except ValueError as error:
                problems.append(f"recipes.{name}: {error}")
                continue
            if spec.control_of and spec.control_of not in self.recipes:
                problems.append(
                    f"recipes.{name}: control of `{spec.control_of}`, which is not under `recipes`"
                )
        problems += self._augmentations()
        if unanswered := [
            corpus
            for corpus in (
                *(
                    corpus
                    for cells in self.grid
                    if {"rag", "ft_rag"} & set(cells.methods)
                    for corpus in cells.corpora
                ),
                *self.damage.reading,
            )
            if corpus in self.corpora
            and not self.retrieval.answering(self.corpora[corpus].exam.kind)
        ]:
            problems.append(
                "retrieval.retrievers: `oracle` knows no chunks of "
                f"{', '.join(dict.fromkeys(unanswered))}, as questions of mmlu were written from "
                "none; add another one, e.g. retrievers: [oracle, dense]"
            )
        problems += self._controls()
        problems += self._replay()
        problems += self._overrides()
        for index, cells in enumerate(self.grid):
            for field, allowed in (
                ("corpora", self.corpora),
                ("models", self.models),
                ("recipes", self.recipes),
            ):
                for name in getattr(cells, field):
                    known(f"grid[{index}].{field}", name, allowed)
            trained = {"ft", "ft_rag"} & set(cells.methods) and cells.recipes
            for field, method in (("facts", "base"), ("reading", "rag")) if trained else ():
                for probe in getattr(self.damage, field):
                    asked = {
                        model
                        for other in self.grid
                        if probe in other.corpora and method in other.methods
                        for model in other.models
                    }
                    if missing := [model for model in cells.models if model not in asked]:
                        problems.append(
                            f"damage.{field}: `{probe}` is compared with its `{method}` answers of "
                            f"{', '.join(missing)}, which the grid does not ask for; add to "
                            f"`grid:` {{corpora: [{probe}], models: [{', '.join(missing)}], "
                            f"methods: [{method}]}}"
                        )
            controls = [RecipeSpec.parse(r).control_of for r in cells.recipes if RECIPE.match(r)]
            for recipe in controls:
                if recipe and recipe not in cells.recipes:
                    problems.append(
                        f"grid[{index}].recipes: a control needs its `{recipe}` in the same cells"
                    )
        for field in ("facts", "reading"):
            for probe in getattr(self.damage, field):
                known(f"damage.{field}", probe, self.corpora)
        if self.damage.facts or self.damage.reading:
            for field, allowed in (("shots", self.scoring.shots), ("k", self.scoring.k)):
                if getattr(self.damage, field) not in allowed:
                    problems.append(
                        f"damage.{field}: {getattr(self.damage, field)} is not among "
                        f"scoring.{field} {list(allowed)}"
                    )
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return self

    @property
    def folder(self) -> Path:
        """Folder that relative paths of the profile are taken from."""
        return self.path.parent if self.path else Path.cwd()

    def recipe_training(self, recipe: str) -> Training:
        """`training` with a recipe's overrides; a control follows its recipe (`AS_ITS_RECIPE`)."""
        overrides = self.recipes[recipe]
        changes = (
            overrides.model_dump(exclude_none=True, exclude={"augmentation"}) if overrides else {}
        )
        control_of = RecipeSpec.parse(recipe).control_of
        if control_of in self.recipes:
            followed = self.recipe_training(control_of)
            changes |= {field: getattr(followed, field) for field in AS_ITS_RECIPE}
        # What the recipe's own words leave without a meaning is not inherited.
        if changes.get("keep") == "last":
            changes.setdefault("patience", None)
        if changes.get("processes") == 1:
            changes.setdefault("sharding", "none")
        return self.training.model_copy(update=changes)

    def recipe_augmentation(self, recipe: str) -> str:
        """The augmentation whose texts a recipe reads; empty for one that reads the text alone."""
        from kinject_assets.core.augmentation.registry import PARAPHRASE

        spec, overrides = RecipeSpec.parse(recipe), self.recipes[recipe]
        if spec.control_of or not spec.n_paraphrases:
            return ""
        return (overrides and overrides.augmentation) or PARAPHRASE

    def _overrides(self) -> list[str]:
        """What recipes set that does not go together with the rest of `training`."""
        problems: list[str] = []
        for name in filter(RECIPE.match, self.recipes):
            settings = self.recipe_training(name)
            try:
                Training.model_validate(settings.model_dump())
            except ValidationError as error:
                said = [e["msg"].removeprefix("Value error, ") for e in error.errors()]
                problems += [f"recipes.{name}: {words}" for words in said]
            if RecipeSpec.parse(name).method == "qlora" and settings.sharding == "fsdp":
                problems.append(
                    f"recipes.{name}.sharding: 4-bit weights cannot be sharded; set it to `none`"
                )
        return problems

    def _controls(self) -> list[str]:
        """What controls set otherwise than their recipes."""
        problems: list[str] = []
        for name in filter(RECIPE.match, self.recipes):
            overrides, twin = self.recipes[name], RecipeSpec.parse(name).control_of
            if twin not in self.recipes or overrides is None:
                continue
            settings = self.recipe_training(name)
            problems += [
                f"recipes.{name}.{field}: a control has that of `{twin}`; leave it out"
                for field in AS_ITS_RECIPE
                if getattr(overrides, field) not in (None, getattr(settings, field))
            ]
        return problems

    def _replay(self) -> list[str]:
        """What is wrong with the general text that is mixed in."""
        problems: list[str] = []
        text, mixed_in = self.training.replay_text, ["training"] * (self.training.replay_share > 0)
        for name in filter(RECIPE.match, self.recipes):
            overrides = self.recipes[name]
            if overrides and overrides.replay_share and not RecipeSpec.parse(name).control_of:
                mixed_in.append(f"recipes.{name}")
        if mixed_in and text is None:
            problems.append(
                f"training.replay_text: missing; {mixed_in[0]}.replay_share mixes it in. Name a "
                "UTF-8 text file with blank lines between its paragraphs"
            )
        if mixed_in and text is not None and text == self.training.general_text != "lab":
            problems.append(
                f"training.replay_text: {text} is also training.general_text: what training costs "
                "would be measured on text that was trained on; name two files"
            )
        return problems

    def _augmentations(self) -> list[str]:
        """What is wrong with the augmentations that recipes choose."""
        # Augmentations are built on the settings of this module.
        from kinject_assets.core.augmentation.registry import PARAPHRASE, PLUGINS

        problems: list[str] = []
        of_variant: dict[str, tuple[str, str]] = {}
        for name in filter(RECIPE.match, self.recipes):
            spec, overrides = RecipeSpec.parse(name), self.recipes[name]
            given = overrides.augmentation if overrides else None
            where = f"recipes.{name}.augmentation"
            if given is not None and given not in PLUGINS:
                problems.append(f"{where}: there is no `{given}`; {_nearest(given, list(PLUGINS))}")
                continue
            if spec.control_of in self.recipes:
                expected = self.recipe_augmentation(spec.control_of)
                if given not in {None, expected}:
                    problems.append(
                        f"{where}: `{name}` trains on the text alone, as long as "
                        f"`{spec.control_of}`, which has `{expected}`; leave it out"
                    )
            elif not spec.n_paraphrases and given is not None:
                problems.append(
                    f"{where}: p00 trains on the text alone, so there is nothing for `{given}` to "
                    f"write; leave it out, or name the recipe e.g. {spec.method}.p04.qa"
                )
            elif spec.n_paraphrases and not spec.control_of:
                chosen = given or PARAPHRASE
                if chosen != PARAPHRASE and not spec.variant:
                    problems.append(
                        f"{where}: tables and claims read `{name}` as one with paraphrases; give "
                        f"one with `{chosen}` a variant, e.g. {name}.{chosen.replace('_', '-')}"
                    )
                first, other = of_variant.setdefault(spec.variant, (name, chosen))
                if other != chosen and spec.variant:
                    problems.append(
                        f"{where}: `{name}` has `{chosen}` and `{first}` has `{other}`; recipes of "
                        f"one variant (`{spec.variant}`) differ in number and seed: choose one "
                        "augmentation, or name another variant"
                    )
        return problems


def base_folder() -> Path:
    """Folder of everything that kinject produces: `$KINJECT_HOME`, default `data/out`."""
    return Path(os.environ.get("KINJECT_HOME") or "data/out").absolute()


def home(profile: Profile) -> Path:
    """Folder of everything that a profile produces: `$KINJECT_HOME/<profile>`."""
    return base_folder() / profile.name


def lab_data() -> Path:
    """Folder of the shipped lab models: `data/lab` of the checkout."""
    return Path(__file__).parents[1] / "data" / "lab"


def local_or_hub(profile: Profile, name: str) -> str:
    """Where a model, encoder or tokenizer is loaded from.

    Args:
        profile: Gives the folder that relative paths start from.
        name: `lab:NAME` (a folder of `lab_data()`), a folder, or a hub id.

    Returns:
        The absolute path of a folder that exists, or the name as it is: a hub id.
    """
    if name.startswith("lab:"):
        return str(lab_data() / name.removeprefix("lab:"))
    folder = profile.folder / name
    return str(folder.resolve()) if folder.is_dir() else name


def profile_path(name: str) -> Path:
    """The file of a profile given by name or path.

    Raises:
        ProfileError: If there is none; the message lists those that there are.
    """
    candidate = Path(name)
    if candidate.suffix in {".yaml", ".yml"} or candidate.is_file():
        if candidate.is_file():
            return candidate.absolute()
        raise ProfileError(
            f"no profile at {candidate}. Write one with `kinject init FOLDER --model M`, or "
            f"use one of: {', '.join(shipped())}"
        )
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise ProfileError(f"no profile named `{name}`; {_nearest(name, shipped())}")
    return path


def shipped() -> list[str]:
    """Names of the profiles in the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str | None = None) -> Profile:
    """Reads and checks a profile.

    Args:
        name: Name in `profiles/` or path of a YAML file; default `$KINJECT_PROFILE`, then `lab`.

    Raises:
        ProfileError: If it is missing or wrong; the message names file, field and mend.
    """
    path = profile_path(name or os.environ.get("KINJECT_PROFILE") or "lab")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ProfileError(f"{path}: a profile is a mapping of fields, e.g. `name: my-study`")
    if "path" in raw:
        raise ProfileError(f"{path}: path: unknown field; remove it")
    try:
        return Profile(**raw, path=path)
    except ValidationError as error:
        raise ProfileError(explain(path, error)) from error
    except TypeError as error:
        raise ProfileError(f"{path}: field names are plain words ({error})") from error


def _nearest(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}allowed: {', '.join(sorted(allowed)) or 'nothing yet'}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """Names that are allowed where an unknown field was met."""
    model: Any = Profile
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model = _inner_model(fields[part].annotation)
        elif part in _TAGGED:
            model = _TAGGED[part]
    return [f for f in getattr(model, "model_fields", {}) if f != "path"]


_TAGGED: dict[str, type[Settings]] = {
    "wiki": WikiPages,
    "events": WikiEvents,
    "files": Files,
    "mmlu": MMLUExam,
    "generated": GeneratedExam,
}


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner)
        if found is not None:
            return found
    return None


def explain(path: Path, error: ValidationError) -> str:
    """Turns pydantic's errors into lines that name file, field, what is allowed and the mend."""
    lines: list[str] = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = _fields_at(problem["loc"][:-1])
            text = f"unknown field; {_nearest(str(problem['loc'][-1]), allowed)}"
        elif problem["type"] == "missing":
            text = "missing; add it"
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"]) if "ctx" in problem else problem["msg"]
        else:
            given = problem["input"]
            shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
            text = f"{problem['msg']}{shown}"
        lines += [f"{path}: {where + ': ' if where else ''}{line}" for line in text.splitlines()]
    return "\n".join(lines)
