"""What methods cost: from what was recorded, and by hand."""

import shutil
from pathlib import Path

import duckdb
import pytest

from kinject_assets.core.report.costs import Cost, Operation, read_operations, read_spent
from kinject_assets.core.report.evidence import read_evidence
from kinject_assets.core.report.memo import judge_all, read_damage
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic


def operation(rag: Cost | None, ft: Cost | None) -> Operation:
    costs = {name: cost for name, cost in (("rag", rag), ("ft", ft)) if cost}
    return Operation(corpus="c", model="m", recipe="full.p00", costs=costs)


def cost(update: float, question: float | None, usd: float | None = 0.0) -> Cost:
    return Cost(update_seconds=update, update_usd=usd, question_seconds=question)


def test_a_month_by_hand() -> None:
    # An hour of training and 2 USD of paraphrases twice, 3,600 answers of a second, 3 USD an hour.
    assert cost(3600, 1.0, usd=2.0).monthly(3600, 2, 3.0) == pytest.approx(2 * (3 + 2) + 3)
    assert cost(3600, None).monthly(1, 1, 1) is None
    assert cost(3600, 1.0, usd=None).monthly(1, 1, 1) is None
    assert cost(3600, 1.0, usd=None).monthly(3600, 0, 3.0) == 3.0, "nothing is written anew"


@pytest.mark.parametrize(
    ("rag", "ft", "said"),
    [
        # Training costs 3 USD more, a question 3 / 3600 USD less: even at 3,600 questions.
        (cost(0, 2.0), cost(3600, 1.0), "FT above 3,600 questions"),
        (cost(3600, 1.0), cost(0, 2.0), "RAG above 3,600 questions"),
        (cost(0, 1.0), cost(3600, 2.0), "RAG at any volume"),
        (cost(3600, 2.0), cost(0, 1.0), "FT at any volume"),
        (cost(3600, 1.0), cost(0, 1.0), "FT at any volume"),
        (cost(0, 2.0), cost(0, 1.0), "FT at any volume"),
        (cost(1, 1.0), cost(1, 1.0), "equal"),
        (cost(1, None), cost(1, 1.0), "no answer's time was measured"),
        (cost(1, 1.0), None, "needs RAG and FT"),
        (cost(1, 1.0), cost(1, 1.0, usd=None), "no price"),
    ],
)
def test_break_even_by_hand(rag: Cost | None, ft: Cost | None, said: str) -> None:
    assert operation(rag, ft).break_even(1, 1, 3.0) == said


@pytest.fixture
def database(built: Store, tmp_path: Path) -> Path:
    """The database with times and prices that are easy to reckon with."""
    path = Path(shutil.copyfile(built.root / DATABASE, tmp_path / DATABASE))
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "UPDATE artefacts SET run_id = 'run', started_at = TIMESTAMP '2031-05-01 00:00:00', "
            "finished_at = TIMESTAMP '2031-05-01 00:10:00'"
        )
        connection.execute("UPDATE generations SET cost_usd = 4.0 WHERE generation_id = 'g2'")
    return path


def test_operations_are_what_was_recorded(database: Path) -> None:
    evidence = read_evidence(database)
    corpora = fetch(database, "SELECT * FROM corpora").dicts()
    judged = judge_all(evidence, corpora, read_damage(database))
    events, rivers = read_operations(database, synthetic.profile(), judged)
    # 62 questions under 3 K and 2 numbers of examples in ten minutes.
    assert events.costs["rag"].question_seconds == pytest.approx(600 / (62 * 6))
    assert events.costs["ft"].question_seconds == pytest.approx(600 / (62 * 2))
    assert rivers.costs["ft"].update_seconds == 3.0, "the checkpoint's seconds"
    assert rivers.costs["rag"].update_seconds == 0.0, "nothing was embedded"
    assert rivers.costs["rag"].update_usd == 0.0
    # One generation wrote every text: each ordinal and the validation bear its price.
    ordinals = int(judged[0].cast.recipe[-2:])
    assert events.costs["ft"].update_usd == pytest.approx(4.0 * (ordinals + 1))
    assert rivers.costs["ft"].update_usd == pytest.approx(4.0), "validation alone"


