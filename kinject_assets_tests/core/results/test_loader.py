import os
from collections import Counter
from pathlib import Path

import duckdb
import pytest

from kinject_assets.core import schema
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.results.catalogue import tables
from kinject_assets.core.results.loader import DATABASE, build_database, corpus_settings
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.intervals import wilson
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results import synthetic

CONTRACT = {
    "articles": "article_id revision_id source title revised_at fetched_at url licence "
    "text_sha256 n_chars permalink",
    "chunks": "chunk_id article_id section n_tokens text",
    "corpus_chunks": "corpus chunk_id revision_id ordinal",
    "questions": "question_id origin stem options gold chunk_id generator triage",
    "corpus_questions": "corpus question_id split retired",
    "rejections": "rejection_id kind chunk_id reason text",
    "paraphrases": "paraphrase_id chunk_id purpose ordinal seed generator text augmentation",
    "retrieved": "corpus question_id retriever rank chunk_id score hit",
    "checkpoints": "checkpoint_id corpus model recipe seed method n_paraphrases repeats "
    "learning_rate epochs steps packed_tokens replay_tokens validation_loss seconds augmentation",
    "trials": "checkpoint_id trial learning_rate epoch training_loss validation_loss kept",
    "damage": "checkpoint_id probe before after",
    "conditions": "condition_id corpus model recipe seed method shots k retriever query "
    "choice_format rotation engine",
    "answers": "condition_id question_id answer_id choice gold correct logliks truncated_tokens "
    "checkpoint_id run_id",
    "scores": "condition_id k_rule stratum corpus model recipe seed method shots k retriever "
    "query choice_format rotation engine n accuracy ci_low ci_high above_chance relative_gain",
    "comparisons": "condition_a condition_b stratum family n only_a only_b difference ci_low "
    "ci_high p_value p_adjusted detectable_difference more_questions verdict",
    "pooled": "corpus model recipe method shots k_rule k stratum choice_format rotation engine "
    "retriever query chat_template bos seeds ks accuracies n accuracy ci_low ci_high seed_sd "
    "reference_id difference p_value p_adjusted verdict",
    "letter_bias": "condition_id place letter shown gold chosen collapsed collapse",
    "triage": "question_id stratum closed_book options_only question_only open_book rival models",
    "optimism": "corpus model recipe method shots k_cross_fitted stability cross_fitted "
    "k_test_best test_best gap",
    "retrieval_quality": "corpus retriever k n recall ci_low ci_high mrr",
    "rag_errors": "condition_id corpus model method recipe shots k retriever n hit_right hit_wrong "
    "miss_right miss_wrong",
    "claims": "claim statement verdict evidence family aggregation rule",
    "generations": "generation_id purpose model attempt input_tokens output_tokens cost_usd "
    "seconds state created_at",
    "models": "model source revision architecture parameters knowledge_cutoff",
    "lineage": "child_kind child_id parent_kind parent_id",
    "artefacts": "artefact asset partition logical_version fingerprint code_version seal run_id "
    "started_at finished_at libraries inputs config seeds counts",
}
"""The public contract, written out once more: renaming a column must fail a test."""


def _rows(store: Store, sql: str) -> list[tuple]:
    return fetch(store.root / DATABASE, sql).rows


def test_contract_columns(built: Store) -> None:
    for table, columns in CONTRACT.items():
        there = {row[0] for row in _rows(built, f'DESCRIBE "{table}"')}
        assert set(columns.split()) <= there, table


def test_keys_and_comments_are_declared(built: Store) -> None:
    keys = dict(
        _rows(
            built,
            "SELECT table_name, constraint_column_names FROM duckdb_constraints() "
            "WHERE constraint_type = 'PRIMARY KEY'",
        )
    )
    comments = dict(_rows(built, "SELECT table_name, comment FROM duckdb_tables()"))
    for name, table in tables().items():
        assert tuple(keys[name]) == table.key
        assert table.comment in comments[name]
        assert table.empty in comments[name]


def test_shared_rows_are_merged_and_membership_is_kept(built: Store) -> None:
    assert _rows(built, "SELECT count(*) FROM chunks") == [(14,)]
    assert _rows(built, "SELECT count(*) FROM corpus_chunks") == [(22,)]
    assert _rows(built, "SELECT count(*) FROM articles") == [(14,)]


