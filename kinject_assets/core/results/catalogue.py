"""The tables of `results.duckdb`: columns, keys, what each means and when it is empty.

This is a public contract: columns may be added, never renamed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kinject_assets.core.schema import Condition, arrow_schema
from kinject_assets.core.statistics.intervals import critical_value
from kinject_assets.core.statistics.letters import CHOSEN, RIGHT
from kinject_assets.core.statistics.power import WORTHWHILE

_KINDS = {
    "string": "VARCHAR",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp[us, tz=UTC]": "TIMESTAMP",
    "list<item: string>": "VARCHAR[]",
    "list<element: string>": "VARCHAR[]",
    "list<item: int64>": "BIGINT[]",
    "list<element: int64>": "BIGINT[]",
    "list<item: double>": "DOUBLE[]",
    "list<element: double>": "DOUBLE[]",
}


def columns_of(row_type: type, *leave_out: str) -> dict[str, str]:
    """DuckDB columns of a row class."""
    return {
        field.name: _KINDS[str(field.type)]
        for field in arrow_schema(row_type)
        if field.name not in leave_out
    }


@dataclass(frozen=True)
class Table:
    """A table of the database.

    Attributes:
        columns: Column -> DuckDB type.
        key: Primary key.
        comment: What a row is.
        empty: Why it may hold no rows.
    """

    columns: Mapping[str, str]
    key: tuple[str, ...]
    comment: str
    empty: str

    def ddl(self, name: str) -> str:
        """Statement that creates the table."""
        columns = ", ".join(f'"{column}" {kind}' for column, kind in self.columns.items())
        return f'CREATE TABLE "{name}" ({columns}, PRIMARY KEY ({", ".join(self.key)}))'


def _columns(text: str) -> dict[str, str]:
    """Columns from `name TYPE, name TYPE`."""
    pairs = (part.split() for part in text.split(","))
    return {pair[0]: pair[1] for pair in pairs}


def tables() -> dict[str, Table]:
    """Every table by name, in the order of the flow of data."""
    from kinject_assets.core import schema

    return {
        "corpora": Table(
            _columns(
                "corpus VARCHAR, title VARCHAR, table_number BIGINT, exam VARCHAR, "
                "facts_since DATE, not_new_to VARCHAR[], release_of VARCHAR"
            ),
            ("corpus",),
            "A corpus and the table of the study that it belongs to. facts_since is the date of "
            "its oldest fact where it claims to hold new ones; not_new_to are the models that may "
            "have read such facts, or whose knowledge cut-off is not stated. release_of is the "
            "window of current events that the corpus is a frozen release of; empty for none.",
            "Never: the profile has at least one corpus.",
        ),
        "models": Table(
            _columns(
                "model VARCHAR, source VARCHAR, revision VARCHAR, architecture VARCHAR, "
                "parameters BIGINT, knowledge_cutoff DATE"
            ),
            ("model",),
            "A language model under study. Architecture and parameters are read from a full "
            "checkpoint trained from it, or from what the scoring step counted.",
            "Never: the profile has at least one model.",
        ),
        "articles": Table(
            {**columns_of(schema.Article, "headings", "bodies"), "permalink": "VARCHAR"},
            ("article_id", "revision_id"),
            "One revision of an article, as it was fetched. Times are UTC. permalink opens this "
            "very revision where the source is a wiki; for a file it is its url.",
            "No corpus has been fetched.",
        ),
        "chunks": Table(
            columns_of(schema.Chunk, "revision_id", "ordinal"),
            ("chunk_id",),
            "A passage: the unit of retrieval, question writing and paraphrasing. Corpora share "
            "chunks; membership is in corpus_chunks, and one that is in no corpus has left it: "
            "retired questions were written from it.",
            "No corpus has been cut into chunks.",
        ),
        "corpus_chunks": Table(
            _columns("corpus VARCHAR, chunk_id VARCHAR, revision_id VARCHAR, ordinal BIGINT"),
            ("corpus", "chunk_id"),
            "Which chunks a corpus holds, and in which article revision it read each.",
            "No corpus has been cut into chunks.",
        ),
        "questions": Table(
            columns_of(schema.Question, "split", "retired"),
            ("question_id",),
            "A multiple-choice question; gold is the index of the right option, from 0, and triage "
            "the stratum, empty where the base models were not asked.",
            "No exam has been loaded or written.",
        ),
        "triage": Table(
            columns_of(schema.Triage),
            ("question_id",),
            "What the base models make of a generated question: the gold option's share of the "
            "probability of all options in each probe, averaged over the models, and the stratum "
            "that follows.",
            "No exam has been triaged (MMLU exams never are).",
        ),
        "corpus_questions": Table(
            _columns(
                "corpus VARCHAR, question_id VARCHAR, split VARCHAR, retired BOOLEAN, fold BIGINT"
            ),
            ("corpus", "question_id"),
            "Which questions a corpus's exam holds. Only test questions that are not retired are "
            "scored; fold is the part that the question is in when K is chosen by cross-fitting.",
            "No exam has been loaded or written.",
        ),
        "rejections": Table(
            columns_of(schema.Rejection),
            ("rejection_id",),
            "A generated text that a gate turned away, and why.",
            "Every generated text was accepted, or nothing was generated (MMLU exams).",
        ),
        "paraphrases": Table(
            columns_of(schema.Paraphrase),
            ("paraphrase_id",),
            "A text on a chunk that the language model wrote, for training or for validation. "
            "augmentation says how: paraphrase, question_answer or implications; a recipe with n "
            "texts a chunk reads ordinals below n of its augmentation.",
            "The grid has no recipe, so nothing is trained.",
        ),
        "retrieved": Table(
            columns_of(schema.Retrieved),
            ("corpus", "question_id", "retriever", "rank"),
            "A chunk that a retriever brought for a question; rank from 1, hit marks the chunk "
            "that the question was written from.",
            "The grid has neither rag nor ft_rag.",
        ),
        "checkpoints": Table(
            {**columns_of(schema.Checkpoint), "augmentation": "VARCHAR"},
            ("checkpoint_id",),
            "A trained model. augmentation says whose n_paraphrases texts a chunk it was trained "
            "on; empty where it was trained on the text alone. replay_tokens are those of "
            "packed_tokens that were general text.",
            "The grid has no recipe, or no checkpoint has been trained yet.",
        ),
        "trials": Table(
            columns_of(schema.Trial),
            ("checkpoint_id", "trial", "epoch"),
            "One epoch of one learning-rate trial of a checkpoint (a trial has a row an epoch); "
            "kept marks the epoch whose weights the checkpoint holds.",
            "No checkpoint has been trained.",
        ),
        "damage": Table(
            columns_of(schema.Damage),
            ("checkpoint_id", "probe"),
            "What training did to something else than the corpus: a probe before and after. "
            "facts:CORPUS is the accuracy on another corpus's exam, reading:CORPUS the same with "
            "retrieved chunks in front; n counts its questions, lost and won those that changed. "
            "Where options are shown as letters, most_chosen is the share of the answers on the "
            "place that got most of them and entropy that of the chosen places in bits; collapse "
            "is the reason, as in letter_bias.",
            "No checkpoint has been trained, or neither training.general_text nor damage is set.",
        ),
        "conditions": Table(
            columns_of(Condition),
            ("condition_id",),
            "One way to answer an exam.",
            "No exam has been answered.",
        ),
        "answers": Table(
            columns_of(schema.Answer),
            ("condition_id", "question_id"),
            "A model's answer to one question under one condition; logliks in nats, one an option; "
            "places has the place of the likeliest option (0 is A) in each order that was shown.",
            "No exam has been answered.",
        ),
        "k_choices": Table(
            _columns("condition_id VARCHAR, fold BIGINT, k BIGINT"),
            ("condition_id", "fold"),
            "The K that cross-fitting chose for each fold on the questions of all other folds, "
            "pooled over the corpora of the same table; condition_id is the one that scores names.",
            "Nothing was answered with retrieved text.",
        ),
        "scores": Table(
            {
                "k_rule": "VARCHAR",
                "stratum": "VARCHAR",
                **columns_of(Condition),
                "n": "BIGINT",
                "correct": "BIGINT",
                "accuracy": "DOUBLE",
                "ci_low": "DOUBLE",
                "ci_high": "DOUBLE",
                "chance": "DOUBLE",
                "above_chance": "BOOLEAN",
                "above_chance_shown": "BOOLEAN",
                "relative_gain": "DOUBLE",
                "relative_gain_low": "DOUBLE",
                "relative_gain_high": "DOUBLE",
                "k_stability": "DOUBLE",
                "main": "BOOLEAN",
            },
            ("condition_id", "k_rule", "stratum"),
            "Accuracy with Wilson's 95 % interval. stratum is all, or one that triage found; K is "
            "always chosen on all questions. k_rule says how K was chosen: fixed (every K), "
            "test_best (the study's rule, optimistic) or cross_fitted, where condition_id and k "
            "are those of the K that most folds chose and accuracy is that of each fold under its "
            "own K (k_choices). Conditions without retrieval stand under all three. above_chance "
            "is Eq. 2 (accuracy > chance), above_chance_shown asks it of ci_low. relative_gain is "
            "Eq. 5 against the base model (stratum all only). main marks what the views show: the "
            "profile's choice format, rotation, chat template and query, the first retriever, "
            "seed 0, no variant of a recipe.",
            "No exam has been answered.",
        ),
        "letter_bias": Table(
            _columns(
                "condition_id VARCHAR, place BIGINT, letter VARCHAR, shown BIGINT, gold DOUBLE, "
                "chosen DOUBLE, collapsed BOOLEAN, collapse VARCHAR"
            ),
            ("condition_id", "place"),
            "How often each place of the options was right and was chosen, over all orders shown "
            "to the scored questions. collapsed and its reason stand on every row of a condition: "
            "below chance (the upper end of the accuracy's interval is), or one letter (a place "
            f"takes more than {CHOSEN} of the choices and is right in less than {RIGHT} of the "
            "orders).",
            "No exam has been answered.",
        ),
        "comparisons": Table(
            _columns(
                "condition_a VARCHAR, condition_b VARCHAR, stratum VARCHAR, family VARCHAR, "
                "k_rule VARCHAR, n BIGINT, only_a BIGINT, only_b BIGINT, difference DOUBLE, "
                "ci_low DOUBLE, ci_high DOUBLE, p_value DOUBLE, p_adjusted DOUBLE, "
                "detectable_difference DOUBLE, more_questions BIGINT, verdict VARCHAR"
            ),
            ("condition_a", "condition_b", "stratum"),
            "A against B on the same questions: Tango's 95 % score interval of the difference, "
            "McNemar's exact test, Holm's adjustment within family and stratum. At the strictest "
            "level of that adjustment, with 80 % power: detectable_difference is what would have "
            "been found, more_questions how many further questions would show "
            f"{100 * WORTHWHILE:.0f} points (0: there are enough; NULL: too many to say).",
            "Fewer than two methods have been answered in any corpus.",
        ),
        "pooled": Table(
            _columns(
                "corpus VARCHAR, model VARCHAR, recipe VARCHAR, method VARCHAR, shots BIGINT, "
                "k_rule VARCHAR, k BIGINT, stratum VARCHAR, choice_format VARCHAR, "
                "rotation BOOLEAN, engine VARCHAR, retriever VARCHAR, query VARCHAR, "
                "chat_template BOOLEAN, bos BOOLEAN, seeds BIGINT[], ks BIGINT[], "
                "accuracies DOUBLE[], n BIGINT, accuracy DOUBLE, ci_low DOUBLE, ci_high DOUBLE, "
                "seed_sd DOUBLE, reference_id VARCHAR, difference DOUBLE, p_value DOUBLE, "
                "p_adjusted DOUBLE, detectable_difference DOUBLE, verdict VARCHAR"
            ),
            (
                "corpus",
                "model",
                "recipe",
                "method",
                "shots",
                "k_rule",
                "k",
                "stratum",
                "choice_format",
                "rotation",
                "engine",
                "retriever",
                "query",
                "chat_template",
                "bos",
            ),
            "A recipe's seeds together: mean accuracy with a 95 % interval over questions, and an "
            "exact sign-flip test against base (ft) or rag (ft_rag) on all questions, adjusted by "
            "Holm within method, retriever and k_rule; controls are not tested. recipe is without "
            "its seed; "
            "ks and accuracies are in the order of seeds, k is the K that most seeds have.",
            "No recipe has been answered with two seeds or more.",
        ),
        "claims": Table(
            _columns(
                "claim VARCHAR, statement VARCHAR, verdict VARCHAR, evidence VARCHAR, "
                "family VARCHAR, aggregation VARCHAR, rule VARCHAR, published_verdict VARCHAR, "
                "published_evidence VARCHAR"
            ),
            ("claim",),
            "A claim of the study, judged on this profile's results and, where they are given, on "
            "the published tables.",
            "Never: a claim without data is `not tested`.",
        ),
        "generations": Table(
            columns_of(schema.Generation),
            ("generation_id",),
            "A request to the language model service, as the ledger has it.",
            "Nothing was asked of a language model service.",
        ),
        "lineage": Table(
            _columns(
                "child_kind VARCHAR, child_id VARCHAR, parent_kind VARCHAR, parent_id VARCHAR"
            ),
            ("child_kind", "child_id", "parent_kind", "parent_id"),
            "What each thing was made from: answer to question, checkpoint and retrieved chunks; "
            "checkpoint to chunks and paraphrases; question and paraphrase to chunk and "
            "generation; chunk to article (id article_id@revision_id). Answers, questions, "
            "paraphrases, checkpoints, chunks and articles also to the artefact that holds them, "
            "artefacts to those that they were made from.",
            "No chunks have been made.",
        ),
        "artefacts": Table(
            _columns(
                "artefact VARCHAR, asset VARCHAR, partition VARCHAR, logical_version VARCHAR, "
                "fingerprint VARCHAR, code_version VARCHAR, seal VARCHAR, run_id VARCHAR, "
                "started_at TIMESTAMP, finished_at TIMESTAMP, libraries VARCHAR, inputs VARCHAR, "
                "config VARCHAR, seeds VARCHAR, counts VARCHAR"
            ),
            ("artefact",),
            "What the database was built from: each artefact of the lake as its manifest has it. "
            "libraries, inputs (what was read: version), config, seeds and counts are JSON "
            "objects; seal is the hash of the manifest.",
            "The lake is empty.",
        ),
    }


METHOD_COLUMNS: Mapping[int, tuple[tuple[str, str], ...]] = {
    1: (
        ("base", "method = 'base'"),
        ("base_rag", "method = 'rag'"),
        ("ft", "method = 'ft' AND recipe = reg"),
        ("ft_rag", "method = 'ft_rag' AND recipe = reg"),
    ),
    2: (
        ("base", "method = 'base'"),
        ("base_rag", "method = 'rag'"),
        ("ft_reg", "method = 'ft' AND recipe = reg"),
        ("ft_par", "method = 'ft' AND recipe = par"),
        ("ft_ctl", "method = 'ft' AND recipe = ctl"),
        ("ft_reg_rag", "method = 'ft_rag' AND recipe = reg"),
        ("ft_par_rag", "method = 'ft_rag' AND recipe = par"),
        ("ft_ctl_rag", "method = 'ft_rag' AND recipe = ctl"),
    ),
}
"""Table of the study -> its columns of accuracies, and which scores stand in them."""


def named_scores(number: int) -> str:
    """Common table expressions up to `named`: the scores of a table of the study.

    Full fine-tuning stands in the tables; where a model has none, low-rank adapters do. `reg`,
    `par` and `ctl` are recipes: FT-par is the one with the most paraphrases, the control that of
    this recipe.
    """
    shots = "" if number == 1 else "AND shots = 0"
    return f"""
        WITH shown AS (
            SELECT s.*, regexp_extract(recipe, '^(full|lora|qlora)[.]', 1) AS training,
                regexp_extract(recipe, '^[a-z]+[.]([pr])', 1) AS kind,
                TRY_CAST(regexp_extract(recipe, '[.][pr]([0-9]+)', 1) AS INTEGER) AS paraphrases
            FROM scores s JOIN corpora USING (corpus)
            WHERE s.k_rule = 'cross_fitted' AND s.stratum = 'all' AND s.main
                AND table_number = {number} {shots}
        ), chosen AS (
            SELECT corpus AS corpus_, model AS model_, min(training) AS training_,
                max(paraphrases) FILTER (kind = 'p' AND paraphrases > 0) AS most
            FROM shown WHERE recipe <> '' AND training = (
                SELECT min(t.training) FROM shown t
                WHERE t.corpus = shown.corpus AND t.model = shown.model AND t.recipe <> '')
            GROUP BY ALL
        ), named AS (
            SELECT shown.*, training_ || '.p00' AS reg,
                training_ || '.p' || lpad(CAST(most AS VARCHAR), 2, '0') AS par,
                training_ || '.r' || lpad(CAST(most AS VARCHAR), 2, '0') AS ctl
            FROM shown LEFT JOIN chosen ON corpus = corpus_ AND model = model_
        )
    """


def view_ddl(number: int) -> str:
    """Statement that creates the view `table1` or `table2`, of the scores of `named_scores`."""
    columns = ", ".join(
        f"max({value}) FILTER ({where}) AS {name}{ending}"
        for name, where in METHOD_COLUMNS[number]
        for value, ending in (("accuracy", ""), ("ci_low", "_low"), ("ci_high", "_high"))
    )
    keys = "corpus AS task, shots, model" if number == 1 else "model"
    rest = "max(n) AS n" if number == 1 else "max(n) AS n, corpus"
    order = "task, shots, model" if number == 1 else "corpus, model"
    return f"""
        CREATE VIEW table{number} AS {named_scores(number)}
        SELECT {keys}, {columns}, {rest}
        FROM named GROUP BY corpus, shots, model ORDER BY {order}
    """


OPTIMISM = """
    CREATE VIEW optimism AS
    SELECT c.corpus, c.model, c.recipe, c.seed, c.method, c.shots, c.stratum, c.retriever,
        c.k AS k_cross_fitted, c.k_stability AS stability, c.accuracy AS cross_fitted,
        t.k AS k_test_best, t.accuracy AS test_best, t.accuracy - c.accuracy AS gap, c.n, c.main
    FROM scores c JOIN scores t USING (corpus, model, recipe, seed, method, shots, stratum,
        retriever, query, choice_format, rotation, engine, chat_template, bos)
    WHERE c.k_rule = 'cross_fitted' AND t.k_rule = 'test_best' AND c.method IN ('rag', 'ft_rag')
    ORDER BY ALL
