"""The memo says what the database says: verdicts, differences, turnings, ceilings."""

import shutil
from pathlib import Path

import duckdb
import pytest

from kinject_assets.core.report.evidence import Evidence, read_evidence
from kinject_assets.core.report.memo import Judged, in_words, judge_all, overall, read_damage
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.statistics.decision import decide
from kinject_assets.core.statistics.power import ALPHA
from kinject_assets.core.store import Store

EVENTS = "events-2031-04"


def judged_of(database: Path) -> list[Judged]:
    corpora = fetch(database, "SELECT * FROM corpora").dicts()
    return judge_all(read_evidence(database), corpora, read_damage(database))


@pytest.fixture(scope="module")
def evidence(rich: Store) -> Evidence:
    return read_evidence(rich.root / DATABASE)


@pytest.fixture
def changed(built: Store, tmp_path: Path) -> Path:
    """A copy of the database that a test may change."""
    return Path(shutil.copyfile(built.root / DATABASE, tmp_path / DATABASE))


def change(database: Path, *statements: str) -> None:
    with duckdb.connect(str(database)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_systems_are_those_of_the_scores(evidence: Evidence) -> None:
    assert evidence.systems
    for system in evidence.systems:
        assert len(system.outcomes) == system.n
        assert sum(system.outcomes.values()) / system.n == pytest.approx(system.accuracy)


def test_levels_give_the_verdicts_of_the_comparisons(evidence: Evidence) -> None:
    assert evidence.comparisons
    for pair, row in evidence.comparisons.items():
        assert (row["p_value"] < evidence.levels[pair]) == (row["p_adjusted"] < ALPHA)


def test_releases_are_adjusted_by_themselves(changed: Path) -> None:
    before = read_evidence(changed)
    change(changed, f"UPDATE corpora SET release_of = 'events-current' WHERE corpus = '{EVENTS}'")
    after = read_evidence(changed)
    assert len(after.groups) == 2 * len(before.groups)
    assert sum(len(g.rows) for g in after.groups) == sum(len(g.rows) for g in before.groups)
    assert any(after.levels[pair] > before.levels[pair] for pair in before.levels)


def test_new_facts_come_first_with_the_fewest_examples(built: Store) -> None:
    judged = judged_of(built.root / DATABASE)
    assert [(j.corpus, j.table, j.shots) for j in judged] == [(EVENTS, 2, 0), ("rivers", 1, 0)]
    for j in judged:
        assert j.verdict == decide(j.cast) == "retrieve"
        assert "control" not in j.cast.recipe and ".r" not in j.cast.recipe


def test_differences_are_those_of_the_comparisons(built: Store) -> None:
    database = built.root / DATABASE
    for j in judged_of(database):
        found = j.differences["rag", "base"]
        ((difference, low, high, p_adjusted),) = fetch(
            database,
            "SELECT difference, ci_low, ci_high, p_adjusted FROM comparisons "
            "WHERE condition_a = ? AND condition_b = ? AND stratum = 'all'",
            [j.systems["rag"].condition_id, j.systems["base"].condition_id],
        ).rows
        assert found[:4] == pytest.approx((difference, low, high, p_adjusted))
        assert f"{difference:+.3f} [{low:+.2f}, {high:+.2f}]" in j.headline


def test_the_recipe_is_the_best_of_those_tried(built: Store) -> None:
    database = built.root / DATABASE
    (j, _) = judged_of(database)
    best = "SELECT recipe FROM scores WHERE corpus = ? AND method = ? AND shots = 0 AND main " \
        "AND k_rule = 'cross_fitted' AND stratum = 'all' AND recipe NOT LIKE '%.r%' " \
        "ORDER BY accuracy DESC, recipe LIMIT 1"  # fmt: skip
    assert j.cast.recipe == fetch(database, best, [EVENTS, "ft"]).rows[0][0]
    assert j.cast.recipe_of_both == fetch(database, best, [EVENTS, "ft_rag"]).rows[0][0]


def test_bad_questions_turn_the_verdict(built: Store) -> None:
    for j in judged_of(built.root / DATABASE):
        n = j.turning.questions
        assert n is not None and j.turning.clause is not None
        assert f"It takes {n} bad questions of {j.systems['base'].n}" in j.what_turns
        winner, rival = (j.cast.outcomes[role] for role in (j.turning.clause.a, j.turning.clause.b))
        favouring = [q for q in winner if winner[q] and not rival[q]]
        assert decide(j.cast.without(set(favouring[: n - 1]))) == j.verdict
        assert decide(j.cast.without(set(favouring[:n]))) != j.verdict


def test_ceiling_and_damage_are_told(changed: Path) -> None:
    assert all(j.ceiling is None for j in judged_of(changed))
    fields = "'oracle' AS retriever, condition_id || '-oracle' AS condition_id"
    of_rag = "FROM {} WHERE method = 'rag' AND shots = 0"
    change(
        changed,
        f"INSERT INTO conditions SELECT * REPLACE ({fields}) {of_rag.format('conditions')}",
        f"INSERT INTO scores SELECT * REPLACE ({fields}, false AS main) {of_rag.format('scores')}",
        "INSERT INTO k_choices SELECT condition_id || '-oracle', fold, k FROM k_choices "
        "JOIN conditions USING (condition_id, k) WHERE method = 'rag' AND shots = 0",
        "INSERT INTO k_choices SELECT DISTINCT s.condition_id, f, s.k FROM scores s, range(5) t(f) "
        "WHERE s.retriever = 'oracle' AND s.k_rule = 'cross_fitted' ON CONFLICT DO NOTHING",
        "INSERT INTO answers SELECT * REPLACE (condition_id || '-oracle' AS condition_id, "
        "true AS correct) FROM answers SEMI JOIN conditions ON method = 'rag' AND shots = 0 "
        "AND retriever = 'dense' AND conditions.condition_id = answers.condition_id",
        "INSERT INTO damage BY NAME SELECT checkpoint_id, 'facts:x' AS probe, 0.9 AS before, "
        "0.4 AS after, 100 AS n FROM checkpoints",
    )
    for j in judged_of(changed):
        assert j.ceiling is not None and j.ceiling.retriever == "oracle"
        assert f"{j.cast.recipe} cost elsewhere: facts:x fell from 0.900 to 0.400" in j.damage


def test_what_is_not_shown_says_what_could_have_been(changed: Path) -> None:
    change(
        changed,
        # All answer alike: nothing can be shown, and five points cannot be excluded.
        "UPDATE answers SET correct = (gold % 2 = 0)",
        "UPDATE scores SET accuracy = 0.5",
        "UPDATE comparisons SET only_a = 0, only_b = 0, difference = 0, p_value = 1, "
        "p_adjusted = 1, verdict = 'no difference shown'",
    )
    judged = judged_of(changed)
    assert {j.verdict for j in judged} == {"not shown"}
    for j in judged:
        assert "not shown" in j.how_sure and "points could have been shown" in j.how_sure
        assert j.settle is None and "nor would more questions" in j.what_turns
    assert "nothing is shown" in overall(judged)


def test_what_was_not_tried_is_said(changed: Path) -> None:
    assert "tried" not in overall(judged_of(changed))
    change(changed, "DELETE FROM scores WHERE method LIKE 'ft%' AND corpus = 'rivers'")
    judged = judged_of(changed)
    assert [j.untried for j in judged] == ["", "fine-tuning"]
    assert {j.verdict for j in judged} == {"retrieve"}
    assert overall(judged).endswith("(rivers, tiny). Fine-tuning was not tried there.")
    assert "tried" not in overall(judged[:1])


def test_nothing_is_said_of_nothing() -> None:
    assert "Nothing can be said yet" in overall([])


def test_in_a_terminal_it_says_the_same_and_fits(rich: Store) -> None:
    said = in_words(rich.root / DATABASE)
    assert max(map(len, said.splitlines())) <= 79
    first, *blocks = (" ".join(block.split()) for block in said.split("\n\n"))
    judged = judged_of(rich.root / DATABASE)
    assert first == overall(judged)
    told = [j for j in judged if j.table == 2 and j.differences]
    assert len(told) == len(blocks) > 0
    for one, block in zip(told, blocks, strict=True):
        assert block.startswith(f"{one.corpus}, {one.model}: ")
        assert one.headline in block
        assert one.what_turns in block