def test_times_are_utc(built: Store) -> None:
    (moment,) = _rows(built, "SELECT DISTINCT fetched_at FROM articles")
    assert moment[0] == synthetic.NOW.replace(tzinfo=None)


def test_fixed_scores_are_counts_of_answers(built: Store) -> None:
    expected = {
        row[0]: row[1:]
        for row in _rows(
            built,
            "SELECT condition_id, count(*), count(*) FILTER (correct) FROM answers "
            "JOIN conditions USING (condition_id) JOIN corpus_questions "
            "USING (corpus, question_id) WHERE split = 'test' AND NOT retired GROUP BY ALL",
        )
    }
    found = _rows(
        built,
        "SELECT condition_id, n, correct, accuracy, ci_low, ci_high, chance, above_chance "
        "FROM scores WHERE k_rule = 'fixed'",
    )
    assert len(found) == len(expected) == 56
    for condition, n, correct, accuracy, low, high, chance, above in found:
        assert (n, correct) == expected[condition] == (synthetic.QUESTIONS, correct)
        assert accuracy == correct / n
        assert (low, high) == pytest.approx(wilson(correct, n))
        assert chance == 0.25
        assert above == (accuracy > 0.25)


def test_cross_fitted_scores_can_be_recomputed_in_sql(built: Store) -> None:
    # Each question under the K that its fold was given, which the other folds chose.
    differences = _rows(
        built,
        """
        SELECT s.condition_id, s.accuracy, avg(CAST(a.correct AS INTEGER))
        FROM scores s JOIN k_choices c USING (condition_id)
            JOIN corpus_questions q ON q.corpus = s.corpus AND q.fold = c.fold
            JOIN conditions d ON d.corpus = s.corpus AND d.model = s.model
                AND d.method = s.method AND d.recipe = s.recipe AND d.shots = s.shots
                AND d.k = c.k
            JOIN answers a ON a.condition_id = d.condition_id AND a.question_id = q.question_id
        WHERE s.k_rule = 'cross_fitted' AND q.split = 'test' AND NOT q.retired
        GROUP BY ALL
        """,
    )
    assert len(differences) == 14
    for _, stored, recomputed in differences:
        assert stored == pytest.approx(recomputed)


def test_test_best_is_the_best_fixed_score(built: Store) -> None:
    rows = _rows(
        built,
        """
        SELECT b.accuracy, max(f.accuracy), b.k, arg_max(f.k, (f.accuracy, -f.k))
        FROM scores b JOIN scores f USING (corpus, model, recipe, method, shots)
        WHERE b.k_rule = 'test_best' AND f.k_rule = 'fixed'
        GROUP BY b.condition_id, b.accuracy, b.k
        """,
    )
    assert len(rows) == 14 + 14
    for best, maximum, k, expected in rows:
        assert best == maximum
        assert k == expected


def test_views_show_what_scores_hold(built: Store) -> None:
    (one,) = fetch(
        built.root / DATABASE, "SELECT * FROM table1 WHERE shots = 5 AND task = 'rivers'"
    ).dicts()
    (two,) = fetch(built.root / DATABASE, "SELECT * FROM table2").dicts()

    def score(corpus: str, shots: int, method: str, recipe: str) -> tuple:
        (row,) = _rows(
            built,
            f"SELECT accuracy, ci_low, ci_high FROM scores WHERE k_rule = 'cross_fitted' AND "
            f"corpus = '{corpus}' AND shots = {shots} AND method = '{method}' "
            f"AND recipe = '{recipe}'",
        )
        return row

    for name, method, recipe in (
        ("base", "base", ""),
        ("base_rag", "rag", ""),
        ("ft", "ft", "full.p00"),
        ("ft_rag", "ft_rag", "full.p00"),
    ):
        assert (one[name], one[f"{name}_low"], one[f"{name}_high"]) == score(
            "rivers", 5, method, recipe
        )
    for name, method, recipe in (
        ("ft_reg", "ft", "full.p00"),
        ("ft_par", "ft", "full.p04"),
        ("ft_ctl", "ft", "full.r04"),
        ("ft_par_rag", "ft_rag", "full.p04"),
        ("ft_ctl_rag", "ft_rag", "full.r04"),
    ):
        assert (two[name], two[f"{name}_low"], two[f"{name}_high"]) == score(
            "events-2031-04", 0, method, recipe
        )
    assert (one["n"], two["n"], two["corpus"]) == (60, 60, "events-2031-04")