"""
"""Statement that creates the view `optimism`: what choosing K on the test score adds."""

RETRIEVAL_QUALITY = f"""
    CREATE VIEW retrieval_quality AS
    WITH found AS (
        SELECT t.corpus, t.retriever, t.question_id, min(t.rank) FILTER (t.hit) AS rank
        FROM retrieved t JOIN corpus_questions c USING (corpus, question_id)
            JOIN questions q USING (question_id)
        WHERE c.split = 'test' AND NOT c.retired AND q.chunk_id IS NOT NULL
        GROUP BY ALL
    ), ks AS (
        SELECT corpus, retriever, unnest(range(1, max(rank) + 1)) AS k
        FROM retrieved GROUP BY corpus, retriever
    ), counted AS (
        SELECT corpus, retriever, k, count(*) AS n,
            count(*) FILTER (rank <= k) / count(*) AS p,
            sum(CASE WHEN rank <= k THEN 1 / rank ELSE 0 END) / count(*) AS mrr,
            {critical_value()} AS z
        FROM found JOIN ks USING (corpus, retriever) GROUP BY corpus, retriever, k
    ), wilson AS (
        SELECT *, 1 + z * z / n AS scale, p + z * z / (2 * n) AS middle,
            z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) AS half
        FROM counted
    )
    SELECT corpus, retriever, k, n, p AS recall,
        CASE WHEN p = 0 THEN 0 ELSE (middle - half) / scale END AS ci_low,
        CASE WHEN p = 1 THEN 1 ELSE (middle + half) / scale END AS ci_high, mrr
    FROM wilson ORDER BY corpus, retriever, k
