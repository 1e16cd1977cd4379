"""What an estimate takes for granted where nothing was measured: each a number with its reason.

docs/planning.md lists them. An estimate names those that it used.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumption:
    """A number that was not measured in the study at hand, and why it is what it is."""

    value: float
    reason: str


ASSUMPTIONS: dict[str, Assumption] = {
    "characters_per_token": Assumption(
        4.0, "OpenAI's rule of thumb for English; also of a model's own tokenizer"
    ),
    "characters_per_word": Assumption(
        5.2, "text to a token of the tokenizer `words`: measured on 24 articles of Wikipedia"
    ),
    "chunks_per_full_chunk": Assumption(
        1.07,
        "chunks that text of chunking.max_tokens fills, since sentences stay whole: fitted to 24 "
        "articles of Wikipedia, within 6 % for chunks of 96 to 800 tokens",
    ),
    "characters_per_short_chunk": Assumption(
        2_500, "text on which one chunk more comes, the short end of a section: from the same fit"
    ),
    "askable_share": Assumption(
        0.92, "chunks of at least chunking.min_tokens: 0.90 to 0.94 measured on 24 articles"
    ),
    "prose_share": Assumption(
        0.45,
        "plain text left of a page's wikitext after cleaning: 0.40 measured on 24 articles of "
        "Wikipedia, 0.51 on 33 others with fewer references",
    ),
    "html_text_share": Assumption(0.30, "text in an HTML file too large to read now; not measured"),
    "pdf_text_share": Assumption(0.10, "text in a PDF too large to read now; not measured"),
    "stem_characters": Assumption(
        96, "a question without its options: mean of 387 questions of MMLU (3 subjects)"
    ),
    "option_characters": Assumption(35, "an option: mean of the same 387 questions"),
    "schema_share": Assumption(
        0.5,
        "characters of a JSON schema in response_format that count as input: services put it into "
        "the prompt in a shorter form; not measured",
    ),
    "question_output_tokens": Assumption(
        32, "a written question without its options: its stem, and the keys of the JSON"
    ),
    "option_output_tokens": Assumption(6, "an option of it: some words, quotes and comma"),
    "verification_output_tokens": Assumption(
        14, "numbers of a question and of its right options in JSON"
    ),
    "selection_output_tokens": Assumption(10, "a short list of numbers in JSON"),
    "paraphrase_length": Assumption(
        1.0, "tokens of a paraphrase to those of its chunk: the prompt asks for the same length"
    ),
    "question_answer_length": Assumption(
        1.5, "the same of questions with their answers, one for each fact; not measured"
    ),
    "implications_length": Assumption(
        1.0, "the same of a text on one or two names of the chunk; not measured"
    ),
    "json_output_tokens": Assumption(8, "braces, key and quotes around a text in JSON"),
    "again_question": Assumption(
        0.02, "answers that fit no schema are rare with json_schema; not measured"
    ),
    "again_paraphrase": Assumption(
        0.15,
        "paraphrases that drop a number or a name, or are copies, and are asked again; not "
        "measured with a real language model",
    ),
    "lora_share": Assumption(
        3.7e-4, "parameters of an adapter to the model's, for each rank: Llama-2-7b, all layers"
    ),
    "artefact_bytes": Assumption(
        6_000, "a Parquet artefact with hardly any rows: 3,000 to 9,000 measured on the lab"
    ),
    "text_bytes": Assumption(
        0.45, "bytes on disk of a character in Parquet with zstd: measured on the lab"
    ),
    "answer_bytes": Assumption(65, "an answer in Parquet: measured on the lab"),
    "database_bytes": Assumption(12.7e6, "results.duckdb with hardly any rows: measured"),
    "database_answer_bytes": Assumption(
        1050, "an answer in results.duckdb, with its lineage and digest: measured on the lab"
    ),
    "log_bytes": Assumption(180_000, "Dagster's record of making an artefact: measured on the lab"),
    "ledger_bytes": Assumption(500, "a request in the ledger, without its answer: measured"),
    "report_bytes": Assumption(17_000, "the report, for each artefact: measured on the lab"),
    "step_seconds": Assumption(
        0.2,
        "Dagster's, from the end of a step to the next of its run: measured on the lab; 0.9 while "
        "the machine was busy with other work",
    ),
    "run_seconds": Assumption(
        0.5,
        "beside that, where `kinject run` goes on to another partition: measured on the lab; 2.3 "
        "on the busy machine",
    ),
    "backfill_run_seconds": Assumption(
        24,
        "until a run of a backfill begins: half of the 30 s between two looks of Dagster's "
        "backfill daemon, half of the 5 s between two of its queue, and some 6 s for its process",
    ),
    "ray_job_seconds": Assumption(
        5, "from a Ray job's submission to its first process: 4.3 to 5.9 s measured on 2 cores"
    ),
    "ray_end_seconds": Assumption(
        5, "from its last process to the end of the step: 4.8 to 5.7 s measured on 2 cores"
    ),
    "process_seconds": Assumption(
        5, "a process that imports torch, transformers, ...: 4.2 to 7 s measured on 2 cores"
    ),
    "load_bytes_per_second": Assumption(1e9, "weights read from a disk; not measured"),
    "merge_seconds": Assumption(
        2, "what parts made, put together: one more process, which starts 1.2 to 1.6 s after them"
    ),
    "parallel_efficiency": Assumption(
        0.9, "speed of processes that train together, to the sum of their speeds; not measured"
    ),
    "light_seconds": Assumption(
        3, "a step that runs no model and asks nobody: 0.04 to 29 s measured on the lab"
    ),
    "page_seconds": Assumption(0.05, "fetching a page of a wiki, 50 a request; not measured"),
    "request_seconds": Assumption(
        0.7, "until the language model's first token, of a hosted service; not measured"
    ),
    "output_tokens_per_second": Assumption(60, "its tokens from there on; not measured"),
    "batch_seconds": Assumption(
        86_400, "answers to a batch of requests: a day, the most that services promise"
    ),
}
"""Name -> assumption."""


PARAPHRASE_LENGTH = "paraphrase_length"
"""Stands in for the length of other augmentations' texts where none is assumed."""