def test_answers_that_were_taken_over_took_no_time(database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("UPDATE answers SET run_id = 'earlier'")
    evidence = read_evidence(database)
    judged = judge_all(evidence, fetch(database, "SELECT * FROM corpora").dicts(), [])
    for found in read_operations(database, synthetic.profile(), judged):
        assert {c.question_seconds for c in found.costs.values()} == {None}
        assert found.break_even() == "no answer's time was measured"


def test_answers_that_were_taken_over_keep_the_seconds_that_were_measured(database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("UPDATE answers SET run_id = 'earlier'")
        connection.execute(
            "UPDATE artefacts SET counts = '{\"seconds_per_answer\": 0.25}' "
            "WHERE starts_with(asset, 'answers_')"
        )
    judged = judge_all(
        read_evidence(database), fetch(database, "SELECT * FROM corpora").dicts(), []
    )
    operations = read_operations(database, synthetic.profile(), judged)
    assert operations
    for found in operations:
        assert {c.question_seconds for c in found.costs.values()} == {0.25}
        assert "measured" not in found.break_even()


@pytest.mark.parametrize("known", ["generation_id <> 'g2'", "false"])
def test_an_unknown_price_is_not_nothing(database: Path, known: str) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute(f"UPDATE generations SET cost_usd = NULL WHERE NOT ({known})")
    evidence = read_evidence(database)
    judged = judge_all(evidence, fetch(database, "SELECT * FROM corpora").dicts(), [])
    for found in read_operations(database, synthetic.profile(), judged):
        assert found.costs["rag"].update_usd == 0.0
        assert found.costs["ft"].update_usd is None
        assert found.break_even() == "no price"


def test_a_text_with_one_price_unknown_has_none(database: Path) -> None:
    """Of the paraphrases of one ordinal some were priced."""
    with duckdb.connect(str(database)) as connection:
        connection.execute("UPDATE generations SET cost_usd = NULL WHERE generation_id = 'g1'")
        connection.execute(
            "UPDATE paraphrases SET generation_id = 'g1' WHERE paraphrase_id = "
            "(SELECT min(paraphrase_id) FROM paraphrases WHERE purpose = 'validation')"
        )
    judged = judge_all(
        read_evidence(database), fetch(database, "SELECT * FROM corpora").dicts(), []
    )
    found = read_operations(database, synthetic.profile(), judged)
    assert None in [operation.costs["ft"].update_usd for operation in found]


@pytest.mark.parametrize(("kept", "measured"), [(0.4, True), (0.6, False)])
def test_seconds_of_an_artefact_that_took_most_over_are_not_an_answers(
    database: Path, kept: float, measured: bool
) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            "UPDATE answers SET run_id = 'earlier' WHERE answer_id IN (SELECT answer_id FROM "
            "(SELECT answer_id, percent_rank() OVER (PARTITION BY condition_id ORDER BY answer_id)"
            f" AS place FROM answers) WHERE place < {kept})"
        )
    judged = judge_all(
        read_evidence(database), fetch(database, "SELECT * FROM corpora").dicts(), []
    )
    for found in read_operations(database, synthetic.profile(), judged):
        assert (found.costs["rag"].question_seconds is not None) == measured


def test_what_was_spent(database: Path) -> None:
    spent = {line.what: line for line in read_spent(database)}
    assert spent["Training"].seconds == 5 * 600
    assert spent["... of it, controls"].seconds == 3.0
    assert spent["Answering: RAG"].serves == "RAG" and spent["Answering: RAG"].seconds == 1200
    # The lake's purpose is none of ours: it is shown as it is.
    assert spent["questions"].requests == 2
    assert spent["questions"].usd == pytest.approx(4.01)
    with duckdb.connect(str(database)) as connection:
        connection.execute("UPDATE generations SET cost_usd = NULL WHERE generation_id = 'g2'")
    assert {line.what: line for line in read_spent(database)}["questions"].usd is None