def test_lineage_reaches_an_article_from_every_answer(built: Store) -> None:
    lost = _rows(
        built,
        """
        SELECT a.answer_id FROM answers a
        WHERE NOT EXISTS (
            SELECT 1 FROM lineage q JOIN lineage c ON c.child_kind = 'question'
                AND c.child_id = q.parent_id AND c.parent_kind = 'chunk'
            JOIN lineage r ON r.child_kind = 'chunk' AND r.child_id = c.parent_id
            JOIN articles t ON r.parent_id = t.article_id || '@' || t.revision_id
            WHERE q.child_kind = 'answer' AND q.child_id = a.answer_id)
        """,
    )
    assert lost == []


def test_lineage_of_retrieval_and_training_is_what_was_read(built: Store) -> None:
    prompts = Counter(
        _rows(
            built,
            "SELECT k, n FROM (SELECT a.answer_id, k, count(l.parent_id) AS n FROM answers a "
            "JOIN conditions USING (condition_id) LEFT JOIN lineage l ON child_kind = 'answer' "
            "AND child_id = a.answer_id AND parent_kind = 'chunk' GROUP BY ALL)",
        )
    )
    assert set(prompts) == {(0, 0), (1, 1), (2, 2), (3, 3)}
    read = dict(
        _rows(
            built,
            "SELECT recipe, count(*) FROM lineage JOIN checkpoints ON child_id = checkpoint_id "
            "WHERE corpus = 'events-2031-04' AND parent_kind = 'paraphrase' GROUP BY ALL",
        )
    )
    # 12 chunks: one validation paraphrase each, and as many as the recipe names.
    assert read == {"full.p00": 12, "full.p02": 36, "full.p04": 60, "full.r04": 12}


def test_other_augmentations_are_told_apart_and_pooled_with_nothing(tmp_path: Path) -> None:
    plain = synthetic.write_lake(tmp_path / "plain")
    store = synthetic.write_lake(tmp_path / "augmented")
    synthetic.add_augmented(store, "events-2031-04")
    for lake in (plain, store):
        build_database(lake, synthetic.profile())
    texts = dict(
        _rows(store, "SELECT recipe, augmentation FROM checkpoints WHERE corpus <> 'rivers'")
    )
    assert texts == {
        "full.p00": "",
        "full.p02": "paraphrase",
        "full.p04": "paraphrase",
        "full.r04": "",
        "full.p02.qa": "question_answer",
        "full.r02.qa": "",
    }
    read = _rows(
        store,
        "SELECT recipe, p.augmentation, count(*) FROM lineage JOIN checkpoints c "
        "ON child_id = checkpoint_id JOIN paraphrases p ON parent_id = paraphrase_id "
        "WHERE parent_kind = 'paraphrase' AND purpose = 'train' GROUP BY ALL ORDER BY ALL",
    )
    assert read == [
        ("full.p02", "paraphrase", 24),
        ("full.p02.qa", "question_answer", 24),
        ("full.p04", "paraphrase", 48),
    ]
    families = _rows(
        store,
        "SELECT family, a.recipe, b.recipe FROM comparisons "
        "JOIN conditions a ON condition_a = a.condition_id "
        "JOIN conditions b ON condition_b = b.condition_id "
        "WHERE (family LIKE 'aug%' OR family LIKE 'par%') AND a.method = 'ft' AND a.shots = 0 "
        "AND a.recipe LIKE '%.qa' ORDER BY ALL",
    )
    assert families == [
        ("aug_vs_control", "full.p02.qa", "full.r02.qa"),
        ("aug_vs_par", "full.p02.qa", "full.p02"),
        ("aug_vs_reg", "full.p02.qa", "full.p00"),
    ]
    for sql in (
        "SELECT * FROM table2",
        "SELECT * FROM comparisons WHERE family LIKE 'par%' ORDER BY ALL",
        "SELECT claim, evidence FROM claims WHERE family LIKE 'par%' ORDER BY ALL",
    ):
        assert _rows(store, sql) == _rows(plain, sql) != []