class Assumed:
    """Gives assumptions by name and notes which were used."""

    def __init__(self) -> None:
        self.used: dict[str, Assumption] = {}

    def __call__(self, name: str) -> float:
        """The value of an assumption."""
        self.used[name] = ASSUMPTIONS[name]
        return ASSUMPTIONS[name].value

    def text_length(self, augmentation: str) -> float:
        """Tokens of a text of an augmentation, to those of its chunk."""
        name = f"{augmentation}_length"
        return self(name if name in ASSUMPTIONS else PARAPHRASE_LENGTH)


MMLU_SIZES: dict[str, tuple[int, int, int]] = {
    "anatomy": (135, 5, 14),
    "astronomy": (152, 5, 16),
    "college_biology": (144, 5, 16),
    "college_chemistry": (100, 5, 8),
    "prehistory": (324, 5, 35),
}
"""Subject -> questions for testing, few-shot examples and validation, of the study's subjects."""

ENCODERS: dict[str, tuple[int, int]] = {
    "BAAI/bge-large-en": (335_141_888, 1024),
    "BAAI/bge-large-en-v1.5": (335_141_888, 1024),
    "BAAI/bge-base-en": (109_482_240, 768),
    "BAAI/bge-base-en-v1.5": (109_482_240, 768),
    "BAAI/bge-small-en": (33_360_000, 384),
    "BAAI/bge-small-en-v1.5": (33_360_000, 384),
}
"""Well-known encoders -> parameters and length of a vector, where they are not on this disk."""

CROSS_ENCODERS: dict[str, int] = {
    "cross-encoder/ms-marco-MiniLM-L6-v2": 22_700_000,
    "BAAI/bge-reranker-base": 278_000_000,
    "BAAI/bge-reranker-large": 560_000_000,
}
"""Well-known cross-encoders -> parameters, as their pages round them."""