"""
"""Statement that creates the view `retrieval_quality`: how often the right chunk was retrieved."""

RAG_ERRORS = """
    CREATE VIEW rag_errors AS
    WITH found AS (
        SELECT corpus, retriever, question_id, min(rank) FILTER (hit) AS rank
        FROM retrieved GROUP BY ALL
    ), answered AS (
        SELECT c.*, coalesce(f.rank <= c.k, false) AS hit, a.correct
        FROM answers a JOIN conditions c USING (condition_id)
            JOIN corpus_questions e ON e.corpus = c.corpus AND e.question_id = a.question_id
            JOIN questions q ON q.question_id = a.question_id
            JOIN found f ON f.corpus = c.corpus AND f.retriever = c.retriever
                AND f.question_id = a.question_id
        WHERE c.k > 0 AND e.split = 'test' AND NOT e.retired AND q.chunk_id IS NOT NULL
    )
    SELECT condition_id, corpus, model, method, recipe, shots, k, retriever, count(*) AS n,
        count(*) FILTER (hit AND correct) AS hit_right,
        count(*) FILTER (hit AND NOT correct) AS hit_wrong,
        count(*) FILTER (NOT hit AND correct) AS miss_right,
        count(*) FILTER (NOT hit AND NOT correct) AS miss_wrong
    FROM answered GROUP BY condition_id, corpus, model, method, recipe, shots, k, retriever
    ORDER BY corpus, model, method, recipe, shots, retriever, k
"""
"""Statement that creates the view `rag_errors`: wrong answers that were not retrieved for, and
those that were."""