def test_models_are_measured_from_checkpoints(built: Store) -> None:
    assert _rows(built, "SELECT architecture, parameters FROM models") == [("TinyForCausalLM", 6)]


def test_claims_hold_both_verdicts(built: Store) -> None:
    found = dict(_rows(built, "SELECT claim, published_verdict FROM claims"))
    assert found["rag_above_base"] == "replicated"
    assert found["rises_with_paraphrases"] == "not tested"
    (verdict,) = _rows(built, "SELECT verdict FROM claims WHERE claim = 'rag_above_base'")
    assert verdict == ("replicated",)


def test_an_empty_lake_gives_every_table(tmp_path: Path) -> None:
    counts = build_database(Store(tmp_path), synthetic.profile())
    assert {name for name, count in counts.items() if count} == {"corpora", "models", "claims"}
    assert fetch(tmp_path / DATABASE, "SELECT * FROM table1").rows == []
    verdicts = fetch(tmp_path / DATABASE, "SELECT DISTINCT verdict FROM claims").rows
    assert verdicts == [("not tested",)]


def test_the_same_lake_gives_the_same_rows(lake: Store) -> None:
    def content() -> dict[str, list[tuple]]:
        return {name: _rows(lake, f'SELECT * FROM "{name}"') for name in tables()}

    before = content()
    build_database(
        lake,
        synthetic.profile(),
        generations=synthetic.GENERATIONS,
        references=Path(__file__).parents[3] / "data" / "reference",
    )
    assert content() == before


def test_a_failed_build_leaves_the_old_database_and_no_torn_file(lake: Store) -> None:
    before = (lake.root / DATABASE).read_bytes()
    lake.path(Cell("chunks", ("rivers",)), "chunks.parquet").write_bytes(b"torn")
    with pytest.raises(BrokenArtefact, match="chunks"):
        build_database(lake, synthetic.profile())
    assert (lake.root / DATABASE).read_bytes() == before
    assert sorted(os.listdir(lake.root)) == ["lake", DATABASE]


def test_a_reader_is_not_blocked_by_a_build(lake: Store) -> None:
    with duckdb.connect(str(lake.root / DATABASE), read_only=True) as reader:
        build_database(lake, synthetic.profile())
        assert reader.execute("SELECT count(*) FROM generations").fetchall() == [(2,)]
    assert _rows(lake, "SELECT count(*) FROM generations") == [(0,)]


def test_answers_to_other_than_test_questions_are_kept_and_not_scored(built: Store) -> None:
    assert _rows(built, "SELECT count(*) FROM answers") == [(56 * (synthetic.QUESTIONS + 2),)]
    assert _rows(built, "SELECT DISTINCT n FROM scores") == [(synthetic.QUESTIONS,)]


def test_corpora_with_other_values_of_k_are_not_pooled(tmp_path: Path) -> None:
    store = synthetic.write_lake(tmp_path)
    cell = Cell("answers_rag", ("rivers", synthetic.MODEL))
    conditions = [synthetic.condition("rivers", "rag", 1, 0, "")]
    questions = store.rows(Cell("questions", ("rivers",)), "questions", schema.Question)
    synthetic.publish(
        store,
        cell,
        {
            "answers": (schema.Answer, synthetic.answers(conditions, questions, "")),
            "conditions": (schema.Condition, conditions),
        },
    )
    build_database(store, synthetic.profile())
    rows = _rows(
        store,
        "SELECT k, accuracy, k_stability FROM scores WHERE corpus = 'rivers' "
        "AND method = 'rag' ORDER BY k_rule",
    )
    assert [row[0] for row in rows] == [1, 1, 1]
    assert len({row[1] for row in rows}) == 1


def test_a_release_has_the_settings_of_its_window() -> None:
    profile = synthetic.profile()
    assert corpus_settings(profile, "rivers") is profile.corpora["rivers"]
    assert corpus_settings(profile, "unknown") is None
    renamed = profile.model_copy(
        update={"corpora": {"events-current": profile.corpora["events-2031-04"]}}
    )
    assert corpus_settings(renamed, "events-2031-05-r2") is renamed.corpora["events-current"]
